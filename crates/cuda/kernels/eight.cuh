// Rows of bf16 in pieces of eight numbers: 16 bytes, which a thread loads and stores at once where all pieces of all
// rows are whole (`wide`: the host has seen that every size is a multiple of eight; memory begins at multiples of 256
// bytes). Else it takes a piece number by number. Which of the two changes no bit.
#pragma once

#ifdef WELS_EMU
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline void aligned(const void *p) {
  if ((uintptr_t)p % 16) emu::fail("an access of 16 bytes not aligned");
}
#else
__device__ __forceinline__ float reciprocal_approx(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ void aligned(const void *) {}
#endif

__device__ __forceinline__ void unpack(uint4 bits, float (&v)[8]) {
  uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    v[2 * j] = bf16_f32(words[j] & 0xffff);
    v[2 * j + 1] = bf16_f32(words[j] >> 16);
  }
}
__device__ __forceinline__ uint4 pack(const float (&v)[8]) {
  return make_uint4(bf16x2(v[0], v[1]), bf16x2(v[2], v[3]), bf16x2(v[4], v[5]), bf16x2(v[6], v[7]));
}

// How a thread takes a piece: whole, or the first `count` of its numbers, zeros standing for the others.
template <bool WHOLE>
struct Piece {
  int count;

  __device__ __forceinline__ uint4 bits(const bf16 *p) const {
    if constexpr (WHOLE) {
      aligned(p);
      return *(const uint4 *)p;
    } else {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; j++)
        words[j] = (2 * j < count ? p[2 * j] : 0) | (2 * j + 1 < count ? (uint32_t)p[2 * j + 1] << 16 : 0);
      return make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
  __device__ __forceinline__ void numbers(const bf16 *p, float (&v)[8]) const { unpack(bits(p), v); }
  __device__ __forceinline__ void numbers(const float *p, float (&v)[8]) const {
    if constexpr (WHOLE) {
      aligned(p);
      float4 low = *(const float4 *)p, high = *(const float4 *)(p + 4);
      v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
      v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = j < count ? p[j] : 0.0f;
    }
  }
  __device__ __forceinline__ void store(bf16 *p, uint4 bits) const {
    if constexpr (WHOLE) {
      aligned(p);
      *(uint4 *)p = bits;
    } else {
      uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (j < count) p[j] = (bf16)(words[j / 2] >> (j % 2 * 16));
    }
  }
  __device__ __forceinline__ void store(bf16 *p, const float (&v)[8]) const { store(p, pack(v)); }
  __device__ __forceinline__ void store(float *p, const float (&v)[8]) const {
    if constexpr (WHOLE) {
      aligned(p);
      *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
      *(float4 *)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++)
        if (j < count) p[j] = v[j];
    }
  }
};

// Calls f(i, piece) with the thread's piece of n numbers that lie one behind the other.
template <class F>
__device__ __forceinline__ void flat_piece(int64_t n, F f) {
  int64_t i = thread_index() * 8;
  if (i + 8 <= n) f(i, Piece<true>{8});
  else if (i < n) f(i, Piece<false>{(int)(n - i)});
}

// Calls f(row, column, piece) with the thread's piece of rows of `cols` numbers; `pieces` of all rows.
template <class F>
__device__ __forceinline__ void row_piece(int pieces, int cols, int wide, F f) {
  int64_t i = thread_index();
  if (i >= pieces) return;
  uint32_t per_row = (uint32_t)(cols + 7) / 8, row = (uint32_t)i / per_row;
  int c = (int)((uint32_t)i - row * per_row) * 8;
  if (wide) f((int64_t)row, c, Piece<true>{8});
  else f((int64_t)row, c, Piece<false>{min(8, cols - c)});
}

// add(load(t)) for each t from `begin` to `end` in order, with N loads under way at a time.
template <int N, class L, class F>
__device__ __forceinline__ void chain(int64_t begin, int64_t end, L load, F add) {
  constexpr int FEW = 4;
  decltype(load(begin)) loaded[N];
  int64_t t = begin;
  for (; t + N <= end; t += N) {
#pragma unroll
    for (int j = 0; j < N; j++) loaded[j] = load(t + j);
#pragma unroll
    for (int j = 0; j < N; j++) add(loaded[j]);
  }
  for (; t < end; t += FEW) {
#pragma unroll
    for (int j = 0; j < FEW; j++)
      if (t + j < end) loaded[j] = load(t + j);
#pragma unroll
    for (int j = 0; j < FEW; j++)
      if (t + j < end) add(loaded[j]);
  }
}

// s += a.
__device__ __forceinline__ void add_eight(float (&s)[8], uint4 a) {
  float v[8];
  unpack(a, v);
#pragma unroll
  for (int j = 0; j < 8; j++) s[j] += v[j];
}
