// A program of fused steps over a batch of images: what hwnas/kernels/candidate_plan.py makes of one or many networks. `run`
// takes a few images at a time through all steps, so that their activations stay in the cache; `calibrate` takes the whole
// batch through step after step, because a batch norm wants the statistics of the whole batch before its result is read.
//
// Rows are int64, in the order of the plan's tables; -1 is none. Buffers are per image: buffer b of n images starts at
// n * offset of the arena.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::candidate_program {

enum Kind : std::int64_t { kInput, kConv, kDepthwise, kMaxPool, kAvgPool, kGlobalPool, kSum, kConcat, kZero, kMoments, kOutput };

struct Buffer {
    std::int64_t c, h, w, offset;
};

// What a step reads: see Source. `affine` is where a batch norm's channels stand among all, `gate` is a buffer.
struct Read {
    std::int64_t buffer, affine, activation, gate;
};

// A kOutput step copies its read into result number `out`; kMoments only takes statistics.
struct Step {
    std::int64_t kind, out, first_read, reads, kernel_h, kernel_w, stride, padding, dilation, weights, bias, affine, activation, residual;
    std::int64_t norm;  // the channels of the batch norm that wants this result's statistics
};

struct Program {
    const Step* steps;
    std::int64_t step_count;
    const Read* reads;
    const Buffer* buffers;
    std::int64_t buffer_count, image_floats;  // of the arena, for one image
    const float* weights;
    float* affine;  // [scale, shift][channels of all batch norms]; run reads it, calibrate writes it
    std::int64_t norm_channels;
    std::int64_t scratch_floats;  // for each thread
};

struct Norms {
    const float* weight_bias;  // [weight, bias][channels of all batch norms], zero in the padding
    const float* eps;          // [channels]
    double* statistics;        // [mean, unbiased variance][channels]: added to
};

struct Images {
    const float* at;  // [n, h, w, c]
    std::int64_t n;
};

// Results [outputs, n, c] of the steps that `wanted` marks. `arena` has threads * tile * image_floats floats, `scratch`
// threads * scratch_floats. The same bits for any number of threads and any tile.
Status run(const Program& program, const std::uint8_t* wanted, Images images, std::int64_t tile, float* results, float* arena, float* scratch,
           int threads);

// Statistics of one batch. `arena` has n * image_floats floats. The same bits for any number of threads.
Status calibrate(const Program& program, const Norms& norms, Images images, float* arena, float* scratch, int threads);

}  // namespace hwnas::candidate_program
