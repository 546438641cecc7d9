// Exact answers: every genotype looked at, and the front built layer by layer.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/team.h"
#include "inner_search/inner_search.h"
#include "inner_search/score_cpu.h"

namespace hwnas::inner_search {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Point {
    double values[kMaxMetrics];
    std::uint64_t number;  // of the genotype, counting with the last layer fastest
};

// The points seen so far that no other one dominates; of equal points the one with the lowest number.
class Archive {
public:
    Archive(int metrics, int objectives) : metrics_(metrics), objectives_(objectives) {}

    void offer(const double* values, std::uint64_t number) {
        // What dominated the last point often dominates the next.
        for (std::size_t i = 0; i < points_.size(); ++i)
            if (covers(points_[i], values, number)) {
                if (i > 0) std::swap(points_[i], points_[i / 2]);
                return;
            }
        Point point;
        std::copy_n(values, metrics_, point.values);
        point.number = number;
        points_.erase(std::remove_if(points_.begin(), points_.end(), [&](const Point& old) { return covers(point, old.values, old.number); }),
                      points_.end());
        points_.push_back(point);
    }

    const std::vector<Point>& points() const { return points_; }

    void sort() {
        std::sort(points_.begin(), points_.end(), [this](const Point& a, const Point& b) {
            return std::lexicographical_compare(a.values, a.values + objectives_, b.values, b.values + objectives_);
        });
    }

private:
    bool covers(const Point& a, const double* values, std::uint64_t number) const {
        bool equal = true;
        for (int j = 0; j < objectives_; ++j) {
            if (a.values[j] > values[j]) return false;
            equal &= a.values[j] == values[j];
        }
        return !equal || a.number <= number;
    }

    int metrics_, objectives_;
    std::vector<Point> points_;
};

// An archive of two objectives in order: a staircase, searched by bisection.
class Staircase {
public:
    explicit Staircase(int metrics) : metrics_(metrics) {}

    void offer(const double* values, std::uint64_t number) {
        auto place = std::lower_bound(first_.begin(), first_.end(), values[0]) - first_.begin();
        if (place > 0 && points_[place - 1].values[1] <= values[1]) return;
        const auto size = static_cast<std::ptrdiff_t>(first_.size());
        if (place < size && first_[place] == values[0]) {
            if (points_[place].values[1] < values[1]) return;
            if (points_[place].values[1] == values[1] && points_[place].number <= number) return;
        }
        auto end = place;
        while (end < size && points_[end].values[1] >= values[1]) ++end;
        Point point;
        std::copy_n(values, metrics_, point.values);
        point.number = number;
        if (end == place) {
            first_.insert(first_.begin() + place, values[0]);
            points_.insert(points_.begin() + place, point);
            return;
        }
        first_[place] = values[0];
        points_[place] = point;
        first_.erase(first_.begin() + place + 1, first_.begin() + end);
        points_.erase(points_.begin() + place + 1, points_.begin() + end);
    }

    const std::vector<Point>& points() const { return points_; }
    void sort() {}

private:
    int metrics_;
    std::vector<double> first_;
    std::vector<Point> points_;
};

// Visits the genotypes whose first `fixed` options are given by `prefix`: an odometer over partial sums, so that a step
// costs little more than one addition a metric.
template <int kMetrics, typename Archive>
void visit(const Problem& p, int fixed, std::uint64_t prefix, Archive& archive) {
    const int metrics = kMetrics ? kMetrics : p.metrics;
    const int last = p.layers - 1;
    std::vector<std::int64_t> option(static_cast<std::size_t>(p.layers));
    std::vector<double> partial(static_cast<std::size_t>((p.layers + 1) * metrics));  // row l: the sum over layers before l
    for (int l = fixed; l-- > 0;) {
        const auto size = static_cast<std::uint64_t>(p.first[l + 1] - p.first[l]);
        option[l] = static_cast<std::int64_t>(prefix % size);
        prefix /= size;
    }
    std::uint64_t number = 0;
    for (int l = 0; l < p.layers; ++l) number = number * static_cast<std::uint64_t>(p.first[l + 1] - p.first[l]) + static_cast<std::uint64_t>(option[l]);
    const auto extend = [&](int l) {
        const double* row = p.table + (p.first[l] + option[l]) * metrics;
        for (int j = 0; j < metrics; ++j) partial[(l + 1) * metrics + j] = partial[l * metrics + j] + row[j];
    };
    for (int l = 0; l < last; ++l) extend(l);
    double limits[kMaxMetrics], values[kMaxMetrics] = {};
    std::copy_n(p.limits, metrics, limits);
    for (;;) {
        const double* base = &partial[last * metrics];
        const double* row = p.table + p.first[last] * metrics;
        for (std::int64_t o = p.first[last]; o < p.first[last + 1]; ++o, row += metrics, ++number) {
            bool inside = true;
            for (int j = 0; j < metrics; ++j) {
                values[j] = base[j] + row[j];
                inside &= values[j] <= limits[j];
            }
            if (inside) archive.offer(values, number);
        }
        int l = last - 1;
        while (l >= fixed && ++option[l] == p.first[l + 1] - p.first[l]) option[l--] = 0;
        if (l < fixed) return;
        for (; l < last; ++l) extend(l);
    }
}

template <typename Archive>
void visit_any(const Problem& p, int fixed, std::uint64_t prefix, Archive& archive) {
    switch (p.metrics) {
        case 1: return visit<1>(p, fixed, prefix, archive);
        case 2: return visit<2>(p, fixed, prefix, archive);
        case 3: return visit<3>(p, fixed, prefix, archive);
        default: return visit<0>(p, fixed, prefix, archive);
    }
}

void append(const Problem& p, const Point& point, Front& front) {
    front.values.insert(front.values.end(), point.values, point.values + p.metrics);
    front.genotypes.resize(front.genotypes.size() + p.layers);
    std::uint64_t number = point.number;
    for (int l = p.layers; l-- > 0;) {
        const auto size = static_cast<std::uint64_t>(p.first[l + 1] - p.first[l]);
        front.genotypes[front.genotypes.size() - p.layers + l] = static_cast<Option>(number % size);
        number /= size;
    }
}

// Which genotypes a thread sees does not matter: the front of a set, with the lowest number of equal points, is one.
template <typename Archive>
void enumerate(const Problem& p, const Archive& empty, Front& front, int threads) {
    int fixed = 0;
    std::int64_t prefixes = 1;
    while (fixed < p.layers - 1 && prefixes < 64 * threads) prefixes *= p.first[fixed + 1] - p.first[fixed], ++fixed;
    Team team(threads);
    std::vector<Archive> archives(static_cast<std::size_t>(team.size()), empty);
    team.run(prefixes, [&](std::int64_t prefix, int thread) { visit_any(p, fixed, static_cast<std::uint64_t>(prefix), archives[thread]); });
    Archive whole = empty;
    for (const Archive& archive : archives)
        for (const Point& point : archive.points()) whole.offer(point.values, point.number);
    whole.sort();
    for (const Point& point : whole.points()) append(p, point, front);
}

// A partial genotype on the front of its layer.
struct Label {
    double a, b;
    std::int64_t parent;  // in the layer before
    Option option;
};

}  // namespace

Status enumerate_cpu(const Problem& p, Front& front, int threads) {
    // The staircase keeps what is best in two metrics; with limits only, a metric that is no objective does not matter to it.
    if (p.objectives == 2) enumerate(p, Staircase(p.metrics), front, threads);
    else enumerate(p, Archive(p.metrics, p.objectives), front, threads);
    return {};
}

Status exact_front_cpu(const Problem& p, std::int64_t most, Front& front, bool& fits) {
    fits = false;
    if (p.metrics > 2) return {"the front is built layer by layer for one or two metrics; enumerate for more"};
    const int second = p.metrics - 1;  // with one metric both coordinates are that one
    std::vector<double> rest(static_cast<std::size_t>((p.layers + 1) * 2));  // the least that the layers from l on can add
    for (int l = p.layers; l-- > 0;) {
        double least[2] = {kInfinity, kInfinity};
        for (std::int64_t o = p.first[l]; o < p.first[l + 1]; ++o)
            for (int j = 0; j < 2; ++j) least[j] = std::min(least[j], p.table[o * p.metrics + (j ? second : 0)]);
        for (int j = 0; j < 2; ++j) rest[l * 2 + j] = rest[(l + 1) * 2 + j] + least[j];
    }
    // Adding in another order rounds otherwise: only what is over the limit by more than that is dropped early.
    double limits[2];
    for (int j = 0; j < 2; ++j) {
        const double limit = p.limits[j ? second : 0];
        limits[j] = limit + 1e-9 * (std::abs(limit) + std::abs(rest[j]));
    }
    std::vector<std::vector<Label>> layers(static_cast<std::size_t>(p.layers) + 1);
    layers[0].push_back({0, 0, 0, 0});
    std::vector<Label> candidates;
    for (int l = 0; l < p.layers; ++l) {
        candidates.clear();
        const std::vector<Label>& before = layers[l];
        for (std::int64_t o = p.first[l]; o < p.first[l + 1]; ++o) {
            const double* row = p.table + o * p.metrics;
            const auto middle = static_cast<std::ptrdiff_t>(candidates.size());
            for (std::size_t i = 0; i < before.size(); ++i) {
                const Label label{before[i].a + row[0], before[i].b + row[second], static_cast<std::int64_t>(i), static_cast<Option>(o - p.first[l])};
                if (label.a + rest[(l + 1) * 2] <= limits[0] && label.b + rest[(l + 1) * 2 + 1] <= limits[1]) candidates.push_back(label);
            }
            // Both parts are in order; of equal labels the one from the earlier option comes first.
            const auto lower = [](const Label& x, const Label& y) { return x.a != y.a ? x.a < y.a : x.b < y.b; };
            std::inplace_merge(candidates.begin(), candidates.begin() + middle, candidates.end(), lower);
            double least = kInfinity;  // adding rounds monotonically, so what is dominated here stays so
            candidates.erase(std::remove_if(candidates.begin(), candidates.end(), [&](const Label& label) {
                if (label.b >= least) return true;
                least = label.b;
                return false;
            }), candidates.end());
            if (static_cast<std::int64_t>(candidates.size()) > most) return {};
        }
        layers[l + 1] = candidates;
    }
    for (std::size_t i = 0; i < layers[p.layers].size(); ++i) {
        const Label& label = layers[p.layers][i];
        if (label.a > p.limits[0] || label.b > p.limits[second]) continue;
        front.values.push_back(label.a);
        if (p.metrics == 2) front.values.push_back(label.b);
        front.genotypes.resize(front.genotypes.size() + p.layers);
        Option* genotype = front.genotypes.data() + front.genotypes.size() - p.layers;
        std::int64_t at = static_cast<std::int64_t>(i);
        for (int l = p.layers; l-- > 0;) {
            genotype[l] = layers[l + 1][at].option;
            at = layers[l + 1][at].parent;
        }
        if (p.objectives == 1) break;  // the first within the limits has the lowest
    }
    fits = true;
    return {};
}

}  // namespace hwnas::inner_search
