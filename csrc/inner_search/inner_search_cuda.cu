// Scores of many genotypes at once: a thread takes one, the table lies in shared memory where it fits.
#include "common/cuda_check.h"
#include "inner_search/inner_search.h"

namespace hwnas::inner_search {
namespace {

constexpr int kThreads = 256;
constexpr int kMostShared = 48 * 1024;  // bytes that every device gives a block without asking

// Sums are added in the order of the layers, so the bits are those of the processor. kMetrics 0 takes any number of metrics.
template <int kMetrics, bool kShared>
__global__ void __launch_bounds__(kThreads) score_kernel(Problem p, const Option* genotypes, std::int64_t count, double* values) {
    extern __shared__ double staged[];
    const int metrics = kMetrics ? kMetrics : p.metrics;
    const double* table = p.table;
    if (kShared) {
        const std::int64_t size = p.first[p.layers] * metrics;
        for (std::int64_t k = threadIdx.x; k < size; k += kThreads) staged[k] = p.table[k];
        __syncthreads();
        table = staged;
    }
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += std::int64_t{gridDim.x} * kThreads) {
        const Option* genotype = genotypes + i * p.layers;
        double sum[kMetrics ? kMetrics : kMaxMetrics] = {};
        for (int l = 0; l < p.layers; ++l) {
            const double* row = table + (p.first[l] + genotype[l]) * metrics;
#pragma unroll
            for (int j = 0; j < (kMetrics ? kMetrics : kMaxMetrics); ++j)
                if (j < metrics) sum[j] += row[j];
        }
#pragma unroll
        for (int j = 0; j < (kMetrics ? kMetrics : kMaxMetrics); ++j)
            if (j < metrics) values[i * metrics + j] = sum[j];
    }
}

template <int kMetrics>
Status launch(const Problem& p, const Option* genotypes, std::int64_t count, double* values, std::int64_t rows, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(count / kThreads + 1 < 2048 ? count / kThreads + 1 : 2048);
    const std::int64_t bytes = rows * p.metrics * static_cast<std::int64_t>(sizeof(double));
    if (bytes <= kMostShared) score_kernel<kMetrics, true><<<blocks, kThreads, bytes, stream>>>(p, genotypes, count, values);
    else score_kernel<kMetrics, false><<<blocks, kThreads, 0, stream>>>(p, genotypes, count, values);
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

}  // namespace

Status score_cuda(const Problem& p, std::int64_t rows, const Option* genotypes, std::int64_t count, double* values, void* stream) {
    const auto s = static_cast<cudaStream_t>(stream);
    switch (p.metrics) {
        case 1: return launch<1>(p, genotypes, count, values, rows, s);
        case 2: return launch<2>(p, genotypes, count, values, rows, s);
        case 3: return launch<3>(p, genotypes, count, values, rows, s);
        case 4: return launch<4>(p, genotypes, count, values, rows, s);
        default: return launch<0>(p, genotypes, count, values, rows, s);
    }
}

}  // namespace hwnas::inner_search
