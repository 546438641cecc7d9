// Forward: state after state; one phase takes every edge that leaves the state through its convolutions, one blends what it
// adds into the nodes. A 3x3 convolution is nine pointwise products over shifted windows of the state with its halo.
#pragma once

#include "nb201_cell/plan_cpu.h"

namespace hwnas::nb201_cell::cpu {

template <typename T>
struct ForwardScratch {
    ForwardScratch(const Plan<T>& plan, Arena& arena)
        : weights(plan, arena), n(plan.n), cp(plan.cp), scale(arena.take<T>(plan.edges.size() * kOps * cp)), zero(arena.take<T>(cp)),
          sums(arena.take<double>(plan.edges.size() * kConvs * n * 2 * cp)) {}
    double* moments(const Edge& e, int conv, std::int64_t i) const { return sums + ((e.index * kConvs + conv) * n + i) * 2 * cp; }
    T* scales(const Edge& e, int op) const { return scale + (e.index * kOps + op) * cp; }

    Weights<T> weights;
    std::int64_t n, cp;
    T *scale, *zero;
    double* sums;
};

template <typename T>
void run_forward(const Plan<T>& plan, const Forward& p, Team& team) {
    Arena saved_arena(p.saved), scratch_arena(p.scratch);
    const Saved<T> saved(plan, saved_arena);
    const ForwardScratch<T> scratch(plan, scratch_arena);
    const nhwc::Kernels<T>& k = nhwc::kernels<T>();
    const T* const gates = static_cast<const T*>(p.in.gates);
    struct Local {
        AlignedBuffer<T> source, max, average;
    };
    std::vector<Local> locals;
    for (int t = 0; t < team.size(); ++t)
        locals.push_back({AlignedBuffer<T>(plan.haloed()), AlignedBuffer<T>(plan.image()), AlignedBuffer<T>(plan.image())});
    const Size size = plan.size();

    std::fill_n(scratch.zero, plan.cp, T(0));
    team.run(plan.edges.size(), [&](std::int64_t e, int) { scratch.weights.pack(plan, p.in, plan.edges[e], true); });
    team.run(plan.n, [&](std::int64_t i, int) {
        const T* const x = static_cast<const T*>(p.in.x) + i * plan.pixels() * plan.c;
        nhwc::copy_channels(saved.state(0, i), plan.cp, x, plan.c, plan.c, plan.cp - plan.c, plan.pixels());
    });
    for (int state = 0; state + 1 < plan.shape.states; ++state) {
        const std::vector<Edge> edges = plan.where([=](const Edge& e) { return e.from == state; });
        team.run(edges.size() * plan.n, [&](std::int64_t unit, int thread) {
            const Edge& e = edges[unit / plan.n];
            const std::int64_t i = unit % plan.n;
            T* const source = locals[thread].source.data();
            k.relu(plan.window(source, 1, 1), plan.dense(saved.state(state, i)), size);
            k.pointwise(plan.dense(saved.z(e, kOne, i)), plan.window(source, 1, 1), scratch.weights.matrix(e, 0), size, false);
            for (int t = 0; t < kTaps; ++t)
                k.pointwise(plan.dense(saved.z(e, kThree, i)), plan.window(source, t / 3, t % 3), scratch.weights.matrix(e, 1 + t), size, t > 0);
            for (int conv = 0; conv < kConvs; ++conv) {
                double* const moments = scratch.moments(e, conv, i);
                k.moments(moments, moments + plan.cp, plan.dense(saved.z(e, conv, i)), size);
            }
        });
        for (const Edge& e : edges) {
            for (int conv = 0; conv < kConvs; ++conv)
                nhwc::merge_moments([&](std::int64_t i) { return scratch.moments(e, conv, i); }, plan.n, plan.pixels(), plan.cp, saved.norm(e, conv));
            for (int op = 0; op < kOps; ++op)
                for (int ch = 0; ch < plan.cp; ++ch) {
                    const bool conv = op == kConv1 || op == kConv3;
                    scratch.scales(e, op)[ch] = gates[e.index * kOps + op] * (conv ? saved.norm(e, op - kConv1).rstd[ch] : T(1));
                }
        }
        team.run(plan.n, [&](std::int64_t i, int thread) {
            const Area<T> x = plan.dense(saved.state(state, i)), average = plan.dense(locals[thread].average.data());
            k.pool(plan.dense(locals[thread].max.data()), average, x, plan.pool(), plan.cp);
            for (const Edge& e : edges) {
                const nhwc::Term<T> terms[] = {{x, scratch.scales(e, kSkip), scratch.zero},
                                               {plan.dense(saved.z(e, kOne, i)), scratch.scales(e, kConv1), saved.norm(e, kOne).mean},
                                               {plan.dense(saved.z(e, kThree, i)), scratch.scales(e, kConv3), saved.norm(e, kThree).mean},
                                               {average, scratch.scales(e, kAvgPool), scratch.zero}};
                k.blend(plan.dense(saved.state(e.to, i)), terms, 4, size, e.from > 0);  // a node's first edge is the one from x
            }
        });
    }
    team.run(plan.n, [&](std::int64_t i, int) {
        T* const y = static_cast<T*>(p.y) + i * plan.pixels() * plan.c;
        nhwc::copy_channels(y, plan.c, static_cast<const T*>(saved.state(plan.shape.states - 1, i)), plan.cp, plan.c, 0, plan.pixels());
    });
}

}  // namespace hwnas::nb201_cell::cpu
