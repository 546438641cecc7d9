// The tensor core instructions that kernels use: bfloat16 operands as they are, float32 operands split in two TF32 numbers.
//
// Splitting an operand into two TF32 numbers, x = big + small, keeps 23 bits; big * big + big * small + small * big is then as
// good as float32, which ReLU and max pooling need: a value that changes sign through rounding changes whole gradients.
#pragma once

#include <cuda_bf16.h>

namespace hwnas {

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

// big: the nearest number of 11 bits; small: the rest, of at most 12 bits, of which the tensor core cuts the last one off, unless it
// has been rounded away from zero before. Either errs as much; rounding takes one instruction more. In integer arithmetic, because
// cvt.rna.tf32 is four instructions on this hardware; a NaN that overflows in big is still one in small.
struct Split {
    unsigned big, small;
    __device__ __forceinline__ explicit Split(float x, bool rounded) {
        big = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
        const float rest = x - __uint_as_float(big);
        small = __float_as_uint(rounded ? rest * (1 + 0x1p-11f) : rest);
    }
};
// acc[16, 8] += a[16, 8] * b[8, 8]
__device__ __forceinline__ void mma_tf32(float (&acc)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
struct SplitRows {  // 16 x 8 of a left operand
    unsigned big[4], small[4];
    __device__ __forceinline__ SplitRows(const float (&v)[4], bool rounded) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Split s(v[k], rounded);
            big[k] = s.big, small[k] = s.small;
        }
    }
};
__device__ __forceinline__ void mma_split(float (&acc)[4], const SplitRows& a, const Split& b0, const Split& b1) {
    mma_tf32(acc, a.small, b0.big, b1.big);
    mma_tf32(acc, a.big, b0.small, b1.small);
    mma_tf32(acc, a.big, b0.big, b1.big);
}

}  // namespace hwnas
