// The head's products with mma.sync: parts of 32 columns. Launch as product80_y.
#include "products/ampere.cuh"
#include "head/loss.cuh"
extern "C" __global__ void __launch_bounds__(256, 1)
    head80_stats(const bf16 *x, const bf16 *w, int rows, int v, int d, int ldx, int ldw, float *parts,
                 float *target_logit, const int *targets) {
  product80<0, 0, bf16>(x, w, (bf16 *)nullptr, Parts{nullptr, nullptr, 1, rows}, nullptr, rows, v, d, ldx, ldw, v, 0,
                        HeadStats{(float2 *)parts, target_logit, targets, rows, 32});
}
extern "C" __global__ void __launch_bounds__(256, 1)
    head80_dlogits(const bf16 *x, const bf16 *w, int rows, int v, int d, int ldx, int ldw, bf16 *out, const float *lse,
                   const float *coefficient, const int *targets, int first, int ldo) {
  product80<0, 0, bf16>(x, w, (bf16 *)nullptr, Parts{nullptr, nullptr, 1, rows}, nullptr, rows, v, d, ldx, ldw, v, 0,
                        HeadDlogits{out, lse, coefficient, targets, first, ldo});
}
