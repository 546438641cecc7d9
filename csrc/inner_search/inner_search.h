// Search over genotypes whose metrics are sums of table entries, one entry a layer: scoring, NSGA-II, exact fronts.
//
// A genotype is one option per layer. Metric j of genotype g is sum_l table[first[l] + g[l]][j], added from the first layer
// to the last, so that every path to one genotype gives the same bits. All metrics are limited from above (infinity where
// there is no limit) and the first `objectives` of them are minimised. A limit that is exceeded counts by its share of the
// limit; what violates is ranked behind what does not (Deb 2000).
#pragma once

#include <cstdint>
#include <vector>

#include "common/status.h"

namespace hwnas::inner_search {

using Option = std::uint16_t;

constexpr int kMaxMetrics = 16;

struct Problem {
    const double* table;        // [first[layers], metrics]
    const std::int64_t* first;  // [layers + 1]
    const double* limits;       // [metrics]
    int layers;
    int metrics;
    int objectives;
};

// One step's settings. `seed` and `generation` number the random streams: every individual has one of its own.
struct Variation {
    std::int64_t population;
    double crossover;  // chance of a second parent
    double mutation;   // chance of each option to change
    std::uint64_t seed;
    std::uint64_t generation;
};

// What selection knows of an individual. Outside the limits, and for copies, `crowding` is -1 - rank.
struct Fitness {
    std::int32_t rank;
    double crowding;
};

// A non-dominated set: one genotype for each point of values.
struct Front {
    std::vector<double> values;    // [size, metrics]
    std::vector<Option> genotypes;  // [size, layers]
};

// values [count, metrics] of genotypes [count, layers].
void score_cpu(const Problem& p, const Option* genotypes, std::int64_t count, double* values, int threads);
// The same where everything lies on the GPU, `limits` excepted; `rows` is first[layers].
Status score_cuda(const Problem& p, std::int64_t rows, const Option* genotypes, std::int64_t count, double* values, void* stream);

// Generation 0: genotypes [population, layers], drawn uniformly.
void sample_cpu(const Problem& p, const Variation& v, Option* genotypes, int threads);

// What the next generation is made of, in the order that select_cpu gave.
struct Parents {
    const Option* genotypes;  // [population, layers]
    const double* values;     // [population, metrics]
    const Fitness* fitness;   // [population]
};

// children [population, layers]: binary tournaments, uniform crossover, mutation.
void vary_cpu(const Problem& p, const Variation& v, const Parents& parents, Option* children, int threads);

// The `keep` best of a pool, in the order in which the next selection is quickest: indices [keep] and their fitness [keep].
// Copies of a genotype come behind everything else.
Status select_cpu(const Problem& p, const Option* genotypes, const double* values, std::int64_t count, std::int64_t keep,
                  std::int64_t* indices, Fitness* fitness);

// NSGA-II (Deb et al. 2002): `generations` times `population` evaluations, the first generation included.
// genotypes [population, layers], values [population, metrics], fitness [population].
Status evolve_cpu(const Problem& p, const Variation& v, std::int64_t generations, Option* genotypes, double* values,
                  Fitness* fitness, int threads);

// The Pareto front of all genotypes within the limits, by looking at every one of them.
Status enumerate_cpu(const Problem& p, Front& front, int threads);

// The same without looking at every one (Nemhauser and Ullmann 1969), for one or two metrics. `fits` becomes false, and the
// front stays empty, where more than `most` partial genotypes would be on a front at once.
Status exact_front_cpu(const Problem& p, std::int64_t most, Front& front, bool& fits);

}  // namespace hwnas::inner_search
