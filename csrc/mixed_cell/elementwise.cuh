// The passes without a matrix in them: pool statistics, the blend into a node, the sums that batch norms' gradients need, the
// gradient that reaches a state, and the reductions of per-block sums.
#pragma once

#include "mixed_cell/plan.cuh"

namespace hwnas::mixed_cell::cuda {

struct Reductions {  // per-block sums of several launches, each [job, c, tiles] from `offset` on
    struct Part {
        Jobs jobs;
        int tiles;
        std::int64_t offset;
        int settled;  // so many of the first jobs are added up elsewhere
    } part[4];
    int count = 0;
};

// Sums over tiles in a fixed order, in double: a warp a channel of a job. Forward: mean and 1 / std into stats; for the pools,
// Jobs::edge is the source state. Backward: the two sums. Grid: ceil(c / kWarps) x jobs of all parts.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kThreads) finish_sums_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Reductions sums) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    const int lane = threadIdx.x % 32, c = blockIdx.x * kWarps + threadIdx.x / 32;
    if (c >= p.c) return;
    int job = blockIdx.y, part = 0;
    for (; job >= sums.part[part].jobs.count - sums.part[part].settled; ++part) job -= sums.part[part].jobs.count - sums.part[part].settled;
    job += sums.part[part].settled;
    const Jobs& jobs = sums.part[part].jobs;
    const int tiles = sums.part[part].tiles;
    const Pair<A>* partial = p.partial + sums.part[part].offset + (std::int64_t{job} * p.c + c) * tiles;
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
        A* out = p.sums_of(edge, kind);
        out[c] = static_cast<A>(a);
        out[p.c + c] = static_cast<A>(b);
    } else {
        const double count = static_cast<double>(p.pixels()), mean = a / count, var = b / count - mean * mean;
        p.stats[std::int64_t{kind < kMax ? p.stat_row(edge, kind) : p.pool_row(edge, kind)} * p.c + c] = {
            static_cast<A>(mean), static_cast<A>(1.0 / sqrt((var > 0 ? var : 0) + 1e-5))};
    }
}

// What a warp of an elementwise kernel works on: kSegment pixels of one output plane.
struct Segment {
    int n = 0, c = 0, index = 0, from = 0, to = 0;  // index: which segment of the batch, n * segments + segment
    template <typename T>
    __device__ bool pick(const Plan<T>& p) {
        const int segments = p.segments();
        const int item = blockIdx.x * kWarps + threadIdx.x / 32;
        const int segment = item % segments, plane = item / segments;
        n = plane / p.c;
        c = plane % p.c;
        index = n * segments + segment;
        from = segment * kSegment;
        to = min(from + kSegment, p.oh * p.ow);
        return n < p.n;
    }
};

// A norm as scale * z + shift.
template <typename A>
struct Affine {
    A scale, shift;
    template <typename T>
    __device__ Affine(const Plan<T>& p, int edge, int kind, int c) {
        const int row = p.stat_row(edge, kind);
        scale = p.stat(row, c).b;
        shift = -p.stat(row, c).a * scale;
    }
    __device__ A operator()(A z) const { return scale * z + shift; }
};

// (sum, sum of squares) of both pools of a state. Grid: segments x states; slots 2 * job + {max, avg}.
template <typename T>
__global__ void __launch_bounds__(kThreads) pool_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs states) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    Segment s;
    if (!s.pick(p)) return;
    const int j = states.edge[blockIdx.y], lane = threadIdx.x % 32;
    const View<const T> x = p.state(j);
    const T* plane = x.data + s.n * x.image + std::int64_t{s.c} * x.h * x.w;
    const int stride = p.reduction && j < 2 ? 2 : 1;
    A sums[4] = {};
    for (int r = s.from + lane; r < s.to; r += 32) {
        int row, column;
        p.by_ow.divide(r, row, column);
        const Pooled<T> pool(plane, x.h, x.w, row, column, stride);
        sums[0] += pool.max;
        sums[1] += pool.max * pool.max;
        sums[2] += pool.avg;
        sums[3] += pool.avg * pool.avg;
    }
    for (A& v : sums) v = warp_sum(v);
    const int tiles = p.n * p.segments();
    for (int k = 0; k < 2 && lane == 0; ++k)
        p.partial[((std::int64_t{blockIdx.y} * 2 + k) * p.c + s.c) * tiles + s.index] = {sums[2 * k], sums[2 * k + 1]};
}

// Node `node` = sum over its edges of gate * op. Grid: segments.
template <typename T>
__global__ void __launch_bounds__(kThreads) blend_kernel(const __grid_constant__ Plan<T> p, int node) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    constexpr int kPixels = kSegment / 32;
    Segment s;
    if (!s.pick(p)) return;
    const int lane = threadIdx.x % 32, first = node * (node + 3) / 2;
    const std::int64_t image = (std::int64_t{s.n} * p.c + s.c) * p.plane();
    A sum[kPixels] = {};
    for (int j = 0; j < node + 2; ++j) {
        const int edge = first + j;
        const bool strided = p.strided(edge);
        const A* gates = p.gates + edge * kOps;
        const View<const T> x = p.state(j);
        const T* plane = x.data + s.n * x.image + std::int64_t{s.c} * x.h * x.w;
        const auto norm = [&](int kind) {
            Affine<A> a(p, edge, kind, s.c);
            a.scale *= gates[op_of(kind)];
            a.shift *= gates[op_of(kind)];
            return a;
        };
        const Affine<A> max = norm(kMax), avg = norm(kAvg), sep3 = norm(kSep3Second), sep5 = norm(kSep5Second), dil3 = norm(kDil3), dil5 = norm(kDil5);
        const T *z_sep3 = p.z_of(edge, kSep3Second) + image, *z_sep5 = p.z_of(edge, kSep5Second) + image;
        const T *z_dil3 = p.z_of(edge, kDil3) + image, *z_dil5 = p.z_of(edge, kDil5) + image;
        const T* skip = strided ? p.z_of(edge, kFr) + image : plane;
        Affine<A> skipped = max;
        if (strided) skipped = norm(kFr);
        else skipped.scale = gates[kSkip], skipped.shift = 0;
        const A shift = max.shift + avg.shift + sep3.shift + sep5.shift + dil3.shift + dil5.shift + skipped.shift;
#pragma unroll
        for (int k = 0; k < kPixels; ++k) {
            const int r = s.from + k * 32 + lane;
            if (r >= s.to) break;
            int row, column;
            p.by_ow.divide(r, row, column);
            const Pooled<T> pool(plane, x.h, x.w, row, column, strided ? 2 : 1);
            sum[k] += shift + max.scale * pool.max + avg.scale * pool.avg + skipped.scale * load(skip + r) + sep3.scale * load(z_sep3 + r) +
                      sep5.scale * load(z_sep5 + r) + dil3.scale * load(z_dil3 + r) + dil5.scale * load(z_dil5 + r);
        }
    }
    T* y = p.y + (std::int64_t{s.n} * p.nodes + node) * p.c * p.plane() + s.c * p.plane();
#pragma unroll
    for (int k = 0; k < kPixels; ++k)
        if (s.from + k * 32 + lane < s.to) store(y + s.from + k * 32 + lane, sum[k]);
}

// (sum g, sum g * zhat) of the norms whose z is at hand: pools, factorized reduce; for a skip (sum g, sum g * x).
// Grid: segments x edges; slots 3 * job + {max, avg, fr}.
template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_sums_kernel(const __grid_constant__ Plan<T> p, const __grid_constant__ Jobs edges) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    Segment s;
    if (!s.pick(p)) return;
    const int edge = edges.edge[blockIdx.y], j = p.source_of(edge), lane = threadIdx.x % 32;
    const bool strided = p.strided(edge);
    const View<const T> x = p.state(j);
    const T* plane = x.data + s.n * x.image + std::int64_t{s.c} * x.h * x.w;
    const std::int64_t image = (std::int64_t{s.n} * p.c + s.c) * p.plane();
    const T* g = p.g_of(edge) + image;
    const T* skip = strided ? p.z_of(edge, kFr) + image : plane;
    const Affine<A> max(p, edge, kMax, s.c), avg(p, edge, kAvg, s.c);
    Affine<A> skipped = max;
    if (strided) skipped = Affine<A>(p, edge, kFr, s.c);
    else skipped.scale = 1, skipped.shift = 0;
    A total = 0, sums[3] = {};
    for (int r = s.from + lane; r < s.to; r += 32) {
        int row, column;
        p.by_ow.divide(r, row, column);
        const Pooled<T> pool(plane, x.h, x.w, row, column, strided ? 2 : 1);
        const A u = load(g + r);
        total += u;
        sums[0] += u * max(pool.max);
        sums[1] += u * avg(pool.avg);
        sums[2] += u * skipped(load(skip + r));
    }
    total = warp_sum(total);
    for (A& v : sums) v = warp_sum(v);
    const int tiles = p.n * p.segments();
    for (int k = 0; k < 3 && lane == 0; ++k)
        p.partial[((std::int64_t{blockIdx.y} * 3 + k) * p.c + s.c) * tiles + s.index] = {total, sums[k]};
}

// Gradient of state j from every edge that leaves it. The pools are linear in their upstream gradient, so those of all edges
// are added first and go back through the windows once. A team of kTeam threads takes a plane; the windows' gradients wait in
// shared memory, or, where a plane is too large for that, are computed again for every pixel. Grid: planes x states.
template <typename T>
struct Window {
    typename Arithmetic<T>::Type max, avg, skip;
    int at;
};

template <typename T, int kTeam, bool kShared>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ Plan<T> p, int source) {
    wait_for_previous();
    using A = typename Arithmetic<T>::Type;
    constexpr int kTeams = kThreads / kTeam;
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ A scales[kTeams][kMaxNodes][3];   // of u for {max, avg, skip}
    __shared__ A offsets[kTeams][kMaxNodes][4];  // {max: factor of the pooled value, constant; avg: the same}
    const int team = threadIdx.x / kTeam, rank = threadIdx.x % kTeam, j = source + blockIdx.y;
    const std::int64_t item = std::int64_t{blockIdx.x} * kTeams + team;
    const bool active = item < std::int64_t{p.n} * p.c;
    const int n = static_cast<int>(item / p.c), c = static_cast<int>(item % p.c);
    const View<const T> x = p.state(j);
    const bool strided = p.reduction && j < 2;
    const int stride = strided ? 2 : 1, first = j < 2 ? 0 : j - 1, outputs = p.oh * p.ow, pixels = x.h * x.w;
    const T* plane = x.data + n * x.image + std::int64_t{c} * pixels;
    const std::int64_t image = item * outputs;  // of g and everything of its shape
    if (active && rank < p.nodes - first) {
        const int i = first + rank, edge = i * (i + 3) / 2 + j;
        const NormGradient<T> max(p, edge, kMax, kMaxPool, c), avg(p, edge, kAvg, kAvgPool, c);
        scales[team][i][0] = max.ca;
        scales[team][i][1] = avg.ca;
        scales[team][i][2] = p.gates[edge * kOps + kSkip];
        offsets[team][i][0] = max.cb;
        offsets[team][i][1] = max.cc;
        offsets[team][i][2] = avg.cb;
        offsets[team][i][3] = avg.cc;
    }
    __syncthreads();
    A sums[4] = {};
    for (int i = first; i < p.nodes; ++i)
        for (int k = 0; k < 4; ++k) sums[k] += offsets[team][i][k];
    const auto window = [&](int q) {
        int row, column;
        p.by_ow.divide(q, row, column);
        const Pooled<T> pool(plane, x.h, x.w, row, column, stride);
        Window<T> v{sums[0] * pool.max + sums[1], sums[2] * pool.avg + sums[3], 0, pool.at};
        for (int i = first; i < p.nodes; ++i) {
            const A u = load(p.g + i * p.size() + image + q);
            v.max += scales[team][i][0] * u;
            v.avg += scales[team][i][1] * u;
            v.skip += scales[team][i][2] * u;
        }
        v.avg *= pool.inv_count;
        return v;
    };
    Window<T>* windows = reinterpret_cast<Window<T>*>(shared) + team * outputs;
    if (kShared) {
        for (int q = rank; active && q < outputs; q += kTeam) windows[q] = window(q);
        __syncthreads();
    }
    if (!active) return;
    T* out = (j < 2 ? p.ds[j] : p.g + (j - 2) * p.size()) + item * pixels;
    for (int r = rank; r < pixels; r += kTeam) {
        int row, column;
        p.by_w.divide(r, row, column);
        if (j >= 2) p.by_ow.divide(r, row, column);
        A sum = 0, conv = 0;
        if (j >= 2) sum = load(p.dy + (std::int64_t{n} * p.nodes + j - 2) * p.c * outputs + std::int64_t{c} * outputs + r);
        for (int i = first; i < p.nodes; ++i) {
            const int edge = i * (i + 3) / 2 + j;
            conv += load(p.dx_of(edge) + item * pixels + r);
            if (strided && row % 2 == column % 2)
                conv += load(p.dd_fr + (std::int64_t{p.reduced_index(edge)} * 2 + row % 2) * p.size() + image + row / 2 * p.ow + column / 2);
        }
        if (first < p.nodes) {
            const int top = strided ? row / 2 : max(row - 1, 0), bottom = min((row + 1) / stride, p.oh - 1);
            const int left = strided ? column / 2 : max(column - 1, 0), right = min((column + 1) / stride, p.ow - 1);
            for (int oy = top; oy <= bottom; ++oy) {
                for (int ox = left; ox <= right; ++ox) {
                    const Window<T> v = kShared ? windows[oy * p.ow + ox] : window(oy * p.ow + ox);
                    sum += v.avg + (v.at == r ? v.max : A(0));
                    if (!strided && oy == row && ox == column) sum += v.skip;
                }
            }
        }
        if (load(plane + r) > 0) sum += conv;
        store(out + r, sum);
    }
}

// Weight gradients from the groups' shares, in a fixed order.
template <typename A>
__global__ void __launch_bounds__(kThreads) finish_groups_kernel(const A* partial, A* out, std::int64_t slots, std::int64_t slot_size,
                                                                 int groups, std::int64_t slot_stride, std::int64_t group_stride) {
    wait_for_previous();
    const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= slots * slot_size) return;
    const A* from = partial + i / slot_size * slot_stride + i % slot_size;
    A sum = 0;
    for (int k = 0; k < groups; ++k) sum += from[k * group_stride];
    out[i] = sum;
}

// dL/dgate = sum over channels of sum g * op. One warp an (edge, op).
template <typename T>
__global__ void gate_gradient_kernel(const __grid_constant__ Plan<T> p, typename Arithmetic<T>::Type* dgates) {
    wait_for_previous();
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
