// The kernels of attention/forward.cuh. block 384, Forward<DK, DV>::BYTES of shared memory.
#include "attention/forward.cuh"
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                 const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v, bf16 *out, int ldo,
                 float *lse, const int *starts, int sequences, int tokens, int heads, int group, int q_offset,
                 int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride, float scale) {
  forward<64, 64, 64>(q, k, shared, v, out, ldo, lse,
                      AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                    shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                  const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v, bf16 *out, int ldo,
                  float *lse, const int *starts, int sequences, int tokens, int heads, int group, int q_offset,
                  int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride,
                  float scale) {
  forward<128, 128, 128>(q, k, shared, v, out, ldo, lse,
                         AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                       shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_192_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                      const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v, bf16 *out, int ldo,
                      float *lse, const int *starts, int sequences, int tokens, int heads, int group, int q_offset,
                      int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride,
                      float scale) {
  forward<192, 128, 128>(q, k, shared, v, out, ldo, lse,
                         AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                       shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
