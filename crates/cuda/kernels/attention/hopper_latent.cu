// The kernel of attention/latent.cuh. block 256, LATENT_BYTES of shared memory.
#include "attention/latent.cuh"
extern "C" __global__ void __launch_bounds__(256, 1)
    latent(const bf16 *absorbed, const bf16 *rotary, const bf16 *cache, bf16 *out, const int *table, int table_stride,
           int64_t page_stride, int token_stride, const int *past, const int *new_starts, int sequences, int heads,
           int group, int q_offset, int q_stride, int ldq, float scale, float *part_o, float *part_ml, int rows) {
  latent_rows(absorbed, rotary, cache, out,
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
