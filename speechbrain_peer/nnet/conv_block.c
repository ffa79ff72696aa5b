/* The passes over memory between the matrix products of a convolutional block.
 *
 * Activations are (batch, frames, channels), contiguous, in bf16 with -DBF16 and
 * else in fp32; parameters, statistics and sums are fp32. Names are conv_block.py's:
 *   a  the first product, input of the first PReLU      u  that PReLU's output
 *   y  u after the first norm: u scale + shift, 0 in padding
 *   c  y after the depthwise convolution                v  after the second PReLU
 *   z  the second product; d* is the gradient of *
 * Work is shared in chunks of rows of one item. Every chunk has a slot of its own for
 * its sums, so that they do not depend on the number of threads.
 */
#include <stdint.h>
#include <string.h>

#define CHUNK 64 /* rows */

#ifdef BF16
typedef uint16_t real;
static inline float load(real stored) {
  uint32_t bits = (uint32_t)stored << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline real store(float value) { /* rounds to nearest even */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
#else
typedef float real;
static inline float load(real stored) { return stored; }
static inline real store(float value) { return value; }
#endif

typedef struct {
  const real *a;
  const float *mask;             /* (batch, frames) */
  const float *scale, *shift;    /* (batch, channels) */
  const float *taps, *tap_bias;  /* (3, channels), (channels) */
  float slope1, slope2;
  int64_t batch, frames, channels, dilation;
} block;

const int64_t chunk_rows = CHUNK;

static inline float prelu(float x, float slope) { return x > 0 ? x : slope * x; }

/* Its locals let the compiler see that no store changes them. */
#define EACH_CHUNK                                                              \
  const int64_t frames = k->frames, channels = k->channels;                     \
  const float slope1 = k->slope1, slope2 = k->slope2;                           \
  const float *restrict w0 = k->taps, *restrict w1 = w0 + channels,             \
              *restrict w2 = w1 + channels, *restrict bias = k->tap_bias;       \
  (void)slope1, (void)slope2, (void)w2, (void)bias;                             \
  const int64_t per_item = (frames + CHUNK - 1) / CHUNK;                        \
  _Pragma("omp parallel for schedule(static)") for (int64_t chunk = 0;          \
                                                    chunk < k->batch * per_item; \
                                                    ++chunk)

#define EACH_ROW                                                                \
  const int64_t item = chunk / per_item, first = chunk % per_item * CHUNK;      \
  const int64_t end = first + CHUNK < frames ? first + CHUNK : frames;          \
  for (int64_t t = first; t < end; ++t)

/* A row of x some frames away; outside of the item any row, with weight zero. */
static inline const real *row_at(const block *k, const real *x, int64_t item,
                                 int64_t t, int64_t offset, float *inside) {
  const int64_t there = t + offset;
  *inside = there >= 0 && there < k->frames;
  return x + (item * k->frames + (*inside ? there : t)) * k->channels;
}

/* The depthwise convolution, c, of row t at channel h. */
#define NORMED(a, m) ((m) * (prelu(load((a)[h]), slope1) * scale[h] + shift[h]))
#define CONVOLVED \
  (NORMED(a0, m0) * w0[h] + NORMED(a1, m1) * w1[h] + NORMED(a2, m2) * w2[h] + bias[h])

/* The three rows of a around t, and their masks. */
#define ROWS_OF_A                                                               \
  float m0, m1, m2;                                                             \
  const int64_t d = k->dilation;                                                \
  const float *mask = k->mask + item * frames;                                  \
  const real *restrict a0 = row_at(k, k->a, item, t, -d, &m0);                  \
  const real *restrict a1 = row_at(k, k->a, item, t, 0, &m1);                   \
  const real *restrict a2 = row_at(k, k->a, item, t, d, &m2);                   \
  m0 = m0 ? mask[t - d] : 0, m1 = mask[t], m2 = m2 ? mask[t + d] : 0;           \
  const float *restrict scale = k->scale + item * channels;                     \
  const float *restrict shift = k->shift + item * channels

/* Sums of u and of its square over true frames: sums (chunks, 2). */
void moments(const block *k, float *sums) {
  EACH_CHUNK {
    float sum = 0, power = 0;
    EACH_ROW {
      const real *restrict a = k->a + (item * frames + t) * channels;
      float row_sum = 0, row_power = 0;
#pragma omp simd reduction(+ : row_sum, row_power)
      for (int64_t h = 0; h < channels; ++h) {
        const float u = prelu(load(a[h]), slope1);
        row_sum += u, row_power += u * u;
      }
      sum += k->mask[item * frames + t] * row_sum;
      power += k->mask[item * frames + t] * row_power;
    }
    sums[2 * chunk] = sum, sums[2 * chunk + 1] = power;
  }
}

/* v, and its moments as above. */
void convolve(const block *k, real *v, float *sums) {
  EACH_CHUNK {
    float sum = 0, power = 0;
    EACH_ROW {
      ROWS_OF_A;
      real *restrict out = v + (item * frames + t) * channels;
      float row_sum = 0, row_power = 0;
#pragma omp simd reduction(+ : row_sum, row_power)
      for (int64_t h = 0; h < channels; ++h) {
        const float value =
            prelu(CONVOLVED, slope2);
        out[h] = store(value);
        row_sum += value, row_power += value * value;
      }
      sum += m1 * row_sum, power += m1 * row_power;
    }
    sums[2 * chunk] = sum, sums[2 * chunk + 1] = power;
  }
}

/* dc from the gradient dv of the product behind v, which the norm's statistics extend
 * by mean + slope v (per item), and v once more; slopes (chunks): gradient of slope2. */
void convolve_backward(const block *k, const real *dv, const float *mean,
                       const float *slope, real *dc, real *v, float *slopes) {
  EACH_CHUNK {
    float sum = 0;
    EACH_ROW {
      ROWS_OF_A;
      const int64_t start = (item * frames + t) * channels;
      const real *restrict grads = dv + start;
      real *restrict out = dc + start, *restrict values = v + start;
      const float offset = m1 * mean[item], factor = m1 * slope[item];
#pragma omp simd reduction(+ : sum)
      for (int64_t h = 0; h < channels; ++h) {
        const float c = CONVOLVED;
        const float value = prelu(c, slope2);
        const float grad = load(grads[h]) + offset + factor * value;
        values[h] = store(value);
        out[h] = store(c > 0 ? grad : slope2 * grad);
        sum += c > 0 ? 0 : grad * c;
      }
    }
    slopes[chunk] = sum;
  }
}

/* The three rows of dc that frame t went into. */
#define ROWS_OF_DC                                                              \
  float n0, n1, n2;                                                             \
  const int64_t d = k->dilation;                                                \
  const real *restrict dc0 = row_at(k, dc, item, t, d, &n0);                    \
  const real *restrict dc1 = row_at(k, dc, item, t, 0, &n1);                    \
  const real *restrict dc2 = row_at(k, dc, item, t, -d, &n2);                   \
  const float mask = k->mask[item * frames + t];                                \
  const real *restrict a = k->a + (item * frames + t) * channels;               \
  const float *restrict scale = k->scale + item * channels

/* Sums over rows of dy, dy u, dc y of the three taps, and dc: (chunks, 6, channels). */
void parameter_sums(const block *k, const real *dc, float *sums) {
  EACH_CHUNK {
    float *restrict s = sums + chunk * 6 * channels;
    memset(s, 0, 6 * channels * sizeof *s);
    EACH_ROW {
      ROWS_OF_DC;
      const float *restrict shift = k->shift + item * channels;
#pragma omp simd
      for (int64_t h = 0; h < channels; ++h) {
        const float u = prelu(load(a[h]), slope1);
        const float y = mask * (u * scale[h] + shift[h]);
        const float g0 = n0 * load(dc0[h]), g1 = load(dc1[h]),
                    g2 = n2 * load(dc2[h]);
        const float dy = mask * (g0 * w0[h] + g1 * w1[h] +
                                 g2 * w2[h]);
        s[h] += dy;
        s[channels + h] += dy * u;
        s[2 * channels + h] += g0 * y;
        s[3 * channels + h] += g1 * y;
        s[4 * channels + h] += g2 * y;
        s[5 * channels + h] += g1;
      }
    }
  }
}

/* da: through the first norm, whose statistics add mean + slope u, and the PReLU.
 * Sums over rows of da (chunks, channels); slopes (chunks): gradient of slope1. */
void input_backward(const block *k, const real *dc, const float *mean,
                    const float *slope, real *da, float *sums, float *slopes) {
  EACH_CHUNK {
    float *restrict s = sums + chunk * channels;
    memset(s, 0, channels * sizeof *s);
    float sum = 0;
    EACH_ROW {
      ROWS_OF_DC;
      const float offset = mask * mean[item], factor = mask * slope[item];
      real *restrict out = da + (item * frames + t) * channels;
#pragma omp simd reduction(+ : sum)
      for (int64_t h = 0; h < channels; ++h) {
        const float x = load(a[h]);
        const float dy = n0 * load(dc0[h]) * w0[h] +
                         load(dc1[h]) * w1[h] +
                         n2 * load(dc2[h]) * w2[h];
        const float du = mask * dy * scale[h] + offset + factor * prelu(x, slope1);
        const float grad = x > 0 ? du : slope1 * du;
        sum += x > 0 ? 0 : du * x;
        s[h] += grad;
        out[h] = store(grad);
      }
    }
    slopes[chunk] = sum;
  }
}

/* Residual and skip connection: factor z + shift, with a factor for each item and
 * shift (batch, outputs). The first `split` outputs are the residual's. */
void project(const block *k, const real *z, const float *factor, const float *shift,
             int64_t split, int64_t outputs, float *residual, float *skip) {
  EACH_CHUNK {
    EACH_ROW {
      const int64_t row = item * frames + t;
      const real *restrict in = z + row * outputs;
      const float *restrict shifts = shift + item * outputs;
      const float r = factor[item];
      float *restrict out = residual + row * split;
      for (int64_t o = 0; o < split; ++o) out[o] = r * load(in[o]) + shifts[o];
      out = skip + row * (outputs - split) - split;
      for (int64_t o = split; o < outputs; ++o) out[o] = r * load(in[o]) + shifts[o];
    }
  }
}

/* The gradient of z from those of residual and skip, and over rows the sums of these
 * two gradients (chunks, outputs) and of their product with z (chunks). */
void project_backward(const block *k, const real *z, const float *factor,
                      const float *residual, const float *skip, int64_t split,
                      int64_t outputs, real *dz, float *sums, float *products) {
  EACH_CHUNK {
    float *restrict s = sums + chunk * outputs;
    memset(s, 0, outputs * sizeof *s);
    float product = 0;
    EACH_ROW {
      const int64_t row = item * frames + t;
      const real *restrict in = z + row * outputs;
      real *restrict out = dz + row * outputs;
      const float r = factor[item];
      const float *restrict grad = residual + row * split;
#pragma omp simd reduction(+ : product)
      for (int64_t o = 0; o < split; ++o) {
        s[o] += grad[o], product += grad[o] * load(in[o]);
        out[o] = store(r * grad[o]);
      }
      grad = skip + row * (outputs - split) - split;
#pragma omp simd reduction(+ : product)
      for (int64_t o = split; o < outputs; ++o) {
        s[o] += grad[o], product += grad[o] * load(in[o]);
        out[o] = store(r * grad[o]);
      }
    }
    products[chunk] = product;
  }
}
