// The tile that the tuned convolution kernels work on, and how it gets into shared memory.
#pragma once

#include "mixed_cell/vector.cuh"

namespace hwnas::mixed_cell::cuda {

// A tile: 16 output rows (two images of 8, where a plane has only 8) times the whole width, so that a tile and all channels make
// 8192 outputs, 32 a thread. Input planes lie in shared memory with 4 rows above and below, and 4 columns left of the first.
// Matrices [c, pixels] have rows 16 bytes apart modulo the banks.
template <typename T_, int C_, int OW_, int S_>
struct Geometry {
    using T = T_;
    static constexpr int C = C_, OW = OW_, S = S_, IW = OW * S, P = 16 * OW, NT = OW / 8;
    static constexpr bool kPacked = OW == 8;  // two images a tile
    static constexpr int kPart = kPacked ? 8 * S + 8 : 16 * S + 8, ROWS = kPacked ? 2 * kPart : kPart;
    static constexpr int PITCH = IW + 8, PLANE = ROWS * PITCH;
    static constexpr int DP = P + 16 / static_cast<int>(sizeof(T));
    static constexpr int MT = C / 16, NW = P / 64;  // 16-row blocks of c; 8-pixel blocks a warp has
    // A warp has kEach channels; it asks for the rows of kBatch at a time, 16 bytes a load, and works on kGroup at a time.
    static constexpr int kRowWords = IW * static_cast<int>(sizeof(T)) / 16, kLoads = (ROWS * kRowWords + 31) / 32;
    static constexpr int kEach = C / kWarps, kBatch = kEach * kLoads <= 8 ? kEach : 4 * kLoads <= 8 ? 4 : 2 * kLoads <= 8 ? 2 : 1;
    static constexpr int kGroup = sizeof(T) == 4 || NT >= 4 || kBatch == 1 ? 1 : NT == 1 && kBatch >= 4 ? 4 : 2;
    static constexpr int kPlanes = kWarps * kGroup * PLANE;  // elements of shared memory for all warps' planes
    static_assert(C * P == 8192, "32 accumulators a thread");
    __device__ static int row(int m) { return kPacked ? m / 8 * kPart + m % 8 * S + 4 : m * S + 4; }
    __host__ __device__ static int tiles(int n, int oh) { return kPacked ? (n + 1) / 2 : n * (oh / 16); }
    // Order of a tile's pixels in [c, pixels] matrices: row by row, except that rows of 32 bfloat16 are split in halves, which
    // spreads the rows of a depthwise product over twice the banks.
    static constexpr bool kSplit = OW == 32 && sizeof(T) == 2;
    __device__ static int position(int m, int w) { return kSplit ? w / 16 * 256 + m * 16 + w % 16 : m * OW + w; }
    // Block nt of 8 pixels of a warp, from its first pixel, in the plane.
    __device__ static constexpr int block(int nt) { return kSplit ? nt / 2 * OW + nt % 2 * 8 : nt * 8; }
    // The first pixel of a warp: its image and its place in the plane.
    __device__ static void place(int tile, int warp, int oh, int& n, int& at) {
        const int q = warp * (P / kWarps);
        if (kPacked) {
            n = tile * 2 + q / 64;
            at = q % 64;
        } else {
            const int strips = oh / 16;
            n = tile / strips;
            at = tile % strips * P + (kSplit ? q % 256 / 16 * OW + q / 256 * 16 : q);
        }
    }
    static bool covers(const Plan<T>& p, bool strided) {
        return p.c == C && p.ow == OW && (kPacked ? p.oh == 8 : p.oh % 16 == 0) && strided == (S == 2) &&
               (S == 1 || (p.h == 2 * p.oh && p.w == 2 * p.ow));
    }
};

// Neighbouring values through ReLU(norm(x)) or ReLU(x).
__device__ __forceinline__ void rectify(uint4& x, bool normed, const Pair<float>& norm) {
    unsigned* words = reinterpret_cast<unsigned*>(&x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        __nv_bfloat162& pair = reinterpret_cast<__nv_bfloat162&>(words[k]);
        if (normed) {
            const float2 f = __bfloat1622float2(pair);
            const float scale = norm.b, shift = -norm.a * scale;
            pair = __floats2bfloat162_rn(fmaxf(fmaf(f.x, scale, shift), 0.f), fmaxf(fmaf(f.y, scale, shift), 0.f));
        } else {
            pair = __hmax2(pair, __floats2bfloat162_rn(0.f, 0.f));
        }
    }
}
__device__ __forceinline__ void rectify(float4& x, bool normed, const Pair<float>& norm) {
    float* v = reinterpret_cast<float*>(&x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (normed) v[k] = (v[k] - norm.a) * norm.b;
        v[k] = fmaxf(v[k], 0.f);
    }
}
__device__ __forceinline__ void put(__nv_bfloat16* to, const uint4& x) {  // 8-byte aligned
    reinterpret_cast<uint2*>(to)[0] = make_uint2(x.x, x.y);
    reinterpret_cast<uint2*>(to)[1] = make_uint2(x.z, x.w);
}
__device__ __forceinline__ void put(float* to, const float4& x) { *reinterpret_cast<float4*>(to) = x; }

template <typename T>
struct Word16;  // 16 bytes of T
template <>
struct Word16<__nv_bfloat16> {
    using Type = uint4;
};
template <>
struct Word16<float> {
    using Type = float4;
};

// One tile's rows of one channel, on their way through a warp's registers into a plane in shared memory: several channels' loads
// are in flight before the first is used, because waiting for one after the other took most of a tile's time.
template <typename G>
class Rows {
    using T = typename G::T;
    using Word = typename Word16<T>::Type;
    static constexpr int kValues = 16 / sizeof(T);

public:
    using Words = Word[G::kLoads];
    // c: the first channel that this warp will ask for.
    __device__ Rows(const Plan<T>& p, const View<const T>& x, int tile, int c) {
        const int strips = G::kPacked ? 1 : p.oh / 16, lane = threadIdx.x % 32, n0 = G::kPacked ? tile * 2 : tile / strips;
        inside_ = 0;
#pragma unroll
        for (int k = 0; k < G::kLoads; ++k) {
            const int i = lane + k * 32, row = i / G::kRowWords;
            const int n = G::kPacked ? n0 + row / G::kPart : n0;
            const int y = G::kPacked ? row % G::kPart - 4 : tile % strips * 16 * G::S + row - 4;
            offset_[k] = static_cast<int>((n - n0) * x.image) + y * G::IW + i % G::kRowWords * kValues;
            if (i < G::ROWS * G::kRowWords && y >= 0 && y < x.h && n < p.n) inside_ |= 1u << k;
        }
        plane_ = x.h * G::IW;
        from_ = x.data + n0 * x.image + std::int64_t{c} * plane_;
    }
    // `channel`: counted from the first.
    __device__ __forceinline__ void load(int channel, Words& to) const {
#pragma unroll
        for (int k = 0; k < G::kLoads; ++k) {
            to[k] = Word{};
            if (inside_ >> k & 1) to[k] = __ldg(reinterpret_cast<const Word*>(from_ + channel * plane_ + offset_[k]));
        }
    }
    // Through ReLU(norm(x)) or, if not `normed`, ReLU(x), if kRectify says so. Side columns stay.
    template <bool kRectify = true>
    __device__ __forceinline__ void put(Words& from, bool normed, const Pair<float>& norm, T* plane) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < G::kLoads; ++k) {
            const int i = lane + k * 32;
            if (i >= G::ROWS * G::kRowWords) continue;
            if (kRectify && (inside_ >> k & 1)) rectify(from[k], normed, norm);
            cuda::put(plane + i / G::kRowWords * G::PITCH + 4 + i % G::kRowWords * kValues, from[k]);
        }
    }

private:
    const T* from_;
    int plane_, offset_[G::kLoads];
    unsigned inside_;
};

// One tile's plane of channel c, by one warp.
template <typename G, bool kRectify = true, typename T>
__device__ __forceinline__ void load_plane(const Plan<T>& p, const View<const T>& x, const Pair<float>* norms, int c, int tile, T* plane) {
    const Rows<G> rows(p, x, tile, c);
    typename Rows<G>::Words words;
    rows.load(0, words);
    rows.template put<kRectify>(words, norms != nullptr, norms ? norms[c] : Pair<float>{}, plane);
}

// By one warp.
template <typename G, typename T>
__device__ __forceinline__ void clear_sides(int channels, T* planes) {
    for (int i = threadIdx.x % 32; i < channels * G::ROWS; i += 32) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            planes[i * G::PITCH + k] = T(0.f);
            planes[i * G::PITCH + 4 + G::IW + k] = T(0.f);
        }
    }
}

// What a warp of the depthwise gradients computes: all four convolutions that read a state (input gradient, weight gradient or both), or one convolution.
enum class Depthwise { kState, kStateInput, kOneWeight, kSecond };

__device__ __forceinline__ void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ __forceinline__ void copies_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }  // of this thread: a barrier follows
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {  // zeros if not inside; `from` must be readable
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
// Pointwise weights of a block: they go to shared memory while the tile loads, unless they would leave no room for a second block.
template <typename G>
struct Staged {
    static constexpr int kMatrix = G::C * G::C * (sizeof(typename G::T) == 4 ? 2 : 1) / (sizeof(typename G::T) == 4 ? 1 : 2);
    static constexpr int kWords = kMatrix <= 2048 ? kMatrix : 0;
    __device__ static const unsigned* stage(unsigned* shared, const unsigned* weights) {
        if (kWords == 0) return weights;
        for (int i = threadIdx.x; i < kWords / 4; i += kThreads) copy_async(shared + 4 * i, weights + 4 * i);
        return shared;
    }
};

// Two neighbouring values.
__device__ __forceinline__ float2 load2(const float* x) { return *reinterpret_cast<const float2*>(x); }
__device__ __forceinline__ float2 load2(const __nv_bfloat16* x) { return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(x)); }
__device__ __forceinline__ void store2(float* y, float a, float b) { *reinterpret_cast<float2*>(y) = make_float2(a, b); }
__device__ __forceinline__ void store2(__nv_bfloat16* y, float a, float b) { *reinterpret_cast<__nv_bfloat162*>(y) = __floats2bfloat162_rn(a, b); }
__device__ __forceinline__ float2 rounded(const float*, float a, float b) { return make_float2(a, b); }
__device__ __forceinline__ float2 rounded(const __nv_bfloat16*, float a, float b) { return __bfloat1622float2(__floats2bfloat162_rn(a, b)); }

}  // namespace hwnas::mixed_cell::cuda
