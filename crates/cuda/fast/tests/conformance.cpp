// The probes of wgmma, and what the law of the same bits takes for granted of it. The same checks are for a card.
#include "common.h"
#include "conformance/wgmma.cu"
using Probe = void (*)(TensorMap, TensorMap, const float *, float *);
struct Named8 {
  Probe f;
  int n, ta, tb;
};
static std::vector<float> run(Probe f, int n, int ta, int tb, const std::vector<float> &a, const std::vector<float> &b,
                              const std::vector<float> &c) {  // a[64][64], b[n][64]: row, k
  int w = (n + 63) / 64 * 64;
  Buf x(64 * 64, false), y((size_t)64 * w, false);
  for (size_t i = 0; i < y.n; i++) y.p[i] = 0;
  for (int i = 0; i < 64; i++)
    for (int k = 0; k < 64; k++) x.p[ta ? k * 64 + i : i * 64 + k] = f32_bf16(a[i * 64 + k]);
  for (int j = 0; j < n; j++)
    for (int k = 0; k < 64; k++) y.p[tb ? (size_t)k * w + j : (size_t)j * 64 + k] = f32_bf16(b[j * 64 + k]);
  TensorMap ma = map2d(x.p, 64, 64, 64, 64, 64), mb = tb ? map2d(y.p, 64, w, w, 64, 64) : map2d(y.p, n, 64, 64, 64, n);
  std::vector<float> out((size_t)64 * n, NAN);
  emu::launch({1}, {128}, PROBE_BYTES, [&] { f(ma, mb, c.data(), out.data()); });
  return out;
}
int main() {
  std::vector<Named8> all;
#define N(n)                                          \
  all.push_back({(Probe)probe_ss_##n##_00, n, 0, 0}); \
  all.push_back({(Probe)probe_ss_##n##_01, n, 0, 1}); \
  all.push_back({(Probe)probe_ss_##n##_11, n, 1, 1}); \
  all.push_back({(Probe)probe_rs_##n, n, 0, 1});
  N(32) N(64) N(128) N(192) N(256) std::vector<float> a(64 * 64), b(256 * 64), c(64 * 256);
  for (auto &v : a) v = bf16_f32(f32_bf16(normal()));
  for (auto &v : b) v = bf16_f32(f32_bf16(normal()));
  for (auto &v : c) v = normal();
  std::vector<float> first;
  bool means = true, same = true, places = true, zeros = true;
  for (auto &p : all) {
    std::vector<float> cn((size_t)64 * p.n);
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < p.n; j++) cn[i * p.n + j] = c[i * 256 + j];
    auto d = run(p.f, p.n, p.ta, p.tb, a, b, cn);
    Err e;
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < p.n; j++) {
        double s = c[i * 256 + j];
        for (int k = 0; k < 64; k++) s += (double)a[i * 64 + k] * b[j * 64 + k];
        e.add(d[i * p.n + j], s);
      }
    if (!(e.rel() < 1e-5)) {
      means = false;
      printf("probe %d %d%d: %.1e\n", p.n, p.ta, p.tb, e.rel());
    }
    if (first.empty()) first = d;  // 32 columns
    for (int i = 0; i < 64; i++)
      if (memcmp(&d[i * p.n], &first[i * 32], 32 * 4)) same = false;
    // rows and columns elsewhere
    std::vector<float> a2(64 * 64), b2(256 * 64), c2((size_t)64 * p.n);
    auto pi = [](int i) { return (i * 37 + 11) % 64; };
    auto pj = [&](int j) { return (j * 5 + 3) % p.n; };
    for (int i = 0; i < 64; i++)
      for (int k = 0; k < 64; k++) a2[pi(i) * 64 + k] = a[i * 64 + k];
    for (int j = 0; j < p.n; j++)
      for (int k = 0; k < 64; k++) b2[pj(j) * 64 + k] = b[j * 64 + k];
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < p.n; j++) c2[pi(i) * p.n + pj(j)] = cn[i * p.n + j];
    auto d2 = run(p.f, p.n, p.ta, p.tb, a2, b2, c2);
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < p.n; j++)
        if (memcmp(&d[i * p.n + j], &d2[pi(i) * p.n + pj(j)], 4)) places = false;
    // a's terms from 20 on are 0: b's do not matter, and whole steps of zeros leave c
    a2 = a;
    b2 = b;
    for (int i = 0; i < 64; i++)
      for (int k = 20; k < 64; k++) a2[i * 64 + k] = 0;
    for (int j = 0; j < 256; j++)
      for (int k = 20; k < 64; k++) b2[j * 64 + k] = 1e30f * b[j * 64 + k];
    auto z1 = run(p.f, p.n, p.ta, p.tb, a2, b, cn), z2 = run(p.f, p.n, p.ta, p.tb, a2, b2, cn);
    if (memcmp(z1.data(), z2.data(), z1.size() * 4)) zeros = false;
    std::fill(a2.begin(), a2.end(), 0.0f);
    z1 = run(p.f, p.n, p.ta, p.tb, a2, b2, cn);
    if (memcmp(z1.data(), cn.data(), z1.size() * 4)) zeros = false;
  }
  printf(
      "%zu probes: means what it says %s; the same bits for all N and operands %s; at all places %s; zeros add nothing "
      "%s\n",
      all.size(), means ? "yes" : "NO", same ? "yes" : "NO", places ? "yes" : "NO", zeros ? "yes" : "NO");
  check(means, "means");
  check(same, "same");
  check(places, "places");
  check(zeros, "zeros");
  {  // e4m3: all finite values go through
    std::vector<uint8_t> sx(64 * 128 + 64), sy(128 * 128 + 64);
    uint8_t *x = (uint8_t *)(((uintptr_t)sx.data() + 63) & ~(uintptr_t)63),
            *y = (uint8_t *)(((uintptr_t)sy.data() + 63) & ~(uintptr_t)63);
    for (int i = 0; i < 64 * 128; i++) {
      x[i] = (i * 29 + i / 128) & 255;
      if ((x[i] & 127) == 127) x[i] = 1;
    }
    for (int i = 0; i < 128 * 128; i++) {
      y[i] = (i * 53 + i / 128 * 7) & 255;
      if ((y[i] & 127) == 127) y[i] = 2;
    }
    BufF c8(64 * 128, 1.0f), out(64 * 128);
    TensorMap ma = map2d(x, 64, 128, 128, 128, 64, 1), mb = map2d(y, 128, 128, 128, 128, 128, 1);
    emu::launch({1}, {128}, PROBE_BYTES, [&] { probe_fp8(ma, mb, c8.p, out.p); });
    Err e;
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < 128; j++) {
        double s = 1;
        for (int k = 0; k < 128; k++) s += (double)e4m3_f32(x[i * 128 + k]) * e4m3_f32(y[j * 128 + k]);
        e.add(out[i * 128 + j], s);
      }
    printf("probe_fp8: %.1e\n", e.rel());
    check(e.rel() < 1e-3, "fp8");
    bool nearest = true;
    for (int i = 0; i < 20000; i++) {
      float v = normal() * (i % 3 ? 3 : 0.01f);
      double best = 1e9;
      for (int q = 0; q < 256; q++)
        if ((q & 127) != 127) best = std::min(best, fabs((double)e4m3_f32(q) - v));
      if (fabs((double)e4m3_f32(f32_e4m3(v)) - v) > best) nearest = false;
    }
    check(nearest, "e4m3 nearest");
  }
  return done("conformance");
}
