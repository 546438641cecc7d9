#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "common/bind.h"
#include "nb201_cell/nb201_cell.h"

namespace hwnas::nb201_cell {

namespace py = pybind11;

namespace {

using ShapeTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, int, int>;

Shape make_shape(const ShapeTuple& s) {
    return {std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s), static_cast<Type>(std::get<5>(s))};
}

}  // namespace

// Addresses come in the order of the parameter structs: the inputs, then the other fields.
void bind(py::module_& module) {
    auto m = module.def_submodule("nb201_cell");
    m.def("saved_bytes", [](const ShapeTuple& shape) { return saved_bytes_cpu(make_shape(shape)); });
    m.def("forward_scratch_bytes", [](const ShapeTuple& shape) { return forward_scratch_bytes_cpu(make_shape(shape)); });
    m.def("backward_scratch_bytes", [](const ShapeTuple& shape) { return backward_scratch_bytes_cpu(make_shape(shape)); });
    m.def("forward", [](const ShapeTuple& shape, const std::array<std::uintptr_t, 4 + 3>& a, int threads) {
        const py::gil_scoped_release release;
        const Inputs in{address(a[0]), address(a[1]), address(a[2]), address(a[3])};
        check("nb201_cell", forward_cpu({make_shape(shape), in, address(a[4]), address(a[5]), address(a[6])}, threads));
    });
    m.def("backward", [](const ShapeTuple& shape, const std::array<std::uintptr_t, 4 + 7>& a, int threads) {
        const py::gil_scoped_release release;
        const Inputs in{address(a[0]), address(a[1]), address(a[2]), address(a[3])};
        check("nb201_cell", backward_cpu({make_shape(shape), in, address(a[4]), address(a[5]), address(a[6]), address(a[7]), address(a[8]),
                                          address(a[9]), address(a[10])}, threads));
    });
}

}  // namespace hwnas::nb201_cell
