// Output head: log-probabilities and the gradients of their losses, from the logits of some tokens at a time, which
// become gradients where they lie, or in bf16 elsewhere. Formulas: crates/kernels/src/head.rs, distil.rs; to the bits of their references.
// A block works on a row.
#include "prelude.cuh"
#include "math.cuh"
#include "sums.cuh"
#include "eight.cuh"

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

// N numbers that lie side by side, at a multiple of their size.
template <int N>
struct __align__(4 * N) Numbers {
  float x[N];
};
__device__ __forceinline__ void store(float *to, const Numbers<4> &from) { *(Numbers<4> *)to = from; }
__device__ __forceinline__ void store(float *to, const Numbers<1> &from) { *to = from.x[0]; }
__device__ __forceinline__ void store(bf16 *to, const Numbers<4> &from) {
  *(uint2 *)to = uint2{bf16x2(from.x[0], from.x[1]), bf16x2(from.x[2], from.x[3])};
}
__device__ __forceinline__ void store(bf16 *to, const Numbers<1> &from) { *to = f32_bf16(from.x[0]); }

// Calls f(j, row[j..j + N]) with a thread's places of begin..end, of which it has several loads under way.
template <int N, class F>
__device__ __forceinline__ void each_place(const float *row, int begin, int end, F f) {
  constexpr int LOADS = 4;
  int step = blockDim.x * N;
  for (int first = begin + threadIdx.x * N; first < end; first += LOADS * step) {
    Numbers<N> loaded[LOADS];
#pragma unroll
    for (int k = 0; k < LOADS; k++)
      if (first + k * step < end) loaded[k] = *(const Numbers<N> *)(row + first + k * step);
#pragma unroll
    for (int k = 0; k < LOADS; k++)
      if (first + k * step < end) f(first + k * step, loaded[k]);
  }
}

// s + x[lane], + x[lane + 16], …, in this order, of n numbers in shared memory.
__device__ __forceinline__ float add_sixteenth(float s, const float *x, int n, int lane) {
  chain<32>(0, (n - lane + 15) / 16, [=](int64_t t) { return x[(int)t * 16 + lane]; }, [&](float x) { s += x; });
  return s;
}

// The first `kept` numbers of a row stay in shared memory, behind ROUND numbers for those of the others that are added
// at a time; the others are read again from memory, or the card's cache, and their exponentials computed again.
// Two blocks share a processor: while one waits for sixteen lanes to add a row up, which is to the order of block_sum,
// the other loads or stores.
constexpr int ROUND = 2048;
template <int N, class T>
__device__ __forceinline__ void head_row(const float *row, const uint32_t *targets, float *logp, T *gradients,
                                         int64_t t, int v, int kept, int kind, const float *data, float uniform,
                                         float clip_low, float clip_high, float kl) {
  SMEM(shared);
  float *round = (float *)shared, *mine = round + ROUND;
  uint32_t target = targets[t];
  float hit = target == IGNORED ? 0.0f : row[target], max = least(), sum = 0.0f;
  each_place<N>(row, 0, v, [&](int j, const Numbers<N> &of) {
#pragma unroll
    for (int i = 0; i < N; i++) max = greater(max, of.x[i]);
    if (j < kept) store(mine + j, of);
  });
  max = block_max(blockDim.x, round, [=](int) { return max; });
  auto exponentials = [=](Numbers<N> of) {
#pragma unroll
    for (int i = 0; i < N; i++) of.x[i] = exp_of(of.x[i] - max);
    return of;
  };
  each_place<N>(mine, 0, kept, [=](int j, const Numbers<N> &of) { store(mine + j, exponentials(of)); });
  __syncthreads();
  if (threadIdx.x < 16) sum = add_sixteenth(sum, mine, kept, threadIdx.x);
  for (int first = kept; first < v; first += ROUND) {
    int end = min(first + ROUND, v);
    __syncthreads();
    each_place<N>(row, first, end, [=](int j, const Numbers<N> &of) { store(round + j - first, exponentials(of)); });
    __syncthreads();
    if (threadIdx.x < 16) sum = add_sixteenth(sum, round, end - first, threadIdx.x);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = sum_tree(sum);
    if (threadIdx.x == 0) round[0] = sum;
  }
  __syncthreads();
  sum = round[0];
  float own = target == IGNORED ? 0.0f : hit - max - log_of(sum);
  if (threadIdx.x == 0) logp[t] = own;
  if (!gradients) return;
  float c = target == IGNORED ? 0.0f : coefficient_of(kind, data, uniform, clip_low, clip_high, kl, t, own),
        inverse = 1.0f / sum;
  auto finish = [=](int j, Numbers<N> of) {
#pragma unroll
    for (int i = 0; i < N; i++) of.x[i] = (of.x[i] * inverse - ((uint32_t)(j + i) == target ? 1.0f : 0.0f)) * c;
    store(gradients + j, of);
  };
  each_place<N>(mine, 0, kept, finish);
  each_place<N>(row, kept, v, [=](int j, const Numbers<N> &of) { finish(j, exponentials(of)); });
}

// logp of the rows from `first` on; with `gradients`, logits become coefficient · (p − onehot). `kept` is v or a
// multiple of 16; ROUND + kept words of shared memory.
extern "C" __global__ void __launch_bounds__(512, 2)
    head_rows(float *logits, const uint32_t *targets, float *logp, int first, int v, int kept, int gradients, int kind,
              const float *data, float uniform, float clip_low, float clip_high, float kl) {
  float *row = logits + (int64_t)blockIdx.x * v, *to = gradients ? row : 0;
  int64_t t = (int64_t)first + blockIdx.x;
  if (v % 4 == 0) head_row<4>(row, targets, logp, to, t, v, kept, kind, data, uniform, clip_low, clip_high, kl);
  else head_row<1>(row, targets, logp, to, t, v, kept, kind, data, uniform, clip_low, clip_high, kl);
}

// The same with gradients[rows, v], rounded once: of each number of a row that is kept, 4 bytes are read and 2 written.
extern "C" __global__ void __launch_bounds__(512, 2)
    head_rows_bf16(const float *logits, const uint32_t *targets, float *logp, bf16 *gradients, int first, int v,
                   int kept, int kind, const float *data, float uniform, float clip_low, float clip_high, float kl) {
  const float *row = logits + (int64_t)blockIdx.x * v;
  bf16 *to = gradients + (int64_t)blockIdx.x * v;
  int64_t t = (int64_t)first + blockIdx.x;
  if (v % 4 == 0) head_row<4>(row, targets, logp, to, t, v, kept, kind, data, uniform, clip_low, clip_high, kl);
  else head_row<1>(row, targets, logp, to, t, v, kept, kind, data, uniform, clip_low, clip_high, kl);
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
