// The number formats of weights, GGUF's and E4M3, block by block: crates/kernels/src/quant/blocks.rs says what is
// where.
#pragma once
#include "prelude.cuh"

constexpr int F32 = 0, F16 = 1, BF16 = 2, Q8_0 = 3, Q4_0 = 4, Q4_1 = 5, Q5_0 = 6, Q5_1 = 7, Q2_K = 8, Q3_K = 9,
              Q4_K = 10, Q5_K = 11, Q6_K = 12, E4M3 = 13;

typedef const uint8_t *Bytes;

constexpr __device__ __forceinline__ int len_of(int type) {
  return type <= BF16 ? 1 : type < Q2_K ? 32 : type == E4M3 ? 128 : 256;
}
constexpr __device__ __forceinline__ int bytes_of(int type) {
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
    case E4M3:
      return 132;
    default:
      return 210;
  }
}
constexpr __device__ __forceinline__ int group_of(int type) {
  return type == E4M3 ? 128 : type == Q2_K || type == Q3_K || type == Q6_K ? 16 : 32;
}
constexpr __device__ __forceinline__ bool has_minima(int type) {
  return type == Q4_1 || type == Q5_1 || type == Q2_K || type == Q4_K || type == Q5_K;
}
// Blocks are an even number of bytes, and matrices begin at multiples of 16.
__device__ __forceinline__ uint16_t u16_at(Bytes b, int at) { return *(const uint16_t *)(b + at); }
__device__ __forceinline__ float half_at(Bytes b, int at) { return f16_f32(u16_at(b, at)); }

// 16 bytes whose low nibbles are the first 16 numbers; two bits of 32 bytes, the next two, and so on.
__device__ __forceinline__ int nibble_32(Bytes b, int i) { return i < 16 ? b[i] & 15 : b[i - 16] >> 4; }
__device__ __forceinline__ int pair_at(Bytes b, int i) { return b[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3; }
__device__ __forceinline__ int nibble_64(Bytes b, int i) {
  return i % 64 < 32 ? b[i / 64 * 32 + i % 32] & 15 : b[i / 64 * 32 + i % 32] >> 4;
}
__device__ __forceinline__ int fifth_bit(Bytes b, int i) { return (b[i / 8] >> (i % 8) & 1) << 4; }

// The number of E4M3 with these bits, which are not NaN's. Subnormal ones are f32's until they are multiplied.
__device__ __forceinline__ float e4m3_number(uint32_t bits) {
  return __uint_as_float((bits & 128) << 24 | (bits & 127) << 20) * __uint_as_float(0x7b800000u);  // 2^120
}
// Element i of a row of blocks, as the processor decodes it.
__device__ __forceinline__ float e4m3_in(Bytes row, int i) {
  Bytes block = row + i / 128 * 132;
  return e4m3_number(block[4 + i % 128]) * *(const float *)block;
}

// Element i of a block of whole numbers less the number that stands for zero.
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

// The scale and the minimum of group g, exact; `d` has those of the block, `p` the factors of its groups.
__device__ __forceinline__ Scale scale_in(int type, Bytes d, Bytes p, int g) {
  switch (type) {
    case Q8_0:
    case Q4_0:
    case Q5_0:
      return Scale{half_at(d, 0), 0.0f};
    case Q4_1:
    case Q5_1:
      return Scale{half_at(d, 0), -half_at(d, 2)};
    case E4M3:
      return Scale{*(const float *)d, 0.0f};
    case Q2_K:
      return Scale{half_at(d, 0) * (float)(p[g] & 15), half_at(d, 2) * (float)(p[g] >> 4)};
    case Q3_K: {
      int low = p[g % 8] >> (g / 8 * 4) & 15, high = p[8 + g % 4] >> (g / 4 * 2) & 3;
      return Scale{half_at(d, 0) * (float)((low | high << 4) - 32), 0.0f};
    }
    case Q4_K:
    case Q5_K: {
      int scale = g < 4 ? p[g] & 63 : (p[g + 4] & 15) | p[g - 4] >> 6 << 4;
      int minimum = g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | p[g] >> 6 << 4;
      return Scale{half_at(d, 0) * (float)scale, half_at(d, 2) * (float)minimum};
    }
    default:
      return Scale{half_at(d, 0) * (float)(int)(signed char)p[g], 0.0f};
  }
}
__device__ __forceinline__ Scale scale_of(int type, Bytes b, int g) {
  switch (type) {
    case Q2_K:
      return scale_in(type, b + 80, b, g);
    case Q3_K:
      return scale_in(type, b + 108, b + 96, g);
    case Q6_K:
      return scale_in(type, b + 208, b + 192, g);
    default:
      return scale_in(type, b, b + 4, g);
  }
}
