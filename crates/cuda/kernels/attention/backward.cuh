// Backward of attention on Hopper, in two passes and without atomics: dq over the keys, dk and dv over the queries.
//
//   p = 2^(s·c - lse),  dp = dout·v,  ds = p·(dp - delta),  delta = Σ dout·out
//   dq = scale · Σ_j bf16(ds) k_j      keys of the sequence in tiles of 64, in order
//   dk = scale · Σ bf16(ds) q,  dv = Σ bf16(p) dout      the heads of the group in order, and for each the queries in
// order from the keys' tile of 128 on, 16 a tensor-core step; how many are loaded at a time (BQ) changes no bit
//
// A sequence's tiles begin at its first token: what else is packed beside it changes nothing. The part of the keys that
// all heads share
// (MLA's rotary key) has its gradient summed over the heads, in order, by `attention_shared_bf16`, from each head's in
// `dshared`.
#pragma once
#include "attention/tile.cuh"
constexpr int BROWS = 128;  // queries (dq) or keys (dk, dv) of a block: 64 for each of two warpgroups
// d = a · bᵀ: 64 rows of a by as many of b; chunks of 64 columns.
template <int D, int H>
__device__ __forceinline__ void dots(float (&d)[H], saddr a, int a_chunk, saddr b, int b_chunk) {
#pragma unroll
  for (int i = 0; i < D / 16; i++)
    wgmma_ss<0, 0>(d, k_major(a + i / 4 * a_chunk + i % 4 * 32), k_major(b + i / 4 * b_chunk + i % 4 * 32), i != 0);
}
// d += p · b over the rows of b.
template <int H, int O>
__device__ __forceinline__ void spread(float (&d)[O], const uint32_t (&p)[H], saddr b, int b_chunk) {
#pragma unroll
  for (int i = 0; i < H / 4; i++) wgmma_rs<1>(d, p + 4 * i, mn_major(b + i * 2048, b_chunk), 1);
}
template <int DK, int DV>
struct BackwardQ {
  static constexpr int BK = 64, STAGES = 2, Q = BROWS * DK * 2, O = BROWS * DV * 2, K = BK * DK * 2,
                       STAGE = K + BK * DV * 2, BARS = Q + O + STAGES * STAGE, BYTES = BARS + 8 + STAGES * 16;
};
// grid: (heads, at least the sum of ceil(length / 128)), block 384.
template <int DK, int OWN, int DV>
__device__ __forceinline__ void backward_q(const TensorMap &tq, const TensorMap &tk, const TensorMap &ts,
                                           const TensorMap &tv, const TensorMap &tdo, const float *lse,
                                           const float *delta, bf16 *dq, int ldq, const AttentionArgs &a) {
  using B = BackwardQ<DK, DV>;
  constexpr int BK = B::BK;
  SMEM(smem);
  saddr base = smem_addr(smem), sq = base, so = base + B::Q, ring = so + B::O, q_full = base + B::BARS,
        full = q_full + 8, empty = full + 8 * B::STAGES;
  int start, length, tile, head = blockIdx.x, kv = head / a.group;
  if (!sequence_tile(a, blockIdx.y, BROWS, start, length, tile)) return;
  if (threadIdx.x == 0) {
    mbar_init(q_full, 1);
    for (int s = 0; s < B::STAGES; s++) {
      mbar_init(full + 8 * s, 1);
      mbar_init(empty + 8 * s, 8);
    }
    mbar_fence();
  }
  __syncthreads();
  int group = threadIdx.x / 128, tiles = 2 * tile + 2;
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x != 0) return;
    mbar_arrive_tx(q_full, B::Q + B::O);
    for (int c = 0; c < DK / 64; c++)
      tma_load(sq + c * BROWS * 128, &tq, q_full, a.q_offset + head * a.q_stride + c * 64, start + tile * BROWS);
    for (int c = 0; c < DV / 64; c++)
      tma_load(so + c * BROWS * 128, &tdo, q_full, head * DV + c * 64, start + tile * BROWS);
    for (int j = 0; j < tiles; j++) {
      int s = j % B::STAGES;
      saddr to = ring + s * B::STAGE, bar = full + 8 * s;
      mbar_wait(empty + 8 * s, (j / B::STAGES & 1) ^ 1);
      mbar_arrive_tx(bar, B::STAGE);
      for (int c = 0; c < DK / 64; c++)
        if (c < OWN / 64) tma_load(to + c * BK * 128, &tk, bar, a.k_offset + kv * a.k_stride + c * 64, start + j * BK);
        else tma_load(to + c * BK * 128, &ts, bar, a.shared_offset + (c - OWN / 64) * 64, start + j * BK);
      for (int c = 0; c < DV / 64; c++)
        tma_load(to + B::K + c * BK * 128, &tv, bar, a.v_offset + kv * a.v_stride + c * 64, start + j * BK);
    }
    // The block's shared memory stays until what was asked for has landed.
    mbar_wait(full + 8 * ((tiles - 1) % B::STAGES), (tiles - 1) / B::STAGES & 1);
    return;
  }
  setmaxnreg_inc<232>();
  int wg = group - 1, thread = threadIdx.x % 128, row = wg * 64 + thread / 32 * 16 + thread % 32 / 4;  // and row + 8
  saddr q = sq + wg * 64 * 128, o = so + wg * 64 * 128;
  int mine = tiles - 1 + wg;  // the first warpgroup's queries do not see the last tile of keys
  float l[2], dl[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int at = tile * BROWS + row + 8 * h;
    bool in = at < length;
    l[h] = in ? lse[(size_t)head * a.tokens + start + at] : 0.0f;
    dl[h] = in ? delta[(size_t)head * a.tokens + start + at] : 0.0f;
  }
  float s[BK / 2], dp[BK / 2], acc[DK / 2];
  uint32_t ds[BK / 4];
#pragma unroll
  for (int i = 0; i < DK / 2; i++) acc[i] = 0.0f;
  auto begin = [&](int j) {
    int st = j % B::STAGES;
    saddr k = ring + st * B::STAGE;
    mbar_wait(full + 8 * st, j / B::STAGES & 1);
    wgmma_fence();
    dots<DK>(s, q, BROWS * 128, k, BK * 128);
    dots<DV>(dp, o, BROWS * 128, k + B::K, BK * 128);
    wgmma_commit();
  };
  auto differentials = [&](int j) {  // into dp
    bool masked = j == mine - 1;
#pragma unroll
    for (int i = 0; i < BK / 2; i++) {
      int h = i >> 1 & 1, col = i / 4 * 8 + thread % 4 * 2 + (i & 1);
      float p = exp2_approx(__fmaf_rn(s[i], a.c, -l[h]));
      dp[i] = masked && col > row - wg * 64 + 8 * h ? 0.0f : __fmul_rn(p, __fadd_rn(dp[i], -dl[h]));
    }
  };
  auto pack = [&] {
#pragma unroll
    for (int i = 0; i < BK / 2; i += 2) ds[i / 2] = bf16x2(dp[i], dp[i + 1]);
  };
  mbar_wait(q_full, 0);
  begin(0);
  wgmma_wait<0>();
  wgmma_hold(s);
  wgmma_hold(dp);
  differentials(0);
  pack();
#pragma unroll 1
  for (int j = 1; j < mine; j++) {
    begin(j);
    spread(acc, ds, ring + (j - 1) % B::STAGES * B::STAGE, BK * 128);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_hold(s);
    wgmma_hold(dp);
    differentials(j);
    wgmma_wait<0>();
    wgmma_hold(acc);
    if (thread % 32 == 0) mbar_arrive(empty + 8 * ((j - 1) % B::STAGES));
    pack();
  }
  wgmma_fence();
  spread(acc, ds, ring + (mine - 1) % B::STAGES * B::STAGE, BK * 128);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(acc);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int at = tile * BROWS + row + 8 * h;
    if (at >= length) continue;
    bf16 *to = dq + (size_t)(start + at) * ldq + a.q_offset + head * a.q_stride + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < DK / 8; i++)
      *(uint32_t *)(to + i * 8) =
          bf16x2(__fmul_rn(acc[4 * i + 2 * h], a.scale), __fmul_rn(acc[4 * i + 2 * h + 1], a.scale));
  }
}
template <int DK, int DV, int BQ>
struct BackwardKv {
  static constexpr int STAGES = 4, K = BROWS * DK * 2, V = BROWS * DV * 2, Q = BQ * DK * 2, STAGE = Q + BQ * DV * 2,
                       STATS = K + V + STAGES * STAGE, STAT = BQ / 32 * 1024, BARS = STATS + STAGES * 2 * STAT,
                       BYTES = BARS + 8 + STAGES * 16;
};
// What a step of dk and dv costs a processor, for 64 queries, 128 keys and heads of 128. A wgmma of 64 rows, N columns
// and 16 terms takes the tensor cores N/2 cycles and shared memory, of 128 bytes a cycle, N/4, and 16 more where its
// left operand is there too. s and dp: 32 wgmmas of N = 64, 32 cycles of both. dv and dk: 16 of N = 128, 64 and 32. In
// all 2,048 tensor cycles, and 1,536 + 256 for TMA of shared memory. (32 queries at a time: wgmmas of N = 32, 16 and 24
// cycles, so 2,560 of 64 queries.) Of the 240 registers 128 are dk and dv, 64 s and dp, 16 p, and then ds, for which p's
// product has to be done first: each warpgroup waits for a product twice a step, while the other's are under way.
// lse and delta come by TMA too, of the rows that attention_shift makes of them: read by the threads they cost each step a trip to L2, some 300 cycles, with nothing
// else of the warpgroup's to be done but the products of the step before.
// grid: (kv heads, at least the sum of ceil(length / 128)), block 384. dshared: f32 [Hkv, T, DK - OWN].
template <int DK, int OWN, int DV, int BQ>
__device__ __forceinline__ void backward_kv(const TensorMap &tq, const TensorMap &tk, const TensorMap &ts,
                                            const TensorMap &tv, const TensorMap &tdo, const TensorMap &tlse,
                                            const TensorMap &tdelta, bf16 *dk, int ldk, bf16 *dv, int ldv,
                                            float *dshared, const AttentionArgs &a) {
  using B = BackwardKv<DK, DV, BQ>;
  SMEM(smem);
  saddr base = smem_addr(smem), sk = base, sv = base + B::K, ring = sv + B::V, kv_full = base + B::BARS,
        full = kv_full + 8, empty = full + 8 * B::STAGES;
  int start, length, tile, kv = blockIdx.x;
  if (!sequence_tile(a, blockIdx.y, BROWS, start, length, tile)) return;
  tile = (length + BROWS - 1) / BROWS - 1 - tile;  // the first keys have most to do
  if (threadIdx.x == 0) {
    mbar_init(kv_full, 1);
    for (int s = 0; s < B::STAGES; s++) {
      mbar_init(full + 8 * s, 1);
      mbar_init(empty + 8 * s, 8);
    }
    mbar_fence();
  }
  __syncthreads();
  int group = threadIdx.x / 128, first = tile * BROWS / BQ, each = (length + BQ - 1) / BQ - first, all = each * a.group;
  if (group == 0) {
    setmaxnreg_dec<24>();
    if (threadIdx.x != 0) return;
    mbar_arrive_tx(kv_full, B::K + B::V);
    for (int c = 0; c < DK / 64; c++)
      if (c < OWN / 64)
        tma_load(sk + c * BROWS * 128, &tk, kv_full, a.k_offset + kv * a.k_stride + c * 64, start + tile * BROWS);
      else tma_load(sk + c * BROWS * 128, &ts, kv_full, a.shared_offset + (c - OWN / 64) * 64, start + tile * BROWS);
    for (int c = 0; c < DV / 64; c++)
      tma_load(sv + c * BROWS * 128, &tv, kv_full, a.v_offset + kv * a.v_stride + c * 64, start + tile * BROWS);
    for (int j = 0; j < all; j++) {
      int s = j % B::STAGES, head = kv * a.group + j / each, at = start + (first + j % each) * BQ;
      saddr to = ring + s * B::STAGE, bar = full + 8 * s;
      mbar_wait(empty + 8 * s, (j / B::STAGES & 1) ^ 1);
      mbar_arrive_tx(bar, B::STAGE + BQ * 8);
      for (int c = 0; c < DK / 64; c++)
        tma_load(to + c * BQ * 128, &tq, bar, a.q_offset + head * a.q_stride + c * 64, at);
      for (int c = 0; c < DV / 64; c++) tma_load(to + B::Q + c * BQ * 128, &tdo, bar, head * DV + c * 64, at);
      int number = head * a.tokens + at, shift = number & 3, place = number + ((4 - shift) & 3);
      for (int c = 0; c < BQ / 32; c++) {
        saddr stat = base + B::STATS + s * 2 * B::STAT + c * 1024;
        tma_load(stat, &tlse, bar, 2 * place + c * 64, shift);
        tma_load(stat + B::STAT, &tdelta, bar, 2 * place + c * 64, shift);
      }
    }
    return;
  }
  setmaxnreg_inc<240>();
  int wg = group - 1, thread = threadIdx.x % 128,
      row = tile * BROWS + wg * 64 + thread / 32 * 16 + thread % 32 / 4;  // key of the sequence; and row + 8
  saddr k = sk + wg * 64 * 128, v = sv + wg * 64 * 128;
  float s[BQ / 2], dp[BQ / 2], k_acc[DK / 2], v_acc[DV / 2];
  uint32_t p[BQ / 4];
#pragma unroll
  for (int i = 0; i < DK / 2; i++) k_acc[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < DV / 2; i++) v_acc[i] = 0.0f;
  auto pack = [&](const float (&from)[BQ / 2]) {
#pragma unroll
    for (int i = 0; i < BQ / 2; i += 2) p[i / 2] = bf16x2(from[i], from[i + 1]);
  };
  // Pairs of the thread's queries: what stats have of them, from `from` on.
  auto pairs = [&](const float *from, auto f) {
#pragma unroll
    for (int i = 0; i < BQ / 2; i += 4) {
      float2 of = *(const float2 *)(from + i / 16 * 256 + i % 16 * 2);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        f(i + 2 * h, of.x);
        f(i + 2 * h + 1, of.y);
      }
    }
  };
  int step = 0;  // of the head's tiles of queries
  auto begin = [&](int j) {
    int st = j % B::STAGES;
    saddr q = ring + st * B::STAGE;
    mbar_wait(full + 8 * st, j / B::STAGES & 1);
    wgmma_fence();
    dots<DK>(s, k, BROWS * 128, q, BQ * 128);
    wgmma_commit();
    dots<DV>(dp, v, BROWS * 128, q + B::Q, BQ * 128);
    wgmma_commit();
  };
  auto differentials = [&](int j) {  // s and dp of tile j under way: adds to dv, and leaves ds in p
    int st = j % B::STAGES;
    saddr q = ring + st * B::STAGE;
    const float *of = (const float *)(smem + B::STATS + st * 2 * B::STAT) + thread % 4 * 2;
    wgmma_wait<1>();
    wgmma_hold(s);
    wgmma_hold(k_acc);
    if (j > 0 && thread % 32 == 0) mbar_arrive(empty + 8 * ((j - 1) % B::STAGES));
    pairs(of, [&](int x, float l) { s[x] = exp2_approx(__fmaf_rn(s[x], a.c, -l)); });
    if (step < BROWS / BQ || step == each - 1) {  // keys do not see queries before them, or of another sequence
      int q0 = (first + step) * BQ + thread % 4 * 2;
#pragma unroll
      for (int i = 0; i < BQ / 2; i++) {
        int q = q0 + i / 4 * 8 + (i & 1);
        if (q < row + 8 * (i >> 1 & 1) || q >= length) s[i] = 0.0f;
      }
    }
    if (++step == each) step = 0;
    pack(s);
    wgmma_fence();
    spread(v_acc, p, q + B::Q, BQ * 128);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(dp);
    wgmma_hold(v_acc);
    pairs(of + B::STAT / 4, [&](int x, float dl) { dp[x] = __fmul_rn(s[x], __fadd_rn(dp[x], -dl)); });
    pack(dp);
  };
  auto add = [&](int j) {
    wgmma_fence();
    spread(k_acc, p, ring + j % B::STAGES * B::STAGE, BQ * 128);
    wgmma_commit();
  };
  mbar_wait(kv_full, 0);
  begin(0);
  differentials(0);
#pragma unroll 1
  for (int j = 1; j < all; j++) {
    add(j - 1);
    begin(j);
    differentials(j);
  }
  add(all - 1);
  wgmma_wait<0>();
  wgmma_hold(k_acc);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (row + 8 * h >= length) continue;
    size_t at = start + row + 8 * h;
    int col = thread % 4 * 2;
    bf16 *to_k = dk + at * ldk + a.k_offset + kv * a.k_stride + col,
         *to_v = dv + at * ldv + a.v_offset + kv * a.v_stride + col;
    float *to_s = dshared + ((size_t)kv * a.tokens + at) * (DK - OWN) + col;
#pragma unroll
    for (int i = 0; i < DK / 8; i++) {
      float x = __fmul_rn(k_acc[4 * i + 2 * h], a.scale), y = __fmul_rn(k_acc[4 * i + 2 * h + 1], a.scale);
      if (i < OWN / 8) *(uint32_t *)(to_k + i * 8) = bf16x2(x, y);
      else *(float2 *)(to_s + i * 8 - OWN) = make_float2(x, y);
    }
#pragma unroll
    for (int i = 0; i < DV / 8; i++)
      *(uint32_t *)(to_v + i * 8) = bf16x2(v_acc[4 * i + 2 * h], v_acc[4 * i + 2 * h + 1]);
  }
}
