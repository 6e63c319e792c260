// Elementary functions and sums to the bits of the processor's: crates/kernels/src/math.rs and lanes.rs have the
// formulas. They hold without contraction of products and sums (--fmad=false, -ffp-contract=off).
#pragma once

__device__ __forceinline__ float exp2_whole(float n) { return __uint_as_float((uint32_t)((int)n + 127) << 23); }

// exp(x) = 2^n · exp(r), n whole, |r| ≤ ln(2)/2.
__device__ __forceinline__ float exp_of(float x) {
  if (x != x) return x;
  x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
  float n = rintf(x * 1.44269504088896340736f);
  float r = __fmaf_rn(n, 1.9046543e-9f, __fmaf_rn(n, -0.693147180559945309417f, x));
  float p = 1.9875691e-4f;
  p = __fmaf_rn(p, r, 1.3982e-3f);
  p = __fmaf_rn(p, r, 8.333452e-3f);
  p = __fmaf_rn(p, r, 4.1665796e-2f);
  p = __fmaf_rn(p, r, 1.6666666e-1f);
  p = __fmaf_rn(p, r, 5e-1f);
  p = __fmaf_rn(p, r * r, r) + 1.0f;
  float half = rintf(n * 0.5f);
  return p * exp2_whole(half) * exp2_whole(n - half);
}

__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(0.0f - x)); }
__device__ __forceinline__ float silu_of(float x) { return x * sigmoid_of(x); }

__device__ __forceinline__ float tanh_of(float x) {
  if (x != x) return x;
  x = x < -7.905311f ? -7.905311f : x > 7.905311f ? 7.905311f : x;
  float square = x * x, p = -2.7607684e-16f, q = 1.1982584e-6f;
  p = __fmaf_rn(p, square, 2.000188e-13f);
  p = __fmaf_rn(p, square, -8.604672e-11f);
  p = __fmaf_rn(p, square, 5.1222973e-8f);
  p = __fmaf_rn(p, square, 1.48572235e-5f);
  p = __fmaf_rn(p, square, 6.3726195e-4f);
  p = __fmaf_rn(p, square, 4.8935246e-3f);
  q = __fmaf_rn(q, square, 1.1853471e-4f);
  q = __fmaf_rn(q, square, 2.2684346e-3f);
  q = __fmaf_rn(q, square, 4.893525e-3f);
  return x * p / q;
}

// x softly capped, and its slope there; a cap of 0 is none.
__device__ __forceinline__ float2 capped(float x, float cap) {
  if (!(cap > 0.0f)) return make_float2(x, 1.0f);
  float tanh = tanh_of(x / cap);
  return make_float2(tanh * cap, __fmaf_rn(0.0f - tanh, tanh, 1.0f));
}

// The natural logarithm, in f64 and rounded once.
__device__ __forceinline__ float log_of(float x) {
  if (x != x || x < 0.0f) return __uint_as_float(0x7fc00000u);
  if (x == 0.0f) return __uint_as_float(0xff800000u);
  if (__float_as_uint(x) == 0x7f800000u) return x;
  long long bits = __double_as_longlong((double)x);
  long long exponent = (bits >> 52) - 1023;
  double m = __longlong_as_double((bits & ((1ll << 52) - 1)) | 1023ll << 52);
  if (m > 1.41421356237309504880) {
    m *= 0.5;
    exponent += 1;
  }
  double s = (m - 1.0) / (m + 1.0), s2 = s * s, series = 0.0;
  for (int k = 7; k >= 0; k--) series = series * s2 + 1.0 / (double)(2 * k + 1);
  return (float)((double)exponent * 0.693147180559945309417 + 2.0 * s * series);
}

// −∞, and what is greater than it: NaN is greater than nothing.
__device__ __forceinline__ float least() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float greater(float max, float x) { return x > max ? x : max; }

// Sixteen partial sums of the lanes of half a warp, by the fixed tree; all sixteen lanes have the sum.
__device__ __forceinline__ float sum_tree(float v) {
  for (int half = 8; half; half /= 2) v += __shfl_xor_sync(~0u, v, half);
  return v;
}
// Σ a·b of n elements by sixteen lanes: lane i takes elements i, i + 16, …
__device__ __forceinline__ float dot_of_lanes(const float *a, const float *b, int n, int lane) {
  float s = 0.0f;
  for (int i = lane; i < n; i += 16) s = __fmaf_rn(a[i], b[i], s);
  return sum_tree(s);
}
