// Everything but dense convolutions. A thread: kRun pixels below each other by 4 channels; a block: up to kQuads times 4 channels.
#pragma once

#include "merged_program/finish.cuh"
#include "merged_program/sum.cuh"
#include "merged_program/window.cuh"

namespace hwnas::merged_program {

// The rest: hardly any time goes there.
struct Other {
    static constexpr int kBlocks = 2;
    static __device__ int prepare(const Problem&, int, int, float4*) { return 0; }

    // Of an operand that has so many pixels an image.
    static __device__ float4 made(const Operand& in, const Place& at, int quad, int pixels, int pixel) {
        const Reader read(in, at.group, 0, quad);
        return read.made(load4(read.address(at.origin(pixels) + pixel)));
    }
    // Over a window of any size.
    static __device__ float4 average(const Operand& in, const Place& at, int h, int w, int y) {
        const int reach = in.pool / 2, left = max(at.x - reach, 0), right = min(at.x + reach, w - 1);
        const int rows = min(y + reach, h - 1) - max(y - reach, 0) + 1;
        return window_sum(in, at, h, w, y, left, right) * inverse(rows * (right - left + 1));
    }
    static __device__ float channel(const Problem& p, const Place& at, int pixel, int channel) {
        const auto read = [&](const Operand& in, int pixel, int c) {
            const float4 v = made(in, at, c / 4, p.h * p.w, pixel);
            return (&v.x)[c % 4];
        };
        if (channel >= p.o) return 0.f;
        if (p.kind == Kind::kFlatten)  // in the order of channels, rows, columns
            return read(p.in[0], channel % (p.h * p.w), channel / (p.h * p.w));
        int term = 0;
        for (; channel >= p.in[term].channels; ++term) channel -= p.in[term].channels;
        return read(p.in[term], pixel, channel);
    }
    static __device__ void compute(const Problem& p, const Place& at, float4 (&value)[kRun]) {
        if (!at.inside) return;
        for (int i = 0; i < kRun; ++i) {
            const int y = at.y + i;
            if (y >= p.ho) break;
            const int pixel = y * p.w + at.x, pixels = p.h * p.w;
            switch (p.kind) {
                case Kind::kAdd:
                    for (int term = 0; term < p.terms; ++term) {
                        const Operand& in = p.in[term];
                        value[i] = value[i] + (in.pool ? average(in, at, p.h, p.w, y) : made(in, at, at.quad, pixels, pixel));
                    }
                    break;
                case Kind::kScale:
                    value[i] = made(p.in[0], at, at.quad, pixels, pixel) * made(p.in[1], at, at.quad, 1, 0);
                    break;
                case Kind::kShift:
                    if (y + 1 < p.h && at.x + 1 < p.w) value[i] = made(p.in[0], at, at.quad, pixels, pixel + p.w + 1);
                    break;
                case Kind::kConcat:
                case Kind::kFlatten:
                    value[i] = make_float4(channel(p, at, pixel, at.quad * 4), channel(p, at, pixel, at.quad * 4 + 1), channel(p, at, pixel, at.quad * 4 + 2),
                                           channel(p, at, pixel, at.quad * 4 + 3));
                    break;
                default: break;
            }
        }
    }
};

// The end: bias, norm, activation.
__device__ inline void finish(const Problem& p, const Place& at, float4 (&value)[kRun]) {
    if (p.bias) {
        const float4 bias = bias_of(p, at.quad);
#pragma unroll
        for (int i = 0; i < kRun; ++i) value[i] = value[i] + bias;
    }
    if (p.scale) {
        const float4 scale = load4(p.scale + at.quad * 4), shift = load4(p.shift + at.quad * 4);
#pragma unroll
        for (int i = 0; i < kRun; ++i) value[i] = multiply_add(value[i], scale, shift);
    }
    activate_run(p.after, value);
    const int ho = p.ho, wo = p.wo, op = padded(p.o);
    float* to = p.y + (at.origin(ho * wo) + at.y * wo + at.x) * op + at.quad * 4;
#pragma unroll
    for (int i = 0; i < kRun; ++i)
        if (at.y + i < ho) store4(to + i * wo * op, value[i]);
}

// A block has p.tile_w threads for each of its quads, and computes p.turns tiles one after the other.
template <typename Work>
__global__ void __launch_bounds__(kMapThreads, Work::kBlocks) map_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    extern __shared__ __align__(16) float4 memory[];
    const int index = find_problem(begin, count, blockIdx.x);
    const unsigned before = __ldg(begin + index);
    __shared__ Problem p;
    fetch(p, problems[index]);
    // Unsigned numbers are divided in half as many instructions.
    const unsigned t = threadIdx.x, quads = padded(p.o) / 4, runs = (p.ho + kRun - 1) / kRun, turns = p.turns, blocks = (p.tiles + turns - 1) / turns;
    unsigned block = blockIdx.x - before, first = 0, wide = quads;
    if (p.columns > 1) {
        const unsigned columns = p.columns, widest = (quads + columns - 1) / columns;
        first = block % columns * widest;
        wide = min(widest, quads - first);
        block /= columns;
    }
    float4* const scratch = memory + Work::prepare(p, first * 4, wide, memory);
    const unsigned group = block / blocks, run = t / wide, begins = (block - group * blocks) * turns, ends = min(begins + turns, static_cast<unsigned>(p.tiles));
    Place at;
    at.quad = first + t - run * wide, at.group = group;
    at.run = run, at.wide = wide;
    at.taps = memory + (t - run * wide);
#pragma unroll 1
    for (unsigned tile = begins; tile < ends; ++tile) {
        const unsigned start = tile * p.tile_w, item = start + run, row = item / p.wo, image = row / runs;
        at.runs = min(static_cast<unsigned>(p.tile_w), p.images * runs * p.wo - start);
        at.inside = at.run < at.runs;
        at.image = group * p.images + image, at.y = (row - image * runs) * kRun, at.x = item - row * p.wo;
        float4 value[kRun] = {};
        Work::compute(p, at, value);
        if (at.inside) finish(p, at, value);
        if (!p.mean) continue;
        __shared__ int here;
        __syncthreads();
        if (t == 0) here = 0;
        __syncthreads();
        if (at.inside && at.quad == static_cast<int>(first)) atomicAdd(&here, min(kRun, p.ho - at.y));
        __syncthreads();
        const auto each = [&](auto take) {
#pragma unroll
            for (int i = 0; i < kRun; ++i)
                if (at.inside && at.y + i < p.ho) take(value[i]);
        };
        write_moments(p, static_cast<std::int64_t>(group) * p.tiles + tile, here, each, first * 4, wide, p.tile_w, scratch);
    }
}

}  // namespace hwnas::merged_program
