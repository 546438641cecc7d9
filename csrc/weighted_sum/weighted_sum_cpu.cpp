#include <algorithm>

#include "common/multiarch.h"
#include "weighted_sum/weighted_sum.h"

namespace hwnas::weighted_sum {
namespace {

constexpr std::int64_t kTile = 4096;  // elements; the accumulator stays in L1 while all terms pass over it
constexpr std::int64_t kLanes = 64;   // independent partial sums, so that the dot product vectorises in a fixed order

HWNAS_MULTIARCH void scale_f32(float* y, const float* x, float w, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] = w * x[i];
}
HWNAS_MULTIARCH void scale_f64(double* y, const double* x, double w, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] = w * x[i];
}
HWNAS_MULTIARCH void axpy_f32(float* y, const float* x, float w, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] += w * x[i];
}
HWNAS_MULTIARCH void axpy_f64(double* y, const double* x, double w, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] += w * x[i];
}
HWNAS_MULTIARCH void dot_lanes_f32(float* lanes, const float* a, const float* b, std::int64_t blocks) {
    for (std::int64_t i = 0; i < blocks; ++i)
        for (std::int64_t j = 0; j < kLanes; ++j) lanes[j] += a[i * kLanes + j] * b[i * kLanes + j];
}
HWNAS_MULTIARCH void dot_lanes_f64(double* lanes, const double* a, const double* b, std::int64_t blocks) {
    for (std::int64_t i = 0; i < blocks; ++i)
        for (std::int64_t j = 0; j < kLanes; ++j) lanes[j] += a[i * kLanes + j] * b[i * kLanes + j];
}

void scale(float* y, const float* x, float w, std::int64_t n) { scale_f32(y, x, w, n); }
void scale(double* y, const double* x, double w, std::int64_t n) { scale_f64(y, x, w, n); }
void axpy(float* y, const float* x, float w, std::int64_t n) { axpy_f32(y, x, w, n); }
void axpy(double* y, const double* x, double w, std::int64_t n) { axpy_f64(y, x, w, n); }
void dot_lanes(float* lanes, const float* a, const float* b, std::int64_t blocks) { dot_lanes_f32(lanes, a, b, blocks); }
void dot_lanes(double* lanes, const double* a, const double* b, std::int64_t blocks) { dot_lanes_f64(lanes, a, b, blocks); }

// Tiles are summed in double, so the error does not grow with the size of the tensor.
template <typename T>
double dot(const T* a, const T* b, std::int64_t n) {
    double total = 0;
    for (std::int64_t start = 0; start < n; start += kTile) {
        const std::int64_t count = std::min(kTile, n - start);
        const std::int64_t blocks = count / kLanes;
        T lanes[kLanes] = {};
        dot_lanes(lanes, a + start, b + start, blocks);
        for (std::int64_t j = 0; j < kLanes; ++j) total += lanes[j];
        for (std::int64_t i = start + blocks * kLanes; i < start + count; ++i) total += static_cast<double>(a[i]) * b[i];
    }
    return total;
}

template <typename T>
void forward(const Forward& p) {
    const T* w = static_cast<const T*>(p.w);
    T* y = static_cast<T*>(p.y);
    for (std::int64_t start = 0; start < p.size; start += kTile) {
        const std::int64_t count = std::min(kTile, p.size - start);
        scale(y + start, static_cast<const T*>(p.x[0]) + start, w[0], count);
        for (int o = 1; o < p.terms; ++o) axpy(y + start, static_cast<const T*>(p.x[o]) + start, w[o], count);
    }
}

template <typename T>
void backward(const Backward& p) {
    const T* w = static_cast<const T*>(p.w);
    const T* grad = static_cast<const T*>(p.grad);
    T* dw = static_cast<T*>(p.dw);
    for (int o = 0; o < p.terms; ++o) {
        dw[o] = static_cast<T>(dot(grad, static_cast<const T*>(p.x[o]), p.size));
        if (p.dx[o]) scale(static_cast<T*>(p.dx[o]), grad, w[o], p.size);
    }
}

}  // namespace

Status forward_cpu(const Forward& p) {
    switch (p.type) {
        case Type::kFloat32: forward<float>(p); return {};
        case Type::kFloat64: forward<double>(p); return {};
        default: return {"weighted_sum on the CPU takes float32 and float64"};
    }
}

Status backward_cpu(const Backward& p) {
    switch (p.type) {
        case Type::kFloat32: backward<float>(p); return {};
        case Type::kFloat64: backward<double>(p); return {};
        default: return {"weighted_sum on the CPU takes float32 and float64"};
    }
}

}  // namespace hwnas::weighted_sum
