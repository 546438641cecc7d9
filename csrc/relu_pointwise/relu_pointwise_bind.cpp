#include <pybind11/pybind11.h>

#include "common/bind.h"
#include "relu_pointwise/relu_pointwise.h"

namespace hwnas::relu_pointwise {

namespace py = pybind11;

void bind(py::module_& module) {
    auto m = module.def_submodule("relu_pointwise");
#ifdef HWNAS_WITH_CUDA
    using Address = std::uintptr_t;
    using Sizes = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, int>;
    const auto shape = [](const Sizes& s) { return Shape{std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), static_cast<Type>(std::get<4>(s))}; };
    m.def("covers", [shape](const Sizes& s) { return covers(shape(s)); });
    m.def("scratch_bytes", [shape](const Sizes& s) { return scratch_bytes(shape(s)); });
    m.def("forward_cuda", [shape](const Sizes& s, Address x, Address w, Address z, Address stream) {
        check("relu_pointwise", forward_cuda(shape(s), address(x), address(w), address(z), address(stream)));
    });
    m.def("backward_cuda", [shape](const Sizes& s, Address dz, Address x, Address w, Address dx, Address dw, Address scratch, Address stream) {
        check("relu_pointwise",
              backward_cuda(shape(s), address(dz), address(x), address(w), address(dx), address(dw), address(scratch), address(stream)));
    });
#endif
}

}  // namespace hwnas::relu_pointwise
