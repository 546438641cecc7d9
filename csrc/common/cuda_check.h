// Status of CUDA calls and launches.
#pragma once

#include <cuda_runtime.h>

#include "common/status.h"

#define HWNAS_CUDA_TRY(call)                                                  \
    do {                                                                      \
        const cudaError_t hwnas_error = (call);                               \
        if (hwnas_error != cudaSuccess) return {cudaGetErrorString(hwnas_error)}; \
    } while (0)
