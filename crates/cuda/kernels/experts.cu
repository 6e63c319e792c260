// Routing, the order of the slots, and what joins the experts' results. crates/kernels/src/router.rs has the formulas;
// sums are to the bits of crates/kernels/src/reference/router.rs and experts.rs. A warp works on a token.
#include "prelude.cuh"
#include "math.cuh"
#include "sums.cuh"

__device__ __forceinline__ float key_of(float x) { return x != x ? least() : x; }

// Whether element i is among the `count` greatest of those with a place in `open` (null: all); of equals the first.
__device__ __forceinline__ bool among_greatest(const float *values, const int *open, int size, int n, int i,
                                               int count) {
  float mine = key_of(values[i]);
  int before = 0;
  for (int j = 0; j < n; j++) {
    if (open && !open[j / size]) continue;
    float other = key_of(values[j]);
    before += other > mine || (other == mine && j < i);
  }
  return before < count;
}

// Σ x[i] of E elements in shared memory, by the first and by the last sixteen lanes alike.
__device__ __forceinline__ float total_of(const float *x, int e, int lane) {
  float s = 0.0f;
  for (int i = lane % 16; i < e; i += 16) s += x[i];
  return sum_tree(s);
}

// A group's score: the sum of its two greatest finite-or-∞ values (sigmoid), or the greatest (softmax).
__device__ __forceinline__ float group_score(const float *biased, int size, bool two) {
  int best = -1, second = -1;
  for (int i = 0; i < size; i++)
    if (best < 0 || key_of(biased[i]) > key_of(biased[best])) best = i;
  for (int i = 0; two && i < size; i++)
    if (i != best && (second < 0 || key_of(biased[i]) > key_of(biased[second]))) second = i;
  float a = key_of(biased[best]), b = second < 0 ? least() : key_of(biased[second]);
  return b > least() ? a + b : a;
}

// Writes the places where `chosen` says so, in ascending order.
template <class F>
__device__ __forceinline__ void list(int n, int lane, uint32_t *to, F chosen) {
  int count = 0;
  for (int base = 0; base < n; base += 32) {
    bool is = base + lane < n && chosen(base + lane);
    unsigned bits = __ballot_sync(~0u, is);
    if (is) to[count + __popc(bits & ((1u << lane) - 1))] = base + lane;
    count += __popc(bits);
  }
  __syncwarp();
}

extern "C" __global__ void route(const float *logits, const float *bias, float *scores, uint32_t *chosen,
                                 float *weights, int tokens, int e, int top_k, int groups, int top_groups, int sigmoid,
                                 int normalize, float scale) {
  SMEM(shared);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, size = e / groups;
  int64_t t = (int64_t)blockIdx.x * (blockDim.x / 32) + warp;
  if (t >= tokens) return;
  float *s = (float *)shared + warp * (2 * e + 2 * groups), *biased = s + e, *of_group = biased + e;
  int *open = (int *)(of_group + groups);
  const float *l = logits + t * e;
  float max = least(), sum = 1.0f;
  for (int i = lane; i < e; i += 32) max = greater(max, l[i]);
  for (int half = 16; half; half /= 2) max = greater(max, __shfl_xor_sync(~0u, max, half));
  for (int i = lane; i < e; i += 32) s[i] = sigmoid ? sigmoid_of(l[i]) : exp_of(l[i] - max);
  __syncwarp();
  if (!sigmoid) sum = total_of(s, e, lane);
  __syncwarp();
  for (int i = lane; i < e; i += 32) {
    if (!sigmoid) s[i] = s[i] / sum;
    biased[i] = s[i] + (bias ? bias[i] : 0.0f);
    scores[t * e + i] = s[i];
  }
  __syncwarp();
  for (int g = lane; g < groups; g += 32) of_group[g] = group_score(biased + g * size, size, sigmoid);
  __syncwarp();
  for (int g = lane; g < groups; g += 32) open[g] = among_greatest(of_group, 0, 1, groups, g, top_groups);
  __syncwarp();
  uint32_t *mine = chosen + t * top_k;
  list(e, lane, mine, [=](int i) { return open[i / size] && among_greatest(biased, open, size, e, i, top_k); });
  float all = 0.0f;
  for (int j = 0; j < top_k; j++) all += s[mine[j]];
  all += 1e-20f;
  for (int j = lane; j < top_k; j += 32)
    weights[t * top_k + j] = normalize ? s[mine[j]] / all * scale : s[mine[j]] * scale;
}

extern "C" __global__ void route_backward(const float *scores, const uint32_t *chosen, const float *dweights,
                                          const float *dscores, float *dlogits, int tokens, int e, int top_k,
                                          int sigmoid, int normalize, float scale) {
  SMEM(shared);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t t = (int64_t)blockIdx.x * (blockDim.x / 32) + warp;
  if (t >= tokens) return;
  float *ds = (float *)shared + warp * e;
  const float *s = scores + t * e, *dw = dweights + t * top_k;
  const uint32_t *mine = chosen + t * top_k;
  for (int i = lane; i < e; i += 32) ds[i] = dscores ? dscores[t * e + i] : 0.0f;
  __syncwarp();
  float sum = 0.0f, mean = 0.0f;
  for (int j = 0; j < top_k; j++) sum += s[mine[j]];
  sum += 1e-20f;
  for (int j = 0; j < top_k; j++) mean = __fmaf_rn(s[mine[j]], dw[j], mean);
  mean /= sum;
  for (int j = lane; j < top_k; j += 32) ds[mine[j]] += (normalize ? (dw[j] - mean) / sum : dw[j]) * scale;
  __syncwarp();
  float product = 0.0f;
  for (int i = lane % 16; i < e; i += 16) product = __fmaf_rn(ds[i], s[i], product);
  product = sum_tree(product);
  for (int i = lane; i < e; i += 32)
    dlogits[t * e + i] = sigmoid ? ds[i] * (s[i] * (1.0f - s[i])) : (ds[i] - product) * s[i];
}

// How many choices are expert blockIdx.x.
extern "C" __global__ void dispatch_count(const uint32_t *chosen, uint32_t *counts, int choices) {
  SMEM(shared);
  uint32_t *of_warp = (uint32_t *)shared, count = 0;
  for (int c = threadIdx.x; c < choices; c += blockDim.x) count += chosen[c] == blockIdx.x;
  for (int half = 16; half; half /= 2) count += __shfl_xor_sync(~0u, count, half);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    count = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) count += of_warp[w];
    counts[blockIdx.x] = count;
  }
}

// offsets[E + 1], and tiles of up to `tile` slots of one expert each, three numbers a tile, −1 behind the last.
extern "C" __global__ void dispatch_offsets(const uint32_t *counts, uint32_t *offsets, int *tiles, int e, int tile,
                                            int tiles_max) {
  SMEM(shared);
  int *begins = (int *)shared;
  if (threadIdx.x == 0) {
    uint32_t offset = 0;
    int at = 0;
    for (int i = 0; i < e; i++) {
      offsets[i] = offset;
      begins[i] = at;
      offset += counts[i];
      at += (counts[i] + tile - 1) / tile;
    }
    offsets[e] = offset;
    begins[e] = at;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < e; i += blockDim.x)
    for (int at = begins[i]; at < begins[i + 1]; at++) {
      int first = offsets[i] + (at - begins[i]) * tile, end = offsets[i] + counts[i];
      tiles[3 * at] = i;
      tiles[3 * at + 1] = first;
      tiles[3 * at + 2] = min(first + tile, end);
    }
  for (int at = begins[e] + threadIdx.x; at < tiles_max; at += blockDim.x) tiles[3 * at] = -1;
}

// rows[S] and slots[T·K]: the choices of expert blockIdx.x in their order.
extern "C" __global__ void dispatch_fill(const uint32_t *chosen, const uint32_t *offsets, uint32_t *rows,
                                         uint32_t *slots, int choices, int top_k) {
  SMEM(shared);
  uint32_t *of_warp = (uint32_t *)shared, next = offsets[blockIdx.x];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int base = 0; base < choices; base += blockDim.x) {
    int c = base + threadIdx.x;
    bool is = c < choices && chosen[c] == blockIdx.x;
    unsigned bits = __ballot_sync(~0u, is);
    __syncthreads();
    if (lane == 0) of_warp[warp] = __popc(bits);
    __syncthreads();
    uint32_t slot = next + __popc(bits & ((1u << lane) - 1));
    for (int w = 0; w < warps; w++) {
      if (w < warp) slot += of_warp[w];
      next += of_warp[w];
    }
    if (is) {
      rows[slot] = c / top_k;
      slots[c] = slot;
    }
  }
}

// y[t] = base[t] + Σ_k weights[t, k] · h[slot(t, k)], a chain.
extern "C" __global__ void combine(const float *h, const float *weights, const uint32_t *slots, const float *base,
                                   float *y, int top_k, int d, int64_t n) {
  int64_t at = thread_index();
  if (at >= n) return;
  int64_t t = at / d, i = at % d;
  float s = base ? base[at] : 0.0f;
  for (int64_t c = t * top_k; c < (t + 1) * top_k; c++) s = __fmaf_rn(h[(int64_t)slots[c] * d + i], weights[c], s);
  y[at] = s;
}

// dh[slot] = dy[t]·weight, dweights = dy[t]·h[slot]. Half a warp a choice.
extern "C" __global__ void combine_backward(const float *dy, const float *h, const float *weights,
                                            const uint32_t *slots, float *dh, float *dweights, int top_k, int d,
                                            int choices) {
  int64_t c = thread_index() / 16;
  int lane = threadIdx.x % 16;
  bool in = c < choices;
  int64_t slot = in ? slots[c] : 0;
  const float *of_dy = dy + (in ? c / top_k : 0) * d;
  float s = dot_of_lanes(of_dy, h + slot * d, in ? d : 0, lane);
  if (!in) return;
  if (lane == 0) dweights[c] = s;
  for (int i = lane; i < d; i += 16) dh[slot * d + i] = of_dy[i] * weights[c];
}

// dx[t] = [dx[t]] + Σ_k dslots[slot(t, k)], a chain.
extern "C" __global__ void gather_slots(const float *dslots, const uint32_t *slots, float *dx, int top_k, int d,
                                        int go_on, int64_t n) {
  int64_t at = thread_index();
  if (at >= n) return;
  int64_t t = at / d, i = at % d;
  float s = go_on ? dx[at] : 0.0f;
  for (int64_t c = t * top_k; c < (t + 1) * top_k; c++) s += dslots[(int64_t)slots[c] * d + i];
  dx[at] = s;
}

// Of sigmoid scores: which K are greatest, and their sum over all experts.
extern "C" __global__ void balance_tokens(const float *scores, uint32_t *counted, float *totals, int tokens, int e,
                                          int top_k) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t t = (int64_t)blockIdx.x * (blockDim.x / 32) + warp;
  if (t >= tokens) return;
  const float *s = scores + t * e;
  list(e, lane, counted + t * top_k, [=](int i) { return among_greatest(s, 0, 1, e, i, top_k); });
  float total = total_of(s, e, lane);
  if (lane == 0) totals[t] = total;
}

// Of each sequence and expert, chains over the tokens: how often it counts, E/(K·tokens) each, and its mean share of
// the scores. `totals` is null where a token's scores have the sum 1. A thread an expert of a sequence.
extern "C" __global__ void balance_sums(const float *scores, const uint32_t *counted, const float *totals,
                                        const uint32_t *starts, float *shares, float *means, int e, int top_k,
                                        int64_t n) {
  int64_t at = thread_index();
  if (at >= n) return;
  int64_t sequence = at / e;
  int i = at % e;
  float share = 0.0f, mean = 0.0f, tokens = (float)(starts[sequence + 1] - starts[sequence]);
  for (int64_t t = starts[sequence]; t < starts[sequence + 1]; t++) {
    for (int j = 0; j < top_k; j++)
      if (counted[t * top_k + j] == (uint32_t)i) share += 1.0f;
    mean += totals ? scores[t * e + i] / totals[t] : scores[t * e + i] / 1.0f;
  }
  if (tokens > 0.0f) {
    share *= (float)e / ((float)top_k * tokens);
    mean /= tokens;
  }
  shares[at] = share;
  means[at] = mean;
}

// The loss of each sequence: shares · means. Half a warp a sequence.
extern "C" __global__ void balance_losses(const float *shares, const float *means, float *losses, int e,
                                          int sequences) {
  int64_t s = thread_index() / 16;
  int lane = threadIdx.x % 16;
  bool in = s < sequences;
  float loss = dot_of_lanes(shares + (in ? s : 0) * e, means + (in ? s : 0) * e, in ? e : 0, lane);
  if (in && lane == 0) losses[s] = loss;
}

// dscores of the losses times `coefficient`. Half a warp a token.
extern "C" __global__ void balance_backward(const float *scores, const float *shares, const uint32_t *starts,
                                            int sequences, float coefficient, float *dscores, int tokens, int e,
                                            int sigmoid) {
  int64_t t = thread_index() / 16;
  int lane = threadIdx.x % 16;
  bool in = t < tokens;
  int sequence = in ? sequence_of(starts, sequences, t) : 0;
  const float *of = shares + (int64_t)sequence * e, *s = scores + (in ? t : 0) * e;
  float product = dot_of_lanes(of, s, in ? e : 0, lane), total = 0.0f;
  for (int i = lane; i < (in ? e : 0); i += 16) total += s[i];
  total = sum_tree(total);
  if (!in) return;
  float mean = 0.0f, factor = coefficient / (float)(starts[sequence + 1] - starts[sequence]);
  if (sigmoid) {
    mean = product / total;
    factor /= total;
  }
  for (int i = lane; i < e; i += 16) dscores[t * e + i] = (of[i] - mean) * factor;
}
