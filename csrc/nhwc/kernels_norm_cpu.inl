// Part of kernels_cpu.inl: statistics, what is done element by element, pools.

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
