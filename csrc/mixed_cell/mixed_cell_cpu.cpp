#include "mixed_cell/mixed_cell.h"

#include <limits>
#include <new>

#include "mixed_cell/backward_cpu.h"
#include "mixed_cell/forward_cpu.h"

namespace hwnas::mixed_cell {
namespace {

constexpr Status kNoType{"the CPU takes float32 and float64"};
constexpr Status kTooLarge{"an image is too large for the CPU kernel; each of C, H and W must stay under 2^15"};
constexpr Status kNoMemory{"no memory for the threads' buffers"};

bool fits(const Shape& s) { return s.c < 1 << 15 && s.h < 1 << 15 && s.w < 1 << 15; }

template <template <typename> class Buffers>
std::int64_t bytes(const Shape& shape) {
    const auto count = [&](auto zero) {
        using T = decltype(zero);
        Arena arena(nullptr);
        Buffers<T>(cpu::Plan<T>(shape), arena);
        return arena.used();
    };
    return !fits(shape) ? 0 : shape.type == Type::kFloat64 ? count(0.0) : count(0.0f);
}

template <template <typename> class Pass, typename Params>
Status run(const Params& p, int threads) {
    const auto start = [&](auto zero) {
        using T = decltype(zero);
        const cpu::Plan<T> plan(p.shape);
        Team team(threads);
        Pass<T>(plan, p, team).run();
    };
    if (!fits(p.shape)) return kTooLarge;
    try {
        switch (p.shape.type) {
            case Type::kFloat32: start(0.0f); return {};
            case Type::kFloat64: start(0.0); return {};
            default: return kNoType;
        }
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

}  // namespace

std::int64_t saved_bytes_cpu(const Shape& shape) { return bytes<cpu::Saved>(shape); }
std::int64_t forward_scratch_bytes_cpu(const Shape& shape) { return bytes<cpu::ForwardScratch>(shape); }
std::int64_t backward_scratch_bytes_cpu(const Shape& shape) { return bytes<cpu::BackwardScratch>(shape); }

Status forward_cpu(const Forward& p, int threads) { return run<cpu::ForwardPass>(p, threads); }
Status backward_cpu(const Backward& p, int threads) { return run<cpu::BackwardPass>(p, threads); }

}  // namespace hwnas::mixed_cell
