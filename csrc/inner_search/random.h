// Counter-based random numbers: the stream of (seed, generation, individual) depends on nothing else, so any number of
// threads draws the same. SplitMix64 (Steele et al. 2014) started at a hash of the counters.
#pragma once

#include <cstdint>

namespace hwnas::inner_search {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

inline std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

class Stream {
public:
    Stream(std::uint64_t seed, std::uint64_t generation, std::uint64_t individual)
        : state_(mix(mix(mix(seed + kGolden) + generation + kGolden) + individual + kGolden)) {}

    std::uint64_t next() { return mix(state_ += kGolden); }

    // Uniform in [0, bound), bound below 2^32; the bias is below 2^-32.
    std::uint32_t below(std::uint64_t bound) { return static_cast<std::uint32_t>(((next() >> 32) * bound) >> 32); }

    // True with a chance of threshold / 2^32.
    bool chance(std::uint64_t threshold) { return (next() >> 32) < threshold; }

private:
    std::uint64_t state_;
};

inline std::uint64_t threshold(double chance) {
    return chance <= 0 ? 0 : chance >= 1 ? std::uint64_t{1} << 32 : static_cast<std::uint64_t>(chance * 4294967296.0);
}

}  // namespace hwnas::inner_search
