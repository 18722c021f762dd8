/* See arena.h. */
#include "base/arena.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

ls_status arena_init(ls_arena *arena, size_t bytes, ls_error *err) {
    ls_arena fresh = {.bytes = arena_round(bytes)};
    if (fresh.bytes > 0) {
        void *map = mmap(NULL, fresh.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) {
            return error_set(err, LS_ENOMEM, "cannot reserve %.2f GB of memory: %s", (double)bytes / 1e9,
                             strerror(errno));
        }
        fresh.base = map;
    }
    *arena = fresh;
    return LS_OK;
}

void arena_init_at(ls_arena *arena, void *base, size_t bytes) {
    *arena = (ls_arena){.base = base, .bytes = arena_round(bytes), .borrowed = true};
}

void arena_deinit(ls_arena *arena) {
    if (arena->base != NULL && !arena->borrowed) {
        munmap(arena->base, arena->bytes);
    }
    *arena = (ls_arena){0};
}

void arena_large_pages(const ls_arena *arena, size_t bytes) {
    if (bytes > 0) {
        madvise(arena->base, bytes, MADV_HUGEPAGE);
    }
}

void arena_init_counting(ls_arena *arena) {
    *arena = (ls_arena){.bytes = SIZE_MAX};
}

ls_status arena_take(ls_arena *arena, int tag, size_t bytes, void *out_pointer, ls_error *err) {
    size_t rounded = arena_round(bytes);
    if (rounded < bytes || rounded > arena->bytes - arena->used) {
        return error_set(err, LS_EINTERNAL, "memory plan too small: tag %d wants %zu bytes, %zu of %zu are used", tag,
                         bytes, arena->used, arena->bytes);
    }
    void *piece = arena->base == NULL ? NULL : arena->base + arena->used;
    arena->used += rounded;
    arena->by_tag[tag] += rounded;
    memcpy(out_pointer, &piece, sizeof piece);
    return LS_OK;
}
