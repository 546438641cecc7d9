#include <cuda_runtime.h>

#include "common/cuda_check.h"
#include "merged_program/dense.cuh"
#include "merged_program/map.cuh"
#include "merged_program/pointwise.cuh"

namespace hwnas::merged_program {
namespace {

template <typename Row>
cudaError_t launch(void (*kernel)(const Row*, const std::int32_t*, int), const Launch& l, int threads, cudaStream_t on) {
    if (l.shared_bytes > 32 << 10) {  // with what kernels have beside, it may be more than they are given unasked
        const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.shared_bytes));
        if (error != cudaSuccess) return error;
    }
    kernel<<<static_cast<unsigned>(l.blocks), threads, static_cast<std::size_t>(l.shared_bytes), on>>>(static_cast<const Row*>(l.problems), l.begin, l.count);
    return cudaGetLastError();
}

cudaError_t launch(const Launch& l, cudaStream_t on) {
    switch (l.shape) {
        case Shape::kDense16: return launch(dense_kernel<Shape::kDense16>, l, dense_threads(Shape::kDense16), on);
        case Shape::kDense32: return launch(dense_kernel<Shape::kDense32>, l, dense_threads(Shape::kDense32), on);
        case Shape::kDense64: return launch(dense_kernel<Shape::kDense64>, l, dense_threads(Shape::kDense64), on);
        case Shape::kRows16: return launch(dense_kernel<Shape::kRows16>, l, dense_threads(Shape::kRows16), on);
        case Shape::kRows32: return launch(dense_kernel<Shape::kRows32>, l, dense_threads(Shape::kRows32), on);
        case Shape::kRows64: return launch(dense_kernel<Shape::kRows64>, l, dense_threads(Shape::kRows64), on);
        case Shape::kPoint16: return launch(pointwise_kernel<Shape::kPoint16>, l, dense_threads(Shape::kPoint16), on);
        case Shape::kPoint32: return launch(pointwise_kernel<Shape::kPoint32>, l, dense_threads(Shape::kPoint32), on);
        case Shape::kPoint64: return launch(pointwise_kernel<Shape::kPoint64>, l, dense_threads(Shape::kPoint64), on);
        case Shape::kSum: return launch(map_kernel<Sum<false>>, l, kMapThreads, on);
        case Shape::kPooledSum: return launch(map_kernel<Sum<true>>, l, kMapThreads, on);
        case Shape::kWindow: return launch(map_kernel<Window>, l, kMapThreads, on);
        case Shape::kMap: return launch(map_kernel<Other>, l, kMapThreads, on);
        case Shape::kNorm: return launch(norm_kernel, l, kMapThreads, on);
        case Shape::kPack: return launch(pack_kernel, l, kMapThreads, on);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace

Status run_cuda(const Launch* launches, std::int64_t count, void* stream) {
    for (std::int64_t i = 0; i < count; ++i) HWNAS_CUDA_TRY(launch(launches[i], static_cast<cudaStream_t>(stream)));
    return {};
}

}  // namespace hwnas::merged_program
