// y[S, N] = x[S, K] · w[part]ᵀ of x in bf16 and weights that share scales on Hopper, both ways to the same bits: of
// weights that `dequantise` wrote (many rows), and of tiles as they are (few rows). Weights: unpack.cuh.
//
// Order: k is cut into segments of 512 terms. In a segment an element is one chain as in hopper.cuh, from 0: steps of
// 64, each four wgmma of 16. The sums of the segments are added in order, in f32, from 0. So neither the number of rows
// nor who multiplies them changes a bit, and few rows have work for a whole card: 4096 · 4096 weights are 512 blocks,
// where tiles alone would be 64.
//
// Few rows: weights are A of wgmma, from registers: numbers of bf16 in shared memory, as B has to be, would be written
// and read there at 4 bytes each, and 128 bytes a cycle are 32 weights where 4-bit weights arrive at 38. x is B, so
// that what wgmma gives is yᵀ. (That it adds the same 16 products whichever of the two is A, card.py checks.)
#pragma once
#include "products/hopper.cuh"
#include "products/unpack.cuh"

constexpr int SEGMENT = 8;  // steps of 64

#ifdef WELS_EMU
inline int add_one(int *at) { return (*at)++; }
inline void fence_blocks() {}
inline float load_l2(const float *at) { return *at; }
inline void bulk_load(saddr to, const void *from, int bytes, saddr bar) {
  if (to % 16 || (uintptr_t)from % 16 || bytes % 16) emu::fail("a bulk copy not aligned");
  memset(smem_at(to), 0xff, bytes);
  emu::block->pending.push_back([=] {
    memcpy(smem_at(to), from, bytes);
    auto *b = (MBar *)smem_at(bar);
    b->tx -= bytes;
    mbar_flip(b);
  });
}
#else
__device__ __forceinline__ int add_one(int *at) { return atomicAdd(at, 1); }
__device__ __forceinline__ void fence_blocks() { __threadfence(); }
__device__ __forceinline__ float load_l2(const float *at) { return __ldcg(at); }
// A copy of a multiple of 16 bytes; at whose end `bar` has them.
__device__ __forceinline__ void bulk_load(saddr to, const void *from, int bytes, saddr bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(bar)
               : "memory");
}
template <int TB>
__device__ __forceinline__ void wgmma_rs(float (&d)[4], const uint32_t *a, uint64_t b, int acc) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %9, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1, %10;}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(acc), "n"(TB));
}
template <int TB>
__device__ __forceinline__ void wgmma_rs(float (&d)[8], const uint32_t *a, uint64_t b, int acc) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %13, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1, %14;}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(acc), "n"(TB));
}
#endif

// Byte i of a word as a number.
__device__ __forceinline__ float byte_f32(uint32_t word, int i) {
  return __uint_as_float((word >> (8 * i) & 255) | 0x4b000000u) - 8388608.0f;
}

// A block of the kernels for few rows has 64 rows of a part's w and a segment of k: 128 threads, each warp 16 rows. All
// that it reads is under way from its beginning; other blocks on its processor multiply meanwhile. The last block to be
// done with rows of w adds the segments: it is the only one that reads what others write.
template <int TYPE, int N>
struct Few {
  static constexpr Tiling TILING{TYPE};
  static constexpr bool REST = has_rest(TYPE);
  static constexpr int GROUPS = 256 / group_of(TYPE), HALF = 4 / TILING.steps * TILING.bytes;
  // Of x; of a warp's weights; of its coefficients of 256 columns.
  static constexpr int X = SEGMENT * N * 128, ROOM = 2 * HALF, SCALES = GROUPS * 16 * (REST ? 16 : 8);
};
// hi, lo, c of each group and row; without lo where it is not used.
template <bool REST>
struct Table {
  char *at;
  __device__ __forceinline__ void set(int i, const Coefficients &of) const {
    if (REST) ((uint4 *)at)[i] = make_uint4(of.hi, of.lo, of.c, 0);
    else ((uint2 *)at)[i] = make_uint2(of.hi, of.c);
  }
  __device__ __forceinline__ Coefficients operator[](int i) const {
    if (REST) {
      uint4 of = ((const uint4 *)at)[i];
      return Coefficients{of.x, of.y, of.z};
    }
    uint2 of = ((const uint2 *)at)[i];
    return Coefficients{of.x, 0, of.y};
  }
};
// Coefficients of a warp's 16 rows and 256 columns. A lane has half the groups of a row.
template <int TYPE, bool REST>
__device__ __forceinline__ void unpack_scales(const Table<REST> &table, Bytes pieces) {
  constexpr Tiling t(TYPE);
  constexpr int GROUP = group_of(TYPE), EACH = 128 / GROUP;
  int lane = threadIdx.x % 32, r = lane % 16, upper = lane / 16;
  if (TYPE == Q4_K || TYPE == Q5_K) {
    // As scale_in, four groups at once.
    const uint32_t *header = (const uint32_t *)(pieces + r * t.row_header);
    uint32_t d = header[0], w0 = header[1], w1 = header[2], w2 = header[3];
    float scale = f16_f32((uint16_t)d), minimum = f16_f32((uint16_t)(d >> 16));
    uint32_t factors = upper ? (w2 & 0x0f0f0f0fu) | (w0 >> 2 & 0x30303030u) : w0 & 0x3f3f3f3fu;
    uint32_t minima = upper ? (w2 >> 4 & 0x0f0f0f0fu) | (w1 >> 2 & 0x30303030u) : w1 & 0x3f3f3f3fu;
#pragma unroll
    for (int g = 0; g < 4; g++) {
      Scale of{scale * byte_f32(factors, g), minimum * byte_f32(minima, g)};
      table.set((upper * 4 + g) * 16 + r, coefficients_of(TYPE, of));
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    int g = upper * EACH + j, step = g * GROUP / 64;
    Scale of = tile_scale(TYPE, t, pieces + step / t.steps * t.bytes, r, step % t.steps, g * GROUP % 64 / GROUP);
    table.set(g * 16 + r, coefficients_of(TYPE, of));
  }
}
// A lane's words of 64 columns.
template <int BITS>
__device__ __forceinline__ void lane_words(uint32_t (&to)[BITS], Bytes plane, int lane) {
  if constexpr (BITS == 1) to[0] = *(const uint32_t *)(plane + word_at(BITS, lane, 0));
  if constexpr (BITS == 2) {
    uint2 v = *(const uint2 *)(plane + word_at(BITS, lane, 0));
    to[0] = v.x, to[1] = v.y;
  }
  if constexpr (BITS >= 4) {
#pragma unroll
    for (int w = 0; w < BITS; w += 4) {
      uint4 v = *(const uint4 *)(plane + word_at(BITS, lane, w));
      to[w] = v.x, to[w + 1] = v.y, to[w + 2] = v.z, to[w + 3] = v.w;
    }
  }
}
// The weights of a warp's 16 rows and 64 columns as wgmma takes them, 16 columns in four words; `first`: their first
// group.
template <int TYPE, bool REST>
__device__ __forceinline__ void unpack(uint32_t (&a)[16], Bytes low, Bytes high, const Table<REST> &table, int first) {
  constexpr int LOW = low_of(TYPE), HIGH = high_of(TYPE), GROUP = group_of(TYPE);
  int lane = threadIdx.x % 32, row = first * 16 + lane / 4;
  uint32_t lows[LOW], highs[HIGH ? HIGH : 1];
  lane_words<LOW>(lows, low, lane);
  if constexpr (HIGH != 0) lane_words<HIGH>(highs, high, lane);
#pragma unroll
  for (int i = 0; i < 16; i++) {
    Coefficients of = table[i / 4 * 16 / GROUP * 16 + i % 2 * 8 + row];
    uint32_t upper = 0;
    if (HIGH) {
      int bit = i * HIGH % 16;
      upper = bit > LOW ? highs[i * HIGH / 16] >> (bit - LOW) : highs[i * HIGH / 16] << (LOW - bit);
    }
    a[i] = weights_of(TYPE, number_of<TYPE, LOW, HIGH>(lows[i * LOW / 16] >> (i * LOW % 16), upper), of);
  }
}
// d += a segment's weights of a warp's 16 rows, times x.
template <int TYPE, int N>
__device__ __forceinline__ void multiply_tiles(float (&d)[N / 2], Bytes pieces, saddr full, char *scales, saddr x,
                                               int steps) {
  using F = Few<TYPE, N>;
  constexpr Tiling t(TYPE);
  Table<F::REST> table{scales};
  uint64_t b = k_major(x);
  uint32_t a[16];
#pragma unroll 1
  for (int first = 0; first < steps; first += 4, pieces += F::HALF) {
    mbar_wait(full + first * 2, 0);
    __syncwarp();
    unpack_scales<TYPE>(table, pieces);
    __syncwarp();
    auto step = [&](int s) {
      Bytes piece = pieces + s / t.steps * t.bytes;
      Bytes low = piece + t.lows(s % t.steps), high = piece + t.highs(s % t.steps);
      wgmma_wait<0>();  // which still reads `a`
      unpack<TYPE>(a, low, high, table, s * 64 / group_of(TYPE));
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; i++) wgmma_rs<0>(d, a + 4 * i, b + s * (N * 128 / 16) + i * 2, 1);
      wgmma_commit();
    };
    if (steps - first >= 4) {
#pragma unroll
      for (int s = 0; s < 4; s++) step(s);
    } else {
#pragma unroll 1
      for (int s = 0; s < steps - first; s++) step(s);
    }
    b += 4 * N * 128 / 16;
  }
  wgmma_wait<0>();
  wgmma_hold(d);
}
__device__ __forceinline__ void store_y(void *y, int half, size_t at, float value) {
  if (half) ((bf16 *)y)[at] = f32_bf16(value);
  else ((float *)y)[at] = value;
}

// A warp's 16 rows of w in a segment to shared memory: 256 columns, for which full[0] waits, then the others, for which
// full[1] does. By one of its threads.
template <int TYPE, int N>
__device__ __forceinline__ void load_tiles(saddr to, saddr full, Bytes w, int row, int rows, int padded) {
  using F = Few<TYPE, N>;
  constexpr Tiling t(TYPE);
  int chunk = t.steps * 64, chunks = (padded + chunk - 1) / chunk, first = blockIdx.x * (SEGMENT / t.steps);
  int bytes = row < rows ? min(F::ROOM, (chunks - first) * t.bytes) : 0;
  Bytes from = w + ((int64_t)(row / 16) * chunks + first) * t.bytes;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int size = max(0, min(F::HALF, bytes - half * F::HALF));
    mbar_arrive_tx(full + half * 8, size);
    if (size) bulk_load(to + half * F::HALF, from + half * F::HALF, size, full + half * 8);
  }
}

// `table`: of each part its format, TYPE, and where its tiles begin. `partial`: [segments, slots, n], where there are
// several. `counts`: for each part's each 64 columns of y a zero, which is there again afterwards. half: y is of bf16.
// Grid: segments, 64 columns of y, parts.
template <int TYPE, int N>
__device__ __forceinline__ void few_rows(const TensorMap &x, Bytes w, const int64_t *table, void *y, float *partial,
                                         int *counts, const int *offsets, int rows, int n, int k, int padded,
                                         int half) {
  using F = Few<TYPE, N>;
  SMEM(smem);
  saddr base = smem_addr(smem), bar = base + F::X + 4 * (F::ROOM + F::SCALES), full = bar + 8;
  int part = blockIdx.z, warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  int begin = offsets ? offsets[part] : 0, end = offsets ? offsets[part + 1] : rows;
  if (begin == end) return;
  int steps = min(SEGMENT, (k + BK - 1) / BK - (int)blockIdx.x * SEGMENT);
  // A thread of each warp loads the warp's weights, and every fourth step of x.
  auto load_x = [&](int row) {
    mbar_arrive_tx(bar, (steps - warp + 3) / 4 * N * 128);
#pragma unroll 1
    for (int s = warp; s < steps; s += 4)
      tma_load(base + s * N * 128, &x, bar, ((int)blockIdx.x * SEGMENT + s) * BK, row);
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < 3; i++) mbar_init(bar + i * 8, 4);
    mbar_fence();
  }
  __syncthreads();
  if (lane == 0) {
    load_tiles<TYPE, N>(base + F::X + warp * F::ROOM, full, w + table[2 * part + 1], blockIdx.y * 64 + warp * 16, n,
                        padded);
    load_x(begin);
  }
  Bytes pieces = (Bytes)smem + F::X + warp * F::ROOM;
  char *scales = smem + F::X + 4 * F::ROOM + warp * F::SCALES;
  int column = blockIdx.y * 64 + warp * 16 + lane / 4;
  for (int row = begin, round = 0;; round ^= 1) {
    mbar_wait(bar, round);
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[i] = 0.0f;
    wgmma_hold(d);
    multiply_tiles<TYPE, N>(d, pieces, full, scales, base, steps);
    size_t to = (size_t)(row + lane % 4 * 2) * n + column, segment = (size_t)blockIdx.x * rows * n;
    int left = end - row - lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      int r = i / 4 * 8 + i % 2, c = 8 * (i >> 1 & 1);
      if (r >= left || column + c >= n) continue;
      if (gridDim.x == 1) store_y(y, half, to + (size_t)r * n + c, 0.0f + d[i]);
      else partial[segment + to + (size_t)r * n + c] = d[i];
    }
    row += N;
    if (row >= end) break;
    __syncthreads();
    if (lane == 0) load_x(row);
  }
  if (gridDim.x == 1) return;
  fence_blocks();
  __syncthreads();
  int *last = (int *)(smem + (bar - base) + 24), *count = counts + part * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) *last = add_one(count) == (int)gridDim.x - 1;
  __syncthreads();
  if (!*last) return;
  fence_blocks();
  if (threadIdx.x == 0) *count = 0;
  int c = blockIdx.y * 64 + threadIdx.x % 64;
  if (c >= n) return;
  for (int r = begin + threadIdx.x / 64; r < end; r += 2) {
    const float *of = partial + (size_t)r * n + c;
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < (int)gridDim.x; s++) sum += load_l2(of + (size_t)s * rows * n);
    store_y(y, half, (size_t)r * n + c, sum);
  }
}
