// What all kernels of merged programs share: activations, how an operand is read, and which problem a block belongs to.
#pragma once

#include <type_traits>

#include "merged_program/merged_program.h"

namespace hwnas::merged_program {

__device__ inline float activate(Act kind, float v) {
    switch (kind) {
        case Act::kRelu: return fmaxf(v, 0.f);
        case Act::kRelu6: return fminf(fmaxf(v, 0.f), 6.f);
        case Act::kHardswish: return v * fminf(fmaxf(v + 3.f, 0.f), 6.f) / 6.f;
        case Act::kHardsigmoid: return fminf(fmaxf(v + 3.f, 0.f), 6.f) / 6.f;
        case Act::kSigmoid: return 1.f / (1.f + expf(-v));
        case Act::kTanh: return tanhf(v);
        case Act::kSilu: return v / (1.f + expf(-v));
        case Act::kGelu: return 0.5f * v * (1.f + erff(v * 0.70710678118654752f));
        case Act::kElu: return v > 0.f ? v : expm1f(v);
        case Act::kLeakyRelu: return v > 0.f ? v : 0.01f * v;
        default: return v;
    }
}
// Not inlined: no hot path comes here, and the code is long.
__device__ __noinline__ float4 activate(Act kind, float4 v) {
    return make_float4(activate(kind, v.x), activate(kind, v.y), activate(kind, v.z), activate(kind, v.w));
}
__device__ inline float4 relu(float4 v) { return make_float4(fmaxf(v.x, 0.f), fmaxf(v.y, 0.f), fmaxf(v.z, 0.f), fmaxf(v.w, 0.f)); }
__device__ inline bool simple(Act kind) { return kind <= Act::kRelu; }
template <int kCount>
__device__ inline void activate_run(Act kind, float4 (&v)[kCount]) {
    if (kind == Act::kNone) return;
    if (simple(kind)) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] = relu(v[i]);
        return;
    }
#pragma unroll 1
    for (int i = 0; i < kCount; ++i) {  // in turns through one place: the code is there once, and registers need no index
        const float4 made = activate(kind, v[0]);
#pragma unroll
        for (int j = 1; j < kCount; ++j) v[j - 1] = v[j];
        v[kCount - 1] = made;
    }
}
// Of memory that nobody writes during the launch.
__device__ inline float4 load4(const float* p) { return __ldg(reinterpret_cast<const float4*>(p)); }
__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
// The pixel-th after what p points at. One instruction, as long as bytes have 32 bits.
template <typename T>
__device__ inline T* beyond(T* p, int pixel, int pixel_bytes) {
    using Bytes = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Bytes*>(p) + static_cast<std::int64_t>(pixel) * pixel_bytes);
}
__device__ inline float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ inline float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ inline float4 operator*(float4 a, float b) { return make_float4(a.x * b, a.y * b, a.z * b, a.w * b); }
__device__ inline float4 multiply_add(float4 a, float4 b, float4 c) {
    return make_float4(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w));
}
__device__ inline float4 max4(float4 a, float4 b) { return make_float4(fmaxf(a.x, b.x), fmaxf(a.y, b.y), fmaxf(a.z, b.z), fmaxf(a.w, b.w)); }
__device__ inline int padded(int channels) { return (channels + 3) & ~3; }

__device__ inline float inverse(int count) { return __fdividef(1.f, static_cast<float>(count)); }

// a / b, of numbers that are not negative: a third of what division takes.
__device__ inline int quotient(int a, int b) {
    if (b == 1) return a;
    if (a >= 1 << 22) return a / b;
    const int q = static_cast<int>(static_cast<float>(a) * inverse(b)), rest = a - q * b;
    return q + (rest >= b) - (rest < 0);
}

// What a reader does to 4 channels of an operand. Pixels are counted from the group's first.
struct Reader {
    const float* x;
    int cp, pixel_bytes;  // channels as they lie, and what they take
    bool affine;
    float4 scale, shift;
    Act first, second;

    __device__ Reader(const Operand& in, int group, std::int64_t group_pixels, int quad)
        : x(in.x), cp(padded(in.channels)), pixel_bytes(4 * cp), affine(in.scale != nullptr), scale(make_float4(1.f, 1.f, 1.f, 1.f)), shift(), first(in.first), second(in.second) {
        if (affine) {
            scale = load4(in.scale + static_cast<std::int64_t>(group) * in.norm_stride + quad * 4);
            shift = load4(in.shift + static_cast<std::int64_t>(group) * in.norm_stride + quad * 4);
        }
        x += group * group_pixels * cp + quad * 4;
        asm("" : "+r"(pixel_bytes));  // or the compiler takes the 4 out, and adds the parts up anew for each pixel
    }
    // To load rows from: taken as it is, where the compiler would add it up anew, in 64 bits, for each of them.
    __device__ const float* address(std::int64_t pixel) const {
        const float* at = x + pixel * cp;
        asm("" : "+l"(at));
        return at;
    }
    __device__ float4 raw(int pixel) const { return load4(beyond(x, pixel, pixel_bytes)); }
    __device__ float4 normed(float4 v) const { return affine ? multiply_add(v, scale, shift) : v; }
    __device__ float4 made(float4 v) const { return activate(second, activate(first, normed(v))); }
    template <int kCount>
    __device__ void made(float4 (&v)[kCount]) const {
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] = normed(v[i]);
        activate_run(first, v);
        activate_run(second, v);
    }
    __device__ float4 operator()(int pixel) const { return made(raw(pixel)); }
    // Whether values are taken as they lie.
    __device__ bool is_plain() const { return !affine && first == Act::kNone && second == Act::kNone; }
    // The same where `simple` knows both activations: ReLU twice is ReLU.
    __device__ bool is_simple() const { return simple(first) && simple(second); }
    __device__ float4 made_simply(float4 v) const {
        v = normed(v);
        return first == Act::kNone && second == Act::kNone ? v : relu(v);
    }
    // That without a branch: max(v * scale + shift, floor).
    __device__ float floor() const { return first == Act::kNone && second == Act::kNone ? -__int_as_float(0x7f800000) : 0.f; }
};

// Brings a launch's row into shared memory: a block reads its fields again and again.
template <typename Row>
__device__ inline void fetch(Row& to, const Row& from) {
    static_assert(sizeof(Row) % 4 == 0, "rows are words");
    for (unsigned i = threadIdx.x; i < sizeof(Row) / 4; i += blockDim.x) reinterpret_cast<int*>(&to)[i] = __ldg(reinterpret_cast<const int*>(&from) + i);
    __syncthreads();
}

// The last problem that begins at this block or before; a warp looks at 32 places at once, first where it would be if all were
// equally large.
__device__ inline int find_problem(const std::int32_t* begin, int count, int block) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto before = [&](int at, int end) { return __popc(__ballot_sync(0xffffffffu, at < end && __ldg(begin + at) <= block)); };
    int low = min(max(static_cast<int>(static_cast<float>(block) * inverse(gridDim.x) * static_cast<float>(count)) - 16, 0), max(count - 32, 0));
    const int found = before(low + lane, count);
    if (found && (found < 32 || low + 32 >= count)) return low + found - 1;
    low = 0;
    for (int span = count; span > 1;) {
        const int step = (span + 31) / 32, moved = (before(low + lane * step, low + span) - 1) * step;
        low += moved;
        span = min(step, span - moved);
    }
    return low;
}

}  // namespace hwnas::merged_program
