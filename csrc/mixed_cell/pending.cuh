// Sums that a launch has left by block, and that the next one adds up itself, where it needs them: a launch in between costs more.
#pragma once

#include "mixed_cell/plan.cuh"

namespace hwnas::mixed_cell::cuda {

// Per-block sums of jobs, [job, c, tiles], `stride` slots from one job to the next; null: added up already, into stats or sums.
template <typename A>
struct Pending {
    const Pair<A>* partial = nullptr;
    int tiles = 0, stride = 1;
};

// By a whole block: a job's sums, f(channel, both) once a channel, in a fixed order and in double.
template <int C, typename F>
__device__ __forceinline__ void each_pending(const Pending<float>& pending, int job, F f) {
    constexpr int kShare = kThreads / C;  // threads of a channel
    static_assert(kShare <= 32 && 32 % kShare == 0);
    const int c = threadIdx.x / kShare, part = threadIdx.x % kShare;
    const Pair<float>* own = pending.partial + (std::int64_t{job} * pending.stride * C + c) * pending.tiles;
    double a = 0, b = 0;
#pragma unroll 8
    for (int t = part; t < pending.tiles; t += kShare) {
        const Pair<float> v = own[t];
        a += v.a;
        b += v.b;
    }
#pragma unroll
    for (int offset = kShare / 2; offset > 0; offset /= 2) {
        a += __shfl_xor_sync(0xffffffffu, a, offset);
        b += __shfl_xor_sync(0xffffffffu, b, offset);
    }
    if (part == 0) f(c, a, b);
}

// Mean and 1 / std of a channel from its sums. Double where digits cancel; its square root would cost more than all the rest.
__device__ __forceinline__ Pair<float> statistics(double per_pixel, double sum, double squares) {
    const double mean = sum * per_pixel, var = squares * per_pixel - mean * mean;
    return {static_cast<float>(mean), 1.f / sqrtf(static_cast<float>(var > 0 ? var : 0) + 1e-5f)};
}

}  // namespace hwnas::mixed_cell::cuda
