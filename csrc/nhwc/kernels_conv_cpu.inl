// Part of kernels_cpu.inl: the depthwise and pointwise convolutions and their weights' gradients.

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
