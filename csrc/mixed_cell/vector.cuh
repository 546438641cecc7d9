// The elementwise passes of elementwise.cuh for planes whose width is a multiple of 8: a thread takes 8 neighbouring pixels, so
// loads are 16 bytes wide and a pool's columns are shared among its windows.
#pragma once

#include "common/load8.cuh"
#include "mixed_cell/elementwise.cuh"

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

// The 8 pixels of a thread.
struct Pixels {
    int n, c, at, row, column;  // at: in the plane
    bool active;
    template <typename T>
    __device__ explicit Pixels(const Plan<T>& p, int block) {
        const int item = block * kThreads + threadIdx.x;
        int plane, vector;
        p.by_vectors.divide(item, plane, vector);
        n = plane / p.c;
        c = plane % p.c;
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
__global__ void __launch_bounds__(kThreads) pool_values_kernel(Plan<T> p) {
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
__global__ void __launch_bounds__(kThreads) pool_vector_kernel(Plan<T> p, Jobs states) {
    wait_for_previous();
    const std::int64_t before = std::int64_t{blockIdx.y} * 2 * p.c * p.n * vector_tiles(p);
    pool_sums(p, states.edge[blockIdx.y], blockIdx.x, p.partial + before);
}

// Planes that a block of the kernels below may touch.
constexpr int kBlockPlanes = kThreads * kVec / 64 + 1;

// What a node's edges multiply their eight terms by, for each plane of a block.
struct Blend {
    float z[4], skip, max, avg, shift;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) blend_vector_kernel(Plan<T> p, int node) {
    wait_for_previous();
    __shared__ Blend blends[kBlockPlanes][kMaxNodes + 1];
    const int plane_vectors = p.oh * p.ow / kVec, first_plane = blockIdx.x * kThreads / plane_vectors, edges = node + 2;
    const int planes = (blockIdx.x * kThreads + kThreads - 1) / plane_vectors - first_plane + 1;
    for (int i = threadIdx.x; i < planes * edges; i += kThreads) {
        const int local = i / edges, j = i % edges, c = (first_plane + local) % p.c, edge = node * (node + 3) / 2 + j;
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
        blends[local][j] = b;
    }
    __syncthreads();
    const Pixels px(p, blockIdx.x);
    if (!px.active) return;
    const std::int64_t image = (std::int64_t{px.n} * p.c + px.c) * p.plane() + px.at;
    const Blend* own = blends[(blockIdx.x * kThreads + threadIdx.x) / plane_vectors - first_plane];
    float sum[8] = {}, shift = 0;
#pragma unroll 2
    for (int j = 0; j < edges; ++j) {
        const int edge = node * (node + 3) / 2 + j;
        const bool strided = p.strided(edge);
        const Blend b = own[j];
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
    store8(p.y + (std::int64_t{px.n} * p.nodes + node) * p.c * p.plane() + px.c * p.plane() + px.at, sum);
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
__global__ void __launch_bounds__(kThreads) gradient_sums_vector_kernel(Plan<T> p, Jobs edges) {
    wait_for_previous();
    const std::int64_t before = std::int64_t{blockIdx.y} * 3 * p.c * p.n * vector_tiles(p);
    gradient_sums(p, edges.edge[blockIdx.y], blockIdx.x, p.partial + before);
}

// What a state's edges multiply their upstream gradients by, for each plane of a block: the gradients of max and average pool
// are factor * u + of_pool * pooled value + shift.
struct Gather {
    float max, avg, skip, max_of_pool, max_shift, avg_of_pool, avg_shift;
};

// As gather_kernel, for states whose edges have stride 1 and planes that divide a block. Windows in shared memory: gradients of
// their maximum and of each of their pixels through the average, and which of the nine pixels is the maximum.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3) gather_vector_kernel(Plan<T> p, int source) {
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
__global__ void __launch_bounds__(kThreads) gather_strided_vector_kernel(Plan<T> p) {
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
