#include "batch_norm/batch_norm.h"
#include "common/cuda_check.h"
#include "common/load8.cuh"

namespace hwnas::batch_norm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ float load(const float* x) { return *x; }
__device__ float load(const __nv_bfloat16* x) { return __bfloat162float(*x); }
__device__ void store(float* y, float v) { *y = v; }
__device__ void store(__nv_bfloat16* y, float v) { *y = __float2bfloat16(v); }

template <typename A>
__device__ A warp_sum(A v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// A warp takes a plane, in vectors of 8 where they fit.
struct Plane {
    std::int64_t index;
    int n, c, lane;
    bool active;
    __device__ explicit Plane(const Shape& s) : index(std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32), lane(threadIdx.x % 32) {
        active = index < s.n * s.c;
        n = static_cast<int>(index / s.c);
        c = static_cast<int>(index % s.c);
    }
};

template <typename T, bool kVectors, typename F>
__device__ void each(const T* a, const T* b, std::int64_t pixels, int lane, F f) {  // f(pixel, values of a, values of b)
    if constexpr (kVectors) {
        for (std::int64_t i = lane * 8; i < pixels; i += 32 * 8) {
            float x[8], y[8];
            load8(a + i, x);
            load8(b + i, y);
            f(i, x, y);
        }
    } else {
        for (std::int64_t i = lane; i < pixels; i += 32) {
            float x[1] = {load(a + i)}, y[1] = {load(b + i)};
            f(i, x, y);
        }
    }
}
template <typename T>
__device__ void put(T* y, const float (&v)[8]) { store8(y, v); }
template <typename T>
__device__ void put(T* y, const float (&v)[1]) { store(y, v[0]); }

// Forward: sums of x and x^2; backward (stats given): of dy and dy * xhat. a: x or dy.
template <typename T, bool kVectors, bool kBackward>
__global__ void __launch_bounds__(kThreads) sums_kernel(Shape s, const T* a, const T* x, const float2* stats, float2* scratch) {
    const Plane p(s);
    if (!p.active) return;
    const float2 norm = kBackward ? stats[p.c] : make_float2(0, 0);
    float first = 0, second = 0;
    each<T, kVectors>(a + p.index * s.pixels, x + p.index * s.pixels, s.pixels, p.lane, [&](std::int64_t, const auto& u, const auto& v) {
#pragma unroll
        for (unsigned k = 0; k < sizeof(u) / sizeof(float); ++k) {
            first += u[k];
            second += kBackward ? u[k] * (v[k] - norm.x) * norm.y : u[k] * u[k];
        }
    });
    first = warp_sum(first);
    second = warp_sum(second);
    if (p.lane == 0) scratch[p.c * s.n + p.n] = make_float2(first, second);
}

// Every plane adds its channel's sums again, in one order: cheaper than a launch of its own.
__device__ double2 channel_mean(const Shape& s, const Plane& p, const float2* scratch) {
    double a = 0, b = 0;
    for (std::int64_t n = p.lane; n < s.n; n += 32) {
        const float2 v = scratch[p.c * s.n + n];
        a += v.x;
        b += v.y;
    }
    const double count = static_cast<double>(s.n) * s.pixels;
    return make_double2(warp_sum(a) / count, warp_sum(b) / count);
}

template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads) forward_kernel(Shape s, const T* x, const float* weight, const float* bias, T* y, float2* stats, const float2* scratch) {
    const Plane p(s);
    if (!p.active) return;
    const double2 moments = channel_mean(s, p, scratch);
    const double variance = moments.y - moments.x * moments.x;
    const float mean = static_cast<float>(moments.x), rstd = static_cast<float>(1.0 / sqrt((variance > 0 ? variance : 0) + 1e-5));
    if (p.n == 0 && p.lane == 0) stats[p.c] = make_float2(mean, rstd);
    const float scale = weight ? rstd * weight[p.c] : rstd, shift = bias ? bias[p.c] : 0.f;
    T* out = y + p.index * s.pixels;
    each<T, kVectors>(x + p.index * s.pixels, x + p.index * s.pixels, s.pixels, p.lane, [&](std::int64_t i, auto& u, auto&) {
#pragma unroll
        for (unsigned k = 0; k < sizeof(u) / sizeof(float); ++k) u[k] = (u[k] - mean) * scale + shift;
        put(out + i, u);
    });
}

template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads) backward_kernel(Shape s, const T* dy, const T* x, const float* weight, const float2* stats, T* dx, float* dweight,
                                                            float* dbias, const float2* scratch) {
    const Plane p(s);
    if (!p.active) return;
    const double2 means = channel_mean(s, p, scratch);
    const float m1 = static_cast<float>(means.x), m2 = static_cast<float>(means.y);
    const float2 norm = stats[p.c];
    const float scale = weight ? norm.y * weight[p.c] : norm.y;
    if (weight && p.n == 0 && p.lane == 0) {
        const double count = static_cast<double>(s.n) * s.pixels;
        dbias[p.c] = static_cast<float>(means.x * count);
        dweight[p.c] = static_cast<float>(means.y * count);
    }
    T* out = dx + p.index * s.pixels;
    each<T, kVectors>(dy + p.index * s.pixels, x + p.index * s.pixels, s.pixels, p.lane, [&](std::int64_t i, auto& u, auto& v) {
#pragma unroll
        for (unsigned k = 0; k < sizeof(u) / sizeof(float); ++k) u[k] = scale * (u[k] - m1 - (v[k] - norm.x) * norm.y * m2);
        put(out + i, u);
    });
}

// f(a value of the storage type, whether 16-byte vectors fit)
template <typename F>
Status dispatch(const Shape& s, std::initializer_list<const void*> pointers, F f) {
    bool vectors = s.pixels % 8 == 0;
    for (const void* pointer : pointers) vectors = vectors && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
    const auto typed = [&](auto value) { return vectors ? f(value, std::true_type{}) : f(value, std::false_type{}); };
    return s.type == Type::kBFloat16 ? typed(__nv_bfloat16{}) : typed(float{});
}

unsigned blocks(const Shape& s) { return static_cast<unsigned>((s.n * s.c + kWarps - 1) / kWarps); }

}  // namespace

Status forward_cuda(const Shape& s, const void* x, const void* weight, const void* bias, void* y, void* stats, void* scratch, void* stream) {
    return dispatch(s, {x, y}, [&](auto value, auto vectors) -> Status {
        using T = decltype(value);
        constexpr bool kVectors = decltype(vectors)::value;
        const auto on = static_cast<cudaStream_t>(stream);
        const T* from = static_cast<const T*>(x);
        sums_kernel<T, kVectors, false><<<blocks(s), kThreads, 0, on>>>(s, from, from, nullptr, static_cast<float2*>(scratch));
        HWNAS_CUDA_TRY(cudaGetLastError());
        forward_kernel<T, kVectors><<<blocks(s), kThreads, 0, on>>>(s, from, static_cast<const float*>(weight), static_cast<const float*>(bias), static_cast<T*>(y),
                                                                       static_cast<float2*>(stats), static_cast<const float2*>(scratch));
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    });
}

Status backward_cuda(const Shape& s, const void* dy, const void* x, const void* weight, const void* stats, void* dx, void* dweight, void* dbias,
                     void* scratch, void* stream) {
    return dispatch(s, {dy, x, dx}, [&](auto value, auto vectors) -> Status {
        using T = decltype(value);
        constexpr bool kVectors = decltype(vectors)::value;
        const auto on = static_cast<cudaStream_t>(stream);
        const T *up = static_cast<const T*>(dy), *from = static_cast<const T*>(x);
        const auto* norms = static_cast<const float2*>(stats);
        sums_kernel<T, kVectors, true><<<blocks(s), kThreads, 0, on>>>(s, up, from, norms, static_cast<float2*>(scratch));
        HWNAS_CUDA_TRY(cudaGetLastError());
        backward_kernel<T, kVectors><<<blocks(s), kThreads, 0, on>>>(s, up, from, static_cast<const float*>(weight), norms, static_cast<T*>(dx),
                                                                        static_cast<float*>(dweight), static_cast<float*>(dbias), static_cast<const float2*>(scratch));
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    });
}

}  // namespace hwnas::batch_norm
