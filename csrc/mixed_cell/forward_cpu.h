// Forward of the CPU mixed cell, state after state, its edges in groups that fit the cache: one phase takes them through
// the convolutions that read the state (the depthwise results of a chunk of rows stay in L1), one through the second halves
// of the separable convs, one blends all into the nodes. Batch norm stands between the phases: its sums are taken from each
// image while it is in cache, and normalising is part of the next phase.
#pragma once

#include "mixed_cell/plan_cpu.h"

namespace hwnas::mixed_cell::cpu {

// The terms that an edge adds to its node, each scale * (term - mean).
enum EdgeTerm : int { kTermSep3, kTermSep5, kTermDil3, kTermDil5, kTermMax, kTermAverage, kTermSkip, kTerms };

template <typename T>
struct ForwardScratch {
    ForwardScratch(const Plan<T>& plan, Arena& arena)
        : weights(plan, arena), image(plan.elements(plan.out)), n(plan.n), cp(plan.cp), spare(arena.take<T>(spare_elements(plan))),
          pools_(arena.take<T>(plan.sources() * 2 * n * image)), scale_(arena.take<T>(plan.edges.size() * kTerms * cp)),
          zero(arena.take<T>(cp)), moments_(arena.take<double>(plan.nodes * (kConvs + 1) * n * 2 * cp)) {}

    T* pool(int state, bool average, std::int64_t i) const { return pools_ + ((state * 2 + average) * n + i) * image; }
    T* scale(const Edge& e, int term) const { return scale_ + (e.index * kTerms + term) * cp; }
    // Per image: mean, then sum of squared distances from it. Of the k-th edge in hand: its convs, and as conv kConvs its
    // factorized reduce.
    double* moments(int k, int conv, std::int64_t i) const { return moments_ + ((k * (kConvs + 1) + conv) * n + i) * 2 * cp; }

    Weights<T> weights;
    std::int64_t image, n, cp;
    T* spare;

private:
    T *pools_, *scale_;

public:
    T* zero;  // [cp]

private:
    double* moments_;
};

template <typename T>
class ForwardPass {
public:
    ForwardPass(const Plan<T>& plan, const Forward& p, Team& team)
        : plan_(plan), in_(p.in), team_(team), saved_arena_(p.saved), scratch_arena_(p.scratch), saved_(plan, saved_arena_),
          scratch_(plan, scratch_arena_), k_(kernels<T>()), y_(static_cast<T*>(p.y)), gates_(static_cast<const T*>(p.in.gates)),
          locals_(make_locals<Local>(plan, team)) {}

    void run() {
        std::fill_n(scratch_.zero, plan_.cp, T(0));
        team_.run(plan_.edges.size(), [&](std::int64_t e, int) { scratch_.weights.pack(plan_, in_, plan_.edges[e], true); });
        states_ = bind_states(plan_, in_, y_, scratch_.spare, false);
        for (int state = 0; state < plan_.sources(); ++state) {
            all_pools(state);
            for (const std::vector<Edge>& edges : plan_.groups(plan_.edges_from(state), team_)) add_edges(edges);
        }
        if (plan_.padded())
            for (int node = 0; node < plan_.nodes; ++node)
                nhwc::copy_channels(y_ + node * plan_.c, plan_.nodes * plan_.c, static_cast<const T*>(states_.image(node + 2, 0).at), plan_.cp, plan_.c,
                              0, plan_.n * plan_.out.pixels());
    }

private:
    struct Local {  // a thread's own; halos are zeroed once and never written
        explicit Local(const Plan<T>& plan)
            : state(plan.haloed(plan.in, kHalo)), second(plan.haloed(plan.out, kSecondHalo)), node(plan.shape.reduction ? plan.haloed(plan.out, kHalo) : 0),
              u(plan.chunk()) {}
        AlignedBuffer<T> state, second, node, u;
    };

    void all_pools(int state) {
        team_.run(plan_.n, [&](std::int64_t i, int) {
            T* const max = scratch_.pool(state, false, i);
            T* const average = scratch_.pool(state, true, i);
            k_.pool(plan_.dense(max, plan_.out), plan_.dense(average, plan_.out), states_.image(state, i), plan_.pool(state), plan_.cp);
            moments(scratch_.moments(0, kMaxPool, i), max);
            moments(scratch_.moments(0, kAvgPool, i), average);
        });
        finish(0, kMaxPool, saved_.pool_norm(state, false));
        finish(0, kAvgPool, saved_.pool_norm(state, true));
    }

    // Edges that leave one state, up to what they add to their nodes.
    void add_edges(const std::vector<Edge>& edges) {
        const std::int64_t n = plan_.n;
        const int count = static_cast<int>(edges.size());
        const auto each = [&](const auto& phase) {
            team_.run(count * n, [&](std::int64_t unit, int thread) {
                phase(edges[unit / n], static_cast<int>(unit / n), unit % n, locals_[thread]);
            });
        };
        each([&](const Edge& e, int k, std::int64_t i, Local& local) { first_convs(e, k, i, local); });
        for (int k = 0; k < count; ++k) {
            for (const Conv conv : kFromState) finish(k, conv, saved_.norm(edges[k], conv));
            if (edges[k].stride == 2) finish(k, kConvs, saved_.fr_norm(edges[k]));
        }
        each([&](const Edge& e, int k, std::int64_t i, Local& local) { second_convs(e, k, i, local); });
        for (int k = 0; k < count; ++k) {
            for (const Conv conv : kSecond) finish(k, conv, saved_.norm(edges[k], conv));
            scales(edges[k]);
        }
        each([&](const Edge& e, int, std::int64_t i, Local&) { blend(e, i); });
    }

    void first_convs(const Edge& e, int k, std::int64_t i, Local& local) {
        // States of both sizes pass through in a reduction cell; each size has its own buffer, so that its halo stays zero.
        const Grid grid = plan_.grid(e.from);
        T* padded = plan_.shape.reduction && e.from >= 2 ? local.node.data() : local.state.data();
        k_.relu(plan_.interior(padded, grid, kHalo), states_.image(e.from, i), plan_.size(grid));
        for (int row = 0; row < plan_.out.h; row += plan_.chunk_rows)
            for (const Conv conv : kFromState)
                convolve(e, conv, i, row, plan_.corner(padded, grid, kHalo, row, e.stride), e.stride, local);
        for (const Conv conv : kFromState) moments(scratch_.moments(k, conv, i), saved_.z(e, conv, i));
        if (e.stride == 2) {
            T* z = saved_.fr(e, i);
            for (int half = 0; half < 2; ++half) {
                Area<T> pixels = plan_.interior(padded, grid, kHalo);
                pixels = {pixels.at + half * (pixels.row + pixels.pixel), 2 * pixels.row, 2 * pixels.pixel};
                k_.pointwise(plan_.dense(z, plan_.out), pixels, scratch_.weights.fr(e, half), plan_.size(plan_.out), half == 1);
            }
            moments(scratch_.moments(k, kConvs, i), z);
        }
    }

    void second_convs(const Edge& e, int k, std::int64_t i, Local& local) {
        for (const Conv first : {kSep3First, kSep5First}) {
            const Conv conv = kSecondOf[first];
            const Norm<T> norm = saved_.norm(e, first);
            T* padded = local.second.data();
            k_.normalise_relu(plan_.interior(padded, plan_.out, kSecondHalo), plan_.dense(saved_.z(e, first, i), plan_.out), norm.mean,
                              norm.rstd, plan_.size(plan_.out));
            for (int row = 0; row < plan_.out.h; row += plan_.chunk_rows)
                convolve(e, conv, i, row, plan_.corner(padded, plan_.out, kSecondHalo, row), 1, local);
            moments(scratch_.moments(k, conv, i), saved_.z(e, conv, i));
        }
    }

    // Rows [row, row + chunk) of one convolution.
    void convolve(const Edge& e, Conv conv, std::int64_t i, int row, Area<const T> source, int stride, Local& local) {
        const Size size{std::min(plan_.chunk_rows, plan_.out.h - row), plan_.out.w, plan_.cp};
        const Area<T> u = plan_.dense(local.u.data(), plan_.out);
        k_.depthwise(u, source, plan_.forward_taps[conv][stride - 1], scratch_.weights.dw(e, conv), size, false);
        k_.pointwise(plan_.dense(saved_.z(e, conv, i), plan_.out, row), u, scratch_.weights.pw(e, conv), size, false);
    }

    void moments(double* out, const T* image) { k_.moments(out, out + plan_.cp, plan_.dense(image, plan_.out), plan_.size(plan_.out)); }

    void finish(int k, int conv, Norm<T> norm) {
        nhwc::merge_moments([&](std::int64_t i) { return scratch_.moments(k, conv, i); }, plan_.n, plan_.out.pixels(), plan_.cp, norm);
    }

    void scales(const Edge& e) {
        const T* gate = gates_ + e.index * kOps;
        const auto set = [&](EdgeTerm term, Op op, const T* rstd) {
            for (int ch = 0; ch < plan_.cp; ++ch) scratch_.scale(e, term)[ch] = rstd ? gate[op] * rstd[ch] : gate[op];
        };
        for (int f = 0; f < 4; ++f) set(static_cast<EdgeTerm>(f), kOpOf[kFinal[f]], saved_.norm(e, kFinal[f]).rstd);
        set(kTermMax, kMaxPool, saved_.pool_norm(e.from, false).rstd);
        set(kTermAverage, kAvgPool, saved_.pool_norm(e.from, true).rstd);
        set(kTermSkip, kSkip, e.stride == 2 ? saved_.fr_norm(e).rstd : nullptr);
    }

    void blend(const Edge& e, std::int64_t i) {
        for (int row = 0; row < plan_.out.h; row += plan_.chunk_rows) {
            const Size size{std::min(plan_.chunk_rows, plan_.out.h - row), plan_.out.w, plan_.cp};
            Term<T> terms[kTerms];
            const auto set = [&](int term, Area<const T> area, const T* mean) { terms[term] = {area, scratch_.scale(e, term), mean}; };
            for (int f = 0; f < 4; ++f)
                set(f, plan_.dense(saved_.z(e, kFinal[f], i), plan_.out, row), saved_.norm(e, kFinal[f]).mean);
            for (const bool average : {false, true})
                set(average ? kTermAverage : kTermMax, plan_.dense(scratch_.pool(e.from, average, i), plan_.out, row),
                    saved_.pool_norm(e.from, average).mean);
            if (e.stride == 2) set(kTermSkip, plan_.dense(saved_.fr(e, i), plan_.out, row), saved_.fr_norm(e).mean);
            else set(kTermSkip, states_.image(e.from, i, row), scratch_.zero);
            k_.blend(states_.image(e.to(), i, row), terms, kTerms, size, e.from > 0);  // a node's first edge is the one from s0
        }
    }

    const Plan<T>& plan_;
    const Inputs& in_;
    Team& team_;
    Arena saved_arena_, scratch_arena_;
    Saved<T> saved_;
    ForwardScratch<T> scratch_;
    const Kernels<T>& k_;
    T* y_;
    const T* gates_;
    std::vector<Local> locals_;
    States<T> states_;
};

}  // namespace hwnas::mixed_cell::cpu
