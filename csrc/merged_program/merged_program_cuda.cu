#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "merged_program/kernels_cuda.h"

namespace hwnas::merged_program {

Status run_cuda(const Launch* launches, std::int64_t count, void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    for (std::int64_t i = 0; i < count; ++i) {
        const Launch& l = launches[i];
        const auto* problems = static_cast<const Problem*>(l.problems);
        const auto blocks = static_cast<unsigned>(l.blocks);
        switch (l.shape) {
            case Shape::kDense16: dense_kernel<Shape::kDense16><<<blocks, kDenseThreads, 0, on>>>(problems, l.begin, l.count); break;
            case Shape::kDense32: dense_kernel<Shape::kDense32><<<blocks, kDenseThreads, 0, on>>>(problems, l.begin, l.count); break;
            case Shape::kDense64: dense_kernel<Shape::kDense64><<<blocks, kDenseThreads, 0, on>>>(problems, l.begin, l.count); break;
            case Shape::kMap: map_kernel<<<blocks, kMapThreads, 0, on>>>(problems, l.begin, l.count); break;
            case Shape::kNorm: norm_kernel<<<blocks, kMapThreads, 0, on>>>(static_cast<const Norm*>(l.problems), l.begin, l.count); break;
            default: return {"no such launch"};
        }
        HWNAS_CUDA_TRY(cudaGetLastError());
    }
    return {};
}

}  // namespace hwnas::merged_program
