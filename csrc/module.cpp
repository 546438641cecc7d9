// The only PYBIND11_MODULE. Each kernel folder binds itself in <kernel>_bind.cpp; the wrappers in hwnas/kernels check shapes,
// types, devices and contiguity before they call.
#include <pybind11/pybind11.h>

namespace hwnas::additive {
void bind(pybind11::module_& module);
}
namespace hwnas::batch_norm {
void bind(pybind11::module_& module);
}
namespace hwnas::candidate_program {
void bind(pybind11::module_& module);
}
namespace hwnas::inner_search {
void bind(pybind11::module_& module);
}
namespace hwnas::memory {
void bind(pybind11::module_& module);
}
namespace hwnas::merged_program {
void bind(pybind11::module_& module);
}
namespace hwnas::mixed_cell {
void bind(pybind11::module_& module);
}
namespace hwnas::nb201_cell {
void bind(pybind11::module_& module);
}
namespace hwnas::pixel_grids {
void bind(pybind11::module_& module);
}
namespace hwnas::relu_pointwise {
void bind(pybind11::module_& module);
}
namespace hwnas::weighted_sum {
void bind(pybind11::module_& module);
}

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native kernels of hwnas. Call them through hwnas.kernels.";
#ifdef HWNAS_WITH_CUDA
    m.attr("with_cuda") = true;
#else
    m.attr("with_cuda") = false;
#endif
    hwnas::additive::bind(m);
    hwnas::batch_norm::bind(m);
    hwnas::candidate_program::bind(m);
    hwnas::inner_search::bind(m);
    hwnas::memory::bind(m);
    hwnas::merged_program::bind(m);
    hwnas::mixed_cell::bind(m);
    hwnas::nb201_cell::bind(m);
    hwnas::pixel_grids::bind(m);
    hwnas::relu_pointwise::bind(m);
    hwnas::weighted_sum::bind(m);
}
