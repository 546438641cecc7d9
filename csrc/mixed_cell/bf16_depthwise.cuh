// bfloat16 gradients of the depthwise convolutions on tensor cores. A warp owns a channel and walks over tiles, so weight
// gradients stay in its registers; warps share nothing.
#pragma once

#include "mixed_cell/bf16.cuh"

namespace hwnas::mixed_cell::cuda {

// What a warp computes: for all four convolutions that read a state the gradients of input and weights, or of the input alone; or for
// one convolution that of the weights, or, for a second half, both.
enum class Depthwise { kState, kStateInput, kOneWeight, kSecond };

template <typename G, Depthwise kWhat>
struct DepthwiseBackward {
    static constexpr bool kInput = kWhat != Depthwise::kOneWeight, kWeight = kWhat != Depthwise::kStateInput;
    static constexpr bool kAll = kWhat == Depthwise::kState || kWhat == Depthwise::kStateInput;
    static constexpr int kCount = kAll ? 4 : 1, kTapsHeld = kAll ? 3 + 5 + 3 + 5 : 5;
    static constexpr int kWarpsHere = 4, kThreadsHere = 32 * kWarpsHere;
    // Gradient planes have 8 columns left of the first (aligned for ldmatrix); a row's right border is the next row's left one.
    static constexpr int kPart = G::kPacked ? 16 : 24, DROWS = G::kPacked ? 2 * kPart : kPart, DPITCH = G::OW + 8, DPLANE = DROWS * DPITCH + 8;
    static constexpr int kInputTiles = G::S * G::S * G::NT;  // 16 x 8 blocks of the input's gradient
    static constexpr int kWeightRows = G::S;                 // 16-column blocks of the window
    static constexpr int kBandWords = kInput ? kTapsHeld * kForwardWords : 0;
    static constexpr int kPlaneElements = G::PLANE + 2 * kCount * DPLANE + 2 * kBandWords;
    static constexpr int kSumElements = kWeight ? kTapsHeld * kWeightRows * 16 * 8 * 2 : 0;  // the weight gradients' sums reuse the planes
    static constexpr int kWarpElements = ((kPlaneElements > kSumElements ? kPlaneElements : kSumElements) + 7) / 8 * 8;
    static constexpr int kBytes = kWarpsHere * kWarpElements * 2;

    __device__ static int conv_of(int q, int kind) { return !kAll ? kind : q == 0 ? kSep3First : q == 1 ? kSep5First : q == 2 ? kDil3 : kDil5; }
    static constexpr int size_of(int q) { return !kAll || q % 2 ? 5 : 3; }
    static constexpr int first_tap(int q) { return q == 0 ? 0 : q == 1 ? 3 : q == 2 ? 8 : 11; }
    static constexpr int kWeights = kAll ? 9 + 25 + 9 + 25 : 25;  // of a channel, conv after conv, as the launch takes them
    __device__ static int first_weight(int q) { return q == 0 ? 0 : q == 1 ? 9 : q == 2 ? 34 : 43; }
    __device__ static int conv_at(int weight) { return !kAll || weight < 9 ? 0 : weight < 34 ? 1 : weight < 43 ? 2 : 3; }
    // A channel's bands [tap, kForwardWords]: a zero, then (w[i], w[i - S]), i from 0 on; zeros as in TapRow. `weights`: room for
    // kWeights.
    __device__ static void lay_bands(const Plan<bf16>& p, int edge, int kind, int c, float* weights, unsigned* bands) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < (kWeights + 31) / 32; ++k) {  // all loads in flight
            const int i = lane + 32 * k, q = conv_at(i), conv = conv_of(q, kind), size = kernel_of(conv), at = i - first_weight(q);
            if (i < kWeights && at < size * size) weights[i] = __ldg(p.dw_of(edge, conv) + c * size * size + at);
        }
        __syncwarp();
        for (int i = lane; i < kBandWords; i += 32) {
            const int tap = i / kForwardWords, word = i % kForwardWords, q = !kAll || tap < 3 ? 0 : tap < 8 ? 1 : tap < 11 ? 2 : 3;
            const int conv = conv_of(q, kind), size = kernel_of(conv), t = tap - first_tap(q);
            const TapRow row{weights + first_weight(q) + (t < size ? t : 0) * size, size, dilation_of(conv)};
            bands[i] = word == 0 || t >= size ? 0u : pack(row(word - 1), row(word - 1 - G::S));
        }
        __syncwarp();
    }
    __device__ static int drow(int m) { return G::kPacked ? m / 8 * kPart + m % 8 + 4 : m + 4; }
};

// Asks for a tile's gradient of one channel; rows beyond the image become zero.
template <typename D, typename G>
__device__ __forceinline__ void ask_gradient(const Plan<bf16>& p, const bf16* dd, int tile, bf16* plane) {
    constexpr int kVectors = G::OW / 8, kTotal = D::DROWS * kVectors;
    const int strips = G::kPacked ? 1 : p.oh / 16;
#pragma unroll
    for (int i = threadIdx.x % 32; i < kTotal; i += 32) {
        const int v = i % kVectors, row = i / kVectors;
        const int n = G::kPacked ? tile * 2 + row / D::kPart : tile / strips;
        const int y = G::kPacked ? row % D::kPart - 4 : tile % strips * 16 + row - 4;
        const bool inside = y >= 0 && y < p.oh && n < p.n;
        copy_async(plane + row * D::DPITCH + 8 + v * 8, inside ? dd + std::int64_t{n} * G::C * p.plane() + y * G::OW + v * 8 : dd, inside);
    }
}

// Grid: groups x channels / 4 x jobs. Kinds: the Conv for kOneWeight and kSecond, else unused. The next tile is on its way while
// a warp works on one: gradients go straight into the other set of planes, the input, which must be rectified, into registers.
template <typename G, Depthwise kWhat>
__global__ void __launch_bounds__(128, kWhat == Depthwise::kState ? 3 : 4) depthwise_backward_mma_kernel(const __grid_constant__ Plan<bf16> p, const __grid_constant__ Jobs jobs) {
    wait_for_previous();
    using D = DepthwiseBackward<G, kWhat>;
    extern __shared__ __align__(16) unsigned char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.y * D::kWarpsHere + warp;
    const int edge = jobs.edge[blockIdx.z], kind = D::kAll ? int{kSep3First} : jobs.kind[blockIdx.z];
    bf16* plane = reinterpret_cast<bf16*>(shared) + warp * D::kWarpElements;
    bf16* buffers = plane + G::PLANE;
    const unsigned* bands = reinterpret_cast<const unsigned*>(buffers + 2 * D::kCount * D::DPLANE);
    const ConvInput<bf16> in(p, edge, kind);
    const Pair<float> norm = in.norm ? in.norm[c] : Pair<float>{};
    const int tiles = G::tiles(p.n, p.oh), strips = G::kPacked ? 1 : p.oh / 16;
    typename Rows<G>::Words words;
    const auto ask = [&](int tile, bf16* gradients) {
#pragma unroll
        for (int q = 0; q < D::kCount; ++q)
            ask_gradient<D, G>(p, p.dd_of(edge, D::conv_of(q, kind)) + std::int64_t{c} * p.plane(), tile, gradients + q * D::DPLANE);
        if (kWhat != Depthwise::kStateInput) Rows<G>(p, in.x, tile, c).load(0, words);
    };
    if (static_cast<int>(blockIdx.x) < tiles) ask(blockIdx.x, buffers);
    for (int q = 0; q < 2 * D::kCount; ++q)
        for (int row = lane; row <= D::DROWS; row += 32) *reinterpret_cast<uint4*>(buffers + q * D::DPLANE + row * D::DPITCH) = make_uint4(0, 0, 0, 0);
    if (D::kInput) D::lay_bands(p, edge, kind, c, reinterpret_cast<float*>(plane), const_cast<unsigned*>(bands));
    clear_sides<G>(1, plane);

    float dw[D::kWeight ? D::kTapsHeld : 1][D::kWeightRows][4] = {};
    float sum_u = 0, sum_uz = 0;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
        bf16* gradients = buffers + turn * D::kCount * D::DPLANE;
        __syncwarp();  // the tile before is done with
        if (kWhat != Depthwise::kStateInput) Rows<G>(p, in.x, tile, c).put(words, in.norm != nullptr, norm, plane);
        copies_arrived();
        __syncwarp();
        if (tile + static_cast<int>(gridDim.x) < tiles) ask(tile + gridDim.x, buffers + (turn ^ 1) * D::kCount * D::DPLANE);
        float dx[D::kInput ? D::kInputTiles : 1][4] = {};
#pragma unroll
        for (int q = 0; q < D::kCount; ++q) {
            const int conv = D::conv_of(q, kind), dil = dilation_of(conv), pad = pad_of(conv);
            const bf16* gradient = gradients + q * D::DPLANE;
            int word[2];  // of a row's band
#pragma unroll
            for (int r = 0; r < 2; ++r) {  // gradient column w0 / S - 4 + k reaches input column w0 + n
                const int distance = lane / 4 + pad + 4 * G::S - G::S * (lane % 4 * 2 + r * 8);
                word[r] = distance >= 0 && distance <= 2 * pad + G::S ? distance + 1 : 0;
            }
            unsigned own[G::NT][2];  // the tile's gradient, [rows, 8 columns]
#pragma unroll
            for (int nt = 0; D::kWeight && nt < G::NT; ++nt) ldmatrix2_trans(own[nt], gradient + D::drow(lane % 16) * D::DPITCH + 8 + nt * 8);
#pragma unroll
            for (int t = 0; t < D::size_of(q); ++t) {
                if (!D::kAll && t >= kernel_of(conv)) continue;
                const int tap = D::first_tap(q) + t;
                if (D::kInput) {
                    const unsigned b0 = bands[tap * kForwardWords + word[0]], b1 = bands[tap * kForwardWords + word[1]];
                    // Input row S * m + parity takes kernel row t from gradient row m + shift.
#pragma unroll
                    for (int parity = 0; parity < G::S; ++parity) {
                        const int twice = parity + pad - t * dil;
                        if (G::S == 2 && twice % 2 != 0) continue;
                        const int shift = twice / G::S;
                        const bf16* top = gradient + (D::drow(lane / 4) + shift) * D::DPITCH + lane % 4 * 2 + 4;
                        const bf16* bottom = gradient + (D::drow(lane / 4 + 8) + shift) * D::DPITCH + lane % 4 * 2 + 4;
                        const auto pair = [](const bf16* at) { return *reinterpret_cast<const unsigned*>(at); };
                        unsigned a[4] = {pair(top), pair(bottom), pair(top + 8), pair(bottom + 8)};
#pragma unroll
                        for (int nt = 0; nt < G::S * G::NT; ++nt) {
                            const int column = nt * 8 / G::S;  // the window starts 4 columns before it
                            if (G::S == 1 && nt > 0) {         // and shares 8 of them with the one before
                                a[0] = a[2], a[1] = a[3], a[2] = pair(top + column + 8), a[3] = pair(bottom + column + 8);
                            } else if (G::S == 2) {
                                a[0] = pair(top + column), a[1] = pair(bottom + column), a[2] = pair(top + column + 8), a[3] = pair(bottom + column + 8);
                            }
                            mma16(dx[parity * G::S * G::NT + nt], a, b0, b1);
                        }
                    }
                }
                if (D::kWeight) {
                    // [window columns, 8 output columns], summed over the tile's 16 rows; the weights' gradients lie on its diagonals.
                    const bf16* at = plane + (G::row(lane % 8 + lane / 16 * 8) + t * dil - pad) * G::PITCH + lane / 8 % 2 * 8;
                    unsigned a[4];
                    if (G::S == 1) ldmatrix4_trans(a, at);
#pragma unroll
                    for (int nt = 0; nt < G::NT; ++nt) {
                        if (G::S == 1) {
                            mma16(dw[tap][0], a, own[nt][0], own[nt][1]);
                            if (nt + 1 == G::NT) continue;
                            unsigned next[2];  // columns that the next window adds: rows 0..7, 8..15
                            ldmatrix2_trans(next, plane + (G::row(lane % 16) + t * dil - pad) * G::PITCH + nt * 8 + 16);
                            a[0] = a[1], a[2] = a[3], a[1] = next[0], a[3] = next[1];
                        } else {
#pragma unroll
                            for (int block = 0; block < D::kWeightRows; ++block) {
                                ldmatrix4_trans(a, at + nt * 16 + block * 16);
                                mma16(dw[tap][block], a, own[nt][0], own[nt][1]);
                            }
                        }
                    }
                }
            }
        }
        if (!D::kInput) continue;
        // Rows lane / 4 and lane / 4 + 8 of the tile; a pair of column blocks at a time where there are two.
        bf16* out = D::kAll ? p.dx_of(edge) : p.h1_of(edge, kind);
        const std::int64_t input_plane = p.plane() * G::S * G::S;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int m = lane / 4 + half * 8;
            const int n = G::kPacked ? tile * 2 + half : tile / strips;
            if (n >= p.n) continue;
#pragma unroll
            for (int parity = 0; parity < G::S; ++parity) {
                const int y = (G::kPacked ? m % 8 : tile % strips * 16 + m) * G::S + parity;
                bf16* to = out + (std::int64_t{n} * G::C + c) * input_plane + y * G::IW + lane % 4 * 2;
#pragma unroll
                for (int nt = 0; nt < G::S * G::NT; ++nt) {
                    const float* v = dx[D::kInput ? parity * G::S * G::NT + nt : 0] + 2 * half;
                    unsigned word = pack(v[0], v[1]);
                    if (!D::kAll) {  // back through the ReLU, whose output is at hand
                        const float2 z = unpack(*reinterpret_cast<const unsigned*>(plane + G::row(m) * G::PITCH + 4 + nt * 8 + lane % 4 * 2));
                        float2 u = unpack(word);
                        u.x = z.x > 0 ? u.x : 0;
                        u.y = z.y > 0 ? u.y : 0;
                        word = pack(u.x, u.y);
                        sum_u += u.x + u.y;
                        sum_uz += u.x * z.x + u.y * z.y;
                    }
                    *reinterpret_cast<unsigned*>(to + nt * 8) = word;
                }
            }
        }
    }
    if (kWhat == Depthwise::kSecond) {
        sum_u = warp_sum(sum_u);
        sum_uz = warp_sum(sum_uz);
        if (lane == 0) p.partial[(std::int64_t{blockIdx.z} * G::C + c) * gridDim.x + blockIdx.x] = {sum_u, sum_uz};
    }
    if (!D::kWeight) return;
    // All taps' matrices to shared memory, where the planes were; then a lane adds up diagonals.
    float* matrices = reinterpret_cast<float*>(plane);
    float* share = p.ddw_partial + (std::int64_t{blockIdx.x} * p.edges + edge) * kDwPerChannel * G::C;
    constexpr int kMatrix = D::kWeightRows * 16 * 8;
    __syncwarp();
#pragma unroll
    for (int tap = 0; tap < D::kTapsHeld; ++tap)
#pragma unroll
        for (int k = 0; k < D::kWeightRows; ++k) {
            const float* v = dw[D::kWeight ? tap : 0][k];
            float* at = matrices + tap * kMatrix + (k * 16 + lane / 4) * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(at) = make_float2(v[0], v[1]);
            *reinterpret_cast<float2*>(at + 64) = make_float2(v[2], v[3]);
        }
    __syncwarp();
    for (int i = lane; i < D::kWeights; i += 32) {
        const int q = D::conv_at(i), conv = D::conv_of(q, kind), size = kernel_of(conv), at = i - D::first_weight(q);
        if (at >= size * size) continue;
        const float* diagonal = matrices + (D::first_tap(q) + at / size) * kMatrix + (4 - pad_of(conv) + at % size * dilation_of(conv)) * 8;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n) sum += diagonal[G::S * n * 8 + n];
        share[dw_offset(conv) * G::C + c * size * size + at] = sum;
    }
}

}  // namespace hwnas::mixed_cell::cuda
