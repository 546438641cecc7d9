// The mixed cell on CUDA: lays out saved and scratch memory and launches the stages in order of readiness. Edges that leave one
// state are ready together forward (from s0 and s1 at once), edges that enter one node are ready together backward.
#include <algorithm>
#include <vector>

#include "mixed_cell/elementwise.cuh"
#include "mixed_cell/general.cuh"
#include "mixed_cell/tuned.h"
#include "mixed_cell/vector.cuh"

namespace hwnas::mixed_cell {
namespace cuda {
namespace {

// Hands out 256-byte aligned pieces of one buffer; with a null base it only counts.
class Arena {
public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <typename P>
    void take(P*& piece, std::int64_t count) {
        piece = base_ ? reinterpret_cast<P*>(base_ + used_) : nullptr;
        used_ += (count * static_cast<std::int64_t>(sizeof(P)) + 255) / 256 * 256;
    }
    std::int64_t used() const { return used_; }

private:
    char* base_;
    std::int64_t used_ = 0;
};

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <typename T>
Plan<T> make_plan(const Shape& s) {
    Plan<T> p{};
    p.n = static_cast<int>(s.n);
    p.c = static_cast<int>(s.c);
    p.h = static_cast<int>(s.h);
    p.w = static_cast<int>(s.w);
    p.oh = static_cast<int>(s.out_h());
    p.ow = static_cast<int>(s.out_w());
    p.nodes = s.nodes;
    p.edges = s.edges();
    p.by_ow = Divisor(static_cast<unsigned>(p.ow));
    p.by_w = Divisor(static_cast<unsigned>(p.w));
    p.by_vectors = Divisor(static_cast<unsigned>(std::max<std::int64_t>(p.plane() / kVec, 1)));
    p.reduction = s.reduction;
    return p;
}

template <typename T>
void bind_inputs(Plan<T>& p, const Inputs& in) {
    using A = typename Plan<T>::A;
    p.s[0] = static_cast<const T*>(in.s0);
    p.s[1] = static_cast<const T*>(in.s1);
    p.gates = static_cast<const A*>(in.gates);
    p.dw = static_cast<const A*>(in.dw);
    p.pw = static_cast<const A*>(in.pw);
    p.fr = static_cast<const A*>(in.fr);
}

template <typename T>
std::int64_t lay_out_saved(Plan<T>& p, void* base) {
    Arena arena(base);
    arena.take(p.z, p.edges * 2 * p.size());
    arena.take(p.z_fr, p.reduction ? 2 * p.nodes * p.size() : 0);
    arena.take(p.stats, std::int64_t{p.stat_rows()} * p.c);
    return arena.used();
}

template <typename T>
std::int64_t partial_count(const Plan<T>& p) {  // per-block sums that one lane may have waiting
    const std::int64_t input_pixels = std::int64_t{p.n} * p.h * p.w;
    const std::int64_t jobs = std::max({2, p.nodes, 2 * (p.nodes - kLanes + 1)});  // edges that one lane has at a time
    return jobs * 5 * p.c * (divide_up(input_pixels, kTile) + p.n * p.segments());
}

template <typename T>
std::int64_t lay_out_forward(Plan<T>& p, void* base) {
    Arena arena(base);
    arena.take(p.z_last, p.edges * 4 * p.size());
    arena.take(p.partial, kLanes * partial_count(p));
    char* fragments = nullptr;
    arena.take(fragments, Tuned<T>::fragment_bytes(p));
    p.fragments = fragments;
    return arena.used();
}

template <typename T>
std::int64_t lay_out_backward(Plan<T>& p, void* base) {
    Arena arena(base);
    const std::int64_t reduced = p.reduction ? 2 * p.nodes : 0;
    const std::int64_t large = std::int64_t{p.n} * p.c * p.h * p.w;
    arena.take(p.g, p.nodes * p.size());
    arena.take(p.h1, p.slots() * 2 * p.size());
    arena.take(p.dd, p.slots() * kConvs * p.size());
    arena.take(p.dd_fr, reduced * 2 * p.size());
    arena.take(p.dx, 2 * p.nodes * large + (p.edges - 2 * p.nodes) * p.size());
    arena.take(p.sums, std::int64_t{p.edges} * kNorms * 2 * p.c);
    arena.take(p.dpw_partial, (p.edges * kConvs + reduced) * p.pw_groups() * std::int64_t{p.c} * p.c);
    arena.take(p.ddw_partial, std::int64_t{p.dw_groups()} * p.edges * kDwPerChannel * p.c);
    arena.take(p.partial, kLanes * partial_count(p));
    char* fragments = nullptr;
    arena.take(fragments, Tuned<T>::fragment_bytes(p));
    p.fragments = fragments;
    return arena.used();
}

#define HWNAS_TRY(call)                             \
    do {                                            \
        const Status hwnas_status = (call);         \
        if (!hwnas_status) return hwnas_status;     \
    } while (0)

template <typename Kernel>
Status allow_shared(Kernel kernel, std::int64_t bytes) {
    if (bytes <= 48 * 1024) return {};
    int device = 0, limit = 0;
    HWNAS_CUDA_TRY(cudaGetDevice(&device));
    HWNAS_CUDA_TRY(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (bytes > limit) return {"the mixed cell needs more shared memory for this many channels than the device has"};
    HWNAS_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    return {};
}

// The stages. Each is one launch for all its jobs.
template <typename T>
class Stages {
    using A = typename Plan<T>::A;
    static constexpr bool kVectors = sizeof(T) <= 4;

public:
    Stages(const Plan<T>& plan, cudaStream_t stream, int lane) : p_(plan), stream_(stream), vectors_(vectors_cover(plan)) {
        p_.partial += lane * partial_count(plan);
    }

    Status prepare(bool with_backward) { return Tuned<T>::prepare(p_, with_backward, stream_); }

    Status convolve(const Jobs& jobs, ConvSums what, bool strided) {
        if (jobs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) {
            int tiles = 0;
            HWNAS_TRY(Tuned<T>::convolve(with_partial(), jobs, what, strided, stream_, &tiles));
            return note_sums(jobs, tiles);
        }
        const int tiles = static_cast<int>(divide_up(p_.pixels(), kTile));
        const std::int64_t bytes = 2 * std::int64_t{p_.c} * kTile * sizeof(A);
        HWNAS_TRY(allow_shared(conv_kernel<T>, bytes));
        conv_kernel<T><<<dim3(tiles, jobs.count), kThreads, bytes, stream_>>>(with_partial(), jobs, what);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return note_sums(jobs, tiles);
    }

    Status pools(const Jobs& states) {
        if constexpr (kVectors) {
            if (vectors_) pool_vector_kernel<T><<<dim3(vector_blocks(), states.count), kThreads, 0, stream_>>>(with_partial(), states);
        }
        if (!vectors_) pool_kernel<T><<<dim3(stream_blocks(), states.count), kThreads, 0, stream_>>>(with_partial(), states);
        HWNAS_CUDA_TRY(cudaGetLastError());
        Jobs slots;
        for (int k = 0; k < states.count; ++k)
            for (int norm : {kMax, kAvg}) slots.add(states.edge[k], norm);
        return note_sums(slots, stream_tiles());
    }

    Status gradient_sums(const Jobs& edges) {
        if constexpr (kVectors) {
            if (vectors_) gradient_sums_vector_kernel<T><<<dim3(vector_blocks(), edges.count), kThreads, 0, stream_>>>(with_partial(), edges);
        }
        if (!vectors_) gradient_sums_kernel<T><<<dim3(stream_blocks(), edges.count), kThreads, 0, stream_>>>(with_partial(), edges);
        HWNAS_CUDA_TRY(cudaGetLastError());
        Jobs slots;
        for (int k = 0; k < edges.count; ++k)
            for (int norm : kStreamNorms) slots.add(edges.edge[k], norm);
        return note_sums(slots, stream_tiles());
    }

    // Adds up all per-block sums since the last time.
    template <bool kBackward>
    Status finish_sums() {
        int jobs = 0;
        for (int k = 0; k < sums_.count; ++k) jobs += sums_.part[k].jobs.count;
        const dim3 grid(static_cast<unsigned>(divide_up(p_.c, kWarps)), jobs);
        finish_sums_kernel<T, kBackward><<<grid, kThreads, 0, stream_>>>(p_, sums_);
        HWNAS_CUDA_TRY(cudaGetLastError());
        sums_ = {};
        partial_used_ = 0;
        return {};
    }

    Status blend(int node) {
        if constexpr (kVectors) {
            if (vectors_) blend_vector_kernel<T><<<vector_blocks(), kThreads, 0, stream_>>>(p_, node);
        }
        if (!vectors_) blend_kernel<T><<<stream_blocks(), kThreads, 0, stream_>>>(p_, node);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status gather(int first, int count) {
        if constexpr (kVectors) {
            if (vectors_ && (first >= 2 || !p_.reduction) && kThreads * kVec % p_.plane() == 0) {
                gather_vector_kernel<T><<<dim3(vector_blocks(), count), kThreads, 0, stream_>>>(p_, first);
                HWNAS_CUDA_TRY(cudaGetLastError());
                return {};
            }
        }
        if constexpr (kVectors) {
            if (vectors_ && first < 2 && p_.reduction && kThreads * kVec / 4 % p_.plane() == 0) {
                const auto blocks = static_cast<unsigned>(divide_up(p_.size(), kThreads * kVec / 4));
                gather_strided_vector_kernel<T><<<dim3(blocks, count), kThreads, 0, stream_>>>(p_);
                HWNAS_CUDA_TRY(cudaGetLastError());
                return {};
            }
        }
        const std::int64_t bytes = p_.plane() * sizeof(Window<T>);  // of one plane
        if (p_.plane() <= 256) return gather<64, true>(first, count, bytes * (kThreads / 64));
        if (bytes <= 40 * 1024) return gather<kThreads, true>(first, count, bytes);
        return gather<kThreads, false>(first, count, 0);
    }

    Status pointwise_backward(const Jobs& jobs, bool strided) {
        if (jobs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) return Tuned<T>::pointwise_backward(p_, jobs, strided, stream_);
        const std::int64_t bytes = 3 * std::int64_t{p_.c} * kTile * sizeof(A);
        HWNAS_TRY(allow_shared(pointwise_backward_kernel<T>, bytes));
        pointwise_backward_kernel<T><<<dim3(p_.pw_groups(), jobs.count), kThreads, bytes, stream_>>>(p_, jobs);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    // `convs`: every convolution that reads a state; `edges`: each edge once. Edges of one stride.
    Status depthwise_state_backward(const Jobs& convs, const Jobs& edges, bool strided) {
        if (convs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) return Tuned<T>::depthwise_state_backward(p_, convs, edges, strided, stream_);
        HWNAS_TRY(depthwise_weights(convs));
        const std::int64_t pixels = strided ? std::int64_t{p_.n} * p_.h * p_.w : p_.pixels();
        depthwise_backward_kernel<T><<<dim3(static_cast<unsigned>(divide_up(pixels, kTile)), edges.count), kThreads, 0, stream_>>>(p_, edges);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status depthwise_second_backward(const Jobs& convs) {
        int tiles = static_cast<int>(divide_up(p_.pixels(), kTile));
        if (Tuned<T>::covers(p_, false)) {
            HWNAS_TRY(Tuned<T>::depthwise_second_backward(with_partial(), convs, stream_, &tiles));
        } else {
            HWNAS_TRY(depthwise_weights(convs));
            depthwise_backward_kernel<T><<<dim3(tiles, convs.count), kThreads, 0, stream_>>>(with_partial(), convs);
            HWNAS_CUDA_TRY(cudaGetLastError());
        }
        Jobs slots;  // the sums belong to the norm before the second half
        for (int k = 0; k < convs.count; ++k) slots.add(convs.edge[k], convs.kind[k] - 1);
        return note_sums(slots, tiles);
    }

    Status weight_gradients(const Backward& b) {
        const std::int64_t cc = std::int64_t{p_.c} * p_.c, per_edge = std::int64_t{kDwPerChannel} * p_.c;
        const int pw = p_.pw_groups();
        HWNAS_TRY(finish_groups(p_.dpw_partial, b.dpw, p_.edges * kConvs, cc, pw, pw * cc, cc));
        if (p_.reduction) HWNAS_TRY(finish_groups(p_.dpw_partial + p_.edges * kConvs * pw * cc, b.dfr, 2 * p_.nodes, cc, pw, pw * cc, cc));
        HWNAS_TRY(finish_groups(p_.ddw_partial, b.ddw, 1, p_.edges * per_edge, p_.dw_groups(), 0, p_.edges * per_edge));
        gate_gradient_kernel<T><<<p_.edges, 32 * kOps, 0, stream_>>>(p_, static_cast<A*>(b.dgates));
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

private:
    int vector_blocks() const { return static_cast<int>(divide_up(p_.size() / kVec, kThreads)); }
    int stream_tiles() const { return vectors_ ? p_.n * vector_tiles(p_) : p_.n * p_.segments(); }
    int stream_blocks() const { return static_cast<int>(divide_up(std::int64_t{p_.n} * p_.c * p_.segments(), kWarps)); }

    template <int kTeam, bool kShared>
    Status gather(int first, int count, std::int64_t bytes) {
        const auto blocks = static_cast<unsigned>(divide_up(std::int64_t{p_.n} * p_.c, kThreads / kTeam));
        gather_kernel<T, kTeam, kShared><<<dim3(blocks, count), kThreads, bytes, stream_>>>(p_, first);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status finish_groups(const A* partial, void* out, std::int64_t slots, std::int64_t slot_size, int groups, std::int64_t slot_stride,
                         std::int64_t group_stride) {
        const auto blocks = static_cast<unsigned>(divide_up(slots * slot_size, kThreads));
        finish_groups_kernel<A><<<blocks, kThreads, 0, stream_>>>(partial, static_cast<A*>(out), slots, slot_size, groups, slot_stride, group_stride);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status depthwise_weights(const Jobs& convs) {
        depthwise_weight_kernel<T><<<dim3(p_.dw_groups(), convs.count, p_.c), kThreads, 0, stream_>>>(p_, convs);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    // The next launch's per-block sums go behind those that wait already.
    Plan<T> with_partial() const {
        Plan<T> p = p_;
        p.partial += partial_used_;
        return p;
    }
    Status note_sums(const Jobs& jobs, int tiles) {
        sums_.part[sums_.count++] = {jobs, tiles, partial_used_};
        partial_used_ += std::int64_t{jobs.count} * p_.c * tiles;
        return {};
    }

    Plan<T> p_;
    cudaStream_t stream_;
    bool vectors_;  // the elementwise passes take 8 pixels a thread
    Reductions sums_;
    std::int64_t partial_used_ = 0;
};

// The caller's stream and two more, so that edges off the critical path run beside it: most launches are too small to fill
// the machine alone. Each host thread has its own per device, because events are recorded and waited for in turn.
class Lanes {
public:
    static Status open(cudaStream_t stream, Lanes& lanes) {
        constexpr int kDevices = 64;
        static thread_local Resources resources[kDevices];
        int device = 0;
        HWNAS_CUDA_TRY(cudaGetDevice(&device));
        if (device >= kDevices) return {"the mixed cell knows 64 devices"};
        Resources& r = resources[device];
        for (int k = 1; k < kLanes; ++k)
            if (!r.stream[k]) HWNAS_CUDA_TRY(cudaStreamCreateWithFlags(&r.stream[k], cudaStreamNonBlocking));
        for (cudaEvent_t& event : r.event)
            if (!event) HWNAS_CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        lanes.resources_ = &r;
        lanes.main_ = stream;
        return {};
    }
    cudaStream_t stream(int lane) const { return lane == 0 ? main_ : resources_->stream[lane]; }
    // What `to` does next comes after what `from` has been given so far.
    Status order(int from, int to) {
        HWNAS_CUDA_TRY(cudaEventRecord(resources_->event[from], stream(from)));
        HWNAS_CUDA_TRY(cudaStreamWaitEvent(stream(to), resources_->event[from], 0));
        return {};
    }

private:
    struct Resources {
        cudaStream_t stream[kLanes] = {};
        cudaEvent_t event[kLanes] = {};
    };
    Resources* resources_ = nullptr;
    cudaStream_t main_ = nullptr;
};

// Both halves of all convolutions of some edges, with their statistics.
template <typename T>
Status convolve_edges(Stages<T>& stages, const Plan<T>& p, const int* edges, int count) {
    Jobs first[2], reduces, second;  // first[strided]
    for (int k = 0; k < count; ++k) {
        const int edge = edges[k];
        for (int conv : {kSep5First, kDil5, kSep3First, kDil3}) first[p.strided(edge)].add(edge, conv);
        for (int conv : {kSep5Second, kSep3Second}) second.add(edge, conv);
        if (p.strided(edge)) reduces.add(edge, kFr);
    }
    for (bool strided : {true, false}) HWNAS_TRY(stages.convolve(first[strided], ConvSums::kStatistics, strided));
    HWNAS_TRY(stages.convolve(reduces, ConvSums::kStatistics, true));
    HWNAS_TRY(stages.template finish_sums<false>());
    HWNAS_TRY(stages.convolve(second, ConvSums::kStatistics, false));
    return stages.template finish_sums<false>();
}

// Everything that the gradient of `node` causes in its edges from the states [from, to), all of one stride.
template <typename T>
Status edges_backward(Stages<T>& stages, const Plan<T>& p, int node, int from, int to) {
    if (from >= to) return {};
    Jobs edges, second, dilated, separable, convs, reduces;
    const bool strided = p.strided(node * (node + 3) / 2 + from);
    for (int j = from; j < to; ++j) {
        const int edge = node * (node + 3) / 2 + j;
        edges.add(edge, kSep3First);
        for (int conv : {kSep5Second, kSep3Second}) second.add(edge, conv);
        for (int conv : {kDil5, kDil3}) dilated.add(edge, conv);
        for (int conv : {kSep5First, kSep3First}) separable.add(edge, conv);
        for (int conv : {kSep5First, kDil5, kSep3First, kDil3}) convs.add(edge, conv);
        if (strided) reduces.add(edge, kFr);
    }
    HWNAS_TRY(stages.gradient_sums(edges));
    Jobs ready = second;  // what is ready together goes into one launch, unless strides differ
    for (int k = 0; !strided && k < dilated.count; ++k) ready.add(dilated.edge[k], dilated.kind[k]);
    HWNAS_TRY(stages.convolve(ready, ConvSums::kGradient, false));
    if (strided) HWNAS_TRY(stages.convolve(dilated, ConvSums::kGradient, true));
    HWNAS_TRY(stages.template finish_sums<true>());
    HWNAS_TRY(stages.pointwise_backward(ready, false));
    if (strided) {
        HWNAS_TRY(stages.pointwise_backward(reduces, true));
        HWNAS_TRY(stages.pointwise_backward(dilated, true));
    }
    HWNAS_TRY(stages.depthwise_second_backward(second));
    HWNAS_TRY(stages.template finish_sums<true>());
    HWNAS_TRY(stages.pointwise_backward(separable, strided));
    return stages.depthwise_state_backward(convs, edges, strided);
}

template <typename T>
Status forward(const Forward& f, cudaStream_t stream) {
    Plan<T> p = make_plan<T>(f.shape);
    bind_inputs(p, f.in);
    p.y = static_cast<T*>(f.y);
    lay_out_saved(p, f.saved);
    lay_out_forward(p, f.scratch);
    Lanes lanes;
    HWNAS_TRY(Lanes::open(stream, lanes));
    std::vector<Stages<T>> stages;
    for (int lane = 0; lane < kLanes; ++lane) stages.emplace_back(p, lanes.stream(lane), lane);
    HWNAS_TRY(lanes.order(0, 1));  // weights beside the pools
    HWNAS_TRY(stages[1].prepare(false));
    Jobs inputs;
    for (int j = 0; j < 2; ++j) inputs.add(j, 0);
    HWNAS_TRY(stages[0].pools(inputs));
    for (int lane = 0; lane < kLanes; ++lane)
        if (lane != 1) HWNAS_TRY(lanes.order(1, lane));
    // s0 and s1 are ready: their edges into node 0 here, those into node 1 and those into the others beside.
    int edges[kMaxEdges], count = 0;
    for (int lane = 0; lane < std::min(p.nodes, kLanes); ++lane) {
        count = 0;
        for (int i = lane; i < (lane == kLanes - 1 ? p.nodes : lane + 1); ++i)
            for (int j = 0; j < 2; ++j) edges[count++] = i * (i + 3) / 2 + j;
        HWNAS_TRY(convolve_edges(stages[lane], p, edges, count));
    }
    for (int node = 0; node < p.nodes; ++node) {
        if (node > 0) {  // edges that leave the node before
            const int j = node + 1;
            Jobs states;
            states.add(j, 0);
            count = 0;
            for (int i = node; i < p.nodes; ++i) edges[count++] = i * (i + 3) / 2 + j;
            HWNAS_TRY(stages[0].pools(states));
            HWNAS_TRY(convolve_edges(stages[0], p, edges, count));
            if (node < kLanes) HWNAS_TRY(lanes.order(node, 0));
        }
        HWNAS_TRY(stages[0].blend(node));
    }
    for (int lane = p.nodes; lane < kLanes; ++lane) HWNAS_TRY(lanes.order(lane, 0));  // unused, but forked
    return {};
}

template <typename T>
Status backward(const Backward& b, cudaStream_t stream) {
    Plan<T> p = make_plan<T>(b.shape);
    bind_inputs(p, b.in);
    p.y = const_cast<T*>(static_cast<const T*>(b.y));  // only read
    p.dy = static_cast<const T*>(b.dy);
    p.ds[0] = static_cast<T*>(b.ds0);
    p.ds[1] = static_cast<T*>(b.ds1);
    lay_out_saved(p, const_cast<void*>(b.saved));
    lay_out_backward(p, b.scratch);
    Lanes lanes;
    HWNAS_TRY(Lanes::open(stream, lanes));
    std::vector<Stages<T>> stages;
    for (int lane = 0; lane < kLanes; ++lane) stages.emplace_back(p, lanes.stream(lane), lane);
    HWNAS_TRY(lanes.order(0, 1));  // weights beside the first gather
    HWNAS_TRY(stages[1].prepare(true));
    for (int node = p.nodes - 1; node >= 0; --node) {
        HWNAS_TRY(stages[0].gather(node + 2, 1));
        if (node == p.nodes - 1) HWNAS_TRY(lanes.order(1, 0));
        // Only edges from other nodes are on the way to the next node's gradient; those from s0 and s1 go beside.
        const int lane = Plan<T>::lane_of(node);
        if (lane != 0) HWNAS_TRY(lanes.order(0, lane));
        HWNAS_TRY(edges_backward(stages[lane], p, node, 0, 2));
        HWNAS_TRY(edges_backward(stages[0], p, node, 2, node + 2));
    }
    for (int node = std::min(p.nodes, kLanes) - 1; node > 0; --node) HWNAS_TRY(lanes.order(Plan<T>::lane_of(node), 0));
    HWNAS_TRY(stages[0].gather(0, 2));
    return stages[0].weight_gradients(b);
}

template <typename F>
auto dispatch(Type type, F f) {
    switch (type) {
        case Type::kFloat64: return f(double{});
        case Type::kBFloat16: return f(__nv_bfloat16{});
        default: return f(float{});
    }
}

Status check(const Shape& s) {
    if (s.nodes < 1 || s.nodes > kMaxNodes) return {"the mixed cell takes 1 to 8 nodes"};
    if (s.n < 1 || s.c < 1 || s.h < 1 || s.w < 1) return {"the mixed cell needs at least one image, channel and pixel"};
    if (s.n * s.h * s.w > (std::int64_t{1} << 30)) return {"the mixed cell takes at most 2^30 pixels"};
    if (s.n * s.c > (std::int64_t{1} << 30)) return {"the mixed cell takes at most 2^30 planes"};
    if (s.c > 65535) return {"the mixed cell takes at most 65535 channels"};
    return {};
}

}  // namespace
}  // namespace cuda

std::int64_t saved_bytes_cuda(const Shape& shape) {
    return cuda::dispatch(shape.type, [&](auto t) {
        auto p = cuda::make_plan<decltype(t)>(shape);
        return cuda::lay_out_saved(p, nullptr);
    });
}

std::int64_t forward_scratch_bytes_cuda(const Shape& shape) {
    return cuda::dispatch(shape.type, [&](auto t) {
        auto p = cuda::make_plan<decltype(t)>(shape);
        return cuda::lay_out_forward(p, nullptr);
    });
}

std::int64_t backward_scratch_bytes_cuda(const Shape& shape) {
    return cuda::dispatch(shape.type, [&](auto t) {
        auto p = cuda::make_plan<decltype(t)>(shape);
        return cuda::lay_out_backward(p, nullptr);
    });
}

Status forward_cuda(const Forward& p, void* stream) {
    const Status status = cuda::check(p.shape);
    if (!status) return status;
    return cuda::dispatch(p.shape.type, [&](auto t) { return cuda::forward<decltype(t)>(p, static_cast<cudaStream_t>(stream)); });
}

Status backward_cuda(const Backward& p, void* stream) {
    const Status status = cuda::check(p.shape);
    if (!status) return status;
    return cuda::dispatch(p.shape.type, [&](auto t) { return cuda::backward<decltype(t)>(p, static_cast<cudaStream_t>(stream)); });
}

}  // namespace hwnas::mixed_cell
