// Part of kernels_cpu.inl: dense convolutions as products of matrices. The inputs of up to kRows output pixels are gathered into
// a panel with a fixed step between pixels, on the way through the source's affine and activation; so the addresses in the
// product's loop are constants, whatever the kernel, stride, dilation and border. The weights stream past the panel.

constexpr int kRows = kManyRegisters ? 14 : 6;
constexpr int kDepth = 384;   // of a panel, which stays in the first cache
constexpr int kStep = 400;    // an odd number of cache lines
constexpr int kColumns = 32;  // of a panel
constexpr int kMostRuns = 49;
static_assert(kColumns * kStep <= kConvScratch && kDepth + kBlock <= kStep);

struct Product {
    const float* panel;
    const float* weights;       // at the first run's first row
    std::ptrdiff_t next_block;  // from a block of 16 outputs to the next
    // The depth comes in runs: of `depth` values each, run i at panel + offsets[i] and at weights + i * next_run.
    int runs, depth;
    const int* offsets;
    std::ptrdiff_t next_run;
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
    for (int run = 0; run < task.runs; ++run) {
        const float* const a = task.panel + task.offsets[run];
        for (int k = 0; k < task.depth; ++k) {
            Vec b[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) b[v] = load(w[v] + k * kBlock);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) acc[p][v] += a[p * kStep + k] * b[v];
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) w[v] += task.next_run;
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

// The products of a panel that holds `rows` pixels of all depth, and what follows them.
inline void multiply(Product& task, int rows, int outputs) {
    kProducts[rows](task, outputs);
    if (task.last && !task.clip.complete)
        finish(task.sink.y, task.sink.residual, task.sink.activation, static_cast<std::ptrdiff_t>(rows) * task.pixel);
}

inline Sink sink_at(Sink sink, std::ptrdiff_t at) {
    sink.y += at;
    if (sink.residual) sink.residual += at;
    return sink;
}

constexpr int kNoOffset[] = {0};

// One pixel after another, each at its own place.
template <typename R>
void conv_pointwise(const R& read, const Window& w, const float* weights, const Sink& sink, float* panel) {
    const int cp = pad(w.c), op = pad(w.o), image_pixels = w.out_h * w.out_w;
    const std::int64_t pixels = static_cast<std::int64_t>(w.images) * image_pixels, blocks = (pixels + kRows - 1) / kRows;
    const std::ptrdiff_t next_block = static_cast<std::ptrdiff_t>(w.c) * kBlock;
    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t begin = block * pixels / blocks;
        const int rows = static_cast<int>((block + 1) * pixels / blocks - begin);
        Product task{panel, weights, next_block, 1, 0, kNoOffset, 0, true, false, sink_at(sink, begin * op), op, Clip(sink.activation)};
        for (int c0 = 0; c0 < w.c; c0 += kDepth) {
            const int c1 = c0 + kDepth < w.c ? c0 + kDepth : w.c;
            for (int row = 0; row < rows; ++row) {
                const float* const from = read.source.x + (begin + row) * cp;
                const int image = R::kReadsGate ? static_cast<int>((begin + row) / image_pixels) : 0;
                for (int c = c0; c < c1; c += kLanes) store(panel + row * kStep + c - c0, read(from + c, image, c));
            }
            task.depth = c1 - c0;
            task.first = c0 == 0;
            task.last = c1 == w.c;
            multiply(task, rows, op);
            task.weights += static_cast<std::ptrdiff_t>(task.depth) * kBlock;
        }
    }
}

// Stride 1: neighbours in a row share what they read, so a panel has a column of kernel_h pixels for each place in a row, and
// tap (ky, kx) is a run that starts kx columns further.
template <typename R>
void conv_rows(const R& read, const Window& w, const float* weights, const Sink& sink, float* panel) {
    const int cp = pad(w.c), op = pad(w.o), taps = w.kernel_h * w.kernel_w, blocks = (w.out_w + kRows - 1) / kRows;
    const int some = kDepth / w.kernel_h / kBlock * kBlock;  // channels in a panel
    const std::ptrdiff_t tap = static_cast<std::ptrdiff_t>(w.c) * kBlock;
    int offsets[kMostRuns], offsets_depth = 0;
    for (int image = 0; image < w.images; ++image)
        for (int y = 0; y < w.out_h; ++y)
            for (int block = 0; block < blocks; ++block) {
                const int x0 = block * w.out_w / blocks, rows = (block + 1) * w.out_w / blocks - x0;
                const int columns = rows + (w.kernel_w - 1) * w.dilation, left = x0 - w.padding;
                const int begin = left < 0 ? (-left < columns ? -left : columns) : 0;
                const int end = left + columns > w.in_w ? (w.in_w - left > begin ? w.in_w - left : begin) : columns;
                const std::ptrdiff_t pixel = (static_cast<std::ptrdiff_t>(image) * w.out_h + y) * w.out_w + x0;
                Product task{panel, weights, taps * tap, taps, 0, offsets, tap, true, false,
                             sink_at(sink, pixel * op), op, Clip(sink.activation)};
                for (int c0 = 0; c0 < w.c; c0 += some) {
                    const int c1 = c0 + some < w.c ? c0 + some : w.c, depth = c1 - c0;
                    for (int ky = 0; ky < w.kernel_h; ++ky) {
                        const int iy = y - w.padding + ky * w.dilation;
                        const bool inside = iy >= 0 && iy < w.in_h;
                        float* const to = panel + ky * depth;
                        const float* const from = read.source.x + ((static_cast<std::ptrdiff_t>(image) * w.in_h + iy) * w.in_w + left) * cp;
                        const auto clear = [&](int j0, int j1) {
                            for (int j = j0; j < j1; ++j)
                                for (int c = 0; c < depth; c += kLanes) store(to + j * kStep + c, Vec{});
                        };
                        clear(0, inside ? begin : columns);
                        if (!inside) continue;
                        for (int j = begin; j < end; ++j)
                            for (int c = c0; c < c1; c += kLanes)
                                store(to + j * kStep + c - c0, read(from + static_cast<std::ptrdiff_t>(j) * cp + c, image, c));
                        clear(end, columns);
                    }
                    if (depth != offsets_depth) {
                        for (int t = 0; t < taps; ++t) offsets[t] = t % w.kernel_w * w.dilation * kStep + t / w.kernel_w * depth;
                        offsets_depth = depth;
                    }
                    task.depth = depth;
                    task.first = c0 == 0;
                    task.last = c1 == w.c;
                    multiply(task, rows, op);
                    task.weights += static_cast<std::ptrdiff_t>(depth) * kBlock;
                }
            }
}

// Any convolution: each pixel's taps one after another.
template <typename R>
void conv_any(const R& read, const Window& w, const float* weights, const Sink& sink, float* panel) {
    const int cp = pad(w.c), op = pad(w.o), taps = w.kernel_h * w.kernel_w;
    const std::int64_t pixels = static_cast<std::int64_t>(w.images) * w.out_h * w.out_w, blocks = (pixels + kRows - 1) / kRows;
    const int some_taps = at_least_one(kDepth / w.c), some_channels = w.c < kDepth ? w.c : kDepth;
    const std::ptrdiff_t next_block = static_cast<std::ptrdiff_t>(taps) * w.c * kBlock;
    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t begin = block * pixels / blocks;
        const int rows = static_cast<int>((block + 1) * pixels / blocks - begin);
        Product task{panel, weights, next_block, 1, 0, kNoOffset, 0, true, false, sink_at(sink, begin * op), op, Clip(sink.activation)};
        for (int t0 = 0; t0 < taps; t0 += some_taps) {
            const int t1 = t0 + some_taps < taps ? t0 + some_taps : taps;
            for (int c0 = 0; c0 < w.c; c0 += some_channels) {
                const int c1 = c0 + some_channels < w.c ? c0 + some_channels : w.c;
                for (int row = 0; row < rows; ++row) {
                    const int ox = static_cast<int>((begin + row) % w.out_w), oy = static_cast<int>((begin + row) / w.out_w % w.out_h);
                    const int image = static_cast<int>((begin + row) / w.out_w / w.out_h);
                    float* to = panel + row * kStep;
                    int ky = t0 / w.kernel_w, kx = t0 % w.kernel_w;
                    for (int t = t0; t < t1; ++t, to += c1 - c0) {
                        const int y = oy * w.stride - w.padding + ky * w.dilation, x = ox * w.stride - w.padding + kx * w.dilation;
                        const bool inside = y >= 0 && y < w.in_h && x >= 0 && x < w.in_w;
                        const float* const from = read.source.x + ((static_cast<std::ptrdiff_t>(image) * w.in_h + y) * w.in_w + x) * cp;
                        for (int c = c0; c < c1; c += kLanes) store(to + c - c0, inside ? read(from + c, image, c) : Vec{});
                        if (++kx == w.kernel_w) kx = 0, ++ky;
                    }
                }
                task.depth = (t1 - t0) * (c1 - c0);
                task.first = t0 == 0 && c0 == 0;
                task.last = t1 == taps && c1 == w.c;
                multiply(task, rows, op);
                task.weights += static_cast<std::ptrdiff_t>(task.depth) * kBlock;
            }
        }
    }
}

void conv(const Source& source, const Window& w, const float* weights, const Sink& sink, float* panel) {
    const bool in_place = w.stride == 1 && w.padding == 0 && w.kernel_h == 1 && w.kernel_w == 1;
    const bool in_rows = w.stride == 1 && w.kernel_h * w.kernel_w <= kMostRuns && w.kernel_h <= kDepth / kBlock &&
                         kRows + (w.kernel_w - 1) * w.dilation <= kColumns && w.out_w > 1;
    with_reader(source, pad(w.c), [&](const auto& read) {
        if (in_place) conv_pointwise(read, w, weights, sink, panel);
        else if (in_rows) conv_rows(read, w, weights, sink, panel);
        else conv_any(read, w, weights, sink, panel);
    });
}
