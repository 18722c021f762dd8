/* See heap.h. */
#include "text/jinja/heap.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_CHUNK_BYTES = 8 << 10, MAX_CHUNK_BYTES = 1 << 20, PIECE_ALIGN = 16 };

typedef struct jinja_chunk {
    struct jinja_chunk *older;
    size_t used, bytes;
    _Alignas(PIECE_ALIGN) uint8_t data[];
} jinja_chunk;

static size_t round_up(size_t bytes) {
    return (bytes + PIECE_ALIGN - 1) / PIECE_ALIGN * PIECE_ALIGN;
}

static ls_status count(jinja_heap *heap, size_t bytes, ls_error *err) {
    if (bytes > SIZE_MAX / 4 || bytes > heap->limit_bytes - heap->taken_bytes) {
        return error_set(err, LS_ETOOLONG, "the template wants more than %zu bytes of memory", heap->limit_bytes);
    }
    heap->taken_bytes += bytes;
    return LS_OK;
}

static ls_status add_chunk(jinja_heap *heap, size_t bytes, ls_error *err) {
    size_t chunk_bytes = heap->chunk == NULL ? FIRST_CHUNK_BYTES : heap->chunk->bytes * 2;
    if (chunk_bytes > MAX_CHUNK_BYTES) {
        chunk_bytes = MAX_CHUNK_BYTES;
    }
    if (chunk_bytes < bytes) {
        chunk_bytes = bytes;
    }
    jinja_chunk *chunk = calloc(1, sizeof *chunk + chunk_bytes);
    if (chunk == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: %zu bytes for a template", chunk_bytes);
    }
    chunk->older = heap->chunk;
    chunk->bytes = chunk_bytes;
    heap->chunk = chunk;
    return LS_OK;
}

ls_status jinja_heap_take(jinja_heap *heap, size_t bytes, void *out_pointer, ls_error *err) {
    TRY(count(heap, bytes, err));
    size_t rounded = round_up(bytes);
    if (heap->chunk == NULL || rounded > heap->chunk->bytes - heap->chunk->used) {
        TRY(add_chunk(heap, rounded, err));
    }
    void *piece = heap->chunk->data + heap->chunk->used;
    heap->chunk->used += rounded;
    memcpy(out_pointer, &piece, sizeof piece);
    return LS_OK;
}

ls_status jinja_heap_take_array(jinja_heap *heap, size_t n, size_t bytes, void *out_pointer, ls_error *err) {
    size_t total;
    if (__builtin_mul_overflow(n, bytes, &total)) {
        total = SIZE_MAX;
    }
    return jinja_heap_take(heap, total, out_pointer, err);
}

ls_status jinja_heap_grow(jinja_heap *heap, const void *old, size_t old_bytes, size_t bytes, void *out_pointer,
                          ls_error *err) {
    jinja_chunk *chunk = heap->chunk;
    size_t old_rounded = round_up(old_bytes);
    if (old != NULL && chunk != NULL && (const uint8_t *)old + old_rounded == chunk->data + chunk->used &&
        old_rounded <= chunk->used && bytes <= SIZE_MAX / 4 &&
        round_up(bytes) - old_rounded <= chunk->bytes - chunk->used) {
        TRY(count(heap, bytes - old_bytes, err));
        chunk->used += round_up(bytes) - old_rounded;
        memcpy(out_pointer, &old, sizeof old);
        return LS_OK;
    }
    void *fresh;
    TRY(jinja_heap_take(heap, bytes, &fresh, err));
    if (old_bytes > 0) {
        memcpy(fresh, old, old_bytes);
    }
    memcpy(out_pointer, &fresh, sizeof fresh);
    return LS_OK;
}

void jinja_heap_deinit(jinja_heap *heap) {
    while (heap->chunk != NULL) {
        jinja_chunk *older = heap->chunk->older;
        free(heap->chunk);
        heap->chunk = older;
    }
    heap->taken_bytes = 0;
}
