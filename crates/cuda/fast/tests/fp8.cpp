// Products of e4m3 on the emulator: the quantisers to their bytes, the products against plain loops over the quantised
// numbers and against bf16.
#include "common.h"
#include "products/fp8.cu"
struct Q {
  std::vector<uint8_t> store;
  uint8_t *p;
  std::vector<float> s;
  Q(size_t n, size_t m) : store(n + 64, 0x7f), s(m, NAN) {
    p = (uint8_t *)(((uintptr_t)store.data() + 63) & ~(uintptr_t)63);
  }
};
static int up(int x, int m) { return (x + m - 1) / m * m; }
static void products(int N, int K, std::vector<int> off, bool f32) {
  int E = off.size() - 1, R = off.back(), KB = (K + 127) / 128, NB = (N + 127) / 128, ldq = up(K, 16);
  float amax;
  (void)amax;
  Buf x((size_t)R * K), w((size_t)E * N * K);
  Q qx((size_t)R * ldq, (size_t)KB * R), qw((size_t)E * N * K, (size_t)E * NB * KB),
      qt((size_t)E * N * K, (size_t)E * NB * KB);
  emu::launch({(unsigned)(R * KB + 7) / 8}, {256}, 16, [&] { fp8_rows(x.p, qx.p, qx.s.data(), R, K, K, ldq); });
  emu::launch({(unsigned)KB, (unsigned)NB, (unsigned)E}, {256}, 32 + 128 * 132,
              [&] { fp8_blocks(w.p, qw.p, qt.p, qw.s.data(), qt.s.data(), N, K); });
  bool exact = true;
  Err q;
  for (int r = 0; r < R; r++)
    for (int b = 0; b < KB; b++) {
      float m = 0;
      for (int c = b * 128; c < std::min(K, b * 128 + 128); c++) m = std::max(m, fabsf(x[(size_t)r * K + c]));
      float s = std::max(m, 1e-4f) / 448;
      if (qx.s[(size_t)b * R + r] != s) exact = false;
      for (int c = b * 128; c < std::min(K, b * 128 + 128); c++) {
        if (qx.p[(size_t)r * ldq + c] != f32_e4m3(x[(size_t)r * K + c] / s)) exact = false;
        q.add(e4m3_f32(qx.p[(size_t)r * ldq + c]) * s, x[(size_t)r * K + c]);
      }
    }
  for (int e = 0; e < E; e++)
    for (int i = 0; i < N; i++)
      for (int j = 0; j < K; j++) {
        size_t a = (size_t)e * N * K;
        if (qw.p[a + (size_t)i * K + j] != qt.p[a + (size_t)j * N + i]) exact = false;
        float s = qw.s[(size_t)e * NB * KB + i / 128 * KB + j / 128];
        if (s != qt.s[(size_t)e * NB * KB + j / 128 * NB + i / 128]) exact = false;
        q.add(e4m3_f32(qw.p[a + (size_t)i * K + j]) * s, w[a + (size_t)i * K + j]);
      }
  check(exact, "quantised");
  check(q.rel() < 0.04, "quantising error");
  for (int tr = 0; tr < 2; tr++) {  // y = x wᵀ; and with the transpose, dx = dy w (its x has N columns)
    int n = tr ? K : N, k = tr ? N : K, kb = tr ? NB : KB, nb = tr ? KB : NB, lda = up(k, 16);
    Buf dy((size_t)R * k);
    const Buf &in = tr ? dy : x;
    Q qd((size_t)R * lda, (size_t)kb * R);
    emu::launch({(unsigned)(R * kb + 7) / 8}, {256}, 16, [&] { fp8_rows(in.p, qd.p, qd.s.data(), R, k, k, lda); });
    const Q &b = tr ? qt : qw;
    Buf y((size_t)R * n, false);
    BufF yf((size_t)R * n);
    TensorMap ma = map2d(qd.p, R, k, lda, 128, 128, 1), mb = map2d(b.p, E * n, k, k, 128, 128, 1);
    bool same = orders(8, f32 ? (void *)yf.p : y.p, (size_t)R * n * (f32 ? 4 : 2), [&] {
      if (f32)
        emu::launch({3}, {384}, FP8_BYTES,
                    [&] { fp8_y_f32(ma, mb, qd.s.data(), b.s.data(), yf.p, off.data(), E, R, n, k, n); });
      else
        emu::launch({3}, {384}, FP8_BYTES,
                    [&] { fp8_y(ma, mb, qd.s.data(), b.s.data(), y.p, off.data(), E, R, n, k, n); });
    });
    Err e8, e16;
    for (int e = 0; e < E; e++)
      for (int r = off[e]; r < off[e + 1]; r++)
        for (int c = 0; c < n; c++) {
          double s8 = 0, s16 = 0;
          for (int l = 0; l < k; l++) {
            s8 += (double)e4m3_f32(qd.p[(size_t)r * lda + l]) * qd.s[(size_t)(l / 128) * R + r] *
                  e4m3_f32(b.p[((size_t)e * n + c) * k + l]) * b.s[((size_t)e * nb + c / 128) * kb + l / 128];
            s16 +=
                (double)in[(size_t)r * k + l] * (tr ? w[((size_t)e * N + l) * K + c] : w[((size_t)e * N + c) * K + l]);
          }
          double got = f32 ? yf[(size_t)r * n + c] : y[(size_t)r * n + c];
          e8.add(got, s8);
          e16.add(got, s16);
        }
    // a row alone
    bool alone = true;
    for (int e = 0; e < E; e++)
      if (off[e + 1] > off[e]) {
        int r = off[e + 1] - 1;
        std::vector<int> o1(E + 1, 0);
        for (int i = e + 1; i <= E; i++) o1[i] = 1;
        Buf y1(n, false);
        BufF y2(n);
        std::vector<float> s1(kb);
        for (int i = 0; i < kb; i++) s1[i] = qd.s[(size_t)i * R + r];
        TensorMap m1 = map2d(qd.p + (size_t)r * lda, 1, k, lda, 128, 128, 1);
        if (f32) {
          emu::launch({2}, {384}, FP8_BYTES,
                      [&] { fp8_y_f32(m1, mb, s1.data(), b.s.data(), y2.p, o1.data(), E, 1, n, k, n); });
          if (memcmp(y2.p, yf.p + (size_t)r * n, n * 4)) alone = false;
        } else {
          emu::launch({2}, {384}, FP8_BYTES,
                      [&] { fp8_y(m1, mb, s1.data(), b.s.data(), y1.p, o1.data(), E, 1, n, k, n); });
          if (memcmp(y1.p, y.p + (size_t)r * n, n * 2)) alone = false;
        }
      }
    printf(
        "fp8 %s n %d k %d, %d parts: error %.1e of the quantised product, %.1e of bf16's, orders %s, a row alone %s\n",
        tr ? "dx" : "y ", n, k, E, e8.rel(), e16.rel(), same ? "equal" : "DIFFER", alone ? "equal" : "DIFFERS");
    check(e8.rel() <= (f32 ? 1e-5 : 1e-2), "product");
    check(e16.rel() < 0.06, "product of bf16");
    check(same, "orders");
    check(alone, "alone");
  }
}
static void weights(int M, int N) {
  int E = 2;
  std::vector<std::vector<int>> len = {{130, 0, 5}, {1, 128, 60}};
  int R = 324;
  Buf dy((size_t)R * M), x((size_t)R * N);
  std::vector<std::vector<float>> results;
  Err e16;
  bool same = true;
  for (auto &cut : std::vector<std::vector<std::vector<int>>>{{{0, 1, 2}}, {{0}, {1}, {2}}, {{0, 1}, {2}}}) {
    BufF dw((size_t)E * M * N);
    bool go = false;
    for (auto &of : cut) {
      std::vector<int> st = {0}, pr = {0}, rows;
      int base = 0;
      for (int e = 0; e < E; e++) {
        for (int s = 0; s < 3; s++) {
          bool in = std::count(of.begin(), of.end(), s);
          if (in) {
            for (int i = 0; i < len[e][s]; i++) rows.push_back(base + i);
            st.push_back(rows.size());
          }
          base += len[e][s];
        }
        pr.push_back(st.size() - 1);
      }
      int runs = st.size() - 1, steps = 0;
      for (int r = 0; r < runs; r++) steps += (st[r + 1] - st[r] + 127) / 128;
      int ldt = (steps + 1) * 128;
      Buf a(rows.size() * M + 8, false), b(rows.size() * N + 8, false);
      for (size_t i = 0; i < rows.size(); i++) {
        memcpy(a.p + i * M, dy.p + (size_t)rows[i] * M, M * 2);
        memcpy(b.p + i * N, x.p + (size_t)rows[i] * N, N * 2);
      }
      Q qa((size_t)M * ldt, (size_t)(steps + 1) * M), qb((size_t)N * ldt, (size_t)(steps + 1) * N);
      std::vector<int> so(E + 1);
      emu::launch({(unsigned)(M + 127) / 128, (unsigned)steps + 1}, {128}, 16,
                  [&] { fp8_columns(a.p, qa.p, qa.s.data(), st.data(), runs, M, M, ldt); });
      emu::launch({(unsigned)(N + 127) / 128, (unsigned)steps + 1}, {128}, 16,
                  [&] { fp8_columns(b.p, qb.p, qb.s.data(), st.data(), runs, N, N, ldt); });
      emu::launch({1}, {256}, 16, [&] { fp8_steps(st.data(), pr.data(), so.data(), E); });
      TensorMap ma = map2d(qa.p, M, ldt, ldt, 128, 128, 1), mb = map2d(qb.p, N, ldt, ldt, 128, 128, 1);
      same &= orders(cut.size() == 1 ? 8 : 1, dw.p, dw.n * 4, [&] {
        emu::launch({3}, {384}, FP8_BYTES,
                    [&] { fp8_dw(ma, mb, qa.s.data(), qb.s.data(), dw.p, so.data(), E, M, N, N, go); });
      });
      go = true;
    }
    results.emplace_back(dw.p, dw.p + dw.n);
  }
  bool equal = true;
  for (auto &r : results)
    if (memcmp(r.data(), results[0].data(), r.size() * 4)) equal = false;
  int base = 0;
  for (int e = 0; e < E; e++) {
    int n = len[e][0] + len[e][1] + len[e][2];
    for (int i = 0; i < M; i++)
      for (int j = 0; j < N; j++) {
        double s = 0;
        for (int r = base; r < base + n; r++) s += (double)dy[(size_t)r * M + i] * x[(size_t)r * N + j];
        e16.add(results[0][((size_t)e * M + i) * N + j], s);
      }
    base += n;
  }
  printf("fp8 dw %d x %d: error %.1e of bf16's, orders %s, cuts %s\n", M, N, e16.rel(), same ? "equal" : "DIFFER",
         equal ? "equal" : "DIFFER");
  check(e16.rel() < 0.06, "dw");
  check(same && equal, "bits");
}
int main() {
  products(144, 1040, {0, 0, 130, 131, 131, 170}, false);
  products(256, 144, {0, 70}, true);
  weights(136, 80);
  return done("fp8");
}
