// What kernels are written in: CUDA C plus a dozen functions with a body for the GPU (PTX) and one for the CPU.
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
inline float f16_f32(uint16_t x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
inline uint16_t f32_f16(float f) { _Float16 h = (_Float16)f; uint16_t x; memcpy(&x, &h, 2); return x; }

// A matrix of bf16 in global memory that TMA copies boxes of; on the card what cuTensorMapEncodeTiled makes.
struct alignas(64) TensorMap { const bf16 *base; uint32_t cols, rows, stride, box_cols, box_rows; char pad[96]; };
static_assert(sizeof(TensorMap) == 128);
struct MBar { uint16_t count, pending; int32_t tx : 31; uint32_t phase : 1; };
static_assert(sizeof(MBar) == 8);
inline void mbar_flip(MBar *m) { if (m->pending == 0 && m->tx == 0) { m->phase ^= 1; m->pending = m->count; emu::block->progress++; } }
inline void mbar_init(saddr a, uint32_t n) { auto *m = (MBar *)smem_at(a); m->count = m->pending = n; m->tx = 0; m->phase = 0; }
inline void mbar_fence() {}
inline void mbar_arrive(saddr a) { auto *m = (MBar *)smem_at(a); m->pending--; mbar_flip(m); }
inline void mbar_arrive_tx(saddr a, uint32_t bytes) { auto *m = (MBar *)smem_at(a); m->tx += bytes; m->pending--; mbar_flip(m); }
inline void mbar_wait(saddr a, uint32_t parity) { auto *m = (MBar *)smem_at(a); emu::wait_until([=] { return m->phase != parity; }); }
// Swizzle of 128 bytes: bits 4..6 of the address ^= bits 7..9.
inline saddr swizzle(saddr a) { return a ^ ((a >> 3) & 0x70); }
inline void tma_load(saddr to, const TensorMap *t, saddr bar, int col, int row) {
  if (to % 1024 || t->box_cols * 2 > 128) emu::fail("tma: %u not aligned, or box too wide", to);
  for (uint32_t r = 0; r < t->box_rows; r++) for (uint32_t c = 0; c < t->box_cols; c++) {
    bool in = row + r < t->rows && col + c < t->cols;
    *(bf16 *)smem_at(swizzle(to + r * t->box_cols * 2 + c * 2)) = in ? t->base[(size_t)(row + r) * t->stride + col + c] : 0;
  }
  auto *m = (MBar *)smem_at(bar); m->tx -= t->box_cols * t->box_rows * 2; mbar_flip(m);
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
// d[64 × N] += a[64 × 16] · b[N × 16]ᵀ, both K-major with 128-byte swizzle. Runs at the wait, as late as the GPU may.
struct EmuMma { float *d; int n; uint64_t a, b; };
// A warpgroup multiplies as one: when all its threads have committed, and then as late as the dice say.
struct EmuGroup { uint64_t serial = 0; std::vector<EmuMma> queued[128]; unsigned committed[128] = {}, done = 0; };
inline EmuGroup &emu_group() {
  static thread_local EmuGroup groups[8];
  EmuGroup &g = groups[emu::self().linear / 128];
  if (g.serial != emu::block->serial) { g = EmuGroup{}; g.serial = emu::block->serial; }
  return g;
}
inline float emu_k_major(uint64_t desc, int row, int k) {
  saddr start = (desc & 0x3fff) << 4, sbo = ((desc >> 32) & 0x3fff) << 4;
  return bf16_f32(*(bf16 *)smem_at(swizzle(start + row / 8 * sbo + row % 8 * 128 + k * 2)));
}
inline void emu_mma(const EmuMma &m, int t) {
  for (int i = 0; i < m.n / 2; i++) {
    int row = t / 32 * 16 + t % 32 / 4 + 8 * (i >> 1 & 1), col = i / 4 * 8 + t % 4 * 2 + (i & 1);
    float s = m.d[i]; for (int k = 0; k < 16; k++) s += emu_k_major(m.a, row, k) * emu_k_major(m.b, col, k); m.d[i] = s;
  }
}
template <int N> void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) { emu_group().queued[emu::self().linear % 128].push_back({d, N, a, b}); }
template <int LEFT> void wgmma_wait() {
  static_assert(LEFT == 0); EmuGroup *g = &emu_group(); unsigned mine = ++g->committed[emu::self().linear % 128];
  emu::wait_until([=] {
    if (g->done >= mine) return true;
    for (unsigned c : g->committed) if (c < mine) return false;
    if (emu::dice() % 256) { emu::block->progress++; return false; }
    for (int t = 0; t < 128; t++) { for (auto &m : g->queued[t]) emu_mma(m, t); g->queued[t].clear(); }
    g->done = mine; return true;
  });
}
template <int N> void setmaxnreg_inc() {}
template <int N> void setmaxnreg_dec() {}
#else
#define SMEM(name) extern __shared__ __align__(1024) char name[]
__device__ __forceinline__ saddr smem_addr(const void *p) { return (saddr)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float bf16_f32(bf16 x) { return __uint_as_float((uint32_t)x << 16); }
__device__ __forceinline__ bf16 f32_bf16(float f) { bf16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(f)); return r; }
__device__ __forceinline__ float f16_f32(uint16_t x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }
__device__ __forceinline__ uint16_t f32_f16(float f) { uint16_t r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(f)); return r; }
__device__ __forceinline__ void bar_sync(int id, unsigned n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
struct __align__(64) TensorMap { char opaque[128]; };
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void mbar_init(saddr a, uint32_t n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(a), "r"(n)); }
__device__ __forceinline__ void mbar_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void mbar_arrive(saddr a) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(a) : "memory"); }
__device__ __forceinline__ void mbar_arrive_tx(saddr a, uint32_t n) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(a), "r"(n) : "memory"); }
__device__ __forceinline__ void mbar_wait(saddr a, uint32_t parity) {
  asm volatile("{\n.reg .pred p;\nw: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra d;\nbra w;\nd:\n}" ::"r"(a), "r"(parity) : "memory");
}
__device__ __forceinline__ void tma_load(saddr to, const TensorMap *t, saddr bar, int col, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(t), "r"(bar), "r"(col), "r"(row) : "memory");
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
template <int N> __device__ __forceinline__ void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b);
template <> __device__ __forceinline__ void wgmma<128>(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1, 1, 1, 0, 0;" : "+f"(d[0]),"+f"(d[1]),"+f"(d[2]),"+f"(d[3]),"+f"(d[4]),"+f"(d[5]),"+f"(d[6]),"+f"(d[7]),"+f"(d[8]),"+f"(d[9]),"+f"(d[10]),"+f"(d[11]),"+f"(d[12]),"+f"(d[13]),"+f"(d[14]),"+f"(d[15]),"+f"(d[16]),"+f"(d[17]),"+f"(d[18]),"+f"(d[19]),"+f"(d[20]),"+f"(d[21]),"+f"(d[22]),"+f"(d[23]),"+f"(d[24]),"+f"(d[25]),"+f"(d[26]),"+f"(d[27]),"+f"(d[28]),"+f"(d[29]),"+f"(d[30]),"+f"(d[31]),"+f"(d[32]),"+f"(d[33]),"+f"(d[34]),"+f"(d[35]),"+f"(d[36]),"+f"(d[37]),"+f"(d[38]),"+f"(d[39]),"+f"(d[40]),"+f"(d[41]),"+f"(d[42]),"+f"(d[43]),"+f"(d[44]),"+f"(d[45]),"+f"(d[46]),"+f"(d[47]),"+f"(d[48]),"+f"(d[49]),"+f"(d[50]),"+f"(d[51]),"+f"(d[52]),"+f"(d[53]),"+f"(d[54]),"+f"(d[55]),"+f"(d[56]),"+f"(d[57]),"+f"(d[58]),"+f"(d[59]),"+f"(d[60]),"+f"(d[61]),"+f"(d[62]),"+f"(d[63]) : "l"(a), "l"(b));
}
#endif
#endif
// Descriptor of a K-major matrix with 128-byte swizzle, 8 rows every 1024 bytes.
__device__ __forceinline__ uint64_t k_major(saddr a) { return (uint64_t)((a & 0x3ffff) >> 4) | (1ull << 16) | ((uint64_t)(1024 >> 4) << 32) | (1ull << 62); }

// The index of the thread in its grid along x.
__device__ __forceinline__ int64_t thread_index() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
