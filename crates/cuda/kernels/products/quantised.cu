// Products with weights in GGUF's blocks: whole numbers times activations quantised to int8, 32 to a scale; an element
// is a chain over the groups. Formats: crates/kernels/src/quant/blocks.rs; order of sums, to the bits:
// crates/kernels/src/reference/quant.rs.
//
// `table`: two numbers for each stacked matrix: its number format (the index in BlockType::ALL) and where it begins.
#include "prelude.cuh"
#include "math.cuh"

constexpr int F32 = 0, F16 = 1, BF16 = 2, Q8_0 = 3, Q4_0 = 4, Q4_1 = 5, Q5_0 = 6, Q5_1 = 7, Q2_K = 8, Q3_K = 9,
              Q4_K = 10, Q5_K = 11, Q6_K = 12;

typedef const uint8_t *Bytes;

__device__ __forceinline__ int len_of(int type) { return type <= BF16 ? 1 : type < Q2_K ? 32 : 256; }
__device__ __forceinline__ int bytes_of(int type) {
  switch (type) {
    case F32:
      return 4;
    case F16:
    case BF16:
      return 2;
    case Q8_0:
      return 34;
    case Q4_0:
      return 18;
    case Q4_1:
      return 20;
    case Q5_0:
      return 22;
    case Q5_1:
      return 24;
    case Q2_K:
      return 84;
    case Q3_K:
      return 110;
    case Q4_K:
      return 144;
    case Q5_K:
      return 176;
    default:
      return 210;
  }
}
__device__ __forceinline__ int group_of(int type) { return type == Q2_K || type == Q3_K || type == Q6_K ? 16 : 32; }
__device__ __forceinline__ bool has_minima(int type) {
  return type == Q4_1 || type == Q5_1 || type == Q2_K || type == Q4_K || type == Q5_K;
}
__device__ __forceinline__ uint16_t u16_at(Bytes b, int at) { return (uint16_t)(b[at] | b[at + 1] << 8); }
__device__ __forceinline__ float half_at(Bytes b, int at) { return f16_f32(u16_at(b, at)); }

// 16 bytes whose low nibbles are the first 16 numbers; two bits of 32 bytes, the next two, and so on.
__device__ __forceinline__ int nibble_32(Bytes b, int i) { return i < 16 ? b[i] & 15 : b[i - 16] >> 4; }
__device__ __forceinline__ int pair_at(Bytes b, int i) { return b[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3; }
__device__ __forceinline__ int nibble_64(Bytes b, int i) {
  return i % 64 < 32 ? b[i / 64 * 32 + i % 32] & 15 : b[i / 64 * 32 + i % 32] >> 4;
}
__device__ __forceinline__ int fifth_bit(Bytes b, int i) { return (b[i / 8] >> (i % 8) & 1) << 4; }

// Element i of a block less the number that stands for zero.
__device__ __forceinline__ int whole_at(int type, Bytes b, int i) {
  switch (type) {
    case Q8_0:
      return (int)(signed char)b[2 + i];
    case Q4_0:
      return nibble_32(b + 2, i) - 8;
    case Q4_1:
      return nibble_32(b + 4, i);
    case Q5_0:
      return (nibble_32(b + 6, i) | fifth_bit(b + 2, i)) - 16;
    case Q5_1:
      return nibble_32(b + 8, i) | fifth_bit(b + 4, i);
    case Q2_K:
      return pair_at(b + 16, i);
    case Q3_K:
      return (pair_at(b + 32, i) | (b[i % 32] >> (i / 32) & 1) << 2) - 4;
    case Q4_K:
      return nibble_64(b + 16, i);
    case Q5_K:
      return nibble_64(b + 48, i) | (b[16 + i % 32] >> (i / 32) & 1) << 4;
    default: {
      int low = i % 128 < 64 ? b[i / 128 * 64 + i % 64] & 15 : b[i / 128 * 64 + i % 64] >> 4;
      return (low | pair_at(b + 128, i) << 4) - 32;
    }
  }
}

struct Scale {
  float scale, minimum;
};

// The scale and the minimum of group g, exact.
__device__ __forceinline__ Scale scale_of(int type, Bytes b, int g) {
  switch (type) {
    case Q8_0:
    case Q4_0:
    case Q5_0:
      return Scale{half_at(b, 0), 0.0f};
    case Q4_1:
    case Q5_1:
      return Scale{half_at(b, 0), -half_at(b, 2)};
    case Q2_K:
      return Scale{half_at(b, 80) * (float)(b[g] & 15), half_at(b, 82) * (float)(b[g] >> 4)};
    case Q3_K: {
      int low = b[96 + g % 8] >> (g / 8 * 4) & 15, high = b[96 + 8 + g % 4] >> (g / 4 * 2) & 3;
      return Scale{half_at(b, 108) * (float)((low | high << 4) - 32), 0.0f};
    }
    case Q4_K:
    case Q5_K: {
      Bytes p = b + 4;
      int scale = g < 4 ? p[g] & 63 : (p[g + 4] & 15) | p[g - 4] >> 6 << 4;
      int minimum = g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | p[g] >> 6 << 4;
      return Scale{half_at(b, 0) * (float)scale, half_at(b, 2) * (float)minimum};
    }
    default:
      return Scale{half_at(b, 208) * (float)(int)(signed char)b[192 + g], 0.0f};
  }
}

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
  } else {
    Scale of = scale_of(type, block, i % len / group_of(type));
    y[at] = of.scale * (float)whole_at(type, block, i % len) - of.minimum;
  }
}
