// What the elementwise passes share that take planes whose width is a multiple of 8: a thread has 8 neighbouring pixels, so that
// loads are 16 bytes wide. The passes themselves: vector_sums.cuh, vector_blend.cuh and vector_gather.cuh.
#pragma once

#include "common/load8.cuh"
#include "mixed_cell/plan.cuh"

namespace hwnas::mixed_cell::cuda {

constexpr int kVec = 8;

__device__ __forceinline__ void shared8(const float* x, float (&v)[8]) {
    const float4 a = reinterpret_cast<const float4*>(x)[0], b = reinterpret_cast<const float4*>(x)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <typename T>
__device__ __forceinline__ void add8(const T* x, float scale, float (&v)[8]) {
    float w[8];
    load8(x, w);
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] += scale * w[k];
}

// The 8 pixels of a thread.
struct Pixels {
    int n, c, at, row, column;  // at: in the plane
    bool active;
    template <typename T>
    __device__ explicit Pixels(const Plan<T>& p, int block) {
        const int item = block * blockDim.x + threadIdx.x;
        int plane, vector;
        p.by_vectors.divide(item, plane, vector);
        p.by_c.divide(plane, n, c);
        active = n < p.n;
        if (!active) n = 0;
        at = vector * kVec;
        p.by_ow.divide(at, row, column);
    }
};

// Planes that the kernels below take: whole vectors, and either whole warps or a power of two of lanes a plane.
template <typename T>
bool vectors_cover(const Plan<T>& p) {
    if (sizeof(T) == 8 || p.ow % kVec != 0) return false;
    const std::int64_t vectors = p.plane() / kVec;
    if (vectors % 32 != 0 && (vectors > 32 || (vectors & (vectors - 1)) != 0)) return false;
    if (p.reduction && (p.h != 2 * p.oh || p.w != 2 * p.ow)) return false;
    for (const void* pointer : {static_cast<const void*>(p.s[0]), static_cast<const void*>(p.s[1]), static_cast<const void*>(p.y),
                                static_cast<const void*>(p.dy), static_cast<const void*>(p.ds[0]), static_cast<const void*>(p.ds[1])})
        if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;
    return true;
}
template <typename T>
__host__ __device__ int vector_tiles(const Plan<T>& p) {  // sums a plane leaves
    const int vectors = p.oh * p.ow / kVec;
    return vectors < 32 ? 1 : vectors / 32;
}
// Sums over the lanes that share a plane; the first of them writes.
template <int kCount, typename T>
__device__ __forceinline__ bool plane_sums(const Plan<T>& p, const Pixels& px, float (&v)[kCount], int& tile) {
    const int vectors = p.oh * p.ow / kVec, lanes = vectors < 32 ? vectors : 32;
    for (int offset = lanes / 2; offset > 0; offset /= 2)
#pragma unroll
        for (int k = 0; k < kCount; ++k) v[k] += __shfl_xor_sync(0xffffffffu, v[k], offset);
    tile = px.n * vector_tiles(p) + px.at / (32 * kVec);
    return px.active && threadIdx.x % lanes == 0;
}

// Planes that a block of blend and gather may touch.
constexpr int kBlockPlanes = kThreads * kVec / 64 + 1;

}  // namespace hwnas::mixed_cell::cuda
