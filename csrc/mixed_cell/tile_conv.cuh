// Convolutions of a cell on tensor cores: forward, and the gradients of the pointwise part. The matrix products are
// overloads of pointwise_product and outer_product, and the Depthwiser classes, in bf16.cuh and fp32.cuh.
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

// The factorized reduce reads every second pixel from (grid, grid) on instead of convolving. By one warp, one channel.
template <typename G, typename T>
__device__ __forceinline__ void subsample(const T* plane, int grid, T* d) {
    for (int i = threadIdx.x % 32; i < G::P; i += 32) {
        const int m = i / G::OW, w = i % G::OW;
        d[G::position(m, w)] = plane[(G::row(m) + grid) * G::PITCH + 4 + w * G::S + grid];
    }
}

// d[c][pixel] of a whole tile; grid >= 0: of that half of the factorized reduce. Each warp works on channels of its own in
// planes of its own, so that a warp waits for its loads alone; a barrier must follow before others' d is read.
template <typename G, typename T, typename Depthwiser>
__device__ __forceinline__ void depthwise_tile(const Plan<T>& p, const Depthwiser& depthwise, const ConvInput<T>& in, int grid, int tile, T* planes, T* d) {
    const int warp = threadIdx.x / 32, first = warp * G::kEach;
    T* own = planes + warp * G::kGroup * G::PLANE;
    const Rows<G> rows(p, in.x, tile, first);
    typename Rows<G>::Words words[G::kBatch];
    Pair<float> norms[G::kBatch] = {};
    const auto ask = [&](int batch) {
#pragma unroll
        for (int k = 0; k < G::kBatch; ++k) {
            rows.load(batch + k, words[k]);
            if (in.norm) norms[k] = in.norm[first + batch + k];
        }
    };
    constexpr bool kAhead = sizeof(T) == 2;  // there are registers for the next batch's loads while this one is worked on
    ask(0);
    copies_arrived();  // of weights
    __syncthreads();
#pragma unroll 1
    for (int batch = 0; batch < G::kEach; batch += G::kBatch) {
        if (!kAhead && batch > 0) ask(batch);
#pragma unroll
        for (int group = 0; group < G::kBatch; group += G::kGroup) {
            const int c = first + batch + group;
            __syncwarp();
#pragma unroll
            for (int k = 0; k < G::kGroup; ++k) rows.put(words[group + k], in.norm != nullptr, norms[group + k], own + k * G::PLANE);
            __syncwarp();
            if (kAhead && group + G::kGroup == G::kBatch && batch + G::kBatch < G::kEach) ask(batch + G::kBatch);
            if (grid < 0) {
                depthwise.run(own, c, d + c * G::DP);
            } else {
                for (int k = 0; k < G::kGroup; ++k) subsample<G>(own + k * G::PLANE, grid, d + (c + k) * G::DP);
            }
        }
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

// What store_tile would have stored of a gradient, in registers: bfloat16 asks for it early; float32, for which there are no
// registers, when it is used.
template <typename G, int M>
class Upstream {
    using T = typename G::T;
    static constexpr bool kHeld = sizeof(T) == 2;

public:
    __device__ __forceinline__ void load(const T* at, std::int64_t plane) {
        const int lane = threadIdx.x % 32;
        if constexpr (kHeld) {
#pragma unroll
            for (int mt = 0; mt < M; ++mt)
#pragma unroll
                for (int half = 0; half < 2; ++half)
#pragma unroll
                    for (int nt = 0; nt < G::NW; nt += 2)
                        load_pair(at + (mt * 16 + half * 8 + lane / 4) * plane + G::block(nt), held_[mt][half][nt], held_[mt][half][nt + 1]);
        } else {
            from_ = at + lane / 4 * plane + lane % 4 * 2;
            plane_ = plane;
        }
    }
    __device__ __forceinline__ float2 operator()(int mt, int half, int nt) const {
        if constexpr (kHeld) return unpack(held_[mt][half][nt]);
        else return load2(from_ + (mt * 16 + half * 8) * plane_ + G::block(nt));
    }

private:
    unsigned held_[kHeld ? M : 1][2][G::NW];
    const T* from_ = nullptr;
    std::int64_t plane_ = 0;
};

template <typename G>
constexpr int conv_shared_bytes() {
    using T = typename G::T;
    return (G::kPlanes + G::C * G::DP) * static_cast<int>(sizeof(T)) + 4 * (Staged<G>::kWords + WeightsOf<T>::template Depthwiser<G>::kWords);
}

// As conv_kernel. Grid: tiles x jobs; with kReduce the jobs are factorized reduces, tiles x 2 * jobs, each half a matrix.
// Behind the jobs come `passes`, elementwise sums that are ready at the same time: states of which the pools' statistics are
// wanted or edges of which the gradient's sums are; a tile has as many outputs as kPassBlocks of their blocks.
constexpr int kPassBlocks = 8192 / (kThreads * kVec);

template <typename G, bool kReduce>
__global__ void __launch_bounds__(kThreads, 3) tile_conv_kernel(Plan<typename G::T> p, const __grid_constant__ Jobs jobs, const __grid_constant__ Jobs passes, ConvSums what) {
    wait_for_previous();
    using T = typename G::T;
    using Weights = typename WeightsOf<T>::Type;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float2 sums[kWarps][G::C];
    __shared__ __align__(16) Pair<float> norms[G::C];
    T* planes = reinterpret_cast<T*>(shared);
    T* d = planes + G::kPlanes;
    constexpr int kHalves = kReduce ? 2 : 1, M = G::MT / kHalves;
    const int job = blockIdx.y / kHalves, half_matrix = blockIdx.y % kHalves, first = half_matrix * (G::C / 2);
    if (job >= jobs.count) {
        const int item = blockIdx.y - jobs.count * kHalves, pass = item / kPassBlocks, block = blockIdx.x * kPassBlocks + item % kPassBlocks;
        const std::int64_t slot = std::int64_t{G::C} * p.n * vector_tiles(p), before = std::int64_t{jobs.count} * G::C * gridDim.x;
        if (what == ConvSums::kStatistics) pool_sums(p, passes.edge[pass], block, p.partial + before + 2 * pass * slot);
        else gradient_sums(p, passes.edge[pass], block, p.partial + before + 3 * pass * slot);
        return;
    }
    const int edge = jobs.edge[job], conv = kReduce ? int{kFr} : jobs.kind[job], tile = blockIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Weights f(p);
    const ConvInput<T> in(p, edge, conv);
    unsigned* staged = reinterpret_cast<unsigned*>(d + G::C * G::DP);
    const unsigned* weights = Staged<G>::stage(staged, f.pointwise + Weights::matrix(p, edge, conv));
    const typename WeightsOf<T>::template Depthwiser<G> depthwise(p, f, edge, conv, staged + Staged<G>::kWords);
    if (what == ConvSums::kGradient && threadIdx.x < G::C / 2) copy_async(norms + 2 * threadIdx.x, &p.stat(p.stat_row(edge, conv), 2 * threadIdx.x));
    clear_sides<G>(G::kGroup, planes + warp * G::kGroup * G::PLANE);
    depthwise_tile<G>(p, depthwise, in, kReduce ? half_matrix : -1, tile, planes, d);
    int n, at;
    G::place(tile, warp, p.oh, n, at);
    const std::int64_t plane = p.plane(), image = std::int64_t{n} * G::C * plane + at;
    const bool inside = n < p.n;
    const T* g = p.g_of(edge) + image;
    Upstream<G, M> upstream;  // asked for before the product
    if (what == ConvSums::kGradient && inside) upstream.load(g + first * plane, plane);
    __syncthreads();
    float acc[M][G::NW][4];
    pointwise_product<G, M, G::MT>(weights, half_matrix * M, 0, d, acc);
    if (what == ConvSums::kStatistics && inside) store_tile<G, M>(acc, p.z_of(edge, conv) + image + first * plane, plane);
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
                const float scale = norms[co].b, shift = -norms[co].a * scale;
#pragma unroll
                for (int nt = 0; nt < G::NW; ++nt) {
                    const float2 u = upstream(mt, half, nt);
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
    using T = typename G::T;
    return (G::kPlanes + 2 * G::C * G::DP) * static_cast<int>(sizeof(T)) + 4 * (2 * Staged<G>::kWords + WeightsOf<T>::template Depthwiser<G>::kWords);
}

// As pointwise_backward_kernel; d and z are computed again, so z is not read. Grid: groups x jobs, as above.
template <typename G, bool kReduce>
__global__ void __launch_bounds__(kThreads, sizeof(typename G::T) == 2 && G::C == 16 ? 3 : 2) tile_pointwise_backward_kernel(Plan<typename G::T> p, Jobs jobs) {
    wait_for_previous();
    using T = typename G::T;
    using Weights = typename WeightsOf<T>::Type;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float coefficients[3][G::C];
    T* planes = reinterpret_cast<T*>(shared);
    T* d = planes + G::kPlanes;
    T* dz = d + G::C * G::DP;
    constexpr int kHalves = kReduce ? 2 : 1, M = G::MT / kHalves, kShare = G::P * M / kWarps;
    const int job = blockIdx.y / kHalves, half_matrix = blockIdx.y % kHalves, first = half_matrix * (G::C / 2);
    const int edge = jobs.edge[job], conv = kReduce ? int{kFr} : jobs.kind[job];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Weights f(p);
    unsigned* staged = reinterpret_cast<unsigned*>(dz + G::C * G::DP);
    const unsigned* weights = Staged<G>::stage(staged, f.pointwise + Weights::matrix(p, edge, conv));
    const unsigned* transposed = Staged<G>::stage(staged + Staged<G>::kWords, f.transposed + Weights::matrix(p, edge, conv));
    const typename WeightsOf<T>::template Depthwiser<G> depthwise(p, f, edge, conv, staged + 2 * Staged<G>::kWords);
    const ConvInput<T> in(p, edge, conv);
    const T* u = op_of(conv) < 0 ? p.h1_of(edge, conv) : p.g_of(edge);
    T* dd = kReduce ? p.dd_fr + (std::int64_t{p.reduced_index(edge)} * 2 + half_matrix) * p.size() : p.dd_of(edge, conv);
    const std::int64_t plane = p.plane();
    const typename NormGradient<T>::Source source(p, edge, conv, op_of(conv), threadIdx.x % G::C);
    clear_sides<G>(G::kGroup, planes + warp * G::kGroup * G::PLANE);
    // dpw: a warp has 16 rows and all columns, over kShare of the tile's pixels
    const int block_row = warp % M, from = warp / M * kShare;
    float dpw[2 * G::MT][4] = {};
    const int tiles = G::tiles(p.n, p.oh);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int n, at;
        G::place(tile, warp, p.oh, n, at);
        const std::int64_t image = std::int64_t{n} * G::C * plane + at;
        const bool inside = n < p.n;
        depthwise_tile<G>(p, depthwise, in, kReduce ? half_matrix : -1, tile, planes, d);
        if (tile == static_cast<int>(blockIdx.x) && threadIdx.x < G::C) {
            const NormGradient<T> norm(p, source);
            coefficients[0][threadIdx.x] = norm.ca;
            coefficients[1][threadIdx.x] = norm.cb;
            coefficients[2][threadIdx.x] = norm.cc;
        }
        Upstream<G, M> upstream;
        if (inside) upstream.load(u + image + first * plane, plane);
        __syncthreads();
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
                            const float2 up = upstream(mt, half, nt);
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
