// Backward of the CPU mixed cell, node after node from the last. Kept from forward are the convolutions' results before their
// batch norms; depthwise results and pools are computed again, which is cheaper than reading them back. For a node:
//   1. what the pools and skips of the edges that leave it give its state (the convs of those edges have added theirs before);
// then, for the edges that enter it, in groups that fit the cache:
//   2. the sums that their batch norms need, and the gates' gradients;
//   3. the convs next to the node: weights' gradients, then the state's (dilated) or the first halves' (separable);
//   4. the first halves of the separable convs.
// Weights' gradients are summed over a fixed number of groups of images, each in its own place, then over the groups in order:
// the threads' number cannot show.
#pragma once

#include "mixed_cell/backward_scratch_cpu.h"

namespace hwnas::mixed_cell::cpu {

template <typename T>
class BackwardPass {
public:
    BackwardPass(const Plan<T>& plan, const Backward& p, Team& team)
        : plan_(plan), p_(p), team_(team), saved_arena_(const_cast<void*>(p.saved)), scratch_arena_(p.scratch), saved_(plan, saved_arena_),
          scratch_(plan, scratch_arena_), k_(kernels<T>()), gates_(static_cast<const T*>(p.in.gates)), dgates_(static_cast<T*>(p.dgates)),
          locals_(make_locals<Local>(plan, team)) {}

    void run() {
        begin();
        for (int node = plan_.nodes - 1; node >= 0; --node) {
            if (node + 2 < plan_.sources()) pools_and_skips(node + 2);
            node_sum(node);
            for (const std::vector<Edge>& edges : plan_.groups(plan_.edges_into(node), team_)) convs(edges);
        }
        for (const int state : {1, 0}) pools_and_skips(state);
        if (plan_.padded())
            for (int s = 0; s < 2; ++s)
                nhwc::copy_channels(static_cast<T*>(s ? p_.ds1 : p_.ds0), plan_.c, static_cast<const T*>(gradient(s, 0).at), plan_.cp, plan_.c, 0,
                              plan_.n * plan_.in.pixels());
    }

private:
    struct Local {  // a thread's own; halos are zeroed once and never written
        explicit Local(const Plan<T>& plan)
            : state(plan.haloed(plan.in, kHalo)), node(plan.shape.reduction ? plan.haloed(plan.out, kHalo) : 0),
              second(plan.haloed(plan.out, kSecondHalo)), du(plan.haloed(plan.out, kHalo)), dx(plan.elements(plan.in)),
              u(plan.chunk()), dz(plan.chunk()), max(plan.elements(plan.out)), average(plan.elements(plan.out)),
              dmax(plan.elements(plan.out)), daverage(plan.elements(plan.out)) {}
        AlignedBuffer<T> state, node, second, du, dx, u, dz, max, average, dmax, daverage;
    };

    // Gradient of a state's image, complete once the edges that leave the state have added to it.
    Area<T> gradient(int state, std::int64_t i, int row = 0) const {
        if (state >= 2) return plan_.dense(scratch_.node_states + ((state - 2) * plan_.n + i) * scratch_.out_image, plan_.out, row);
        T* const base = plan_.padded() ? scratch_.input_states + state * plan_.n * scratch_.in_image : static_cast<T*>(state ? p_.ds1 : p_.ds0);
        return plan_.dense(base + i * scratch_.in_image, plan_.in, row);
    }

    void begin() {
        std::fill_n(scratch_.zero, plan_.cp, T(0));
        std::fill_n(scratch_.one, plan_.cp, T(1));
        states_ = bind_states(plan_, p_.in, const_cast<void*>(p_.y), scratch_.spare, true);
        team_.run(plan_.edges.size(), [&](std::int64_t e, int) { scratch_.weights.pack(plan_, p_.in, plan_.edges[e], false); });
        team_.run(plan_.n, [&](std::int64_t i, int) {
            for (int s = 0; s < 2; ++s) std::fill_n(gradient(s, i).at, scratch_.in_image, T(0));
            const int all = plan_.nodes * plan_.c;
            for (int node = 0; node < plan_.nodes; ++node)
                nhwc::copy_channels(gradient(node + 2, i).at, plan_.cp, static_cast<const T*>(p_.dy) + i * plan_.out.pixels() * all + node * plan_.c,
                              all, plan_.c, plan_.cp - plan_.c, plan_.out.pixels());
        });
        for (const Edge& e : plan_.edges) dgates_[e.index * kOps + kNone] = T(0);
    }

    // Calls f(image, thread) for the images of a group, in order.
    template <typename F>
    void each_image(std::int64_t group, const F& f) const {
        for (std::int64_t i = group * plan_.n / scratch_.groups; i < (group + 1) * plan_.n / scratch_.groups; ++i) f(i);
    }

    // Sums of the images in order, then the total over the channels.
    double total(std::int64_t k, int slot, std::vector<double>& channels) const {
        channels.assign(plan_.cp, 0.0);
        for (std::int64_t i = 0; i < plan_.n; ++i)
            for (int ch = 0; ch < plan_.cp; ++ch) channels[ch] += scratch_.sum(k, slot, i)[ch];
        double all = 0;
        for (const double value : channels) all += value;
        return all;
    }

    void set(NormGradient<T> to, const double* sum, const double* dot, const T* rstd, double gate) const {
        const double count = static_cast<double>(plan_.n) * static_cast<double>(plan_.out.pixels());
        nhwc::set_gradient(to, sum, dot, rstd, gate, count, plan_.cp);
    }

    // ---- pools and skips of the edges that leave a state ----

    void pools_and_skips(int state) {
        const std::vector<Edge> edges = plan_.edges_from(state);
        const Size size = plan_.size(plan_.out);
        const auto pools = [&](std::int64_t i, Local& local) {
            k_.pool(plan_.dense(local.max.data(), plan_.out), plan_.dense(local.average.data(), plan_.out), states_.image(state, i),
                    plan_.pool(state), plan_.cp);
        };
        const Norm<T> max_norm = saved_.pool_norm(state, false), average_norm = saved_.pool_norm(state, true);
        const bool identity = plan_.stride(state) == 1;

        team_.run(plan_.n, [&](std::int64_t i, int thread) {
            Local& local = locals_[thread];
            pools(i, local);
            for (std::size_t k = 0; k < edges.size(); ++k) {
                const Area<T> g = gradient(edges[k].to(), i);
                const auto dot = [&](int slot, Area<const T> term, const T* mean, const T* rstd) {
                    std::fill_n(scratch_.sum(k, slot, i), plan_.cp, 0.0);
                    k_.dot(scratch_.sum(k, slot, i), g, term, mean, rstd, size);
                };
                dot(0, plan_.dense(local.max.data(), plan_.out), max_norm.mean, max_norm.rstd);
                dot(1, plan_.dense(local.average.data(), plan_.out), average_norm.mean, average_norm.rstd);
                if (identity) dot(2, states_.image(state, i), scratch_.zero, scratch_.one);
            }
        });

        // The pools' gradients are linear in the nodes', so the edges are summed before each batch norm's gradient is taken.
        std::vector<double> channels, sum(plan_.cp, 0.0), dots(plan_.cp, 0.0);
        for (const bool average : {false, true}) {
            std::fill(sum.begin(), sum.end(), 0.0);
            std::fill(dots.begin(), dots.end(), 0.0);
            for (std::size_t k = 0; k < edges.size(); ++k) {
                const std::int64_t at = edges[k].index * kOps + (average ? kAvgPool : kMaxPool);
                dgates_[at] = static_cast<T>(total(k, average, channels));
                std::fill_n(scratch_.gate(k, average), plan_.cp, gates_[at]);
                for (int ch = 0; ch < plan_.cp; ++ch) {
                    sum[ch] += static_cast<double>(gates_[at]) * scratch_.node_sum(edges[k].node)[ch];
                    dots[ch] += static_cast<double>(gates_[at]) * channels[ch];
                }
            }
            set(scratch_.pool_norm(average), sum.data(), dots.data(), saved_.pool_norm(state, average).rstd, 1.0);
        }
        for (std::size_t k = 0; identity && k < edges.size(); ++k) {
            const std::int64_t at = edges[k].index * kOps + kSkip;
            dgates_[at] = static_cast<T>(total(k, 2, channels));
            std::fill_n(scratch_.gate(k, 2), plan_.cp, gates_[at]);
        }

        team_.run(plan_.n, [&](std::int64_t i, int thread) {
            Local& local = locals_[thread];
            pools(i, local);
            const Area<T> d[2] = {plan_.dense(local.dmax.data(), plan_.out), plan_.dense(local.daverage.data(), plan_.out)};
            const Area<T> value[2] = {plan_.dense(local.max.data(), plan_.out), plan_.dense(local.average.data(), plan_.out)};
            const Norm<T> norm[2] = {max_norm, average_norm};
            for (int pool = 0; pool < 2; ++pool) {
                blend_gradients(d[pool], edges, pool, i, false);
                const NormGradient<T> to = scratch_.pool_norm(pool == 1);
                k_.normalise_backward(d[pool], d[pool], value[pool], to.a, to.b, norm[pool].mean, to.c0, size);
            }
            const Area<T> dx = gradient(state, i);
            k_.pool_backward(dx, states_.image(state, i), d[0], d[1], plan_.pool(state), plan_.cp);
            if (identity) blend_gradients(dx, edges, 2, i, true);
        });
    }

    // dst (+)= the gradients of the nodes that the edges enter, each times its gate.
    void blend_gradients(Area<T> dst, const std::vector<Edge>& edges, int gate, std::int64_t i, bool accumulate) {
        for (std::size_t k = 0; k < edges.size(); ++k) {
            const Term<T> term{gradient(edges[k].to(), i), scratch_.gate(k, gate), scratch_.zero};
            k_.blend(dst, &term, 1, plan_.size(plan_.out), accumulate || k > 0);
        }
    }

    // ---- convs of the edges that enter a node ----

    void node_sum(int node) {
        team_.run(plan_.n, [&](std::int64_t i, int) {
            std::fill_n(scratch_.sum(0, 0, i), plan_.cp, 0.0);
            k_.sum(scratch_.sum(0, 0, i), gradient(node + 2, i), plan_.size(plan_.out));
        });
        std::vector<double> channels;
        total(0, 0, channels);
        std::copy(channels.begin(), channels.end(), scratch_.node_sum(node));
    }

    void convs(const std::vector<Edge>& edges) {
        const std::int64_t units = static_cast<std::int64_t>(edges.size()) * scratch_.groups;
        norm_sums(edges);
        team_.run(units, [&](std::int64_t unit, int thread) { final_convs(edges, unit, locals_[thread]); });
        finish_hidden(edges);
        team_.run(units, [&](std::int64_t unit, int thread) { first_convs(edges, unit, locals_[thread]); });
        team_.run(edges.size(), [&](std::int64_t k, int) { write_weights(edges[k], k); });
    }

    void norm_sums(const std::vector<Edge>& edges) {
        const Size size = plan_.size(plan_.out);
        constexpr int kReduceSlot = 4;
        team_.run(edges.size() * plan_.n, [&](std::int64_t unit, int) {
            const std::int64_t k = unit / plan_.n, i = unit % plan_.n;
            const Edge& e = edges[k];
            const Area<T> g = gradient(e.to(), i);
            const auto dot = [&](int slot, const T* z, Norm<T> norm) {
                std::fill_n(scratch_.sum(k, slot, i), plan_.cp, 0.0);
                k_.dot(scratch_.sum(k, slot, i), g, plan_.dense(z, plan_.out), norm.mean, norm.rstd, size);
            };
            for (int f = 0; f < 4; ++f) dot(f, saved_.z(e, kFinal[f], i), saved_.norm(e, kFinal[f]));
            if (e.stride == 2) dot(kReduceSlot, saved_.fr(e, i), saved_.fr_norm(e));
        });
        std::vector<double> channels;
        for (std::size_t k = 0; k < edges.size(); ++k) {
            const Edge& e = edges[k];
            const auto finish = [&](int slot, Op op, int conv, const T* rstd) {
                dgates_[e.index * kOps + op] = static_cast<T>(total(k, slot, channels));
                set(scratch_.norm(k, conv), scratch_.node_sum(e.node), channels.data(), rstd, gates_[e.index * kOps + op]);
            };
            for (int f = 0; f < 4; ++f) finish(f, kOpOf[kFinal[f]], kFinal[f], saved_.norm(e, kFinal[f]).rstd);
            if (e.stride == 2) finish(kReduceSlot, kSkip, kConvs, saved_.fr_norm(e).rstd);
        }
    }

    void final_convs(const std::vector<Edge>& edges, std::int64_t unit, Local& local) {
        const std::int64_t k = unit / scratch_.groups, group = unit % scratch_.groups;
        const Edge& e = edges[k];
        T* const partial = scratch_.partial(k, group);
        std::fill_n(partial, scratch_.partial_size, T(0));
        each_image(group, [&](std::int64_t i) {
            const Area<T> g = gradient(e.to(), i);
            T* const source = load_state(e, i, local);
            for (const Conv conv : {kDil3, kDil5}) convolve(e, k, conv, i, g, source, local, partial);
            if (e.stride == 2) factorized_reduce(e, k, i, g, source, local, partial);
            add_to_state(e, i, local);

            for (int which = 0; which < 2; ++which) {
                const Conv first = which ? kSep5First : kSep3First;
                const Norm<T> norm = saved_.norm(e, first);
                const Area<const T> z = plan_.dense(saved_.z(e, first, i), plan_.out);
                const Area<T> hidden = plan_.interior(local.second.data(), plan_.out, kSecondHalo);
                const Size size = plan_.size(plan_.out);
                k_.normalise_relu(hidden, z, norm.mean, norm.rstd, size);
                std::fill_n(local.dx.data(), scratch_.out_image, T(0));
                convolve(e, k, kSecondOf[first], i, g, local.second.data(), local, partial);
                const Area<T> d_hidden = plan_.dense(scratch_.d_hidden(k, which, i), plan_.out);
                k_.relu_backward(d_hidden, plan_.dense(local.dx.data(), plan_.out), hidden, size, false);
                for (int slot = 2 * which; slot < 2 * which + 2; ++slot) std::fill_n(scratch_.sum(k, slot, i), plan_.cp, 0.0);
                k_.sum(scratch_.sum(k, 2 * which, i), d_hidden, size);
                k_.dot(scratch_.sum(k, 2 * which + 1, i), d_hidden, z, norm.mean, norm.rstd, size);
            }
        });
    }

    void finish_hidden(const std::vector<Edge>& edges) {
        std::vector<double> sum, dot;
        for (std::size_t k = 0; k < edges.size(); ++k)
            for (int which = 0; which < 2; ++which) {
                const Conv first = which ? kSep5First : kSep3First;
                total(k, 2 * which, sum);
                total(k, 2 * which + 1, dot);
                set(scratch_.norm(k, first), sum.data(), dot.data(), saved_.norm(edges[k], first).rstd, 1.0);
            }
    }

    void first_convs(const std::vector<Edge>& edges, std::int64_t unit, Local& local) {
        const std::int64_t k = unit / scratch_.groups, group = unit % scratch_.groups;
        const Edge& e = edges[k];
        each_image(group, [&](std::int64_t i) {
            T* const source = load_state(e, i, local);
            for (int which = 0; which < 2; ++which)
                convolve(e, k, which ? kSep5First : kSep3First, i, plan_.dense(scratch_.d_hidden(k, which, i), plan_.out), source, local,
                         scratch_.partial(k, group));
            add_to_state(e, i, local);
        });
    }

    // relu(state) with its halo; clears the place where the state's gradient gathers.
    T* load_state(const Edge& e, std::int64_t i, Local& local) {
        const Grid grid = plan_.grid(e.from);
        T* const padded = plan_.shape.reduction && e.from >= 2 ? local.node.data() : local.state.data();
        k_.relu(plan_.interior(padded, grid, kHalo), states_.image(e.from, i), plan_.size(grid));
        std::fill_n(local.dx.data(), plan_.elements(grid), T(0));
        return padded;
    }

    void add_to_state(const Edge& e, std::int64_t i, Local& local) {
        const Grid grid = plan_.grid(e.from);
        k_.relu_backward(gradient(e.from, i), plan_.dense(local.dx.data(), grid), states_.image(e.from, i), plan_.size(grid), true);
    }

    // One depthwise-pointwise-norm: adds the weights' gradients to `partial` and the source's to local.dx. `g` is the gradient
    // behind the norm, `source` the buffer with halo that the depthwise convolution read.
    void convolve(const Edge& e, std::int64_t k, Conv conv, std::int64_t i, Area<const T> g, const T* source, Local& local, T* partial) {
        const bool second = conv == kSep3Second || conv == kSep5Second;
        const int stride = second ? 1 : e.stride, halo = second ? kSecondHalo : kHalo;
        const Grid grid = second ? plan_.out : plan_.grid(e.from);
        const NormGradient<T> norm = scratch_.norm(k, conv);
        const Taps& taps = plan_.forward_taps[conv][stride - 1];
        const T* const dw = scratch_.weights.dw(e, conv);
        for (int row = 0; row < plan_.out.h; row += plan_.chunk_rows) {
            const Size size{std::min(plan_.chunk_rows, plan_.out.h - row), plan_.out.w, plan_.cp};
            const Area<T> dz = plan_.dense(local.dz.data(), plan_.out), u = plan_.dense(local.u.data(), plan_.out);
            const Area<T> du = plan_.interior(local.du.data(), plan_.out, kHalo, row);
            const Area<const T> x = plan_.corner(source, grid, halo, row, stride);
            k_.normalise_backward(dz, {g.at + row * g.row, g.row, g.pixel}, plan_.dense(saved_.z(e, conv, i), plan_.out, row), norm.a, norm.b,
                                  saved_.norm(e, conv).mean, norm.c0, size);
            k_.depthwise(u, x, taps, dw, size, false);
            k_.pointwise_weights(scratch_.partial_pw(partial, conv), dz, u, size);
            k_.pointwise(du, dz, scratch_.weights.pw(e, conv), size, false);
            k_.depthwise_weights(partial + kFirstTap[conv] * plan_.cp, x, du, taps, size);
        }
        const Area<const T> du = plan_.corner(local.du.data(), plan_.out, kHalo);
        for (int y = 0; y < stride; ++y)
            for (int x = 0; x < stride; ++x) {
                Area<T> dx = plan_.dense(local.dx.data(), grid);
                dx = {dx.at + y * dx.row + x * dx.pixel, stride * dx.row, stride * dx.pixel};
                k_.depthwise(dx, du, plan_.backward_taps[conv][stride - 1][y * stride + x], dw,
                             {(grid.h - y + stride - 1) / stride, (grid.w - x + stride - 1) / stride, plan_.cp}, true);
            }
    }

    void factorized_reduce(const Edge& e, std::int64_t k, std::int64_t i, Area<const T> g, const T* source, Local& local, T* partial) {
        const NormGradient<T> norm = scratch_.norm(k, kConvs);
        for (int row = 0; row < plan_.out.h; row += plan_.chunk_rows) {
            const Size chunk{std::min(plan_.chunk_rows, plan_.out.h - row), plan_.out.w, plan_.cp};
            const Area<T> dz = plan_.dense(local.dz.data(), plan_.out);
            k_.normalise_backward(dz, {g.at + row * g.row, g.row, g.pixel}, plan_.dense(saved_.fr(e, i), plan_.out, row), norm.a, norm.b,
                                  saved_.fr_norm(e).mean, norm.c0, chunk);
            for (int half = 0; half < 2; ++half) {
                // The odd pixels that lie beyond an odd border are zero and get no gradient.
                const Size size{std::min(chunk.rows, (plan_.in.h + 1 - half) / 2 - row), (plan_.in.w + 1 - half) / 2, plan_.cp};
                const auto pixels = [&](auto area) -> decltype(area) {
                    return {area.at + (2 * row + half) * area.row + half * area.pixel, 2 * area.row, 2 * area.pixel};
                };
                k_.pointwise_weights(scratch_.partial_fr(partial, half), dz, pixels(plan_.interior(source, plan_.in, kHalo)), size);
                k_.pointwise(pixels(plan_.dense(local.dx.data(), plan_.in)), dz, scratch_.weights.fr(e, half), size, true);
            }
        }
    }

    // The groups' sums, in order, into the caller's layout.
    void write_weights(const Edge& e, std::int64_t k) {
        const std::int64_t c = plan_.c, cp = plan_.cp;
        for (std::int64_t group = 1; group < scratch_.groups; ++group) {
            T* const sum = scratch_.partial(k, 0);
            const T* const next = scratch_.partial(k, group);
            for (std::int64_t j = 0; j < scratch_.partial_size; ++j) sum[j] += next[j];
        }
        T* const sum = scratch_.partial(k, 0);
        T* ddw = static_cast<T*>(p_.ddw) + e.index * kDwPerChannel * c;
        for (int conv = 0; conv < kConvs; ++conv) {
            const int taps = kKernel[conv] * kKernel[conv];
            for (int ch = 0; ch < c; ++ch)
                for (int t = 0; t < taps; ++t) *ddw++ = sum[(kFirstTap[conv] + t) * cp + ch];
            T* const dpw = static_cast<T*>(p_.dpw) + (e.index * kConvs + conv) * c * c;
            for (int o = 0; o < c; ++o) std::copy_n(scratch_.partial_pw(sum, conv) + o * cp, c, dpw + o * c);
        }
        for (int o = 0; e.stride == 2 && o < c; ++o)
            std::copy_n(scratch_.partial_fr(sum, o >= c / 2) + o * cp, c, static_cast<T*>(p_.dfr) + (e.reduced * c + o) * c);
    }

    const Plan<T>& plan_;
    const Backward& p_;
    Team& team_;
    Arena saved_arena_, scratch_arena_;
    Saved<T> saved_;
    BackwardScratch<T> scratch_;
    const Kernels<T>& k_;
    const T* gates_;
    T* dgates_;
    std::vector<Local> locals_;
    States<T> states_;
};

}  // namespace hwnas::mixed_cell::cpu
