// The launchers of the tuned kernels, as far as both types have them in common.
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
bool Tuned<T>::covers(const P& p, bool strided) {
    for (const void* pointer : {static_cast<const void*>(p.s[0]), static_cast<const void*>(p.s[1]), static_cast<const void*>(p.y), static_cast<const void*>(p.dw),
                                static_cast<const void*>(p.pw), static_cast<const void*>(p.fr)})
        if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;  // loads are 16 bytes wide
    return with_geometry(p, strided, [](auto) {});
}

// Whether jobs are pairs of a 5 x 5 and a 3 x 3 convolution that read the same state with the same dilation.
inline bool are_pairs(const Jobs& jobs) {
    for (int k = 0; k < jobs.count; k += 2) {
        const int larger = jobs.kind[k];
        if (larger != kSep5First && larger != kDil5) return false;
        if (k + 1 == jobs.count || jobs.edge[k + 1] != jobs.edge[k] || jobs.kind[k + 1] != (larger == kDil5 ? kDil3 : kSep3First)) return false;
    }
    return true;
}

template <typename T>
Status Tuned<T>::convolve(const P& p, const Jobs& jobs, const Jobs& passes, ConvSums what, bool strided, const Sums& pending, Lane& lane, int* tiles) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        *tiles = G::tiles(p.n, p.oh);
        const auto run = [&](auto kernel, int bytes, int blocks) {
            status = launch(kernel, dim3(*tiles, blocks + kPassBlocks * passes.count), kThreads, bytes, lane, p, jobs, passes, what, pending);
        };
        if constexpr (G::S == 2) {
            if (jobs.kind[0] == kFr) {
                run(tile_conv_kernel<G, Convolve::kReduce>, conv_shared_bytes<G, Convolve::kReduce>(), 2 * jobs.count);
                return;
            }
        }
        if constexpr (takes_pairs<G>()) {
            if (are_pairs(jobs)) {
                run(tile_conv_kernel<G, Convolve::kPair>, conv_shared_bytes<G, Convolve::kPair>(), jobs.count / 2);
                return;
            }
        }
        run(tile_conv_kernel<G, Convolve::kOne>, conv_shared_bytes<G, Convolve::kOne>(), jobs.count);
    });
    return status;
}

template <typename G, Results kFrom>
Status launch_pointwise_backward(const Plan<typename G::T>& p, const Jobs& jobs, const Pending<float>& pending, const Jobs& edges, const Pending<float>& passes,
                                 Lane& lane) {
    const dim3 grid(p.pw_groups(), (kFrom == Results::kReduce ? 2 * jobs.count : jobs.count) + (edges.count > 0 ? 1 : 0));
    return launch(tile_pointwise_backward_kernel<G, kFrom>, grid, kThreads, pointwise_backward_shared_bytes<G, kFrom>(), lane, p, jobs, pending, edges, passes);
}

template <typename T>
Status Tuned<T>::pointwise_backward(const P& p, const Jobs& jobs, bool strided, const Sums& pending, const Jobs& edges, const Sums& passes, Lane& lane) {
    Status status;
    with_geometry(p, strided, [&](auto geometry) {
        using G = decltype(geometry);
        if constexpr (G::S == 2) {
            if (jobs.kind[0] == kFr) {
                status = launch_pointwise_backward<G, Results::kReduce>(p, jobs, pending, edges, passes, lane);
                return;
            }
        }
        using K = Geometry<T, G::C, G::OW, 1>;  // kept results have lost their stride
        if (op_of(jobs.kind[0]) >= 0) status = launch_pointwise_backward<K, Results::kKept>(p, jobs, pending, edges, passes, lane);
        else status = launch_pointwise_backward<G, Results::kComputed>(p, jobs, pending, edges, passes, lane);
    });
    return status;
}

}  // namespace hwnas::mixed_cell::cuda
