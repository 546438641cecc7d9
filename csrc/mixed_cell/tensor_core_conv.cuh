// bfloat16 convolutions of a cell on tensor cores: forward, and the gradients of the pointwise part.
#pragma once

#include "mixed_cell/general.cuh"
#include "mixed_cell/tensor_core.cuh"

namespace hwnas::mixed_cell::cuda {

// A tile: 16 output rows (two images of 8, where a plane has only 8) times the whole width, so that a tile and all channels make
// 8192 outputs, 32 a thread. Input planes lie in shared memory with 4 rows above and below, and 4 columns left of the first.
template <int C_, int OW_, int S_>
struct Geometry {
    static constexpr int C = C_, OW = OW_, S = S_, IW = OW * S, P = 16 * OW, NT = OW / 8;
    static constexpr bool kPacked = OW == 8;  // two images a tile
    static constexpr int kPart = kPacked ? 8 * S + 8 : 16 * S + 8, ROWS = kPacked ? 2 * kPart : kPart;
    static constexpr int PITCH = IW + 8, PLANE = ROWS * PITCH;
    static constexpr int CH = S == 2 ? 16 : C < 32 ? C : 32;  // channels in shared memory at a time
    static constexpr int DP = P + 8;                          // pitch of [c][pixels] matrices: rows 16 bytes apart modulo the banks
    static constexpr int MT = C / 16, NW = P / 64;            // 16-row blocks of c; 8-pixel blocks a warp has
    static_assert(C * P == 8192, "32 accumulators a thread");
    __device__ static int row(int m) { return kPacked ? m / 8 * kPart + m % 8 * S + 4 : m * S + 4; }
    __host__ __device__ static int tiles(int n, int oh) { return kPacked ? (n + 1) / 2 : n * (oh / 16); }
    // Pixel `q` of a tile: its image and its place in the plane.
    __device__ static void place(int tile, int q, int oh, int& n, int& at) {
        if (kPacked) {
            n = tile * 2 + q / 64;
            at = q % 64;
        } else {
            const int strips = oh / 16;
            n = tile / strips;
            at = tile % strips * P + q;
        }
    }
    static bool covers(const Plan<bf16>& p, bool strided) {
        return p.c == C && p.ow == OW && (kPacked ? p.oh == 8 : p.oh % 16 == 0) && strided == (S == 2) &&
               (S == 1 || (p.h == 2 * p.oh && p.w == 2 * p.ow));
    }
};

// ReLU(x) or ReLU(norm(x)) of one tile, `channels` of them from c0 on, into planes of G's layout. Side columns stay as they are.
template <typename G>
__device__ __forceinline__ void load_tile(const Plan<bf16>& p, const ConvInput<bf16>& in, int c0, int channels, int tile, bf16* planes, int rank, int threads) {
    constexpr int kVectors = G::IW / 8;
    const int strips = G::kPacked ? 1 : p.oh / 16;
    for (int i = rank; i < channels * G::ROWS * kVectors; i += threads) {
        const int v = i % kVectors, row = i / kVectors % G::ROWS, c = i / (kVectors * G::ROWS);
        const int n = G::kPacked ? tile * 2 + row / G::kPart : tile / strips;
        const int y = G::kPacked ? row % G::kPart - 4 : tile % strips * 16 * G::S + row - 4;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (y >= 0 && y < in.x.h && n < p.n) {
            x = __ldg(reinterpret_cast<const uint4*>(in.plane(n, c0 + c) + y * G::IW) + v);
            unsigned* words = reinterpret_cast<unsigned*>(&x);
            const bf162 zero = __floats2bfloat162_rn(0.f, 0.f);
            if (in.mean) {
                const float scale = in.rstd[c0 + c], shift = -in.mean[c0 + c] * scale;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float2 f = unpack(words[k]);
                    words[k] = pack(fmaxf(fmaf(f.x, scale, shift), 0.f), fmaxf(fmaf(f.y, scale, shift), 0.f));
                }
            } else {
#pragma unroll
                for (int k = 0; k < 4; ++k) reinterpret_cast<bf162&>(words[k]) = __hmax2(reinterpret_cast<bf162&>(words[k]), zero);
            }
        }
        uint2* out = reinterpret_cast<uint2*>(planes + c * G::PLANE + row * G::PITCH + 4 + v * 8);
        out[0] = make_uint2(x.x, x.y);
        out[1] = make_uint2(x.z, x.w);
    }
}

template <typename G>
__device__ __forceinline__ void clear_sides(int channels, bf16* planes, int rank, int threads) {
    for (int i = rank; i < channels * G::ROWS; i += threads) {
        bf16* row = planes + i * G::PITCH;
        *reinterpret_cast<uint2*>(row) = make_uint2(0, 0);
        *reinterpret_cast<uint2*>(row + 4 + G::IW) = make_uint2(0, 0);
    }
}

// Depthwise outputs of `channels` planes, a warp a plane, into d[c][pixel].
template <typename G, int K>
__device__ __forceinline__ void depthwise_mma(const bf16* planes, const unsigned* bands, int c_total, int dil, int channels, bf16* d) {
    const int lane = threadIdx.x % 32, pad = K / 2 * dil;
    for (int c = threadIdx.x / 32; c < channels; c += kWarps) {
        uint2 band[K];
        unsigned tail[K];
#pragma unroll
        for (int t = 0; t < K; ++t) {
            const unsigned* words = bands + (std::int64_t{t} * c_total + c) * kForwardWords;
            band[t] = __ldg(reinterpret_cast<const uint2*>(words) + lane);
            if (G::S == 2) tail[t] = __ldg(words + 64 + lane);
        }
        const bf16* plane = planes + c * G::PLANE + G::row(lane % 16) * G::PITCH;
#pragma unroll
        for (int nt = 0; nt < G::NT; ++nt) {
            float acc[4] = {};
#pragma unroll
            for (int t = 0; t < K; ++t) {
                const bf16* at = plane + (t * dil - pad) * G::PITCH + nt * 8 * G::S;
                unsigned a[4];
                ldmatrix4(a, at + lane / 16 * 8);
                mma16(acc, a, band[t].x, band[t].y);
                if (G::S == 2) {
                    unsigned a8[2];
                    ldmatrix2(a8, at + 16);
                    mma8(acc, a8, tail[t]);
                }
            }
            bf16* out = d + c * G::DP + lane / 4 * G::OW + nt * 8 + lane % 4 * 2;
            *reinterpret_cast<unsigned*>(out) = pack(acc[0], acc[1]);
            *reinterpret_cast<unsigned*>(out + 8 * G::OW) = pack(acc[2], acc[3]);
        }
    }
}

// d of a whole tile. Ends behind a barrier.
template <typename G>
__device__ __forceinline__ void depthwise_tile_mma(const Plan<bf16>& p, const Fragments& f, const ConvInput<bf16>& in, int edge, int conv, int tile,
                                                   bf16* planes, bf16* d) {
    for (int c0 = 0; c0 < G::C; c0 += G::CH) {
        load_tile<G>(p, in, c0, G::CH, tile, planes, threadIdx.x, kThreads);
        __syncthreads();
        const unsigned* bands = f.forward + ((std::int64_t{edge} * kTaps + tap_offset(conv)) * G::C + c0) * kForwardWords;
        if (kernel_of(conv) == 5) depthwise_mma<G, 5>(planes, bands, G::C, dilation_of(conv), G::CH, d + c0 * G::DP);
        else depthwise_mma<G, 3>(planes, bands, G::C, dilation_of(conv), G::CH, d + c0 * G::DP);
        __syncthreads();
    }
}

// acc[c, pixels of this warp] = weights[c, c] * b[c, pixels]
template <typename G>
__device__ __forceinline__ void pointwise_mma(const unsigned* weights, const bf16* b, float (&acc)[G::MT][G::NW][4]) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * (G::P / kWarps);
#pragma unroll
    for (int mt = 0; mt < G::MT; ++mt)
#pragma unroll
        for (int nt = 0; nt < G::NW; ++nt)
#pragma unroll
            for (int k = 0; k < 4; ++k) acc[mt][nt][k] = 0;
#pragma unroll
    for (int kt = 0; kt < G::MT; ++kt) {
        uint4 a[G::MT];
#pragma unroll
        for (int mt = 0; mt < G::MT; ++mt) a[mt] = __ldg(reinterpret_cast<const uint4*>(weights) + (mt * G::MT + kt) * 32 + lane);
#pragma unroll
        for (int nt = 0; nt < G::NW; nt += 2) {
            unsigned r[4];
            ldmatrix4_trans(r, b + (kt * 16 + lane % 16) * G::DP + first + nt * 8 + lane / 16 * 8);
#pragma unroll
            for (int mt = 0; mt < G::MT; ++mt) {
                const unsigned w[4] = {a[mt].x, a[mt].y, a[mt].z, a[mt].w};
                mma16(acc[mt][nt], w, r[0], r[1]);
                mma16(acc[mt][nt + 1], w, r[2], r[3]);
            }
        }
    }
}

// acc to [n, c, plane] memory at this warp's pixels.
template <typename G>
__device__ __forceinline__ void store_tile(const float (&acc)[G::MT][G::NW][4], bf16* at, std::int64_t plane) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int mt = 0; mt < G::MT; ++mt)
#pragma unroll
        for (int nt = 0; nt < G::NW; nt += 2)
            store_pair(at + (mt * 16 + lane / 4) * plane + nt * 8, 8 * plane, acc[mt][nt], acc[mt][nt + 1]);
}

template <typename G>
constexpr int conv_shared_bytes() {
    return (G::CH * G::PLANE + G::C * G::DP) * 2;
}

// As conv_kernel, without the factorized reduce. Grid: tiles x jobs.
template <typename G>
__global__ void __launch_bounds__(kThreads, 3) conv_mma_kernel(Plan<bf16> p, Jobs jobs, ConvSums what) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float2 sums[kWarps][G::C];
    bf16* planes = reinterpret_cast<bf16*>(shared);
    bf16* d = planes + G::CH * G::PLANE;
    const int edge = jobs.edge[blockIdx.y], conv = jobs.kind[blockIdx.y], tile = blockIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Fragments f(p.fragments, p.edges, G::C, what == ConvSums::kGradient);
    const ConvInput<bf16> in(p, edge, conv);
    clear_sides<G>(G::CH, planes, threadIdx.x, kThreads);
    depthwise_tile_mma<G>(p, f, in, edge, conv, tile, planes, d);
    float acc[G::MT][G::NW][4];
    pointwise_mma<G>(f.pointwise + (std::int64_t{edge} * kConvs + conv) * (G::C * G::C / 2), d, acc);
    int n, at;
    G::place(tile, warp * (G::P / kWarps), p.oh, n, at);
    const std::int64_t plane = p.plane(), image = std::int64_t{n} * G::C * plane + at;
    const bool inside = n < p.n;
    if (what == ConvSums::kStatistics && inside) store_tile<G>(acc, p.z_of(edge, conv) + image, plane);
    const bf16* g = p.g_of(edge) + image;
    const int row = p.stat_row(edge, conv);
#pragma unroll
    for (int mt = 0; mt < G::MT; ++mt) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int co = mt * 16 + half * 8 + lane / 4;
            float a = 0, b = 0;
            if (what == ConvSums::kStatistics) {
#pragma unroll
                for (int nt = 0; nt < G::NW; ++nt) {
                    const float2 z = unpack(pack(acc[mt][nt][2 * half], acc[mt][nt][2 * half + 1]));
                    a += z.x + z.y;
                    b += z.x * z.x + z.y * z.y;
                }
            } else if (inside) {
                const float scale = p.rstd(row)[co], shift = -p.mean(row)[co] * scale;
#pragma unroll
                for (int nt = 0; nt < G::NW; ++nt) {
                    const float2 u = unpack(__ldg(reinterpret_cast<const unsigned*>(g + co * plane + nt * 8 + lane % 4 * 2)));
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
    for (int c = threadIdx.x; c < G::C; c += kThreads) {
        float a = 0, b = 0;
        for (int w = 0; w < kWarps; ++w) {
            a += sums[w][c].x;
            b += sums[w][c].y;
        }
        p.partial[(std::int64_t{blockIdx.y} * G::C + c) * gridDim.x + tile] = {a, b};
    }
}

template <typename G>
constexpr int pointwise_backward_shared_bytes() {
    return (G::CH * G::PLANE + 2 * G::C * G::DP) * 2;
}

// As pointwise_backward_kernel, without the factorized reduce: d and z are computed again, so z is not read. Grid: groups x jobs.
template <typename G>
__global__ void __launch_bounds__(kThreads, 2) pointwise_backward_mma_kernel(Plan<bf16> p, Jobs jobs) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float coefficients[3][G::C];
    bf16* planes = reinterpret_cast<bf16*>(shared);
    bf16* d = planes + G::CH * G::PLANE;
    bf16* dz = d + G::C * G::DP;
    const int edge = jobs.edge[blockIdx.y], conv = jobs.kind[blockIdx.y];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Fragments f(p.fragments, p.edges, G::C, true);
    const std::int64_t weights = (std::int64_t{edge} * kConvs + conv) * (G::C * G::C / 2);
    const ConvInput<bf16> in(p, edge, conv);
    const bf16* u = op_of(conv) < 0 ? p.h1_of(edge, conv) : p.g_of(edge);
    bf16* dd = p.dd_of(edge, conv);
    const std::int64_t plane = p.plane();
    for (int c = threadIdx.x; c < G::C; c += kThreads) {
        const NormGradient<bf16> norm(p, edge, conv, op_of(conv), c);
        coefficients[0][c] = norm.ca;
        coefficients[1][c] = norm.cb;
        coefficients[2][c] = norm.cc;
    }
    clear_sides<G>(G::CH, planes, threadIdx.x, kThreads);
    // dpw: a warp has 16 rows and all columns, over 64 of the tile's pixels
    const int block_row = warp % G::MT, from = warp / G::MT * 64;
    float dpw[2 * G::MT][4] = {};
    const int tiles = G::tiles(p.n, p.oh);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        depthwise_tile_mma<G>(p, f, in, edge, conv, tile, planes, d);
        int n, at;
        G::place(tile, warp * (G::P / kWarps), p.oh, n, at);
        const std::int64_t image = std::int64_t{n} * G::C * plane + at;
        const bool inside = n < p.n;
        {
            float acc[G::MT][G::NW][4];
            pointwise_mma<G>(f.pointwise + weights, d, acc);
#pragma unroll
            for (int mt = 0; mt < G::MT; ++mt) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int co = mt * 16 + half * 8 + lane / 4;
                    const float ca = coefficients[0][co], cb = coefficients[1][co], cc = coefficients[2][co];
                    bf16* out = dz + co * G::DP + warp * (G::P / kWarps) + lane % 4 * 2;
#pragma unroll
                    for (int nt = 0; nt < G::NW; ++nt) {
                        unsigned v = 0;
                        if (inside) {
                            const float2 up = unpack(__ldg(reinterpret_cast<const unsigned*>(u + image + co * plane + nt * 8 + lane % 4 * 2)));
                            v = pack(ca * up.x + cb * acc[mt][nt][2 * half] + cc, ca * up.y + cb * acc[mt][nt][2 * half + 1] + cc);
                        }
                        *reinterpret_cast<unsigned*>(out + nt * 8) = v;
                    }
                }
            }
        }
        __syncthreads();
        {
            float acc[G::MT][G::NW][4];
            pointwise_mma<G>(f.transposed + weights, dz, acc);
            if (inside) store_tile<G>(acc, dd + image, plane);
        }
#pragma unroll
        for (int k = 0; k < 64; k += 16) {
            unsigned a[4];
            ldmatrix4(a, dz + (block_row * 16 + lane % 16) * G::DP + from + k + lane / 16 * 8);
#pragma unroll
            for (int nt = 0; nt < 2 * G::MT; nt += 2) {
                unsigned b[4];
                ldmatrix4(b, d + (nt * 8 + lane % 8 + lane / 16 * 8) * G::DP + from + k + lane / 8 % 2 * 8);
                mma16(dpw[nt], a, b[0], b[1]);
                mma16(dpw[nt + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }
    __syncthreads();
    float* shares = reinterpret_cast<float*>(shared);  // [8 / MT][c][c]
    static_assert(kWarps * 16 * G::C * 4 <= pointwise_backward_shared_bytes<G>(), "the warps' shares reuse the tile");
#pragma unroll
    for (int nt = 0; nt < 2 * G::MT; ++nt) {
        float* out = shares + (warp / G::MT * G::C + block_row * 16 + lane / 4) * G::C + nt * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(out) = make_float2(dpw[nt][0], dpw[nt][1]);
        *reinterpret_cast<float2*>(out + 8 * G::C) = make_float2(dpw[nt][2], dpw[nt][3]);
    }
    __syncthreads();
    float* out = p.dpw_partial + ((std::int64_t{edge} * kConvs + conv) * gridDim.x + blockIdx.x) * (G::C * G::C);
    for (int i = threadIdx.x; i < G::C * G::C; i += kThreads) {
        float sum = 0;
        for (int w = 0; w < kWarps / G::MT; ++w) sum += shares[w * G::C * G::C + i];
        out[i] = sum;
    }
}

}  // namespace hwnas::mixed_cell::cuda
