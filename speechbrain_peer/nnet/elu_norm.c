/* The passes over memory of an ELU and an instance norm of maps.
 *
 * Maps are (batch, frames, bins, channels), contiguous, in bf16 with -DBF16 and else
 * in fp32; statistics and sums are fp32. A row is all channels at one frame and bin; f
 * is the ELU of x, m the mask of the row's frame, y the result, d* the gradient of *.
 * Work is shared in chunks of rows of one item. Every chunk has a slot of its own for
 * its sums over rows, so that they do not depend on the number of threads.
 */
#include <stdint.h>
#include <string.h>

#define CHUNK 256 /* rows */

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
  const real *x;
  const float *mask; /* (batch, frames) */
  int64_t batch, frames, bins, channels;
} maps;

const int64_t chunk_rows = CHUNK;

/* x or exp(x) - 1, which is 2^n (exp(r) - 1) + (2^n - 1) with r = x - n log 2. There is
 * no branch, as compilers do not vectorize it: one of the two parts is always 0. */
static inline float elu(float x) {
  const float size = __builtin_fabsf(x);
  float below = 0.5f * (size - x);
  uint32_t bits;
  memcpy(&bits, &below, sizeof bits);
  bits = bits < 0x42a00000 ? bits : 0x42a00000; /* exp(-80) is next to nothing */
  memcpy(&below, &bits, sizeof below);
  const int32_t n = (int32_t)(below * -1.44269504f - 0.5f);
  const float r = (-below - n * 0.693145752f) - n * 1.42860677e-6f;
  const float tail = 0.00833345205f + r * 0.00138888601f;
  const float series = 0.5f + r * (0.166666657f + r * (0.0416667075f + r * tail));
  const uint32_t exponent = (uint32_t)(n + 127) << 23;
  float power;
  memcpy(&power, &exponent, sizeof power);
  return 0.5f * (x + size) + power * (r + r * r * series) + (power - 1);
}

/* Its locals let the compiler see that no store changes them. */
#define EACH_CHUNK                                                              \
  const int64_t channels = k->channels;                                         \
  const int64_t rows = k->frames * k->bins;                                     \
  const int64_t per_item = (rows + CHUNK - 1) / CHUNK;                          \
  _Pragma("omp parallel for schedule(static)") for (int64_t chunk = 0;          \
                                                    chunk < k->batch * per_item; \
                                                    ++chunk)

#define EACH_ROW                                                                \
  const int64_t item = chunk / per_item, first = chunk % per_item * CHUNK;      \
  const int64_t end = first + CHUNK < rows ? first + CHUNK : rows;              \
  for (int64_t row = first; row < end; ++row)

#define ROW_OF_X                                                                \
  const float m = k->mask[item * k->frames + row / k->bins];                    \
  const int64_t start = (item * rows + row) * channels;                         \
  const real *restrict x = k->x + start

#define EACH_CHANNEL _Pragma("omp simd") for (int64_t h = 0; h < channels; ++h)

/* Sums over rows of m f and m f^2: (chunks, 2, channels). */
void moments(const maps *k, float *sums) {
  EACH_CHUNK {
    float *restrict sum = sums + chunk * 2 * channels, *restrict power = sum + channels;
    memset(sum, 0, 2 * channels * sizeof *sum);
    EACH_ROW {
      ROW_OF_X;
      EACH_CHANNEL {
        const float f = elu(load(x[h]));
        sum[h] += m * f, power[h] += m * f * f;
      }
    }
  }
}

/* y = m (f scale + shift), with scale and shift (batch, channels). */
void normalize(const maps *k, const float *scales, const float *shifts, real *y) {
  EACH_CHUNK {
    EACH_ROW {
      ROW_OF_X;
      const float *restrict scale = scales + item * channels;
      const float *restrict shift = shifts + item * channels;
      real *restrict out = y + start;
      EACH_CHANNEL out[h] =
          store(m * (elu(load(x[h])) * scale[h] + shift[h]));
    }
  }
}

/* Sums over rows of m dy and m dy f: (chunks, 2, channels). */
void grad_sums(const maps *k, const real *dy, float *sums) {
  EACH_CHUNK {
    float *restrict sum = sums + chunk * 2 * channels, *restrict power = sum + channels;
    memset(sum, 0, 2 * channels * sizeof *sum);
    EACH_ROW {
      ROW_OF_X;
      const real *restrict grad = dy + start;
      EACH_CHANNEL {
        const float g = m * load(grad[h]);
        sum[h] += g, power[h] += g * elu(load(x[h]));
      }
    }
  }
}

/* dx = m (dy scale + f factor + offset) f', all three (batch, channels). */
void input_grad(const maps *k, const real *dy, const float *scales,
                const float *factors, const float *offsets, real *dx) {
  EACH_CHUNK {
    EACH_ROW {
      ROW_OF_X;
      const float *restrict scale = scales + item * channels;
      const float *restrict factor = factors + item * channels;
      const float *restrict offset = offsets + item * channels;
      const real *restrict grad = dy + start;
      real *restrict out = dx + start;
      EACH_CHANNEL {
        const float value = load(x[h]), f = elu(value);
        const float df = m * (load(grad[h]) * scale[h] + f * factor[h] + offset[h]);
        out[h] = store(df * (value > 0 ? 1 : f + 1));
      }
    }
  }
}
