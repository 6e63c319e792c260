// Attention over the pages of a cache, in f32: expanded keys and values, and latents. Orders of sums: attend.cuh.
//
// A page holds PAGE tokens; a layer's part of it begins at `offset` and has a row for each token: keys of all heads,
// the shared part, values of all heads; or a latent and its rotary part. `format`: 0 for f32, 1 for f16, 2 for bf16.
// `tokens`: two numbers for each new token: where its sequence's list of pages begins in `lists`, and its place.
// `tiles`: four for each tile of up to eight new tokens of a sequence: the list, the first place, the first new token,
// how many.
#include "prelude.cuh"
#include "math.cuh"
#include "attend.cuh"

constexpr int PAGE = 16;

struct Pages {
  const char *at;
  const uint32_t *list;
  int64_t page_len, offset;
  int width, format;
  __device__ __forceinline__ int64_t place(int token, int i) const {
    return list[token / PAGE] * page_len + offset + (int64_t)(token % PAGE) * width + i;
  }
  __device__ __forceinline__ float get(int token, int i) const {
    int64_t from = place(token, i);
    if (format == 0) return ((const float *)at)[from];
    uint16_t bits = ((const uint16_t *)at)[from];
    return format == 1 ? f16_f32(bits) : bf16_f32(bits);
  }
};

__device__ __forceinline__ void put(char *pages, int64_t place, float x, int format) {
  if (format == 0) ((float *)pages)[place] = x;
  else if (format == 2) ((uint16_t *)pages)[place] = f32_bf16(x);
  else ((uint16_t *)pages)[place] = f32_f16(x < -65504.0f ? -65504.0f : x > 65504.0f ? 65504.0f : x);
}

// A block a new token.
extern "C" __global__ void paged_append(char *pages, const uint32_t *lists, const int *tokens, int64_t page_len,
                                        int64_t offset, int format, const float *k, int k_row, int k_head,
                                        const float *shared_k, int shared_row, const float *v, int v_row, int v_head,
                                        int kv_heads, int own, int shared_dim, int v_dim) {
  int64_t t = blockIdx.x;
  int keys = kv_heads * own, width = keys + shared_dim + kv_heads * v_dim;
  Pages of{pages, lists + tokens[2 * t], page_len, offset, width, format};
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    float x;
    if (i < keys) x = k[t * k_row + (int64_t)(i / own) * k_head + i % own];
    else if (i < keys + shared_dim) x = shared_k[t * shared_row + i - keys];
    else {
      int at = i - keys - shared_dim;
      x = v[t * v_row + (int64_t)(at / v_dim) * v_head + at % v_dim];
    }
    put(pages, of.place(tokens[2 * t + 1], i), x, format);
  }
}

extern "C" __global__ void paged_append_latent(char *pages, const uint32_t *lists, const int *tokens, int64_t page_len,
                                               int64_t offset, int format, const float *latent, const float *rotary,
                                               int latent_dim, int rotary_dim) {
  int64_t t = blockIdx.x;
  Pages of{pages, lists + tokens[2 * t], page_len, offset, latent_dim + rotary_dim, format};
  for (int i = threadIdx.x; i < latent_dim + rotary_dim; i += blockDim.x) {
    float x = i < latent_dim ? latent[t * latent_dim + i] : rotary[t * rotary_dim + i - latent_dim];
    put(pages, of.place(tokens[2 * t + 1], i), x, format);
  }
}

extern "C" __global__ void __launch_bounds__(128)
    paged_attend(const char *pages, const uint32_t *lists, const int *tiles, int64_t page_len, int64_t offset,
                 int format, const float *q, int q_row, int q_head, const float *sinks, float scale, float cap,
                 int heads, int kv_heads, int window, int own, int shared_dim, int v_dim, float *out) {
  SMEM(shared);
  const int *tile = tiles + 4 * blockIdx.x;
  int t0 = tile[2], h = blockIdx.y, kv = h / (heads / kv_heads), keys = kv_heads * own;
  Pages of{pages, lists + tile[0], page_len, offset, keys + shared_dim + kv_heads * v_dim, format};
  const float *queries = q + (int64_t)h * q_head;
  attend(
      Attend(shared, own + shared_dim, v_dim), tile[3], tile[1], scale, cap, window, sinks ? sinks[h] : least(),
      [=](int n, int i) { return queries[(int64_t)(t0 + n) * q_row + i]; },
      [=](int j, int i) { return of.get(j, i < own ? kv * own + i : keys + i - own); },
      [=](int j, int i) { return of.get(j, keys + shared_dim + kv * v_dim + i); },
      [=](int n, int i, float x) { out[((int64_t)(t0 + n) * heads + h) * v_dim + i] = x; }, [](int, float, float) {});
}

// absorbed[H·T, latent], the heads one below the other, and out like it.
extern "C" __global__ void __launch_bounds__(128)
    paged_attend_latent(const char *pages, const uint32_t *lists, const int *tiles, int64_t page_len, int64_t offset,
                        int format, const float *absorbed, const float *rotary, int rotary_row, int rotary_head,
                        float scale, int tokens, int latent_dim, int rotary_dim, float *out) {
  SMEM(shared);
  const int *tile = tiles + 4 * blockIdx.x;
  int t0 = tile[2], h = blockIdx.y;
  Pages of{pages, lists + tile[0], page_len, offset, latent_dim + rotary_dim, format};
  int64_t first = ((int64_t)h * tokens + t0) * latent_dim;
  const float *own = absorbed + first, *turned = rotary + (int64_t)h * rotary_head;
  attend(
      Attend(shared, latent_dim + rotary_dim, latent_dim), tile[3], tile[1], scale, 0.0f, ALL_KEYS, least(),
      [=](int n, int i) {
        return i < latent_dim ? own[(int64_t)n * latent_dim + i]
                              : turned[(int64_t)(t0 + n) * rotary_row + i - latent_dim];
      },
      [=](int j, int i) { return of.get(j, i); }, [=](int j, int i) { return of.get(j, i); },
      [=](int n, int i, float x) { out[first + (int64_t)n * latent_dim + i] = x; }, [](int, float, float) {});
}
