/* Growable list of token ids, and where each of them lies in the input if that was asked for. */
#ifndef LS_TEXT_TOKEN_LIST_H
#define LS_TEXT_TOKEN_LIST_H

#include "text/traced.h"

/* Owned by the caller: start zeroed, free with token_list_deinit. */
typedef struct token_list {
    int32_t *id;
    text_span *span; /* [n], parallel to id; NULL until the first span is pushed. {0, 0}: stands for no text */
    size_t n, capacity;
} token_list;

/* Room for one more id, and for its span if `spans` or if the list has spans already. */
ls_status token_list_grow(token_list *list, bool spans, ls_error *err);
void token_list_deinit(token_list *list);

static inline ls_status token_list_push(token_list *list, int32_t id, ls_error *err) {
    if (list->n == list->capacity) {
        TRY(token_list_grow(list, false, err));
    }
    if (list->span != NULL) {
        list->span[list->n] = (text_span){0};
    }
    list->id[list->n++] = id;
    return LS_OK;
}

static inline ls_status token_list_push_span(token_list *list, int32_t id, text_span span, ls_error *err) {
    if (list->n == list->capacity || list->span == NULL) {
        TRY(token_list_grow(list, true, err));
    }
    list->span[list->n] = span;
    list->id[list->n++] = id;
    return LS_OK;
}

#endif
