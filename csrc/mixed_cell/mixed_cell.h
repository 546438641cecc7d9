// The mixed-op part of one DARTS search cell (Liu et al. 2019): every edge's eight candidate ops, the gated sums that enter
// each node, and the concatenation of the nodes, forward and backward. One boundary for a whole cell, because that is where
// the work can be shared: ops of an edge read x once, edges that leave one state share its pools, and one launch can serve
// every edge that is ready.
//
// States: s0, s1 (the preprocessed inputs, [n, c, h, w]), then one per node. Node i sums one mixed edge from each of the 2 + i
// earlier states; edges are numbered in that order, 14 for 4 nodes. In a reduction cell the edges from s0 and s1 have stride 2.
// Edge: y = sum_o gate[o] * op_o(x), ops in the order of Op. Batch norm has no affine, uses the batch's own statistics
// (biased variance, eps 1e-5). Weights and gates are float32 (float64 with Type::kFloat64) whatever the activations' type.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace hwnas::mixed_cell {

enum class Type : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

enum Op : int { kNone, kMaxPool, kAvgPool, kSkip, kSepConv3, kSepConv5, kDilConv3, kDilConv5, kOps };

// Convolutions of an edge, the order in which `dw` and `pw` hold their weights.
enum Conv : int { kSep3First, kSep3Second, kSep5First, kSep5Second, kDil3, kDil5, kConvs };
constexpr int kKernel[kConvs] = {3, 3, 5, 5, 3, 5};
constexpr int kDwPerChannel = 9 + 9 + 25 + 25 + 9 + 25;

struct Shape {
    std::int64_t n, c, h, w;  // of s0 and s1
    int nodes;                // 4 in DARTS
    bool reduction;           // edges from s0 and s1 have stride 2
    Type type;                // of the activations
    constexpr int edges() const { return nodes * (nodes + 3) / 2; }
    constexpr int reduced_edges() const { return reduction ? 2 * nodes : 0; }
    constexpr std::int64_t out_h() const { return reduction ? (h + 1) / 2 : h; }
    constexpr std::int64_t out_w() const { return reduction ? (w + 1) / 2 : w; }
};

struct Inputs {
    const void* s0;     // [n, c, h, w] in the memory order that layout_*() names
    const void* s1;
    const void* gates;  // [edges, kOps]
    const void* dw;     // [edges, kDwPerChannel * c]: per edge the convs in order, each [c, k, k]
    const void* pw;     // [edges, kConvs, c, c]: (out, in)
    const void* fr;     // [reduced_edges, c, c]: factorized reduce; rows [0, c/2) read x at (2i, 2j), rows [c/2, c) at (2i+1, 2j+1),
                        // zero beyond the border
};

struct Forward {
    Shape shape;
    Inputs in;
    void* y;        // [n, nodes * c, out_h, out_w]
    void* saved;    // saved_bytes(shape): what backward wants back
    void* scratch;  // forward_scratch_bytes(shape)
};

struct Backward {
    Shape shape;
    Inputs in;
    const void* saved;
    const void* y;   // what forward wrote: the node states
    const void* dy;  // like y
    void* ds0;
    void* ds1;
    void* dgates;
    void* ddw;
    void* dpw;
    void* dfr;
    void* scratch;  // backward_scratch_bytes(shape)
};

std::int64_t saved_bytes_cpu(const Shape& shape);
std::int64_t forward_scratch_bytes_cpu(const Shape& shape);
std::int64_t backward_scratch_bytes_cpu(const Shape& shape);
Status forward_cpu(const Forward& p, int threads);
Status backward_cpu(const Backward& p, int threads);

std::int64_t saved_bytes_cuda(const Shape& shape);
std::int64_t forward_scratch_bytes_cuda(const Shape& shape);
std::int64_t backward_scratch_bytes_cuda(const Shape& shape);
Status forward_cuda(const Forward& p, void* stream);
Status backward_cuda(const Backward& p, void* stream);

}  // namespace hwnas::mixed_cell
