// Launches into one of the streams that a call works on.
#pragma once

#include "mixed_cell/plan.cuh"

namespace hwnas::mixed_cell::cuda {

// A stream, and whether its last work is one of our kernels: then the next one may begin as soon as that one's blocks have ended,
// before their writes are flushed, for which it waits itself (programmatic dependent launch).
struct Lane {
    cudaStream_t stream = nullptr;
    bool chained = false;
};

// Whether this device and this build know programmatic dependent launch: code for an older architecture does not wait.
Status can_chain(bool& can);

template <typename Kernel, typename... Arguments>
Status launch(Kernel kernel, dim3 grid, int threads, std::int64_t bytes, Lane& lane, const Arguments&... arguments) {
    if (bytes > 48 * 1024) {
        int device = 0, limit = 0;
        HWNAS_CUDA_TRY(cudaGetDevice(&device));
        HWNAS_CUDA_TRY(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
        if (bytes > limit) return {"the mixed cell needs more shared memory for this many channels than the device has"};
        HWNAS_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    }
    bool can = false;
    const Status status = can_chain(can);
    if (!status) return status;
    cudaLaunchAttribute chain{};
    chain.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    chain.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    config.stream = lane.stream;
    config.attrs = &chain;
    config.numAttrs = can && lane.chained ? 1 : 0;
    lane.chained = true;
    HWNAS_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, arguments...));
    return {};
}

}  // namespace hwnas::mixed_cell::cuda
