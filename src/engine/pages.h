/*
 * The page pool: which pages of KV are free. One page holds 64 tokens of one sequence, all layers, on every rank alike.
 * Only this module hands pages out and takes them back. Running out is a scheduling result, never an error.
 */
#ifndef LS_ENGINE_PAGES_H
#define LS_ENGINE_PAGES_H

#include "backend/ops.h"
#include "base/arena.h"

typedef struct page_pool {
    int32_t *free; /* stack of free page numbers, [n_pages] */
    int n_free, n_pages;
} page_pool;

static inline int pages_for(int64_t n_tokens) {
    return (int)((n_tokens + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS);
}

ls_status page_pool_init(page_pool *pool, int n_pages, ls_arena *arena, int tag, ls_error *err);

/* Grows page[0 .. *n) to `wanted` entries; false, with nothing changed, if too few are free. */
bool pages_grow(page_pool *pool, int32_t *page, int *n, int wanted);
/* Gives back all but the first `kept`. */
void pages_shrink(page_pool *pool, int32_t *page, int *n, int kept);

#endif
