// The gradient that reaches a state, 8 pixels a thread.
#pragma once

#include "mixed_cell/vector.cuh"

namespace hwnas::mixed_cell::cuda {

// What a state's edges multiply their upstream gradients by, for each plane of a block: the gradients of max and average pool
// are factor * u + of_pool * pooled value + shift.
struct Gather {
    float max, avg, skip, max_of_pool, max_shift, avg_of_pool, avg_shift;
};

// As gather_kernel, for states whose edges have stride 1 and planes that divide a block. Windows in shared memory: gradients of
// their maximum and of each of their pixels through the average, and which of the nine pixels is the maximum.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3) gather_vector_kernel(const __grid_constant__ Plan<T> p, int source) {
    wait_for_previous();
    __shared__ Gather gathers[kBlockPlanes][kMaxNodes];
    __shared__ __align__(16) float of_max[kThreads * kVec], of_avg[kThreads * kVec];
    __shared__ __align__(8) unsigned char where[kThreads * kVec];  // 3 * row + column of the maximum in its window
    const Pixels px(p, blockIdx.x);
    const int j = source + blockIdx.y, first = j < 2 ? 0 : j - 1, h = p.oh, w = p.ow, edges = p.nodes - first;
    const int plane_vectors = h * w / kVec, first_plane = blockIdx.x * kThreads / plane_vectors, planes = kThreads / plane_vectors;
    for (int i = threadIdx.x; i < planes * edges; i += kThreads) {
        const int local = i / edges, node = first + i % edges, c = (first_plane + local) % p.c, edge = node * (node + 3) / 2 + j;
        const NormGradient<T> max(p, edge, kMax, kMaxPool, c), avg(p, edge, kAvg, kAvgPool, c);
        gathers[local][i % edges] = {max.ca, avg.ca, p.gates[edge * kOps + kSkip], max.cb, max.cc, avg.cb, avg.cc};
    }
    __syncthreads();
    const Gather* own = gathers[threadIdx.x / plane_vectors];
    const View<const T> x = p.state(j);
    const T* plane = x.data + px.n * x.image + std::int64_t{px.c} * p.plane();
    const std::int64_t image = (std::int64_t{px.n} * p.c + px.c) * p.plane() + px.at;
    const bool left = px.column > 0, right = px.column + 8 < w;
    const float lowest = __int_as_float(0xff800000);
    float sum[8] = {};
    unsigned positive = 0;  // pixels that pass the ReLU
    {
        float max[8], columns[10] = {};
        int at[8], rows = 0;
#pragma unroll
        for (int k = 0; k < 8; ++k) max[k] = lowest, at[k] = 4;
#pragma unroll
        for (int di = 0; di < 3; ++di) {
            const int y = px.row + di - 1;
            if (y < 0 || y >= h) continue;
            ++rows;
            const T* from = plane + y * w + px.column;
            float middle[8];
            load8(from, middle);
            float v[10];
            v[0] = left ? load(from - 1) : lowest;
            v[9] = right ? load(from + 8) : lowest;
            if (left) columns[0] += v[0];
            if (right) columns[9] += v[9];
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                v[k + 1] = middle[k];
                columns[k + 1] += middle[k];
                if (di == 1 && middle[k] > 0) positive |= 1u << k;
            }
#pragma unroll
            for (int k = 0; k < 8; ++k)
#pragma unroll
                for (int dj = 0; dj < 3; ++dj)
                    if (v[k + dj] > max[k]) max[k] = v[k + dj], at[k] = 3 * di + dj;
        }
        const uint2 codes = make_uint2(at[0] | at[1] << 8 | at[2] << 16 | at[3] << 24, at[4] | at[5] << 8 | at[6] << 16 | at[7] << 24);
        float to_max[8] = {}, to_avg[8] = {}, max_factor = 0, max_shift = 0, avg_factor = 0, avg_shift = 0;
        for (int start = 0; start < edges; start += 2) {
#pragma unroll
            for (int q = 0; q < 2; ++q) {  // two nodes' loads in flight
                const int i = start + q;
                if (i >= edges) continue;
                const Gather e = own[i];
                float u[8];
                load8(p.g + (first + i) * p.size() + image, u);
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    to_max[k] += e.max * u[k];
                    to_avg[k] += e.avg * u[k];
                    sum[k] += e.skip * u[k];
                }
                max_factor += e.max_of_pool;
                max_shift += e.max_shift;
                avg_factor += e.avg_of_pool;
                avg_shift += e.avg_shift;
            }
        }
        const float whole = 1.f / (3 * rows), less = 1.f / (2 * rows);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const float share = (k == 0 && !left) || (k == 7 && !right) ? less : whole;
            to_max[k] += max_factor * max[k] + max_shift;
            to_avg[k] = (to_avg[k] + avg_factor * (columns[k] + columns[k + 1] + columns[k + 2]) * share + avg_shift) * share;
        }
        *reinterpret_cast<uint2*>(where + threadIdx.x * 8) = codes;
        store8(of_max + threadIdx.x * 8, to_max);
        store8(of_avg + threadIdx.x * 8, to_avg);
    }
    __syncthreads();
    if (!px.active) return;
    float columns[10] = {};
#pragma unroll
    for (int di = 0; di < 3; ++di) {
        const int y = px.row + di - 1;  // of the window
        if (y < 0 || y >= h) continue;
        const int at = threadIdx.x * 8 + (di - 1) * w;
        float maxima[8], averages[8];
        shared8(of_max + at, maxima);
        shared8(of_avg + at, averages);
        const uint2 codes = *reinterpret_cast<const uint2*>(where + at);
#pragma unroll
        for (int k = 0; k < 10; ++k) {
            if ((k == 0 && !left) || (k == 9 && !right)) continue;
            const bool inner = k > 0 && k < 9;
            const float m = inner ? maxima[inner ? k - 1 : 0] : of_max[at + k - 1];
            // the window's column that takes its maximum from this row
            const int code = (inner ? static_cast<int>((k <= 4 ? codes.x : codes.y) >> ((k - 1) % 4 * 8) & 255u) : where[at + k - 1]) - 3 * (2 - di);
            columns[k] += inner ? averages[inner ? k - 1 : 0] : of_avg[at + k - 1];
            // window k - 1 has pixel q in its column q - (k - 1) + 1
#pragma unroll
            for (int q = k - 2 < 0 ? 0 : k - 2; q <= (k < 8 ? k : 7); ++q)
                if (code == q - k + 2) sum[q] += m;
        }
    }
    float conv[8] = {};
#pragma unroll 4
    for (int i = first; i < p.nodes; ++i) add8(p.dx_of(i * (i + 3) / 2 + j) + image, 1.f, conv);
    if (j >= 2) add8(p.dy + (std::int64_t{px.n} * p.nodes + j - 2) * p.c * p.plane() + px.c * p.plane() + px.at, 1.f, sum);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        sum[k] += columns[k] + columns[k + 1] + columns[k + 2];
        if (positive >> k & 1) sum[k] += conv[k];
    }
    store8((j < 2 ? p.ds[j] : p.g + (j - 2) * p.size()) + image, sum);
}

// The same for s0 and s1 of a reduction cell: windows are a quarter of the pixels, and the factorized reduce adds its two grids.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_strided_vector_kernel(const __grid_constant__ Plan<T> p) {
    wait_for_previous();
    constexpr int kWindows = kThreads * kVec / 4;
    __shared__ float of_max[kWindows], of_avg[kWindows];
    __shared__ int where[kWindows];  // pixel of the maximum in its plane
    __shared__ Gather gathers[kWindows / 16][kMaxNodes];
    const int j = blockIdx.y, outputs = p.oh * p.ow, planes = p.n * p.c, block_planes = kWindows / outputs, first_plane = blockIdx.x * block_planes;
    const View<const T> x = p.state(j);
    for (int i = threadIdx.x; i < block_planes * p.nodes; i += kThreads) {
        const int node = i % p.nodes, edge = node * (node + 3) / 2 + j, c = (first_plane + i / p.nodes) % p.c;
        const NormGradient<T> max(p, edge, kMax, kMaxPool, c), avg(p, edge, kAvg, kAvgPool, c);
        gathers[i / p.nodes][node] = {max.ca, avg.ca, 0, max.cb, max.cc, avg.cb, avg.cc};
    }
    __syncthreads();
#pragma unroll
    for (int k = threadIdx.x; k < kWindows; k += kThreads) {
        const int plane = first_plane + k / outputs, q = k % outputs;
        if (plane >= planes) break;
        const Pooled<T> pool(x.data + std::int64_t{plane} * x.h * x.w, x.h, x.w, q / p.ow, q % p.ow, 2);
        float to_max = 0, to_avg = 0;
#pragma unroll 4
        for (int i = 0; i < p.nodes; ++i) {
            const Gather e = gathers[k / outputs][i];
            const float u = load(p.g + i * p.size() + std::int64_t{plane} * outputs + q);
            to_max += e.max * u + e.max_of_pool * pool.max + e.max_shift;
            to_avg += e.avg * u + e.avg_of_pool * pool.avg + e.avg_shift;
        }
        of_max[k] = to_max;
        of_avg[k] = to_avg * pool.inv_count;
        where[k] = pool.at;
    }
    __syncthreads();
    const int pixels = 4 * outputs, local = threadIdx.x * kVec / pixels, at = threadIdx.x * kVec % pixels, plane = first_plane + local;
    if (plane >= planes) return;
    int row, column;
    p.by_w.divide(at, row, column);
    const std::int64_t image = std::int64_t{plane} * pixels + at;
    float pools[8] = {}, conv[8] = {}, own[8];
    for (int oy = row / 2; oy <= min((row + 1) / 2, p.oh - 1); ++oy) {
#pragma unroll
        for (int k = 0; k < 5; ++k) {
            const int ox = column / 2 + k;
            if (ox >= p.ow) continue;
            const int window = local * outputs + oy * p.ow + ox;
            const float m = of_max[window], a = of_avg[window];
            const int from = where[window] - at;
#pragma unroll
            for (int q = k == 0 ? 0 : 2 * k - 1; q <= (k == 4 ? 7 : 2 * k + 1); ++q) pools[q] += a + (from == q ? m : 0.f);
        }
    }
    const int grid = row % 2;
#pragma unroll 4
    for (int i = 0; i < p.nodes; ++i) {
        const int edge = i * (i + 3) / 2 + j;
        add8(p.dx_of(edge) + image, 1.f, conv);
        const T* reduce = p.dd_fr + (std::int64_t{p.reduced_index(edge)} * 2 + grid) * p.size() + std::int64_t{plane} * outputs + row / 2 * p.ow + column / 2;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float v = load(reduce + k);
            conv[2 * k] += grid ? 0.f : v;
            conv[2 * k + 1] += grid ? v : 0.f;
        }
    }
    load8(x.data + image, own);
#pragma unroll
    for (int q = 0; q < 8; ++q)
        if (own[q] > 0) pools[q] += conv[q];
    store8(p.ds[j] + image, pools);
}

}  // namespace hwnas::mixed_cell::cuda
