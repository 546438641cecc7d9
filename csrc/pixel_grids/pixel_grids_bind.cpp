#include <pybind11/pybind11.h>

#include "common/bind.h"
#include "pixel_grids/pixel_grids.h"

namespace hwnas::pixel_grids {

namespace py = pybind11;

void bind(py::module_& module) {
    auto m = module.def_submodule("pixel_grids");
#ifdef HWNAS_WITH_CUDA
    using Address = std::uintptr_t;
    using Sizes = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, int>;
    const auto shape = [](const Sizes& s) { return Shape{std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s)}; };
    m.def("forward_cuda", [shape](const Sizes& s, Address x, Address y, Address stream) {
        check("pixel_grids", forward_cuda(shape(s), address(x), address(y), address(stream)));
    });
    m.def("backward_cuda", [shape](const Sizes& s, Address dy, Address dx, Address stream) {
        check("pixel_grids", backward_cuda(shape(s), address(dy), address(dx), address(stream)));
    });
#endif
}

}  // namespace hwnas::pixel_grids
