// What convolutions on tensor cores have in common: products of split numbers (see pack.cuh), and what becomes of their sums.
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

struct Rows {  // 16 pixels' 16 channels, as the lanes of a warp hold them
    unsigned high[4], low[4];
};
// acc += a * b. Sums of more than 16 products are in float32 outside the tensor cores, which round towards zero (Ootomo & Yokota
// 2022, Recovering single precision accuracy from tensor cores); the small products come first, so that only the last rounding
// counts.
__device__ inline void accumulate(float (&acc)[4], const Rows& a, uint4 b) {
    constexpr float kZero[4] = {0.f, 0.f, 0.f, 0.f};
    float sum[4];
    multiply(sum, a.high, b.z, b.w, kZero);
    multiply(sum, a.low, b.x, b.y, sum);
    multiply(sum, a.high, b.x, b.y, sum);
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] += sum[i];
}

template <int kTilesM, int kTilesN>
__device__ inline void scale(float (&acc)[kTilesM][kTilesN][4], float by) {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
#pragma unroll
        for (int n = 0; n < kTilesN; ++n)
#pragma unroll
            for (int j = 0; j < 4; ++j) acc[i][n][j] *= by;
}

// What sums of 4 channels are multiplied by, and what is added then.
struct End {
    float4 unit, bias;
};
__device__ inline End end_of(const Problem& p, int quad) {
    quad = min(quad, padded(p.o) / 4 - 1);
    End end{load4(p.weight + quad * 4), bias_of(p, quad)};
    if (p.scale) {
        const float4 scale = load4(p.scale + quad * 4);
        end = {end.unit * scale, multiply_add(end.bias, scale, load4(p.shift + quad * 4))};
    }
    return end;
}

// Where a block works: tiles `first` to `last`, that one not, of a group.
struct Block {
    int column, first, last, group;
    __device__ Block(const Problem& p, int local) {
        const int turns = quotient(p.tiles + p.turns - 1, p.turns), of_columns = quotient(local, p.columns);
        column = local - of_columns * p.columns, group = quotient(of_columns, turns);
        first = (of_columns - group * turns) * p.turns, last = min(first + p.turns, p.tiles);
    }
};

// What a lane has of its warp's sums: of each 8 pixels one, and 4 neighbouring channels of each 16.
template <int kTilesM, int kTilesN, int kWarpsM, int kWarpsN>
struct Sums {
    static constexpr int kPixels = kTilesM * 2, kWide = kWarpsN * kTilesN * 4;
    float acc[kTilesM][kTilesN * 2][4] = {};

    __device__ void add(const float (&more)[kTilesM][kTilesN * 2][4]) {
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
#pragma unroll
            for (int n = 0; n < kTilesN * 2; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][n][j] += more[i][n][j];
    }
    // Finishes and stores them, multiplied by `by`; pixel(i) is where the i-th is, -1: nowhere. The tile has `here` pixels,
    // first_quad is its column's.
    template <typename Pixel>
    __device__ void finish(const Problem& p, const End* ends, float by, int group, int tile, int here, int first_quad, int warp_m, int warp_n, Pixel pixel) {
        const int lane = static_cast<int>(threadIdx.x) % 32, t = threadIdx.x, op = padded(p.o), pixel_bytes = 4 * op;
        const std::int64_t begin = static_cast<std::int64_t>(group) * p.images * p.ho * p.wo * op;
        const auto place = [&](int n) { return (warp_n * kTilesN + n) * 4 + lane % 4; };
        const auto there = [&](int n, int i) { return (first_quad + place(n)) * 4 < op && pixel(i) >= 0; };
        float4 value[kTilesN][kPixels];
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
            const float4 unit = ends[place(n)].unit * by, bias = ends[place(n)].bias;
#pragma unroll
            for (int i = 0; i < kPixels; ++i) {
                const float *u = acc[i / 2][2 * n] + i % 2 * 2, *v = acc[i / 2][2 * n + 1] + i % 2 * 2;
                value[n][i] = multiply_add(make_float4(u[0], u[1], v[0], v[1]), unit, bias);
            }
        }
        auto& all = reinterpret_cast<float4(&)[kTilesN * kPixels]>(value);
        activate_run(p.after, all);
        for (int term = 1; term < p.terms; ++term)
#pragma unroll
            for (int n = 0; n < kTilesN; ++n) {
                const float* from = p.in[term].x + begin + (first_quad + place(n)) * 4;
#pragma unroll
                for (int i = 0; i < kPixels; ++i)
                    if (there(n, i)) value[n][i] = value[n][i] + load4(beyond(from, pixel(i), pixel_bytes));
            }
        activate_run(p.last, all);
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
            float* to = p.y + begin + (first_quad + place(n)) * 4;
#pragma unroll
            for (int i = 0; i < kPixels; ++i)
                if (there(n, i)) store4(beyond(to, pixel(i), pixel_bytes), value[n][i]);
        }
        if (!p.mean) return;
        __shared__ float4 sums[kWarpsM][kWide], means[kWide];
        for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
            for (int n = 0; n < kTilesN; ++n) {
                const float4 mean = pass ? means[place(n)] : make_float4(0.f, 0.f, 0.f, 0.f);
                float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
                for (int i = 0; i < kPixels; ++i)
                    if (pixel(i) >= 0) {
                        const float4 d = value[n][i] + mean * -1.f;
                        sum = pass ? multiply_add(d, d, sum) : sum + d;
                    }
#pragma unroll
                for (int far = 4; far < 32; far *= 2)
                    sum = sum + make_float4(__shfl_xor_sync(~0u, sum.x, far), __shfl_xor_sync(~0u, sum.y, far), __shfl_xor_sync(~0u, sum.z, far), __shfl_xor_sync(~0u, sum.w, far));
                if (lane < 4) sums[warp_m][place(n)] = sum;
            }
            __syncthreads();
            if (t < kWide) {
                float4 sum = sums[0][t];
                for (int warp = 1; warp < kWarpsM; ++warp) sum = sum + sums[warp][t];
                if (!pass) means[t] = sum = sum * (1.f / static_cast<float>(here));
                const std::int64_t to = static_cast<std::int64_t>(group) * p.tiles + tile;
                if ((first_quad + t) * 4 < op) store4((pass ? p.m2 : p.mean) + to * op + (first_quad + t) * 4, sum);
                if (first_quad + t == 0) p.pixels[to] = static_cast<float>(here);
            }
            __syncthreads();
        }
    }
};

}  // namespace hwnas::merged_program
