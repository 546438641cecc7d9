// Bodies of Kernels<T>, included by kernels_<set>_cpu.cpp, which defines HWNAS_ISA (a namespace) and HWNAS_VECTOR_BYTES and
// is compiled with that set's flags. Nothing here may come from the standard library or be inline outside the namespace:
// the linker would keep one copy of it, perhaps the one with instructions that another processor lacks.
#include "mixed_cell/kernels_cpu.h"

namespace hwnas::mixed_cell::cpu::HWNAS_ISA {
namespace {

template <typename T> struct Vectors;
template <> struct Vectors<float> {
    typedef float Vec __attribute__((vector_size(HWNAS_VECTOR_BYTES)));
    typedef float Unaligned __attribute__((vector_size(HWNAS_VECTOR_BYTES), aligned(sizeof(float)), may_alias));
};
template <> struct Vectors<double> {
    typedef double Vec __attribute__((vector_size(HWNAS_VECTOR_BYTES)));
    typedef double Unaligned __attribute__((vector_size(HWNAS_VECTOR_BYTES), aligned(sizeof(double)), may_alias));
};

template <typename T> using Vec = typename Vectors<T>::Vec;
template <typename T> constexpr int kLanes = HWNAS_VECTOR_BYTES / sizeof(T);

// Accumulators that fit in the registers: 32 of them with AVX-512, else 16.
constexpr bool kManyRegisters = HWNAS_VECTOR_BYTES == 64;
constexpr int kStrip = kManyRegisters ? 16 : 8;

template <typename T> inline Vec<T> load(const T* p) { return *reinterpret_cast<const typename Vectors<T>::Unaligned*>(p); }
template <typename T> inline void store(T* p, Vec<T> v) { *reinterpret_cast<typename Vectors<T>::Unaligned*>(p) = v; }

// Calls f(dst pixel, src pixel, ...) for every pixel of areas of one size.
template <typename F>
inline void each_pixel(Size size, const F& f) {
    for (int y = 0; y < size.rows; ++y)
        for (int x = 0; x < size.width; ++x) f(y, x);
}

template <typename T>
inline T* pixel(Area<T> area, int y, int x) {
    return area.at + y * area.row + x * area.pixel;
}

// Channels in blocks of at most four vectors, so that a block's coefficients stay in registers: f(Count<V>(), first channel).
template <int V> struct Count { static constexpr int value = V; };

template <typename T, typename F>
inline void channel_blocks(int c, const F& f) {
    int v = 0;
    for (; c - v >= 4 * kLanes<T>; v += 4 * kLanes<T>) f(Count<4>(), v);
    for (; c - v >= 2 * kLanes<T>; v += 2 * kLanes<T>) f(Count<2>(), v);
    for (; v < c; v += kLanes<T>) f(Count<1>(), v);
}

// Calls f(Count<S>()) with the step between pixels as a constant where it is a usual one, else S = 0: with a step that is
// known only at run time an address costs an addition, each waiting for the one before, and an FMA a cycle is the most.
template <typename F>
inline void with_step(std::ptrdiff_t step, const F& f) {
    switch (step) {
        case 16: return f(Count<16>());
        case 32: return f(Count<32>());
        case 64: return f(Count<64>());
        case 128: return f(Count<128>());
        default: return f(Count<0>());
    }
}

// ---- depthwise ----

template <typename T, int P, int S, bool kAccumulate>
inline void depthwise_row(T* dst, std::ptrdiff_t dst_pixel, const T* src, std::ptrdiff_t src_pixel, const Taps& taps, const T* w, int width, int c) {
    if constexpr (S != 0) src_pixel = S;
    for (; width >= P; width -= P, dst += P * dst_pixel, src += P * src_pixel) {
        for (int v = 0; v < c; v += kLanes<T>) {
            Vec<T> acc[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                if constexpr (kAccumulate) acc[p] = load(dst + p * dst_pixel + v);
                else acc[p] = Vec<T>{};
            }
            for (int t = 0; t < taps.count; ++t) {
                const Vec<T> weight = load(w + taps.weight[t] + v);
                const T* s = src + taps.offset[t] + v;
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) acc[p] += weight * load(s + p * src_pixel);
            }
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) store(dst + p * dst_pixel + v, acc[p]);
        }
    }
    if constexpr (P > 1) depthwise_row<T, P / 2, S, kAccumulate>(dst, dst_pixel, src, src_pixel, taps, w, width, c);
}

template <typename T>
void depthwise(Area<T> dst, Area<const T> src, const Taps& taps, const T* w, Size size, bool accumulate) {
    with_step(src.pixel, [&](auto step) {
        constexpr int S = decltype(step)::value;
        for (int y = 0; y < size.rows; ++y) {
            T* d = dst.at + y * dst.row;
            const T* s = src.at + y * src.row;
            if (accumulate) depthwise_row<T, kStrip, S, true>(d, dst.pixel, s, src.pixel, taps, w, size.width, size.c);
            else depthwise_row<T, kStrip, S, false>(d, dst.pixel, s, src.pixel, taps, w, size.width, size.c);
        }
    });
}

template <typename T, int N>
inline void depthwise_weights_taps(T* dw, Area<const T> src, Area<const T> du, const Taps& taps, int first, Size size) {
    std::ptrdiff_t offset[N];
    for (int t = 0; t < N; ++t) offset[t] = taps.offset[first + t];
    for (int v = 0; v < size.c; v += kLanes<T>) {
        Vec<T> acc[N] = {};
        for (int y = 0; y < size.rows; ++y) {
            const T* s = src.at + y * src.row + v;
            const T* d = du.at + y * du.row + v;
            for (int x = 0; x < size.width; ++x, s += src.pixel, d += du.pixel) {
                const Vec<T> g = load(d);
#pragma GCC unroll 16
                for (int t = 0; t < N; ++t) acc[t] += g * load(s + offset[t]);
            }
        }
        for (int t = 0; t < N; ++t) {
            T* out = dw + taps.weight[first + t] + v;
            store(out, load(out) + acc[t]);
        }
    }
}

template <typename T>
void depthwise_weights(T* dw, Area<const T> src, Area<const T> du, const Taps& taps, Size size) {
    int t = 0;
    for (; taps.count - t >= 9; t += 9) depthwise_weights_taps<T, 9>(dw, src, du, taps, t, size);
    for (; taps.count - t >= 7; t += 7) depthwise_weights_taps<T, 7>(dw, src, du, taps, t, size);
    for (; t < taps.count; ++t) depthwise_weights_taps<T, 1>(dw, src, du, taps, t, size);
}

// ---- pointwise ----

template <typename T, int P, int V, int S, bool kAccumulate>
inline void pointwise_strips(T* dst, std::ptrdiff_t dst_pixel, const T* src, std::ptrdiff_t src_pixel, const T* w, int width, int c) {
    if constexpr (S != 0) src_pixel = S;
    for (; width >= P; width -= P, dst += P * dst_pixel, src += P * src_pixel) {
        Vec<T> acc[P][V];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                if constexpr (kAccumulate) acc[p][v] = load(dst + p * dst_pixel + v * kLanes<T>);
                else acc[p][v] = Vec<T>{};
            }
        for (int k = 0; k < c; ++k) {
            Vec<T> weight[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) weight[v] = load(w + k * c + v * kLanes<T>);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) acc[p][v] += src[p * src_pixel + k] * weight[v];
        }
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) store(dst + p * dst_pixel + v * kLanes<T>, acc[p][v]);
    }
    if constexpr (P > 1) pointwise_strips<T, P / 2, V, S, kAccumulate>(dst, dst_pixel, src, src_pixel, w, width, c);
}

template <typename T, int S, bool kAccumulate>
inline void pointwise_row(T* dst, std::ptrdiff_t dst_pixel, const T* src, std::ptrdiff_t src_pixel, const T* w, int width, int c) {
    int n = 0;
    for (; c - n >= 2 * kLanes<T>; n += 2 * kLanes<T>)
        pointwise_strips<T, kStrip / 2, 2, S, kAccumulate>(dst + n, dst_pixel, src, src_pixel, w + n, width, c);
    for (; n < c; n += kLanes<T>)
        pointwise_strips<T, kStrip, 1, S, kAccumulate>(dst + n, dst_pixel, src, src_pixel, w + n, width, c);
}

template <typename T>
void pointwise(Area<T> dst, Area<const T> src, const T* w, Size size, bool accumulate) {
    if (dst.row == size.width * dst.pixel && src.row == size.width * src.pixel) size = {1, size.rows * size.width, size.c};
    with_step(src.pixel, [&](auto step) {
        constexpr int S = decltype(step)::value;
        for (int y = 0; y < size.rows; ++y) {
            T* d = dst.at + y * dst.row;
            const T* s = src.at + y * src.row;
            if (accumulate) pointwise_row<T, S, true>(d, dst.pixel, s, src.pixel, w, size.width, size.c);
            else pointwise_row<T, S, false>(d, dst.pixel, s, src.pixel, w, size.width, size.c);
        }
    });
}

template <typename T, int M, int V>
inline void pointwise_weights_block(T* dw, Area<const T> a, Area<const T> b, Size size) {
    Vec<T> acc[M][V] = {};
    for (int y = 0; y < size.rows; ++y) {
        const T* pa = a.at + y * a.row;
        const T* pb = b.at + y * b.row;
        for (int x = 0; x < size.width; ++x, pa += a.pixel, pb += b.pixel) {
            Vec<T> vb[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) vb[v] = load(pb + v * kLanes<T>);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) acc[m][v] += pa[m] * vb[v];
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            T* out = dw + m * size.c + v * kLanes<T>;
            store(out, load(out) + acc[m][v]);
        }
}

template <typename T>
void pointwise_weights(T* dw, Area<const T> a, Area<const T> b, Size size) {
    const int c = size.c;
    int n = 0;
    for (; c - n >= 2 * kLanes<T>; n += 2 * kLanes<T>)
        for (int m = 0; m < c; m += kStrip / 2)
            pointwise_weights_block<T, kStrip / 2, 2>(dw + m * c + n, {a.at + m, a.row, a.pixel}, {b.at + n, b.row, b.pixel}, size);
    for (; n < c; n += kLanes<T>)
        for (int m = 0; m < c; m += kStrip)
            pointwise_weights_block<T, kStrip, 1>(dw + m * c + n, {a.at + m, a.row, a.pixel}, {b.at + n, b.row, b.pixel}, size);
}

// ---- statistics ----

// Sums f(y, x, v), a vector of channels, over the pixels: four partial sums a row hide the latency of an addition, and rows
// are summed in double, so the error does not grow with the image.
template <typename T, typename F>
inline void sum_pixels(double* sum, Size size, const F& f) {
    for (int v = 0; v < size.c; v += kLanes<T>)
        for (int y = 0; y < size.rows; ++y) {
            Vec<T> acc[4] = {};
            int x = 0;
            for (; x + 4 <= size.width; x += 4)
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) acc[i] += f(y, x + i, v);
            for (; x < size.width; ++x) acc[0] += f(y, x, v);
            const Vec<T> row = (acc[0] + acc[1]) + (acc[2] + acc[3]);
            for (int i = 0; i < kLanes<T>; ++i) sum[v + i] += row[i];
        }
}

template <typename T>
void moments(double* mean, double* m2, Area<const T> x, Size size) {
    T centre[kLanes<T>];
    const int c = size.c;
    size.c = kLanes<T>;
    for (int v = 0; v < c; v += kLanes<T>) {
        const Area<const T> part{x.at + v, x.row, x.pixel};
        for (int i = 0; i < kLanes<T>; ++i) mean[v + i] = m2[v + i] = 0;
        sum_pixels<T>(mean + v, size, [&](int y, int px, int) { return load(pixel(part, y, px)); });
        for (int i = 0; i < kLanes<T>; ++i) centre[i] = static_cast<T>(mean[v + i] / (static_cast<double>(size.rows) * size.width));
        const Vec<T> m = load(centre);
        sum_pixels<T>(m2 + v, size, [&](int y, int px, int) {
            const Vec<T> d = load(pixel(part, y, px)) - m;
            return d * d;
        });
        for (int i = 0; i < kLanes<T>; ++i) mean[v + i] = centre[i];
    }
}

template <typename T>
void dot(double* dot, Area<const T> g, Area<const T> z, const T* mean, const T* rstd, Size size) {
    sum_pixels<T>(dot, size, [&](int y, int x, int v) {
        return load(pixel(g, y, x) + v) * ((load(pixel(z, y, x) + v) - load(mean + v)) * load(rstd + v));
    });
}

template <typename T>
void sum(double* sum, Area<const T> g, Size size) {
    sum_pixels<T>(sum, size, [&](int y, int x, int v) { return load(pixel(g, y, x) + v); });
}

// ---- elementwise ----

template <typename T>
inline Vec<T> positive(Vec<T> x) {
    return x < Vec<T>{} ? Vec<T>{} : x;  // keeps NaN, as PyTorch does
}

template <typename T>
void relu(Area<T> dst, Area<const T> src, Size size) {
    each_pixel(size, [&](int y, int x) {
        for (int v = 0; v < size.c; v += kLanes<T>) store(pixel(dst, y, x) + v, positive<T>(load(pixel(src, y, x) + v)));
    });
}

template <typename T>
void normalise_relu(Area<T> dst, Area<const T> z, const T* mean, const T* rstd, Size size) {
    channel_blocks<T>(size.c, [&](auto vectors, int first) {
        constexpr int V = decltype(vectors)::value;
        Vec<T> m[V], r[V];
        for (int i = 0; i < V; ++i) m[i] = load(mean + first + i * kLanes<T>), r[i] = load(rstd + first + i * kLanes<T>);
        each_pixel(size, [&](int y, int x) {
            const T* s = pixel(z, y, x) + first;
            T* d = pixel(dst, y, x) + first;
            for (int i = 0; i < V; ++i) store(d + i * kLanes<T>, positive<T>((load(s + i * kLanes<T>) - m[i]) * r[i]));
        });
    });
}

template <typename T, int N>
inline void blend_some(Area<T> dst, const Term<T>* terms, Size size, bool accumulate) {
    for (int v = 0; v < size.c; v += kLanes<T>) {
        Vec<T> scale[N], mean[N];
        for (int k = 0; k < N; ++k) scale[k] = load(terms[k].scale + v), mean[k] = load(terms[k].mean + v);
        for (int y = 0; y < size.rows; ++y) {
            T* d = dst.at + y * dst.row + v;
            const T* s[N];
            for (int k = 0; k < N; ++k) s[k] = terms[k].area.at + y * terms[k].area.row + v;
            for (int x = 0; x < size.width; ++x, d += dst.pixel) {
                Vec<T> sum = accumulate ? load(d) : Vec<T>{};
                for (int k = 0; k < N; ++k) {
                    sum += scale[k] * (load(s[k]) - mean[k]);
                    s[k] += terms[k].area.pixel;
                }
                store(d, sum);
            }
        }
    }
}

template <typename T>
void blend(Area<T> dst, const Term<T>* terms, int count, Size size, bool accumulate) {
    for (; count >= 4; count -= 4, terms += 4, accumulate = true) blend_some<T, 4>(dst, terms, size, accumulate);
    for (; count >= 2; count -= 2, terms += 2, accumulate = true) blend_some<T, 2>(dst, terms, size, accumulate);
    if (count == 1) blend_some<T, 1>(dst, terms, size, accumulate);
}

template <typename T>
void normalise_backward(Area<T> dz, Area<const T> g, Area<const T> z, const T* a, const T* b, const T* mean, const T* c0, Size size) {
    channel_blocks<T>(size.c, [&](auto vectors, int first) {
        constexpr int V = decltype(vectors)::value;
        Vec<T> va[V], vb[V], vm[V], vc[V];
        for (int i = 0; i < V; ++i) {
            const int v = first + i * kLanes<T>;
            va[i] = load(a + v), vb[i] = load(b + v), vm[i] = load(mean + v), vc[i] = load(c0 + v);
        }
        each_pixel(size, [&](int y, int x) {
            const T* pg = pixel(g, y, x) + first;
            const T* pz = pixel(z, y, x) + first;
            T* d = pixel(dz, y, x) + first;
            for (int i = 0; i < V; ++i) {
                const int v = i * kLanes<T>;
                store(d + v, va[i] * load(pg + v) + (vb[i] * (load(pz + v) - vm[i]) + vc[i]));
            }
        });
    });
}

template <typename T>
void relu_backward(Area<T> dst, Area<const T> dx, Area<const T> x, Size size, bool accumulate) {
    each_pixel(size, [&](int py, int px) {
        T* d = pixel(dst, py, px);
        for (int v = 0; v < size.c; v += kLanes<T>) {
            const Vec<T> before = accumulate ? load(d + v) : Vec<T>{};
            const Vec<T> masked = load(pixel(x, py, px) + v) <= Vec<T>{} ? Vec<T>{} : load(pixel(dx, py, px) + v);
            store(d + v, before + masked);
        }
    });
}

// ---- pools ----

struct Window {
    int y0, y1, x0, x1;
};

inline Window window(const Pool& pool, int y, int x) {
    const int top = y * pool.stride - 1, left = x * pool.stride - 1;
    return {top < 0 ? 0 : top, top + 3 > pool.h ? pool.h : top + 3, left < 0 ? 0 : left, left + 3 > pool.w ? pool.w : left + 3};
}

// Calls f(full, window, y, x): a window that the border does not cut is a constant 3x3, and its loops unroll.
template <typename F>
inline void each_window(const Pool& pool, const F& f) {
    each_pixel({pool.out_h, pool.out_w, 0}, [&](int y, int x) {
        const Window win = window(pool, y, x);
        if (win.y1 - win.y0 == 3 && win.x1 - win.x0 == 3) f(Count<3>(), win, y, x);
        else f(Count<0>(), win, y, x);
    });
}

template <typename T>
void pool(Area<T> max, Area<T> average, Area<const T> x, Pool pool, int c) {
    each_window(pool, [&](auto full, Window win, int oy, int ox) {
        constexpr int N = decltype(full)::value;
        const int rows = N ? N : win.y1 - win.y0, width = N ? N : win.x1 - win.x0;
        const Vec<T> inverse = Vec<T>{} + T(1) / static_cast<T>(rows * width);
        for (int v = 0; v < c; v += kLanes<T>) {
            const T* corner = pixel(x, win.y0, win.x0) + v;
            Vec<T> best = load(corner), total{};
#pragma GCC unroll 3
            for (int iy = 0; iy < rows; ++iy)
#pragma GCC unroll 3
                for (int ix = 0; ix < width; ++ix) {
                    const Vec<T> value = load(corner + iy * x.row + ix * x.pixel);
                    best = value > best ? value : best;
                    total += value;
                }
            best = total == total ? best : total;  // a NaN in the window is its maximum, as in PyTorch
            store(pixel(max, oy, ox) + v, best);
            store(pixel(average, oy, ox) + v, total * inverse);
        }
    });
}

template <typename T>
void pool_backward(Area<T> dx, Area<const T> x, Area<const T> dmax, Area<const T> daverage, Pool pool, int c) {
    each_window(pool, [&](auto full, Window win, int oy, int ox) {
        constexpr int N = decltype(full)::value;
        const int rows = N ? N : win.y1 - win.y0, width = N ? N : win.x1 - win.x0;
        const Vec<T> inverse = Vec<T>{} + T(1) / static_cast<T>(rows * width);
        for (int v = 0; v < c; v += kLanes<T>) {
            const T* corner = pixel(x, win.y0, win.x0) + v;
            Vec<T> best = load(corner);
            auto where = best < best;  // an integer vector, all zero
#pragma GCC unroll 3
            for (int iy = 0; iy < rows; ++iy)
#pragma GCC unroll 3
                for (int ix = 0; ix < width; ++ix) {
                    const Vec<T> value = load(corner + iy * x.row + ix * x.pixel);
                    const auto better = value > best;
                    best = better ? value : best;
                    where = better ? (where ^ where) + (iy * 3 + ix) : where;
                }
            const Vec<T> to_best = load(pixel(dmax, oy, ox) + v), to_all = load(pixel(daverage, oy, ox) + v) * inverse;
            T* d = pixel(dx, win.y0, win.x0) + v;
#pragma GCC unroll 3
            for (int iy = 0; iy < rows; ++iy)
#pragma GCC unroll 3
                for (int ix = 0; ix < width; ++ix) {
                    T* to = d + iy * dx.row + ix * dx.pixel;
                    store(to, load(to) + (to_all + (where == iy * 3 + ix ? to_best : Vec<T>{})));
                }
        }
    });
}

template <typename T>
constexpr Kernels<T> kTable = {depthwise<T>, depthwise_weights<T>, pointwise<T>, pointwise_weights<T>, moments<T>, relu<T>,
                               normalise_relu<T>, blend<T>, dot<T>, sum<T>, normalise_backward<T>, relu_backward<T>, pool<T>,
                               pool_backward<T>};

}  // namespace

template <> const Kernels<float>& kernels<float>() { return kTable<float>; }
template <> const Kernels<double>& kernels<double>() { return kTable<double>; }

}  // namespace hwnas::mixed_cell::cpu::HWNAS_ISA
