/*
 * The text of an answer: tokens in, text out, ended by a stop string. A request has two: one that steps feed, for on_text
 * and for noticing stop strings; one that catches up when somebody asks for the whole text, so that steps need not keep
 * it. Both say the same.
 */
#ifndef LS_ENGINE_ANSWER_H
#define LS_ENGINE_ANSWER_H

#include "lockstep.h"
#include "text/detokenize.h"
#include "text/stop.h"

typedef struct answer_text {
    detokenizer stream;
    stop_matcher stop;
    int n_tokens;   /* of the answer, taken so far */
    int min_tokens; /* stop strings do not count in the text of these */
} answer_text;

/* `stream` stands where the answer begins. The strings are copied. */
ls_status answer_init(answer_text *answer, const detokenizer *stream, const ls_request_params *params, ls_error *err);
void answer_deinit(answer_text *answer); /* accepts a zeroed one */

/* Appends what became certain with this token to *piece; `scratch` holds what passes between the parts. A token that is
 * not `shown` gives no text. Index of the stop string that ended the answer, or -1. */
ls_status answer_push(answer_text *answer, int32_t token, bool shown, text_buffer *scratch, text_buffer *piece,
                      int *stop_string, ls_error *err);
/* The answer has ended: appends what was held back, unless a stop string ended it. */
ls_status answer_flush(answer_text *answer, text_buffer *scratch, text_buffer *piece, ls_error *err);

#endif
