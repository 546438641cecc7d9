#include <pybind11/pybind11.h>

#include "common/bind.h"
#include "merged_program/merged_program.h"

namespace hwnas::merged_program {

namespace py = pybind11;

void bind(py::module_& module) {
    auto m = module.def_submodule("merged_program");
    m.attr("problem_bytes") = sizeof(Problem);
    m.attr("norm_bytes") = sizeof(Norm);
    m.attr("pack_bytes") = sizeof(Pack);
    m.attr("launch_bytes") = sizeof(Launch);
    m.attr("max_terms") = kTerms;
    m.attr("max_taps") = kMaxTaps;
    m.attr("run") = kRun;
    m.attr("quads") = kQuads;
    m.attr("map_threads") = kMapThreads;
    py::list tiles;
    for (int i = 0; dense(static_cast<Shape>(i)); ++i) {
        const auto shape = static_cast<Shape>(i);
        tiles.append(py::make_tuple(tile_pixels(shape), tile_channels(shape), warp_rows(shape)));
    }
    m.attr("dense_tiles") = tiles;
#ifdef HWNAS_WITH_CUDA
    m.def("run_cuda", [](const py::bytes& launches, std::uintptr_t stream) {
        const std::string_view view = launches;
        check("merged_program", run_cuda(reinterpret_cast<const Launch*>(view.data()), static_cast<std::int64_t>(view.size() / sizeof(Launch)), address(stream)));
    });
#endif
}

}  // namespace hwnas::merged_program
