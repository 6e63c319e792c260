// What is computed row by row. Orders of sums: crates/kernels/src/reference, to whose bits all of this is.
#include "prelude.cuh"
#include "math.cuh"

extern "C" __global__ void add(const float *x, float *y, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] += x[i];
}

// y = (x·rstd)·w, rstd = 1/√(mean(x²) + eps) saved. Half a warp a row.
extern "C" __global__ void rms_norm(const float *x, const float *w, float eps, float *y, float *rstd, int rows, int d) {
  int64_t row = thread_index() / 16;
  int lane = threadIdx.x % 16;
  bool in = row < rows;
  const float *from = x + (in ? row : 0) * d;
  float r = 1.0f / sqrtf(dot_of_lanes(from, from, in ? d : 0, lane) / (float)d + eps);
  if (!in) return;
  for (int i = lane; i < d; i += 16) y[row * d + i] = from[i] * r * w[i];
  if (lane == 0) rstd[row] = r;
}

extern "C" __global__ void swiglu(const float *gate, const float *up, float *y, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] = silu_of(gate[i]) * up[i];
}
