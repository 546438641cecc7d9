// Depthwise convolutions and poolings.
#pragma once

#include "merged_program/place.cuh"

namespace hwnas::merged_program {

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
        if (!at.inside) return;
        const Reader read = at.reader(p.in[0]);
        const int size = p.kernel_h == p.kernel_w && p.dilation == 1 && p.kind == Kind::kDepthwise ? p.kernel_w * 4 + p.stride : 0;
        switch (size) {
            case 3 * 4 + 1: return depthwise<3, 1>(p, at, read, value);
            case 3 * 4 + 2: return depthwise<3, 2>(p, at, read, value);
            case 5 * 4 + 1: return depthwise<5, 1>(p, at, read, value);
            case 5 * 4 + 2: return depthwise<5, 2>(p, at, read, value);
            case 7 * 4 + 1: return depthwise<7, 1>(p, at, read, value);
            case 7 * 4 + 2: return depthwise<7, 2>(p, at, read, value);
            default: break;
        }
        if (p.kind == Kind::kAvgPool && p.ho * p.wo == 1 && p.kernel_h == p.h && p.kernel_w == p.w) average(p, at, read, value[0]);
        else any(p, at, read, value);
    }

private:
    // Rows of the input that windows share are loaded once for a column of taps.
    template <int kKernel, int kStride>
    static __device__ void depthwise(const Problem& p, const Place& at, const Reader& read, float4 (&sum)[kRun]) {
        constexpr int kSpan = (kRun - 1) * kStride + kKernel, kRows = kKernel > 3 ? 2 : 4;
        const int h = p.h, w = p.w, top = at.y * kStride - p.padding, left = at.x * kStride - p.padding, step = w * read.cp;
        const float* corner = read.address(at.origin(h * w) + top * w + left);
#pragma unroll 1
        for (int kx = max(-left, 0); kx < min(kKernel, w - left); ++kx) {
            const float* from = corner + kx * read.cp;
            const float4* tap = at.taps + kx * at.wide;
            int line = step, below = kKernel * at.wide;  // what is worked out of them must not be kept from column to column
            asm volatile("" : "+r"(line), "+r"(below));
            float4 taps[kKernel];
#pragma unroll
            for (int first = 0; first < kSpan; first += kRows) {
                float4 v[kRows] = {};
                bool there[kRows];
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    there[r] = first + r < kSpan && static_cast<unsigned>(top + first + r) < static_cast<unsigned>(h);
                    if (there[r]) v[r] = load4(from);
                    from += line;
                }
                read.made(v);
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    if (first + r < kKernel) taps[first + r] = *tap, tap += below;
                    if (!there[r]) continue;
#pragma unroll
                    for (int i = 0; i < kRun; ++i) {
                        const int ky = first + r - i * kStride;
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
