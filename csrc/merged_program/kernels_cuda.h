// The kernels. A block's tile: pixels of one group by output channels.
#pragma once

#include "merged_program/merged_program.h"

namespace hwnas::merged_program {

constexpr int kDenseThreads = 128, kMapThreads = 256;
constexpr int kDepth = 8;  // input channels of a dense tile at a time

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

// Each thread holds kPixels values of kWidth channels, value i valid if pixel(i) < pixels; kRows threads share its channels.
// Two passes, so that nothing cancels. `scratch` holds kRows * channels + channels floats.
template <int kPixels, int kWidth, int kRows, int kChannels, typename Valid>
__device__ void tile_moments(const float (&value)[kPixels][kWidth], Valid valid, int row, int first, int pixels, float* mean, float* m2, int stored, float* scratch) {
    float* means = scratch + kRows * kChannels;
    for (int pass = 0; pass < 2; ++pass) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            const float centre = pass ? means[first + j] : 0.f;
            float sum = 0;
#pragma unroll
            for (int i = 0; i < kPixels; ++i)
                if (valid(i)) sum += pass ? (value[i][j] - centre) * (value[i][j] - centre) : value[i][j];
            scratch[row * kChannels + first + j] = sum;
        }
        __syncthreads();
        if (threadIdx.x < kChannels) {
            float sum = 0;
            for (int r = 0; r < kRows; ++r) sum += scratch[r * kChannels + threadIdx.x];
            if (!pass) means[threadIdx.x] = sum / static_cast<float>(pixels);
            if (static_cast<int>(threadIdx.x) < stored) (pass ? m2 : mean)[threadIdx.x] = pass ? sum : sum / static_cast<float>(pixels);
        }
    }
}

// y[pixel, o] = after(bias[o] + sum over taps and c of in[pixel shifted by tap, c] * weight[o, c, tap]). A thread: 8 pixels by
// 8 channels.
template <Shape kShape>
__global__ void __launch_bounds__(kDenseThreads, 3) dense_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    constexpr int kM = tile_pixels(kShape), kN = tile_channels(kShape), kColumns = kN / 8, kRows = kDenseThreads / kColumns;
    static_assert(kM == kRows * 8, "a thread has 8 pixels");
    constexpr int kPitch = kM + 4;
    __shared__ __align__(16) float a[kDepth * (kPitch + kN)];
    float* b = a + kDepth * kPitch;
    static_assert(kRows * kN + kN <= kDepth * (kPitch + kN), "moments share the tile's memory");
    const int index = find_problem(begin, count, blockIdx.x);
    const Problem& p = problems[index];
    const int local = blockIdx.x - begin[index];
    const int column = local % p.columns, tile = local / p.columns % p.tiles, group = local / p.columns / p.tiles;
    const int out_pixels = p.ho * p.wo, total = p.images * out_pixels, start = tile * kM, here = min(kM, total - start);
    const int cp = padded(p.c), op = padded(p.o), o0 = column * kN;
    const int t = threadIdx.x;
    // A thread loads 4 channels, of its half of the depth, of every 64th pixel: where their windows begin.
    constexpr int kLoads = kM * 2 / kDenseThreads;
    int corner_y[kLoads], corner_x[kLoads], corner[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
        const int own = t / 2 + i * (kDenseThreads / 2), pixel = start + own, inside = pixel % out_pixels;
        corner_y[i] = own < here ? inside / p.wo * p.stride - p.padding : -(1 << 20);  // outside, whatever the kernel
        corner_x[i] = inside % p.wo * p.stride - p.padding;
        corner[i] = ((group * p.images + pixel / out_pixels) * p.h + corner_y[i]) * p.w + corner_x[i];
    }
    const Operand& in = p.in[0];
    const float* scale = in.scale ? in.scale + static_cast<std::int64_t>(group) * in.norm_stride : nullptr;
    const float* shift = in.scale ? in.shift + static_cast<std::int64_t>(group) * in.norm_stride : nullptr;
    const Act first = in.first, second = in.second;
    const int n0 = t % kColumns * 8, m0 = t / kColumns * 8;
    float acc[8][8] = {};
    for (int ky = 0; ky < p.kernel_h; ++ky)
        for (int kx = 0; kx < p.kernel_w; ++kx)
            for (int c0 = 0; c0 < cp; c0 += kDepth) {
                __syncthreads();
                const int c = c0 + t % 2 * 4, moved_y = ky * p.dilation, moved_x = kx * p.dilation;
                float4 s = make_float4(1.f, 1.f, 1.f, 1.f), d = make_float4(0.f, 0.f, 0.f, 0.f);
                if (scale && c < cp) {
                    s = load4(scale + c);
                    d = load4(shift + c);
                }
#pragma unroll
                for (int i = 0; i < kLoads; ++i) {
                    const int y = corner_y[i] + moved_y, x = corner_x[i] + moved_x;
                    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
                    if (y >= 0 && y < p.h && x >= 0 && x < p.w && c < cp) {
                        v = load4(in.x + static_cast<std::int64_t>(corner[i] + moved_y * p.w + moved_x) * cp + c);
                        if (scale) v = make_float4(v.x * s.x + d.x, v.y * s.y + d.y, v.z * s.z + d.z, v.w * s.w + d.w);
                        v = activate(second, activate(first, v));
                    }
                    float* to = a + (t % 2 * 4) * kPitch + t / 2 + i * (kDenseThreads / 2);
                    to[0] = v.x;
                    to[kPitch] = v.y;
                    to[2 * kPitch] = v.z;
                    to[3 * kPitch] = v.w;
                }
                for (int i = t; i < kDepth * kN; i += kDenseThreads) {
                    const int o = o0 + i / kDepth, c = c0 + i % kDepth;
                    float v = 0.f;
                    if (o < p.o && c < p.c) v = p.weight[o * p.weight_stride[0] + c * p.weight_stride[1] + ky * p.weight_stride[2] + kx * p.weight_stride[3]];
                    b[i % kDepth * kN + i / kDepth] = v;
                }
                __syncthreads();
#pragma unroll
                for (int k = 0; k < kDepth; ++k) {
                    const float4 a0 = load4(a + k * kPitch + m0), a1 = load4(a + k * kPitch + m0 + 4);
                    const float4 b0 = load4(b + k * kN + n0), b1 = load4(b + k * kN + n0 + 4);
                    const float am[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
                    const float bn[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
                    for (int i = 0; i < 8; ++i)
#pragma unroll
                        for (int j = 0; j < 8; ++j) acc[i][j] += am[i] * bn[j];
                }
            }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int o = o0 + n0 + j;
        const float bias = p.bias && o < p.o ? p.bias[o] : 0.f;
#pragma unroll
        for (int i = 0; i < 8; ++i) acc[i][j] = activate(p.after, acc[i][j] + bias);
    }
    const std::int64_t base = static_cast<std::int64_t>(group) * total + start;
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (m0 + i < here) {
            float* to = p.y + (base + m0 + i) * op + o0 + n0;
            if (o0 + n0 < op) store4(to, make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
            if (o0 + n0 + 4 < op) store4(to + 4, make_float4(acc[i][4], acc[i][5], acc[i][6], acc[i][7]));
        }
    if (p.mean) {
        const std::int64_t at = (static_cast<std::int64_t>(group) * p.tiles + tile) * op + o0;
        tile_moments<8, 8, kRows, kN>(acc, [&](int i) { return m0 + i < here; }, t / kColumns, n0, here, p.mean + at, p.m2 + at, op - o0, a);
    }
}

// Everything else. A thread: 4 pixels, 64 apart, by 4 channels.
__device__ inline float4 map_value(const Problem& p, int group, std::int64_t image, int y, int x, int quad, const float* taps) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    switch (p.kind) {
        case Kind::kAdd:
            for (int i = 0; i < p.terms; ++i) {
                const float4 v = Reader(p.in[i], group, quad)((image * p.h + y) * p.w + x);
                sum = i ? make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w) : v;
            }
            return sum;
        case Kind::kScale: {
            const float4 u = Reader(p.in[0], group, quad)((image * p.h + y) * p.w + x), v = Reader(p.in[1], group, quad)(image);
            return make_float4(u.x * v.x, u.y * v.y, u.z * v.z, u.w * v.w);
        }
        case Kind::kDepthwise: {
            const Reader in(p.in[0], group, quad);
            for (int ky = 0; ky < p.kernel_h; ++ky) {
                const int row = y * p.stride - p.padding + ky * p.dilation;
                if (row < 0 || row >= p.h) continue;
                for (int kx = 0; kx < p.kernel_w; ++kx) {
                    const int col = x * p.stride - p.padding + kx * p.dilation;
                    if (col < 0 || col >= p.w) continue;
                    const float4 v = in((image * p.h + row) * p.w + col), k = load4(taps + (ky * p.kernel_w + kx) * 16 + quad % 4 * 4);
                    sum = make_float4(sum.x + v.x * k.x, sum.y + v.y * k.y, sum.z + v.z * k.z, sum.w + v.w * k.w);
                }
            }
            return sum;
        }
        case Kind::kMaxPool:
        case Kind::kAvgPool: {
            const Reader in(p.in[0], group, quad);
            int found = 0;
            for (int ky = 0; ky < p.kernel_h; ++ky) {
                const int row = y * p.stride - p.padding + ky;
                if (row < 0 || row >= p.h) continue;
                for (int kx = 0; kx < p.kernel_w; ++kx) {
                    const int col = x * p.stride - p.padding + kx;
                    if (col < 0 || col >= p.w) continue;
                    const float4 v = in((image * p.h + row) * p.w + col);
                    if (!found) sum = v;
                    else if (p.kind == Kind::kMaxPool) sum = make_float4(fmaxf(sum.x, v.x), fmaxf(sum.y, v.y), fmaxf(sum.z, v.z), fmaxf(sum.w, v.w));
                    else sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
                    ++found;
                }
            }
            if (p.kind == Kind::kMaxPool) return sum;
            const float n = static_cast<float>(found);
            return make_float4(sum.x / n, sum.y / n, sum.z / n, sum.w / n);
        }
        case Kind::kShift:
            if (y + 1 < p.h && x + 1 < p.w) sum = Reader(p.in[0], group, quad)((image * p.h + y + 1) * p.w + x + 1);
            return sum;
        case Kind::kConcat:
        case Kind::kFlatten: {
            float v[4];
            for (int j = 0; j < 4; ++j) {
                const int channel = quad * 4 + j;
                v[j] = 0.f;
                if (channel >= p.o) continue;
                if (p.kind == Kind::kFlatten) {  // in the order of channels, rows, columns
                    v[j] = read(p.in[0], group, image * p.h * p.w + channel % (p.h * p.w), channel / (p.h * p.w));
                    continue;
                }
                int term = 0, inner = channel;
                while (inner >= p.in[term].channels) inner -= p.in[term++].channels;
                v[j] = read(p.in[term], group, (image * p.h + y) * p.w + x, inner);
            }
            return make_float4(v[0], v[1], v[2], v[3]);
        }
        default: return sum;
    }
}

inline constexpr int kMaxTaps = 121;  // of a depthwise kernel

__global__ void __launch_bounds__(kMapThreads) map_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    constexpr int kM = tile_pixels(Shape::kMap), kN = tile_channels(Shape::kMap), kRows = kMapThreads / 4;
    __shared__ __align__(16) float memory[kMaxTaps * kN];
    static_assert(kRows * kN + kN <= kMaxTaps * kN, "moments share the taps' memory");
    const int index = find_problem(begin, count, blockIdx.x);
    const Problem& p = problems[index];
    const int local = blockIdx.x - begin[index];
    const int column = local % p.columns, tile = local / p.columns % p.tiles, group = local / p.columns / p.tiles;
    const int out_pixels = p.ho * p.wo, total = p.images * out_pixels, start = tile * kM, here = min(kM, total - start);
    const int op = padded(p.o), t = threadIdx.x, quad = column * 4 + t % 4;
    if (p.kind == Kind::kDepthwise) {
        for (int i = t; i < p.kernel_h * p.kernel_w * kN; i += kMapThreads) {
            const int tap = i / kN, c = column * kN + i % kN;
            memory[i] = c < p.c ? p.weight[c * p.weight_stride[0] + tap / p.kernel_w * p.weight_stride[2] + tap % p.kernel_w * p.weight_stride[3]] : 0.f;
        }
        __syncthreads();
    }
    const bool inside = quad * 4 < op;
    const std::int64_t base = static_cast<std::int64_t>(group) * total + start;
    float value[4][4] = {};
    for (int i = 0; i < 4; ++i) {
        const int at = t / 4 + i * kRows;
        if (at >= here || !inside) continue;
        const int pixel = start + at, place = pixel % out_pixels;
        const std::int64_t image = static_cast<std::int64_t>(group) * p.images + pixel / out_pixels;
        float4 v = map_value(p, group, image, place / p.wo, place % p.wo, quad, memory);
        if (p.bias)
            for (int j = 0; j < 4; ++j)
                if (quad * 4 + j < p.o) (&v.x)[j] += p.bias[quad * 4 + j];
        v = activate(p.after, v);
        store4(p.y + (base + at) * op + quad * 4, v);
        value[i][0] = v.x;
        value[i][1] = v.y;
        value[i][2] = v.z;
        value[i][3] = v.w;
    }
    if (p.mean) {
        const std::int64_t at = (static_cast<std::int64_t>(group) * p.tiles + tile) * op + column * kN;
        tile_moments<4, 4, kRows, kN>(value, [&](int i) { return t / 4 + i * kRows < here; }, t / 4, t % 4 * 4, here, p.mean + at, p.m2 + at, op - column * kN,
                                      memory);
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
    const double pixels = static_cast<double>(p.pixels);
    double moment[2] = {0, 0};  // mean, then the sum of squared distances
    for (int pass = 0; pass < 2; ++pass) {
        double sum = 0;
        if (c < cp)
            for (int tile = row; tile < p.tiles; tile += kRows) {
                const std::int64_t at = (static_cast<std::int64_t>(group) * p.tiles + tile) * cp + c, left = p.pixels - static_cast<std::int64_t>(tile) * p.tile_pixels;
                const double n = static_cast<double>(left < p.tile_pixels ? left : p.tile_pixels), mean = p.mean[at];
                sum += pass ? p.m2[at] + n * (mean - moment[0]) * (mean - moment[0]) : n * mean;
            }
        __syncthreads();
        sums[row][inner] = sum;
        __syncthreads();
        for (int r = 0; r < kRows; ++r) moment[pass] += sums[r][inner];
        if (!pass) moment[0] /= pixels;
    }
    if (row || c >= cp) return;
    const std::int64_t at = static_cast<std::int64_t>(group) * p.norm_stride + c;
    const float gamma = c < p.c ? (p.gamma ? p.gamma[c] : 1.f) : 0.f, beta = c < p.c && p.beta ? p.beta[c] : 0.f;
    const double scale = gamma / sqrt(moment[1] / pixels + static_cast<double>(p.eps));
    p.scale[at] = static_cast<float>(scale);
    p.shift[at] = static_cast<float>(beta - moment[0] * scale);
    p.batch_mean[at] = static_cast<float>(moment[0]);
    p.batch_var[at] = static_cast<float>(moment[1] / (pixels > 1 ? pixels - 1 : 1));
}

}  // namespace hwnas::merged_program
