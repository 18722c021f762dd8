/* See pages.h. */
#include "engine/pages.h"

ls_status page_pool_init(page_pool *pool, int n_pages, ls_arena *arena, int tag, ls_error *err) {
    page_pool fresh = {.n_free = n_pages, .n_pages = n_pages};
    TRY(arena_take(arena, tag, (size_t)n_pages * sizeof *fresh.free, &fresh.free, err));
    if (fresh.free != NULL) { /* NULL while memory is only being counted */
        for (int i = 0; i < n_pages; i++) {
            fresh.free[i] = n_pages - 1 - i;
        }
    }
    *pool = fresh;
    return LS_OK;
}

bool pages_grow(page_pool *pool, int32_t *page, int *n, int wanted) {
    if (wanted - *n > pool->n_free) {
        return false;
    }
    while (*n < wanted) {
        page[(*n)++] = pool->free[--pool->n_free];
    }
    return true;
}

void pages_shrink(page_pool *pool, int32_t *page, int *n, int kept) {
    while (*n > kept) {
        pool->free[pool->n_free++] = page[--(*n)];
    }
}
