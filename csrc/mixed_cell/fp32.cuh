// float32 products: pointwise ones on tensor cores in three TF32 passes, depthwise ones by scalar multiply-adds from registers.
//
// Splitting an operand into two TF32 numbers, x = big + small, keeps 22 bits; big * big + big * small + small * big is then as
// good as float32, which ReLU and max pooling need: a value that changes sign through rounding changes whole gradients.
#pragma once

#include "mixed_cell/tile.cuh"

namespace hwnas::mixed_cell::cuda {

__device__ __forceinline__ unsigned to_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
struct Split {
    unsigned big, small;
    __device__ __forceinline__ explicit Split(float x) {
        big = to_tf32(x);
        small = to_tf32(x - __uint_as_float(big));
    }
};
// acc[16, 8] += a[16, 8] * b[8, 8]
__device__ __forceinline__ void mma_tf32(float (&acc)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_split(float (&acc)[4], const unsigned (&a_big)[4], const unsigned (&a_small)[4], const Split& b0, const Split& b1) {
    mma_tf32(acc, a_small, b0.big, b1.big);
    mma_tf32(acc, a_big, b0.small, b1.small);
    mma_tf32(acc, a_big, b0.big, b1.big);
}

__device__ __forceinline__ void store_pair(float* columns, std::int64_t eight_rows, const float (&a)[4], const float (&b)[4]) {
    const int t = threadIdx.x % 4 * 2;
    store2(columns + t, a[0], a[1]);
    store2(columns + t + 8, b[0], b[1]);
    store2(columns + t + eight_rows, a[2], a[3]);
    store2(columns + t + 8 + eight_rows, b[2], b[3]);
}

// Pointwise weights, split: [edges * kConvs + reduced edges, c / 16, c / 8, 32 lanes, {big, small}, 4], then the same transposed.
struct Fp32Weights {
    unsigned *pointwise, *transposed;
    std::int64_t words;
    __host__ __device__ explicit Fp32Weights(const Plan<float>& p) {
        const std::int64_t products = matrices(p) * p.c * p.c * 2;
        pointwise = static_cast<unsigned*>(p.fragments);
        transposed = pointwise + products;
        words = 2 * products;
    }
    __host__ __device__ static std::int64_t matrices(const Plan<float>& p) { return p.edges * kConvs + (p.reduction ? 2 * p.nodes : 0); }
    __device__ static std::int64_t matrix(const Plan<float>& p, int edge, int conv) {
        return (conv == kFr ? p.edges * kConvs + p.reduced_index(edge) : edge * kConvs + conv) * (std::int64_t{p.c} * p.c * 2);
    }
};

// A warp makes one 16 x 8 block. Grid: blocks, convolutions and the factorized reduce, edges.
static __global__ void __launch_bounds__(kThreads) fp32_weights_kernel(Plan<float> p, bool backward) {
    wait_for_previous();
    const Fp32Weights f(p);
    const int lane = threadIdx.x % 32, item = blockIdx.x * kWarps + threadIdx.x / 32, conv = blockIdx.y, edge = blockIdx.z;
    if (item >= p.c / 16 * (p.c / 8) || (conv == kFr && !p.strided(edge))) return;
    const float* weights = p.pw_of(edge, conv);
    const std::int64_t at = Fp32Weights::matrix(p, edge, conv) + (item * 32 + lane) * 8;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int row = item / (p.c / 8) * 16 + lane / 4 + r % 2 * 8, column = item % (p.c / 8) * 8 + lane % 4 + r / 2 * 4;
        const Split w(weights[row * p.c + column]);
        f.pointwise[at + r] = w.big;
        f.pointwise[at + 4 + r] = w.small;
        if (backward) {
            const Split t(weights[column * p.c + row]);
            f.transposed[at + r] = t.big;
            f.transposed[at + 4 + r] = t.small;
        }
    }
}

// As its bfloat16 overload.
template <typename G, int M, int K>
__device__ __forceinline__ void pointwise_product(const unsigned* weights, int m0, int k0, const float* b, float (&acc)[M][G::NW][4]) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * (G::P / kWarps);
#pragma unroll
    for (int mt = 0; mt < M; ++mt)
#pragma unroll
        for (int nt = 0; nt < G::NW; ++nt)
#pragma unroll
            for (int k = 0; k < 4; ++k) acc[mt][nt][k] = 0;
#pragma unroll 2
    for (int kt = 0; kt < 2 * K; ++kt) {
        unsigned big[M][4], small[M][4];
#pragma unroll
        for (int mt = 0; mt < M; ++mt) {
            const uint4* from = reinterpret_cast<const uint4*>(weights) + (((m0 + mt) * 2 * G::MT + 2 * k0 + kt) * 32 + lane) * 2;
            const uint4 x = from[0], y = from[1];
            big[mt][0] = x.x, big[mt][1] = x.y, big[mt][2] = x.z, big[mt][3] = x.w;
            small[mt][0] = y.x, small[mt][1] = y.y, small[mt][2] = y.z, small[mt][3] = y.w;
        }
        const float* from = b + (kt * 8 + lane % 4) * G::DP + first + lane / 4;
#pragma unroll
        for (int nt = 0; nt < G::NW; ++nt) {
            const Split b0(from[nt * 8]), b1(from[4 * G::DP + nt * 8]);
#pragma unroll
            for (int mt = 0; mt < M; ++mt) mma_split(acc[mt][nt], big[mt], small[mt], b0, b1);
        }
    }
}

template <typename G, int kShare, int kColumns>
__device__ __forceinline__ void outer_product(const float* a, const float* b, float (&acc)[kColumns][4]) {
    const int lane = threadIdx.x % 32, at = lane / 4 * G::DP + lane % 4;
#pragma unroll 2
    for (int k = 0; k < kShare; k += 8) {
        const Split a0(a[at + k]), a1(a[at + k + 8 * G::DP]), a2(a[at + k + 4]), a3(a[at + k + 8 * G::DP + 4]);
        const unsigned big[4] = {a0.big, a1.big, a2.big, a3.big}, small[4] = {a0.small, a1.small, a2.small, a3.small};
#pragma unroll
        for (int nt = 0; nt < kColumns; ++nt) {
            const float* column = b + nt * 8 * G::DP + at + k;
            mma_split(acc[nt], big, small, Split(column[0]), Split(column[4]));
        }
    }
}

// A lane's pixels of a tile: R rows of 4.
template <typename G>
struct Patch {
    static constexpr int kAcross = G::OW / 4, R = 16 * kAcross / 32;
    int m, column;  // first row of the tile, first column
    __device__ Patch() : m(threadIdx.x % 32 / kAcross * R), column(threadIdx.x % kAcross * 4) {}
};

// Row `row` of a window: columns S * column - 4 ... of a plane in tile layout. The patch needs 4 * S + 8 of them.
template <int kWidth>
__device__ __forceinline__ void load_window(const float* at, float (&window)[kWidth]) {
#pragma unroll
    for (int k = 0; k < kWidth; k += 4) {
        const float4 v = *reinterpret_cast<const float4*>(at + k);
        window[k] = v.x, window[k + 1] = v.y, window[k + 2] = v.z, window[k + 3] = v.w;
    }
}

// out[r][q] += sum of weight * plane over the kernel; with kFlip the kernel is turned, as the gradient of the input wants it.
template <typename G, int K, int kDilation, bool kFlip>
__device__ __forceinline__ void depthwise_patch(const float* plane, const float* weights, const Patch<G>& patch, float (&out)[Patch<G>::R][4]) {
    constexpr int kPad = K / 2 * kDilation, R = Patch<G>::R, kWidth = 4 * G::S + 8;
    float w[K * K];
#pragma unroll
    for (int k = 0; k < K * K; ++k) w[k] = weights[kFlip ? K * K - 1 - k : k];
    const float* top = plane + (G::row(patch.m) - kPad) * G::PITCH + patch.column * G::S;
#pragma unroll
    for (int row = 0; row < G::S * (R - 1) + (K - 1) * kDilation + 1; ++row) {
        float window[kWidth];
        load_window(top + row * G::PITCH, window);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int distance = row - G::S * r;
            if (distance < 0 || distance % kDilation != 0 || distance / kDilation >= K) continue;
#pragma unroll
            for (int k = 0; k < K; ++k)
#pragma unroll
                for (int q = 0; q < 4; ++q) out[r][q] = fmaf(w[distance / kDilation * K + k], window[4 + G::S * q + k * kDilation - kPad], out[r][q]);
        }
    }
}

// `f(std::integral_constant K, std::integral_constant dilation)` of a convolution.
template <typename F>
__device__ __forceinline__ void with_kernel(int conv, F f) {
    using std::integral_constant;
    if (kernel_of(conv) == 5) {
        if (dilation_of(conv) == 2) f(integral_constant<int, 5>{}, integral_constant<int, 2>{});
        else f(integral_constant<int, 5>{}, integral_constant<int, 1>{});
    } else {
        if (dilation_of(conv) == 2) f(integral_constant<int, 3>{}, integral_constant<int, 2>{});
        else f(integral_constant<int, 3>{}, integral_constant<int, 1>{});
    }
}

template <typename G>
class Fp32Depthwiser {
    static_assert(G::kGroup == 1);

public:
    static constexpr int kWords = 25 * G::C;
    __device__ Fp32Depthwiser(const Plan<float>& p, const Fp32Weights&, int edge, int conv, unsigned* shared)
        : conv_(conv), weights_(reinterpret_cast<const float*>(shared)) {
        if (conv == kFr) return;
        const float* from = p.dw_of(edge, conv);
        for (int i = threadIdx.x; i < kernel_of(conv) * kernel_of(conv) * G::C / 4; i += kThreads) copy_async(shared + 4 * i, from + 4 * i);
    }
    __device__ __forceinline__ void run(const float* plane, int c, float* d) const {
        const Patch<G> patch;
        float out[Patch<G>::R][4] = {};
        with_kernel(conv_, [&](auto k, auto dilation) {
            constexpr int K = decltype(k)::value;
            depthwise_patch<G, K, decltype(dilation)::value, false>(plane, weights_ + c * K * K, patch, out);
        });
#pragma unroll
        for (int r = 0; r < Patch<G>::R; ++r)
            *reinterpret_cast<float4*>(d + G::position(patch.m + r, patch.column)) = make_float4(out[r][0], out[r][1], out[r][2], out[r][3]);
    }

private:
    int conv_;
    const float* weights_;
};

}  // namespace hwnas::mixed_cell::cuda
