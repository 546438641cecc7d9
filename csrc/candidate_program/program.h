// A program of fused steps over a batch of images: what hwnas/kernels/candidate_plan.py makes of one or many networks. Steps come
// in phases. Within a phase a few images at a time go through all steps; where a batch norm wants statistics, the phase ends,
// because its result can be read only when the whole batch has been seen. What later phases read is stored for the whole
// batch, or computed again from what is.
//
// Rows are int64, in the order of the plan's tables; -1 is none.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::candidate_program {

enum Kind : std::int64_t { kInput, kConv, kWinograd, kDepthwise, kMaxPool, kAvgPool, kGlobalPool, kSum, kConcat, kZero, kMoments, kOutput };

// In floats for one image, `offset` in the memory of the whole batch, or, if local, in a thread's for the images it is at.
struct Buffer {
    std::int64_t c, h, w, offset, local;
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

// Steps up to `end`, `images` at a time.
struct Phase {
    std::int64_t end, images;
};

struct Program {
    const Step* steps;
    const Phase* phases;
    std::int64_t phase_count;
    const Read* reads;
    const Buffer* buffers;
    const float* weights;
    float* affine;  // [scale, shift][channels of all batch norms]; run reads it, calibrate writes it
    std::int64_t norm_channels;
    std::int64_t local_floats, scratch_floats;  // for each thread
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

struct Memory {
    float *batch, *local, *scratch;  // `local` and `scratch` for every thread
};

// A program of one phase: results [outputs, n, c] of the steps that `wanted` marks. The same bits for any number of threads.
Status run(const Program& program, const std::uint8_t* wanted, Images images, float* results, const Memory& memory, int threads);

// Statistics of one batch. The same bits for any number of threads.
Status calibrate(const Program& program, const Norms& norms, Images images, const Memory& memory, int threads);

// A weight [o, c / groups, h, w] anywhere in memory, strides in elements.
struct Weight {
    const float* at;
    std::int64_t o, c, h, w, groups, stride_o, stride_c, stride_h, stride_w;
};

// Writes [padded(o) / 16][h * w * c][16]: as a dense convolution of c channels reads it, with zeros where a group does not look.
void pack(const Weight& weight, float* to);

// Writes GgG' of its 3 x 3 kernels, [padded(o) / 16][4 * 4 * c][16], for a convolution by tiles of 2 x 2 outputs.
void pack_winograd(const Weight& weight, float* to);

}  // namespace hwnas::candidate_program
