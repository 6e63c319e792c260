// All of attention with mma.sync and cp.async, for sm_80 and later: forward, backward, over pages, over latents.
//
// The arithmetic is that of tile.cuh with tiles of 64 keys (32 latents), and one kernel serves the forward pass of
// training, chunks of prompts and decoding: a
// query has the same bits in all. They are not those of the Hopper kernels: a device uses the one or the other
// throughout.
// Shared memory: 80 to 144 KiB, which cards of compute capability 8.6 and 8.9 (99 KiB) have for the widths 64 and 128
// without splits alone.
#pragma once
#include "attention/pages.cuh"
constexpr int AT = 64;  // queries, or keys, of a block; keys of a tile
// A tile's rows of D numbers lie in chunks of 64 columns, each row 128 bytes with the 128-byte swizzle, chunks `chunk`
// bytes apart.
__device__ __forceinline__ saddr tile_at(saddr tile, int chunk, int row, int c8) {
  return tile + c8 / 8 * chunk + swizzled(row * 128 + c8 % 8 * 16);
}
// s[16 of a's rows, N of b's] = a · bᵀ over D columns.
template <int D, int N>
__device__ __forceinline__ void dots80(float (&s)[N / 2], saddr a, int a_chunk, int a_row, saddr b, int b_chunk) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < N / 2; i++) s[i] = 0.0f;
#pragma unroll 4
  for (int k = 0; k < D / 16; k++) {
    uint32_t fa[4], fb[4];
    ldmatrix4<false>(fa, tile_at(a, a_chunk, a_row + lane % 16, k * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      ldmatrix4<false>(fb, tile_at(b, b_chunk, n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
      mma_16816(s + n * 8, fa, fb);
      mma_16816(s + n * 8 + 4, fa, fb + 2);
    }
  }
}
// o[16 rows, N columns from `c8`·8 on] += p · b over b's K rows.
template <int K, int N>
__device__ __forceinline__ void spread80(float (&o)[N / 2], const uint32_t (&p)[K / 4], saddr b, int b_chunk,
                                         int c8 = 0) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < K / 16; k++)
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      uint32_t fb[4];
      ldmatrix4<true>(fb, tile_at(b, b_chunk, k * 16 + lane % 16, c8 + n * 2 + lane / 16));
      mma_16816(o + n * 8, p + 4 * k, fb);
      mma_16816(o + n * 8 + 4, p + 4 * k, fb + 2);
    }
}
template <int DK, int DV>
struct Attend80 {
  static constexpr bool SPLITS = DK <= 128;
  static constexpr int Q = AT * DK * 2, K = AT * DK * 2, STAGE = K + AT * DV * 2, TOTAL = Q + 2 * STAGE,
                       PAGED_BYTES = TOTAL, BYTES = TOTAL + (SPLITS ? AT * DV * 4 : 0), SPLIT = SPLIT_TILES * 128 / AT;
};
// Where keys and values lie that are not in pages: row new_starts[s] + t of tensors; key-value head g's k_stride and
// v_stride columns after the first's.
struct Packed80 {
  const bf16 *k, *shared, *v;
  int ldk, lds, ldv, k_stride, v_stride;
};
// PAGES: cache, and grid.z splits. Else: keys from tensors, all splits in the block, lse[H, T] out. A tile's rows are
// positions and heads of a group (pages.cuh); past may be null: 0.
// grid: (kv heads, at least the number of tiles, splits or 1), block 128.
template <int DK, int OWN, int DV, bool PAGES>
__device__ __forceinline__ void attend80(const bf16 *q, const bf16 *cache, const Packed80 &in_rows, bf16 *out, int ldo,
                                         float *lse, const PagedArgs &a) {
  using P = Attend80<DK, DV>;
  SMEM(smem);
  saddr base = smem_addr(smem), ring = base + P::Q;
  int kv = blockIdx.x, positions = positions_of(AT, a.group);
  PagedTile t;
  if (!paged_tile(a, blockIdx.y, positions, t)) return;
  const int *table = PAGES ? a.table + (size_t)t.sequence * a.table_stride : nullptr;
  int tiles = t.last / AT + 1, rows = positions * a.group, begin = 0;
  bool whole = true;
  if (P::SPLITS && PAGES) {
    whole = tiles <= P::SPLIT;
    begin = blockIdx.z * P::SPLIT;
    if (begin >= tiles) return;
  }
  int end = whole ? tiles : begin + P::SPLIT < tiles ? begin + P::SPLIT : tiles;
  for (int i = threadIdx.x; i < AT * DK / 8; i += 128) {
    int r = i / (DK / 8), c = i % (DK / 8), at = t.first + r / a.group;
    bool in = r < rows && at >= t.past && at <= t.last;
    cp_async16(
        tile_at(base, AT * 128, r, c),
        in ? q + (size_t)(t.row0 + at - t.past) * a.ldq + a.q_offset + (kv * a.group + r % a.group) * a.q_stride + c * 8
           : q,
        in ? 16 : 0);
  }
  auto load = [&](int j) {
    if (j < end) {
      saddr to = ring + j % 2 * P::STAGE;
      constexpr int C = (DK + DV) / 8;
#pragma unroll 4
      for (int i = threadIdx.x; i < AT * C; i += 128) {
        int r = i / C, c = i % C, at = j * AT + r;
        bool in = at <= t.last;
        const bf16 *from = q;
        if (in && PAGES) {
          const bf16 *token = cache + table[at / PAGE] * a.page_stride + at % PAGE * a.token_stride,
                     *head = token + kv * a.head_stride;
          from = c < OWN / 8  ? head + a.k_offset + c * 8
                 : c < DK / 8 ? token + a.shared_offset + (c - OWN / 8) * 8
                              : head + a.v_offset + (c - DK / 8) * 8;
        } else if (in) {
          size_t row = t.row0 + at;
          from = c < OWN / 8  ? in_rows.k + row * in_rows.ldk + a.k_offset + kv * in_rows.k_stride + c * 8
                 : c < DK / 8 ? in_rows.shared + row * in_rows.lds + a.shared_offset + (c - OWN / 8) * 8
                              : in_rows.v + row * in_rows.ldv + a.v_offset + kv * in_rows.v_stride + (c - DK / 8) * 8;
        }
        cp_async16(c < DK / 8 ? tile_at(to, AT * 128, r, c) : tile_at(to + P::K, AT * 128, r, c - DK / 8), from,
                   in ? 16 : 0);
      }
    }
    cp_async_commit();
  };
  load(begin);
  int lane = threadIdx.x % 32, row16 = threadIdx.x / 32 * 16, row = row16 + lane / 4;  // and row + 8
  int at0 = t.first + row / a.group, at1 = t.first + (row + 8) / a.group;
  float s[AT / 2], o[DV / 2], *kept = (float *)(smem + P::TOTAL) + threadIdx.x;
  uint32_t p[AT / 4];
  Row2 r;
  row_start(r);
  Total total;
#pragma unroll
  for (int i = 0; i < DV / 2; i++) o[i] = 0.0f;
#pragma unroll 1
  for (int j = begin; j < end; j++) {
    saddr k = ring + j % 2 * P::STAGE;
    cp_async_wait<0>();
    __syncthreads();
    load(j + 1);
    if (P::SPLITS && !PAGES && j && j % P::SPLIT == 0) {
      join_split(o, r, a.c, j == P::SPLIT, total, kept);
      row_start(r);
#pragma unroll
      for (int i = 0; i < DV / 2; i++) o[i] = 0.0f;
    }
    dots80<DK, AT>(s, base, AT * 128, row16, k, AT * 128);
    softmax_tile(s, r, a.c, j == tiles - 1, at0 + 1 - j * AT, at1 + 1 - j * AT);
    rescale(o, r);
    weights_operand(s, p);
    spread80<AT, DV>(o, p, k + P::K, AT * 128);
  }
  bool joins = P::SPLITS && !PAGES && tiles > P::SPLIT;
  if (joins) {
    join_split(o, r, a.c, false, total, kept);
#pragma unroll
    for (int i = 0; i < DV / 2; i++) o[i] = kept[i * 128];
    // Each thread of a quad takes its part of the whole row's l, so that the sum in write_rows is it again.
#pragma unroll
    for (int h = 0; h < 2; h++) {
      r.m[h] = total.m[h];
      r.l[h] = lane % 4 ? 0.0f : total.l[h];
    }
  }
  float l0 = row_sum(r.l[0]), l1 = row_sum(r.l[1]);
  write_rows(o, r, a, PAGES ? blockIdx.z : 0, whole, DV, 0, [&](int h, int &q_row, int &head, bf16 *&to) {
    int at = h ? at1 : at0, w = row + 8 * h;
    if (w >= rows || at < t.past || at > t.last) return false;
    q_row = t.row0 + at - t.past;
    head = kv * a.group + w % a.group;
    to = out + (size_t)q_row * ldo + head * DV;
    if (!PAGES && lane % 4 == 0) lse[(size_t)head * a.rows + q_row] = __fmaf_rn(r.m[h], a.c, log2_approx(h ? l1 : l0));
    return true;
  });
}
// Latents, with 32 in a tile. Eight warps: four times 16 rows, and each half of the sum's columns. grid: (ceil(heads /
// 64), tiles, splits), block 256.
constexpr int LATENT80 = 512, WIDTH80 = 576, LT80 = 32, LATENT80_BYTES = AT * WIDTH80 * 2 + 2 * LT80 * WIDTH80 * 2;
#ifndef LATENT_SPLIT
#define LATENT_SPLIT 16
#endif
constexpr int LATENT80_SPLIT = LATENT_SPLIT * 2;
__device__ __forceinline__ void latent80_rows(const bf16 *absorbed, const bf16 *rotary, const bf16 *cache, bf16 *out,
                                              const PagedArgs &a) {
  SMEM(smem);
  constexpr int C = WIDTH80 / 8, QC = AT * 128, KC = LT80 * 128, TILE = LT80 * WIDTH80 * 2;
  saddr base = smem_addr(smem), ring = base + AT * WIDTH80 * 2;
  int head0 = blockIdx.x * 64, heads = a.heads - head0 < a.group ? a.heads - head0 : a.group,
      positions = positions_of(AT, a.group < 2 ? 2 : a.group);
  PagedTile t;  // at most 32: they divide a tile of keys
  if (!paged_tile(a, blockIdx.y, positions, t)) return;
  const int *table = a.table + (size_t)t.sequence * a.table_stride;
  int tiles = t.last / LT80 + 1, begin = blockIdx.z * LATENT80_SPLIT,
      end = begin + LATENT80_SPLIT < tiles ? begin + LATENT80_SPLIT : tiles;
  if (begin >= tiles) return;
  for (int i = threadIdx.x; i < AT * C; i += 256) {
    int r = i / C, c = i % C, at = t.first + r / a.group, head = head0 + r % a.group;
    bool in = r < positions * a.group && r % a.group < heads && at >= t.past && at <= t.last;
    size_t row = in ? t.row0 + at - t.past : 0;
    const bf16 *from = c < LATENT80 / 8
                           ? absorbed + ((size_t)(in ? head : 0) * a.rows + row) * LATENT80 + c * 8
                           : rotary + row * a.ldq + a.q_offset + (in ? head : 0) * a.q_stride + (c - LATENT80 / 8) * 8;
    cp_async16(tile_at(base, QC, r, c), from, in ? 16 : 0);
  }
  auto load = [&](int j) {
    if (j < end) {
      saddr to = ring + j % 2 * TILE;
#pragma unroll 4
      for (int i = threadIdx.x; i < LT80 * C; i += 256) {
        int r = i / C, c = i % C, at = j * LT80 + r;
        bool in = at <= t.last;
        cp_async16(tile_at(to, KC, r, c),
                   in ? cache + table[at / PAGE] * a.page_stride + at % PAGE * a.token_stride + c * 8 : cache,
                   in ? 16 : 0);
      }
    }
    cp_async_commit();
  };
  load(begin);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row16 = warp % 4 * 16, row = row16 + lane / 4, half = warp / 4;
  int at0 = t.first + row / a.group, at1 = t.first + (row + 8) / a.group;
  float s[LT80 / 2], o[128];
  uint32_t p[LT80 / 4];
  Row2 r;
  row_start(r);
#pragma unroll
  for (int i = 0; i < 128; i++) o[i] = 0.0f;
#pragma unroll 1
  for (int j = begin; j < end; j++) {
    saddr k = ring + j % 2 * TILE;
    cp_async_wait<0>();
    __syncthreads();
    load(j + 1);
    dots80<WIDTH80, LT80>(s, base, QC, row16, k, KC);
    softmax_tile(s, r, a.c, j == tiles - 1, at0 + 1 - j * LT80, at1 + 1 - j * LT80);
    rescale(o, r);
    weights_operand(s, p);
    spread80<LT80, 256>(o, p, k, KC, half * 32);
  }
  write_rows(o, r, a, blockIdx.z, tiles <= LATENT80_SPLIT, LATENT80, half * 256,
             [&](int h, int &q_row, int &head, bf16 *&to) {
               int at = h ? at1 : at0, w = row + 8 * h;
               if (w >= positions * a.group || w % a.group >= heads || at < t.past || at > t.last) return false;
               q_row = t.row0 + at - t.past;
               head = head0 + w % a.group;
               to = out + ((size_t)head * a.rows + q_row) * LATENT80;
               return true;
             });
}
// Backward: backward.cuh's formulas. A block has 64 queries (dq: keys in tiles of 64) or 64 keys (dk, dv: queries in
// tiles of 32).
struct Rows80 {
  const bf16 *q, *k, *shared, *v, *dout;
  int ldq, ldk, lds, ldv, ldo;
};
template <int DK, int DV>
struct Backward80 {
  static constexpr int BQ = 32, Q_STAGE = AT * (DK + DV) * 2, Q_BYTES = AT * (DK + DV) * 2 + 2 * Q_STAGE,
                       KV_STAGE = BQ * (DK + DV) * 2, KV_BYTES = AT * (DK + DV) * 2 + 2 * KV_STAGE;
};
// Rows first .. of q and dout (or of k and v) of a head to a tile of DK columns and one of DV behind it; `count` exist,
// the others become zeros.
template <int N, int DK, int OWN, int DV, bool KEYS>
__device__ __forceinline__ void load_rows80(saddr to, const Rows80 &x, const AttentionArgs &a, int head, int row,
                                            int count) {
  constexpr int C = (DK + DV) / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < N * C; i += 128) {
    int r = i / C, c = i % C;
    bool in = r < count;
    size_t at = row + (in ? r : 0);
    const bf16 *from;
    if (KEYS)
      from = c < OWN / 8  ? x.k + at * x.ldk + a.k_offset + head * a.k_stride + c * 8
             : c < DK / 8 ? x.shared + at * x.lds + a.shared_offset + (c - OWN / 8) * 8
                          : x.v + at * x.ldv + a.v_offset + head * a.v_stride + (c - DK / 8) * 8;
    else
      from = c < DK / 8 ? x.q + at * x.ldq + a.q_offset + head * a.q_stride + c * 8
                        : x.dout + at * x.ldo + head * DV + (c - DK / 8) * 8;
    cp_async16(c < DK / 8 ? tile_at(to, N * 128, r, c) : tile_at(to + N * DK * 2, N * 128, r, c - DK / 8),
               in ? from : x.q, in ? 16 : 0);
  }
}
// grid: (heads, at least the sum of ceil(length / 64)), block 128.
template <int DK, int OWN, int DV>
__device__ __forceinline__ void dq80(const Rows80 &x, const float *lse, const float *delta, bf16 *dq, int ldq,
                                     const AttentionArgs &a) {
  using B = Backward80<DK, DV>;
  SMEM(smem);
  saddr base = smem_addr(smem), ring = base + AT * (DK + DV) * 2;
  int start, length, tile, head = blockIdx.x, kv = head / a.group;
  if (!sequence_tile(a, blockIdx.y, AT, start, length, tile)) return;
  load_rows80<AT, DK, OWN, DV, false>(base, x, a, head, start + tile * AT, length - tile * AT);
  auto load = [&](int j) {
    if (j <= tile)
      load_rows80<AT, DK, OWN, DV, true>(ring + j % 2 * B::Q_STAGE, x, a, kv, start + j * AT, length - j * AT);
    cp_async_commit();
  };
  load(0);
  int lane = threadIdx.x % 32, row16 = threadIdx.x / 32 * 16, row = row16 + lane / 4;
  float l[2], dl[2], s[AT / 2], dp[AT / 2], acc[DK / 2];
  uint32_t ds[AT / 4];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int at = tile * AT + row + 8 * h;
    bool in = at < length;
    l[h] = in ? lse[(size_t)head * a.tokens + start + at] : 0.0f;
    dl[h] = in ? delta[(size_t)head * a.tokens + start + at] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < DK / 2; i++) acc[i] = 0.0f;
#pragma unroll 1
  for (int j = 0; j <= tile; j++) {
    saddr k = ring + j % 2 * B::Q_STAGE;
    cp_async_wait<0>();
    __syncthreads();
    load(j + 1);
    dots80<DK, AT>(s, base, AT * 128, row16, k, AT * 128);
    dots80<DV, AT>(dp, base + AT * DK * 2, AT * 128, row16, k + AT * DK * 2, AT * 128);
#pragma unroll
    for (int i = 0; i < AT / 2; i++) {
      int h = i >> 1 & 1, col = i / 4 * 8 + lane % 4 * 2 + (i & 1);
      float p = exp2_approx(__fmaf_rn(s[i], a.c, -l[h]));
      dp[i] = j == tile && col > row + 8 * h ? 0.0f : __fmul_rn(p, __fadd_rn(dp[i], -dl[h]));
    }
    weights_operand(dp, ds);
    spread80<AT, DK>(acc, ds, k, AT * 128);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int at = tile * AT + row + 8 * h;
    if (at >= length) continue;
    bf16 *to = dq + (size_t)(start + at) * ldq + a.q_offset + head * a.q_stride + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < DK / 8; i++)
      *(uint32_t *)(to + i * 8) =
          bf16x2(__fmul_rn(acc[4 * i + 2 * h], a.scale), __fmul_rn(acc[4 * i + 2 * h + 1], a.scale));
  }
}
// grid: (kv heads, at least the sum of ceil(length / 64)), block 128.
template <int DK, int OWN, int DV>
__device__ __forceinline__ void dkv80(const Rows80 &x, const float *lse, const float *delta, bf16 *dk, int ldk,
                                      bf16 *dv, int ldv, float *dshared, const AttentionArgs &a) {
  using B = Backward80<DK, DV>;
  constexpr int BQ = B::BQ;
  SMEM(smem);
  saddr base = smem_addr(smem), ring = base + AT * (DK + DV) * 2;
  int start, length, tile, kv = blockIdx.x;
  if (!sequence_tile(a, blockIdx.y, AT, start, length, tile)) return;
  int first = tile * AT / BQ, each = (length + BQ - 1) / BQ - first, all = each * a.group;
  load_rows80<AT, DK, OWN, DV, true>(base, x, a, kv, start + tile * AT, length - tile * AT);
  auto load = [&](int j) {
    if (j < all) {
      int q0 = (first + j % each) * BQ;
      load_rows80<BQ, DK, OWN, DV, false>(ring + j % 2 * B::KV_STAGE, x, a, kv * a.group + j / each, start + q0,
                                          length - q0);
    }
    cp_async_commit();
  };
  load(0);
  int lane = threadIdx.x % 32, row16 = threadIdx.x / 32 * 16, row = tile * AT + row16 + lane / 4;
  float s[BQ / 2], dp[BQ / 2], k_acc[DK / 2], v_acc[DV / 2];
  uint32_t p[BQ / 4], ds[BQ / 4];
#pragma unroll
  for (int i = 0; i < DK / 2; i++) k_acc[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < DV / 2; i++) v_acc[i] = 0.0f;
#pragma unroll 1
  for (int j = 0; j < all; j++) {
    saddr q = ring + j % 2 * B::KV_STAGE;
    int q0 = (first + j % each) * BQ;
    size_t at = (size_t)(kv * a.group + j / each) * a.tokens + start;
    cp_async_wait<0>();
    __syncthreads();
    load(j + 1);
    dots80<DK, BQ>(s, base, AT * 128, row16, q, BQ * 128);
    dots80<DV, BQ>(dp, base + AT * DK * 2, AT * 128, row16, q + BQ * DK * 2, BQ * 128);
#pragma unroll
    for (int i = 0; i < BQ / 2; i++) {
      int q_at = q0 + i / 4 * 8 + lane % 4 * 2 + (i & 1);
      bool seen = q_at < length && q_at >= row + 8 * (i >> 1 & 1);
      float w = seen ? exp2_approx(__fmaf_rn(s[i], a.c, -lse[at + q_at])) : 0.0f;
      dp[i] = seen ? __fmul_rn(w, __fadd_rn(dp[i], -delta[at + q_at])) : 0.0f;
      s[i] = w;
    }
    weights_operand(s, p);
    weights_operand(dp, ds);
    spread80<BQ, DV>(v_acc, p, q + BQ * DK * 2, BQ * 128);
    spread80<BQ, DK>(k_acc, ds, q, BQ * 128);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (row + 8 * h >= length) continue;
    size_t at = start + row + 8 * h;
    int col = lane % 4 * 2;
    bf16 *to_k = dk + at * ldk + a.k_offset + kv * a.k_stride + col,
         *to_v = dv + at * ldv + a.v_offset + kv * a.v_stride + col;
    float *to_s = dshared + ((size_t)kv * a.tokens + at) * (DK - OWN) + col;
#pragma unroll
    for (int i = 0; i < DK / 8; i++) {
      float y = __fmul_rn(k_acc[4 * i + 2 * h], a.scale), z = __fmul_rn(k_acc[4 * i + 2 * h + 1], a.scale);
      if (i < OWN / 8) *(uint32_t *)(to_k + i * 8) = bf16x2(y, z);
      else *(float2 *)(to_s + i * 8 - OWN) = make_float2(y, z);
    }
#pragma unroll
    for (int i = 0; i < DV / 8; i++)
      *(uint32_t *)(to_v + i * 8) = bf16x2(v_acc[4 * i + 2 * h], v_acc[4 * i + 2 * h + 1]);
  }
}
