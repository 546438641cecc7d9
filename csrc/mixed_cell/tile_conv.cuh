// Convolutions of a cell on tensor cores: forward, and the gradients of the pointwise part. What both types do in their own way
// (the products, the depthwise part, fragments to and from memory) is in bf16.cuh and fp32.cuh.
#pragma once

#include "mixed_cell/bf16.cuh"
#include "mixed_cell/fp32.cuh"
#include "mixed_cell/pending.cuh"
#include "mixed_cell/vector_sums.cuh"

namespace hwnas::mixed_cell::cuda {

template <typename T>
struct Precision;
template <>
struct Precision<bf16> {
    template <typename G>
    using Depthwiser = Bf16Depthwiser<G>;
    template <typename G, bool kBackward>
    using Pointwise = Bf16Pointwise<G, kBackward>;
    template <typename G, int M>
    using Upstream = Bf16Upstream<G, M>;
};
template <>
struct Precision<float> {
    template <typename G>
    using Depthwiser = Fp32Depthwiser<G>;
    template <typename G, bool kBackward>
    using Pointwise = Fp32Pointwise<G, kBackward>;
    template <typename G, int M>
    using Upstream = Fp32Upstream<G, M>;
};
template <typename G>
using Depthwiser = typename Precision<typename G::T>::template Depthwiser<G>;
template <typename G, bool kBackward>
using Pointwise = typename Precision<typename G::T>::template Pointwise<G, kBackward>;
template <typename G, int M>
using Upstream = typename Precision<typename G::T>::template Upstream<G, M>;

// The factorized reduce reads every second pixel from (grid, grid) on instead of convolving. By one warp, one channel.
template <typename G, typename T>
__device__ __forceinline__ void subsample(const T* plane, int grid, int c, T* d) {
    for (int i = threadIdx.x % 32; i < G::P; i += 32) {
        const int m = i / G::OW, w = i % G::OW;
        d[G::at(c, G::position(m, w))] = plane[(G::row(m) + grid) * G::PITCH + 4 + w * G::S + grid];
    }
}

// d[channel][pixel] of a whole tile, and with kPair that of `smaller` behind it; grid >= 0: of that half of the factorized reduce.
// Each warp works on channels of its own in planes of its own, so that a warp waits for its loads alone; a barrier must follow before
// others' d is read. `meanwhile` is done while the first loads are on their way, and leaves the input's norms, if there are any, in
// `norms` in shared memory.
template <typename G, bool kPair, typename T, typename F>
__device__ __forceinline__ void depthwise_tile(const Plan<T>& p, const Depthwiser<G>& depthwise, const Depthwiser<G>& smaller, const ConvInput<T>& in,
                                               int grid, int tile, T* planes, T* d, const Pair<float>* norms, F meanwhile) {
    const int warp = threadIdx.x / 32, first = warp * G::kEach;
    T* own = planes + warp * G::kGroup * G::PLANE;
    const Rows<G> rows(p, in.x, tile, first);
    typename Rows<G>::Words words[G::kBatch];
    const bool normed = in.norm != nullptr;
    const auto ask = [&](int batch) {
#pragma unroll
        for (int k = 0; k < G::kBatch; ++k) rows.load(batch + k, words[k]);
    };
    constexpr bool kAhead = sizeof(T) == 2;  // there are registers for the next batch's loads while this one is worked on
    ask(0);
    meanwhile();
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
            for (int k = 0; k < G::kGroup; ++k) rows.put(words[group + k], normed, normed ? norms[c + k] : Pair<float>{}, own + k * G::PLANE);
            __syncwarp();
            if (kAhead && group + G::kGroup == G::kBatch && batch + G::kBatch < G::kEach) ask(batch + G::kBatch);
            if (grid < 0) {
                if constexpr (kPair) depthwise.run_pair(own, c, d, smaller);
                else depthwise.run(own, c, d);
            } else {
                for (int k = 0; k < G::kGroup; ++k) subsample<G>(own + k * G::PLANE, grid, c + k, d);
            }
        }
    }
}

// Blocks of so much dynamic shared memory that a multiprocessor has room for, at most `most`.
constexpr int blocks_of(int bytes, int most) { return most > 1 && most * (bytes + 5 * 1024) > 227 * 1024 ? blocks_of(bytes, most - 1) : most; }

// What a block of tile_conv_kernel computes: one convolution of an edge; a 5 x 5 and a 3 x 3 one of the same input and dilation; or
// half of a factorized reduce.
enum class Convolve { kOne, kPair, kReduce };

template <typename G, Convolve kWhat>
constexpr int conv_shared_bytes() {
    constexpr int kConvsHere = kWhat == Convolve::kPair ? 2 : 1;
    return (G::kPlanes + kConvsHere * G::kMatrix) * static_cast<int>(sizeof(typename G::T)) + 4 * kConvsHere * (Pointwise<G, false>::kWords + Depthwiser<G>::kWords);
}
// Pairs share windows and loads, but make half as many blocks of twice the memory: measured, that pays where stride 2 makes loads
// dear, and two blocks fit.
template <typename G>
constexpr bool takes_pairs() { return G::S == 2 && blocks_of(conv_shared_bytes<G, Convolve::kPair>(), 2) == 2; }

// As conv_kernel, but that kGradient leaves the depthwise results where the gradient of the depthwise outputs will be, from where
// tile_pointwise_backward_kernel takes them, or takes those that kStatistics has kept (Plan::keeps). `pending`: of the norms before
// second halves. Grid: tiles x jobs, pairs of neighbouring jobs with kPair, two halves of each with kReduce. Behind the jobs come
// `passes`, elementwise sums that are ready at the same time: states of which the pools' statistics are wanted or edges of which the
// gradient's sums are; a tile has as many outputs as kPassBlocks of their blocks.
constexpr int kPassBlocks = 8192 / (kThreads * kVec);

template <typename G, Convolve kWhat>
__global__ void __launch_bounds__(kThreads, blocks_of(conv_shared_bytes<G, kWhat>(), kWhat == Convolve::kPair ? 2 : 3))
    tile_conv_kernel(const __grid_constant__ Plan<typename G::T> p, const __grid_constant__ Jobs jobs, const __grid_constant__ Jobs passes, ConvSums what,
                     Pending<float> pending) {
    wait_for_previous();
    using T = typename G::T;
    constexpr bool kReduce = kWhat == Convolve::kReduce, kPair = kWhat == Convolve::kPair;
    constexpr int kConvsHere = kPair ? 2 : 1, kHalves = kReduce ? 2 : 1, kBlocks = G::MT / kHalves, M = kBlocks / G::kWarpsM;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float2 sums[kConvsHere][G::kWarpsN][G::C];
    __shared__ __align__(16) Pair<float> norms[kConvsHere][G::C], input_norms[G::C];
    T* planes = reinterpret_cast<T*>(shared);
    T* d = planes + G::kPlanes;
    const int job = blockIdx.y / kHalves * kConvsHere, half_matrix = blockIdx.y % kHalves, tile = blockIdx.x;
    if (job >= jobs.count) {
        const int item = blockIdx.y - jobs.count * kHalves / kConvsHere, pass = item / kPassBlocks, block = tile * kPassBlocks + item % kPassBlocks;
        const std::int64_t slot = std::int64_t{G::C} * p.n * vector_tiles(p), before = std::int64_t{jobs.count} * G::C * gridDim.x;
        if (what == ConvSums::kStatistics) pool_sums(p, passes.edge[pass], block, p.partial + before + 2 * pass * slot);
        else gradient_sums(p, passes.edge[pass], block, p.partial + before + 3 * pass * slot);
        return;
    }
    const int edge = jobs.edge[job], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto conv_of = [&](int q) { return kReduce ? int{kFr} : int{jobs.kind[job + q]}; };
    const int block_row = half_matrix * kBlocks + G::first_block(warp, kBlocks), row = block_row * 16;  // this warp's rows of the product
    const ConvInput<T> in(p, edge, conv_of(0));
    unsigned* staged = reinterpret_cast<unsigned*>(d + kConvsHere * G::kMatrix);
    unsigned* bands = staged + kConvsHere * Pointwise<G, false>::kWords;
    const auto weights_at = [&](int q) { return staged + q * Pointwise<G, false>::kWords; };
#pragma unroll
    for (int q = 0; q < kConvsHere; ++q) {
        Pointwise<G, false>::ask(p, edge, conv_of(q), weights_at(q));
        if (what == ConvSums::kGradient && threadIdx.x < G::C / 2)
            copy_async(norms[q] + 2 * threadIdx.x, &p.stat(p.stat_row(edge, conv_of(q)), 2 * threadIdx.x));
    }
    const bool kept = kWhat == Convolve::kOne && what == ConvSums::kGradient && p.keeps(conv_of(0));
    const Depthwiser<G> depthwise(p, edge, kept ? int{kFr} : conv_of(0), bands);
    const Depthwiser<G> smaller(p, edge, kPair ? conv_of(1) : int{kFr}, bands + (kPair ? Depthwiser<G>::kWords : 0));
    const auto bring_input_norms = [&] {
        if (kReduce || kPair || G::S == 2 || in.norm == nullptr) return;
        if (pending.partial) {
            each_pending<G::C>(pending, job, [&](int c, double sum, double squares) {
                input_norms[c] = statistics(p.per_pixel, sum, squares);
                if (tile == 0) p.stats[std::int64_t{p.stat_row(edge, conv_of(0) - 1)} * G::C + c] = input_norms[c];
            });
        } else if (threadIdx.x < G::C / 2) {
            copy_async(input_norms + 2 * threadIdx.x, in.norm + 2 * threadIdx.x);
        }
    };
    if (kept) {
        const T* results = p.results_of(edge, conv_of(0));
        each_word<G, G::C, false>(p, tile, [&](int to, std::int64_t from, bool there) { copy_async(d + to, results + (there ? from : 0), there); });
        copies_arrived();
    } else {
        clear_sides<G>(G::kGroup, planes + warp * G::kGroup * G::PLANE);
        depthwise_tile<G, kPair>(p, depthwise, smaller, in, kReduce ? half_matrix : -1, tile, planes, d, input_norms, bring_input_norms);
    }
    int n, at;
    G::place(p, tile, warp, n, at);
    const std::int64_t plane = p.plane(), image = std::int64_t{n} * G::C * plane + at;
    const bool inside = !G::kPacked || n < p.n;
    Upstream<G, M> upstream;  // the node's gradient, for both of a pair
    if (what == ConvSums::kGradient && inside) upstream.ask(p.g_of(edge) + image + row * plane, plane);
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kConvsHere; ++q) {
        const int conv = conv_of(q);
        float acc[M][G::NW][4];
        Pointwise<G, false>(weights_at(q)).template product<M, G::MT>(block_row, 0, d + q * G::kMatrix, acc);
        if (!kReduce && (what == ConvSums::kGradient) != p.keeps(conv)) {
            T* results = p.results_of(edge, conv);
            each_word<G, G::C, false>(p, tile, [&](int from, std::int64_t to, bool there) {
                if (there) *reinterpret_cast<uint4*>(results + to) = *reinterpret_cast<const uint4*>(d + q * G::kMatrix + from);
            });
        }
        if (what == ConvSums::kStatistics && inside) store_tile<G, M>(acc, p.z_of(edge, conv) + image + row * plane, plane);
#pragma unroll
        for (int mt = 0; mt < M; ++mt) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int co = row + mt * 16 + half * 8 + lane / 4;
                float a = 0, b = 0;
                if (what == ConvSums::kStatistics) {
#pragma unroll
                    for (int nt = 0; nt < G::NW; ++nt) {
                        const float2 z = rounded(planes, acc[mt][nt][2 * half], acc[mt][nt][2 * half + 1]);
                        a += z.x + z.y;
                        b += z.x * z.x + z.y * z.y;
                    }
                } else if (inside) {
                    const float scale = norms[q][co].b, shift = -norms[q][co].a * scale;
                    upstream.load(mt, half);
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
                if (lane % 4 == 0) sums[q][warp % G::kWarpsN][co] = make_float2(a, b);
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kConvsHere * kBlocks * 16; i += kThreads) {
        const int q = i / (kBlocks * 16), c = half_matrix * kBlocks * 16 + i % (kBlocks * 16);
        float a = 0, b = 0;
        for (int w = 0; w < G::kWarpsN; ++w) {
            a += sums[q][w][c].x;
            b += sums[q][w][c].y;
        }
        p.partial[(std::int64_t{job + q} * G::C + c) * gridDim.x + tile] = {a, b};
    }
}

// How a block of tile_pointwise_backward_kernel comes by the depthwise results: those that tile_conv_kernel kept, those that it
// computes again, or the half of a factorized reduce's input that it reads.
enum class Results { kKept, kComputed, kReduce };

// Planes are done with before dz begins, and lie in its place.
template <typename G, Results kFrom>
constexpr int gradient_elements() { return kFrom != Results::kKept && G::kPlanes > G::kMatrix ? (G::kPlanes + 7) / 8 * 8 : G::kMatrix; }

template <typename G, Results kFrom>
constexpr int pointwise_backward_shared_bytes() {
    const int bands = kFrom == Results::kComputed ? Depthwiser<G>::kWords : 0;
    return (G::kMatrix + gradient_elements<G, kFrom>()) * static_cast<int>(sizeof(typename G::T)) + 4 * (Pointwise<G, true>::kWords + bands);
}

template <typename G, Results kFrom>
constexpr int pointwise_backward_blocks() {  // a multiprocessor; three where 80 registers a thread are enough
    const int most = G::C == 16 && !(G::kFloat && kFrom == Results::kComputed) ? 3 : 2;
    return blocks_of(pointwise_backward_shared_bytes<G, kFrom>(), most);
}

// By a row of blocks: the sums of the gradient's passes over edges, into Plan::sums, a warp a channel and norm at a time.
template <int C, typename T>
__device__ __forceinline__ void finish_passes(const Plan<T>& p, const Jobs& edges, const Pending<float>& passes) {
    const int lane = threadIdx.x % 32;
    for (int item = blockIdx.x * kWarps + threadIdx.x / 32; item < 3 * edges.count * C; item += gridDim.x * kWarps) {
        const int slot = item / C, c = item % C;
        const Pair<float>* own = passes.partial + std::int64_t{item} * passes.tiles;
        double a = 0, b = 0;
        for (int t = lane; t < passes.tiles; t += 32) {
            const Pair<float> v = own[t];
            a += v.a;
            b += v.b;
        }
        a = warp_sum(a);
        b = warp_sum(b);
        if (lane != 0) continue;
        float* sums = p.sums_of(edges.edge[slot / 3], pass_norm(slot % 3));
        sums[c] = static_cast<float>(a);
        sums[C + c] = static_cast<float>(b);
    }
}

// As pointwise_backward_kernel; z is computed again, so it is not read. Grid: groups x jobs; kReduce: groups x 2 * jobs; one row more
// with `edges`, whose passes' sums it adds up.
template <typename G, Results kFrom>
__global__ void __launch_bounds__(kThreads, pointwise_backward_blocks<G, kFrom>())
    tile_pointwise_backward_kernel(const __grid_constant__ Plan<typename G::T> p, const __grid_constant__ Jobs jobs, Pending<float> pending,
                                   const __grid_constant__ Jobs edges, Pending<float> passes) {
    wait_for_previous();
    using T = typename G::T;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float coefficients[3][G::C];
    constexpr bool kReduce = kFrom == Results::kReduce, kKept = kFrom == Results::kKept;
    T* d = reinterpret_cast<T*>(shared);
    T* dz = d + G::kMatrix;
    T* planes = dz;
    unsigned* staged = reinterpret_cast<unsigned*>(dz + gradient_elements<G, kFrom>());
    unsigned* bands = staged + Pointwise<G, true>::kWords;
    constexpr int kHalves = kReduce ? 2 : 1, kBlocks = G::MT / kHalves, M = kBlocks / G::kWarpsM, kOut = G::MT / G::kWarpsM;
    const int job = blockIdx.y / kHalves, half_matrix = blockIdx.y % kHalves, first = half_matrix * kBlocks * 16;
    if (job >= jobs.count) {
        finish_passes<G::C>(p, edges, passes);
        return;
    }
    const int edge = jobs.edge[job], conv = kReduce ? int{kFr} : jobs.kind[job];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Pointwise<G, true>::ask(p, edge, conv, staged);
    const Pointwise<G, true> weights(staged);
    const Depthwiser<G> depthwise(p, edge, kKept ? int{kFr} : conv, bands);
    const ConvInput<T> in(p, edge, conv);
    const T* u = op_of(conv) < 0 ? p.h1_of(edge, conv) : p.g_of(edge);
    T* dd = kReduce ? p.dd_fr + (std::int64_t{p.reduced_index(edge)} * 2 + half_matrix) * p.size() : p.dd_of(edge, conv);
    const T* results = kKept ? p.results_of(edge, conv) : nullptr;
    const std::int64_t plane = p.plane();
    // The norm's gradient: of channel c from its sums.
    const auto settle = [&](int c, const typename NormGradient<T>::Source& source) {
        const NormGradient<T> norm(p, source);
        coefficients[0][c] = norm.ca;
        coefficients[1][c] = norm.cb;
        coefficients[2][c] = norm.cc;
    };
    // This warp's blocks of rows: of dz, counted from the half's first, and of dd. Its share of dpw: 16 rows and all columns, over
    // kShare of the tile's pixels.
    constexpr int kShare = G::P * kBlocks / kWarps;
    const int block_row = G::first_block(warp, kBlocks), out_row = G::first_block(warp, G::MT);
    const int share_row = warp % kBlocks * 16, from = warp / kBlocks * kShare;
    float dpw[2 * G::MT][4] = {};
    const int tiles = G::tiles(p.n, p.oh);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int n, at;
        G::place(p, tile, warp, n, at);
        const std::int64_t image = std::int64_t{n} * G::C * plane + at;
        const bool inside = !G::kPacked || n < p.n;
        const bool is_first = tile == static_cast<int>(blockIdx.x);
        if (!is_first) __syncthreads();  // the tile before is done with
        const auto settle_first = [&] {
            if (!is_first) return;
            if (pending.partial) {
                each_pending<G::C>(pending, job, [&](int c, double sum_u, double sum_uz) {
                    const typename NormGradient<T>::Source source(p, edge, conv, op_of(conv), c, static_cast<float>(sum_u), static_cast<float>(sum_uz));
                    settle(c, source);
                    if (kFrom == Results::kComputed || blockIdx.x > 0 || half_matrix > 0) return;
                    p.sums_of(edge, conv)[c] = source.sum_u;  // the gates' gradients want them
                    p.sums_of(edge, conv)[G::C + c] = source.sum_uz;
                });
            } else if (threadIdx.x < G::C) {
                settle(threadIdx.x, typename NormGradient<T>::Source(p, edge, conv, op_of(conv), threadIdx.x));
            }
        };
        const auto ask_upstream = [&] {  // row c of dz is channel first + c
            each_word<G, kBlocks * 16, true>(p, tile, [&](int to, std::int64_t from, bool there) {
                copy_async(dz + to, u + first * plane + (there ? from : 0), there);
            });
        };
        if (kKept) {
            each_word<G, G::C, false>(p, tile, [&](int to, std::int64_t from, bool there) { copy_async(d + to, results + (there ? from : 0), there); });
            ask_upstream();
            settle_first();
            copies_arrived();
        } else {
            clear_sides<G>(G::kGroup, planes + warp * G::kGroup * G::PLANE);
            depthwise_tile<G, false>(p, depthwise, depthwise, in, kReduce ? half_matrix : -1, tile, planes, d, nullptr, settle_first);
        }
        __syncthreads();
        if (!kKept) ask_upstream();
        {
            float acc[M][G::NW][4];
            weights.template product<M, G::MT>(half_matrix * kBlocks + block_row, 0, d, acc);
            if (!kKept) {
                copies_arrived();
                __syncthreads();
            }
            combine<G, M>(dz, block_row * 16, inside, acc, [&](int row, float up, float z) {
                return fmaf(coefficients[0][first + row], up, fmaf(coefficients[1][first + row], z, coefficients[2][first + row]));
            });
        }
        __syncthreads();
        {
            float acc[kOut][G::NW][4];
            weights.template transposed_product<kOut, kBlocks>(out_row, half_matrix * kBlocks, dz, acc);
            if (inside) store_tile<G, kOut>(acc, dd + image + out_row * 16 * plane, plane);
        }
        outer_product<G, kShare>(dz, share_row, d, from, dpw);
    }
    __syncthreads();
    float* shares = reinterpret_cast<float*>(shared);  // [kWarps / kBlocks][16 * kBlocks][c]
    static_assert(kWarps * 16 * G::C * 4 <= pointwise_backward_shared_bytes<G, kFrom>(), "the warps' shares reuse the tile");
#pragma unroll
    for (int nt = 0; nt < 2 * G::MT; ++nt) {
        float* out = shares + (warp / kBlocks * 16 * kBlocks + share_row + lane / 4) * G::C + nt * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(out) = make_float2(dpw[nt][0], dpw[nt][1]);
        *reinterpret_cast<float2*>(out + 8 * G::C) = make_float2(dpw[nt][2], dpw[nt][3]);
    }
    __syncthreads();
    const int slot = kReduce ? p.edges * kConvs + p.reduced_index(edge) : edge * kConvs + conv;
    float* out = p.dpw_partial + (std::int64_t{slot} * gridDim.x + blockIdx.x) * (G::C * G::C) + first * G::C;
    for (int i = threadIdx.x; i < 16 * kBlocks * G::C; i += kThreads) {
        float sum = 0;
        for (int w = 0; w < kWarps / kBlocks; ++w) sum += shares[w * 16 * kBlocks * G::C + i];
        out[i] = sum;
    }
}

}  // namespace hwnas::mixed_cell::cuda
