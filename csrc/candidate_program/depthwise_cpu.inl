// Part of kernels_cpu.inl: one kernel a channel. Sixteen channels at a time; the rows that an output row needs stand in a ring,
// with their border of zeros and after the source's affine and activation, so that the loop over taps has no cases and its
// addresses are constants.

constexpr int kStrip = kManyRegisters ? 16 : 8;

struct Row {
    const float* ring;
    int slots, columns, slot;  // the ring's rows and columns; where the window's first row stands
    const float* weights;      // [taps][16]
    int kernel_h, kernel_w, stride, dilation;
    Sink sink;  // at the row's first pixel and the block's first channel
    std::ptrdiff_t pixel;
    Clip clip;
};

// P output pixels from x on; S is the stride, 0 for one that is known only now.
template <int P, int S>
inline void strip(const Row& row, int x) {
    const int stride = S ? S : row.stride;
    const Vec low = all(row.clip.low), high = all(row.clip.high);
    for (int v = 0; v < kBlock; v += kLanes) {
        Vec acc[P];
        const Vec start = row.sink.bias ? load(row.sink.bias + v) : Vec{};
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[p] = start;
        const float* w = row.weights + v;
        for (int ky = 0, slot = row.slot; ky < row.kernel_h; ++ky) {
            const float* from = row.ring + (static_cast<std::ptrdiff_t>(slot) * row.columns + x * stride) * kBlock + v;
            for (int kx = 0; kx < row.kernel_w; ++kx, w += kBlock, from += row.dilation * kBlock) {
                const Vec weight = load(w);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) acc[p] += weight * load(from + p * stride * kBlock);
            }
            slot += row.dilation;
            if (slot >= row.slots) slot -= row.slots;
        }
        if (row.sink.scale) {
            const Vec scale = load(row.sink.scale + v), shift = load(row.sink.shift + v);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[p] = acc[p] * scale + shift;
        }
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[p] = smaller(high, larger(low, acc[p]));
        float* const y = row.sink.y + x * row.pixel + v;
        if (!row.clip.complete) with_activation(row.sink.activation, [&](auto a) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[p] = activate<decltype(a)::value>(acc[p]);
        });
        if (row.sink.residual) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[p] += load(row.sink.residual + (x + p) * row.pixel + v);
        }
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) store(y + p * row.pixel, acc[p]);
    }
}

template <int P, int S>
inline void strips(const Row& row, int x, int width) {
    for (; width - x >= P; x += P) strip<P, S>(row, x);
    if constexpr (P > 1) strips<P / 2, S>(row, x, width);
}

void depthwise(const Source& source, const Window& w, const float* weights, const Sink& sink, float* ring) {
    const int cp = pad(w.c), taps = w.kernel_h * w.kernel_w;
    const int slots = (w.kernel_h - 1) * w.dilation + 1, columns = (w.out_w - 1) * w.stride + (w.kernel_w - 1) * w.dilation + 1;
    with_reader(source, cp, [&](const auto& read) {
        const auto fill = [&](int image, int block, int r) {  // row r of the padded image
            float* const to = ring + static_cast<std::ptrdiff_t>(r % slots) * columns * kBlock;
            const int y = r - w.padding;
            const bool inside = y >= 0 && y < w.in_h;
            const int begin = inside ? (w.padding > 0 ? (w.padding < columns ? w.padding : columns) : 0) : columns;
            const int end = w.in_w + w.padding < columns ? w.in_w + w.padding : columns;
            const float* const from =
                source.x + ((static_cast<std::ptrdiff_t>(image) * w.in_h + y) * w.in_w - w.padding) * cp + block * kBlock;
            for (int j = 0; j < begin * kBlock; j += kLanes) store(to + j, Vec{});
            for (int j = begin; j < end; ++j)
                for (int v = 0; v < kBlock; v += kLanes)
                    store(to + j * kBlock + v, read(from + static_cast<std::ptrdiff_t>(j) * cp + v, image, block * kBlock + v));
            for (int j = (end > begin ? end : begin) * kBlock; j < columns * kBlock; j += kLanes) store(to + j, Vec{});
        };
        for (int image = 0; image < w.images; ++image) {
            for (int block = 0; block < cp / kBlock; ++block) {
                const int c = block * kBlock;
                const auto from_channel = [&](const float* p) { return p ? p + c : nullptr; };
                Row row{ring, slots, columns, 0, weights + static_cast<std::ptrdiff_t>(block) * taps * kBlock, w.kernel_h, w.kernel_w,
                        w.stride, w.dilation, sink, cp, Clip(sink.activation)};
                row.sink.bias = from_channel(sink.bias);
                row.sink.scale = from_channel(sink.scale);
                row.sink.shift = from_channel(sink.shift);
                for (int y = 0, filled = 0; y < w.out_h; ++y) {
                    const int first = y * w.stride;
                    if (filled < first) filled = first;
                    for (; filled < first + slots; ++filled) fill(image, block, filled);
                    const std::ptrdiff_t at = (static_cast<std::ptrdiff_t>(image) * w.out_h + y) * w.out_w * cp + c;
                    row.slot = first % slots;
                    row.sink.y = sink.y + at;
                    row.sink.residual = sink.residual ? sink.residual + at : nullptr;
                    if (w.stride == 1) strips<kStrip, 1>(row, 0, w.out_w);
                    else if (w.stride == 2) strips<kStrip, 2>(row, 0, w.out_w);
                    else strips<kStrip, 0>(row, 0, w.out_w);
                }
            }
        }
    });
}
