// What a thread of the kernels that are not dense convolutions computes: kRun pixels below each other by 4 channels.
#pragma once

#include "merged_program/reader.cuh"

namespace hwnas::merged_program {

struct Place {
    bool inside;                   // or it only takes part in barriers
    int image, y, x, quad, group;  // its first pixel, of the output; image: of all groups
    int run, runs;                 // which run of pixels of the block's, of how many; neighbours in a row follow each other
    int wide;                      // quads of the block
    const float4* taps;            // of a depthwise kernel, [tap, wide + 1], this quad's

    __device__ Reader reader(const Operand& in) const { return Reader(in, group, 0, quad); }
    // The first pixel of this image where it has so many.
    __device__ std::int64_t origin(int pixels) const { return static_cast<std::int64_t>(image) * pixels; }
};

}  // namespace hwnas::merged_program
