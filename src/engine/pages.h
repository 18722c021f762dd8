/*
 * The page pool: which pages of KV are free. One page holds 64 tokens of one sequence, all layers, on every rank alike.
 * Only this module hands pages out and takes them back. Running out is a scheduling result, never an error.
 *
 * The prefix cache, where it is on: a page whose 64 tokens are computed is remembered, and a sequence that begins with the same
 * tokens uses it too. What a page holds depends on its own tokens and all before them, so that pages form a tree:
 *
 *     (what came before) --64 tokens--> page, serial     the root is serial 0; a serial is never given twice
 *
 * The table's key is the serial of what came before and the 64 tokens themselves, compared in full: a hash only says where to
 * look. Invariants:
 *   1. refs counts the sequences that have the page; a page that several have, or that is remembered, is not written to.
 *   2. A page with no refs is on the stack of free ones if it is not remembered, else in the list of idle ones by last use.
 *      Both count as free: an idle page is forgotten when its memory is needed, the one that was used longest ago first.
 *   3. A sequence gives its pages back last one first, so that a prefix outlives what hangs on it.
 */
#ifndef LS_ENGINE_PAGES_H
#define LS_ENGINE_PAGES_H

#include "backend/ops.h"
#include "base/arena.h"

typedef struct page_entry {
    uint64_t serial, parent; /* serial 0: not remembered */
    int32_t refs;
    int32_t older, newer; /* in the list of idle pages; -1: none */
    int32_t next;         /* of the same bucket; -1: none */
    int32_t token[LS_PAGE_TOKENS];
} page_entry;

typedef struct page_pool {
    int32_t *free; /* stack of free page numbers that hold nothing, [n_pages] */
    int n_stacked;
    int n_free, n_pages; /* free: stacked and idle */
    /* With a prefix cache, else NULL: */
    page_entry *entry; /* [n_pages] */
    int32_t *bucket;   /* [n_buckets], a power of two: first page, or -1 */
    uint32_t n_buckets;
    int32_t oldest, newest; /* idle pages */
    uint64_t last_serial, seed;
} page_pool;

static inline int pages_for(int64_t n_tokens) {
    return (int)((n_tokens + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS);
}

ls_status page_pool_init(page_pool *pool, int n_pages, bool prefix_cache, ls_arena *arena, int tag, ls_error *err);

/* Grows page[0 .. *n) to `wanted` entries; false, with nothing changed, if too few are free. */
bool pages_grow(page_pool *pool, int32_t *page, int *n, int wanted);
/* Gives back all but the first `kept`. */
void pages_shrink(page_pool *pool, int32_t *page, int *n, int kept);

/* The prefix cache; without one nothing is found, and nothing remembered.
 * pages_find: the remembered page of 64 tokens behind `parent`, whose serial becomes *parent; its refs go up. -1: none.
 * pages_remember: `page` now holds these tokens behind `parent`. The serial of what holds them: its own, or that of a page which
 * did already.
 * pages_own: whether a sequence that has the page may write to it; then it is remembered no longer. */
int32_t pages_find(page_pool *pool, uint64_t *parent, const int32_t token[LS_PAGE_TOKENS]);
uint64_t pages_remember(page_pool *pool, int32_t page, uint64_t parent, const int32_t token[LS_PAGE_TOKENS]);
bool pages_own(page_pool *pool, int32_t page);

#endif
