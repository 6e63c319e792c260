// Attention over latents: against plain loops, and the same bits in any chunks and batches.
#include "common.h"
#define LATENT_SPLIT 1
#ifdef AMPERE
#include "attention/ampere.cu"
#include "attention/sums.cu"
constexpr int LATENT = 512, WIDTH = 576, SPLIT_KEYS = LT80 * LATENT80_SPLIT, LEAST = 2;
#else
#include "attention/hopper_latent.cu"
#include "attention/sums.cu"
constexpr int SPLIT_KEYS = LT * LATENT_SPLIT, LEAST = 1;
#endif
static void test(int H) {
  std::vector<int> lens = {140, 1, 70};
  int seqs = 3, per = 12, T = 0;
  std::vector<int> first;
  for (int l : lens) {
    first.push_back(T);
    T += l;
  }
  Buf ab((size_t)H * T * LATENT), ro((size_t)T * (8 + H * 64)), kv((size_t)T * WIDTH);
  float scale = 0.07f;
  int ldq = 8 + H * 64;
  long stride = 16 * WIDTH + 32;
  Buf cache((size_t)seqs * per * stride, false);
  std::vector<int> table(seqs * per);
  for (int i = 0; i < seqs * per; i++) table[i] = (i * 7 + 3) % (seqs * per);
  std::vector<std::vector<std::vector<int>>> plans = {
      {{140, 1, 70}}, {{60, 1, 0}, {1, 0, 1}, {1, 0, 0}, {3, 0, 64}, {0, 0, 1}, {75, 0, 4}}, {{139, 0, 69}, {1, 1, 1}}};
  std::vector<std::vector<bf16>> results;
  bool same = true;
  for (auto &plan : plans) {
    for (size_t i = 0; i < cache.n; i++) cache.p[i] = 0x7fff;
    std::vector<bf16> got((size_t)H * T * LATENT);
    std::vector<int> past = {0, 0, 0};
    for (auto &n : plan) {
      std::vector<int> ns = {0};
      for (int v : n) ns.push_back(ns.back() + v);
      int N = ns.back();
      Buf a1((size_t)H * N * LATENT, false), r1((size_t)N * ldq, false), out((size_t)H * N * LATENT, false);
      for (int s = 0; s < seqs; s++)
        for (int i = 0; i < n[s]; i++) {
          int t = past[s] + i, from = first[s] + t;
          memcpy(cache.p + table[s * per + t / 16] * stride + t % 16 * WIDTH, kv.p + (size_t)from * WIDTH, WIDTH * 2);
          memcpy(r1.p + (size_t)(ns[s] + i) * ldq, ro.p + (size_t)from * ldq, ldq * 2);
          for (int h = 0; h < H; h++)
            memcpy(a1.p + ((size_t)h * N + ns[s] + i) * LATENT, ab.p + ((size_t)h * T + from) * LATENT, LATENT * 2);
        }
      PagedArgs p{};
      p.table = table.data();
      p.table_stride = per;
      p.page_stride = stride;
      p.token_stride = WIDTH;
      p.past = past.data();
      p.new_starts = ns.data();
      p.sequences = seqs;
      p.heads = H;
      p.group = std::min(H, 64);
      p.q_offset = 8;
      p.q_stride = 64;
      p.ldq = ldq;
      BufF po((size_t)3 * N * H * LATENT), pm((size_t)3 * N * H * 2);
      p.part_o = po.p;
      p.part_ml = pm.p;
      p.rows = N;
      unsigned tiles = 0;
      for (int v : n) tiles += v ? v / positions_of(64, std::max(p.group, LEAST)) + 2 : 0;
      same &= orders(n.size() && N < 10 ? 8 : 1, out.p, out.n * 2, [&] {
#ifdef AMPERE
        emu::launch({(unsigned)(H + 63) / 64, tiles, 3}, {256}, LATENT80_BYTES,
                    [&] { latent80(a1.p, r1.p, cache.p, out.p, FLAT_LATENT(p, scale)); });
#else
        emu::launch({(unsigned)(H + 63) / 64, tiles, 3}, {256}, LATENT_BYTES, [&] { latent(a1.p, r1.p, cache.p, out.p, FLAT_LATENT(p, scale)); });
#endif
        emu::launch({(unsigned)(N * H + 7) / 8}, {256}, 16, [&] {
          attention_join(p.part_o, p.part_ml, N, H, p.past, p.new_starts, scale, SPLIT_KEYS, LATENT, out.p, LATENT,
                         (long)N * LATENT);
        });
      });
      for (int s = 0; s < seqs; s++)
        for (int i = 0; i < n[s]; i++)
          for (int h = 0; h < H; h++)
            memcpy(got.data() + ((size_t)h * T + first[s] + past[s] + i) * LATENT,
                   out.p + ((size_t)h * N + ns[s] + i) * LATENT, LATENT * 2);
      for (int s = 0; s < seqs; s++) past[s] += n[s];
    }
    results.push_back(got);
  }
  bool equal = true;
  for (auto &r : results)
    if (memcmp(r.data(), results[0].data(), r.size() * 2)) equal = false;
  Err e;
  for (int s = 0; s < seqs; s++)
    for (int t = 0; t < lens[s]; t += t < 3 ? 1 : 13)
      for (int h = 0; h < H; h += 1 + H / 5) {
        std::vector<double> p;
        double m = -1e30, l = 0;
        for (int j = 0; j <= t; j++) {
          double d = 0;
          for (int i = 0; i < LATENT; i++)
            d += (double)ab[((size_t)h * T + first[s] + t) * LATENT + i] * kv[(size_t)(first[s] + j) * WIDTH + i];
          for (int i = 0; i < 64; i++)
            d += (double)ro[(size_t)(first[s] + t) * ldq + 8 + h * 64 + i] *
                 kv[(size_t)(first[s] + j) * WIDTH + LATENT + i];
          p.push_back(d * scale);
          m = std::max(m, d * scale);
        }
        for (auto &v : p) l += v = exp(v - m);
        for (int i = 0; i < LATENT; i += 3) {
          double o = 0;
          for (int j = 0; j <= t; j++) o += p[j] * kv[(size_t)(first[s] + j) * WIDTH + i];
          e.add(bf16_f32(results[0][((size_t)h * T + first[s] + t) * LATENT + i]), o / l);
        }
      }
  printf("latent, %3d heads: error %.1e, three ways of chunks %s, orders %s\n", H, e.rel(),
         equal ? "equal" : "DIFFERENT", same ? "equal" : "DIFFER");
  check(e.rel() <= 1e-2, "error");
  check(equal, "chunks");
  check(same, "orders");
}
int main(int argc, char **) {
  test(16);
  test(3);
  if (argc > 1) test(80);
  return done("latent");
}
