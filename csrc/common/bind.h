// What the bindings share. Tensors cross as addresses (data_ptr()), so no binding depends on torch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/status.h"

namespace hwnas {

inline void check(const char* kernel, Status status) {
    if (!status) throw std::runtime_error(std::string(kernel) + ": " + status.error);
}

template <typename T = void>
T* address(std::uintptr_t value) {
    return reinterpret_cast<T*>(value);
}

}  // namespace hwnas
