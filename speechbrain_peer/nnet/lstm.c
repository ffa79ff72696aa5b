/* Long short-term memory along the steps of many sequences, and its gradient.
 *
 * x is (outer, steps, inner, inputs), y (outer, steps, inner, directions, hidden), both
 * contiguous, in bf16 with -DBF16 and else in fp32; a row is a sequence, one of outer x
 * inner. Rows are taken in blocks through all steps, so that what a step needs stays in
 * the cache: z, the input beside the memory h of the step before, the cell c, and the
 * weights. All four gates of a few units come out of one product, and become c and h
 * before they leave the registers.
 *
 * Products are of words, each an fp32 value or a pair in bf16, whose products are summed
 * up in fp32, as all else is. Weights are packed by lstm.py, with units filled up to
 * whole vectors and pairs along the product's depth:
 *   to_gates  (units / LANES, depth, 4, LANES) words, and its bias (.., 4, LANES)
 *   to_z      (width / TILE, 4 units / PAIR, TILE), for the gradient of z, of `width`
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

#define BLOCK 48    /* rows, a multiple of FEW and SOME */
#define GATHERED 96 /* rows that a gradient of the weights is of, at least BLOCK */
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

#ifdef BF16
#ifndef __AVX512BF16__
#error "no instructions for bf16"
#endif
#define PAIR 2 /* values in a word */
typedef uint16_t real;
typedef int32_t word __attribute__((may_alias));
typedef uint16_t kept_value; /* fp16, finer than bf16 where gates are near 1 */
static inline float load(real stored) {
  return (union { uint32_t bits; float value; }){(uint32_t)stored << 16}.value;
}
static inline void store(real *to, vec x) {
  _mm256_storeu_si256((__m256i_u *)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
}
static inline vec add_products(vec sum, vec words, word value) {
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)words,
                               (__m512bh)_mm512_set1_epi32(value));
}
static inline void keep(kept_value *to, vec x) {
  _mm256_storeu_si256((__m256i_u *)to, _mm512_cvtps_ph((__m512)x, 0));
}
static inline vec kept_vec(const kept_value *from) {
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)from));
}
#else
#define PAIR 1
typedef float real, word, kept_value;
static inline float load(real stored) { return stored; }
static inline void store(real *to, vec x) { *(vec *)to = x; }
static inline vec add_products(vec sum, vec words, word value) {
  return sum + words * value;
}
static inline void keep(kept_value *to, vec x) { *(vec *)to = x; }
static inline vec kept_vec(const kept_value *from) { return *(const vec *)from; }
#endif

/* In a register: gcc would load it again for each of the few rows of AVX2's products. */
static inline vec loaded(const vec *from) {
  vec x = *from;
#if defined(__AVX2__) && !defined(__AVX512F__)
  __asm__("" : "+x"(x));
#endif
  return x;
}

typedef struct {
  const real *x;
  const float *mask; /* (outer, steps), may be missing */
  int64_t outer, steps, inner, inputs, hidden, directions;
} sequences;

const int64_t chunk_rows = BLOCK, lanes = LANES, tile = TILE, pair = PAIR;

/* By masks: compilers would take a loop over the lanes apart. NaN stays NaN. */
static inline vec between(vec x, float low, float high) {
  const ivec below = x < low, above = x > high, as_it_is = ~(below | above);
  const vec lows = (vec){0} + low, highs = (vec){0} + high;
  return (vec)((below & (ivec)lows) | (above & (ivec)highs) | (as_it_is & (ivec)x));
}

/* 2^x, at most 2^BOUND, so that one more than it has a reciprocal. */
#define BOUND 60.0f
static inline vec power_of_two(vec x) {
#ifdef __AVX512F__
  x = (vec)_mm512_min_ps(_mm512_set1_ps(BOUND), (__m512)x); /* NaN stays NaN */
  const vec whole = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
  x = between(x, -BOUND, BOUND);
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
  return (vec)(((ivec)series + (n << 23)) | (x != x)); /* NaN stays NaN */
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

/* So many of four bytes, zeros; NULL where there is no memory. */
static void *zeros(int64_t count) {
  void *values = aligned_alloc(64, round_up(4 * count, 64));
  return values ? memset(values, 0, 4 * count) : NULL;
}

/* Where a row has its values of a step, counted in rows. */
static inline int64_t place(const sequences *k, int64_t row, int64_t step) {
  return (row / k->inner * k->steps + step) * k->inner + row % k->inner;
}

static inline int is_padding(const sequences *k, int64_t row, int64_t step) {
  return k->mask && k->mask[row / k->inner * k->steps + step] == 0;
}

/* Cells and memory of a few rows and LANES units from their gates; `kept` may be missing.
 * Not inlined, as its constants would take registers from the product. */
static __attribute__((noinline)) void activate(int rows, vec (*gates)[4], float *cells,
                                               real *memory, kept_value *kept,
                                               int64_t units) {
  for (int r = 0; r < rows; ++r, cells += units, memory += units) {
    const vec i = sigmoid(gates[r][0]), f = sigmoid(gates[r][1]);
    const vec g = hyperbolic_tangent(gates[r][2]), o = sigmoid(gates[r][3]);
    const vec c = f * *(vec *)cells + i * g;
    *(vec *)cells = c;
    store(memory, o * hyperbolic_tangent(c));
    if (kept) {
      keep(kept, i), keep(kept + units, f), keep(kept + 2 * units, g);
      keep(kept + 3 * units, o), keep(kept + 4 * units, c);
      kept += 5 * units;
    }
  }
}

/* A step of a few rows and LANES units: all four gates from z and their weights. */
ALWAYS_INLINE void advance(const int rows, const word *restrict z, int64_t depth,
                           const word *restrict weight, const float *restrict bias,
                           float *cells, real *memory, kept_value *kept,
                           int64_t units) {
  vec gates[FEW][4];
  UNROLLED for (int r = 0; r < rows; ++r) {
    UNROLLED for (int g = 0; g < 4; ++g) gates[r][g] = *(const vec *)(bias + g * LANES);
  }
  for (int64_t d = 0; d < depth; ++d) {
    UNROLLED for (int g = 0; g < 4; ++g) {
      const vec words = loaded((const vec *)weight + 4 * d + g);
      UNROLLED for (int r = 0; r < rows; ++r) gates[r][g] =
          add_products(gates[r][g], words, z[r * depth + d]);
    }
  }
  activate(rows, gates, cells, memory, kept, units);
}

/* Runs. h and c, (directions, outer * inner, hidden), are the memory before the first
 * step, and become that after the last one. `kept` may be missing. 0 without memory. */
int64_t run(const sequences *k, const word *weights, const float *biases, real *h,
            float *c, real *y, kept_value *kept, int64_t block) {
  const int64_t inputs = k->inputs, hidden = k->hidden;
  const int64_t width = round_up(inputs + hidden, PAIR), depth = width / PAIR;
  const int64_t units = round_up(hidden, LANES), rows = k->outer * k->inner;
  const int64_t blocks = (rows + block - 1) / block;
  const int64_t of_inputs = inputs * sizeof(real), of_hidden = hidden * sizeof(real);
  int64_t done = 1;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t direction = 0; direction < k->directions; ++direction)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * block;
      const int64_t count = rows - first < block ? rows - first : block;
      real *z = zeros(BLOCK * depth), *memory = zeros(BLOCK * units);
      float *cells = zeros(BLOCK * units);
      if (!z || !cells || !memory) {
#pragma omp atomic write
        done = 0;
        goto end;
      }
      const word *weight = weights + direction * units * depth * 4;
      const float *bias = biases + direction * units * 4;
      const int64_t at = direction * rows + first;
      for (int64_t r = 0; r < count; ++r) {
        memcpy(z + r * width + inputs, h + (at + r) * hidden, of_hidden);
        memcpy(cells + r * units, c + (at + r) * hidden, 4 * hidden);
      }
      for (int64_t s = 0; s < k->steps; ++s) {
        const int64_t step = direction ? k->steps - 1 - s : s;
        for (int64_t r = 0; r < count; ++r)
          memcpy(z + r * width, k->x + place(k, first + r, step) * inputs, of_inputs);
        kept_value *now = NULL;
        if (kept)
          now = kept + ((direction * blocks + b) * k->steps + step) * BLOCK * 5 * units;
        for (int64_t unit = 0; unit < units; unit += LANES)
          for (int64_t r = 0; r < count;) {
            const int rows = count - r < FEW ? LEFT : FEW;
#define ADVANCE(rows)                                                                \
  advance(rows, (const word *)(z + r * width), depth, weight + unit * depth * 4,     \
          bias + unit * 4, cells + r * units + unit, memory + r * units + unit,      \
          now ? now + r * 5 * units + unit : NULL, units)
            if (rows == FEW) ADVANCE(FEW);
            else ADVANCE(LEFT);
            r += rows;
          }
        for (int64_t r = 0; r < count; ++r) {
          if (is_padding(k, first + r, step)) {
            memset(cells + r * units, 0, units * sizeof *cells);
            memset(memory + r * units, 0, units * sizeof *memory);
            if (now) memset(now + (r * 5 + 4) * units, 0, units * sizeof *now);
          }
          memcpy(z + r * width + inputs, memory + r * units, of_hidden);
          const int64_t out = place(k, first + r, step) * k->directions + direction;
          memcpy(y + out * hidden, memory + r * units, of_hidden);
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        memcpy(h + (at + r) * hidden, z + r * width + inputs, of_hidden);
        memcpy(c + (at + r) * hidden, cells + r * units, 4 * hidden);
      }
    end:
      free(z), free(cells), free(memory);
    }
  return done;
}

/* SOME rows of a, (SOME, depth) words, times a tile of b, (depth, TILE): becomes rows of
 * out, or is added to them. A step along a's rows or depth, and b's, is so many words. */
ALWAYS_INLINE void multiply(const word *restrict a, int64_t a_row, int64_t a_depth,
                            const word *restrict b, int64_t b_depth, int64_t depth,
                            float *restrict out, int64_t width, const int add) {
  vec sums[SOME][VECTORS];
  UNROLLED for (int r = 0; r < SOME; ++r) {
    UNROLLED for (int v = 0; v < VECTORS; ++v) sums[r][v] =
        add ? *(vec *)(out + r * width + v * LANES) : (vec){0};
  }
  for (int64_t d = 0; d < depth; ++d) {
    vec words[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; ++v) words[v] =
        loaded((const vec *)(b + d * b_depth) + v);
    UNROLLED for (int r = 0; r < SOME; ++r) {
      const word value = a[r * a_row + d * a_depth];
      UNROLLED for (int v = 0; v < VECTORS; ++v) sums[r][v] =
          add_products(sums[r][v], words[v], value);
    }
  }
  UNROLLED for (int r = 0; r < SOME; ++r) {
    UNROLLED for (int v = 0; v < VECTORS; ++v) *(vec *)(out + r * width + v * LANES) =
        sums[r][v];
  }
}

/* Words of values of one place in PAIR rows, (rows / PAIR, values). */
static inline void across_rows(const real *restrict from, int64_t rows, int64_t values,
                              word *restrict to) {
#ifdef BF16
  for (int64_t r = 0; r < rows; r += PAIR, from += PAIR * values, to += values)
    for (int64_t v = 0; v < values; ++v)
      to[v] = (uint32_t)from[values + v] << 16 | from[v];
#else
  memcpy(to, from, 4 * rows * values);
#endif
}

/* Gradients from dy: dx of each direction, (directions, ..), and of every block the
 * weights', (directions, blocks, 4, units, width), and biases', (.., 4, units), which
 * begin as zeros; all fp32. 0 without memory. */
int64_t run_back(const sequences *k, const word *weights, const real *y,
                 const kept_value *kept, const real *dy, float *dx, float *dweights,
                 float *dbiases) {
  const int64_t inputs = k->inputs, hidden = k->hidden;
  const int64_t units = round_up(hidden, LANES), gates = 4 * units;
  const int64_t width = round_up(inputs + hidden, TILE), depth = gates / PAIR;
  const int64_t rows = k->outer * k->inner, blocks = (rows + BLOCK - 1) / BLOCK;
  const int64_t of_inputs = inputs * sizeof(real), of_hidden = hidden * sizeof(real);
  int64_t done = 1;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t direction = 0; direction < k->directions; ++direction)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * BLOCK;
      const int64_t count = rows - first < BLOCK ? rows - first : BLOCK;
      const int64_t even = round_up(count, PAIR);
      real *z = zeros(BLOCK * width), *dgates = zeros(BLOCK * gates);
      word *gathered_z = zeros(GATHERED * width);
      word *gathered = zeros(GATHERED * gates);
      float *dz = zeros(BLOCK * width), *dcells = zeros(BLOCK * units);
      float *dmemory = zeros(BLOCK * units);
      const kept_value *none = zeros(units);
      if (!z || !dgates || !gathered_z || !gathered || !dz || !dcells || !dmemory ||
          !none) {
#pragma omp atomic write
        done = 0;
        goto end;
      }
      const word *weight = weights + direction * depth * width;
      float *dweight = dweights + (direction * blocks + b) * gates * width;
      float *dbias = dbiases + (direction * blocks + b) * gates;
      const kept_value *of_block =
          kept + (direction * blocks + b) * k->steps * BLOCK * 5 * units;
      float *to_x = dx + direction * rows * k->steps * inputs;
      int64_t held = 0; /* words' rows that are gathered */
      for (int64_t s = k->steps - 1; s >= 0; --s) {
        const int64_t step = direction ? k->steps - 1 - s : s;
        const int64_t before = direction ? step + 1 : step - 1;
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = first + r, here = place(k, row, step);
          memcpy(z + r * width, k->x + here * inputs, of_inputs);
          if (s) {
            const int64_t there = place(k, row, before) * k->directions + direction;
            memcpy(z + r * width + inputs, y + there * hidden, of_hidden);
          } else {
            memset(z + r * width + inputs, 0, of_hidden);
          }
          real *restrict dgate = dgates + r * gates;
          float *restrict dc = dcells + r * units, *restrict dh = dmemory + r * units;
          if (is_padding(k, row, step)) {
            memset(dgate, 0, gates * sizeof *dgate), memset(dc, 0, 4 * units);
            continue;
          }
          const real *grad = dy + (here * k->directions + direction) * hidden;
          for (int64_t u = 0; u < hidden; ++u) dh[u] += load(grad[u]);
          const kept_value *now = of_block + (step * BLOCK + r) * 5 * units;
          const kept_value *next = of_block + (before * BLOCK + r) * 5 * units;
          const kept_value *c_before = s ? next + 4 * units : none;
          if (s)
            for (int64_t u = 0; u < 4 * units; u += 64 / sizeof *next)
              __builtin_prefetch(next + u);
          for (int64_t u = 0; u < units; u += LANES) {
#define KEPT(part) kept_vec(now + (part) * units + u)
            const vec i = KEPT(0), f = KEPT(1), g = KEPT(2), o = KEPT(3);
            const vec t = hyperbolic_tangent(KEPT(4)), dh_now = *(vec *)(dh + u);
            const vec dc_now = *(vec *)(dc + u) + dh_now * o * (1.0f - t * t);
            const vec dgate_now[4] = {
                dc_now * g * i * (1.0f - i),
                dc_now * kept_vec(c_before + u) * f * (1.0f - f),
                dc_now * i * (1.0f - g * g),
                dh_now * t * o * (1.0f - o),
            };
            *(vec *)(dc + u) = dc_now * f;
            UNROLLED for (int part = 0; part < 4; ++part) {
              store(dgate + part * units + u, dgate_now[part]);
              *(vec *)(dbias + part * units + u) += dgate_now[part];
            }
          }
        }
        for (int64_t w = 0; w < width; w += TILE)
          for (int64_t r = 0; r < count; r += SOME)
            multiply((const word *)(dgates + r * gates), depth, 1, weight + w * depth,
                     TILE, depth, dz + r * width + w, width, 0);
        for (int64_t r = 0; r < count; ++r) {
          memcpy(to_x + place(k, first + r, step) * inputs, dz + r * width, 4 * inputs);
          memcpy(dmemory + r * units, dz + r * width + inputs, 4 * hidden);
        }
        across_rows(z, even, width, gathered_z + held * width);
        across_rows(dgates, even, gates, gathered + held * gates);
        held += even / PAIR;
        if (s && PAIR * held + even <= GATHERED) continue;
        for (int64_t w = 0; w < width; w += TILE)
          for (int64_t g = 0; g < gates; g += SOME)
            multiply(gathered + g, 1, gates, gathered_z + w, width, held,
                     dweight + g * width + w, width, 1);
        held = 0;
      }
    end:
      free(z), free(dgates), free(gathered_z), free(gathered), free(dz), free(dcells);
      free(dmemory), free((void *)none);
    }
  return done;
}
