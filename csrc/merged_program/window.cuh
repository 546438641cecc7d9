// Depthwise convolutions and poolings.
#pragma once

#include "merged_program/place.cuh"

namespace hwnas::merged_program {

struct Window {
    static constexpr int kBlocks = 3;
    // A depthwise kernel's taps, and how many quads they take.
    static __device__ int prepare(const Problem& p, int first, int wide, float4* memory) {
        if (p.kind != Kind::kDepthwise) return 0;
        float* taps = reinterpret_cast<float*>(memory);
        const unsigned lanes = wide * 4, kernel_w = p.kernel_w, numbers = p.kernel_h * kernel_w * lanes;
        const unsigned of_lanes = (1 << 20) / lanes + 1, of_kernel = (1 << 20) / kernel_w + 1;  // exact for such small numbers
        static_assert(kMaxTaps * kQuads * 4 * kQuads * 4 < 1 << 20);
        for (unsigned i = threadIdx.x; i < numbers; i += kMapThreads) {
            const unsigned tap = i * of_lanes >> 20, c = first + i - tap * lanes, ky = tap * of_kernel >> 20;
            taps[i] = c < static_cast<unsigned>(p.c) ? p.weight[c * p.weight_stride[0] + ky * p.weight_stride[2] + (tap - ky * kernel_w) * p.weight_stride[3]] : 0.f;
        }
        __syncthreads();
        return p.kernel_h * p.kernel_w * wide;
    }
    static __device__ void compute(const Problem& p, const Place& at, float4 (&value)[kRun]) {
        if (!at.inside) return;
        const Reader read = at.reader(p.in[0]);
        const int size = p.kernel_h == p.kernel_w && p.dilation == 1 && p.kind == Kind::kDepthwise ? p.kernel_w * 4 + p.stride : 0;
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
        if (p.kind == Kind::kAvgPool && p.ho * p.wo == 1 && p.kernel_h == p.h && p.kernel_w == p.w) average(p, at, read, value[0]);
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
            const float4* tap = at.taps + kx * at.wide;
            int line = step, below = kKernel * at.wide;  // what is worked out of them must not be kept from column to column
            asm volatile("" : "+r"(line), "+r"(below));
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
                    from += line;
                }
                if (!plain) read.made(v);
#pragma unroll
                for (int r = 0; r < kRun; ++r) {
#pragma unroll
                    for (; known <= min(first + r + kAbove, kKernel - 1); ++known) taps[known] = *tap, tap += below;
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
                    if (p.kind == Kind::kDepthwise) value[i] = multiply_add(v[i], at.taps[(ky * kernel_w + kx) * at.wide], value[i]);
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
