// The OpenMP runtime that is already in the process, which in practice is PyTorch's. After each of PyTorch's parallel loops
// its threads spin for some milliseconds, waiting for the next. Threads of our own would share the cores with them; theirs
// are awake. (On 2 cores a DARTS step takes 330 ms with our own threads and 240 ms with PyTorch's.) It is found at run time
// because a runtime that we linked would be a second one.
#pragma once

namespace hwnas {

// GOMP_parallel: calls body(data) on `threads` threads and waits for all; part of the stable interface between gcc and its
// runtime, which LLVM's and Intel's offer too.
using OpenMpParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Null if there is none.
OpenMpParallel process_openmp();

}  // namespace hwnas
