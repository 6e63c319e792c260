// Products of bf16 operands on Hopper, into f32 or bf16: hopper.cuh. `offsets` has the first row of each part and the
// end, or is null where there is one. In dw it has those of the runs, of which part e has part_runs[e] ..
// part_runs[e + 1], or all `runs` where that is null. m: rows of dw. go_on: sums begin with what `out` holds.
#include "products/hopper.cuh"

extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<256, 0, 0, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_256_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                     const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<256, 0, 0, bf16>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<128, 0, 0, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_128_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                     const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<128, 0, 0, bf16>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    wgmma_y_32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out, const int *offsets,
               int parts, int rows, int n, int k, int go_on) {
  product<32, 0, 0, float, Store, 1>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    wgmma_y_32_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                    const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<32, 0, 0, bf16, Store, 1>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                 const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<256, 0, 1, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_256_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                      const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<256, 0, 1, bf16>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                 const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<128, 0, 1, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_128_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, bf16 *out,
                      const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product<128, 0, 1, bf16>(a, b, out, Parts{offsets, nullptr, parts, rows}, rows, n, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dw_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                 const int *offsets, const int *part_runs, int parts, int runs, int m, int n, int go_on) {
  product<256, 1, 1, float>(a, b, out, Parts{offsets, part_runs, parts, 0, runs}, m, n, 0, n, go_on);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dw_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *out,
                 const int *offsets, const int *part_runs, int parts, int runs, int m, int n, int go_on) {
  product<128, 1, 1, float>(a, b, out, Parts{offsets, part_runs, parts, 0, runs}, m, n, 0, n, go_on);
}
