// Attention of packed sequences on Hopper: out[T, H·DV] and lse[H, T]; see tile.cuh for the order.
//
// A block computes 128 queries of a head: warpgroup 0 loads, 1 and 2 have 64 queries each. grid: (heads, at least the
// sum of
// ceil(length / 128)). While a tile's scores become weights, the tensor core adds the tile before to o.
#pragma once
#include "attention/tile.cuh"
constexpr int QT = 128, KT = 128, KV_STAGES = 2;
template <int DK, int DV>
struct Forward {
  static constexpr bool SPLITS = DK <= 128;
  static constexpr int Q = QT * DK * 2, K = KT * DK * 2, V = KT * DV * 2, BARS = Q + KV_STAGES * (K + V),
                       TOTAL = BARS + 8 + KV_STAGES * 32, BYTES = TOTAL + (SPLITS ? QT * DV * 4 : 0);
};
// s = q · kᵀ: q 64 rows of chunks of 64 columns, `q_chunk` bytes apart; k likewise.
template <int DK, int H>
__device__ __forceinline__ void scores(float (&s)[H], saddr q, int q_chunk, saddr k, int k_chunk) {
#pragma unroll
  for (int i = 0; i < DK / 16; i++)
    wgmma_ss<0, 0>(s, k_major(q + i / 4 * q_chunk + i % 4 * 32), k_major(k + i / 4 * k_chunk + i % 4 * 32), i != 0);
}
// o += p · v over the tile's 2·H keys; v's chunks of 64 columns are `v_chunk` bytes apart.
template <int H, int O>
__device__ __forceinline__ void weighted(float (&o)[O], const uint32_t (&p)[H], saddr v, int v_chunk) {
#pragma unroll
  for (int i = 0; i < H / 4; i++) wgmma_rs<1>(o, p + 4 * i, mn_major(v + i * 2048, v_chunk), 1);
}
template <int DK, int OWN, int DV>
__device__ __forceinline__ void forward(const TensorMap &tq, const TensorMap &tk, const TensorMap &ts,
                                        const TensorMap &tv, bf16 *out, int ldo, float *lse, const AttentionArgs &a) {
  using F = Forward<DK, DV>;
  SMEM(smem);
  saddr base = smem_addr(smem), sq = base, sk = base + F::Q, sv = sk + KV_STAGES * F::K;
  saddr q_full = base + F::BARS, k_full = q_full + 8, k_empty = k_full + 8 * KV_STAGES,
        v_full = k_empty + 8 * KV_STAGES, v_empty = v_full + 8 * KV_STAGES;
  int start, length, tile, head = blockIdx.x, kv = head / a.group;
  if (!sequence_tile(a, blockIdx.y, QT, start, length, tile)) return;
  if (threadIdx.x == 0) {
    mbar_init(q_full, 1);
    for (int s = 0; s < KV_STAGES; s++) {
      mbar_init(k_full + 8 * s, 1);
      mbar_init(k_empty + 8 * s, 8);
      mbar_init(v_full + 8 * s, 1);
      mbar_init(v_empty + 8 * s, 8);
    }
    mbar_fence();
  }
  __syncthreads();
  int group = threadIdx.x / 128, tiles = tile + 1;  // QT == KT: the last tile of keys is that of the queries
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x != 0) return;
    mbar_arrive_tx(q_full, F::Q);
    for (int c = 0; c < DK / 64; c++)
      tma_load(sq + c * QT * 128, &tq, q_full, a.q_offset + head * a.q_stride + c * 64, start + tile * QT);
    for (int j = 0; j <= tiles; j++) {
      if (j < tiles) {
        int s = j % KV_STAGES;
        mbar_wait(k_empty + 8 * s, (j / KV_STAGES & 1) ^ 1);
        mbar_arrive_tx(k_full + 8 * s, F::K);
        for (int c = 0; c < DK / 64; c++)
          if (c < OWN / 64)
            tma_load(sk + s * F::K + c * KT * 128, &tk, k_full + 8 * s, a.k_offset + kv * a.k_stride + c * 64,
                     start + j * KT);
          else
            tma_load(sk + s * F::K + c * KT * 128, &ts, k_full + 8 * s, a.shared_offset + (c - OWN / 64) * 64,
                     start + j * KT);
      }
      if (j > 0) {
        int s = (j - 1) % KV_STAGES;
        mbar_wait(v_empty + 8 * s, ((j - 1) / KV_STAGES & 1) ^ 1);
        mbar_arrive_tx(v_full + 8 * s, F::V);
        for (int c = 0; c < DV / 64; c++)
          tma_load(sv + s * F::V + c * KT * 128, &tv, v_full + 8 * s, a.v_offset + kv * a.v_stride + c * 64,
                   start + (j - 1) * KT);
      }
    }
    return;
  }
  setmaxnreg_inc<232>();
  int wg = group - 1, thread = threadIdx.x % 128, row = wg * 64 + thread / 32 * 16 + thread % 32 / 4;  // and row + 8
  saddr q = sq + wg * 64 * 128;
  float s[KT / 2], o[DV / 2];
  uint32_t p[KT / 4];
  Row2 r;
  row_start(r);
  Total total;
  float *kept = (float *)(smem + F::TOTAL) + wg * (DV / 2 * 128) + thread;
#pragma unroll
  for (int i = 0; i < DV / 2; i++) o[i] = 0.0f;
  mbar_wait(q_full, 0);
  mbar_wait(k_full, 0);
  wgmma_fence();
  scores<DK>(s, q, QT * 128, sk, KT * 128);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(s);
  if (thread % 32 == 0) mbar_arrive(k_empty);
  softmax_tile(s, r, a.c, tiles == 1, row + 1, row + 9);
  weights_operand(s, p);
#pragma unroll 1
  for (int j = 1; j < tiles; j++) {
    int st = j % KV_STAGES, before = (j - 1) % KV_STAGES;
    mbar_wait(k_full + 8 * st, j / KV_STAGES & 1);
    wgmma_fence();
    scores<DK>(s, q, QT * 128, sk + st * F::K, KT * 128);
    wgmma_commit();
    mbar_wait(v_full + 8 * before, (j - 1) / KV_STAGES & 1);
    weighted(o, p, sv + before * F::V, KT * 128);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(s);
    if (thread % 32 == 0) mbar_arrive(k_empty + 8 * st);
    Row2 ended = r;
    bool split = F::SPLITS && j % SPLIT_TILES == 0;
    if (split) row_start(r);
    softmax_tile(s, r, a.c, j == tiles - 1, row + 1, row + 9);
    wgmma_wait<0>();
    wgmma_hold(o);
    if (thread % 32 == 0) mbar_arrive(v_empty + 8 * before);
    if (split) {
      join_split(o, ended, a.c, j == SPLIT_TILES, total, kept);
#pragma unroll
      for (int i = 0; i < DV / 2; i++) o[i] = 0.0f;
    } else rescale(o, r);
    weights_operand(s, p);
  }
  int last = (tiles - 1) % KV_STAGES;
  mbar_wait(v_full + 8 * last, (tiles - 1) / KV_STAGES & 1);
  wgmma_fence();
  weighted(o, p, sv + last * F::V, KT * 128);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(o);
  if (F::SPLITS && tiles > SPLIT_TILES) {
    join_split(o, r, a.c, false, total, kept);
#pragma unroll
    for (int i = 0; i < DV / 2; i++) o[i] = kept[i * 128];
  } else {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      total.m[h] = r.m[h];
      total.l[h] = row_sum(r.l[h]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int at = tile * QT + row + 8 * h;
    if (at >= length) continue;
    bf16 *to = out + (size_t)(start + at) * ldo + head * DV + thread % 4 * 2;
    float inverse = __fdiv_rn(1.0f, total.l[h]);
#pragma unroll
    for (int i = 0; i < DV / 8; i++)
      *(uint32_t *)(to + i * 8) =
          bf16x2(__fmul_rn(o[4 * i + 2 * h], inverse), __fmul_rn(o[4 * i + 2 * h + 1], inverse));
    if (thread % 4 == 0)
      lse[(size_t)head * a.tokens + start + at] = __fmaf_rn(total.m[h], a.c, log2_approx(total.l[h]));
  }
}
