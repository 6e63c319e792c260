// The products of hopper.cuh with mma.sync and cp.async: for sm_80 and later, and on Hopper for shapes that TMA does
// not take
// (rows whose length is no multiple of 16 bytes) and for rows that are gathered on the way.
//
// Order: as there, but in steps of 32 terms, each as two mma of 16. Which of the two files computes a product depends
// on its
// n, k and strides alone, never on the number of rows: they do not have the same bits.
//
// a: K-major [rows, k] (y, dx) or MN-major [rows, m] (dw). b: K-major [parts·n, k] (y), MN-major [parts·k, n] (dx) or
// [rows, n] (dw). gather, if not null: row r of x (y: of a; dw: of b) is row gather[r] of what the pointer points at.
// A block of 256 threads takes the tiles blockIdx.x, + gridDim.x, ...; a warp multiplies 64 x 32.
#pragma once
#include "products/tiles.cuh"
constexpr int AM = 128, AN = 128, AK = 32, AMPERE_STAGES = 4, AMPERE_STAGE = (AM + AN) * AK * 2,
              AMPERE_BYTES = AMPERE_STAGES * AMPERE_STAGE;
template <class T>
__device__ __forceinline__ float as_f32(T v);
template <>
__device__ __forceinline__ float as_f32(float v) {
  return v;
}
template <>
__device__ __forceinline__ float as_f32(bf16 v) {
  return bf16_f32(v);
}
template <class T>
__device__ __forceinline__ T from_f32(float v);
template <>
__device__ __forceinline__ float from_f32(float v) {
  return v;
}
template <>
__device__ __forceinline__ bf16 from_f32(float v) {
  return f32_bf16(v);
}
// Address of a chunk of 8 numbers in a K-major tile (rows of 32) and in an MN-major one (rows of 128).
__device__ __forceinline__ saddr k_chunk(saddr tile, int row, int chunk) {
  return tile + row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}
__device__ __forceinline__ saddr mn_chunk(saddr tile, int row, int chunk) {
  return tile + row * 256 + ((chunk ^ (row & 7)) << 4);
}
// Eight numbers to shared memory, of which the first `count` exist.
__device__ __forceinline__ void copy8(saddr to, const bf16 *from, int count, bool vec) {
  count = count < 0 ? 0 : count > 8 ? 8 : count;
  if (vec) {
    cp_async16(to, from, 2 * count);
    return;
  }
  uint32_t v[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    v[i] = (2 * i < count ? (uint32_t)from[2 * i] : 0) | (2 * i + 1 < count ? (uint32_t)from[2 * i + 1] << 16 : 0);
  st_shared16(to, make_uint4(v[0], v[1], v[2], v[3]));
}
// What becomes of a warp's sums, if not `out`, 16 rows at a time: see head.cuh and hopper.cuh.
struct Store80 {
  static constexpr bool PLAIN = true;
  template <int H>
  __device__ void operator()(float (&)[H], int, int, int, int) const {}
};
template <int TA, int TB, class T, class E = Store80>
__device__ __forceinline__ void product80(const bf16 *a, const bf16 *b, T *out, const Parts &parts, const int *gather,
                                          int m, int n, int k, int lda, int ldb, int ldo, int go_on,
                                          const E &epilogue = E()) {
  constexpr bool RAGGED_K = TA;
  SMEM(smem);
  saddr base = smem_addr(smem);
  int thread = threadIdx.x, lane = thread % 32, wm = thread / 32 / 4 * 64, wn = thread / 32 % 4 * 32;
  bool vec = lda % 8 == 0 && ldb % 8 == 0 && (uint64_t)a % 16 == 0 && (uint64_t)b % 16 == 0;
  Tiles<AM, AN, RAGGED_K> tiles(parts, {RAGGED_K ? m : n, 0, 0}, n);
  Tile t;
  for (int tile = blockIdx.x; tiles.find(tile, t); tile += gridDim.x) {
    int rows = RAGGED_K ? m : t.row_end - t.row0;
    T *to = out + (RAGGED_K ? (size_t)t.part * m * ldo : (size_t)t.row0 * ldo);
    Runs<AK> runs(parts, t.part);
    int steps = RAGGED_K ? runs.steps() : (k + AK - 1) / AK;
    auto load = [&](int step) {
      if (step < steps) {
        saddr sa = base + step % AMPERE_STAGES * AMPERE_STAGE, sb = sa + AM * AK * 2;
        int row = 0, count = RAGGED_K ? runs.next(row) : 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          int i = thread + j * 256;
          if (TA) {
            int r = i / 16, c = i % 16;
            copy8(mn_chunk(sa, r, c), a + (size_t)(row + (r < count ? r : 0)) * lda + t.m + c * 8,
                  r < count ? m - t.m - c * 8 : 0, vec);
          } else {
            int r = i / 4, c = i % 4, at = t.m + r;
            bool in = at < rows;
            at = in ? t.row0 + at : t.row0;
            copy8(k_chunk(sa, r, c), a + (size_t)(gather ? gather[at] : at) * lda + step * AK + c * 8,
                  in ? k - step * AK - c * 8 : 0, vec);
          }
          if (TB) {
            int r = i / 16, c = i % 16;
            bool in = RAGGED_K ? r < count : step * AK + r < k;
            int at = RAGGED_K ? row + (in ? r : 0) : t.part * k + (in ? step * AK + r : 0);
            if (RAGGED_K && gather) at = gather[at];
            copy8(mn_chunk(sb, r, c), b + (size_t)at * ldb + t.n + c * 8, in ? n - t.n - c * 8 : 0, vec);
          } else {
            int r = i / 4, c = i % 4;
            bool in = t.n + r < n;
            copy8(k_chunk(sb, r, c), b + (size_t)(t.part * n + (in ? t.n + r : 0)) * ldb + step * AK + c * 8,
                  in ? k - step * AK - c * 8 : 0, vec);
          }
        }
      }
      cp_async_commit();
    };
    float d[4][4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int r = t.m + wm + i * 16 + lane / 4 + e / 2 * 8, c = t.n + wn + j * 8 + lane % 4 * 2 + e % 2;
          d[i][j][e] = E::PLAIN && go_on && r < rows && c < n ? as_f32(to[(size_t)r * ldo + c]) : 0.0f;
        }
    for (int s = 0; s < AMPERE_STAGES - 1; s++) load(s);
    for (int step = 0; step < steps; step++) {
      cp_async_wait<AMPERE_STAGES - 2>();
      __syncthreads();  // the step's numbers are there for all, and all have done with the stage that is loaded next
      load(step + AMPERE_STAGES - 1);
      saddr sa = base + step % AMPERE_STAGES * AMPERE_STAGE, sb = sa + AM * AK * 2;
#pragma unroll
      for (int kk = 0; kk < AK / 16; kk++) {
        uint32_t fa[4][4], fb[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (TA)
            ldmatrix4<true>(fa[i], mn_chunk(sa, kk * 16 + lane % 8 + lane / 16 * 8, (wm + i * 16) / 8 + lane / 8 % 2));
          else ldmatrix4<false>(fa[i], k_chunk(sa, wm + i * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
        for (int j = 0; j < 2; j++)
          if (TB) ldmatrix4<true>(fb[j], mn_chunk(sb, kk * 16 + lane % 16, (wn + j * 16) / 8 + lane / 16));
          else ldmatrix4<false>(fb[j], k_chunk(sb, wn + j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 4; j++) mma_16816(d[i][j], fa[i], fb[j / 2] + j % 2 * 2);
      }
    }
    cp_async_wait<0>();
    __syncthreads();
    if (!E::PLAIN) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float flat[16];
#pragma unroll
        for (int j = 0; j < 16; j++) flat[j] = d[i][j / 4][j % 4];
        epilogue(flat, t.m + wm + i * 16 + lane / 4, rows, t.n + wn + lane % 4 * 2, n);
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int r = t.m + wm + i * 16 + lane / 4 + e / 2 * 8, c = t.n + wn + j * 8 + lane % 4 * 2 + e % 2;
          if (r < rows && c < n) to[(size_t)r * ldo + c] = from_f32<T>(d[i][j][e]);
        }
  }
}
