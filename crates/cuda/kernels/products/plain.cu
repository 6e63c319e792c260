// Products with matrices w[N, K], dense and by parts of stacked matrices (experts, heads).
//
// An element is one chain of fused multiply-adds over k (or over the rows, in dw) in order, whatever the tile it is in:
// it depends on its row and its column alone. Tiles of 64 × 64, 16 of k at a time, a thread 4 × 4.
//
// Which rows belong to which part: `tiles`, three numbers for each tile of up to 64 rows (part or −1, first row, end),
// or without it parts of `equal` rows, one after the other. `rows` gives the row of x for each slot.
#include "prelude.cuh"
#include "math.cuh"
#include "products/blocks.cuh"

constexpr int TILE = 64, STEP = 16, PITCH = TILE + 4;

// As the processor's bf16 products: operands to the nearest, subnormal numbers to zero.
__device__ __forceinline__ float flush(float x) {
  uint32_t b = __float_as_uint(x);
  return (b & 0x7f800000u) == 0 ? __uint_as_float(b & 0x80000000u) : x;
}
__device__ __forceinline__ float rounded(float x) { return flush(bf16_f32(f32_bf16(flush(x)))); }

struct Part {
  int part, first, end;
};

__device__ __forceinline__ Part part_of(const int *tiles, int tile, int equal) {
  if (tiles) return Part{tiles[3 * tile], tiles[3 * tile + 1], tiles[3 * tile + 2]};
  int each = (equal + TILE - 1) / TILE, part = tile / each, first = part * equal + tile % each * TILE,
      last = (part + 1) * equal;
  return Part{part, first, first + TILE < last ? first + TILE : last};
}

// c(i, j) = [c(i, j)] + Σ_k a(i, k)·b(k, j) of a tile with m rows and n columns. A_K, B_K: whether neighbours in memory
// are neighbours in k.
template <bool A_K, bool B_K, class A, class B, class C>
__device__ __forceinline__ void tile_product(int m, int n, int k, A a, B b, C c, bool go_on, int bf16_operands) {
  SMEM(shared);
  float *of_a = (float *)shared, *of_b = of_a + STEP * PITCH;
  int tid = threadIdx.x, i0 = tid / 16 * 4, j0 = tid % 16 * 4;
  bool busy = i0 < m && j0 < n;
  float sums[4][4];
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) sums[i][j] = go_on && i0 + i < m && j0 + j < n ? c(i0 + i, j0 + j) : 0.0f;
  for (int k0 = 0; k0 < k; k0 += STEP) {
    __syncthreads();
    for (int at = tid; at < TILE * STEP; at += 256) {
      int ka = A_K ? at % STEP : at / TILE, i = A_K ? at / STEP : at % TILE;
      float x = i < m && k0 + ka < k ? a(i, k0 + ka) : 0.0f;
      of_a[ka * PITCH + i] = bf16_operands ? rounded(x) : x;
      int kb = B_K ? at % STEP : at / TILE, j = B_K ? at / STEP : at % TILE;
      float y = j < n && k0 + kb < k ? b(k0 + kb, j) : 0.0f;
      of_b[kb * PITCH + j] = bf16_operands ? rounded(y) : y;
    }
    __syncthreads();
    int steps = k - k0 < STEP ? k - k0 : STEP;
    if (busy)
      for (int kk = 0; kk < steps; kk++) {
        const float *x = of_a + kk * PITCH + i0, *y = of_b + kk * PITCH + j0;
        for (int i = 0; i < 4; i++)
          for (int j = 0; j < 4; j++) {
            float s = __fmaf_rn(x[i], y[j], sums[i][j]);
            sums[i][j] = bf16_operands ? flush(s) : s;
          }
      }
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++)
      if (i0 + i < m && j0 + j < n) c(i0 + i, j0 + j) = sums[i][j];
}

// y[S, N] = x · w[part]ᵀ. `table` has for each part of packed weights its number format (F32, F16, BF16 or E4M3) and
// where it begins; without it, w is f32.
extern "C" __global__ void __launch_bounds__(256, 2)
    product_y(const float *x, const uint32_t *rows, const char *w, const int64_t *table, const int *tiles, int equal,
              float *y, int k, int n, int bf16_operands) {
  Part p = part_of(tiles, blockIdx.y, equal);
  if (p.part < 0) return;
  int column = blockIdx.x * TILE, format = table ? (int)table[2 * p.part] : F32;
  const char *of_part = w + (table ? table[2 * p.part + 1] : (int64_t)p.part * n * k * 4);
  auto a = [=](int i, int l) { return x[(int64_t)(rows ? rows[p.first + i] : p.first + i) * k + l]; };
  auto b = [=](int l, int j) {
    if (format == E4M3) return e4m3_in((Bytes)of_part + (int64_t)(column + j) * ((k + 127) / 128 * 132), l);
    int64_t at = (int64_t)(column + j) * k + l;
    if (format == F32) return ((const float *)of_part)[at];
    uint16_t bits = ((const uint16_t *)of_part)[at];
    return format == F16 ? f16_f32(bits) : bf16_f32(bits);
  };
  auto c = [=](int i, int j) -> float & { return y[(int64_t)(p.first + i) * n + column + j]; };
  tile_product<true, true>(p.end - p.first, min(TILE, n - column), k, a, b, c, false, bf16_operands);
}

// dx[S, K] = [dx] + dy[S, N] · w[part].
extern "C" __global__ void __launch_bounds__(256, 2)
    product_dx(const float *dy, const float *w, const int *tiles, int equal, float *dx, int k, int n, int go_on,
               int bf16_operands) {
  Part p = part_of(tiles, blockIdx.y, equal);
  if (p.part < 0) return;
  int column = blockIdx.x * TILE;
  const float *of_part = w + (int64_t)p.part * n * k;
  auto a = [=](int i, int l) { return dy[(int64_t)(p.first + i) * n + l]; };
  auto b = [=](int l, int j) { return of_part[(int64_t)l * k + column + j]; };
  auto c = [=](int i, int j) -> float & { return dx[(int64_t)(p.first + i) * k + column + j]; };
  tile_product<true, false>(p.end - p.first, min(TILE, k - column), n, a, b, c, go_on, bf16_operands);
}

// dw[part] = [dw[part]] + dyᵀ · x over the rows of each part, which begin at `begins` or are `equal` each.
extern "C" __global__ void __launch_bounds__(256, 2)
    product_dw(const float *dy, const float *x, const uint32_t *rows, const uint32_t *begins, int equal, float *dw,
               int k, int n, int go_on, int bf16_operands) {
  int part = blockIdx.z, column = blockIdx.x * TILE, row = blockIdx.y * TILE;
  int first = begins ? begins[part] : part * equal, end = begins ? begins[part + 1] : first + equal;
  float *of_part = dw + (int64_t)part * n * k;
  auto a = [=](int i, int t) { return dy[(int64_t)(first + t) * n + row + i]; };
  auto b = [=](int t, int j) { return x[(int64_t)(rows ? rows[first + t] : first + t) * k + column + j]; };
  auto c = [=](int i, int j) -> float & { return of_part[(int64_t)(row + i) * k + column + j]; };
  tile_product<false, false>(min(TILE, n - row), min(TILE, k - column), end - first, a, b, c, go_on, bf16_operands);
}
