// What forward and backward of the CPU NAS-Bench-201 cell share: edges, geometry, packed weights, and what is kept between.
#pragma once

#include <algorithm>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/arena.h"
#include "common/team.h"
#include "nb201_cell/nb201_cell.h"
#include "nhwc/kernels_cpu.h"
#include "nhwc/norm_cpu.h"

namespace hwnas::nb201_cell::cpu {

using nhwc::Area;
using nhwc::Norm;
using nhwc::NormGradient;
using nhwc::Size;

enum Conv : int { kOne, kThree, kConvs };
constexpr int kTaps = 9;
constexpr int kMatrices = 1 + kTaps;  // of an edge: the 1x1 conv, then the taps of the 3x3 conv

struct Edge {
    int index, from, to;
};

template <typename T>
struct Plan {
    explicit Plan(const Shape& s)
        : shape(s), n(s.n), c(static_cast<int>(s.c)), cp((c + nhwc::kChannelBlock - 1) / nhwc::kChannelBlock * nhwc::kChannelBlock),
          h(static_cast<int>(s.h)), w(static_cast<int>(s.w)) {
        for (int to = 1, index = 0; to < s.states; ++to)
            for (int from = 0; from < to; ++from) edges.push_back({index++, from, to});
    }

    template <typename F>
    std::vector<Edge> where(const F& wanted) const {
        std::vector<Edge> found;
        std::copy_if(edges.begin(), edges.end(), std::back_inserter(found), wanted);
        return found;
    }
    std::int64_t pixels() const { return std::int64_t{h} * w; }
    std::int64_t image() const { return pixels() * cp; }
    std::int64_t haloed() const { return std::int64_t{h + 2} * (w + 2) * cp; }
    Size size() const { return {h, w, cp}; }
    nhwc::Pool pool() const { return {h, w, h, w, 1}; }

    template <typename U>
    Area<U> dense(U* at) const {
        return {at, std::ptrdiff_t{w} * cp, cp};
    }
    // The h x w window of a buffer with a halo of one pixel that starts (y, x) from its corner.
    template <typename U>
    Area<U> window(U* buffer, int y, int x) const {
        const std::ptrdiff_t row = std::ptrdiff_t{w + 2} * cp;
        return {buffer + y * row + x * cp, row, cp};
    }

    Shape shape;
    std::int64_t n;
    int c, cp, h, w;
    std::vector<Edge> edges;
};

template <typename T>
struct Saved {
    Saved(const Plan<T>& plan, Arena& arena)
        : n(plan.n), image(plan.image()), cp(plan.cp), states(arena.take<T>(plan.shape.states * n * image)),
          convs(arena.take<T>(plan.edges.size() * kConvs * n * image)), norms(arena.take<T>(plan.edges.size() * kConvs * 2 * cp)) {}

    T* state(int s, std::int64_t i) const { return states + (s * n + i) * image; }
    T* z(const Edge& e, int conv, std::int64_t i) const { return convs + ((e.index * kConvs + conv) * n + i) * image; }
    Norm<T> norm(const Edge& e, int conv) const {
        T* const at = norms + (e.index * kConvs + conv) * 2 * cp;
        return {at, at + cp};
    }

    std::int64_t n, image, cp;
    T *states, *convs, *norms;
};

// [edge][matrix][cp, cp], as (in, out) for forward and as (out, in) for backward.
template <typename T>
struct Weights {
    Weights(const Plan<T>& plan, Arena& arena) : cp(plan.cp), at(arena.take<T>(plan.edges.size() * kMatrices * cp * cp)) {}

    T* matrix(const Edge& e, int m) const { return at + (e.index * kMatrices + m) * cp * cp; }

    void pack(const Plan<T>& plan, const Inputs& in, const Edge& e, bool transpose) const {
        const int c = plan.c;
        const T* const w1 = static_cast<const T*>(in.w1) + std::int64_t{e.index} * c * c;
        const T* const w3 = static_cast<const T*>(in.w3) + std::int64_t{e.index} * c * c * kTaps;
        std::fill_n(matrix(e, 0), kMatrices * cp * cp, T(0));
        for (int o = 0; o < c; ++o)
            for (int i = 0; i < c; ++i) {
                const std::int64_t at = transpose ? i * cp + o : o * cp + i;
                matrix(e, 0)[at] = w1[o * c + i];
                for (int t = 0; t < kTaps; ++t) matrix(e, 1 + t)[at] = w3[(o * c + i) * kTaps + t];
            }
    }

    std::int64_t cp;
    T* at;
};

}  // namespace hwnas::nb201_cell::cpu
