// A block takes tiles of one image's pixels, all channels in and out: x goes to shared memory once, and is rectified on its way
// into each product.
#include "common/async_copy.cuh"
#include "common/cuda_check.h"
#include "common/tensor_core.cuh"
#include "relu_pointwise/relu_pointwise.h"

namespace hwnas::relu_pointwise {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPitchPad = 8;      // elements between the rows of a tile, which keep lanes in different banks
constexpr int kMostBlocks = 264;  // of backward, each of which leaves a share or two of dw: two a multiprocessor

// Operands of a product acc[16, 16] += left[16, 16] * right[16, 16], from matrices in shared memory. Transposed: the operand is
// what lies there, turned.
template <typename T>
struct Operands;

template <>
struct Operands<bf16> {
    static constexpr int kPad = 8;  // of a matrix of weights: rows 16 bytes apart modulo the banks
    struct Left {
        unsigned v[4];
    };
    struct Right {
        unsigned v[4];
    };
    __device__ __forceinline__ static Left left(const bf16* m, int pitch) {
        const int lane = threadIdx.x % 32;
        Left a;
        ldmatrix4(a.v, m + lane % 16 * pitch + lane / 16 * 8);
        return a;
    }
    __device__ __forceinline__ static Left left_transposed(const bf16* m, int pitch) {
        const int lane = threadIdx.x % 32;
        Left a;
        ldmatrix4_trans(a.v, m + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
        return a;
    }
    __device__ __forceinline__ static Right right(const bf16* m, int pitch) {
        const int lane = threadIdx.x % 32;
        Right b;
        ldmatrix4_trans(b.v, m + lane % 16 * pitch + lane / 16 * 8);
        return b;
    }
    __device__ __forceinline__ static Right right_transposed(const bf16* m, int pitch) {
        const int lane = threadIdx.x % 32;
        Right b;
        ldmatrix4(b.v, m + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
        return b;
    }
    __device__ __forceinline__ static Right rectified(Right b) {
#pragma unroll
        for (unsigned& word : b.v) {
            const bf162 v = __hmax2(reinterpret_cast<const bf162&>(word), __floats2bfloat162_rn(0.f, 0.f));
            word = reinterpret_cast<const unsigned&>(v);
        }
        return b;
    }
    __device__ __forceinline__ static void multiply(float (&acc)[2][4], const Left& a, const Right& b) {
        mma16(acc[0], a.v, b.v[0], b.v[1]);
        mma16(acc[1], a.v, b.v[2], b.v[3]);
    }
    __device__ __forceinline__ static float2 load2(const bf16* x) { return unpack(*reinterpret_cast<const unsigned*>(x)); }
    __device__ __forceinline__ static void store2(bf16* y, float a, float b) { *reinterpret_cast<unsigned*>(y) = pack(a, b); }
};

template <>
struct Operands<float> {
    static constexpr int kPad = 4;
    struct Left {
        SplitRows low, high;  // columns 0 to 7 and 8 to 15
    };
    struct Right {
        float v[2][2][2];  // [8 rows][8 columns][rows t and t + 4]
    };
    __device__ __forceinline__ static Left left(const float* m, int pitch) {
        const float* w = m + threadIdx.x % 32 / 4 * pitch + threadIdx.x % 4;
        return {SplitRows({w[0], w[8 * pitch], w[4], w[8 * pitch + 4]}, true), SplitRows({w[8], w[8 * pitch + 8], w[12], w[8 * pitch + 12]}, true)};
    }
    __device__ __forceinline__ static Left left_transposed(const float* m, int pitch) {
        const float* w = m + threadIdx.x % 4 * pitch + threadIdx.x % 32 / 4;
        const float* v = w + 8 * pitch;
        return {SplitRows({w[0], w[8], w[4 * pitch], w[4 * pitch + 8]}, true), SplitRows({v[0], v[8], v[4 * pitch], v[4 * pitch + 8]}, true)};
    }
    __device__ __forceinline__ static Right right(const float* m, int pitch) {
        const float* from = m + threadIdx.x % 4 * pitch + threadIdx.x % 32 / 4;
        Right b;
#pragma unroll
        for (int i = 0; i < 8; ++i) b.v[i / 4][i / 2 % 2][i % 2] = from[(i / 4 * 8 + i % 2 * 4) * pitch + i / 2 % 2 * 8];
        return b;
    }
    __device__ __forceinline__ static Right right_transposed(const float* m, int pitch) {
        const float* from = m + threadIdx.x % 32 / 4 * pitch + threadIdx.x % 4;
        Right b;
#pragma unroll
        for (int i = 0; i < 8; ++i) b.v[i / 4][i / 2 % 2][i % 2] = from[i / 2 % 2 * 8 * pitch + i / 4 * 8 + i % 2 * 4];
        return b;
    }
    __device__ __forceinline__ static Right rectified(Right b) {
#pragma unroll
        for (int i = 0; i < 8; ++i) b.v[i / 4][i / 2 % 2][i % 2] = fmaxf(b.v[i / 4][i / 2 % 2][i % 2], 0.f);
        return b;
    }
    __device__ __forceinline__ static void multiply(float (&acc)[2][4], const Left& a, const Right& b) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            mma_split(acc[n], a.low, Split(b.v[0][n][0], true), Split(b.v[0][n][1], true));
            mma_split(acc[n], a.high, Split(b.v[1][n][0], true), Split(b.v[1][n][1], true));
        }
    }
    __device__ __forceinline__ static float2 load2(const float* x) { return *reinterpret_cast<const float2*>(x); }
    __device__ __forceinline__ static void store2(float* y, float a, float b) { *reinterpret_cast<float2*>(y) = make_float2(a, b); }
};

// A tile: kPixels pixels; a warp has 16 of them in a product, and every kWarpsM-th block of 16 rows.
template <int kOut>
struct Tile {
    static constexpr int kPixels = kOut == 64 ? 64 : 128, kWarpsN = kPixels / 16, kWarpsM = kWarps / kWarpsN, kPitch = kPixels + kPitchPad;
};

template <typename T, int kPixels, int kPitch>
__device__ __forceinline__ void ask(T* to, const T* from, int rows, std::int64_t pixels) {
    constexpr int kValues = 16 / sizeof(T), kWords = kPixels / kValues;
    for (int i = threadIdx.x; i < rows * kWords; i += kThreads)
        copy_async(to + i / kWords * kPitch + i % kWords * kValues, from + i / kWords * pixels + i % kWords * kValues);
}

template <typename T>
__device__ __forceinline__ void load_weights(T* to, const float* w, int out, int in) {
    for (int i = threadIdx.x; i < out * in / 4; i += kThreads) {
        const float4 v = reinterpret_cast<const float4*>(w)[i];
        T* at = to + 4 * i / in * (in + Operands<T>::kPad) + 4 * i % in;
        at[0] = T(v.x), at[1] = T(v.y), at[2] = T(v.z), at[3] = T(v.w);
    }
}

// Grid: tiles.
template <typename T, int kOut>
__global__ void __launch_bounds__(kThreads) forward_kernel(Shape s, const T* x, const float* w, T* z) {
    using O = Operands<T>;
    using G = Tile<kOut>;
    extern __shared__ __align__(16) unsigned char shared[];
    const int in = static_cast<int>(s.in), w_pitch = in + O::kPad, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int per_image = static_cast<int>(s.pixels) / G::kPixels, n = blockIdx.x / per_image, first = blockIdx.x % per_image * G::kPixels;
    T* xs = reinterpret_cast<T*>(shared);  // [in, kPitch]
    T* ws = xs + in * G::kPitch;           // [kOut, w_pitch]
    ask<T, G::kPixels, G::kPitch>(xs, x + n * s.in * s.pixels + first, in, s.pixels);
    load_weights(ws, w, kOut, in);
    copies_arrived();
    __syncthreads();
    constexpr int kBlocks = kOut / 16 / G::kWarpsM;
    const int column = warp % G::kWarpsN * 16, row = warp / G::kWarpsN * (kBlocks * 16);
    float acc[kBlocks][2][4] = {};
    for (int k = 0; k < in; k += 16) {
        const auto b = O::rectified(O::right(xs + k * G::kPitch + column, G::kPitch));
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) O::multiply(acc[m], O::left(ws + (row + m * 16) * w_pitch + k, w_pitch), b);
    }
    T* out = z + (n * s.out + row + lane / 4) * s.pixels + first + column + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m)
#pragma unroll
        for (int k = 0; k < 4; ++k)
            O::store2(out + (m * 16 + k / 2 * 8) * s.pixels + k % 2 * 8, acc[m][k % 2][k / 2 * 2], acc[m][k % 2][k / 2 * 2 + 1]);
}

// 16 x 16 blocks of dw: with few of them, two groups of warps take half of a tile's pixels each.
__host__ __device__ inline int units(const Shape& s) { return static_cast<int>(s.out / 16 * (s.in / 16)); }
__host__ __device__ inline int slices(const Shape& s) { return units(s) <= kWarps / 2 ? 2 : 1; }

// dx = w^T dz where x > 0, and shares of dw = dz relu(x)^T. kUnits: blocks of dw that a warp has at most.
template <typename T, int kOut, int kUnits>
__global__ void __launch_bounds__(kThreads, kUnits <= 2 ? 2 : 1) backward_kernel(Shape s, const T* dz, const T* x, const float* w, T* dx, float* shares) {
    using O = Operands<T>;
    using G = Tile<kOut>;
    extern __shared__ __align__(16) unsigned char shared[];
    const int in = static_cast<int>(s.in), w_pitch = in + O::kPad, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int per_image = static_cast<int>(s.pixels) / G::kPixels, tiles = static_cast<int>(s.n) * per_image;
    T* xs = reinterpret_cast<T*>(shared);
    T* ws = xs + in * G::kPitch;
    T* dzs = ws + kOut * w_pitch;  // [kOut, kPitch]
    const int column = warp % G::kWarpsN * 16;
    const int groups = slices(s), warps = kWarps / groups, slice = warp / warps, slice_pixels = G::kPixels / groups;
    load_weights(ws, w, kOut, in);
    float dw[kUnits][2][4] = {};
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int n = tile / per_image, first = tile % per_image * G::kPixels;
        __syncthreads();  // the tile before is done with
        ask<T, G::kPixels, G::kPitch>(xs, x + n * s.in * s.pixels + first, in, s.pixels);
        ask<T, G::kPixels, G::kPitch>(dzs, dz + n * s.out * s.pixels + first, kOut, s.pixels);
        copies_arrived();
        __syncthreads();
        for (int m = warp / G::kWarpsN; m < in / 16; m += G::kWarpsM) {
            float acc[2][4] = {};
#pragma unroll
            for (int k = 0; k < kOut; k += 16)
                O::multiply(acc, O::left_transposed(ws + k * w_pitch + m * 16, w_pitch), O::right(dzs + k * G::kPitch + column, G::kPitch));
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int row = m * 16 + k / 2 * 8 + lane / 4, pixel = column + k % 2 * 8 + lane % 4 * 2;
                const float2 v = O::load2(xs + row * G::kPitch + pixel);
                O::store2(dx + (n * s.in + row) * s.pixels + first + pixel, v.x > 0 ? acc[k % 2][k / 2 * 2] : 0.f, v.y > 0 ? acc[k % 2][k / 2 * 2 + 1] : 0.f);
            }
        }
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            const int unit = warp % warps + u * warps;
            if (unit >= units(s)) continue;
            const T* rows = dzs + unit % (kOut / 16) * 16 * G::kPitch + slice * slice_pixels;
            const T* columns = xs + unit / (kOut / 16) * 16 * G::kPitch + slice * slice_pixels;
            for (int k = 0; k < slice_pixels; k += 16)
                O::multiply(dw[u], O::left(rows + k, G::kPitch), O::rectified(O::right_transposed(columns + k, G::kPitch)));
        }
    }
    float* share = shares + (std::int64_t{blockIdx.x} * groups + slice) * s.out * s.in;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
        const int unit = warp % warps + u * warps;
        if (unit >= units(s)) continue;
        float* at = share + (unit % (kOut / 16) * 16 + lane / 4) * s.in + unit / (kOut / 16) * 16 + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < 4; ++k)
            *reinterpret_cast<float2*>(at + k / 2 * 8 * s.in + k % 2 * 8) = make_float2(dw[u][k % 2][k / 2 * 2], dw[u][k % 2][k / 2 * 2 + 1]);
    }
}

// dw from its shares, in a fixed order: a block takes 32 entries, a warp every eighth share. Grid: entries / 32.
__global__ void __launch_bounds__(kThreads) finish_kernel(const float* shares, int count, int size, float* dw) {
    __shared__ float sums[kWarps][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, entry = blockIdx.x * 32 + lane;
    float sum = 0;
#pragma unroll 8
    for (int k = warp; k < count; k += kWarps) sum += shares[std::int64_t{k} * size + entry];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp != 0) return;
    for (int k = 1; k < kWarps; ++k) sum += sums[k][lane];
    dw[entry] = sum;
}

int tile_pixels(const Shape& s) { return s.out == 64 ? 64 : 128; }
std::int64_t blocks(const Shape& s) {
    const std::int64_t tiles = s.n * (s.pixels / tile_pixels(s));
    return tiles < kMostBlocks ? tiles : kMostBlocks;
}

// Shared memory of a block: x and w, and backward dz.
template <typename T>
std::int64_t forward_bytes(const Shape& s) {
    return (s.in * (tile_pixels(s) + kPitchPad) + s.out * (s.in + Operands<T>::kPad)) * static_cast<std::int64_t>(sizeof(T));
}
template <typename T>
std::int64_t backward_bytes(const Shape& s) {
    return forward_bytes<T>(s) + s.out * (tile_pixels(s) + kPitchPad) * static_cast<std::int64_t>(sizeof(T));
}

template <typename Kernel, typename... Arguments>
Status launch(Kernel kernel, std::int64_t grid, std::int64_t bytes, void* stream, const Arguments&... arguments) {
    HWNAS_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    kernel<<<static_cast<unsigned>(grid), kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
    HWNAS_CUDA_TRY(cudaGetLastError());
    return {};
}

// f(a value of the storage type, std::integral_constant of the channels out)
template <typename F>
Status dispatch(const Shape& s, F f) {
    if (!covers(s)) return {"relu_pointwise takes channels in whole 16s, at most 256, to 16, 32 or 64, whole tiles of pixels, and room for them on the device"};
    const auto typed = [&](auto value) -> Status {
        switch (s.out) {
            case 16: return f(value, std::integral_constant<int, 16>{});
            case 32: return f(value, std::integral_constant<int, 32>{});
            default: return f(value, std::integral_constant<int, 64>{});
        }
    };
    return s.type == Type::kBFloat16 ? typed(bf16{}) : typed(float{});
}

}  // namespace

bool covers(const Shape& s) {
    int device = 0, most = 0;  // bytes that the device gives a block
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return false;
    if ((s.type == Type::kBFloat16 ? backward_bytes<bf16>(s) : backward_bytes<float>(s)) > most) return false;
    return s.n > 0 && s.in % 16 == 0 && s.in >= 16 && s.in <= 256 && (s.out == 16 || s.out == 32 || s.out == 64) && s.pixels > 0 &&
           s.pixels % tile_pixels(s) == 0 && s.n * s.pixels < (std::int64_t{1} << 31);
}

std::int64_t scratch_bytes(const Shape& s) { return blocks(s) * slices(s) * s.in * s.out * 4; }

Status forward_cuda(const Shape& s, const void* x, const void* w, void* z, void* stream) {
    return dispatch(s, [&](auto value, auto out) -> Status {
        using T = decltype(value);
        constexpr int kOut = decltype(out)::value;
        return launch(forward_kernel<T, kOut>, s.n * (s.pixels / tile_pixels(s)), forward_bytes<T>(s), stream, s, static_cast<const T*>(x), static_cast<const float*>(w),
                      static_cast<T*>(z));
    });
}

Status backward_cuda(const Shape& s, const void* dz, const void* x, const void* w, void* dx, void* dw, void* scratch, void* stream) {
    const Status status = dispatch(s, [&](auto value, auto out) -> Status {
        using T = decltype(value);
        constexpr int kOut = decltype(out)::value;
        const auto run = [&](auto kernel) {
            return launch(kernel, blocks(s), backward_bytes<T>(s), stream, s, static_cast<const T*>(dz), static_cast<const T*>(x), static_cast<const float*>(w),
                          static_cast<T*>(dx), static_cast<float*>(scratch));
        };
        const int each = (units(s) * slices(s) + kWarps - 1) / kWarps;
        if (each <= 1) return run(backward_kernel<T, kOut, 1>);
        if (each <= 2) return run(backward_kernel<T, kOut, 2>);
        if (each <= 4) return run(backward_kernel<T, kOut, 4>);
        return run(backward_kernel<T, kOut, 8>);
    });
    if (!status) return status;
    const int size = static_cast<int>(s.in * s.out);
    return launch(finish_kernel, size / 32, 0, stream, static_cast<const float*>(scratch), static_cast<int>(blocks(s) * slices(s)), size, static_cast<float*>(dw));
}

}  // namespace hwnas::relu_pointwise
