// Attention of new tokens over the pages of their sequences, on Hopper: the arithmetic of forward.cuh, to its bits
// (tile.cuh).
//
// grid: (kv heads, at least the number of tiles: for each sequence with new tokens, new / positions + 2 is enough,
// splits of the longest sequence:
// ceil(tokens / (128·SPLIT_TILES)), 1 for 192/128), block 128·WGS; then attention_join where there are several splits.
// One warpgroup is
// for decoding, where 64 rows of a tile are filled by the heads of a group and what is left of them is free; two are
// for chunks of prompts.
// All threads load with cp.async, STAGES tiles ahead.
#pragma once
#include "attention/forward.cuh"
#include "attention/pages.cuh"
template <int DK, int DV, int WGS>
struct Paged {
  static constexpr int ROWS = 64 * WGS, Q = ROWS * DK * 2, K = KT * DK * 2, STAGE = K + KT * DV * 2,
                       STAGES = (232448 - Q) / STAGE > 4 ? 4 : (232448 - Q) / STAGE, BYTES = Q + STAGES * STAGE;
};
template <int DK, int OWN, int DV, int WGS>
__device__ __forceinline__ void paged(const bf16 *q, const bf16 *cache, bf16 *out, int ldo, const PagedArgs &a) {
  using P = Paged<DK, DV, WGS>;
  constexpr int THREADS = 128 * WGS;
  SMEM(smem);
  saddr base = smem_addr(smem), ring = base + P::Q;
  int kv = blockIdx.x, positions = positions_of(P::ROWS, a.group);
  PagedTile t;
  if (!paged_tile(a, blockIdx.y, positions, t)) return;
  const int *table = a.table + (size_t)t.sequence * a.table_stride;
  int tiles = t.last / KT + 1, rows = positions * a.group, begin = 0;
  bool whole = true;
  if (DK <= 128) {
    whole = tiles <= SPLIT_TILES;
    begin = blockIdx.z * SPLIT_TILES;
    if (begin >= tiles) return;
  }
  int end = whole ? tiles : begin + SPLIT_TILES < tiles ? begin + SPLIT_TILES : tiles;
  for (int i = threadIdx.x; i < P::ROWS * DK / 8; i += THREADS) {
    int r = i / (DK / 8), c = i % (DK / 8), at = t.first + r / a.group;
    bool in = r < rows && at >= t.past && at <= t.last;
    const bf16 *from =
        in ? q + (size_t)(t.row0 + at - t.past) * a.ldq + a.q_offset + (kv * a.group + r % a.group) * a.q_stride + c * 8
           : q;
    cp_async16(base + c / 8 * P::ROWS * 128 + swizzled(r * 128 + c % 8 * 16), from, in ? 16 : 0);
  }
  int ahead = page_of_lane<KT>(table, begin, t.last);
  auto load = [&](int j) {
    int pages = ahead;
    ahead = page_of_lane<KT>(table, j + 1, t.last);
    if (j < end) {
      saddr to = ring + j % P::STAGES * P::STAGE;
      constexpr int C = (DK + DV) / 8;
      static_assert(KT * C % THREADS == 0);
#pragma unroll 8
      for (int i = threadIdx.x; i < KT * C; i += THREADS) {
        int r = i / C, c = i % C, at = j * KT + r;
        bool in = at <= t.last;
        int page = __shfl_sync(~0u, pages, r / PAGE);
        const bf16 *token = cache + page * a.page_stride + at % PAGE * a.token_stride,
                   *head = token + kv * a.head_stride;
        const bf16 *from = c < OWN / 8  ? head + a.k_offset + c * 8
                           : c < DK / 8 ? token + a.shared_offset + (c - OWN / 8) * 8
                                        : head + a.v_offset + (c - DK / 8) * 8;
        saddr chunk = c < DK / 8 ? to + c / 8 * KT * 128 : to + P::K + (c - DK / 8) / 8 * KT * 128;
        cp_async16(chunk + swizzled(r * 128 + c % 8 * 16), in ? from : cache, in ? 16 : 0);
      }
    }
    cp_async_commit();
  };
  for (int j = 0; j < P::STAGES - 1; j++) load(begin + j);
  int wg = threadIdx.x / 128, thread = threadIdx.x % 128,
      row = wg * 64 + thread / 32 * 16 + thread % 32 / 4;  // and row + 8
  int at0 = t.first + row / a.group, at1 = t.first + (row + 8) / a.group;
  float s[KT / 2], o[DV / 2];
  uint32_t p[KT / 4];
  Row2 r;
  row_start(r);
#pragma unroll
  for (int i = 0; i < DV / 2; i++) o[i] = 0.0f;
#pragma unroll 1
  for (int j = begin; j < end; j++) {
    saddr k = ring + j % P::STAGES * P::STAGE;
    cp_async_wait<P::STAGES - 2>();
    fence_async();
    __syncthreads();  // the tile is there for all; and all have done with the one whose place is loaded next
    wgmma_fence();
    scores<DK>(s, base + wg * 64 * 128, P::ROWS * 128, k, KT * 128);
    wgmma_commit();
    load(j + P::STAGES - 1);
    wgmma_wait<0>();
    wgmma_hold(s);
    softmax_tile(s, r, a.c, j == tiles - 1, at0 + 1 - j * KT, at1 + 1 - j * KT);
    rescale(o, r);
    weights_operand(s, p);
    wgmma_fence();
    weighted(o, p, k + P::K, KT * 128);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(o);
  }
  cp_async_wait<0>();
  write_rows(o, r, a, blockIdx.z, whole, DV, 0, [&](int h, int &q_row, int &head, bf16 *&to) {
    int at = h ? at1 : at0, w = row + 8 * h;
    if (w >= rows || at < t.past || at > t.last) return false;
    q_row = t.row0 + at - t.past;
    head = kv * a.group + w % a.group;
    to = out + (size_t)q_row * ldo + head * DV;
    return true;
  });
}
