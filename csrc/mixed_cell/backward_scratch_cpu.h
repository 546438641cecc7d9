// What backward keeps between its phases.
#pragma once

#include "mixed_cell/plan_cpu.h"

namespace hwnas::mixed_cell::cpu {

constexpr std::int64_t kGroups = 8;  // of images, each with sums of its own for the weights' gradients

template <typename T>
struct BackwardScratch {
    BackwardScratch(const Plan<T>& plan, Arena& arena)
        : weights(plan, arena), n(plan.n), cp(plan.cp), nodes(plan.nodes), groups(std::min(n, kGroups)), in_image(plan.elements(plan.in)),
          out_image(plan.elements(plan.out)), partial_size((kDwPerChannel + kConvs * cp + (plan.shape.reduction ? 2 * cp : 0)) * cp),
          spare(arena.take<T>(spare_elements(plan))), zero(arena.take<T>(cp)), one(arena.take<T>(cp)),
          node_states(arena.take<T>(nodes * n * out_image)), input_states(plan.padded() ? arena.take<T>(2 * n * in_image) : nullptr),
          hidden(arena.take<T>((nodes + 1) * 2 * n * out_image)), partials(arena.take<T>((nodes + 1) * groups * partial_size)),
          norms(arena.take<T>((nodes + 1) * (kConvs + 1) * 3 * cp)), pool_norms(arena.take<T>(2 * 3 * cp)),
          gates(arena.take<T>(nodes * 3 * cp)), sums(arena.take<double>((nodes + 1) * kSlots * n * cp)),
          node_sums(arena.take<double>(nodes * cp)) {}

    // Per edge of the phase and image; which sum stands in which slot is the phase's affair.
    static constexpr int kSlots = 5;
    double* sum(std::int64_t k, int slot, std::int64_t i) const { return sums + ((k * kSlots + slot) * n + i) * cp; }
    double* node_sum(int node) const { return node_sums + node * cp; }
    // Gradient of what enters the second half of a separable conv.
    T* d_hidden(std::int64_t k, int which, std::int64_t i) const { return hidden + ((k * 2 + which) * n + i) * out_image; }
    NormGradient<T> norm(std::int64_t k, int conv) const { return at(norms, k * (kConvs + 1) + conv); }  // conv kConvs: factorized reduce
    NormGradient<T> pool_norm(bool average) const { return at(pool_norms, average); }
    T* gate(std::int64_t k, int which) const { return gates + (k * 3 + which) * cp; }  // max, average, skip, as a vector
    T* partial(std::int64_t k, std::int64_t group) const { return partials + (k * groups + group) * partial_size; }
    T* partial_pw(T* partial, int conv) const { return partial + (kDwPerChannel + conv * cp) * cp; }
    T* partial_fr(T* partial, int half) const { return partial_pw(partial, kConvs + half); }

    Weights<T> weights;
    std::int64_t n, cp, nodes, groups, in_image, out_image, partial_size;
    T *spare, *zero, *one, *node_states, *input_states, *hidden, *partials, *norms, *pool_norms, *gates;
    double *sums, *node_sums;

private:
    NormGradient<T> at(T* base, std::int64_t i) const { return {base + i * 3 * cp, base + (i * 3 + 1) * cp, base + (i * 3 + 2) * cp}; }
};

}  // namespace hwnas::mixed_cell::cpu
