// Kernels for any shape and type: a lane is a pixel, a warp takes one channel after the other, neighbours come through L1.
// The tuned kernels replace conv_kernel, pointwise_backward_kernel and depthwise_backward_* where they cover the shape.
#pragma once

#include "mixed_cell/plan.cuh"

namespace hwnas::mixed_cell::cuda {

// Depthwise outputs of a tile of kTile pixels, all channels, into shared memory: d[c][kTile]; for the factorized reduce the two
// pixel grids, d[2c][kTile].
template <typename T, typename A = typename Arithmetic<T>::Type>
__device__ void depthwise_tile(const Plan<T>& p, int edge, int conv, std::int64_t first, A* d) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t q = first + lane;
    const bool inside = q < p.pixels();
    const int n = static_cast<int>(q / p.plane()), r = static_cast<int>(q % p.plane()), i = r / p.ow, j = r % p.ow;
    const ConvInput<T> in(p, edge, conv);
    if (conv == kFr) {
        for (int c = warp; c < 2 * p.c; c += kWarps) {
            const int odd = c >= p.c, ci = c - odd * p.c;
            d[c * kTile + lane] = inside ? in(in.plane(n, ci), ci, 2 * i + odd, 2 * j + odd) : A(0);
        }
        return;
    }
    const int k = kernel_of(conv), dil = dilation_of(conv), pad = pad_of(conv);
    const A* weights = p.dw_of(edge, conv);
    for (int c = warp; c < p.c; c += kWarps) {
        A sum = 0;
        if (inside) {
            const T* plane = in.plane(n, c);
            for (int a = 0; a < k; ++a)
                for (int b = 0; b < k; ++b)
                    sum += weights[(c * k + a) * k + b] * in(plane, c, i * in.stride + a * dil - pad, j * in.stride + b * dil - pad);
        }
        d[c * kTile + lane] = sum;
    }
}

template <typename T, typename A = typename Arithmetic<T>::Type>
__device__ A pointwise(const Plan<T>& p, int conv, const A* weights, const A* d, int co) {
    const int lane = threadIdx.x % 32;
    const A* from = conv == kFr && co >= p.c / 2 ? d + p.c * kTile : d;
    A z = 0;
    for (int ci = 0; ci < p.c; ++ci) z += weights[co * p.c + ci] * from[ci * kTile + lane];
    return z;
}

// z = pw * depthwise(relu(x)) of one convolution of one edge, and its sums. Grid: tiles x jobs.
template <typename T>
__global__ void __launch_bounds__(kThreads) conv_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs jobs, ConvSums what) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    extern __shared__ __align__(16) unsigned char shared[];
    A* d = reinterpret_cast<A*>(shared);
    const int edge = jobs.edge[blockIdx.y], conv = jobs.kind[blockIdx.y];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t q = std::int64_t{blockIdx.x} * kTile + lane;
    const bool inside = q < p.pixels();
    depthwise_tile(p, edge, conv, std::int64_t{blockIdx.x} * kTile, d);
    __syncthreads();
    const std::int64_t n = q / p.plane(), r = q % p.plane();
    T* z = p.z_of(edge, conv);
    const T* g = p.g_of(edge);
    const A* weights = p.pw_of(edge, conv);
    const int row = p.stat_row(edge, conv);
    if (what == ConvSums::kStatistics && p.keeps(conv))
        for (int c = warp; inside && c < p.c; c += kWarps) store(p.results_of(edge, conv) + (n * p.c + c) * p.plane() + r, d[c * kTile + lane]);
    for (int co = warp; co < p.c; co += kWarps) {
        A v = pointwise(p, conv, weights, d, co), a = 0, b = 0;
        const std::int64_t at = (n * p.c + co) * p.plane() + r;
        if (inside && what == ConvSums::kStatistics) {
            store(z + at, v);
            v = load(z + at);
            a = v;
            b = v * v;
        } else if (inside) {
            a = load(g + at);
            b = a * (v - p.stat(row, co).a) * p.stat(row, co).b;
        }
        a = warp_sum(a);
        b = warp_sum(b);
        if (lane == 0) p.partial[(std::int64_t{blockIdx.y} * p.c + co) * gridDim.x + blockIdx.x] = {a, b};
    }
}

// dz of a tile, the gradient dd = pw^T dz of the depthwise output, and this group's share of dpw = dz d^T. Grid: groups x jobs.
template <typename T>
__global__ void __launch_bounds__(kThreads) pointwise_backward_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs jobs) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    extern __shared__ __align__(16) unsigned char shared[];
    const int edge = jobs.edge[blockIdx.y], conv = jobs.kind[blockIdx.y];
    const int rows = conv == kFr ? 2 * p.c : p.c, half = conv == kFr ? p.c / 2 : p.c;
    A* d = reinterpret_cast<A*>(shared);  // [rows][kTile]
    A* dz = d + rows * kTile;             // [c][kTile]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const A* weights = p.pw_of(edge, conv);
    const bool recompute = conv != kFr && op_of(conv) >= 0;  // z was not kept
    const T* z = p.z_of(edge, conv);
    const T* u = op_of(conv) < 0 ? p.h1_of(edge, conv) : p.g_of(edge);
    T* dd = conv == kFr ? p.dd_fr + std::int64_t{p.reduced_index(edge)} * 2 * p.size() : p.dd_of(edge, conv);
    const int slot = conv == kFr ? p.edges * kConvs + p.reduced_index(edge) : edge * kConvs + conv;
    A* dpw = p.dpw_partial + (std::int64_t{slot} * gridDim.x + blockIdx.x) * p.c * p.c;
    const std::int64_t tiles = (p.pixels() + kTile - 1) / kTile;
    bool fresh = true;
    for (std::int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x, fresh = false) {
        const std::int64_t q = tile * kTile + lane;
        const bool inside = q < p.pixels();
        const std::int64_t n = q / p.plane(), r = q % p.plane();
        depthwise_tile(p, edge, conv, tile * kTile, d);
        __syncthreads();
        for (int co = warp; co < p.c; co += kWarps) {
            const NormGradient<T> norm(p, edge, conv, op_of(conv), co);
            const std::int64_t at = (n * p.c + co) * p.plane() + r;
            A v = 0;
            if (inside) v = norm(load(u + at), recompute ? pointwise(p, conv, weights, d, co) : static_cast<A>(load(z + at)));
            dz[co * kTile + lane] = v;
        }
        __syncthreads();
        for (int ci = warp; ci < rows; ci += kWarps) {
            const int grid = ci >= p.c, from = grid * half, to = conv == kFr && grid == 0 ? half : p.c, column = ci - grid * p.c;
            A sum = 0;
            for (int co = from; co < to; ++co) sum += weights[co * p.c + column] * dz[co * kTile + lane];
            if (inside) store(dd + grid * p.size() + (n * p.c + column) * p.plane() + r, sum);
        }
        for (int at = threadIdx.x; at < p.c * p.c; at += kThreads) {
            const int co = at / p.c, ci = at % p.c + (co >= half ? p.c : 0);
            A sum = 0;
            for (int t = 0; t < kTile; ++t) sum += dz[co * kTile + (t + lane) % kTile] * d[ci * kTile + (t + lane) % kTile];
            dpw[at] = fresh ? sum : dpw[at] + sum;
        }
        __syncthreads();
    }
    if (fresh)
        for (int at = threadIdx.x; at < p.c * p.c; at += kThreads) dpw[at] = 0;
}

// Gradient of the depthwise convolutions' input. First halves and dilated ones of an edge (kind kSep3First) together into dx;
// a second half through ReLU into h1, with the sums that the norm before it needs. Grid: tiles of input pixels x jobs.
template <typename T>
__global__ void __launch_bounds__(kThreads) depthwise_backward_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs jobs) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    const int edge = jobs.edge[blockIdx.y], kind = jobs.kind[blockIdx.y];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const ConvInput<T> in(p, edge, kind);
    const int h = in.x.h, w = in.x.w;
    const std::int64_t q = std::int64_t{blockIdx.x} * kTile + lane, plane = std::int64_t{h} * w;
    const bool inside = q < p.n * plane;
    const int n = static_cast<int>(q / plane), r = static_cast<int>(q % plane), i = r / w, j = r % w;
    for (int c = warp; c < p.c; c += kWarps) {
        A sum = 0;
        for (int conv = 0; inside && conv < kConvs; ++conv) {
            if (is_second(kind) ? conv != kind : is_second(conv)) continue;
            const int k = kernel_of(conv), dil = dilation_of(conv), pad = pad_of(conv);
            const A* weights = p.dw_of(edge, conv) + c * k * k;
            const T* dd = p.dd_of(edge, conv) + (std::int64_t{n} * p.c + c) * p.plane();
            for (int a = 0; a < k; ++a) {
                const int y = i + pad - a * dil;
                if (y < 0 || y % in.stride || y / in.stride >= p.oh) continue;
                for (int b = 0; b < k; ++b) {
                    const int x = j + pad - b * dil;
                    if (x < 0 || x % in.stride || x / in.stride >= p.ow) continue;
                    sum += weights[a * k + b] * load(dd + y / in.stride * p.ow + x / in.stride);
                }
            }
        }
        const std::int64_t at = (std::int64_t{n} * p.c + c) * plane + r;
        if (!is_second(kind)) {
            if (inside) store(p.dx_of(edge) + at, sum);
            continue;
        }
        A zhat = 0;
        if (inside) {
            zhat = (load(in.plane(n, c) + r) - in.norm[c].a) * in.norm[c].b;
            if (!(zhat > 0)) sum = 0;
            T* h1 = p.h1_of(edge, kind) + at;
            store(h1, sum);
            sum = load(h1);
        }
        const A a = warp_sum(sum), b = warp_sum(sum * zhat);
        if (lane == 0) p.partial[(std::int64_t{blockIdx.y} * p.c + c) * gridDim.x + blockIdx.x] = {a, b};
    }
}

// Gradient of the depthwise weights of one channel. Grid: (groups of images) x jobs x channels; kind is a Conv.
template <typename T>
__global__ void __launch_bounds__(kThreads) depthwise_weight_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs jobs) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    __shared__ A sums[kWarps];
    const int edge = jobs.edge[blockIdx.y], conv = jobs.kind[blockIdx.y], c = blockIdx.z;
    const int k = kernel_of(conv), dil = dilation_of(conv), pad = pad_of(conv);
    const ConvInput<T> in(p, edge, conv);
    const T* dd = p.dd_of(edge, conv);
    A* out = p.ddw_partial + (std::int64_t{blockIdx.x} * p.edges + edge) * kDwPerChannel * p.c + std::int64_t{dw_offset(conv)} * p.c + c * k * k;
    for (int tap = 0; tap < k * k; ++tap) {
        A sum = 0;
        for (int n = blockIdx.x; n < p.n; n += gridDim.x) {
            const T* plane = in.plane(n, c);
            for (int r = threadIdx.x; r < p.plane(); r += kThreads) {
                const int i = r / p.ow * in.stride + tap / k * dil - pad, j = r % p.ow * in.stride + tap % k * dil - pad;
                sum += in(plane, c, i, j) * load(dd + (std::int64_t{n} * p.c + c) * p.plane() + r);
            }
        }
        sum = warp_sum(sum);
        __syncthreads();
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 1; i < kWarps; ++i) sum += sums[i];
            out[tap] = sum;
        }
    }
}

}  // namespace hwnas::mixed_cell::cuda
