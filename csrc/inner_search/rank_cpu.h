// Non-dominated sorting of points that are in lexicographic order, all minimised.
//
// One objective: the order is the ranking. Two: the fronts' last points decide, found by binary search, O(n log n) (Jensen
// 2003; Zhang et al. 2015). More: bit sets of who is no worse in each objective, O(m n^2 / 64), and a binary search over the
// fronts (Zhang et al. 2015, ENS-BS).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace hwnas::inner_search {

// value(i, j): objective j of the i-th point of the order. Writes rank[0, count).
template <typename Value>
void rank_two(std::int64_t count, const Value& value, std::int32_t* rank) {
    std::vector<double> last;  // second objective of each front's last point, which is its lowest; ascending over the fronts
    for (std::int64_t i = 0; i < count; ++i) {
        const double a = value(i, 0), b = value(i, 1);
        if (i > 0 && a == value(i - 1, 0) && b == value(i - 1, 1)) {  // equal points do not dominate each other
            rank[i] = rank[i - 1];
            continue;
        }
        const auto place = std::upper_bound(last.begin(), last.end(), b);
        rank[i] = static_cast<std::int32_t>(place - last.begin());
        if (place == last.end()) last.push_back(b);
        else *place = b;
    }
}

template <typename Value>
void rank_one(std::int64_t count, const Value& value, std::int32_t* rank) {
    for (std::int64_t i = 0; i < count; ++i) rank[i] = i == 0 ? 0 : rank[i - 1] + (value(i, 0) > value(i - 1, 0));
}

template <typename Value>
void rank_many(std::int64_t count, int objectives, const Value& value, std::int32_t* rank) {
    const std::int64_t words = (count + 63) / 64;
    // dominators[i]: points before i in the order that are no worse than i in every objective
    std::vector<std::uint64_t> dominators(static_cast<std::size_t>(count * words), ~std::uint64_t{0});
    std::vector<std::uint64_t> no_worse(static_cast<std::size_t>(words));
    std::vector<std::int64_t> by(static_cast<std::size_t>(count));
    for (int j = 1; j < objectives; ++j) {  // the order itself is by objective 0
        for (std::int64_t i = 0; i < count; ++i) by[i] = i;
        std::sort(by.begin(), by.end(), [&](std::int64_t a, std::int64_t b) { return value(a, j) < value(b, j); });
        std::fill(no_worse.begin(), no_worse.end(), 0);
        for (std::int64_t start = 0, end = 0; start < count; start = end) {
            for (end = start; end < count && value(by[end], j) == value(by[start], j); ++end)
                no_worse[by[end] / 64] |= std::uint64_t{1} << (by[end] % 64);
            for (std::int64_t k = start; k < end; ++k) {
                std::uint64_t* row = &dominators[by[k] * words];
                for (std::int64_t w = 0; w <= by[k] / 64; ++w) row[w] &= no_worse[w];
            }
        }
    }
    std::vector<std::vector<std::uint64_t>> fronts;
    for (std::int64_t i = 0; i < count; ++i) {
        bool same = i > 0;
        for (int j = 0; j < objectives && same; ++j) same = value(i, j) == value(i - 1, j);
        const std::uint64_t* row = &dominators[i * words];
        const std::int64_t whole = i / 64;
        const std::uint64_t rest = (std::uint64_t{1} << (i % 64)) - 1;
        const auto dominated = [&](const std::vector<std::uint64_t>& front) {
            for (std::int64_t w = 0; w < whole; ++w)
                if (front[w] & row[w]) return true;
            return (front[whole] & row[whole] & rest) != 0;
        };
        rank[i] = same ? rank[i - 1]
                       : static_cast<std::int32_t>(std::partition_point(fronts.begin(), fronts.end(), dominated) - fronts.begin());
        if (static_cast<std::size_t>(rank[i]) == fronts.size()) fronts.emplace_back(static_cast<std::size_t>(words));
        fronts[rank[i]][i / 64] |= std::uint64_t{1} << (i % 64);
    }
}

template <typename Value>
void rank_sorted(std::int64_t count, int objectives, const Value& value, std::int32_t* rank) {
    if (objectives == 1) rank_one(count, value, rank);
    else if (objectives == 2) rank_two(count, value, rank);
    else rank_many(count, objectives, value, rank);
}

}  // namespace hwnas::inner_search
