// What forward and backward of the CPU mixed cell share: the cell's edges, the geometry of its buffers, the lists of taps, and
// where each thing lies in `saved`.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/arena.h"
#include "common/team.h"
#include "mixed_cell/mixed_cell.h"
#include "nhwc/kernels_cpu.h"
#include "nhwc/norm_cpu.h"

namespace hwnas::mixed_cell::cpu {

using nhwc::Area;
using nhwc::kChannelBlock;
using nhwc::Kernels;
using nhwc::kernels;
using nhwc::Norm;
using nhwc::NormGradient;
using nhwc::Pool;
using nhwc::Size;
using nhwc::Taps;
using nhwc::Term;

constexpr int kDilation[kConvs] = {1, 1, 1, 1, 2, 2};
constexpr int kPad[kConvs] = {1, 1, 2, 2, 2, 4};
constexpr int kFirstTap[kConvs] = {0, 9, 18, 43, 68, 77};  // rows of an edge's transposed depthwise weights
constexpr Conv kFromState[] = {kSep3First, kSep5First, kDil3, kDil5};
constexpr Conv kSecond[] = {kSep3Second, kSep5Second};
constexpr Conv kFinal[] = {kSep3Second, kSep5Second, kDil3, kDil5};  // whose batch norm enters the node
constexpr Conv kSecondOf[kConvs] = {kSep3Second, kConvs, kSep5Second, kConvs, kConvs, kConvs};
constexpr Op kOpOf[kConvs] = {kNone, kSepConv3, kNone, kSepConv5, kDilConv3, kDilConv5};
constexpr int kHalo = 4, kSecondHalo = 2;  // the widest padding of the convs that read a state, and of the second ones
constexpr std::ptrdiff_t kChunkBytes = 32 << 10;  // a chunk of rows between depthwise and pointwise stays in L1 or close
constexpr std::int64_t kGroupBytes = 8 << 20;    // what edges taken together keep between their phases stays in L3

struct Grid {
    int h, w;
    std::int64_t pixels() const { return std::int64_t{h} * w; }
};

struct Edge {
    int index, from, node, stride, reduced;  // reduced: its index among the edges of stride 2
    int to() const { return node + 2; }
};

template <typename T>
struct Plan {
    explicit Plan(const Shape& s)
        : shape(s), n(s.n), c(static_cast<int>(s.c)), cp((c + kChannelBlock - 1) / kChannelBlock * kChannelBlock), nodes(s.nodes),
          in{static_cast<int>(s.h), static_cast<int>(s.w)}, out{static_cast<int>(s.out_h()), static_cast<int>(s.out_w())} {
        int index = 0, reduced = 0;
        for (int node = 0; node < nodes; ++node)
            for (int from = 0; from < 2 + node; ++from) {
                const bool strided = s.reduction && from < 2;
                edges.push_back({index++, from, node, strided ? 2 : 1, strided ? reduced++ : -1});
            }
        chunk_rows = static_cast<int>(std::clamp<std::ptrdiff_t>(kChunkBytes / (out.w * cp * sizeof(T)), 1, out.h));
        for (int conv = 0; conv < kConvs; ++conv) {
            const bool second = conv == kSep3Second || conv == kSep5Second;
            for (int stride = 1; stride <= 2; ++stride) {
                const Grid source = second || stride == 1 ? out : in;
                const int halo = second ? kSecondHalo : kHalo;
                forward_taps[conv][stride - 1] = taps(conv, halo, source);
                for (int parity = 0; parity < stride * stride; ++parity)
                    backward_taps[conv][stride - 1][parity] = gradient_taps(conv, stride, parity / stride, parity % stride);
            }
        }
    }

    std::vector<Edge> edges_from(int state) const { return select([=](const Edge& e) { return e.from == state; }); }
    std::vector<Edge> edges_into(int node) const { return select([=](const Edge& e) { return e.node == node; }); }
    // Edges to take through their phases together: few enough for the cache, enough to keep all threads at work.
    std::vector<std::vector<Edge>> groups(const std::vector<Edge>& all, const Team& team) const {
        const std::int64_t bytes = kConvs * n * elements(out) * static_cast<std::int64_t>(sizeof(T));
        const std::int64_t size = std::max({kGroupBytes / bytes, (2 * team.size() + n - 1) / n, std::int64_t{1}});
        std::vector<std::vector<Edge>> found;
        for (std::size_t k = 0; k < all.size(); ++k) {
            if (k % size == 0) found.emplace_back();
            found.back().push_back(all[k]);
        }
        return found;
    }
    int sources() const { return nodes + 1; }  // states that edges leave: all but the last
    Grid grid(int state) const { return state < 2 ? in : out; }
    int stride(int state) const { return shape.reduction && state < 2 ? 2 : 1; }
    std::int64_t elements(Grid grid) const { return grid.pixels() * cp; }  // of one image
    Size size(Grid grid) const { return {grid.h, grid.w, cp}; }
    std::int64_t chunk() const { return std::int64_t{chunk_rows} * out.w * cp; }
    bool padded() const { return cp != c; }
    Pool pool(int state) const { return {grid(state).h, grid(state).w, out.h, out.w, stride(state)}; }

    // An image without halo, from row `row`.
    template <typename U>
    Area<U> dense(U* image, Grid grid, int row = 0) const {
        const std::ptrdiff_t width = std::ptrdiff_t{grid.w} * cp;
        return {image + row * width, width, cp};
    }
    std::int64_t haloed(Grid grid, int halo) const { return std::int64_t{grid.h + 2 * halo} * (grid.w + 2 * halo) * cp; }
    // The buffer with a halo: its corner, from which the lists of taps count, or its interior.
    template <typename U>
    Area<U> corner(U* buffer, Grid grid, int halo, int row = 0, int stride = 1) const {
        const std::ptrdiff_t width = std::ptrdiff_t{grid.w + 2 * halo} * cp;
        return {buffer + row * stride * width, stride * width, std::ptrdiff_t{stride} * cp};
    }
    template <typename U>
    Area<U> interior(U* buffer, Grid grid, int halo, int row = 0) const {
        Area<U> area = corner(buffer, grid, halo, row + halo);
        area.at += halo * cp;
        return area;
    }

    Shape shape;
    std::int64_t n;
    int c, cp, nodes;
    Grid in, out;
    int chunk_rows;
    std::vector<Edge> edges;
    Taps forward_taps[kConvs][2];      // [stride - 1], from the corner of the haloed source
    Taps backward_taps[kConvs][2][4];  // [stride - 1][parity of the source pixel], from the corner of the haloed gradient

private:
    template <typename F>
    std::vector<Edge> select(const F& wanted) const {
        std::vector<Edge> found;
        std::copy_if(edges.begin(), edges.end(), std::back_inserter(found), wanted);
        return found;
    }

    Taps taps(int conv, int halo, Grid source) const {
        Taps list;
        for (int ky = 0; ky < kKernel[conv]; ++ky)
            for (int kx = 0; kx < kKernel[conv]; ++kx) {
                const int dy = ky * kDilation[conv] - kPad[conv] + halo, dx = kx * kDilation[conv] - kPad[conv] + halo;
                list.offset[list.count] = (std::ptrdiff_t{dy} * (source.w + 2 * halo) + dx) * cp;
                list.weight[list.count++] = (ky * kKernel[conv] + kx) * cp;
            }
        return list;
    }

    // Source pixel stride * q + parity gets du[q + shift] * w[k] wherever stride * shift = parity + pad - dilation * k: with
    // stride 2 each of the four parities has its own share of the taps and a dense convolution of its own.
    Taps gradient_taps(int conv, int stride, int parity_y, int parity_x) const {
        Taps list;
        for (int ky = 0; ky < kKernel[conv]; ++ky)
            for (int kx = 0; kx < kKernel[conv]; ++kx) {
                const int y = parity_y + kPad[conv] - kDilation[conv] * ky, x = parity_x + kPad[conv] - kDilation[conv] * kx;
                if (y % stride || x % stride) continue;
                list.offset[list.count] = (std::ptrdiff_t{y / stride + kHalo} * (out.w + 2 * kHalo) + x / stride + kHalo) * cp;
                list.weight[list.count++] = (ky * kKernel[conv] + kx) * cp;
            }
        return list;
    }
};

template <typename Local, typename T>
std::vector<Local> make_locals(const Plan<T>& plan, const Team& team) {
    std::vector<Local> locals;
    for (int thread = 0; thread < team.size(); ++thread) locals.emplace_back(plan);
    return locals;
}

// What backward wants back: every convolution's result before its batch norm, and the statistics.
template <typename T>
struct Saved {
    Saved(const Plan<T>& plan, Arena& arena)
        : image(plan.elements(plan.out)), cp(plan.cp), n(plan.n), z_(arena.take<T>(plan.edges.size() * kConvs * n * image)),
          fr_(arena.take<T>(plan.shape.reduced_edges() * n * image)), conv_(arena.take<T>(plan.edges.size() * kConvs * 2 * cp)),
          fr_norm_(arena.take<T>(plan.shape.reduced_edges() * 2 * cp)), pool_(arena.take<T>(plan.sources() * 4 * cp)) {}

    T* z(const Edge& e, int conv, std::int64_t i) const { return z_ + ((e.index * kConvs + conv) * n + i) * image; }
    T* fr(const Edge& e, std::int64_t i) const { return fr_ + (e.reduced * n + i) * image; }
    Norm<T> norm(const Edge& e, int conv) const { return at(conv_, e.index * kConvs + conv); }
    Norm<T> fr_norm(const Edge& e) const { return at(fr_norm_, e.reduced); }
    Norm<T> pool_norm(int state, bool average) const { return at(pool_, state * 2 + average); }

private:
    Norm<T> at(T* base, std::int64_t i) const { return {base + i * 2 * cp, base + (i * 2 + 1) * cp}; }
    std::int64_t image, cp, n;
    T *z_, *fr_, *conv_, *fr_norm_, *pool_;
};

// The states where the kernels can read whole vectors of channels: in place, or copied with zero channels added.
template <typename T>
struct States {
    T* at[2];                // s0, s1
    T* node;                 // [n, out, nodes * c] in place, or [nodes, n, out, cp]
    std::int64_t node_step;  // between the same pixel of two nodes
    int node_pixel;
    const Plan<T>* plan;

    Area<T> image(int state, std::int64_t i, int row = 0) const {
        if (state < 2) return plan->dense(at[state] + i * plan->elements(plan->in), plan->in, row);
        const std::ptrdiff_t width = std::ptrdiff_t{plan->out.w} * node_pixel;
        return {node + (state - 2) * node_step + (i * plan->out.h + row) * width, width, node_pixel};
    }
};

// The caller's states as the kernels want them; `spare` is scratch, used only when channels are padded. Copies s0 and s1, and
// the nodes when `with_nodes`.
template <typename T>
States<T> bind_states(const Plan<T>& plan, const Inputs& in, void* y, T* spare, bool with_nodes) {
    States<T> states;
    states.plan = &plan;
    T* const external[2] = {static_cast<T*>(const_cast<void*>(in.s0)), static_cast<T*>(const_cast<void*>(in.s1))};
    const int all = plan.nodes * plan.c;
    if (!plan.padded()) {
        states.at[0] = external[0];
        states.at[1] = external[1];
        states.node = static_cast<T*>(y);
        states.node_step = plan.c;
        states.node_pixel = all;
        return states;
    }
    for (int s = 0; s < 2; ++s) {
        states.at[s] = spare + s * plan.n * plan.elements(plan.in);
        nhwc::copy_channels(states.at[s], plan.cp, external[s], plan.c, plan.c, plan.cp - plan.c, plan.n * plan.in.pixels());
    }
    states.node = spare + 2 * plan.n * plan.elements(plan.in);
    states.node_step = plan.n * plan.elements(plan.out);
    states.node_pixel = plan.cp;
    if (with_nodes)
        for (int node = 0; node < plan.nodes; ++node)
            nhwc::copy_channels(states.node + node * states.node_step, plan.cp, static_cast<const T*>(y) + node * plan.c, all, plan.c,
                          plan.cp - plan.c, plan.n * plan.out.pixels());
    return states;
}

template <typename T>
std::int64_t spare_elements(const Plan<T>& plan) {
    return plan.padded() ? plan.n * (2 * plan.elements(plan.in) + plan.nodes * plan.elements(plan.out)) : 0;
}

// Depthwise weights as [tap, cp], pointwise weights as [in, out] or [out, in] with zeros for the channels added.
template <typename T>
void pack_depthwise(const Plan<T>& plan, T* dst, const T* src) {
    for (int conv = 0; conv < kConvs; ++conv) {
        const int taps = kKernel[conv] * kKernel[conv];
        T* d = dst + kFirstTap[conv] * plan.cp;
        const T* s = src + kFirstTap[conv] * plan.c;
        std::fill_n(d, taps * plan.cp, T(0));
        for (int ch = 0; ch < plan.c; ++ch)
            for (int t = 0; t < taps; ++t) d[t * plan.cp + ch] = s[ch * taps + t];
    }
}

template <typename T>
void pack_pointwise(const Plan<T>& plan, T* dst, const T* src, bool transpose, int first_row, int last_row) {
    std::fill_n(dst, plan.cp * plan.cp, T(0));
    for (int o = first_row; o < last_row; ++o)
        for (int i = 0; i < plan.c; ++i) dst[transpose ? i * plan.cp + o : o * plan.cp + i] = src[o * plan.c + i];
}

// Depthwise [kDwPerChannel, cp], then the six pointwise matrices, then the two halves of the factorized reduce.
template <typename T>
struct Weights {
    Weights(const Plan<T>& plan, Arena& arena)
        : cp(plan.cp), dw_(arena.take<T>(plan.edges.size() * kDwPerChannel * cp)), pw_(arena.take<T>(plan.edges.size() * kConvs * cp * cp)),
          fr_(arena.take<T>(plan.shape.reduced_edges() * 2 * cp * cp)) {}

    T* dw(const Edge& e, int conv) const { return dw_ + (e.index * kDwPerChannel + kFirstTap[conv]) * cp; }
    T* pw(const Edge& e, int conv) const { return pw_ + (e.index * kConvs + conv) * cp * cp; }
    T* fr(const Edge& e, int half) const { return fr_ + (e.reduced * 2 + half) * cp * cp; }

    void pack(const Plan<T>& plan, const Inputs& in, const Edge& e, bool transpose) const {
        const std::int64_t c = plan.c;
        pack_depthwise(plan, dw(e, 0), static_cast<const T*>(in.dw) + e.index * kDwPerChannel * c);
        for (int conv = 0; conv < kConvs; ++conv)
            pack_pointwise(plan, pw(e, conv), static_cast<const T*>(in.pw) + (e.index * kConvs + conv) * c * c, transpose, 0, plan.c);
        for (int half = 0; e.stride == 2 && half < 2; ++half)
            pack_pointwise(plan, fr(e, half), static_cast<const T*>(in.fr) + e.reduced * c * c, transpose, half * plan.c / 2,
                           (half + 1) * plan.c / 2);
    }

private:
    std::int64_t cp;
    T *dw_, *pw_, *fr_;
};

}  // namespace hwnas::mixed_cell::cpu
