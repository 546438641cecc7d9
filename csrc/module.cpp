// The only PYBIND11_MODULE. Tensors cross as addresses (data_ptr()), so nothing here depends on torch; the wrappers in
// hwnas/kernels check shapes, types, devices and contiguity before they call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "weighted_sum/weighted_sum.h"

namespace py = pybind11;

namespace {

void check(const char* kernel, hwnas::Status status) {
    if (!status) throw std::runtime_error(std::string(kernel) + ": " + status.error);
}

template <typename T = void>
T* address(std::uintptr_t value) {
    return reinterpret_cast<T*>(value);
}

#ifdef HWNAS_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

void bind_weighted_sum(py::module_& module) {
    namespace ws = hwnas::weighted_sum;
    auto m = module.def_submodule("weighted_sum");
    m.attr("max_terms") = ws::kMaxTerms;
    using Addresses = std::vector<std::uintptr_t>;

    const auto forward = [](const Addresses& x, std::uintptr_t w, std::uintptr_t y, std::int64_t size, int type) {
        ws::Forward p{{}, address(w), address(y), static_cast<int>(x.size()), size, static_cast<ws::Type>(type)};
        for (std::size_t o = 0; o < x.size(); ++o) p.x[o] = address(x[o]);
        return p;
    };
    const auto backward = [](const Addresses& x, std::uintptr_t w, std::uintptr_t grad, const Addresses& dx, std::uintptr_t dw,
                             std::int64_t size, int type) {
        ws::Backward p{{}, address(w), address(grad), {}, address(dw), static_cast<int>(x.size()), size, static_cast<ws::Type>(type)};
        for (std::size_t o = 0; o < x.size(); ++o) {
            p.x[o] = address(x[o]);
            p.dx[o] = address(dx[o]);
        }
        return p;
    };

    m.def("forward_cpu", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t y, std::int64_t size, int type) {
        const auto p = forward(x, w, y, size, type);
        py::gil_scoped_release release;
        check("weighted_sum", ws::forward_cpu(p));
    });
    m.def("backward_cpu", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t grad, const Addresses& dx, std::uintptr_t dw,
                              std::int64_t size, int type) {
        const auto p = backward(x, w, grad, dx, dw, size, type);
        py::gil_scoped_release release;
        check("weighted_sum", ws::backward_cpu(p));
    });
#ifdef HWNAS_WITH_CUDA
    m.def("backward_cuda_scratch", &ws::backward_cuda_scratch);
    m.def("forward_cuda", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t y, std::int64_t size, int type, std::uintptr_t stream) {
        check("weighted_sum", ws::forward_cuda(forward(x, w, y, size, type), address(stream)));
    });
    m.def("backward_cuda", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t grad, const Addresses& dx, std::uintptr_t dw,
                               std::int64_t size, int type, std::uintptr_t scratch, std::uintptr_t stream) {
        check("weighted_sum", ws::backward_cuda(backward(x, w, grad, dx, dw, size, type), address(scratch), address(stream)));
    });
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native kernels of hwnas. Call them through hwnas.kernels.";
    m.attr("with_cuda") = kWithCuda;
    bind_weighted_sum(m);
}
