// What the launchers of both types have in common.
#pragma once

#include "mixed_cell/tile_conv.cuh"
#include "mixed_cell/tuned.h"

namespace hwnas::mixed_cell::cuda {

// Calls f with the geometry that covers the launch; false if there is none.
template <typename T, typename F>
bool with_geometry(const Plan<T>& p, bool strided, F f) {
    const auto attempt = [&](auto geometry) {
        if (!decltype(geometry)::covers(p, strided)) return false;
        f(geometry);
        return true;
    };
    return attempt(Geometry<T, 16, 32, 1>{}) || attempt(Geometry<T, 32, 16, 1>{}) || attempt(Geometry<T, 64, 8, 1>{}) ||
           attempt(Geometry<T, 32, 16, 2>{}) || attempt(Geometry<T, 64, 8, 2>{});
}

template <typename T>
bool tiles_cover(const Plan<T>& p, bool strided) {
    for (const void* pointer : {static_cast<const void*>(p.s[0]), static_cast<const void*>(p.s[1]), static_cast<const void*>(p.y)})
        if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;  // loads are 16 bytes wide
    return with_geometry(p, strided, [](auto) {});
}

template <typename Kernel, typename... Arguments>
Status launch(Kernel kernel, dim3 grid, int threads, int bytes, cudaStream_t stream, const Arguments&... arguments) {
    if (bytes > 48 * 1024) HWNAS_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, threads, bytes, stream>>>(arguments...);
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

template <typename T>
Status launch_convolve(const Plan<T>& p, const Jobs& jobs, ConvSums what, bool strided, cudaStream_t stream, int* tiles) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        *tiles = G::tiles(p.n, p.oh);
        constexpr int kBytes = conv_shared_bytes<G>();
        if constexpr (G::S == 2) {
            if (jobs.kind[0] == kFr) {
                status = launch(tile_conv_kernel<G, true>, dim3(*tiles, 2 * jobs.count), kThreads, kBytes, stream, p, jobs, what);
                return;
            }
        }
        status = launch(tile_conv_kernel<G, false>, dim3(*tiles, jobs.count), kThreads, kBytes, stream, p, jobs, what);
    });
    return status;
}

template <typename T>
Status launch_pointwise_backward(const Plan<T>& p, const Jobs& jobs, bool strided, cudaStream_t stream) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        constexpr int kBytes = pointwise_backward_shared_bytes<G>();
        if constexpr (G::S == 2) {
            if (jobs.kind[0] == kFr) {
                status = launch(tile_pointwise_backward_kernel<G, true>, dim3(p.pw_groups(), 2 * jobs.count), kThreads, kBytes, stream, p, jobs);
                return;
            }
        }
        status = launch(tile_pointwise_backward_kernel<G, false>, dim3(p.pw_groups(), jobs.count), kThreads, kBytes, stream, p, jobs);
    });
    return status;
}

}  // namespace hwnas::mixed_cell::cuda
