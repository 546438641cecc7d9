#include "mixed_cell/tensor_core_depthwise.cuh"
#include "mixed_cell/tuned.h"

namespace hwnas::mixed_cell::cuda {
namespace {

// Calls f with the geometry that covers the launch; false if there is none.
template <typename F>
bool with_geometry(const Plan<bf16>& p, bool strided, F f) {
    const auto attempt = [&](auto geometry) {
        if (!decltype(geometry)::covers(p, strided)) return false;
        f(geometry);
        return true;
    };
    return attempt(Geometry<16, 32, 1>{}) || attempt(Geometry<32, 16, 1>{}) || attempt(Geometry<64, 8, 1>{}) || attempt(Geometry<32, 16, 2>{}) ||
           attempt(Geometry<64, 8, 2>{});
}

template <typename Kernel>
Status launch(Kernel kernel, dim3 grid, int threads, int bytes, cudaStream_t stream, const Plan<bf16>& p, const Jobs& jobs) {
    if (bytes > 48 * 1024) HWNAS_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, threads, bytes, stream>>>(p, jobs);
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

template <typename G, Depthwise kWhat>
Status launch_depthwise(const Plan<bf16>& p, const Jobs& jobs, cudaStream_t stream) {
    using D = DepthwiseBackward<G, kWhat>;
    return launch(depthwise_backward_mma_kernel<G, kWhat>, dim3(p.dw_groups(), G::C / D::kWarpsHere, jobs.count), D::kThreadsHere, D::kBytes, stream, p, jobs);
}

}  // namespace

bool Tuned<bf16>::covers(const P& p, bool strided) {
    for (const void* pointer : {static_cast<const void*>(p.s[0]), static_cast<const void*>(p.s[1]), static_cast<const void*>(p.y)})
        if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;  // loads are 16 bytes wide
    return with_geometry(p, strided, [](auto) {});
}

std::int64_t Tuned<bf16>::fragment_bytes(const P& p, bool with_backward) {
    return p.c % 16 == 0 ? Fragments(nullptr, p.edges, p.c, with_backward).words * 4 : 0;
}

Status Tuned<bf16>::prepare(const P& p, bool with_backward, cudaStream_t stream) {
    if (!covers(p, false)) return {};
    fragments_kernel<<<264, kThreads, 0, stream>>>(p, with_backward);
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

Status Tuned<bf16>::convolve(const P& p, const Jobs& jobs, ConvSums what, bool strided, cudaStream_t stream, int* tiles) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        *tiles = G::tiles(p.n, p.oh);
        const auto kernel = conv_mma_kernel<G>;
        constexpr int kBytes = conv_shared_bytes<G>();
        status = [&]() -> Status {
            HWNAS_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
            kernel<<<dim3(*tiles, jobs.count), kThreads, kBytes, stream>>>(p, jobs, what);
            HWNAS_CUDA_TRY(cudaGetLastError());
            return {};
        }();
    });
    return status;
}

Status Tuned<bf16>::pointwise_backward(const P& p, const Jobs& jobs, bool strided, cudaStream_t stream) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        status = launch(pointwise_backward_mma_kernel<G>, dim3(p.pw_groups(), jobs.count), kThreads, pointwise_backward_shared_bytes<G>(), stream, p, jobs);
    });
    return status;
}

Status Tuned<bf16>::depthwise_state_backward(const P& p, const Jobs& convs, const Jobs& edges, bool strided, cudaStream_t stream) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 1) {
            status = launch_depthwise<G, Depthwise::kState>(p, edges, stream);
        } else {  // both at once would take more registers than there are
            status = launch_depthwise<G, Depthwise::kStateInput>(p, edges, stream);
            if (status) status = launch_depthwise<G, Depthwise::kOneWeight>(p, convs, stream);
        }
    });
    return status;
}

Status Tuned<bf16>::depthwise_second_backward(const P& p, const Jobs& jobs, cudaStream_t stream, int* tiles) {
    *tiles = p.dw_groups();
    Status status;
    with_geometry(p, false, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 1) status = launch_depthwise<G, Depthwise::kSecond>(p, jobs, stream);
    });
    return status;
}

}  // namespace hwnas::mixed_cell::cuda
