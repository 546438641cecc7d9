#include <cuda_bf16.h>

#include "common/cuda_check.h"
#include "weighted_sum/weighted_sum.h"

namespace hwnas::weighted_sum {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 264;  // two a multiprocessor on the largest current chips; a grid-stride loop takes the rest

__device__ float load(const float* x, std::int64_t i) { return x[i]; }
__device__ double load(const double* x, std::int64_t i) { return x[i]; }
__device__ float load(const __nv_bfloat16* x, std::int64_t i) { return __bfloat162float(x[i]); }
__device__ void store(float* y, std::int64_t i, float v) { y[i] = v; }
__device__ void store(double* y, std::int64_t i, double v) { y[i] = v; }
__device__ void store(__nv_bfloat16* y, std::int64_t i, float v) { y[i] = __float2bfloat16(v); }

// T: storage of x, y and their gradients; A: arithmetic, and storage of w and dw.
template <typename T, typename A>
__global__ void forward_kernel(Forward p) {
    const A* w = static_cast<const A*>(p.w);
    for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < p.size; i += std::int64_t{gridDim.x} * kThreads) {
        A sum = 0;
        for (int o = 0; o < p.terms; ++o) sum += w[o] * load(static_cast<const T*>(p.x[o]), i);
        store(static_cast<T*>(p.y), i, sum);
    }
}

// One block reduces a fixed set of elements in a fixed order: two runs give the same bits.
template <typename A>
__device__ A block_sum(A value) {
    __shared__ A warp_sums[kThreads / 32];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
    __syncthreads();
    A total = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < kThreads / 32; ++i) total += warp_sums[i];
    __syncthreads();
    return total;
}

template <typename T, typename A>
__global__ void backward_kernel(Backward p, A* partial) {
    const int o = blockIdx.y;
    const T* x = static_cast<const T*>(p.x[o]);
    const T* grad = static_cast<const T*>(p.grad);
    T* dx = static_cast<T*>(p.dx[o]);
    const A w = static_cast<const A*>(p.w)[o];
    A sum = 0;
    for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < p.size; i += std::int64_t{gridDim.x} * kThreads) {
        const A g = load(grad, i);
        sum += g * load(x, i);
        if (dx) store(dx, i, w * g);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[o * gridDim.x + blockIdx.x] = sum;
}

template <typename A>
__global__ void finish_kernel(const A* partial, A* dw) {
    A sum = 0;
    for (int i = threadIdx.x; i < kBlocks; i += kThreads) sum += partial[blockIdx.x * kBlocks + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) dw[blockIdx.x] = sum;
}

template <typename T, typename A>
Status launch_forward(const Forward& p, cudaStream_t stream) {
    forward_kernel<T, A><<<kBlocks, kThreads, 0, stream>>>(p);
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

template <typename T, typename A>
Status launch_backward(const Backward& p, void* scratch, cudaStream_t stream) {
    backward_kernel<T, A><<<dim3(kBlocks, p.terms), kThreads, 0, stream>>>(p, static_cast<A*>(scratch));
    HWNAS_CUDA_TRY(cudaGetLastError());
    finish_kernel<A><<<p.terms, kThreads, 0, stream>>>(static_cast<const A*>(scratch), static_cast<A*>(p.dw));
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

}  // namespace

std::int64_t backward_cuda_scratch(int terms) { return std::int64_t{terms} * kBlocks * sizeof(double); }

Status forward_cuda(const Forward& p, void* stream) {
    const auto s = static_cast<cudaStream_t>(stream);
    switch (p.type) {
        case Type::kFloat32: return launch_forward<float, float>(p, s);
        case Type::kFloat64: return launch_forward<double, double>(p, s);
        case Type::kBFloat16: return launch_forward<__nv_bfloat16, float>(p, s);
    }
    return {"unknown element type"};
}

Status backward_cuda(const Backward& p, void* scratch, void* stream) {
    const auto s = static_cast<cudaStream_t>(stream);
    switch (p.type) {
        case Type::kFloat32: return launch_backward<float, float>(p, scratch, s);
        case Type::kFloat64: return launch_backward<double, double>(p, scratch, s);
        case Type::kBFloat16: return launch_backward<__nv_bfloat16, float>(p, scratch, s);
    }
    return {"unknown element type"};
}

}  // namespace hwnas::weighted_sum
