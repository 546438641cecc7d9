// Convolutions of a cell on tensor cores: forward, and the gradients of the pointwise part. The matrix products are overloads of
// pointwise_product, outer_product and depthwise in bf16.cuh and fp32.cuh.
#pragma once

#include "mixed_cell/bf16.cuh"
#include "mixed_cell/fp32.cuh"

namespace hwnas::mixed_cell::cuda {

template <typename T>
struct WeightsOf;
template <>
struct WeightsOf<bf16> {
    using Type = Bf16Weights;
    template <typename G>
    using Depthwiser = Bf16Depthwiser<G>;
};
template <>
struct WeightsOf<float> {
    using Type = Fp32Weights;
    template <typename G>
    using Depthwiser = Fp32Depthwiser<G>;
};

// The factorized reduce reads every second pixel from (grid, grid) on instead of convolving.
template <typename G, typename T>
__device__ __forceinline__ void subsample(const T* planes, int grid, int channels, T* d) {
    for (int i = threadIdx.x; i < channels * G::P; i += kThreads) {
        const int c = i / G::P, m = i % G::P / G::OW, w = i % G::OW;
        d[c * G::DP + G::position(m, w)] = planes[c * G::PLANE + (G::row(m) + grid) * G::PITCH + 4 + w * G::S + grid];
    }
}

// d of a whole tile; grid >= 0: of that half of the factorized reduce. Ends behind a barrier.
template <typename G, typename T, typename Depthwiser>
__device__ __forceinline__ void depthwise_tile(const Plan<T>& p, Depthwiser& depthwise, const ConvInput<T>& in, int grid, int tile, T* planes, T* d) {
    if (grid < 0) depthwise.fetch(threadIdx.x / 32);
    for (int c0 = 0; c0 < G::C; c0 += G::CH) {
        load_planes<G, G::CH, kThreads>(p, in.x, in.norm, c0, tile, planes);
        Staged<G>::wait();
        __syncthreads();
        if (grid >= 0) subsample<G>(planes, grid, G::CH, d + c0 * G::DP);
        else depthwise.run(planes, c0, d + c0 * G::DP);
        __syncthreads();
    }
}

// acc to [n, c, plane] memory at this warp's pixels.
template <typename G, int M>
__device__ __forceinline__ void store_tile(const float (&acc)[M][G::NW][4], typename G::T* at, std::int64_t plane) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int mt = 0; mt < M; ++mt)
#pragma unroll
        for (int nt = 0; nt < G::NW; nt += 2)
            store_pair(at + (mt * 16 + lane / 4) * plane + G::block(nt), 8 * plane, acc[mt][nt], acc[mt][nt + 1]);
}

template <typename G>
constexpr int conv_shared_bytes() {
    return (G::CH * G::PLANE + G::C * G::DP) * static_cast<int>(sizeof(typename G::T)) + 4 * Staged<G>::kWords;
}

// As conv_kernel. Grid: tiles x jobs; with kReduce the jobs are factorized reduces, tiles x 2 * jobs, each half a matrix.
template <typename G, bool kReduce>
__global__ void __launch_bounds__(kThreads, 3) tile_conv_kernel(Plan<typename G::T> p, Jobs jobs, ConvSums what) {
    using T = typename G::T;
    using Weights = typename WeightsOf<T>::Type;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float2 sums[kWarps][G::C];
    T* planes = reinterpret_cast<T*>(shared);
    T* d = planes + G::CH * G::PLANE;
    constexpr int kHalves = kReduce ? 2 : 1, M = G::MT / kHalves;
    const int job = blockIdx.y / kHalves, half_matrix = blockIdx.y % kHalves, first = half_matrix * (G::C / 2);
    const int edge = jobs.edge[job], conv = kReduce ? int{kFr} : jobs.kind[job], tile = blockIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Weights f(p);
    const ConvInput<T> in(p, edge, conv);
    clear_sides<G>(G::CH, planes, threadIdx.x, kThreads);
    const unsigned* weights =
        Staged<G>::stage(reinterpret_cast<unsigned*>(d + G::C * G::DP), f.pointwise + Weights::matrix(p, edge, conv));
    typename WeightsOf<T>::template Depthwiser<G> depthwise(p, f, edge, conv);
    depthwise_tile<G>(p, depthwise, in, kReduce ? half_matrix : -1, tile, planes, d);
    float acc[M][G::NW][4];
    pointwise_product<G, M, G::MT>(weights, half_matrix * M, 0, d, acc);
    int n, at;
    G::place(tile, warp, p.oh, n, at);
    const std::int64_t plane = p.plane(), image = std::int64_t{n} * G::C * plane + at;
    const bool inside = n < p.n;
    if (what == ConvSums::kStatistics && inside) store_tile<G, M>(acc, p.z_of(edge, conv) + image + first * plane, plane);
    const T* g = p.g_of(edge) + image;
    const int row = p.stat_row(edge, conv);
#pragma unroll
    for (int mt = 0; mt < M; ++mt) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int co = first + mt * 16 + half * 8 + lane / 4;
            float a = 0, b = 0;
            if (what == ConvSums::kStatistics) {
#pragma unroll
                for (int nt = 0; nt < G::NW; ++nt) {
                    const float2 z = rounded(planes, acc[mt][nt][2 * half], acc[mt][nt][2 * half + 1]);
                    a += z.x + z.y;
                    b += z.x * z.x + z.y * z.y;
                }
            } else if (inside) {
                const float scale = p.stat(row, co).b, shift = -p.stat(row, co).a * scale;
#pragma unroll
                for (int nt = 0; nt < G::NW; ++nt) {
                    const float2 u = load2(g + co * plane + G::block(nt) + lane % 4 * 2);
                    a += u.x + u.y;
                    b += u.x * fmaf(acc[mt][nt][2 * half], scale, shift) + u.y * fmaf(acc[mt][nt][2 * half + 1], scale, shift);
                }
            }
            for (int offset = 1; offset < 4; offset *= 2) {
                a += __shfl_xor_sync(0xffffffffu, a, offset);
                b += __shfl_xor_sync(0xffffffffu, b, offset);
            }
            if (lane % 4 == 0) sums[warp][co] = make_float2(a, b);
        }
    }
    __syncthreads();
    for (int c = first + threadIdx.x; c < first + 16 * M; c += kThreads) {
        float a = 0, b = 0;
        for (int w = 0; w < kWarps; ++w) {
            a += sums[w][c].x;
            b += sums[w][c].y;
        }
        p.partial[(std::int64_t{job} * G::C + c) * gridDim.x + tile] = {a, b};
    }
}

template <typename G>
constexpr int pointwise_backward_shared_bytes() {
    return (G::CH * G::PLANE + 2 * G::C * G::DP) * static_cast<int>(sizeof(typename G::T)) + 8 * Staged<G>::kWords;
}

// As pointwise_backward_kernel; d and z are computed again, so z is not read. Grid: groups x jobs, as above.
template <typename G, bool kReduce>
__global__ void __launch_bounds__(kThreads, 2) tile_pointwise_backward_kernel(Plan<typename G::T> p, Jobs jobs) {
    using T = typename G::T;
    using Weights = typename WeightsOf<T>::Type;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float coefficients[3][G::C];
    T* planes = reinterpret_cast<T*>(shared);
    T* d = planes + G::CH * G::PLANE;
    T* dz = d + G::C * G::DP;
    constexpr int kHalves = kReduce ? 2 : 1, M = G::MT / kHalves, kShare = G::P * M / kWarps;
    const int job = blockIdx.y / kHalves, half_matrix = blockIdx.y % kHalves, first = half_matrix * (G::C / 2);
    const int edge = jobs.edge[job], conv = kReduce ? int{kFr} : jobs.kind[job];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Weights f(p);
    unsigned* staged = reinterpret_cast<unsigned*>(dz + G::C * G::DP);
    const unsigned* weights = Staged<G>::stage(staged, f.pointwise + Weights::matrix(p, edge, conv));
    const unsigned* transposed = Staged<G>::stage(staged + Staged<G>::kWords, f.transposed + Weights::matrix(p, edge, conv));
    typename WeightsOf<T>::template Depthwiser<G> depthwise(p, f, edge, conv);
    const ConvInput<T> in(p, edge, conv);
    const T* u = op_of(conv) < 0 ? p.h1_of(edge, conv) : p.g_of(edge);
    T* dd = kReduce ? p.dd_fr + (std::int64_t{p.reduced_index(edge)} * 2 + half_matrix) * p.size() : p.dd_of(edge, conv);
    const std::int64_t plane = p.plane();
    for (int c = threadIdx.x; c < G::C; c += kThreads) {
        const NormGradient<T> norm(p, edge, conv, op_of(conv), c);
        coefficients[0][c] = norm.ca;
        coefficients[1][c] = norm.cb;
        coefficients[2][c] = norm.cc;
    }
    clear_sides<G>(G::CH, planes, threadIdx.x, kThreads);
    // dpw: a warp has 16 rows and all columns, over kShare of the tile's pixels
    const int block_row = warp % M, from = warp / M * kShare;
    float dpw[2 * G::MT][4] = {};
    const int tiles = G::tiles(p.n, p.oh);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int n, at;
        G::place(tile, warp, p.oh, n, at);
        const std::int64_t image = std::int64_t{n} * G::C * plane + at;
        const bool inside = n < p.n;
        constexpr bool kAhead = sizeof(T) == 2;  // there are registers to ask for u before the convolution
        unsigned ahead[kAhead ? M : 1][2][G::NW];
        if constexpr (kAhead) {
#pragma unroll
            for (int mt = 0; mt < M; ++mt)
#pragma unroll
                for (int half = 0; half < 2; ++half)
#pragma unroll
                    for (int nt = 0; nt < G::NW; nt += 2)
                        if (inside) load_pair(u + image + (first + mt * 16 + half * 8 + lane / 4) * plane + G::block(nt), ahead[mt][half][nt], ahead[mt][half][nt + 1]);
        }
        depthwise_tile<G>(p, depthwise, in, kReduce ? half_matrix : -1, tile, planes, d);
        {
            float acc[M][G::NW][4];
            pointwise_product<G, M, G::MT>(weights, half_matrix * M, 0, d, acc);
#pragma unroll
            for (int mt = 0; mt < M; ++mt) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int local = mt * 16 + half * 8 + lane / 4, co = first + local;
                    const float ca = coefficients[0][co], cb = coefficients[1][co], cc = coefficients[2][co];
                    T* out = dz + local * G::DP + warp * (G::P / kWarps) + lane % 4 * 2;
#pragma unroll
                    for (int nt = 0; nt < G::NW; ++nt) {
                        float2 v = make_float2(0, 0);
                        if (inside) {
                            float2 up;
                            if constexpr (kAhead) up = load2(reinterpret_cast<const T*>(&ahead[mt][half][nt]));
                            else up = load2(u + image + co * plane + G::block(nt) + lane % 4 * 2);
                            v.x = ca * up.x + cb * acc[mt][nt][2 * half] + cc;
                            v.y = ca * up.y + cb * acc[mt][nt][2 * half + 1] + cc;
                        }
                        store2(out + nt * 8, v.x, v.y);
                    }
                }
            }
        }
        __syncthreads();
        {
            float acc[G::MT][G::NW][4];
            pointwise_product<G, G::MT, M>(transposed, 0, half_matrix * M, dz, acc);
            if (inside) store_tile<G, G::MT>(acc, dd + image, plane);
        }
        outer_product<G, kShare>(dz + block_row * 16 * G::DP + from, d + from, dpw);
        __syncthreads();
    }
    __syncthreads();
    float* shares = reinterpret_cast<float*>(shared);  // [kWarps / M][16 * M][c]
    static_assert(kWarps * 16 * G::C * 4 <= pointwise_backward_shared_bytes<G>(), "the warps' shares reuse the tile");
#pragma unroll
    for (int nt = 0; nt < 2 * G::MT; ++nt) {
        float* out = shares + (warp / M * 16 * M + block_row * 16 + lane / 4) * G::C + nt * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(out) = make_float2(dpw[nt][0], dpw[nt][1]);
        *reinterpret_cast<float2*>(out + 8 * G::C) = make_float2(dpw[nt][2], dpw[nt][3]);
    }
    __syncthreads();
    const int slot = kReduce ? p.edges * kConvs + p.reduced_index(edge) : edge * kConvs + conv;
    float* out = p.dpw_partial + (std::int64_t{slot} * gridDim.x + blockIdx.x) * (G::C * G::C) + first * G::C;
    for (int i = threadIdx.x; i < 16 * M * G::C; i += kThreads) {
        float sum = 0;
        for (int w = 0; w < kWarps / M; ++w) sum += shares[w * 16 * M * G::C + i];
        out[i] = sum;
    }
}

}  // namespace hwnas::mixed_cell::cuda
