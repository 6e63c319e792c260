// Keys and values in pages of 16 tokens, and the tiles of queries over them.
//
// Token t of sequence b lies in page table[b·table_stride + t/16]; what a layer keeps of it begins at page·page_stride
// + (t % 16)·token_stride
// (numbers of bf16 from the layer's pointer), and for key-value head g at g·head_stride after that.
#pragma once
#include "attention/tile.cuh"
constexpr int PAGE = 16;
struct PagedArgs {
  const int *table;
  int table_stride;
  int64_t page_stride;
  int token_stride, head_stride, k_offset, v_offset, shared_offset;  // shared_offset is from the token's first number
  const int *past;                                                   // [sequences]: tokens before the call; null: none
  const int *new_starts;                                             // [sequences + 1]: rows of the new tokens' queries
  int sequences, heads, group, q_offset, q_stride, ldq;
  float c;
  // Of queries that see several splits: each split's o [splits][rows][heads][DV], and m and l [splits][rows][heads][2];
  // rows: all queries of the call.
  float *part_o, *part_ml;
  int rows;
};
// Queries are computed in tiles of ROWS rows, a row being a position and a head of the group: row r has position
// block·positions + r / group. `positions` is a
// power of two that divides the tiles of keys, so all rows of a tile see the same last tile of keys (tile.cuh).
__device__ __forceinline__ int positions_of(int rows, int group) {
  int p = 1;
  while (2 * p * group <= rows) p *= 2;
  return p;
}
// Lane l of a warp has the page of keys 16·l.. of tile j of KEYS keys. Asked for a tile ahead, so that no copy waits for
// where it is from.
template <int KEYS>
__device__ __forceinline__ int page_of_lane(const int *table, int j, int last) {
  return table[min(j * (KEYS / PAGE) + (int)threadIdx.x % (KEYS / PAGE), last / PAGE)];
}
struct PagedTile {
  int sequence, first, row0, past, last;
};  // first: position of row 0; row0: query row of position `past`; last: last position that exists
__device__ __forceinline__ bool paged_tile(const PagedArgs &a, int index, int positions, PagedTile &t) {
  auto blocks = [&](int s) {
    int past = a.past ? a.past[s] : 0, count = a.new_starts[s + 1] - a.new_starts[s];
    return count ? (past + count - 1) / positions - past / positions + 1 : 0;
  };
  int s;
  if (!find_run(a.sequences, blocks, index, s)) return false;
  int past = a.past ? a.past[s] : 0, end = past + a.new_starts[s + 1] - a.new_starts[s] - 1;
  t.sequence = s;
  t.first = (past / positions + blocks(s) - 1 - index) * positions;
  t.row0 = a.new_starts[s];
  t.past = past;
  t.last = t.first + positions - 1 < end ? t.first + positions - 1 : end;
  return true;
}
// Writes a tile's rows: the result where one split is all they see, else the split's part. `to_row` gives a row's place
// in out.
template <int O, class F>
__device__ __forceinline__ void write_rows(const float (&o)[O], const Row2 &r, const PagedArgs &a, int split,
                                           bool whole, int width, int col0, F to_row) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float l = row_sum(r.l[h]);
    int row, head;
    bf16 *to;
    if (!to_row(h, row, head, to)) continue;
    if (whole) {
      float inverse = __fdiv_rn(1.0f, l);
#pragma unroll
      for (int i = 0; i < O / 4; i++)
        *(uint32_t *)(to + col0 + i * 8 + lane % 4 * 2) =
            bf16x2(__fmul_rn(o[4 * i + 2 * h], inverse), __fmul_rn(o[4 * i + 2 * h + 1], inverse));
      continue;
    }
    size_t at = ((size_t)split * a.rows + row) * a.heads + head;
    if (col0 == 0 && lane % 4 == 0) *(float2 *)(a.part_ml + at * 2) = make_float2(r.m[h], l);
#pragma unroll
    for (int i = 0; i < O / 4; i++)
      *(float2 *)(a.part_o + at * width + col0 + i * 8 + lane % 4 * 2) =
          make_float2(o[4 * i + 2 * h], o[4 * i + 2 * h + 1]);
  }
}
