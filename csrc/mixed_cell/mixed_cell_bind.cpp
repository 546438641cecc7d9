#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "common/bind.h"
#include "mixed_cell/mixed_cell.h"

namespace hwnas::mixed_cell {
namespace {

namespace py = pybind11;

using ShapeTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, int, bool, int>;

// Addresses in the order of the parameter structs: the inputs, then the other fields.
using ForwardAddresses = std::array<std::uintptr_t, 6 + 3>;
using BackwardAddresses = std::array<std::uintptr_t, 6 + 10>;

Shape make_shape(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, int nodes, bool reduction, int type) {
    return {n, c, h, w, nodes, reduction, static_cast<Type>(type)};
}

Inputs make_inputs(const std::uintptr_t* a) {
    return {address(a[0]), address(a[1]), address(a[2]), address(a[3]), address(a[4]), address(a[5])};
}

Forward make_forward(const ShapeTuple& shape, const ForwardAddresses& a) {
    return {std::apply(make_shape, shape), make_inputs(a.data()), address(a[6]), address(a[7]), address(a[8])};
}

Backward make_backward(const ShapeTuple& shape, const BackwardAddresses& a) {
    return {std::apply(make_shape, shape), make_inputs(a.data()), address(a[6]), address(a[7]), address(a[8]), address(a[9]),
            address(a[10]), address(a[11]), address(a[12]), address(a[13]), address(a[14]), address(a[15])};
}

template <std::int64_t (*kBytes)(const Shape&)>
std::int64_t bytes(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, int nodes, bool reduction, int type) {
    return kBytes(make_shape(n, c, h, w, nodes, reduction, type));
}

}  // namespace

void bind(py::module_& module) {
    auto m = module.def_submodule("mixed_cell");
    m.def("saved_bytes_cpu", &bytes<saved_bytes_cpu>);
    m.def("forward_scratch_bytes_cpu", &bytes<forward_scratch_bytes_cpu>);
    m.def("backward_scratch_bytes_cpu", &bytes<backward_scratch_bytes_cpu>);
    m.def("forward_cpu", [](const ShapeTuple& shape, const ForwardAddresses& addresses, int threads) {
        const py::gil_scoped_release release;
        check("mixed_cell", forward_cpu(make_forward(shape, addresses), threads));
    });
    m.def("backward_cpu", [](const ShapeTuple& shape, const BackwardAddresses& addresses, int threads) {
        const py::gil_scoped_release release;
        check("mixed_cell", backward_cpu(make_backward(shape, addresses), threads));
    });
#ifdef HWNAS_WITH_CUDA
    m.def("saved_bytes_cuda", &bytes<saved_bytes_cuda>);
    m.def("forward_scratch_bytes_cuda", &bytes<forward_scratch_bytes_cuda>);
    m.def("backward_scratch_bytes_cuda", &bytes<backward_scratch_bytes_cuda>);
    m.def("forward_cuda", [](const ShapeTuple& shape, const ForwardAddresses& addresses, std::uintptr_t stream) {
        check("mixed_cell", forward_cuda(make_forward(shape, addresses), address(stream)));
    });
    m.def("backward_cuda", [](const ShapeTuple& shape, const BackwardAddresses& addresses, std::uintptr_t stream) {
        check("mixed_cell", backward_cuda(make_backward(shape, addresses), address(stream)));
    });
#endif
}

}  // namespace hwnas::mixed_cell
