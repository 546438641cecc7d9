// score[i] = fixed + sum_l table[l][genotype[i][l]]: the latency (or any other additive cost) of many genotypes at once.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::additive {

// What choice c of layer l costs: rows[l * choices + c]. A choice is a byte, so there are at most 256.
struct Table {
    const float* rows;  // [layers, choices]
    int layers;
    int choices;
    float fixed;
};

// genotypes [count, layers] row by row, scores [count]. Each sum starts with `fixed` and runs over the layers in order, in single
// precision: the same bits on every instruction set and for every number of threads. Fails, with scores undefined, where a
// choice is not below `choices`.
Status score(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores, int threads);

// The loops behind it, for callers with their own threads and choices that are known to be in range.
void score_some(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores);

namespace avx512 {
constexpr int kLeastLayers = 4, kMostChoices = 32;
void score_some(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores);
}  // namespace avx512

}  // namespace hwnas::additive
