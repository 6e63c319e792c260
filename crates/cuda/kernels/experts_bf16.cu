// What joins the experts' results in bf16; weights and their gradients are f32. Sums are f32 chains in the order of the
// experts, rounded once.
#include "prelude.cuh"
#include "eight.cuh"

struct Weighted {
  uint4 h;
  float weight;
};
// y[t] = base[t] + Σ_k weights[t, k] · h[slot(t, k)]. A thread a piece of a token.
extern "C" __global__ void __launch_bounds__(256)
    combine_bf16(const bf16 *h, const float *weights, const uint32_t *slots, const bf16 *base, bf16 *y, int top_k,
                 int d, int wide, int pieces) {
  row_piece(pieces, d, wide, [=](int64_t t, int i, auto piece) {
    float s[8] = {};
    if (base) piece.numbers(base + t * d + i, s);
    auto load = [=](int64_t c) { return Weighted{piece.bits(h + (int64_t)slots[c] * d + i), weights[c]}; };
    chain<8>(t * top_k, (t + 1) * top_k, load, [&](const Weighted &of) {
      float v[8];
      unpack(of.h, v);
#pragma unroll
      for (int j = 0; j < 8; j++) s[j] = __fmaf_rn(v[j], of.weight, s[j]);
    });
    piece.store(y + t * d + i, s);
  });
}

template <bool WHOLE>
__device__ __forceinline__ void combine_backward_of(const bf16 *dy, const bf16 *h, const float *weights,
                                                    const uint32_t *slots, bf16 *dh, float *dweights, int top_k, int d,
                                                    int choices) {
  constexpr int KEPT = 4, STEP = 32 * 8;
  int64_t c = thread_index() / 32;
  int lane = threadIdx.x % 32;
  if (c >= choices) return;
  int64_t row = c / top_k * d, slot = (int64_t)slots[c] * d;
  float s = 0.0f, weight = weights[c];
  for (int base = lane * 8; base < d; base += KEPT * STEP) {
    uint4 of_dy[KEPT], of_h[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      int i = base + k * STEP;
      Piece<WHOLE> piece{min(8, d - i)};
      if (i < d) of_dy[k] = piece.bits(dy + row + i);
      if (i < d) of_h[k] = piece.bits(h + slot + i);
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      int i = base + k * STEP;
      if (i >= d) break;
      float a[8], v[8];
      unpack(of_dy[k], a);
      unpack(of_h[k], v);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        s = __fmaf_rn(a[j], v[j], s);
        a[j] *= weight;
      }
      Piece<WHOLE>{min(8, d - i)}.store(dh + slot + i, a);
    }
  }
#pragma unroll
  for (int half = 16; half; half /= 2) s += __shfl_xor_sync(~0u, s, half);
  if (lane == 0) dweights[c] = s;
}

// dh[slot] = dy[t]·weight, dweights = dy[t]·h[slot]. A warp a choice; those of a token are neighbours, so its dy is
// read from memory once.
extern "C" __global__ void __launch_bounds__(256)
    combine_backward_bf16(const bf16 *dy, const bf16 *h, const float *weights, const uint32_t *slots, bf16 *dh,
                          float *dweights, int top_k, int d, int wide, int choices) {
  if (wide) combine_backward_of<true>(dy, h, weights, slots, dh, dweights, top_k, d, choices);
  else combine_backward_of<false>(dy, h, weights, slots, dh, dweights, top_k, d, choices);
}

// dx[t] = [dx[t]] + Σ_k dslots[slot(t, k)]. A thread a piece of a token.
extern "C" __global__ void __launch_bounds__(256) gather_slots_bf16(const bf16 *dslots, const uint32_t *slots, bf16 *dx,
                                                                    int top_k, int d, int go_on, int wide, int pieces) {
  row_piece(pieces, d, wide, [=](int64_t t, int i, auto piece) {
    float s[8] = {};
    if (go_on) piece.numbers(dx + t * d + i, s);
    chain<8>(
        t * top_k, (t + 1) * top_k, [=](int64_t c) { return piece.bits(dslots + (int64_t)slots[c] * d + i); },
        [&](uint4 row) { add_eight(s, row); });
    piece.store(dx + t * d + i, s);
  });
}
