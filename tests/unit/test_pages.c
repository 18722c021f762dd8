/*
 * The page pool against a naive model: sequences over few different tokens come, grow, share prefixes and go, in random order.
 * After each step every page has exactly one place, and what is found holds exactly the tokens that were asked for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/pages.h"

enum { PAGES = 24, SEQS = 6, LONGEST = 8, KINDS = 3, STEPS = 40000, P = LS_PAGE_TOKENS };

/* A sequence is a row of pages, each all of one kind of token. */
typedef struct sequence {
    int32_t page[LONGEST];
    int kind[LONGEST];
    int n_pages, n_full, n_remembered;
    uint64_t remembered;
} sequence;

/* What each page holds, as a model of memory would say: the kinds from the first page of its sequence on. */
typedef struct content {
    int kind[LONGEST], n; /* n 0: nothing */
} content;

typedef struct world {
    page_pool pool;
    ls_arena arena;
    sequence seq[SEQS];
    content holds[PAGES];
    uint64_t random;
} world;

static int below(world *w, int n) {
    uint64_t z = w->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (int)((z ^ z >> 31) % (uint64_t)n);
}

static void open_world(world *w, int n_pages, bool prefix_cache) {
    ls_error err = {0};
    ls_arena counting;
    memset(w, 0, sizeof *w);
    arena_init_counting(&counting);
    assert_int_equal(page_pool_init(&w->pool, n_pages, prefix_cache, &counting, 0, &err), LS_OK);
    assert_int_equal(arena_init(&w->arena, counting.used, &err), LS_OK);
    assert_int_equal(page_pool_init(&w->pool, n_pages, prefix_cache, &w->arena, 0, &err), LS_OK);
}

static void fill(int32_t token[P], int kind) {
    for (int i = 0; i < P; i++) {
        token[i] = kind;
    }
}

static void begin(world *w, sequence *s) {
    int32_t token[P];
    memset(s, 0, sizeof *s);
    int wanted = 1 + below(w, LONGEST);
    for (int i = 0; i < LONGEST; i++) {
        s->kind[i] = below(w, KINDS) * below(w, 2);
    }
    while (s->n_pages + 1 < wanted) {
        fill(token, s->kind[s->n_pages]);
        int32_t page = pages_find(&w->pool, &s->remembered, token);
        if (page < 0) {
            break;
        }
        const content *held = &w->holds[page];
        assert_int_equal(held->n, s->n_pages + 1);
        assert_memory_equal(held->kind, s->kind, (size_t)held->n * sizeof *held->kind);
        s->page[s->n_pages++] = page;
    }
    s->n_full = s->n_remembered = s->n_pages;
    if (!pages_grow(&w->pool, s->page, &s->n_pages, wanted)) {
        pages_shrink(&w->pool, s->page, &s->n_pages, 0);
    }
    for (int i = s->n_full; i < s->n_pages; i++) {
        w->holds[s->page[i]].n = 0; /* to be written */
    }
}

/* The next page is computed. */
static void compute(world *w, sequence *s) {
    int32_t token[P];
    if (s->n_full == s->n_pages) {
        return;
    }
    content *held = &w->holds[s->page[s->n_full]];
    assert_true(pages_own(&w->pool, s->page[s->n_full]));
    held->n = s->n_full + 1;
    memcpy(held->kind, s->kind, (size_t)held->n * sizeof *held->kind);
    fill(token, s->kind[s->n_full]);
    if (s->n_remembered == s->n_full) {
        s->remembered = pages_remember(&w->pool, s->page[s->n_full], s->remembered, token);
        s->n_remembered++;
    }
    s->n_full++;
}

static void check(const world *w) {
    int refs[PAGES] = {0}, n_idle = 0, n_used = 0;
    bool free[PAGES] = {false};
    for (int i = 0; i < SEQS; i++) {
        for (int k = 0; k < w->seq[i].n_pages; k++) {
            refs[w->seq[i].page[k]]++;
        }
    }
    for (int i = 0; i < w->pool.n_stacked; i++) {
        assert_false(free[w->pool.free[i]]);
        free[w->pool.free[i]] = true;
        assert_true(w->pool.entry[w->pool.free[i]].serial == 0);
    }
    for (int32_t page = w->pool.oldest; page >= 0; page = w->pool.entry[page].newer) {
        assert_false(free[page]);
        free[page] = true;
        assert_true(w->pool.entry[page].serial != 0);
        n_idle++;
    }
    for (int page = 0; page < PAGES; page++) {
        assert_int_equal(w->pool.entry[page].refs, refs[page]);
        assert_int_equal(free[page], refs[page] == 0);
        n_used += refs[page] > 0;
    }
    assert_int_equal(w->pool.n_free, w->pool.n_stacked + n_idle);
    assert_int_equal(w->pool.n_free, PAGES - n_used);
}

static void random_sequences(void **state) {
    (void)state;
    world w;
    int n_found = 0;
    open_world(&w, PAGES, true);
    for (int i = 0; i < STEPS; i++) {
        sequence *s = &w.seq[below(&w, SEQS)];
        if (s->n_pages == 0) {
            begin(&w, s);
            n_found += s->n_full;
        } else if (below(&w, LONGEST) == 0) {
            pages_shrink(&w.pool, s->page, &s->n_pages, 0);
        } else {
            compute(&w, s);
        }
        check(&w);
    }
    assert_true(n_found > STEPS / 100); /* it did share */
    for (int i = 0; i < SEQS; i++) {
        pages_shrink(&w.pool, w.seq[i].page, &w.seq[i].n_pages, 0);
    }
    assert_int_equal(w.pool.n_free, PAGES);
    arena_deinit(&w.arena);
}

/* The page that was used longest ago goes first; a prefix outlives what hangs on it. */
static void oldest_goes_first(void **state) {
    (void)state;
    world w;
    int32_t token[P], a[2], b[2], more[3];
    int n_a = 0, n_b = 0, n_more = 0;
    uint64_t at = 0;
    open_world(&w, 4, true);
    assert_true(pages_grow(&w.pool, a, &n_a, 2));
    for (int i = 0; i < 2; i++) {
        fill(token, 10 + i);
        at = pages_remember(&w.pool, a[i], at, token);
    }
    assert_true(pages_grow(&w.pool, b, &n_b, 2));
    fill(token, 20);
    pages_remember(&w.pool, b[0], 0, token);
    int32_t first = a[0], second = a[1];
    pages_shrink(&w.pool, a, &n_a, 0);
    pages_shrink(&w.pool, b, &n_b, 0);
    assert_int_equal(w.pool.n_free, 4);
    assert_int_equal(w.pool.n_stacked, 1);
    assert_true(pages_grow(&w.pool, more, &n_more, 2)); /* the empty one, then a's last */
    assert_int_equal(more[1], second);
    at = 0;
    fill(token, 10);
    assert_int_equal(pages_find(&w.pool, &at, token), first);
    fill(token, 11);
    assert_int_equal(pages_find(&w.pool, &at, token), -1);
    assert_false(pages_grow(&w.pool, more, &n_more, 4)); /* one is left, b's */
    assert_true(pages_grow(&w.pool, more, &n_more, 3));
    at = 0;
    fill(token, 20);
    assert_int_equal(pages_find(&w.pool, &at, token), -1);
    arena_deinit(&w.arena);
}

/* Who writes to a page takes it out of the cache, unless somebody else reads it. */
static void owning(void **state) {
    (void)state;
    world w;
    int32_t token[P], page[1];
    int n = 0;
    uint64_t at = 0;
    open_world(&w, 2, true);
    fill(token, 1);
    assert_true(pages_grow(&w.pool, page, &n, 1));
    uint64_t serial = pages_remember(&w.pool, page[0], 0, token);
    assert_true(serial != 0);
    assert_int_equal(pages_find(&w.pool, &at, token), page[0]);
    assert_true(at == serial);
    assert_false(pages_own(&w.pool, page[0]));
    int n_other = 1;
    int32_t other[1] = {page[0]};
    pages_shrink(&w.pool, other, &n_other, 0);
    assert_true(pages_own(&w.pool, page[0]));
    at = 0;
    assert_int_equal(pages_find(&w.pool, &at, token), -1);
    arena_deinit(&w.arena);
}

static void without_cache(void **state) {
    (void)state;
    world w;
    int32_t token[P], page[3];
    int n = 0;
    uint64_t at = 0;
    open_world(&w, 3, false);
    fill(token, 1);
    assert_true(pages_grow(&w.pool, page, &n, 3));
    assert_true(pages_remember(&w.pool, page[0], 0, token) == 0);
    assert_int_equal(pages_find(&w.pool, &at, token), -1);
    assert_true(pages_own(&w.pool, page[0]));
    assert_false(pages_grow(&w.pool, page, &n, 4));
    pages_shrink(&w.pool, page, &n, 1);
    assert_int_equal(w.pool.n_free, 2);
    arena_deinit(&w.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_sequences),
        cmocka_unit_test(oldest_goes_first),
        cmocka_unit_test(owning),
        cmocka_unit_test(without_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
