// What all kernels of attention share: the arithmetic of one row over one tile of keys.
//
// A query's result is made of its sequence's keys in tiles of a fixed length, the first of which begins at the
// sequence's first token:
//   s_j = Σ q·k_j                 one chain of tensor-core steps of 16 over the width
//   m'  = max(m, max_j s_j)       α = 2^((m - m')·c),  p_j = 2^(s_j·c - m'·c),  c = scale·log2 e
//   l   = l·α + Σ p_j             each thread of a quad its own columns in order; the quad's four at the very end
//   o   = o·α + Σ bf16(p_j)·v_j   one chain of tensor-core steps of 16 over the tile's keys
// and in the end o / l and the log-sum-exp m·c + log2 l. Keys after the query have p_j = 0. The last tile that a row
// meets is
// the one that holds its own key: tiles of queries never cross a tile of keys. So nothing here depends on how many
// queries are computed at
// once, on what else the batch holds, or on where keys lie: the forward pass of training, a chunk of a prompt and the
// decoding of one token over pages give a query the same bits, as long as all use the same instruction (wgmma here,
// mma.sync in ampere.cuh).
// Keys come in splits of SPLIT_TILES tiles, so that several blocks can share a long sequence while decoding: within a
// split m, l and o start anew; its results
// are joined to those of the splits before it, in order (`join`). A row that sees one split alone is not joined to
// anything. (192/128, which
// serves training and rollouts alone, has no splits.)
// Taken for granted, to be shown on the card: a tensor core computes an element of its result from its row, its column
// and its accumulator alone,
// at every place of a tile, and a term of 0 adds nothing whatever its other factor (v of keys that are masked are
// finite numbers or zeros).
//
// Fragments: register i of a thread (lane) of a warp has row lane/4 + 8·(i/2 % 2) of its 16 and column i/4·8 + lane%4·2
// + i%2.
#pragma once
#include "prelude.cuh"
#ifndef SPLIT_TILES
#define SPLIT_TILES 8
#endif
struct Row2 {
  float m[2], l[2], alpha[2];
};  // of the two rows that a thread has parts of
__device__ __forceinline__ void row_start(Row2 &r) {
  r.m[0] = r.m[1] = -INFINITY_F;
  r.l[0] = r.l[1] = 0.0f;
}
// Scores of a tile become weights; keys from visible[h] on are masked in row h where `masked`.
template <int H>
__device__ __forceinline__ void softmax_tile(float (&s)[H], Row2 &r, float c, bool masked, int visible0, int visible1) {
  int lane = threadIdx.x % 32;
  if (masked) {
#pragma unroll
    for (int i = 0; i < H; i++) {
      int col = i / 4 * 8 + lane % 4 * 2 + (i & 1);
      if (col >= (i >> 1 & 1 ? visible1 : visible0)) s[i] = -INFINITY_F;
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float m = r.m[h];
#pragma unroll
    for (int i = 0; i < H; i += 4) {
      m = fmaxf(m, s[i + 2 * h]);
      m = fmaxf(m, s[i + 2 * h + 1]);
    }
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    float mc = __fmul_rn(m, c), even = 0.0f, odd = 0.0f;
    r.alpha[h] = exp2_approx(__fmul_rn(__fadd_rn(r.m[h], -m), c));  // 1 where the maximum stays
    r.m[h] = m;
#pragma unroll
    for (int i = 0; i < H; i += 4) {
      float p = exp2_approx(__fmaf_rn(s[i + 2 * h], c, -mc)), q = exp2_approx(__fmaf_rn(s[i + 2 * h + 1], c, -mc));
      even = __fadd_rn(even, p);
      odd = __fadd_rn(odd, q);
      s[i + 2 * h] = p;
      s[i + 2 * h + 1] = q;
    }
    r.l[h] = __fmaf_rn(r.l[h], r.alpha[h], __fadd_rn(even, odd));
  }
}
// Weights as the left operand of a product over the tile's keys: four registers for each 16 of them.
template <int H>
__device__ __forceinline__ void weights_operand(const float (&s)[H], uint32_t (&p)[H / 2]) {
#pragma unroll
  for (int i = 0; i < H; i += 2) p[i / 2] = bf16x2(s[i], s[i + 1]);
}
template <int H>
__device__ __forceinline__ void rescale(float (&o)[H], const Row2 &r) {
#pragma unroll
  for (int i = 0; i < H; i++) o[i] = __fmul_rn(o[i], r.alpha[i >> 1 & 1]);
}
// The splits of a row so far, and what another one (r, l its whole row's) changes of them: o_total = o_total·a + o·b.
struct Total {
  float m[2], l[2];
};
__device__ __forceinline__ void join(float &m, float &l, float with_m, float with_l, float c, float &a, float &b) {
  float most = fmaxf(m, with_m);
  a = exp2_approx(__fmul_rn(__fadd_rn(m, -most), c));
  b = exp2_approx(__fmul_rn(__fadd_rn(with_m, -most), c));
  l = __fmaf_rn(l, a, __fmul_rn(with_l, b));
  m = most;
}
__device__ __forceinline__ float joined(float total, float o, float a, float b) {
  return __fmaf_rn(total, a, __fmul_rn(o, b));
}
__device__ __forceinline__ float row_sum(float l) {
  l = __fadd_rn(l, __shfl_xor_sync(~0u, l, 1));
  return __fadd_rn(l, __shfl_xor_sync(~0u, l, 2));
}
// Joins a split's o to what the thread keeps of the splits before it in shared memory, one number in 128 · 4 bytes;
// `first`: there are none.
template <int O>
__device__ __forceinline__ void join_split(const float (&o)[O], const Row2 &r, float c, bool first, Total &total,
                                           float *kept) {
  float a[2], b[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float l = row_sum(r.l[h]);
    if (first) {
      total.m[h] = r.m[h];
      total.l[h] = l;
    } else join(total.m[h], total.l[h], r.m[h], l, c, a[h], b[h]);
  }
#pragma unroll
  for (int i = 0; i < O; i++) kept[i * 128] = first ? o[i] : joined(kept[i * 128], o[i], a[i >> 1 & 1], b[i >> 1 & 1]);
}
// Packed sequences: sequence s has the rows starts[s] .. starts[s + 1] of all tensors. Head h of q begins at column
// q_offset + h·q_stride, key-value head h / group of k at k_offset + (h / group)·k_stride, and so on. The last DK - OWN
// columns of all
// heads' keys are the same, at column shared_offset of a tensor of their own (MLA's rotary key).
struct AttentionArgs {
  const int *starts;
  int sequences, tokens, heads, group;
  int q_offset, q_stride, k_offset, k_stride, shared_offset, v_offset, v_stride;
  float scale, c;  // c = scale · log2 e
};
// The `index`th tile of BM rows of all sequences, the last tiles of a sequence first: they have most to do.
__device__ __forceinline__ bool sequence_tile(const AttentionArgs &a, int index, int bm, int &start, int &length,
                                              int &tile) {
  int s;
  if (!find_run(a.sequences, [&](int s) { return (a.starts[s + 1] - a.starts[s] + bm - 1) / bm; }, index, s))
    return false;
  start = a.starts[s];
  length = a.starts[s + 1] - start;
  tile = (length + bm - 1) / bm - 1 - index;
  return true;
}
