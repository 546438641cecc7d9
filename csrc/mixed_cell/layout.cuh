// Where a call's tensors lie: the plan of a shape, and its saved and scratch memory.
#pragma once

#include <algorithm>

#include "mixed_cell/tuned.h"
#include "mixed_cell/vector.cuh"

namespace hwnas::mixed_cell::cuda {

// Hands out 256-byte aligned pieces of one buffer; with a null base it only counts.
class Arena {
public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <typename P>
    void take(P*& piece, std::int64_t count) {
        piece = base_ ? reinterpret_cast<P*>(base_ + used_) : nullptr;
        used_ += (count * static_cast<std::int64_t>(sizeof(P)) + 255) / 256 * 256;
    }
    std::int64_t used() const { return used_; }

private:
    char* base_;
    std::int64_t used_ = 0;
};

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <typename T>
Plan<T> make_plan(const Shape& s) {
    Plan<T> p{};
    p.n = static_cast<int>(s.n);
    p.c = static_cast<int>(s.c);
    p.h = static_cast<int>(s.h);
    p.w = static_cast<int>(s.w);
    p.oh = static_cast<int>(s.out_h());
    p.ow = static_cast<int>(s.out_w());
    p.nodes = s.nodes;
    p.edges = s.edges();
    p.plane_pixels = std::int64_t{p.oh} * p.ow;
    p.elements = s.n * s.c * p.plane_pixels;
    p.per_pixel = 1.0 / static_cast<double>(p.pixels());
    for (int i = 0, edge = 0; i < p.nodes; ++i) {
        for (int j = 0; j < i + 2; ++j, ++edge) {
            p.node[edge] = static_cast<unsigned char>(i);
            p.source[edge] = static_cast<unsigned char>(j);
        }
    }
    p.by_c = Divisor(static_cast<unsigned>(p.c));
    p.by_strips = Divisor(static_cast<unsigned>(std::max(p.oh / 16, 1)));
    p.by_ow = Divisor(static_cast<unsigned>(p.ow));
    p.by_w = Divisor(static_cast<unsigned>(p.w));
    p.by_vectors = Divisor(static_cast<unsigned>(std::max<std::int64_t>(p.plane() / kVec, 1)));
    p.reduction = s.reduction;
    p.keeps_results = Tuned<T>::keeps_results(p);
    return p;
}

template <typename T>
void bind_inputs(Plan<T>& p, const Inputs& in) {
    using A = typename Plan<T>::A;
    p.s[0] = static_cast<const T*>(in.s0);
    p.s[1] = static_cast<const T*>(in.s1);
    p.gates = static_cast<const A*>(in.gates);
    p.dw = static_cast<const A*>(in.dw);
    p.pw = static_cast<const A*>(in.pw);
    p.fr = static_cast<const A*>(in.fr);
}

template <typename T>
std::int64_t lay_out_saved(Plan<T>& p, void* base) {
    Arena arena(base);
    arena.take(p.z, p.edges * 2 * p.size());
    arena.take(p.z_fr, p.reduction ? 2 * p.nodes * p.size() : 0);
    arena.take(p.results, p.keeps_results ? p.edges * 2 * p.size() : 0);
    arena.take(p.stats, std::int64_t{p.stat_rows()} * p.c);
    return arena.used();
}

template <typename T>
std::int64_t partial_count(const Plan<T>& p) {  // per-block sums that one lane may have waiting
    const std::int64_t input_pixels = std::int64_t{p.n} * p.h * p.w;
    const std::int64_t jobs = std::max({2, p.nodes, 2 * (p.nodes - kLanes + 1)});  // edges that one lane has at a time
    const std::int64_t tiles = divide_up(input_pixels, kTile) + p.n * p.segments();
    return jobs * p.c * (5 * tiles + 2 * p.dw_groups());  // two second halves an edge leave sums by group
}

template <typename T>
std::int64_t lay_out_forward(Plan<T>& p, void* base) {
    Arena arena(base);
    arena.take(p.z_last, p.edges * 4 * p.size());
    arena.take(p.pools, std::int64_t{p.nodes + 1} * 2 * p.size());
    arena.take(p.partial, kLanes * partial_count(p));
    char* fragments = nullptr;
    arena.take(fragments, Tuned<T>::fragment_bytes(p));
    p.fragments = fragments;
    return arena.used();
}

template <typename T>
std::int64_t lay_out_backward(Plan<T>& p, void* base) {
    Arena arena(base);
    const std::int64_t reduced = p.reduction ? 2 * p.nodes : 0;
    const std::int64_t large = std::int64_t{p.n} * p.c * p.h * p.w;
    arena.take(p.g, p.nodes * p.size());
    arena.take(p.h1, p.slots() * 2 * p.size());
    arena.take(p.dd, p.slots() * kConvs * p.size());
    arena.take(p.dd_fr, reduced * 2 * p.size());
    arena.take(p.dx, 2 * p.nodes * large + (p.edges - 2 * p.nodes) * p.size());
    arena.take(p.sums, std::int64_t{p.edges} * kNorms * 2 * p.c);
    arena.take(p.dpw_partial, (p.edges * kConvs + reduced) * p.pw_groups() * std::int64_t{p.c} * p.c);
    arena.take(p.ddw_partial, std::int64_t{p.dw_groups()} * p.edges * kDwPerChannel * p.c);
    arena.take(p.pools, std::int64_t{p.nodes + 1} * 2 * p.size());
    arena.take(p.partial, kLanes * partial_count(p));
    char* fragments = nullptr;
    arena.take(fragments, Tuned<T>::fragment_bytes(p));
    p.fragments = fragments;
    return arena.used();
}

}  // namespace hwnas::mixed_cell::cuda
