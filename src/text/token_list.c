/* See token_list.h. */
#include "text/token_list.h"

#include <stdlib.h>

ls_status token_list_grow(token_list *list, bool spans, ls_error *err) {
    size_t capacity = list->capacity;
    if (list->n == capacity) {
        capacity = capacity ? 2 * capacity : 64;
    }
    int32_t *id = capacity <= SIZE_MAX / sizeof *list->span ? realloc(list->id, capacity * sizeof *id) : NULL;
    if (id == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: %zu token ids", capacity);
    }
    list->id = id;
    if (spans || list->span != NULL) {
        text_span *span = realloc(list->span, capacity * sizeof *span);
        if (span == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: places of %zu tokens", capacity);
        }
        for (size_t i = 0; list->span == NULL && i < list->n; i++) {
            span[i] = (text_span){0};
        }
        list->span = span;
    }
    list->capacity = capacity;
    return LS_OK;
}

void token_list_deinit(token_list *list) {
    free(list->id);
    free(list->span);
    *list = (token_list){0};
}
