// Metrics of genotypes, and by how much they exceed the limits.
#pragma once

#include <algorithm>
#include <cmath>

#include "inner_search/inner_search.h"

namespace hwnas::inner_search {

template <int kMetrics>
void score_some(const Problem& p, const Option* genotypes, std::int64_t count, double* values) {
    const int metrics = kMetrics ? kMetrics : p.metrics;
    for (std::int64_t i = 0; i < count; ++i, genotypes += p.layers, values += metrics) {
        double sum[kMetrics ? kMetrics : kMaxMetrics] = {};
        for (int l = 0; l < p.layers; ++l) {
            const double* row = p.table + (p.first[l] + genotypes[l]) * metrics;
            for (int j = 0; j < metrics; ++j) sum[j] += row[j];
        }
        std::copy_n(sum, metrics, values);
    }
}

inline void score_one_thread(const Problem& p, const Option* genotypes, std::int64_t count, double* values) {
    switch (p.metrics) {
        case 1: return score_some<1>(p, genotypes, count, values);
        case 2: return score_some<2>(p, genotypes, count, values);
        case 3: return score_some<3>(p, genotypes, count, values);
        case 4: return score_some<4>(p, genotypes, count, values);
        default: return score_some<0>(p, genotypes, count, values);
    }
}

// By what share the worst limit is exceeded; 0 within all.
inline double violation(const Problem& p, const double* values) {
    double worst = 0;
    for (int j = 0; j < p.metrics; ++j)
        if (values[j] > p.limits[j]) {
            const double scale = std::abs(p.limits[j]);
            worst = std::max(worst, (values[j] - p.limits[j]) / (scale > 0 ? scale : 1.0));
        }
    return worst;
}

}  // namespace hwnas::inner_search
