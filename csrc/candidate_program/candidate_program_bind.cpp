#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "candidate_program/kernels_cpu.h"
#include "candidate_program/program.h"
#include "common/bind.h"

namespace hwnas::candidate_program {

namespace py = pybind11;

namespace {

// steps, reads, buffers, weights, affine; then step_count, buffer_count, image_floats, norm_channels, scratch_floats.
using Tables = std::array<std::uintptr_t, 5>;
using Sizes = std::array<std::int64_t, 5>;

Program make_program(const Tables& t, const Sizes& s) {
    return {address<const Step>(t[0]), s[0], address<const Read>(t[1]), address<const Buffer>(t[2]), s[1], s[2],
            address<const float>(t[3]), address<float>(t[4]), s[3], s[4]};
}

}  // namespace

void bind(py::module_& module) {
    auto m = module.def_submodule("candidate_program");
    m.attr("block") = kBlock;
    m.attr("conv_scratch") = kConvScratch;
    m.def("run", [](const Tables& tables, const Sizes& sizes, std::uintptr_t wanted, std::uintptr_t images, std::int64_t n, std::int64_t tile,
                    std::uintptr_t results, std::uintptr_t arena, std::uintptr_t scratch, int threads) {
        const py::gil_scoped_release release;
        check("candidate_program", run(make_program(tables, sizes), address<const std::uint8_t>(wanted), {address<const float>(images), n}, tile,
                                       address<float>(results), address<float>(arena), address<float>(scratch), threads));
    });
    m.def("calibrate", [](const Tables& tables, const Sizes& sizes, std::uintptr_t weight_bias, std::uintptr_t eps, std::uintptr_t statistics,
                          std::uintptr_t images, std::int64_t n, std::uintptr_t arena, std::uintptr_t scratch, int threads) {
        const py::gil_scoped_release release;
        check("candidate_program", calibrate(make_program(tables, sizes), {address<const float>(weight_bias), address<const float>(eps), address<double>(statistics)},
                                             {address<const float>(images), n}, address<float>(arena), address<float>(scratch), threads));
    });
}

}  // namespace hwnas::candidate_program
