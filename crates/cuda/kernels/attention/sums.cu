// The sums around the kernels of attention, for all cards.
#include "attention/tile.cuh"
#include "eight.cuh"
// delta[H, T]: a warp for each token and head. grid: (ceil(T·H / 8)), block 256.
extern "C" __global__ void __launch_bounds__(256)
    attention_delta_bf16(const bf16 *out, const bf16 *dout, float *delta, int tokens, int heads, int dv) {
  int lane = threadIdx.x % 32, at = blockIdx.x * 8 + threadIdx.x / 32;
  if (at >= tokens * heads) return;
  const bf16 *o = out + (size_t)at * dv, *d = dout + (size_t)at * dv;
  float s = 0.0f;
  for (int i = lane * 2; i < dv; i += 64) {
    uint32_t x = *(const uint32_t *)(o + i), y = *(const uint32_t *)(d + i);
    s = __fmaf_rn(bf16_f32(x & 0xffff), bf16_f32(y & 0xffff), s);
    s = __fmaf_rn(bf16_f32(x >> 16), bf16_f32(y >> 16), s);
  }
#pragma unroll
  for (int m = 16; m; m >>= 1) s = __fadd_rn(s, __shfl_xor_sync(~0u, s, m));
  if (lane == 0) delta[(size_t)(at % heads) * tokens + at / heads] = s;
}
// dshared[T, width] = the sum over the key-value heads of each head's [Hkv, T, width]. grid: (ceil(T·width / 256)).
extern "C" __global__ void __launch_bounds__(256)
    attention_shared_bf16(const float *parts, bf16 *out, int tokens, int heads, int width, int offset, int ld) {
  int at = blockIdx.x * 256 + threadIdx.x;
  if (at >= tokens * width) return;
  float s = 0.0f;
  for (int h = 0; h < heads; h++) s = __fadd_rn(s, parts[(size_t)h * tokens * width + at]);
  out[(size_t)(at / width) * ld + offset + at % width] = f32_bf16(s);
}
// Joins the splits of rows that have several, in order: one warp a row and head. out: number i of (row, head) at
// row·row_stride + head·head_stride + i.
// grid: (ceil(rows·heads / 8)), block 256. keys: of a split. Needs no call where no sequence is longer than a split.
extern "C" __global__ void __launch_bounds__(256)
    attention_join(const float *part_o, const float *part_ml, int rows, int heads, const int *past,
                   const int *new_starts, float scale, int keys, int width, bf16 *out, int64_t row_stride,
                   int64_t head_stride) {
  int lane = threadIdx.x % 32, at = blockIdx.x * 8 + threadIdx.x / 32, row = at / heads, head = at % heads;
  float c = __fmul_rn(scale, LOG2E);
  if (row >= rows) return;
  int s = 0;
  while (row >= new_starts[s + 1]) s++;
  int splits = ((past ? past[s] : 0) + row - new_starts[s]) / keys + 1;
  if (splits == 1) return;
  const float *ml = part_ml + (size_t)at * 2, *o = part_o + (size_t)at * width;
  size_t step = (size_t)rows * heads;
  constexpr int COLUMNS = 4;  // of a lane, 32 apart: what it reads of some splits is under way at once
  struct Split {
    float m, l, o[COLUMNS];
  };
  for (int i = lane; i < width; i += 32 * COLUMNS) {
    auto load = [=](int64_t j) {
      Split split{ml[j * step * 2], ml[j * step * 2 + 1], {}};
#pragma unroll
      for (int k = 0; k < COLUMNS; k++)
        if (i + 32 * k < width) split.o[k] = o[j * step * width + i + 32 * k];
      return split;
    };
    Split all = load(0);
    chain<8>(1, splits, load, [&](const Split &next) {
      float x, y;
      join(all.m, all.l, next.m, next.l, c, x, y);
#pragma unroll
      for (int k = 0; k < COLUMNS; k++) all.o[k] = joined(all.o[k], next.o[k], x, y);
    });
    bf16 *to = out + row * row_stride + head * head_stride + i;
#pragma unroll
    for (int k = 0; k < COLUMNS; k++)
      if (i + 32 * k < width) to[32 * k] = f32_bf16(__fmul_rn(all.o[k], __fdiv_rn(1.0f, all.l)));
  }
}
// y: four rows of `stride` numbers, a multiple of 4: row r has x from place (4 - r) % 4 on, and zeros behind. TMA begins
// at whole pieces of 16 bytes alone: number i of x is at one in row i % 4. grid: (ceil(stride / 256)).
extern "C" __global__ void __launch_bounds__(256) attention_shift(const float *x, float *y, int len, int stride) {
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= stride) return;
  float v = i < len ? x[i] : 0.0f;
#pragma unroll
  for (int r = 0; r < 4; r++) {
    int to = i + (4 - r) % 4;
    if (to < stride) y[(size_t)r * stride + to] = v;
  }
}
