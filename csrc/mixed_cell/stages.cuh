// The stages of a cell, each a launch for all its jobs: the tuned kernels where they cover the shape, else the general ones.
#pragma once

#include "mixed_cell/elementwise.cuh"
#include "mixed_cell/general.cuh"
#include "mixed_cell/launch.cuh"
#include "mixed_cell/layout.cuh"
#include "mixed_cell/vector_blend.cuh"
#include "mixed_cell/vector_gather.cuh"
#include "mixed_cell/vector_sums.cuh"

namespace hwnas::mixed_cell::cuda {

#define HWNAS_TRY(call)                             \
    do {                                            \
        const Status hwnas_status = (call);         \
        if (!hwnas_status) return hwnas_status;     \
    } while (0)

template <typename T>
class Stages {
    using A = typename Plan<T>::A;
    static constexpr bool kVectors = sizeof(T) <= 4;

public:
    Stages(const Plan<T>& plan, Lane& lane, int index) : p_(plan), lane_(lane), vectors_(vectors_cover(plan)) {
        p_.partial += index * partial_count(plan);
    }

    Status prepare(bool with_backward) { return Tuned<T>::prepare(p_, with_backward, lane_); }

    // Backward, before anything else: the pools of all states.
    Status pool_values() {
        if constexpr (kVectors) {
            if (vectors_) return launch(pool_values_kernel<T>, dim3(vector_blocks(), p_.nodes + 1), kThreads, 0, lane_, p_);
        }
        return {};
    }

    // With `passes`: kStatistics, the states whose pools' statistics are wanted; kGradient, the edges whose other norms' sums are.
    // They go into the same launch where the tuned kernel takes both. `pending`: of the norms before second halves.
    Status convolve(const Jobs& jobs, ConvSums what, bool strided, const Jobs& passes = {}, const Pending<A>& pending = {}) {
        if (jobs.count > 0 && Tuned<T>::covers(p_, strided)) {
            const bool together = vectors_ && passes.count > 0;
            int tiles = 0;
            HWNAS_TRY(Tuned<T>::convolve(with_partial(), jobs, together ? passes : Jobs{}, what, strided, pending, lane_, &tiles));
            note_sums(jobs, tiles);
            if (!together) return elementwise_sums(passes, what);
            note_pass_sums(passes, what);
            return {};
        }
        if (jobs.count > 0) {
            const int tiles = static_cast<int>(divide_up(p_.pixels(), kTile));
            const std::int64_t bytes = 2 * std::int64_t{p_.c} * kTile * sizeof(A);
            HWNAS_TRY(launch(conv_kernel<T>, dim3(tiles, jobs.count), kThreads, bytes, lane_, with_partial(), jobs, what));
            note_sums(jobs, tiles);
        }
        return elementwise_sums(passes, what);
    }

    // Whether the launches of an edge add up the sums of the one before themselves, where they need them.
    bool settles(bool strided) const { return Tuned<T>::covers(p_, false) && (!strided || Tuned<T>::covers(p_, strided)); }
    // The sums that wait, in the order of the launches that left them.
    Pending<A> pending(int part) const { return {p_.partial + sums_.part[part].offset, sums_.part[part].tiles}; }
    int waiting() const { return sums_.count; }
    void settled(int part, int jobs) { sums_.part[part].settled = jobs; }
    void all_settled() {
        sums_ = {};
        partial_used_ = 0;
    }

    // Adds up all per-block sums that wait.
    template <bool kBackward>
    Status finish_sums() {
        int jobs = 0;
        for (int k = 0; k < sums_.count; ++k) jobs += sums_.part[k].jobs.count - sums_.part[k].settled;
        const dim3 grid(static_cast<unsigned>(divide_up(p_.c, kWarps)), jobs);
        HWNAS_TRY(launch(finish_sums_kernel<T, kBackward>, grid, kThreads, 0, lane_, p_, sums_));
        all_settled();
        return {};
    }

    // Whether the edges into a node may be blended in parts, each added to those before.
    bool blends_parts() const { return kVectors && vectors_ && p_.plane() >= 64; }
    Status blend(int node, int from, int to) {
        if constexpr (kVectors) {
            if (blends_parts()) return launch(blend_vector_kernel<T>, vector_blocks(), kThreads, 0, lane_, p_, node, from, to);
        }
        return launch(blend_kernel<T>, stream_blocks(), kThreads, 0, lane_, p_, node);
    }

    Status gather(int first, int count) {
        if constexpr (kVectors) {
            if (vectors_ && (first >= 2 || !p_.reduction) && kThreads * kVec % p_.plane() == 0 && p_.plane() >= 64) {
                return launch(gather_vector_kernel<T>, dim3(vector_blocks(), count), kThreads, 0, lane_, p_, first);
            }
            if (vectors_ && first < 2 && p_.reduction && kThreads * kVec / 4 % p_.plane() == 0 && p_.plane() >= 16) {
                const auto blocks = static_cast<unsigned>(divide_up(p_.size(), kThreads * kVec / 4));
                return launch(gather_strided_vector_kernel<T>, dim3(blocks, count), kThreads, 0, lane_, p_);
            }
        }
        const std::int64_t bytes = p_.plane() * sizeof(Window<T>);  // of one plane
        if (p_.plane() <= 256) return gather<64, true>(first, count, bytes * (kThreads / 64));
        if (bytes <= 40 * 1024) return gather<kThreads, true>(first, count, bytes);
        return gather<kThreads, false>(first, count, 0);
    }

    // `pending`: of the norms behind the jobs; `edges`, `passes`: edges with sums of their gradient's passes. Where settles().
    Status pointwise_backward(const Jobs& jobs, bool strided, const Pending<A>& pending = {}, const Jobs& edges = {}, const Pending<A>& passes = {}) {
        if (jobs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) return Tuned<T>::pointwise_backward(p_, jobs, strided, pending, edges, passes, lane_);
        const std::int64_t bytes = 3 * std::int64_t{p_.c} * kTile * sizeof(A);
        return launch(pointwise_backward_kernel<T>, dim3(p_.pw_groups(), jobs.count), kThreads, bytes, lane_, p_, jobs);
    }

    // `convs`: every convolution that reads a state; `edges`: each edge once. Edges of one stride.
    Status depthwise_state_backward(const Jobs& convs, const Jobs& edges, bool strided) {
        if (convs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) return Tuned<T>::depthwise_state_backward(p_, convs, edges, strided, lane_);
        HWNAS_TRY(depthwise_weights(convs));
        const std::int64_t pixels = strided ? std::int64_t{p_.n} * p_.h * p_.w : p_.pixels();
        return launch(depthwise_backward_kernel<T>, dim3(static_cast<unsigned>(divide_up(pixels, kTile)), edges.count), kThreads, 0, lane_, p_, edges);
    }

    Status depthwise_second_backward(const Jobs& convs) {
        int tiles = static_cast<int>(divide_up(p_.pixels(), kTile));
        if (Tuned<T>::covers(p_, false)) {
            HWNAS_TRY(Tuned<T>::depthwise_second_backward(with_partial(), convs, lane_, &tiles));
        } else {
            HWNAS_TRY(depthwise_weights(convs));
            HWNAS_TRY(launch(depthwise_backward_kernel<T>, dim3(tiles, convs.count), kThreads, 0, lane_, with_partial(), convs));
        }
        Jobs slots;  // the sums belong to the norm before the second half
        for (int k = 0; k < convs.count; ++k) slots.add(convs.edge[k], convs.kind[k] - 1);
        note_sums(slots, tiles);
        return {};
    }

    Status weight_gradients(const Backward& b) {
        const std::int64_t cc = std::int64_t{p_.c} * p_.c, per_edge = std::int64_t{kDwPerChannel} * p_.c;
        const int pw = p_.pw_groups();
        HWNAS_TRY(finish_groups(p_.dpw_partial, b.dpw, p_.edges * kConvs, cc, pw, pw * cc, cc));
        if (p_.reduction) HWNAS_TRY(finish_groups(p_.dpw_partial + p_.edges * kConvs * pw * cc, b.dfr, 2 * p_.nodes, cc, pw, pw * cc, cc));
        HWNAS_TRY(finish_groups(p_.ddw_partial, b.ddw, 1, p_.edges * per_edge, p_.dw_groups(), 0, p_.edges * per_edge));
        return launch(gate_gradient_kernel<T>, p_.edges, 32 * kOps, 0, lane_, p_, static_cast<A*>(b.dgates));
    }

private:
    Status elementwise_sums(const Jobs& passes, ConvSums what) {
        if (passes.count == 0) return {};
        const bool pools = what == ConvSums::kStatistics;
        const dim3 grid(vectors_ ? vector_blocks() : stream_blocks(), passes.count);
        if constexpr (kVectors) {
            if (vectors_) HWNAS_TRY(launch(pools ? pool_vector_kernel<T> : gradient_sums_vector_kernel<T>, grid, kThreads, 0, lane_, with_partial(), passes));
        }
        if (!vectors_) HWNAS_TRY(launch(pools ? pool_kernel<T> : gradient_sums_kernel<T>, grid, kThreads, 0, lane_, with_partial(), passes));
        note_pass_sums(passes, what);
        return {};
    }
    void note_pass_sums(const Jobs& passes, ConvSums what) {
        Jobs slots;
        for (int k = 0; k < passes.count; ++k) {
            if (what == ConvSums::kStatistics) {
                for (int norm : {kMax, kAvg}) slots.add(passes.edge[k], norm);
            } else {
                for (int slot = 0; slot < 3; ++slot) slots.add(passes.edge[k], pass_norm(slot));
            }
        }
        note_sums(slots, vectors_ ? p_.n * vector_tiles(p_) : p_.n * p_.segments());
    }

    int vector_blocks() const { return static_cast<int>(divide_up(p_.size() / kVec, kThreads)); }
    int stream_blocks() const { return static_cast<int>(divide_up(std::int64_t{p_.n} * p_.c * p_.segments(), kWarps)); }

    template <int kTeam, bool kShared>
    Status gather(int first, int count, std::int64_t bytes) {
        const auto blocks = static_cast<unsigned>(divide_up(std::int64_t{p_.n} * p_.c, kThreads / kTeam));
        return launch(gather_kernel<T, kTeam, kShared>, dim3(blocks, count), kThreads, bytes, lane_, p_, first);
    }

    Status finish_groups(const A* partial, void* out, std::int64_t slots, std::int64_t slot_size, int groups, std::int64_t slot_stride,
                         std::int64_t group_stride) {
        const auto blocks = static_cast<unsigned>(divide_up(slots * slot_size, kThreads));
        return launch(finish_groups_kernel<A>, blocks, kThreads, 0, lane_, partial, static_cast<A*>(out), slots, slot_size, groups, slot_stride, group_stride);
    }

    Status depthwise_weights(const Jobs& convs) {
        return launch(depthwise_weight_kernel<T>, dim3(p_.dw_groups(), convs.count, p_.c), kThreads, 0, lane_, p_, convs);
    }

    // The next launch's per-block sums go behind those that wait already.
    Plan<T> with_partial() const {
        Plan<T> p = p_;
        p.partial += partial_used_;
        return p;
    }
    void note_sums(const Jobs& jobs, int tiles) {
        sums_.part[sums_.count++] = {jobs, tiles, partial_used_, 0};
        partial_used_ += std::int64_t{jobs.count} * p_.c * tiles;
    }

    Plan<T> p_;
    Lane& lane_;
    bool vectors_;  // the elementwise passes take 8 pixels a thread
    Reductions sums_;
    std::int64_t partial_used_ = 0;
};

}  // namespace hwnas::mixed_cell::cuda
