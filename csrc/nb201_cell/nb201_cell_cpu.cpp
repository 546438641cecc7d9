#include "nb201_cell/nb201_cell.h"

#include <new>

#include "nb201_cell/backward_cpu.h"
#include "nb201_cell/forward_cpu.h"

namespace hwnas::nb201_cell {
namespace {

constexpr Status kTooLarge{"an image is too large for the CPU kernel; each of C, H and W must stay under 2^15"};
constexpr Status kNoMemory{"no memory for the threads' buffers"};

bool fits(const Shape& s) { return s.c < 1 << 15 && s.h < 1 << 15 && s.w < 1 << 15; }

// f(T()) for the shape's type T.
template <typename F>
auto typed(const Shape& shape, const F& f) {
    return shape.type == Type::kFloat64 ? f(0.0) : f(0.0f);
}

template <template <typename> class Buffers>
std::int64_t bytes(const Shape& shape) {
    if (!fits(shape)) return 0;
    return typed(shape, [&](auto zero) {
        using T = decltype(zero);
        Arena arena(nullptr);
        Buffers<T>(cpu::Plan<T>(shape), arena);
        return arena.used();
    });
}

template <typename F>
Status guarded(const Shape& shape, int threads, const F& f) {
    if (!fits(shape)) return kTooLarge;
    try {
        Team team(threads);
        return typed(shape, [&](auto zero) {
            f(cpu::Plan<decltype(zero)>(shape), team);
            return Status{};
        });
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

}  // namespace

std::int64_t saved_bytes_cpu(const Shape& shape) { return bytes<cpu::Saved>(shape); }
std::int64_t forward_scratch_bytes_cpu(const Shape& shape) { return bytes<cpu::ForwardScratch>(shape); }
std::int64_t backward_scratch_bytes_cpu(const Shape& shape) { return bytes<cpu::BackwardScratch>(shape); }

Status forward_cpu(const Forward& p, int threads) {
    return guarded(p.shape, threads, [&](const auto& plan, Team& team) { cpu::run_forward(plan, p, team); });
}

Status backward_cpu(const Backward& p, int threads) {
    return guarded(p.shape, threads, [&](const auto& plan, Team& team) { cpu::BackwardPass(plan, p, team).run(); });
}

}  // namespace hwnas::nb201_cell
