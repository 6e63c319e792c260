// Operands of products on tensor cores. A thread has eight numbers of a row, or one where columns are no multiple of 8.
#include "prelude.cuh"

constexpr int EIGHT = 8;

// Where a thread's numbers are in y, and where in x: in the same row, or in the one that `rows` names.
struct Place {
  int64_t to, from;
  int count;
};
__device__ __forceinline__ Place place_of(const uint32_t *rows, int columns, int64_t elements) {
  Place p;
  p.count = columns % EIGHT ? 1 : EIGHT;
  p.to = thread_index() * p.count;
  int64_t row = p.to / columns;
  p.from = rows && p.to < elements ? rows[row] * (int64_t)columns + p.to % columns : p.to;
  return p;
}

__device__ __forceinline__ uint4 eight_bf16(const float4 &a, const float4 &b) {
  return make_uint4(bf16x2(a.x, a.y), bf16x2(a.z, a.w), bf16x2(b.x, b.y), bf16x2(b.z, b.w));
}

// Rows of x, or those that `rows` names, rounded to bf16.
extern "C" __global__ void __launch_bounds__(256)
    round_rows(const float *x, const uint32_t *rows, bf16 *y, int columns, int64_t elements) {
  Place p = place_of(rows, columns, elements);
  if (p.to >= elements) return;
  if (p.count == 1) {
    y[p.to] = f32_bf16(x[p.from]);
    return;
  }
  const float4 *from = (const float4 *)(x + p.from);
  *(uint4 *)(y + p.to) = eight_bf16(from[0], from[1]);
}

// The rows of x that `rows` names.
extern "C" __global__ void __launch_bounds__(256)
    choose_rows(const bf16 *x, const uint32_t *rows, bf16 *y, int columns, int64_t elements) {
  Place p = place_of(rows, columns, elements);
  if (p.to >= elements) return;
  if (p.count == 1) y[p.to] = x[p.from];
  else *(uint4 *)(y + p.to) = *(const uint4 *)(x + p.from);
}

// bf16 as f32.
extern "C" __global__ void __launch_bounds__(256) widen(const bf16 *x, float *y, int64_t elements) {
  int64_t at = thread_index();
  if (at < elements) y[at] = bf16_f32(x[at]);
}

// x = first + second + third, each of bf16 and as near as it can be to what is left: all 24 bits of an f32 that is
// neither tiny nor huge.
extern "C" __global__ void __launch_bounds__(256)
    split_f32(const float *x, bf16 *first, bf16 *second, bf16 *third, int64_t elements) {
  int64_t at = thread_index();
  if (at >= elements) return;
  float a = bf16_f32(f32_bf16(x[at])), left = __fadd_rn(x[at], -a), b = bf16_f32(f32_bf16(left));
  first[at] = f32_bf16(a);
  second[at] = f32_bf16(b);
  third[at] = f32_bf16(__fadd_rn(left, -b));
}
