/* Arenas: what a counting arena counts is what a real one carves; borders, tags, zeroed memory, and what does not fit. */
#include "base/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct {
    int tag;
    size_t bytes;
} PIECES[] = {{0, 1}, {3, 64}, {0, 65}, {7, 0}, {1, 4096}, {3, 63}, {2, 100000}};
enum { N = sizeof PIECES / sizeof *PIECES };

static void take_all(ls_arena *arena, uint8_t *piece[N]) {
    ls_error err = {0};
    for (int i = 0; i < N; i++) {
        piece[i] = (uint8_t *)1;
        assert_int_equal(arena_take(arena, PIECES[i].tag, PIECES[i].bytes, &piece[i], &err), LS_OK);
    }
}

static void counting_equals_carving(void **state) {
    (void)state;
    ls_arena counted, real;
    uint8_t *nothing[N], *piece[N];
    ls_error err = {0};
    arena_init_counting(&counted);
    take_all(&counted, nothing);
    const size_t total = 64 + 64 + 128 + 0 + 4096 + 64 + 100032;
    assert_int_equal(counted.used, total);
    assert_int_equal(arena_init(&real, counted.used, &err), LS_OK);
    assert_int_equal(real.bytes, total);
    take_all(&real, piece);
    assert_int_equal(real.used, real.bytes);
    assert_memory_equal(real.by_tag, counted.by_tag, sizeof real.by_tag);
    assert_int_equal(real.by_tag[0], 192);
    assert_int_equal(real.by_tag[3], 128);
    assert_int_equal(real.by_tag[4], 0);
    for (int i = 0; i < N; i++) {
        assert_null(nothing[i]);
        assert_int_equal((uintptr_t)piece[i] % ARENA_ALIGN, 0);
        assert_true(piece[i] >= real.base && piece[i] + PIECES[i].bytes <= real.base + real.bytes);
        for (size_t k = 0; k < PIECES[i].bytes; k++) {
            assert_int_equal(piece[i][k], 0); /* zeroed, and no other piece's byte */
        }
        memset(piece[i], 0xff, PIECES[i].bytes);
    }
    arena_large_pages(&real, 4096);
    arena_deinit(&real);
    assert_null(real.base);
    assert_int_equal(real.used, 0);
    arena_deinit(&real);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    ls_arena arena;
    void *piece = &arena;
    ls_error err = {0};
    assert_int_equal(arena_init(&arena, 100, &err), LS_OK);
    assert_int_equal(arena.bytes, 128);
    assert_int_equal(arena_take(&arena, 2, 64, &piece, &err), LS_OK);
    static const size_t too_large[] = {65, 128, SIZE_MAX, SIZE_MAX - 63, SIZE_MAX - 64, SIZE_MAX / 2 + 1};
    for (size_t i = 0; i < sizeof too_large / sizeof *too_large; i++) {
        void *same = &arena;
        err = (ls_error){0};
        assert_int_equal(arena_take(&arena, 5, too_large[i], &same, &err), LS_EINTERNAL);
        assert_ptr_equal(same, &arena); /* outputs are left alone */
        assert_non_null(strstr(err.text, "tag 5"));
        assert_non_null(strstr(err.text, "64 of 128"));
        assert_int_equal(arena.used, 64);
        assert_int_equal(arena.by_tag[5], 0);
    }
    assert_int_equal(arena_take(&arena, 2, 64, &piece, NULL), LS_OK);
    assert_int_equal(arena_take(&arena, 2, 1, &piece, NULL), LS_EINTERNAL);
    assert_int_equal(arena_take(&arena, 2, 0, &piece, NULL), LS_OK);
    arena_deinit(&arena);
}

static void counting_does_not_wrap(void **state) {
    (void)state;
    ls_arena arena;
    void *piece;
    ls_error err = {0};
    arena_init_counting(&arena);
    assert_int_equal(arena_take(&arena, 0, SIZE_MAX / 2, &piece, &err), LS_OK);
    assert_int_equal(arena_take(&arena, 0, SIZE_MAX / 2, &piece, &err), LS_EINTERNAL);
    assert_int_equal(arena.used, arena_round(SIZE_MAX / 2));
}

static void empty_and_impossible_arenas(void **state) {
    (void)state;
    ls_arena arena = {.used = 77};
    ls_error err = {0};
    assert_int_equal(arena_init(&arena, 0, &err), LS_OK);
    assert_int_equal(arena.used, 0);
    assert_null(arena.base);
    arena_large_pages(&arena, 0);
    arena_deinit(&arena);
    arena.used = 77;
    assert_int_equal(arena_init(&arena, (size_t)1 << 62, &err), LS_ENOMEM); /* more than an address space */
    assert_int_equal(arena.used, 77);
    assert_non_null(strstr(err.text, "4611686018.43 GB"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counting_equals_carving),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(counting_does_not_wrap),
        cmocka_unit_test(empty_and_impossible_arenas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
