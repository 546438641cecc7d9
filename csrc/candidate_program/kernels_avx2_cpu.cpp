// Compiled for x86-64-v3 (CMakeLists.txt) and called only where the processor has it.
#if defined(__x86_64__)
#define HWNAS_ISA avx2
#define HWNAS_VECTOR_BYTES 32
#include "candidate_program/kernels_cpu.inl"
#endif
