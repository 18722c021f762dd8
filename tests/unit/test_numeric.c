/*
 * Numbers whose bits are a promise: conversions against exact arithmetic on doubles, ls_exp against libm, leaf borders
 * against their definition, Philox against the vectors that Random123 publishes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <float.h>

#include "backend/ops.h"
#include "backend/sample_math.h"
#include "base/numeric.h"
#include "rank/shard.h"

/* A 16-bit format: 1 sign bit, then the exponent, then `mantissa` bits. */
typedef struct half_format {
    const char *name;
    int mantissa, bias;
    uint16_t (*from_f32)(float);
    float (*to_f32)(uint16_t);
} half_format;

static const half_format FORMATS[] = {
    {"f16", 10, 15, f16_from_f32, f32_from_f16},
    {"bf16", 7, 127, bf16_from_f32, f32_from_bf16},
};
enum { N_FORMATS = 2 };

static uint64_t next_u64(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* 1 in a hundred of the work under a sanitizer. */
static int64_t samples(int64_t n) {
    const char *san = getenv("LS_SAN");
    return san != NULL && san[0] != '\0' ? n / 100 : n;
}

/* ---- Halves ---- */

static uint32_t exponent_mask(const half_format *f) {
    return 0x7fffu >> f->mantissa << f->mantissa;
}

static bool is_nan_half(const half_format *f, uint32_t half) {
    return (half & 0x7fff) > exponent_mask(f);
}

/* By the definition of the format, on doubles. */
static double exact_value(const half_format *f, uint32_t half) {
    int exponent = (int)((half & 0x7fff) >> f->mantissa);
    int mantissa = (int)(half & ((1u << f->mantissa) - 1));
    double value = exponent == 0 ? ldexp(mantissa, 1 - f->bias - f->mantissa)
                                 : ldexp(mantissa + (1 << f->mantissa), exponent - f->bias - f->mantissa);
    if ((half & 0x7fff) == exponent_mask(f)) {
        value = INFINITY;
    }
    return half & 0x8000 ? -value : value;
}

/* The half nearest to a number that is none, ties to the even one: a search, since halves of one sign are in order. */
static uint32_t exact_nearest(const half_format *f, double value) {
    uint32_t sign = signbit(value) ? 0x8000 : 0, low = 0, high = exponent_mask(f);
    double size = fabs(value);
    /* Infinity stands where the next finite number would: at 2^(largest exponent + 1). */
    double overflow = ldexp(1, (int)(exponent_mask(f) >> f->mantissa) - f->bias);
    if (size >= overflow) {
        return sign | high;
    }
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        *(exact_value(f, middle) <= size ? &low : &high) = middle;
    }
    double below = size - exact_value(f, low);
    double above = (high == exponent_mask(f) ? overflow : exact_value(f, high)) - size;
    bool up = above < below || (above == below && high % 2 == 0);
    return sign | (up ? high : low);
}

static void check_conversion(const half_format *f, float value) {
    uint32_t got = f->from_f32(value);
    if (value != value) {
        if (!is_nan_half(f, got)) {
            fail_msg("%s: NaN %08x became %04x", f->name, f32_bits(value), got);
        }
        return;
    }
    uint32_t wanted = exact_nearest(f, (double)value);
    if (got != wanted) {
        fail_msg("%s: %a became %04x, not %04x", f->name, (double)value, got, wanted);
    }
}

static void test_every_half_to_f32_and_back(void **state) {
    (void)state;
    for (int i = 0; i < N_FORMATS; i++) {
        const half_format *f = &FORMATS[i];
        for (uint32_t half = 0; half < 0x10000; half++) {
            float value = f->to_f32((uint16_t)half);
            if (is_nan_half(f, half)) {
                assert_true(value != value);
                assert_true(is_nan_half(f, f->from_f32(value)));
                assert_int_equal(f32_bits(value) >> 31, half >> 15);
            } else {
                assert_true((double)value == exact_value(f, half));
                assert_int_equal(signbit(value) != 0, half >> 15);
                assert_int_equal(f->from_f32(value), half);
            }
        }
    }
}

/* Every half, every number midway between two, and the f32 neighbours of each. */
static void test_every_tie(void **state) {
    (void)state;
    for (int i = 0; i < N_FORMATS; i++) {
        const half_format *f = &FORMATS[i];
        double largest_step = ldexp(1, (int)(exponent_mask(f) >> f->mantissa) - f->bias);
        for (uint32_t half = 0; half < exponent_mask(f); half++) {
            double next = half + 1 == exponent_mask(f) ? largest_step : exact_value(f, half + 1);
            const float place[] = {(float)exact_value(f, half), (float)(exact_value(f, half) / 2 + next / 2)};
            for (int j = 0; j < 2; j++) {
                const float near[] = {nextafterf(place[j], -INFINITY), place[j], nextafterf(place[j], INFINITY)};
                for (int k = 0; k < 3; k++) {
                    check_conversion(f, near[k]);
                    check_conversion(f, -near[k]);
                }
            }
        }
    }
}

static void test_random_floats(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int64_t i = 0; i < samples(10000000); i++) {
        uint32_t bits = (uint32_t)(next_u64(&seed) >> 32);
        /* Every other one within the range of f16, subnormals included. */
        uint32_t in_range = (bits & 0x807fffff) | (100 + (bits >> 23 & 0xff) % 44) << 23;
        check_conversion(&FORMATS[0], f32_from_bits(i % 2 ? in_range : bits));
        check_conversion(&FORMATS[1], f32_from_bits(bits));
    }
}

static void test_edges(void **state) {
    (void)state;
    assert_int_equal(f16_from_f32(65504.0F), 0x7bff);
    assert_int_equal(f16_from_f32(65519.996F), 0x7bff);
    assert_int_equal(f16_from_f32(65520.0F), 0x7c00); /* a tie with what would be 65536 */
    assert_int_equal(f16_from_f32(-INFINITY), 0xfc00);
    assert_int_equal(f16_from_f32(0x1p-24F), 0x0001);
    assert_int_equal(f16_from_f32(0x1p-25F), 0x0000); /* a tie between 0 and the least subnormal */
    assert_int_equal(f16_from_f32(0x1.000002p-25F), 0x0001);
    assert_int_equal(f16_from_f32(-0.0F), 0x8000);
    assert_int_equal(bf16_from_f32(FLT_MAX), 0x7f80);
    assert_int_equal(bf16_from_f32(f32_from_bits(0x7f7f7fff)), 0x7f7f);
    assert_int_equal(bf16_from_f32(f32_from_bits(0x3f808000)), 0x3f80); /* a tie, down to even */
    assert_int_equal(bf16_from_f32(f32_from_bits(0x3f818000)), 0x3f82); /* a tie, up to even */
    assert_int_equal(bf16_from_f32(f32_from_bits(0x00000001)), 0x0000);
    /* NaNs whose payload lies in the bits that are cut off stay NaN. */
    assert_true(is_nan_half(&FORMATS[0], f16_from_f32(f32_from_bits(0x7f800001))));
    assert_true(is_nan_half(&FORMATS[1], bf16_from_f32(f32_from_bits(0x7f800001))));
    assert_true(is_nan_half(&FORMATS[1], bf16_from_f32(f32_from_bits(0xffffffff))));
}

static void test_arrays_round_as_values(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (int i = 0; i < 100000; i++) {
        float value = f32_from_bits(0x30000000 + (uint32_t)(next_u64(&seed) >> 36));
        float array[2];
        for (ls_dtype dtype = LS_F32; dtype <= LS_F16; dtype++) {
            store_as(dtype, array, 1, value);
            float wanted = dtype == LS_F32    ? value
                           : dtype == LS_BF16 ? f32_from_bf16(bf16_from_f32(value))
                                              : f32_from_f16(f16_from_f32(value));
            assert_true(load_as(dtype, array, 1) == wanted && round_to(dtype, value) == wanted);
        }
    }
}

/* ---- The exponential ---- */

/* Distance from the true value in units of the last place of the true value's f32. */
static double ulps(float got, double wanted) {
    int exponent;
    frexp(wanted, &exponent);
    return fabs(got - wanted) / ldexp(1, exponent - 24);
}

static void test_exp_within_one_ulp(void **state) {
    (void)state;
    const float low = -87.3F, high = 88.7F;
    double worst = 0;
    float worst_at = 0;
    const uint32_t step = samples(100) == 100 ? 211 : 20011; /* primes: all low bits occur */
    for (uint32_t bits = 0; bits <= f32_bits(high); bits += step) {
        const float x[] = {f32_from_bits(bits), -f32_from_bits(bits)};
        for (int i = 0; i < 2 && x[i] > low; i++) {
            double error = ulps(ls_exp(x[i]), exp((double)x[i]));
            if (!(error <= worst)) {
                worst = error;
                worst_at = x[i];
            }
        }
    }
    print_message("ls_exp: largest error %.3f ulp, at %a\n", worst, (double)worst_at);
    assert_true(worst <= 1);
    assert_true(worst > 0.5); /* or nothing was compared: no f32 polynomial rounds every value correctly */
}

static void test_exp_ends(void **state) {
    (void)state;
    assert_true(ls_exp(0.0F) == 1.0F && ls_exp(-0.0F) == 1.0F);
    assert_true(ls_exp(-87.3F) == 0.0F);
    assert_true(ls_exp(nextafterf(-87.3F, 0.0F)) >= FLT_MIN); /* no subnormals */
    assert_true(ls_exp(-1e30F) == 0.0F && ls_exp(-INFINITY) == 0.0F);
    assert_true(isfinite(ls_exp(88.7F)));
    assert_true(isinf(ls_exp(nextafterf(88.7F, 100.0F))) && isinf(ls_exp(INFINITY)));
    assert_true(isnan(ls_exp(NAN)) && isnan(ls_exp(-NAN)));
}

/* ---- Leaves ---- */

static void test_leaf_borders(void **state) {
    (void)state;
    for (int64_t n = 0; n <= 5000; n++) {
        assert_int_equal(leaf_border(n, 0), 0);
        assert_int_equal(leaf_border(n, LS_LEAVES), n);
        for (int i = 0; i < LS_LEAVES; i++) {
            int64_t border = leaf_border(n, i + 1);
            assert_true(border >= leaf_border(n, i));
            assert_true(border == n || border % LS_LEAF_ALIGN == 0);
            /* One eighth, rounded up: the least multiple of 16 that is not below n i / 8. */
            assert_true(border == n || (8 * border >= n * (i + 1) && 8 * (border - LS_LEAF_ALIGN) < n * (i + 1)));
        }
    }
}

static void test_rank_shares_tile(void **state) {
    (void)state;
    for (int64_t n = 0; n <= 5000; n++) {
        for (int size = 1; size <= LS_MAX_RANKS; size *= 2) {
            int64_t next = 0;
            for (int rank = 0; rank < size; rank++) {
                ls_group group = {rank, size};
                shard_range share = shard_leaves(n, group);
                assert_int_equal(share.first, next);
                assert_int_equal(share.first, leaf_border(n, shard_leaf_first(group)));
                assert_true(share.count >= 0);
                next += share.count;
            }
            assert_int_equal(next, n);
        }
    }
}

/* ---- Philox ---- */

/* Philox4x32-10 of Salmon et al. 2011, all four words. */
static void philox_whole(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4], k[2];
    memcpy(c, counter, sizeof c);
    memcpy(k, key, sizeof k);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c[0] * 0xD2511F53, b = (uint64_t)c[2] * 0xCD9E8D57;
        const uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k[1],
                                  (uint32_t)a};
        memcpy(c, next, sizeof c);
        k[0] += 0x9E3779B9;
        k[1] += 0xBB67AE85;
    }
    memcpy(out, c, sizeof c);
}

/* Random123's kat_vectors: philox4x32 10. */
static void test_philox_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], answer[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t out[4];
        philox_whole(known[i].counter, known[i].key, out);
        assert_memory_equal(out, known[i].answer, sizeof out);
    }
    assert_int_equal(philox(0, 0, 0, 0), 0x6627e8d5);
    uint64_t seed = 5;
    for (int i = 0; i < 100000; i++) {
        uint64_t key = next_u64(&seed), c = next_u64(&seed);
        const uint32_t counter[4] = {(uint32_t)c, (uint32_t)(c >> 32), (uint32_t)next_u64(&seed), 0};
        const uint32_t keys[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
        uint32_t out[4];
        philox_whole(counter, keys, out);
        assert_int_equal(philox(key, counter[0], counter[1], counter[2]), out[0]);
    }
}

/* Gumbel noise: its definition, and its mean and variance. */
static void test_gumbel(void **state) {
    (void)state;
    enum { N = 200000 };
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        uint32_t x = philox(7, (uint32_t)i, 3, 2);
        double u = (x + 0.5) / 4294967296.0;
        double g = gumbel(&(ls_sample_params){.seed = 7, .position = 3, .choice = 2}, i);
        assert_true(g == -log(-log(u)) && isfinite(g));
        assert_true(g <= gumbel_bound(x) && g < GUMBEL_MAX);
        sum += g;
        squares += g * g;
    }
    for (int i = 0; i < 32; i++) { /* the bound at its corners, the largest noise of all among them */
        uint32_t edge = UINT32_MAX << i;
        assert_true(gumbel_of(edge) <= gumbel_bound(edge) && gumbel_of(edge) < GUMBEL_MAX);
        assert_true(gumbel_of(edge - 1) <= gumbel_bound(edge - 1) && gumbel_of(~edge) <= gumbel_bound(~edge));
    }
    double mean = sum / N, variance = squares / N - mean * mean;
    assert_true(fabs(mean - 0.5772157) < 0.02 && fabs(variance - 1.6449341) < 0.05);
    assert_true(isfinite(-log(-log(0.5 * 0x1p-32))) && isfinite(-log(-log(1 - 0.5 * 0x1p-32)))); /* the ends of u */
}

/* Merging nodes of a softmax: as if over all elements; an empty node changes no bit. */
static void test_softmax_nodes(void **state) {
    (void)state;
    const softmax_node empty = {-INFINITY, 0}, a = {2.5F, 1.75F}, b = {-1.25F, 3.5F};
    softmax_node left = softmax_merge(empty, a), right = softmax_merge(a, empty), both = softmax_merge(a, b);
    assert_memory_equal(&left, &a, sizeof a);
    assert_memory_equal(&right, &a, sizeof a);
    assert_true(both.max == 2.5F && fabs(both.sum - (1.75 + 3.5 * exp(-3.75))) < 1e-6);
    softmax_node swapped = softmax_merge(b, a);
    assert_true(swapped.max == both.max && swapped.sum == both.sum);
    softmax_node tree[4] = {a, b, empty, a};
    softmax_node whole = softmax_tree(tree, 4);
    assert_true(whole.max == 2.5F && fabs(whole.sum - (2 * 1.75 + 3.5 * exp(-3.75))) < 1e-6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half_to_f32_and_back),
        cmocka_unit_test(test_every_tie),
        cmocka_unit_test(test_random_floats),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_arrays_round_as_values),
        cmocka_unit_test(test_exp_within_one_ulp),
        cmocka_unit_test(test_exp_ends),
        cmocka_unit_test(test_leaf_borders),
        cmocka_unit_test(test_rank_shares_tile),
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_gumbel),
        cmocka_unit_test(test_softmax_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
