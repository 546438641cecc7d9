// float32 gradients of the depthwise convolutions. As in bfloat16, a warp owns a channel and walks over tiles; a lane keeps the
// sums of all taps for its own pixels, and lanes are added once at the end.
#pragma once

#include "mixed_cell/fp32.cuh"

namespace hwnas::mixed_cell::cuda {

template <typename G>
struct Fp32Depthwise {
    using Out = Geometry<float, G::C, G::OW, 1>;  // the layout of gradient planes
    static constexpr int kWarpsHere = 4, kThreadsHere = 32 * kWarpsHere;
    static constexpr int kWarpElements = G::PLANE + Out::PLANE, kBytes = kWarpsHere * kWarpElements * 4;
};

// dx[S * m + i, S * column + j] for a patch of gradient pixels.
template <typename G, int K, int kDilation>
__device__ __forceinline__ void input_patch(const float* gradient, const float* weights, const Patch<typename Fp32Depthwise<G>::Out>& patch,
                                            float (&dx)[G::S][G::S][Patch<G>::R][4]) {
    using Out = typename Fp32Depthwise<G>::Out;
    if constexpr (G::S == 1) {
        depthwise_patch<Out, K, kDilation, true>(gradient, weights, patch, dx[0][0]);
    } else {
        constexpr int kPad = K / 2 * kDilation;
        const float* top = gradient + Out::row(patch.m) * Out::PITCH + patch.column;
        float w[K * K];
#pragma unroll
        for (int k = 0; k < K * K; ++k) w[k] = __ldg(weights + k);
#pragma unroll
        for (int shift = -2; shift <= 2; ++shift) {
#pragma unroll
            for (int r = 0; r < Patch<G>::R; ++r) {
                float window[12];
                load_window(top + (r + shift) * Out::PITCH, window);
#pragma unroll
                for (int a = 0; a < K; ++a) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        if (i + kPad - a * kDilation != 2 * shift) continue;
#pragma unroll
                        for (int b = 0; b < K; ++b)
#pragma unroll
                            for (int j = 0; j < 2; ++j) {
                                if ((j + kPad - b * kDilation) % 2 != 0) continue;
#pragma unroll
                                for (int q = 0; q < 4; ++q)
                                    dx[i][j][r][q] = fmaf(w[a * K + b], window[4 + q + (j + kPad - b * kDilation) / 2], dx[i][j][r][q]);
                            }
                    }
                }
            }
        }
    }
}

// dw[a][b] += sum over the patch of gradient * x
template <typename G, int K, int kDilation>
__device__ __forceinline__ void weight_patch(const float* plane, const float (&gradient)[Patch<G>::R][4], const Patch<G>& patch, float (&dw)[K * K]) {
    constexpr int kPad = K / 2 * kDilation, R = Patch<G>::R, kWidth = 4 * G::S + 8;
    const float* top = plane + (G::row(patch.m) - kPad) * G::PITCH + patch.column * G::S;
#pragma unroll
    for (int row = 0; row < G::S * (R - 1) + (K - 1) * kDilation + 1; ++row) {
        float window[kWidth];
        load_window(top + row * G::PITCH, window);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int distance = row - G::S * r;
            if (distance < 0 || distance % kDilation != 0 || distance / kDilation >= K) continue;
#pragma unroll
            for (int k = 0; k < K; ++k)
#pragma unroll
                for (int q = 0; q < 4; ++q)
                    dw[distance / kDilation * K + k] = fmaf(gradient[r][q], window[4 + G::S * q + k * kDilation - kPad], dw[distance / kDilation * K + k]);
        }
    }
}

// Input gradient of all four convolutions that read a state. Grid: groups x channels / 4 x edges.
template <typename G>
__global__ void __launch_bounds__(128) fp32_state_input_kernel(Plan<float> p, Jobs edges) {
    wait_for_previous();
    using F = Fp32Depthwise<G>;
    using Out = typename F::Out;
    constexpr int R = Patch<G>::R;
    extern __shared__ __align__(16) unsigned char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.y * F::kWarpsHere + warp, edge = edges.edge[blockIdx.z];
    float* gradient = reinterpret_cast<float*>(shared) + warp * F::kWarpElements;
    clear_sides<Out>(1, gradient);
    const Patch<Out> patch;
    const int tiles = G::tiles(p.n, p.oh), strips = G::kPacked ? 1 : p.oh / 16;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float dx[G::S][G::S][R][4] = {};
        const auto add = [&](int conv, auto k, auto dilation) {
            constexpr int K = decltype(k)::value, kDilation = decltype(dilation)::value;
            __syncwarp();
            load_plane<Out, false, float>(p, p.dense(p.dd_of(edge, conv)), nullptr, c, tile, gradient);
            __syncwarp();
            input_patch<G, K, kDilation>(gradient, p.dw_of(edge, conv) + c * K * K, patch, dx);
        };
        using std::integral_constant;
        add(kSep3First, integral_constant<int, 3>{}, integral_constant<int, 1>{});
        add(kSep5First, integral_constant<int, 5>{}, integral_constant<int, 1>{});
        add(kDil3, integral_constant<int, 3>{}, integral_constant<int, 2>{});
        add(kDil5, integral_constant<int, 5>{}, integral_constant<int, 2>{});
        const std::int64_t plane = p.plane() * G::S * G::S;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int m = patch.m + r, n = G::kPacked ? tile * 2 + m / 8 : tile / strips;
            if (n >= p.n) continue;
#pragma unroll
            for (int i = 0; i < G::S; ++i) {
                const int y = (G::kPacked ? m % 8 : tile % strips * 16 + m) * G::S + i;
                float* to = p.dx_of(edge) + (std::int64_t{n} * G::C + c) * plane + y * G::IW + patch.column * G::S;
#pragma unroll
                for (int q = 0; q < 4; q += 4 / G::S) {
                    if (G::S == 1) *reinterpret_cast<float4*>(to) = make_float4(dx[i][0][r][0], dx[i][0][r][1], dx[i][0][r][2], dx[i][0][r][3]);
                    else *reinterpret_cast<float4*>(to + 2 * q) = make_float4(dx[i][0][r][q], dx[i][G::S - 1][r][q], dx[i][0][r][q + 1], dx[i][G::S - 1][r][q + 1]);
                }
            }
        }
    }
}

// Weight gradient of one convolution; with kSecond (stride 1) also its input gradient through ReLU into h1, with the sums that
// the norm before it needs. Grid: groups x channels / 4 x jobs.
template <typename G, bool kSecond, int K, int kDilation>
__device__ __forceinline__ void one_convolution(const Plan<float>& p, int edge, int conv, int c, float* plane) {
    using Out = typename Fp32Depthwise<G>::Out;
    constexpr int R = Patch<G>::R;
    const int lane = threadIdx.x % 32;
    float* gradient = plane + G::PLANE;
    const ConvInput<float> in(p, edge, conv);
    const Patch<G> patch;
    const Patch<Out> out_patch;
    float dw[K * K] = {}, sum_u = 0, sum_uz = 0;
    const int tiles = G::tiles(p.n, p.oh), strips = G::kPacked ? 1 : p.oh / 16;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        __syncwarp();
        load_plane<G>(p, in.x, in.norm, c, tile, plane);
        load_plane<Out, false, float>(p, p.dense(p.dd_of(edge, conv)), nullptr, c, tile, gradient);
        __syncwarp();
        float own[R][4];
#pragma unroll
        for (int r = 0; r < R; ++r) load_window(gradient + Out::row(patch.m + r) * Out::PITCH + 4 + patch.column, own[r]);
        weight_patch<G, K, kDilation>(plane, own, patch, dw);
        if constexpr (kSecond) {
            float dx[R][4] = {};
            depthwise_patch<Out, K, kDilation, true>(gradient, p.dw_of(edge, conv) + c * K * K, out_patch, dx);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const int m = patch.m + r, n = G::kPacked ? tile * 2 + m / 8 : tile / strips, y = G::kPacked ? m % 8 : tile % strips * 16 + m;
                if (n >= p.n) continue;
                float z[4];
                load_window(plane + G::row(m) * G::PITCH + 4 + patch.column, z);
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    if (!(z[q] > 0)) dx[r][q] = 0;
                    sum_u += dx[r][q];
                    sum_uz += dx[r][q] * z[q];
                }
                *reinterpret_cast<float4*>(p.h1_of(edge, conv) + (std::int64_t{n} * G::C + c) * p.plane() + y * G::OW + patch.column) =
                    make_float4(dx[r][0], dx[r][1], dx[r][2], dx[r][3]);
            }
        }
    }
    if (kSecond) {
        sum_u = warp_sum(sum_u);
        sum_uz = warp_sum(sum_uz);
        if (lane == 0) p.partial[(std::int64_t{blockIdx.z} * G::C + c) * gridDim.x + blockIdx.x] = {sum_u, sum_uz};
    }
    float* share = p.ddw_partial + (std::int64_t{blockIdx.x} * p.edges + edge) * kDwPerChannel * G::C + dw_offset(conv) * G::C + c * K * K;
#pragma unroll
    for (int k = 0; k < K * K; ++k) {
        const float sum = warp_sum(dw[k]);
        if (lane == 0) share[k] = sum;
    }
}

template <typename G, bool kSecond>
__global__ void __launch_bounds__(128) fp32_weight_kernel(Plan<float> p, Jobs jobs) {
    wait_for_previous();
    using F = Fp32Depthwise<G>;
    extern __shared__ __align__(16) unsigned char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.y * F::kWarpsHere + warp;
    float* plane = reinterpret_cast<float*>(shared) + warp * F::kWarpElements;
    clear_sides<G>(1, plane);
    clear_sides<typename F::Out>(1, plane + G::PLANE);
    const int edge = jobs.edge[blockIdx.z], conv = jobs.kind[blockIdx.z];
    with_kernel(conv, [&](auto k, auto dilation) {
        if constexpr (!kSecond || decltype(dilation)::value == 1)
            one_convolution<G, kSecond, decltype(k)::value, decltype(dilation)::value>(p, edge, conv, c, plane);
    });
}

}  // namespace hwnas::mixed_cell::cuda
