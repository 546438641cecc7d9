#include "mixed_cell/bf16_depthwise.cuh"
#include "mixed_cell/tile_launch.cuh"

namespace hwnas::mixed_cell::cuda {
namespace {

template <typename G, Depthwise kWhat>
Status launch_depthwise(const Plan<bf16>& p, const Jobs& jobs, Lane& lane) {
    using D = DepthwiseBackward<G, kWhat>;
    return launch(depthwise_backward_mma_kernel<G, kWhat>, dim3(p.dw_groups(), G::C / D::kWarpsHere, jobs.count), D::kThreadsHere, D::kBytes, lane, p, jobs);
}

}  // namespace

template <>
bool Tuned<bf16>::keeps_results(const P&) { return false; }

template <>
std::int64_t Tuned<bf16>::fragment_bytes(const P& p) {
    return with_geometry(p, false, [](auto) {}) ? Bf16Weights(p).words * 4 : 0;
}

template <>
Status Tuned<bf16>::prepare(const P& p, bool with_backward, Lane& lane) {
    if (!covers(p, false)) return {};
    const int blocks = p.c / 16 * (p.c / 16), items = p.c > blocks ? p.c : blocks;
    const dim3 grid((items + kWarps - 1) / kWarps, kTaps + kConvs + (p.reduction ? 1 : 0), p.edges);
    return launch(bf16_weights_kernel, grid, kThreads, 0, lane, p, with_backward);
}

template <>
Status Tuned<bf16>::depthwise_state_backward(const P& p, const Jobs& convs, const Jobs& edges, bool strided, Lane& lane) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 1) {
            status = launch_depthwise<G, Depthwise::kState>(p, edges, lane);
        } else {  // both at once would take more registers than there are
            status = launch_depthwise<G, Depthwise::kStateInput>(p, edges, lane);
            if (status) status = launch_depthwise<G, Depthwise::kOneWeight>(p, convs, lane);
        }
    });
    return status;
}

template <>
Status Tuned<bf16>::depthwise_second_backward(const P& p, const Jobs& jobs, Lane& lane, int* tiles) {
    *tiles = p.dw_groups();
    Status status;
    with_geometry(p, false, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 1) status = launch_depthwise<G, Depthwise::kSecond>(p, jobs, lane);
    });
    return status;
}

template struct Tuned<bf16>;

}  // namespace hwnas::mixed_cell::cuda
