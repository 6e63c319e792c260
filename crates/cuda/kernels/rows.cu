// What is computed row by row. Orders of sums: crates/kernels/src/reference, to whose bits all of this is.
#include "prelude.cuh"
#include "math.cuh"

extern "C" __global__ void fill_bf16(uint16_t *y, int bits, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] = (uint16_t)bits;
}

// Sets found[0] where an element is an infinity or NaN.
extern "C" __global__ void find_non_finite(const float *x, uint32_t *found, int64_t n) {
  int64_t i = thread_index();
  if (i < n && (__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u) found[0] = 1;
}

extern "C" __global__ void add(const float *x, float *y, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] += x[i];
}

extern "C" __global__ void scale(float *y, float factor, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] *= factor;
}

extern "C" __global__ void soft_cap(float *y, float cap, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] = capped(y[i], cap).x;
}

// The same, and the slopes there.
extern "C" __global__ void soft_cap_with_slopes(float *y, float *slopes, float cap, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  float2 both = capped(y[i], cap);
  y[i] = both.x;
  slopes[i] = both.y;
}

extern "C" __global__ void multiply(const float *x, float *y, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] *= x[i];
}

extern "C" __global__ void add_bias(const float *bias, float *y, int cols, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] += bias[i % cols];
}

// to[i] = [to[i]] + Σ_t a·b of term(t, i) = (a, b): chains over the rows. A block of eight warps for 32 columns: the
// first adds BATCH rows' terms while the others load the next. 2·BATCH·32 pairs of shared memory.
constexpr int BATCH = 63;
template <class F>
__device__ __forceinline__ void column_chains(int rows, int cols, float *to, int go_on, float2 *batches, F term) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = blockIdx.x * 32 + lane;
  float s = go_on && i < cols ? to[i] : 0.0f;
  for (int64_t first = 0; first < rows + BATCH; first += BATCH) {
    int turn = first / BATCH % 2;
    float2 *batch = batches + turn * BATCH * 32, *last = batches + (1 - turn) * BATCH * 32;
    if (warp == 0) {
      int len = first == 0 ? 0 : (int)min((int64_t)BATCH, rows - first + BATCH);
      for (int n = 0; n < len; n++) s = __fmaf_rn(last[n * 32 + lane].x, last[n * 32 + lane].y, s);
    } else {
#pragma unroll
      for (int k = 0; k < BATCH / 7; k++) {
        int n = warp - 1 + 7 * k;
        if (first + n < rows && i < cols) batch[n * 32 + lane] = term(first + n, i);
      }
    }
    __syncthreads();
  }
  if (warp == 0 && i < cols) to[i] = s;
}

extern "C" __global__ void __launch_bounds__(256)
    bias_backward(const float *dy, float *dbias, int rows, int cols, int go_on) {
  SMEM(shared);
  column_chains(rows, cols, dbias, go_on, (float2 *)shared,
                [=](int64_t t, int i) { return make_float2(dy[t * cols + i], 1.0f); });
}

// Columns from..from+width of x to to..to+width of y.
extern "C" __global__ void copy_columns(const float *x, int x_cols, int from, float *y, int y_cols, int to, int width,
                                        int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i / width * y_cols + to + i % width] = x[i / width * x_cols + from + i % width];
}

// y[H·T, width]: the heads of x, one below the other.
extern "C" __global__ void split_heads(const float *x, int x_cols, int offset, int stride, float *y, int tokens,
                                       int width, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  int64_t row = i / width, h = row / tokens, t = row % tokens;
  y[i] = x[t * x_cols + offset + h * stride + i % width];
}

// y[T, H·width]: the heads of x[H·T, width] side by side.
extern "C" __global__ void join_heads(const float *x, float *y, int tokens, int heads, int width, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  int64_t place = i / width, t = place / heads, h = place % heads;
  y[i] = x[(h * tokens + t) * width + i % width];
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

// With g = dy·w and n = x·rstd: dx = first + (g − n·mean(g·n))·rstd. Half a warp a row.
extern "C" __global__ void rms_norm_dx(const float *dy, const float *x, const float *w, const float *rstd, float *dx,
                                       int rows, int d, int go_on) {
  int64_t row = thread_index() / 16;
  int lane = threadIdx.x % 16;
  bool in = row < rows;
  const float *of_x = x + (in ? row : 0) * d, *of_dy = dy + (in ? row : 0) * d;
  float r = in ? rstd[row] : 0.0f, s = 0.0f;
  for (int i = lane; i < (in ? d : 0); i += 16) s = __fmaf_rn(of_dy[i] * w[i], of_x[i] * r, s);
  float mean = sum_tree(s) / (float)d;
  if (!in) return;
  for (int i = lane; i < d; i += 16) {
    float first = go_on ? dx[row * d + i] : 0.0f;
    dx[row * d + i] = first + __fmaf_rn(of_x[i] * r, -mean, of_dy[i] * w[i]) * r;
  }
}

// dw = [dw] + Σ_t dy·(x·rstd).
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_dw(const float *dy, const float *x, const float *rstd, float *dw, int rows, int d, int go_on) {
  SMEM(shared);
  column_chains(rows, d, dw, go_on, (float2 *)shared,
                [=](int64_t t, int i) { return make_float2(dy[t * d + i], x[t * d + i] * rstd[t]); });
}

// Turns pairs (a, b) by the angle of the row's position; `sign` is −1 for the way back. A thread a pair.
extern "C" __global__ void rope(float *x, const uint32_t *positions, const float *cosines, const float *sines, int half,
                                int halves, int cols, int offset, int head_stride, int heads, float sign, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  int k = i % half, h = i / half % heads;
  int64_t t = i / half / heads, angle = (int64_t)positions[t] * half + k;
  float *head = x + t * cols + offset + (int64_t)h * head_stride;
  float *first = head + (halves ? k : 2 * k), *second = head + (halves ? half + k : 2 * k + 1);
  float a = *first, b = *second, c = cosines[angle], s = sign < 0.0f ? -sines[angle] : sines[angle];
  *first = __fmaf_rn(a, c, -(b * s));
  *second = __fmaf_rn(a, s, b * c);
}

extern "C" __global__ void swiglu(const float *gate, const float *up, float *y, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] = silu_of(gate[i]) * up[i];
}

extern "C" __global__ void swiglu_backward(const float *dy, const float *gate, const float *up, float *dgate,
                                           float *dup, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  float s = sigmoid_of(gate[i]), g = gate[i], d = dy[i], u = up[i];
  dup[i] = d * (g * s);
  dgate[i] = d * u * (s * __fmaf_rn(g, 1.0f - s, 1.0f));
}

// 2·√(2/π) and that times 0.044715.
constexpr float GELU = 1.5957691f, GELU_CUBE = 0.071354814f;

__device__ __forceinline__ float at_most(float x, float limit) { return x > limit ? limit : x; }

// A gate of gpt-oss if `clamped`, else of Gemma: see crates/kernels/src/swiglu.rs.
extern "C" __global__ void gated(const float *gate, const float *up, float *y, int clamped, float alpha, float limit,
                                 int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  float g = gate[i], u = up[i];
  if (clamped) {
    g = at_most(g, limit);
    u = u < -limit ? -limit : at_most(u, limit);
    y[i] = g * sigmoid_of(g * alpha) * (u + 1.0f);
  } else y[i] = g * sigmoid_of(g * __fmaf_rn(g * g, GELU_CUBE, GELU)) * u;
}

extern "C" __global__ void gated_backward(const float *dy, const float *gate, const float *up, float *dgate, float *dup,
                                          int clamped, float alpha, float limit, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  float g = gate[i], u = up[i], d = dy[i];
  if (clamped) {
    float inner = at_most(g, limit), scaled = inner * alpha, s = sigmoid_of(scaled);
    dup[i] = u <= limit && u >= -limit ? d * (inner * s) : 0.0f;
    float more = (u < -limit ? -limit : at_most(u, limit)) + 1.0f;
    dgate[i] = g <= limit ? d * more * (s * __fmaf_rn(scaled, 1.0f - s, 1.0f)) : 0.0f;
  } else {
    float s = sigmoid_of(g * __fmaf_rn(g * g, GELU_CUBE, GELU));
    dup[i] = d * (g * s);
    dgate[i] = d * u * (s * __fmaf_rn(g * __fmaf_rn(g * g, 3.0f * GELU_CUBE, GELU), 1.0f - s, 1.0f));
  }
}

extern "C" __global__ void gather(const float *table, const uint32_t *ids, float *y, int d, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] = table[(int64_t)ids[i / d] * d + i % d];
}

// Row `found[u]` of dtable is a chain over the tokens order[begins[u]..begins[u + 1]], which ascend. A thread an
// element.
extern "C" __global__ void gather_backward(const float *dy, const uint32_t *found, const uint32_t *begins,
                                           const uint32_t *order, float *dtable, int d, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  int64_t u = i / d, column = i % d, at = (int64_t)found[u] * d + column;
  float s = dtable[at];
  uint32_t end = begins[u + 1];
#pragma unroll 8
  for (uint32_t o = begins[u]; o < end; o++) s += dy[(int64_t)order[o] * d + column];
  dtable[at] = s;
}

// One step of AdamW: crates/kernels/src/optim.rs has the formula and why it is written so.
extern "C" __global__ void adamw(float *p, const float *grads, float *m, float *v, float scale, float one_minus_beta1,
                                 float one_minus_beta2, float root_correction, float eps, float minus_rate,
                                 float minus_decay, int64_t n) {
  int64_t i = thread_index();
  if (i >= n) return;
  float g = grads[i] * scale;
  float new_m = __fmaf_rn(one_minus_beta1, g - m[i], m[i]);
  float new_v = __fmaf_rn(one_minus_beta2, __fmaf_rn(g, g, -v[i]), v[i]);
  float root = __fmaf_rn(sqrtf(new_v), root_correction, eps);
  p[i] = __fmaf_rn(minus_rate, new_m / root, __fmaf_rn(p[i], minus_decay, p[i]));
  m[i] = new_m;
  v[i] = new_v;
}

// y = α·x + β·y.
extern "C" __global__ void blend(const float *x, float *y, float alpha, float beta, int64_t n) {
  int64_t i = thread_index();
  if (i < n) y[i] = __fmaf_rn(alpha, x[i], y[i] * beta);
}

// Σ x² of each `chunk` elements. Half a warp a chunk.
extern "C" __global__ void squares(const float *x, float *sums, int chunk, int chunks, int64_t n) {
  int64_t c = thread_index() / 16, first = c * chunk;
  int lane = threadIdx.x % 16;
  int64_t len = c < chunks ? (n - first < chunk ? n - first : chunk) : 0;
  float s = dot_of_lanes(x + (c < chunks ? first : 0), x + (c < chunks ? first : 0), (int)len, lane);
  if (c < chunks && lane == 0) sums[c] = s;
}
