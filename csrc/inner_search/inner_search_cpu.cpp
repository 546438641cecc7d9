#include "inner_search/inner_search.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "common/team.h"
#include "inner_search/random.h"
#include "inner_search/rank_cpu.h"
#include "inner_search/score_cpu.h"

namespace hwnas::inner_search {
namespace {

constexpr std::int64_t kUnit = 256;            // individuals that a thread takes at once
constexpr std::int64_t kWorthAThread = 4096;   // individuals below which waiting for another thread costs more than it brings
constexpr std::int64_t kMostRanked = 1 << 15;  // with three objectives and more, ranking needs this squared / 8 bytes

std::int64_t units(std::int64_t count) { return (count + kUnit - 1) / kUnit; }

int useful(std::int64_t count, int threads) { return static_cast<int>(std::clamp<std::int64_t>(count / kWorthAThread, 1, std::max(threads, 1))); }

std::uint32_t options(const Problem& p, int layer) { return static_cast<std::uint32_t>(p.first[layer + 1] - p.first[layer]); }

// Another option of a layer that has several.
Option other(Stream& random, std::uint32_t count, Option now) {
    const std::uint32_t drawn = random.below(count - 1);
    return static_cast<Option>(drawn + (drawn >= now));
}

// The one that dominates wins, else the one with more room around it, as in the authors' program (Deb et al. 2002). What is
// outside the limits has the less room the further outside it is.
std::int64_t tournament(const Problem& p, Stream& random, const Parents& parents, std::int64_t population) {
    const std::int64_t a = random.below(population), b = random.below(population);
    const double *x = parents.values + a * p.metrics, *y = parents.values + b * p.metrics;
    const double room_a = parents.fitness[a].crowding, room_b = parents.fitness[b].crowding;
    bool a_no_worse = true, b_no_worse = true;
    for (int j = 0; j < p.objectives; ++j) {
        a_no_worse &= x[j] <= y[j];
        b_no_worse &= y[j] <= x[j];
    }
    const bool inside = (room_a >= 0) & (room_b >= 0), decided = inside & (a_no_worse != b_no_worse);
    const bool second = (decided & b_no_worse) | (!decided & (room_b > room_a));  // no branches: nobody can guess them
    return a + (b - a) * second;
}

void child(const Problem& p, const Variation& v, const Parents& parents, std::int64_t individual, const std::vector<int>& open, Option* result) {
    Stream random(v.seed, v.generation, static_cast<std::uint64_t>(individual));
    const Option* a = parents.genotypes + tournament(p, random, parents, v.population) * p.layers;
    const bool crossed = random.chance(threshold(v.crossover));
    const Option* b = crossed ? parents.genotypes + tournament(p, random, parents, v.population) * p.layers : a;
    // Four draws of 16 bits for mutation in a word, 64 of one bit for crossover.
    const std::uint64_t mutates = threshold(v.mutation) >> 16;
    std::uint64_t coins = 0, draws = 0;
    bool changed = false;
    for (int l = 0; l < p.layers; ++l) {
        if (l % 64 == 0) coins = random.next();
        if (l % 4 == 0) draws = random.next();
        result[l] = static_cast<Option>(a[l] ^ ((a[l] ^ b[l]) & (0 - (coins & 1))));
        coins >>= 1;
        if ((draws & 0xffff) < mutates && options(p, l) > 1) result[l] = other(random, options(p, l), result[l]);
        draws >>= 16;
        changed |= result[l] != a[l];
    }
    if (!changed && !open.empty()) {  // a copy would be an evaluation for nothing
        const int l = open[random.below(open.size())];
        result[l] = other(random, options(p, l), result[l]);
    }
}

std::vector<int> open_layers(const Problem& p) {
    std::vector<int> found;
    for (int l = 0; l < p.layers; ++l)
        if (options(p, l) > 1) found.push_back(l);
    return found;
}

// Sorts a pool: what keeps the limits first, in lexicographic order of the objectives, then the rest by violation. Copies of
// one genotype come to stand side by side.
struct Pool {
    const Problem& p;
    const Option* genotypes;
    const double* values;

    const Option* genotype(std::int32_t i) const { return genotypes + std::int64_t{i} * p.layers; }
    double value(std::int32_t i, int j) const { return values[std::int64_t{i} * p.metrics + j]; }

    bool copies(std::int32_t a, std::int32_t b) const { return std::equal(genotype(a), genotype(a) + p.layers, genotype(b)); }

    bool before(std::int32_t a, std::int32_t b) const {
        for (int j = 0; j < p.objectives; ++j)
            if (value(a, j) != value(b, j)) return value(a, j) < value(b, j);
        const int order = std::memcmp(genotype(a), genotype(b), sizeof(Option) * static_cast<std::size_t>(p.layers));
        return order != 0 ? order < 0 : a < b;
    }
};

// What is compared first, beside the individual it belongs to, so that a comparison seldom has to look anything up.
struct Key {
    double leading;  // the first objective, or the violation
    std::int32_t index;
};

// Crowding distance (Deb et al. 2002, section III-B) of the members of one front; `front` is reordered.
void crowd(const Pool& pool, const std::vector<Key>& keys, std::vector<std::int32_t>& front, std::vector<double>& crowding) {
    const int objectives = pool.p.objectives;
    for (const std::int32_t i : front) crowding[i] = 0;
    for (int j = 0; j < objectives; ++j) {
        const auto value = [&](std::int32_t i) { return pool.value(keys[i].index, j); };
        // They come in the order of objective 0, and of two objectives the second falls where the first rises.
        if (j > 0 && objectives == 2) std::reverse(front.begin(), front.end());
        else if (j > 0) std::sort(front.begin(), front.end(), [&](std::int32_t a, std::int32_t b) { return value(a) != value(b) ? value(a) < value(b) : a < b; });
        const double span = value(front.back()) - value(front.front());
        crowding[front.front()] = crowding[front.back()] = std::numeric_limits<double>::infinity();
        if (span > 0)
            for (std::size_t k = 1; k + 1 < front.size(); ++k) crowding[front[k]] += (value(front[k + 1]) - value(front[k - 1])) / span;
    }
}

}  // namespace

void score_cpu(const Problem& p, const Option* genotypes, std::int64_t count, double* values, int threads) {
    Team team(useful(count, threads));
    team.run(units(count), [&](std::int64_t unit, int) {
        const std::int64_t start = unit * kUnit;
        score_one_thread(p, genotypes + start * p.layers, std::min(kUnit, count - start), values + start * p.metrics);
    });
}

void sample_cpu(const Problem& p, const Variation& v, Option* genotypes, int threads) {
    Team team(useful(v.population, threads));
    team.run(units(v.population), [&](std::int64_t unit, int) {
        for (std::int64_t i = unit * kUnit; i < std::min(v.population, (unit + 1) * kUnit); ++i) {
            Stream random(v.seed, v.generation, static_cast<std::uint64_t>(i));
            for (int l = 0; l < p.layers; ++l) genotypes[i * p.layers + l] = static_cast<Option>(random.below(options(p, l)));
        }
    });
}

void vary_cpu(const Problem& p, const Variation& v, const Parents& parents, Option* children, int threads) {
    const std::vector<int> open = open_layers(p);
    Team team(useful(v.population, threads));
    team.run(units(v.population), [&](std::int64_t unit, int) {
        for (std::int64_t i = unit * kUnit; i < std::min(v.population, (unit + 1) * kUnit); ++i)
            child(p, v, parents, i, open, children + i * p.layers);
    });
}

Status select_cpu(const Problem& p, const Option* genotypes, const double* values, std::int64_t count, std::int64_t keep,
                  std::int64_t* indices, Fitness* fitness) {
    if (count >= std::numeric_limits<std::int32_t>::max()) return {"at most 2^31 individuals are ranked at once"};
    if (p.objectives > 2 && count > kMostRanked) return {"with three objectives and more, at most 2^15 individuals are ranked at once"};
    const Pool pool{p, genotypes, values};
    std::vector<Key> keys, outside;
    keys.reserve(static_cast<std::size_t>(count));
    for (std::int32_t i = 0; i < count; ++i) {
        const double excess = violation(p, values + i * std::int64_t{p.metrics});
        if (excess > 0) outside.push_back({excess, i});
        else keys.push_back({pool.value(i, 0), i});
    }
    const auto lower = [&](const Key& a, const Key& b) { return a.leading != b.leading ? a.leading < b.leading : pool.before(a.index, b.index); };
    for (std::vector<Key>* part : {&keys, &outside}) {  // the survivors of the last generation are in order already
        const auto fresh = std::is_sorted_until(part->begin(), part->end(), lower);
        std::sort(fresh, part->end(), lower);
        std::inplace_merge(part->begin(), fresh, part->end(), lower);
    }
    // Copies go to the end.
    std::vector<Key> copies;
    const auto take_copies = [&](std::vector<Key>& from) {
        const auto end = std::unique(from.begin(), from.end(), [&](const Key& a, const Key& b) {
            const bool copy = a.leading == b.leading && pool.copies(a.index, b.index);
            if (copy) copies.push_back(b);
            return copy;
        });
        from.erase(end, from.end());
    };
    take_copies(keys);
    take_copies(outside);
    const auto feasible = static_cast<std::int64_t>(keys.size());
    keys.insert(keys.end(), outside.begin(), outside.end());
    const auto distinct = static_cast<std::int64_t>(keys.size());
    keys.insert(keys.end(), copies.begin(), copies.end());

    std::vector<std::int32_t> rank(static_cast<std::size_t>(count));
    rank_sorted(feasible, p.objectives, [&](std::int64_t i, int j) { return j == 0 ? keys[i].leading : pool.value(keys[i].index, j); }, rank.data());
    std::int32_t ranks = feasible ? *std::max_element(rank.begin(), rank.begin() + feasible) + 1 : 0;
    for (std::int64_t i = feasible; i < distinct; ++i)
        rank[i] = i > feasible && keys[i].leading == keys[i - 1].leading ? ranks - 1 : ranks++;
    std::fill(rank.begin() + distinct, rank.end(), ranks);

    // Members of each rank, one rank after the other, in sorted order within a rank.
    std::vector<std::int32_t> start(static_cast<std::size_t>(ranks) + 2), member(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) ++start[rank[i] + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    auto next = start;
    for (std::int32_t i = 0; i < count; ++i) member[next[rank[i]]++] = i;

    std::vector<double> crowding(static_cast<std::size_t>(count));
    std::vector<char> kept(static_cast<std::size_t>(count));
    std::vector<std::int32_t> front;
    std::int64_t left = keep;
    for (std::int32_t r = 0; left > 0; ++r) {
        front.assign(member.begin() + start[r], member.begin() + start[r + 1]);
        if (front.empty()) continue;
        if (front.front() < feasible) crowd(pool, keys, front, crowding);
        const auto size = static_cast<std::int64_t>(front.size());
        if (size > left)
            std::nth_element(front.begin(), front.begin() + left, front.end(), [&](std::int32_t a, std::int32_t b) {
                return crowding[a] != crowding[b] ? crowding[a] > crowding[b] : a < b;
            });
        for (std::int64_t k = 0; k < std::min(size, left); ++k) kept[front[k]] = 1;
        left -= std::min(size, left);
    }
    for (std::int64_t i = 0; i < count; ++i)
        if (kept[i]) {
            *indices++ = keys[i].index;
            *fitness++ = {rank[i], i < feasible ? crowding[i] : -1.0 - rank[i]};
        }
    return {};
}

Status evolve_cpu(const Problem& p, const Variation& v, std::int64_t generations, Option* genotypes, double* values,
                  Fitness* fitness, int threads) {
    const std::int64_t n = v.population, layers = p.layers, metrics = p.metrics;
    std::vector<Option> pool(static_cast<std::size_t>(2 * n * layers));
    std::vector<double> scores(static_cast<std::size_t>(2 * n * metrics));
    std::vector<std::int64_t> chosen(static_cast<std::size_t>(n));
    const std::vector<int> open = open_layers(p);
    Team team(useful(n, threads));
    for (std::int64_t generation = 0; generation < generations; ++generation) {
        const bool first = generation == 0;
        Variation now = v;
        now.generation = v.generation + static_cast<std::uint64_t>(generation);
        Option* fresh = pool.data() + (first ? 0 : n * layers);
        double* fresh_scores = scores.data() + (first ? 0 : n * metrics);
        if (first) sample_cpu(p, now, fresh, threads);
        team.run(units(n), [&](std::int64_t unit, int) {
            const std::int64_t start = unit * kUnit, end = std::min(n, start + kUnit);
            if (!first)
                for (std::int64_t i = start; i < end; ++i) child(p, now, {pool.data(), scores.data(), fitness}, i, open, fresh + i * layers);
            score_one_thread(p, fresh + start * layers, end - start, fresh_scores + start * metrics);
        });
        const Status status = select_cpu(p, pool.data(), scores.data(), first ? n : 2 * n, n, chosen.data(), fitness);
        if (!status) return status;
        for (std::int64_t i = 0; i < n; ++i) {
            std::copy_n(pool.data() + chosen[i] * layers, layers, genotypes + i * layers);
            std::copy_n(scores.data() + chosen[i] * metrics, metrics, values + i * metrics);
        }
        std::copy_n(genotypes, n * layers, pool.data());
        std::copy_n(values, n * metrics, scores.data());
    }
    return {};
}

}  // namespace hwnas::inner_search
