// One cell of the NAS-Bench-201 supernet (Dong and Yang 2020): node j sums, over the states i before it, the gated candidate
// ops of edge (i, j). State 0 is the cell's input, the last node its result; all strides are 1.
// Ops: none, skip, ReLU-conv1x1-BN, ReLU-conv3x3-BN, 3x3 average pool (padding not counted, no BN). Batch norm has no affine
// and uses the batch's own statistics (biased variance, eps 1e-5).
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::nb201_cell {

enum class Type : int { kFloat32 = 0, kFloat64 = 1 };

enum Op : int { kNone, kSkip, kConv1, kConv3, kAvgPool, kOps };

struct Shape {
    std::int64_t n, c, h, w;
    int states;  // 4 in NAS-Bench-201, with the input
    Type type;
    constexpr int edges() const { return states * (states - 1) / 2; }  // (0,1) (0,2) (1,2) (0,3) ...: by node, then by source
};

struct Inputs {
    const void* x;      // [n, c, h, w] channels last
    const void* gates;  // [edges, kOps]
    const void* w1;     // [edges, c, c] (out, in)
    const void* w3;     // [edges, c, c, 3, 3]
};

struct Forward {
    Shape shape;
    Inputs in;
    void* y;        // like x
    void* saved;    // saved_bytes(shape): what backward wants back
    void* scratch;  // forward_scratch_bytes(shape)
};

struct Backward {
    Shape shape;
    Inputs in;
    const void* saved;
    const void* dy;  // like x
    void* dx;
    void* dgates;
    void* dw1;
    void* dw3;
    void* scratch;  // backward_scratch_bytes(shape)
};

std::int64_t saved_bytes_cpu(const Shape& shape);
std::int64_t forward_scratch_bytes_cpu(const Shape& shape);
std::int64_t backward_scratch_bytes_cpu(const Shape& shape);
Status forward_cpu(const Forward& p, int threads);
Status backward_cpu(const Backward& p, int threads);

}  // namespace hwnas::nb201_cell
