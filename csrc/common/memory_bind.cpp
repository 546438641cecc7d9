#include <pybind11/pybind11.h>

#include "common/block_cache.h"

namespace hwnas::memory {
namespace {

namespace py = pybind11;

// Uninitialised bytes that Python sees through the buffer protocol, from the cache and back to it.
class Block {
public:
    explicit Block(std::int64_t bytes) : at_(BlockCache::instance().take(bytes)), bytes_(bytes) {}
    ~Block() { BlockCache::instance().give_back(at_, bytes_); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    py::buffer_info info() const { return {static_cast<std::uint8_t*>(at_), bytes_}; }

private:
    void* at_;
    std::int64_t bytes_;
};

}  // namespace

void bind(py::module_& module) {
    auto m = module.def_submodule("memory");
    py::class_<Block>(m, "Block", py::buffer_protocol()).def(py::init<std::int64_t>()).def_buffer(&Block::info);
    m.def("release", [] { BlockCache::instance().release(); });
    m.def("kept_bytes", [] { return BlockCache::instance().kept_bytes(); });
}

}  // namespace hwnas::memory
