#include "prelude.cuh"

// The runs of experts: for each expert and sequence, where the slots of that sequence's tokens begin, and for each
// expert its first run. rows[slots]: each slot's token, ascending within an expert.
extern "C" __global__ void __launch_bounds__(256)
    expert_runs(const int *offsets, const int *rows, const int *starts, int *run_starts, int *part_runs, int experts,
                int sequences) {
  int at = blockIdx.x * 256 + threadIdx.x;
  if (at > experts * sequences) return;
  int e = at / sequences, s = at % sequences;
  if (s == 0) part_runs[e] = at;
  if (e == experts) {
    run_starts[at] = offsets[experts];
    return;
  }
  int low = offsets[e], high = offsets[e + 1];
  while (low < high) {
    int mid = (low + high) / 2;
    if (rows[mid] < starts[s]) low = mid + 1;
    else high = mid;
  }
  run_starts[at] = low;
}
