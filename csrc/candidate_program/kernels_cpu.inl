// Bodies of Kernels, included by kernels_<set>_cpu.cpp, which defines HWNAS_ISA (a namespace) and HWNAS_VECTOR_BYTES and is
// compiled with that set's flags. Nothing here may come from the standard library or be inline outside the namespace: the
// linker would keep one copy of it, perhaps the one with instructions that another processor lacks.
#include "candidate_program/kernels_cpu.h"

namespace hwnas::candidate_program::HWNAS_ISA {
namespace {

typedef float Vec __attribute__((vector_size(HWNAS_VECTOR_BYTES)));
typedef int IntVec __attribute__((vector_size(HWNAS_VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(HWNAS_VECTOR_BYTES), aligned(sizeof(float)), may_alias));

constexpr int kLanes = HWNAS_VECTOR_BYTES / sizeof(float);
constexpr int kBlockVectors = kBlock / kLanes;
constexpr bool kManyRegisters = HWNAS_VECTOR_BYTES == 64;  // 32 of them, else 16

constexpr int at_least_one(int x) { return x < 1 ? 1 : x; }
constexpr int pad(int c) { return (c + kBlock - 1) / kBlock * kBlock; }

inline Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = v; }
inline Vec all(float x) { return x - Vec{}; }  // x + 0 would cost an addition, for the sake of -0

template <int N> struct Count { static constexpr int value = N; };

#include "candidate_program/activation_cpu.inl"
#include "candidate_program/conv_cpu.inl"
#include "candidate_program/winograd_cpu.inl"
#include "candidate_program/depthwise_cpu.inl"
#include "candidate_program/elementwise_cpu.inl"

constexpr Kernels kTable = {conv, winograd, depthwise, pool, global_pool, sum, place, moments};

}  // namespace

const Kernels& kernels() { return kTable; }

}  // namespace hwnas::candidate_program::HWNAS_ISA
