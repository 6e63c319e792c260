// Output head: log-probabilities and the gradients of their losses, from the logits of some tokens at a time, which
// become gradients where they lie. Formulas: crates/kernels/src/head.rs, distil.rs; to the bits of their references.
// A block works on a row.
#include "prelude.cuh"
#include "math.cuh"
#include "sums.cuh"

constexpr uint32_t IGNORED = 0xffffffffu;
// What −∂loss/∂logp is: one number for all rows, one for each, or a policy's.
constexpr int UNIFORM = 0, PER_TOKEN = 1;

// `terms` has for each row of a policy: advantage, weight, old and reference log-probability.
__device__ __forceinline__ float policy_of(const float *term, float clip_low, float clip_high, float kl, float logp) {
  float advantage = term[0], ratio = exp_of(logp - term[2]);
  bool clips = advantage > 0.0f ? ratio > clip_high : ratio < clip_low;
  float policy = clips ? 0.0f : ratio * advantage;
  float penalty = kl == 0.0f ? 0.0f : kl * (1.0f - exp_of(term[3] - logp));
  return term[1] * (policy - penalty);
}

__device__ __forceinline__ float coefficient_of(int kind, const float *data, float uniform, float clip_low,
                                                float clip_high, float kl, int64_t row, float logp) {
  if (kind == UNIFORM) return uniform;
  if (kind == PER_TOKEN) return data[row];
  return policy_of(data + 4 * row, clip_low, clip_high, kl, logp);
}

// logp of the rows from `first` on; with `gradients`, logits become coefficient · (p − onehot).
extern "C" __global__ void head_rows(float *logits, const uint32_t *targets, float *logp, int first, int v,
                                     int gradients, int kind, const float *data, float uniform, float clip_low,
                                     float clip_high, float kl) {
  SMEM(shared);
  float *scratch = (float *)shared, *row = logits + (int64_t)blockIdx.x * v;
  int64_t t = (int64_t)first + blockIdx.x;
  uint32_t target = targets[t];
  float max = block_max(v, scratch, [=](int j) { return row[j]; });
  float hit = target == IGNORED ? 0.0f : row[target];
  __syncthreads();
  float sum = block_sum(v, scratch, [=](int j) { return row[j] = exp_of(row[j] - max); });
  float own = target == IGNORED ? 0.0f : hit - max - log_of(sum);
  if (threadIdx.x == 0) logp[t] = own;
  if (!gradients) return;
  float c = target == IGNORED ? 0.0f : coefficient_of(kind, data, uniform, clip_low, clip_high, kl, t, own),
        inverse = 1.0f / sum;
  for (int j = threadIdx.x; j < v; j += blockDim.x)
    row[j] = (row[j] * inverse - ((uint32_t)j == target ? 1.0f : 0.0f)) * c;
}

// A student's rows and its teacher's: log-probability, divergence, and the gradient in place of the student's logits.
extern "C" __global__ void distil_rows(float *logits, const float *taught, const uint32_t *targets, float *logp,
                                       float *divergence, int first, int v, int reverse, float temperature, float share,
                                       int kind, const float *data, float uniform, float clip_low, float clip_high,
                                       float kl) {
  SMEM(shared);
  float *scratch = (float *)shared, *row = logits + (int64_t)blockIdx.x * v;
  const float *of_teacher = taught + (int64_t)blockIdx.x * v;
  int64_t t = (int64_t)first + blockIdx.x;
  uint32_t target = targets[t];
  if (target == IGNORED) {
    for (int j = threadIdx.x; j < v; j += blockDim.x) row[j] = 0.0f;
    if (threadIdx.x == 0) logp[t] = divergence[t] = 0.0f;
    return;
  }
  float inverse = 1.0f / temperature;
  float max = block_max(v, scratch, [=](int j) { return row[j]; });
  float max_t = block_max(v, scratch, [=](int j) { return of_teacher[j]; });
  float plain_sum = block_sum(v, scratch, [=](int j) { return exp_of((row[j] - max) * 1.0f); });
  float student_sum = block_sum(v, scratch, [=](int j) { return exp_of((row[j] - max) * inverse); });
  float taught_sum = block_sum(v, scratch, [=](int j) { return exp_of((of_teacher[j] - max_t) * inverse); });
  float between = log_of(student_sum) - log_of(taught_sum);
  float of_plain = 1.0f / plain_sum, of_student = 1.0f / student_sum, of_taught = 1.0f / taught_sum;
  auto ratio = [=](int j) { return ((row[j] - max) * inverse - (of_teacher[j] - max_t) * inverse) - between; };
  auto student = [=](int j) { return exp_of((row[j] - max) * inverse) * of_student; };
  auto teacher = [=](int j) { return exp_of((of_teacher[j] - max_t) * inverse) * of_taught; };
  float mean = block_sum(v, scratch, [=](int j) { return (reverse ? student(j) : teacher(j)) * ratio(j); });
  float d = reverse ? mean : -mean, own = row[target] - max - log_of(plain_sum);
  if (threadIdx.x == 0) {
    logp[t] = own;
    divergence[t] = d;
  }
  float c = coefficient_of(kind, data, uniform, clip_low, clip_high, kl, t, own);
  float of_kl = c * ((1.0f - share) * temperature), ce = c * share;
  __syncthreads();
  for (int j = threadIdx.x; j < v; j += blockDim.x) {
    float s = student(j), pull = reverse ? s * (ratio(j) - d) : s - teacher(j);
    float gradient = pull * of_kl;
    if (share > 0.0f) {
      gradient += exp_of((row[j] - max) * 1.0f) * of_plain * ce;
      if ((uint32_t)j == target) gradient -= ce;
    }
    row[j] = gradient;
  }
}
