// Quantised weights: from a file's blocks to tiles and back, and as matrices of bf16. What both are: unpack.cuh.
#include "products/unpack.cuh"

// Where a weight's bits are among 32 of a word: of 64 columns, the ith (16 of k, eight of these, eight rows) of a lane.
struct Field {
  int lane, word, bit;
};
__device__ __forceinline__ Field field_of(int bits, int r, int k) {
  int i = k / 16 * 4 + k % 16 / 8 * 2 + r / 8;
  return Field{r % 8 * 4 + k % 8 / 2, i * bits / 16, i * bits % 16 + k % 2 * 16};
}
__device__ __forceinline__ int bits_at(Bytes plane, int bits, int r, int k) {
  if (!bits) return 0;
  Field f = field_of(bits, r, k);
  return *(const uint32_t *)(plane + word_at(bits, f.lane, f.word)) >> f.bit & ((1 << bits) - 1);
}
// A byte of a block that is not of weights: the ith of them.
__device__ __forceinline__ int header_at(int type, int i) {
  if (type == Q2_K) return i < 16 ? i : 64 + i;
  return type == Q3_K ? 96 + i : type == Q6_K ? 192 + i : i;
}
// What is stored for element i of a block, without a sign but in Q8_0 and E4M3.
__device__ __forceinline__ int stored_at(int type, Bytes block, int i) {
  if (type == E4M3) return block[4 + i];
  return whole_at(type, block, i) + (has_minima(type) ? 0 : middle_of(type));
}

// The blocks of a matrix [rows, columns] as tiles. A thread four bytes of them.
extern "C" __global__ void __launch_bounds__(256, 4)
    to_tiles(const uint8_t *blocks, uint32_t *tiles, int type, int rows, int columns, int64_t words) {
  int64_t at = thread_index();
  if (at >= words) return;
  Tiling t(type);
  int len = len_of(type), chunk = t.steps * 64, chunks = (columns + chunk - 1) / chunk, in = (int)(at * 4 % t.bytes);
  int64_t piece = at * 4 / t.bytes;
  int row0 = (int)(piece / chunks) * 16, column0 = (int)(piece % chunks) * chunk;
  auto block = [&](int r, int column) {
    return blocks + ((int64_t)(row0 + r) * (columns / len) + (column0 + column) / len) * bytes_of(type);
  };
  uint32_t word = 0;
  if (in < t.header) {
    for (int b = 0; b < 4; b++) {
      int each = chunk / len * t.row_header, r = (in + b) / each, i = (in + b) % each, column = i / t.row_header * len;
      if (row0 + r < rows && column0 + column < columns)
        word |= (uint32_t)block(r, column)[header_at(type, i % t.row_header)] << (8 * b);
    }
    tiles[at] = word;
    return;
  }
  bool upper = in >= t.highs(0);
  int bits = upper ? t.high : t.low, of = in - (upper ? t.highs(0) : t.lows(0)), step = of / (128 * bits);
  int each = bits < 4 ? bits : 4, place = of % (128 * bits) / 4, lane = place / each % 32;
  int index = place / (each * 32) * each + place % each;
  for (int f = 0; f < 32 / bits; f++) {
    int half = f / (16 / bits), i = index * (16 / bits) + f % (16 / bits);
    int r = lane / 4 + i % 2 * 8, column = step * 64 + i / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2 + half;
    if (row0 + r >= rows || column0 + column >= columns) continue;
    int stored = stored_at(type, block(r, column), (column0 + column) % len);
    word |= (uint32_t)(upper ? stored >> t.low : stored & ((1 << t.low) - 1)) << (i * bits % 16 + half * 16);
  }
  tiles[at] = word;
}

__device__ __forceinline__ void put(uint8_t *at, int value, int shift) { *at |= (uint8_t)(value << shift); }
// Mirror of whole_at, into zeros.
__device__ __forceinline__ void put_at(int type, uint8_t *b, int i, int v) {
  auto nibble_32 = [&](uint8_t *to) { put(to + i % 16, v & 15, i / 16 * 4); };
  auto nibble_64 = [&](uint8_t *to) { put(to + i / 64 * 32 + i % 32, v & 15, i % 64 / 32 * 4); };
  auto pair = [&](uint8_t *to, int two) { put(to + i / 128 * 32 + i % 32, two, i % 128 / 32 * 2); };
  switch (type) {
    case Q8_0:
      b[2 + i] = (uint8_t)v;
      return;
    case E4M3:
      b[4 + i] = (uint8_t)v;
      return;
    case Q4_0:
      return nibble_32(b + 2);
    case Q4_1:
      return nibble_32(b + 4);
    case Q5_0:
      put(b + 2 + i / 8, v >> 4, i % 8);
      return nibble_32(b + 6);
    case Q5_1:
      put(b + 4 + i / 8, v >> 4, i % 8);
      return nibble_32(b + 8);
    case Q2_K:
      return pair(b + 16, v);
    case Q3_K:
      put(b + i % 32, v >> 2, i / 32);
      return pair(b + 32, v & 3);
    case Q4_K:
      return nibble_64(b + 16);
    case Q5_K:
      put(b + 16 + i % 32, v >> 4, i / 32);
      return nibble_64(b + 48);
    default:
      put(b + i / 128 * 64 + i % 64, v & 15, i % 128 / 64 * 4);
      return pair(b + 128, v >> 4);
  }
}

// Mirror of to_tiles. A thread a block.
extern "C" __global__ void __launch_bounds__(256)
    from_tiles(const uint8_t *tiles, uint8_t *blocks, int type, int columns, int64_t n) {
  int64_t at = thread_index();
  if (at >= n) return;
  Tiling t(type);
  int len = len_of(type), bytes = bytes_of(type), each = columns / len, chunk = t.steps * 64,
      chunks = (columns + chunk - 1) / chunk, column0 = (int)(at % each) * len;
  int64_t row = at / each;
  int r = (int)(row % 16), in = column0 % chunk;
  Bytes piece = tiles + (row / 16 * chunks + column0 / chunk) * t.bytes;
  uint8_t *block = blocks + at * bytes;
  for (int i = 0; i < bytes; i++) block[i] = 0;
  for (int i = 0; i < t.row_header; i++)
    block[header_at(type, i)] = piece[(r * (chunk / len) + in / len) * t.row_header + i];
  for (int i = 0; i < len; i++) {
    int k = (in + i) % 64, step = (in + i) / 64;
    int low = bits_at(piece + t.lows(step), t.low, r, k), high = bits_at(piece + t.highs(step), t.high, r, k);
    put_at(type, block, i, low | high << t.low);
  }
}

// y[rows, columns] of each part: 16 rows and 128 columns by a block, a thread eight of a row. `padded`: columns of
// whole blocks.
extern "C" __global__ void __launch_bounds__(256)
    dequantise(const uint8_t *tiles, const int64_t *table, bf16 *y, int rows, int columns, int padded) {
  int part = blockIdx.z, type = (int)table[2 * part], r = threadIdx.x / 16;
  int column = blockIdx.x * 128 + threadIdx.x % 16 * 8, row = blockIdx.y * 16 + r;
  if (row >= rows || column >= columns) return;
  Tiling t(type);
  int chunk = t.steps * 64, chunks = (padded + chunk - 1) / chunk, step = column % chunk / 64, k = column % 64;
  Bytes piece = tiles + table[2 * part + 1] + ((int64_t)blockIdx.y * chunks + column / chunk) * t.bytes;
  Coefficients of = coefficients_of(type, tile_scale(type, t, piece, r, step, k / group_of(type)));
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    Field low = field_of(t.low, r, k + 2 * j);
    uint32_t bits = *(const uint32_t *)(piece + t.lows(step) + word_at(t.low, low.lane, low.word)) >> low.bit;
    uint32_t q;
    if (t.low == 8) {
      q = type == E4M3 ? e4m3_of(bits) : whole_of<8, 0>(bits, 0);
    } else {
      // As whole_of, of a number of bits that is not known.
      uint32_t mask = (1u << t.low) - 1, v = (bits & (mask | mask << 16)) | 0x43004300u;
      if (t.high) {
        Field f = field_of(t.high, r, k + 2 * j);
        uint32_t high = *(const uint32_t *)(piece + t.highs(step) + word_at(t.high, f.lane, f.word)) >> f.bit;
        mask = (1u << t.high) - 1;
        v |= (high & (mask | mask << 16)) << t.low;
      }
      q = fma_bf16x2(v, 0x3f803f80u, (0xc300u + middle_of(type)) * 0x10001u);
    }
    words[j] = weights_of(type, q, of);
  }
  bf16 *to = y + ((int64_t)part * rows + row) * columns + column;
  if (columns % 8 == 0) {
    *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
  for (int i = 0; i < 8 && column + i < columns; i++) to[i] = (bf16)(words[i / 2] >> (i % 2 * 16));
}
