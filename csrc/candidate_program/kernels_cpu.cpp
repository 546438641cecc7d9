#include "candidate_program/kernels_cpu.h"

#include "common/instruction_set.h"

namespace hwnas::candidate_program {

const Kernels& kernels() {
#if defined(__x86_64__)
    switch (instruction_set()) {
        case InstructionSet::kAvx512: return avx512::kernels();
        case InstructionSet::kAvx2: return avx2::kernels();
        case InstructionSet::kBaseline: break;
    }
#endif
    return baseline::kernels();
}

}  // namespace hwnas::candidate_program
