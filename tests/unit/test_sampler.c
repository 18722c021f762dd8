/*
 * The sampler: offers made by the op `sample` on R ranks, merged by sampler_pick, against a naive sampler that sorts the
 * whole row and sums in double; and against exact probabilities by a chi-square test.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "backend/cpu/cpu.h"
#include "backend/sample_math.h"
#include "chi_square.h"
#include "engine/sampler.h"
#include "rank/shard.h"

enum { MAX_V = 5003 };

#define HOW(t, k, p, s, at)                                                                                            \
    { .temperature = (t), .top_k = (k), .top_p = (p), .seed = (s), .position = (at), .n_top = -1 }

static bool sanitized(void) {
    const char *san = getenv("LS_SAN");
    return san != NULL && san[0] != '\0';
}

static double next_uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static void random_row(uint64_t *state, float *logits, int n, double spread, bool ties) {
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < 4; j++) {
            sum += next_uniform(state) - 0.5;
        }
        logits[i] = (float)(ties ? rint(spread * sum * 4) / 4 : spread * sum);
    }
}

/* ---- On R ranks ---- */

typedef struct offers {
    ls_sample_part part[LS_MAX_RANKS];
    sampler_row row;
} offers;

/* What each rank would offer for the row. */
static void make_offers(offers *out, const float *logits, int n, int n_ranks, const ls_sample_params *how) {
    static float edited[MAX_V];
    out->row = (sampler_row){.n_ranks = n_ranks};
    for (int r = 0; r < n_ranks; r++) {
        ls_group group = {r, n_ranks};
        shard_range vocab = shard_leaves(n, group);
        ls_op op = {
            .kind = OP_SAMPLE,
            .sample = {(int)vocab.first, (int)vocab.count, n, shard_leaf_first(group), shard_leaf_count(group)}};
        ls_bind bind = {.group = group, .isa = cpu_isa_best()};
        ls_step step = {.n_rows = 1, .n_out = 1, .sample = how};
        ls_team team = {0, 1, NULL};
        bind.buf[BUF_LOGITS] = (void *)(uintptr_t)(logits + vocab.first);
        bind.buf[BUF_SAMPLE] = &out->part[r];
        bind.buf[BUF_EDITED] = edited;
        cpu_ref_ops.fn[OP_SAMPLE](&op, 0, &bind, &step, &team);
        out->row.part[r] = &out->part[r];
        out->row.logits[r] = logits + vocab.first;
        out->row.vocab_first[r] = (int)vocab.first;
        out->row.vocab_count[r] = (int)vocab.count;
    }
}

/* gather: the sampler may read the logits; else they are NULL. */
static int32_t pick(const float *logits, int n, int n_ranks, const ls_sample_params *how, bool gather) {
    static offers out;
    make_offers(&out, logits, n, n_ranks, how);
    for (int r = 0; r < n_ranks && !gather; r++) {
        out.row.logits[r] = NULL;
    }
    ls_candidate *scratch = malloc((size_t)n * sizeof *scratch); /* exactly: for AddressSanitizer */
    float *edited = malloc((size_t)n * sizeof *edited);
    int32_t token = sampler_pick(&out.row, how, scratch, edited);
    free(edited);
    free(scratch);
    return token;
}

/* ---- The naive sampler ---- */

static int by_z_then_id(const void *a, const void *b) {
    const ls_candidate *x = a, *y = b;
    return x->z != y->z ? (x->z > y->z ? -1 : 1) : x->id < y->id ? -1 : x->id > y->id;
}

typedef struct naive_set {
    ls_candidate token[MAX_V]; /* the kept ones first */
    int n_kept;
    double mass;      /* of the kept ones, in units of exp(best z) */
    bool near_border; /* the cut of top-p lies so close to a border that rounding decides */
} naive_set;

static float naive_logit(float x, int id, const ls_sample_params *how) {
    for (int i = 0; i < how->n_edits; i++) {
        if (how->edit[i].id == id) {
            x += how->edit[i].bias;
            x = x > 0 ? x / how->edit[i].penalty : x * how->edit[i].penalty;
            x += how->edit[i].offset;
        }
    }
    for (int i = 0; how->allowed != NULL && i < how->n_allowed; i++) {
        if (how->allowed[i] == id) {
            return x;
        }
    }
    return how->allowed == NULL ? x : -INFINITY;
}

static void naive_filter(naive_set *set, const float *logits, int n, const ls_sample_params *how) {
    for (int i = 0; i < n; i++) {
        set->token[i] =
            (ls_candidate){naive_logit(logits[i], i, how) / (how->temperature == 0 ? 1 : how->temperature), i};
    }
    qsort(set->token, (size_t)n, sizeof *set->token, by_z_then_id);
    if (how->temperature == 0) {
        n = 1;
    } else if (how->top_k > 0 && how->top_k < n) {
        n = how->top_k;
    }
    while (n > 0 && !(set->token[n - 1].z > -INFINITY)) {
        n--;
    }
    double total = 0;
    for (int i = 0; i < n; i++) {
        total += exp((double)set->token[i].z - set->token[0].z);
    }
    set->n_kept = 0;
    set->mass = 0;
    set->near_border = false;
    while (set->n_kept < n && (how->top_p >= 1 || set->n_kept == 0 || set->mass < how->top_p * total)) {
        set->mass += exp((double)set->token[set->n_kept].z - set->token[0].z);
        set->n_kept++;
        set->near_border |= how->top_p < 1 && fabs(set->mass / total - how->top_p) < 1e-5;
    }
    double best = set->token[0].z;
    for (int i = 1; i < set->n_kept && how->temperature != 0 && how->min_p > 0; i++) {
        double share = exp((double)set->token[i].z - best);
        set->near_border |= fabs(share - how->min_p) < 1e-5;
        if (share < how->min_p) {
            for (; set->n_kept > i; set->n_kept--) {
                set->mass -= exp((double)set->token[set->n_kept - 1].z - best);
            }
        }
    }
}

static int32_t naive_pick(const naive_set *set, const ls_sample_params *how) {
    double best = -INFINITY;
    int32_t token = -1;
    for (int i = 0; i < set->n_kept; i++) {
        int32_t id = set->token[i].id;
        double value = (double)set->token[i].z + gumbel(how, id);
        if (value > best || (value == best && id < token)) {
            best = value;
            token = id;
        }
    }
    return token;
}

/* ---- Same token on any R, and the naive one ---- */

typedef struct tally {
    int n_compared, n_skipped, n_wide; /* wide: more tokens kept than one rank offers */
} tally;

static void check_row(const float *logits, int n, const ls_sample_params *how, tally *count) {
    static naive_set set;
    int32_t token = pick(logits, n, 1, how, true);
    for (int r = 2; r <= LS_MAX_RANKS; r *= 2) {
        int32_t other = pick(logits, n, r, how, true);
        if (other != token) {
            fail_msg("V %d temperature %g top-k %d top-p %g: %d on 1 rank, %d on %d", n, (double)how->temperature,
                     how->top_k, (double)how->top_p, token, other, r);
        }
    }
    naive_filter(&set, logits, n, how);
    if (set.near_border) {
        count->n_skipped++;
        return;
    }
    int32_t wanted = naive_pick(&set, how);
    if (token != wanted) {
        fail_msg("V %d temperature %g top-k %d top-p %g: %d, but %d by sorting (%d kept)", n, (double)how->temperature,
                 how->top_k, (double)how->top_p, token, wanted, set.n_kept);
    }
    count->n_compared++;
    count->n_wide += set.n_kept > LS_SAMPLE_BEST;
}

static void test_any_ranks_and_naive(void **state) {
    (void)state;
    static const int vocab[] = {1, 3, 11, 97, 131, 257, 1009, MAX_V};
    static const float top_p[] = {0.1F, 0.5F, 0.9F, 0.999F, 1.0F};
    static const float temperature[] = {0.0F, 0.3F, 1.0F, 2.0F};
    static float logits[MAX_V];
    uint64_t seed = 1;
    tally count = {0};
    for (size_t v = 0; v < sizeof vocab / sizeof *vocab; v++) {
        const int n = vocab[v], top_k[] = {0, 1, 5, 50, 256, 300, n};
        const int n_rows = sanitized() || n > 2000 ? 1 : 4;
        for (int i = 0; i < 7 * 5 * 4 * n_rows; i++) {
            ls_sample_params how = {.top_k = top_k[i % 7],
                                    .top_p = top_p[i / 7 % 5],
                                    .temperature = temperature[i / 35 % 4],
                                    .min_p = i % 11 == 0 ? 0.1F : 0,
                                    .choice = (uint32_t)(i % 3),
                                    .n_top = -1,
                                    .seed = (uint64_t)(next_uniform(&seed) * 1e18),
                                    .position = (int32_t)(next_uniform(&seed) * 1e5)};
            /* A narrow spread leaves the mass in many tokens, a wide one in a few. */
            random_row(&seed, logits, n, i % 3 == 0 ? 0.5 : 6, i / 140 % 2 == 1);
            check_row(logits, n, &how, &count);
        }
    }
    print_message("%d rows compared, %d too close to a border, %d kept more than %d tokens\n", count.n_compared,
                  count.n_skipped, count.n_wide, LS_SAMPLE_BEST);
    assert_true(count.n_compared > 20 * count.n_skipped);
    assert_true(count.n_wide >= 10);
}

/* Top-k up to 256, greedy and unfiltered never look at the logits again, nor does top-p that 256 hold. */
static void test_offers_are_enough(void **state) {
    (void)state;
    static float logits[MAX_V];
    static naive_set set;
    uint64_t seed = 2;
    const ls_sample_params ways[] = {HOW(1, 256, 1, 7, 1), HOW(1, 256, 0.9F, 8, 2), HOW(0.7F, 1, 1, 9, 3),
                                     HOW(0, 0, 1, 9, 4),   HOW(2, 0, 1, 10, 5),     HOW(0.3F, 0, 0.5F, 11, 6)};
    for (int i = 0; i < 60; i++) {
        const ls_sample_params *how = &ways[i % 6];
        random_row(&seed, logits, MAX_V, 8, false);
        naive_filter(&set, logits, MAX_V, how);
        assert_true(i % 6 == 4 || set.n_kept <= LS_SAMPLE_BEST);
        for (int r = 1; r <= LS_MAX_RANKS; r *= 2) {
            assert_int_equal(pick(logits, MAX_V, r, how, false), pick(logits, MAX_V, r, how, true));
        }
    }
}

/* Rows where 256 offers do not hold the mass: nearly flat ones. */
static void test_gathers(void **state) {
    (void)state;
    static float logits[MAX_V];
    static naive_set set;
    uint64_t seed = 3;
    bool beyond_offers = false;
    for (int i = 0; i < 40; i++) {
        ls_sample_params how = HOW(1, i % 2 ? 3000 : 0, 0.95F, (uint64_t)i, i);
        tally count = {0};
        random_row(&seed, logits, MAX_V, 0.1, i % 4 == 3);
        naive_filter(&set, logits, MAX_V, &how);
        assert_true(set.n_kept > LS_SAMPLE_BEST);
        check_row(logits, MAX_V, &how, &count);
        /* The drawn token was in no offer of a single rank. */
        int32_t token = pick(logits, MAX_V, 1, &how, true);
        bool offered = false;
        for (int j = 0; j < LS_SAMPLE_BEST; j++) {
            offered |= set.token[j].id == token;
        }
        beyond_offers |= !offered;
    }
    assert_true(beyond_offers);
}

/* One rank holds the best tokens and all of the mass: its offer runs out while the others' do not. */
static void test_one_rank_runs_out(void **state) {
    (void)state;
    static float logits[MAX_V];
    uint64_t seed = 4;
    for (int i = 0; i < 20; i++) {
        random_row(&seed, logits, MAX_V, 0.5, false);
        for (int id = 0; id < MAX_V / 8 - 20; id++) {
            logits[id] += 6;
        }
        tally count = {0};
        check_row(logits, MAX_V, &(ls_sample_params)HOW(1, i % 2 ? 400 : 0, 0.9F, (uint64_t)i, 1), &count);
    }
}

static void test_ties_go_to_the_lowest_id(void **state) {
    (void)state;
    float logits[131];
    for (int best = 0; best <= 126; best += 14) {
        for (int i = 0; i < 131; i++) {
            logits[i] = i >= best ? 1.5F : 1.0F;
        }
        for (int r = 1; r <= LS_MAX_RANKS; r *= 2) {
            assert_int_equal(pick(logits, 131, r, &(ls_sample_params)HOW(0, 50, 0.5F, 1, 1), true), best);
            assert_int_equal(pick(logits, 131, r, &(ls_sample_params)HOW(1, 1, 1, 1, 1), true), best);
            assert_int_equal(pick(logits, 131, r, &(ls_sample_params)HOW(1, 0, 1e-6F, 1, 1), true), best);
            /* top-k cuts through the tie: only the five lowest ids can be drawn. */
            for (int position = 0; position < 50; position++) {
                int32_t token = pick(logits, 131, r, &(ls_sample_params)HOW(1, 5, 1, 1, position), true);
                assert_true(token >= best && token < best + 5);
            }
        }
    }
}

/* Unfiltered: the ranks' winners meet, however close they are. */
static void test_winners_of_ranks_meet(void **state) {
    (void)state;
    static naive_set set;
    float logits[131];
    uint64_t seed = 5;
    for (int position = 0; position < 2000; position++) {
        ls_sample_params how = HOW(1, 0, 1, 77, position);
        random_row(&seed, logits, 131, 2, position % 2 == 1);
        naive_filter(&set, logits, 131, &how);
        int32_t wanted = naive_pick(&set, &how);
        for (int r = 1; r <= LS_MAX_RANKS; r *= 2) {
            assert_int_equal(pick(logits, 131, r, &how, false), wanted);
        }
    }
}

/* Draws, at positions where the last token that is kept wins, and where the first that is cut off would win. */
static void check_cut(const float *logits, int n, ls_sample_params how, int n_kept) {
    static naive_set set;
    naive_filter(&set, logits, n, &how);
    assert_int_equal(set.n_kept, n_kept);
    bool last_won = false, next_would = false;
    for (how.position = 0; how.position < 100000 && !(last_won && next_would); how.position++) {
        int32_t wanted = naive_pick(&set, &how);
        set.n_kept++;
        int32_t with_next = naive_pick(&set, &how);
        set.n_kept--;
        bool last = !last_won && wanted == set.token[n_kept - 1].id;
        bool next = !next_would && with_next == set.token[n_kept].id;
        if (last || next) {
            assert_int_equal(pick(logits, n, 1, &how, true), wanted);
            assert_int_equal(pick(logits, n, 4, &how, true), wanted);
        }
        last_won |= last;
        next_would |= next;
    }
    assert_true(last_won && next_would);
}

/* top-p just below and just above the mass of a prefix, alone and after top-k. */
static void test_cut_is_exact(void **state) {
    (void)state;
    enum { N = 97, K = 20 };
    static naive_set set;
    float logits[N];
    uint64_t seed = 6;
    random_row(&seed, logits, N, 3, false);
    for (int after_top_k = 0; after_top_k < 2; after_top_k++) {
        ls_sample_params how = HOW(0.9F, after_top_k ? K : 0, 1, 99, 0);
        naive_filter(&set, logits, N, &how);
        const double total = set.mass;
        double held = 0;
        for (int i = 0; i < 12; i++) {
            held += exp((double)set.token[i].z - set.token[0].z);
            how.top_p = (float)(held / total - 5e-5);
            check_cut(logits, N, how, i + 1);
            how.top_p = (float)(held / total + 5e-5);
            check_cut(logits, N, how, i + 2);
            naive_filter(&set, logits, N, &how);
        }
    }
}

/* Edits and allowed ids: as the naive sampler has them, through offers and through the gathered row. */
static void test_edits(void **state) {
    (void)state;
    enum { N = 1009, EDITS = 200 };
    static float logits[N];
    uint64_t seed = 8;
    tally count = {0};
    for (int i = 0; i < 200; i++) {
        ls_logit_edit edit[EDITS];
        int32_t allowed[N];
        int n_allowed = 0;
        for (int j = 0; j < EDITS; j++) {
            edit[j] = (ls_logit_edit){(j * 5 + i) % N, j % 3 == 0 ? 2.5F : 0, j % 2 ? 1.3F : 1,
                                      j % 7 == 0   ? -INFINITY
                                      : j % 5 == 0 ? -0.75F
                                                   : 0};
        }
        for (int id = 0; id < N; id++) {
            if (next_uniform(&seed) < (i % 4 == 2 ? 0.02 : 0.7)) {
                allowed[n_allowed++] = id;
            }
        }
        ls_sample_params how = {.temperature = i % 5 == 0 ? 0 : 0.9F,
                                .top_k = i % 3 == 0 ? 40 : 0,
                                .top_p = i % 2 ? 0.95F : 1,
                                .min_p = i % 7 == 0 ? 0.02F : 0,
                                .seed = (uint64_t)i,
                                .position = i,
                                .n_edits = EDITS,
                                .edit = edit,
                                .n_allowed = n_allowed,
                                .allowed = i % 4 >= 2 && n_allowed > 0 ? allowed : NULL,
                                .n_top = -1};
        random_row(&seed, logits, N, i % 3 == 1 ? 0.3 : 4, i % 9 == 0);
        check_row(logits, N, &how, &count);
    }
    assert_true(count.n_compared > 150 && count.n_wide > 5);
}

/* With every token forbidden there is none, whatever the way of sampling. */
static void test_all_forbidden(void **state) {
    (void)state;
    static const float logits[3] = {1, 2, 3};
    const ls_logit_edit edit[] = {{0, 0, 1, -INFINITY}, {1, 0, 1, -INFINITY}, {2, 0, 1, -INFINITY}};
    const ls_sample_params ways[] = {HOW(0, 0, 1, 1, 1), HOW(1, 0, 1, 1, 1), HOW(1, 2, 1, 1, 1), HOW(1, 0, 0.5F, 1, 1)};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        for (int r = 1; r <= LS_MAX_RANKS; r *= 2) {
            ls_sample_params how = ways[i];
            how.edit = edit;
            how.n_edits = 3;
            assert_int_equal(pick(logits, 3, r, &how, true), -1);
            how.n_edits = 2;
            assert_int_equal(pick(logits, 3, r, &how, true), 2);
        }
    }
}

/* Other choices are other draws; the same choice is the same one. */
static void test_choices(void **state) {
    (void)state;
    float logits[131];
    uint64_t seed = 9;
    int n_same = 0;
    random_row(&seed, logits, 131, 1, false);
    for (int position = 0; position < 200; position++) {
        ls_sample_params how = HOW(1, 0, 1, 5, position);
        int32_t first = pick(logits, 131, 1, &how, true);
        how.choice = 1;
        int32_t second = pick(logits, 131, 2, &how, true);
        assert_int_equal(second, pick(logits, 131, 8, &how, true));
        n_same += first == second;
    }
    assert_true(n_same < 40);
}

/* Log probabilities and the most likely tokens, against sums in double; edits and temperature do not show in them. */
static void test_logprobs(void **state) {
    (void)state;
    enum { N = 257, TOP = 20 };
    static naive_set set;
    static offers out;
    float logits[N];
    uint64_t seed = 10;
    const ls_logit_edit edit = {3, 5, 1, 0};
    const ls_sample_params plain = HOW(1, 0, 1, 0, 0);
    for (int i = 0; i < 100; i++) {
        ls_sample_params how = {
            .temperature = i % 2 ? 0 : 0.7F, .top_k = i % 3, .top_p = 1, .edit = &edit, .n_edits = 1, .n_top = TOP};
        random_row(&seed, logits, N, 4, i % 4 == 0);
        naive_filter(&set, logits, N, &plain);
        double log_sum = (double)set.token[0].z + log(set.mass);
        for (int r = 1; r <= LS_MAX_RANKS; r *= 2) {
            ls_candidate top[TOP];
            int rank;
            make_offers(&out, logits, N, r, &how);
            assert_int_equal(sampler_top_logprobs(&out.row, TOP, top), TOP);
            assert_int_equal(sampler_top_logprobs(&out.row, 3, top), 3);
            for (int j = 0; j < TOP; j++) {
                assert_int_equal(top[j].id, set.token[j].id);
                assert_true(fabs((double)top[j].z - ((double)set.token[j].z - log_sum)) < 1e-5);
            }
            float logprob = sampler_logprob(&out.row, 3, &rank);
            assert_true(fabs((double)logprob - ((double)logits[3] - log_sum)) < 1e-5);
            assert_true(set.token[rank].z == logits[3] && (rank == 0 || set.token[rank - 1].z > logits[3]));
        }
    }
}

/* ---- Probabilities ---- */

enum { DRAWS = 100000, V = 11 };
static const float CHI_LOGITS[V] = {0.3F, -1.2F, 1.7F, 0.9F, -0.4F, 2.1F, 0.0F, 1.1F, -2.5F, 0.6F, 1.4F};

/* p of the draws against the naive set's probabilities; by_seed: the seed varies, else the position. */
static double p_of_draws(const ls_sample_params *how, int n_ranks, bool by_seed, const naive_set *set) {
    int seen[V] = {0};
    const int draws = sanitized() ? DRAWS / 10 : DRAWS;
    for (int i = 0; i < draws; i++) {
        ls_sample_params draw = *how;
        draw.seed = by_seed ? (uint64_t)i : how->seed;
        draw.position = by_seed ? 17 : i;
        seen[pick(CHI_LOGITS, V, n_ranks, &draw, true)]++;
    }
    double probability[V] = {0};
    for (int i = 0; i < set->n_kept; i++) {
        probability[set->token[i].id] = exp((double)set->token[i].z - set->token[0].z) / set->mass;
    }
    return draws_p(seen, probability, V, draws);
}

static void test_probabilities(void **state) {
    (void)state;
    static naive_set set;
    const ls_sample_params ways[] = {HOW(0.8F, 7, 0.9F, 5, 0), HOW(1.0F, 0, 0.95F, 6, 0), HOW(1.5F, 6, 1, 7, 0),
                                     HOW(1.0F, 0, 1, 8, 0), HOW(0.7F, V, 0.9999F, 9, 0)};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        naive_filter(&set, CHI_LOGITS, V, &ways[i]);
        assert_true(set.n_kept >= 4 && !set.near_border);
        double p = p_of_draws(&ways[i], i % 2 == 0 ? 1 : 8, i % 2 == 0, &set);
        print_message("temperature %g top-k %d top-p %g: %d tokens, p = %.3f\n", (double)ways[i].temperature,
                      ways[i].top_k, (double)ways[i].top_p, set.n_kept, p);
        assert_true(p > 1e-4);
    }
    /* The test can fail: it tells temperature 1 from 1.03. */
    ls_sample_params warm = HOW(sanitized() ? 1.1F : 1.03F, 0, 1, 8, 0);
    naive_filter(&set, CHI_LOGITS, V, &warm);
    warm.temperature = 1;
    assert_true(p_of_draws(&warm, 1, true, &set) < 1e-4);
}

static void test_chi_square_tail(void **state) {
    (void)state;
    /* From tables: the 5 % and 0.1 % points. */
    assert_true(fabs(chi_square_p(3.841459, 1) - 0.05) < 1e-6);
    assert_true(fabs(chi_square_p(18.307038, 10) - 0.05) < 1e-6);
    assert_true(fabs(chi_square_p(29.588298, 10) - 0.001) < 1e-7);
    assert_true(chi_square_p(0.01, 10) > 0.999999);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_ranks_and_naive),
        cmocka_unit_test(test_offers_are_enough),
        cmocka_unit_test(test_gathers),
        cmocka_unit_test(test_one_rank_runs_out),
        cmocka_unit_test(test_ties_go_to_the_lowest_id),
        cmocka_unit_test(test_winners_of_ranks_meet),
        cmocka_unit_test(test_cut_is_exact),
        cmocka_unit_test(test_edits),
        cmocka_unit_test(test_all_forbidden),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_probabilities),
        cmocka_unit_test(test_chi_square_tail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
