/* See text_buffer.h. */
#include "text/text_buffer.h"

#include <stdlib.h>
#include <string.h>

ls_status text_buffer_reserve(text_buffer *buffer, size_t n_bytes, ls_error *err) {
    if (n_bytes < buffer->capacity - buffer->n) {
        return LS_OK;
    }
    if (n_bytes > SIZE_MAX / 4 - buffer->n) {
        return error_set(err, LS_ENOMEM, "out of memory: text of more than %zu bytes", SIZE_MAX / 4);
    }
    size_t capacity = buffer->capacity + buffer->capacity / 2;
    if (capacity < buffer->n + n_bytes + 1) {
        capacity = buffer->n + n_bytes + 1;
    }
    char *data = realloc(buffer->data, capacity);
    if (data == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: %zu bytes of text", capacity);
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return LS_OK;
}

ls_status text_buffer_append(text_buffer *buffer, const char *bytes, size_t n_bytes, ls_error *err) {
    TRY(text_buffer_reserve(buffer, n_bytes, err));
    if (n_bytes > 0) {
        memcpy(buffer->data + buffer->n, bytes, n_bytes);
    }
    buffer->n += n_bytes;
    buffer->data[buffer->n] = '\0';
    return LS_OK;
}

void text_buffer_clear(text_buffer *buffer) {
    buffer->n = 0;
}

void text_buffer_deinit(text_buffer *buffer) {
    free(buffer->data);
    *buffer = (text_buffer){0};
}
