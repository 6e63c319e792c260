// Products with weights in GGUF's blocks: whole numbers times activations quantised to int8, 32 to a scale; an element
// is a chain over the groups. Formats: crates/kernels/src/quant/blocks.rs; order of sums, to the bits:
// crates/kernels/src/reference/quant.rs.
//
// `table`: two numbers for each stacked matrix: its number format (the index in BlockType::ALL) and where it begins.
#include "prelude.cuh"
#include "math.cuh"
#include "products/blocks.cuh"

// Rows of x as whole numbers, 32 to a scale; rows filled up with zeros to `padded`. A thread a scale.
extern "C" __global__ void quantise_rows(const float *x, char *whole, float *scales, int k, int padded, int64_t n) {
  int64_t at = thread_index();
  if (at >= n) return;
  int each = padded / 32, first = at % each * 32;
  const float *row = x + at / each * k;
  float most = 0.0f;
  bool finite = true;
  for (int i = first; i < first + 32 && i < k; i++) {
    float size = fabsf(row[i]);
    most = size > most ? size : most;
    finite = finite && (__float_as_uint(row[i]) & 0x7f800000u) != 0x7f800000u;
  }
  float scale = most / 127.0f;
  bool zero = !finite || scale < 7.8886090522101181e-31f;  // 2^-100
  float inverse = 127.0f / most;
  for (int i = 0; i < 32; i++)
    whole[at * 32 + i] = zero || first + i >= k ? 0 : (char)(int)rintf(row[first + i] * inverse);
  scales[at] = !finite ? __uint_as_float(0x7fc00000u) : zero ? 0.0f : scale;
}

constexpr int TILE = 64, ROWS = 4;

// y[S, N] of up to four rows and a column by each thread; `tiles`, `equal` and `rows` as in plain.cu.
extern "C" __global__ void __launch_bounds__(64)
    quantised_y(const char *x, const float *x_scales, const uint32_t *rows, const char *w, const int64_t *table,
                const int *tiles, int equal, float *y, int padded, int n) {
  int tile = blockIdx.y, part, first, end;
  if (tiles) {
    part = tiles[3 * tile];
    first = tiles[3 * tile + 1];
    end = tiles[3 * tile + 2];
    if (part < 0) return;
  } else {
    int each = (equal + TILE - 1) / TILE;
    part = tile / each;
    first = part * equal + tile % each * TILE;
    end = min(first + TILE, (part + 1) * equal);
  }
  int column = blockIdx.x * blockDim.x + threadIdx.x, type = (int)table[2 * part];
  first += blockIdx.z * ROWS;
  if (column >= n || first >= end) return;
  int count = min(ROWS, end - first), len = len_of(type), bytes = bytes_of(type), group = group_of(type);
  Bytes block = (Bytes)w + table[2 * part + 1] + (int64_t)column * (padded / len) * bytes;
  float sums[ROWS];
  for (int r = 0; r < ROWS; r++) sums[r] = 0.0f;
  for (int k0 = 0; k0 < padded; k0 += len, block += bytes)
    for (int g = 0; g < len / group; g++) {
      Scale of = scale_of(type, block, g);
      int at = k0 + g * group, whole[ROWS], sum[ROWS];
      for (int r = 0; r < ROWS; r++) whole[r] = sum[r] = 0;
      for (int i = 0; i < group; i++) {
        int weight = whole_at(type, block, g * group + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
          if (r < count) {
            int64_t row = rows ? rows[first + r] : first + r;
            int value = (int)(signed char)x[row * padded + at + i];
            whole[r] += value * weight;
            sum[r] += value;
          }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        if (r < count) {
          int64_t row = rows ? rows[first + r] : first + r;
          float scale = x_scales[row * (padded / 32) + at / 32];
          sums[r] = __fmaf_rn((float)whole[r], of.scale * scale, sums[r]);
          if (has_minima(type)) sums[r] = __fmaf_rn(-of.minimum, scale * (float)sum[r], sums[r]);
        }
    }
#pragma unroll
  for (int r = 0; r < ROWS; r++)
    if (r < count) y[(int64_t)(first + r) * n + column] = sums[r];
}

// y[t] = row ids[t] of a matrix in any number format.
extern "C" __global__ void gather_packed(const char *w, const int64_t *table, const uint32_t *ids, float *y, int d,
                                         int padded, int64_t n) {
  int64_t at = thread_index();
  if (at >= n) return;
  int type = (int)table[0], i = at % d, len = len_of(type);
  Bytes block = (Bytes)w + table[1] + ((int64_t)ids[at / d] * (padded / len) + i / len) * bytes_of(type);
  if (type == F32) {
    y[at] = *(const float *)block;
  } else if (type == F16 || type == BF16) {
    y[at] = type == F16 ? half_at(block, 0) : bf16_f32(u16_at(block, 0));
  } else if (type == E4M3) {
    y[at] = e4m3_in(block, i % len);
  } else {
    Scale of = scale_of(type, block, i % len / group_of(type));
    y[at] = of.scale * (float)whole_at(type, block, i % len) - of.minimum;
  }
}
