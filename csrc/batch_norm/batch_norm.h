// y = weight * (x - mean) / sqrt(var + 1e-5) + bias with the batch's own statistics (biased variance), and its gradient.
// The batch norms between cells see a few million elements in tens of channels, where PyTorch's kernels use tens of blocks.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::batch_norm {

enum class Type : int { kFloat32 = 0, kBFloat16 = 2 };

struct Shape {
    std::int64_t n, c, pixels;  // x is [n, c, pixels], contiguous
    Type type;
};

// The planes' sums, [c, n, 2] float32, which the second pass of each direction adds up.
constexpr std::int64_t scratch_bytes(std::int64_t n, std::int64_t c) { return n * c * 2 * 4; }

// stats: [c, 2] float32, mean and 1 / std, which backward wants back. weight, bias: [c] float32, or null for 1 and 0.
Status forward_cuda(const Shape& shape, const void* x, const void* weight, const void* bias, void* y, void* stats, void* scratch, void* stream);
// dweight and dbias are written where weight is given.
Status backward_cuda(const Shape& shape, const void* dy, const void* x, const void* weight, const void* stats, void* dx, void* dweight, void* dbias,
                     void* scratch, void* stream);

}  // namespace hwnas::batch_norm
