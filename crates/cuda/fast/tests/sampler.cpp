// The sampler's log-probabilities are the trainer's: a layer with its head, whole sequences with wide tiles against a
// prompt in a chunk and then token by token, two
// sequences together, with narrow tiles and pages.
#include "common.h"
#define SPLIT_TILES 1
#ifdef AMPERE
#include "products/ampere.cu"
#include "attention/ampere.cu"
#include "head/ampere.cu"
#else
#include "products/hopper.cu"
#include "attention/hopper_forward.cu"
#include "attention/hopper_paged.cu"
#include "head/hopper.cu"
#endif
#include "attention/sums.cu"
#include "attention/append.cu"
#include "head/join.cu"
#include "rows_bf16.cu"
constexpr int D = 128, H = 4, G = 2, HD = 64, KV = H / G * HD * 2, V = 200;
struct Weights {
  BufF norm{D};
  Buf q{(size_t)H * HD * D, true, 0.3}, kv{(size_t)KV * D, true, 0.3}, o{(size_t)D * H * HD, true, 0.3},
      head{(size_t)V * D, true, 0.5};
  Weights() {
    for (int i = 0; i < D; i++) norm[i] = 1 + 0.2f * rnd();
  }
};
static void linear(const bf16 *x, int M, const Buf &w, int N, int K, bf16 *y, bool narrow) {
  const int *none = nullptr;
#ifdef AMPERE
  (void)narrow;
  emu::launch({2}, {256}, AMPERE_BYTES, [&] { product80_y(x, w.p, y, none, none, 1, M, none, M, N, K, K, K, N, 0); });
#else
  if (narrow) {
    TensorMap a = map2d(x, M, K, K, 64, 64), b = map2d(w.p, N, K, K, 64, 32);
    emu::launch({2}, {256}, Ring<32, 1>::BYTES, [&] { product_y_32(a, b, y, none, none, 1, M, M, N, K, 0); });
  } else {
    TensorMap a = map2d(x, M, K, K, 64, 128), b = map2d(w.p, N, K, K, 64, 256);
    emu::launch({2}, {384}, Ring<256>::BYTES, [&] { product_y_256(a, b, y, none, none, 1, M, M, N, K, 0); });
  }
#endif
}
static void norm(const bf16 *x, int M, Weights &w, bf16 *y) {
  BufF r(M);
  emu::launch({(unsigned)(M + 7) / 8}, {256}, 32,
              [&] { rms_norm_bf16(x, w.norm.p, 1e-6f, y, r.p, M, D, 1, D % 8 == 0); });
}
// From the attention's output to log-probabilities.
static void rest(const bf16 *x, const bf16 *att, int M, Weights &w, const int *targets, float *logp, bool narrow) {
  Buf o((size_t)M * D, false), h((size_t)M * D, false), n((size_t)M * D, false);
  linear(att, M, w.o, D, H * HD, o.p, narrow);
  for (int i = 0; i < M * D; i++) h.p[i] = f32_bf16(bf16_f32(x[i]) + bf16_f32(o.p[i]));
  norm(h.p, M, w, n.p);
#ifdef AMPERE
  constexpr int W = 32;
#else
  constexpr int W = 128;
#endif
  int count = (V + W - 1) / W;
  std::vector<float> parts((size_t)count * M * 2), tl(M), lse(M);
#ifdef AMPERE
  emu::launch({2}, {256}, AMPERE_BYTES,
              [&] { head80_stats(n.p, w.head.p, M, V, D, D, D, parts.data(), tl.data(), targets); });
#else
  TensorMap a = map2d(n.p, M, D, D, 64, 128), b = map2d(w.head.p, V, D, D, 64, 128);
  emu::launch({2}, {384}, Ring<128>::BYTES, [&] { head_stats(a, b, M, V, D, parts.data(), tl.data(), targets); });
#endif
  emu::launch({(unsigned)(M + 255) / 256}, {256}, 16,
              [&] { head_join(parts.data(), tl.data(), targets, logp, lse.data(), M, count); });
}
int main() {
  Weights w;
  std::vector<int> starts = {0, 140, 265};
  int T = 265, seqs = 2;
  Buf x((size_t)T * D);
  std::vector<int> targets(T);
  for (auto &t : targets) {
    rnd();
    t = (rng >> 33) % V;
  }
  float scale = 0.125f;
  BufF want(T), lse((size_t)H * T);
  Buf n((size_t)T * D, false), q((size_t)T * H * HD, false), kv((size_t)T * KV, false), att((size_t)T * H * HD, false);
  emu::seed = 4711;
  norm(x.p, T, w, n.p);
  linear(n.p, T, w.q, H * HD, D, q.p, false);
  linear(n.p, T, w.kv, KV, D, kv.p, false);
#ifdef AMPERE
  emu::launch({H / G, 20}, {128}, Attend80<HD, HD>::BYTES, [&] {
    attention80_64(q.p, kv.p, kv.p, kv.p, H * HD, KV, KV, KV, att.p, H * HD, lse.p, starts.data(), seqs, T, H, G, 0, HD,
                   0, 2 * HD, 0, HD, 2 * HD, scale);
  });
#else
  TensorMap mq = map2d(q.p, T, H * HD, H * HD, 64, 128), mk = map2d(kv.p, T, KV, KV, 64, 128);
  emu::launch({H, 4}, {384}, Forward<HD, HD>::BYTES, [&] {
    attention_64(mq, mk, mk, mk, att.p, H * HD, lse.p, starts.data(), seqs, T, H, G, 0, HD, 0, 2 * HD, 0, HD, 2 * HD,
                 scale);
  });
#endif
  rest(x.p, att.p, T, w, targets.data(), want.p, false);
  int per = 10;
  long stride = 16 * KV;
  Buf cache((size_t)2 * per * stride, false);
  for (size_t i = 0; i < cache.n; i++) cache.p[i] = 0x7fff;
  std::vector<int> table;
  for (int i = 0; i < 2 * per; i++) table.push_back((i * 7 + 5) % (2 * per));
  std::vector<int> past = {0, 0};
  bool equal = true;
  int compared = 0;
  auto call = [&](std::vector<int> count) {
    std::vector<int> ns = {0, count[0], count[0] + count[1]};
    int M = ns[2];
    Buf xs((size_t)M * D, false), n1((size_t)M * D, false), q1((size_t)M * H * HD, false), kv1((size_t)M * KV, false),
        a1((size_t)M * H * HD, false);
    std::vector<int> t1(M);
    BufF got(M);
    std::vector<int> rows;
    for (int s = 0; s < 2; s++)
      for (int i = 0; i < count[s]; i++) {
        int from = starts[s] + past[s] + i;
        rows.push_back(from);
        memcpy(xs.p + (size_t)(ns[s] + i) * D, x.p + (size_t)from * D, D * 2);
        t1[ns[s] + i] = targets[from];
      }
    norm(xs.p, M, w, n1.p);
    linear(n1.p, M, w.q, H * HD, D, q1.p, M <= 64);
    linear(n1.p, M, w.kv, KV, D, kv1.p, M <= 64);
    for (int part = 0; part < 2; part++)
      emu::launch({(unsigned)(M * (H / G) * HD + 2047) / 2048}, {256}, 16, [&] {
        append_bf16(kv1.p, KV, part * HD, 2 * HD, cache.p, table.data(), per, stride, KV, 2 * HD, part * HD,
                    past.data(), ns.data(), 2, M, H / G, HD);
      });
    BufF po((size_t)2 * M * H * HD), pm((size_t)2 * M * H * 2);
    unsigned tiles = M / 16 + 5;
#define PAGED_ARGS                                                                                                     \
  q1.p, cache.p, a1.p, H *HD, table.data(), per, stride, KV, 2 * HD, 0, HD, 0, past.data(), ns.data(), 2, H, G, 0, HD, \
      H *HD, scale, po.p, pm.p, M
#ifdef AMPERE
    emu::launch({H / G, tiles, 2}, {128}, Attend80<HD, HD>::PAGED_BYTES, [&] { paged80_64(PAGED_ARGS); });
#else
    if (M > 64) emu::launch({H / G, tiles, 2}, {256}, Paged<HD, HD, 2>::BYTES, [&] { paged_chunk_64(PAGED_ARGS); });
    else emu::launch({H / G, tiles, 2}, {128}, Paged<HD, HD, 1>::BYTES, [&] { paged_64(PAGED_ARGS); });
#endif
    emu::launch({(unsigned)(M * H + 7) / 8}, {256}, 16, [&] {
      attention_join(po.p, pm.p, M, H, past.data(), ns.data(), scale, 128 * SPLIT_TILES, HD, a1.p, H * HD, HD);
    });
    rest(xs.p, a1.p, M, w, t1.data(), got.p, M <= 64);
    for (int i = 0; i < M; i++) {
      compared++;
      if (memcmp(&got[i], &want[rows[i]], 4)) equal = false;
    }
    for (int s = 0; s < 2; s++) past[s] += count[s];
  };
  call({123, 0});
  call({1, 100});
  for (int i = 0; i < 12; i++) call({1, 1});
  call({0, 13});
  call({4, 0});
  double sum = 0;
  for (int i = 0; i < T; i++) sum += want[i];
  printf("%d log-probabilities (mean %.3f) of trainer and sampler: %s\n", compared, sum / T,
         equal ? "equal" : "DIFFERENT");
  check(equal && compared == T, "trainer and sampler");
  check(sum == sum, "finite");
  return done("sampler");
}
