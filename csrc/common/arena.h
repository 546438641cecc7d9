// A block of memory in consecutive pieces.
#pragma once

#include <cstdint>

namespace hwnas {

// Hands out consecutive pieces of a block of memory; over a null base it only counts.
class Arena {
public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <typename T>
    T* take(std::int64_t count) {
        const std::int64_t at = used_;
        used_ += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
        return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
    }
    std::int64_t used() const { return used_; }

private:
    char* base_;
    std::int64_t used_ = 0;
};

}  // namespace hwnas
