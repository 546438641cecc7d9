// Terms, each perhaps averaged over windows of 3 x 3 pixels.
#pragma once

#include "merged_program/place.cuh"

namespace hwnas::merged_program {

// Of a term the pixels from left to right around row y.
__device__ inline float4 window_sum(const Operand& in, const Place& at, int h, int w, int y, int left, int right) {
    const Reader read = at.reader(in);
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int row = max(y - in.pool / 2, 0); row <= min(y + in.pool / 2, h - 1); ++row)
        for (int x = left; x <= right; ++x) sum = sum + read.made_simply(load4(read.address(at.origin(h * w) + row * w + x)));
    return sum;
}

template <bool kPooled>
struct Sum {
    static constexpr int kBlocks = kPooled ? 4 : 3;  // on a multiprocessor: as many as spill nothing
    static __device__ int prepare(const Problem&, int, int, float4*) { return 0; }
    static __device__ void compute(const Problem& p, const Place& at, float4 (&value)[kRun]) {
        const int h = p.h, w = p.w, terms = p.terms;
        const std::int64_t pixel = at.origin(h * w) + at.y * w + at.x;
        if (kPooled) add_averages(p, at, pixel, value);
        if (!at.inside) return;
        for (int term = 0; term < terms; ++term) {
            const Operand& in = p.in[term];
            if (kPooled && in.pool) continue;
            const Reader read = at.reader(in);
            const float* from = read.address(pixel);
            const int step = w * read.cp;
            float4 v[kRun] = {};
#pragma unroll
            for (int i = 0; i < kRun; ++i)
                if (at.y + i < h) v[i] = load4(from + i * step);
            read.made(v);
#pragma unroll
            for (int i = 0; i < kRun; ++i) value[i] = value[i] + v[i];
        }
    }

private:
    // All terms that are averaged over windows. A thread reads the column that it is at, and learns from others what is beside.
    static __device__ void add_averages(const Problem& p, const Place& at, std::int64_t pixel, float4 (&value)[kRun]) {
        __shared__ float4 columns[kRun][kMapThreads + 2 * kQuads];  // of a block's threads, and of what is beside on either side
        const int here = threadIdx.x + kQuads, h = p.h, w = p.w, terms = p.terms;
        const bool left = at.x > 0, right = at.x < w - 1;
        bool more = false;
        __syncthreads();  // nobody reads those of the tile before any more
        for (int term = 0; at.inside && term < terms; ++term) {
            const Operand& in = p.in[term];
            if (!in.pool) continue;
            const Reader read = at.reader(in);
            const float* from = read.address(pixel);
            const int step = w * read.cp;
            float4 v[kRun + 2] = {};
#pragma unroll
            for (int r = 0; r < kRun + 2; ++r)
                if (static_cast<unsigned>(at.y - 1 + r) < static_cast<unsigned>(h)) v[r] = load4(from + (r - 1) * step);
            if (!read.is_plain())
#pragma unroll
                for (int r = 0; r < kRun + 2; ++r) {
                    const float4 made = read.made_simply(v[r]);
                    if (static_cast<unsigned>(at.y - 1 + r) < static_cast<unsigned>(h)) v[r] = made;
                }
#pragma unroll
            for (int i = 0; i < kRun; ++i) {
                const float4 sum = v[i] + v[i + 1] + v[i + 2];
                columns[i][here] = more ? columns[i][here] + sum : sum;
            }
            more = true;
        }
        if (at.inside && ((at.run == 0 && left) || (at.run == at.runs - 1 && right)))
            for (int side = -1; side <= 1; side += 2)  // what other blocks have
                if (side < 0 ? at.run == 0 && left : at.run == at.runs - 1 && right)
#pragma unroll 1
                    for (int i = 0; i < kRun; ++i) {
                        float4& sum = columns[i][here + side * at.wide];
                        sum = make_float4(0.f, 0.f, 0.f, 0.f);
                        for (int term = 0; term < p.terms; ++term)
                            if (p.in[term].pool) sum = sum + window_sum(p.in[term], at, h, w, at.y + i, at.x + side, at.x + side);
                    }
        __syncthreads();
        if (!more) return;
        const float across = part(left, right);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
            value[i] = columns[i][here];
            if (left) value[i] = value[i] + columns[i][here - at.wide];
            if (right) value[i] = value[i] + columns[i][here + at.wide];
            value[i] = value[i] * (across * part(at.y + i > 0, at.y + i < h - 1));
        }
    }
    // One of how many there are.
    static __device__ float part(bool before, bool after) { return before && after ? 1.f / 3.f : before || after ? 0.5f : 1.f; }
};

}  // namespace hwnas::merged_program
