#include <pybind11/pybind11.h>

#include "additive/additive.h"
#include "common/bind.h"

namespace hwnas::additive {

namespace py = pybind11;

void bind(py::module_& module) {
    auto m = module.def_submodule("additive");
    m.def("score", [](std::uintptr_t rows, int layers, int choices, float fixed, std::uintptr_t genotypes, std::int64_t count,
                      std::uintptr_t scores, int threads) {
        py::gil_scoped_release release;
        return static_cast<bool>(
            score({address<const float>(rows), layers, choices, fixed}, address<const std::uint8_t>(genotypes), count, address<float>(scores), threads));
    });
}

}  // namespace hwnas::additive
