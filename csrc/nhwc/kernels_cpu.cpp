#include "nhwc/kernels_cpu.h"

#include "common/instruction_set.h"

namespace hwnas::nhwc {

template <typename T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
    switch (instruction_set()) {
        case InstructionSet::kAvx512: return avx512::kernels<T>();
        case InstructionSet::kAvx2: return avx2::kernels<T>();
        case InstructionSet::kBaseline: break;
    }
#endif
    return baseline::kernels<T>();
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace hwnas::nhwc
