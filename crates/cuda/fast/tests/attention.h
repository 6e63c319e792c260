// Inputs of attention, its plain loops in f64, and launches of the forward kernels.
#pragma once
#include "common.h"
struct Heads {
  int offset, stride, cols;
};
// MLA as the model lays it out: q [T, H·(DK)], kv [T, Hkv·(OWN + DV)] with k and v of a head side by side, shared [T,
// 80] from column 16 on.
struct Problem {
  int DK, OWN, DV, H, G, T;
  std::vector<int> starts;
  float scale;
  int qs, ks, ss;
  Buf q, kv, sh;
  Problem(int DK, int OWN, int DV, int H, int G, std::vector<int> st)
      : DK(DK),
        OWN(OWN),
        DV(DV),
        H(H),
        G(G),
        T(st.back()),
        starts(st),
        scale(1.0f / sqrtf(DK)),
        qs(8 + H * DK),
        ks(H / G * (OWN + DV)),
        ss(80),
        q((size_t)T * qs, true, 1.5),
        kv((size_t)T * ks, true, 1.5),
        sh((size_t)T * ss, true, 1.5) {}
  float Q(int t, int h, int i) const { return q[(size_t)t * qs + 8 + h * DK + i]; }
  float K(int t, int g, int i) const {
    return i < OWN ? kv[(size_t)t * ks + g * (OWN + DV) + i] : sh[(size_t)t * ss + 16 + i - OWN];
  }
  float V(int t, int g, int i) const { return kv[(size_t)t * ks + g * (OWN + DV) + OWN + i]; }
  template <class A>
  A args() const {
    A a{};
    a.starts = starts.data();
    a.sequences = starts.size() - 1;
    a.tokens = T;
    a.heads = H;
    a.group = G;
    a.q_offset = 8;
    a.q_stride = DK;
    a.k_offset = 0;
    a.k_stride = OWN + DV;
    a.shared_offset = 16;
    a.v_offset = OWN;
    a.v_stride = OWN + DV;
    a.scale = scale;
    return a;
  }
  int tiles(int bm) const {
    int n = 0;
    for (size_t s = 0; s + 1 < starts.size(); s++) n += (starts[s + 1] - starts[s] + bm - 1) / bm;
    return n;
  }
  void forward(std::vector<double> &out, std::vector<double> &lse) const {
    out.assign((size_t)T * H * DV, 0);
    lse.assign((size_t)H * T, 0);
    for (size_t s = 0; s + 1 < starts.size(); s++)
      for (int t = starts[s]; t < starts[s + 1]; t++)
        for (int h = 0; h < H; h++) {
          std::vector<double> p;
          double m = -1e30, l = 0;
          for (int j = starts[s]; j <= t; j++) {
            double d = 0;
            for (int i = 0; i < DK; i++) d += (double)Q(t, h, i) * K(j, h / G, i);
            p.push_back(d * scale);
            m = std::max(m, d * scale);
          }
          for (auto &v : p) l += v = exp(v - m);
          for (int i = 0; i < DV; i++) {
            double o = 0;
            for (size_t j = 0; j < p.size(); j++) o += p[j] * V(starts[s] + j, h / G, i);
            out[((size_t)t * H + h) * DV + i] = o / l;
          }
          lse[(size_t)h * T + t] = (m + log(l)) / log(2.0);
        }
  }
  // dq [T,H,DK], dk [T,Hkv,OWN], dshared [T,DK-OWN], dv [T,Hkv,DV]
  void backward(const Buf &dout, const std::vector<double> &out, const std::vector<double> &lse,
                std::vector<double> &dq, std::vector<double> &dk, std::vector<double> &ds,
                std::vector<double> &dv) const {
    int HK = H / G, S = DK - OWN;
    dq.assign((size_t)T * H * DK, 0);
    dk.assign((size_t)T * HK * OWN, 0);
    ds.assign((size_t)T * S, 0);
    dv.assign((size_t)T * HK * DV, 0);
    for (size_t s = 0; s + 1 < starts.size(); s++)
      for (int t = starts[s]; t < starts[s + 1]; t++)
        for (int h = 0; h < H; h++) {
          double delta = 0;
          size_t o = ((size_t)t * H + h) * DV;
          for (int i = 0; i < DV; i++) delta += out[o + i] * dout[o + i];
          for (int j = starts[s]; j <= t; j++) {
            double d = 0, g = 0;
            for (int i = 0; i < DK; i++) d += (double)Q(t, h, i) * K(j, h / G, i);
            for (int i = 0; i < DV; i++) g += (double)dout[o + i] * V(j, h / G, i);
            double p = exp(d * scale - lse[(size_t)h * T + t] * log(2.0)), e = p * (g - delta) * scale;
            for (int i = 0; i < DV; i++) dv[((size_t)j * HK + h / G) * DV + i] += p * dout[o + i];
            for (int i = 0; i < DK; i++) {
              dq[((size_t)t * H + h) * DK + i] += e * K(j, h / G, i);
              if (i < OWN) dk[((size_t)j * HK + h / G) * OWN + i] += e * Q(t, h, i);
              else ds[(size_t)j * S + i - OWN] += e * Q(t, h, i);
            }
          }
        }
  }
};
