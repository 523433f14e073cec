/* A forward pass of the GPT in model/gpt.py on a CPU, for generation: each token takes little more
 * than reading every weight once, at the speed of memory.
 *
 * All tokens of a pass lie side by side, whatever row of the cache each belongs to: one of each of
 * several replies, or a prompt. A sum is taken in the same order however many there are, so a reply
 * is the same alone or in company, to the bit.
 *
 * model/native.py compiles this file for the machine it runs on, and hands it pointers into torch's
 * tensors.
 */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifdef __AVX512VNNI__
#define LANES 16 /* numbers in a vector register */
#define TOKENS 4
#elif defined(__AVX__)
#define LANES 8
#define TOKENS 2
#else
#define LANES 4
#define TOKENS 2
#endif
#define OUTPUTS 4 /* sums of OUTPUTS times TOKENS are kept in registers together */
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_uvec __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define GROUP 64 /* inputs that share a scale when they are rounded to 8 bits */
#define TILE 32  /* tokens whose inputs stay in the cache while all weights pass by */
/* The processor's own prefetcher does not get far in rows as short as these: twice as fast. */
#define FETCH(WEIGHTS, BYTES) \
    (__builtin_prefetch((const char *)(WEIGHTS) + 12288 + ahead, 0, 2), ahead += (BYTES))

enum kind { FLOAT32, BFLOAT16, INT8, INT4 };

/* Shared with native.py, field by field. */
typedef struct {
    int32_t kind, out;
    int32_t stride;         /* inputs, filled up with zeros to a multiple of GROUP */
    const void *weight;     /* (out, stride); of INT4 32 bytes hold 64: the low halves come first */
    const float *scale;     /* INT8: one an output */
    const uint16_t *scales; /* INT4: one for 32 inputs, bfloat16 */
    const float *bias;      /* or NULL */
} matrix;

typedef struct {
    const float *weight, *bias; /* bias or NULL */
} norm;

typedef struct {
    norm ln_1, ln_2;
    matrix c_attn, attn_proj, c_fc, mlp_proj;
} layer;

typedef struct {
    int32_t layers, heads, width, tanh_gelu;
    float epsilon;
    matrix tokens, positions; /* embeddings: FLOAT32 or BFLOAT16 */
    norm ln_f;
    matrix head;
    const layer *layer;
} model;

typedef struct {
    float *memory;                                       /* keys and values, float32 */
    int64_t layer_step, value_step, row_step, head_step; /* in floats */
} cache;

/* ---- arithmetic ------------------------------------------------------------------------------ */

INLINE vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE vec all(float x) {
    return x - (vec){0};
}

INLINE vec choose(ivec mask, vec yes, vec no) {
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

INLINE float sum(vec v) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)v);
#elif LANES == 8
    __m128 half = _mm256_castps256_ps128((__m256)v) + _mm256_extractf128_ps((__m256)v, 1);
    half += _mm_movehl_ps(half, half);
    return half[0] + half[1];
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

INLINE float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

INLINE uint16_t to_bfloat16(float x) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* e^x to 2 units in the last place: 2^n times a polynomial. */
INLINE vec exponential(vec x) {
    x = choose(x > all(88.0f), all(88.0f), x);
    x = choose(x < all(-87.0f), all(-87.0f), x);
    vec scaled = x * all(1.44269504f);
    ivec power =
        __builtin_convertvector(scaled + choose(scaled < all(0), all(-0.5f), all(0.5f)), ivec);
    vec n = __builtin_convertvector(power, vec);
    vec r = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);
    vec p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    return (vec)((ivec)p + (power << 23));
}

/* GELU: x Φ(x) with erf from Abramowitz and Stegun, 7.1.26 (error below 1.5e-7); or GPT-2's
 * approximation with tanh. */
INLINE vec gelu(vec x, int tanh_gelu) {
    if (tanh_gelu) {
        vec inner = all(1.5957691216f) * (x + all(0.044715f) * x * x * x);
        return x / (all(1.0f) + exponential(-inner));
    }
    vec z = x * all(0.70710678f), positive = choose(z < all(0), -z, z);
    vec t = all(1.0f) / (all(1.0f) + all(0.3275911f) * positive);
    vec p = all(1.061405429f);
    p = p * t + all(-1.453152027f);
    p = p * t + all(1.421413741f);
    p = p * t + all(-0.284496736f);
    p = p * t + all(0.254829592f);
    vec erfc = p * t * exponential(-z * z);
    vec twice = choose(z < all(0), erfc, all(2.0f) - erfc); /* 1 + erf(z) */
    return all(0.5f) * x * twice;
}

static void apply_gelu(float *x, int count, int tanh_gelu) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec y = gelu(load(x + i), tanh_gelu);
        memcpy(x + i, &y, sizeof y);
    }
    vec rest = {0};
    for (int k = i; k < count; k++) rest[k - i] = x[k];
    rest = gelu(rest, tanh_gelu);
    for (int k = i; k < count; k++) x[k] = rest[k - i];
}

/* ---- inputs of a product --------------------------------------------------------------------- */

/* The inputs of a matrix in the form that it multiplies: (tokens, stride) each. */
typedef struct {
    int stride;
    float *exact;
    uint16_t *bfloat16;
    int8_t *int8;
    float *scale;        /* (tokens, stride / GROUP) */
    int32_t *correction; /* (tokens, stride / GROUP, 16), see `add_int8` */
} inputs;

#if LANES == 16 && defined(__AVX512BF16__)
#define BFLOAT16_INPUTS 1
#else
#define BFLOAT16_INPUTS 0
#endif

/* Add to `sums` a scale times the products of 64 weights and inputs of one group. Instructions
 * multiply unsigned by signed bytes: weights are then UNSIGNED_INT8 or 8 more than they are, and
 * `correction` is what that adds, to be taken away: of the first 32 in lane 0, of the others in
 * lane 8. */
#if LANES == 16
#define UNSIGNED_INT8 128
INLINE vec add_products(vec sums, __m512i w, const int8_t *x, const int32_t *correction, vec by) {
    __m512i total = _mm512_loadu_si512(correction);
    total = _mm512_dpbusd_epi32(total, w, _mm512_loadu_si512(x));
    return sums + by * (vec)_mm512_cvtepi32_ps(total);
}
INLINE vec add_int8(vec sums, const int8_t *w, const int8_t *x, const int32_t *correction,
                    float scale) {
    __m512i flipped = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8((char)0x80));
    return add_products(sums, flipped, x, correction, all(scale));
}
INLINE vec add_int4(vec sums, const uint8_t *w, const uint16_t *scales, const int8_t *x,
                    const int32_t *correction, float scale) {
    __m256i both = _mm256_loadu_si256((const void *)w), low = _mm256_set1_epi8(15);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    __m512i unpacked =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_and_si256(both, low)), high, 1);
    uint32_t two;
    memcpy(&two, scales, sizeof two);
    const uvec left = {16, 16, 16, 16, 16, 16, 16, 16};
    vec by = (vec)(((two - (uvec){0}) << left) & 0xffff0000u);
    return add_products(sums, unpacked, x, correction, by * all(scale));
}
#elif defined(__AVX2__)
#define UNSIGNED_INT8 0
INLINE vec add_products(vec sums, __m256i w, __m256i x, const int32_t *correction, float scale) {
    __m256i total = _mm256_loadu_si256((const void *)correction);
#ifdef __AVXVNNI__
    total = _mm256_dpbusd_avx_epi32(total, w, x);
#else
    __m256i pairs = _mm256_maddubs_epi16(w, x); /* at most 2 * 127 * 127: no overflow */
    total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
    return sums + all(scale) * (vec)_mm256_cvtepi32_ps(total);
}
INLINE vec add_int8(vec sums, const int8_t *w, const int8_t *x, const int32_t *correction,
                    float scale) {
    for (int half = 0; half < 2; half++) { /* the sign of a weight goes to its input */
        __m256i signed_w = _mm256_loadu_si256((const void *)(w + 32 * half));
        __m256i by = _mm256_sign_epi8(_mm256_loadu_si256((const void *)(x + 32 * half)), signed_w);
        sums = add_products(sums, _mm256_abs_epi8(signed_w), by, correction + 8 * half, scale);
    }
    return sums;
}
INLINE vec add_int4(vec sums, const uint8_t *w, const uint16_t *scales, const int8_t *x,
                    const int32_t *correction, float scale) {
    __m256i both = _mm256_loadu_si256((const void *)w), low = _mm256_set1_epi8(15);
    for (int half = 0; half < 2; half++) {
        __m256i part = _mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, low);
        __m256i by = _mm256_loadu_si256((const void *)(x + 32 * half));
        sums = add_products(sums, part, by, correction + 8 * half,
                            from_bfloat16(scales[half]) * scale);
    }
    return sums;
}
#else
#define UNSIGNED_INT8 0
INLINE vec add_int8(vec sums, const int8_t *w, const int8_t *x, const int32_t *correction,
                    float scale) {
    int32_t total = correction[0] + correction[8];
    for (int i = 0; i < 64; i++) total += w[i] * x[i];
    sums[0] += scale * (float)total;
    return sums;
}
INLINE vec add_int4(vec sums, const uint8_t *w, const uint16_t *scales, const int8_t *x,
                    const int32_t *correction, float scale) {
    int32_t low = correction[0], high = correction[8];
    for (int i = 0; i < 32; i++) low += (w[i] & 15) * x[i], high += (w[i] >> 4) * x[32 + i];
    sums[0] += scale * from_bfloat16(scales[0]) * (float)low;
    sums[1] += scale * from_bfloat16(scales[1]) * (float)high;
    return sums;
}
#endif

/* Round a token's inputs to what a matrix of this kind multiplies. */
static void prepare(const inputs *in, int token, int kind) {
    const float *x = in->exact + (size_t)token * in->stride;
    if (kind == BFLOAT16 && BFLOAT16_INPUTS) {
        uint16_t *b = in->bfloat16 + (size_t)token * in->stride;
        for (int i = 0; i < in->stride; i++) b[i] = to_bfloat16(x[i]);
    }
    if (kind != INT8 && kind != INT4) return;
    int groups = in->stride / GROUP;
    for (int g = 0; g < groups; g++, x += GROUP) {
        size_t at = (size_t)token * groups + g;
        int8_t *q = in->int8 + at * GROUP;
        float most = 0;
        for (int i = 0; i < GROUP; i++) most = fmaxf(most, fabsf(x[i]));
        float inverse = most > 0 ? 127 / most : 0;
        in->scale[at] = most / 127;
        int32_t *correction = in->correction + at * 16, more = kind == INT8 ? UNSIGNED_INT8 : 8;
        memset(correction, 0, 16 * sizeof *correction);
        for (int half = 0; half < 2; half++) {
            int32_t total = 0;
            for (int i = half * 32; i < half * 32 + 32; i++) {
                q[i] = (int8_t)rintf(x[i] * inverse);
                total += q[i];
            }
            correction[8 * half] = -more * total;
        }
    }
}

/* ---- products -------------------------------------------------------------------------------- */

/* Inputs whose weights, with those of the tokens beside them, stay in the first cache. */
INLINE int block_of(int kind) {
    return kind == FLOAT32 ? 768 : kind == BFLOAT16 ? 1536 : 3072;
}

/* Go on with the sums of `outs` outputs from `first` on for `count` tokens from `token` on, with
 * the inputs `from` to `to`. All but these is constant where it is called: the sums stay in
 * registers. */
INLINE void add_dots(const matrix *m, const inputs *in, int first, int token, int outs, int count,
                     int from, int to, vec (*kept)[OUTPUTS]) {
    const int stride = m->stride, groups = stride / GROUP;
    const float *x = in->exact + (size_t)token * stride;
    const int8_t *q = in->int8 + (size_t)token * stride;
    const float *scale = in->scale + (size_t)token * groups;
    const int32_t *correction = in->correction + (size_t)token * groups * 16;
    size_t ahead = 0;
    vec sums[OUTPUTS][TOKENS];
    for (int o = 0; o < outs; o++)
        for (int t = 0; t < count; t++) sums[o][t] = kept[t][o];
    if (m->kind == FLOAT32) {
        const float *w = (const float *)m->weight + (size_t)first * stride;
        for (int i = from; i < to; i += LANES)
            for (int o = 0; o < outs; o++) {
                FETCH(w + from, 4 * LANES);
                vec weights = load(w + (size_t)o * stride + i);
                for (int t = 0; t < count; t++) sums[o][t] += weights * load(x + t * stride + i);
            }
    } else if (m->kind == BFLOAT16) {
        const uint16_t *w = (const uint16_t *)m->weight + (size_t)first * stride;
#if BFLOAT16_INPUTS
        const uint16_t *b = in->bfloat16 + (size_t)token * stride;
        for (int i = from; i < to; i += 32)
            for (int o = 0; o < outs; o++) {
                FETCH(w + from, 64);
                __m512bh weights = (__m512bh)_mm512_loadu_si512(w + (size_t)o * stride + i);
                for (int t = 0; t < count; t++) {
                    __m512bh by = (__m512bh)_mm512_loadu_si512(b + t * stride + i);
                    sums[o][t] = (vec)_mm512_dpbf16_ps((__m512)sums[o][t], weights, by);
                }
            }
#else
        for (int i = from; i < to; i += LANES)
            for (int o = 0; o < outs; o++) {
                FETCH(w + from, 2 * LANES);
                half_uvec bits;
                memcpy(&bits, w + (size_t)o * stride + i, sizeof bits);
                vec weights = (vec)(__builtin_convertvector(bits, uvec) << 16);
                for (int t = 0; t < count; t++) sums[o][t] += weights * load(x + t * stride + i);
            }
#endif
    } else if (m->kind == INT8) {
        const int8_t *w = (const int8_t *)m->weight + (size_t)first * stride;
        for (int i = from, g = from / GROUP; i < to; i += GROUP, g++)
            for (int o = 0; o < outs; o++) {
                FETCH(w + from, 64);
                for (int t = 0; t < count; t++)
                    sums[o][t] =
                        add_int8(sums[o][t], w + (size_t)o * stride + i, q + t * stride + i,
                                 correction + (t * groups + g) * 16, scale[t * groups + g]);
            }
    } else {
        const uint8_t *w = (const uint8_t *)m->weight + (size_t)first * stride / 2;
        const uint16_t *scales = m->scales + (size_t)first * groups * 2;
        for (int i = from, g = from / GROUP; i < to; i += GROUP, g++)
            for (int o = 0; o < outs; o++) {
                FETCH(w + from / 2, 32);
                for (int t = 0; t < count; t++)
                    sums[o][t] =
                        add_int4(sums[o][t], w + ((size_t)o * stride + i) / 2,
                                 scales + ((size_t)o * groups + g) * 2, q + t * stride + i,
                                 correction + (t * groups + g) * 16, scale[t * groups + g]);
            }
    }
    for (int o = 0; o < outs; o++)
        for (int t = 0; t < count; t++) kept[t][o] = sums[o][t];
}

/* Outputs `from` to `to` of all tokens, y (tokens, step); added to what is there with `add`. */
INLINE void multiply_kind(const matrix *m, const inputs *in, int tokens, int from, int to, float *y,
                          int step, int add) {
    vec sums[TILE][OUTPUTS];
    for (int begin = 0; begin < tokens; begin += TILE) {
        int end = tokens - begin < TILE ? tokens : begin + TILE;
        /* One token's weights are read once, in the order of memory. */
        int block = end - begin > TOKENS ? block_of(m->kind) : m->stride;
        for (int o = from, outs; o < to; o += outs) {
            outs = to - o >= OUTPUTS ? OUTPUTS : 1;
            memset(sums, 0, sizeof *sums * (end - begin));
            for (int i = 0; i < m->stride; i += block) {
                int until = m->stride - i < block ? m->stride : i + block;
                for (int t = begin, count; t < end; t += count) {
                    count = outs == OUTPUTS && end - t >= TOKENS ? TOKENS : 1;
                    vec(*kept)[OUTPUTS] = sums + (t - begin);
                    if (count == TOKENS)
                        add_dots(m, in, o, t, OUTPUTS, TOKENS, i, until, kept);
                    else if (outs == OUTPUTS)
                        add_dots(m, in, o, t, OUTPUTS, 1, i, until, kept);
                    else
                        add_dots(m, in, o, t, 1, 1, i, until, kept);
                }
            }
            for (int k = 0; k < outs; k++) {
                float by = m->kind == INT8 ? m->scale[o + k] : 1,
                      bias = m->bias ? m->bias[o + k] : 0;
                for (int t = begin; t < end; t++) {
                    float *at = y + (size_t)t * step + o + k;
                    *at = sum(sums[t - begin][k]) * by + bias + (add ? *at : 0);
                }
            }
        }
    }
}

static void multiply(const matrix *m, const inputs *in, int tokens, int from, int to, float *y,
                     int step, int add) {
    matrix known = *m; /* a copy whose kind is a constant in each branch */
#define CASE(KIND)                                                 \
    case KIND:                                                     \
        known.kind = KIND;                                         \
        multiply_kind(&known, in, tokens, from, to, y, step, add); \
        break;
    switch (m->kind) { CASE(FLOAT32) CASE(BFLOAT16) CASE(INT8) CASE(INT4) }
#undef CASE
}

static void normalise(const norm *n, const float *x, int width, float epsilon, float *y) {
    vec sums = {0}, squares = {0};
    int i = 0;
    for (; i + LANES <= width; i += LANES) sums += load(x + i);
    float total = sum(sums), deviation;
    for (; i < width; i++) total += x[i];
    float mean = total / width;
    for (i = 0; i + LANES <= width; i += LANES) {
        vec d = load(x + i) - all(mean);
        squares += d * d;
    }
    for (deviation = sum(squares); i < width; i++) deviation += (x[i] - mean) * (x[i] - mean);
    float by = 1 / sqrtf(deviation / width + epsilon);
    for (i = 0; i < width; i++)
        y[i] = (x[i] - mean) * by * n->weight[i] + (n->bias ? n->bias[i] : 0);
}

/* Where the next vectors of a head begin, from `first` on, and how many they are, VECTORS at most.
 * The last one overlaps the one before it where LANES does not divide the width. */
#define VECTORS 4
INLINE int starts_from(int first, int width, int start[VECTORS]) {
    int count = 0;
    for (; count < VECTORS && first < width; first += LANES)
        start[count++] = first + LANES <= width ? first : width - LANES;
    return count;
}

INLINE void add_scores(const float *keys, int positions, int width, const int *start, const vec *q,
                       int count, float *scores) {
    for (int s = 0; s < positions; s++) {
        vec products = {0};
        for (int v = 0; v < count; v++)
            products += q[v] * load(keys + (size_t)s * width + start[v]);
        scores[s] += sum(products);
    }
}

INLINE void weigh_values(const float *values, int positions, int width, const int *start,
                         const float *weights, int count, vec *result) {
    vec sums[VECTORS] = {0};
    for (int s = 0; s < positions; s++)
        for (int v = 0; v < count; v++)
            sums[v] += all(weights[s]) * load(values + (size_t)s * width + start[v]);
    for (int v = 0; v < count; v++) result[v] = sums[v];
}

#define WITH_COUNT(CALL) \
    switch (count) {     \
        case 1:          \
            CALL(1);     \
            break;       \
        case 2:          \
            CALL(2);     \
            break;       \
        case 3:          \
            CALL(3);     \
            break;       \
        default:         \
            CALL(4);     \
    }

/* The same for a head that is narrower than a vector. */
static void add_narrow_scores(const float *keys, int positions, int width, const float *q,
                              float *scores) {
    for (int s = 0; s < positions; s++)
        for (int d = 0; d < width; d++) scores[s] += q[d] * keys[s * width + d];
}

static void weigh_narrow_values(const float *values, int positions, int width, const float *weights,
                                float *y) {
    for (int d = 0; d < width; d++) {
        y[d] = 0;
        for (int s = 0; s < positions; s++) y[d] += weights[s] * values[s * width + d];
    }
}

/* One head of one token attends to `positions` keys; q and y are (width), and `weights` has room
 * for as many positions, rounded up to LANES. */
static void attend(const float *q, const float *keys, const float *values, int positions, int width,
                   float *weights, float *y) {
    int start[VECTORS], count, rounded = (positions + LANES - 1) / LANES * LANES;
    vec part[VECTORS];
    memset(weights, 0, rounded * sizeof *weights);
    if (width < LANES)
        add_narrow_scores(keys, positions, width, q, weights);
    else
        for (int first = 0; first < width; first += LANES * VECTORS) {
            count = starts_from(first, width, start);
            for (int v = 0; v < count; v++) {
                float lanes[LANES];
                for (int i = 0; i < LANES; i++) /* what the vector before has counted is 0 */
                    lanes[i] = start[v] + i < first + LANES * v ? 0 : q[start[v] + i];
                part[v] = load(lanes);
            }
#define CALL(N) add_scores(keys, positions, width, start, part, N, weights)
            WITH_COUNT(CALL)
#undef CALL
        }
    float most = -INFINITY, by = 1 / sqrtf((float)width);
    for (int s = 0; s < positions; s++) most = weights[s] > most ? weights[s] : most;
    vec totals = {0};
    for (int s = 0; s < rounded; s += LANES) {
        vec e = exponential((load(weights + s) - all(most)) * all(by));
        for (int i = positions - s; i < LANES; i++) e[i] = 0;
        memcpy(weights + s, &e, sizeof e);
        totals += e;
    }
    vec inverse = all(1 / sum(totals));
    for (int s = 0; s < rounded; s += LANES) {
        vec weight = load(weights + s) * inverse;
        memcpy(weights + s, &weight, sizeof weight);
    }
    if (width < LANES)
        weigh_narrow_values(values, positions, width, weights, y);
    else
        for (int first = 0; first < width; first += LANES * VECTORS) {
            count = starts_from(first, width, start);
#define CALL(N) weigh_values(values, positions, width, start, weights, N, part)
            WITH_COUNT(CALL)
#undef CALL
            for (int v = 0; v < count; v++) memcpy(y + start[v], &part[v], sizeof part[v]);
        }
}

/* ---- threads --------------------------------------------------------------------------------- */

#define MOST_THREADS 256
#define SPINS 20000 /* looks before a thread sleeps, or gives way to others */

typedef struct pass pass;
static void run(const pass *p, int threads);
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER,
                       asleep = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static atomic_uint started, arrived, phase, sleepers;
static pthread_t worker[MOST_THREADS];
static int workers;         /* besides the thread that calls */
static const pass *current; /* NULL ends the workers */

INLINE void relax(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_for_all(int threads) {
    unsigned now = atomic_load(&phase);
    if (atomic_fetch_add(&arrived, 1) + 1 == (unsigned)threads) {
        atomic_store(&arrived, 0);
        atomic_store(&phase, now + 1);
        return;
    }
    for (int spins = 0; atomic_load(&phase) == now; spins++)
        if (spins < SPINS)
            relax();
        else
            sched_yield();
}

static void *work(void *begun) {
    for (unsigned seen = (unsigned)(uintptr_t)begun;; seen++) {
        for (int spins = 0; spins < SPINS && atomic_load(&started) == seen; spins++) relax();
        if (atomic_load(&started) == seen) {
            pthread_mutex_lock(&asleep);
            atomic_fetch_add(&sleepers, 1);
            while (atomic_load(&started) == seen) pthread_cond_wait(&woken, &asleep);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&asleep);
        }
        if (!current) return NULL;
        run(current, workers + 1);
    }
}

static void start(const pass *p) {
    current = p;
    atomic_fetch_add(&started, 1);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&asleep);
        pthread_cond_broadcast(&woken);
        pthread_mutex_unlock(&asleep);
    }
}

/* Have so many threads from now on, or as many as the system gives. */
static void have_threads(int threads) {
    threads = threads > MOST_THREADS ? MOST_THREADS : threads;
    if (threads == workers + 1) return;
    if (workers) start(NULL);
    for (int i = 0; i < workers; i++) pthread_join(worker[i], NULL);
    int made = 0;
    uintptr_t begun = atomic_load(&started);
    while (made < threads - 1 && !pthread_create(&worker[made], NULL, work, (void *)begun)) made++;
    workers = made;
}

/* A forked process has this thread only. */
static void forget_workers(void) {
    workers = 0;
    atomic_store(&arrived, 0);
    atomic_store(&sleepers, 0);
    pthread_mutex_init(&one_at_a_time, NULL);
    pthread_mutex_init(&asleep, NULL);
    pthread_cond_init(&woken, NULL); /* it still counts on those who slept: waking them hangs */
}

/* ---- the pass -------------------------------------------------------------------------------- */

struct pass {
    const model *model;
    const cache *cache;
    int tokens, wanted;
    const int32_t *id, *row, *position, *place; /* of each token; of each whose logits are wanted */
    const float *added;                         /* to the embeddings: (tokens, width), or NULL */
    float *x, *logits;                          /* (tokens, width), (wanted, vocabulary) */
    float *qkv, *scores;                        /* (tokens, 3 width), (threads, score_step) */
    int score_step;
    inputs narrow, wide; /* of the model's width, and four times it */
    atomic_int *next;    /* of each phase: the task that nobody has taken yet */
};

/* Loop over tasks that all threads share out, then wait until all are done. */
#define TASKS(COUNT)                                                                              \
    for (atomic_int *counter = next++, *once = counter; once; once = NULL, wait_for_all(threads)) \
        for (int task; (task = atomic_fetch_add(counter, 1)) < (COUNT);)

/* A product's outputs, in two parts a thread: one core may be slower or busy, and more parts are
 * read more slowly. */
#define PARTS (2 * threads)
#define FROM(M, PART) ((int)((int64_t)((M)->out / OUTPUTS) * (PART) / PARTS) * OUTPUTS)
#define TO(M, PART) ((PART) == PARTS - 1 ? (M)->out : FROM(M, (PART) + 1))

static void normalise_token(const pass *p, const norm *n, const float *x, int token, int kind) {
    const model *m = p->model;
    normalise(n, x, m->width, m->epsilon, p->narrow.exact + (size_t)token * p->narrow.stride);
    prepare(&p->narrow, token, kind);
}

static void attend_head(const pass *p, const layer *l, int token, int head, float *scores) {
    const model *m = p->model;
    int width = m->width / m->heads;
    const float *q = p->qkv + (size_t)token * 3 * m->width + head * width;
    const float *keys = p->cache->memory + (l - m->layer) * p->cache->layer_step +
                        p->row[token] * p->cache->row_step + head * p->cache->head_step;
    attend(q, keys, keys + p->cache->value_step, p->position[token] + 1, width, scores,
           p->narrow.exact + (size_t)token * p->narrow.stride + head * width);
}

static float weight(const matrix *m, int row, int i) {
    size_t at = (size_t)row * m->stride + i;
    return m->kind == FLOAT32 ? ((const float *)m->weight)[at]
                              : from_bfloat16(((const uint16_t *)m->weight)[at]);
}

static void embed(const pass *p, int token) {
    const model *m = p->model;
    float *x = p->x + (size_t)token * m->width;
    for (int i = 0; i < m->width; i++)
        x[i] = weight(&m->tokens, p->id[token], i) + weight(&m->positions, p->position[token], i) +
               (p->added ? p->added[(size_t)token * m->width + i] : 0);
}

static void keep(const pass *p, const layer *l, int token) {
    const model *m = p->model;
    int width = m->width / m->heads;
    for (int is_value = 0; is_value < 2; is_value++)
        for (int head = 0; head < m->heads; head++)
            memcpy(p->cache->memory + (l - m->layer) * p->cache->layer_step +
                       is_value * p->cache->value_step + p->row[token] * p->cache->row_step +
                       head * p->cache->head_step + (size_t)p->position[token] * width,
                   p->qkv + (size_t)token * 3 * m->width + (1 + is_value) * m->width + head * width,
                   width * sizeof(float));
}

static atomic_int thread_number;

static void run(const pass *p, int threads) {
    const model *m = p->model;
    const inputs *narrow = &p->narrow, *wide = &p->wide;
    atomic_int *next = p->next;
    float *scores = p->scores + (size_t)atomic_fetch_add(&thread_number, 1) * p->score_step;
    TASKS (p->tokens) embed(p, task);
    for (const layer *l = m->layer; l < m->layer + m->layers; l++) {
        TASKS (p->tokens)
            normalise_token(p, &l->ln_1, p->x + (size_t)task * m->width, task, l->c_attn.kind);
        TASKS (PARTS)
            multiply(&l->c_attn, narrow, p->tokens, FROM(&l->c_attn, task), TO(&l->c_attn, task),
                     p->qkv, 3 * m->width, 0);
        TASKS (p->tokens) keep(p, l, task);
        TASKS (p->tokens * m->heads) attend_head(p, l, task / m->heads, task % m->heads, scores);
        TASKS (p->tokens) prepare(narrow, task, l->attn_proj.kind);
        TASKS (PARTS)
            multiply(&l->attn_proj, narrow, p->tokens, FROM(&l->attn_proj, task),
                     TO(&l->attn_proj, task), p->x, m->width, 1);
        TASKS (p->tokens)
            normalise_token(p, &l->ln_2, p->x + (size_t)task * m->width, task, l->c_fc.kind);
        TASKS (PARTS) {
            int from = FROM(&l->c_fc, task), to = TO(&l->c_fc, task);
            multiply(&l->c_fc, narrow, p->tokens, from, to, wide->exact, wide->stride, 0);
            for (int t = 0; t < p->tokens; t++)
                apply_gelu(wide->exact + (size_t)t * wide->stride + from, to - from, m->tanh_gelu);
        }
        TASKS (p->tokens) prepare(wide, task, l->mlp_proj.kind);
        TASKS (PARTS)
            multiply(&l->mlp_proj, wide, p->tokens, FROM(&l->mlp_proj, task),
                     TO(&l->mlp_proj, task), p->x, m->width, 1);
    }
    TASKS (p->wanted)
        normalise_token(p, &m->ln_f, p->x + (size_t)p->place[task] * m->width, task, m->head.kind);
    TASKS (PARTS)
        multiply(&m->head, narrow, p->wanted, FROM(&m->head, task), TO(&m->head, task), p->logits,
                 m->head.out, 0);
}

static size_t inputs_size(int tokens, int stride) {
    size_t values = (size_t)tokens * stride;
    return values * (sizeof(float) + sizeof(uint16_t) + 1) + values / GROUP * (sizeof(float) + 64) +
           64;
}

static char *lay_out(inputs *in, char *at, int tokens, int stride) {
    size_t values = (size_t)tokens * stride;
    in->stride = stride;
    in->exact = (float *)at, at += values * sizeof(float);
    in->correction = (int32_t *)at, at += values / GROUP * 64;
    in->scale = (float *)at, at += values / GROUP * sizeof(float);
    in->bfloat16 = (uint16_t *)at, at += values * sizeof(uint16_t);
    in->int8 = (int8_t *)at, at += values;
    return at;
}

/* Read tokens, each of a row of the cache at its position; those before it in its row have been
 * read, or are among them.
 *
 * logits, (wanted, vocabulary), are those behind the tokens at `place`, each once. Returns 0, or 1
 * where there is no memory.
 */
int smallgpt_forward(const model *m, const cache *c, int tokens, const int32_t *id,
                     const int32_t *row, const int32_t *position, const float *added, int wanted,
                     const int32_t *place, float *logits, int threads) {
    static int prepared;
    pthread_mutex_lock(&one_at_a_time);
    if (!prepared) pthread_atfork(NULL, NULL, forget_workers), prepared = 1;
    have_threads(threads);
    threads = workers + 1;
    pass p = {.model = m,
              .cache = c,
              .tokens = tokens,
              .wanted = wanted,
              .id = id,
              .row = row,
              .position = position,
              .place = place,
              .added = added,
              .logits = logits};
    int longest = 0, phases = 10 * m->layers + 3;
    for (int t = 0; t < tokens; t++) longest = position[t] > longest ? position[t] : longest;
    p.score_step = (longest / 16 + 1) * 16;
    int narrow = m->layer->c_attn.stride, wide = m->layer->mlp_proj.stride;
    size_t x = (size_t)tokens * m->width * sizeof(float), qkv = 3 * x;
    size_t scores = (size_t)threads * p.score_step * sizeof(float);
    char *memory = calloc(1, inputs_size(tokens, narrow) + inputs_size(tokens, wide) + x + qkv +
                                 scores + phases * sizeof(atomic_int));
    if (memory) {
        char *at = lay_out(&p.narrow, memory, tokens, narrow);
        at = lay_out(&p.wide, (char *)(((uintptr_t)at + 63) / 64 * 64), tokens, wide);
        p.qkv = (float *)(((uintptr_t)at + 63) / 64 * 64);
        p.x = p.qkv + qkv / sizeof(float);
        p.scores = p.x + x / sizeof(float);
        p.next = (atomic_int *)(p.scores + scores / sizeof(float));
        atomic_store(&thread_number, 0);
        if (workers) start(&p);
        run(&p, threads);
    }
    pthread_mutex_unlock(&one_at_a_time);
    free(memory);
    return !memory;
}
