// Attention of up to eight queries of one sequence over its keys, sixteen at a time: what packed sequences, pages and
// latents have in common.
//
// Scores are chains of fused multiply-adds over the dimensions, times `scale` and with a cap capped; the greatest is found in a first pass
// over the keys; the second has the weights exp(score − max), their sum by sixteen partial sums (a key's place in the
// sequence mod 16) and the fixed tree, and outputs as chains over the keys, multiplied by 1/sum. A row depends on its
// query and the keys of its sequence up to itself: on the nearest `window` of them, itself included. The sink is a score
// without a key: the greatest is also over it, and its weight is added to the sum last; −∞ for none.
#pragma once

constexpr int QUERIES = 8, KEYS = 16;
// The window of attention without one: sums with places in a sequence stay in 32 bits.
constexpr int ALL_KEYS = 1 << 30;

// Shared memory: queries [8][qk], keys [16][qk + 1], values [16][v], sums [8][v], weights [8][16].

struct Attend {
  float *queries, *keys, *values, *sums, *weights;
  int qk, v;
  __device__ __forceinline__ Attend(char *shared, int qk, int v) : qk(qk), v(v) {
    queries = (float *)shared;
    keys = queries + QUERIES * qk;
    values = keys + KEYS * (qk + 1);
    sums = values + KEYS * v;
    weights = sums + QUERIES * v;
  }
};

// Where the first sixteen keys begin that a query at a place of its sequence has to do with.
__device__ __forceinline__ int first_tile(int place, int window) {
  return place + 1 > window ? (place + 1 - window) / KEYS * KEYS : 0;
}

// `query(q, i)`, `key(j, i)` and `value(j, i)` read; query q stands at place `first + q`; `out(q, i, x)` and
// `stats(q, max, 1/sum)` take the results. 128 threads: thread (q, lane) has query q and the keys that are `lane` mod
// 16.
template <class Q, class K, class V, class O, class S>
__device__ __forceinline__ void attend(Attend a, int count, int first, float scale, float cap, int window, float sink,
                                       Q query, K key, V value, O out, S stats) {
  int q = threadIdx.x / KEYS, lane = threadIdx.x % KEYS, qk = a.qk, v = a.v, last = first + q, len = first + count;
  bool mine = q < count;
  for (int at = threadIdx.x; at < count * qk; at += blockDim.x) a.queries[at] = query(at / qk, at % qk);
  for (int at = threadIdx.x; at < QUERIES * v; at += blockDim.x) a.sums[at] = 0.0f;
  float max = least(), sum = 0.0f;
  for (int pass = 0; pass < 2; pass++) {
    for (int j0 = first_tile(first, window); j0 < len; j0 += KEYS) {
      int there = len - j0 < KEYS ? len - j0 : KEYS;
      __syncthreads();
      for (int at = threadIdx.x; at < there * qk; at += blockDim.x)
        a.keys[at / qk * (qk + 1) + at % qk] = key(j0 + at / qk, at % qk);
      if (pass)
        for (int at = threadIdx.x; at < there * v; at += blockDim.x) a.values[at] = value(j0 + at / v, at % v);
      __syncthreads();
      float p = 0.0f;
      if (mine && j0 + lane <= last && last - (j0 + lane) < window) {
        float s = 0.0f;
        for (int i = 0; i < qk; i++) s = __fmaf_rn(a.queries[q * qk + i], a.keys[lane * (qk + 1) + i], s);
        s = capped(s * scale, cap).x;
        if (!pass) max = greater(max, s);
        else sum += p = exp_of(s - max);
      }
      if (!pass) continue;
      a.weights[q * KEYS + lane] = p;
      __syncthreads();
      int seen = last - j0 + 1 < there ? last - j0 + 1 : there;
      for (int i = lane; mine && i < v; i += KEYS) {
        float o = a.sums[q * v + i];
        for (int j = 0; j < seen; j++) o = __fmaf_rn(a.weights[q * KEYS + j], a.values[j * v + i], o);
        a.sums[q * v + i] = o;
      }
    }
    if (!pass) {
      for (int half = 8; half; half /= 2) max = greater(max, __shfl_xor_sync(~0u, max, half));
      max = greater(max, sink);
    }
  }
  float inverse = 1.0f / (sum_tree(sum) + exp_of(sink - max));
  if (!mine) return;
  for (int i = lane; i < v; i += KEYS) out(q, i, a.sums[q * v + i] * inverse);
  if (lane == 0) stats(q, max, inverse);
}
