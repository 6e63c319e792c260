// Weights that share scales as numbers of bf16: what they are, and how they lie where products take them from.
//
// A weight is scale · whole − minimum. q: `whole` less the middle of its range (−8..7 of four bits, −128..127 of
// eight). hi: the bf16 number nearest to the scale. lo: the nearest to the rest. c: the nearest to middle · scale −
// minimum, 0 where a format has no minima. Then, each line rounded once,
//
//   weight = bf16(q · hi + c)                     of four bits or fewer
//   weight = bf16(q · hi + bf16(q · lo + c))      of more
//
// In Q5_0 that is the file's number rounded once, as q · lo is exact; elsewhere it is off by at most a bf16 unit of the
// group's largest weight. Of four bits the scale's rounding, 0.1% on average, is a sixtieth of what the format itself
// rounds away. In E4M3, whose q is the number itself, hi and lo are the scale but for 2^-18 of it, so that a weight is
// the file's number rounded once, but where that lies so near the middle of two that it becomes the other. Why
// not the file's number rounded once: that takes f32, about 4.5 instructions a weight, and a card that streams four bits
// a weight at 4.8 TB/s has 3.4 issue slots for each.
//
// Tiles: pieces of 16 rows and a chunk of columns (64 where blocks are of 32, else a block's 128 or 256), for each 16
// rows chunk after chunk, as many bytes as the file has for them. A piece: for each row its blocks' bytes that are not of
// weights; for each 64 columns the lower bits (LOW of each weight), then for each 64 columns the upper ones (HIGH).
// In those, lane t of a warp has what wgmma takes as A from its registers: of rows t / 4 and t / 4 + 8 the columns
// t % 4 · 2 + {0, 1, 8, 9} of each 16. Rows and columns that the matrix lacks are zeros.
#pragma once
#include "products/blocks.cuh"

#ifdef WELS_EMU
// To the nearest of a sum that f64 has, or almost has, exactly: to f32 so that the second rounding sees what was lost.
inline float f64_odd(double v) {
  float f = (float)v;
  if (v != v || (double)f == v) return f;
  if (fabs((double)f) > fabs(v)) f = nextafterf(f, 0.0f);
  return __uint_as_float(__float_as_uint(f) | 1);
}
inline bf16 fma_bf16(bf16 a, bf16 b, bf16 c) {
  return f32_bf16(f64_odd((double)bf16_f32(a) * (double)bf16_f32(b) + (double)bf16_f32(c)));
}
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return fma_bf16((bf16)a, (bf16)b, (bf16)c) | (uint32_t)fma_bf16((bf16)(a >> 16), (bf16)(b >> 16), (bf16)(c >> 16))
                                                   << 16;
}
#else
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
#endif
// (x & mask) | of, which is one instruction where one of the two is in a register.
__device__ __forceinline__ uint32_t and_or(uint32_t x, uint32_t mask, uint32_t of) {
#ifdef WELS_EMU
  return (x & mask) | of;
#else
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(x), "r"(mask), "r"(of));
  return r;
#endif
}
// Bits of a weight that lie together, and those that lie apart.
constexpr __device__ __forceinline__ int low_of(int type) {
  return type == Q8_0 || type == E4M3 ? 8 : type == Q2_K || type == Q3_K ? 2 : 4;
}
constexpr __device__ __forceinline__ int high_of(int type) {
  return type == Q6_K ? 2 : type == Q5_0 || type == Q5_1 || type == Q5_K || type == Q3_K ? 1 : 0;
}
// What is taken from stored bits; those of Q8_0 and E4M3 have a sign.
constexpr __device__ __forceinline__ int middle_of(int type) {
  return type == Q8_0 || type == E4M3 ? 0 : 1 << (low_of(type) + high_of(type) - 1);
}

// Whether the scale is a sum of two.
constexpr __device__ __forceinline__ bool has_rest(int type) { return low_of(type) + high_of(type) > 4; }

// hi, lo and c, each twice.
struct Coefficients {
  uint32_t hi, lo, c;
};
__device__ __forceinline__ Coefficients coefficients_of(int type, Scale of) {
  uint32_t hi = bf16x2(of.scale, of.scale), lo = 0, c = 0;
  if (has_rest(type)) {
    float rest = of.scale - bf16_f32((bf16)hi);
    lo = bf16x2(rest, rest);
  }
  if (has_minima(type)) {
    float middle = (float)middle_of(type) * of.scale - of.minimum;
    c = bf16x2(middle, middle);
  }
  return Coefficients{hi, lo, c};
}
__device__ __forceinline__ uint32_t weights_of(int type, uint32_t q, const Coefficients &of) {
  return fma_bf16x2(q, of.hi, has_rest(type) ? fma_bf16x2(q, of.lo, of.c) : of.c);
}

// Two weights' whole numbers q of the bits `low`, which lie from LOW's first on, and `high`, already at their place. Of
// bf16 with these exponents a unit of the last place is one.
template <int LOW, int HIGH>
__device__ __forceinline__ uint32_t whole_of(uint32_t low, uint32_t high) {
  constexpr uint32_t ONE = 0x3f803f80u, MINUS_ONE = 0xbf80bf80u, FROM = 0x43004300u;
  if (LOW == 8) { return fma_bf16x2(and_or(low, 0x00800080u, FROM), MINUS_ONE, and_or(low, 0x007f007fu, FROM)); }
  constexpr uint32_t MASK = (1u << LOW) - 1, MIDDLE = 1u << (LOW + HIGH - 1), UPPER = ((1u << HIGH) - 1) << LOW;
  uint32_t v = and_or(low, MASK | MASK << 16, FROM);
  if (HIGH) v = and_or(high, UPPER | UPPER << 16, v);
  return fma_bf16x2(v, ONE, (0xc300u + MIDDLE) * 0x10001u);
}

// Two numbers of E4M3, of the lower eight bits of each half, exact: as subnormal or small ones of bf16, times 2^120.
__device__ __forceinline__ uint32_t e4m3_of(uint32_t bits) {
  uint32_t small = and_or(bits << 4, 0x07f007f0u, bits << 8 & 0x80008000u);
  return fma_bf16x2(small, 0x7b807b80u, 0x80008000u);
}
// The same of any format with as many bits.
template <int TYPE, int LOW, int HIGH>
__device__ __forceinline__ uint32_t number_of(uint32_t low, uint32_t high) {
  if constexpr (TYPE == E4M3) return e4m3_of(low);
  else return whole_of<LOW, HIGH>(low, high);
}

// Pieces of a format.
struct Tiling {
  int low, high, header, row_header, steps, bytes;

  constexpr __device__ __forceinline__ explicit Tiling(int type)
      : low(low_of(type)),
        high(high_of(type)),
        header(0),
        row_header(bytes_of(type) - (low + high) * len_of(type) / 8),
        steps(len_of(type) == 32 ? 1 : len_of(type) / 64),
        bytes(0) {
    header = 16 * (steps * 64 / len_of(type)) * row_header;
    bytes = header + steps * 128 * (low + high);
  }
  constexpr __device__ __forceinline__ int lows(int step) const { return header + step * 128 * low; }
  constexpr __device__ __forceinline__ int highs(int step) const {
    return header + steps * 128 * low + step * 128 * high;
  }
};
// Of 64 columns a lane's word: 4 · min(bits, 4) bytes of each lane lie together.
__device__ __forceinline__ int word_at(int bits, int lane, int word) {
  int each = bits < 4 ? bits : 4;
  return (word / each * 32 + lane) * 4 * each + word % each * 4;
}
// The scale of group g, of the 64 columns `step`, in row r of a piece.
__device__ __forceinline__ Scale tile_scale(int type, const Tiling &t, Bytes piece, int r, int step, int g) {
  if (t.steps == 1) {
    Bytes d = piece + (r * 2 + g) * t.row_header;
    return scale_in(type, d, d, 0);
  }
  Bytes header = piece + r * t.row_header;
  if (type == E4M3) return scale_in(type, header, header, 0);
  if (type == Q4_K || type == Q5_K) return scale_in(type, header, header + 4, step * 2 + g);
  return scale_in(type, header + (type == Q3_K ? 12 : 16), header, step * 4 + g);
}
