/* The passes over memory between the matrix products of a convolutional block.
 *
 * Activations are (batch, frames, channels), contiguous, in bf16 with -DBF16 and
 * else in fp32; parameters, statistics and sums are fp32. Names are conv_block.py's:
 *   a  the first product, without its bias              u  the first PReLU's output
 *   n  u normed, rstd (u - mean), 0 in padding          y  n gamma + beta, 0 in padding
 *   c  y after the depthwise convolution                v  after the second PReLU
 *   z  the second product; d* is the gradient of *
 * Statistics belong to frames, so that a norm may be global or cumulative. Work is
 * shared in chunks of rows of one item. Every chunk has a slot of its own for its sums
 * over rows, so that they do not depend on the number of threads.
 */
#include <math.h>
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
  const float *mask;              /* (batch, frames) */
  const float *mean, *rstd;       /* (batch, frames), of the first norm */
  const float *in_bias;           /* (channels), of the first product */
  const float *gamma, *beta;      /* (channels), of the first norm */
  const float *taps, *tap_bias;   /* (3, channels), (channels) */
  float slope1, slope2;
  int64_t batch, frames, channels;
  int64_t first, dilation;        /* frames from the output to the first tap's input */
} block;

const int64_t chunk_rows = CHUNK;

static inline float prelu(float x, float slope) { return x > 0 ? x : slope * x; }

/* Its locals let the compiler see that no store changes them. */
#define EACH_CHUNK                                                              \
  const int64_t frames = k->frames, channels = k->channels;                     \
  const float slope1 = k->slope1, slope2 = k->slope2;                           \
  const float *restrict in_bias = k->in_bias;                                   \
  (void)channels, (void)slope1, (void)slope2, (void)in_bias;                    \
  const int64_t per_item = (frames + CHUNK - 1) / CHUNK;                        \
  _Pragma("omp parallel for schedule(static)") for (int64_t chunk = 0;          \
                                                    chunk < k->batch * per_item; \
                                                    ++chunk)

#define EACH_ROW                                                                \
  const int64_t item = chunk / per_item, first = chunk % per_item * CHUNK;      \
  const int64_t end = first + CHUNK < frames ? first + CHUNK : frames;          \
  for (int64_t t = first; t < end; ++t)

/* The row some frames away; outside of the item any row, with weight zero. */
static inline int64_t row_at(const block *k, int64_t item, int64_t t, int64_t offset,
                             float *inside) {
  const int64_t there = t + offset;
  *inside = there >= 0 && there < k->frames;
  return item * k->frames + (*inside ? there : t);
}

#define ALL 7 /* taps */

/* The first norm's factor and offset made part of the convolution: three rows of taps,
 * and one of what is added where `read` has a bit for every tap that reads a true frame. */
static void fold(const block *k, int read, float *restrict folded) {
  const int64_t channels = k->channels;
  for (int64_t h = 0; h < channels; ++h) {
    float weight = 0;
    for (int tap = 0; tap < 3; ++tap) {
      const float w = k->taps[tap * channels + h];
      folded[tap * channels + h] = w * k->gamma[h];
      weight += read >> tap & 1 ? w : 0;
    }
    folded[3 * channels + h] = weight * k->beta[h] + k->tap_bias[h];
  }
}

#define FOLDED                                                                  \
  const float *restrict w0 = folded, *restrict w1 = w0 + channels,              \
              *restrict w2 = w1 + channels, *restrict added = w2 + channels;    \
  (void)added

/* The row of a that a tap reads, its mask, and the factors of n = u r + s. */
#define ROW_OF_A(tap)                                                           \
  float m##tap;                                                                 \
  const int64_t at##tap =                                                       \
      row_at(k, item, t, k->first + tap * k->dilation, &m##tap);                \
  const real *restrict a##tap = k->a + at##tap * channels;                      \
  m##tap *= k->mask[at##tap];                                                   \
  const float r##tap = m##tap * k->rstd[at##tap];                               \
  const float s##tap = -k->mean[at##tap] * r##tap

/* Few rows are near an end, so that what the taps read seldom changes. */
#define ROWS_OF_A                                                               \
  ROW_OF_A(0); ROW_OF_A(1); ROW_OF_A(2);                                        \
  const int reads = (m0 > 0) | (m1 > 0) << 1 | (m2 > 0) << 2;                   \
  if (reads != read) fold(k, read = reads, folded);                             \
  FOLDED

/* The depthwise convolution, c, of row t at channel h. */
#define NORMED(tap)                                                             \
  const float n##tap = prelu(load(a##tap[h]) + in_bias[h], slope1) * r##tap + s##tap
#define CONVOLVED                                                               \
  NORMED(0); NORMED(1); NORMED(2);                                              \
  const float c = n0 * w0[h] + n1 * w1[h] + n2 * w2[h] + added[h]

/* Sums over channels of u and of its square: sums (batch, frames, 2). */
void moments(const block *k, float *sums) {
  EACH_CHUNK {
    EACH_ROW {
      const int64_t row = item * frames + t;
      const real *restrict a = k->a + row * channels;
      float sum = 0, power = 0;
#pragma omp simd reduction(+ : sum, power)
      for (int64_t h = 0; h < channels; ++h) {
        const float u = prelu(load(a[h]) + in_bias[h], slope1);
        sum += u, power += u * u;
      }
      sums[2 * row] = sum, sums[2 * row + 1] = power;
    }
  }
}

/* v, and its sums as above. */
void convolve(const block *k, real *v, float *sums) {
  EACH_CHUNK {
    float folded[4 * channels];
    int read = -1;
    EACH_ROW {
      ROWS_OF_A;
      const int64_t row = item * frames + t;
      real *restrict out = v + row * channels;
      float sum = 0, power = 0;
#pragma omp simd reduction(+ : sum, power)
      for (int64_t h = 0; h < channels; ++h) {
        CONVOLVED;
        const float value = prelu(c, slope2);
        out[h] = store(value);
        sum += value, power += value * value;
      }
      sums[2 * row] = sum, sums[2 * row + 1] = power;
    }
  }
}

/* The sums of a cumulative norm, (values, squares, frames), go on by a frame's; gives
 * its mean and reciprocal deviation. */
static inline void go_on(double *totals, double sum, double power, int64_t channels,
                         double eps, float *mean, float *rstd) {
  totals[0] += sum, totals[1] += power, totals[2] += 1;
  const double count = totals[2] * channels, average = totals[0] / count;
  const double variance = totals[1] / count - average * average;
  *mean = average, *rstd = 1 / sqrt((variance > 0 ? variance : 0) + eps);
}

/* The next frames of streams, all at once: few frames are quicker than many calls. From
 * a to v and, (batch, frames), to the second norm's mean and rstd; totals (batch, 3) of
 * both norms go on. y (batch, 2 dilation + frames, channels) has in its first rows those
 * that the taps still read. */
void stream(const block *k, double eps, double *totals1, double *totals2, float *y,
            real *v, float *mean, float *rstd) {
  const int64_t frames = k->frames, channels = k->channels;
  const float slope1 = k->slope1, slope2 = k->slope2;
  const float *restrict w0 = k->taps, *restrict w1 = w0 + channels,
              *restrict w2 = w1 + channels, *restrict bias = k->tap_bias,
              *restrict in_bias = k->in_bias, *restrict gamma = k->gamma,
              *restrict beta = k->beta;
  const int64_t reach = k->dilation * channels;
#pragma omp parallel for schedule(static) if (k->batch > 1)
  for (int64_t item = 0; item < k->batch; ++item) {
    for (int64_t t = 0; t < frames; ++t) {
      const int64_t row = item * frames + t;
      const real *restrict a = k->a + row * channels;
      const float *restrict y0 = y + (item * 2 * k->dilation + row) * channels;
      const float *restrict y1 = y0 + reach;
      float *restrict y2 = y + (item * 2 * k->dilation + row) * channels + 2 * reach;
      float sum = 0, power = 0, m, r;
#pragma omp simd reduction(+ : sum, power)
      for (int64_t h = 0; h < channels; ++h) {
        const float u = prelu(load(a[h]) + in_bias[h], slope1);
        sum += u, power += u * u, y2[h] = u;
      }
      go_on(totals1 + 3 * item, sum, power, channels, eps, &m, &r);
      real *restrict out = v + row * channels;
      sum = power = 0;
#pragma omp simd reduction(+ : sum, power)
      for (int64_t h = 0; h < channels; ++h) {
        const float now = (y2[h] - m) * r * gamma[h] + beta[h];
        y2[h] = now;
        const float value =
            prelu(y0[h] * w0[h] + y1[h] * w1[h] + now * w2[h] + bias[h], slope2);
        out[h] = store(value);
        sum += value, power += value * value;
      }
      go_on(totals2 + 3 * item, sum, power, channels, eps, mean + row, rstd + row);
    }
  }
}

/* dc from the gradient dv of the product behind v, to which the norm's statistics add
 * offsets + factors v (batch, frames), and v once more; slopes (chunks): gradient of
 * slope2. Sums over rows (chunks, 7, channels): of dc n for the three taps, of dc, and of
 * dc where each of the taps reads no true frame. */
void convolve_backward(const block *k, const real *dv, const float *offsets,
                       const float *factors, real *dc, real *v, float *slopes,
                       float *sums) {
  EACH_CHUNK {
    float *restrict p0 = sums + chunk * 7 * channels, *restrict p1 = p0 + channels,
                    *restrict p2 = p1 + channels, *restrict all = p2 + channels,
                    *restrict unread = all + channels;
    memset(p0, 0, 7 * channels * sizeof *p0);
    float folded[4 * channels], row_of_dc[channels], sum = 0;
    int read = -1;
    EACH_ROW {
      ROWS_OF_A;
      const int64_t row = item * frames + t, start = row * channels;
      const real *restrict grads = dv + start;
      real *restrict out = dc + start, *restrict values = v + start;
      const float offset = offsets[row], factor = factors[row];
      float *restrict summed = read == ALL ? all : memset(row_of_dc, 0, sizeof row_of_dc);
#pragma omp simd reduction(+ : sum)
      for (int64_t h = 0; h < channels; ++h) {
        CONVOLVED;
        const float slope = c > 0 ? 1 : slope2, value = slope * c;
        const float dvalue = load(grads[h]) + offset + factor * value;
        const float grad = slope * dvalue;
        values[h] = store(value);
        out[h] = store(grad);
        sum += dvalue * (c < 0 ? c : 0);
        p0[h] += grad * n0, p1[h] += grad * n1, p2[h] += grad * n2;
        summed[h] += grad;
      }
      if (read == ALL) continue;
      for (int64_t h = 0; h < channels; ++h) {
        all[h] += summed[h];
        for (int tap = 0; tap < 3; ++tap)
          unread[tap * channels + h] += read >> tap & 1 ? 0 : summed[h];
      }
    }
    slopes[chunk] = sum;
  }
}

/* The row of dc that frame t went into with a tap. */
#define ROW_OF_DC(tap)                                                          \
  float inside##tap;                                                            \
  const int64_t to##tap =                                                       \
      row_at(k, item, t, -(k->first + tap * k->dilation), &inside##tap);        \
  const real *restrict dc##tap = dc + to##tap * channels

#define ROWS_OF_DC                                                              \
  ROW_OF_DC(0); ROW_OF_DC(1); ROW_OF_DC(2);                                     \
  const int64_t row = item * frames + t;                                        \
  const real *restrict a = k->a + row * channels;                               \
  const float mask = k->mask[row]

/* dn of true frames, the gradient of n, of row t at channel h. */
#define NORMED_GRAD                                                             \
  (inside0 * load(dc0[h]) * w0[h] + inside1 * load(dc1[h]) * w1[h] +            \
   inside2 * load(dc2[h]) * w2[h])

/* Sums over channels of dn and dn u: sums (batch, frames, 2). */
void normed_grads(const block *k, const real *dc, float *sums) {
  EACH_CHUNK {
    float folded[4 * channels];
    fold(k, ALL, folded);
    FOLDED;
    EACH_ROW {
      ROWS_OF_DC;
      float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
      for (int64_t h = 0; h < channels; ++h) {
        const float dn = mask * NORMED_GRAD;
        sum += dn, product += dn * prelu(load(a[h]) + in_bias[h], slope1);
      }
      sums[2 * row] = sum, sums[2 * row + 1] = product;
    }
  }
}

/* da: through the first norm, whose statistics add offsets + factors u (batch, frames),
 * and the PReLU. Sums over rows of da (chunks, channels); slopes (chunks): gradient of
 * slope1. */
void input_backward(const block *k, const real *dc, const float *offsets,
                    const float *factors, real *da, float *sums, float *slopes) {
  EACH_CHUNK {
    float *restrict s = sums + chunk * channels;
    memset(s, 0, channels * sizeof *s);
    float folded[4 * channels], sum = 0;
    fold(k, ALL, folded);
    FOLDED;
    EACH_ROW {
      ROWS_OF_DC;
      const float scale = mask * k->rstd[row];
      const float offset = offsets[row], factor = factors[row];
      real *restrict out = da + row * channels;
#pragma omp simd reduction(+ : sum)
      for (int64_t h = 0; h < channels; ++h) {
        const float x = load(a[h]) + in_bias[h];
        const float slope = x > 0 ? 1 : slope1;
        const float du = scale * NORMED_GRAD + offset + factor * (slope * x);
        const float grad = slope * du;
        sum += du * (x < 0 ? x : 0);
        s[h] += grad;
        out[h] = store(grad);
      }
    }
    slopes[chunk] = sum;
  }
}

/* Residual and skip connection: z after the second norm, whose mean takes row_sums
 * (outputs) of the product's weight along, plus shift (outputs). The first `split`
 * outputs are the residual's. */
void project(const block *k, const real *z, const float *mean, const float *rstd,
             const float *row_sums, const float *shift, int64_t split,
             int64_t outputs, float *residual, float *skip) {
  EACH_CHUNK {
    EACH_ROW {
      const int64_t row = item * frames + t;
      const real *restrict in = z + row * outputs;
      const float r = rstd[row], s = -mean[row] * r;
      float *restrict out = residual + row * split;
      for (int64_t o = 0; o < split; ++o)
        out[o] = r * load(in[o]) + s * row_sums[o] + shift[o];
      out = skip + row * (outputs - split) - split;
      for (int64_t o = split; o < outputs; ++o)
        out[o] = r * load(in[o]) + s * row_sums[o] + shift[o];
    }
  }
}

/* From the gradients g of residual and skip: dz; sums over rows of g and of
 * mean rstd g (chunks, 2, outputs); sums over outputs of g row_sums and of g z
 * (batch, frames, 2). */
void project_backward(const block *k, const real *z, const float *mean,
                      const float *rstd, const float *row_sums,
                      const float *residual, const float *skip, int64_t split,
                      int64_t outputs, real *dz, float *sums, float *products) {
  EACH_CHUNK {
    float *restrict s = sums + chunk * 2 * outputs;
    memset(s, 0, 2 * outputs * sizeof *s);
    EACH_ROW {
      const int64_t row = item * frames + t;
      const real *restrict in = z + row * outputs;
      real *restrict out = dz + row * outputs;
      const float r = rstd[row], shift = mean[row] * r;
      float sum = 0, product = 0;
      for (int part = 0; part < 2; ++part) {
        const int64_t first_output = part ? split : 0;
        const int64_t end_output = part ? outputs : split;
        const float *restrict grad =
            part ? skip + row * (outputs - split) - split : residual + row * split;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t o = first_output; o < end_output; ++o) {
          s[o] += grad[o], s[outputs + o] += shift * grad[o];
          sum += grad[o] * row_sums[o], product += grad[o] * load(in[o]);
          out[o] = store(r * grad[o]);
        }
      }
      products[2 * row] = sum, products[2 * row + 1] = product;
    }
  }
}
