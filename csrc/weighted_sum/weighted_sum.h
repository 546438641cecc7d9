// y = sum_o w[o] * x_o over `terms` tensors of `size` elements: the blend at the end of a mixed op, and its gradient.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::weighted_sum {

constexpr int kMaxTerms = 64;

enum class Type : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

struct Forward {
    const void* x[kMaxTerms];  // terms contiguous tensors
    const void* w;             // [terms], float32, or float64 with Type::kFloat64
    void* y;                   // [size]
    int terms;
    std::int64_t size;
    Type type;
};

struct Backward {
    const void* x[kMaxTerms];
    const void* w;      // [terms]
    const void* grad;   // dL/dy, [size]
    void* dx[kMaxTerms];  // dL/dx_o = w[o] * grad; null where it is not wanted
    void* dw;           // [terms], dL/dw[o] = <grad, x_o>
    int terms;
    std::int64_t size;
    Type type;
};

Status forward_cpu(const Forward& p);
Status backward_cpu(const Backward& p);

// Scratch bytes that backward_cuda needs for its two-pass, order-fixed reduction.
std::int64_t backward_cuda_scratch(int terms);
Status forward_cuda(const Forward& p, void* stream);
Status backward_cuda(const Backward& p, void* scratch, void* stream);

}  // namespace hwnas::weighted_sum
