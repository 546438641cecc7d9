// float32 products: pointwise ones on tensor cores in three TF32 passes, depthwise ones by scalar multiply-adds from registers.
#pragma once

#include "mixed_cell/tile.cuh"

namespace hwnas::mixed_cell::cuda {

__device__ __forceinline__ float element(const float4& v, int k) { return k == 0 ? v.x : k == 1 ? v.y : k == 2 ? v.z : v.w; }

// Which pixel a column of a product is may be chosen freely. A lane (group g = lane / 4, t = lane % 4) loads 4 pixels of a
// channel at once, one for each of 4 products, and column n of product k is pixel 4 * (n / 2 + 4 * (n % 2)) + k of 32. So a lane
// ends up with pixels 4t ... 4t + 3 (the first accumulators of the 4 products) and 16 + 4t ... (the second ones):
// f(mt, half, block of 32 pixels, half of the block, first of 4 pixels) for what a lane has in M rows of accumulators.
template <typename G, int M, typename F>
__device__ __forceinline__ void each_fragment(F f) {
#pragma unroll
    for (int mt = 0; mt < M; ++mt)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int block = 0; block < G::NW / 4; ++block)
#pragma unroll
                for (int part = 0; part < 2; ++part) f(mt, half, block, part, block * 32 + part * 16 + threadIdx.x % 4 * 4);
}

// acc to [n, c, plane] memory at this warp's pixels.
template <typename G, int M>
__device__ __forceinline__ void store_tile(const float (&acc)[M][G::NW][4], float* at, std::int64_t plane) {
    float* own = at + threadIdx.x % 32 / 4 * plane;
    each_fragment<G, M>([&](int mt, int half, int block, int part, int pixel) {
        const auto v = [&](int k) { return acc[mt][block * 4 + k][2 * half + part]; };
        *reinterpret_cast<float4*>(own + (mt * 16 + half * 8) * plane + pixel) = make_float4(v(0), v(1), v(2), v(3));
    });
}

// What store_tile would have stored of a gradient. There are registers for a row at a time.
template <typename G, int M>
class Fp32Upstream {
public:
    __device__ __forceinline__ void ask(const float* at, std::int64_t plane) {
        own_ = at + threadIdx.x % 32 / 4 * plane + threadIdx.x % 4 * 4;
        plane_ = plane;
    }
    __device__ __forceinline__ void load(int mt, int half) {
#pragma unroll
        for (int k = 0; k < G::NW / 2; ++k) row_[k] = *reinterpret_cast<const float4*>(own_ + (mt * 16 + half * 8) * plane_ + k * 16);
    }
    __device__ __forceinline__ float2 operator()(int, int, int nt) const {
        return make_float2(element(row_[nt / 4 * 2], nt % 4), element(row_[nt / 4 * 2 + 1], nt % 4));
    }

private:
    const float* own_;
    std::int64_t plane_;
    float4 row_[G::NW / 2];
};

// The matrix holds u; it becomes norm(u, acc) at the accumulators' places. `row`: the first row of this warp's accumulators;
// norm(row, u, z), zero where not `inside`.
template <typename G, int M, typename F>
__device__ __forceinline__ void combine(float* matrix, int row, bool inside, const float (&acc)[M][G::NW][4], F norm) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    matrix += row * G::DP + G::first_pixel(threadIdx.x / 32);
    float* const own[2] = {matrix + G::at(g, 4 * t), matrix + G::at(g, 16 + 4 * t)};  // rows 8 apart are permuted alike
    each_fragment<G, M>([&](int mt, int half, int block, int part, int) {
        const int c = row + mt * 16 + half * 8 + g;
        float4& u = *reinterpret_cast<float4*>(own[part] + (mt * 16 + half * 8) * G::DP + block * 32);
        float v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = inside ? norm(c, element(u, k), acc[mt][block * 4 + k][2 * half + part]) : 0.f;
        u = make_float4(v[0], v[1], v[2], v[3]);
    });
}

// One pointwise matrix in shared memory, rows 4 words apart modulo the banks; it serves both ways.
template <typename G, bool kBackward>
class Fp32Pointwise {
    static constexpr int kPitch = G::C + 4;

public:
    static constexpr int kWords = G::C * kPitch;
    __device__ explicit Fp32Pointwise(const unsigned* shared) : weights_(reinterpret_cast<const float*>(shared)) {}
    // Asks for the weights; a wait for copies and a barrier must follow.
    __device__ __forceinline__ static void ask(const Plan<float>& p, int edge, int conv, unsigned* shared) {
        const float* from = p.pw_of(edge, conv);
        for (unsigned i = threadIdx.x; i < G::C * G::C / 4; i += kThreads) copy_async(shared + i / (G::C / 4) * kPitch + i % (G::C / 4) * 4, from + 4 * i);
    }
    // acc[M blocks, pixels of this warp] = weights[M blocks from m0, K blocks from k0] * b[K blocks, pixels], blocks of 16
    template <int M, int K>
    __device__ __forceinline__ void product(int m0, int k0, const float* b, float (&acc)[M][G::NW][4]) const {
        const int lane = threadIdx.x % 32;
        multiply<M, K>(b, acc, [&](int mt, int kt) {
            const float* w = weights_ + ((m0 + mt) * 16 + lane / 4) * kPitch + k0 * 16 + kt * 8 + lane % 4;
            return SplitRows({w[0], w[8 * kPitch], w[4], w[8 * kPitch + 4]}, !kBackward);
        });
    }
    // The same with the transposed matrix.
    template <int M, int K>
    __device__ __forceinline__ void transposed_product(int m0, int k0, const float* b, float (&acc)[M][G::NW][4]) const {
        const int lane = threadIdx.x % 32;
        multiply<M, K>(b, acc, [&](int mt, int kt) {
            const float* w = weights_ + (k0 * 16 + kt * 8 + lane % 4) * kPitch + (m0 + mt) * 16 + lane / 4;
            return SplitRows({w[0], w[8], w[4 * kPitch], w[4 * kPitch + 8]}, !kBackward);
        });
    }

private:
    template <int M, int K, typename F>
    __device__ __forceinline__ static void multiply(const float* b, float (&acc)[M][G::NW][4], F rows) {
        const int lane = threadIdx.x % 32, g = lane / 4, first = G::first_pixel(threadIdx.x / 32);
        const float* from = b + G::at(lane % 4, 4 * (g / 2 + g % 2 * 4)) + first;  // channels 4 apart are permuted alike
#pragma unroll
        for (int mt = 0; mt < M; ++mt)
#pragma unroll
            for (int nt = 0; nt < G::NW; ++nt)
#pragma unroll
                for (int k = 0; k < 4; ++k) acc[mt][nt][k] = 0;
#pragma unroll 2
        for (int kt = 0; kt < 2 * K; ++kt) {
            float4 low[G::NW / 4], high[G::NW / 4];
#pragma unroll
            for (int block = 0; block < G::NW / 4; ++block) {
                low[block] = *reinterpret_cast<const float4*>(from + kt * 8 * G::DP + block * 32);
                high[block] = *reinterpret_cast<const float4*>(from + (kt * 8 + 4) * G::DP + block * 32);
            }
            if constexpr (M == 1) {
                const SplitRows a = rows(0, kt);
#pragma unroll
                for (int nt = 0; nt < G::NW; ++nt) mma_split(acc[0][nt], a, split(element(low[nt / 4], nt % 4)), split(element(high[nt / 4], nt % 4)));
            } else {
                static_assert(M == 2);
                const SplitRows a0 = rows(0, kt), a1 = rows(1, kt);
#pragma unroll
                for (int nt = 0; nt < G::NW; ++nt) {
                    const Split b0 = split(element(low[nt / 4], nt % 4)), b1 = split(element(high[nt / 4], nt % 4));
                    mma_split(acc[0][nt], a0, b0, b1);
                    mma_split(acc[1][nt], a1, b0, b1);
                }
            }
        }
    }

    // Forward rounds: there signs may hang on the last bit.
    __device__ __forceinline__ static Split split(float x) { return Split(x, !kBackward); }

    const float* weights_;
};

// acc[16, columns] += a[16 rows from `row`, kShare pixels] * b[columns, kShare pixels]^T, pixels from `first`. Here pixels are
// what is summed over, and their order may be chosen freely again.
template <typename G, int kShare, int kColumns>
__device__ __forceinline__ void outer_product(const float* a, int row, const float* b, int first, float (&acc)[kColumns][4]) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    static_assert(kShare % 32 == 0);
    const int own[2] = {G::at(g, 4 * t), G::at(g, 16 + 4 * t)};  // rows 8 apart are permuted alike
#pragma unroll 2
    for (int k = 0; k < kShare; k += 16) {
        const int at = own[k / 16 % 2] + first + k / 32 * 32;
        const float4 top = *reinterpret_cast<const float4*>(a + row * G::DP + at), bottom = *reinterpret_cast<const float4*>(a + (row + 8) * G::DP + at);
        const SplitRows a0({top.x, bottom.x, top.y, bottom.y}, false), a1({top.z, bottom.z, top.w, bottom.w}, false);
#pragma unroll
        for (int nt = 0; nt < kColumns; ++nt) {
            const float4 column = *reinterpret_cast<const float4*>(b + nt * 8 * G::DP + at);
            mma_split(acc[nt], a0, Split(column.x, false), Split(column.y, false));
            mma_split(acc[nt], a1, Split(column.z, false), Split(column.w, false));
        }
    }
}

// Weights of one channel's kernel, 16 bytes at a time.
template <int kCount>
__device__ __forceinline__ void load_kernel(const float* from, float (&w)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; k += 4) {
        const float4 v = *reinterpret_cast<const float4*>(from + k);
#pragma unroll
        for (int e = 0; e < 4 && k + e < kCount; ++e) w[k + e] = element(v, e);
    }
}

// A row of a lane's window from 4 columns left of its patch of Q on, where the plane goes on there.
template <bool kSides, int kWidth>
__device__ __forceinline__ void load_window(const float* patch, float (&window)[kWidth]) {
#pragma unroll
    for (int k = 0; k < kWidth; k += 4) {
        const float4 v = kSides || (k >= 4 && k + 8 <= kWidth) ? *reinterpret_cast<const float4*>(patch + k - 4) : make_float4(0, 0, 0, 0);
        window[k] = v.x, window[k + 1] = v.y, window[k + 2] = v.z, window[k + 3] = v.w;
    }
}

// The depthwise part of a tile: a lane has R rows of Q output pixels of one of kGroup channels.
template <typename G>
class Fp32Depthwiser {
    static constexpr int kLanes = 32 / G::kGroup, Q = G::OW == 8 && G::S == 1 ? 8 : 4, R = G::P / kLanes / Q, kAcross = G::OW / Q;
    static constexpr int kRoom = 28;  // for a channel's weights
    // Rows of a lane's patch are as far apart as the kernel's where that makes them read fewer rows and no bank twice.
    __device__ static constexpr int step(int dilation) { return G::S == 1 && G::OW == 32 ? dilation : 1; }

public:
    static constexpr int kWords = kRoom * G::C;
    // Asks for the weights, as Fp32Pointwise does.
    __device__ Fp32Depthwiser(const Plan<float>& p, int edge, int conv, unsigned* shared) : conv_(conv), weights_(reinterpret_cast<const float*>(shared)) {
        if (conv == kFr) return;
        const float* from = p.dw_of(edge, conv);
        const int size = kernel_of(conv) * kernel_of(conv);
#pragma unroll
        for (int k = 0; k < G::kEach; ++k) {  // a warp's own channels
            const int c = threadIdx.x / 32 * G::kEach + k, tap = threadIdx.x % 32;
            if (tap < size) copy_async4(shared + c * kRoom + tap, from + c * size + tap);
        }
        const int sub = threadIdx.x % kLanes;
        group_ = threadIdx.x % 32 / kLanes;
        const int rows = sub / kAcross;
        m_ = step(dilation_of(conv)) == 2 ? rows / 2 * (2 * R) + rows % 2 : rows * R;
        column_ = sub % kAcross * Q;
    }
    // d[channel][pixel] of the kGroup channels from c on, whose planes these are.
    __device__ __forceinline__ void run(const float* planes, int c, float* d) const {
        if (kernel_of(conv_) == 5) {
            if (dilation_of(conv_) == 2) convolve<5, 2>(planes, c, d);
            else convolve<5, 1>(planes, c, d);
        } else {
            if (dilation_of(conv_) == 2) convolve<3, 2>(planes, c, d);
            else convolve<3, 1>(planes, c, d);
        }
    }

private:
    template <int K, int kDilation>
    __device__ __forceinline__ void convolve(const float* planes, int c, float* d) const {
        constexpr int kPad = K / 2 * kDilation, S = G::S, kStep = step(kDilation);
        float w[K * K], out[R][Q] = {};
        load_kernel(weights_ + (c + group_) * kRoom, w);
        const float* top = planes + group_ * G::PLANE + (G::row(m_) - kPad) * G::PITCH + 4 + column_ * S;
#pragma unroll
        for (int row = 0; row < S * kStep * (R - 1) + (K - 1) * kDilation + 1; ++row) {
            float window[Q * S + 8];
            load_window<(Q < G::OW)>(top + row * G::PITCH, window);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const int distance = row - S * kStep * r;
                if (distance < 0 || distance % kDilation != 0 || distance / kDilation >= K) continue;
#pragma unroll
                for (int k = 0; k < K; ++k)
#pragma unroll
                    for (int q = 0; q < Q; ++q) out[r][q] = fmaf(w[distance / kDilation * K + k], window[4 + S * q + k * kDilation - kPad], out[r][q]);
            }
        }
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int q = 0; q < Q; q += 4) {
                float* at = d + G::at(c + group_, G::position(m_ + kStep * r, column_ + q));
                *reinterpret_cast<float4*>(at) = make_float4(out[r][q], out[r][q + 1], out[r][q + 2], out[r][q + 3]);
            }
    }

    int conv_, group_ = 0, m_ = 0, column_ = 0;
    const float* weights_;
};

}  // namespace hwnas::mixed_cell::cuda
