// The kernels. A block's tile: pixels of one group by output channels.
#pragma once

#include "common/tf32.cuh"
#include "merged_program/merged_program.h"

namespace hwnas::merged_program {

constexpr int kMapThreads = 256;
constexpr int dense_threads(Shape shape) { return shape == Shape::kDense64 ? 256 : 128; }

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
__device__ inline float4 activate(Act kind, float4 v) {
    if (kind == Act::kNone) return v;
    if (kind == Act::kRelu) return make_float4(fmaxf(v.x, 0.f), fmaxf(v.y, 0.f), fmaxf(v.z, 0.f), fmaxf(v.w, 0.f));
    return make_float4(activate(kind, v.x), activate(kind, v.y), activate(kind, v.z), activate(kind, v.w));
}
__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
__device__ inline int padded(int channels) { return (channels + 3) & ~3; }

// What a reader does to 4 channels of an operand.
struct Reader {
    const float* x;
    int cp;
    bool affine;
    float4 scale, shift;
    Act first, second;

    __device__ Reader(const Operand& in, int group, int quad) : x(in.x), cp(padded(in.channels)), affine(in.scale != nullptr), first(in.first), second(in.second) {
        if (affine) {
            scale = load4(in.scale + static_cast<std::int64_t>(group) * in.norm_stride + quad * 4);
            shift = load4(in.shift + static_cast<std::int64_t>(group) * in.norm_stride + quad * 4);
        }
        x += quad * 4;
    }
    __device__ float4 operator()(std::int64_t pixel) const {
        float4 v = load4(x + pixel * cp);
        if (affine) v = make_float4(v.x * scale.x + shift.x, v.y * scale.y + shift.y, v.z * scale.z + shift.z, v.w * scale.w + shift.w);
        return activate(second, activate(first, v));
    }
};

__device__ inline float read(const Operand& in, int group, std::int64_t pixel, int channel) {
    float v = in.x[pixel * padded(in.channels) + channel];
    if (in.scale) {
        const std::int64_t at = static_cast<std::int64_t>(group) * in.norm_stride + channel;
        v = v * in.scale[at] + in.shift[at];
    }
    return activate(in.second, activate(in.first, v));
}

// The last problem that begins at this block or before.
__device__ inline int find_problem(const std::int32_t* begin, int count, int block) {
    int low = 0, high = count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (begin[middle] <= block) low = middle;
        else high = middle - 1;
    }
    return low;
}

// Each thread holds kPixels values of kWidth channels, value i of those that valid(i), j of the tile's channel(j); kRows threads
// share its channels. Two passes, so that nothing cancels. `scratch` holds (kRows + 1) * kChannels floats.
template <int kPixels, int kWidth, int kRows, int kChannels, typename Valid, typename Channel>
__device__ void tile_moments(const float (&value)[kPixels][kWidth], Valid valid, Channel channel, int row, int pixels, float* mean, float* m2, int stored, float* scratch) {
    float* means = scratch + kRows * kChannels;
    for (int pass = 0; pass < 2; ++pass) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            const float centre = pass ? means[channel(j)] : 0.f;
            float sum = 0;
#pragma unroll
            for (int i = 0; i < kPixels; ++i)
                if (valid(i)) sum += pass ? (value[i][j] - centre) * (value[i][j] - centre) : value[i][j];
            scratch[row * kChannels + channel(j)] = sum;
        }
        __syncthreads();
        const int t = threadIdx.x;
        if (t < kChannels) {
            float sum = 0;
            for (int r = 0; r < kRows; ++r) sum += scratch[r * kChannels + t];
            if (!pass) means[t] = sum / static_cast<float>(pixels);
            if (t < stored) (pass ? m2 : mean)[t] = pass ? sum : sum / static_cast<float>(pixels);
        }
    }
}

// y[pixel, o] = after(bias[o] + sum over taps and c of in[pixel shifted by tap, c] * weight[o, c, tap]), on tensor cores. A tile
// is 256 pixels, several images of a small size. Its input, with the border that the kernel needs, is in shared memory once for
// all taps, `depth` channels at a time, and the weights for them, split in two, for some rows of the kernel. A warp makes 64
// pixels (32 for 64 channels) of all its channels.
template <Shape kShape>
__global__ void __launch_bounds__(dense_threads(kShape), kShape == Shape::kDense64 ? 2 : 4) dense_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    constexpr int kThreads = dense_threads(kShape), kN = tile_channels(kShape), kRowTiles = kTilePixels / (kThreads / 32) / 16, kColumnTiles = kN / 8;
    constexpr int kPitch = kN + 8;  // of a row of weights: no two lanes of a fragment in one bank
    extern __shared__ __align__(16) float memory[];
    const int index = find_problem(begin, count, blockIdx.x);
    const Problem& p = problems[index];
    const int local = blockIdx.x - begin[index];
    const int column = local % p.columns, tile = local / p.columns % p.tiles, group = local / p.columns / p.tiles;
    const int tiles_x = (p.wo + p.tile_w - 1) / p.tile_w, tiles_y = (p.ho + p.tile_h - 1) / p.tile_h;
    const int x0 = tile % tiles_x * p.tile_w, y0 = tile / tiles_x % tiles_y * p.tile_h, n0 = tile / tiles_x / tiles_y * p.tile_n;
    const int cp = padded(p.c), op = padded(p.o), o0 = column * kN, t = threadIdx.x, lane = t % 32, g = lane / 4, q = lane % 4;
    const bool pointwise = p.kernel_h * p.kernel_w == 1;
    const int step = pointwise ? 1 : p.stride, jump = pointwise ? p.stride : 1;  // between pixels in shared memory; between those that are loaded
    const int rows = (p.tile_h - 1) * step + (p.kernel_h - 1) * p.dilation + 1, width = (p.tile_w - 1) * step + (p.kernel_w - 1) * p.dilation + 1;
    const int slots = p.tile_n * rows * width, pitch = p.depth + 4, quads = p.depth / 4;
    float* weights = memory + slots * pitch;
    const int half = p.kernel_rows * p.kernel_w * p.depth * kPitch;  // big parts, then small ones

    // Of row i of this lane's fragments (in 8s): where its pixel lies in the output, or -1, and in shared memory.
    const auto pixel = [&](int i) {
        const int m = t / 32 * (kRowTiles * 16) + i * 8 + g, image = m / (p.tile_h * p.tile_w), y = m / p.tile_w % p.tile_h, x = m % p.tile_w;
        const bool inside = image < p.tile_n && n0 + image < p.images && y0 + y < p.ho && x0 + x < p.wo;
        return inside ? ((group * p.images + n0 + image) * p.ho + y0 + y) * p.wo + x0 + x : -1;
    };
    int place[kRowTiles * 2];
#pragma unroll
    for (int i = 0; i < kRowTiles * 2; ++i) {
        const int m = t / 32 * (kRowTiles * 16) + i * 8 + g, image = m / (p.tile_h * p.tile_w), y = m / p.tile_w % p.tile_h, x = m % p.tile_w;
        place[i] = image < p.tile_n ? ((image * rows + y * step) * width + x * step) * pitch + q : q;
    }
    const Operand& in = p.in[0];
    const float* scale = in.scale ? in.scale + static_cast<std::int64_t>(group) * in.norm_stride : nullptr;
    const float* shift = in.scale ? in.shift + static_cast<std::int64_t>(group) * in.norm_stride : nullptr;
    const Act first = in.first, second = in.second;
    float acc[kRowTiles][kColumnTiles][4] = {};
    for (int c0 = 0; c0 < cp; c0 += p.depth)
        for (int k0 = 0; k0 < p.kernel_h; k0 += p.kernel_rows) {
            const int kernel_rows = min(p.kernel_rows, p.kernel_h - k0);
            __syncthreads();
            if (k0 == 0) {
#pragma unroll 4
                for (int i = t; i < slots * quads; i += kThreads) {
                    const int slot = i / quads, c = c0 + i % quads * 4;
                    const int image = slot / (rows * width), y = (y0 * step + slot / width % rows) * jump - p.padding, x = (x0 * step + slot % width) * jump - p.padding;
                    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
                    if (n0 + image < p.images && y >= 0 && y < p.h && x >= 0 && x < p.w && c < cp) {
                        v = load4(in.x + ((static_cast<std::int64_t>(group * p.images + n0 + image) * p.h + y) * p.w + x) * cp + c);
                        if (scale) {
                            const float4 s = load4(scale + c), d = load4(shift + c);
                            v = make_float4(v.x * s.x + d.x, v.y * s.y + d.y, v.z * s.z + d.z, v.w * s.w + d.w);
                        }
                        v = activate(second, activate(first, v));
                    }
                    store4(memory + slot * pitch + i % quads * 4, v);
                }
            }
            const int taps = kernel_rows * p.kernel_w, own = taps * p.depth;
            for (int i = t; i < own * kN; i += kThreads) {
                const int o = i / own, c = i % own / taps, tap = i % taps, ky = k0 + tap / p.kernel_w, kx = tap % p.kernel_w;
                float w = 0.f;
                if (o0 + o < p.o && c0 + c < p.c)
                    w = p.weight[(o0 + o) * p.weight_stride[0] + (c0 + c) * p.weight_stride[1] + ky * p.weight_stride[2] + kx * p.weight_stride[3]];
                const Split split(w);
                float* to = weights + (tap * p.depth + c) * kPitch + o;
                to[0] = __uint_as_float(split.big);
                to[half] = __uint_as_float(split.small);
            }
            __syncthreads();
            for (int tap = 0; tap < taps; ++tap) {
                const int moved = ((k0 + tap / p.kernel_w) * width + tap % p.kernel_w) * p.dilation * pitch;
                for (int k = 0; k < p.depth; k += 8) {
                    unsigned b[kColumnTiles][4];
                    const float* from = weights + (tap * p.depth + k + q) * kPitch + g;
#pragma unroll
                    for (int j = 0; j < kColumnTiles; ++j) {
                        b[j][0] = __float_as_uint(from[j * 8]);
                        b[j][1] = __float_as_uint(from[j * 8 + 4 * kPitch]);
                        b[j][2] = __float_as_uint(from[j * 8 + half]);
                        b[j][3] = __float_as_uint(from[j * 8 + 4 * kPitch + half]);
                    }
#pragma unroll
                    for (int i = 0; i < kRowTiles; ++i) {
                        const float *upper = memory + place[2 * i] + moved + k, *lower = memory + place[2 * i + 1] + moved + k;
                        const Split a[4] = {Split(upper[0]), Split(lower[0]), Split(upper[4]), Split(lower[4])};
                        const unsigned big[4] = {a[0].big, a[1].big, a[2].big, a[3].big}, small[4] = {a[0].small, a[1].small, a[2].small, a[3].small};
#pragma unroll
                        for (int j = 0; j < kColumnTiles; ++j) mma_tf32(acc[i][j], small, b[j][0], b[j][1]);
#pragma unroll
                        for (int j = 0; j < kColumnTiles; ++j) mma_tf32(acc[i][j], big, b[j][2], b[j][3]);
#pragma unroll
                        for (int j = 0; j < kColumnTiles; ++j) mma_tf32(acc[i][j], big, b[j][0], b[j][1]);
                    }
                }
            }
        }

    float value[kRowTiles * 2][kColumnTiles * 2];
    const auto channel = [&](int j) { return j / 2 * 8 + 2 * q + j % 2; };
#pragma unroll
    for (int j = 0; j < kColumnTiles * 2; ++j) {
        const int o = o0 + channel(j);
        const float bias = p.bias && o < p.o ? p.bias[o] : 0.f;
#pragma unroll
        for (int i = 0; i < kRowTiles * 2; ++i) value[i][j] = activate(p.after, acc[i / 2][j / 2][i % 2 * 2 + j % 2] + bias);
    }
    int at[kRowTiles * 2];
#pragma unroll
    for (int i = 0; i < kRowTiles * 2; ++i) {
        at[i] = pixel(i);
        if (at[i] < 0) continue;
        float* to = p.y + static_cast<std::int64_t>(at[i]) * op + o0;
#pragma unroll
        for (int j = 0; j < kColumnTiles * 2; j += 2)
            if (o0 + channel(j) < op) *reinterpret_cast<float2*>(to + channel(j)) = make_float2(value[i][j], value[i][j + 1]);
    }
    if (p.mean) {
        const int here = min(p.tile_n, p.images - n0) * min(p.tile_h, p.ho - y0) * min(p.tile_w, p.wo - x0);
        const std::int64_t moment = static_cast<std::int64_t>(group) * p.tiles + tile;
        if (t == 0) p.count[moment] = static_cast<float>(here);
        tile_moments<kRowTiles * 2, kColumnTiles * 2, kThreads / 4, kN>(
            value, [&](int i) { return at[i] >= 0; }, channel, t / 4, here, p.mean + moment * op + o0, p.m2 + moment * op + o0, op - o0, memory);
    }
}

// Everything else. A thread: 4 pixels, 64 apart, by 4 channels, so that 4 loads are on their way at once.
struct Place {
    std::int64_t image;
    int y, x;
    bool inside;
};
struct Four {
    float4 v[4];
};

// Sums in.v * taps, or the largest or the mean of in.v, over a window.
template <Kind kKind>
__device__ Four window(const Problem& p, int group, const Place (&place)[4], int quad, const float* taps) {
    const Reader in(p.in[0], group, quad);
    Four sum = {};
    int found[4] = {};
    for (int ky = 0; ky < p.kernel_h; ++ky)
        for (int kx = 0; kx < p.kernel_w; ++kx) {
            float4 k = make_float4(1.f, 1.f, 1.f, 1.f);
            if (kKind == Kind::kDepthwise) k = load4(taps + (ky * p.kernel_w + kx) * 16 + quad % 4 * 4);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = place[i].y * p.stride - p.padding + ky * p.dilation, col = place[i].x * p.stride - p.padding + kx * p.dilation;
                if (!place[i].inside || row < 0 || row >= p.h || col < 0 || col >= p.w) continue;
                const float4 v = in((place[i].image * p.h + row) * p.w + col);
                float4& s = sum.v[i];
                if (kKind == Kind::kMaxPool) s = found[i] ? make_float4(fmaxf(s.x, v.x), fmaxf(s.y, v.y), fmaxf(s.z, v.z), fmaxf(s.w, v.w)) : v;
                else s = make_float4(s.x + v.x * k.x, s.y + v.y * k.y, s.z + v.z * k.z, s.w + v.w * k.w);
                ++found[i];
            }
        }
    if (kKind == Kind::kAvgPool)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float n = static_cast<float>(found[i] ? found[i] : 1);
            sum.v[i] = make_float4(sum.v[i].x / n, sum.v[i].y / n, sum.v[i].z / n, sum.v[i].w / n);
        }
    return sum;
}

__device__ inline Four total(const Problem& p, int group, const Place (&place)[4], int quad) {
    Four sum = {};
    for (int term = 0; term < p.terms; ++term) {
        const Reader in(p.in[term], group, quad);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (place[i].inside) {
                const float4 v = in((place[i].image * p.h + place[i].y) * p.w + place[i].x);
                sum.v[i] = make_float4(sum.v[i].x + v.x, sum.v[i].y + v.y, sum.v[i].z + v.z, sum.v[i].w + v.w);
            }
    }
    return sum;
}

__device__ inline float4 gathered(const Problem& p, int group, const Place& at, int quad) {
    const std::int64_t row = (at.image * p.h + at.y) * p.w + at.x;
    if (p.kind == Kind::kScale) {
        const float4 u = Reader(p.in[0], group, quad)(row), v = Reader(p.in[1], group, quad)(at.image);
        return make_float4(u.x * v.x, u.y * v.y, u.z * v.z, u.w * v.w);
    }
    if (p.kind == Kind::kShift && at.y + 1 < p.h && at.x + 1 < p.w) return Reader(p.in[0], group, quad)(row + p.w + 1);
    float v[4] = {};
    if (p.kind == Kind::kConcat || p.kind == Kind::kFlatten)
        for (int j = 0; j < 4; ++j) {
            const int channel = quad * 4 + j;
            if (channel >= p.o) continue;
            if (p.kind == Kind::kFlatten) {  // in the order of channels, rows, columns
                v[j] = read(p.in[0], group, at.image * p.h * p.w + channel % (p.h * p.w), channel / (p.h * p.w));
                continue;
            }
            int term = 0, inner = channel;
            while (inner >= p.in[term].channels) inner -= p.in[term++].channels;
            v[j] = read(p.in[term], group, row, inner);
        }
    return make_float4(v[0], v[1], v[2], v[3]);
}

inline constexpr int kMaxTaps = 121;  // of a depthwise kernel

__global__ void __launch_bounds__(kMapThreads) map_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    constexpr int kN = tile_channels(Shape::kMap), kRows = kMapThreads / 4;
    static_assert(kRows * 4 == kTilePixels, "a thread has 4 pixels");
    __shared__ __align__(16) float memory[kMaxTaps * kN];
    static_assert((kRows + 1) * kN <= kMaxTaps * kN, "moments share the taps' memory");
    const int index = find_problem(begin, count, blockIdx.x);
    const Problem& p = problems[index];
    const int local = blockIdx.x - begin[index];
    const int column = local % p.columns, tile = local / p.columns % p.tiles, group = local / p.columns / p.tiles;
    const int out_pixels = p.ho * p.wo, pixels = p.images * out_pixels, start = tile * kTilePixels, here = min(kTilePixels, pixels - start);
    const int op = padded(p.o), t = threadIdx.x, quad = column * 4 + t % 4;
    if (p.kind == Kind::kDepthwise) {
        for (int i = t; i < p.kernel_h * p.kernel_w * kN; i += kMapThreads) {
            const int tap = i / kN, c = column * kN + i % kN;
            memory[i] = c < p.c ? p.weight[c * p.weight_stride[0] + tap / p.kernel_w * p.weight_stride[2] + tap % p.kernel_w * p.weight_stride[3]] : 0.f;
        }
        __syncthreads();
    }
    Place place[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int at = t / 4 + i * kRows, pixel = start + at, inner = pixel % out_pixels;
        place[i] = {static_cast<std::int64_t>(group) * p.images + pixel / out_pixels, inner / p.wo, inner % p.wo, at < here && quad * 4 < op};
    }
    Four found = {};
    switch (p.kind) {
        case Kind::kAdd: found = total(p, group, place, quad); break;
        case Kind::kDepthwise: found = window<Kind::kDepthwise>(p, group, place, quad, memory); break;
        case Kind::kMaxPool: found = window<Kind::kMaxPool>(p, group, place, quad, memory); break;
        case Kind::kAvgPool: found = window<Kind::kAvgPool>(p, group, place, quad, memory); break;
        default:
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (place[i].inside) found.v[i] = gathered(p, group, place[i], quad);
    }
    float4 bias = make_float4(0.f, 0.f, 0.f, 0.f);
    if (p.bias && quad * 4 < op)
        bias = make_float4(p.bias[quad * 4], quad * 4 + 1 < p.o ? p.bias[quad * 4 + 1] : 0.f, quad * 4 + 2 < p.o ? p.bias[quad * 4 + 2] : 0.f,
                           quad * 4 + 3 < p.o ? p.bias[quad * 4 + 3] : 0.f);
    float value[4][4];
    const std::int64_t base = static_cast<std::int64_t>(group) * pixels + start;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float4 s = found.v[i], v = activate(p.after, make_float4(s.x + bias.x, s.y + bias.y, s.z + bias.z, s.w + bias.w));
        if (place[i].inside) store4(p.y + (base + t / 4 + i * kRows) * op + quad * 4, v);
        value[i][0] = v.x;
        value[i][1] = v.y;
        value[i][2] = v.z;
        value[i][3] = v.w;
    }
    if (p.mean) {
        const std::int64_t moment = static_cast<std::int64_t>(group) * p.tiles + tile, at = moment * op + column * kN;
        if (t == 0) p.count[moment] = static_cast<float>(here);
        tile_moments<4, 4, kRows, kN>(
            value, [&](int i) { return place[i].inside; }, [&](int j) { return t % 4 * 4 + j; }, t / 4, here, p.mean + at, p.m2 + at, op - column * kN, memory);
    }
}

// A block: a group's 16 channels of a norm; a thread: one channel, every 16th tile. Moments are put together in double precision.
__global__ void __launch_bounds__(kMapThreads) norm_kernel(const Norm* norms, const std::int32_t* begin, int count) {
    constexpr int kN = tile_channels(Shape::kNorm), kRows = kMapThreads / kN;
    __shared__ double sums[kRows][kN];
    const int index = find_problem(begin, count, blockIdx.x);
    const Norm& p = norms[index];
    const int local = blockIdx.x - begin[index], group = local % p.groups;
    const int inner = threadIdx.x % kN, row = threadIdx.x / kN, c = local / p.groups * kN + inner, cp = padded(p.c);
    double moment[3] = {0, 0, 0};  // pixels, mean, sum of squared distances from it
    for (int pass = 0; pass < 3; ++pass) {
        double sum = 0;
        if (c < cp)
            for (int tile = row; tile < p.tiles; tile += kRows) {
                const std::int64_t place = static_cast<std::int64_t>(group) * p.tiles + tile;
                const double n = p.count[place], mean = p.mean[place * cp + c];
                sum += pass == 0 ? n : pass == 1 ? n * mean : p.m2[place * cp + c] + n * (mean - moment[1]) * (mean - moment[1]);
            }
        __syncthreads();
        sums[row][inner] = sum;
        __syncthreads();
        for (int r = 0; r < kRows; ++r) moment[pass] += sums[r][inner];
        if (pass == 1) moment[1] /= moment[0];
    }
    const double pixels = moment[0];
    if (row || c >= cp) return;
    const std::int64_t at = static_cast<std::int64_t>(group) * p.norm_stride + c;
    const float gamma = c < p.c ? (p.gamma ? p.gamma[c] : 1.f) : 0.f, beta = c < p.c && p.beta ? p.beta[c] : 0.f;
    const double scale = gamma / sqrt(moment[2] / pixels + static_cast<double>(p.eps));
    p.scale[at] = static_cast<float>(scale);
    p.shift[at] = static_cast<float>(beta - moment[1] * scale);
    p.batch_mean[at] = static_cast<float>(moment[1]);
    p.batch_var[at] = static_cast<float>(moment[2] / (pixels > 1 ? pixels - 1 : 1));
}

}  // namespace hwnas::merged_program
