// Convolutions of one tap (and linear layers) on tensor cores, see dense.cuh. Nothing is shared here: a lane reads 4 neighbouring
// channels of each of its pixels, and these are what it holds of the products' left side, since weights are packed in that order.
#pragma once

#include "merged_program/fragments.cuh"

namespace hwnas::merged_program {

// What the reader makes of a warp's values, multiplied by what is returned: `unit`, by which those before were, if that does; 0:
// there were none, or all were 0.
template <int kPixels>
__device__ inline float make(const Reader& in, float4 (&v)[kPixels], float unit) {
    const auto each = [&](auto take) {
#pragma unroll
        for (int i = 0; i < kPixels; ++i) take(v[i]);
    };
    const bool any = unit > 0.f;
    const float usual = any ? unit : kUnit;
    if (in.is_simple()) {
        const float4 scale = in.scale * usual, shift = in.shift * usual, floor = make_float4(in.floor(), in.floor(), in.floor(), in.floor());
        each([&](float4& v) { v = max4(multiply_add(v, scale, shift), floor); });
    } else {
        in.made(v);
        each([&](float4& v) { v = v * usual; });
    }
    float peak = 0.f;
    each([&](const float4& v) { peak = fmaxf(peak, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)))); });
    if (!__any_sync(~0u, peak > kMost) && (any || __any_sync(~0u, peak >= kLeast))) return usual;
    const auto finite = [](float v) { return fabsf(v) <= 3.4e38f ? fabsf(v) : 0.f; };
    peak = 0.f;
    each([&](const float4& v) { peak = fmaxf(peak, fmaxf(fmaxf(finite(v.x), finite(v.y)), fmaxf(finite(v.z), finite(v.w)))); });
    const unsigned largest = __reduce_max_sync(~0u, __float_as_uint(peak));  // positive numbers are ordered like their bits
    if (largest == 0) return unit;
    const float more = any ? fminf(1.f, unit_of(__uint_as_float(largest))) : unit_of(__uint_as_float(largest));
    each([&](float4& v) { v = v * more; });
    return usual * more;
}

template <Shape kShape>
__global__ void __launch_bounds__(dense_threads(kShape), pointwise_blocks(kShape)) pointwise_kernel(const Problem* problems, const std::int32_t* begin, int count) {
    constexpr int kN = tile_channels(kShape), kM = tile_pixels(kShape), kTilesM = warp_rows(kShape), kTilesN = kN / 16, kWarps = dense_threads(kShape) / 32;
    constexpr int kPixels = kTilesM * 2;
    static_assert(kM == kWarps * kTilesM * 16, "a block's pixels are its warps'");
    const int index = find_problem(begin, count, blockIdx.x);
    __shared__ Problem p;
    __shared__ End ends[kN / 4];
    fetch(p, problems[index]);
    const Block at(p, static_cast<int>(blockIdx.x) - begin[index]);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int places = p.ho * p.wo, pixels = p.images * places;
    const int blocks = (p.c + 15) / 16, columns = columns_of(p.o), in_quads = padded(p.c) / 4;
    const std::int64_t group_pixels = static_cast<std::int64_t>(p.images) * p.h * p.w;
    const uint4* weights = reinterpret_cast<const uint4*>(p.weight + columns * 16) + lane;
    const auto reader = [&](int block) { return Reader(p.in[0], at.group, group_pixels, min(block * 4 + lane % 4, in_quads - 1)); };  // beyond: meet no weights
    const auto first_of = [&](int tile) { return tile * kM + warp * kTilesM * 16 + lane / 4; };
    // Where of each 8 pixels this lane's is read, -1: outside; and what is read there, ahead of time.
    int from[kPixels];
    float4 next[kPixels];
    const auto find = [&](int tile) {
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
            const int pixel = min(first_of(tile) + i * 8, pixels - 1);
            from[i] = pixel;
            if (p.stride > 1 || p.padding) {
                const int image = quotient(pixel, places), of_image = pixel - image * places, of_row = quotient(of_image, p.wo);
                const int y = of_row * p.stride - p.padding, x = (of_image - of_row * p.wo) * p.stride - p.padding;
                from[i] = y >= 0 && y < p.h && x >= 0 && x < p.w ? (image * p.h + y) * p.w + x : -1;
            }
        }
    };
    const auto read = [&](int block) {
        const Reader in = reader(block);
#pragma unroll
        for (int i = 0; i < kPixels; ++i) next[i] = in.raw(max(from[i], 0));
    };
    find(at.first);
    read(0);
    if (threadIdx.x < kN / 4) ends[threadIdx.x] = end_of(p, at.column * kN / 4 + threadIdx.x);
    __syncthreads();
    for (int tile = at.first; tile < at.last; ++tile) {
        Sums<kTilesM, kTilesN, kWarps, 1> sums;
        float unit = 0.f;
        for (int block = 0; block < blocks; ++block) {
            const float before = unit;
            unit = make(reader(block), next, before);
            if (before > 0.f && unit != before) scale(sums.acc, unit / before);
            Rows a[kTilesM];
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
                const uint4 none = make_uint4(0, 0, 0, 0), upper = from[2 * i] < 0 ? none : split(next[2 * i]), lower = from[2 * i + 1] < 0 ? none : split(next[2 * i + 1]);
                a[i] = {{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
            }
            if (block + 1 < blocks) {
                read(block + 1);
            } else if (tile + 1 < at.last) {
                find(tile + 1);
                read(0);
            }
#pragma unroll
            for (int n = 0; n < kTilesN * 2; ++n) {
                const int own = min(at.column * kTilesN + n / 2, columns - 1);  // columns beyond are read again and dropped
                const uint4 b = __ldg(weights + (block * columns + own) * 64 + n % 2 * 32);
#pragma unroll
                for (int i = 0; i < kTilesM; ++i) accumulate(sums.acc[i][n], a[i], b);
            }
        }
        const auto pixel = [&](int i) { return first_of(tile) + i * 8 < pixels ? first_of(tile) + i * 8 : -1; };
        sums.finish(p, ends, unit > 0.f ? 1.f / unit : 1.f, at.group, tile, min(kM, pixels - tile * kM), at.column * kN / 4, warp, 0, pixel);
    }
}

}  // namespace hwnas::merged_program
