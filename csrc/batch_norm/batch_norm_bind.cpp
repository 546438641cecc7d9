#include <pybind11/pybind11.h>

#include "batch_norm/batch_norm.h"
#include "common/bind.h"

namespace hwnas::batch_norm {

namespace py = pybind11;

void bind(py::module_& module) {
    auto m = module.def_submodule("batch_norm");
    m.def("scratch_bytes", &scratch_bytes);
#ifdef HWNAS_WITH_CUDA
    using Address = std::uintptr_t;
    m.def("forward_cuda", [](std::int64_t n, std::int64_t c, std::int64_t pixels, int type, Address x, Address weight, Address bias, Address y, Address stats,
                             Address scratch, Address stream) {
        const Shape shape{n, c, pixels, static_cast<Type>(type)};
        check("batch_norm", forward_cuda(shape, address(x), address(weight), address(bias), address(y), address(stats), address(scratch), address(stream)));
    });
    m.def("backward_cuda", [](std::int64_t n, std::int64_t c, std::int64_t pixels, int type, Address dy, Address x, Address weight, Address stats, Address dx,
                              Address dweight, Address dbias, Address scratch, Address stream) {
        const Shape shape{n, c, pixels, static_cast<Type>(type)};
        check("batch_norm", backward_cuda(shape, address(dy), address(x), address(weight), address(stats), address(dx), address(dweight), address(dbias),
                                          address(scratch), address(stream)));
    });
#endif
}

}  // namespace hwnas::batch_norm
