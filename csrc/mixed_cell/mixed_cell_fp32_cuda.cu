#include "mixed_cell/fp32_depthwise.cuh"
#include "mixed_cell/tile_launch.cuh"

namespace hwnas::mixed_cell::cuda {
namespace {

template <typename G, typename Kernel>
Status launch_depthwise(Kernel kernel, const Plan<float>& p, const Jobs& jobs, Lane& lane) {
    using F = Fp32Depthwise<G>;
    return launch(kernel, dim3(p.dw_groups(), G::C / F::kWarpsHere, jobs.count), F::kThreadsHere, F::kBytes, lane, p, jobs);
}

}  // namespace

bool Tuned<float>::covers(const P& p, bool strided) { return tiles_cover(p, strided); }

std::int64_t Tuned<float>::fragment_bytes(const P& p) {
    return with_geometry(p, false, [](auto) {}) ? Fp32Weights(p).words * 4 : 0;
}

Status Tuned<float>::prepare(const P& p, bool with_backward, Lane& lane) {
    if (!covers(p, false)) return {};
    const int blocks = p.c / 16 * (p.c / 8);
    return launch(fp32_weights_kernel, dim3((blocks + kWarps - 1) / kWarps, kConvs + (p.reduction ? 1 : 0), p.edges), kThreads, 0, lane, p, with_backward);
}

Status Tuned<float>::convolve(const P& p, const Jobs& jobs, const Jobs& passes, ConvSums what, bool strided, Lane& lane, int* tiles) {
    return launch_convolve(p, jobs, passes, what, strided, lane, tiles);
}

Status Tuned<float>::pointwise_backward(const P& p, const Jobs& jobs, bool strided, Lane& lane) {
    return launch_pointwise_backward(p, jobs, strided, lane);
}

Status Tuned<float>::depthwise_state_backward(const P& p, const Jobs& convs, const Jobs& edges, bool strided, Lane& lane) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        status = launch_depthwise<G>(fp32_state_input_kernel<G>, p, edges, lane);
        if (status) status = launch_depthwise<G>(fp32_weight_kernel<G, false>, p, convs, lane);
    });
    return status;
}

Status Tuned<float>::depthwise_second_backward(const P& p, const Jobs& jobs, Lane& lane, int* tiles) {
    *tiles = p.dw_groups();
    Status status;
    with_geometry(p, false, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 1) status = launch_depthwise<G>(fp32_weight_kernel<G, true>, p, jobs, lane);
    });
    return status;
}

}  // namespace hwnas::mixed_cell::cuda
