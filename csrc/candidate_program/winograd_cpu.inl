// Part of kernels_cpu.inl: dense 3 x 3 convolutions of stride 1 by Winograd's minimal filtering F(2 x 2, 3 x 3): four outputs from
// 16 instead of 36 products a channel (Lavin and Gray 2016, section 4.1). A tile of 4 x 4 inputs becomes B'dB on the way into the
// panel; at each of its 16 places the tiles' channels are multiplied with that place's weights; A'mA of the products is 2 x 2 outputs.

static_assert(kWinogradChannels == kDepth && kRows <= 14 && 2 * kLanes <= 32, "as winograd_scratch counts");

// Where the 16 places of a tile stand in a panel, whose row holds as many as fit; the others stand kRows rows further.
struct Places {
    int rows, offsets[16];
    explicit Places(int channels) {
        const int some = kDepth / channels;
        for (int i = 0; i < 16; ++i) offsets[i] = i / some * kRows * kStep + i % some * channels;
        rows = (16 + some - 1) / some * kRows;
    }
};

// The tiles of a convolution in order, which begin at the given one.
struct TileAt {
    int image, y, x;
    TileAt(std::int64_t tile, int rows, int columns)
        : image(static_cast<int>(tile / columns / rows)), y(static_cast<int>(tile / columns % rows)), x(static_cast<int>(tile % columns)) {}
    void next(int rows, int columns) {
        if (++x < columns) return;
        x = 0;
        if (++y < rows) return;
        y = 0;
        ++image;
    }
};

// B'd of a column of four inputs.
inline void down(const Vec (&d)[4], Vec (&to)[4]) {
    to[0] = d[0] - d[2];
    to[1] = d[1] + d[2];
    to[2] = d[2] - d[1];
    to[3] = d[1] - d[3];
}

// `count` tiles beside each other, which share columns.
template <typename R>
inline void transform_row(const R& read, const Window& w, const TileAt& at, int count, const Places& places, float* panel) {
    const int cp = pad(w.c), top = 2 * at.y - w.padding, left = 2 * at.x - w.padding;
    const bool all_rows = top >= 0 && top + 4 <= w.in_h;
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(w.in_w) * cp;
    const float* const image = read.source.x + static_cast<std::ptrdiff_t>(at.image) * w.in_h * w.in_w * cp;
    for (int c = 0; c < cp; c += kLanes) {
        const auto column = [&](int x, Vec (&to)[4]) {
            Vec d[4] = {};
            const float* const from = image + (static_cast<std::ptrdiff_t>(top) * w.in_w + x) * cp + c;
            if (x >= 0 && x < w.in_w && all_rows) {
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) d[i] = read(from + i * row, at.image, c);
            } else if (x >= 0 && x < w.in_w) {
                for (int i = 0; i < 4; ++i)
                    if (top + i >= 0 && top + i < w.in_h) d[i] = read(from + i * row, at.image, c);
            }
            down(d, to);
        };
        Vec columns[4][4];
        column(left, columns[0]);
        column(left + 1, columns[1]);
        for (int tile = 0; tile < count; ++tile) {
            column(left + 2 * tile + 2, columns[2]);
            column(left + 2 * tile + 3, columns[3]);
            float* const to = panel + tile * kStep + c;
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const Vec across[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
                Vec found[4];
                down(across, found);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) store(to + places.offsets[4 * i + j], found[j]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) columns[0][i] = columns[2][i], columns[1][i] = columns[3][i];
        }
    }
}

// The tile's outputs [n, n + V vectors) from its products, `products` floats from place to place.
template <int V>
inline void outputs_of_tile(const float* m, std::ptrdiff_t products, const Window& w, const Sink& sink, const Clip& clip, const TileAt& at, int n) {
    const int op = pad(w.o);
    const Vec low = all(clip.low), high = all(clip.high);
    for (int v = 0; v < V; ++v, n += kLanes, m += kLanes) {
        Vec sums[2][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const Vec a = load(m + j * products), b = load(m + (4 + j) * products), c = load(m + (8 + j) * products), d = load(m + (12 + j) * products);
            sums[0][j] = a + b + c;
            sums[1][j] = b - c - d;
        }
        const Vec bias = sink.bias ? load(sink.bias + n) : Vec{};
        for (int i = 0; i < 2 && 2 * at.y + i < w.out_h; ++i) {
            const Vec pair[2] = {sums[i][0] + sums[i][1] + sums[i][2], sums[i][1] - sums[i][2] - sums[i][3]};
            const std::ptrdiff_t y = ((static_cast<std::ptrdiff_t>(at.image) * w.out_h + 2 * at.y + i) * w.out_w + 2 * at.x) * op + n;
            for (int j = 0; j < 2 && 2 * at.x + j < w.out_w; ++j) {
                Vec x = pair[j] + bias;
                if (sink.scale) x = x * load(sink.scale + n) + load(sink.shift + n);
                x = smaller(high, larger(low, x));
                if (sink.residual && clip.complete) x += load(sink.residual + y + j * op);
                store(sink.y + y + j * op, x);
            }
        }
    }
}

template <typename R>
void winograd_tiles(const R& read, const Window& w, const float* weights, const Sink& sink, float* panel) {
    constexpr int kSome = 2 * kLanes;  // outputs at a time, which the products' memory holds
    const int op = pad(w.o), rows = (w.out_h + 1) / 2, columns = (w.out_w + 1) / 2;
    const std::int64_t tiles = static_cast<std::int64_t>(w.images) * rows * columns, blocks = (tiles + kRows - 1) / kRows;
    const std::ptrdiff_t place = static_cast<std::ptrdiff_t>(w.c) * kBlock;
    const Places places(pad(w.c));
    float* const products = panel + static_cast<std::ptrdiff_t>(places.rows) * kStep;
    const Clip clip(sink.activation);
    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t begin = block * tiles / blocks;
        const int count = static_cast<int>((block + 1) * tiles / blocks - begin);
        TileAt at(begin, rows, columns);
        for (int done = 0; done < count;) {
            const int run = columns - at.x < count - done ? columns - at.x : count - done;
            transform_row(read, w, at, run, places, panel + done * kStep);
            done += run;
            at.x += run - 1;
            at.next(rows, columns);
        }
        for (int n = 0; n < op; n += kSome) {
            const int wide = op - n < kSome ? op - n : kSome;
            for (int i = 0; i < 16; ++i) {
                Sink raw{products + i * kRows * kSome, nullptr, nullptr, nullptr, nullptr, kNone};
                const float* const from = weights + (n / kBlock * 16 + i) * place + n % kBlock;
                const Product task{panel + places.offsets[i], from, 16 * place, 1, w.c, kNoOffset, 0, true, false, raw, kSome, clip};
                kProducts[count](task, wide);
            }
            at = TileAt(begin, rows, columns);
            for (int tile = 0; tile < count; ++tile, at.next(rows, columns)) {
                const float* const m = products + tile * kSome;
                if (wide == kSome) outputs_of_tile<2>(m, kRows * kSome, w, sink, clip, at, n);
                else outputs_of_tile<1>(m, kRows * kSome, w, sink, clip, at, n);
            }
        }
        if (clip.complete) continue;
        at = TileAt(begin, rows, columns);
        for (int tile = 0; tile < count; ++tile, at.next(rows, columns))
            for (int i = 0; i < 2 && 2 * at.y + i < w.out_h; ++i) {
                const std::ptrdiff_t y = ((static_cast<std::ptrdiff_t>(at.image) * w.out_h + 2 * at.y + i) * w.out_w + 2 * at.x) * op;
                finish(sink.y + y, sink.residual ? sink.residual + y : nullptr, sink.activation, (w.out_w - 2 * at.x < 2 ? 1 : 2) * op);
            }
    }
}

void winograd(const Source& source, const Window& w, const float* weights, const Sink& sink, float* scratch) {
    with_reader(source, pad(w.c), [&](const auto& read) { winograd_tiles(read, w, weights, sink, scratch); });
}
