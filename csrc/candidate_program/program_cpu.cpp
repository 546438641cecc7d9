#include "candidate_program/program.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "candidate_program/kernels_cpu.h"
#include "common/team.h"

namespace hwnas::candidate_program {
namespace {

constexpr Status kNoMemory{"no memory for the statistics"};

// Executes steps for images [first, first + count) of a batch of `n`.
class Executor {
public:
    Executor(const Program& program, Images images, float* results, const Memory& memory, int thread, std::int64_t first, std::int64_t capacity)
        : p_(program), k_(kernels()), images_(images), results_(results), batch_(memory.batch), local_(memory.local + thread * program.local_floats),
          scratch_(memory.scratch + thread * program.scratch_floats), first_(first), capacity_(capacity),
          count_(static_cast<int>(std::min(capacity, images.n - first))) {}

    float* at(std::int64_t buffer) const {
        const Buffer& b = p_.buffers[buffer];
        if (b.local) return local_ + b.offset * capacity_;
        return batch_ + b.offset * images_.n + first_ * b.h * b.w * padded(static_cast<int>(b.c));
    }

    void execute(const Step& step) const {
        if (step.kind == kMoments) return;
        if (step.kind == kOutput) return output(step);
        const Buffer& to = p_.buffers[step.out];
        float* const y = at(step.out);
        if (step.kind == kInput) return input(to, y);
        if (step.kind == kZero) return std::fill_n(y, count_ * to.h * to.w * padded(static_cast<int>(to.c)), 0.0f), void();
        if (step.kind == kSum) {
            Source sources[kMostTerms];
            for (std::int64_t done = 0; done < step.reads;) {
                int terms = 0;
                if (done) sources[terms++] = {y, nullptr, nullptr, nullptr, kNone};
                while (terms < kMostTerms && done < step.reads) sources[terms++] = source(p_.reads[step.first_read + done++]);
                k_.sum(sources, terms, count_, to.h * to.w, static_cast<int>(to.c), y);
            }
            return;
        }
        if (step.kind == kConcat) {
            int channel = 0;
            for (std::int64_t i = 0; i < step.reads; ++i) {
                const Read& read = p_.reads[step.first_read + i];
                const int c = static_cast<int>(p_.buffers[read.buffer].c);
                k_.place(source(read), count_, to.h * to.w, c, channel, static_cast<int>(to.c), y);
                channel += c;
            }
            return;
        }
        const Read& read = p_.reads[step.first_read];
        const Source from = source(read);
        const Window w = window(step, p_.buffers[read.buffer], to, count_);
        const Sink sink{y, step.bias < 0 ? nullptr : p_.weights + step.bias, scale(step.affine), shift(step.affine),
                        step.residual < 0 ? nullptr : at(step.residual), static_cast<int>(step.activation)};
        switch (step.kind) {
            case kConv: return k_.conv(from, w, p_.weights + step.weights, sink, scratch_);
            case kWinograd: return k_.winograd(from, w, p_.weights + step.weights, sink, scratch_);
            case kDepthwise: return k_.depthwise(from, w, p_.weights + step.weights, sink, scratch_);
            case kMaxPool:
            case kAvgPool: return k_.pool(from, w, step.kind == kMaxPool, y);
            default: return k_.global_pool(from, w, y);
        }
    }

    // Means, and sums of squared distances, of the result that a step measures; returns over how many values.
    std::int64_t moments(const Step& step, double* mean, double* m2) const {
        const std::int64_t buffer = measured(p_, step);
        const Buffer& b = p_.buffers[buffer];
        k_.moments(at(buffer), count_ * b.h * b.w, static_cast<int>(b.c), mean, m2);
        return count_ * b.h * b.w;
    }

    static std::int64_t measured(const Program& p, const Step& step) {
        return step.kind == kMoments ? p.reads[step.first_read].buffer : step.out;
    }

private:
    static constexpr int kMostTerms = 16;

    const float* scale(std::int64_t affine) const { return affine < 0 ? nullptr : p_.affine + affine; }
    const float* shift(std::int64_t affine) const { return affine < 0 ? nullptr : p_.affine + p_.norm_channels + affine; }

    Source source(const Read& read) const {
        return {at(read.buffer), scale(read.affine), shift(read.affine), read.gate < 0 ? nullptr : at(read.gate), static_cast<int>(read.activation)};
    }

    static Window window(const Step& s, const Buffer& from, const Buffer& to, int count) {
        const auto whole = [](std::int64_t x) { return static_cast<int>(x); };
        return {count, whole(from.h), whole(from.w), whole(from.c), whole(to.h), whole(to.w), whole(to.c), whole(s.kernel_h),
                whole(s.kernel_w), whole(s.stride), whole(s.padding), whole(s.dilation)};
    }

    void input(const Buffer& to, float* y) const {
        const std::int64_t c = to.c, cp = padded(static_cast<int>(c));
        const float* image = images_.at + first_ * to.h * to.w * c;
        for (std::int64_t pixel = 0; pixel < count_ * to.h * to.w; ++pixel, y += cp, image += c) {
            std::copy_n(image, c, y);
            std::fill(y + c, y + cp, 0.0f);
        }
    }

    void output(const Step& step) const {
        const std::int64_t buffer = p_.reads[step.first_read].buffer, c = p_.buffers[buffer].c, cp = padded(static_cast<int>(c));
        for (int i = 0; i < count_; ++i) std::copy_n(at(buffer) + i * cp, c, results_ + (step.out * images_.n + first_ + i) * c);
    }

    const Program& p_;
    const Kernels& k_;
    Images images_;
    float* results_;
    float *batch_, *local_, *scratch_;
    std::int64_t first_, capacity_;
    int count_;
};

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

Status run(const Program& p, const std::uint8_t* wanted, Images images, float* results, const Memory& memory, int threads) {
    const Phase& phase = p.phases[0];
    Team team(threads);
    team.run((images.n + phase.images - 1) / phase.images, [&](std::int64_t unit, int thread) {
        const Executor executor(p, images, results, memory, thread, unit * phase.images, phase.images);
        for (std::int64_t i = 0; i < phase.end; ++i)
            if (wanted[i]) executor.execute(p.steps[i]);
    });
    return {};
}

Status calibrate(const Program& p, const Norms& norms, Images images, const Memory& memory, int threads) {
    Team team(threads);
    try {
        std::vector<double> moments;
        std::vector<std::int64_t> counts;
        for (std::int64_t begin = 0, i = 0; i < p.phase_count; begin = p.phases[i++].end) {
            const Phase& phase = p.phases[i];
            const Step& last = p.steps[phase.end - 1];
            const Buffer& b = p.buffers[Executor::measured(p, last)];
            const std::int64_t units = (images.n + phase.images - 1) / phase.images, cp = padded(static_cast<int>(b.c));
            if (last.norm >= 0) {
                moments.resize(static_cast<std::size_t>(2 * units * cp));
                counts.resize(static_cast<std::size_t>(units));
            }
            team.run(units, [&](std::int64_t unit, int thread) {
                const Executor executor(p, images, nullptr, memory, thread, unit * phase.images, phase.images);
                for (std::int64_t step = begin; step < phase.end; ++step) executor.execute(p.steps[step]);
                if (last.norm < 0) return;
                counts[unit] = executor.moments(last, moments.data() + 2 * unit * cp, moments.data() + (2 * unit + 1) * cp);
            });
            if (last.norm >= 0) finish_norm(p, norms, last, b, counts, moments.data());
        }
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return {};
}

void pack(const Weight& weight, float* to) {
    const std::int64_t own = weight.c / weight.groups, outputs = weight.o / weight.groups;
    for (std::int64_t block = 0; block < weight.o; block += kBlock)
        for (std::int64_t y = 0; y < weight.h; ++y)
            for (std::int64_t x = 0; x < weight.w; ++x)
                for (std::int64_t c = 0; c < weight.c; ++c, to += kBlock) {
                    const float* const from = weight.at + c % own * weight.stride_c + y * weight.stride_h + x * weight.stride_w;
                    for (std::int64_t o = block; o < block + kBlock; ++o)
                        to[o - block] = o < weight.o && o / outputs == c / own ? from[o * weight.stride_o] : 0.0f;
                }
}

void pack_winograd(const Weight& weight, float* to) {
    constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    for (std::int64_t o = 0; o < padded(static_cast<int>(weight.o)); ++o)
        for (std::int64_t c = 0; c < weight.c; ++c) {
            float* const at = to + (o / kBlock * 16 * weight.c + c) * kBlock + o % kBlock;
            const float* const from = weight.at + o * weight.stride_o + c * weight.stride_c;
            for (std::int64_t i = 0; i < 4; ++i)
                for (std::int64_t j = 0; j < 4; ++j) {
                    double sum = 0;
                    for (std::int64_t y = 0; y < 3 && o < weight.o; ++y)
                        for (std::int64_t x = 0; x < 3; ++x) sum += kG[i][y] * kG[j][x] * from[y * weight.stride_h + x * weight.stride_w];
                    at[(i * 4 + j) * weight.c * kBlock] = static_cast<float>(sum);
                }
        }
}

}  // namespace hwnas::candidate_program
