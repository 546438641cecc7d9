// The mixed cell on CUDA: launches the stages in order of readiness. Edges that leave one state are ready together forward,
// edges that enter one node are ready together backward.
#include <atomic>
#include <vector>

#include "mixed_cell/lanes.cuh"
#include "mixed_cell/stages.cuh"

namespace hwnas::mixed_cell {
namespace cuda {
namespace {

// Both halves of all convolutions of some edges, all of one stride, with their statistics and those of the pools of some states.
template <typename T>
Status convolve_edges(Stages<T>& stages, const Plan<T>& p, const int* edges, int count, const Jobs& states) {
    Jobs first, reduces, second;
    const bool strided = p.strided(edges[0]);
    for (int k = 0; k < count; ++k) {
        for (int conv : {kSep5First, kSep3First}) first.add(edges[k], conv);
        for (int conv : {kSep5Second, kSep3Second}) second.add(edges[k], conv);
        if (strided) reduces.add(edges[k], kFr);
    }
    for (int k = 0; k < count; ++k)
        for (int conv : {kDil5, kDil3}) first.add(edges[k], conv);
    HWNAS_TRY(stages.convolve(first, ConvSums::kStatistics, strided, states));
    HWNAS_TRY(stages.convolve(reduces, ConvSums::kStatistics, true));
    Pending<typename Plan<T>::A> halves;  // the second halves' launch adds up the first ones' statistics itself
    if (stages.settles(false)) {
        halves = stages.pending(0);
        stages.settled(0, second.count);
    } else {
        HWNAS_TRY(stages.template finish_sums<false>());
    }
    HWNAS_TRY(stages.convolve(second, ConvSums::kStatistics, false, {}, halves));
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
    Jobs ready = second;  // what is ready together goes into one launch, unless strides differ
    for (int k = 0; !strided && k < dilated.count; ++k) ready.add(dilated.edge[k], dilated.kind[k]);
    HWNAS_TRY(stages.convolve(ready, ConvSums::kGradient, false, edges));
    if (strided) HWNAS_TRY(stages.convolve(dilated, ConvSums::kGradient, true));
    const bool settles = stages.settles(strided);  // each launch adds up itself the sums that it needs
    Pending<typename Plan<T>::A> of_ready, of_passes, of_reduces, of_dilated, of_halves;
    if (settles) {
        of_ready = stages.pending(0), of_passes = of_reduces = stages.pending(1);
        of_reduces.partial += 2 * std::int64_t{p.c} * of_reduces.tiles;  // the last of an edge's three
        of_reduces.stride = 3;
        if (strided) of_dilated = stages.pending(2);
    } else {
        HWNAS_TRY(stages.template finish_sums<true>());
    }
    HWNAS_TRY(stages.pointwise_backward(ready, false, of_ready, settles ? edges : Jobs{}, of_passes));
    if (strided) {
        HWNAS_TRY(stages.pointwise_backward(reduces, true, of_reduces));
        HWNAS_TRY(stages.pointwise_backward(dilated, true, of_dilated));
    }
    HWNAS_TRY(stages.depthwise_second_backward(second));
    if (settles) of_halves = stages.pending(stages.waiting() - 1);
    else HWNAS_TRY(stages.template finish_sums<true>());
    HWNAS_TRY(stages.pointwise_backward(separable, strided, of_halves));
    stages.all_settled();
    return stages.depthwise_state_backward(convs, edges, strided);
}

template <typename T>
Status forward(const Plan<T>& p, Lanes& lanes) {
    std::vector<Stages<T>> stages;
    for (int lane = 0; lane < kLanes; ++lane) stages.emplace_back(p, lanes[lane], lane);
    HWNAS_TRY(stages[0].prepare(false));
    const int used = std::min(p.nodes, kLanes);
    for (int lane = 1; lane < used; ++lane) HWNAS_TRY(lanes.order(0, lane));
    // s0 and s1 are ready: their edges into node 0 here, those into the others beside, where they are blended as well.
    const bool parts = stages[0].blends_parts();
    Jobs inputs;
    for (int j = 0; j < 2; ++j) inputs.add(j, 0);
    int edges[kMaxEdges], count = 0;
    for (int lane = 0; lane < used; ++lane) {
        count = 0;
        for (int i = lane; i < (lane == kLanes - 1 ? p.nodes : lane + 1); ++i)
            for (int j = 0; j < 2; ++j) edges[count++] = i * (i + 3) / 2 + j;
        HWNAS_TRY(convolve_edges(stages[lane], p, edges, count, lane == 0 ? inputs : Jobs{}));
        if (lane == 0 || !parts) continue;
        HWNAS_TRY(lanes.order(0, lane));  // the pools' statistics
        for (int i = lane; i < (lane == kLanes - 1 ? p.nodes : lane + 1); ++i) HWNAS_TRY(stages[lane].blend(i, 0, 2));
    }
    for (int node = 0; node < p.nodes; ++node) {
        if (node > 0) {  // edges that leave the node before
            const int j = node + 1;
            Jobs states;
            states.add(j, 0);
            count = 0;
            for (int i = node; i < p.nodes; ++i) edges[count++] = i * (i + 3) / 2 + j;
            HWNAS_TRY(convolve_edges(stages[0], p, edges, count, states));
            if (node < used) HWNAS_TRY(lanes.order(node, 0));
        }
        HWNAS_TRY(stages[0].blend(node, parts && node > 0 ? 2 : 0, node + 2));
    }
    return {};
}

template <typename T>
Status backward(const Plan<T>& p, const Backward& b, Lanes& lanes) {
    std::vector<Stages<T>> stages;
    for (int lane = 0; lane < kLanes; ++lane) stages.emplace_back(p, lanes[lane], lane);
    HWNAS_TRY(lanes.order(0, 1));  // weights and pools beside the first gather
    HWNAS_TRY(stages[1].prepare(true));
    HWNAS_TRY(stages[1].pool_values());
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
    HWNAS_TRY(lanes.order(0, 1));  // the shares of the weights' gradients beside the last gather
    HWNAS_TRY(stages[1].weight_gradients(b));
    HWNAS_TRY(stages[0].gather(0, 2));
    return lanes.order(1, 0);
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
    return lanes.close(forward(p, lanes));
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
    return lanes.close(backward(p, b, lanes));
}

}  // namespace

Status can_chain(bool& can) {
    constexpr int kDevices = 64;
    static std::atomic<signed char> known[kDevices];  // 0: not asked yet
    int device = 0;
    HWNAS_CUDA_TRY(cudaGetDevice(&device));
    if (device >= kDevices) return {"the mixed cell knows 64 devices"};
    if (known[device] == 0) {
        int major = 0;
        HWNAS_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
        cudaFuncAttributes compiled{};
        HWNAS_CUDA_TRY(cudaFuncGetAttributes(&compiled, finish_sums_kernel<float, false>));
        known[device] = major >= 9 && compiled.ptxVersion >= 90 ? 1 : -1;
    }
    can = known[device] > 0;
    return {};
}

namespace {

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
    int device = 0, limit = 0;  // what backward needs, so that forward refuses what backward could not do
    HWNAS_CUDA_TRY(cudaGetDevice(&device));
    HWNAS_CUDA_TRY(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (3 * s.c * kTile * (s.type == Type::kFloat64 ? 8 : 4) > limit)
        return {"the mixed cell needs more shared memory for this many channels than the device has"};
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
