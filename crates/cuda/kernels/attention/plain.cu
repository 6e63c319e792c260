// Causal attention over packed sequences, forward and backward, in f32. Orders of sums: attend.cuh, and for the
// backward pass crates/kernels/src/attention.rs, to whose bits it is: two passes, no atomics.
//
// `tiles`: three numbers for each tile of up to eight queries of one sequence: its first key, the tile's first query,
// how many. A key is its head's own part, then the part that all heads share.
#include "prelude.cuh"
#include "math.cuh"
#include "sums.cuh"
#include "attend.cuh"

struct Key {
  const float *own, *shared;
  int64_t own_row, shared_row;
  int own_dim;
  __device__ __forceinline__ float at(int64_t t, int i) const {
    return i < own_dim ? own[t * own_row + i] : shared[t * shared_row + i - own_dim];
  }
};

extern "C" __global__ void __launch_bounds__(128)
    attention_forward(const float *q, int q_row, int q_head, const float *k, int k_row, int k_head,
                      const float *shared_k, int shared_row, const float *v, int v_row, int v_head, const int *tiles,
                      const float *sinks, float scale, float cap, int heads, int kv_heads, int window, int own,
                      int shared_dim, int v_dim, float *out, float *stats) {
  SMEM(shared);
  int sequence = tiles[3 * blockIdx.x], t0 = tiles[3 * blockIdx.x + 1], count = tiles[3 * blockIdx.x + 2];
  int h = blockIdx.y, kv = h / (heads / kv_heads);
  Key keys{k + (int64_t)kv * k_head, shared_k, k_row, shared_row, own};
  const float *queries = q + (int64_t)h * q_head, *values = v + (int64_t)kv * v_head;
  attend(
      Attend(shared, own + shared_dim, v_dim), count, t0 - sequence, scale, cap, window, sinks ? sinks[h] : least(),
      [=](int n, int i) { return queries[(int64_t)(t0 + n) * q_row + i]; },
      [=](int j, int i) { return keys.at(sequence + j, i); },
      [=](int j, int i) { return values[(int64_t)(sequence + j) * v_row + i]; },
      [=](int n, int i, float x) { out[((int64_t)(t0 + n) * heads + h) * v_dim + i] = x; },
      [=](int n, float max, float inverse) {
        int64_t at = ((int64_t)(t0 + n) * heads + h) * 2;
        stats[at] = max;
        stats[at + 1] = inverse;
      });
}

// delta[T·H] = out · d_out of each head. Half a warp a head.
extern "C" __global__ void attention_delta(const float *out, const float *d_out, float *delta, int v_dim, int64_t n) {
  int64_t at = thread_index() / 16;
  int lane = threadIdx.x % 16;
  int64_t from = at < n ? at * v_dim : 0;
  float s = dot_of_lanes(out + from, d_out + from, at < n ? v_dim : 0, lane);
  if (at < n && lane == 0) delta[at] = s;
}

// terms[T·H] = −exp(sink − max) · 1/sum · (out · d_out) of each head. Half a warp a head.
extern "C" __global__ void attention_sink_terms(const float *sinks, const float *out, const float *d_out,
                                                const float *stats, float *terms, int heads, int v_dim, int64_t n) {
  int64_t at = thread_index() / 16;
  int lane = threadIdx.x % 16;
  int64_t from = at < n ? at * v_dim : 0;
  float s = dot_of_lanes(out + from, d_out + from, at < n ? v_dim : 0, lane);
  if (at < n && lane == 0) terms[at] = -(exp_of(sinks[at % heads] - stats[2 * at]) * stats[2 * at + 1] * s);
}

// dq: a chain over the keys. 128 threads: thread (q, lane) has query q of the tile and key `lane` of sixteen.
extern "C" __global__ void __launch_bounds__(128)
    attention_dq(const float *q, int q_row, int q_head, const float *k, int k_row, int k_head, const float *shared_k,
                 int shared_row, const float *v, int v_row, int v_head, const int *tiles, float scale, float cap,
                 int heads, int kv_heads, int window, int own, int shared_dim, int v_dim, const float *stats, const float *delta,
                 const float *d_out, float *dq) {
  SMEM(shared);
  int sequence = tiles[3 * blockIdx.x], t0 = tiles[3 * blockIdx.x + 1], count = tiles[3 * blockIdx.x + 2];
  int h = blockIdx.y, kv = h / (heads / kv_heads), qk = own + shared_dim;
  int n = threadIdx.x / KEYS, lane = threadIdx.x % KEYS, end = t0 + count;
  bool mine = n < count;
  Key keys{k + (int64_t)kv * k_head, shared_k, k_row, shared_row, own};
  float *queries = (float *)shared, *gs = queries + QUERIES * qk, *of_k = gs + QUERIES * v_dim,
        *of_v = of_k + KEYS * (qk + 1), *sums = of_v + KEYS * (v_dim + 1), *ds = sums + QUERIES * qk;
  for (int at = threadIdx.x; at < count * qk; at += blockDim.x) {
    queries[at] = q[(int64_t)(t0 + at / qk) * q_row + (int64_t)h * q_head + at % qk];
    sums[at] = 0.0f;
  }
  for (int at = threadIdx.x; at < count * v_dim; at += blockDim.x)
    gs[at] = d_out[((int64_t)(t0 + at / v_dim) * heads + h) * v_dim + at % v_dim];
  int64_t row = (int64_t)(t0 + (mine ? n : 0)) * heads + h;
  float max = stats[2 * row], inverse = stats[2 * row + 1], own_delta = delta[row];
  for (int j0 = sequence + first_tile(t0 - sequence, window); j0 < end; j0 += KEYS) {
    int there = end - j0 < KEYS ? end - j0 : KEYS, seen = t0 + n - j0 + 1, unseen = seen > window ? seen - window : 0;
    __syncthreads();
    for (int at = threadIdx.x; at < there * qk; at += blockDim.x)
      of_k[at / qk * (qk + 1) + at % qk] = keys.at(j0 + at / qk, at % qk);
    for (int at = threadIdx.x; at < there * v_dim; at += blockDim.x)
      of_v[at / v_dim * (v_dim + 1) + at % v_dim] =
          v[(int64_t)(j0 + at / v_dim) * v_row + (int64_t)kv * v_head + at % v_dim];
    __syncthreads();
    if (mine && lane >= unseen && lane < seen && lane < there) {
      float s = 0.0f, gv = 0.0f;
      for (int i = 0; i < qk; i++) s = __fmaf_rn(queries[n * qk + i], of_k[lane * (qk + 1) + i], s);
      for (int i = 0; i < v_dim; i++) gv = __fmaf_rn(gs[n * v_dim + i], of_v[lane * (v_dim + 1) + i], gv);
      float2 score = capped(s * scale, cap);
      float p = exp_of(score.x - max) * inverse;
      ds[n * KEYS + lane] = p * (gv - own_delta) * scale * score.y;
    }
    __syncthreads();
    for (int i = lane; mine && i < qk; i += KEYS) {
      float s = sums[n * qk + i];
      for (int j = unseen; j < seen && j < there; j++) s = __fmaf_rn(ds[n * KEYS + j], of_k[j * (qk + 1) + i], s);
      sums[n * qk + i] = s;
    }
  }
  for (int i = lane; mine && i < qk; i += KEYS)
    dq[(int64_t)(t0 + n) * q_row + (int64_t)h * q_head + i] = sums[n * qk + i];
}

// dk and dv: chains over the queries of the group's heads, one head after the other; the tile is one of eight keys of a
// sequence that ends at `ends[tile]`. The shared part goes to shared_sums[T, kv_heads, shared_dim]. 128 threads: thread
// (j, lane) has key j and query `lane` of sixteen.
extern "C" __global__ void __launch_bounds__(128)
    attention_dkv(const float *q, int q_row, int q_head, const float *k, int k_row, int k_head, const float *shared_k,
                  int shared_row, const float *v, int v_row, int v_head, const int *tiles, const int *ends, float scale,
                  float cap, int heads, int kv_heads, int window, int own, int shared_dim, int v_dim, const float *stats,
                  const float *delta, const float *d_out, float *dk, float *dv, float *shared_sums) {
  SMEM(shared);
  int j0 = tiles[3 * blockIdx.x + 1], count = tiles[3 * blockIdx.x + 2], end = ends[blockIdx.x];
  int kv = blockIdx.y, group = heads / kv_heads, qk = own + shared_dim, j = threadIdx.x / KEYS,
      lane = threadIdx.x % KEYS;
  bool mine = j < count;
  if (end - j0 > count - 1 + window) end = j0 + count - 1 + window;
  Key keys{k + (int64_t)kv * k_head, shared_k, k_row, shared_row, own};
  float *of_k = (float *)shared, *of_v = of_k + QUERIES * qk, *queries = of_v + QUERIES * v_dim,
        *gs = queries + KEYS * (qk + 1);
  float *dks = gs + KEYS * (v_dim + 1), *dvs = dks + QUERIES * qk, *ps = dvs + QUERIES * v_dim,
        *ds = ps + QUERIES * KEYS;
  for (int at = threadIdx.x; at < count * qk; at += blockDim.x) {
    of_k[at] = keys.at(j0 + at / qk, at % qk);
    dks[at] = 0.0f;
  }
  for (int at = threadIdx.x; at < count * v_dim; at += blockDim.x) {
    of_v[at] = v[(int64_t)(j0 + at / v_dim) * v_row + (int64_t)kv * v_head + at % v_dim];
    dvs[at] = 0.0f;
  }
  for (int h = kv * group; h < (kv + 1) * group; h++)
    for (int t0 = j0; t0 < end; t0 += KEYS) {
      int there = end - t0 < KEYS ? end - t0 : KEYS;
      __syncthreads();
      for (int at = threadIdx.x; at < there * qk; at += blockDim.x)
        queries[at / qk * (qk + 1) + at % qk] = q[(int64_t)(t0 + at / qk) * q_row + (int64_t)h * q_head + at % qk];
      for (int at = threadIdx.x; at < there * v_dim; at += blockDim.x)
        gs[at / v_dim * (v_dim + 1) + at % v_dim] =
            d_out[((int64_t)(t0 + at / v_dim) * heads + h) * v_dim + at % v_dim];
      __syncthreads();
      if (mine && lane < there && t0 + lane >= j0 + j && t0 + lane - (j0 + j) < window) {
        int64_t row = (int64_t)(t0 + lane) * heads + h;
        float s = 0.0f, gv = 0.0f;
        for (int i = 0; i < qk; i++) s = __fmaf_rn(queries[lane * (qk + 1) + i], of_k[j * qk + i], s);
        for (int i = 0; i < v_dim; i++) gv = __fmaf_rn(gs[lane * (v_dim + 1) + i], of_v[j * v_dim + i], gv);
        float2 score = capped(s * scale, cap);
        float p = exp_of(score.x - stats[2 * row]) * stats[2 * row + 1];
        ps[j * KEYS + lane] = p;
        ds[j * KEYS + lane] = p * (gv - delta[row]) * scale * score.y;
      }
      __syncthreads();
      int from = j0 + j > t0 ? j0 + j - t0 : 0, to = j0 + j - t0 + window < there ? j0 + j - t0 + window : there;
      for (int i = lane; mine && i < qk; i += KEYS) {
        float s = dks[j * qk + i];
        for (int t = from; t < to; t++) s = __fmaf_rn(ds[j * KEYS + t], queries[t * (qk + 1) + i], s);
        dks[j * qk + i] = s;
      }
      for (int i = lane; mine && i < v_dim; i += KEYS) {
        float s = dvs[j * v_dim + i];
        for (int t = from; t < to; t++) s = __fmaf_rn(ps[j * KEYS + t], gs[t * (v_dim + 1) + i], s);
        dvs[j * v_dim + i] = s;
      }
    }
  __syncthreads();
  int64_t t = j0 + j;
  for (int i = lane; mine && i < own; i += KEYS) dk[t * k_row + (int64_t)kv * k_head + i] = dks[j * qk + i];
  for (int i = lane; mine && i < shared_dim; i += KEYS)
    shared_sums[(t * kv_heads + kv) * shared_dim + i] = dks[j * qk + own + i];
  for (int i = lane; mine && i < v_dim; i += KEYS) dv[t * v_row + (int64_t)kv * v_head + i] = dvs[j * v_dim + i];
}

// The shared part's gradient: the heads' added in order.
extern "C" __global__ void attention_shared(const float *shared_sums, float *d_shared, int shared_row, int kv_heads,
                                            int shared_dim, int64_t n) {
  int64_t at = thread_index();
  if (at >= n) return;
  int64_t t = at / shared_dim, i = at % shared_dim;
  float s = 0.0f;
  for (int kv = 0; kv < kv_heads; kv++) s += shared_sums[(t * kv_heads + kv) * shared_dim + i];
  d_shared[t * shared_row + i] = s;
}
