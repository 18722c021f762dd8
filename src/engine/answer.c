/* See answer.h. */
#include "engine/answer.h"

#include <string.h>

ls_status answer_init(answer_text *answer, const detokenizer *stream, const ls_request_params *params, ls_error *err) {
    size_t n_bytes[STOP_MAX_STRINGS];
    if (params->n_stop > STOP_MAX_STRINGS) {
        return error_set(err, LS_EINVAL, "stop: %zu strings; at most %d are taken", params->n_stop, STOP_MAX_STRINGS);
    }
    for (size_t i = 0; i < params->n_stop; i++) {
        if (params->stop[i] == NULL) {
            return error_set(err, LS_EINVAL, "stop: string %zu is NULL", i + 1);
        }
        n_bytes[i] = strlen(params->stop[i]);
    }
    answer_text fresh = {.stream = *stream, .min_tokens = params->min_tokens};
    TRY(stop_init(&fresh.stop, params->stop, n_bytes, params->n_stop, params->include_stop, err));
    *answer = fresh;
    return LS_OK;
}

void answer_deinit(answer_text *answer) {
    stop_deinit(&answer->stop);
}

/* Text that the decoder gave. */
static ls_status pass_on(answer_text *answer, text_buffer *scratch, text_buffer *piece, ls_error *err) {
    if (answer->n_tokens <= answer->min_tokens && answer->min_tokens > 0) {
        return text_buffer_append(piece, scratch->n > 0 ? scratch->data : "", scratch->n, err);
    }
    return stop_push(&answer->stop, scratch->n > 0 ? scratch->data : "", scratch->n, piece, err);
}

ls_status answer_push(answer_text *answer, int32_t token, bool shown, text_buffer *scratch, text_buffer *piece,
                      int *stop_string, ls_error *err) {
    answer->n_tokens++;
    scratch->n = 0;
    if (shown && answer->stream.tokenizer != NULL) {
        TRY(detokenizer_push(&answer->stream, token, scratch, err));
    }
    TRY(pass_on(answer, scratch, piece, err));
    *stop_string = answer->stop.found;
    return LS_OK;
}

ls_status answer_flush(answer_text *answer, text_buffer *scratch, text_buffer *piece, ls_error *err) {
    if (answer->stop.found >= 0 || answer->stream.tokenizer == NULL) {
        return LS_OK;
    }
    scratch->n = 0;
    TRY(detokenizer_flush(&answer->stream, scratch, err));
    TRY(pass_on(answer, scratch, piece, err));
    return answer->stop.found >= 0 ? LS_OK : stop_flush(&answer->stop, piece, err);
}
