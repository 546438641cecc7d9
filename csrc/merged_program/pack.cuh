// Convolution weights for tensor cores, once for all problems that have them.
//
// A float32 number x is split in two float16 numbers, x = high + low, which keeps 22 bits of all numbers that are large enough
// for low to have 11; high * high + high * low + low * high is then as good a product as float32's. So numbers are scaled by
// powers of two: weights for each output channel, whose smallest are then kept to 2^-37 of its largest.
//
// Packed: `scale[channel]`, output channels rounded up (see columns_of), by which sums are to be multiplied; then what the 32
// lanes of a warp hold of each 16 input by 8 output channels, {high of two and two input channels, low of the same}, [tap, 16
// input channels, 16 output channels, 2, lane]. Columns are in such an order that a lane's results are 4 neighbouring channels,
// and if there is but one tap, so are a lane's inputs (see pointwise.cuh).
#pragma once

#include <cuda_fp16.h>

#include "merged_program/reader.cuh"

namespace hwnas::merged_program {

// Of 16 output channels each: one, or an even number, since a warp takes two.
__device__ inline int columns_of(int o) { return o <= 16 ? 1 : (o + 31) / 32 * 2; }

__device__ inline unsigned bits(__half2 v) { return reinterpret_cast<const unsigned&>(v); }

__device__ inline uint4 split(float4 v) {
    const __half2 a = __floats2half2_rn(v.x, v.y), b = __floats2half2_rn(v.z, v.w);
    const float2 ra = __half22float2(a), rb = __half22float2(b);
    const __half2 la = __floats2half2_rn(v.x - ra.x, v.y - ra.y), lb = __floats2half2_rn(v.z - rb.x, v.w - rb.y);
    return make_uint4(bits(a), bits(b), bits(la), bits(lb));
}

// What activations are multiplied by, and the largest of them that this does well with: [4, 65504] once multiplied, which keeps
// all to 2^-27 of the largest.
constexpr float kUnit = 128.f, kLeast = 4.f, kMost = 65504.f;

// 2^n with peak * 2^n in [4096, 8192), which is used where that does not do; 1 if there is nothing to scale.
__device__ inline float unit_of(float peak) {
    if (!(peak > 0.f)) return 1.f;
    const int exponent = static_cast<int>(__float_as_uint(peak) >> 23);
    return __uint_as_float(static_cast<unsigned>(max(1, min(254 + 12 - exponent, 253))) << 23);
}

// A block: 16 output channels.
__global__ void __launch_bounds__(kMapThreads) pack_kernel(const Pack* packs, const std::int32_t* begin, int count) {
    __shared__ float peaks[kMapThreads];
    __shared__ float units[16];
    const int index = find_problem(begin, count, blockIdx.x);
    const Pack& p = packs[index];
    const int t = threadIdx.x, column = static_cast<int>(blockIdx.x) - begin[index], columns = columns_of(p.o);
    const auto weight = [&](int o, int c, int tap) {
        const bool inside = o < p.o && c < p.c;
        return inside ? p.weight[o * p.weight_stride[0] + c * p.weight_stride[1] + tap / p.kernel_w * p.weight_stride[2] + tap % p.kernel_w * p.weight_stride[3]] : 0.f;
    };
    const int taps = p.kernel_h * p.kernel_w, blocks = (p.c + 15) / 16;
    float peak = 0.f;
    for (int i = t / 16; i < taps * p.c; i += kMapThreads / 16) {
        const float v = fabsf(weight(column * 16 + t % 16, i / taps, i % taps));
        if (v <= 3.4e38f) peak = fmaxf(peak, v);
    }
    peaks[t] = peak;
    __syncthreads();
    if (t < 16) {
        for (int i = 1; i < kMapThreads / 16; ++i) peak = fmaxf(peak, peaks[t + 16 * i]);
        units[t] = unit_of(peak);
        p.packed[column * 16 + t] = 1.f / units[t];
    }
    __syncthreads();
    uint4* to = reinterpret_cast<uint4*>(p.packed + columns * 16);
    for (int i = t; i < taps * blocks * 64; i += kMapThreads) {
        const int lane = i % 32, part = i / 32 % 2, block = i / 64 % blocks, tap = i / 64 / blocks, n = lane / 4;
        const int channel = 4 * (n / 2) + 2 * part + n % 2, o = column * 16 + channel;
        const int c = block * 16 + lane % 4 * (taps == 1 ? 4 : 2), next = c + (taps == 1 ? 2 : 8);
        const float unit = units[channel];
        const float4 v = make_float4(weight(o, c, tap), weight(o, c + 1, tap), weight(o, next, tap), weight(o, next + 1, tap));
        to[((tap * blocks + block) * columns + column) * 64 + part * 32 + lane] = split(v * unit);
    }
}

}  // namespace hwnas::merged_program
