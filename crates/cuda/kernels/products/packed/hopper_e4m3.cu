// Few rows times weights in E4M3: packed.cuh.
#include "products/packed.cuh"

extern "C" __global__ void __launch_bounds__(128, 6)
    packed_e4m3_8(const __grid_constant__ TensorMap x, const uint8_t *w, const int64_t *table, void *y, float *partial,
                  int *counts, const int *offsets, int rows, int n, int k, int padded, int half) {
  few_rows<E4M3, 8>(x, w, table, y, partial, counts, offsets, rows, n, k, padded, half);
}
extern "C" __global__ void __launch_bounds__(128, 6)
    packed_e4m3_16(const __grid_constant__ TensorMap x, const uint8_t *w, const int64_t *table, void *y, float *partial,
                   int *counts, const int *offsets, int rows, int n, int k, int padded, int half) {
  few_rows<E4M3, 16>(x, w, table, y, partial, counts, offsets, rows, n, k, padded, half);
}
extern "C" __global__ void __launch_bounds__(128, 6)
    packed_e4m3_32(const __grid_constant__ TensorMap x, const uint8_t *w, const int64_t *table, void *y, float *partial,
                   int *counts, const int *offsets, int rows, int n, int k, int padded, int half) {
  few_rows<E4M3, 32>(x, w, table, y, partial, counts, offsets, rows, n, k, padded, half);
}
extern "C" __global__ void __launch_bounds__(128, 4)
    packed_e4m3_64(const __grid_constant__ TensorMap x, const uint8_t *w, const int64_t *table, void *y, float *partial,
                   int *counts, const int *offsets, int rows, int n, int k, int padded, int half) {
  few_rows<E4M3, 64>(x, w, table, y, partial, counts, offsets, rows, n, k, padded, half);
}
