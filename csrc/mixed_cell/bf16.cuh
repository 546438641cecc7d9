// bfloat16 products, all on tensor cores, and how weights are laid out for them.
//
// A depthwise convolution is a matrix product too: for one channel and one kernel row, 16 output rows x 8 output columns are
//   out[16 rows, 8] += x[16 rows, window of 16 columns] * band[16, 8],   band[k, n] = the weight that takes column k to output n
// so a 5x5 convolution of 128 outputs is 5 products of 16 x 8 x 16. The band costs 12 zeros in 16, and still this is several
// times cheaper than scalar multiply-adds, because operands come from shared memory by ldmatrix, 8 at a time and unconverted.
#pragma once

#include "mixed_cell/tile.cuh"

namespace hwnas::mixed_cell::cuda {

// Two neighbouring 16 x 8 accumulators to rows `first` and `first` + 8 of memory: lanes swap halves so that each stores 8 bytes
// and a row's 32 bytes fill a sector. `columns` points at the pair's first column in the lane's row (lane / 4).
__device__ __forceinline__ void store_pair(bf16* columns, std::int64_t eight_rows, const float (&a)[4], const float (&b)[4]) {
    const int t = threadIdx.x % 4;
    const bool odd = t % 2;
    bf16* at = columns + (odd ? 8 + (t - 1) * 2 : t * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const unsigned mine_a = pack(a[2 * half], a[2 * half + 1]), mine_b = pack(b[2 * half], b[2 * half + 1]);
        const unsigned other = __shfl_xor_sync(0xffffffffu, odd ? mine_a : mine_b, 1);
        *reinterpret_cast<uint2*>(at + half * eight_rows) = odd ? make_uint2(other, mine_b) : make_uint2(mine_a, other);
    }
}

// The reverse: what store_pair would have stored, as packed pairs.
__device__ __forceinline__ void load_pair(const bf16* columns, unsigned& a, unsigned& b) {
    const int t = threadIdx.x % 4;
    const bool odd = t % 2;
    const uint2 v = __ldg(reinterpret_cast<const uint2*>(columns + (odd ? 8 + (t - 1) * 2 : t * 2)));
    const unsigned other = __shfl_xor_sync(0xffffffffu, odd ? v.x : v.y, 1);
    a = odd ? other : v.x;
    b = odd ? v.y : other;
}

// Weights as fragments, in one buffer per launch of the cell:
//   band forward  [edges, kTaps, c, kForwardWords]: a zero, then the pairs of neighbouring weights (w[i - 1], w[i]), i from 0 on,
//                 with zeros between the weights of dilated kernels and beyond their ends; a lane picks those that its part of
//                 the band holds
//   pointwise     [edges * kConvs + reduced edges, c / 16, c / 16, 32 lanes, 4], then the same transposed
constexpr int kTaps = 3 + 3 + 5 + 5 + 3 + 5;  // kernel rows of an edge's convolutions
constexpr int kForwardWords = 12;
__host__ __device__ constexpr int tap_offset(int conv) { return conv == 0 ? 0 : conv == 1 ? 3 : conv == 2 ? 6 : conv == 3 ? 11 : conv == 4 ? 16 : 19; }

struct Bf16Weights {
    unsigned *forward, *pointwise, *transposed;
    std::int64_t words;
    __host__ __device__ explicit Bf16Weights(const Plan<bf16>& p) {
        const std::int64_t bands = std::int64_t{p.edges} * kTaps * p.c, products = matrices(p) * p.c * p.c / 2;
        forward = static_cast<unsigned*>(p.fragments);
        pointwise = forward + bands * kForwardWords;
        transposed = pointwise + products;
        words = bands * kForwardWords + 2 * products;
    }
    __host__ __device__ static std::int64_t matrices(const Plan<bf16>& p) { return p.edges * kConvs + (p.reduction ? 2 * p.nodes : 0); }
    __device__ static std::int64_t matrix(const Plan<bf16>& p, int edge, int conv) {
        return (conv == kFr ? p.edges * kConvs + p.reduced_index(edge) : edge * kConvs + conv) * (std::int64_t{p.c} * p.c / 2);
    }
};

// One row of a channel's kernel, by the distance between input and output: zero between the weights of dilated kernels and
// beyond their ends.
struct TapRow {
    const float* weights;
    int size, dilation;
    __device__ float operator()(int distance) const {
        const int at = dilation == 2 ? distance / 2 : distance;
        return distance >= 0 && (dilation == 1 || distance % 2 == 0) && at < size ? weights[at] : 0.f;
    }
};

// A warp makes the bands of one kernel row and channel, or one 16 x 16 block of a pointwise matrix.
// Grid: x over channels and blocks, y: kernel rows, then convolutions, then the factorized reduce; z: edges.
static __global__ void __launch_bounds__(kThreads) bf16_weights_kernel(const __grid_constant__ Plan<bf16> p, bool backward) {
    wait_for_previous();
    const Bf16Weights f(p);
    const int lane = threadIdx.x % 32, item = blockIdx.x * kWarps + threadIdx.x / 32, edge = blockIdx.z;
    if (blockIdx.y < kTaps) {
        const int c = item, tap = blockIdx.y;
        if (c >= p.c) return;
        int conv = kConvs - 1;
        while (tap < tap_offset(conv)) --conv;
        const int size = kernel_of(conv);
        const TapRow row{p.dw_of(edge, conv) + (c * size + tap - tap_offset(conv)) * size, size, dilation_of(conv)};
        if (lane < kForwardWords) f.forward[((std::int64_t{edge} * kTaps + tap) * p.c + c) * kForwardWords + lane] = lane == 0 ? 0u : pack(row(lane - 2), row(lane - 1));
    } else {
        const int conv = blockIdx.y - kTaps, blocks = p.c / 16;
        if (item >= blocks * blocks || (conv == kFr && !p.strided(edge))) return;
        const float* weights = p.pw_of(edge, conv);
        const std::int64_t at = Bf16Weights::matrix(p, edge, conv) + (item * 32 + lane) * 4;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int row = item / blocks * 16 + lane / 4 + r % 2 * 8, column = item % blocks * 16 + lane % 4 * 2 + r / 2 * 8;
            f.pointwise[at + r] = pack(weights[row * p.c + column], weights[row * p.c + column + 1]);
            if (backward) f.transposed[at + r] = pack(weights[column * p.c + row], weights[(column + 1) * p.c + row]);
        }
    }
}

// The depthwise part of a tile. A band is put together from a table in shared memory: 12 words a kernel row.
template <typename G>
class Bf16Depthwiser {
public:
    static constexpr int kWords = 5 * G::C * kForwardWords;
    // Asks for the bands, as Bf16Pointwise does for its weights.
    __device__ Bf16Depthwiser(const Plan<bf16>& p, int edge, int conv, unsigned* shared)
        : size_(kernel_of(conv)), dilation_(dilation_of(conv)), bands_(shared) {
        if (conv == kFr) return;
        const unsigned* from = Bf16Weights(p).forward + (std::int64_t{edge} * kTaps + tap_offset(conv)) * G::C * kForwardWords;
        for (int i = threadIdx.x; i < size_ * G::C * kForwardWords / 4; i += kThreads) copy_async(shared + 4 * i, from + 4 * i);
        const int lane = threadIdx.x % 32, pad = size_ / 2 * dilation_, last = (size_ - 1) * dilation_;
#pragma unroll
        for (int r = 0; r < 3; ++r) {  // input column S * w0 - 4 + k feeds output column w0 + n
            const int distance = lane % 4 * 2 + r * 8 - 4 - G::S * (lane / 4) + pad;
            word_[r] = distance >= -1 && distance <= last ? distance + 2 : 0;
        }
    }
    // d[channel][pixel] of the kGroup channels from c on, whose planes these are.
    __device__ __forceinline__ void run(const bf16* planes, int c, bf16* d) const { convolve<false>(planes, c, d, *this); }
    // With `smaller`, a 3 x 3 convolution of the same input and dilation as this one's 5 x 5: that one's results too, a matrix
    // further.
    __device__ __forceinline__ void run_pair(const bf16* planes, int c, bf16* d, const Bf16Depthwiser& smaller) const { convolve<true>(planes, c, d, smaller); }

private:
    template <bool kPair>
    __device__ __forceinline__ void convolve(const bf16* planes, int c, bf16* d, const Bf16Depthwiser& smaller) const {
        const int lane = threadIdx.x % 32, pad = size_ / 2 * dilation_;
        const bf16* plane = planes + (G::row(lane % 16) - pad) * G::PITCH;
        float acc[G::kGroup][G::NT][4] = {}, inner[kPair ? G::kGroup : 1][G::NT][4] = {};
#pragma unroll
        for (int t = 0; t < 5; ++t) {
            if (!kPair && t >= size_) continue;
            const bool both = kPair && t >= 1 && t <= 3;  // kernel rows that the smaller one has too
#pragma unroll
            for (int k = 0; k < G::kGroup; ++k) {
                const unsigned* band = bands_ + (t * G::C + c + k) * kForwardWords;
                const unsigned* inner_band = smaller.bands_ + ((both ? t - 1 : 0) * G::C + c + k) * kForwardWords;
                unsigned b[3], inner_b[3];
#pragma unroll
                for (int r = 0; r < (G::S == 1 ? 2 : 3); ++r) {
                    b[r] = band[word_[r]];
                    inner_b[r] = both ? inner_band[smaller.word_[r]] : 0u;
                }
                const bf16* at = plane + k * G::PLANE + t * dilation_ * G::PITCH + lane / 16 * 8;
                unsigned a[4];
                if (G::S == 1) {  // neighbouring windows share 8 columns
                    ldmatrix4(a, at);
#pragma unroll
                    for (int nt = 0; nt < G::NT; ++nt) {
                        mma16(acc[k][nt], a, b[0], b[1]);
                        if (both) mma16(inner[k][nt], a, inner_b[0], inner_b[1]);
                        if (nt + 1 == G::NT) continue;
                        unsigned next[2];
                        ldmatrix2(next, at - lane / 16 * 8 + nt * 8 + 16);
                        a[0] = a[2], a[1] = a[3], a[2] = next[0], a[3] = next[1];
                    }
                } else {
#pragma unroll
                    for (int nt = 0; nt < G::NT; ++nt) {
                        unsigned rest[2];
                        ldmatrix4(a, at + nt * 16);
                        ldmatrix2(rest, at - lane / 16 * 8 + nt * 16 + 16);
                        mma16(acc[k][nt], a, b[0], b[1]);
                        mma8(acc[k][nt], rest, b[2]);
                        if (!both) continue;
                        mma16(inner[k][nt], a, inner_b[0], inner_b[1]);
                        mma8(inner[k][nt], rest, inner_b[2]);
                    }
                }
            }
        }
        store(acc, c, d);
        if constexpr (kPair) store(inner, c, d + G::kMatrix);
    }

    __device__ __forceinline__ static void store(const float (&acc)[G::kGroup][G::NT][4], int c, bf16* d) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < G::kGroup; ++k)
#pragma unroll
            for (int nt = 0; nt < G::NT; ++nt) {
                const int w = nt * 8 + lane % 4 * 2;
                *reinterpret_cast<unsigned*>(d + G::at(c + k, G::position(lane / 4, w))) = pack(acc[k][nt][0], acc[k][nt][1]);
                *reinterpret_cast<unsigned*>(d + G::at(c + k, G::position(lane / 4 + 8, w))) = pack(acc[k][nt][2], acc[k][nt][3]);
            }
    }

    int size_, dilation_, word_[3];
    const unsigned* bands_;
};

// acc to [n, c, plane] memory at this warp's pixels.
template <typename G, int M>
__device__ __forceinline__ void store_tile(const float (&acc)[M][G::NW][4], bf16* at, std::int64_t plane) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int mt = 0; mt < M; ++mt)
#pragma unroll
        for (int nt = 0; nt < G::NW; nt += 2)
            store_pair(at + (mt * 16 + lane / 4) * plane + G::block(nt), 8 * plane, acc[mt][nt], acc[mt][nt + 1]);
}

// What store_tile would have stored of a gradient; there are registers for all of it from before the product on.
template <typename G, int M>
class Bf16Upstream {
public:
    __device__ __forceinline__ void ask(const bf16* at, std::int64_t plane) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int mt = 0; mt < M; ++mt)
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int nt = 0; nt < G::NW; nt += 2)
                    load_pair(at + (mt * 16 + half * 8 + lane / 4) * plane + G::block(nt), held_[mt][half][nt], held_[mt][half][nt + 1]);
    }
    __device__ __forceinline__ void load(int, int) {}
    __device__ __forceinline__ float2 operator()(int mt, int half, int nt) const { return unpack(held_[mt][half][nt]); }

private:
    unsigned held_[M][2][G::NW];
};

// As its float32 overload.
template <typename G, int M, typename F>
__device__ __forceinline__ void combine(bf16* matrix, int row, bool inside, const float (&acc)[M][G::NW][4], F norm) {
    const int lane = threadIdx.x % 32, first = G::first_pixel(threadIdx.x / 32) + lane % 4 * 2;
#pragma unroll
    for (int mt = 0; mt < M; ++mt)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int c = row + mt * 16 + half * 8 + lane / 4;
#pragma unroll
            for (int nt = 0; nt < G::NW; ++nt) {
                unsigned& word = *reinterpret_cast<unsigned*>(matrix + G::at(c, first + nt * 8));
                const float2 u = unpack(word);
                word = inside ? pack(norm(c, u.x, acc[mt][nt][2 * half]), norm(c, u.y, acc[mt][nt][2 * half + 1])) : 0u;
            }
        }
}

// One pointwise matrix as fragments in shared memory, and its transpose in backward.
template <typename G, bool kBackward>
class Bf16Pointwise {
    static constexpr int kMatrixWords = G::C * G::C / 2;

public:
    static constexpr int kWords = (kBackward ? 2 : 1) * kMatrixWords;
    __device__ explicit Bf16Pointwise(const unsigned* shared) : weights_(shared) {}
    // Asks for the weights; a wait for copies and a barrier must follow.
    __device__ __forceinline__ static void ask(const Plan<bf16>& p, int edge, int conv, unsigned* shared) {
        const Bf16Weights f(p);
        const std::int64_t matrix = Bf16Weights::matrix(p, edge, conv);
        for (int i = threadIdx.x; i < kMatrixWords / 4; i += kThreads) {
            copy_async(shared + 4 * i, f.pointwise + matrix + 4 * i);
            if (kBackward) copy_async(shared + kMatrixWords + 4 * i, f.transposed + matrix + 4 * i);
        }
    }
    // acc[M blocks, pixels of this warp] = weights[M blocks from m0, K blocks from k0] * b[K blocks, pixels], blocks of 16
    template <int M, int K>
    __device__ __forceinline__ void product(int m0, int k0, const bf16* b, float (&acc)[M][G::NW][4]) const {
        multiply<M, K>(weights_, m0, k0, b, acc);
    }
    // The same with the transposed matrix.
    template <int M, int K>
    __device__ __forceinline__ void transposed_product(int m0, int k0, const bf16* b, float (&acc)[M][G::NW][4]) const {
        multiply<M, K>(weights_ + kMatrixWords, m0, k0, b, acc);
    }

private:
    template <int M, int K>
    __device__ __forceinline__ static void multiply(const unsigned* weights, int m0, int k0, const bf16* b, float (&acc)[M][G::NW][4]) {
        const int lane = threadIdx.x % 32, first = G::first_pixel(threadIdx.x / 32);
#pragma unroll
        for (int mt = 0; mt < M; ++mt)
#pragma unroll
            for (int nt = 0; nt < G::NW; ++nt)
#pragma unroll
                for (int k = 0; k < 4; ++k) acc[mt][nt][k] = 0;
#pragma unroll
        for (int kt = 0; kt < K; ++kt) {
            uint4 a[M];
#pragma unroll
            for (int mt = 0; mt < M; ++mt) a[mt] = *(reinterpret_cast<const uint4*>(weights) + ((m0 + mt) * G::MT + k0 + kt) * 32 + lane);
#pragma unroll
            for (int nt = 0; nt < G::NW; nt += 2) {
                unsigned r[4];
                ldmatrix4_trans(r, b + (kt * 16 + lane % 16) * G::DP + first + nt * 8 + lane / 16 * 8);
#pragma unroll
                for (int mt = 0; mt < M; ++mt) {
                    const unsigned w[4] = {a[mt].x, a[mt].y, a[mt].z, a[mt].w};
                    mma16(acc[mt][nt], w, r[0], r[1]);
                    mma16(acc[mt][nt + 1], w, r[2], r[3]);
                }
            }
        }
    }

    const unsigned* weights_;
};

// As its float32 overload.
template <typename G, int kShare, int kColumns>
__device__ __forceinline__ void outer_product(const bf16* matrix, int row, const bf16* columns_from, int first, float (&acc)[kColumns][4]) {
    const int lane = threadIdx.x % 32;
    const bf16 *a = matrix + row * G::DP + first, *b = columns_from + first;
#pragma unroll
    for (int k = 0; k < kShare; k += 16) {
        unsigned rows[4];
        ldmatrix4(rows, a + lane % 16 * G::DP + k + lane / 16 * 8);
#pragma unroll
        for (int nt = 0; nt < kColumns; nt += 2) {
            unsigned columns[4];
            ldmatrix4(columns, b + (nt * 8 + lane % 8 + lane / 16 * 8) * G::DP + k + lane / 8 % 2 * 8);
            mma16(acc[nt], rows, columns[0], columns[1]);
            mma16(acc[nt + 1], rows, columns[2], columns[3]);
        }
    }
}

}  // namespace hwnas::mixed_cell::cuda
