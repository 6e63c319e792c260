// Head with cross-entropy: log-probabilities and gradients against plain loops; rows alone, orders, parts of the
// vocabulary.
#include "common.h"
#ifdef AMPERE
#include "products/ampere.cu"
#include "head/ampere.cu"
#include "head/join.cu"
constexpr int WIDTH = 32;
#else
#include "products/hopper.cu"
#include "head/hopper.cu"
#include "head/join.cu"
constexpr int WIDTH = 128;
#endif
static void stats(const bf16 *x, const bf16 *w, int T, int V, int D, const int *targets, float *logp, float *lse) {
  int count = (V + WIDTH - 1) / WIDTH;
  std::vector<float2> parts((size_t)count * T, float2{NAN, NAN});
  std::vector<float> tl(T, 0.0f);
  float *pp = (float *)parts.data();
#ifdef AMPERE
  emu::launch({3}, {256}, AMPERE_BYTES, [&] { head80_stats(x, w, T, V, D, D, D, pp, tl.data(), targets); });
#else
  TensorMap mx = map2d(x, T, D, D, 64, 128), mw = map2d(w, V, D, D, 64, 128);
  emu::launch({3}, {384}, Ring<128>::BYTES, [&] { head_stats(mx, mw, T, V, D, pp, tl.data(), targets); });
#endif
  emu::launch({(unsigned)(T + 255) / 256}, {256}, 16, [&] { head_join(pp, tl.data(), targets, logp, lse, T, count); });
}
int main() {
  int T = 150, V = 300, D = 136, PART = 128;
  Buf x((size_t)T * D, true, 0.5), w((size_t)V * D, true, 0.5);
  std::vector<int> targets(T);
  std::vector<float> coef(T);
  for (int t = 0; t < T; t++) {
    rnd();
    targets[t] = t % 7 == 3 ? IGNORE : (int)((rng >> 33) % V);
    coef[t] = 0.5f + 0.1f * (t % 5);
  }
  targets[0] = V - 1;
  targets[1] = 0;
  BufF out(2 * T);
  bool same = orders(8, out.p, 2 * T * 4, [&] { stats(x.p, w.p, T, V, D, targets.data(), out.p, out.p + T); });
  std::vector<double> p((size_t)T * V);
  Err e;
  for (int t = 0; t < T; t++) {
    double m = -1e30, l = 0;
    for (int j = 0; j < V; j++) {
      double s = 0;
      for (int i = 0; i < D; i++) s += (double)x[(size_t)t * D + i] * w[(size_t)j * D + i];
      p[(size_t)t * V + j] = s;
      m = std::max(m, s);
    }
    for (int j = 0; j < V; j++) l += exp(p[(size_t)t * V + j] - m);
    e.add(out[t], targets[t] == IGNORE ? 0.0 : p[(size_t)t * V + targets[t]] - m - log(l));
    for (int j = 0; j < V; j++)
      p[(size_t)t * V + j] =
          (exp(p[(size_t)t * V + j] - m) / l - (j == targets[t])) * (targets[t] == IGNORE ? 0 : coef[t]);
  }
  bool alone = true;
  for (int t : {0, 1, 64, 100, 149}) {
    BufF one(2);
    stats(x.p + (size_t)t * D, w.p, 1, V, D, &targets[t], one.p, one.p + 1);
    if (one[0] != out[t] || one[1] != out[T + t]) alone = false;
  }
  printf("logp: error %.1e, orders %s, a row alone %s\n", e.rel(), same ? "equal" : "DIFFER",
         alone ? "equal" : "DIFFERS");
  check(e.rel() <= 1e-5, "logp");
  check(same, "orders");
  check(alone, "alone");
  BufF dx((size_t)T * D), dw((size_t)V * D);
  std::vector<float> both((size_t)(T + V) * D);
  same = orders(8, both.data(), both.size() * 4, [&] {
    for (int v0 = 0; v0 < V; v0 += PART) {
      int n = std::min(PART, V - v0);
      Buf dl((size_t)T * PART, false);
#define TO dl.p, out.p + T, coef.data(), targets.data(), v0, PART
#define ONE nullptr, nullptr, 1, T
      const bf16 *wp = w.p + (size_t)v0 * D;
#ifdef AMPERE
      emu::launch({3}, {256}, AMPERE_BYTES, [&] { head80_dlogits(x.p, wp, T, n, D, D, D, TO); });
      emu::launch({3}, {256}, AMPERE_BYTES,
                  [&] { product80_dx_f32(dl.p, wp, dx.p, ONE, nullptr, T, D, n, PART, D, D, v0 != 0); });
      emu::launch({3}, {256}, AMPERE_BYTES,
                  [&] { product80_dw(dl.p, x.p, dw.p + (size_t)v0 * D, ONE, nullptr, n, D, 0, PART, D, D, 0); });
#else
      TensorMap mx = map2d(x.p, T, D, D, 64, 128), mw = map2d(wp, n, D, D, 64, 128), md = map2d(dl.p, T, n, PART, 64, 128), mwd = map2d(wp, n, D, D, 64, 64), mdt = map2d(dl.p, T, n, PART, 64, 64), mxt = map2d(x.p, T, D, D, 64, 64);
      emu::launch({3}, {384}, Ring<128>::BYTES, [&] { head_dlogits(mx, mw, T, n, D, TO); });
      emu::launch({3}, {384}, Ring<128>::BYTES, [&] { product_dx_128_f32(md, mwd, dx.p, ONE, T, D, n, v0 != 0); });
      emu::launch({3}, {384}, Ring<128>::BYTES, [&] { product_dw_128(mdt, mxt, dw.p + (size_t)v0 * D, ONE, n, D, 0, 0); });
#endif
    }
    memcpy(both.data(), dx.p, dx.n * 4);
    memcpy(both.data() + dx.n, dw.p, dw.n * 4);
  });
  Err ex, ew;
  for (int i = 0; i < D; i++) {
    for (int t = 0; t < T; t++) {
      double s = 0;
      for (int j = 0; j < V; j++) s += p[(size_t)t * V + j] * w[(size_t)j * D + i];
      ex.add(dx[(size_t)t * D + i], s);
    }
    for (int j = 0; j < V; j++) {
      double s = 0;
      for (int t = 0; t < T; t++) s += p[(size_t)t * V + j] * x[(size_t)t * D + i];
      ew.add(dw[(size_t)j * D + i], s);
    }
  }
  printf("gradients: dx %.1e, dw %.1e, orders %s\n", ex.rel(), ew.rel(), same ? "equal" : "DIFFER");
  check(ex.rel() <= 1e-2, "dx");
  check(ew.rel() <= 1e-2, "dw");
  check(same, "orders");
  return done("head");
}
