/* Long short-term memory along the steps of many sequences, and its gradient.
 *
 * x is (outer, steps, inner, inputs), y (outer, steps, inner, directions, hidden), both
 * contiguous fp32; a row is a sequence, one of outer x inner. Rows are taken in blocks
 * through all steps, so that what a step needs stays in the cache: z, the input beside
 * the memory h of the step before, the cell c, and the weights. All four gates of a few
 * units come out of one product, and become c and h before they leave the registers.
 *
 * Weights are packed by lstm.py, with units filled up to whole vectors:
 *   to_gates  (units / LANES, inputs + hidden, 4, LANES), and its bias (.., 4, LANES)
 *   to_z      (width / TILE, 4, units, TILE), for the gradient of z, of `width` values
 * A block keeps of every step for the gradient: (steps, BLOCK, 5, units), the gates i,
 * f, g, o and c. Every block has slots of its own for the weights' gradient, so that it
 * does not depend on the number of threads.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define BLOCK 48 /* rows, a multiple of the two below */
#if defined(__AVX512F__)
#define LANES 16
#define FEW 6  /* rows of a product to gates */
#define LEFT 2 /* the same of those left */
#define SOME 8 /* rows of the other products */
#else
#define LANES 8
#define FEW 3
#define LEFT 1
#define SOME 4
#endif
#define VECTORS 3
#define TILE (VECTORS * LANES)
#define UNROLLED _Pragma("GCC unroll 8")
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
  const float *x, *mask; /* the mask, (outer, steps), may be missing */
  int64_t outer, steps, inner, inputs, hidden, directions;
} sequences;

const int64_t chunk_rows = BLOCK, lanes = LANES, tile = TILE;

/* 2^x, at most 2^BOUND, so that one more than it has a reciprocal. */
#define BOUND 60.0f
static inline vec power_of_two(vec x) {
#ifdef __AVX512F__
  x = (vec)_mm512_min_ps(_mm512_set1_ps(BOUND), (__m512)x); /* NaN stays NaN */
  const vec whole = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
  for (int l = 0; l < LANES; ++l) {
    x[l] = x[l] > BOUND ? BOUND : x[l];
    x[l] = x[l] < -BOUND ? -BOUND : x[l];
  }
  /* Cut off above zero, it is rounded: sums may be reordered, so no large shift is. */
  const ivec n = __builtin_convertvector(x + (BOUND + 0.5f), ivec) - (int)BOUND;
  const vec whole = __builtin_convertvector(n, vec);
#endif
  const vec r = x - whole;
  vec series = r * 0.00132647247f + 0.00967151299f;
  series = series * r + 0.0555073358f;
  series = series * r + 0.240222424f;
  series = series * r + 0.693146980f;
  series = series * r + 1.0f;
#ifdef __AVX512F__
  return (vec)_mm512_scalef_ps((__m512)series, (__m512)whole);
#else
  return (vec)((ivec)series + (n << 23)) + (x - x); /* NaN stays NaN */
#endif
}

static inline vec reciprocal(vec x) {
#ifdef __AVX512F__
  const vec guess = (vec)_mm512_rcp14_ps((__m512)x);
  return guess * (2.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

static inline vec sigmoid(vec x) {
  return reciprocal(1.0f + power_of_two(x * -1.44269504f));
}
static inline vec hyperbolic_tangent(vec x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

static inline int64_t round_up(int64_t count, int64_t to) {
  return (count + to - 1) / to * to;
}

/* Zeros; NULL where there is no memory. */
static float *zeros(int64_t count) {
  float *values = aligned_alloc(64, round_up(4 * count, 64));
  return values ? memset(values, 0, 4 * count) : NULL;
}

/* Where a row has its values of a step, counted in rows. */
static inline int64_t place(const sequences *k, int64_t row, int64_t step) {
  return (row / k->inner * k->steps + step) * k->inner + row % k->inner;
}

static inline int is_padding(const sequences *k, int64_t row, int64_t step) {
  return k->mask && k->mask[row / k->inner * k->steps + step] == 0;
}

/* A step of a few rows and LANES units: all four gates from z and their weights, then
 * cells and memory; `keep` may be missing. */
ALWAYS_INLINE void advance(const int rows, const float *restrict z, int64_t depth,
                           const float *restrict weight, const float *restrict bias,
                           float *cells, float *memory, float *keep, int64_t units) {
  vec gates[FEW][4];
  UNROLLED for (int r = 0; r < rows; ++r) {
    UNROLLED for (int g = 0; g < 4; ++g) gates[r][g] = *(const vec *)(bias + g * LANES);
  }
  for (int64_t d = 0; d < depth; ++d, weight += 4 * LANES) {
    UNROLLED for (int r = 0; r < rows; ++r) {
      const float value = z[r * depth + d];
      UNROLLED for (int g = 0; g < 4; ++g) gates[r][g] +=
          *(const vec *)(weight + g * LANES) * value;
    }
  }
  UNROLLED for (int r = 0; r < rows; ++r) {
    vec *cell = (vec *)(cells + r * units);
    const vec i = sigmoid(gates[r][0]), f = sigmoid(gates[r][1]);
    const vec g = hyperbolic_tangent(gates[r][2]), o = sigmoid(gates[r][3]);
    *cell = f * *cell + i * g;
    *(vec *)(memory + r * units) = o * hyperbolic_tangent(*cell);
    if (keep) {
      vec *row = (vec *)(keep + r * 5 * units);
      const int64_t apart = units / LANES;
      row[0] = i, row[apart] = f, row[2 * apart] = g, row[3 * apart] = o;
      row[4 * apart] = *cell;
    }
  }
}

/* Runs. h and c, (directions, outer * inner, hidden), are the memory before the first
 * step, and become that after the last one. `kept` may be missing. 0 without memory. */
int64_t run(const sequences *k, const float *weights, const float *biases,
            float *h, float *c, float *y, float *kept, int64_t block) {
  const int64_t inputs = k->inputs, hidden = k->hidden, depth = inputs + hidden;
  const int64_t units = round_up(hidden, LANES), rows = k->outer * k->inner;
  const int64_t blocks = (rows + block - 1) / block;
  int64_t done = 1;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t direction = 0; direction < k->directions; ++direction)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * block;
      const int64_t count = rows - first < block ? rows - first : block;
      float *z = zeros(BLOCK * depth), *cells = zeros(BLOCK * units);
      float *memory = zeros(BLOCK * units);
      if (!z || !cells || !memory) {
#pragma omp atomic write
        done = 0;
        goto end;
      }
      const float *weight = weights + direction * units * depth * 4;
      const float *bias = biases + direction * units * 4;
      const int64_t at = direction * rows + first;
      for (int64_t r = 0; r < count; ++r) {
        memcpy(z + r * depth + inputs, h + (at + r) * hidden, 4 * hidden);
        memcpy(cells + r * units, c + (at + r) * hidden, 4 * hidden);
      }
      for (int64_t s = 0; s < k->steps; ++s) {
        const int64_t step = direction ? k->steps - 1 - s : s;
        for (int64_t r = 0; r < count; ++r)
          memcpy(z + r * depth, k->x + place(k, first + r, step) * inputs, 4 * inputs);
        float *keep = NULL;
        if (kept)
          keep = kept + ((direction * blocks + b) * k->steps + step) * BLOCK * 5 * units;
        for (int64_t unit = 0; unit < units; unit += LANES)
          for (int64_t r = 0; r < count;) {
            const int rows = count - r < FEW ? LEFT : FEW;
#define ADVANCE(rows)                                                            \
  advance(rows, z + r * depth, depth, weight + unit * depth * 4, bias + unit * 4, \
          cells + r * units + unit, memory + r * units + unit,                    \
          keep ? keep + r * 5 * units + unit : NULL, units)
            if (rows == FEW) ADVANCE(FEW);
            else ADVANCE(LEFT);
            r += rows;
          }
        for (int64_t r = 0; r < count; ++r) {
          if (is_padding(k, first + r, step)) {
            memset(cells + r * units, 0, 4 * units);
            memset(memory + r * units, 0, 4 * units);
            if (keep) memset(keep + (r * 5 + 4) * units, 0, 4 * units);
          }
          memcpy(z + r * depth + inputs, memory + r * units, 4 * hidden);
          const int64_t out = place(k, first + r, step) * k->directions + direction;
          memcpy(y + out * hidden, memory + r * units, 4 * hidden);
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        memcpy(h + (at + r) * hidden, z + r * depth + inputs, 4 * hidden);
        memcpy(c + (at + r) * hidden, cells + r * units, 4 * hidden);
      }
    end:
      free(z), free(cells), free(memory);
    }
  return done;
}

/* SOME rows of dgates, which lie `apart`, times the weights of a tile of z. */
static inline void to_z(const float *restrict dgates, int64_t apart, int64_t depth,
                        const float *restrict weight, float *restrict dz,
                        int64_t width) {
  vec sums[SOME][VECTORS];
  UNROLLED for (int r = 0; r < SOME; ++r) {
    UNROLLED for (int v = 0; v < VECTORS; ++v) sums[r][v] = (vec){0};
  }
  for (int64_t d = 0; d < depth; ++d, weight += TILE) {
    UNROLLED for (int r = 0; r < SOME; ++r) {
      const float value = dgates[r * apart + d];
      UNROLLED for (int v = 0; v < VECTORS; ++v) sums[r][v] +=
          *(const vec *)(weight + v * LANES) * value;
    }
  }
  UNROLLED for (int r = 0; r < SOME; ++r) {
    UNROLLED for (int v = 0; v < VECTORS; ++v) *(vec *)(dz + r * width + v * LANES) =
        sums[r][v];
  }
}

/* Adds, for SOME gates and a tile of z, the products of all rows' gradient and z. */
static inline void to_weight(const float *restrict dgates, int64_t apart,
                             const float *restrict z, int64_t width, int64_t rows,
                             float *restrict dweight) {
  vec sums[SOME][VECTORS];
  UNROLLED for (int g = 0; g < SOME; ++g) {
    UNROLLED for (int v = 0; v < VECTORS; ++v) sums[g][v] =
        *(vec *)(dweight + g * width + v * LANES);
  }
  for (int64_t r = 0; r < rows; ++r) {
    UNROLLED for (int g = 0; g < SOME; ++g) {
      const float value = dgates[r * apart + g];
      UNROLLED for (int v = 0; v < VECTORS; ++v) sums[g][v] +=
          *(const vec *)(z + r * width + v * LANES) * value;
    }
  }
  UNROLLED for (int g = 0; g < SOME; ++g) {
    UNROLLED for (int v = 0; v < VECTORS; ++v) *(vec *)(dweight + g * width +
                                                        v * LANES) = sums[g][v];
  }
}

/* Gradients from dy: dx of each direction, (directions, ..), and of every block the
 * weights', (directions, blocks, 4, units, width), and biases', (.., 4, units), which
 * begin as zeros. 0 without memory. */
int64_t run_back(const sequences *k, const float *weights, const float *y,
                 const float *kept, const float *dy, float *dx, float *dweights,
                 float *dbiases) {
  const int64_t inputs = k->inputs, hidden = k->hidden;
  const int64_t units = round_up(hidden, LANES), gates = 4 * units;
  const int64_t width = round_up(inputs + hidden, TILE);
  const int64_t rows = k->outer * k->inner, blocks = (rows + BLOCK - 1) / BLOCK;
  int64_t done = 1;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t direction = 0; direction < k->directions; ++direction)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * BLOCK;
      const int64_t count = rows - first < BLOCK ? rows - first : BLOCK;
      float *z = zeros(BLOCK * width), *dz = zeros(BLOCK * width);
      float *dcells = zeros(BLOCK * units), *dgates = zeros(BLOCK * gates);
      float *dmemory = zeros(BLOCK * units);
      const float *none = zeros(units);
      if (!z || !dz || !dcells || !dgates || !dmemory || !none) {
#pragma omp atomic write
        done = 0;
        goto end;
      }
      const float *weight = weights + direction * gates * width;
      float *dweight = dweights + (direction * blocks + b) * gates * width;
      float *dbias = dbiases + (direction * blocks + b) * gates;
      const float *keep = kept + (direction * blocks + b) * k->steps * BLOCK * 5 * units;
      float *to_x = dx + direction * rows * k->steps * inputs;
      for (int64_t s = k->steps - 1; s >= 0; --s) {
        const int64_t step = direction ? k->steps - 1 - s : s;
        const int64_t before = direction ? step + 1 : step - 1;
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = first + r, here = place(k, row, step);
          memcpy(z + r * width, k->x + here * inputs, 4 * inputs);
          if (s) {
            const int64_t there = place(k, row, before) * k->directions + direction;
            memcpy(z + r * width + inputs, y + there * hidden, 4 * hidden);
          } else {
            memset(z + r * width + inputs, 0, 4 * hidden);
          }
          float *restrict dgate = dgates + r * gates, *restrict dc = dcells + r * units;
          float *restrict dh = dmemory + r * units;
          if (is_padding(k, row, step)) {
            memset(dgate, 0, 4 * gates), memset(dc, 0, 4 * units);
            continue;
          }
          const float *grad = dy + (here * k->directions + direction) * hidden;
          for (int64_t u = 0; u < hidden; ++u) dh[u] += grad[u];
          const float *now = keep + (step * BLOCK + r) * 5 * units;
          const float *c_before =
              s ? keep + ((before * BLOCK + r) * 5 + 4) * units : none;
          for (int64_t u = 0; u < units; u += LANES) {
#define AT(pointer, part) (*(vec *)((pointer) + (part) * units + u))
            const vec i = AT(now, 0), f = AT(now, 1), g = AT(now, 2), o = AT(now, 3);
            const vec t = hyperbolic_tangent(AT(now, 4));
            const vec dc_now = AT(dc, 0) + AT(dh, 0) * o * (1.0f - t * t);
            AT(dgate, 0) = dc_now * g * i * (1.0f - i);
            AT(dgate, 1) = dc_now * AT(c_before, 0) * f * (1.0f - f);
            AT(dgate, 2) = dc_now * i * (1.0f - g * g);
            AT(dgate, 3) = AT(dh, 0) * t * o * (1.0f - o);
            AT(dc, 0) = dc_now * f;
            for (int g4 = 0; g4 < 4; ++g4) AT(dbias, g4) += AT(dgate, g4);
          }
        }
        for (int64_t w = 0; w < width; w += TILE) {
          for (int64_t r = 0; r < count; r += SOME)
            to_z(dgates + r * gates, gates, gates, weight + w * gates,
                 dz + r * width + w, width);
          for (int64_t g = 0; g < gates; g += SOME)
            to_weight(dgates + g, gates, z + w, width, count, dweight + g * width + w);
        }
        for (int64_t r = 0; r < count; ++r) {
          memcpy(to_x + place(k, first + r, step) * inputs, dz + r * width, 4 * inputs);
          memcpy(dmemory + r * units, dz + r * width + inputs, 4 * hidden);
        }
      }
    end:
      free(z), free(dz), free(dcells), free(dgates), free(dmemory), free((void *)none);
    }
  return done;
}
