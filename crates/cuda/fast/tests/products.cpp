// Products on the emulator against plain loops.
#include "common.h"
#ifdef AMPERE
#include "products/ampere.cu"
constexpr int WIDTHS = 1;
#else
#include "products/hopper.cu"
constexpr int WIDTHS = 2;
#endif
static int ORDERS = 8;
enum Kind { Y, DX, DW };
static const char *names[] = {"y", "dx", "dw"};
struct Case {
  Kind kind;
  int m, n, k;
  bool f32, wide, go_on;
  std::vector<int> offsets, part_runs;
  const int *gather = nullptr;
  int gather_rows = 0;
};
// m, n: of out (of a part in dw); k: terms (Y, DX). a, b as the kernels have them.
static void launch(const Case &c, const bf16 *a, const bf16 *b, void *out, const int *offsets, const int *runs,
                   int parts, int rows, int stride_a, int stride_b) {
  int go = c.go_on;
#ifdef AMPERE
  auto run = [&](auto kernel, auto *o) {
    emu::launch({3}, {256}, AMPERE_BYTES, [&] {
      kernel(a, b, o, offsets, runs, parts, rows, c.gather, c.m, c.n, c.k, stride_a, stride_b, c.n, go);
    });
  };
  if (c.kind == Y) {
    if (c.f32) run(product80_y_f32, (float *)out);
    else run(product80_y, (bf16 *)out);
  } else if (c.kind == DX) {
    if (c.f32) run(product80_dx_f32, (float *)out);
    else run(product80_dx, (bf16 *)out);
  } else run(product80_dw, (float *)out);
#else
  int bn = c.wide ? 256 : 128;
  TensorMap ma, mb;
  if (c.kind == Y) {
    ma = map2d(a, rows, c.k, stride_a, 64, 128);
    mb = map2d(b, parts * c.n, c.k, stride_b, 64, bn);
  } else if (c.kind == DX) {
    ma = map2d(a, rows, c.k, stride_a, 64, 128);
    mb = map2d(b, parts * c.k, c.n, stride_b, 64, 64);
  } else {
    ma = map2d(a, rows, c.m, stride_a, 64, 64);
    mb = map2d(b, rows, c.n, stride_b, 64, 64);
  }
  auto run = [&](auto kernel, auto *o) {
    int bytes = c.wide ? Ring<256>::BYTES : Ring<128>::BYTES;
    emu::launch({3}, {384}, bytes, [&] { kernel(ma, mb, o, offsets, runs, parts, rows, c.m, c.n, c.k, go); });
  };
  if (c.kind == Y) {
    if (c.f32) {
      c.wide ? run(product_y_256_f32, (float *)out) : run(product_y_128_f32, (float *)out);
    } else c.wide ? run(product_y_256, (bf16 *)out) : run(product_y_128, (bf16 *)out);
  } else if (c.kind == DX) {
    if (c.f32) {
      c.wide ? run(product_dx_256_f32, (float *)out) : run(product_dx_128_f32, (float *)out);
    } else c.wide ? run(product_dx_256, (bf16 *)out) : run(product_dx_128, (bf16 *)out);
  } else c.wide ? run(product_dw_256, (float *)out) : run(product_dw_128, (float *)out);
#endif
}
static void test(const char *name, Case c, int odd = 0) {
  int parts = c.part_runs.size() ? c.part_runs.size() - 1 : c.offsets.size() ? c.offsets.size() - 1 : 1;
  int rows = c.offsets.size() ? c.offsets.back() : c.kind == DW ? c.k : c.m;
  if (c.kind == DW && c.part_runs.size() == 2) parts = 1;
  int sa = (c.kind == DW ? c.m : c.k) + odd, sb = (c.kind == Y ? c.k : c.n) + odd;
  int b_rows = c.kind == Y ? parts * c.n : c.kind == DX ? parts * c.k : rows;
  int a_rows = rows;
  if (c.gather) (c.kind == DW ? b_rows : a_rows) = c.gather_rows;
  Buf a((size_t)a_rows * sa), b((size_t)b_rows * sb);
  size_t out_len = (c.kind == DW ? (size_t)parts * c.m : rows) * c.n;
  std::vector<float> init(out_len);
  for (auto &v : init) v = bf16_f32(f32_bf16(normal()));
  Buf o16(out_len, false);
  BufF o32(out_len);
  bool f32 = c.f32 || c.kind == DW;
  for (size_t i = 0; i < out_len; i++) {
    o16.p[i] = c.go_on ? f32_bf16(init[i]) : 0x7fff;
    o32[i] = c.go_on ? init[i] : NAN;
  }
  void *out = f32 ? (void *)o32.p : o16.p;
  size_t bytes = out_len * (f32 ? 4 : 2);
  const int *off = c.offsets.size() ? c.offsets.data() : nullptr,
            *runs = c.part_runs.size() ? c.part_runs.data() : nullptr;
  bool same = orders(ORDERS, out, bytes, [&] { launch(c, a.p, b.p, out, off, runs, parts, rows, sa, sb); });
  Err e;
  for (int p = 0; p < parts; p++) {
    int r0 = 0, r1 = rows;
    if (c.kind != DW && off) r0 = off[p], r1 = off[p + 1];
    if (c.kind == DW && off) {
      r0 = off[runs ? runs[p] : p];
      r1 = off[runs ? runs[p + 1] : p + 1];
    }
    int i0 = c.kind == DW ? 0 : r0, i1 = c.kind == DW ? c.m : r1;
    for (int i = i0; i < i1; i++)
      for (int j = 0; j < c.n; j++) {
        size_t at = ((c.kind == DW ? (size_t)p * c.m : 0) + i) * c.n + j;
        double s = c.go_on ? init[at] : 0;
        if (c.kind == DW)
          for (int r = r0; r < r1; r++)
            s += (double)a[(size_t)r * sa + i] * b[(size_t)(c.gather ? c.gather[r] : r) * sb + j];
        else
          for (int l = 0; l < c.k; l++)
            s += (double)a[(size_t)(c.gather ? c.gather[i] : i) * sa + l] *
                 (c.kind == Y ? b[((size_t)p * c.n + j) * sb + l] : b[((size_t)p * c.k + l) * sb + j]);
        e.add(f32 ? o32[at] : o16[at], s);
      }
  }
  bool ok = e.rel() <= (f32 ? 1e-5 : 1e-2);
  printf("%-26s %-2s m %3d n %3d k %3d %s %s: error %.1e, bits of %d orders %s\n", name, names[c.kind], c.m, c.n, c.k,
         f32 ? "f32 " : "bf16", c.wide ? "256" : "128", e.rel(), ORDERS, same ? "equal" : "DIFFER");
  check(ok, std::string(name) + " error");
  check(same, std::string(name) + " bits");
  check(o16.clean() && o32.clean(), std::string(name) + " writes behind its result");
}
#ifndef AMPERE
// Narrow tiles: the bits of the wide ones.
static void narrow() {
  bool same = true;
  Err e;
  for (int f32 = 0; f32 < 2; f32++)
    for (int M : {1, 7, 64, 90}) {
      int N = 136, K = 1000, E = 2;
      Buf x((size_t)2 * M * K), w((size_t)E * N * K), y((size_t)2 * M * N, false), z((size_t)2 * M * N, false);
      BufF yf((size_t)2 * M * N), zf((size_t)2 * M * N);
      std::vector<int> off = {0, M, 2 * M};
      Case c{Y, 0, N, K, f32 == 1, true, false, off, {}};
      launch(c, x.p, w.p, f32 ? (void *)zf.p : z.p, off.data(), nullptr, E, 2 * M, K, K);
      TensorMap a = map2d(x.p, 2 * M, K, K, 64, 64), b = map2d(w.p, E * N, K, K, 64, 32);
      const int *none = nullptr;
      same &= orders(ORDERS, f32 ? (void *)yf.p : y.p, y.n * (f32 ? 4 : 2), [&] {
        emu::launch({3}, {256}, Ring<32, 1>::BYTES, [&] {
          if (f32) product_y_32_f32(a, b, yf.p, off.data(), none, E, 2 * M, 0, N, K, 0);
          else product_y_32(a, b, y.p, off.data(), none, E, 2 * M, 0, N, K, 0);
        });
      });
      if (f32 ? memcmp(yf.p, zf.p, yf.n * 4) : memcmp(y.p, z.p, y.n * 2)) same = false;
    }
  printf("narrow tiles have the bits of wide ones: %s\n", same ? "equal" : "DIFFER");
  check(same, "narrow tiles");
}
#endif
// A row alone, and in any batch, in any part: the same bits.
static void rows_alone(bool wide) {
  int M = 150, N = 136, K = 200;
  Buf x((size_t)M * K), w((size_t)N * K), y((size_t)M * N, false), one(N, false);
  Case c{Y, M, N, K, false, wide, false, {}, {}};
  emu::seed = 77;
  launch(c, x.p, w.p, y.p, nullptr, nullptr, 1, M, K, K);
  bool same = true;
  for (int r : {0, 1, 63, 64, 127, 128, 149}) {
    c.m = 1;
    launch(c, x.p + (size_t)r * K, w.p, one.p, nullptr, nullptr, 1, 1, K, K);
    if (memcmp(one.p, y.p + (size_t)r * N, N * 2)) same = false;
  }
  Buf dx((size_t)M * K, false), dy((size_t)M * N), one2(K, false);
  Case d{DX, M, K, N, false, wide, false, {}, {}};
  launch(d, dy.p, w.p, dx.p, nullptr, nullptr, 1, M, N, K);
  for (int r : {0, 5, 64, 129, 149}) {
    d.m = 1;
    launch(d, dy.p + (size_t)r * N, w.p, one2.p, nullptr, nullptr, 1, 1, N, K);
    if (memcmp(one2.p, dx.p + (size_t)r * K, K * 2)) same = false;
  }
  printf("a row alone and in a batch (%s): %s\n", wide ? "256" : "128", same ? "equal bits" : "DIFFER");
  check(same, "rows alone");
}
// dw of two experts over five sequences: at once, and in micro-batches of any sequences.
static void micro_batches(bool wide) {
  int N = 72, K = 136, E = 2, seqs = 5;
  int len[2][5] = {{70, 0, 13, 64, 1}, {5, 129, 0, 16, 33}};
  // slots sorted by (expert, sequence, token); runs = (expert, sequence)
  auto part = [&](const std::vector<int> &of, std::vector<int> &off, std::vector<int> &runs, std::vector<int> &rows) {
    off = {0};
    runs = {0};
    rows.clear();
    int base = 0;
    for (int e = 0; e < E; e++) {
      for (int s = 0, at = base; s < seqs; at += len[e][s++])
        if (std::count(of.begin(), of.end(), s)) {
          for (int i = 0; i < len[e][s]; i++) rows.push_back(at + i);
          off.push_back(rows.size());
        }
      for (int s = 0; s < seqs; s++) base += len[e][s];
      runs.push_back(off.size() - 1);
    }
  };
  int S = 0;
  for (auto &l : len)
    for (int v : l) S += v;
  Buf dy((size_t)S * N), x((size_t)S * K);
  std::vector<std::vector<float>> results;
  bool same = true;
  std::vector<std::vector<std::vector<int>>> cuts = {
      {{0, 1, 2, 3, 4}}, {{0}, {1}, {2}, {3}, {4}}, {{0, 1}, {2, 3, 4}}, {{0}, {1, 2, 3}, {4}}};
  for (auto &cut : cuts) {
    BufF dw((size_t)E * N * K);
    bool go = false;
    for (auto &mb : cut) {
      std::vector<int> off, runs, rows;
      part(mb, off, runs, rows);
      Buf a(rows.size() * N + 8, false), b(rows.size() * K + 8, false);
      for (size_t i = 0; i < rows.size(); i++) {
        memcpy(a.p + i * N, dy.p + (size_t)rows[i] * N, N * 2);
        memcpy(b.p + i * K, x.p + (size_t)rows[i] * K, K * 2);
      }
      Case c{DW, N, K, 0, true, wide, go, off, runs};
      launch(c, a.p, b.p, dw.p, off.data(), runs.data(), E, rows.size(), N, K);
      go = true;
    }
    results.emplace_back(dw.p, dw.p + dw.n);
  }
  for (auto &r : results)
    if (memcmp(r.data(), results[0].data(), r.size() * 4)) same = false;
  Err e;
  int base = 0;
  for (int x_ = 0; x_ < E; x_++) {
    int n = 0;
    for (int v : len[x_]) n += v;
    for (int i = 0; i < N; i++)
      for (int j = 0; j < K; j++) {
        double s = 0;
        for (int r = base; r < base + n; r++) s += (double)dy[(size_t)r * N + i] * x[(size_t)r * K + j];
        e.add(results[0][((size_t)x_ * N + i) * K + j], s);
      }
    base += n;
  }
  printf("dw, 4 cuts into micro-batches (%s): error %.1e, %s\n", wide ? "256" : "128", e.rel(),
         same ? "equal bits" : "DIFFER");
  check(same, "micro-batches bits");
  check(e.rel() <= 1e-5, "micro-batches error");
}
// One run of 200 rows: cut at a multiple of 64 the chain is the same, cut elsewhere it is not.
static void cuts_inside() {
  int N = 72, K = 40, R = 200;
  Buf dy((size_t)R * N), x((size_t)R * K);
  auto with = [&](int cut) {
    BufF dw((size_t)N * K);
    Case c{DW, N, K, 0, true, false, false, {}, {}};
    for (int r : {0, cut}) {
      int n = r ? R - cut : cut ? cut : R;
      launch(c, dy.p + (size_t)r * N, x.p + (size_t)r * K, dw.p, nullptr, nullptr, 1, n, N, K);
      c.go_on = true;
      if (!cut) break;
    }
    return std::vector<float>(dw.p, dw.p + dw.n);
  };
  auto whole = with(0);
  bool same = with(64) == whole && with(128) == whole, differs = with(70) != whole;
  printf("dw, cut inside a run: at 64 and 128 %s, at 70 %s\n", same ? "equal bits" : "DIFFER",
         differs ? "other bits, as it must be" : "equal: the emulator does not see steps");
  check(same && differs, "cuts inside a run");
}
int main(int argc, char **argv) {
  if (argc > 1) ORDERS = atoi(argv[1]);
  auto t0 = std::chrono::steady_clock::now();
  std::vector<int> off = {0, 0, 130, 131, 131, 200, 200};
  for (int wide = 0; wide < WIDTHS; wide++) {
    bool w = wide;
    for (int f32 = 0; f32 < 2; f32++)
      for (int go = 0; go < 2; go++) {
        test("dense", {Y, 130 + 70 * go, 264, 136, f32 == 1, w, go == 1, {}, {}});
        test("dense", {DX, 70, 136, 264, f32 == 1, w, go == 1, {}, {}});
      }
    test("n of 2 mod 8", {Y, 70, 74, 72, false, w, false, {}, {}});
    test("n of 2 mod 8", {Y, 0, 74, 72, false, w, false, off, {}});
    test("one row", {Y, 1, 72, 8, false, w, false, {}, {}});
    test("one row", {DX, 1, 8, 72, false, w, false, {}, {}});
    test("long chain", {Y, 20, 40, 1000, false, w, false, {}, {}});
    test("rows with a stride", {Y, 20, 40, 104, false, w, false, {}, {}}, 8);
    test("dense, 1 run", {DW, 136, 72, 200, true, w, false, {}, {}});
    test("dense, goes on", {DW, 72, 264, 77, true, w, true, {}, {}});
    test("dense, 3 sequences", {DW, 72, 136, 0, true, w, false, {0, 77, 78, 270}, {0, 3}});
    test("experts", {Y, 0, 136, 136, false, w, false, off, {}});
    test("experts", {DX, 0, 136, 72, false, w, false, off, {}});
    test("experts", {DW, 72, 136, 0, true, w, false, off, {}});
    test("experts go on", {DW, 136, 72, 0, true, w, true, off, {}});
    test("experts go on", {DX, 0, 72, 136, true, w, true, off, {}});
    rows_alone(w);
    micro_batches(w);
    if (!w) cuts_inside();
  }
#ifndef AMPERE
  narrow();
#else
  std::vector<int> gather;
  for (int i = 0; i < 200; i++) gather.push_back(i * 37 % 61);
  Case g{Y, 0, 136, 72, false, false, false, off, {}};
  g.gather = gather.data();
  g.gather_rows = 61;
  test("experts, gathered", g);
  Case g2{DW, 72, 136, 0, true, false, false, off, {}};
  g2.gather = gather.data();
  g2.gather_rows = 61;
  test("experts, gathered", g2);
  test("odd sizes", {Y, 35, 37, 41, false, false, false, {}, {}});
  test("odd sizes", {DX, 35, 37, 41, true, false, true, {}, {}});
  test("odd sizes", {DW, 35, 37, 41, true, false, false, {}, {}});
  test("odd sizes", {Y, 0, 33, 129, false, false, false, off, {}});
#endif
  printf("%.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count());
  return done("products");
}
