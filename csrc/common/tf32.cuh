// float32 products on tensor cores: splitting an operand into two TF32 numbers, x = big + small, keeps 22 bits, and
// big * big + big * small + small * big is then as good as float32.
#pragma once

namespace hwnas {

__device__ __forceinline__ unsigned to_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
struct Split {
    unsigned big, small;
    Split() = default;
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

}  // namespace hwnas
