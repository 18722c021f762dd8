/*
 * Memory that is freed all at once: a template's syntax tree lives in one heap, all values of a rendering in another.
 *
 * Pieces are cut from chunks and 16-byte aligned. Nothing is freed alone, so values may point at each other freely and no
 * error path has anything to clean up. A heap has a limit, because templates are not trusted.
 */
#ifndef LS_TEXT_JINJA_HEAP_H
#define LS_TEXT_JINJA_HEAP_H

#include "base/error.h"

typedef struct jinja_heap {
    struct jinja_chunk *chunk; /* the newest; older ones behind it */
    size_t taken_bytes, limit_bytes;
} jinja_heap;

/* Puts the address of zeroed memory into *out_pointer, which is a pointer of any type. LS_ENOMEM, LS_ETOOLONG (limit). */
ls_status jinja_heap_take(jinja_heap *heap, size_t bytes, void *out_pointer, ls_error *err);

/* n pieces of size bytes each; the product is checked. */
ls_status jinja_heap_take_array(jinja_heap *heap, size_t n, size_t bytes, void *out_pointer, ls_error *err);

/* A larger copy of `old`, in place where it was the last piece taken. */
ls_status jinja_heap_grow(jinja_heap *heap, const void *old, size_t old_bytes, size_t bytes, void *out_pointer,
                          ls_error *err);

void jinja_heap_deinit(jinja_heap *heap);

#endif
