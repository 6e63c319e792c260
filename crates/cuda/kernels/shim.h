// A block of CUDA threads on the processor: one fiber a thread, switched at barriers and waits.
//
// What no barrier orders comes in any order: blocks, warps and lanes are stepped as the dice say, from a seed that
// tests vary. What is asynchronous (TMA, cp.async, wgmma) happens late, and its target is NaN until then. Shared memory
// is NaN at first and between guards; a block in which nothing can go on is reported with
// what each thread waits for. x86-64 on Linux alone. All state is the calling OS thread's.
#pragma once
#include <sys/mman.h>

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
extern "C" void wels_emu_switch(void **save, void *load);

namespace emu {
constexpr size_t STACK = 64 << 10, SHARED = 256 << 10, PAGE_BYTES = 4096;
constexpr unsigned THREADS = 1024;
constexpr unsigned char POISON = 0xff, FENCE = 0xa5;

// One wgmma as a thread issued it: pointers to its registers, read and written when it is carried out.
struct Mma {
  float *d;
  const uint32_t *areg;
  uint64_t a, b;
  int n;
  bool ta, tb, acc, fp8;
};
struct Group {
  std::vector<std::vector<Mma>> queued[128];
  std::vector<Mma> open[128];
  unsigned committed[128] = {}, done = 0;
};
struct Copy {
  unsigned to;
  const void *from;
  int bytes;
};

struct Warp {
  uint32_t slot[2][32];
  void *ptr[32];
  unsigned arrived, gen, size;
};
struct Thread {
  void *sp;
  bool done;
  uint3 tid;
  unsigned linear;
  // It cannot go on while *watch == seen.
  const unsigned *watch;
  unsigned seen;
  // Whether wgmma may read its registers; what it wrote that the async proxy does not see; its cp.async.
  bool fenced;
  std::vector<unsigned> dirty;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> copies;
};
struct Block {
  uint3 index;
  dim3 dim, grid;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  char *stacks;
  unsigned bar_arrived[16], bar_gen[16];
  unsigned live, current;
  // Counts what lets another thread go on: without any there is a deadlock.
  uint64_t progress, serial;
  char *smem;
  size_t smem_size;
  std::function<void()> body;
  std::vector<Group> groups;
  std::vector<uint16_t> dirty;  // for each 16 bytes: the thread (+1) whose write the async proxy does not see yet
  std::vector<std::function<void()>> pending;  // TMA operations under way
  unsigned tma_rate,
      mma_rate;  // one in so many turns something of each kind is done: blocks differ, so each may be the slower
  void *scheduler;
  uint32_t seed;
  bool failed;
  char message[1024];
};

inline char *map(size_t bytes) {
  void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    perror("emulator: memory");
    abort();
  }
  return (char *)at;
}
inline Block *new_block() {
  Block *b = new Block{};
  b->stacks = map(THREADS * STACK);
  // A page before and one after shared memory that nobody may touch.
  char *shared = map(SHARED + 2 * PAGE_BYTES);
  mprotect(shared, PAGE_BYTES, PROT_NONE);
  mprotect(shared + PAGE_BYTES + SHARED, PAGE_BYTES, PROT_NONE);
  b->smem = shared + PAGE_BYTES;
  return b;
}
inline constinit thread_local Block *block = nullptr;
// Gives the memory back when the OS thread ends.
struct Owner {
  ~Owner() {
    if (!block) return;
    munmap(block->stacks, THREADS * STACK);
    munmap(block->smem - PAGE_BYTES, SHARED + 2 * PAGE_BYTES);
    delete block;
    block = nullptr;
  }
};
inline void own_block() {
  static thread_local Owner owner;
  (void)owner;
  block = new_block();
}
inline Thread &self() { return block->threads[block->current]; }
inline Warp &warp() { return block->warps[self().linear / 32]; }
inline uint32_t dice() {
  uint32_t &s = block->seed;
  s ^= s << 13;
  s ^= s >> 17;
  s ^= s << 5;
  return s;
}
inline void yield() { wels_emu_switch(&self().sp, block->scheduler); }
// Ends the launch with a message; the fibers are left where they are.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  if (!block->failed) vsnprintf(block->message, sizeof block->message, format, args);
  va_end(args);
  block->failed = true;
  for (;;) yield();
}
template <class P>
void wait_until(P p) {
  while (!p()) yield();
  block->progress++;
}
// Waits until another thread has changed a counter.
inline void wait_changed(const unsigned *counter, unsigned seen) {
  Thread &t = self();
  t.watch = counter;
  t.seen = seen;
  while (*counter == seen) yield();
  t.watch = nullptr;
  block->progress++;
}
inline void entry() {
  block->body();
  self().done = true;
  block->live--;
  block->progress++;
  for (;;) yield();
}
inline void prepare(unsigned n) {
  Block &b = *block;
  b.groups.assign((n + 127) / 128, Group{});
  b.dirty.assign(b.smem_size / 16 + 1, 0);
  b.pending.clear();
  b.tma_rate = 1u << dice() % 8;
  b.mma_rate = 1u << dice() % 8;
  b.live = n;
  b.serial++;
  b.progress = 0;
  b.threads.resize(n);
  b.warps.assign((n + 31) / 32, Warp{});
  for (unsigned w = 0; w < b.warps.size(); w++) b.warps[w].size = n - 32 * w < 32 ? n - 32 * w : 32;
  memset(b.bar_arrived, 0, sizeof b.bar_arrived);
  memset(b.bar_gen, 0, sizeof b.bar_gen);
  memset(b.smem, POISON, b.smem_size);
  memset(b.smem + b.smem_size, FENCE, ((b.smem_size + 64 + 63) & ~(size_t)63) - b.smem_size);
  for (unsigned t = 0; t < n; t++) {
    Thread &th = b.threads[t];
    th.done = false;
    th.linear = t;
    th.watch = nullptr;
    th.fenced = false;
    th.dirty.clear();
    th.open.clear();
    th.copies.clear();
    th.tid = {t % b.dim.x, t / b.dim.x % b.dim.y, t / (b.dim.x * b.dim.y)};
    uintptr_t top = ((uintptr_t)b.stacks + (t + 1) * STACK) & ~(uintptr_t)15;
    void **sp = (void **)top;
    *--sp = nullptr;
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    th.sp = sp;
  }
}
// Lets the threads of a warp that can go on do so, in any order; whether there were any.
inline bool step_warp(unsigned w) {
  Block &b = *block;
  unsigned size = b.warps[w].size, turn = dice();
  bool moved = false;
  for (unsigned i = 0; i < size; i++) {
    unsigned lane = ((turn & 64 ? size - 1 - i : i) + turn % 32) % size;
    b.current = 32 * w + lane;
    Thread &t = self();
    if (t.done || (t.watch && *t.watch == t.seen)) continue;
    wels_emu_switch(&b.scheduler, t.sp);
    if (b.failed) return false;
    moved = true;
  }
  return moved;
}
inline void report_deadlock() {
  Block &b = *block;
  b.failed = true;
  size_t at = snprintf(b.message, sizeof b.message, "deadlock in block %u,%u,%u: %u threads wait;", b.index.x,
                       b.index.y, b.index.z, b.live);
  unsigned shown = 0;
  for (Thread &t : b.threads) {
    if (t.done || shown++ == 8 || at + 100 > sizeof b.message) continue;
    Warp &w = b.warps[t.linear / 32];
    at += snprintf(b.message + at, sizeof b.message - at, " thread %u (warp %u of %u arrived, barrier 0 has %u);",
                   t.linear, w.arrived, w.size, b.bar_arrived[0]);
  }
}
// One of the operations under way, any, is done.
inline void finish_one() {
  Block &b = *block;
  size_t i = dice() % b.pending.size();
  auto f = std::move(b.pending[i]);
  b.pending[i] = std::move(b.pending.back());
  b.pending.pop_back();
  f();
  b.progress++;
}
// Runs a block to its end; whether it got there.
inline bool run_block() {
  Block &b = *block;
  unsigned warps = b.warps.size();
  while (b.live && !b.failed) {
    uint64_t before = b.progress;
    // A warp runs on its own for a while, then another.
    for (unsigned round = 0; round < 2 * warps || (b.progress == before && round < 64 * warps); round++) {
      if (!b.pending.empty() && dice() % b.tma_rate == 0) finish_one();
      unsigned w = dice() % warps, turns = 1 + dice() % 16;
      for (unsigned turn = 0; turn < turns && step_warp(w); turn++) {}
      if (b.failed) return false;
    }
    if (b.progress == before && !b.pending.empty()) finish_one();
    if (b.progress == before) {
      report_deadlock();
      return false;
    }
  }
  if (!b.failed && !b.pending.empty()) {
    snprintf(b.message, sizeof b.message, "block %u,%u,%u ended before its copies", b.index.x, b.index.y, b.index.z);
    b.failed = true;
  }
  for (size_t i = 0; i < 64; i++)
    if ((unsigned char)b.smem[b.smem_size + i] != FENCE) {
      snprintf(b.message, sizeof b.message, "block %u,%u,%u wrote %zu bytes beyond its %zu bytes of shared memory",
               b.index.x, b.index.y, b.index.z, i, b.smem_size);
      b.failed = true;
    }
  return !b.failed;
}
// Runs a grid, its blocks in any order. Gives null, or what went wrong.
template <class F>
const char *launch(dim3 grid, dim3 dim, size_t smem, uint32_t seed, F f) {
  if (!block) own_block();
  Block &b = *block;
  unsigned n = dim.x * dim.y * dim.z;
  uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
  b.failed = false;
  b.grid = grid;
  b.dim = dim;
  b.smem_size = smem;
  b.seed = seed ? seed : 1;
  if (n == 0 || n > THREADS || blocks == 0 || grid.y > 65535 || grid.z > 65535 || smem > 227 << 10) {
    snprintf(b.message, sizeof b.message,
             "a grid of %u,%u,%u blocks of %u threads with %zu bytes of shared memory cannot be launched", grid.x,
             grid.y, grid.z, n, smem);
    return b.message;
  }
  b.body = f;
  uint64_t step = 1 + dice() % blocks, first = dice() % blocks;
  while (std::gcd(step, blocks) != 1) step++;
  for (uint64_t i = 0; i < blocks; i++) {
    uint64_t at = (first + i * step) % blocks;
    b.index = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / grid.x / grid.y)};
    prepare(n);
    if (!run_block()) return b.message;
  }
  return nullptr;
}
// The same call as cuLaunchKernel: an array of pointers to the arguments.
template <class... A, size_t... I>
void call(void (*k)(A...), void **args, std::index_sequence<I...>) {
  k(*(std::remove_cv_t<A> *)args[I]...);
}
template <class... A>
const char *launch_kernel(void (*k)(A...), const unsigned *dims, size_t smem, uint32_t seed, void **args) {
  return launch({dims[0], dims[1], dims[2]}, {dims[3], dims[4], dims[5]}, smem, seed,
                [=] { call(k, args, std::index_sequence_for<A...>{}); });
}
}  // namespace emu

#define threadIdx (emu::self().tid)
#define blockIdx (emu::block->index)
#define blockDim (emu::block->dim)
#define gridDim (emu::block->grid)
inline void bar_sync(int id, unsigned n) {
  unsigned *gen = &emu::block->bar_gen[id], seen = *gen;
  if (++emu::block->bar_arrived[id] == n) {
    emu::block->bar_arrived[id] = 0;
    ++*gen;
  } else emu::wait_changed(gen, seen);
  emu::block->progress++;
}
inline void __syncthreads() { bar_sync(0, emu::block->threads.size()); }
template <class T>
T emu_exchange(T v, unsigned from) {
  static_assert(sizeof(T) == 4);
  emu::Warp &w = emu::warp();
  unsigned g = w.gen;
  memcpy(&w.slot[g & 1][emu::self().linear % 32], &v, 4);
  if (++w.arrived == w.size) {
    w.arrived = 0;
    w.gen++;
    emu::block->progress++;
  } else emu::wait_changed(&w.gen, g);
  if (from % 32 >= w.size) emu::fail("a lane reads from lane %u of a warp of %u", from % 32, w.size);
  T r;
  memcpy(&r, &w.slot[g & 1][from % 32], 4);
  return r;
}
// All lanes of a warp meet; the last to come does `f` for all.
inline void emu_collective(void *mine, void (*f)(void **)) {
  emu::Warp &w = emu::warp();
  unsigned g = w.gen;
  w.ptr[emu::self().linear % 32] = mine;
  if (++w.arrived == w.size) {
    w.arrived = 0;
    f(w.ptr);
    w.gen++;
    emu::block->progress++;
  } else emu::wait_changed(&w.gen, g);
}
inline void __syncwarp(unsigned = ~0u) { emu_exchange(0u, emu::self().linear); }
template <class T>
T __shfl_xor_sync(unsigned, T v, int m) {
  return emu_exchange(v, emu::self().linear ^ m);
}
template <class T>
T __shfl_sync(unsigned, T v, int l) {
  return emu_exchange(v, l);
}
template <class T>
T __shfl_down_sync(unsigned, T v, int d) {
  unsigned lane = emu::self().linear % 32;
  return emu_exchange(v, lane + d < 32 ? lane + d : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T v, int d) {
  int lane = emu::self().linear % 32;
  return emu_exchange(v, lane >= d ? lane - d : lane);
}
inline unsigned __ballot_sync(unsigned, int p) {
  emu::Warp &w = emu::warp();
  unsigned g = w.gen;
  emu_exchange((unsigned)(p != 0), emu::self().linear);
  unsigned bits = 0;
  for (unsigned i = 0; i < w.size; i++) bits |= (w.slot[g & 1][i] & 1) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline unsigned atomicAdd(unsigned *at, unsigned v) {
  unsigned before = *at;
  *at += v;
  return before;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __uint_as_float(unsigned x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned x;
  memcpy(&x, &f, 4);
  return x;
}
inline double __longlong_as_double(long long x) {
  double f;
  memcpy(&f, &x, 8);
  return f;
}
inline long long __double_as_longlong(double f) {
  long long x;
  memcpy(&x, &f, 8);
  return x;
}
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
