// z = w * relu(x), a 1 x 1 convolution without bias, and its gradients: what brings a DARTS cell's inputs to its width, before the
// batch norm. PyTorch takes two to three launches forward and five to seven backward for it, each near the shortest there is.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::relu_pointwise {

enum class Type : int { kFloat32 = 0, kBFloat16 = 2 };

struct Shape {
    std::int64_t n, in, out, pixels;  // x is [n, in, pixels], z [n, out, pixels], contiguous; w [out, in] float32
    Type type;                        // of x and z
};

// Channels in whole 16s, at most 256 in; 16, 32 or 64 out; pixels in whole 64s (128s up to 32 channels out); as much shared memory as
// the current device has.
bool covers(const Shape& shape);
std::int64_t scratch_bytes(const Shape& shape);  // of backward: shares of dw

// All pointers 16-byte aligned.
Status forward_cuda(const Shape& shape, const void* x, const void* w, void* z, void* stream);
Status backward_cuda(const Shape& shape, const void* dz, const void* x, const void* w, void* dx, void* dw, void* scratch, void* stream);

}  // namespace hwnas::relu_pointwise
