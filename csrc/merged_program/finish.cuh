// The end of a step, once its sums are known: norm, activation, the other terms of a sum; and the moments of its pixels, in two
// passes so that nothing cancels.
#pragma once

#include "merged_program/reader.cuh"

namespace hwnas::merged_program {

__device__ inline float4 bias_of(const Problem& p, int quad) {
    float4 bias = make_float4(0.f, 0.f, 0.f, 0.f);
    if (p.bias)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (quad * 4 + j < p.o) (&bias.x)[j] = p.bias[quad * 4 + j];
    return bias;
}

// Moments of a tile of `here` pixels. Threads t < rows * wide have values of four channels, t % wide says which; each(take) calls
// take(value) for each of a thread's. `scratch` holds as many float4 as there are threads, and kQuads more.
template <typename Each>
__device__ inline void write_moments(const Problem& p, std::int64_t tile, int here, Each each, int first, int wide, int rows, float4* scratch) {
    const int t = threadIdx.x, op = padded(p.o);
    float4* means = scratch + blockDim.x;
    for (int pass = 0; pass < 2; ++pass) {
        __syncthreads();
        const float4 mean = pass ? means[t % wide] : make_float4(0.f, 0.f, 0.f, 0.f);
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
        each([&](float4 v) {
            const float4 d = v + mean * -1.f;
            sum = sum + (pass ? d * d : v);
        });
        scratch[t] = sum;
        __syncthreads();
        if (t >= wide) continue;
        for (int row = 1; row < rows; ++row) sum = sum + scratch[row * wide + t];
        if (!pass) means[t] = sum = sum * (1.f / static_cast<float>(here));
        if (first + t * 4 < op) store4((pass ? p.m2 : p.mean) + tile * op + first + t * 4, sum);
        if (first == 0 && t == 0) p.pixels[tile] = static_cast<float>(here);
    }
}

// A block: a group's 16 channels of a norm; a thread: one channel, every 16th tile. Moments are put together in double precision.
__global__ void __launch_bounds__(kMapThreads) norm_kernel(const Norm* norms, const std::int32_t* begin, int count) {
    constexpr int kN = 16, kRows = kMapThreads / kN;
    __shared__ double sums[kRows][kN];
    const int index = find_problem(begin, count, blockIdx.x);
    const Norm& p = norms[index];
    const int local = static_cast<int>(blockIdx.x) - begin[index], group = local % p.groups;
    const int inner = threadIdx.x % kN, row = threadIdx.x / kN, c = local / p.groups * kN + inner, cp = padded(p.c);
    double moment[3] = {0, 0, 0};  // pixels, mean, then the sum of squared distances
    for (int pass = 0; pass < 3; ++pass) {
        double sum = 0;
        if (c < cp)
            for (int tile = row; tile < p.tiles; tile += kRows) {
                const std::int64_t tile_of = static_cast<std::int64_t>(group) * p.tiles + tile, at = tile_of * cp + c;
                const double n = p.pixels[tile_of], mean = p.mean[at], distance = mean - moment[1];
                sum += pass == 0 ? n : pass == 1 ? n * mean : p.m2[at] + n * distance * distance;
            }
        __syncthreads();
        sums[row][inner] = sum;
        __syncthreads();
        for (int r = 0; r < kRows; ++r) moment[pass] += sums[r][inner];
        if (pass == 1) moment[1] /= moment[0];
    }
    if (row || c >= cp) return;
    const std::int64_t at = static_cast<std::int64_t>(group) * p.norm_stride + c;
    const float gamma = c < p.c ? (p.gamma ? p.gamma[c] : 1.f) : 0.f, beta = c < p.c && p.beta ? p.beta[c] : 0.f;
    const double pixels = moment[0], scale = gamma / sqrt(moment[2] / pixels + static_cast<double>(p.eps));
    p.scale[at] = static_cast<float>(scale);
    p.shift[at] = static_cast<float>(beta - moment[1] * scale);
    p.batch_mean[at] = static_cast<float>(moment[1]);
    p.batch_var[at] = static_cast<float>(moment[2] / (pixels > 1 ? pixels - 1 : 1));
}

}  // namespace hwnas::merged_program
