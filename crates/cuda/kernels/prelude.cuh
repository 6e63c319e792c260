// What kernels are written in: CUDA C plus some functions with a body for the GPU (PTX) and one for the CPU.
// Kernels are compiled with -fmad=false: sums and products are contracted only where __fmaf_rn says so, so that two
// kernels with the
// same arithmetic have the same bits.
#pragma once
#ifdef WELS_EMU
#include "shim.h"
#else
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#endif
typedef uint16_t bf16;
#define INFINITY_F __uint_as_float(0x7f800000u)
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
typedef uint32_t saddr;  // address in shared memory

#ifdef WELS_EMU
#define SMEM(name) char *name = emu::block->smem
inline saddr smem_addr(const void *p) { return (saddr)((const char *)p - emu::block->smem); }
inline char *smem_at(saddr a) {
  if (a >= emu::block->smem_size) emu::fail("shared address %u of %zu", a, emu::block->smem_size);
  return emu::block->smem + a;
}
inline float bf16_f32(bf16 x) { return __uint_as_float((uint32_t)x << 16); }
inline bf16 f32_bf16(float f) {
  uint32_t b = __float_as_uint(f);
  if (f != f) return (bf16)(b >> 16 | 0x40);
  return (bf16)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
inline float f16_f32(uint16_t x) {
  _Float16 h;
  memcpy(&h, &x, 2);
  return (float)h;
}
inline uint16_t f32_f16(float f) {
  _Float16 h = (_Float16)f;
  uint16_t x;
  memcpy(&x, &h, 2);
  return x;
}

inline uint32_t bf16x2(float lo, float hi) { return f32_bf16(lo) | (uint32_t)f32_bf16(hi) << 16; }
inline float exp2_approx(float x) { return exp2f(x); }
inline float log2_approx(float x) { return log2f(x); }
struct alignas(64) TensorMap {
  const bf16 *base;
  uint32_t cols, rows, stride, box_cols, box_rows;
  uint32_t bytes;
  char pad[96];
};
static_assert(sizeof(TensorMap) == 128);
struct MBar {
  uint16_t count, pending;
  int32_t tx : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(MBar) == 8);
inline void mbar_flip(MBar *m) {
  if (m->pending == 0 && m->tx == 0) {
    m->phase ^= 1;
    m->pending = m->count;
    emu::block->progress++;
  }
}
inline void mbar_init(saddr a, uint32_t n) {
  auto *m = (MBar *)smem_at(a);
  m->count = m->pending = n;
  m->tx = 0;
  m->phase = 0;
}
inline void mbar_fence() {}
inline void mbar_arrive(saddr a) {
  auto *m = (MBar *)smem_at(a);
  if (!m->pending) emu::fail("more arrivals than a barrier counts");
  m->pending--;
  mbar_flip(m);
}
inline void mbar_arrive_tx(saddr a, uint32_t bytes) {
  auto *m = (MBar *)smem_at(a);
  m->tx += bytes;
  m->pending--;
  mbar_flip(m);
}
inline void mbar_wait(saddr a, uint32_t parity) {
  auto *m = (MBar *)smem_at(a);
  emu::wait_until([=] { return m->phase != parity; });
}
// Swizzle of 128 bytes: bits 4..6 of the address ^= bits 7..9.
inline saddr swizzle(saddr a) { return a ^ ((a >> 3) & 0x70); }
// A copy of a box to shared memory, rows of box_cols elements one after the other, with 128-byte swizzle; zeros beyond
// the
// tensor. It arrives when the dice say so, and copies in any order; until then its target is NaN.
inline void tma_load(saddr to, const TensorMap *t, saddr bar, int col, int row) {
  uint32_t size = t->bytes == 1 ? 1 : 2;
  if (to % 1024 || t->box_cols * size > 128 || t->box_rows > 256 || t->stride * size % 16 || (uintptr_t)t->base % 16)
    emu::fail("tma: %u not aligned, or box of %u x %u", to, t->box_cols, t->box_rows);
  if (col * (int)size % 16) emu::fail("tma: column %d is no whole piece of 16 bytes", col);
  for (uint32_t i = 0; i < t->box_cols * t->box_rows * size; i += 2) *(bf16 *)smem_at(to + i) = 0x7fff;
  smem_at(bar);
  TensorMap m = *t;
  emu::block->pending.push_back([=] {
    for (uint32_t r = 0; r < m.box_rows; r++)
      for (uint32_t c = 0; c < m.box_cols; c++) {
        bool in = row + (int)r >= 0 && row + r < m.rows && col + c < m.cols;
        size_t at = (size_t)(row + r) * m.stride + col + c;
        char *p = smem_at(swizzle(to + (r * m.box_cols + c) * size));
        if (size == 1) *(uint8_t *)p = in ? ((const uint8_t *)m.base)[at] : 0;
        else *(bf16 *)p = in ? m.base[at] : 0;
      }
    auto *b = (MBar *)smem_at(bar);
    b->tx -= m.box_cols * m.box_rows * size;
    mbar_flip(b);
  });
}
template <int N>
void setmaxnreg_inc() {}
template <int N>
void setmaxnreg_dec() {}
// Writes of threads to shared memory that wgmma or TMA will see need a fence; who forgets it is told.
inline void emu_dirty(saddr a) {
  auto &t = emu::self();
  emu::block->dirty[a / 16] = t.linear + 1;
  t.dirty.push_back(a / 16);
}
inline void st_shared16(saddr a, uint4 v) {
  if (a % 16) emu::fail("a store of 16 bytes not aligned");
  memcpy(smem_at(a), &v, 16);
  emu_dirty(a);
}
inline void st_shared4(saddr a, uint32_t v) {
  memcpy(smem_at(a), &v, 4);
  emu_dirty(a);
}
inline void fence_async() {
  auto &t = emu::self();
  for (unsigned g : t.dirty)
    if (emu::block->dirty[g] == t.linear + 1) emu::block->dirty[g] = 0;
  t.dirty.clear();
}
// 16 bytes to shared memory, the first `bytes` of them from `from`, zeros after; asynchronous, by groups of a thread.
inline void cp_async16(saddr to, const void *from, int bytes) {
  if (to % 16 || (bytes && (uintptr_t)from % 16)) emu::fail("cp.async: not aligned");
  memset(smem_at(to), 0xff, 16);
  emu::self().open.push_back({to, from, bytes});
}
inline void cp_async_commit() {
  auto &t = emu::self();
  t.copies.push_back(std::move(t.open));
  t.open.clear();
}
template <int LEFT>
void cp_async_wait() {
  auto &t = emu::self();
  while (t.copies.size() > (size_t)LEFT) {
    for (auto &c : t.copies.front()) {
      char *p = smem_at(c.to);
      memset(p, 0, 16);
      memcpy(p, c.from, c.bytes);
      emu_dirty(c.to);
    }
    t.copies.erase(t.copies.begin());
  }
}
inline void wgmma_fence() { emu::self().fenced = true; }
inline emu::Group &emu_group() { return emu::block->groups[emu::self().linear / 128]; }
inline void wgmma_commit() {
  auto &g = emu_group();
  unsigned t = emu::self().linear % 128;
  g.queued[t].push_back(std::move(g.open[t]));
  g.open[t].clear();
  g.committed[t]++;
}
inline void emu_issue(emu::Mma m) {
  if (!emu::self().fenced) emu::fail("wgmma without its fence");
  emu_group().open[emu::self().linear % 128].push_back(m);
}
template <int TA, int TB, int H>
void wgmma_ss(float (&d)[H], uint64_t a, uint64_t b, int acc) {
  emu_issue({d, nullptr, a, b, 2 * H, TA == 1, TB == 1, acc != 0, false});
}
template <int TB, int H>
void wgmma_rs(float (&d)[H], const uint32_t *a, uint64_t b, int acc) {
  emu_issue({d, a, 0, b, 2 * H, false, TB == 1, acc != 0, false});
}
template <int H>
void wgmma_fp8(float (&d)[H], uint64_t a, uint64_t b, int acc) {
  emu_issue({d, nullptr, a, b, 2 * H, false, false, acc != 0, true});
}
// Element (row of M or N, k) of an operand with 128-byte swizzle. K-major: 8 rows of 128 bytes, then SBO. MN-major: 64
// numbers of M or N by 8 of k, each 128 bytes; 64 further in M or N: LBO; 8 further in k: SBO.
inline saddr emu_operand_at(uint64_t desc, bool mn_major, int row, int k, int size) {
  saddr start = (desc & 0x3fff) << 4, lbo = ((desc >> 16) & 0x3fff) << 4, sbo = ((desc >> 32) & 0x3fff) << 4;
  saddr a = mn_major ? start + row / 64 * lbo + row % 64 * 2 + k / 8 * sbo + k % 8 * 128
                     : start + row / 8 * sbo + row % 8 * 128 + k * size;
  a = swizzle(a);
  if (emu::block->dirty[a / 16]) emu::fail("wgmma reads what a thread wrote without a fence");
  return a;
}
inline float e4m3_f32(uint8_t x) {
  int e = x >> 3 & 15, m = x & 7;
  float v = (x & 127) == 127 ? NAN : e ? ldexpf(1 + m / 8.0f, e - 7) : ldexpf(m / 8.0f, -6);
  return x & 128 ? -v : v;
}
inline uint8_t f32_e4m3(float f) {  // to nearest, ties to even, saturating
  if (f != f) return 127;
  uint8_t s = std::signbit(f) ? 128 : 0;
  float a = fabsf(f);
  if (a >= 448) return s | 126;
  int e;
  frexpf(a, &e);
  e = std::max(e - 1, -6);
  float step = ldexpf(1, e - 3);
  float q = nearbyintf(a / step);
  if (q >= 16) {
    q /= 2;
    e++;
  }
  return s | (q < 8 ? (uint8_t)q : (uint8_t)((e + 7) << 3 | ((int)q - 8)));
}
inline uint32_t e4m3x4(float a, float b, float c, float d) {
  return f32_e4m3(a) | f32_e4m3(b) << 8 | f32_e4m3(c) << 16 | (uint32_t)f32_e4m3(d) << 24;
}
// The 16 (or 32) products of a step are summed first, then added: as on the hardware, what shares a step matters.
inline void emu_mma_steps(float *c, int ldc, const float *a, const float *b, int m, int n, int k) {
  std::vector<float> s(n);
  for (int i = 0; i < m; i++) {
    std::fill(s.begin(), s.end(), 0.0f);
    for (int l = 0; l < k; l++) {
      float v = a[i * k + l];
      const float *bl = b + l * n;
      float *sp = s.data();
      for (int j = 0; j < n; j++) sp[j] += v * bl[j];
    }
    for (int j = 0; j < n; j++) c[i * ldc + j] += s[j];
  }
}
inline void emu_run(emu::Group &g, size_t op) {
  static thread_local float a[64 * 32], b[32 * 256], c[64 * 256];
  const emu::Mma &m = g.queued[0][0][op];
  int K = m.fp8 ? 32 : 16, size = m.fp8 ? 1 : 2;
  for (int t = 0; t < 128; t++) {
    if (g.queued[t].empty() || g.queued[t][0].size() <= op) emu::fail("a warpgroup's threads multiply differently");
    auto &o = g.queued[t][0][op];
    if (o.a != m.a || o.b != m.b || o.n != m.n || o.acc != m.acc)
      emu::fail("a warpgroup's threads multiply differently");
  }
  auto get = [&](uint64_t d, bool mn, int r, int k) {
    char *p = smem_at(emu_operand_at(d, mn, r, k, size));
    return m.fp8 ? e4m3_f32(*(uint8_t *)p) : bf16_f32(*(bf16 *)p);
  };
  for (int i = 0; i < 64; i++)
    for (int k = 0; k < K; k++) {
      if (m.areg) {
        auto &o = g.queued[i / 16 * 32 + i % 8 * 4 + k % 8 / 2][0][op];
        uint32_t r = o.areg[(i % 16 / 8) + 2 * (k / 8)];
        a[i * K + k] = bf16_f32(k & 1 ? r >> 16 : r & 0xffff);
      } else a[i * K + k] = get(m.a, m.ta, i, k);
    }
  for (int j = 0; j < m.n; j++)
    for (int k = 0; k < K; k++) b[k * m.n + j] = get(m.b, m.tb, j, k);
  auto each = [&](auto f) {
    for (int t = 0; t < 128; t++) {
      auto &o = g.queued[t][0][op];
      for (int i = 0; i < m.n / 2; i++)
        f(o, o.d[i], c[(t / 32 * 16 + t % 32 / 4 + 8 * (i >> 1 & 1)) * m.n + i / 4 * 8 + t % 4 * 2 + (i & 1)]);
    }
  };
  each([&](auto &o, float &d, float &x) { x = o.acc ? d : 0.0f; });
  emu_mma_steps(c, m.n, a, b, 64, m.n, K);
  each([&](auto &, float &d, float &x) { d = x; });
}
// Waits until all but the last LEFT groups are done. They are done as late as that, when all threads have committed
// them.
template <int LEFT>
void wgmma_wait() {
  emu::Group *g = &emu_group();
  unsigned me = emu::self().linear % 128;
  int need = (int)g->committed[me] - LEFT;
  emu::self().fenced = false;
  if (need <= 0) return;
  emu::wait_until([=] {
    if ((int)g->done >= need) return true;
    for (unsigned c : g->committed)
      if ((int)c < need) return false;
    if (emu::dice() % emu::block->mma_rate) {
      emu::block->progress++;
      return false;
    }
    while ((int)g->done < need) {
      for (size_t op = 0; op < g->queued[0][0].size(); op++) emu_run(*g, op);
      for (auto &q : g->queued)
        if (!q.empty()) q.erase(q.begin());
      g->done++;
    }
    return true;
  });
}
struct EmuLd {
  saddr a;
  uint32_t *r;
};
template <bool TRANS>
void emu_ldmatrix(void **p) {
  for (int m = 0; m < 4; m++)
    for (int l = 0; l < 32; l++) {
      auto row = [&](int r) {
        saddr a = ((EmuLd *)p[m * 8 + r])->a;
        if (a % 16) emu::fail("ldmatrix: not aligned");
        return (bf16 *)smem_at(a);
      };
      bf16 lo = TRANS ? row(l % 4 * 2)[l / 4] : row(l / 4)[l % 4 * 2],
           hi = TRANS ? row(l % 4 * 2 + 1)[l / 4] : row(l / 4)[l % 4 * 2 + 1];
      ((EmuLd *)p[l])->r[m] = lo | (uint32_t)hi << 16;
    }
}
// Four 8 x 8 matrices, whose rows the lanes 8i..8i+7 point at.
template <bool TRANS>
void ldmatrix4(uint32_t (&r)[4], saddr a) {
  EmuLd o{a, r};
  emu_collective(&o, emu_ldmatrix<TRANS>);
}
struct EmuWarpMma {
  float *d;
  const uint32_t *a, *b;
};
inline void emu_warp_mma(void **p) {
  float a[16 * 16], b[16 * 8], c[16 * 8];
  auto o = [&](int l) { return (EmuWarpMma *)p[l]; };
  auto half = [](uint32_t r, int hi) { return bf16_f32(hi ? r >> 16 : r & 0xffff); };
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++)
      a[(k / 8 * 16 + i) * 8 + k % 8] = half(o(i % 8 * 4 + k % 8 / 2)->a[i / 8 + 2 * (k / 8)], k & 1);
  for (int k = 0; k < 16; k++)
    for (int j = 0; j < 8; j++) b[k * 8 + j] = half(o(j * 4 + k % 8 / 2)->b[k / 8], k & 1);
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) c[(l / 4 + 8 * (i >> 1)) * 8 + l % 4 * 2 + (i & 1)] = o(l)->d[i];
  emu_mma_steps(c, 8, a, b, 16, 8, 8);
  emu_mma_steps(c, 8, a + 128, b + 64, 16, 8, 8);  // as on Ampere: eight by eight
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) o(l)->d[i] = c[(l / 4 + 8 * (i >> 1)) * 8 + l % 4 * 2 + (i & 1)];
}
inline void mma_16816(float *d, const uint32_t *a, const uint32_t *b) {
  EmuWarpMma o{d, a, b};
  emu_collective(&o, emu_warp_mma);
}
#else
#define SMEM(name) extern __shared__ __align__(1024) char name[]
__device__ __forceinline__ saddr smem_addr(const void *p) { return (saddr)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float bf16_f32(bf16 x) { return __uint_as_float((uint32_t)x << 16); }
__device__ __forceinline__ bf16 f32_bf16(float f) {
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(f));
  return r;
}
__device__ __forceinline__ float f16_f32(uint16_t x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
  return r;
}
__device__ __forceinline__ uint16_t f32_f16(float f) {
  uint16_t r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(f));
  return r;
}
__device__ __forceinline__ void bar_sync(int id, unsigned n) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
struct __align__(64) TensorMap {
  char opaque[128];
};
__device__ __forceinline__ uint32_t bf16x2(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(r) : "f"(lo), "f"(hi));
  return r;
}
__device__ __forceinline__ float exp2_approx(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ float log2_approx(float x) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ void st_shared16(saddr a, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ void st_shared4(saddr a, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(v) : "memory");
}
__device__ __forceinline__ void cp_async16(saddr to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
template <bool TRANS>
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], saddr a) {
  if (TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
__device__ __forceinline__ void mma_16816(float *d, const uint32_t *a, const uint32_t *b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#if __CUDA_ARCH__ >= 890
// Four numbers to e4m3: to nearest, ties to even, saturating at 448.
__device__ __forceinline__ uint32_t e4m3x4(float a, float b, float c, float d) {
  uint16_t lo, hi;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %2, %1;" : "=h"(lo) : "f"(a), "f"(b));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %2, %1;" : "=h"(hi) : "f"(c), "f"(d));
  return lo | (uint32_t)hi << 16;
}
#endif
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void mbar_init(saddr a, uint32_t n) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(a), "r"(n));
}
__device__ __forceinline__ void mbar_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void mbar_arrive(saddr a) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(a) : "memory");
}
__device__ __forceinline__ void mbar_arrive_tx(saddr a, uint32_t n) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(a), "r"(n) : "memory");
}
__device__ __forceinline__ void mbar_wait(saddr a, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nw: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra d;\nbra w;\nd:\n}" ::"r"(a),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void tma_load(saddr to, const TensorMap *t, saddr bar, int col, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(to),
      "l"(t), "r"(bar), "r"(col), "r"(row)
      : "memory");
}
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
template <int N>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
#include "wgmma.cuh"
#endif
#endif
// d += a · bᵀ, both K-major.
template <int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) {
  wgmma_ss<0, 0>(d, a, b, 1);
}
// Accumulators are wgmma's until it is waited for: no use of them may move over the wait that stands before this.
template <int H>
__device__ __forceinline__ void wgmma_hold(float (&d)[H]) {
#ifndef WELS_EMU
#pragma unroll
  for (int i = 0; i < H; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
// Descriptors of operands with 128-byte swizzle. K-major: 8 rows every 1024 bytes.
__device__ __forceinline__ uint64_t k_major(saddr a) {
  return (uint64_t)((a & 0x3ffff) >> 4) | (1ull << 16) | ((uint64_t)(1024 >> 4) << 32) | (1ull << 62);
}
// MN-major: 8 of k every 1024 bytes, 64 of M or N every `lbo` bytes.
__device__ __forceinline__ uint64_t mn_major(saddr a, uint32_t lbo) {
  return (uint64_t)((a & 0x3ffff) >> 4) | ((uint64_t)(lbo >> 4) << 16) | ((uint64_t)(1024 >> 4) << 32) | (1ull << 62);
}
// The same swizzle for addresses that threads compute.
__device__ __forceinline__ saddr swizzled(saddr a) { return a ^ ((a >> 3) & 0x70); }
// Which of `runs` lists the `index`th of their items, all counted one after the other, is in; index becomes its place
// there. All lanes of a warp ask together,
// 32 lists at a time: a block that looks for its place among thousands of sequences finds it in a few microseconds.
template <class F>
__device__ __forceinline__ bool find_run(int runs, F count_of, int &index, int &run) {
  int lane = threadIdx.x % 32;
  for (int base = 0; base < runs; base += 32) {
    int before = base + lane < runs ? count_of(base + lane) : 0;
    for (int d = 1; d < 32; d *= 2) {
      int v = __shfl_up_sync(~0u, before, d);
      if (lane >= d) before += v;
    }
    unsigned beyond = __ballot_sync(~0u, index < before);
    if (beyond) {
      int at = __ffs(beyond) - 1, skipped = __shfl_sync(~0u, before, at ? at - 1 : 0);
      run = base + at;
      index -= at ? skipped : 0;
      return true;
    }
    index -= __shfl_sync(~0u, before, 31);
  }
  return false;
}
// The index of the thread in its grid along x.
__device__ __forceinline__ int64_t thread_index() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
