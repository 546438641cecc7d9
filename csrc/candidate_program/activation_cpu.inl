// Part of kernels_cpu.inl: activations, and how a step reads and finishes values.

inline Vec larger(Vec bound, Vec x) { return bound > x ? bound : x; }    // x where x is not a number
inline Vec smaller(Vec bound, Vec x) { return bound < x ? bound : x; }

// e^x to 2 ulp: 2^n e^r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7.
inline Vec exponential(Vec x) {
    x = smaller(all(88.0f), larger(all(-87.0f), x));
    const Vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the fraction is rounded away
    const Vec n = shifted - 12582912.0f;
    const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Vec p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
    return p * reinterpret_cast<Vec>(power);
}

// Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most.
inline Vec error_function(Vec x) {
    const Vec size = x < 0.0f ? -x : x;
    const Vec t = 1.0f / (size * 0.3275911f + 1.0f);
    Vec p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vec y = 1.0f - p * t * exponential(-size * size);
    return x < 0.0f ? -y : y;
}

template <int A>
inline Vec activate(Vec x) {
    const Vec zero{};
    if constexpr (A == kRelu) return larger(zero, x);
    if constexpr (A == kRelu6) return smaller(all(6.0f), larger(zero, x));
    if constexpr (A == kHardswish) return x * smaller(all(6.0f), larger(zero, x + 3.0f)) * (1.0f / 6);
    if constexpr (A == kHardsigmoid) return smaller(all(6.0f), larger(zero, x + 3.0f)) * (1.0f / 6);
    if constexpr (A == kSigmoid) return 1.0f / (exponential(-x) + 1.0f);
    if constexpr (A == kTanh) return 1.0f - 2.0f / (exponential(x + x) + 1.0f);
    if constexpr (A == kSilu) return x / (exponential(-x) + 1.0f);
    if constexpr (A == kGelu) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    if constexpr (A == kElu) return x > zero ? x : exponential(x) - 1.0f;
    if constexpr (A == kLeakyRelu) return x > zero ? x : x * 0.01f;
    return x;
}

// f(Count<activation>()).
template <typename F>
inline void with_activation(int activation, const F& f) {
    switch (activation) {
        case kRelu: return f(Count<kRelu>());
        case kRelu6: return f(Count<kRelu6>());
        case kHardswish: return f(Count<kHardswish>());
        case kHardsigmoid: return f(Count<kHardsigmoid>());
        case kSigmoid: return f(Count<kSigmoid>());
        case kTanh: return f(Count<kTanh>());
        case kSilu: return f(Count<kSilu>());
        case kGelu: return f(Count<kGelu>());
        case kElu: return f(Count<kElu>());
        case kLeakyRelu: return f(Count<kLeakyRelu>());
        default: return f(Count<kNone>());
    }
}

// ---- reading ----

constexpr int kAnyActivation = -1;  // decided vector by vector

template <bool kAffine, int kActivation, bool kGate>
struct Reader {
    static constexpr bool kReadsGate = kGate;
    Source source;
    int channels;  // padded

    // `at` points to channel `channel` of some pixel of image `image`.
    Vec operator()(const float* at, int image, int channel) const {
        Vec x = load(at);
        if constexpr (kAffine) x = x * load(source.scale + channel) + load(source.shift + channel);
        if constexpr (kActivation == kAnyActivation) with_activation(source.activation, [&](auto a) { x = activate<decltype(a)::value>(x); });
        else x = activate<kActivation>(x);
        if constexpr (kGate) x = x * load(source.gate + static_cast<std::ptrdiff_t>(image) * channels + channel);
        return x;
    }
};

// f(reader) with a reader that does what this source asks for, and no more.
template <typename F>
inline void with_reader(const Source& source, int channels, const F& f) {
    const auto with = [&](auto affine) {
        constexpr bool kAffine = decltype(affine)::value;
        if (source.gate && source.activation != kNone) return f(Reader<kAffine, kAnyActivation, true>{source, channels});
        if (source.gate) return f(Reader<kAffine, kNone, true>{source, channels});
        switch (source.activation) {
            case kNone: return f(Reader<kAffine, kNone, false>{source, channels});
            case kRelu: return f(Reader<kAffine, kRelu, false>{source, channels});
            case kRelu6: return f(Reader<kAffine, kRelu6, false>{source, channels});
            case kHardswish: return f(Reader<kAffine, kHardswish, false>{source, channels});
            default: return f(Reader<kAffine, kAnyActivation, false>{source, channels});
        }
    };
    if (source.scale) with(Count<1>());
    else with(Count<0>());
}

// ---- finishing ----

// What bounds a sum where the activation only clips; other activations and what follows them wait for finish().
struct Clip {
    float low, high;
    bool complete;
    explicit Clip(int activation)
        : low(activation == kRelu || activation == kRelu6 ? 0.0f : -__builtin_inff()), high(activation == kRelu6 ? 6.0f : __builtin_inff()),
          complete(activation == kNone || activation == kRelu || activation == kRelu6) {}
};

// y = activation(y) + residual, for `count` whole vectors.
inline void finish(float* y, const float* residual, int activation, std::ptrdiff_t count) {
    with_activation(activation, [&](auto a) {
        for (std::ptrdiff_t i = 0; i < count; i += kLanes) {
            const Vec v = activate<decltype(a)::value>(load(y + i));
            store(y + i, residual ? v + load(residual + i) : v);
        }
    });
}
