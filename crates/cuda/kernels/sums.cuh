// Sums and maxima over rows that a whole block of threads works on.
#pragma once

// Σ f(j), j < n, by sixteen partial sums (j mod 16) and the fixed tree; `scratch` has blockDim.x numbers, and
// blockDim.x
// is a multiple of 32. All threads have the sum.
template <class F>
__device__ __forceinline__ float block_sum(int n, float *scratch, F f) {
  float s = 0.0f;
  for (int base = 0; base < n; base += blockDim.x) {
    int j = base + threadIdx.x;
    __syncthreads();
    scratch[threadIdx.x] = j < n ? f(j) : 0.0f;
    __syncthreads();
    if (threadIdx.x < 16)
      for (int i = threadIdx.x; i < (int)blockDim.x && base + i < n; i += 16) s += scratch[i];
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    s = sum_tree(s);
    if (threadIdx.x == 0) scratch[0] = s;
  }
  __syncthreads();
  return scratch[0];
}

// The greatest f(j), j < n; −∞ where there is none. All threads have it.
template <class F>
__device__ __forceinline__ float block_max(int n, float *scratch, F f) {
  float m = least();
  for (int j = threadIdx.x; j < n; j += blockDim.x) m = greater(m, f(j));
  for (int half = 16; half; half /= 2) m = greater(m, __shfl_xor_sync(~0u, m, half));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = m;
  __syncthreads();
  for (int w = 0; w < (int)blockDim.x / 32; w++) m = greater(m, scratch[w]);
  __syncthreads();
  return m;
}

// The sequence of `starts[sequences + 1]` that token t is in.
__device__ __forceinline__ int sequence_of(const uint32_t *starts, int sequences, int t) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if ((int)starts[middle] <= t) low = middle;
    else high = middle;
  }
  return low;
}
