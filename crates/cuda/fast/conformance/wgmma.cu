// Probes of wgmma, one warpgroup and 64 terms each: out[64, N] = c + a · b. What they must show on a card, as on the
// emulator:
// operands in both orders, from shared memory and registers, mean what the descriptors say; an element depends on its
// row, its column and its c alone, at each
// place and for each N; and terms that are 0 add nothing. The kernels' law of the same bits stands on this.
// block 128, PROBE_BYTES of shared memory. Boxes: a [64 rows x 64] in both orders; b [N rows x 64], or 64 x 64 where
// MN-major.
#include "prelude.cuh"
constexpr int PROBE_A = 8192, PROBE_BYTES = PROBE_A + 32768 + 8;
template <int N, int TA, int TB, bool RS>
__device__ __forceinline__ void probe(const TensorMap &a, const TensorMap &b, const float *c, float *out) {
  SMEM(smem);
  saddr sa = smem_addr(smem), sb = sa + PROBE_A, bar = sb + 32768;
  constexpr int BOXES = TB ? (N + 63) / 64 : 1;
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    mbar_fence();
    mbar_arrive_tx(bar, PROBE_A + (TB ? BOXES * 8192 : N * 128));
    tma_load(sa, &a, bar, 0, 0);
    for (int i = 0; i < BOXES; i++) tma_load(sb + i * 8192, &b, bar, i * 64, 0);
  }
  __syncthreads();
  mbar_wait(bar, 0);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp * 16 + lane / 4, col = lane % 4 * 2;
  float d[N / 2];
  uint32_t r[4][4];
#pragma unroll
  for (int i = 0; i < N / 2; i++) d[i] = c[(row + 8 * (i >> 1 & 1)) * N + i / 4 * 8 + col + (i & 1)];
  if (RS) {
#pragma unroll
    for (int k = 0; k < 4; k++)
      ldmatrix4<false>(r[k], sa + swizzled((warp * 16 + lane % 16) * 128 + k * 32 + lane / 16 * 16));
  }
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) {
    uint64_t db = TB ? mn_major(sb + k * 2048, 8192) : k_major(sb + k * 32);
    if (RS) wgmma_rs<TB>(d, r[k], db, 1);
    else wgmma_ss<TA, TB>(d, TA ? mn_major(sa + k * 2048, 8192) : k_major(sa + k * 32), db, 1);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(d);
#pragma unroll
  for (int i = 0; i < N / 2; i++) out[(row + 8 * (i >> 1 & 1)) * N + i / 4 * 8 + col + (i & 1)] = d[i];
}
// The same of e4m3, 128 terms.
__device__ __forceinline__ void probe8(const TensorMap &a, const TensorMap &b, const float *c, float *out) {
  SMEM(room);
  saddr sa = smem_addr(room), sb = sa + PROBE_A, bar = sb + 32768;
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    mbar_fence();
    mbar_arrive_tx(bar, PROBE_A + 16384);
    tma_load(sa, &a, bar, 0, 0);
    tma_load(sb, &b, bar, 0, 0);
  }
  __syncthreads();
  mbar_wait(bar, 0);
  int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, col = lane % 4 * 2;
  float d[64];
#pragma unroll
  for (int i = 0; i < 64; i++) d[i] = c[(row + 8 * (i >> 1 & 1)) * 128 + i / 4 * 8 + col + (i & 1)];
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) wgmma_fp8(d, k_major(sa + k * 32), k_major(sb + k * 32), 1);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(d);
#pragma unroll
  for (int i = 0; i < 64; i++) out[(row + 8 * (i >> 1 & 1)) * 128 + i / 4 * 8 + col + (i & 1)] = d[i];
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_32_00(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                   float *out) {
  probe<32, 0, 0, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_32_01(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                   float *out) {
  probe<32, 0, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_32_11(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                   float *out) {
  probe<32, 1, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_rs_32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c, float *out) {
  probe<32, 0, 1, true>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_64_00(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                   float *out) {
  probe<64, 0, 0, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_64_01(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                   float *out) {
  probe<64, 0, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_64_11(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                   float *out) {
  probe<64, 1, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_rs_64(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c, float *out) {
  probe<64, 0, 1, true>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_128_00(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<128, 0, 0, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_128_01(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<128, 0, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_128_11(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<128, 1, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_rs_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c, float *out) {
  probe<128, 0, 1, true>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_192_00(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<192, 0, 0, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_192_01(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<192, 0, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_192_11(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<192, 1, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_rs_192(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c, float *out) {
  probe<192, 0, 1, true>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_256_00(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<256, 0, 0, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_256_01(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<256, 0, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_ss_256_11(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c,
                    float *out) {
  probe<256, 1, 1, false>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_rs_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c, float *out) {
  probe<256, 0, 1, true>(a, b, c, out);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    probe_fp8(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *c, float *out) {
  probe8(a, b, c, out);
}
