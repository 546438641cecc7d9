// Sixteen genotypes at a time. Four rows stand in the four quarters of a register; transposing dwords within quarters gives, for
// sixteen genotypes, the choices of four layers in the four bytes of a lane. A layer's costs stand in one or two registers and a
// permute, which looks at the low bits of a lane only, picks from them. The rows' last dwords are read from the end backwards, so
// nothing is read behind them.
#include "additive/additive.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace hwnas::additive::avx512 {
namespace {

constexpr int kLanes = 16;

template <bool kWide>
struct Row {
    __m512 low, high;
    Row(const float* costs, int choices)
        : low(_mm512_maskz_loadu_ps(static_cast<__mmask16>(choices >= 16 ? 0xffff : (1 << choices) - 1), costs)), high(low) {
        if (kWide) high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(choices >= 32 ? 0xffff : (1 << (choices - 16)) - 1), costs + 16);
    }
    __m512 at(__m512i choice) const {
        return kWide ? _mm512_permutex2var_ps(low, choice, high) : _mm512_permutexvar_ps(choice, low);
    }
};

// Adds the layers [first + skip, first + 4) of what a lane's bytes say.
template <bool kWide>
__m512 add_dword(__m512 sum, __m512i choices_of_four, const Table& table, int first, int skip) {
    for (int k = 0; k < 4; ++k, choices_of_four = _mm512_srli_epi32(choices_of_four, 8)) {
        if (k < skip) continue;
        const Row<kWide> row(table.rows + static_cast<std::int64_t>(first + k) * table.choices, table.choices);
        sum = _mm512_add_ps(sum, row.at(choices_of_four));
    }
    return sum;
}

// Rows r, r + 4, r + 8 and r + 12, each 16 bytes.
__m512i quarter_rows(const std::uint8_t* g, std::int64_t layers) {
    const auto load = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(g + row * layers)); };
    __m512i all = _mm512_castsi128_si512(load(0));
    all = _mm512_inserti32x4(all, load(4), 1);
    all = _mm512_inserti32x4(all, load(8), 2);
    return _mm512_inserti32x4(all, load(12), 3);
}

template <bool kWide>
void score_wide(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores) {
    const std::int64_t layers = table.layers;
    const __m512i lane = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(static_cast<int>(layers)));
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const std::uint8_t* g = genotypes + i * layers;
        __m512 sum = _mm512_set1_ps(table.fixed);
        int l = 0;
        for (; l + 16 <= layers; l += 16) {
            const __m512i r0 = quarter_rows(g + l, layers), r1 = quarter_rows(g + layers + l, layers);
            const __m512i r2 = quarter_rows(g + 2 * layers + l, layers), r3 = quarter_rows(g + 3 * layers + l, layers);
            const __m512i a = _mm512_unpacklo_epi32(r0, r1), b = _mm512_unpackhi_epi32(r0, r1);
            const __m512i c = _mm512_unpacklo_epi32(r2, r3), d = _mm512_unpackhi_epi32(r2, r3);
            sum = add_dword<kWide>(sum, _mm512_unpacklo_epi64(a, c), table, l, 0);
            sum = add_dword<kWide>(sum, _mm512_unpackhi_epi64(a, c), table, l + 4, 0);
            sum = add_dword<kWide>(sum, _mm512_unpacklo_epi64(b, d), table, l + 8, 0);
            sum = add_dword<kWide>(sum, _mm512_unpackhi_epi64(b, d), table, l + 12, 0);
        }
        for (; l < layers; l += 4) {
            const int first = l + 4 <= layers ? l : static_cast<int>(layers) - 4;
            sum = add_dword<kWide>(sum, _mm512_i32gather_epi32(lane, g + first, 1), table, first, l - first);
        }
        _mm512_storeu_ps(scores + i, sum);
    }
    for (; i < count; ++i) {
        float sum = table.fixed;
        for (std::int64_t l = 0; l < layers; ++l) sum += table.rows[l * table.choices + genotypes[i * layers + l]];
        scores[i] = sum;
    }
}

}  // namespace

void score_some(const Table& table, const std::uint8_t* genotypes, std::int64_t count, float* scores) {
    if (table.choices <= 16)
        score_wide<false>(table, genotypes, count, scores);
    else
        score_wide<true>(table, genotypes, count, scores);
}

}  // namespace hwnas::additive::avx512
#endif
