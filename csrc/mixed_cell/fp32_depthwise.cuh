// float32 gradients of the depthwise convolutions, of input and weights in one pass: both are sums over the same window of the
// upstream gradient,
//   dx[i] = sum over taps of w[tap] * g[i - tap],   dw[tap] = sum over i of x[i] * g[i - tap],
// so a lane keeps x and dx of its own pixels in registers and loads only windows of g, and x needs no border. A warp owns one or
// two channels and walks over tiles; lanes' sums of the weights are added once at the end.
#pragma once

#include "mixed_cell/fp32.cuh"

namespace hwnas::mixed_cell::cuda {

// kAll: the four convolutions that read a state; else the second half of a separable convolution.
template <typename G, bool kAll>
struct Fp32Gradient {
    static_assert(kAll || G::S == 1);
    static constexpr int kCount = kAll ? 4 : 1;
    static constexpr int kWarpsHere = 4, kThreadsHere = 32 * kWarpsHere;
    // Lanes of a channel, and the output pixels of a lane: R rows of Q.
    static constexpr int kChannels = G::S == 1 && G::OW <= 16 ? 2 : 1, kLanes = 32 / kChannels;
    static constexpr int Q = G::OW == 8 && G::S == 1 ? 8 : 4, R = G::P / kLanes / Q, kAcross = G::OW / Q;
    // Planes of gradients: 4 rows above and below, 4 zero columns left of the first; a row's right border is the next row's left.
    static constexpr int kPart = G::kPacked ? 16 : 24, ROWS = G::kPacked ? 2 * kPart : kPart;
    static constexpr int PITCH = G::OW + (G::S == 1 ? 4 : 8), PLANE = ROWS * PITCH + 4;
    static constexpr int kRing = kAll ? 4 : 2;          // planes on their way or in work: one of each convolution, or of two tiles
    static constexpr int kTilesAhead = kRing / kCount;
    static constexpr int kOwn = G::S * G::S * R * Q;    // input pixels of a lane
    static constexpr int kChannelElements = kRing * PLANE, kWeightRoom = kAll ? 80 : 28;  // each convolution's from 16 bytes on
    static constexpr int kWarpElements = kChannels * (kChannelElements + kWeightRoom) + kTilesAhead * 32 * kOwn;
    static constexpr int kBytes = kWarpsHere * kWarpElements * 4;
    static constexpr int kBlocks = !kAll ? 4 : G::S == 1 ? 3 : 2;  // a multiprocessor
    static_assert(R * Q * kLanes == G::P && R >= 1);

    __device__ static int row(int m) { return G::kPacked ? m / 8 * kPart + m % 8 + 4 : m + 4; }
    __device__ static int conv_of(int q, int kind) { return !kAll ? kind : q == 0 ? kSep3First : q == 1 ? kSep5First : q == 2 ? kDil3 : kDil5; }
    static constexpr int first_weight(int q) { return !kAll || q == 0 ? 0 : q == 1 ? 12 : q == 2 ? 40 : 52; }
};

// A lane's pixels of input or of their gradients, [row parity][column parity][row][column].
template <typename F, int S>
using Patch = float[S][S][F::R][F::Q];

// Adds one convolution's share: dx, and dw of this lane. `at`: the lane's first output pixel in the plane of g.
template <typename G, typename F, int K, int kDilation>
__device__ __forceinline__ void gradient_patch(const float* at, const float* weights, const Patch<F, G::S>& x, Patch<F, G::S>& dx, float (&dw)[K * K]) {
    constexpr int S = G::S, kPad = K / 2 * kDilation, kReach = S == 1 ? kPad : (kPad + 1) / 2, Q = F::Q;
    constexpr bool kSides = Q < G::OW;  // whether a lane's window has neighbours
    float w[K * K];
    load_kernel(weights, w);
#pragma unroll
    for (int row = -kReach; row < F::R + kReach; ++row) {
        float window[Q + 8];
        load_window<kSides>(at + row * F::PITCH, window);
#pragma unroll
        for (int r = 0; r < F::R; ++r)
#pragma unroll
            for (int a = 0; a < K; ++a)
#pragma unroll
                for (int i = 0; i < S; ++i) {
                    if (i + kPad - a * kDilation != S * (row - r)) continue;  // input row S * r + i meets this row through kernel row a
#pragma unroll
                    for (int b = 0; b < K; ++b)
#pragma unroll
                        for (int j = 0; j < S; ++j) {
                            if ((j + kPad - b * kDilation) % S != 0) continue;
#pragma unroll
                            for (int q = 0; q < Q; ++q) {
                                const int column = q + (j + kPad - b * kDilation) / S;
                                if (!kSides && (column < 0 || column >= Q)) continue;
                                const float g = window[4 + column];
                                dx[i][j][r][q] = fmaf(w[a * K + b], g, dx[i][j][r][q]);
                                dw[a * K + b] = fmaf(x[i][j][r][q], g, dw[a * K + b]);
                            }
                        }
                }
    }
}

// What a warp of fp32_gradient_kernel works with.
template <typename G, bool kAll>
class Fp32GradientWarp {
    using F = Fp32Gradient<G, kAll>;
    static constexpr int S = G::S;

public:
    __device__ Fp32GradientWarp(const Plan<float>& p, int edge, int kind, float* shared)
        : p_(p), edge_(edge), kind_(kind), in_(p, edge, kind), tiles_(G::tiles(p.n, p.oh)) {
        const int lane = threadIdx.x % 32, sub = lane % F::kLanes, group = lane / F::kLanes;
        warp_ = shared + threadIdx.x / 32 * F::kWarpElements;
        first_ = (blockIdx.y * F::kWarpsHere + threadIdx.x / 32) * F::kChannels;
        c = first_ + group;
        m_ = sub / F::kAcross * F::R;
        column_ = sub % F::kAcross * F::Q;
        x_ = in_.x.data + c * in_.x.h * G::IW + column_ * S;
        own_ = warp_ + F::kChannels * (F::kChannelElements + F::kWeightRoom) + 4 * lane;
        weights_ = warp_ + F::kChannels * F::kChannelElements + group * F::kWeightRoom;
    }

    // Before the first tile: zeros at the sides, and the channels' weights; then what the ring holds is on its way.
    __device__ __forceinline__ void begin() {
        const int lane = threadIdx.x % 32;
        constexpr int kSide = F::PITCH - G::OW;
        for (int i = lane; i < F::kChannels * F::kRing * (F::ROWS + 1); i += 32) {  // and behind the last row
            float* at = warp_ + i / (F::ROWS + 1) * F::PLANE + i % (F::ROWS + 1) * F::PITCH;
#pragma unroll
            for (int k = 0; k < 4; k += 4) *reinterpret_cast<float4*>(at) = make_float4(0, 0, 0, 0);
            if (kSide == 8 && i % (F::ROWS + 1) < F::ROWS) *reinterpret_cast<float4*>(at + 4 + G::OW) = make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int q = 0; q < F::kCount; ++q) {
            const int conv = F::conv_of(q, kind_), size = kernel_of(conv) * kernel_of(conv);
            for (int i = lane; i < F::kChannels * size; i += 32)
                warp_[F::kChannels * F::kChannelElements + i / size * F::kWeightRoom + F::first_weight(q) + i % size] =
                    p_.dw_of(edge_, conv)[first_ * size + i];
        }
        for (int item = 0; item < F::kRing; ++item) ask(blockIdx.x + item / F::kCount * gridDim.x, item % F::kCount, item);
    }

    // Waits until the plane of a ring's place is there.
    __device__ __forceinline__ void await() const {
        asm volatile("cp.async.wait_group %0;" :: "n"(F::kRing - 1) : "memory");
        __syncwarp();
    }
    // The place is done with: asks for what comes there next.
    __device__ __forceinline__ void release(int tile, int q, int place) {
        __syncwarp();
        ask(tile + F::kTilesAhead * gridDim.x, q, place);
    }

    // The tile's input, rectified; `place`: of the tile's first plane.
    __device__ __forceinline__ void input(int place, Patch<F, S>& x) const {
        const float* own = own_ + place / F::kCount * (32 * F::kOwn);
        const Pair<float> norm = kAll ? Pair<float>{} : in_.norm[c];
#pragma unroll
        for (int k = 0; k < F::kOwn; k += 4) {
            float4 v = *reinterpret_cast<const float4*>(own + 32 * k);
            rectify<!kAll>(v, norm);
            const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {  // k counts rows of S * Q, S of them an output row
                const int y = k / (S * F::Q), column = k % (S * F::Q) + e;
                x[y % S][column % S][y / S][column / S] = values[e];
            }
        }
    }
    __device__ __forceinline__ const float* gradient(int place) const {
        const int group = threadIdx.x % 32 / F::kLanes;
        return warp_ + (group * F::kRing + place) * F::PLANE + F::row(m_) * F::PITCH + 4 + column_;
    }
    __device__ __forceinline__ const float* weights(int q) const { return weights_ + F::first_weight(q); }

    __device__ __forceinline__ void store(float* out, int tile, const Patch<F, S>& dx) const {
        int n, row;
        locate(tile, n, row);
        if (G::kPacked && n >= p_.n) return;
        float* at = out + (std::int64_t{n} * G::C + c) * (static_cast<int>(p_.plane()) * S * S) + row * G::IW + column_ * S;
#pragma unroll
        for (int y = 0; y < S * F::R; ++y)
#pragma unroll
            for (int k = 0; k < S * F::Q; k += 4) {
                float v[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) v[e] = dx[y % S][(k + e) % S][y / S][(k + e) / S];
                *reinterpret_cast<float4*>(at + y * G::IW + k) = make_float4(v[0], v[1], v[2], v[3]);
            }
    }
    int c;  // the lane's channel
    __device__ int tiles() const { return tiles_; }

private:
    // The lane's image, and the first input row of its patch.
    __device__ __forceinline__ void locate(int tile, int& n, int& row) const {
        G::start(p_, tile, n, row);
        if (G::kPacked) n += m_ / 8;
        row = (row + (G::kPacked ? m_ % 8 : m_)) * S;
    }

    // A convolution's gradient for a tile, and with the first convolution the lane's own input.
    __device__ __forceinline__ void ask(int tile, int q, int place) {
        if (tile < tiles_) {
            constexpr int kVectors = G::OW / 4, kRows = 32 / kVectors;  // rows that a warp asks for at a time
            static_assert(F::kPart % kRows == 0);
            const int row = threadIdx.x % 32 / kVectors, v = threadIdx.x % kVectors, plane = static_cast<int>(p_.plane());
            int n, first_row;
            G::start(p_, tile, n, first_row);
            const float* from = p_.dd_of(edge_, F::conv_of(q, kind_));
            const std::int64_t at = (std::int64_t{n} * G::C + first_) * plane + (first_row + row - 4) * G::OW + v * 4;
            float* to = warp_ + place * F::PLANE + row * F::PITCH + 4 + v * 4;
#pragma unroll
            for (int group = 0; group < F::kChannels; ++group)
#pragma unroll
                for (int image = 0; image < F::ROWS / F::kPart; ++image)
#pragma unroll
                    for (int k = 0; k < F::kPart; k += kRows) {
                        const bool there = static_cast<unsigned>(first_row + row - 4 + k) < static_cast<unsigned>(p_.oh) && (!G::kPacked || n + image < p_.n);
                        copy_async(to + group * F::kRing * F::PLANE + (image * F::kPart + k) * F::PITCH,
                                   there ? from + at + (image * G::C + group) * plane + k * G::OW : from, there);
                    }
            if (q == 0) {
                locate(tile, n, first_row);
                const bool there = !G::kPacked || n < p_.n;
                const float* x = x_ + (there ? n * in_.x.image + first_row * G::IW : 0);
                float* own = own_ + place / F::kCount * (32 * F::kOwn);
#pragma unroll
                for (int k = 0; k < F::kOwn; k += 4)
                    copy_async(own + 32 * k, x + k / (S * F::Q) * G::IW + k % (S * F::Q), there);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }

    const Plan<float>& p_;
    int edge_, kind_;
    ConvInput<float> in_;
    const float* x_;  // the lane's first column of its channel
    int tiles_, first_, m_, column_;
    float *warp_, *own_, *weights_;
};

// The sums of a channel's lanes.
template <typename F, int kCount>
__device__ __forceinline__ void channel_sums(float (&v)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k)
#pragma unroll
        for (int offset = F::kLanes / 2; offset > 0; offset /= 2) v[k] += __shfl_xor_sync(0xffffffffu, v[k], offset);
}

template <typename G, bool kAll, int kCount>
__device__ __forceinline__ void store_weight_sums(const Plan<float>& p, int edge, int conv, int c, float (&dw)[kCount]) {
    using F = Fp32Gradient<G, kAll>;
    channel_sums<F>(dw);
    float* share = p.ddw_partial + (std::int64_t{blockIdx.x} * p.edges + edge) * kDwPerChannel * G::C + dw_offset(conv) * G::C + c * kCount;
    if (threadIdx.x % F::kLanes == 0)
#pragma unroll
        for (int k = 0; k < kCount; ++k) share[k] = dw[k];
}

// All four convolutions that read a state: dx of their sum, before the ReLU.
template <typename G>
__device__ __forceinline__ void state_gradient(const Plan<float>& p, int edge, float* shared) {
    using F = Fp32Gradient<G, true>;
    Fp32GradientWarp<G, true> warp(p, edge, kSep3First, shared);
    warp.begin();
    float sep3[9] = {}, sep5[25] = {}, dil3[9] = {}, dil5[25] = {};
    for (int tile = blockIdx.x; tile < warp.tiles(); tile += gridDim.x) {
        Patch<F, G::S> x, dx = {};
        warp.await();
        warp.input(0, x);
        gradient_patch<G, F, 3, 1>(warp.gradient(0), warp.weights(0), x, dx, sep3);
        warp.release(tile, 0, 0);
        warp.await();
        gradient_patch<G, F, 5, 1>(warp.gradient(1), warp.weights(1), x, dx, sep5);
        warp.release(tile, 1, 1);
        warp.await();
        gradient_patch<G, F, 3, 2>(warp.gradient(2), warp.weights(2), x, dx, dil3);
        warp.release(tile, 2, 2);
        warp.await();
        gradient_patch<G, F, 5, 2>(warp.gradient(3), warp.weights(3), x, dx, dil5);
        warp.release(tile, 3, 3);
        warp.store(p.dx_of(edge), tile, dx);
    }
    store_weight_sums<G, true>(p, edge, kSep3First, warp.c, sep3);
    store_weight_sums<G, true>(p, edge, kSep5First, warp.c, sep5);
    store_weight_sums<G, true>(p, edge, kDil3, warp.c, dil3);
    store_weight_sums<G, true>(p, edge, kDil5, warp.c, dil5);
}

// The second half of a separable convolution: dx through the ReLU into h1, with the sums that the norm before it needs.
template <typename G, int K>
__device__ __forceinline__ void second_gradient(const Plan<float>& p, int edge, int conv, float* shared) {
    using F = Fp32Gradient<G, false>;
    Fp32GradientWarp<G, false> warp(p, edge, conv, shared);
    warp.begin();
    float dw[K * K] = {}, sums[2] = {};
    int place = 0;
    for (int tile = blockIdx.x; tile < warp.tiles(); tile += gridDim.x, place = (place + 1) % F::kRing) {
        Patch<F, 1> x, dx = {};
        warp.await();
        warp.input(place, x);
        gradient_patch<G, F, K, 1>(warp.gradient(place), warp.weights(0), x, dx, dw);
        warp.release(tile, 0, place);
#pragma unroll
        for (int r = 0; r < F::R; ++r)
#pragma unroll
            for (int q = 0; q < F::Q; ++q) {
                if (!(x[0][0][r][q] > 0)) dx[0][0][r][q] = 0;
                sums[0] += dx[0][0][r][q];
                sums[1] += dx[0][0][r][q] * x[0][0][r][q];
            }
        warp.store(p.h1_of(edge, conv), tile, dx);
    }
    channel_sums<F>(sums);
    if (threadIdx.x % F::kLanes == 0) p.partial[(std::int64_t{blockIdx.z} * G::C + warp.c) * gridDim.x + blockIdx.x] = {sums[0], sums[1]};
    store_weight_sums<G, false>(p, edge, conv, warp.c, dw);
}

// Grid: groups x channels / (4 * kChannels) x jobs. Kinds: the Conv where there is one, else unused.
template <typename G, bool kAll>
__global__ void __launch_bounds__(128, Fp32Gradient<G, kAll>::kBlocks) fp32_gradient_kernel(const __grid_constant__ Plan<float> p, const __grid_constant__ Jobs jobs) {
    wait_for_previous();
    extern __shared__ __align__(16) unsigned char shared[];
    const int edge = jobs.edge[blockIdx.z], conv = jobs.kind[blockIdx.z];
    float* room = reinterpret_cast<float*>(shared);
    if constexpr (kAll) state_gradient<G>(p, edge, room);
    else if (kernel_of(conv) == 3) second_gradient<G, 3>(p, edge, conv, room);
    else second_gradient<G, 5>(p, edge, conv, room);
}

}  // namespace hwnas::mixed_cell::cuda
