// Convolutions (and linear layers) on tensor cores, in float16 numbers split in two: as exact as float32 (see pack.cuh).
//
// A block reads its inputs' tile with its border once, as norm and activations make it, and puts it into shared memory split.
// All taps read it there. Tiles whose values would leave float16's
// range, above or below, are scaled by a power of two. Sums of more than 16 products are in float32 outside the tensor cores,
// which round towards zero (Ootomo & Yokota 2022, Recovering single precision accuracy from tensor cores).
//
// A warp has kTilesM times 16 pixels. In the "Rows" kernels, for 3 x 3 windows, these are 16 pixels (two runs of 8 in a row,
// side by side or of two images) of rows below each other: a row once loaded serves the three windows it belongs to.
#pragma once

#include "merged_program/finish.cuh"
#include "merged_program/pack.cuh"

namespace hwnas::merged_program {

// d = a[16, 16] * b[16, 8] + c
__device__ inline void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
// Four times 8 rows of 16 bytes, at each lane's address one.
__device__ inline void load_matrices(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
struct Rows {  // 16 pixels' 16 channels
    unsigned high[4], low[4];
    __device__ Rows(unsigned address, unsigned to_low) {
        load_matrices(high, address);
        load_matrices(low, address + to_low);
    }
};
// acc += unit * a * b
__device__ inline void accumulate(float (&acc)[4], const Rows& a, uint4 b, float unit, float low_unit) {
    constexpr float kZero[4] = {0.f, 0.f, 0.f, 0.f};
    float high[4], low[4];
    multiply(low, a.high, b.z, b.w, kZero);
    multiply(high, a.high, b.x, b.y, kZero);
    multiply(low, a.low, b.x, b.y, low);
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] = fmaf(low[i], low_unit, fmaf(high[i], unit, acc[i]));
}

// Puts `planes` times 16 channels of a tile into shared memory, split; returns what to multiply products by.
struct Source {
    uint4* tile;        // of a plane: high of 8 channels, of 8 more, low of both, each [pitch] times 8 channels
    const int* pixels;  // of each row of the tile, -1: outside
    int rows, pitch, plane;

    template <bool kPlain>  // unscaled, and what Reader::made_simply does
    __device__ __half2 fill(const Reader& in, bool inside, int quads, float unit) const {
        constexpr int kAtOnce = kPlain ? 4 : 1;
        const int t = threadIdx.x, quad = t % quads, stride = kDenseThreads / quads;
        const float floor = in.floor();
        uint2* to = reinterpret_cast<uint2*>(tile + quad / 4 * plane + quad % 4 / 2 * pitch) + quad % 2;
        __half2 peak = __floats2half2_rn(0.f, 0.f);
        for (int first = t / quads; first < rows; first += kAtOnce * stride) {
            float4 v[kAtOnce];
            int pixel[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int row = first + i * stride;
                pixel[i] = row < rows && inside ? pixels[row] : -1;
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                v[i] = make_float4(0.f, 0.f, 0.f, 0.f);
                if (pixel[i] >= 0) v[i] = in.raw(pixel[i]);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                const int row = first + i * stride;
                if (kPlain) {
                    const float4 m = multiply_add(v[i], in.scale, in.shift);
                    v[i] = make_float4(0.f, 0.f, 0.f, 0.f);
                    if (pixel[i] >= 0) v[i] = make_float4(fmaxf(m.x, floor), fmaxf(m.y, floor), fmaxf(m.z, floor), fmaxf(m.w, floor));
                } else if (pixel[i] >= 0) {
                    v[i] = in.made(v[i]) * unit;
                }
                const uint4 s = split(v[i]);
                if (row < rows) {
                    to[row * 2] = make_uint2(s.x, s.y);
                    to[(row + 2 * pitch) * 2] = make_uint2(s.z, s.w);
                }
                peak = __hmax2(peak, __hmax2(__habs2(reinterpret_cast<const __half2&>(s.x)), __habs2(reinterpret_cast<const __half2&>(s.y))));
            }
        }
        return peak;
    }
    __device__ float load(const Operand& operand, int group, std::int64_t group_pixels, int first_quad, int quads, int all_quads) const {
        const int quad = first_quad + static_cast<int>(threadIdx.x) % quads;
        const bool inside = quad < all_quads;
        const Reader in(operand, group, group_pixels, inside ? quad : 0);
        const float2 peaks = __half22float2(in.is_simple() ? fill<true>(in, inside, quads, 1.f) : fill<false>(in, inside, quads, 1.f));
        const float peak = fmaxf(peaks.x, peaks.y);
        const bool large = __syncthreads_or(peak > 65504.f), enough = __syncthreads_or(peak >= 1.f / 128);
        if (enough && !large) return 1.f;
        __shared__ int largest;  // as bits: positive numbers are ordered like them
        if (threadIdx.x == 0) largest = 0;
        float own = 0.f;
        for (int row = threadIdx.x / quads; row < rows; row += kDenseThreads / quads)
            if (inside && pixels[row] >= 0) {
                const float4 v = in(pixels[row]);
                const float values[4] = {fabsf(v.x), fabsf(v.y), fabsf(v.z), fabsf(v.w)};
                for (float value : values)
                    if (value <= 3.4e38f) own = fmaxf(own, value);
            }
        __syncthreads();
        atomicMax(&largest, __float_as_int(own));
        __syncthreads();
        const float unit = unit_of(__int_as_float(largest));
        fill<false>(in, inside, quads, unit);
        __syncthreads();
        return 1.f / unit;
    }
};

template <Shape kShape>
__global__ void __launch_bounds__(kDenseThreads, 4) dense_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    constexpr bool kRows = kShape >= Shape::kRows16;
    constexpr int kN = tile_channels(kShape), kM = tile_pixels(kShape), kTilesM = warp_rows(kShape);
    constexpr int kTilesN = kN == 16 ? 1 : 2, kWarpsN = kN / 16 / kTilesN, kWarpsM = kDenseThreads / 32 / kWarpsN;
    static_assert(kM == kWarpsM * kTilesM * 16, "a block's pixels are its warps'");
    extern __shared__ __align__(16) int shared[];
    int *corner = shared, *pixel = shared + kM, *source = shared + 2 * kM;
    const int index = find_problem(begin, count, blockIdx.x);
    __shared__ Problem p;
    fetch(p, problems[index]);
    const int local = static_cast<int>(blockIdx.x) - begin[index];
    const int column = local % p.columns, tile = local / p.columns % p.tiles, group = local / p.columns / p.tiles;
    const int image = tile / (p.tiles_x * p.tiles_y) * p.tile_images, y0 = tile / p.tiles_x % p.tiles_y * p.tile_h, x0 = tile % p.tiles_x * p.tile_w;
    const int in_h = (p.tile_h - 1) * p.stride + (p.kernel_h - 1) * p.dilation + 1, in_w = (p.tile_w - 1) * p.stride + (p.kernel_w - 1) * p.dilation + 1;
    const int rows = p.tile_images * in_h * in_w, t = threadIdx.x;
    const int tile_images = p.tile_images, tile_h = p.tile_h, tile_w = p.tile_w, stride = p.stride, pairs = p.pairs;
    const int images = p.images, ho = p.ho, wo = p.wo, h = p.h, w = p.w, left = x0 * stride - p.padding, top = y0 * stride - p.padding;
    const int lane = t % 32, warp = t / 32;
    if (p.flat) {
        for (int m = t; m < kM; m += kDenseThreads) {
            const int own = x0 + m < wo ? x0 + m : -1;
            corner[m] = m, pixel[m] = own, source[m] = own;
        }
    } else {
        const int runs = tile_w / 8, part = kRows ? 65536 / runs + 1 : 0, line_part = 65536 / in_h + 1;  // to divide small numbers
        for (int m = t; m < kM; m += kDenseThreads) {  // the window's corner in the tile, and the pixel in y, -1: none
            int i, y, x;
            if (kRows) {
                const int of_warp = m / (16 * kTilesM), run = (of_warp & (pairs - 1)) * 2 + m / 8 % 2;
                i = run * part >> 16, y = (of_warp >> (__ffs(pairs) - 1)) * kTilesM + m / 16 % kTilesM, x = (run - i * runs) * 8 + m % 8;
            } else {
                const int line = m / tile_w;
                i = line / tile_h, y = line - i * tile_h, x = m - line * tile_w;
            }
            const bool there = i < tile_images && image + i < images && y0 + y < ho && x0 + x < wo;
            corner[m] = i < tile_images ? (i * in_h + y * stride) * in_w + x * stride : 0;
            pixel[m] = there ? ((image + i) * ho + y0 + y) * wo + x0 + x : -1;
        }
        for (int line = warp; line < tile_images * in_h; line += kDenseThreads / 32) {
            const int i = line < 256 && in_h < 256 ? line * line_part >> 16 : line / in_h, y = top + line - i * in_h, begin = ((image + i) * h + y) * w + left;
            const bool there = image + i < images && y >= 0 && y < h;
            for (int x = lane; x < in_w; x += 32) source[line * in_w + x] = there && left + x >= 0 && left + x < w ? begin + x : -1;
        }
    }
    __syncthreads();

    const int warp_n = warp % kWarpsN, warp_m = warp / kWarpsN;
    const int blocks = (p.c + 15) / 16, columns = columns_of(p.o), own = min(column * (kN / 16) + warp_n * kTilesN, columns - kTilesN);
    const int in_quads = padded(p.c) / 4, pitch = (rows + 3) / 8 * 8 + 4;
    const Source in{reinterpret_cast<uint4*>(shared + 2 * kM + ((rows + 3) & ~3)), source, rows, pitch, 4 * pitch + (p.planes == 2 ? 2 : 1)};
    const uint4* weights = reinterpret_cast<const uint4*>(p.weight + columns * 16) + own * 64 + lane;
    const int to_block = columns * 64, to_tap = blocks * to_block, kernel_w = p.kernel_w, taps = p.kernel_h * kernel_w, dilation = p.dilation;
    const unsigned to_low = 32u * pitch;
    float acc[kTilesM][kTilesN * 2][4] = {};
    for (int block0 = 0; block0 < blocks; block0 += p.planes) {
        if (block0) __syncthreads();
        const float unit = in.load(p.in[0], group, static_cast<std::int64_t>(images) * h * w, block0 * 4, p.planes * 4, in_quads), low_unit = unit / kLow;
        // Where a lane's row of 16 bytes begins.
        const int* corners = corner + warp_m * kTilesM * 16 + lane % 16;
        const unsigned from = shared_address(in.tile + lane / 16 * pitch);
        for (int plane = 0; plane < min(p.planes, blocks - block0); ++plane) {
            const unsigned tile_of = from + 16u * plane * in.plane;
            const uint4* own_weights = weights + (block0 + plane) * to_block;
            if constexpr (kRows) {
                const unsigned step = 16u * in_w;
                unsigned address = tile_of + 16u * corners[0];
                for (int kx = 0; kx < 3; ++kx, address += 16, own_weights += to_tap) {
                    uint4 b[3][kTilesN * 2];
#pragma unroll
                    for (int ky = 0; ky < 3; ++ky)
#pragma unroll
                        for (int n = 0; n < kTilesN * 2; ++n) b[ky][n] = __ldg(own_weights + ky * 3 * to_tap + n * 32);
#pragma unroll
                    for (int r = 0; r < kTilesM + 2; ++r) {
                        const Rows a(address + r * step, to_low);
#pragma unroll
                        for (int ky = 0; ky < 3; ++ky)
                            if (r - ky >= 0 && r - ky < kTilesM)
#pragma unroll
                                for (int n = 0; n < kTilesN * 2; ++n) accumulate(acc[r - ky < 0 ? 0 : r - ky < kTilesM ? r - ky : 0][n], a, b[ky][n], unit, low_unit);
                    }
                }
            } else {
                for (int tap = 0; tap < taps; ++tap, own_weights += to_tap) {
                    const unsigned address = tile_of + 16u * ((tap / kernel_w * in_w + tap % kernel_w) * dilation);
                    uint4 b[kTilesN * 2];
#pragma unroll
                    for (int n = 0; n < kTilesN * 2; ++n) b[n] = __ldg(own_weights + n * 32);
#pragma unroll
                    for (int i = 0; i < kTilesM; ++i) {
                        const Rows a(address + 16u * corners[i * 16], to_low);
#pragma unroll
                        for (int n = 0; n < kTilesN * 2; ++n) accumulate(acc[i][n], a, b[n], unit, low_unit);
                    }
                }
            }
        }
    }

    // Results change places through shared memory, so that neighbouring threads finish and store neighbouring channels.
    constexpr int kWide = kN / 4;
    float4* result = reinterpret_cast<float4*>(shared + 2 * kM);
    const auto place = [&](int m, int quad) -> float4& { return result[m * kWide + (kWide > 4 ? quad ^ (m % 2 * 4) : quad)]; };
    const int base = warp_m * kTilesM * 16 + lane / 4;
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kTilesN; ++n)
#pragma unroll
        for (int i = 0; i < kTilesM * 2; ++i) {
            const float* u = acc[i / 2][2 * n] + i % 2 * 2;
            const float* v = acc[i / 2][2 * n + 1] + i % 2 * 2;
            place(base + i * 8, (warp_n * kTilesN + n) * 4 + lane % 4) = make_float4(u[0], u[1], v[0], v[1]);
        }
    __syncthreads();
    const int op = padded(p.o), own_quad = t % kWide, quad = column * kWide + own_quad, step = kDenseThreads / kWide;
    const bool inside = quad * 4 < op;
    const std::int64_t group_pixels = static_cast<std::int64_t>(p.images) * p.ho * p.wo;
    if (inside) {
        const float4 unit = load4(p.weight + quad * 4), bias = bias_of(p, quad);
        const Finish finish(p, group, group_pixels, quad);
        for (int m = t / kWide; m < kM; m += kRun * step) {
            float4 value[kRun];
            int where[kRun];
#pragma unroll
            for (int i = 0; i < kRun; ++i) {
                where[i] = pixel[m + i * step];
                value[i] = multiply_add(place(m + i * step, own_quad), unit, bias);
            }
            finish(where, value);
            if (p.mean)
                for (int i = 0; i < kRun; ++i) place(m + i * step, own_quad) = value[i];
        }
    }
    if (p.mean) {
        const int here = min(p.tile_images, p.images - image) * min(p.tile_h, p.ho - y0) * min(p.tile_w, p.wo - x0);
        const auto each = [&](auto take) {
            if (inside)
                for (int m = t / kWide; m < kM; m += step)
                    if (pixel[m] >= 0) take(place(m, own_quad));
        };
        __shared__ float4 scratch[kDenseThreads + kQuads];
        write_moments(p, static_cast<std::int64_t>(group) * p.tiles + tile, here, each, column * kN, kWide, kDenseThreads / kWide, scratch);
    }
}

}  // namespace hwnas::merged_program
