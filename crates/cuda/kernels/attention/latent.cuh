// Attention over latents (MLA with absorbed projections) in pages, on Hopper: out[H·T, 512], the weighted sums of the
// latents.
//
// A token's row in the cache is its latent (512) and its rotary key (64); a key is the whole row, a value its latent;
// all heads share them. Order:
// that of tile.cuh with keys in tiles of 64 and a chain over the row's 576 numbers. It is not the order of expanded
// keys: the bits differ from
// theirs, but depend on neither batch, chunk nor pages either.
//
// A tile's 64 rows are positions and heads (pages.cuh). Two warpgroups: both compute the scores (the same bits), each
// half of the 512 columns of the
// sum, so that 64 rows' sums fit the registers. grid: (ceil(heads / 64), tiles of all sequences, splits of the
// longest), block 256;
// splits of LATENT_SPLIT tiles, then attention_join.
#pragma once
#include "attention/pages.cuh"
#ifndef LATENT_SPLIT
#define LATENT_SPLIT 16
#endif
constexpr int LATENT = 512, ROTARY = 64, WIDTH = LATENT + ROTARY, LT = 64, L_STAGES = 2, L_TILE = 64 * WIDTH * 2,
              LATENT_BYTES = (1 + L_STAGES) * L_TILE;
// group: min(heads, 64) heads share a tile's positions; q_offset, q_stride, ldq: of the queries' rotary parts; rows:
// all queries of the call, the rows of a head in `absorbed` and `out`.
__device__ __forceinline__ void latent_rows(const bf16 *absorbed, const bf16 *rotary, const bf16 *cache, bf16 *out,
                                            const PagedArgs &a) {
  SMEM(smem);
  saddr base = smem_addr(smem), ring = base + L_TILE;
  int head0 = blockIdx.x * 64, heads = a.heads - head0 < a.group ? a.heads - head0 : a.group,
      positions = positions_of(64, a.group);
  PagedTile t;
  if (!paged_tile(a, blockIdx.y, positions, t)) return;
  const int *table = a.table + (size_t)t.sequence * a.table_stride;
  int tiles = t.last / LT + 1, begin = blockIdx.z * LATENT_SPLIT,
      end = begin + LATENT_SPLIT < tiles ? begin + LATENT_SPLIT : tiles;
  if (begin >= tiles) return;
  constexpr int C = WIDTH / 8;
  for (int i = threadIdx.x; i < 64 * C; i += 256) {
    int r = i / C, c = i % C, at = t.first + r / a.group, head = head0 + r % a.group;
    bool in = r < positions * a.group && r % a.group < heads && at >= t.past && at <= t.last;
    size_t row = in ? t.row0 + at - t.past : 0;
    const bf16 *from = c < LATENT / 8
                           ? absorbed + ((size_t)(in ? head : 0) * a.rows + row) * LATENT + c * 8
                           : rotary + row * a.ldq + a.q_offset + (in ? head : 0) * a.q_stride + (c - LATENT / 8) * 8;
    cp_async16(base + c / 8 * 8192 + swizzled(r * 128 + c % 8 * 16), from, in ? 16 : 0);
  }
  int ahead = page_of_lane<LT>(table, begin, t.last);
  auto load = [&](int j) {
    int pages = ahead;
    ahead = page_of_lane<LT>(table, j + 1, t.last);
    if (j < end) {
      saddr to = ring + j % L_STAGES * L_TILE;
      static_assert(LT * C % 256 == 0);
#pragma unroll 6
      for (int i = threadIdx.x; i < LT * C; i += 256) {
        int r = i / C, c = i % C, at = j * LT + r, page = __shfl_sync(~0u, pages, r / PAGE);
        bool in = at <= t.last;
        const bf16 *from = in ? cache + page * a.page_stride + at % PAGE * a.token_stride + c * 8 : cache;
        cp_async16(to + c / 8 * 8192 + swizzled(r * 128 + c % 8 * 16), from, in ? 16 : 0);
      }
    }
    cp_async_commit();
  };
  load(begin);
  int wg = threadIdx.x / 128, thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4;  // and row + 8
  int at0 = t.first + row / a.group, at1 = t.first + (row + 8) / a.group;
  float s[LT / 2], o[128];
  uint32_t p[LT / 4];
  Row2 r;
  row_start(r);
#pragma unroll
  for (int i = 0; i < 128; i++) o[i] = 0.0f;
#pragma unroll 1
  for (int j = begin; j < end; j++) {
    saddr k = ring + j % L_STAGES * L_TILE;
    cp_async_wait<0>();
    fence_async();
    __syncthreads();  // the tile is there for all; and all have done with the one whose place is loaded next
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++)
      wgmma_ss<0, 0>(s, k_major(base + i / 4 * 8192 + i % 4 * 32), k_major(k + i / 4 * 8192 + i % 4 * 32), i != 0);
    wgmma_commit();
    load(j + 1);
    wgmma_wait<0>();
    wgmma_hold(s);
    softmax_tile(s, r, a.c, j == tiles - 1, at0 + 1 - j * LT, at1 + 1 - j * LT);
    rescale(o, r);
    weights_operand(s, p);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < LT / 16; i++) wgmma_rs<1>(o, p + 4 * i, mn_major(k + wg * 4 * 8192 + i * 2048, 8192), 1);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(o);
  }
  write_rows(o, r, a, blockIdx.z, tiles <= LATENT_SPLIT, LATENT, wg * 256,
             [&](int h, int &q_row, int &head, bf16 *&to) {
               int at = h ? at1 : at0, w = row + 8 * h;
               if (w >= positions * a.group || w % a.group >= heads || at < t.past || at > t.last) return false;
               q_row = t.row0 + at - t.past;
               head = head0 + w % a.group;
               to = out + ((size_t)head * a.rows + q_row) * LATENT;
               return true;
             });
}
