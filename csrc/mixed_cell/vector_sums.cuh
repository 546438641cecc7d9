// The pools of a state with their sums, and the sums that batch norms' gradients need, 8 pixels a thread: the columns of a pool are
// shared among its windows.
#pragma once

#include "mixed_cell/vector.cuh"

namespace hwnas::mixed_cell::cuda {

// Both pools of 8 neighbouring outputs of row i from column j0 on. Stride 2 needs even planes.
template <int S, typename T>
__device__ __forceinline__ void pool8(const T* plane, int h, int w, int i, int j0, float (&max)[8], float (&avg)[8]) {
    constexpr int kWidth = S == 1 ? 10 : 17;  // columns S * j0 - 1 ...
    const float lowest = __int_as_float(0xff800000);
    float column_max[kWidth], column_sum[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
        column_max[k] = lowest;
        column_sum[k] = 0;
    }
    const bool left = j0 > 0, right = S == 1 && j0 + 8 < w;
    int rows = 0;
#pragma unroll
    for (int di = -1; di <= 1; ++di) {
        const int y = i * S + di;
        if (y < 0 || y >= h) continue;
        ++rows;
        const T* x = plane + y * w + j0 * S;
        float v[8];
        if (left) {
            const float edge = load(x - 1);
            column_max[0] = fmaxf(column_max[0], edge);
            column_sum[0] += edge;
        }
        if (right) {
            const float edge = load(x + 8);
            column_max[kWidth - 1] = fmaxf(column_max[kWidth - 1], edge);
            column_sum[kWidth - 1] += edge;
        }
#pragma unroll
        for (int part = 0; part < S; ++part) {
            load8(x + 8 * part, v);
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                column_max[1 + 8 * part + k] = fmaxf(column_max[1 + 8 * part + k], v[k]);
                column_sum[1 + 8 * part + k] += v[k];
            }
        }
    }
    const float whole = 1.f / (3 * rows), less = 1.f / (2 * rows);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const int c = S * k;
        max[k] = fmaxf(column_max[c], fmaxf(column_max[c + 1], column_max[c + 2]));
        const bool border = (k == 0 && !left) || (S == 1 && k == 7 && !right);
        avg[k] = (column_sum[c] + column_sum[c + 1] + column_sum[c + 2]) * (border ? less : whole);
    }
}
template <typename T>
__device__ __forceinline__ void pool8(bool strided, const T* plane, int h, int w, int i, int j0, float (&max)[8], float (&avg)[8]) {
    if (strided) pool8<2>(plane, h, w, i, j0, max, avg);
    else pool8<1>(plane, h, w, i, j0, max, avg);
}

// Both pools of state j, into Plan::pools, where blend and gradient_sums find them: computing them again for every edge that
// leaves the state cost more.
template <typename T>
__device__ __forceinline__ void pool(const Plan<T>& p, int j, const Pixels& px, float (&max)[8], float (&avg)[8]) {
    const View<const T> x = p.state(j);
    const std::int64_t image = (std::int64_t{px.n} * p.c + px.c) * p.plane() + px.at;
    pool8(p.reduction && j < 2, x.data + px.n * x.image + std::int64_t{px.c} * x.h * x.w, x.h, x.w, px.row, px.column, max, avg);
    store8(p.pool_of(j, kMax) + image, max);
    store8(p.pool_of(j, kAvg) + image, avg);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) pool_values_kernel(const __grid_constant__ Plan<T> p) {
    wait_for_previous();
    const Pixels px(p, blockIdx.x);
    float max[8], avg[8];
    if (px.active) pool(p, blockIdx.y, px, max, avg);
}

// As pool_kernel and gradient_sums_kernel: block `block` of a job, whose slots begin at `partial`.
template <typename T>
__device__ __forceinline__ void pool_sums(const Plan<T>& p, int j, int block, Pair<float>* partial) {
    const Pixels px(p, block);
    float max[8], avg[8], sums[4] = {};
    if (px.active) {
        pool(p, j, px, max, avg);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            sums[0] += max[k];
            sums[1] += max[k] * max[k];
            sums[2] += avg[k];
            sums[3] += avg[k] * avg[k];
        }
    }
    int tile;
    const int tiles = p.n * vector_tiles(p);
    if (plane_sums(p, px, sums, tile))
        for (int k = 0; k < 2; ++k) partial[(std::int64_t{k} * p.c + px.c) * tiles + tile] = {sums[2 * k], sums[2 * k + 1]};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) pool_vector_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs states) {
    wait_for_previous();
    const std::int64_t before = std::int64_t{blockIdx.y} * 2 * p.c * p.n * vector_tiles(p);
    pool_sums(p, states.edge[blockIdx.y], blockIdx.x, p.partial + before);
}

template <typename T>
__device__ __forceinline__ void gradient_sums(const Plan<T>& p, int edge, int block, Pair<float>* partial) {
    const Pixels px(p, block);
    const int j = p.source_of(edge);
    const bool strided = p.strided(edge);
    float sums[4] = {};  // of g, then of its products
    if (px.active) {
        const std::int64_t image = (std::int64_t{px.n} * p.c + px.c) * p.plane() + px.at;
        const View<const T> x = p.state(j);
        const T* plane = x.data + px.n * x.image + std::int64_t{px.c} * x.h * x.w;
        float u[8], max[8], avg[8];
        load8(p.g_of(edge) + image, u);
        load8(p.pool_of(j, kMax) + image, max);
        load8(p.pool_of(j, kAvg) + image, avg);
        const auto product = [&](const float(&z)[8], int kind) {
            const Pair<float> norm = p.stat(p.stat_row(edge, kind), px.c);
            float sum = 0;
#pragma unroll
            for (int k = 0; k < 8; ++k) sum += u[k] * (z[k] - norm.a);
            return sum * norm.b;
        };
#pragma unroll
        for (int k = 0; k < 8; ++k) sums[0] += u[k];
        sums[1] = product(max, kMax);
        sums[2] = product(avg, kAvg);
        float z[8];
        if (strided) {
            load8(p.z_of(edge, kFr) + image, z);
            sums[3] = product(z, kFr);
        } else {
            load8(plane + px.at, z);
#pragma unroll
            for (int k = 0; k < 8; ++k) sums[3] += u[k] * z[k];
        }
    }
    int tile;
    const int tiles = p.n * vector_tiles(p);
    if (plane_sums(p, px, sums, tile))
        for (int k = 0; k < 3; ++k) partial[(std::int64_t{k} * p.c + px.c) * tiles + tile] = {sums[0], sums[k + 1]};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_sums_vector_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs edges) {
    wait_for_previous();
    const std::int64_t before = std::int64_t{blockIdx.y} * 3 * p.c * p.n * vector_tiles(p);
    gradient_sums(p, edges.edge[blockIdx.y], blockIdx.x, p.partial + before);
}

}  // namespace hwnas::mixed_cell::cuda
