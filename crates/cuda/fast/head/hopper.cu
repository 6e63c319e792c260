// The head's products on Hopper: parts of 128 columns. Maps and launch are those of product_y_128.
#include "products/hopper.cuh"
#include "head/loss.cuh"
extern "C" __global__ void __launch_bounds__(384, 1)
    head_stats(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, int rows, int v, int d,
               float *parts, float *target_logit, const int *targets) {
  product<128, 0, 0, bf16>(x, w, (bf16 *)nullptr, Parts{nullptr, nullptr, 1, rows}, rows, v, d, 0,
                           HeadStats{(float2 *)parts, target_logit, targets, rows, 128});
}
extern "C" __global__ void __launch_bounds__(384, 1)
    head_dlogits(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, int rows, int v, int d,
                 bf16 *out, const float *lse, const float *coefficient, const int *targets, int first, int ldo) {
  product<128, 0, 0, bf16>(x, w, (bf16 *)nullptr, Parts{nullptr, nullptr, 1, rows}, rows, v, d, 0,
                           HeadDlogits{out, lse, coefficient, targets, first, ldo});
}
