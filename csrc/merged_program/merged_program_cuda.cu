#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "merged_program/kernels_cuda.h"

namespace hwnas::merged_program {

namespace {

template <Shape kShape>
Status dense(const Launch& l, cudaStream_t on) {
    constexpr int kThreads = dense_threads(kShape);
    HWNAS_CUDA_TRY(cudaFuncSetAttribute(dense_kernel<kShape>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.shared_bytes)));
    dense_kernel<kShape><<<static_cast<unsigned>(l.blocks), kThreads, l.shared_bytes, on>>>(static_cast<const Problem*>(l.problems), l.begin, l.count);
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

Status run(const Launch& l, cudaStream_t on) {
    const auto blocks = static_cast<unsigned>(l.blocks);
    switch (l.shape) {
        case Shape::kDense16: return dense<Shape::kDense16>(l, on);
        case Shape::kDense32: return dense<Shape::kDense32>(l, on);
        case Shape::kDense64: return dense<Shape::kDense64>(l, on);
        case Shape::kMap: map_kernel<<<blocks, kMapThreads, 0, on>>>(static_cast<const Problem*>(l.problems), l.begin, l.count); break;
        case Shape::kNorm: norm_kernel<<<blocks, kMapThreads, 0, on>>>(static_cast<const Norm*>(l.problems), l.begin, l.count); break;
        default: return {"no such launch"};
    }
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

}  // namespace

Status run_cuda(const Launch* launches, std::int64_t count, void* stream) {
    for (std::int64_t i = 0; i < count; ++i)
        if (const Status status = run(launches[i], static_cast<cudaStream_t>(stream)); !status) return status;
    return {};
}

}  // namespace hwnas::merged_program
