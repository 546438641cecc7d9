// Zeroed memory that starts on a cache line: a 64-byte vector load across two lines costs twice.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace hwnas {

template <typename T>
class AlignedBuffer {
public:
    explicit AlignedBuffer(std::int64_t count)
        : data_(static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{kLine}))) {
        std::fill_n(data_.get(), count, T(0));
    }
    T* data() const { return data_.get(); }

private:
    static constexpr std::size_t kLine = 64;
    struct Delete {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t{kLine}); }
    };
    std::unique_ptr<T, Delete> data_;
};

}  // namespace hwnas
