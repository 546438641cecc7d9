// The inner loops of the candidate program over channels-last activations, as a table of functions for each instruction set.
// An activation is [images][height][width][channels padded to kBlock] of float32, without gaps; what stands in the padding is
// finite and means nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hwnas::candidate_program {

constexpr int kBlock = 16;
constexpr int padded(int channels) { return (channels + kBlock - 1) / kBlock * kBlock; }

// In the order of ACTIVATIONS in hwnas/ir/prims.py, after none.
enum Activation : int { kNone, kRelu, kRelu6, kHardswish, kHardsigmoid, kSigmoid, kTanh, kSilu, kGelu, kElu, kLeakyRelu };

// An activation as a step reads it: gate * activation(scale * x + shift), per channel, the gate also per image.
struct Source {
    const float* x;
    const float* scale;  // with shift: null for none
    const float* shift;
    const float* gate;  // [images][padded(c)]; null for none
    int activation;
};

// A window that slides over `images` images; padding may be negative.
struct Window {
    int images, in_h, in_w, c, out_h, out_w, o, kernel_h, kernel_w, stride, padding, dilation;
};

// What becomes of the sums: activation(scale * (sum + bias) + shift) + residual.
struct Sink {
    float* y;
    const float* bias;   // null for none, as are the following
    const float* scale;  // with shift
    const float* shift;
    const float* residual;  // like y
    int activation;
};

struct Kernels {
    // weights [padded(o) / 16][kernel_h * kernel_w * c][16]; scratch of kConvScratch floats
    void (*conv)(const Source& source, const Window& window, const float* weights, const Sink& sink, float* scratch);
    // 3 x 3, stride 1, no dilation, at most kWinogradChannels of them; weights [padded(o) / 16][4 * 4 * c][16] as pack_winograd
    // leaves them; scratch of winograd_scratch(c) floats
    void (*winograd)(const Source& source, const Window& window, const float* weights, const Sink& sink, float* scratch);
    // one kernel a channel, weights [padded(c) / 16][kernel_h * kernel_w][16]; scratch of depthwise_scratch(window) floats
    void (*depthwise)(const Source& source, const Window& window, const float* weights, const Sink& sink, float* scratch);
    // maximum or mean of what lies inside the border
    void (*pool)(const Source& source, const Window& window, bool maximum, float* y);
    // mean of each image, in_h x in_w x c
    void (*global_pool)(const Source& source, const Window& window, float* y);
    // y = the sum of sources of one shape
    void (*sum)(const Source* sources, int count, int images, std::int64_t pixels, int c, float* y);
    // Channels [first, first + c) of y, which has `total` channels, become the source.
    void (*place)(const Source& source, int images, std::int64_t pixels, int c, int first, int total, float* y);
    // Means, and sums of squared distances from them, over `pixels` pixels: [padded(c)] each.
    void (*moments)(const float* y, std::int64_t pixels, int c, double* mean, double* m2);
};

constexpr std::int64_t kConvScratch = 32 * 400;

constexpr int kWinogradChannels = 384;
// The transformed inputs of 14 tiles in rows of 384 floats, and their products with 32 outputs.
constexpr std::int64_t winograd_scratch(int c) {
    const int places = kWinogradChannels / padded(c);
    return (16 + places - 1) / places * 14 * 400 + 16 * 14 * 32;
}

inline std::int64_t depthwise_scratch(const Window& w) {
    const std::int64_t rows = (w.kernel_h - 1) * w.dilation + 1, columns = (w.out_w - 1) * w.stride + (w.kernel_w - 1) * w.dilation + 1;
    return rows * columns * kBlock;
}

// The widest set that this processor has, or the one that HWNAS_CPU_ISA names (avx512, avx2, baseline) if it has that.
const Kernels& kernels();

// One a translation unit: kernels_<set>_cpu.cpp.
namespace avx512 { const Kernels& kernels(); }
namespace avx2 { const Kernels& kernels(); }
namespace baseline { const Kernels& kernels(); }

}  // namespace hwnas::candidate_program
