// Products of bf16 matrices on Hopper: dense, and of parts (experts) whose rows are read from a table on the device.
//
//   y[M, N] (+)= x[M, K] · w[N, K]ᵀ      TA = 0, TB = 0
//   dx[M, N] (+)= dy[M, K] · w[K, N]     TA = 0, TB = 1
//   dw[M, N] (+)= dy[R, M]ᵀ · x[R, N]    TA = 1, TB = 1, a chain over the rows R of the part's runs
//
// Order: an element is one chain: its accumulator, f32, starts at 0 or at what `out` holds (`go_on`), and takes the
// terms in steps of 64, each as four wgmma of 16, in order of k. No split over k, no atomics. An element's chain reads
// its row of a, its column of b and nothing else, and neither tile nor number of rows changes its steps: a row's result
// does not depend on the batch. (That wgmma computes each element alone, and equally at every place of a tile, is
// what the conformance test on the card has to show.)
//
// A block is persistent: it takes the tiles blockIdx.x, + gridDim.x, ... Warpgroup 0 loads by TMA into a ring of STAGES
// stages, warpgroups 1 and 2 multiply 64 rows each. full[s]: the stage has landed. empty[s]: their eight warps
// have read it (each says so: a warp's wgmma may be done before its warpgroup's).
#pragma once
#include "products/tiles.cuh"
constexpr int BK = 64;
// WGS: warpgroups that multiply, 64 rows each. 2 for many rows; 1, with narrow tiles so that all blocks of the card
// have some of w to load, for the few rows of decoding. The bits are the same: any width may be taken. DEEP: steps of 64
// that share a stage and its barriers; with few rows a step is short, and waiting is most of it.
template <int BN, int WGS = 2>
struct Ring {
  static constexpr int BM = 64 * WGS, A = BM * BK * 2, B = BN * BK * 2, STAGE = A + B,
                       STAGES = BN == 256   ? 4
                                : BN == 192 ? 5
                                            : 6,
                       DEEP = WGS == 1 ? 2 : 1, BYTES = STAGES * (DEEP * STAGE + 16), THREADS = 128 + 128 * WGS;
};
template <class T>
__device__ __forceinline__ void store2(T *to, float a, float b);
template <>
__device__ __forceinline__ void store2<float>(float *to, float a, float b) {
  *(float2 *)to = make_float2(a, b);
}
template <>
__device__ __forceinline__ void store2<bf16>(bf16 *to, float a, float b) {
  *(uint32_t *)to = bf16x2(a, b);
}
template <class T>
__device__ __forceinline__ float2 load2(const T *from);
template <>
__device__ __forceinline__ float2 load2<float>(const float *from) {
  return *(const float2 *)from;
}
template <>
__device__ __forceinline__ float2 load2<bf16>(const bf16 *from) {
  uint32_t v = *(const uint32_t *)from;
  return make_float2(bf16_f32(v & 0xffff), bf16_f32(v >> 16));
}
// The rows from `count` on of a stage of MN-major operands, which are of the next run or beyond the tensor: zeros.
template <int BN>
__device__ __forceinline__ void clear_rows(saddr stage, int count) {
  constexpr int BOXES = (128 + BN) / 64;
  for (int i = threadIdx.x - 128; i < BOXES * (BK - count) * 8; i += 256) {
    int box = i / 8 % BOXES, r = count + i / 8 / BOXES;
    st_shared16(stage + box * 8192 + r * 128 + i % 8 * 16, make_uint4(0, 0, 0, 0));
  }
  fence_async();
  bar_sync(1, 256);
}
// d += the 64 terms of a stage, in four steps.
template <int BN, int TA, int TB>
__device__ __forceinline__ void multiply(float (&d)[BN / 2], saddr a, saddr b) {
  constexpr int LBO = 8192;
#pragma unroll
  for (int kk = 0; kk < BK / 16; kk++)
    wgmma_ss<TA, TB>(d, TA ? mn_major(a + kk * 2048, 8192) : k_major(a + kk * 32),
                     TB ? mn_major(b + kk * 2048, LBO) : k_major(b + kk * 32), 1);
}
// A tile's sums to rows of bf16, 16 bytes a thread: the four threads of a quad, who have pairs of columns of each block
// of 8, exchange them so that each has
// one of four blocks whole. n a multiple of 8, out of 16 bytes.
template <int H>
__device__ __forceinline__ void store_blocks(const float (&d)[H], bf16 *to, int row, int rows, int col, int n) {
  int l = threadIdx.x % 4;
  bool odd = l & 1, high = l & 2;
#pragma unroll
  for (int q = 0; q < H / 16; q++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      uint32_t v[4];
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = bf16x2(d[16 * q + 4 * j + 2 * h], d[16 * q + 4 * j + 2 * h + 1]);
      uint32_t x = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), y = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
      if (odd) {
        v[0] = x;
        v[2] = y;
      } else {
        v[1] = x;
        v[3] = y;
      }
      x = __shfl_xor_sync(~0u, high ? v[0] : v[2], 2);
      y = __shfl_xor_sync(~0u, high ? v[1] : v[3], 2);
      if (high) {
        v[0] = x;
        v[1] = y;
      } else {
        v[2] = x;
        v[3] = y;
      }
      int r = row + 8 * h, c = col + (4 * q + l) * 8;
      if (r < rows && c < n) *(uint4 *)(to + (size_t)r * n + c) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}
template <int H>
__device__ __forceinline__ void store_blocks(const float (&)[H], float *, int, int, int, int) {}
// What becomes of a tile's sums, if not `out`: see head.cuh. d[i] of a thread has row r + 8·(i/2 % 2) and column c +
// i/4·8 + i % 2.
struct Store {
  static constexpr bool PLAIN = true;
  template <int H>
  __device__ void operator()(float (&)[H], int, int, int, int) const {}
};
// Up to three products in one launch.
//   y:  each of one a with its own b and out; each[i] is its N.
//   dx: one sum: the chain of an element goes on from one a · b to the next; each[i] is its K, 0 where there is none.
//   dw: each of its own a and out with one b; each[i] is its M.
// Of `go_on` each product has a bit. box: rows of a's boxes in y and dx, at least as many as a part has, or a tile's:
// where they are few, what a tile has behind them is arbitrary, and is not stored.
template <class T>
struct Joint {
  const TensorMap *a[JOINT], *b[JOINT];
  T *out[JOINT];
  int each[JOINT], go_on, box;
};
template <int BN, int TA, int TB, class T, class E = Store, int WGS = 2>
__device__ __forceinline__ void products(const Joint<T> &of, const Parts &parts, int n, int k,
                                         const E &epilogue = E()) {
  using R = Ring<BN, WGS>;
  constexpr int BM = R::BM;
  static_assert(WGS == 2 || !(TA || TB), "few rows are those of y");
  constexpr bool RAGGED_K = TA, SUM = TB && !TA;
  SMEM(smem);
  // Few rows are laid close together, so that several blocks share a processor: behind them a tile of a goes on into
  // what follows, and behind the last stage into as much as it lacks.
  int a_bytes = WGS == 1 ? of.box * BK * 2 : R::A, stride = a_bytes + R::B;
  saddr base = smem_addr(smem), full = base + R::STAGES * R::DEEP * stride + R::A - a_bytes, empty = full + R::STAGES * 8;
  int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < R::STAGES; s++) {
      mbar_init(full + s * 8, 1);
      mbar_init(empty + s * 8, 4 * WGS);
    }
    mbar_fence();
  }
  __syncthreads();
  Tiles<BM, BN, RAGGED_K> tiles(parts, {SUM ? n : of.each[0], SUM ? 0 : of.each[1], SUM ? 0 : of.each[2]}, n);
  Tile t;
  int at = 0;  // steps of this block so far: stage and parity
  if (group == 0) {
    if (WGS == 2) setmaxnreg_dec<40>();
    if (threadIdx.x != 0) return;
    int bytes = (RAGGED_K ? R::A : of.box * BK * 2) + R::B;
    for (int tile = blockIdx.x; tiles.find(tile, t); tile += gridDim.x) {
      Runs<BK> runs(parts, t.part);
#pragma unroll 1
      for (int which = SUM ? 0 : t.which; which < (SUM ? JOINT : t.which + 1); which++) {
        const TensorMap *a = pick(of.a, which), *b = pick(of.b, which);
        int each = pick(of.each, which), terms = SUM ? each : k;
        for (int i = 0;; i++, at++) {
          int row = 0;
          if (RAGGED_K ? !runs.next(row) : i * R::DEEP * BK >= terms) break;
          int s = at % R::STAGES;
          saddr bar = full + s * 8;
          mbar_wait(empty + s * 8, (at / R::STAGES & 1) ^ 1);
          mbar_arrive_tx(bar, R::DEEP * bytes);
          if (R::DEEP > 1) {
            for (int j = 0; j < R::DEEP; j++) {
              saddr to = base + (s * R::DEEP + j) * stride;
              tma_load(to, a, bar, (i * R::DEEP + j) * BK, t.row0 + t.m);
              tma_load(to + a_bytes, b, bar, (i * R::DEEP + j) * BK, t.part * each + t.n);
            }
            continue;
          }
          saddr to = base + s * stride;
          if (TA) {
            for (int c = 0; c < BM / 64; c++) tma_load(to + c * 8192, a, bar, t.m + c * 64, row);
          } else tma_load(to, a, bar, i * BK, t.row0 + t.m);
          if (TB) {
            int r = RAGGED_K ? row : t.part * terms + i * BK;
            for (int c = 0; c < BN / 64; c++) tma_load(to + a_bytes + c * 8192, b, bar, t.n + c * 64, r);
          } else tma_load(to + a_bytes, b, bar, i * BK, t.part * each + t.n);
        }
      }
    }
    return;
  }
  if (WGS == 2) setmaxnreg_inc<232>();
  int thread = threadIdx.x % 128, wg = group - 1, row_in = wg * 64 + thread / 32 * 16 + thread % 32 / 4;
  for (int tile = blockIdx.x; tiles.find(tile, t); tile += gridDim.x) {
    int each = pick(of.each, t.which), rows = RAGGED_K ? each : t.row_end - t.row0, cols = TB ? n : each;
    bool go_on = of.go_on >> t.which & 1;
    T *out = pick(of.out, t.which), *to = out + (RAGGED_K ? (size_t)t.part * rows : (size_t)t.row0) * cols;
    float d[BN / 2];
#pragma unroll
    for (int i = 0; i < BN / 2; i += 2) {
      int r = t.m + row_in + 8 * (i >> 1 & 1), c = t.n + i / 4 * 8 + thread % 4 * 2;
      float2 v = make_float2(0.0f, 0.0f);
      if (E::PLAIN && go_on && r < rows && c < cols) v = load2(to + (size_t)r * cols + c);
      d[i] = v.x;
      d[i + 1] = v.y;
    }
    wgmma_hold(d);
    Runs<BK> runs(parts, t.part);
    int steps = RAGGED_K ? runs.steps() : SUM ? 0 : (k + R::DEEP * BK - 1) / (R::DEEP * BK);
    if (SUM)
      for (int i = 0; i < JOINT; i++) steps += (of.each[i] + BK - 1) / BK;
    // The first step stands alone: a loop into which accumulators come from elsewhere is serialized by ptxas (C7515).
    auto step = [&] {
      int row, count = RAGGED_K ? runs.next(row) : BK;
      saddr stage = base + at % R::STAGES * R::DEEP * stride;
      mbar_wait(full + at % R::STAGES * 8, at / R::STAGES & 1);
      if (RAGGED_K && count < BK) clear_rows<BN>(stage, count);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < R::DEEP; j++, stage += stride)
        multiply<BN, TA, TB>(d, stage + wg * 8192, stage + a_bytes);
      wgmma_commit();
      at++;
    };
    auto release = [&](int used) {
      if (thread % 32 == 0) mbar_arrive(empty + used % R::STAGES * 8);
    };
    if (steps) {
      step();
#pragma unroll 1
      for (int i = 1; i < steps; i++) {
        step();
        wgmma_wait<1>();  // the step before this one is done: its stage may be loaded anew
        release(at - 2);
      }
      wgmma_wait<0>();
      release(at - 1);
      wgmma_hold(d);
    }
    if (!E::PLAIN) {
      epilogue(d, t.m + row_in, rows, t.n + thread % 4 * 2, cols);
      continue;
    }
    if (sizeof(T) == 2 && cols % 8 == 0 && (uint64_t)out % 16 == 0) {
      store_blocks(d, to, t.m + row_in, rows, t.n, cols);
      continue;
    }
#pragma unroll
    for (int i = 0; i < BN / 2; i += 2) {
      int r = t.m + row_in + 8 * (i >> 1 & 1), c = t.n + i / 4 * 8 + thread % 4 * 2;
      if (r < rows && c < cols) store2(to + (size_t)r * cols + c, d[i], d[i + 1]);
    }
  }
}
// One of them alone.
template <int BN, int TA, int TB, class T, class E = Store, int WGS = 2>
__device__ __forceinline__ void product(const TensorMap &a, const TensorMap &b, T *out, const Parts &parts, int m,
                                        int n, int k, int go_on, const E &epilogue = E()) {
  int each = TA ? m : TB ? k : n;
  Joint<T> of{{&a, &a, &a}, {&b, &b, &b}, {out, out, out}, {each, 0, 0}, go_on, Ring<BN, WGS>::BM};
  products<BN, TA, TB, T, E, WGS>(of, parts, n, k, epilogue);
}
