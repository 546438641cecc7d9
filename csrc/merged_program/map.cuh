// Everything but dense convolutions. A thread: kRun pixels below each other by 4 channels; a block: up to kQuads times 4 channels.
#pragma once

#include "merged_program/finish.cuh"

namespace hwnas::merged_program {

struct Place {  // of a thread's pixels
    int image, y, x, quad, group;  // image: within the group
    std::int64_t group_pixels;     // of the inputs
    const float4* taps;            // of a depthwise kernel, [tap, wide], this quad's
    int wide;
};

// Terms, each perhaps averaged over windows.
template <bool kPooled>
struct Sum {
    static constexpr int kBlocks = kPooled ? 2 : 3;  // on a multiprocessor: as many as spill nothing that matters
    static __device__ void prepare(const Problem&, int, int, float4*) {}
    static __device__ void compute(const Problem& p, const Place& at, float4 (&value)[kRun]) {
        const int h = p.h, w = p.w, pixel = (at.image * h + at.y) * w + at.x;
        for (int term = 0; term < p.terms; ++term) {
            const Operand& in = p.in[term];
            const Reader read(in, at.group, at.group_pixels, at.quad);
            float4 v[kRun] = {};
            if (kPooled && in.pool) {
                read.averages(at.image * h * w, at.y, at.x, h, w, in.pool, v);
            } else {
#pragma unroll
                for (int i = 0; i < kRun; ++i)
                    if (at.y + i < h) v[i] = read.raw(pixel + i * w);
                read.made(v);
            }
#pragma unroll
            for (int i = 0; i < kRun; ++i) value[i] = value[i] + v[i];
        }
    }
};

// Depthwise convolutions and poolings. Rows of the input that windows share are loaded once.
struct Window {
    static constexpr int kBlocks = 3;
    static __device__ void prepare(const Problem& p, int first, int wide, float4* memory) {
        if (p.kind != Kind::kDepthwise) return;
        float* taps = reinterpret_cast<float*>(memory);
        for (int i = threadIdx.x; i < p.kernel_h * p.kernel_w * wide * 4; i += kMapThreads) {
            const int tap = i / (wide * 4), c = first + i % (wide * 4);
            taps[i] = c < p.c ? p.weight[c * p.weight_stride[0] + tap / p.kernel_w * p.weight_stride[2] + tap % p.kernel_w * p.weight_stride[3]] : 0.f;
        }
        __syncthreads();
    }
    static __device__ void compute(const Problem& p, const Place& at, float4 (&value)[kRun]) {
        const Reader read(p.in[0], at.group, at.group_pixels, at.quad);
        const int top = at.y * p.stride - p.padding, left = at.x * p.stride - p.padding, span = (kRun - 1) * p.stride + (p.kernel_h - 1) * p.dilation;
        const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
        const float none = -__int_as_float(0x7f800000);
        float4 sum[kRun];
        int found[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i) sum[i] = p.kind == Kind::kMaxPool ? make_float4(none, none, none, none) : zero, found[i] = 0;
        for (int r = max(0, -top); r <= span && top + r < p.h; ++r) {
            const int row = (at.image * p.h + top + r) * p.w;
            for (int kx = 0; kx < p.kernel_w; ++kx) {
                const int col = left + kx * p.dilation;
                if (col < 0 || col >= p.w) continue;
                const float4 v = read(row + col);
#pragma unroll
                for (int i = 0; i < kRun; ++i) {
                    const int far = r - i * p.stride, ky = p.dilation == 1 ? far : far / p.dilation;
                    if (far < 0 || ky >= p.kernel_h || ky * p.dilation != far) continue;
                    if (p.kind == Kind::kDepthwise) sum[i] = multiply_add(v, at.taps[(ky * p.kernel_w + kx) * at.wide], sum[i]);
                    else if (p.kind == Kind::kMaxPool) sum[i] = max4(sum[i], v);
                    else sum[i] = sum[i] + v, ++found[i];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kRun; ++i) value[i] = p.kind == Kind::kAvgPool ? sum[i] * inverse(max(found[i], 1)) : sum[i];
    }
};

// The rest: hardly any time goes there.
struct Other {
    static constexpr int kBlocks = 2;
    static __device__ void prepare(const Problem&, int, int, float4*) {}

    static __device__ float channel(const Problem& p, const Place& at, int pixel, int channel) {
        const auto read = [&](const Operand& in, int pixel, int c) {
            const float4 v = Reader(in, at.group, at.group_pixels, c / 4)(pixel);
            return (&v.x)[c % 4];
        };
        if (channel >= p.o) return 0.f;
        if (p.kind == Kind::kFlatten)  // in the order of channels, rows, columns
            return read(p.in[0], at.image * p.h * p.w + channel % (p.h * p.w), channel / (p.h * p.w));
        int term = 0;
        for (; channel >= p.in[term].channels; ++term) channel -= p.in[term].channels;
        return read(p.in[term], pixel, channel);
    }
    static __device__ void compute(const Problem& p, const Place& at, float4 (&value)[kRun]) {
        for (int i = 0; i < kRun; ++i) {
            const int y = at.y + i;
            if (y >= p.ho) break;
            const int pixel = (at.image * p.h + y) * p.w + at.x;
            switch (p.kind) {
                case Kind::kScale:
                    value[i] = Reader(p.in[0], at.group, at.group_pixels, at.quad)(pixel) * Reader(p.in[1], at.group, p.images, at.quad)(at.image);
                    break;
                case Kind::kShift:
                    if (y + 1 < p.h && at.x + 1 < p.w) value[i] = Reader(p.in[0], at.group, at.group_pixels, at.quad)(pixel + p.w + 1);
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

template <typename Work>
__global__ void __launch_bounds__(kMapThreads, Work::kBlocks) map_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    extern __shared__ __align__(16) float4 memory[];
    const int index = find_problem(begin, count, blockIdx.x);
    __shared__ Problem p;
    fetch(p, problems[index]);
    const int local = static_cast<int>(blockIdx.x) - begin[index];
    const int column = local % p.columns, tile = local / p.columns % p.tiles, group = local / p.columns / p.tiles;
    const int op = padded(p.o), quads = op / 4, widest = (quads + p.columns - 1) / p.columns, first = column * widest, wide = min(widest, quads - first);
    const int rows = kMapThreads / widest, runs = (p.ho + kRun - 1) / kRun, t = threadIdx.x;
    const int start = tile * rows, items = min(rows, p.images * runs * p.wo - start);  // runs of pixels
    Work::prepare(p, first * 4, wide, memory);
    const bool inside = t < items * wide;
    const int item = start + t / wide;
    const int row = item / p.wo, image = row / runs;
    const Place at{image, (row - image * runs) * kRun, item - row * p.wo, first + t % wide, group, static_cast<std::int64_t>(p.images) * p.h * p.w, memory + t % wide, wide};
    float4 value[kRun] = {};
    int where[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) where[i] = inside && at.y + i < p.ho ? (at.image * p.ho + at.y + i) * p.wo + at.x : -1;
    if (inside) {
        Work::compute(p, at, value);
        const float4 bias = bias_of(p, at.quad);
#pragma unroll
        for (int i = 0; i < kRun; ++i) value[i] = value[i] + bias;
        Finish(p, group, static_cast<std::int64_t>(p.images) * p.ho * p.wo, at.quad)(where, value);
    }
    if (p.mean) {
        __shared__ int here;
        __syncthreads();
        if (t == 0) here = 0;
        __syncthreads();
        if (inside && t % wide == 0) atomicAdd(&here, min(kRun, p.ho - at.y));
        __syncthreads();
        const auto each = [&](auto take) {
#pragma unroll
            for (int i = 0; i < kRun; ++i)
                if (where[i] >= 0) take(value[i]);
        };
        write_moments(p, static_cast<std::int64_t>(group) * p.tiles + tile, here, each, first * 4, wide, rows, memory);
    }
}

}  // namespace hwnas::merged_program
