// Convolutions of more than one tap on tensor cores, in float16 numbers split in two: as exact as float32 (see pack.cuh).
//
// A block reads its inputs' tile with its border once, as norm and activations make it, and puts it into shared memory split.
// All taps read it there. Tiles whose values would leave float16's range, above or below, are scaled by a power of two of their
// own.
//
// A warp has kTilesM times 16 pixels and 16 channels. In the "Rows" kernels, for 3 x 3 windows over up to 64 channels, these are 16
// pixels (two runs of 8 in a row, side by side or of two images) of rows below each other, see multiply_rows.
#pragma once

#include "merged_program/fragments.cuh"

namespace hwnas::merged_program {

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
// Four times 8 rows of 16 bytes, at each lane's address one.
__device__ inline void load_matrices(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ inline Rows load_rows(unsigned address, unsigned to_low) {
    Rows rows;
    load_matrices(rows.high, address);
    load_matrices(rows.low, address + to_low);
    return rows;
}

// Puts `planes` times 16 channels of a tile into shared memory, split.
template <int kThreads>
struct Source {
    uint4* tile;        // of a plane: high of 8 channels, of 8 more, low of both, each [pitch] times 8 channels
    const int* pixels;  // of each row of the tile, -1: outside
    int rows, pitch, plane;

    __device__ uint2* place(int quad) const { return reinterpret_cast<uint2*>(tile + quad / 4 * plane + quad % 4 / 2 * pitch) + quad % 2; }

    // Zeros where there is nothing to read; `fill` leaves such rows alone.
    __device__ void clear(int row, int planes) const {
        for (uint4* to = tile + row; planes > 0; --planes, to += plane)
            for (int part = 0; part < 4; ++part) to[part * pitch] = make_uint4(0, 0, 0, 0);
    }
    template <bool kPlain>  // what Reader::made_simply does
    __device__ __half2 fill(const Reader& in, int quads, float unit) const {
        constexpr int kAtOnce = kPlain ? 6 : 1;
        const int t = threadIdx.x, stride = kThreads / quads;
        const float floor = in.floor();
        const float4 scale = in.scale * unit, shift = in.shift * unit;
        uint2* to = place(t % quads) + t / quads * 2;
        __half2 peak = __floats2half2_rn(0.f, 0.f);
        for (int first = t / quads; first < rows; first += kAtOnce * stride) {
            float4 v[kAtOnce];
            int pixel[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) pixel[i] = first + i * stride < rows ? pixels[first + i * stride] : -1;
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) v[i] = in.raw(max(pixel[i], 0));
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i, to += stride * 2) {
                if (kPlain) {
                    const float4 m = multiply_add(v[i], scale, shift);
                    v[i] = make_float4(fmaxf(m.x, floor), fmaxf(m.y, floor), fmaxf(m.z, floor), fmaxf(m.w, floor));
                } else {
                    v[i] = in.made(v[i]) * unit;
                }
                const uint4 s = split(v[i]);
                peak = __hmax2(peak, __hmax2(__habs2(reinterpret_cast<const __half2&>(s.x)), __habs2(reinterpret_cast<const __half2&>(s.y))));
                if (pixel[i] >= 0) to[0] = make_uint2(s.x, s.y), to[4 * pitch] = make_uint2(s.z, s.w);
            }
        }
        return peak;
    }
    // Returns what values are multiplied by: `unit`, by which those before were, if that does; 0: there were none, or all were 0.
    __device__ float load(const Operand& operand, int group, std::int64_t group_pixels, int first_quad, int quads, int all_quads, float unit) const {
        const int own = static_cast<int>(threadIdx.x) % quads, quad = first_quad + own;
        const bool inside = quad < all_quads;
        const Reader in(operand, group, group_pixels, inside ? quad : 0);
        const bool any = unit > 0.f;
        float peak = 0.f;
        if (inside) {
            const float usual = any ? unit : kUnit;
            const float2 peaks = __half22float2(in.is_simple() ? fill<true>(in, quads, usual) : fill<false>(in, quads, usual));
            peak = fmaxf(peaks.x, peaks.y);
        } else {  // channels that meet no weights
            for (int row = threadIdx.x / quads; row < rows; row += kThreads / quads) place(own)[row * 2] = place(own)[(row + 2 * pitch) * 2] = make_uint2(0, 0);
        }
        const bool large = __syncthreads_or(peak > kMost), enough = __syncthreads_or(peak >= kLeast) || any;
        if (enough && !large) return any ? unit : kUnit;
        __shared__ int largest;  // as bits: positive numbers are ordered like them
        if (threadIdx.x == 0) largest = 0;
        float most = 0.f;
        for (int row = threadIdx.x / quads; row < rows; row += kThreads / quads)
            if (inside && pixels[row] >= 0) {
                const float4 v = in(pixels[row]);
                const float values[4] = {fabsf(v.x), fabsf(v.y), fabsf(v.z), fabsf(v.w)};
                for (float value : values)
                    if (value <= 3.4e38f) most = fmaxf(most, value);
            }
        __syncthreads();
        atomicMax(&largest, __float_as_int(most));
        __syncthreads();
        if (largest == 0) return unit;
        unit = any ? fminf(unit, unit_of(__int_as_float(largest))) : unit_of(__int_as_float(largest));
        if (inside) fill<false>(in, quads, unit);
        __syncthreads();
        return unit;
    }
};

// A 3 x 3 window's products of 16 channels. All stay in the tensor cores, those with a low part apart, since rounding towards zero
// does them no harm; sums of high parts have 9 roundings for each 16 channels. A row once loaded serves three windows.
template <int kTilesM>
__device__ inline void multiply_rows(float (&high)[kTilesM][2][4], float (&low)[kTilesM][2][4], unsigned address, unsigned to_row, unsigned to_low, const uint4* weights, int to_tap) {
#pragma unroll 1
    for (int kx = 0; kx < 3; ++kx, address += 16, weights += to_tap) {
        uint4 b[3][2];
#pragma unroll
        for (int ky = 0; ky < 3; ++ky)
#pragma unroll
            for (int n = 0; n < 2; ++n) b[ky][n] = __ldg(weights + ky * 3 * to_tap + n * 32);
#pragma unroll
        for (int r = 0; r < kTilesM + 2; ++r) {
            const Rows a = load_rows(address + r * to_row, to_low);
            const auto each = [&](auto take) {  // of the windows that the row belongs to
#pragma unroll
                for (int ky = max(0, r - kTilesM + 1); ky <= min(2, r); ++ky)
#pragma unroll
                    for (int n = 0; n < 2; ++n) take(r - ky, n, b[ky][n]);
            };
            each([&](int i, int n, uint4 b) { multiply(low[i][n], a.high, b.z, b.w, low[i][n]); });
            each([&](int i, int n, uint4 b) { multiply(low[i][n], a.low, b.x, b.y, low[i][n]); });
            each([&](int i, int n, uint4 b) { multiply(high[i][n], a.high, b.x, b.y, high[i][n]); });
        }
    }
}

template <Shape kShape>
__global__ void __launch_bounds__(dense_threads(kShape), 512 / dense_threads(kShape)) dense_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    constexpr bool kRows = kShape >= Shape::kRows16;
    constexpr int kN = tile_channels(kShape), kM = tile_pixels(kShape), kTilesM = warp_rows(kShape), kThreads = dense_threads(kShape);
    constexpr int kWarpsN = kN / 16, kWarpsM = kThreads / 32 / kWarpsN;
    static_assert(kM == kWarpsM * kTilesM * 16, "a block's pixels are its warps'");
    extern __shared__ __align__(16) int shared[];
    int *windows = shared, *pixels = shared + kM, *source = shared + (kRows ? 0 : 2 * kM);
    const int index = find_problem(begin, count, blockIdx.x);
    __shared__ Problem p;
    __shared__ End ends[kN / 4];
    fetch(p, problems[index]);
    const Block at(p, static_cast<int>(blockIdx.x) - begin[index]);
    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    const int warp_n = warp % kWarpsN, warp_m = warp / kWarpsN;
    const int tile_images = p.tile_images, tile_h = p.tile_h, tile_w = p.tile_w, stride = p.stride, images = p.images, ho = p.ho, wo = p.wo, h = p.h, w = p.w;
    const int parts = p.tiles_x * p.tiles_y, in_h = (tile_h - 1) * stride + (p.kernel_h - 1) * p.dilation + 1, in_w = (tile_w - 1) * stride + (p.kernel_w - 1) * p.dilation + 1;
    const int rows = tile_images * in_h * in_w, pitch = (rows + 3) / 8 * 8 + 4;
    const auto divided = [](int a, int inverse) { return a * inverse >> 20; };  // for numbers below 2048, which rows are
    const int blocks = (p.c + 15) / 16, columns = columns_of(p.o), own_column = min(at.column * (kN / 16) + warp_n, columns - 1);
    const int in_quads = padded(p.c) / 4;
    const uint4* weights = reinterpret_cast<const uint4*>(p.weight + columns * 16) + own_column * 64 + lane;
    const int to_block = columns * 64, to_tap = blocks * to_block, kernel_w = p.kernel_w, taps = p.kernel_h * kernel_w, dilation = p.dilation;
    const Source<kThreads> in{reinterpret_cast<uint4*>(source + ((rows + 3) & ~3)), source, rows, pitch, 4 * pitch + (p.planes == 2 ? 2 : 1)};
    const unsigned to_low = 32u * pitch;
    if (t < kN / 4) ends[t] = end_of(p, at.column * kN / 4 + t);
    const int of_image = quotient(at.first, parts), in_image = at.first - of_image * parts, tile_y = quotient(in_image, p.tiles_x);
    const int image = of_image * tile_images, y0 = tile_y * tile_h, x0 = (in_image - tile_y * p.tiles_x) * tile_w;
    const int top = y0 * stride - p.padding, left = x0 * stride - p.padding;
    for (int row = t; row < rows; row += kThreads) {
        const int line = divided(row, p.inverse_w), i = divided(line, p.inverse_h), y = top + line - i * in_h, x = left + row - line * in_w;
        const bool there = image + i < images && y >= 0 && y < h && x >= 0 && x < w;
        source[row] = there ? ((image + i) * h + y) * w + x : -1;
        if (!there) in.clear(row, p.planes);
    }
    // Where in the tile windows begin, and which pixel of y they make, -1: none. Of rows a lane has two runs' of a line, and lines
    // below; of others there is a table.
    int window = 0, own[2] = {}, lines[2] = {};
    if (kRows) {
        const int runs = tile_w / 8, y = (warp_m >> (__ffs(p.pairs) - 1)) * kTilesM;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int run = (warp_m & (p.pairs - 1)) * 2 + half, i = tile_images == 1 ? 0 : quotient(run, runs), x = (run - i * runs) * 8;
            if (lane / 8 % 2 == half && run < runs * tile_images) window = (i * in_h + y) * in_w + x + lane % 8;  // others read what is there
            own[half] = ((image + i) * ho + y0 + y) * wo + x0 + x + lane / 4;
            lines[half] = i < tile_images && image + i < images && x0 + x + lane / 4 < wo ? ho - y0 - y : 0;
        }
    } else {
        for (int m = t; m < kM; m += kThreads) {
            const int line = quotient(m, tile_w), i = quotient(line, tile_h), y = line - i * tile_h, x = m - line * tile_w;
            const bool there = i < tile_images && image + i < images && y0 + y < ho && x0 + x < wo;
            windows[m] = i < tile_images ? (i * in_h + y * stride) * in_w + x * stride : 0;
            pixels[m] = there ? ((image + i) * ho + y0 + y) * wo + x0 + x : -1;
        }
    }
    __syncthreads();

    const auto load = [&](int block0, float before) {
        return in.load(p.in[0], at.group, static_cast<std::int64_t>(images) * h * w, block0 * 4, p.planes * 4, in_quads, before);
    };
    float unit = kRows ? load(0, 0.f) : 0.f;  // of rows all channels are there at once, before there are sums
    Sums<kTilesM, 1, kWarpsM, kWarpsN> sums;
    float low[kTilesM][2][4] = {};
    for (int block0 = 0; block0 < blocks; block0 += p.planes) {
        if constexpr (!kRows) {
            if (block0) __syncthreads();
            const float before = unit;
            unit = load(block0, before);
            if (before > 0.f && unit != before) scale(sums.acc, unit / before);
        }
        // Where a lane's row of 16 bytes begins.
        const int* own_windows = windows + warp_m * kTilesM * 16 + lane % 16;
        const unsigned from = shared_address(in.tile + lane / 16 * pitch);
        for (int plane = 0; plane < min(p.planes, blocks - block0); ++plane) {
            const unsigned tile_of = from + 16u * plane * in.plane;
            const uint4* own_weights = weights + (block0 + plane) * to_block;
            if constexpr (kRows) {
                multiply_rows(sums.acc, low, tile_of + 16u * window, 16u * in_w, to_low, own_weights, to_tap);
            } else {
                for (int tap = 0; tap < taps; ++tap, own_weights += to_tap) {
                    const unsigned address = tile_of + 16u * ((tap / kernel_w * in_w + tap % kernel_w) * dilation);
                    uint4 b[2];
#pragma unroll
                    for (int n = 0; n < 2; ++n) b[n] = __ldg(own_weights + n * 32);
#pragma unroll
                    for (int i = 0; i < kTilesM; ++i) {
                        const Rows a = load_rows(address + 16u * own_windows[i * 16], to_low);
#pragma unroll
                        for (int n = 0; n < 2; ++n) accumulate(sums.acc[i][n], a, b[n]);
                    }
                }
            }
        }
        if (kRows) break;
    }

    const int* own_pixels = pixels + warp_m * kTilesM * 16 + lane / 4;
    const auto pixel = [&](int i) { return !kRows ? own_pixels[i * 8] : i / 2 < lines[i % 2] ? own[i % 2] + i / 2 * wo : -1; };
    const int here = min(tile_images, images - image) * min(tile_h, ho - y0) * min(tile_w, wo - x0);
    if (kRows) sums.add(low);
    sums.finish(p, ends, unit > 0.f ? 1.f / unit : 1.f, at.group, at.first, here, at.column * kN / 4, warp_m, warp_n, pixel);
}

}  // namespace hwnas::merged_program
