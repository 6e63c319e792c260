// Routing, the order of the slots, and what joins the experts' results. crates/kernels/src/router.rs has the formulas;
// sums are to the bits of crates/kernels/src/reference/router.rs and experts.rs. A warp works on a token.
#include "prelude.cuh"
#include "math.cuh"
#include "sums.cuh"

__device__ __forceinline__ float key_of(float x) { return x != x ? least() : x; }

// Whether element i is among the `count` greatest of those whose group of `size` is in `open` (null: all are); of equals
// the first. `keys` are what key_of gives. Only in its own 32 elements does a lane ask which of two equals is the first.
__device__ __forceinline__ bool among_greatest(const float *keys, const int *open, int size, int n, int i, int count) {
  float mine = keys[i];
  int before = 0, base = i / 32 * 32;
  for (int first = 0, g = 0; first < n; first += size, g++) {
    if (open && !open[g]) continue;
    int end = first + size, low = min(end, max(first, base)), high = min(end, max(first, base + 32));
#pragma unroll 8
    for (int j = first; j < low; j++) before += keys[j] >= mine;
#pragma unroll 8
    for (int j = low; j < high; j++) {
      float other = keys[j];
      before += other > mine || (other == mine && j < i);
    }
#pragma unroll 8
    for (int j = high; j < end; j++) before += keys[j] > mine;
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
    biased[i] = key_of(s[i] + (bias ? bias[i] : 0.0f));
    scores[t * e + i] = s[i];
  }
  __syncwarp();
  if (top_groups >= groups) open = 0;
  for (int g = lane; open && g < groups; g += 32) of_group[g] = key_of(group_score(biased + g * size, size, sigmoid));
  __syncwarp();
  for (int g = lane; open && g < groups; g += 32) open[g] = among_greatest(of_group, 0, groups, groups, g, top_groups);
  __syncwarp();
  uint32_t *mine = chosen + t * top_k;
  list(e, lane, mine,
       [=](int i) { return (!open || open[i / size]) && among_greatest(biased, open, open ? size : e, e, i, top_k); });
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

// The lanes whose number is this one's.
__device__ __forceinline__ unsigned peers_of(uint32_t x) {
#ifdef WELS_EMU
  unsigned peers = 0;
  for (int l = 0; l < 32; l++) peers |= (unsigned)(__shfl_sync(~0u, x, l) == x) << l;
  return peers;
#else
  return __match_any_sync(~0u, x);
#endif
}

// A warp's chunk of the choices: calls f(choice, expert, lanes with that expert) for 32 of them at a time. Lanes behind
// the last choice have an expert that there is not.
constexpr int CHUNK = 512;
template <class F>
__device__ __forceinline__ void each_choice(const uint32_t *chosen, int choices, int chunk, F f) {
  constexpr int ROUNDS = CHUNK / 32;
  int first = chunk * CHUNK + threadIdx.x % 32;
  uint32_t experts[ROUNDS];
#pragma unroll
  for (int k = 0; k < ROUNDS; k++) experts[k] = first + k * 32 < choices ? chosen[first + k * 32] : ~0u;
#pragma unroll
  for (int k = 0; k < ROUNDS; k++)
    if (chunk * CHUNK + k * 32 < choices) f(first + k * 32, experts[k], peers_of(experts[k]));
}
__device__ __forceinline__ bool is_first(unsigned lanes) { return __ffs(lanes) - 1 == (int)threadIdx.x % 32; }

// counts[E, chunks]: how many choices of a chunk are each expert. A warp a chunk; E words of shared memory for each.
extern "C" __global__ void dispatch_count(const uint32_t *chosen, uint32_t *counts, int choices, int e, int chunks) {
  SMEM(shared);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunk = blockIdx.x * (blockDim.x / 32) + warp;
  if (chunk >= chunks) return;
  uint32_t *count = (uint32_t *)shared + warp * e;
  for (int i = lane; i < e; i += 32) count[i] = 0;
  __syncwarp();
  each_choice(chosen, choices, chunk, [=](int c, uint32_t expert, unsigned peers) {
    if (c < choices && is_first(peers)) count[expert] += __popc(peers);
    __syncwarp();
  });
  for (int i = lane; i < e; i += 32) counts[(int64_t)i * chunks + chunk] = count[i];
}

// Of expert blockIdx.x: counts become how many choices the chunks before have, totals[E] how many all have.
extern "C" __global__ void dispatch_scan(uint32_t *counts, uint32_t *totals, int chunks) {
  SMEM(shared);
  uint32_t *of_warp = (uint32_t *)shared, *mine = counts + (int64_t)blockIdx.x * chunks, total = 0;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int first = 0; first < chunks; first += blockDim.x) {
    int at = first + threadIdx.x;
    uint32_t count = at < chunks ? mine[at] : 0, sum = count;
    for (int d = 1; d < 32; d *= 2) {
      uint32_t v = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += v;
    }
    __syncthreads();
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    uint32_t before = total + sum - count;
    for (int w = 0; w < warps; w++) {
      if (w < warp) before += of_warp[w];
      total += of_warp[w];
    }
    if (at < chunks) mine[at] = before;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

// offsets[E + 1], and tiles of up to `tile` slots of one expert each, three numbers a tile, −1 behind the last. One
// block; 2·(E + 1) words of shared memory.
extern "C" __global__ void dispatch_offsets(const uint32_t *totals, uint32_t *offsets, int *tiles, int e, int tile,
                                            int tiles_max) {
  SMEM(shared);
  uint32_t *slots = (uint32_t *)shared, *begins = slots + e + 1;
  for (int i = threadIdx.x; i < e; i += blockDim.x) slots[i] = totals[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t offset = 0, at = 0;
    for (int i = 0; i < e; i++) {
      uint32_t count = slots[i];
      slots[i] = offset;
      begins[i] = at;
      offset += count;
      at += (count + tile - 1) / tile;
    }
    slots[e] = offset;
    begins[e] = at;
  }
  __syncthreads();
  for (int i = threadIdx.x; i <= e; i += blockDim.x) offsets[i] = slots[i];
  for (int at = threadIdx.x; at < tiles_max; at += blockDim.x) {
    if (at >= (int)begins[e]) {
      tiles[3 * at] = -1;
      continue;
    }
    int i = sequence_of(begins, e, at), first = slots[i] + (at - begins[i]) * tile;
    tiles[3 * at] = i;
    tiles[3 * at + 1] = first;
    tiles[3 * at + 2] = min(first + tile, (int)slots[i + 1]);
  }
}

// rows[S] and slots[T·K]: the choices of each expert in their order; counts[E, chunks] as dispatch_scan leaves them. As
// dispatch_count.
extern "C" __global__ void dispatch_fill(const uint32_t *chosen, const uint32_t *offsets, const uint32_t *counts,
                                         uint32_t *rows, uint32_t *slots, int choices, int top_k, int e, int chunks) {
  SMEM(shared);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunk = blockIdx.x * (blockDim.x / 32) + warp;
  if (chunk >= chunks) return;
  uint32_t *next = (uint32_t *)shared + warp * e;
  for (int i = lane; i < e; i += 32) next[i] = offsets[i] + counts[(int64_t)i * chunks + chunk];
  __syncwarp();
  each_choice(chosen, choices, chunk, [=](int c, uint32_t expert, unsigned peers) {
    uint32_t slot = c < choices ? next[expert] + __popc(peers & ((1u << lane) - 1)) : 0;
    __syncwarp();
    if (c < choices) {
      if (is_first(peers)) next[expert] += __popc(peers);
      rows[slot] = c / top_k;
      slots[c] = slot;
    }
    __syncwarp();
  });
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

// Of sigmoid scores: which K are greatest, and their sum over all experts. E words of shared memory for each warp.
extern "C" __global__ void balance_tokens(const float *scores, uint32_t *counted, float *totals, int tokens, int e,
                                          int top_k) {
  SMEM(shared);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t t = (int64_t)blockIdx.x * (blockDim.x / 32) + warp;
  if (t >= tokens) return;
  const float *s = scores + t * e;
  float *keys = (float *)shared + warp * e;
  for (int i = lane; i < e; i += 32) keys[i] = key_of(s[i]);
  __syncwarp();
  list(e, lane, counted + t * top_k, [=](int i) { return among_greatest(keys, 0, e, e, i, top_k); });
  float total = total_of(s, e, lane);
  if (lane == 0) totals[t] = total;
}

// Of each sequence and expert: how often it counts, E/(K·tokens) each, and its mean share of the scores, a chain over
// the tokens. `totals` is null where a token's scores have the sum 1. A block of eight warps for 32 experts of a
// sequence: the first adds the shares of a batch while the others, with TURN tokens each, compute those of the next from
// scores that they have asked for a batch before. So a token costs an addition's latency and its load from shared
// memory, some 7 cycles, of which the addition needs 4. 2·BATCH·32 + 32 words of shared memory.
constexpr int TURN = 32, BATCH = 7 * TURN;
extern "C" __global__ void __launch_bounds__(256)
    balance_sums(const float *scores, const uint32_t *counted, const float *totals, const uint32_t *starts,
                 float *shares, float *means, int e, int top_k) {
  SMEM(shared);
  float *batches = (float *)shared, ahead[TURN], total = 1.0f, mean = 0.0f;
  uint32_t *counts = (uint32_t *)(batches + 2 * BATCH * 32);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = (e + 31) / 32, part = blockIdx.x % parts;
  int sequence = blockIdx.x / parts, i = part * 32 + lane, mine = (warp - 1) * TURN;
  int begin = starts[sequence], tokens = (int)starts[sequence + 1] - begin;
  auto load = [&](int first) {  // an expert's scores of TURN tokens, and one token's total
    const float *from = scores + (int64_t)(begin + first) * e + i;
#pragma unroll
    for (int n = 0; n < TURN; n++) ahead[n] = i < e && first + n < tokens ? from[(int64_t)n * e] : 0.0f;
    if (totals) total = first + lane < tokens ? totals[begin + first + lane] : 1.0f;
  };
  auto count = [&](int first) {  // the choices of TURN tokens
    constexpr int LOADS = 8;
    const uint32_t *from = counted + (int64_t)(begin + first) * top_k;
    int choices = min(TURN, tokens - first) * top_k;
    for (int base = lane; base < choices; base += 32 * LOADS) {
      uint32_t expert[LOADS];
#pragma unroll
      for (int k = 0; k < LOADS; k++) expert[k] = base + 32 * k < choices ? from[base + 32 * k] - part * 32 : ~0u;
#pragma unroll
      for (int k = 0; k < LOADS; k++)
        if (expert[k] < 32) atomicAdd(counts + expert[k], 1u);
    }
  };
  if (warp == 0) counts[lane] = 0;
  else load(mine);
  __syncthreads();
  for (int first = 0; first < tokens + BATCH; first += BATCH) {
    float *batch = batches + first / BATCH % 2 * BATCH * 32, *last = batches + (first / BATCH + 1) % 2 * BATCH * 32;
    if (warp == 0) {
      int len = first == 0 ? 0 : min(BATCH, tokens - first + BATCH);
#pragma unroll 16
      for (int n = 0; n < len; n++) mean += last[n * 32 + lane];
    } else if (first < tokens) {
#pragma unroll
      for (int n = 0; n < TURN; n++)
        batch[(mine + n) * 32 + lane] = totals ? ahead[n] / __shfl_sync(~0u, total, n) : ahead[n];
      load(first + BATCH + mine);
      count(first + mine);
    }
    __syncthreads();
  }
  if (warp > 0 || i >= e) return;
  float share = (float)counts[lane];
  if (tokens > 0) {
    share *= (float)e / ((float)top_k * (float)tokens);
    mean /= (float)tokens;
  }
  shares[(int64_t)sequence * e + i] = share;
  means[(int64_t)sequence * e + i] = mean;
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

// y[S, n] += the bias of each slot's expert.
extern "C" __global__ void add_expert_bias(const float *bias, const uint32_t *offsets, float *y, int e, int n,
                                           int64_t len) {
  int64_t i = thread_index();
  if (i >= len) return;
  int64_t slot = i / n;
  int from = 0, to = e;
  while (to - from > 1) {
    int middle = (from + to) / 2;
    if (offsets[middle] <= slot) from = middle;
    else to = middle;
  }
  y[i] += bias[(int64_t)from * n + i % n];
}

// dbias[E, n]: chains over the slots of each expert.
extern "C" __global__ void expert_bias_backward(const float *dy, const uint32_t *offsets, float *dbias, int n,
                                                int goes_on, int64_t len) {
  int64_t i = thread_index();
  if (i >= len) return;
  float sum = goes_on ? dbias[i] : 0.0f;
  for (int64_t slot = offsets[i / n]; slot < offsets[i / n + 1]; slot++) sum += dy[slot * n + i % n];
  dbias[i] = sum;
}
