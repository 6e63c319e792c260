#include "attention.h"
#ifdef AMPERE
#include "attention/ampere.cu"
#include "attention/sums.cu"
#else
#include "attention/hopper_backward.cu"
#include "attention/sums.cu"
#endif
template <class KQ, class KV>
struct Run {
  KQ kq;
  KV kv;
  int bytes_q, bytes_kv, BQ;
};
struct Grads {
  Buf dq, dkv, dsh;
  BufF parts;
  Grads(const Problem &p)
      : dq((size_t)p.T * p.qs, false),
        dkv((size_t)p.T * p.ks, false),
        dsh((size_t)p.T * p.ss, false),
        parts((size_t)(p.H / p.G) * p.T * std::max(1, p.DK - p.OWN)) {}
};
template <class R>
void backward(const R &r, const Problem &p, const Buf &out, const Buf &dout, const float *lse, Grads &g) {
  BufF delta((size_t)p.H * p.T);
  int n = p.H * p.DV;
  auto a = p.args<AttentionArgs>();
  emu::launch({(unsigned)(p.T * p.H + 7) / 8}, {256}, 16,
              [&] { attention_delta_bf16(out.p, dout.p, delta.p, p.T, p.H, p.DV); });
#ifdef AMPERE
#define ROWS p.q.p, p.kv.p, p.sh.p, p.kv.p, dout.p, p.qs, p.ks, p.ss, p.ks, n
  unsigned tiles = p.tiles(AT) + 1;
  emu::launch({(unsigned)p.H, tiles}, {128}, r.bytes_q,
              [&] { r.kq(ROWS, lse, delta.p, g.dq.p, p.qs, FLAT_ATTENTION(a)); });
  emu::launch({(unsigned)(p.H / p.G), tiles}, {128}, r.bytes_kv,
              [&] { r.kv(ROWS, lse, delta.p, g.dkv.p, g.dkv.p, p.ks, p.ks, g.parts.p, FLAT_ATTENTION(a)); });
#else
  auto maps = [&](int bq, int bk, auto f) {
    f(map2d(p.q.p, p.T, p.qs, p.qs, 64, bq), map2d(p.kv.p, p.T, p.ks, p.ks, 64, bk),
      map2d(p.sh.p, p.T, p.ss, p.ss, 64, bk), map2d(dout.p, p.T, n, n, 64, bq));
  };
  unsigned tiles = p.tiles(128) + 1;
  int len = p.H * p.T, stride = (len + 6) / 4 * 4;
  BufF lses((size_t)4 * stride), deltas((size_t)4 * stride);
  unsigned shifts = (stride + 255) / 256;
  emu::launch({shifts}, {256}, 16, [&] { attention_shift(lse, lses.p, len, stride); });
  emu::launch({shifts}, {256}, 16, [&] { attention_shift(delta.p, deltas.p, len, stride); });
  auto stats = [&](const float *of) { return map2d(of, 4, 2 * stride, 2 * stride, 64, 1); };
  maps(128, 64, [&](TensorMap q, TensorMap k, TensorMap s, TensorMap d) {
    emu::launch({(unsigned)p.H, tiles}, {384}, r.bytes_q,
                [&] { r.kq(q, k, s, k, d, lse, delta.p, g.dq.p, p.qs, FLAT_ATTENTION(a)); });
  });
  maps(r.BQ, 128, [&](TensorMap q, TensorMap k, TensorMap s, TensorMap d) {
    emu::launch({(unsigned)(p.H / p.G), tiles}, {384}, r.bytes_kv, [&] {
      r.kv(q, k, s, k, d, stats(lses.p), stats(deltas.p), g.dkv.p, g.dkv.p, p.ks, p.ks, g.parts.p, FLAT_ATTENTION(a));
    });
  });
#endif
  int w = p.DK - p.OWN;
  if (w)
    emu::launch({(unsigned)(p.T * w + 255) / 256}, {256}, 16,
                [&] { attention_shared_bf16(g.parts.p, g.dsh.p, p.T, p.H / p.G, w, 16, p.ss); });
}
template <int DK, int OWN, int DV, int BQ, class KQ, class KV>
void test(const char *name, KQ kq, KV kv, int H, int G, std::vector<int> starts) {
#ifdef AMPERE
  Run<KQ, KV> r{kq, kv, Backward80<DK, DV>::Q_BYTES, Backward80<DK, DV>::KV_BYTES, BQ};
#else
  Run<KQ, KV> r{kq, kv, BackwardQ<DK, DV>::BYTES, BackwardKv<DK, DV, BQ>::BYTES, BQ};
#endif
  Problem p(DK, OWN, DV, H, G, starts);
  std::vector<double> o, l, dq, dk, ds, dv;
  p.forward(o, l);
  Buf out(o.size(), false), dout(o.size());
  for (size_t i = 0; i < o.size(); i++) out.p[i] = f32_bf16(o[i]);
  BufF lse(l.size());
  for (size_t i = 0; i < l.size(); i++) lse[i] = l[i];
  p.backward(dout, o, l, dq, dk, ds, dv);
  Grads g(p);
  std::vector<char> first;
  bool same = true;
  std::vector<bf16> all(g.dq.n + g.dkv.n + g.dsh.n, 0x7fff);
  same = orders(8, all.data(), all.size() * 2, [&] {
    memset(g.dq.p, 0xff, g.dq.n * 2);
    memset(g.dkv.p, 0xff, g.dkv.n * 2);
    memset(g.dsh.p, 0xff, g.dsh.n * 2);
    backward(r, p, out, dout, lse.p, g);
    memcpy(all.data(), g.dq.p, g.dq.n * 2);
    memcpy(all.data() + g.dq.n, g.dkv.p, g.dkv.n * 2);
    memcpy(all.data() + g.dq.n + g.dkv.n, g.dsh.p, g.dsh.n * 2);
  });
  Err eq, ek, es, ev;
  int HK = H / G, W = DK - OWN;
  for (int t = 0; t < p.T; t++) {
    for (int h = 0; h < H; h++)
      for (int i = 0; i < DK; i++) eq.add(g.dq[(size_t)t * p.qs + 8 + h * DK + i], dq[((size_t)t * H + h) * DK + i]);
    for (int h = 0; h < HK; h++) {
      for (int i = 0; i < OWN; i++)
        ek.add(g.dkv[(size_t)t * p.ks + h * (OWN + DV) + i], dk[((size_t)t * HK + h) * OWN + i]);
      for (int i = 0; i < DV; i++)
        ev.add(g.dkv[(size_t)t * p.ks + h * (OWN + DV) + OWN + i], dv[((size_t)t * HK + h) * DV + i]);
    }
    for (int i = 0; i < W; i++) es.add(g.dsh[(size_t)t * p.ss + 16 + i], ds[(size_t)t * W + i]);
  }
  bool alone = true;
  for (size_t s = 0; s + 1 < starts.size(); s++)
    if (starts[s + 1] > starts[s]) {
      int n = starts[s + 1] - starts[s], s0 = starts[s];
      Problem one(DK, OWN, DV, H, G, {0, n});
      memcpy(one.q.p, p.q.p + (size_t)s0 * p.qs, (size_t)n * p.qs * 2);
      memcpy(one.kv.p, p.kv.p + (size_t)s0 * p.ks, (size_t)n * p.ks * 2);
      memcpy(one.sh.p, p.sh.p + (size_t)s0 * p.ss, (size_t)n * p.ss * 2);
      Buf o1((size_t)n * H * DV, false), d1((size_t)n * H * DV, false);
      memcpy(o1.p, out.p + (size_t)s0 * H * DV, o1.n * 2);
      memcpy(d1.p, dout.p + (size_t)s0 * H * DV, o1.n * 2);
      BufF l1((size_t)H * n);
      for (int h = 0; h < H; h++)
        for (int t = 0; t < n; t++) l1[h * n + t] = lse[(size_t)h * p.T + s0 + t];
      Grads g1(one);
      memset(g1.dq.p, 0xff, g1.dq.n * 2);
      memset(g1.dkv.p, 0xff, g1.dkv.n * 2);
      memset(g1.dsh.p, 0xff, g1.dsh.n * 2);
      backward(r, one, o1, d1, l1.p, g1);
      if (memcmp(g1.dq.p, g.dq.p + (size_t)s0 * p.qs, g1.dq.n * 2) ||
          memcmp(g1.dkv.p, g.dkv.p + (size_t)s0 * p.ks, g1.dkv.n * 2) ||
          (W && memcmp(g1.dsh.p, g.dsh.p + (size_t)s0 * p.ss, g1.dsh.n * 2)))
        alone = false;
    }
  printf("%-10s H %d/%d: dq %.1e, dk %.1e, dshared %.1e, dv %.1e, orders %s, packed or alone %s\n", name, H, HK,
         eq.rel(), ek.rel(), es.rel(), ev.rel(), same ? "equal" : "DIFFER", alone ? "equal" : "DIFFER");
  check(eq.rel() <= 1e-2, "dq");
  check(ek.rel() <= 1e-2, "dk");
  check(es.rel() <= 1e-2, "dshared");
  check(ev.rel() <= 1e-2, "dv");
  check(same, "orders");
  check(alone, "alone");
}
#ifdef AMPERE
#define K(name) attention80_dq_##name, attention80_dkv_##name
#define AT_A_TIME 32
#else
#define K(name) attention_dq_##name, attention_dkv_##name
#define AT_A_TIME 64
#endif
int main() {
  std::vector<int> s = {0, 1, 1, 75, 76, 240};
  test<64, 64, 64, 64>("64", K(64), 4, 2, s);
  test<128, 128, 128, AT_A_TIME>("128", K(128), 2, 2, s);
  test<192, 128, 128, 32>("192/128", K(192_128), 2, 1, s);
  test<64, 64, 64, 64>("64 edges", K(64), 2, 2, {0, 128, 255, 319, 448, 449});
  return done("backward");
}
