// Tuned kernels for the shapes of the DARTS search network. Each launcher says through `covers` whether it takes a shape; the
// stages fall back to the general kernels where it does not. Defined in tile_launch.cuh, and what bfloat16 and float32 do in their
// own way in the .cu file of each.
#pragma once

#include "mixed_cell/launch.cuh"
#include "mixed_cell/pending.cuh"

namespace hwnas::mixed_cell::cuda {

// `strided`: whether the jobs' convolutions have stride 2 (all of a launch have, or none). `tiles`: how many per-block sums a
// job and channel wrote. `pending`: of the norm before the jobs' second halves, or in backward of the norm behind the jobs.
template <typename T>
struct Tuned {
    using P = Plan<T>;
    using Sums = Pending<typename P::A>;
    static bool covers(const P& p, bool strided);
    static bool keeps_results(const P& p);           // by the shape alone: what forward does must not hang on an address
    static std::int64_t fragment_bytes(const P& p);  // of Plan::fragments
    static Status prepare(const P& p, bool with_backward, Lane& lane);
    static Status convolve(const P& p, const Jobs& jobs, const Jobs& passes, ConvSums what, bool strided, const Sums& pending, Lane& lane, int* tiles);
    // Adds up, beside its work, the sums of the gradient's passes over `edges`.
    static Status pointwise_backward(const P& p, const Jobs& jobs, bool strided, const Sums& pending, const Jobs& edges, const Sums& passes, Lane& lane);
    // `convs`: jobs (edge, conv) of all convolutions that read a state; `edges`: each edge once.
    static Status depthwise_state_backward(const P& p, const Jobs& convs, const Jobs& edges, bool strided, Lane& lane);
    static Status depthwise_second_backward(const P& p, const Jobs& jobs, Lane& lane, int* tiles);
};

template <>
struct Tuned<double> {  // none
    using P = Plan<double>;
    using Sums = Pending<double>;
    static bool covers(const P&, bool) { return false; }
    static bool keeps_results(const P&) { return false; }
    static std::int64_t fragment_bytes(const P&) { return 0; }
    static Status prepare(const P&, bool, Lane&) { return {}; }
    static Status convolve(const P&, const Jobs&, const Jobs&, ConvSums, bool, const Sums&, Lane&, int*) { return {}; }
    static Status pointwise_backward(const P&, const Jobs&, bool, const Sums&, const Jobs&, const Sums&, Lane&) { return {}; }
    static Status depthwise_state_backward(const P&, const Jobs&, const Jobs&, bool, Lane&) { return {}; }
    static Status depthwise_second_backward(const P&, const Jobs&, Lane&, int*) { return {}; }
};

}  // namespace hwnas::mixed_cell::cuda
