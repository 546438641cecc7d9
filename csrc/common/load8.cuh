// Eight neighbouring values as float, in 16-byte accesses: pointers must be 16-byte aligned, loads only of read-only memory.
#pragma once

#include <cuda_bf16.h>

namespace hwnas {

__device__ __forceinline__ void load8(const float* x, float (&v)[8]) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(x)), b = __ldg(reinterpret_cast<const float4*>(x) + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void load8(const __nv_bfloat16* x, float (&v)[8]) {
    const uint4 a = __ldg(reinterpret_cast<const uint4*>(x));
    const unsigned words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        v[2 * k] = __uint_as_float(words[k] << 16);
        v[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
    }
}
__device__ __forceinline__ void store8(float* y, const float (&v)[8]) {
    reinterpret_cast<float4*>(y)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(y)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ __forceinline__ void store8(__nv_bfloat16* y, const float (&v)[8]) {
    uint4 out;
    unsigned* words = reinterpret_cast<unsigned*>(&out);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * k], v[2 * k + 1]);
        words[k] = reinterpret_cast<const unsigned&>(pair);
    }
    *reinterpret_cast<uint4*>(y) = out;
}

}  // namespace hwnas
