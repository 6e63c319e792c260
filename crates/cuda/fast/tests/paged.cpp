// Attention over pages has the bits of the forward pass: one token at a time, in chunks, in any batch.
#include "attention.h"
#define SPLIT_TILES 2
#ifdef AMPERE
#include "attention/ampere.cu"
constexpr int SPLIT_KEYS = SPLIT_TILES * 128;
#else
#include "attention/hopper_forward.cu"
#include "attention/hopper_paged.cu"
constexpr int SPLIT_KEYS = SPLIT_TILES * KT;
#endif
#include "attention/sums.cu"
#include "launch.h"
#ifdef AMPERE
constexpr int KINDS = 1;
#else
constexpr int KINDS = 2;
#endif
template <int DK, int OWN, int DV, class F, class K, class C>
void test(const char *name, F forward_kernel, K one, C chunk, int H, int G, bool head_major) {
  std::vector<int> starts = {0, 290, 291, 430};
  Problem p(DK, OWN, DV, H, G, starts);
  int HK = H / G, SH = DK - OWN;
  Buf want((size_t)p.T * H * DV, false);
  BufF lse((size_t)H * p.T);
  run_forward<DK, DV>(forward_kernel, p, want.p, lse.p);
  // Pages in a random order, everything that is no token's being NaN.
  int row = HK * (OWN + DV) + SH, seqs = 3, per = 20, pages = seqs * per;
  long stride = 16 * row + 64;
  Buf cache((size_t)pages * stride, false);
  for (size_t i = 0; i < cache.n; i++) cache.p[i] = 0x7fff;
  std::vector<int> table(pages);
  for (int i = 0; i < pages; i++) table[i] = i;
  for (int i = pages - 1; i; i--) {
    rnd();
    std::swap(table[i], table[(rng >> 33) % (i + 1)]);
  }
  PagedArgs a{};
  a.table = table.data();
  a.table_stride = per;
  a.page_stride = stride;
  a.heads = H;
  a.group = G;
  a.q_offset = 8;
  a.q_stride = DK;
  a.ldq = p.qs;
  a.v_offset = OWN;
  if (head_major) {
    a.token_stride = OWN + DV;
    a.head_stride = 16 * (OWN + DV);
  } else {
    a.token_stride = row;
    a.head_stride = OWN + DV;
    a.shared_offset = HK * (OWN + DV);
  }
  auto put = [&](int s, int t) {
    bf16 *to = cache.p + table[s * per + t / 16] * stride;
    const bf16 *kv = p.kv.p + (size_t)(starts[s] + t) * p.ks;
    for (int g = 0; g < HK; g++)
      memcpy(to + t % 16 * a.token_stride + g * a.head_stride, kv + g * (OWN + DV), (OWN + DV) * 2);
    memcpy(to + t % 16 * a.token_stride + a.shared_offset, p.sh.p + (size_t)(starts[s] + t) * p.ss + 16, SH * 2);
  };
  // Calls: for each, the new tokens of the sequences.
  std::vector<std::vector<int>> calls = {{100, 1, 1}, {1, 0, 37},  {30, 0, 1}, {1, 0, 60}, {1, 0, 1},
                                         {2, 0, 39},  {120, 0, 0}, {1, 0, 0},  {34, 0, 0}};
  bool equal = true, same = true;
  int n_calls = 0;
  for (int kind = 0; kind < KINDS; kind++) {
    for (size_t i = 0; i < cache.n; i++) cache.p[i] = 0x7fff;
    std::vector<int> past = {0, 0, 0};
    for (auto &n : calls) {
      std::vector<int> ns = {0};
      for (int v : n) ns.push_back(ns.back() + v);
      int rows = ns.back();
      int splits = DK <= 128 ? 2 : 1;
      BufF po((size_t)splits * rows * H * DV), pm((size_t)splits * rows * H * 2);
      a.part_o = po.p;
      a.part_ml = pm.p;
      a.rows = rows;
      Buf q((size_t)rows * p.qs, false), out((size_t)rows * H * DV, false);
      for (int s = 0; s < seqs; s++)
        for (int i = 0; i < n[s]; i++) {
          put(s, past[s] + i);
          memcpy(q.p + (size_t)(ns[s] + i) * p.qs, p.q.p + (size_t)(starts[s] + past[s] + i) * p.qs, p.qs * 2);
        }
      a.past = past.data();
      a.new_starts = ns.data();
      a.sequences = seqs;
      unsigned tiles = 0;
      int positions = positions_of(kind ? 128 : 64, G);
      for (int v : n) tiles += v ? v / positions + 2 : 0;
      if (kind == 1 && n_calls % 3) { n_calls++; }  // all calls are run; orders are tried on some
      same &= orders(n_calls % 4 == 0 ? 8 : 1, out.p, out.n * 2, [&] {
#ifdef AMPERE
        emu::launch({(unsigned)HK, tiles, (unsigned)splits}, {128}, Attend80<DK, DV>::PAGED_BYTES,
                    [&] { one(q.p, cache.p, out.p, H * DV, FLAT_PAGED(a, p.scale)); });
#else
        if (kind) emu::launch({(unsigned)HK, tiles, (unsigned)splits}, {256}, Paged<DK, DV, 2>::BYTES, [&] { chunk(q.p, cache.p, out.p, H * DV, FLAT_PAGED(a, p.scale)); }); else emu::launch({(unsigned)HK, tiles, (unsigned)splits}, {128}, Paged<DK, DV, 1>::BYTES, [&] { one(q.p, cache.p, out.p, H * DV, FLAT_PAGED(a, p.scale)); });
#endif
        if (splits > 1)
          emu::launch({(unsigned)(rows * H + 7) / 8}, {256}, 16, [&] {
            attention_join(a.part_o, a.part_ml, a.rows, H, a.past, a.new_starts, p.scale, SPLIT_KEYS, DV, out.p, H * DV,
                           DV);
          });
      });
      n_calls++;
      for (int s = 0; s < seqs; s++)
        for (int i = 0; i < n[s]; i++)
          if (memcmp(out.p + (size_t)(ns[s] + i) * H * DV, want.p + (size_t)(starts[s] + past[s] + i) * H * DV,
                     H * DV * 2))
            equal = false;
      for (int s = 0; s < seqs; s++) past[s] += n[s];
    }
  }
  printf("%-10s H %d/%d %s: %s to the forward pass in every bit, orders %s\n", name, H, HK,
         head_major ? "heads apart" : "token rows", equal ? "equal" : "DIFFERENT", same ? "equal" : "DIFFER");
  check(equal, "bits of the forward pass");
  check(same, "orders");
}
#ifdef AMPERE
#define K(name) attention80_##name, paged80_##name, paged80_##name
#else
#define K(name) attention_##name, paged_##name, paged_chunk_##name
#endif
int main() {
  test<64, 64, 64>("64", K(64), 4, 4, true);
  test<64, 64, 64>("64", K(64), 6, 6, false);
  test<128, 128, 128>("128", K(128), 6, 3, true);
  test<192, 128, 128>("192/128", K(192_128), 2, 1, false);
  return done("paged");
}
