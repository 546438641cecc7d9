// Depthwise convolutions and poolings.
#pragma once

#include "merged_program/place.cuh"

namespace hwnas::merged_program {

struct Window {
    static constexpr int kBlocks = 3;
    // A depthwise kernel's taps, and how many quads they take. Threads beside each other read taps of a channel, which lie beside
    // each other; a quad between the rows of channels keeps them off each other's banks as they write.
    static __device__ int prepare(const Problem& p, int first, int wide, float4* memory) {
        if (p.kind != Kind::kDepthwise) return 0;
        constexpr int kAtOnce = 4;
        float* to = reinterpret_cast<float*>(memory);
        const float* weight = p.weight;
        const int of_channel = static_cast<int>(p.weight_stride[0]), of_row = static_cast<int>(p.weight_stride[2]), of_column = static_cast<int>(p.weight_stride[3]);
        const unsigned channels = p.c, kernel_w = p.kernel_w, taps = p.kernel_h * kernel_w, row = wide * 4 + 4, count = taps * wide * 4;
        const unsigned by_taps = (1 << 20) / taps + 1, by_kernel = (1 << 20) / kernel_w + 1;  // exact for such small numbers
        static_assert(kMaxTaps * kMaxTaps * kQuads * 4 < 1 << 20);
        for (unsigned start = threadIdx.x; start < count; start += kAtOnce * kMapThreads) {
            float v[kAtOnce];
            unsigned place[kAtOnce];
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                const unsigned i = start + k * kMapThreads, lane = i * by_taps >> 20, tap = i - lane * taps, c = first + lane, ky = tap * by_kernel >> 20;
                place[k] = tap * row + lane;
                v[k] = i < count && c < channels ? __ldg(weight + (c * of_channel + ky * of_row + (tap - ky * kernel_w) * of_column)) : 0.f;
            }
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k)
                if (start + k * kMapThreads < count) to[place[k]] = v[k];
        }
        __syncthreads();
        return taps * (wide + 1);
    }
    static __device__ void compute(const Problem& p, const Place& at, float4 (&value)[kRun]) {
        if (!at.inside) return;
        const Reader read = at.reader(p.in[0]);
        const int size = p.kernel_h == p.kernel_w && p.stride <= 2 && p.dilation == 1 && p.kind == Kind::kDepthwise ? p.kernel_w * 4 + p.stride : 0;
        const bool whole = p.h <= kRun && p.padding == p.kernel_h / 2;
        switch (size) {
            case 3 * 4 + 1: return whole ? depthwise<3, 1, true>(p, at, read, value) : depthwise<3, 1>(p, at, read, value);
            case 3 * 4 + 2: return depthwise<3, 2>(p, at, read, value);
            case 5 * 4 + 1: return whole ? depthwise<5, 1, true>(p, at, read, value) : depthwise<5, 1>(p, at, read, value);
            case 5 * 4 + 2: return depthwise<5, 2>(p, at, read, value);
            case 7 * 4 + 1: return whole ? depthwise<7, 1, true>(p, at, read, value) : depthwise<7, 1>(p, at, read, value);
            case 7 * 4 + 2: return depthwise<7, 2>(p, at, read, value);
            default: break;
        }
        if (p.kind == Kind::kAvgPool && p.ho * p.wo == 1 && p.kernel_h == p.h && p.kernel_w == p.w && !p.padding) average(p, at, read, value[0]);
        else any(p, at, read, value);
    }

private:
    // Rows of the input that windows share are loaded once for a column of taps. kWhole: a thread has all rows of an image, and no
    // rows above or below are looked at.
    template <int kKernel, int kStride, bool kWhole = false>
    static __device__ void depthwise(const Problem& p, const Place& at, const Reader& read, float4 (&sum)[kRun]) {
        constexpr int kAbove = kWhole ? kKernel / 2 : 0, kSpan = kWhole ? kRun : (kRun - 1) * kStride + kKernel;
        const int h = p.h, w = p.w, top = kWhole ? 0 : at.y * kStride - p.padding, left = at.x * kStride - p.padding, step = w * read.cp;
        const float* corner = read.address(at.origin(h * w) + top * w + left);
        const bool plain = read.is_plain();
#pragma unroll 1
        for (int kx = max(-left, 0); kx < min(kKernel, w - left); ++kx) {
            const float* from = corner + kx * read.cp;
            float4 taps[kKernel];
            int known = 0;  // of them
#pragma unroll
            for (int first = 0; first < kSpan; first += kRun) {
                float4 v[kRun] = {};
                bool there[kRun];
#pragma unroll
                for (int r = 0; r < kRun; ++r) {
                    there[r] = first + r < kSpan && static_cast<unsigned>(top + first + r) < static_cast<unsigned>(h);
                    if (there[r]) v[r] = load4(from);
                    from += step;
                }
                if (!plain) read.made(v);
#pragma unroll
                for (int r = 0; r < kRun; ++r) {
#pragma unroll
                    for (; known <= min(first + r + kAbove, kKernel - 1); ++known) taps[known] = at.taps[(known * kKernel + kx) * (at.wide + 1)];
                    if (!there[r]) continue;
#pragma unroll
                    for (int i = 0; i < kRun; ++i) {
                        const int ky = first + r + kAbove - i * kStride;
                        if (ky >= 0 && ky < kKernel) sum[i] = multiply_add(v[r], taps[ky], sum[i]);
                    }
                }
            }
        }
    }

    // Of whole images.
    static __device__ void average(const Problem& p, const Place& at, const Reader& read, float4& value) {
        const int pixels = p.h * p.w;
        float4 sum[kRun] = {};
        const float* from = read.address(at.origin(pixels));
        for (int first = 0; first < pixels; first += kRun) {
            float4 v[kRun] = {};
#pragma unroll
            for (int i = 0; i < kRun; ++i)
                if (first + i < pixels) v[i] = load4(from + (first + i) * read.cp);
            read.made(v);
#pragma unroll
            for (int i = 0; i < kRun; ++i)
                if (first + i < pixels) sum[i] = sum[i] + v[i];
        }
        value = (sum[0] + sum[1] + sum[2] + sum[3]) * inverse(pixels);
    }

    static __device__ void any(const Problem& p, const Place& at, const Reader& read, float4 (&value)[kRun]) {
        const float none = -__int_as_float(0x7f800000);
        const int h = p.h, w = p.w, stride = p.stride, dilation = p.dilation, kernel_h = p.kernel_h, kernel_w = p.kernel_w;
        const int top = at.y * stride - p.padding, left = at.x * stride - p.padding, step = stride * w * read.cp;
        const float* corner = read.address(at.origin(h * w) + top * w + left);
        int found[kRun] = {};
        if (p.kind == Kind::kMaxPool)
#pragma unroll
            for (int i = 0; i < kRun; ++i) value[i] = make_float4(none, none, none, none);
        for (int ky = 0; ky < kernel_h; ++ky)
            for (int kx = 0; kx < kernel_w; ++kx) {
                const int row = top + ky * dilation, col = left + kx * dilation;
                if (col < 0 || col >= w) continue;
                bool there[kRun];
                const float* from = corner + (ky * w + kx) * dilation * read.cp;
                float4 v[kRun] = {};
#pragma unroll
                for (int i = 0; i < kRun; ++i) {
                    there[i] = static_cast<unsigned>(row + i * stride) < static_cast<unsigned>(h);
                    if (there[i]) v[i] = load4(from + i * step);
                }
                read.made(v);
#pragma unroll
                for (int i = 0; i < kRun; ++i) {
                    if (!there[i]) continue;
                    if (p.kind == Kind::kDepthwise) value[i] = multiply_add(v[i], at.taps[(ky * kernel_w + kx) * (at.wide + 1)], value[i]);
                    else if (p.kind == Kind::kMaxPool) value[i] = max4(value[i], v[i]);
                    else value[i] = value[i] + v[i], ++found[i];
                }
            }
        if (p.kind == Kind::kAvgPool)
#pragma unroll
            for (int i = 0; i < kRun; ++i) value[i] = value[i] * inverse(max(found[i], 1));
    }
};

}  // namespace hwnas::merged_program
