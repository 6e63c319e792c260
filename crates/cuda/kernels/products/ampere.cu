// Products of bf16 operands by mma.sync, into f32 or bf16: ampere.cuh. The tables are those of hopper.cu.
#include "products/ampere.cuh"

extern "C" __global__ void __launch_bounds__(256, 1)
    mma_y(const bf16 *a, const bf16 *b, float *out, const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product80<0, 0, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, nullptr, rows, n, k, k, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    mma_y_bf16(const bf16 *a, const bf16 *b, bf16 *out, const int *offsets, int parts, int rows, int n, int k,
               int go_on) {
  product80<0, 0, bf16>(a, b, out, Parts{offsets, nullptr, parts, rows}, nullptr, rows, n, k, k, k, n, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    mma_dx(const bf16 *a, const bf16 *b, float *out, const int *offsets, int parts, int rows, int n, int k, int go_on) {
  product80<0, 1, float>(a, b, out, Parts{offsets, nullptr, parts, rows}, nullptr, rows, n, k, k, n, n, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    mma_dx_bf16(const bf16 *a, const bf16 *b, bf16 *out, const int *offsets, int parts, int rows, int n, int k,
                int go_on) {
  product80<0, 1, bf16>(a, b, out, Parts{offsets, nullptr, parts, rows}, nullptr, rows, n, k, k, n, n, go_on);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    mma_dw(const bf16 *a, const bf16 *b, float *out, const int *offsets, const int *part_runs, int parts, int runs,
           int m, int n, int go_on) {
  product80<1, 1, float>(a, b, out, Parts{offsets, part_runs, parts, 0, runs}, nullptr, m, n, 0, m, n, n, go_on);
}
