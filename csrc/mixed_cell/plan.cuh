// What every CUDA kernel of the mixed cell shares: where each tensor lives, how edges, states and batch norms are numbered,
// and the loads that apply ReLU or batch norm on the way in.
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

#include "common/cuda_check.h"
#include "mixed_cell/mixed_cell.h"

namespace hwnas::mixed_cell::cuda {

constexpr int kMaxNodes = 8;
constexpr int kMaxEdges = kMaxNodes * (kMaxNodes + 3) / 2;
constexpr int kLanes = 5;  // streams that one call works on at a time
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 32;     // pixels of a block in the general convolution kernels: a lane is a pixel
constexpr int kSegment = 256;  // pixels of one plane that a warp takes in the elementwise kernels

// Batch norms that an edge uses: the six convolutions' (numbered as Conv), the factorized reduce's and the pools'. kFr also
// numbers the sum <g, x> that a skip without batch norm needs for its gate.
enum Norm : int { kFr = kConvs, kMax, kAvg, kNorms };
// The three sums that the gradient's passes leave of an edge.
__host__ __device__ constexpr int pass_norm(int slot) { return slot == 0 ? int{kMax} : slot == 1 ? int{kAvg} : int{kFr}; }

// T: storage of activations; A: arithmetic, weights and statistics.
template <typename T>
struct Arithmetic {
    using Type = float;
};
template <>
struct Arithmetic<double> {
    using Type = double;
};

template <typename A>
struct alignas(2 * sizeof(A)) Pair {  // two sums that are always reduced together: (sum z, sum z^2) forward, (sum u, sum u * zhat) backward; and
    // (mean, 1 / std)
    A a, b;
};

__host__ __device__ constexpr int kernel_of(int conv) { return conv == kSep5First || conv == kSep5Second || conv == kDil5 ? 5 : 3; }
__host__ __device__ constexpr int dilation_of(int conv) { return conv >= kDil3 ? 2 : 1; }
__host__ __device__ constexpr int pad_of(int conv) { return kernel_of(conv) / 2 * dilation_of(conv); }
__host__ __device__ constexpr bool is_second(int conv) { return conv == kSep3Second || conv == kSep5Second; }
__host__ __device__ constexpr int dw_offset(int conv) {  // of [c, k, k] within an edge's depthwise weights, in units of c
    return conv == 0 ? 0 : conv == 1 ? 9 : conv == 2 ? 18 : conv == 3 ? 43 : conv == 4 ? 68 : 77;
}

// Division by a size that is fixed at launch.
struct Divisor {
    unsigned d, inverse;
    __host__ __device__ Divisor(unsigned divisor = 1) : d(divisor), inverse(divisor == 1 ? ~0u : static_cast<unsigned>((1ull << 32) / divisor)) {}
    __device__ void divide(int value, int& quotient, int& remainder) const {
        const unsigned v = static_cast<unsigned>(value);
        unsigned q = __umulhi(v, inverse), r = v - q * d;  // at most one too small
        if (r >= d) {
            ++q;
            r -= d;
        }
        quotient = static_cast<int>(q);
        remainder = static_cast<int>(r);
    }
};

template <typename T>
struct View {  // [n, c, h, w], channels and planes contiguous, images `image` elements apart
    T* data;
    std::int64_t image;
    int h, w;
};

template <typename T>
struct Plan {
    using A = typename Arithmetic<T>::Type;
    int n, c, nodes, edges, h, w, oh, ow;
    bool reduction, keeps_results;
    std::int64_t plane_pixels, elements;  // oh * ow; of [n, c, oh, ow]
    double per_pixel;                     // 1 / (n * oh * ow)
    unsigned char node[kMaxEdges], source[kMaxEdges];  // that an edge enters, and that it leaves
    const T* s[2];
    T* y;  // [n, nodes * c, oh, ow]
    const A *gates, *dw, *pw, *fr;
    // saved
    T* z;      // [edges, 2, n, c, oh, ow]: outputs of the separable convolutions' first halves before batch norm
    T* z_fr;   // [reduced edges, n, c, oh, ow]
    T* results;  // [edges, 2, n, c, oh, ow]: depthwise results of the two convolutions that keeps() names
    Pair<A>* stats;  // [stat rows, c]: mean and 1 / std of every batch norm
    // scratch, forward
    T* z_last;  // [edges, 4, n, c, oh, ow]: outputs of the second halves and the dilated convolutions before batch norm;
                // backward computes them again instead of keeping them
    // scratch, backward
    const T* dy;
    T* g;     // [nodes, n, c, oh, ow]: gradient of each node
    T* h1;    // [slots, 2, n, c, oh, ow]: gradient of the separable convolutions' first halves, after batch norm
    T* dd;    // [slots, 6, n, c, oh, ow]: gradient of the depthwise outputs
    T* dd_fr; // [reduced edges, 2, n, c, oh, ow]: gradient of the two pixel grids that the factorized reduce reads
    T* dx;    // per edge, like its source: gradient of relu(x) from the four convolutions
    T* ds[2];
    A* sums;  // [edges, kNorms, 2, c]: sum u and sum u * zhat of every batch norm
    A* dpw_partial;    // [edges, kConvs, groups, c, c], then [reduced edges, groups, c, c]
    A* ddw_partial;    // [groups][edges, kDwPerChannel * c]
    // scratch, both
    T* pools;          // [sources, 2, n, c, oh, ow]: max and average pool of every state that an edge reads (vector kernels)
    Pair<A>* partial;  // per-block sums, [job, c, tile]
    void* fragments;  // weights as the tensor cores want them (tuned kernels)
    Divisor by_c, by_ow, by_w, by_vectors, by_strips;  // by_vectors: 8-pixel pieces of a plane; by_strips: 16 rows of one

    __host__ __device__ std::int64_t plane() const { return plane_pixels; }
    __host__ __device__ std::int64_t pixels() const { return n * plane_pixels; }
    __host__ __device__ std::int64_t size() const { return elements; }
    __host__ __device__ int node_of(int edge) const { return node[edge]; }
    __host__ __device__ int source_of(int edge) const { return source[edge]; }
    // Which stream works backward on a node's edges from s0 and s1; its edges from other nodes stay on stream 0.
    __host__ __device__ static int lane_of(int node) { return node == 0 ? 0 : 1 + node % (kLanes - 1); }
    // Scratch of an edge, which the stream's next node uses again.
    __host__ __device__ int slots() const { return 2 * kLanes + nodes - 1; }
    __host__ __device__ int slot_of(int edge) const {
        const int j = source_of(edge);
        return j < 2 ? 2 * lane_of(node_of(edge)) + j : 2 * kLanes + j - 2;
    }
    __host__ __device__ bool strided(int edge) const { return reduction && source_of(edge) < 2; }
    __host__ __device__ int reduced_index(int edge) const { return 2 * node_of(edge) + source_of(edge); }
    __host__ __device__ View<const T> state(int j) const {
        if (j < 2) return {s[j], std::int64_t{c} * h * w, h, w};
        return {y + (j - 2) * c * plane(), nodes * c * plane(), oh, ow};
    }
    __host__ __device__ T* pool_of(int j, int norm) const { return pools + (std::int64_t{j} * 2 + norm - kMax) * size(); }
    __host__ __device__ View<const T> dense(const T* data) const { return {data, c * plane(), oh, ow}; }
    __host__ __device__ T* z_of(int edge, int norm) const {
        if (norm == kSep3First || norm == kSep5First) return z + (std::int64_t{edge} * 2 + norm / 2) * size();
        if (norm < kFr) return z_last + (std::int64_t{edge} * 4 + (norm < kDil3 ? norm / 2 : norm - kDil3 + 2)) * size();
        return z_fr + reduced_index(edge) * size();
    }
    // A pool belongs to its source state, whichever edge reads it.
    __host__ __device__ int stat_row(int edge, int norm) const {
        return norm < kMax ? edge * (kFr + 1) + norm : pool_row(source_of(edge), norm);
    }
    __host__ __device__ int pool_row(int j, int norm) const { return edges * (kFr + 1) + j * 2 + norm - kMax; }
    __host__ __device__ int stat_rows() const { return edges * (kFr + 1) + (nodes + 1) * 2; }
    __device__ const Pair<A>& stat(int row, int channel) const { return stats[std::int64_t{row} * c + channel]; }
    __host__ __device__ const A* dw_of(int edge, int conv) const { return dw + (std::int64_t{edge} * kDwPerChannel + dw_offset(conv)) * c; }
    __host__ __device__ const A* pw_of(int edge, int conv) const {
        return conv == kFr ? fr + std::int64_t{reduced_index(edge)} * c * c : pw + (std::int64_t{edge} * kConvs + conv) * c * c;
    }
    __host__ __device__ A* sums_of(int edge, int norm) const { return sums + (std::int64_t{edge} * kNorms + norm) * 2 * c; }
    // Whether forward keeps a convolution's depthwise results, because computing them again would cost more than memory: the larger
    // second half's and the larger dilated convolution's.
    __host__ __device__ bool keeps(int conv) const { return keeps_results && (conv == kSep5Second || conv == kDil5); }
    // Where they are in backward: kept, or computed again where the gradient of the depthwise outputs will be.
    __host__ __device__ T* results_of(int edge, int conv) const {
        return keeps(conv) ? results + (std::int64_t{edge} * 2 + (conv == kDil5 ? 1 : 0)) * size() : dd_of(edge, conv);
    }
    __host__ __device__ T* dd_of(int edge, int conv) const { return dd + (std::int64_t{slot_of(edge)} * kConvs + conv) * size(); }
    __host__ __device__ T* h1_of(int edge, int conv) const { return h1 + (std::int64_t{slot_of(edge)} * 2 + conv / 2) * size(); }
    __host__ __device__ T* g_of(int edge) const { return g + node_of(edge) * size(); }
    // Shares of the weight gradients, summed at the end: enough to fill the machine with the two edges of the first node.
    __host__ __device__ int pw_groups() const { return c <= 32 ? 64 : c <= 64 ? 32 : c <= 360 ? 32 * 64 * 64 / (c * c) : 1; }
    __host__ __device__ int dw_groups() const {  // float32 takes twice as many of more channels, because a warp has two of them
        const int groups = (sizeof(T) == 4 ? 1024 : 512) / c;
        return c >= 512 ? 1 : groups < 32 ? groups : 32;
    }
    __host__ __device__ int segments() const { return (oh * ow + kSegment - 1) / kSegment; }
    __host__ __device__ T* dx_of(int edge) const {  // edges from s0 and s1 have planes of h x w, the others of oh x ow
        const std::int64_t large = std::int64_t{n} * c * h * w;
        const int i = node_of(edge), j = source_of(edge);
        const int wide = 2 * i + (j < 2 ? j : 2), narrow = edge - wide;
        return dx + wide * large + narrow * size();
    }
};

// What a convolution's launch sums per channel: (sum z, sum z^2), and it stores z; or (sum g, sum g * zhat), and it does not.
enum class ConvSums { kStatistics, kGradient };

// The first thing that every kernel does. A launch may begin once all blocks of the one before it in its stream have ended
// (launch.cuh); what they wrote is there when this returns. Letting it begin earlier costs more than it hides: blocks that
// wait take the room of other streams' blocks.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What one launch works on: blockIdx.y picks a job.
struct Jobs {
    int count = 0;
    unsigned char edge[kMaxEdges * 6];
    unsigned char kind[kMaxEdges * 6];  // a Norm, or whatever the kernel says
    void add(int e, int k) {
        edge[count] = static_cast<unsigned char>(e);
        kind[count++] = static_cast<unsigned char>(k);
    }
};

__device__ __forceinline__ float load(const float* x) { return *x; }
__device__ __forceinline__ double load(const double* x) { return *x; }
__device__ __forceinline__ float load(const __nv_bfloat16* x) { return __bfloat162float(*x); }
__device__ __forceinline__ void store(float* y, float v) { *y = v; }
__device__ __forceinline__ void store(double* y, double v) { *y = v; }
__device__ __forceinline__ void store(__nv_bfloat16* y, float v) { *y = __float2bfloat16(v); }

template <typename A>
__device__ __forceinline__ A warp_sum(A v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// Where a convolution reads: a state through ReLU, or the first half of a separable convolution through batch norm and ReLU.
template <typename T>
struct ConvInput {
    using A = typename Arithmetic<T>::Type;
    View<const T> x;
    const Pair<A>* norm;  // per channel (mean, 1 / std); null: no batch norm
    int stride;
    __device__ ConvInput(const Plan<T>& p, int edge, int conv) {
        if (conv < kConvs && is_second(conv)) {
            x = p.dense(p.z_of(edge, conv - 1));
            norm = &p.stat(p.stat_row(edge, conv - 1), 0);
            stride = 1;
        } else {
            x = p.state(p.source_of(edge));
            norm = nullptr;
            stride = p.strided(edge) ? 2 : 1;
        }
    }
    __device__ A operator()(const T* plane, int c, int i, int j) const {  // ReLU'd value; zero outside
        if (i < 0 || j < 0 || i >= x.h || j >= x.w) return 0;
        A v = load(plane + std::int64_t{i} * x.w + j);
        if (norm) v = (v - norm[c].a) * norm[c].b;
        return v > 0 ? v : A(0);
    }
    __device__ const T* plane(int n, int c) const { return x.data + n * x.image + std::int64_t{c} * x.h * x.w; }
};

// Gradient of a batch norm: dz = a * (u - m1 - zhat * m2), written as ca * u + cb * z + cc.
template <typename T>
struct NormGradient {
    using A = typename Arithmetic<T>::Type;
    A ca, cb, cc;
    // What it comes from; loading it early hides the way to memory.
    struct Source {
        A mean, rstd, sum_u, sum_uz, gate;
        __device__ Source(const Plan<T>& p, int edge, int norm, int op, int c, A u, A uz) : sum_u(u), sum_uz(uz) {
            const Pair<A> stat = p.stat(p.stat_row(edge, norm), c);
            mean = stat.a, rstd = stat.b;
            gate = op < 0 ? A(1) : p.gates[edge * kOps + op];  // op < 0: u is already the gradient of this norm's output
        }
        __device__ Source(const Plan<T>& p, int edge, int norm, int op, int c)
            : Source(p, edge, norm, op, c, p.sums_of(edge, norm)[c], p.sums_of(edge, norm)[p.c + c]) {}
    };
    __device__ NormGradient(const Plan<T>& p, const Source& s) {
        const A count = static_cast<A>(p.pixels()), m1 = s.sum_u / count, m2 = s.sum_uz / count;
        ca = s.gate * s.rstd;
        cb = -ca * m2 * s.rstd;
        cc = -ca * m1 - cb * s.mean;
    }
    __device__ NormGradient(const Plan<T>& p, int edge, int norm, int op, int c) : NormGradient(p, Source(p, edge, norm, op, c)) {}
    __device__ A operator()(A u, A z) const { return ca * u + cb * z + cc; }
};

__host__ __device__ constexpr int op_of(int norm) {  // whose gate scales this norm's output; -1 for the inner norms
    switch (norm) {
        case kSep3Second: return kSepConv3;
        case kSep5Second: return kSepConv5;
        case kDil3: return kDilConv3;
        case kDil5: return kDilConv5;
        case kFr: return kSkip;
        case kMax: return kMaxPool;
        case kAvg: return kAvgPool;
        default: return -1;
    }
}

// The 3 x 3 window of output (i, j) of a pool: the maximum and where it is (first in scan order, as PyTorch has it), the
// average over the pixels inside. Rows and columns outside are clamped to the nearest one: that repeats pixels of the window,
// which changes neither the maximum nor which pixel comes first, and the average gives them no weight.
template <typename T>
struct Pooled {
    using A = typename Arithmetic<T>::Type;
    A max, avg, inv_count;
    int at;  // index of the maximum in the plane
    __device__ __forceinline__ Pooled(const T* plane, int h, int w, int i, int j, int stride) {
        const int top = i * stride - 1, left = j * stride - 1;
        const int columns[3] = {left < 0 ? 0 : left, left + 1, left + 2 < w ? left + 2 : w - 1};
        const A column_weight[3] = {A(left >= 0), A(1), A(left + 2 < w)};
        A sum = 0;
        at = (top < 0 ? 0 : top) * w + columns[0];
        max = load(plane + at);
#pragma unroll
        for (int di = 0; di < 3; ++di) {
            const int y = top + di, row = y < 0 ? 0 : y < h ? y : h - 1;
            A row_sum = 0;
#pragma unroll
            for (int dj = 0; dj < 3; ++dj) {
                const int here = row * w + columns[dj];
                const A v = load(plane + here);
                if (v > max) {
                    max = v;
                    at = here;
                }
                row_sum += column_weight[dj] * v;
            }
            if (y >= 0 && y < h) sum += row_sum;
        }
        const A rows = A(1) + A(top >= 0) + A(top + 2 < h);
        inv_count = A(1) / (rows * (column_weight[0] + A(1) + column_weight[2]));
        avg = sum * inv_count;
    }
};

}  // namespace hwnas::mixed_cell::cuda
