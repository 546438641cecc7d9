// The blend into a node, 8 pixels a thread.
#pragma once

#include "mixed_cell/vector.cuh"

namespace hwnas::mixed_cell::cuda {

// What a node's edges multiply their eight terms by, for each plane of a block.
struct Blend {
    float z[4], skip, max, avg, shift;
};

// Edges from the sources [from, to), added to what earlier launches have left in the node if from > 0.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3) blend_vector_kernel(const __grid_constant__ Plan<T> p, int node, int from, int to) {
    wait_for_previous();
    __shared__ Blend blends[kBlockPlanes][kMaxNodes + 1];
    const int plane_vectors = p.oh * p.ow / kVec, first_plane = blockIdx.x * kThreads / plane_vectors, edges = to - from;
    const int planes = (blockIdx.x * kThreads + kThreads - 1) / plane_vectors - first_plane + 1;
    for (int i = threadIdx.x; i < planes * edges; i += kThreads) {
        const int local = i / edges, j = from + i % edges, c = (first_plane + local) % p.c, edge = node * (node + 3) / 2 + j;
        const float* gates = p.gates + edge * kOps;
        Blend b{};
        const auto scale = [&](int kind) {  // of z; the norm's shift goes to the sum of shifts
            const Pair<float> norm = p.stat(p.stat_row(edge, kind), c);
            const float s = gates[op_of(kind)] * norm.b;
            b.shift -= s * norm.a;
            return s;
        };
        constexpr int kKinds[4] = {kSep3Second, kSep5Second, kDil3, kDil5};
#pragma unroll
        for (int k = 0; k < 4; ++k) b.z[k] = scale(kKinds[k]);
        b.skip = p.strided(edge) ? scale(kFr) : gates[kSkip];
        b.max = scale(kMax);
        b.avg = scale(kAvg);
        blends[local][j - from] = b;
    }
    __syncthreads();
    const Pixels px(p, blockIdx.x);
    if (!px.active) return;
    const std::int64_t image = (std::int64_t{px.n} * p.c + px.c) * p.plane() + px.at;
    const Blend* own = blends[(blockIdx.x * kThreads + threadIdx.x) / plane_vectors - first_plane];
    T* y = p.y + (std::int64_t{px.n} * p.nodes + node) * p.c * p.plane() + px.c * p.plane() + px.at;
    float sum[8] = {}, shift = 0;
    if (from > 0) {  // not through the read-only path
        alignas(16) T left[8];
#pragma unroll
        for (unsigned k = 0; k < sizeof(left) / 16; ++k) reinterpret_cast<uint4*>(left)[k] = reinterpret_cast<const uint4*>(y)[k];
#pragma unroll
        for (int k = 0; k < 8; ++k) sum[k] = static_cast<float>(left[k]);
    }
#pragma unroll 2
    for (int j = from; j < to; ++j) {
        const int edge = node * (node + 3) / 2 + j;
        const bool strided = p.strided(edge);
        const Blend b = own[j - from];
        const View<const T> x = p.state(j);
        const T* plane = x.data + px.n * x.image + std::int64_t{px.c} * x.h * x.w;
        const T* z = p.z_of(edge, kSep3Second) + image;  // the four lie one after the other
#pragma unroll
        for (int k = 0; k < 4; ++k) add8(z + k * p.size(), b.z[k], sum);
        add8(strided ? p.z_of(edge, kFr) + image : plane + px.at, b.skip, sum);
        add8(p.pool_of(j, kMax) + image, b.max, sum);
        add8(p.pool_of(j, kAvg) + image, b.avg, sum);
        shift += b.shift;
    }
#pragma unroll
    for (float& v : sum) v += shift;
    store8(y, sum);
}

}  // namespace hwnas::mixed_cell::cuda
