// The passes without a matrix in them: pool statistics, the blend into a node, the sums that batch norms' gradients need, the
// gradient that reaches a state, and the reductions of per-block sums.
#pragma once

#include "mixed_cell/plan.cuh"

namespace hwnas::mixed_cell::cuda {

struct Reduction {  // per-block sums of `jobs`, [job, c, tiles]
    Jobs jobs;
    int tiles = 0;
};

// Sums over tiles in a fixed order, in double: a warp a channel of a job. Forward: mean and 1 / std into stats; for the pools,
// Jobs::edge is the source state. Backward: the two sums. Grid: ceil(c / kWarps) x jobs of both reductions.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kThreads) finish_sums_kernel(Plan<T> p, Reduction conv, Reduction stream) {
    using A = typename Arithmetic<T>::Type;
    const int lane = threadIdx.x % 32, c = blockIdx.x * kWarps + threadIdx.x / 32;
    if (c >= p.c) return;
    const bool second = static_cast<int>(blockIdx.y) >= conv.jobs.count;
    const int job = second ? blockIdx.y - conv.jobs.count : blockIdx.y;
    const Jobs& jobs = second ? stream.jobs : conv.jobs;
    const int tiles = second ? stream.tiles : conv.tiles;
    const Pair<A>* partial = (second ? p.partial_stream : p.partial) + (std::int64_t{job} * p.c + c) * tiles;
    double a = 0, b = 0;
    for (int t = lane; t < tiles; t += 32) {
        const Pair<A> v = partial[t];
        a += v.a;
        b += v.b;
    }
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane != 0) return;
    const int edge = jobs.edge[job], kind = jobs.kind[job];
    if (kBackward) {
        A* out = p.sums + (std::int64_t{edge} * kNorms + kind) * 2 * p.c;
        out[c] = static_cast<A>(a);
        out[p.c + c] = static_cast<A>(b);
    } else {
        const double count = static_cast<double>(p.pixels()), mean = a / count, var = b / count - mean * mean;
        A* out = p.stats + std::int64_t{kind < kMax ? p.stat_row(edge, kind) : p.pool_row(edge, kind)} * 2 * p.c;
        out[c] = static_cast<A>(mean);
        out[p.c + c] = static_cast<A>(1.0 / sqrt((var > 0 ? var : 0) + 1e-5));
    }
}

// (sum, sum of squares) of both pools of a state. Grid: stream tiles x states; slots 2 * job + {max, avg}.
template <typename T>
__global__ void __launch_bounds__(kThreads) pool_kernel(Plan<T> p, Jobs states) {
    using A = typename Arithmetic<T>::Type;
    const int j = states.edge[blockIdx.y], lane = threadIdx.x % 32;
    const View<const T> x = p.state(j);
    const int stride = p.reduction && j < 2 ? 2 : 1;
    for (int c = threadIdx.x / 32; c < p.c; c += kWarps) {
        A sums[4] = {};
        for (int t = lane; t < kStream; t += 32) {
            const std::int64_t q = std::int64_t{blockIdx.x} * kStream + t;
            if (q >= p.pixels()) break;
            const int n = static_cast<int>(q / p.plane()), r = static_cast<int>(q % p.plane());
            const Pooled<T> pool(x.data + n * x.image + std::int64_t{c} * x.h * x.w, x.h, x.w, r / p.ow, r % p.ow, stride);
            sums[0] += pool.max;
            sums[1] += pool.max * pool.max;
            sums[2] += pool.avg;
            sums[3] += pool.avg * pool.avg;
        }
        for (A& s : sums) s = warp_sum(s);
        for (int k = 0; k < 2 && lane == 0; ++k)
            p.partial_stream[((std::int64_t{blockIdx.y} * 2 + k) * p.c + c) * gridDim.x + blockIdx.x] = {sums[2 * k], sums[2 * k + 1]};
    }
}

// Node `node` = sum over its edges of gate * op. Grid: stream tiles; a warp a channel.
template <typename T>
__global__ void __launch_bounds__(kThreads) blend_kernel(Plan<T> p, int node) {
    using A = typename Arithmetic<T>::Type;
    const int lane = threadIdx.x % 32, first = node * (node + 3) / 2;
    T* y = p.y + node * p.c * p.plane();
    for (int c = threadIdx.x / 32; c < p.c; c += kWarps) {
        for (int t = lane; t < kStream; t += 32) {
            const std::int64_t q = std::int64_t{blockIdx.x} * kStream + t;
            if (q >= p.pixels()) break;
            const int n = static_cast<int>(q / p.plane()), r = static_cast<int>(q % p.plane());
            const std::int64_t at = (std::int64_t{n} * p.c + c) * p.plane() + r;
            A sum = 0;
            for (int j = 0; j < node + 2; ++j) {
                const int edge = first + j;
                const bool strided = p.strided(edge);
                const A* gates = p.gates + edge * kOps;
                const View<const T> x = p.state(j);
                const T* plane = x.data + n * x.image + std::int64_t{c} * x.h * x.w;
                const Pooled<T> pool(plane, x.h, x.w, r / p.ow, r % p.ow, strided ? 2 : 1);
                const auto norm = [&](int kind, A v) {
                    const int row = p.stat_row(edge, kind);
                    sum += gates[op_of(kind)] * (v - p.mean(row)[c]) * p.rstd(row)[c];
                };
                norm(kMax, pool.max);
                norm(kAvg, pool.avg);
                for (int kind : {kSep3Second, kSep5Second, kDil3, kDil5}) norm(kind, load(p.z_of(edge, kind) + at));
                if (strided) norm(kFr, load(p.z_of(edge, kFr) + at));
                else sum += gates[kSkip] * load(plane + r);
            }
            store(y + std::int64_t{n} * p.nodes * p.c * p.plane() + std::int64_t{c} * p.plane() + r, sum);
        }
    }
}

// (sum g, sum g * zhat) of the norms whose z is at hand: pools, second halves, factorized reduce; for a skip (sum g, sum g * x).
// Grid: stream tiles x edges; slots 5 * job + {max, avg, fr, sep 3, sep 5}.
constexpr int kStreamNorms[5] = {kMax, kAvg, kFr, kSep3Second, kSep5Second};

template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_sums_kernel(Plan<T> p, Jobs edges) {
    using A = typename Arithmetic<T>::Type;
    const int edge = edges.edge[blockIdx.y], j = p.source_of(edge), lane = threadIdx.x % 32;
    const bool strided = p.strided(edge);
    const View<const T> x = p.state(j);
    const T* g = p.g + p.node_of(edge) * p.size();
    for (int c = threadIdx.x / 32; c < p.c; c += kWarps) {
        A total = 0, sums[5] = {};
        for (int t = lane; t < kStream; t += 32) {
            const std::int64_t q = std::int64_t{blockIdx.x} * kStream + t;
            if (q >= p.pixels()) break;
            const int n = static_cast<int>(q / p.plane()), r = static_cast<int>(q % p.plane());
            const std::int64_t at = (std::int64_t{n} * p.c + c) * p.plane() + r;
            const T* plane = x.data + n * x.image + std::int64_t{c} * x.h * x.w;
            const Pooled<T> pool(plane, x.h, x.w, r / p.ow, r % p.ow, strided ? 2 : 1);
            const A u = load(g + at);
            const auto hat = [&](int kind, A v) {
                const int row = p.stat_row(edge, kind);
                return (v - p.mean(row)[c]) * p.rstd(row)[c];
            };
            total += u;
            sums[0] += u * hat(kMax, pool.max);
            sums[1] += u * hat(kAvg, pool.avg);
            sums[2] += u * (strided ? hat(kFr, load(p.z_of(edge, kFr) + at)) : static_cast<A>(load(plane + r)));
            sums[3] += u * hat(kSep3Second, load(p.z_of(edge, kSep3Second) + at));
            sums[4] += u * hat(kSep5Second, load(p.z_of(edge, kSep5Second) + at));
        }
        total = warp_sum(total);
        for (A& s : sums) s = warp_sum(s);
        for (int k = 0; k < 5 && lane == 0; ++k)
            p.partial_stream[((std::int64_t{blockIdx.y} * 5 + k) * p.c + c) * gridDim.x + blockIdx.x] = {total, sums[k]};
    }
}

// Gradient of state j from every edge that leaves it. Grid: stream tiles of the state's own pixels; a warp a channel.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(Plan<T> p, int source) {
    using A = typename Arithmetic<T>::Type;
    const int j = source + blockIdx.y, lane = threadIdx.x % 32;
    const View<const T> x = p.state(j);
    const bool strided = p.reduction && j < 2;
    const int stride = strided ? 2 : 1;
    const std::int64_t plane_size = std::int64_t{x.h} * x.w;
    for (int c = threadIdx.x / 32; c < p.c; c += kWarps) {
        for (int t = lane; t < kStream; t += 32) {
            const std::int64_t q = std::int64_t{blockIdx.x} * kStream + t;
            if (q >= p.n * plane_size) break;
            const int n = static_cast<int>(q / plane_size), r = static_cast<int>(q % plane_size), row = r / x.w, column = r % x.w;
            const std::int64_t at = (std::int64_t{n} * p.c + c) * plane_size + r;
            const T* plane = x.data + n * x.image + c * plane_size;
            const std::int64_t image = (std::int64_t{n} * p.c + c) * p.plane();  // of g and the z's
            A skip = 0, conv = 0;
            if (j >= 2) skip = load(p.dy + (std::int64_t{n} * p.nodes + j - 2) * p.c * p.plane() + c * p.plane() + r);
            for (int i = j < 2 ? 0 : j - 1; i < p.nodes; ++i) {
                const int edge = i * (i + 3) / 2 + j;
                conv += load(p.dx_of(edge) + at);
                if (!strided) {
                    skip += p.gates[edge * kOps + kSkip] * load(p.g + i * p.size() + at);
                } else if (row % 2 == column % 2) {
                    const T* grid = p.dd_fr + (std::int64_t{p.reduced_index(edge)} * 2 + row % 2) * p.size();
                    conv += load(grid + image + row / 2 * p.ow + column / 2);
                }
            }
            A pools = 0;
            for (int oy = stride == 1 ? max(row - 1, 0) : row / 2; oy <= min((row + 1) / stride, p.oh - 1); ++oy) {
                for (int ox = stride == 1 ? max(column - 1, 0) : column / 2; ox <= min((column + 1) / stride, p.ow - 1); ++ox) {
                    const Pooled<T> pool(plane, x.h, x.w, oy, ox, stride);
                    for (int i = j < 2 ? 0 : j - 1; i < p.nodes; ++i) {
                        const int edge = i * (i + 3) / 2 + j;
                        const A u = load(p.g + i * p.size() + image + oy * p.ow + ox);
                        if (pool.at == r) pools += NormGradient<T>(p, edge, kMax, kMaxPool, c)(u, pool.max);
                        pools += NormGradient<T>(p, edge, kAvg, kAvgPool, c)(u, pool.avg) * pool.inv_count;
                    }
                }
            }
            if (!(load(plane + r) > 0)) conv = 0;
            T* out = j < 2 ? p.ds[j] : p.g + (j - 2) * p.size();
            store(out + at, skip + conv + pools);
        }
    }
}

// Weight gradients from the groups' shares, in a fixed order.
template <typename A>
__global__ void __launch_bounds__(kThreads) finish_groups_kernel(const A* partial, A* out, std::int64_t slots, std::int64_t slot_size,
                                                                 int groups, std::int64_t slot_stride, std::int64_t group_stride) {
    const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= slots * slot_size) return;
    const A* from = partial + i / slot_size * slot_stride + i % slot_size;
    A sum = 0;
    for (int k = 0; k < groups; ++k) sum += from[k * group_stride];
    out[i] = sum;
}

// dL/dgate = sum over channels of sum g * op. One warp an (edge, op).
template <typename T>
__global__ void gate_gradient_kernel(Plan<T> p, typename Arithmetic<T>::Type* dgates) {
    const int edge = blockIdx.x, op = threadIdx.x / 32, lane = threadIdx.x % 32;
    constexpr int kNormOf[kOps] = {-1, kMax, kAvg, kFr, kSep3Second, kSep5Second, kDil3, kDil5};
    double sum = 0;
    if (op != kNone) {
        const auto* sums = p.sums + (std::int64_t{edge} * kNorms + kNormOf[op]) * 2 * p.c + p.c;
        for (int c = lane; c < p.c; c += 32) sum += sums[c];
    }
    sum = warp_sum(sum);
    if (lane == 0) dgates[edge * kOps + op] = static_cast<typename Arithmetic<T>::Type>(sum);
}

}  // namespace hwnas::mixed_cell::cuda
