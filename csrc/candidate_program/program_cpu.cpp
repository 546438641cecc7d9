#include "candidate_program/program.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "candidate_program/kernels_cpu.h"
#include "common/team.h"

namespace hwnas::candidate_program {
namespace {

constexpr std::int64_t kUnitPixels = 1024;  // of a step's result, in one unit of calibrate's work
constexpr Status kNoMemory{"no memory for the statistics"};

// Executes steps for images [first, first + count) of an arena that holds `capacity` images.
class Executor {
public:
    Executor(const Program& program, float* arena, std::int64_t capacity) : p_(program), k_(kernels()), arena_(arena), capacity_(capacity) {}

    float* at(std::int64_t buffer, std::int64_t image) const {
        const Buffer& b = p_.buffers[buffer];
        return arena_ + b.offset * capacity_ + image * b.h * b.w * padded(static_cast<int>(b.c));
    }

    // `images` points to image `first`, `results` to its first output's result; `n` is how many images the results have.
    void execute(const Step& step, std::int64_t first, int count, const float* images, float* results, std::int64_t n, float* scratch) const {
        if (step.kind == kMoments) return;
        if (step.kind == kOutput) return output(step, first, count, results, n);
        const Buffer& to = p_.buffers[step.out];
        float* const y = at(step.out, first);
        if (step.kind == kInput) return input(to, count, images, y);
        if (step.kind == kZero) return std::fill_n(y, count * to.h * to.w * padded(static_cast<int>(to.c)), 0.0f), void();
        if (step.kind == kSum) {
            Source sources[kMostTerms];
            for (std::int64_t done = 0; done < step.reads;) {
                int terms = 0;
                if (done) sources[terms++] = {y, nullptr, nullptr, nullptr, kNone};
                while (terms < kMostTerms && done < step.reads) sources[terms++] = source(p_.reads[step.first_read + done++], first);
                k_.sum(sources, terms, count, to.h * to.w, static_cast<int>(to.c), y);
            }
            return;
        }
        if (step.kind == kConcat) {
            int channel = 0;
            for (std::int64_t i = 0; i < step.reads; ++i) {
                const Read& read = p_.reads[step.first_read + i];
                const int c = static_cast<int>(p_.buffers[read.buffer].c);
                k_.place(source(read, first), count, to.h * to.w, c, channel, static_cast<int>(to.c), y);
                channel += c;
            }
            return;
        }
        const Read& read = p_.reads[step.first_read];
        const Source from = source(read, first);
        const Window w = window(step, p_.buffers[read.buffer], to, count);
        const Sink sink{y, step.bias < 0 ? nullptr : p_.weights + step.bias, scale(step.affine), shift(step.affine),
                        step.residual < 0 ? nullptr : at(step.residual, first), static_cast<int>(step.activation)};
        switch (step.kind) {
            case kConv: return k_.conv(from, w, p_.weights + step.weights, sink, scratch);
            case kDepthwise: return k_.depthwise(from, w, p_.weights + step.weights, sink, scratch);
            case kMaxPool:
            case kAvgPool: return k_.pool(from, w, step.kind == kMaxPool, y);
            default: return k_.global_pool(from, w, y);
        }
    }

    void moments(const Step& step, std::int64_t first, std::int64_t count, double* mean, double* m2) const {
        const std::int64_t buffer = measured(step);
        const Buffer& b = p_.buffers[buffer];
        k_.moments(at(buffer, first), count * b.h * b.w, static_cast<int>(b.c), mean, m2);
    }

    // The buffer whose statistics a step takes.
    std::int64_t measured(const Step& step) const { return step.kind == kMoments ? p_.reads[step.first_read].buffer : step.out; }

private:
    static constexpr int kMostTerms = 16;

    const float* scale(std::int64_t affine) const { return affine < 0 ? nullptr : p_.affine + affine; }
    const float* shift(std::int64_t affine) const { return affine < 0 ? nullptr : p_.affine + p_.norm_channels + affine; }

    Source source(const Read& read, std::int64_t first) const {
        return {at(read.buffer, first), scale(read.affine), shift(read.affine), read.gate < 0 ? nullptr : at(read.gate, first),
                static_cast<int>(read.activation)};
    }

    static Window window(const Step& s, const Buffer& from, const Buffer& to, int count) {
        const auto whole = [](std::int64_t x) { return static_cast<int>(x); };
        return {count, whole(from.h), whole(from.w), whole(from.c), whole(to.h), whole(to.w), whole(to.c), whole(s.kernel_h),
                whole(s.kernel_w), whole(s.stride), whole(s.padding), whole(s.dilation)};
    }

    static void input(const Buffer& to, int count, const float* images, float* y) {
        const std::int64_t c = to.c, cp = padded(static_cast<int>(c));
        for (std::int64_t pixel = 0; pixel < count * to.h * to.w; ++pixel, y += cp, images += c) {
            std::copy_n(images, c, y);
            std::fill(y + c, y + cp, 0.0f);
        }
    }

    void output(const Step& step, std::int64_t first, int count, float* results, std::int64_t n) const {
        const std::int64_t buffer = p_.reads[step.first_read].buffer, c = p_.buffers[buffer].c;
        for (int i = 0; i < count; ++i) std::copy_n(at(buffer, first + i), c, results + (step.out * n + i) * c);
    }

    const Program& p_;
    const Kernels& k_;
    float* arena_;
    std::int64_t capacity_;
};

std::int64_t image_size(const Program& p) {
    const Buffer& b = p.buffers[0];
    return b.c * b.h * b.w;
}

std::int64_t classes(const Program& p) {
    for (std::int64_t i = 0; i < p.step_count; ++i)
        if (p.steps[i].kind == kOutput) return p.buffers[p.reads[p.steps[i].first_read].buffer].c;
    return 0;
}

// Means and sums of squares of units in order (Chan, Golub and LeVeque 1979) become the affine of this batch.
void finish_norm(const Program& p, const Norms& norms, const Step& step, const Buffer& b, const std::vector<std::int64_t>& counts,
                 const double* moments) {
    const std::int64_t cp = padded(static_cast<int>(b.c)), scales = step.norm, shifts = p.norm_channels + step.norm;
    for (std::int64_t ch = 0; ch < cp; ++ch) {
        double count = 0, mean = 0, m2 = 0;
        for (std::size_t unit = 0; unit < counts.size(); ++unit) {
            const double more = static_cast<double>(counts[unit]), its_mean = moments[2 * unit * cp + ch];
            const double apart = its_mean - mean, total = count + more;
            mean += apart * more / total;
            m2 += moments[(2 * unit + 1) * cp + ch] + apart * apart * count * more / total;
            count = total;
        }
        const double variance = std::max(m2, 0.0) / count;
        const double scale = norms.weight_bias[scales + ch] / std::sqrt(variance + norms.eps[scales + ch]);
        p.affine[scales + ch] = static_cast<float>(scale);
        p.affine[shifts + ch] = static_cast<float>(norms.weight_bias[shifts + ch] - mean * scale);
        norms.statistics[scales + ch] += mean;
        norms.statistics[shifts + ch] += count > 1 ? std::max(m2, 0.0) / (count - 1) : 0.0;
    }
}

}  // namespace

Status run(const Program& p, const std::uint8_t* wanted, Images images, std::int64_t tile, float* results, float* arena, float* scratch,
           int threads) {
    const std::int64_t size = image_size(p), c = classes(p);
    Team team(threads);
    team.run((images.n + tile - 1) / tile, [&](std::int64_t unit, int thread) {
        const std::int64_t first = unit * tile, count = std::min(tile, images.n - first);
        const Executor executor(p, arena + thread * tile * p.image_floats, tile);
        for (std::int64_t i = 0; i < p.step_count; ++i)
            if (wanted[i])
                executor.execute(p.steps[i], 0, static_cast<int>(count), images.at + first * size, results + first * c, images.n,
                                 scratch + thread * p.scratch_floats);
    });
    return {};
}

Status calibrate(const Program& p, const Norms& norms, Images images, float* arena, float* scratch, int threads) {
    const std::int64_t size = image_size(p);
    const Executor executor(p, arena, images.n);
    Team team(threads);
    try {
        std::vector<double> moments;
        std::vector<std::int64_t> counts;
        for (std::int64_t i = 0; i < p.step_count; ++i) {
            const Step& step = p.steps[i];
            if (step.kind == kOutput) continue;
            const Buffer& b = p.buffers[executor.measured(step)];
            const std::int64_t some = std::max<std::int64_t>(1, kUnitPixels / (b.h * b.w)), units = (images.n + some - 1) / some;
            const std::int64_t cp = padded(static_cast<int>(b.c));
            if (step.norm >= 0) {
                moments.resize(static_cast<std::size_t>(2 * units * cp));
                counts.resize(static_cast<std::size_t>(units));
            }
            team.run(units, [&](std::int64_t unit, int thread) {
                const std::int64_t first = unit * some, count = std::min(some, images.n - first);
                executor.execute(step, first, static_cast<int>(count), images.at + first * size, nullptr, 0, scratch + thread * p.scratch_floats);
                if (step.norm < 0) return;
                counts[unit] = count * b.h * b.w;
                executor.moments(step, first, count, moments.data() + 2 * unit * cp, moments.data() + (2 * unit + 1) * cp);
            });
            if (step.norm >= 0) finish_norm(p, norms, step, b, counts, moments.data());
        }
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return {};
}

}  // namespace hwnas::candidate_program
