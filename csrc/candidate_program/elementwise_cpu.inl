// Part of kernels_cpu.inl: pools, sums, and the moments for batch norm.

struct Largest {
    static Vec join(Vec a, Vec b) { return a > b ? a : b; }
};
struct Total {
    static Vec join(Vec a, Vec b) { return a + b; }
};

// 3 x 3 with stride 1 and padding 1: neighbours share two columns of three.
template <typename Op, typename R>
void pool_rows(const R& read, const Window& w, float* y) {
    const int cp = pad(w.c);
    for (int image = 0; image < w.images; ++image)
        for (int oy = 0; oy < w.in_h; ++oy, y += static_cast<std::ptrdiff_t>(w.in_w) * cp) {
            const int y0 = oy > 0 ? oy - 1 : 0, y1 = oy + 2 < w.in_h ? oy + 2 : w.in_h;
            const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(w.in_w) * cp;
            const float* const from = read.source.x + (static_cast<std::ptrdiff_t>(image) * w.in_h + y0) * row;
            const Vec inner = all(1.0f / static_cast<float>(3 * (y1 - y0))), outer = all(1.0f / static_cast<float>((w.in_w > 1 ? 2 : 1) * (y1 - y0)));
            for (int c = 0; c < cp; c += kLanes) {
                const auto column = [&](int x) {
                    Vec found = read(from + x * cp + c, image, c);
                    for (int iy = 1; iy < y1 - y0; ++iy) found = Op::join(found, read(from + iy * row + x * cp + c, image, c));
                    return found;
                };
                Vec left{}, middle = column(0), right{};
                for (int x = 0; x < w.in_w; ++x) {
                    Vec found = x > 0 ? Op::join(left, middle) : middle;
                    if (x + 1 < w.in_w) found = Op::join(found, right = column(x + 1));
                    if constexpr (__is_same(Op, Total)) store(y + x * cp + c, found * (x > 0 && x + 1 < w.in_w ? inner : outer));
                    else store(y + x * cp + c, found);
                    left = middle;
                    middle = right;
                }
            }
        }
}

void pool(const Source& source, const Window& w, bool maximum, float* y) {
    const int cp = pad(w.c);
    const bool in_rows = w.kernel_h == 3 && w.kernel_w == 3 && w.stride == 1 && w.padding == 1;
    with_reader(source, cp, [&](const auto& read) {
        if (in_rows) return maximum ? pool_rows<Largest>(read, w, y) : pool_rows<Total>(read, w, y);
        for (int image = 0; image < w.images; ++image)
            for (int oy = 0; oy < w.out_h; ++oy)
                for (int ox = 0; ox < w.out_w; ++ox, y += cp) {
                    const int top = oy * w.stride - w.padding, left = ox * w.stride - w.padding;
                    const int y0 = top > 0 ? top : 0, y1 = top + w.kernel_h < w.in_h ? top + w.kernel_h : w.in_h;
                    const int x0 = left > 0 ? left : 0, x1 = left + w.kernel_w < w.in_w ? left + w.kernel_w : w.in_w;
                    const Vec share = all(1.0f / static_cast<float>((y1 - y0) * (x1 - x0)));
                    const float* const from = source.x + static_cast<std::ptrdiff_t>(image) * w.in_h * w.in_w * cp;
                    for (int c = 0; c < cp; c += kLanes) {
                        Vec acc = maximum ? all(-__builtin_inff()) : Vec{};
                        for (int iy = y0; iy < y1; ++iy)
                            for (int ix = x0; ix < x1; ++ix) {
                                const Vec x = read(from + (static_cast<std::ptrdiff_t>(iy) * w.in_w + ix) * cp + c, image, c);
                                acc = maximum ? (acc > x ? acc : x) : acc + x;
                            }
                        store(y + c, maximum ? acc : acc * share);
                    }
                }
    });
}

void global_pool(const Source& source, const Window& w, float* y) {
    const int cp = pad(w.c), pixels = w.in_h * w.in_w;
    with_reader(source, cp, [&](const auto& read) {
        for (int image = 0; image < w.images; ++image, y += cp) {
            const float* const from = source.x + static_cast<std::ptrdiff_t>(image) * pixels * cp;
            for (int c = 0; c < cp; c += kLanes) {
                Vec total{};
                for (int p = 0; p < pixels;) {  // runs of 32, so that rounding does not add up
                    const int end = p + 32 < pixels ? p + 32 : pixels;
                    Vec run{};
                    for (; p < end; ++p) run += read(from + static_cast<std::ptrdiff_t>(p) * cp + c, image, c);
                    total += run;
                }
                store(y + c, total * (1.0f / static_cast<float>(pixels)));
            }
        }
    });
}

void sum(const Source* sources, int count, int images, std::int64_t pixels, int c, float* y) {
    const int cp = pad(c);
    const std::int64_t some = at_least_one(2048 / cp);  // what stays in the first cache from term to term
    for (int image = 0; image < images; ++image)
        for (std::int64_t begin = 0; begin < pixels; begin += some) {
            const std::int64_t end = begin + some < pixels ? begin + some : pixels;
            for (int term = 0; term < count; ++term)
                with_reader(sources[term], cp, [&](const auto& read) {
                    for (std::int64_t p = begin; p < end; ++p) {
                        const std::ptrdiff_t at = (image * pixels + p) * cp;
                        for (int v = 0; v < cp; v += kLanes) {
                            const Vec x = read(read.source.x + at + v, image, v);
                            store(y + at + v, term ? load(y + at + v) + x : x);
                        }
                    }
                });
        }
}

void place(const Source& source, int images, std::int64_t pixels, int c, int first, int total, float* y) {
    const int cp = pad(c), tp = pad(total);
    with_reader(source, cp, [&](const auto& read) {
        for (int image = 0; image < images; ++image)
            for (std::int64_t p = image * pixels; p < (image + 1) * pixels; ++p) {
                float* const to = y + p * tp + first;
                for (int v = 0; v < cp; v += kLanes) {
                    const Vec x = read(source.x + p * cp + v, image, v);
                    if (v + kLanes <= tp - first) store(to + v, x);
                    else
                        for (int i = 0; i < tp - first - v; ++i) to[v + i] = x[i];
                }
            }
    });
}

// Distances from the first pixel instead of from zero: a mean far from zero costs no digits.
void moments(const float* y, std::int64_t pixels, int c, double* mean, double* m2) {
    const int cp = pad(c);
    constexpr std::int64_t kRun = 64;
    for (int v = 0; v < cp; ++v) mean[v] = m2[v] = 0.0;
    for (std::int64_t begin = 0; begin < pixels; begin += kRun) {
        const std::int64_t end = begin + kRun < pixels ? begin + kRun : pixels;
        for (int v = 0; v < cp; v += kLanes) {
            const Vec pivot = load(y + v);
            Vec s0{}, s1{}, q0{}, q1{};
            std::int64_t p = begin;
            for (; p + 1 < end; p += 2) {
                const Vec a = load(y + p * cp + v) - pivot, b = load(y + (p + 1) * cp + v) - pivot;
                s0 += a, s1 += b, q0 += a * a, q1 += b * b;
            }
            if (p < end) {
                const Vec a = load(y + p * cp + v) - pivot;
                s0 += a, q0 += a * a;
            }
            s0 += s1, q0 += q1;
            for (int i = 0; i < kLanes; ++i) mean[v + i] += s0[i], m2[v + i] += q0[i];
        }
    }
    const double count = static_cast<double>(pixels);
    for (int v = 0; v < cp; ++v) {
        const double shift = mean[v] / count;
        m2[v] = m2[v] - shift * mean[v];
        mean[v] = y[v] + shift;
    }
}
