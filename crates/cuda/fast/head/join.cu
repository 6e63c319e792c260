// Joins the parts of the vocabulary, for all cards.
#include "head/loss.cuh"
// grid: (ceil(T / 256)), block 256. lse[T]: log2 of the sum of the exponentials.
extern "C" __global__ void __launch_bounds__(256)
    head_join(const float *parts_of, const float *target_logit, const int *targets, float *logp, float *lse, int tokens,
              int count) {
  int t = blockIdx.x * 256 + threadIdx.x;
  if (t >= tokens) return;
  const float2 *parts = (const float2 *)parts_of;
  float m = parts[t].x, l = parts[t].y;
  for (int j = 1; j < count; j++) {
    float2 p = parts[(size_t)j * tokens + t];
    float most = fmaxf(m, p.x);
    l = __fmaf_rn(l, exp2_approx(__fmul_rn(__fadd_rn(m, -most), LOG2E)),
                  __fmul_rn(p.y, exp2_approx(__fmul_rn(__fadd_rn(p.x, -most), LOG2E))));
    m = most;
  }
  float log_l = log2_approx(l);
  lse[t] = __fmaf_rn(m, LOG2E, log_l);
  logp[t] = targets[t] == IGNORE ? 0.0f : __fadd_rn(__fadd_rn(target_logit[t], -m), -__fmul_rn(log_l, LN2));
}
