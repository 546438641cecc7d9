#include "nhwc/kernels_cpu.h"

#include <cstdlib>
#include <cstring>

namespace hwnas::nhwc {

template <typename T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
    const char* wanted = std::getenv("HWNAS_CPU_ISA");
    const auto allowed = [&](const char* name) { return !wanted || !*wanted || std::strcmp(wanted, name) == 0; };
    // All that -march=x86-64-v4 and -v3 let the compiler use, as far as compilers can ask for it.
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v4 && allowed("avx512")) return avx512::kernels<T>();
    if (v3 && allowed("avx2")) return avx2::kernels<T>();
#endif
    return baseline::kernels<T>();
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace hwnas::nhwc
