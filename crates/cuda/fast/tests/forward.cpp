#include "attention.h"
#ifndef SPLIT_TILES
#define SPLIT_TILES 2
#endif
#ifdef AMPERE
#include "attention/ampere.cu"
#else
#include "attention/hopper_forward.cu"
#endif
#include "launch.h"
template <int DK, int OWN, int DV, class K>
void test(const char *name, K kernel, int H, int G, std::vector<int> starts) {
  Problem p(DK, OWN, DV, H, G, starts);
  Buf out((size_t)p.T * H * DV, false);
  BufF lse((size_t)H * p.T);
  bool same = orders(8, out.p, out.n * 2, [&] { run_forward<DK, DV>(kernel, p, out.p, lse.p); });
  std::vector<double> o, l;
  p.forward(o, l);
  Err e, el;
  for (size_t i = 0; i < o.size(); i++) e.add(out[i], o[i]);
  for (size_t i = 0; i < l.size(); i++) el.add(lse[i], l[i]);
  // each sequence alone has the same bits
  bool alone = true;
  for (size_t s = 0; s + 1 < starts.size(); s++)
    if (starts[s + 1] > starts[s]) {
      int n = starts[s + 1] - starts[s];
      Problem one(DK, OWN, DV, H, G, {0, n});
      memcpy(one.q.p, p.q.p + (size_t)starts[s] * p.qs, (size_t)n * p.qs * 2);
      memcpy(one.kv.p, p.kv.p + (size_t)starts[s] * p.ks, (size_t)n * p.ks * 2);
      memcpy(one.sh.p, p.sh.p + (size_t)starts[s] * p.ss, (size_t)n * p.ss * 2);
      Buf o1((size_t)n * H * DV, false);
      BufF l1((size_t)H * n);
      run_forward<DK, DV>(kernel, one, o1.p, l1.p);
      if (memcmp(o1.p, out.p + (size_t)starts[s] * H * DV, o1.n * 2)) alone = false;
    }
  printf("%-10s H %d/%d, %zu sequences: out %.1e, lse %.1e, orders %s, packed or alone %s\n", name, H, H / G,
         starts.size() - 1, e.rel(), el.rel(), same ? "equal" : "DIFFER", alone ? "equal" : "DIFFER");
  check(e.rel() <= 1e-2, "out");
  check(el.rel() <= 1e-4, "lse");
  check(same, "orders");
  check(alone, "alone");
}
int main() {
  std::vector<int> s = {0, 1, 1, 140, 141, 410};
  test<64, 64, 64>("64", FORWARD_KERNEL(64), 4, 2, s);
  test<128, 128, 128>("128", FORWARD_KERNEL(128), 2, 1, s);
  test<192, 128, 128>("192/128", FORWARD_KERNEL(192_128), 2, 1, s);
  test<64, 64, 64>("64 edges", FORWARD_KERNEL(64), 2, 2, {0, 128, 255, 384, 641, 705});
  return done("forward");
}
