// The inner loops of the CPU kernels over channels-last activations, as a table of functions for each instruction set. The
// channels are padded to a multiple of kChannelBlock, so every loop runs over whole vectors of channels.
#pragma once

#include <cstddef>

namespace hwnas::nhwc {

constexpr int kChannelBlock = 16;
constexpr int kMaxTaps = 25;

// rows x width pixels of c channels somewhere in memory; strides in elements.
template <typename T>
struct Area {
    T* at;
    std::ptrdiff_t row, pixel;
    operator Area<const T>() const { return {at, row, pixel}; }
};

struct Size {
    int rows, width, c;
};

// A depthwise convolution as the list of its taps: element offset from the output pixel's base in the source, and offset of
// the tap's row in the weights [taps, c]. Dilation, padding, flipped kernels and the parities of a strided gradient are all
// just other lists.
struct Taps {
    int count = 0;
    std::ptrdiff_t offset[kMaxTaps];
    int weight[kMaxTaps];
};

template <typename T>
struct Term {
    Area<const T> area;
    const T *scale, *mean;  // [c]
};

struct Pool {  // 3x3, padding 1
    int h, w, out_h, out_w, stride;
};

template <typename T>
struct Kernels {
    // dst (+)= sum over taps of w[tap] * src
    void (*depthwise)(Area<T> dst, Area<const T> src, const Taps& taps, const T* w, Size size, bool accumulate);
    // dw[tap] += sum over pixels of du * src
    void (*depthwise_weights)(T* dw, Area<const T> src, Area<const T> du, const Taps& taps, Size size);
    // dst (+)= src @ w, w [c, c] as (in, out)
    void (*pointwise)(Area<T> dst, Area<const T> src, const T* w, Size size, bool accumulate);
    // dw[m, n] += sum over pixels of a[m] * b[n]
    void (*pointwise_weights)(T* dw, Area<const T> a, Area<const T> b, Size size);
    // mean[c], and the sum of squared distances from it
    void (*moments)(double* mean, double* m2, Area<const T> x, Size size);
    void (*relu)(Area<T> dst, Area<const T> src, Size size);
    // dst = relu((z - mean) * rstd)
    void (*normalise_relu)(Area<T> dst, Area<const T> z, const T* mean, const T* rstd, Size size);
    // dst (+)= sum over terms of scale * (area - mean)
    void (*blend)(Area<T> dst, const Term<T>* terms, int count, Size size, bool accumulate);
    // dot[c] += sum over pixels of g * (z - mean) * rstd
    void (*dot)(double* dot, Area<const T> g, Area<const T> z, const T* mean, const T* rstd, Size size);
    // sum[c] += sum over pixels of g
    void (*sum)(double* sum, Area<const T> g, Size size);
    // dz = a * g + b * (z - mean) + c0
    void (*normalise_backward)(Area<T> dz, Area<const T> g, Area<const T> z, const T* a, const T* b, const T* mean, const T* c0, Size size);
    // dst (+)= dx where x > 0
    void (*relu_backward)(Area<T> dst, Area<const T> dx, Area<const T> x, Size size, bool accumulate);
    void (*pool)(Area<T> max, Area<T> average, Area<const T> x, Pool pool, int c);
    // dx += the gradients of both pools; a window's maximum is its first in row order, as in PyTorch
    void (*pool_backward)(Area<T> dx, Area<const T> x, Area<const T> dmax, Area<const T> daverage, Pool pool, int c);
};

// The widest set that this processor has, or the one that HWNAS_CPU_ISA names (avx512, avx2, baseline) if it has that.
template <typename T>
const Kernels<T>& kernels();

// One a translation unit: kernels_<set>_cpu.cpp.
namespace avx512 { template <typename T> const Kernels<T>& kernels(); }
namespace avx2 { template <typename T> const Kernels<T>& kernels(); }
namespace baseline { template <typename T> const Kernels<T>& kernels(); }

}  // namespace hwnas::nhwc
