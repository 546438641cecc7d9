// Part of kernels_cpu.inl: dense convolutions as products of matrices. The rows of up to kRows output pixels are gathered into
// a panel with a fixed step between its rows, on the way through the source's affine and activation; so any kernel, stride,
// dilation and border is one product, and the addresses in its loop are constants. The weights stream past the panel.

constexpr int kRows = kManyRegisters ? 14 : 6;
constexpr int kDepth = 384;  // of a panel: it stays in the first cache
constexpr int kStep = 400;   // an odd number of cache lines
static_assert(kRows * kStep <= kConvScratch && kDepth + kBlock <= kStep);

struct Product {
    const float* panel;
    const float* weights;       // at the panel's first row of weights
    std::ptrdiff_t next_block;  // from a block of 16 outputs to the next
    int depth;
    bool first, last;  // of the panels that add up to the sum
    Sink sink;         // at the panel's first pixel
    std::ptrdiff_t pixel;
    Clip clip;
};

// P pixels times V vectors of outputs, from output n.
template <int P, int V>
inline void product(const Product& task, int n) {
    const auto weight = [&](int v) { return task.weights + (n + v * kLanes) / kBlock * task.next_block + (n + v * kLanes) % kBlock; };
    const float* w[V];
    Vec acc[P][V];
    float* const y = task.sink.y + n;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        w[v] = weight(v);
        const Vec start = task.first && task.sink.bias ? load(task.sink.bias + n + v * kLanes) : Vec{};
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[p][v] = start;
    }
    if (!task.first) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[p][v] = load(y + p * task.pixel + v * kLanes);
    }
    const float* a = task.panel;
    for (int k = 0; k < task.depth; ++k, ++a) {
        Vec b[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) b[v] = load(w[v] + k * kBlock);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[p][v] += a[p * kStep] * b[v];
    }
    if (task.last) {
        const Vec low = all(task.clip.low), high = all(task.clip.high);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            if (task.sink.scale) {
                const Vec scale = load(task.sink.scale + n + v * kLanes), shift = load(task.sink.shift + n + v * kLanes);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) acc[p][v] = acc[p][v] * scale + shift;
            }
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[p][v] = smaller(high, larger(low, acc[p][v]));
            if (task.sink.residual && task.clip.complete) {
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) acc[p][v] += load(task.sink.residual + n + p * task.pixel + v * kLanes);
            }
        }
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(y + p * task.pixel + v * kLanes, acc[p][v]);
}

template <int P>
void all_outputs(const Product& task, int outputs) {
    int n = 0;
    for (; outputs - n >= 2 * kLanes; n += 2 * kLanes) product<P, 2>(task, n);
    for (; n < outputs; n += kLanes) product<P, 1>(task, n);
}

using AllOutputs = void (*)(const Product&, int);
constexpr AllOutputs kProducts[] = {
    nullptr, all_outputs<1>, all_outputs<2>, all_outputs<3>, all_outputs<4>, all_outputs<5>, all_outputs<6>,
#if HWNAS_VECTOR_BYTES == 64
    all_outputs<7>, all_outputs<8>, all_outputs<9>, all_outputs<10>, all_outputs<11>, all_outputs<12>, all_outputs<13>, all_outputs<14>,
#endif
};
static_assert(sizeof(kProducts) / sizeof(kProducts[0]) == kRows + 1);

// Where an output pixel stands.
struct Place {
    int image, y, x;
    void advance(const Window& w) {
        if (++x == w.out_w) {
            x = 0;
            if (++y == w.out_h) y = 0, ++image;
        }
    }
};

// Channels [c0, c1) of taps [t0, t1) for `rows` pixels from `place` on. Up to a block behind a row's end is overwritten.
template <typename R>
inline void gather(const R& read, const Window& w, Place place, int rows, int t0, int t1, int c0, int c1, float* panel) {
    const int cp = pad(w.c);
    for (int row = 0; row < rows; ++row, place.advance(w)) {
        float* to = panel + row * kStep;
        const float* const image = read.source.x + static_cast<std::ptrdiff_t>(place.image) * w.in_h * w.in_w * cp;
        int ky = t0 / w.kernel_w, kx = t0 % w.kernel_w;
        for (int t = t0; t < t1; ++t, to += c1 - c0) {
            const int y = place.y * w.stride - w.padding + ky * w.dilation, x = place.x * w.stride - w.padding + kx * w.dilation;
            if (y >= 0 && y < w.in_h && x >= 0 && x < w.in_w) {
                const float* const from = image + (static_cast<std::ptrdiff_t>(y) * w.in_w + x) * cp;
                for (int c = c0; c < c1; c += kLanes) store(to + c - c0, read(from + c, place.image, c));
            } else {
                for (int c = c0; c < c1; c += kLanes) store(to + c - c0, Vec{});
            }
            if (++kx == w.kernel_w) kx = 0, ++ky;
        }
    }
}

void conv(const Source& source, const Window& w, const float* weights, const Sink& sink, float* panel) {
    const int taps = w.kernel_h * w.kernel_w, op = pad(w.o);
    const std::int64_t pixels = static_cast<std::int64_t>(w.images) * w.out_h * w.out_w, blocks = (pixels + kRows - 1) / kRows;
    const int some_taps = at_least_one(kDepth / w.c), some_channels = w.c < kDepth ? w.c : kDepth;
    with_reader(source, pad(w.c), [&](const auto& read) {
        Place place{0, 0, 0};
        for (std::int64_t block = 0; block < blocks; ++block) {
            const std::int64_t begin = block * pixels / blocks;
            const int rows = static_cast<int>((block + 1) * pixels / blocks - begin);
            Product task{panel, weights, static_cast<std::ptrdiff_t>(taps) * w.c * kBlock, 0, true, false, sink, op, Clip(sink.activation)};
            task.sink.y += begin * op;
            if (sink.residual) task.sink.residual += begin * op;
            for (int t = 0; t < taps; t += some_taps) {
                const int t1 = t + some_taps < taps ? t + some_taps : taps;
                for (int c = 0; c < w.c; c += some_channels) {
                    const int c1 = c + some_channels < w.c ? c + some_channels : w.c;
                    gather(read, w, place, rows, t, t1, c, c1, panel);
                    task.depth = (t1 - t) * (c1 - c);
                    task.first = t == 0 && c == 0;
                    task.last = t1 == taps && c1 == w.c;
                    kProducts[rows](task, op);
                    task.weights += static_cast<std::ptrdiff_t>(task.depth) * kBlock;
                }
            }
            if (!task.clip.complete) finish(task.sink.y, task.sink.residual, sink.activation, static_cast<std::ptrdiff_t>(rows) * op);
            for (int row = 0; row < rows; ++row) place.advance(w);
        }
    });
}
