// The kernels of attention/backward.cuh. block 384, BackwardQ<DK, DV>::BYTES and BackwardKv<DK, DV, BQ>::BYTES of
// shared memory.
#include "attention/backward.cuh"
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_dq_64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                    const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v,
                    const __grid_constant__ TensorMap dout, const float *lse, const float *delta, bf16 *dq, int ldq,
                    const int *starts, int sequences, int tokens, int heads, int group, int q_offset, int q_stride,
                    int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride, float scale) {
  backward_q<64, 64, 64>(q, k, shared, v, dout, lse, delta, dq, ldq,
                         AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                       shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_dkv_64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                     const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v,
                     const __grid_constant__ TensorMap dout, const __grid_constant__ TensorMap lse,
                     const __grid_constant__ TensorMap delta, bf16 *dk, bf16 *dv, int ldk, int ldv, float *dshared,
                     const int *starts, int sequences, int tokens, int heads, int group, int q_offset, int q_stride,
                     int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride, float scale) {
  backward_kv<64, 64, 64, 64>(
      q, k, shared, v, dout, lse, delta, dk, ldk, dv, ldv, dshared,
      AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride, shared_offset,
                    v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_dq_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                     const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v,
                     const __grid_constant__ TensorMap dout, const float *lse, const float *delta, bf16 *dq, int ldq,
                     const int *starts, int sequences, int tokens, int heads, int group, int q_offset, int q_stride,
                     int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride, float scale) {
  backward_q<128, 128, 128>(q, k, shared, v, dout, lse, delta, dq, ldq,
                            AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset,
                                          k_stride, shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_dkv_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                      const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v,
                      const __grid_constant__ TensorMap dout, const __grid_constant__ TensorMap lse,
                      const __grid_constant__ TensorMap delta, bf16 *dk, bf16 *dv, int ldk, int ldv, float *dshared,
                      const int *starts, int sequences, int tokens, int heads, int group, int q_offset, int q_stride,
                      int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride, float scale) {
  backward_kv<128, 128, 128, 64>(
      q, k, shared, v, dout, lse, delta, dk, ldk, dv, ldv, dshared,
      AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride, shared_offset,
                    v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_dq_192_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                         const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v,
                         const __grid_constant__ TensorMap dout, const float *lse, const float *delta, bf16 *dq,
                         int ldq, const int *starts, int sequences, int tokens, int heads, int group, int q_offset,
                         int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride,
                         float scale) {
  backward_q<192, 128, 128>(q, k, shared, v, dout, lse, delta, dq, ldq,
                            AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset,
                                          k_stride, shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    attention_dkv_192_128(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                          const __grid_constant__ TensorMap shared, const __grid_constant__ TensorMap v,
                          const __grid_constant__ TensorMap dout, const __grid_constant__ TensorMap lse,
                          const __grid_constant__ TensorMap delta, bf16 *dk, bf16 *dv, int ldk, int ldv, float *dshared,
                          const int *starts, int sequences, int tokens, int heads, int group, int q_offset,
                          int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride,
                          float scale) {
  backward_kv<192, 128, 128, 32>(
      q, k, shared, v, dout, lse, delta, dk, ldk, dv, ldv, dshared,
      AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride, shared_offset,
                    v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
