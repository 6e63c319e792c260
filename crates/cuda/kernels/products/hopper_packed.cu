// Many rows times quantised weights that `dequantise` wrote: packed.cuh.
#include "products/packed.cuh"

// Many rows: hopper.cuh's product with tiles of 128 × 128, and a second set of sums.
template <class T>
__device__ __forceinline__ void segments(const TensorMap &a, const TensorMap &b, T *out, const Parts &parts, int n,
                                         int k) {
  constexpr int BN = 128;
  using R = Ring<BN>;
  SMEM(smem);
  saddr base = smem_addr(smem), full = base + R::STAGES * R::STAGE, empty = full + R::STAGES * 8;
  int group = threadIdx.x / 128, steps = (k + BK - 1) / BK, at = 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < R::STAGES; s++) {
      mbar_init(full + s * 8, 1);
      mbar_init(empty + s * 8, 8);
    }
    mbar_fence();
  }
  __syncthreads();
  Tiles<128, BN, false> tiles(parts, {n, 0, 0}, n);
  Tile t;
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x != 0) return;
    for (int tile = blockIdx.x; tiles.find(tile, t); tile += gridDim.x)
      for (int i = 0; i < steps; i++, at++) {
        int s = at % R::STAGES;
        saddr to = base + s * R::STAGE, bar = full + s * 8;
        mbar_wait(empty + s * 8, (at / R::STAGES & 1) ^ 1);
        mbar_arrive_tx(bar, R::STAGE);
        tma_load(to, &a, bar, i * BK, t.row0 + t.m);
        tma_load(to + R::A, &b, bar, i * BK, t.part * n + t.n);
      }
    return;
  }
  setmaxnreg_inc<232>();
  int thread = threadIdx.x % 128, wg = group - 1, row_in = wg * 64 + thread / 32 * 16 + thread % 32 / 4;
  auto release = [&](int used) {
    if (thread % 32 == 0) mbar_arrive(empty + used % R::STAGES * 8);
  };
  for (int tile = blockIdx.x; tiles.find(tile, t); tile += gridDim.x) {
    int rows = t.row_end - t.row0;
    T *to = out + (size_t)t.row0 * n;
    float sum[BN / 2];
#pragma unroll
    for (int i = 0; i < BN / 2; i++) sum[i] = 0.0f;
#pragma unroll 1
    for (int first = 0; first < steps; first += SEGMENT) {
      float d[BN / 2];
#pragma unroll
      for (int i = 0; i < BN / 2; i++) d[i] = 0.0f;
      wgmma_hold(d);
      auto step = [&] {
        saddr stage = base + at % R::STAGES * R::STAGE;
        mbar_wait(full + at % R::STAGES * 8, at / R::STAGES & 1);
        wgmma_fence();
        multiply<BN, 0, 0>(d, stage + wg * 8192, stage + R::A);
        wgmma_commit();
        at++;
      };
      step();
      int end = min(SEGMENT, steps - first);
#pragma unroll 1
      for (int i = 1; i < end; i++) {
        step();
        wgmma_wait<1>();
        release(at - 2);
      }
      wgmma_wait<0>();
      release(at - 1);
      wgmma_hold(d);
#pragma unroll
      for (int i = 0; i < BN / 2; i++) sum[i] += d[i];
    }
    if (sizeof(T) == 2) {
      store_blocks(sum, to, t.m + row_in, rows, t.n, n);
      continue;
    }
#pragma unroll
    for (int i = 0; i < BN / 2; i += 2) {
      int r = t.m + row_in + 8 * (i >> 1 & 1), c = t.n + i / 4 * 8 + thread % 4 * 2;
      if (r < rows && c < n) store2(to + (size_t)r * n + c, sum[i], sum[i + 1]);
    }
  }
}
extern "C" __global__ void __launch_bounds__(384, 1)
    segments_y(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out, const int *offsets,
               int parts, int rows, int n, int k) {
  segments<float>(a, b, out, Parts{offsets, nullptr, parts, rows}, n, k);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    segments_y_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                    const int *offsets, int parts, int rows, int n, int k) {
  segments<bf16>(a, b, out, Parts{offsets, nullptr, parts, rows}, n, k);
}
