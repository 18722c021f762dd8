/* See pages.h. */
#include "engine/pages.h"

#include <string.h>

#include "text/hash.h"

enum { NONE = -1 };

ls_status page_pool_init(page_pool *pool, int n_pages, bool prefix_cache, ls_arena *arena, int tag, ls_error *err) {
    page_pool fresh = {.n_stacked = n_pages, .n_free = n_pages, .n_pages = n_pages, .oldest = NONE, .newest = NONE};
    TRY(arena_take(arena, tag, (size_t)n_pages * sizeof *fresh.free, &fresh.free, err));
    if (prefix_cache) {
        fresh.n_buckets = 1;
        while (fresh.n_buckets < (uint32_t)n_pages) {
            fresh.n_buckets *= 2;
        }
        fresh.seed = hash_seed();
        TRY(arena_take(arena, tag, (size_t)n_pages * sizeof *fresh.entry, &fresh.entry, err));
        TRY(arena_take(arena, tag, fresh.n_buckets * sizeof *fresh.bucket, &fresh.bucket, err));
    }
    if (fresh.free != NULL) { /* NULL while memory is only being counted */
        for (int i = 0; i < n_pages; i++) {
            fresh.free[i] = n_pages - 1 - i;
        }
        for (int i = 0; prefix_cache && i < n_pages; i++) {
            fresh.entry[i] = (page_entry){.older = NONE, .newer = NONE, .next = NONE};
        }
        for (uint32_t i = 0; prefix_cache && i < fresh.n_buckets; i++) {
            fresh.bucket[i] = NONE;
        }
    }
    *pool = fresh;
    return LS_OK;
}

/* ---- Idle pages ---- */

static void idle_remove(page_pool *pool, int32_t page) {
    page_entry *e = &pool->entry[page];
    *(e->older != NONE ? &pool->entry[e->older].newer : &pool->oldest) = e->newer;
    *(e->newer != NONE ? &pool->entry[e->newer].older : &pool->newest) = e->older;
    e->older = e->newer = NONE;
}

static void idle_add(page_pool *pool, int32_t page) {
    page_entry *e = &pool->entry[page];
    e->older = pool->newest;
    *(pool->newest != NONE ? &pool->entry[pool->newest].newer : &pool->oldest) = page;
    pool->newest = page;
}

/* ---- The table ---- */

static int32_t *bucket_of(const page_pool *pool, uint64_t parent, const int32_t *token) {
    uint64_t hash = hash_bytes((const char *)token, LS_PAGE_TOKENS * sizeof *token, hash_u64(parent, pool->seed));
    return &pool->bucket[hash & (pool->n_buckets - 1)];
}

static int32_t look_up(const page_pool *pool, uint64_t parent, const int32_t *token) {
    int32_t page = *bucket_of(pool, parent, token);
    while (page != NONE && (pool->entry[page].parent != parent ||
                            memcmp(pool->entry[page].token, token, sizeof pool->entry[page].token) != 0)) {
        page = pool->entry[page].next;
    }
    return page;
}

static void forget(page_pool *pool, int32_t page) {
    page_entry *e = &pool->entry[page];
    int32_t *link = bucket_of(pool, e->parent, e->token);
    while (*link != page) {
        link = &pool->entry[*link].next;
    }
    *link = e->next;
    e->next = NONE;
    e->serial = 0;
}

int32_t pages_find(page_pool *pool, uint64_t *parent, const int32_t token[LS_PAGE_TOKENS]) {
    int32_t page = pool->entry != NULL ? look_up(pool, *parent, token) : NONE;
    if (page == NONE) {
        return NONE;
    }
    if (pool->entry[page].refs++ == 0) {
        idle_remove(pool, page);
        pool->n_free--;
    }
    *parent = pool->entry[page].serial;
    return page;
}

uint64_t pages_remember(page_pool *pool, int32_t page, uint64_t parent, const int32_t token[LS_PAGE_TOKENS]) {
    if (pool->entry == NULL) {
        return 0;
    }
    int32_t known = look_up(pool, parent, token);
    if (known != NONE) {
        return pool->entry[known].serial;
    }
    page_entry *e = &pool->entry[page];
    int32_t *bucket = bucket_of(pool, parent, token);
    e->serial = ++pool->last_serial;
    e->parent = parent;
    e->next = *bucket;
    memcpy(e->token, token, sizeof e->token);
    *bucket = page;
    return e->serial;
}

bool pages_own(page_pool *pool, int32_t page) {
    if (pool->entry == NULL) {
        return true;
    }
    if (pool->entry[page].refs > 1) {
        return false;
    }
    if (pool->entry[page].serial != 0) {
        forget(pool, page);
    }
    return true;
}

/* ---- Handing out and taking back ---- */

static int32_t take_page(page_pool *pool) {
    pool->n_free--;
    if (pool->n_stacked > 0) {
        return pool->free[--pool->n_stacked];
    }
    int32_t page = pool->oldest;
    idle_remove(pool, page);
    forget(pool, page);
    return page;
}

bool pages_grow(page_pool *pool, int32_t *page, int *n, int wanted) {
    if (wanted - *n > pool->n_free) {
        return false;
    }
    while (*n < wanted) {
        int32_t fresh = take_page(pool);
        if (pool->entry != NULL) {
            pool->entry[fresh].refs = 1;
        }
        page[(*n)++] = fresh;
    }
    return true;
}

static void give_page(page_pool *pool, int32_t page) {
    if (pool->entry != NULL && --pool->entry[page].refs > 0) {
        return;
    }
    pool->n_free++;
    if (pool->entry != NULL && pool->entry[page].serial != 0) {
        idle_add(pool, page);
    } else {
        pool->free[pool->n_stacked++] = page;
    }
}

void pages_shrink(page_pool *pool, int32_t *page, int *n, int kept) {
    while (*n > kept) {
        give_page(pool, page[--(*n)]);
    }
}
