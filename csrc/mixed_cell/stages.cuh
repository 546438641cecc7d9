// The stages of a cell, each a launch for all its jobs: the tuned kernels where they cover the shape, else the general ones.
#pragma once

#include "mixed_cell/general.cuh"
#include "mixed_cell/layout.cuh"

namespace hwnas::mixed_cell::cuda {

#define HWNAS_TRY(call)                             \
    do {                                            \
        const Status hwnas_status = (call);         \
        if (!hwnas_status) return hwnas_status;     \
    } while (0)

template <typename Kernel>
Status allow_shared(Kernel kernel, std::int64_t bytes) {
    if (bytes <= 48 * 1024) return {};
    int device = 0, limit = 0;
    HWNAS_CUDA_TRY(cudaGetDevice(&device));
    HWNAS_CUDA_TRY(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (bytes > limit) return {"the mixed cell needs more shared memory for this many channels than the device has"};
    HWNAS_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    return {};
}

template <typename T>
class Stages {
    using A = typename Plan<T>::A;
    static constexpr bool kVectors = sizeof(T) <= 4;

public:
    Stages(const Plan<T>& plan, cudaStream_t stream, int lane) : p_(plan), stream_(stream), vectors_(vectors_cover(plan)) {
        p_.partial += lane * partial_count(plan);
    }

    Status prepare(bool with_backward) { return Tuned<T>::prepare(p_, with_backward, stream_); }

    Status convolve(const Jobs& jobs, ConvSums what, bool strided) {
        if (jobs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) {
            int tiles = 0;
            HWNAS_TRY(Tuned<T>::convolve(with_partial(), jobs, what, strided, stream_, &tiles));
            return note_sums(jobs, tiles);
        }
        const int tiles = static_cast<int>(divide_up(p_.pixels(), kTile));
        const std::int64_t bytes = 2 * std::int64_t{p_.c} * kTile * sizeof(A);
        HWNAS_TRY(allow_shared(conv_kernel<T>, bytes));
        conv_kernel<T><<<dim3(tiles, jobs.count), kThreads, bytes, stream_>>>(with_partial(), jobs, what);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return note_sums(jobs, tiles);
    }

    Status pools(const Jobs& states) {
        if constexpr (kVectors) {
            if (vectors_) pool_vector_kernel<T><<<dim3(vector_blocks(), states.count), kThreads, 0, stream_>>>(with_partial(), states);
        }
        if (!vectors_) pool_kernel<T><<<dim3(stream_blocks(), states.count), kThreads, 0, stream_>>>(with_partial(), states);
        HWNAS_CUDA_TRY(cudaGetLastError());
        Jobs slots;
        for (int k = 0; k < states.count; ++k)
            for (int norm : {kMax, kAvg}) slots.add(states.edge[k], norm);
        return note_sums(slots, stream_tiles());
    }

    Status gradient_sums(const Jobs& edges) {
        if constexpr (kVectors) {
            if (vectors_) gradient_sums_vector_kernel<T><<<dim3(vector_blocks(), edges.count), kThreads, 0, stream_>>>(with_partial(), edges);
        }
        if (!vectors_) gradient_sums_kernel<T><<<dim3(stream_blocks(), edges.count), kThreads, 0, stream_>>>(with_partial(), edges);
        HWNAS_CUDA_TRY(cudaGetLastError());
        Jobs slots;
        for (int k = 0; k < edges.count; ++k)
            for (int norm : kStreamNorms) slots.add(edges.edge[k], norm);
        return note_sums(slots, stream_tiles());
    }

    // Adds up all per-block sums since the last time.
    template <bool kBackward>
    Status finish_sums() {
        int jobs = 0;
        for (int k = 0; k < sums_.count; ++k) jobs += sums_.part[k].jobs.count;
        const dim3 grid(static_cast<unsigned>(divide_up(p_.c, kWarps)), jobs);
        finish_sums_kernel<T, kBackward><<<grid, kThreads, 0, stream_>>>(p_, sums_);
        HWNAS_CUDA_TRY(cudaGetLastError());
        sums_ = {};
        partial_used_ = 0;
        return {};
    }

    Status blend(int node) {
        if constexpr (kVectors) {
            if (vectors_) blend_vector_kernel<T><<<vector_blocks(), kThreads, 0, stream_>>>(p_, node);
        }
        if (!vectors_) blend_kernel<T><<<stream_blocks(), kThreads, 0, stream_>>>(p_, node);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status gather(int first, int count) {
        if constexpr (kVectors) {
            if (vectors_ && (first >= 2 || !p_.reduction) && kThreads * kVec % p_.plane() == 0) {
                gather_vector_kernel<T><<<dim3(vector_blocks(), count), kThreads, 0, stream_>>>(p_, first);
                HWNAS_CUDA_TRY(cudaGetLastError());
                return {};
            }
        }
        if constexpr (kVectors) {
            if (vectors_ && first < 2 && p_.reduction && kThreads * kVec / 4 % p_.plane() == 0) {
                const auto blocks = static_cast<unsigned>(divide_up(p_.size(), kThreads * kVec / 4));
                gather_strided_vector_kernel<T><<<dim3(blocks, count), kThreads, 0, stream_>>>(p_);
                HWNAS_CUDA_TRY(cudaGetLastError());
                return {};
            }
        }
        const std::int64_t bytes = p_.plane() * sizeof(Window<T>);  // of one plane
        if (p_.plane() <= 256) return gather<64, true>(first, count, bytes * (kThreads / 64));
        if (bytes <= 40 * 1024) return gather<kThreads, true>(first, count, bytes);
        return gather<kThreads, false>(first, count, 0);
    }

    Status pointwise_backward(const Jobs& jobs, bool strided) {
        if (jobs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) return Tuned<T>::pointwise_backward(p_, jobs, strided, stream_);
        const std::int64_t bytes = 3 * std::int64_t{p_.c} * kTile * sizeof(A);
        HWNAS_TRY(allow_shared(pointwise_backward_kernel<T>, bytes));
        pointwise_backward_kernel<T><<<dim3(p_.pw_groups(), jobs.count), kThreads, bytes, stream_>>>(p_, jobs);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    // `convs`: every convolution that reads a state; `edges`: each edge once. Edges of one stride.
    Status depthwise_state_backward(const Jobs& convs, const Jobs& edges, bool strided) {
        if (convs.count == 0) return {};
        if (Tuned<T>::covers(p_, strided)) return Tuned<T>::depthwise_state_backward(p_, convs, edges, strided, stream_);
        HWNAS_TRY(depthwise_weights(convs));
        const std::int64_t pixels = strided ? std::int64_t{p_.n} * p_.h * p_.w : p_.pixels();
        depthwise_backward_kernel<T><<<dim3(static_cast<unsigned>(divide_up(pixels, kTile)), edges.count), kThreads, 0, stream_>>>(p_, edges);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status depthwise_second_backward(const Jobs& convs) {
        int tiles = static_cast<int>(divide_up(p_.pixels(), kTile));
        if (Tuned<T>::covers(p_, false)) {
            HWNAS_TRY(Tuned<T>::depthwise_second_backward(with_partial(), convs, stream_, &tiles));
        } else {
            HWNAS_TRY(depthwise_weights(convs));
            depthwise_backward_kernel<T><<<dim3(tiles, convs.count), kThreads, 0, stream_>>>(with_partial(), convs);
            HWNAS_CUDA_TRY(cudaGetLastError());
        }
        Jobs slots;  // the sums belong to the norm before the second half
        for (int k = 0; k < convs.count; ++k) slots.add(convs.edge[k], convs.kind[k] - 1);
        return note_sums(slots, tiles);
    }

    Status weight_gradients(const Backward& b) {
        const std::int64_t cc = std::int64_t{p_.c} * p_.c, per_edge = std::int64_t{kDwPerChannel} * p_.c;
        const int pw = p_.pw_groups();
        HWNAS_TRY(finish_groups(p_.dpw_partial, b.dpw, p_.edges * kConvs, cc, pw, pw * cc, cc));
        if (p_.reduction) HWNAS_TRY(finish_groups(p_.dpw_partial + p_.edges * kConvs * pw * cc, b.dfr, 2 * p_.nodes, cc, pw, pw * cc, cc));
        HWNAS_TRY(finish_groups(p_.ddw_partial, b.ddw, 1, p_.edges * per_edge, p_.dw_groups(), 0, p_.edges * per_edge));
        gate_gradient_kernel<T><<<p_.edges, 32 * kOps, 0, stream_>>>(p_, static_cast<A*>(b.dgates));
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

private:
    int vector_blocks() const { return static_cast<int>(divide_up(p_.size() / kVec, kThreads)); }
    int stream_tiles() const { return vectors_ ? p_.n * vector_tiles(p_) : p_.n * p_.segments(); }
    int stream_blocks() const { return static_cast<int>(divide_up(std::int64_t{p_.n} * p_.c * p_.segments(), kWarps)); }

    template <int kTeam, bool kShared>
    Status gather(int first, int count, std::int64_t bytes) {
        const auto blocks = static_cast<unsigned>(divide_up(std::int64_t{p_.n} * p_.c, kThreads / kTeam));
        gather_kernel<T, kTeam, kShared><<<dim3(blocks, count), kThreads, bytes, stream_>>>(p_, first);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status finish_groups(const A* partial, void* out, std::int64_t slots, std::int64_t slot_size, int groups, std::int64_t slot_stride,
                         std::int64_t group_stride) {
        const auto blocks = static_cast<unsigned>(divide_up(slots * slot_size, kThreads));
        finish_groups_kernel<A><<<blocks, kThreads, 0, stream_>>>(partial, static_cast<A*>(out), slots, slot_size, groups, slot_stride, group_stride);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    Status depthwise_weights(const Jobs& convs) {
        depthwise_weight_kernel<T><<<dim3(p_.dw_groups(), convs.count, p_.c), kThreads, 0, stream_>>>(p_, convs);
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    }

    // The next launch's per-block sums go behind those that wait already.
    Plan<T> with_partial() const {
        Plan<T> p = p_;
        p.partial += partial_used_;
        return p;
    }
    Status note_sums(const Jobs& jobs, int tiles) {
        sums_.part[sums_.count++] = {jobs, tiles, partial_used_};
        partial_used_ += std::int64_t{jobs.count} * p_.c * tiles;
        return {};
    }

    Plan<T> p_;
    cudaStream_t stream_;
    bool vectors_;  // the elementwise passes take 8 pixels a thread
    Reductions sums_;
    std::int64_t partial_used_ = 0;
};

}  // namespace hwnas::mixed_cell::cuda
