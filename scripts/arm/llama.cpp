// Products of llama.cpp's kernels, for scripts/arm/counts.py:
//
//     llama FORMAT KERNEL ROWS K N TIMES
//
// KERNEL is `dot` (a product of a row of weights as the file has them with a row of x) or the packing `4x4` or `4x8`
// (rows of weights side by side by bytes of each, four rows of x at once where there are as many). Weights are
// bytes of any value with scales of 1: counts do not depend on them. Ends with code 2 where there is no such kernel.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "quants.h"
#include "repack.h"

using product = void (*)(int, float *, size_t, const void *, const void *, int, int);
using quantise = void (*)(const float *, void *, int64_t);

struct packing {
    const char *format, *kernel;
    product of_one, of_four;
    quantise four;
};

static const packing PACKINGS[] = {
    {"Q4_0", "4x4", ggml_gemv_q4_0_4x4_q8_0, ggml_gemm_q4_0_4x4_q8_0, ggml_quantize_mat_q8_0_4x4},
    {"Q4_0", "4x8", ggml_gemv_q4_0_4x8_q8_0, ggml_gemm_q4_0_4x8_q8_0, ggml_quantize_mat_q8_0_4x8},
    {"Q8_0", "4x4", ggml_gemv_q8_0_4x4_q8_0, ggml_gemm_q8_0_4x4_q8_0, ggml_quantize_mat_q8_0_4x4},
    {"Q8_0", "4x8", ggml_gemv_q8_0_4x8_q8_0, ggml_gemm_q8_0_4x8_q8_0, ggml_quantize_mat_q8_0_4x8},
};

int main(int argc, char **argv) {
    if (argc != 7) return 1;
    const std::string format = argv[1], kernel = argv[2];
    const int rows = atoi(argv[3]), k = atoi(argv[4]), n = atoi(argv[5]), times = atoi(argv[6]);
    const size_t of_block = format == "Q4_0" ? 18 : 34, of_x = 34;
    const size_t row = k / 32 * of_block, x_row = k / 32 * of_x;
    std::vector<uint8_t> w(n * row, 0x3c), xs(rows * x_row);
    std::vector<float> x(size_t(rows) * k, 0.5f), y(size_t(rows) * n);
    const packing *packed = nullptr;
    for (const packing &p : PACKINGS)
        if (format == p.format && kernel == p.kernel) packed = &p;
    if (!packed && kernel != "dot") return 2;
    const auto dot = format == "Q4_0" ? ggml_vec_dot_q4_0_q8_0 : ggml_vec_dot_q8_0_q8_0;
    for (int time = 0; time < times; time++) {
        int done = 0;
        for (; packed && done + 4 <= rows; done += 4) packed->four(&x[size_t(done) * k], &xs[done * x_row], k);
        for (int i = done; i < rows; i++) quantize_row_q8_0(&x[size_t(i) * k], &xs[i * x_row], k);
        if (done > 0) packed->of_four(k, y.data(), n, w.data(), xs.data(), done, n);
        for (int i = done; i < rows; i++) {
            float *out = &y[size_t(i) * n];
            const uint8_t *in = &xs[i * x_row];
            if (packed) packed->of_one(k, out, n, w.data(), in, 1, n);
            for (int j = 0; !packed && j < n; j++) dot(k, &out[j], 0, &w[j * row], 0, in, 0, 1);
        }
    }
    printf("%g\n", y[0]);
    return 0;
}
