#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "candidate_program/kernels_cpu.h"
#include "candidate_program/program.h"
#include "common/bind.h"

namespace hwnas::candidate_program {

namespace py = pybind11;

namespace {

// Addresses of steps, phases, reads, buffers, weights, affine; then phase_count, norm_channels, local_floats, scratch_floats.
using Tables = std::array<std::uintptr_t, 6>;
using Sizes = std::array<std::int64_t, 4>;

Program make_program(const Tables& t, const Sizes& s) {
    return {address<const Step>(t[0]), address<const Phase>(t[1]), s[0], address<const Read>(t[2]), address<const Buffer>(t[3]),
            address<const float>(t[4]), address<float>(t[5]), s[1], s[2], s[3]};
}

Memory make_memory(const std::array<std::uintptr_t, 3>& m) { return {address<float>(m[0]), address<float>(m[1]), address<float>(m[2])}; }

}  // namespace

void bind(py::module_& module) {
    auto m = module.def_submodule("candidate_program");
    m.def("pack", [](std::uintptr_t weight, const std::array<std::int64_t, 4>& shape, std::int64_t groups, const std::array<std::int64_t, 4>& strides,
                     bool winograd, std::uintptr_t to) {
        (winograd ? pack_winograd : pack)({address<const float>(weight), shape[0], shape[1], shape[2], shape[3], groups, strides[0], strides[1],
                                           strides[2], strides[3]}, address<float>(to));
    });
    m.attr("conv_scratch") = kConvScratch;
    m.attr("winograd_channels") = kWinogradChannels;
    m.def("winograd_scratch", &winograd_scratch);
    m.def("run", [](const Tables& tables, const Sizes& sizes, std::uintptr_t wanted, std::uintptr_t images, std::int64_t n, std::uintptr_t results,
                    const std::array<std::uintptr_t, 3>& memory, int threads) {
        const py::gil_scoped_release release;
        check("candidate_program", run(make_program(tables, sizes), address<const std::uint8_t>(wanted), {address<const float>(images), n},
                                       address<float>(results), make_memory(memory), threads));
    });
    m.def("calibrate", [](const Tables& tables, const Sizes& sizes, std::uintptr_t weight_bias, std::uintptr_t eps, std::uintptr_t statistics,
                          std::uintptr_t images, std::int64_t n, const std::array<std::uintptr_t, 3>& memory, int threads) {
        const py::gil_scoped_release release;
        const Norms norms{address<const float>(weight_bias), address<const float>(eps), address<double>(statistics)};
        check("candidate_program", calibrate(make_program(tables, sizes), norms, {address<const float>(images), n}, make_memory(memory), threads));
    });
}

}  // namespace hwnas::candidate_program
