// Output head and cross-entropy by tiles of the vocabulary: logits [T, V] never exist.
//
//   head_stats    logits of a tile of columns are a product's sums, in registers; what is kept of them is, for each
// row, m = max and
//                 l = Σ 2^((s - m)·log2 e), and the target's logit
//   head_join     logp[t] = s_target - lse, the tiles' m and l joined in the order of the columns; lse in base 2. 0
// where the target is IGNORE
//   head_dlogits  the same product again for a part of the vocabulary (as many columns as its buffer has): d =
// (2^(s·log2 e - lse) - [target])·coefficient[t],
//                 bf16 [T, part], of which dx = d · w (a product that goes on from part to part in f32) and dw = dᵀ · x
// are made by products/.
//
// A row depends on itself alone, so the sampler's log-probabilities are the trainer's: both come from head_stats and
// head_join.
// Sums: a thread its own columns in order, the quad's four, then tile after tile.
#pragma once
#include "prelude.cuh"
constexpr int IGNORE = -1;  // u32::MAX on the host
struct HeadStats {
  static constexpr bool PLAIN = false;
  float2 *parts;        // [ceil(V / width), T]
  float *target_logit;  // [T]
  const int *targets;
  int tokens, width;  // width: columns of a part
  template <int H>
  __device__ __forceinline__ void operator()(float (&d)[H], int row, int rows, int col, int n) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int r = row + 8 * h;
      bool in = r < rows;
      int target = in ? targets[r] : IGNORE;
      float m = __uint_as_float(0xff800000u);
#pragma unroll
      for (int i = 0; i < H; i += 4)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int c = col + i / 4 * 8 + e;
          if (c >= n) d[i + 2 * h + e] = __uint_as_float(0xff800000u);
          m = fmaxf(m, d[i + 2 * h + e]);
          if (c == target) target_logit[r] = d[i + 2 * h + e];
        }
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      float l = 0.0f, mc = __fmul_rn(m, LOG2E);
#pragma unroll
      for (int i = 0; i < H; i += 4)
#pragma unroll
        for (int e = 0; e < 2; e++) l = __fadd_rn(l, exp2_approx(__fmaf_rn(d[i + 2 * h + e], LOG2E, -mc)));
      l = __fadd_rn(l, __shfl_xor_sync(~0u, l, 1));
      l = __fadd_rn(l, __shfl_xor_sync(~0u, l, 2));
      if (in && threadIdx.x % 4 == 0 && col / width * width < n)
        parts[(size_t)(col / width) * tokens + r] = make_float2(m, l);
    }
  }
};
struct HeadDlogits {
  static constexpr bool PLAIN = false;
  bf16 *out;
  const float *lse, *coefficient;
  const int *targets;
  int first, ld;  // first column of the part, and the buffer's columns, an even number
  __device__ __forceinline__ static float gradient(float s, float lse, bool hit, float k) {
    return __fmul_rn(__fadd_rn(exp2_approx(__fmaf_rn(s, LOG2E, -lse)), hit ? -1.0f : 0.0f), k);
  }
  template <int H>
  __device__ __forceinline__ void operator()(float (&d)[H], int row, int rows, int col, int n) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int r = row + 8 * h;
      if (r >= rows) continue;
      int target = targets[r];
      float l = lse[r], k = target == IGNORE ? 0.0f : coefficient[r];
#pragma unroll
      for (int i = 0; i < H; i += 4) {
        int c = col + i / 4 * 8;
        bf16 *to = out + (size_t)r * ld + c;
        float x = gradient(d[i + 2 * h], l, first + c == target, k),
              y = gradient(d[i + 2 * h + 1], l, first + c + 1 == target, k);
        if (c + 1 < n) *(uint32_t *)to = bf16x2(x, y);
        else if (c < n) *to = f32_bf16(x);
      }
    }
  }
};
