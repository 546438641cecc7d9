#include "common/openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>

#include <string>
#endif

namespace hwnas {

#if defined(__linux__)
namespace {

// The loaded OpenMP runtime; PyTorch's, where another package brought its own as well.
int find(dl_phdr_info* info, std::size_t, void* result) {
    auto& found = *static_cast<std::string*>(result);
    const std::string path = info->dlpi_name;
    const std::string name = path.substr(path.rfind('/') + 1);
    const bool openmp = name.rfind("libgomp", 0) == 0 || name.rfind("libiomp5", 0) == 0 || name.rfind("libomp", 0) == 0;
    const bool torch = path.find("/torch/") != std::string::npos || path.find("/torch.libs/") != std::string::npos;
    if (openmp && (torch || found.empty())) found = path;
    return openmp && torch;
}

}  // namespace

OpenMpParallel process_openmp() {
    static OpenMpParallel parallel = nullptr;
    if (!parallel) {
        std::string path;
        dl_iterate_phdr(find, &path);
        if (void* const library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD))
            parallel = reinterpret_cast<OpenMpParallel>(dlsym(library, "GOMP_parallel"));
    }
    return parallel;
}
#else
OpenMpParallel process_openmp() { return nullptr; }
#endif

}  // namespace hwnas
