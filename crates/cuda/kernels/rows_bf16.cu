// What is computed row by row on activations in bf16. Weights, their gradients and what norms keep are f32; all
// arithmetic is f32, and a result is rounded once. A thread has a piece of eight numbers (eight.cuh).
#include "prelude.cuh"
#include "eight.cuh"

// Sets found[0] where an element is an infinity or NaN.
extern "C" __global__ void find_non_finite_bf16(const bf16 *x, uint32_t *found, int64_t n) {
  flat_piece(n, [=](int64_t i, auto piece) {
    uint4 bits = piece.bits(x + i);
    uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      if ((words[j] & 0x7f80u) == 0x7f80u || (words[j] & 0x7f800000u) == 0x7f800000u) found[0] = 1;
  });
}

extern "C" __global__ void add_bf16(const bf16 *x, bf16 *y, int64_t n) {
  flat_piece(n, [=](int64_t i, auto piece) {
    float s[8];
    piece.numbers(y + i, s);
    add_eight(s, piece.bits(x + i));
    piece.store(y + i, s);
  });
}

extern "C" __global__ void add_bias_bf16(const float *bias, bf16 *y, int cols, int wide, int pieces) {
  row_piece(pieces, cols, wide, [=](int64_t t, int c, auto piece) {
    float s[8], b[8];
    piece.numbers(y + t * cols + c, s);
    piece.numbers(bias + c, b);
#pragma unroll
    for (int j = 0; j < 8; j++) s[j] += b[j];
    piece.store(y + t * cols + c, s);
  });
}

// Columns from..from+width of x to to..to+width of y.
extern "C" __global__ void copy_columns_bf16(const bf16 *x, int x_cols, int from, bf16 *y, int y_cols, int to,
                                             int width, int wide, int pieces) {
  row_piece(pieces, width, wide, [=](int64_t t, int c, auto piece) {
    piece.store(y + t * y_cols + to + c, piece.bits(x + t * x_cols + from + c));
  });
}

// y[H·T, width]: the heads of x, one below the other.
extern "C" __global__ void split_heads_bf16(const bf16 *x, int x_cols, int offset, int stride, bf16 *y, int tokens,
                                            int width, int wide, int pieces) {
  row_piece(pieces, width, wide, [=](int64_t row, int c, auto piece) {
    uint32_t h = (uint32_t)row / tokens, t = (uint32_t)row % tokens;
    piece.store(y + row * width + c, piece.bits(x + (int64_t)t * x_cols + offset + (int64_t)h * stride + c));
  });
}

// y[T, H·width]: the heads of x[H·T, width] side by side.
extern "C" __global__ void join_heads_bf16(const bf16 *x, bf16 *y, int tokens, int heads, int width, int wide,
                                           int pieces) {
  row_piece(pieces, width, wide, [=](int64_t place, int c, auto piece) {
    uint32_t t = (uint32_t)place / heads, h = (uint32_t)place % heads;
    piece.store(y + place * width + c, piece.bits(x + ((int64_t)h * tokens + t) * width + c));
  });
}

// A row's pieces are those of `warps` warps' lanes, in turn: a lane has every 32·warps-th. The first KEPT of them stay
// in registers, so that a row of up to 2048·warps numbers is read once.
constexpr int KEPT = 8;
struct Lane {
  int64_t row;
  int first, step;  // columns
};
__device__ __forceinline__ Lane lane_of_row(int warps) {
  int warp = threadIdx.x / 32, rows = blockDim.x / 32 / warps;
  return {(int64_t)blockIdx.x * rows + warp / warps, (warp % warps * 32 + (int)threadIdx.x % 32) * 8, 256 * warps};
}
template <bool WHOLE>
__device__ __forceinline__ void keep(uint4 (&kept)[KEPT], const bf16 *row, int base, int step, int d) {
#pragma unroll
  for (int k = 0; k < KEPT; k++) {
    int c = base + k * step;
    kept[k] = c < d ? Piece<WHOLE>{min(8, d - c)}.bits(row + c) : make_uint4(0, 0, 0, 0);
  }
}
// The sum of all lanes of a row: a warp's by a tree, then its warps in order. Once a kernel: `scratch` is not freed.
__device__ __forceinline__ float row_sum(float v, int warps, float *scratch) {
#pragma unroll
  for (int half = 16; half; half /= 2) v += __shfl_xor_sync(~0u, v, half);
  if (warps == 1) return v;
  int warp = threadIdx.x / 32, first = warp / warps * warps;
  if (threadIdx.x % 32 == 0) scratch[warp] = v;
  __syncthreads();
  v = scratch[first];
  for (int w = 1; w < warps; w++) v += scratch[first + w];
  return v;
}

template <bool WHOLE>
__device__ __forceinline__ void norm_of(const bf16 *x, const float *w, float eps, bf16 *y, float *rstd, int rows, int d,
                                        int warps, float *scratch) {
  Lane lane = lane_of_row(warps);
  bool in = lane.row < rows;
  const bf16 *from = x + (in ? lane.row : 0) * d;
  int end = in ? d : 0, span = KEPT * lane.step;
  uint4 kept[KEPT];
  float v[8], of_w[8], s = 0.0f;
  for (int base = lane.first; base < end; base += span) {
    keep<WHOLE>(kept, from, base, lane.step, end);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      unpack(kept[k], v);
#pragma unroll
      for (int j = 0; j < 8; j++) s = __fmaf_rn(v[j], v[j], s);
    }
  }
  float r = 1.0f / sqrtf(row_sum(s, warps, scratch) / (float)d + eps);
  for (int base = lane.first; base < end; base += span) {
    if (end > span) keep<WHOLE>(kept, from, base, lane.step, end);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      int c = base + k * lane.step;
      if (c >= end) break;
      Piece<WHOLE> piece{min(8, end - c)};
      unpack(kept[k], v);
      piece.numbers(w + c, of_w);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = v[j] * r * of_w[j];
      piece.store(y + lane.row * d + c, v);
    }
  }
  if (in && lane.first == 0) rstd[lane.row] = r;
}

// y = (x·rstd)·w, rstd = 1/√(mean(x²) + eps) saved. Blocks of eight warps, `warps` of them a row; 32 bytes shared.
extern "C" __global__ void __launch_bounds__(256) rms_norm_bf16(const bf16 *x, const float *w, float eps, bf16 *y,
                                                                float *rstd, int rows, int d, int warps, int wide) {
  SMEM(shared);
  if (wide) norm_of<true>(x, w, eps, y, rstd, rows, d, warps, (float *)shared);
  else norm_of<false>(x, w, eps, y, rstd, rows, d, warps, (float *)shared);
}

template <bool WHOLE>
__device__ __forceinline__ void norm_dx_of(const bf16 *dy, const bf16 *x, const float *w, const float *rstd, bf16 *dx,
                                           int rows, int d, int warps, int go_on, float *scratch) {
  Lane lane = lane_of_row(warps);
  bool in = lane.row < rows;
  int64_t at = (in ? lane.row : 0) * d;
  int end = in ? d : 0, span = KEPT * lane.step;
  uint4 kept_dy[KEPT], kept_x[KEPT];
  float g[8], v[8], of_w[8], first[8] = {}, s = 0.0f, r = in ? rstd[lane.row] : 0.0f;
  for (int base = lane.first; base < end; base += span) {
    keep<WHOLE>(kept_dy, dy + at, base, lane.step, end);
    keep<WHOLE>(kept_x, x + at, base, lane.step, end);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      int c = base + k * lane.step;
      if (c >= end) break;
      Piece<WHOLE>{min(8, end - c)}.numbers(w + c, of_w);
      unpack(kept_dy[k], g);
      unpack(kept_x[k], v);
#pragma unroll
      for (int j = 0; j < 8; j++) s = __fmaf_rn(g[j] * of_w[j], v[j] * r, s);
    }
  }
  float mean = row_sum(s, warps, scratch) / (float)d;
  for (int base = lane.first; base < end; base += span) {
    if (end > span) {
      keep<WHOLE>(kept_dy, dy + at, base, lane.step, end);
      keep<WHOLE>(kept_x, x + at, base, lane.step, end);
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      int c = base + k * lane.step;
      if (c >= end) break;
      Piece<WHOLE> piece{min(8, end - c)};
      unpack(kept_dy[k], g);
      unpack(kept_x[k], v);
      piece.numbers(w + c, of_w);
      if (go_on) piece.numbers(dx + at + c, first);
#pragma unroll
      for (int j = 0; j < 8; j++) g[j] = first[j] + __fmaf_rn(v[j] * r, -mean, g[j] * of_w[j]) * r;
      piece.store(dx + at + c, g);
    }
  }
}

// With g = dy·w and n = x·rstd: dx = first + (g − n·mean(g·n))·rstd. As rms_norm_bf16.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_dx_bf16(const bf16 *dy, const bf16 *x, const float *w, const float *rstd, bf16 *dx, int rows, int d,
                     int warps, int wide, int go_on) {
  SMEM(shared);
  if (wide) norm_dx_of<true>(dy, x, w, rstd, dx, rows, d, warps, go_on, (float *)shared);
  else norm_dx_of<false>(dy, x, w, rstd, dx, rows, d, warps, go_on, (float *)shared);
}

struct NormRow {
  uint4 dy, x;
  float r;
};
// parts[g, d]: Σ dy·(x·rstd) over the rows begins[g]..begins[g + 1], a chain. A thread a piece of a group.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_dw_parts_bf16(const bf16 *dy, const bf16 *x, const float *rstd, const uint32_t *begins, float *parts,
                           int d, int wide, int pieces) {
  row_piece(pieces, d, wide, [=](int64_t g, int c, auto piece) {
    float s[8] = {};
    auto load = [=](int64_t t) { return NormRow{piece.bits(dy + t * d + c), piece.bits(x + t * d + c), rstd[t]}; };
    chain<4>(begins[g], begins[g + 1], load, [&](const NormRow &row) {
      float a[8], v[8];
      unpack(row.dy, a);
      unpack(row.x, v);
#pragma unroll
      for (int j = 0; j < 8; j++) s[j] = __fmaf_rn(a[j], v[j] * row.r, s[j]);
    });
    piece.store(parts + g * d + c, s);
  });
}

// parts[g, d]: Σ dy over the rows begins[g]..begins[g + 1], a chain. A thread a piece of a group.
extern "C" __global__ void __launch_bounds__(256)
    bias_parts_bf16(const bf16 *dy, const uint32_t *begins, float *parts, int d, int wide, int pieces) {
  row_piece(pieces, d, wide, [=](int64_t g, int c, auto piece) {
    float s[8] = {};
    chain<8>(
        begins[g], begins[g + 1], [=](int64_t t) { return piece.bits(dy + t * d + c); },
        [&](uint4 row) { add_eight(s, row); });
    piece.store(parts + g * d + c, s);
  });
}

// dw = [dw] + the groups' parts, a chain. A block of eight warps for 32 columns: all of them load STAGE groups, the
// first adds them. 16 KiB of shared memory.
constexpr int STAGE = 128;
extern "C" __global__ void __launch_bounds__(256)
    chain_parts(const float *parts, float *dw, int groups, int d, int go_on) {
  SMEM(shared);
  float *stage = (float *)shared;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
  float s = go_on && c < d ? dw[c] : 0.0f;
  for (int first = 0; first < groups; first += STAGE) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < STAGE / 8; k++) {
      int g = warp + 8 * k;
      stage[g * 32 + lane] = first + g < groups && c < d ? parts[(int64_t)(first + g) * d + c] : 0.0f;
    }
    __syncthreads();
    int count = min(STAGE, groups - first);
    if (warp == 0)
      for (int g = 0; g < count; g++) s += stage[g * 32 + lane];
  }
  if (warp == 0 && c < d) dw[c] = s;
}

// Turns pairs (a, b) by the angle of the row's position; `sign` is −1 for the way back. A thread eight pairs.
extern "C" __global__ void rope_bf16(bf16 *x, const uint32_t *positions, const float *cosines, const float *sines,
                                     int half, int halves, int cols, int offset, int head_stride, int heads, float sign,
                                     int wide, int pieces) {
  row_piece(pieces, half, wide, [=](int64_t row, int k, auto piece) {
    uint32_t t = (uint32_t)row / heads, h = (uint32_t)row % heads;
    int64_t angle = (int64_t)positions[t] * half + k;
    bf16 *head = x + (int64_t)t * cols + offset + (int64_t)h * head_stride;
    bf16 *low = head + (halves ? k : 2 * k), *high = halves ? low + half : low + 8;
    auto first = piece, second = piece;
    if (!halves) {
      first.count = min(8, 2 * piece.count);
      second.count = max(0, 2 * piece.count - 8);
    }
    float v[2][8], c[8], s[8], of_a[8], of_b[8];
    first.numbers(low, v[0]);
    second.numbers(high, v[1]);
    piece.numbers(cosines + angle, c);
    piece.numbers(sines + angle, s);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float a = halves ? v[0][j] : v[j / 4][j % 4 * 2], b = halves ? v[1][j] : v[j / 4][j % 4 * 2 + 1];
      float turn = sign < 0.0f ? -s[j] : s[j];
      of_a[j] = __fmaf_rn(a, c[j], -(b * turn));
      of_b[j] = __fmaf_rn(a, turn, b * c[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
      v[0][j] = halves ? of_a[j] : j % 2 ? of_b[j / 2] : of_a[j / 2];
      v[1][j] = halves ? of_b[j] : j % 2 ? of_b[4 + j / 2] : of_a[4 + j / 2];
    }
    first.store(low, v[0]);
    second.store(high, v[1]);
  });
}

// σ(x) by the card's own 2^x and 1/x, whose errors of a few f32 ulps are far below a bf16's rounding.
__device__ __forceinline__ float sigmoid_approx(float x) { return reciprocal_approx(1.0f + exp2_approx(x * -LOG2E)); }

extern "C" __global__ void swiglu_bf16(const bf16 *gate, const bf16 *up, bf16 *y, int64_t n) {
  flat_piece(n, [=](int64_t i, auto piece) {
    float g[8], u[8];
    piece.numbers(gate + i, g);
    piece.numbers(up + i, u);
#pragma unroll
    for (int j = 0; j < 8; j++) u[j] *= g[j] * sigmoid_approx(g[j]);
    piece.store(y + i, u);
  });
}

extern "C" __global__ void swiglu_backward_bf16(const bf16 *dy, const bf16 *gate, const bf16 *up, bf16 *dgate,
                                                bf16 *dup, int64_t n) {
  flat_piece(n, [=](int64_t i, auto piece) {
    float d[8], g[8], u[8];
    piece.numbers(dy + i, d);
    piece.numbers(gate + i, g);
    piece.numbers(up + i, u);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float s = sigmoid_approx(g[j]), slope = s * __fmaf_rn(g[j], 1.0f - s, 1.0f);
      u[j] = d[j] * u[j] * slope;
      d[j] *= g[j] * s;
    }
    piece.store(dup + i, d);
    piece.store(dgate + i, u);
  });
}

// y[t] = table[ids[t]], rounded.
extern "C" __global__ void gather_to_bf16(const float *table, const uint32_t *ids, bf16 *y, int d, int wide,
                                          int pieces) {
  row_piece(pieces, d, wide, [=](int64_t t, int c, auto piece) {
    float v[8];
    piece.numbers(table + (int64_t)ids[t] * d + c, v);
    piece.store(y + t * d + c, v);
  });
}

extern "C" __global__ void gather_bf16(const bf16 *table, const uint32_t *ids, bf16 *y, int d, int wide, int pieces) {
  row_piece(pieces, d, wide, [=](int64_t t, int c, auto piece) {
    piece.store(y + t * d + c, piece.bits(table + (int64_t)ids[t] * d + c));
  });
}

// y = x, rounded.
extern "C" __global__ void round_to_bf16(const float *x, bf16 *y, int64_t n) {
  flat_piece(n, [=](int64_t i, auto piece) {
    float v[8];
    piece.numbers(x + i, v);
    piece.store(y + i, v);
  });
}

// Row `found[u]` of dtable is a chain over the tokens order[begins[u]..begins[u + 1]], which ascend: of a frequent id
// thousands, so many loads are under way at a time. A thread a piece.
extern "C" __global__ void __launch_bounds__(256)
    gather_backward_bf16(const bf16 *dy, const uint32_t *found, const uint32_t *begins, const uint32_t *order,
                         float *dtable, int d, int wide, int pieces) {
  row_piece(pieces, d, wide, [=](int64_t u, int c, auto piece) {
    float *to = dtable + (int64_t)found[u] * d + c;
    float s[8];
    piece.numbers(to, s);
    chain<16>(
        begins[u], begins[u + 1], [=](int64_t o) { return piece.bits(dy + (int64_t)order[o] * d + c); },
        [&](uint4 row) { add_eight(s, row); });
    piece.store(to, s);
  });
}
