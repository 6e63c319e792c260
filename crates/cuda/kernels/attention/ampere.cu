// The kernels of attention/ampere.cuh. block 128 (latent80: 256); shared memory: Attend80<DK, DV>::BYTES (paged80:
// PAGED_BYTES), Backward80<DK, DV>::Q_BYTES and KV_BYTES, LATENT80_BYTES.
#include "attention/ampere.cuh"
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_64(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, int ldq, int ldk, int lds, int ldv,
                   bf16 *out, int ldo, float *lse, const int *starts, int sequences, int tokens, int heads, int group,
                   int q_offset, int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset,
                   int v_stride, float scale) {
  PagedArgs a{nullptr, 0,         0,     0,     0,        k_offset, v_offset, shared_offset,           nullptr,
              starts,  sequences, heads, group, q_offset, q_stride, ldq,      __fmul_rn(scale, LOG2E), nullptr,
              nullptr, tokens};
  attend80<64, 64, 64, false>(q, nullptr, Packed80{k, shared, v, ldk, lds, ldv, k_stride, v_stride}, out, ldo, lse, a);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    paged80_64(const bf16 *q, const bf16 *cache, bf16 *out, int ldo, const int *table, int table_stride,
               int64_t page_stride, int token_stride, int head_stride, int k_offset, int v_offset, int shared_offset,
               const int *past, const int *new_starts, int sequences, int heads, int group, int q_offset, int q_stride,
               int ldq, float scale, float *part_o, float *part_ml, int rows) {
  attend80<64, 64, 64, true>(q, cache, Packed80{}, out, ldo, nullptr, PagedArgs{table,
                                                                                table_stride,
                                                                                page_stride,
                                                                                token_stride,
                                                                                head_stride,
                                                                                k_offset,
                                                                                v_offset,
                                                                                shared_offset,
                                                                                past,
                                                                                new_starts,
                                                                                sequences,
                                                                                heads,
                                                                                group,
                                                                                q_offset,
                                                                                q_stride,
                                                                                ldq,
                                                                                __fmul_rn(scale, LOG2E),
                                                                                part_o,
                                                                                part_ml,
                                                                                rows});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_dq_64(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, const bf16 *dout, int ldq,
                      int ldk, int lds, int ldv, int ldo, const float *lse, const float *delta, bf16 *dq, int lddq,
                      const int *starts, int sequences, int tokens, int heads, int group, int q_offset, int q_stride,
                      int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride, float scale) {
  dq80<64, 64, 64>(Rows80{q, k, shared, v, dout, ldq, ldk, lds, ldv, ldo}, lse, delta, dq, lddq,
                   AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                 shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_dkv_64(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, const bf16 *dout, int ldq,
                       int ldk, int lds, int ldv, int ldo, const float *lse, const float *delta, bf16 *dk, bf16 *dv,
                       int lddk, int lddv, float *dshared, const int *starts, int sequences, int tokens, int heads,
                       int group, int q_offset, int q_stride, int k_offset, int k_stride, int shared_offset,
                       int v_offset, int v_stride, float scale) {
  dkv80<64, 64, 64>(Rows80{q, k, shared, v, dout, ldq, ldk, lds, ldv, ldo}, lse, delta, dk, lddk, dv, lddv, dshared,
                    AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                  shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_128(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, int ldq, int ldk, int lds, int ldv,
                    bf16 *out, int ldo, float *lse, const int *starts, int sequences, int tokens, int heads, int group,
                    int q_offset, int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset,
                    int v_stride, float scale) {
  PagedArgs a{nullptr, 0,         0,     0,     0,        k_offset, v_offset, shared_offset,           nullptr,
              starts,  sequences, heads, group, q_offset, q_stride, ldq,      __fmul_rn(scale, LOG2E), nullptr,
              nullptr, tokens};
  attend80<128, 128, 128, false>(q, nullptr, Packed80{k, shared, v, ldk, lds, ldv, k_stride, v_stride}, out, ldo, lse,
                                 a);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    paged80_128(const bf16 *q, const bf16 *cache, bf16 *out, int ldo, const int *table, int table_stride,
                int64_t page_stride, int token_stride, int head_stride, int k_offset, int v_offset, int shared_offset,
                const int *past, const int *new_starts, int sequences, int heads, int group, int q_offset, int q_stride,
                int ldq, float scale, float *part_o, float *part_ml, int rows) {
  attend80<128, 128, 128, true>(q, cache, Packed80{}, out, ldo, nullptr, PagedArgs{table,
                                                                                   table_stride,
                                                                                   page_stride,
                                                                                   token_stride,
                                                                                   head_stride,
                                                                                   k_offset,
                                                                                   v_offset,
                                                                                   shared_offset,
                                                                                   past,
                                                                                   new_starts,
                                                                                   sequences,
                                                                                   heads,
                                                                                   group,
                                                                                   q_offset,
                                                                                   q_stride,
                                                                                   ldq,
                                                                                   __fmul_rn(scale, LOG2E),
                                                                                   part_o,
                                                                                   part_ml,
                                                                                   rows});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_dq_128(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, const bf16 *dout, int ldq,
                       int ldk, int lds, int ldv, int ldo, const float *lse, const float *delta, bf16 *dq, int lddq,
                       const int *starts, int sequences, int tokens, int heads, int group, int q_offset, int q_stride,
                       int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride, float scale) {
  dq80<128, 128, 128>(Rows80{q, k, shared, v, dout, ldq, ldk, lds, ldv, ldo}, lse, delta, dq, lddq,
                      AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                    shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_dkv_128(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, const bf16 *dout, int ldq,
                        int ldk, int lds, int ldv, int ldo, const float *lse, const float *delta, bf16 *dk, bf16 *dv,
                        int lddk, int lddv, float *dshared, const int *starts, int sequences, int tokens, int heads,
                        int group, int q_offset, int q_stride, int k_offset, int k_stride, int shared_offset,
                        int v_offset, int v_stride, float scale) {
  dkv80<128, 128, 128>(Rows80{q, k, shared, v, dout, ldq, ldk, lds, ldv, ldo}, lse, delta, dk, lddk, dv, lddv, dshared,
                       AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                     shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_192_128(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, int ldq, int ldk, int lds,
                        int ldv, bf16 *out, int ldo, float *lse, const int *starts, int sequences, int tokens,
                        int heads, int group, int q_offset, int q_stride, int k_offset, int k_stride, int shared_offset,
                        int v_offset, int v_stride, float scale) {
  PagedArgs a{nullptr, 0,         0,     0,     0,        k_offset, v_offset, shared_offset,           nullptr,
              starts,  sequences, heads, group, q_offset, q_stride, ldq,      __fmul_rn(scale, LOG2E), nullptr,
              nullptr, tokens};
  attend80<192, 128, 128, false>(q, nullptr, Packed80{k, shared, v, ldk, lds, ldv, k_stride, v_stride}, out, ldo, lse,
                                 a);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    paged80_192_128(const bf16 *q, const bf16 *cache, bf16 *out, int ldo, const int *table, int table_stride,
                    int64_t page_stride, int token_stride, int head_stride, int k_offset, int v_offset,
                    int shared_offset, const int *past, const int *new_starts, int sequences, int heads, int group,
                    int q_offset, int q_stride, int ldq, float scale, float *part_o, float *part_ml, int rows) {
  attend80<192, 128, 128, true>(q, cache, Packed80{}, out, ldo, nullptr, PagedArgs{table,
                                                                                   table_stride,
                                                                                   page_stride,
                                                                                   token_stride,
                                                                                   head_stride,
                                                                                   k_offset,
                                                                                   v_offset,
                                                                                   shared_offset,
                                                                                   past,
                                                                                   new_starts,
                                                                                   sequences,
                                                                                   heads,
                                                                                   group,
                                                                                   q_offset,
                                                                                   q_stride,
                                                                                   ldq,
                                                                                   __fmul_rn(scale, LOG2E),
                                                                                   part_o,
                                                                                   part_ml,
                                                                                   rows});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_dq_192_128(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, const bf16 *dout, int ldq,
                           int ldk, int lds, int ldv, int ldo, const float *lse, const float *delta, bf16 *dq, int lddq,
                           const int *starts, int sequences, int tokens, int heads, int group, int q_offset,
                           int q_stride, int k_offset, int k_stride, int shared_offset, int v_offset, int v_stride,
                           float scale) {
  dq80<192, 128, 128>(Rows80{q, k, shared, v, dout, ldq, ldk, lds, ldv, ldo}, lse, delta, dq, lddq,
                      AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                    shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(128, 1)
    attention80_dkv_192_128(const bf16 *q, const bf16 *k, const bf16 *shared, const bf16 *v, const bf16 *dout, int ldq,
                            int ldk, int lds, int ldv, int ldo, const float *lse, const float *delta, bf16 *dk,
                            bf16 *dv, int lddk, int lddv, float *dshared, const int *starts, int sequences, int tokens,
                            int heads, int group, int q_offset, int q_stride, int k_offset, int k_stride,
                            int shared_offset, int v_offset, int v_stride, float scale) {
  dkv80<192, 128, 128>(Rows80{q, k, shared, v, dout, ldq, ldk, lds, ldv, ldo}, lse, delta, dk, lddk, dv, lddv, dshared,
                       AttentionArgs{starts, sequences, tokens, heads, group, q_offset, q_stride, k_offset, k_stride,
                                     shared_offset, v_offset, v_stride, scale, __fmul_rn(scale, LOG2E)});
}
extern "C" __global__ void __launch_bounds__(256, 1)
    latent80(const bf16 *absorbed, const bf16 *rotary, const bf16 *cache, bf16 *out, const int *table, int table_stride,
             int64_t page_stride, int token_stride, const int *past, const int *new_starts, int sequences, int heads,
             int group, int q_offset, int q_stride, int ldq, float scale, float *part_o, float *part_ml, int rows) {
  latent80_rows(absorbed, rotary, cache, out,
                PagedArgs{table,
                          table_stride,
                          page_stride,
                          token_stride,
                          0,
                          0,
                          0,
                          0,
                          past,
                          new_starts,
                          sequences,
                          heads,
                          group,
                          q_offset,
                          q_stride,
                          ldq,
                          __fmul_rn(scale, LOG2E),
                          part_o,
                          part_ml,
                          rows});
}
