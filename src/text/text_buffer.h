/* Growable bytes. */
#ifndef LS_TEXT_TEXT_BUFFER_H
#define LS_TEXT_TEXT_BUFFER_H

#include "base/error.h"

/* Owned by the caller: start zeroed. Always NUL-terminated once anything was appended; may hold NULs before that. */
typedef struct text_buffer {
    char *data;
    size_t n, capacity;
} text_buffer;

/* Room for n_bytes more (and the NUL), so that appending them cannot fail. */
ls_status text_buffer_reserve(text_buffer *buffer, size_t n_bytes, ls_error *err);
ls_status text_buffer_append(text_buffer *buffer, const char *bytes, size_t n_bytes, ls_error *err);
void text_buffer_clear(text_buffer *buffer); /* empty again; keeps the memory */
void text_buffer_deinit(text_buffer *buffer);

#endif
