// RMSNorm and SwiGLU in bf16 against plain loops.
#include "common.h"
#include "rows_bf16.cu"
#include "products/runs.cu"
static unsigned blocks(int rows, int d) { return (rows * ((d + 7) / 8) + 255) / 256; }
static void norm(int T, int d, std::vector<int> starts, std::vector<std::vector<int>> cuts) {
  Buf x((size_t)T * d), dy((size_t)T * d), y((size_t)T * d, false), dx((size_t)T * d);
  BufF w(d), rstd(T);
  for (int i = 0; i < d; i++) w[i] = 1 + 0.3f * rnd();
  std::vector<bf16> dx0(dx.p, dx.p + dx.n);
  float eps = 1e-6f;
  int warps = d <= 2048 ? 1 : 2, wide = d % 8 == 0;
  unsigned grid = (T * warps + 7) / 8;
  bool same = orders(8, y.p, y.n * 2, [&] {
    emu::launch({grid}, {256}, 32, [&] { rms_norm_bf16(x.p, w.p, eps, y.p, rstd.p, T, d, warps, wide); });
  });
  same &= orders(8, dx.p, dx.n * 2, [&] {
    emu::launch({grid}, {256}, 32, [&] { rms_norm_dx_bf16(dy.p, x.p, w.p, rstd.p, dx.p, T, d, warps, wide, 1); });
  });
  std::vector<std::vector<float>> dws;
  for (auto &cut : cuts) {
    BufF dw(d);
    bool go = false;
    for (size_t c = 0; c + 1 < cut.size(); c++) {
      int s0 = cut[c], s1 = cut[c + 1], r0 = starts[s0];
      std::vector<uint32_t> begins;
      for (int s = s0; s < s1; s++)
        for (int r = starts[s]; r < starts[s + 1]; r += 64) begins.push_back(r - r0);
      int groups = begins.size();
      begins.push_back(starts[s1] - r0);
      BufF parts((size_t)(groups + 1) * d);
      if (groups)
        emu::launch({blocks(groups, d)}, {256}, 16, [&] {
          // Number by number: a part of a tensor need not begin at a multiple of 16 bytes.
          rms_norm_dw_parts_bf16(dy.p + (size_t)r0 * d, x.p + (size_t)r0 * d, rstd.p + r0, begins.data(), parts.p, d, 0,
                                 groups * ((d + 7) / 8));
        });
      emu::launch({(unsigned)(d + 31) / 32}, {256}, 16384, [&] { chain_parts(parts.p, dw.p, groups, d, go); });
      go = true;
    }
    dws.emplace_back(dw.p, dw.p + d);
  }
  bool equal = true;
  for (auto &v : dws)
    if (memcmp(v.data(), dws[0].data(), d * 4)) equal = false;
  Err ey, ex, ew;
  std::vector<double> dw(d, 0);
  for (int t = 0; t < T; t++) {
    double s = 0, m = 0;
    for (int i = 0; i < d; i++) s += (double)x[(size_t)t * d + i] * x[(size_t)t * d + i];
    double r = 1 / sqrt(s / d + eps);
    for (int i = 0; i < d; i++) {
      size_t at = (size_t)t * d + i;
      ey.add(y[at], x[at] * r * w[i]);
      m += dy[at] * w[i] * x[at] * r / d;
      dw[i] += dy[at] * x[at] * r;
    }
    for (int i = 0; i < d; i++) {
      size_t at = (size_t)t * d + i;
      ex.add(dx[at], bf16_f32(dx0[at]) + (dy[at] * w[i] - x[at] * r * m) * r);
    }
  }
  for (int i = 0; i < d; i++) ew.add(dws[0][i], dw[i]);
  printf("rms_norm %d x %d: y %.1e, dx %.1e, dw %.1e, orders %s, cuts %s\n", T, d, ey.rel(), ex.rel(), ew.rel(),
         same ? "equal" : "DIFFER", equal ? "equal" : "DIFFER");
  check(ey.rel() <= 1e-2 && ex.rel() <= 1e-2 && ew.rel() <= 1e-5, "norm");
  check(same && equal, "bits");
}
static void runs() {
  int T = 50, E = 4, K = 2;
  std::vector<int> starts = {0, 13, 13, 14, 50}, offsets = {0}, rows;
  int seqs = 4;
  for (int e = 0; e < E; e++) {
    if (e != 2)
      for (int t = 0; t < T; t++)
        if ((t * 7 + e * 3) % 4 < K) rows.push_back(t);
    offsets.push_back(rows.size());
  }
  std::vector<int> rs(E * seqs + 1, -1), pr(E + 1, -1);
  emu::launch({1}, {256}, 16,
              [&] { expert_runs(offsets.data(), rows.data(), starts.data(), rs.data(), pr.data(), E, seqs); });
  bool ok = rs[E * seqs] == (int)rows.size();
  for (int e = 0; e < E; e++) {
    ok &= pr[e] == e * seqs && rs[e * seqs] == offsets[e];
    for (int s = 0; s < seqs; s++)
      for (int i = rs[e * seqs + s]; i < rs[e * seqs + s + 1]; i++)
        ok &= i >= offsets[e] && i < offsets[e + 1] && rows[i] >= starts[s] && rows[i] < starts[s + 1];
  }
  ok &= pr[E] == E * seqs;
  int d = 24, n = rows.size();
  Buf x((size_t)T * d), y((size_t)n * d, false);
  emu::launch({blocks(n, d)}, {256}, 16,
              [&] { gather_bf16(x.p, (const uint32_t *)rows.data(), y.p, d, 1, n * d / 8); });
  for (int i = 0; i < n * d; i++) ok &= y.p[i] == x.p[rows[i / d] * d + i % d];
  check(ok, "runs");
}
int main() {
  runs();
  norm(5, 1030, {0, 5}, {{0, 1}});
  norm(1, 2, {0, 1}, {{0, 1}});
  norm(9, 2056, {0, 9}, {{0, 1}});
  norm(200, 72, {0, 70, 71, 71, 200}, {{0, 4}, {0, 1, 2, 3, 4}, {0, 2, 4}});
  long n = 5002;
  Buf g(n, true, 3), u(n), dy(n), y(n, false), dg(n, false), du(n, false);
  bool same =
      orders(8, y.p, n * 2,
             [&] { emu::launch({(unsigned)(n + 2047) / 2048}, {256}, 16, [&] { swiglu_bf16(g.p, u.p, y.p, n); }); }) &
      orders(8, dg.p, n * 2, [&] {
        emu::launch({(unsigned)(n + 2047) / 2048}, {256}, 16,
                    [&] { swiglu_backward_bf16(dy.p, g.p, u.p, dg.p, du.p, n); });
      });
  Err ey, eg, eu;
  for (long i = 0; i < n; i++) {
    double s = 1 / (1 + exp(-(double)g[i]));
    ey.add(y[i], g[i] * s * u[i]);
    eu.add(du[i], dy[i] * g[i] * s);
    eg.add(dg[i], dy[i] * u[i] * s * (1 + g[i] * (1 - s)));
  }
  printf("swiglu: y %.1e, dgate %.1e, dup %.1e, orders %s\n", ey.rel(), eg.rel(), eu.rel(), same ? "equal" : "DIFFER");
  check(ey.rel() <= 1e-2 && eg.rel() <= 1e-2 && eu.rel() <= 1e-2 && same, "swiglu");
  return done("rows");
}
