// What every processor of the target has: SSE2 on x86-64, NEON on 64-bit ARM.
#define HWNAS_ISA baseline
#define HWNAS_VECTOR_BYTES 16
#include "candidate_program/kernels_cpu.inl"
