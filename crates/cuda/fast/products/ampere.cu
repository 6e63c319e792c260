// The products of products/ampere.cuh. block 256, grid: as many blocks as fit the card (at most the tiles),
// AMPERE_BYTES of shared memory.
#include "products/ampere.cuh"
extern "C" __global__ void __launch_bounds__(256, 1)
    product80_y(const bf16 *a, const bf16 *b, bf16 *out, const int *offsets, const int *part_runs, int parts, int rows,
                const int *gather, int m, int n, int k, int lda, int ldb, int ldo, int go_on) {
  product80<0, 0, bf16>(a, b, out, Parts{offsets, part_runs, parts, rows}, gather, m, n, k, lda, ldb, ldo, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    product80_y_f32(const bf16 *a, const bf16 *b, float *out, const int *offsets, const int *part_runs, int parts,
                    int rows, const int *gather, int m, int n, int k, int lda, int ldb, int ldo, int go_on) {
  product80<0, 0, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, gather, m, n, k, lda, ldb, ldo, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    product80_dx(const bf16 *a, const bf16 *b, bf16 *out, const int *offsets, const int *part_runs, int parts, int rows,
                 const int *gather, int m, int n, int k, int lda, int ldb, int ldo, int go_on) {
  product80<0, 1, bf16>(a, b, out, Parts{offsets, part_runs, parts, rows}, gather, m, n, k, lda, ldb, ldo, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    product80_dx_f32(const bf16 *a, const bf16 *b, float *out, const int *offsets, const int *part_runs, int parts,
                     int rows, const int *gather, int m, int n, int k, int lda, int ldb, int ldo, int go_on) {
  product80<0, 1, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, gather, m, n, k, lda, ldb, ldo, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    product80_dw(const bf16 *a, const bf16 *b, float *out, const int *offsets, const int *part_runs, int parts,
                 int rows, const int *gather, int m, int n, int k, int lda, int ldb, int ldo, int go_on) {
  product80<1, 1, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, gather, m, n, k, lda, ldb, ldo, go_on);
}
