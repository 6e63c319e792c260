// Writes the new tokens' keys, values, shared parts or latents to their pages (pages.cuh): one call for each. All
// cards.
#include "prelude.cuh"
// `width` numbers (a multiple of 8) of each of `heads` heads: from x at row·ldx + x_offset + head·x_stride to the
// token's place + offset + head·head_stride.
// past, new_starts: as for attention. grid: (ceil(rows·heads·width / 2048)), block 256.
extern "C" __global__ void __launch_bounds__(256)
    append_bf16(const bf16 *x, int ldx, int x_offset, int x_stride, bf16 *cache, const int *table, int table_stride,
                int64_t page_stride, int token_stride, int head_stride, int offset, const int *past,
                const int *new_starts, int sequences, int rows, int heads, int width) {
  int chunks = width / 8;
  int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
  int c = at % chunks, head = at / chunks % heads;
  int64_t row = at / chunks / heads;
  if (row >= rows) return;
  int low = 0, high = sequences - 1;  // the last sequence that begins at or before the row
  while (low < high) {
    int mid = (low + high + 1) / 2;
    if (new_starts[mid] <= row) low = mid;
    else high = mid - 1;
  }
  int token = (past ? past[low] : 0) + (int)row - new_starts[low];
  bf16 *to = cache + table[(size_t)low * table_stride + token / 16] * page_stride + token % 16 * token_stride +
             head * head_stride + offset + c * 8;
  *(uint4 *)to = *(const uint4 *)(x + row * ldx + x_offset + head * x_stride + c * 8);
}
