// What the tests share: numbers, plain loops, orders of the warps.
#pragma once
#define WELS_EMU
#include "emulator.cpp"
#include "prelude.cuh"
extern "C" const Named wels_emu_kernels[] = {{nullptr, nullptr}};
#include <algorithm>
#include <string>
namespace emu {
inline uint32_t seed = 1;  // of the next launches
inline uint64_t faults = 0;
struct Failed {
  std::string why;
};
template <class F>
void launch(dim3 grid, dim3 dim, size_t smem, F f) {
  seed = seed * 1664525u + 1013904223u;
  if (const char *error = launch(grid, dim, smem, seed, f)) {
    faults++;
    fprintf(stderr, "%s\n", error);
    throw Failed{error};
  }
}
}  // namespace emu
#include <chrono>
#include <string>
// The arguments of kernels, one by one.
#define FLAT_ATTENTION(a)                                                                                             \
  a.starts, a.sequences, a.tokens, a.heads, a.group, a.q_offset, a.q_stride, a.k_offset, a.k_stride, a.shared_offset, \
      a.v_offset, a.v_stride, a.scale
#define FLAT_PAGED(a, scale)                                                                                          \
  a.table, a.table_stride, a.page_stride, a.token_stride, a.head_stride, a.k_offset, a.v_offset, a.shared_offset,     \
      a.past, a.new_starts, a.sequences, a.heads, a.group, a.q_offset, a.q_stride, a.ldq, scale, a.part_o, a.part_ml, \
      a.rows
#define FLAT_LATENT(a, scale)                                                                                  \
  a.table, a.table_stride, a.page_stride, a.token_stride, a.past, a.new_starts, a.sequences, a.heads, a.group, \
      a.q_offset, a.q_stride, a.ldq, scale, a.part_o, a.part_ml, a.rows
static uint64_t rng = 1;
static float rnd() {
  rng = rng * 6364136223846793005ull + 1442695040888963407ull;
  return (int)(rng >> 40) / 8388608.0f - 1.0f;
}
static float normal() { return (rnd() + rnd() + rnd()); }
static int failures = 0, checks = 0;
static void check(bool ok, const std::string &what) {
  checks++;
  if (ok) return;
  failures++;
  printf("FAIL %s\n", what.c_str());
#ifdef FAIL_FAST
  exit(1);
#endif
}
struct Buf {  // 16-byte aligned bf16
  std::vector<uint16_t> store;
  bf16 *p;
  size_t n;
  Buf(size_t n_, bool random = true, float scale = 1) : store(n_ + 1088, 0x7fff), n(n_) {
    p = (bf16 *)(((uintptr_t)store.data() + 63) & ~(uintptr_t)63);
    if (random)
      for (size_t i = 0; i < n; i++) p[i] = f32_bf16(scale * normal());
  }
  Buf(const Buf &) = delete;
  float operator[](size_t i) const { return bf16_f32(p[i]); }
  bool clean() const {
    for (size_t i = n; i < n + 1024; i++)
      if (p[i] != 0x7fff) return false;
    return true;
  }  // nobody wrote behind it
};
struct BufF {
  std::vector<float> store;
  float *p;
  size_t n;
  BufF(size_t n_, float v = NAN) : store(n_ + 1040, NAN), n(n_) {
    p = (float *)(((uintptr_t)store.data() + 63) & ~(uintptr_t)63);
    for (size_t i = 0; i < n; i++) p[i] = v;
  }
  BufF(const BufF &) = delete;
  bool clean() const {
    for (size_t i = n; i < n + 1024; i++)
      if (p[i] == p[i]) return false;
    return true;
  }
  float &operator[](size_t i) { return p[i]; }
};
static TensorMap map2d(const void *p, uint32_t rows, uint32_t cols, uint32_t stride, uint32_t box_cols,
                       uint32_t box_rows, int bytes = 2) {
  return TensorMap{(const bf16 *)p, cols, rows, stride, box_cols, box_rows, (uint32_t)bytes, {}};
}
struct Err {
  double num = 0, den = 0;
  bool nan = false;
  void add(double got, double want) {
    if (got != got) nan = true;
    num += (got - want) * (got - want);
    den += want * want;
  }
  double rel() const { return nan ? NAN : den ? sqrt(num / den) : sqrt(num); }
};
// Runs under `n` orders of the warps; all must leave the same bytes in `out`, no rule broken.
template <class F>
static bool orders(int n, void *out, size_t bytes, F run) {
  std::vector<char> first, start((char *)out, (char *)out + bytes);
  bool same = true;
  for (int o = 0; o < n; o++) {
    memcpy(out, start.data(), bytes);
    emu::seed = 88172645u + 7919u * o;
    uint64_t before = emu::faults;
    try {
      run();
    } catch (emu::Failed &e) {
      printf("FAIL %s\n", e.why.c_str());
      return false;
    }
    if (emu::faults != before) same = false;
    if (!o) first.assign((char *)out, (char *)out + bytes);
    else if (memcmp(first.data(), out, bytes)) same = false;
  }
  return same;
}
static int done(const char *name) {
  printf("%-12s %d checks, %d failed, %llu faults\n", name, checks, failures, (unsigned long long)emu::faults);
  return failures || emu::faults ? 1 : 0;
}
