// Batch norm without affine over images of channels-last activations, and copies between padded and unpadded channels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace hwnas::nhwc {

constexpr double kEps = 1e-5;

// Mean and 1 / sqrt(variance + eps) of each channel.
template <typename T>
struct Norm {
    T* mean;
    T* rstd;
};

// dz = a * g + b * (z - mean) + c0: a batch norm's gradient, once its two sums are known.
template <typename T>
struct NormGradient {
    T *a, *b, *c0;
};

// The images' moments into the batch's. moments(i): of image i the mean [c], then the sum of squared distances from it [c].
// In the images' order, so the threads' number cannot show.
template <typename T, typename F>
void merge_moments(const F& moments, std::int64_t images, std::int64_t pixels, int c, Norm<T> norm) {
    std::vector<double> mean(c, 0.0), m2(c, 0.0);
    for (std::int64_t i = 0; i < images; ++i)
        for (int ch = 0; ch < c; ++ch) mean[ch] += moments(i)[ch];
    for (double& value : mean) value /= static_cast<double>(images);
    for (std::int64_t i = 0; i < images; ++i)
        for (int ch = 0; ch < c; ++ch) {
            const double distance = moments(i)[ch] - mean[ch];
            m2[ch] += moments(i)[c + ch] + static_cast<double>(pixels) * distance * distance;
        }
    const double count = static_cast<double>(images) * static_cast<double>(pixels);
    for (int ch = 0; ch < c; ++ch) {
        norm.mean[ch] = static_cast<T>(mean[ch]);
        norm.rstd[ch] = static_cast<T>(1.0 / std::sqrt(m2[ch] / count + kEps));
    }
}

// `sum`: of g, `dot`: of g times the normalised z, per channel over `count` values; gate: the factor between the norm and g.
template <typename T>
void set_gradient(NormGradient<T> to, const double* sum, const double* dot, const T* rstd, double gate, double count, int c) {
    for (int ch = 0; ch < c; ++ch) {
        const double a = gate * rstd[ch];
        to.a[ch] = static_cast<T>(a);
        to.b[ch] = static_cast<T>(-a * rstd[ch] * dot[ch] / count);
        to.c0[ch] = static_cast<T>(-a * sum[ch] / count);
    }
}

template <typename T>
void copy_channels(T* dst, int dst_pixel, const T* src, int src_pixel, int copied, int zeroed, std::int64_t pixels) {
    for (std::int64_t p = 0; p < pixels; ++p, dst += dst_pixel, src += src_pixel) {
        std::copy_n(src, copied, dst);
        std::fill_n(dst + copied, zeroed, T(0));
    }
}

}  // namespace hwnas::nhwc
