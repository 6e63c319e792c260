// Products of e4m3 matrices with scales, on Hopper (DeepSeek-V3, §3.3): activations and their gradients scaled by 1 x
// 128, weights by 128 x 128.
//
//   fp8_y    y[M, N] = x[M, K] · w[N, K]ᵀ; with wᵀ as w it is dx = dy · w too. a's scales: [ceil(K/128), rows]; b's:
// [parts, ceil(N/128), ceil(K/128)]
//   fp8_dw   dw[M, N] (+)= dyᵀ[M, R] · xᵀ[N, R]ᵀ: both quantised by 128 rows of a run (fp8_columns); scales [steps, M]
// and [steps, N]
//
// Order: the tensor core adds 128 terms (its sums of e4m3 have some 14 bits), then they are multiplied by both scales
// and added in f32: d = fma(sum, a·b, d), in
// order of k. As in hopper.cuh no row depends on others, and runs begin new blocks of 128, so cuts into micro-batches
// change no bit.
#pragma once
#include "products/tiles.cuh"
constexpr int F = 128, FP8_STAGES = 6, FP8_STAGE = 2 * F * F, FP8_BYTES = FP8_STAGES * FP8_STAGE + FP8_STAGES * 16;
template <class T>
__device__ __forceinline__ void fp8_store2(T *to, float a, float b);
template <>
__device__ __forceinline__ void fp8_store2<float>(float *to, float a, float b) {
  *(float2 *)to = make_float2(a, b);
}
template <>
__device__ __forceinline__ void fp8_store2<bf16>(bf16 *to, float a, float b) {
  *(uint32_t *)to = bf16x2(a, b);
}
// parts.offsets: of rows (y), or of steps of 128 columns of a and b (dw). rows_a, rows_b: of the scales.
template <bool DW, class T>
__device__ __forceinline__ void product_fp8(const TensorMap &a, const TensorMap &b, const float *scale_a,
                                            const float *scale_b, T *out, const Parts &parts, int m, int n, int k,
                                            int rows_a, int ldo, int go_on) {
  SMEM(smem);
  saddr base = smem_addr(smem), full = base + FP8_STAGES * FP8_STAGE, empty = full + FP8_STAGES * 8;
  int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < FP8_STAGES; s++) {
      mbar_init(full + s * 8, 1);
      mbar_init(empty + s * 8, 8);
    }
    mbar_fence();
  }
  __syncthreads();
  Tiles<F, F, DW> tiles(parts, {DW ? m : n, 0, 0}, n);
  Tile t{};
  int at = 0, blocks = (k + F - 1) / F;
  auto range = [&](int &first, int &count) {
    if (DW) {
      first = parts.offsets[t.part];
      count = parts.offsets[t.part + 1] - first;
    } else {
      first = 0;
      count = blocks;
    }
  };
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x != 0) return;
    for (int tile = blockIdx.x; tiles.find(tile, t); tile += gridDim.x) {
      int first, count;
      range(first, count);
      for (int i = 0; i < count; i++, at++) {
        int s = at % FP8_STAGES;
        saddr to = base + s * FP8_STAGE, bar = full + s * 8;
        mbar_wait(empty + s * 8, (at / FP8_STAGES & 1) ^ 1);
        mbar_arrive_tx(bar, FP8_STAGE);
        tma_load(to, &a, bar, (first + i) * F, DW ? t.m : t.row0 + t.m);
        tma_load(to + F * F, &b, bar, (first + i) * F, DW ? t.n : t.part * n + t.n);
      }
    }
    return;
  }
  setmaxnreg_inc<232>();
  int thread = threadIdx.x % 128, wg = group - 1, row_in = wg * 64 + thread / 32 * 16 + thread % 32 / 4;
  for (int tile = blockIdx.x; tiles.find(tile, t); tile += gridDim.x) {
    int rows = DW ? m : t.row_end - t.row0, first, count;
    range(first, count);
    T *to = out + (DW ? (size_t)t.part * m * ldo : (size_t)t.row0 * ldo);
    float d[F / 2], sum[F / 2];
#pragma unroll
    for (int i = 0; i < F / 2; i += 2) {
      int r = t.m + row_in + 8 * (i >> 1 & 1), c = t.n + i / 4 * 8 + thread % 4 * 2;
      bool held = DW && go_on && r < rows && c < n;
      d[i] = held ? (float)to[(size_t)r * ldo + c] : 0.0f;
      d[i + 1] = held ? (float)to[(size_t)r * ldo + c + 1] : 0.0f;
    }
    const float *sa = scale_a + (DW ? 0 : t.row0) + t.m + row_in,
                *sb = scale_b + (DW ? t.n + thread % 4 * 2 : (t.part * ((n + F - 1) / F) + t.n / F) * blocks);
    bool in0 = t.m + row_in < rows, in1 = t.m + row_in + 8 < rows;
#pragma unroll 1
    for (int i = 0; i < count; i++, at++) {
      int s = at % FP8_STAGES;
      saddr stage = base + s * FP8_STAGE;
      size_t block = first + i;
      float a0 = in0 ? sa[block * rows_a] : 0.0f, a1 = in1 ? sa[block * rows_a + 8] : 0.0f, b0 = DW ? 1.0f : sb[block];
      mbar_wait(full + s * 8, at / FP8_STAGES & 1);
      wgmma_fence();
#pragma unroll
      for (int kk = 0; kk < 4; kk++)
        wgmma_fp8(sum, k_major(stage + wg * 64 * F + kk * 32), k_major(stage + F * F + kk * 32), kk != 0);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_hold(sum);
      if (thread % 32 == 0) mbar_arrive(empty + s * 8);
      if (!DW) {
        a0 = __fmul_rn(a0, b0);
        a1 = __fmul_rn(a1, b0);
      }
#pragma unroll
      for (int j = 0; j < F / 2; j += 2) {
        float x = j >> 1 & 1 ? a1 : a0, y = x;
        if (DW) {
          const float *p = sb + block * n + j / 4 * 8;
          bool in = t.n + j / 4 * 8 + thread % 4 * 2 < n;
          x = __fmul_rn(x, in ? p[0] : 0.0f);
          y = __fmul_rn(y, in ? p[1] : 0.0f);
        }
        d[j] = __fmaf_rn(sum[j], x, d[j]);
        d[j + 1] = __fmaf_rn(sum[j + 1], y, d[j + 1]);
      }
    }
#pragma unroll
    for (int i = 0; i < F / 2; i += 2) {
      int r = t.m + row_in + 8 * (i >> 1 & 1), c = t.n + i / 4 * 8 + thread % 4 * 2;
      if (r < rows && c < n) fp8_store2(to + (size_t)r * ldo + c, d[i], d[i + 1]);
    }
  }
}
