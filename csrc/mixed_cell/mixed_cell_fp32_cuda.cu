#include "mixed_cell/fp32_depthwise.cuh"
#include "mixed_cell/tile_launch.cuh"

namespace hwnas::mixed_cell::cuda {
namespace {

template <typename G, typename Kernel>
Status launch_depthwise(Kernel kernel, const Plan<float>& p, const Jobs& jobs, cudaStream_t stream) {
    using F = Fp32Depthwise<G>;
    return launch(kernel, dim3(p.dw_groups(), G::C / F::kWarpsHere, jobs.count), F::kThreadsHere, F::kBytes, stream, p, jobs);
}

}  // namespace

bool Tuned<float>::covers(const P& p, bool strided) { return tiles_cover(p, strided); }

std::int64_t Tuned<float>::fragment_bytes(const P& p) {
    return with_geometry(p, false, [](auto) {}) ? Fp32Weights(p).words * 4 : 0;
}

Status Tuned<float>::prepare(const P& p, bool with_backward, cudaStream_t stream) {
    if (!covers(p, false)) return {};
    const int blocks = p.c / 16 * (p.c / 8);
    return launch(fp32_weights_kernel, dim3((blocks + kWarps - 1) / kWarps, kConvs + (p.reduction ? 1 : 0), p.edges), kThreads, 0, stream, p, with_backward);
}

Status Tuned<float>::convolve(const P& p, const Jobs& jobs, ConvSums what, bool strided, cudaStream_t stream, int* tiles) {
    return launch_convolve(p, jobs, what, strided, stream, tiles);
}

Status Tuned<float>::pointwise_backward(const P& p, const Jobs& jobs, bool strided, cudaStream_t stream) {
    return launch_pointwise_backward(p, jobs, strided, stream);
}

Status Tuned<float>::depthwise_state_backward(const P& p, const Jobs& convs, const Jobs& edges, bool strided, cudaStream_t stream) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        status = launch_depthwise<G>(fp32_state_input_kernel<G>, p, edges, stream);
        if (status) status = launch_depthwise<G>(fp32_weight_kernel<G, false>, p, convs, stream);
    });
    return status;
}

Status Tuned<float>::depthwise_second_backward(const P& p, const Jobs& jobs, cudaStream_t stream, int* tiles) {
    *tiles = p.dw_groups();
    Status status;
    with_geometry(p, false, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 1) status = launch_depthwise<G>(fp32_weight_kernel<G, true>, p, jobs, stream);
    });
    return status;
}

}  // namespace hwnas::mixed_cell::cuda
