// Steps of a merged program on a GPU: many convolutions, poolings and sums of different shapes and weights in one launch.
// A launch takes a table of problems; a block finds the problem that it belongs to and works on one tile of its output. So
// the launches of a program are counted by its depth, not by its candidates.
//
// Activations are [images, height, width, channels], float32, channels padded to a multiple of 4 with finite values. A value
// whose batch norm is still to be applied lies raw; whoever reads it applies scale and shift of its group of images, which
// are known once the group's statistics are, then up to two activations.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::merged_program {

// Numbers that hwnas/kernels/merged_program.py knows too.
enum class Kind : std::int32_t { kDense = 0, kDepthwise, kAdd, kScale, kMaxPool, kAvgPool, kConcat, kShift, kZero, kFlatten };
enum class Act : std::int32_t { kNone = 0, kRelu, kRelu6, kHardswish, kHardsigmoid, kSigmoid, kTanh, kSilu, kGelu, kElu, kLeakyRelu };

constexpr int kTerms = 4;  // inputs of a problem at most

struct Operand {
    const float* x;
    const float *scale, *shift;  // of [groups, norm_stride]; null: none
    Act first, second;
    std::int32_t channels, norm_stride;
};

struct Problem {
    Operand in[kTerms];
    const float *weight, *bias;  // in the supernet, by strides (out, in, row, column)
    float* y;
    float *mean, *m2;  // of each tile of pixels, [groups, tiles, out padded]: mean and sum of squared distances; null: not wanted
    std::int64_t weight_stride[4];
    Kind kind;
    std::int32_t terms;
    std::int32_t images, groups;  // images of each group
    std::int32_t c, h, w, o, ho, wo;
    std::int32_t kernel_h, kernel_w, stride, padding, dilation;
    Act after;             // before it is stored
    std::int32_t tiles;    // of pixels, in each group
    std::int32_t columns;  // of output channels
};

// A batch norm's coefficients from the tiles' moments. scale, shift, batch_mean, batch_var are [groups, norm_stride].
struct Norm {
    const float *mean, *m2;
    const float *gamma, *beta;  // null: 1 and 0
    float *scale, *shift;
    float *batch_mean, *batch_var;  // var: unbiased, what running statistics are made of
    std::int64_t pixels;            // of a group
    std::int32_t c, groups, tiles, tile_pixels, norm_stride;
    float eps;
};

enum class Shape : std::int32_t { kDense16 = 0, kDense32, kDense64, kMap, kNorm, kShapes };

// Pixels and channels of a block's tile.
constexpr int tile_pixels(Shape shape) { return shape == Shape::kDense16 ? 512 : shape == Shape::kDense64 ? 128 : 256; }
constexpr int tile_channels(Shape shape) { return shape == Shape::kDense32 ? 32 : shape == Shape::kDense64 ? 64 : 16; }

// One launch: `count` problems (or norms) at `problems`, of which problem i begins at block `begin[i]`; all on the device.
struct Launch {
    Shape shape;
    std::int32_t count;
    const void* problems;
    const std::int32_t* begin;
    std::int64_t blocks;
};

Status run_cuda(const Launch* launches, std::int64_t count, void* stream);

}  // namespace hwnas::merged_program
