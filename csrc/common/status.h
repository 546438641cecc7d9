// What a launcher returns: it never prints, throws or exits; the binding turns a failure into a Python exception.
#pragma once

namespace hwnas {

struct Status {
    const char* error = nullptr;  // static storage; nullptr means success
    explicit operator bool() const { return error == nullptr; }
};

}  // namespace hwnas
