// The two pixel grids that a factorized reduce reads, side by side: y[:, :c] = x[:, :, ::2, ::2], y[:, c:] = x[:, :, 1::2, 1::2]; and
// the gradient. As slices of a tensor they cost PyTorch a copy forward and two fills, two copies and an addition backward.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::pixel_grids {

struct Shape {
    std::int64_t n, c, h, w;  // x is [n, c, h, w], y [n, 2 * c, h / 2, w / 2], contiguous
    int bytes;                // of an element, 2 or 4
};

bool covers(const Shape& shape);  // h even; w in whole 32 bytes

// All pointers 16-byte aligned.
Status forward_cuda(const Shape& shape, const void* x, void* y, void* stream);
Status backward_cuda(const Shape& shape, const void* dy, void* dx, void* stream);

}  // namespace hwnas::pixel_grids
