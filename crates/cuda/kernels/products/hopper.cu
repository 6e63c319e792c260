// Products of bf16 operands on Hopper, into f32: hopper.cuh. `offsets` has the first row of each part and the end, or is
// null where there is one. Columns are a multiple of 8 here.
#include "products/hopper.cuh"

extern "C" __global__ void __launch_bounds__(384, 1) wgmma_y_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out, const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<256, 0, 0, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1) wgmma_y_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out, const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<128, 0, 0, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1) wgmma_dx_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out, const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<256, 0, 1, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1) wgmma_dx_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out, const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<128, 0, 1, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
