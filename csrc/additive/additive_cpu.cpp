#include <algorithm>
#include <atomic>

#include "additive/additive.h"
#include "common/instruction_set.h"
#include "common/multiarch.h"
#include "common/team.h"

namespace hwnas::additive {
namespace {

constexpr std::int64_t kUnitBytes = 1 << 17;  // of genotypes: what was checked is still in the cache when it is scored

HWNAS_MULTIARCH std::uint8_t largest(const std::uint8_t* bytes, std::int64_t size) {
    std::uint8_t result = 0;
    for (std::int64_t i = 0; i < size; ++i) result = bytes[i] > result ? bytes[i] : result;
    return result;
}

// Four genotypes at a time, so that their sums do not wait for each other.
void score_plain(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores) {
    const std::int64_t layers = table.layers, choices = table.choices;
    std::int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const std::uint8_t* g = genotypes + i * layers;
        float a = table.fixed, b = a, c = a, d = a;
        for (std::int64_t l = 0; l < layers; ++l) {
            const float* row = table.rows + l * choices;
            a += row[g[l]];
            b += row[g[layers + l]];
            c += row[g[2 * layers + l]];
            d += row[g[3 * layers + l]];
        }
        scores[i] = a, scores[i + 1] = b, scores[i + 2] = c, scores[i + 3] = d;
    }
    for (; i < count; ++i) {
        float sum = table.fixed;
        for (std::int64_t l = 0; l < layers; ++l) sum += table.rows[l * choices + genotypes[i * layers + l]];
        scores[i] = sum;
    }
}

}  // namespace

void score_some(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores) {
#if defined(__x86_64__)
    if (instruction_set() == InstructionSet::kAvx512 && table.layers >= avx512::kLeastLayers && table.choices <= avx512::kMostChoices) {
        avx512::score_some(table, genotypes, count, scores);
        return;
    }
#endif
    score_plain(table, genotypes, count, scores);
}

Status score(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores, int threads) {
    if (table.layers < 1 || table.choices < 1 || table.choices > 256) return {"a table has layers, and 1 to 256 choices"};
    const std::int64_t unit = std::max<std::int64_t>(64, kUnitBytes / table.layers / 64 * 64);
    std::atomic<bool> in_range{true};
    Team team(threads);
    team.run((count + unit - 1) / unit, [&](std::int64_t index, int) {
        const std::int64_t first = index * unit, some = std::min(unit, count - first);
        const std::uint8_t* g = genotypes + first * table.layers;
        if (table.choices < 256 && largest(g, some * table.layers) >= table.choices) {
            in_range.store(false, std::memory_order_relaxed);
            return;
        }
        score_some(table, g, some, scores + first);
    });
    if (!in_range.load()) return {"a choice is not in its table"};
    return {};
}

}  // namespace hwnas::additive
