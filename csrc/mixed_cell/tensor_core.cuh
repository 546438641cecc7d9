// The two tensor core instructions that the bfloat16 kernels use, and how weights are laid out for them.
//
// A depthwise convolution is a matrix product too: for one channel and one kernel row, 16 output rows x 8 output columns are
//   out[16 rows, 8] += x[16 rows, window of 16 columns] * band[16, 8],   band[k, n] = the weight that takes column k to output n
// so a 5x5 convolution of 128 outputs is 5 products of 16 x 8 x 16. The band costs 12 zeros in 16, and still this is several
// times cheaper than scalar multiply-adds, because operands come from shared memory by ldmatrix, 8 at a time and unconverted.
#pragma once

#include "mixed_cell/plan.cuh"

namespace hwnas::mixed_cell::cuda {

using bf16 = __nv_bfloat16;
using bf162 = __nv_bfloat162;

__device__ __forceinline__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void ldmatrix4(unsigned (&r)[4], const bf16* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix4_trans(unsigned (&r)[4], const bf16* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix2(unsigned (&r)[2], const bf16* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void ldmatrix2_trans(unsigned (&r)[2], const bf16* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)) : "memory");
}
// acc[16, 8] += a[16, 16] * b[16, 8]
__device__ __forceinline__ void mma16(float (&acc)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// acc[16, 8] += a[16, 8] * b[8, 8]
__device__ __forceinline__ void mma8(float (&acc)[4], const unsigned (&a)[2], unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}
__device__ __forceinline__ unsigned pack(float a, float b) {
    const bf162 v = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const unsigned&>(v);
}
__device__ __forceinline__ float2 unpack(unsigned v) { return __bfloat1622float2(reinterpret_cast<const bf162&>(v)); }

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

// Weights as fragments, in one buffer per launch of the cell:
//   band forward  [edges, kTaps, c, kForwardWords]: 64 words of k 0..15 (two a lane), 32 of k 16..23 (stride 2)
//   band backward [edges, kTaps, c, kBackwardWords]
//   pointwise     [edges, kConvs, c / 16, c / 16, 32 lanes, 4], then the same transposed
constexpr int kTaps = 3 + 3 + 5 + 5 + 3 + 5;  // kernel rows of an edge's convolutions
constexpr int kForwardWords = 96, kBackwardWords = 64;
__host__ __device__ constexpr int tap_offset(int conv) { return conv == 0 ? 0 : conv == 1 ? 3 : conv == 2 ? 6 : conv == 3 ? 11 : conv == 4 ? 16 : 19; }

struct Fragments {
    unsigned *forward, *backward, *pointwise, *transposed;
    std::int64_t words;
    __host__ __device__ Fragments(void* base, int edges, int c, bool with_backward) {
        const std::int64_t bands = std::int64_t{edges} * kTaps * c, products = std::int64_t{edges} * kConvs * c * c / 2;
        forward = static_cast<unsigned*>(base);
        pointwise = forward + bands * kForwardWords;
        transposed = pointwise + products;
        backward = transposed + products;
        words = bands * kForwardWords + products + (with_backward ? products + bands * kBackwardWords : 0);
    }
};

static __global__ void __launch_bounds__(kThreads) fragments_kernel(Plan<bf16> p, bool with_backward) {
    const Fragments f(p.fragments, p.edges, p.c, with_backward);
    const std::int64_t products = f.transposed - f.pointwise;
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < f.words; i += std::int64_t{gridDim.x} * kThreads) {
        float v[2];
        if (i < f.pointwise - f.forward || i >= f.backward - f.forward) {
            const bool back = i >= f.backward - f.forward;
            const std::int64_t k = back ? i - (f.backward - f.forward) : i;
            const int words = back ? kBackwardWords : kForwardWords, word = static_cast<int>(k % words);
            const int c = static_cast<int>(k / words % p.c), tap = static_cast<int>(k / words / p.c % kTaps), edge = static_cast<int>(k / words / p.c / kTaps);
            int conv = kConvs - 1;
            while (tap < tap_offset(conv)) --conv;
            const int lane = word < 64 ? word / 2 : word - 64, row = (lane % 4) * 2 + (word < 64 ? word % 2 * 8 : 16), n = lane / 4;
            const int size = kernel_of(conv), dil = dilation_of(conv), pad = pad_of(conv), stride = !is_second(conv) && p.strided(edge) ? 2 : 1;
            const float* weights = p.dw_of(edge, conv) + (c * size + tap - tap_offset(conv)) * size;
            for (int e = 0; e < 2; ++e) {
                // forward: input column stride * w0 - 4 + row feeds output column w0 + n; backward: see depthwise_backward_mma
                const int distance = back ? n + pad + 4 * stride - stride * (row + e) : row + e - 4 - stride * n + pad;
                const int kw = distance / dil;
                v[e] = distance >= 0 && distance % dil == 0 && kw < size ? weights[kw] : 0.f;
            }
        } else {
            const std::int64_t k = i - (f.pointwise - f.forward);
            const bool transposed = k >= products;
            const std::int64_t at = k % products;
            const int blocks = p.c / 16, r = static_cast<int>(at % 4), lane = static_cast<int>(at / 4 % 32);
            const int kt = static_cast<int>(at / 128 % blocks), mt = static_cast<int>(at / 128 / blocks % blocks);
            const float* weights = p.pw + at / 128 / blocks / blocks * p.c * p.c;
            const int row = mt * 16 + lane / 4 + r % 2 * 8, column = kt * 16 + (lane % 4) * 2 + r / 2 * 8;
            for (int e = 0; e < 2; ++e) v[e] = transposed ? weights[(column + e) * p.c + row] : weights[row * p.c + column + e];
        }
        f.forward[i] = pack(v[0], v[1]);
    }
}

}  // namespace hwnas::mixed_cell::cuda
