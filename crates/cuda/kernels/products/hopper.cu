// Products of bf16 operands on Hopper, into f32 or bf16, up to three in a launch: hopper.cuh. `offsets` has the first
// row of each part and the end, or is null where there is one. In dw it has those of the runs, of which part e has
// part_runs[e] .. part_runs[e + 1], or all `runs` where that is null. Of fewer products the last ones' sizes are 0.
#include "products/hopper.cuh"
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_256(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b0,
                const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, float *y0, float *y1,
                float *y2, const int *offsets, int parts, int rows, int n0, int n1, int n2, int k, int go_on, int box) {
  Joint<float> of{{&a, &a, &a}, {&b0, &b1, &b2}, {y0, y1, y2}, {n0, n1, n2}, go_on, box};
  products<256, 0, 0, float>(of, Parts{offsets, nullptr, parts, rows}, 0, k);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_256_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b0,
                     const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, bf16 *y0, bf16 *y1,
                     bf16 *y2, const int *offsets, int parts, int rows, int n0, int n1, int n2, int k, int go_on,
                     int box) {
  Joint<bf16> of{{&a, &a, &a}, {&b0, &b1, &b2}, {y0, y1, y2}, {n0, n1, n2}, go_on, box};
  products<256, 0, 0, bf16>(of, Parts{offsets, nullptr, parts, rows}, 0, k);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_128(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b0,
                const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, float *y0, float *y1,
                float *y2, const int *offsets, int parts, int rows, int n0, int n1, int n2, int k, int go_on, int box) {
  Joint<float> of{{&a, &a, &a}, {&b0, &b1, &b2}, {y0, y1, y2}, {n0, n1, n2}, go_on, box};
  products<128, 0, 0, float>(of, Parts{offsets, nullptr, parts, rows}, 0, k);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_y_128_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b0,
                     const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, bf16 *y0, bf16 *y1,
                     bf16 *y2, const int *offsets, int parts, int rows, int n0, int n1, int n2, int k, int go_on,
                     int box) {
  Joint<bf16> of{{&a, &a, &a}, {&b0, &b1, &b2}, {y0, y1, y2}, {n0, n1, n2}, go_on, box};
  products<128, 0, 0, bf16>(of, Parts{offsets, nullptr, parts, rows}, 0, k);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    wgmma_y_32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b0,
               const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, float *y0, float *y1,
               float *y2, const int *offsets, int parts, int rows, int n0, int n1, int n2, int k, int go_on, int box) {
  Joint<float> of{{&a, &a, &a}, {&b0, &b1, &b2}, {y0, y1, y2}, {n0, n1, n2}, go_on, box};
  products<32, 0, 0, float, Store, 1>(of, Parts{offsets, nullptr, parts, rows}, 0, k);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    wgmma_y_32_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b0,
                    const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, bf16 *y0, bf16 *y1,
                    bf16 *y2, const int *offsets, int parts, int rows, int n0, int n1, int n2, int k, int go_on,
                    int box) {
  Joint<bf16> of{{&a, &a, &a}, {&b0, &b1, &b2}, {y0, y1, y2}, {n0, n1, n2}, go_on, box};
  products<32, 0, 0, bf16, Store, 1>(of, Parts{offsets, nullptr, parts, rows}, 0, k);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_256(const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap a1,
                 const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b0,
                 const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, float *dx,
                 const int *offsets, int parts, int rows, int n, int k0, int k1, int k2, int go_on) {
  Joint<float> of{{&a0, &a1, &a2}, {&b0, &b1, &b2}, {dx, dx, dx}, {k0, k1, k2}, go_on, 128};
  products<256, 0, 1, float>(of, Parts{offsets, nullptr, parts, rows}, n, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_256_bf16(const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap a1,
                      const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b0,
                      const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, bf16 *dx,
                      const int *offsets, int parts, int rows, int n, int k0, int k1, int k2, int go_on) {
  Joint<bf16> of{{&a0, &a1, &a2}, {&b0, &b1, &b2}, {dx, dx, dx}, {k0, k1, k2}, go_on, 128};
  products<256, 0, 1, bf16>(of, Parts{offsets, nullptr, parts, rows}, n, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_128(const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap a1,
                 const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b0,
                 const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, float *dx,
                 const int *offsets, int parts, int rows, int n, int k0, int k1, int k2, int go_on) {
  Joint<float> of{{&a0, &a1, &a2}, {&b0, &b1, &b2}, {dx, dx, dx}, {k0, k1, k2}, go_on, 128};
  products<128, 0, 1, float>(of, Parts{offsets, nullptr, parts, rows}, n, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dx_128_bf16(const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap a1,
                      const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b0,
                      const __grid_constant__ TensorMap b1, const __grid_constant__ TensorMap b2, bf16 *dx,
                      const int *offsets, int parts, int rows, int n, int k0, int k1, int k2, int go_on) {
  Joint<bf16> of{{&a0, &a1, &a2}, {&b0, &b1, &b2}, {dx, dx, dx}, {k0, k1, k2}, go_on, 128};
  products<128, 0, 1, bf16>(of, Parts{offsets, nullptr, parts, rows}, n, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dw_256(const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap a1,
                 const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b, float *dw0, float *dw1,
                 float *dw2, const int *offsets, const int *part_runs, int parts, int runs, int m0, int m1, int m2,
                 int n, int go_on) {
  Joint<float> of{{&a0, &a1, &a2}, {&b, &b, &b}, {dw0, dw1, dw2}, {m0, m1, m2}, go_on, 0};
  products<256, 1, 1, float>(of, Parts{offsets, part_runs, parts, 0, runs}, n, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dw_192(const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap a1,
                 const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b, float *dw0, float *dw1,
                 float *dw2, const int *offsets, const int *part_runs, int parts, int runs, int m0, int m1, int m2,
                 int n, int go_on) {
  Joint<float> of{{&a0, &a1, &a2}, {&b, &b, &b}, {dw0, dw1, dw2}, {m0, m1, m2}, go_on, 0};
  products<192, 1, 1, float>(of, Parts{offsets, part_runs, parts, 0, runs}, n, 0);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    wgmma_dw_128(const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap a1,
                 const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b, float *dw0, float *dw1,
                 float *dw2, const int *offsets, const int *part_runs, int parts, int runs, int m0, int m1, int m2,
                 int n, int go_on) {
  Joint<float> of{{&a0, &a1, &a2}, {&b, &b, &b}, {dw0, dw1, dw2}, {m0, m1, m2}, go_on, 0};
  products<128, 1, 1, float>(of, Parts{offsets, part_runs, parts, 0, runs}, n, 0);
}
