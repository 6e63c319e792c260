// The products of products/fp8.cuh, and what quantises their operands. Products: block 384, grid as many blocks as fit
// the card, FP8_BYTES of shared memory.
#include "products/fp8.cuh"
extern "C" __global__ void __launch_bounds__(384, 1)
    fp8_y(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *scale_a,
          const float *scale_b, bf16 *out, const int *offsets, int parts, int rows, int n, int k, int ldo) {
  product_fp8<false, bf16>(a, b, scale_a, scale_b, out, Parts{offsets, nullptr, parts, rows}, 0, n, k, rows, ldo, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    fp8_y_f32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *scale_a,
              const float *scale_b, float *out, const int *offsets, int parts, int rows, int n, int k, int ldo) {
  product_fp8<false, float>(a, b, scale_a, scale_b, out, Parts{offsets, nullptr, parts, rows}, 0, n, k, rows, ldo, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    fp8_dw(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float *scale_a,
           const float *scale_b, float *out, const int *steps, int parts, int m, int n, int ldo, int go_on) {
  product_fp8<true, float>(a, b, scale_a, scale_b, out, Parts{steps, nullptr, parts, 0}, m, n, 0, m, ldo, go_on);
}
// Quantising. The scale of a block is max(its greatest magnitude, 1e-4) / 448, the numbers are divided by it.
__device__ __forceinline__ float fp8_scale(float amax) { return __fdiv_rn(fmaxf(amax, 1e-4f), 448.0f); }
// Rows by 1 x 128: q[rows, k], scales [ceil(k/128), rows]. A warp for each block of 128. k a multiple of 4. grid:
// (ceil(rows·ceil(k/128) / 8)), block 256.
extern "C" __global__ void __launch_bounds__(256)
    fp8_rows(const bf16 *x, uint8_t *q, float *scales, int rows, int k, int ldx, int ldq) {
  int blocks = (k + F - 1) / F, lane = threadIdx.x % 32, at = blockIdx.x * 8 + threadIdx.x / 32, row = at / blocks,
      block = at % blocks, c = block * F + lane * 4;
  if (row >= rows) return;
  float v[4], m = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[i] = c < k ? bf16_f32(x[(size_t)row * ldx + c + i]) : 0.0f;
    m = fmaxf(m, fabsf(v[i]));
  }
#pragma unroll
  for (int d = 16; d; d >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
  float s = fp8_scale(m);
  if (c < k)
    *(uint32_t *)(q + (size_t)row * ldq + c) =
        e4m3x4(__fdiv_rn(v[0], s), __fdiv_rn(v[1], s), __fdiv_rn(v[2], s), __fdiv_rn(v[3], s));
  if (lane == 0) scales[(size_t)block * rows + row] = s;
}
// Weights by 128 x 128: q[n, k] and its transpose t[k, n], scales [ceil(n/128), ceil(k/128)] and transposed. A stack of
// parts: grid.z; n, k multiples of 4.
// grid: (ceil(k/128), ceil(n/128), parts), block 256, 128·132 + 32 bytes.
extern "C" __global__ void __launch_bounds__(256)
    fp8_blocks(const bf16 *w, uint8_t *q, uint8_t *t, float *scales, float *scales_t, int n, int k) {
  SMEM(room);
  float *most = (float *)room;
  uint8_t *tile = (uint8_t *)room + 32;  // rows of 132 bytes
  size_t part = (size_t)blockIdx.z * n * k;
  int r0 = blockIdx.y * F, c0 = blockIdx.x * F, lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = c0 + lane * 4;
  float m = 0.0f;
  for (int r = warp; r < F; r += 8)
    if (r0 + r < n && c < k)
      for (int i = 0; i < 4; i++) m = fmaxf(m, fabsf(bf16_f32(w[part + (size_t)(r0 + r) * k + c + i])));
#pragma unroll
  for (int d = 16; d; d >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
  if (lane == 0) most[warp] = m;
  __syncthreads();
  for (int i = 0; i < 8; i++) m = fmaxf(m, most[i]);
  float s = fp8_scale(m);
  for (int r = warp; r < F; r += 8) {
    uint32_t v = 0;
    if (r0 + r < n && c < k) {
      const bf16 *p = w + part + (size_t)(r0 + r) * k + c;
      v = e4m3x4(__fdiv_rn(bf16_f32(p[0]), s), __fdiv_rn(bf16_f32(p[1]), s), __fdiv_rn(bf16_f32(p[2]), s),
                 __fdiv_rn(bf16_f32(p[3]), s));
      *(uint32_t *)(q + part + (size_t)(r0 + r) * k + c) = v;
    }
    *(uint32_t *)(tile + r * 132 + lane * 4) = v;
  }
  __syncthreads();
  for (int r = warp; r < F; r += 8)  // row r of the transpose
    if (c0 + r < k && r0 + lane * 4 < n) {
      uint32_t v = 0;
      for (int i = 3; i >= 0; i--) v = v << 8 | tile[(lane * 4 + i) * 132 + r];
      *(uint32_t *)(t + part + (size_t)(c0 + r) * n + r0 + lane * 4) = v;
    }
  if (threadIdx.x == 0) {
    size_t z = (size_t)blockIdx.z * gridDim.x * gridDim.y;
    scales[z + blockIdx.y * gridDim.x + blockIdx.x] = s;
    scales_t[z + blockIdx.x * gridDim.y + blockIdx.y] = s;
  }
}
// Columns by 128 rows of a run, transposed: t[c, ldt], a run's rows beginning at a multiple of 128 columns, zeros to
// the next; scales [steps, c]. starts: of the runs.
// grid: (ceil(c/128), at least the number of steps), block 128; ldt at least 128 · steps and a multiple of 16.
extern "C" __global__ void __launch_bounds__(128)
    fp8_columns(const bf16 *x, uint8_t *t, float *scales, const int *starts, int runs, int cols, int ldx, int ldt) {
  int c = blockIdx.x * 128 + threadIdx.x, index = blockIdx.y, run;
  bool found = find_run(runs, [&](int r) { return (starts[r + 1] - starts[r] + F - 1) / F; }, index, run);
  if (!found || c >= cols) return;
  int row = starts[run] + index * F, count = starts[run + 1] - row < F ? starts[run + 1] - row : F;
  const bf16 *from = x + (size_t)row * ldx + c;
  float m = 0.0f;
  for (int r = 0; r < count; r++) m = fmaxf(m, fabsf(bf16_f32(from[(size_t)r * ldx])));
  float s = fp8_scale(m);
  uint8_t *to = t + (size_t)c * ldt + blockIdx.y * F;
  for (int r = 0; r < F; r += 16) {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float f[4];
      for (int e = 0; e < 4; e++) {
        int at = r + 4 * i + e;
        f[e] = at < count ? __fdiv_rn(bf16_f32(from[(size_t)at * ldx]), s) : 0.0f;
      }
      v[i] = e4m3x4(f[0], f[1], f[2], f[3]);
    }
    *(uint4 *)(to + r) = make_uint4(v[0], v[1], v[2], v[3]);
  }
  scales[(size_t)blockIdx.y * cols + c] = s;
}
// steps[e]: steps of 128 rows before part e, for fp8_dw's parts.offsets. grid: (ceil((parts + 1) / 256)), block 256.
extern "C" __global__ void __launch_bounds__(256)
    fp8_steps(const int *starts, const int *part_runs, int *steps, int parts) {
  int e = blockIdx.x * 256 + threadIdx.x, n = 0;
  if (e > parts) return;
  int last = part_runs ? part_runs[e] : e;
  for (int r = 0; r < last; r++) n += (starts[r + 1] - starts[r] + F - 1) / F;
  steps[e] = n;
}
