// Bodies of Kernels<T>, included by kernels_<set>_cpu.cpp, which defines HWNAS_ISA (a namespace) and HWNAS_VECTOR_BYTES and
// is compiled with that set's flags. Nothing here may come from the standard library or be inline outside the namespace:
// the linker would keep one copy of it, perhaps the one with instructions that another processor lacks.
#include "nhwc/kernels_cpu.h"

namespace hwnas::nhwc::HWNAS_ISA {
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

#include "nhwc/kernels_conv_cpu.inl"
#include "nhwc/kernels_norm_cpu.inl"

template <typename T>
constexpr Kernels<T> kTable = {depthwise<T>, depthwise_weights<T>, pointwise<T>, pointwise_weights<T>, moments<T>, relu<T>,
                               normalise_relu<T>, blend<T>, dot<T>, sum<T>, normalise_backward<T>, relu_backward<T>, pool<T>,
                               pool_backward<T>};

}  // namespace

template <> const Kernels<float>& kernels<float>() { return kTable<float>; }
template <> const Kernels<double>& kernels<double>() { return kTable<double>; }

}  // namespace hwnas::nhwc::HWNAS_ISA
