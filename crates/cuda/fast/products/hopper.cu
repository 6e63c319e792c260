// The products of products/hopper.cuh: by the width of a tile and what they write. block 384, grid: as many blocks as
// fit the card (at most the tiles), Ring<BN>::BYTES of shared memory. product_y_32: block 256, Ring<32, 1>::BYTES,
// boxes of 64 rows of a and 32 of b.
#include "products/hopper.cuh"
extern "C" __global__ void __launch_bounds__(384, 1)
    product_y_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                  const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<256, 0, 0, bf16>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_y_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                  const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<128, 0, 0, bf16>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_y_256_f32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                      const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<256, 0, 0, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_y_128_f32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                      const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<128, 0, 0, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_dx_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                   const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<256, 0, 1, bf16>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_dx_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                   const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<128, 0, 1, bf16>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_dx_256_f32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                       const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<256, 0, 1, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_dx_128_f32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                       const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<128, 0, 1, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_dw_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                   const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<256, 1, 1, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    product_dw_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                   const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<128, 1, 1, float>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    product_y_32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                 const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<32, 0, 0, bf16, Store, 1>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    product_y_32_f32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                     const int *offsets, const int *part_runs, int parts, int rows, int m, int n, int k, int go_on) {
  product<32, 0, 0, float, Store, 1>(a, b, out, Parts{offsets, part_runs, parts, rows}, m, n, k, go_on);
}
