#include "mixed_cell/fp32_depthwise.cuh"
#include "mixed_cell/tile_launch.cuh"

namespace hwnas::mixed_cell::cuda {
namespace {

template <typename G, bool kAll>
Status launch_gradient(const Plan<float>& p, const Jobs& jobs, Lane& lane) {
    using F = Fp32Gradient<G, kAll>;
    const dim3 grid(p.dw_groups(), G::C / (F::kWarpsHere * F::kChannels), jobs.count);
    return launch(fp32_gradient_kernel<G, kAll>, grid, F::kThreadsHere, F::kBytes, lane, p, jobs);
}

}  // namespace

// Where planes are large: float32 has the memory, and with 64 channels computing again takes little.
template <>
bool Tuned<float>::keeps_results(const P& p) { return p.c <= 32 && with_geometry(p, false, [](auto) {}); }

template <>
std::int64_t Tuned<float>::fragment_bytes(const P&) { return 0; }

template <>
Status Tuned<float>::prepare(const P&, bool, Lane&) { return {}; }

template <>
Status Tuned<float>::depthwise_state_backward(const P& p, const Jobs&, const Jobs& edges, bool strided, Lane& lane) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) { status = launch_gradient<decltype(geometry), true>(p, edges, lane); });
    return status;
}

template <>
Status Tuned<float>::depthwise_second_backward(const P& p, const Jobs& jobs, Lane& lane, int* tiles) {
    *tiles = p.dw_groups();
    Status status;
    with_geometry(p, false, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 1) status = launch_gradient<G, false>(p, jobs, lane);
    });
    return status;
}

template struct Tuned<float>;

}  // namespace hwnas::mixed_cell::cuda
