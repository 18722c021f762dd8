/*
 * Arenas: one mapping of a planned size, cut from the front, freed as a whole.
 *
 *   [ tag 0 ][ tag 1 ][ tag 0 ] ... used ->            <- bytes
 *
 * Every piece starts on a 64-byte border and counts rounded up to it, so a plan that adds arena_round(n) piece by piece
 * arrives at exactly `used`. Pieces carry a tag, so that memory can be reported by purpose. Memory starts zeroed and is
 * not touched until used. Not thread safe: arenas are cut up by one thread, before the ranks start.
 */
#ifndef LS_BASE_ARENA_H
#define LS_BASE_ARENA_H

#include "base/error.h"

enum { ARENA_TAGS = 16, ARENA_ALIGN = 64 };

typedef struct ls_arena {
    uint8_t *base;
    size_t bytes, used;
    size_t by_tag[ARENA_TAGS];
    bool borrowed; /* the memory is somebody else's: arena_deinit leaves it */
} ls_arena;

static inline size_t arena_round(size_t bytes) {
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

ls_status arena_init(ls_arena *arena, size_t bytes, ls_error *err); /* LS_ENOMEM names the size */
/* Cuts up memory that somebody else reserved: of a device, which is never touched here, or pinned. `base` is aligned to
 * ARENA_ALIGN and outlives the arena. */
void arena_init_at(ls_arena *arena, void *base, size_t bytes);
void arena_deinit(ls_arena *arena); /* accepts a zeroed arena */

/* Hints that the first `bytes` will all be touched, so that large pages pay: fewer faults and TLB misses. */
void arena_large_pages(const ls_arena *arena, size_t bytes);

/* An arena of nothing that only counts: takes from it succeed and give NULL. The same code that carves the real arena
 * plans it. */
void arena_init_counting(ls_arena *arena);

/* Puts the address into *out_pointer, which is a pointer of any type. LS_EINTERNAL if the plan was too small: a bug of
 * the planner, never of the user. */
ls_status arena_take(ls_arena *arena, int tag, size_t bytes, void *out_pointer, ls_error *err);

#endif
