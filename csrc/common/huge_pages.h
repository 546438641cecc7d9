// A hint that a large, freshly mapped block will be written as a whole: with 2 MB pages the kernel enters it 512 times less
// often. For the mixed cell that was half of forward's time.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hwnas {

inline void prefer_huge_pages([[maybe_unused]] void* block, [[maybe_unused]] std::int64_t bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t kPage = 2 << 20;
    const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(block) + kPage - 1) / kPage * kPage;
    const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(block) + static_cast<std::uintptr_t>(bytes)) / kPage * kPage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a refusal costs only time
#endif
}

}  // namespace hwnas
