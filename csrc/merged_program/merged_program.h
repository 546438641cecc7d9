// Steps of a merged program on a GPU: many convolutions, poolings and sums of different shapes and weights in one launch.
// A launch takes a table of problems; a block finds the problem that it belongs to and works on one tile of its output. So
// the launches of a program are counted by its depth, not by its candidates.
//
// Activations are [images, height, width, channels], float32, channels padded to a multiple of 4 with finite values. A value
// whose batch norm is still to be applied lies raw; whoever reads it applies scale and shift of its group of images, which
// are known once the group's statistics are, then up to two activations. Where the statistics are known beforehand, whoever
// writes a value applies its norm, and a convolution adds the other terms of the sum that it belongs to.
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
    std::int32_t pool;  // of a pooled sum's: 0, or the (odd) kernel of an average pooling that keeps the size and counts no padding
    std::int32_t unused;
};

// What a block of a convolution computes: tile_images images by tile_h rows by tile_w columns of its output.
struct Problem {
    Operand in[kTerms];               // of a convolution the first is its input, the others are added as they lie
    const float *weight, *bias;       // packed if dense, else in the supernet, by strides (out, in, row, column)
    const float *scale, *shift;       // of the norm after it; null: none, or left to readers
    float* y;
    float *mean, *m2, *pixels;        // of each tile, [groups, tiles, out padded] and [groups, tiles]: mean, sum of squared
    std::int64_t weight_stride[4];    // distances, how many pixels; null: not wanted
    Kind kind;
    std::int32_t terms;
    std::int32_t images, groups;      // images of each group
    std::int32_t c, h, w, o, ho, wo;
    std::int32_t kernel_h, kernel_w, stride, padding, dilation;
    Act after, last;                  // after the norm; after the sum
    std::int32_t tiles;               // of pixels, in each group
    std::int32_t turns;               // tiles that a block computes one after the other
    std::int32_t columns;             // of output channels
    std::int32_t tile_images, tile_h, tile_w, tiles_y, tiles_x;  // of the other kernels: see map.cuh
    std::int32_t pairs;               // see dense.cuh
    std::int32_t inverse_w, inverse_h;  // 2^20 over the columns and rows of a tile's input, rounded up: to divide small numbers
    std::int32_t planes;              // 16 input channels each: 1, 2 or 4 of them at a time
    std::int32_t shared_bytes;        // of shared memory that a block needs
};

// A batch norm's coefficients from the tiles' moments. scale, shift, batch_mean, batch_var are [groups, norm_stride].
struct Norm {
    const float *mean, *m2, *pixels;
    const float *gamma, *beta;      // null: 1 and 0
    float *scale, *shift;
    float *batch_mean, *batch_var;  // var: unbiased, what running statistics are made of
    std::int32_t c, groups, tiles, norm_stride;
    float eps;
    std::int32_t unused;
};

// A convolution's weights made ready for tensor cores; see pack.cuh.
struct Pack {
    const float* weight;
    float* packed;
    std::int64_t weight_stride[4];
    std::int32_t o, c, kernel_h, kernel_w;
};

// Kernels. Dense: by the channels of a block; "Rows" if the rows of a 3 x 3 window share what they load, "Point" if there is but
// one tap.
enum class Shape : std::int32_t { kDense16 = 0, kDense32, kDense64, kRows16, kRows32, kRows64, kPoint16, kPoint32, kPoint64, kSum, kPooledSum, kWindow, kMap, kNorm, kPack, kShapes };

constexpr int kMapThreads = 256;
constexpr int kRun = 4;    // rows that a thread of the other kernels computes
constexpr int kQuads = 16; // times four channels: what a block of theirs has at most
constexpr int kMaxTaps = 121;  // of a depthwise kernel

constexpr bool dense(Shape shape) { return shape <= Shape::kPoint64; }
// Pixels and channels of a dense kernel's block, and its threads; rows of 16 pixels of one of its warps, which has 16 channels, or
// all of them if there is but one tap.
constexpr bool pointwise(Shape shape) { return shape >= Shape::kPoint16; }
constexpr int tile_channels(Shape shape) { return 16 << static_cast<int>(shape) % 3; }
constexpr int warp_rows(Shape shape) { return shape == Shape::kPoint64 ? 1 : pointwise(shape) ? 2 : 4; }
constexpr int dense_threads(Shape shape) { return tile_channels(shape) == 64 && !pointwise(shape) ? 256 : 128; }
constexpr int tile_pixels(Shape shape) { return dense_threads(shape) / 2 * warp_rows(shape) / (pointwise(shape) ? 1 : tile_channels(shape) / 16); }

constexpr int pointwise_blocks(Shape shape) { return shape == Shape::kPoint16 ? 6 : shape == Shape::kPoint32 ? 4 : 5; }  // on a multiprocessor

// One launch: `count` problems (or norms, packs) at `problems`, of which problem i begins at block `begin[i]`; all on the device.
struct Launch {
    Shape shape;
    std::int32_t count;
    const void* problems;
    const std::int32_t* begin;
    std::int64_t blocks;
    std::int64_t shared_bytes;
};

Status run_cuda(const Launch* launches, std::int64_t count, void* stream);

}  // namespace hwnas::merged_program
