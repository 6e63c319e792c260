// Row operations on bf16 with statistics in f32: RMSNorm and SwiGLU, forward and backward.
//
// A row's sums: thread i of 256 takes the numbers 2i, 2i+1, 2i + 512, ... in order, the warp's 32 by a tree, the eight
// warps in order. dw of RMSNorm is a chain over groups of
// at most 64 rows, each itself a chain; a run (Runs in products/tiles.cuh: a sequence) begins a new group, so cuts into
// micro-batches between runs change no bit.
#include "prelude.cuh"
__device__ __forceinline__ float row_total(float v, float *scratch) {
#pragma unroll
  for (int m = 16; m; m >>= 1) v = __fadd_rn(v, __shfl_xor_sync(~0u, v, m));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[0];
#pragma unroll
  for (int i = 1; i < 8; i++) v = __fadd_rn(v, scratch[i]);
  __syncthreads();
  return v;
}
__device__ __forceinline__ float2 pair(uint32_t v) { return make_float2(bf16_f32(v & 0xffff), bf16_f32(v >> 16)); }
// y = w ⊙ x · rstd. d even. grid: rows, block 256, 32 bytes of shared memory. w: f32.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_bf16(const bf16 *x, const float *w, float eps, bf16 *y, float *rstd, int d, int ldx, int ldy) {
  SMEM(smem);
  const bf16 *from = x + (size_t)blockIdx.x * ldx;
  bf16 *to = y + (size_t)blockIdx.x * ldy;
  float s = 0.0f;
  for (int i = threadIdx.x * 2; i < d; i += 512) {
    float2 v = pair(*(const uint32_t *)(from + i));
    s = __fmaf_rn(v.x, v.x, s);
    s = __fmaf_rn(v.y, v.y, s);
  }
  float r = __fdiv_rn(1.0f, sqrtf(__fadd_rn(__fdiv_rn(row_total(s, (float *)smem), (float)d), eps)));
  for (int i = threadIdx.x * 2; i < d; i += 512) {
    float2 v = pair(*(const uint32_t *)(from + i));
    *(uint32_t *)(to + i) = bf16x2(__fmul_rn(__fmul_rn(v.x, r), w[i]), __fmul_rn(__fmul_rn(v.y, r), w[i + 1]));
  }
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
}
// dx (+)= (g - n·mean(g·n))·rstd, g = dy ⊙ w, n = x·rstd. grid: rows, block 256, 32 bytes.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_dx_bf16(const bf16 *dy, const bf16 *x, const float *w, const float *rstd, bf16 *dx, int d, int ldy,
                     int ldx, int go_on) {
  SMEM(smem);
  const bf16 *g = dy + (size_t)blockIdx.x * ldy, *from = x + (size_t)blockIdx.x * ldx;
  bf16 *to = dx + (size_t)blockIdx.x * ldx;
  float r = rstd[blockIdx.x], s = 0.0f;
  for (int i = threadIdx.x * 2; i < d; i += 512) {
    float2 a = pair(*(const uint32_t *)(g + i)), v = pair(*(const uint32_t *)(from + i));
    s = __fmaf_rn(__fmul_rn(a.x, w[i]), __fmul_rn(v.x, r), s);
    s = __fmaf_rn(__fmul_rn(a.y, w[i + 1]), __fmul_rn(v.y, r), s);
  }
  float mean = __fdiv_rn(row_total(s, (float *)smem), (float)d);
  for (int i = threadIdx.x * 2; i < d; i += 512) {
    float2 a = pair(*(const uint32_t *)(g + i)), v = pair(*(const uint32_t *)(from + i)),
           before = make_float2(0.0f, 0.0f);
    if (go_on) before = pair(*(const uint32_t *)(to + i));
    *(uint32_t *)(to + i) =
        bf16x2(__fadd_rn(before.x, __fmul_rn(__fmaf_rn(__fmul_rn(v.x, r), -mean, __fmul_rn(a.x, w[i])), r)),
               __fadd_rn(before.y, __fmul_rn(__fmaf_rn(__fmul_rn(v.y, r), -mean, __fmul_rn(a.y, w[i + 1])), r)));
  }
}
constexpr int GROUP_ROWS = 64;
// parts[g, d]: Σ dy ⊙ x·rstd over the rows of group g. grid: (ceil(d / 256), at least the number of groups), block 256.
// starts: of the runs.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_dw_parts(const bf16 *dy, const bf16 *x, const float *rstd, float *parts, const int *starts, int runs,
                      int d, int ldy, int ldx) {
  int c = blockIdx.x * 256 + threadIdx.x, index = blockIdx.y, run;
  bool found =
      find_run(runs, [&](int r) { return (starts[r + 1] - starts[r] + GROUP_ROWS - 1) / GROUP_ROWS; }, index, run);
  if (!found || c >= d) return;
  int row = starts[run] + index * GROUP_ROWS,
      end = row + GROUP_ROWS < starts[run + 1] ? row + GROUP_ROWS : starts[run + 1];
  float s = 0.0f;
  for (; row < end; row++)
    s = __fmaf_rn(bf16_f32(dy[(size_t)row * ldy + c]), __fmul_rn(bf16_f32(x[(size_t)row * ldx + c]), rstd[row]), s);
  parts[(size_t)blockIdx.y * d + c] = s;
}
// dw (+)= the groups' parts, in order. grid: (ceil(d / 256)), block 256.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_dw_bf16(const float *parts, float *dw, const int *starts, int runs, int d, int go_on) {
  int c = blockIdx.x * 256 + threadIdx.x, groups = 0;
  if (c >= d) return;
  for (int r = 0; r < runs; r++) groups += (starts[r + 1] - starts[r] + GROUP_ROWS - 1) / GROUP_ROWS;
  float s = go_on ? dw[c] : 0.0f;
  for (int g = 0; g < groups; g++) s = __fadd_rn(s, parts[(size_t)g * d + c]);
  dw[c] = s;
}
__device__ __forceinline__ float sigmoid_approx(float x) {
  return __fdiv_rn(1.0f, __fadd_rn(1.0f, exp2_approx(__fmul_rn(x, -1.4426950408889634f))));
}
// y = silu(gate) ⊙ up. grid: (ceil(n / 2048)), block 256; n a multiple of 2 and pointers to 4 bytes.
extern "C" __global__ void __launch_bounds__(256) swiglu_bf16(const bf16 *gate, const bf16 *up, bf16 *y, int64_t n) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int64_t i = ((int64_t)blockIdx.x * 4 + j) * 512 + threadIdx.x * 2;
    if (i >= n) return;
    float2 g = pair(*(const uint32_t *)(gate + i)), u = pair(*(const uint32_t *)(up + i));
    *(uint32_t *)(y + i) = bf16x2(__fmul_rn(__fmul_rn(g.x, sigmoid_approx(g.x)), u.x),
                                  __fmul_rn(__fmul_rn(g.y, sigmoid_approx(g.y)), u.y));
  }
}
// dup = dy·silu(gate), dgate = dy·up·σ·(1 + gate·(1 - σ)).
extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward_bf16(const bf16 *dy, const bf16 *gate, const bf16 *up, bf16 *dgate, bf16 *dup, int64_t n) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int64_t i = ((int64_t)blockIdx.x * 4 + j) * 512 + threadIdx.x * 2;
    if (i >= n) return;
    float2 d = pair(*(const uint32_t *)(dy + i)), g = pair(*(const uint32_t *)(gate + i)),
           u = pair(*(const uint32_t *)(up + i));
    float sx = sigmoid_approx(g.x), sy = sigmoid_approx(g.y);
    *(uint32_t *)(dup + i) = bf16x2(__fmul_rn(d.x, __fmul_rn(g.x, sx)), __fmul_rn(d.y, __fmul_rn(g.y, sy)));
    *(uint32_t *)(dgate + i) = bf16x2(__fmul_rn(__fmul_rn(d.x, u.x), __fmul_rn(sx, __fmaf_rn(g.x, 1.0f - sx, 1.0f))),
                                      __fmul_rn(__fmul_rn(d.y, u.y), __fmul_rn(sy, __fmaf_rn(g.y, 1.0f - sy, 1.0f))));
  }
}
// y[i] = x[rows[i]]. d a multiple of 8, rows of x at multiples of 16 bytes. grid: (ceil(count·d / 2048)), block 256.
extern "C" __global__ void __launch_bounds__(256)
    gather_rows_bf16(const bf16 *x, const int *rows, bf16 *y, int count, int d, int ldx) {
  int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 8;
  if (i >= (int64_t)count * d) return;
  *(uint4 *)(y + i) = *(const uint4 *)(x + (size_t)rows[i / d] * ldx + i % d);
}
