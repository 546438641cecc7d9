#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "common/bind.h"
#include "weighted_sum/weighted_sum.h"

namespace hwnas::weighted_sum {

namespace py = pybind11;

void bind(py::module_& module) {
    auto m = module.def_submodule("weighted_sum");
    m.attr("max_terms") = kMaxTerms;
    using Addresses = std::vector<std::uintptr_t>;

    const auto forward = [](const Addresses& x, std::uintptr_t w, std::uintptr_t y, std::int64_t size, int type) {
        Forward p{{}, address(w), address(y), static_cast<int>(x.size()), size, static_cast<Type>(type)};
        for (std::size_t o = 0; o < x.size(); ++o) p.x[o] = address(x[o]);
        return p;
    };
    const auto backward = [](const Addresses& x, std::uintptr_t w, std::uintptr_t grad, const Addresses& dx, std::uintptr_t dw,
                             std::int64_t size, int type) {
        Backward p{{}, address(w), address(grad), {}, address(dw), static_cast<int>(x.size()), size, static_cast<Type>(type)};
        for (std::size_t o = 0; o < x.size(); ++o) {
            p.x[o] = address(x[o]);
            p.dx[o] = address(dx[o]);
        }
        return p;
    };

    m.def("forward_cpu", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t y, std::int64_t size, int type) {
        const auto p = forward(x, w, y, size, type);
        py::gil_scoped_release release;
        check("weighted_sum", forward_cpu(p));
    });
    m.def("backward_cpu", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t grad, const Addresses& dx, std::uintptr_t dw,
                              std::int64_t size, int type) {
        const auto p = backward(x, w, grad, dx, dw, size, type);
        py::gil_scoped_release release;
        check("weighted_sum", backward_cpu(p));
    });
#ifdef HWNAS_WITH_CUDA
    m.def("backward_cuda_scratch", &backward_cuda_scratch);
    m.def("forward_cuda", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t y, std::int64_t size, int type, std::uintptr_t stream) {
        check("weighted_sum", forward_cuda(forward(x, w, y, size, type), address(stream)));
    });
    m.def("backward_cuda", [=](const Addresses& x, std::uintptr_t w, std::uintptr_t grad, const Addresses& dx, std::uintptr_t dw,
                               std::int64_t size, int type, std::uintptr_t scratch, std::uintptr_t stream) {
        check("weighted_sum", backward_cuda(backward(x, w, grad, dx, dw, size, type), address(scratch), address(stream)));
    });
#endif
}

}  // namespace hwnas::weighted_sum
