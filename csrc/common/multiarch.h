// HWNAS_MULTIARCH before a function compiles it for several x86 instruction sets and picks the best at load time, so that
// one wheel runs everywhere and still uses wide vectors. Elsewhere it is empty and the compiler's baseline is used.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define HWNAS_MULTIARCH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HWNAS_MULTIARCH
#endif
