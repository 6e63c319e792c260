// Launches of the forward kernels, on tensors as Problem has them.
#pragma once
#ifdef AMPERE
#define FORWARD_KERNEL(name) attention80_##name
template <int DK, int DV, class K>
void run_forward(K kernel, const Problem &p, bf16 *out, float *lse) {
  auto a = p.args<AttentionArgs>();
  unsigned tiles = 0;
  int positions = positions_of(AT, p.G);
  for (size_t s = 0; s + 1 < p.starts.size(); s++) tiles += (p.starts[s + 1] - p.starts[s] + positions - 1) / positions;
  emu::launch({(unsigned)(p.H / p.G), tiles + 1}, {128}, Attend80<DK, DV>::BYTES, [&] {
    kernel(p.q.p, p.kv.p, p.sh.p, p.kv.p, p.qs, p.ks, p.ss, p.ks, out, p.H * p.DV, lse, FLAT_ATTENTION(a));
  });
}
#else
#define FORWARD_KERNEL(name) attention_##name
template <int DK, int DV, class K>
void run_forward(K kernel, const Problem &p, bf16 *out, float *lse) {
  TensorMap q = map2d(p.q.p, p.T, p.qs, p.qs, 64, QT), k = map2d(p.kv.p, p.T, p.ks, p.ks, 64, KT),
            s = map2d(p.sh.p, p.T, p.ss, p.ss, 64, KT);
  auto a = p.args<AttentionArgs>();
  emu::launch({(unsigned)p.H, (unsigned)p.tiles(QT) + 1}, {384}, Forward<DK, DV>::BYTES,
              [&] { kernel(q, k, s, k, out, p.H * p.DV, lse, FLAT_ATTENTION(a)); });
}
#endif
