// Backward: node after node from the last. For the edges that enter it, one phase takes the sums that gates and batch norms
// need, one the gradients of weights and source states. Each (edge, group of images) has its own place for weights' gradients.
#pragma once

#include "nb201_cell/plan_cpu.h"

namespace hwnas::nb201_cell::cpu {

constexpr std::int64_t kGroups = 8;

template <typename T>
struct BackwardScratch {
    enum Sum : int { kOfG, kOfSkip, kOfConv1, kOfConv3, kOfPool, kSums };

    BackwardScratch(const Plan<T>& plan, Arena& arena)
        : weights(plan, arena), n(plan.n), cp(plan.cp), image(plan.image()), groups(std::min(n, kGroups)), into(plan.shape.states - 1),
          states(arena.take<T>(plan.shape.states * n * image)), partials(arena.take<T>(into * groups * kMatrices * cp * cp)),
          norms(arena.take<T>(into * kConvs * 3 * cp)), gates(arena.take<T>(plan.edges.size() * kOps * cp)), zero(arena.take<T>(cp)),
          one(arena.take<T>(cp)), sums(arena.take<double>(into * kSums * n * cp)) {}

    T* gradient(int state, std::int64_t i) const { return states + (state * n + i) * image; }
    T* partial(std::int64_t k, std::int64_t group, int matrix = 0) const { return partials + ((k * groups + group) * kMatrices + matrix) * cp * cp; }
    NormGradient<T> norm(std::int64_t k, int conv) const {
        T* const at = norms + (k * kConvs + conv) * 3 * cp;
        return {at, at + cp, at + 2 * cp};
    }
    T* gate(const Edge& e, int op) const { return gates + (e.index * kOps + op) * cp; }
    double* sum(std::int64_t k, int which, std::int64_t i) const { return sums + ((k * kSums + which) * n + i) * cp; }

    Weights<T> weights;
    std::int64_t n, cp, image, groups, into;
    T *states, *partials, *norms, *gates, *zero, *one;
    double* sums;
};

template <typename T>
class BackwardPass {
public:
    BackwardPass(const Plan<T>& plan, const Backward& p, Team& team)
        : plan_(plan), p_(p), team_(team), saved_arena_(const_cast<void*>(p.saved)), scratch_arena_(p.scratch), saved_(plan, saved_arena_),
          scratch_(plan, scratch_arena_), k_(nhwc::kernels<T>()), gates_(static_cast<const T*>(p.in.gates)), dgates_(static_cast<T*>(p.dgates)) {
        for (int t = 0; t < team.size(); ++t) locals_.emplace_back(plan);
    }

    void run() {
        std::fill_n(scratch_.zero, plan_.cp, T(0));
        std::fill_n(scratch_.one, plan_.cp, T(1));
        team_.run(plan_.edges.size(), [&](std::int64_t e, int) {
            scratch_.weights.pack(plan_, p_.in, plan_.edges[e], false);
            for (int op = 0; op < kOps; ++op) std::fill_n(scratch_.gate(plan_.edges[e], op), plan_.cp, gates_[e * kOps + op]);
        });
        const int last = plan_.shape.states - 1;
        team_.run(plan_.n, [&](std::int64_t i, int) {
            for (int s = 0; s < last; ++s) std::fill_n(scratch_.gradient(s, i), scratch_.image, T(0));
            const T* const dy = static_cast<const T*>(p_.dy) + i * plan_.pixels() * plan_.c;
            nhwc::copy_channels(scratch_.gradient(last, i), plan_.cp, dy, plan_.c, plan_.c, plan_.cp - plan_.c, plan_.pixels());
        });
        for (int node = last; node > 0; --node) {
            const std::vector<Edge> edges = plan_.where([=](const Edge& e) { return e.to == node; });
            sums(edges);
            team_.run(edges.size() * scratch_.groups, [&](std::int64_t unit, int thread) {
                convs(edges[unit / scratch_.groups], unit / scratch_.groups, unit % scratch_.groups, locals_[thread]);
            });
            team_.run(edges.size(), [&](std::int64_t k, int) { write_weights(edges[k], k); });
        }
        team_.run(plan_.n, [&](std::int64_t i, int) {
            T* const dx = static_cast<T*>(p_.dx) + i * plan_.pixels() * plan_.c;
            nhwc::copy_channels(dx, plan_.c, static_cast<const T*>(scratch_.gradient(0, i)), plan_.cp, plan_.c, 0, plan_.pixels());
        });
    }

private:
    using Scratch = BackwardScratch<T>;

    struct Local {
        explicit Local(const Plan<T>& plan)
            : source(plan.haloed()), dz(plan.haloed()), dx(plan.image()), max(plan.image()), average(plan.image()), zero(plan.image()) {}
        AlignedBuffer<T> source, dz, dx, max, average, zero;
    };

    void sums(const std::vector<Edge>& edges) {
        const Size size = plan_.size();
        team_.run(edges.size() * plan_.n, [&](std::int64_t unit, int thread) {
            const std::int64_t k = unit / plan_.n, i = unit % plan_.n;
            const Edge& e = edges[k];
            const Area<T> g = plan_.dense(scratch_.gradient(e.to, i)), x = plan_.dense(saved_.state(e.from, i));
            const Area<T> average = plan_.dense(locals_[thread].average.data());
            std::fill_n(scratch_.sum(k, Scratch::kOfG, i), plan_.cp, 0.0);
            k_.sum(scratch_.sum(k, Scratch::kOfG, i), g, size);
            const auto dot = [&](int which, Area<const T> z, const T* mean, const T* rstd) {
                std::fill_n(scratch_.sum(k, which, i), plan_.cp, 0.0);
                k_.dot(scratch_.sum(k, which, i), g, z, mean, rstd, size);
            };
            k_.pool(plan_.dense(locals_[thread].max.data()), average, x, plan_.pool(), plan_.cp);
            dot(Scratch::kOfSkip, x, scratch_.zero, scratch_.one);
            dot(Scratch::kOfPool, average, scratch_.zero, scratch_.one);
            for (int conv = 0; conv < kConvs; ++conv) {
                const Norm<T> norm = saved_.norm(e, conv);
                dot(Scratch::kOfConv1 + conv, plan_.dense(saved_.z(e, conv, i)), norm.mean, norm.rstd);
            }
        });
        std::vector<double> channels[Scratch::kSums];
        for (std::size_t k = 0; k < edges.size(); ++k) {
            const Edge& e = edges[k];
            for (int which = 0; which < Scratch::kSums; ++which) {
                channels[which].assign(plan_.cp, 0.0);
                for (std::int64_t i = 0; i < plan_.n; ++i)
                    for (int ch = 0; ch < plan_.cp; ++ch) channels[which][ch] += scratch_.sum(k, which, i)[ch];
                // The sums behind the first stand in the order of the ops.
                double total = 0;
                for (const double value : channels[which]) total += value;
                dgates_[e.index * kOps + which] = which == Scratch::kOfG ? T(0) : static_cast<T>(total);
            }
            const double count = static_cast<double>(plan_.n) * static_cast<double>(plan_.pixels());
            for (int conv = 0; conv < kConvs; ++conv)
                nhwc::set_gradient(scratch_.norm(k, conv), channels[Scratch::kOfG].data(), channels[Scratch::kOfConv1 + conv].data(),
                                   saved_.norm(e, conv).rstd, static_cast<double>(gates_[e.index * kOps + kConv1 + conv]), count, plan_.cp);
        }
    }

    void convs(const Edge& e, std::int64_t k, std::int64_t group, Local& local) {
        const Size size = plan_.size();
        std::fill_n(scratch_.partial(k, group), kMatrices * scratch_.cp * scratch_.cp, T(0));
        T *const source = local.source.data(), *const dz = local.dz.data();
        for (std::int64_t i = group * plan_.n / scratch_.groups; i < (group + 1) * plan_.n / scratch_.groups; ++i) {
            const Area<T> g = plan_.dense(scratch_.gradient(e.to, i)), x = plan_.dense(saved_.state(e.from, i));
            const Area<T> to = plan_.dense(scratch_.gradient(e.from, i)), dx = plan_.dense(local.dx.data()), centre = plan_.window(dz, 1, 1);
            const auto normalise_backward = [&](int conv) {
                const NormGradient<T> norm = scratch_.norm(k, conv);
                k_.normalise_backward(centre, g, plan_.dense(saved_.z(e, conv, i)), norm.a, norm.b, saved_.norm(e, conv).mean, norm.c0, size);
            };
            k_.relu(plan_.window(source, 1, 1), x, size);
            normalise_backward(kOne);
            k_.pointwise_weights(scratch_.partial(k, group, 0), centre, plan_.window(source, 1, 1), size);
            k_.pointwise(dx, centre, scratch_.weights.matrix(e, 0), size, false);
            normalise_backward(kThree);
            for (int t = 0; t < kTaps; ++t) {
                k_.pointwise_weights(scratch_.partial(k, group, 1 + t), centre, plan_.window(source, t / 3, t % 3), size);
                k_.pointwise(dx, plan_.window(dz, 2 - t / 3, 2 - t % 3), scratch_.weights.matrix(e, 1 + t), size, true);
            }
            k_.relu_backward(to, dx, x, size, true);

            const nhwc::Term<T> skip{g, scratch_.gate(e, kSkip), scratch_.zero}, pool{g, scratch_.gate(e, kAvgPool), scratch_.zero};
            k_.blend(to, &skip, 1, size, true);
            k_.blend(plan_.dense(local.average.data()), &pool, 1, size, false);
            k_.pool_backward(to, x, plan_.dense(local.zero.data()), plan_.dense(local.average.data()), plan_.pool(), plan_.cp);
        }
    }

    // The groups' sums, in order, into the caller's layout.
    void write_weights(const Edge& e, std::int64_t k) {
        const std::int64_t c = plan_.c, cp = plan_.cp;
        T* const sum = scratch_.partial(k, 0);
        for (std::int64_t group = 1; group < scratch_.groups; ++group)
            for (std::int64_t j = 0; j < kMatrices * cp * cp; ++j) sum[j] += scratch_.partial(k, group)[j];
        T* const dw1 = static_cast<T*>(p_.dw1) + e.index * c * c;
        T* const dw3 = static_cast<T*>(p_.dw3) + e.index * c * c * kTaps;
        for (std::int64_t o = 0; o < c; ++o)
            for (std::int64_t i = 0; i < c; ++i) {
                dw1[o * c + i] = sum[o * cp + i];
                for (int t = 0; t < kTaps; ++t) dw3[(o * c + i) * kTaps + t] = sum[((1 + t) * cp + o) * cp + i];
            }
    }

    const Plan<T>& plan_;
    const Backward& p_;
    Team& team_;
    Arena saved_arena_, scratch_arena_;
    Saved<T> saved_;
    Scratch scratch_;
    const nhwc::Kernels<T>& k_;
    const T* gates_;
    T* dgates_;
    std::vector<Local> locals_;
};

}  // namespace hwnas::nb201_cell::cpu
