// The tile that the tuned convolution kernels work on, and how it gets into shared memory.
#pragma once

#include "common/async_copy.cuh"
#include "common/tensor_core.cuh"
#include "mixed_cell/vector.cuh"

namespace hwnas::mixed_cell::cuda {

// A tile: 16 output rows (two images of 8, where a plane has only 8) times the whole width, so that a tile and all channels make
// 8192 outputs, 32 a thread. Input planes lie in shared memory with 4 rows above and below, and 4 columns left of the first; in
// float32 a row's right border is the next row's left one, which keeps lanes' windows in different banks.
template <typename T_, int C_, int OW_, int S_>
struct Geometry {
    using T = T_;
    static constexpr int C = C_, OW = OW_, S = S_, IW = OW * S, P = 16 * OW, NT = OW / 8;
    static constexpr bool kPacked = OW == 8, kFloat = sizeof(T) == 4;  // kPacked: two images a tile
    static constexpr int kPart = kPacked ? 8 * S + 8 : 16 * S + 8, ROWS = kPacked ? 2 * kPart : kPart;
    static constexpr int PITCH = IW + (kFloat ? 4 : 8), PLANE = ROWS * PITCH + (kFloat ? 4 : 0);
    // Warps of a product: kWarpsM blocks of rows times kWarpsN of pixels, in 16-row blocks MT of c and 8-pixel blocks NW a warp.
    static constexpr int MT = C / 16, kWarpsM = C == 64 ? 2 : 1, kWarpsN = kWarps / kWarpsM, NW = P / 8 / kWarpsN;
    // A warp has kEach channels; it asks for the rows of kBatch at a time, 16 bytes a load, and works on kGroup at a time.
    static constexpr int kRowWords = IW * static_cast<int>(sizeof(T)) / 16, kLoads = (ROWS * kRowWords + 31) / 32;
    static constexpr int kEach = C / kWarps, kBatch = kEach * kLoads <= 8 ? kEach : 4 * kLoads <= 8 ? 4 : 2 * kLoads <= 8 ? 2 : 1;
    static constexpr int kGroup = kFloat ? (S == 1 && OW <= 16 ? 2 : 1) : NT >= 4 || kBatch == 1 ? 1 : NT == 1 && kBatch >= 4 ? 4 : 2;
    static constexpr int kPlanes = kWarps * kGroup * PLANE;  // elements of shared memory for all warps' planes
    static_assert(C * P == 8192, "32 accumulators a thread");
    // Pixel q of channel c in a [c, pixels] matrix in shared memory, whole 16 bytes together. Both ways in which a product reads
    // it find different banks: bfloat16 rows are 16 bytes apart modulo the banks; float32 ones are permuted by groups of 4.
    static constexpr int DP = P + (kFloat ? 0 : 8), kMatrix = C * DP;
    __device__ static int at(unsigned c, unsigned q) { return c * DP + (kFloat ? q ^ (4 * (c % 4) | c % 2 * 16) : q); }
    __device__ static int row(unsigned m) { return kPacked ? m / 8 * kPart + m % 8 * S + 4 : m * S + 4; }
    __host__ __device__ static int tiles(int n, int oh) { return kPacked ? (n + 1) / 2 : n * (oh / 16); }
    // Order of a tile's pixels in [c, pixels] matrices: row by row, except that rows of 32 bfloat16 are split in halves, which
    // spreads the rows of a depthwise product over twice the banks.
    static constexpr bool kSplit = OW == 32 && sizeof(T) == 2;
    __device__ static int position(unsigned m, unsigned w) { return kSplit ? w / 16 * 256 + m * 16 + w % 16 : m * OW + w; }
    // Block nt of 8 pixels of a warp, from its first pixel, in the plane.
    __device__ static constexpr int block(int nt) { return kSplit ? nt / 2 * OW + nt % 2 * 8 : nt * 8; }
    // The first 16-row block of `blocks` that a warp has in a product, and its first pixel: in the tile's order, and as its image
    // and its place in the plane.
    __device__ static int first_block(int warp, int blocks) { return warp / kWarpsN * (blocks / kWarpsM); }
    __device__ static int first_pixel(int warp) { return warp % kWarpsN * (NW * 8); }
    __device__ static void place(const Plan<T>& p, int tile, int warp, int& n, int& at) {
        const int q = first_pixel(warp);
        if (kPacked) {
            n = tile * 2 + q / 64;
            at = q % 64;
        } else {
            int strip;
            p.by_strips.divide(tile, n, strip);
            at = strip * P + (kSplit ? q % 256 / 16 * OW + q / 256 * 16 : q);
        }
    }
    // A tile's first image, and the first of its rows in it.
    __device__ static void start(const Plan<T>& p, int tile, int& n, int& row) {
        n = tile * 2;
        row = 0;
        if (kPacked) return;
        p.by_strips.divide(tile, n, row);
        row *= 16;
    }
    static bool covers(const Plan<T>& p, bool strided) {
        return p.c == C && p.ow == OW && (kPacked ? p.oh == 8 : p.oh % 16 == 0) && strided == (S == 2) &&
               (S == 1 || (p.h == 2 * p.oh && p.w == 2 * p.ow));
    }
};

// Neighbouring values through ReLU(norm(x)) or ReLU(x).
template <bool kNormed>
__device__ __forceinline__ void rectify(uint4& x, const Pair<float>& norm) {
    unsigned* words = reinterpret_cast<unsigned*>(&x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        __nv_bfloat162& pair = reinterpret_cast<__nv_bfloat162&>(words[k]);
        if (kNormed) {
            const float2 f = __bfloat1622float2(pair);
            const float scale = norm.b, shift = -norm.a * scale;
            pair = __floats2bfloat162_rn(fmaxf(fmaf(f.x, scale, shift), 0.f), fmaxf(fmaf(f.y, scale, shift), 0.f));
        } else {
            pair = __hmax2(pair, __floats2bfloat162_rn(0.f, 0.f));
        }
    }
}
template <bool kNormed>
__device__ __forceinline__ void rectify(float4& x, const Pair<float>& norm) {
    float* v = reinterpret_cast<float*>(&x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (kNormed) v[k] = (v[k] - norm.a) * norm.b;
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
    static constexpr int kValues = 16 / sizeof(T), kImageWords = G::kPart * G::kRowWords;

public:
    using Words = Word[G::kLoads];
    // c: the first channel that this warp will ask for.
    __device__ Rows(const Plan<T>& p, const View<const T>& x, int tile, int c) : plane_(x.h * G::IW), image_(static_cast<int>(x.image)) {
        const int lane = threadIdx.x % 32;
        int n, first_row;
        G::start(p, tile, n, first_row);
        first_row = first_row * G::S - 4;
        inside_ = 0;
#pragma unroll
        for (int k = 0; k < G::kLoads; ++k) {
            const int i = lane + k * 32, row = i / G::kRowWords;
            const unsigned y = G::kPacked ? row % G::kPart - 4 : first_row + row;
            if (i < G::ROWS * G::kRowWords && y < static_cast<unsigned>(x.h) && (!G::kPacked || n + row / G::kPart < p.n)) inside_ |= 1u << k;
        }
        from_ = x.data + n * x.image + std::int64_t{c} * plane_ + first_row * G::IW + lane * kValues;
    }
    // `channel`: counted from the first.
    __device__ __forceinline__ void load(int channel, Words& to) const {
        const T* from = from_ + channel * plane_;
#pragma unroll
        for (int k = 0; k < G::kLoads; ++k) {  // rows lie one after the other, images do not
            const int image = G::kPacked ? (threadIdx.x % 32 + k * 32) / kImageWords : 0;
            to[k] = Word{};
            if (inside_ >> k & 1) to[k] = __ldg(reinterpret_cast<const Word*>(from + image * (image_ - G::kPart * G::IW) + k * 32 * kValues));
        }
    }
    // Through ReLU(norm(x)) or, if not `normed`, ReLU(x). Side columns stay.
    __device__ __forceinline__ void put(Words& from, bool normed, const Pair<float>& norm, T* plane) const {
        if (normed) put<true>(from, norm, plane);
        else put<false>(from, norm, plane);
    }

private:
    template <bool kNormed>
    __device__ __forceinline__ void put(Words& from, const Pair<float>& norm, T* plane) const {
        const int lane = threadIdx.x % 32;
        plane += lane / G::kRowWords * G::PITCH + 4 + lane % G::kRowWords * kValues;
#pragma unroll
        for (int k = 0; k < G::kLoads; ++k) {
            if (G::ROWS * G::kRowWords % 32 != 0 && lane + k * 32 >= G::ROWS * G::kRowWords) continue;
            if (!kNormed || (inside_ >> k & 1)) rectify<kNormed>(from[k], norm);  // what is outside is zero, and stays it
            cuda::put(plane + k * (32 / G::kRowWords) * G::PITCH, from[k]);
        }
    }

    const T* from_;
    int plane_, image_;
    unsigned inside_;
};

// By one warp.
template <typename G, typename T>
__device__ __forceinline__ void clear_sides(int channels, T* planes) {
    constexpr int kRows = G::ROWS + (G::kFloat ? 1 : 0);  // the border right of a plane's last row is left of none
    for (int i = threadIdx.x % 32; i < channels * kRows; i += 32) {
        T* row = planes + i / kRows * G::PLANE + i % kRows * G::PITCH;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            row[k] = T(0.f);
            if (!G::kFloat) row[4 + G::IW + k] = T(0.f);
        }
    }
}

// A tile of the first kRows channels of a [n, c, h, w] tensor and a [channels, pixels] matrix in shared memory, by the whole block,
// 16 bytes at a time: f(place in the matrix, in the tensor, whether it is there). kNatural: the tensor has its pixels in their own
// order, else in the tile's, as nobody else reads it.
template <typename G, int kRows, bool kNatural, typename T, typename F>
__device__ __forceinline__ void each_word(const Plan<T>& p, int tile, F f) {
    constexpr int kValues = 16 / sizeof(T), kWords = G::P / kValues, kStep = kThreads / kWords;  // a thread's words are kStep channels apart
    const int i = threadIdx.x, c = i / kWords, q = i % kWords * kValues, position = kNatural ? G::position(q / G::OW, q % G::OW) : q;
    int n, row;
    G::start(p, tile, n, row);
    if (G::kPacked) n += q / 64;
    const int plane = static_cast<int>(p.plane());
    std::int64_t from = (std::int64_t{n} * G::C + c) * plane + row * G::OW + (G::kPacked ? q % 64 : q);
    const bool there = !G::kPacked || n < p.n;
    const int places[2] = {G::at(c, position), G::at(c + kStep, position) - kStep * G::DP};  // rows 2 * kStep apart are permuted alike
#pragma unroll
    for (int k = 0; k < kRows / kStep; ++k, from += kStep * plane) f(places[k % 2] + k * kStep * G::DP, from, there);
}

// As they are stored.
__device__ __forceinline__ float2 rounded(const float*, float a, float b) { return make_float2(a, b); }
__device__ __forceinline__ float2 rounded(const __nv_bfloat16*, float a, float b) { return __bfloat1622float2(__floats2bfloat162_rn(a, b)); }

}  // namespace hwnas::mixed_cell::cuda
