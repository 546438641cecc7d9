// The widest instruction set that this processor has, or the one that HWNAS_CPU_ISA names (avx512, avx2, baseline) if it has that.
#pragma once

#include <cstdlib>
#include <cstring>

namespace hwnas {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

inline InstructionSet instruction_set() {
#if defined(__x86_64__)
    const char* const wanted = std::getenv("HWNAS_CPU_ISA");
    const auto allowed = [&](const char* name) { return !wanted || !*wanted || std::strcmp(wanted, name) == 0; };
    // All that -march=x86-64-v4 and -v3 let the compiler use, as far as compilers can ask for it.
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v4 && allowed("avx512")) return InstructionSet::kAvx512;
    if (v3 && allowed("avx2")) return InstructionSet::kAvx2;
#endif
    return InstructionSet::kBaseline;
}

}  // namespace hwnas
