// Which tiles of which part (expert) a product consists of; all read from tables on the device.
#pragma once
#include "prelude.cuh"
// A product of `parts` parts.
//   y, dx (RAGGED_K = false): part e has the rows offsets[e] .. offsets[e+1] of a and out, and its own b.
//   dw    (RAGGED_K = true):  part e sums over the rows of its runs; every part has its own out[m, n] and the same
// tiles.
// offsets == nullptr: one part with all `rows` rows.
struct Parts {
  const int *offsets;    // [parts + 1], or null
  const int *part_runs;  // dw: [parts + 1], the runs of part e are part_runs[e] .. part_runs[e+1]; or null
  int parts, rows;
  int runs = 0;  // dw without part_runs: how many runs the one part has; 0: run e is part e
};
// `which` product of several (below); m, n: first row (within the part) and column.
struct Tile {
  int part, row0, row_end, m, n, which;
};
// Products that are made together: at most so many.
constexpr int JOINT = 3;
template <class V>
__device__ __forceinline__ V pick(const V (&of)[JOINT], int which) {
  return which == 0 ? of[0] : which == 1 ? of[1] : of[2];
}
// Tiles are numbered part by part; in a part, eight rows of tiles together, so that what is multiplied at one time
// shares both operands in the L2 cache. A block asks for increasing numbers: the search goes on from the part it was
// in. Of products that are made together the tiles lie side by side, in dw one below the other: `each` has their
// columns, in dw their rows, 0 where there is none.
template <int BM, int BN, bool RAGGED_K>
struct Tiles {
  static constexpr int B = RAGGED_K ? BM : BN;
  Parts p;
  int n, end0, end1, end2, part = 0, before = 0;
  __device__ __forceinline__ Tiles(const Parts &parts, const int (&each)[JOINT], int n_) : p(parts), n(n_) {
    end0 = (each[0] + B - 1) / B;
    end1 = end0 + (each[1] + B - 1) / B;
    end2 = end1 + (each[2] + B - 1) / B;
  }
  __device__ __forceinline__ bool find(int tile, Tile &t) {
    int across = RAGGED_K ? (n + BN - 1) / BN : end2, first = 0, end = p.rows, down;
    for (;; part++) {
      if (part == p.parts) return false;
      if (!RAGGED_K && p.offsets) {
        first = p.offsets[part];
        end = p.offsets[part + 1];
      }
      down = RAGGED_K ? end2 : (end - first + BM - 1) / BM;
      if (tile < before + down * across) break;
      before += down * across;
    }
    int local = tile - before, band = local / (8 * across), high = down - 8 * band < 8 ? down - 8 * band : 8;
    local -= band * 8 * across;
    int row = 8 * band + local % high, column = local / high, at = RAGGED_K ? row : column;
    t.which = at < end0 ? 0 : at < end1 ? 1 : 2;
    at -= at < end0 ? 0 : at < end1 ? end0 : end1;
    t.part = part;
    t.row0 = first;
    t.row_end = end;
    t.m = (RAGGED_K ? at : row) * BM;
    t.n = (RAGGED_K ? column : at) * BN;
    return true;
  }
};
// Walks the rows of a part's runs in steps of at most BK, a run beginning a new step. Runs are what a cut into micro-
// batches
// never divides: a sequence's tokens, or those of them that went to an expert. So the terms that share a step of the
// tensor
// core, and the order of the steps, do not depend on the cut, and with accumulators that pass through memory as f32
// neither
// does any bit. A step's missing rows are zeros.
template <int BK>
struct Runs {
  const Parts &p;
  int run, last, row, end;
  __device__ __forceinline__ Runs(const Parts &parts, int part) : p(parts) {
    if (!p.offsets) {
      run = last = 0;
      row = 0;
      end = p.rows;
      return;
    }
    run = p.part_runs ? p.part_runs[part] : p.runs ? 0 : part;
    last = (p.part_runs ? p.part_runs[part + 1] : p.runs ? p.runs : part + 1) - 1;
    row = end = 0;
    if (run <= last) open();
    else run = last;
  }
  __device__ __forceinline__ void open() {
    row = p.offsets[run];
    end = p.offsets[run + 1];
  }
  __device__ __forceinline__ int steps() const {
    if (!p.offsets) return (p.rows + BK - 1) / BK;
    int n = (end - row + BK - 1) / BK;
    for (int r = run + 1; r <= last; r++) n += (p.offsets[r + 1] - p.offsets[r] + BK - 1) / BK;
    return n;
  }
  // The next step: its first row and how many; 0 at the end.
  __device__ __forceinline__ int next(int &first) {
    while (row >= end) {
      if (run >= last) return 0;
      run++;
      open();
    }
    first = row;
    int count = end - row < BK ? end - row : BK;
    row += BK;
    return count;
  }
};
