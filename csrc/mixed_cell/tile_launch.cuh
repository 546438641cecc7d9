// What the launchers of both types have in common.
#pragma once

#include "mixed_cell/launch.cuh"
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
    for (const void* pointer : {static_cast<const void*>(p.s[0]), static_cast<const void*>(p.s[1]), static_cast<const void*>(p.y), static_cast<const void*>(p.dw),
                                static_cast<const void*>(p.pw), static_cast<const void*>(p.fr)})
        if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;  // loads are 16 bytes wide
    return with_geometry(p, strided, [](auto) {});
}

template <typename T>
Status launch_convolve(const Plan<T>& p, const Jobs& jobs, const Jobs& passes, ConvSums what, bool strided, Lane& lane, int* tiles) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        *tiles = G::tiles(p.n, p.oh);
        constexpr int kBytes = conv_shared_bytes<G>();
        if constexpr (G::S == 2) {
            if (jobs.kind[0] == kFr) {
                status = launch(tile_conv_kernel<G, true>, dim3(*tiles, 2 * jobs.count + kPassBlocks * passes.count), kThreads, kBytes, lane, p, jobs, passes, what);
                return;
            }
        }
        status = launch(tile_conv_kernel<G, false>, dim3(*tiles, jobs.count + kPassBlocks * passes.count), kThreads, kBytes, lane, p, jobs, passes, what);
    });
    return status;
}

template <typename T>
Status launch_pointwise_backward(const Plan<T>& p, const Jobs& jobs, bool strided, Lane& lane) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        const auto run = [&](auto kernel, int bytes, int halves) {
            status = launch(kernel, dim3(p.pw_groups(), halves * jobs.count), kThreads, bytes, lane, p, jobs);
        };
        if constexpr (G::S == 2) {
            if (jobs.kind[0] == kFr) {
                run(tile_pointwise_backward_kernel<G, Results::kReduce>, pointwise_backward_shared_bytes<G, Results::kReduce>(), 2);
                return;
            }
        }
        using K = Geometry<T, G::C, G::OW, 1>;  // kept results have lost their stride
        if (op_of(jobs.kind[0]) >= 0) run(tile_pointwise_backward_kernel<K, Results::kKept>, pointwise_backward_shared_bytes<K, Results::kKept>(), 1);
        else run(tile_pointwise_backward_kernel<G, Results::kComputed>, pointwise_backward_shared_bytes<G, Results::kComputed>(), 1);
    });
    return status;
}

}  // namespace hwnas::mixed_cell::cuda
