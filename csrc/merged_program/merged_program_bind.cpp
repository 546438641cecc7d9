#include <pybind11/pybind11.h>

#include "common/bind.h"
#include "merged_program/merged_program.h"

namespace hwnas::merged_program {

namespace py = pybind11;

void bind(py::module_& module) {
    auto m = module.def_submodule("merged_program");
    m.attr("problem_bytes") = sizeof(Problem);
    m.attr("norm_bytes") = sizeof(Norm);
    m.attr("launch_bytes") = sizeof(Launch);
    m.attr("max_terms") = kTerms;
    m.def("tile_pixels", [](int shape) { return tile_pixels(static_cast<Shape>(shape)); });
    m.def("tile_channels", [](int shape) { return tile_channels(static_cast<Shape>(shape)); });
#ifdef HWNAS_WITH_CUDA
    m.def("run_cuda", [](const py::bytes& launches, std::uintptr_t stream) {
        const std::string_view view = launches;
        check("merged_program", run_cuda(reinterpret_cast<const Launch*>(view.data()), static_cast<std::int64_t>(view.size() / sizeof(Launch)), address(stream)));
    });
#endif
}

}  // namespace hwnas::merged_program
