#include "common/cuda_check.h"
#include "pixel_grids/pixel_grids.h"

namespace hwnas::pixel_grids {
namespace {

constexpr int kThreads = 256;

// 16 bytes of elements of type T, which are moved, never computed with.
template <typename T>
union Word {
    static constexpr int kCount = 16 / sizeof(T);
    uint4 bits;
    T value[kCount];
};

// A thread's word of each grid, and the two rows of two words of x that they come from.
template <typename T>
struct Place {
    std::int64_t grid, x;  // first elements; the odd grid's is `odd` further
    bool active;
    __device__ explicit Place(const Shape& s) {
        const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, row_words = s.w / 2 / Word<T>::kCount, image_words = s.c * (s.h / 2) * row_words;
        const std::int64_t n = i / image_words, at = i % image_words, row = at / row_words;
        active = n < s.n;
        grid = (n * 2 * image_words + at) * Word<T>::kCount;
        x = (n * s.c * s.h + 2 * row) * s.w + at % row_words * 2 * Word<T>::kCount;
    }
    __device__ static std::int64_t odd(const Shape& s) { return s.c * (s.h / 2) * (s.w / 2); }
};

// Grid: words of a grid / kThreads.
template <typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(Shape s, const T* x, T* y) {
    const Place<T> p(s);
    if (!p.active) return;
    Word<T> rows[2][2], grids[2];
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half) rows[k][half].bits = *(reinterpret_cast<const uint4*>(x + p.x + k * s.w) + half);
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int q = 0; q < Word<T>::kCount; ++q) grids[k].value[q] = rows[k][2 * q / Word<T>::kCount].value[2 * q % Word<T>::kCount + k];
    *reinterpret_cast<uint4*>(y + p.grid) = grids[0].bits;
    *reinterpret_cast<uint4*>(y + p.grid + p.odd(s)) = grids[1].bits;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Shape s, const T* dy, T* dx) {
    const Place<T> p(s);
    if (!p.active) return;
    Word<T> grids[2];
    grids[0].bits = *reinterpret_cast<const uint4*>(dy + p.grid);
    grids[1].bits = *reinterpret_cast<const uint4*>(dy + p.grid + p.odd(s));
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Word<T> row;
#pragma unroll
            for (int q = 0; q < Word<T>::kCount; ++q) row.value[q] = q % 2 == k ? grids[k].value[(half * Word<T>::kCount + q) / 2] : T(0);
            *(reinterpret_cast<uint4*>(dx + p.x + k * s.w) + half) = row.bits;
        }
}

// f(an element of the size that the shape says)
template <typename F>
Status dispatch(const Shape& s, F f) {
    if (!covers(s)) return {"pixel_grids takes an even height and a width in whole 32 bytes"};
    return s.bytes == 2 ? f(std::uint16_t{}) : f(std::uint32_t{});
}

unsigned blocks(const Shape& s) { return static_cast<unsigned>((s.n * s.c * (s.h / 2) * (s.w / 2) * s.bytes / 16 + kThreads - 1) / kThreads); }

}  // namespace

bool covers(const Shape& s) { return s.n > 0 && s.c > 0 && s.h > 0 && s.h % 2 == 0 && s.w > 0 && s.w * s.bytes % 32 == 0 && (s.bytes == 2 || s.bytes == 4); }

Status forward_cuda(const Shape& s, const void* x, void* y, void* stream) {
    return dispatch(s, [&](auto value) -> Status {
        using T = decltype(value);
        forward_kernel<T><<<blocks(s), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(s, static_cast<const T*>(x), static_cast<T*>(y));
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    });
}

Status backward_cuda(const Shape& s, const void* dy, void* dx, void* stream) {
    return dispatch(s, [&](auto value) -> Status {
        using T = decltype(value);
        backward_kernel<T><<<blocks(s), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(s, static_cast<const T*>(dy), static_cast<T*>(dx));
        HWNAS_CUDA_TRY(cudaGetLastError());
        return {};
    });
}

}  // namespace hwnas::pixel_grids
