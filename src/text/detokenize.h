/*
 * Incremental decoding: ids in, text out, never half a character.
 *
 * The concatenation of all pieces and the final flush equals Hugging Face's decode of the whole list. For that, text is
 * held back where later ids still decide what it is:
 *   - byte-level: bytes that begin a UTF-8 character, until it is whole; bytes that can no longer become one come out as
 *     U+FFFD (Rust's String::from_utf8_lossy: one for each maximal invalid part);
 *   - byte tokens of byte_fallback: a whole run of them, since one invalid byte turns all of the run into U+FFFD. Runs
 *     beyond DETOKENIZER_MAX_HELD bytes are the one exception: their whole characters come out then, come what may.
 * A detokenizer owns no memory: a step of the engine does not allocate for it.
 */
#ifndef LS_TEXT_DETOKENIZE_H
#define LS_TEXT_DETOKENIZE_H

#include "text/text_buffer.h"
#include "text/tokenizer.h"

enum { DETOKENIZER_MAX_HELD = 252 };

typedef struct detokenizer {
    const ls_tokenizer *tokenizer; /* borrowed */
    bool skip_special;             /* special tokens give no text (HF's skip_special_tokens) */
    bool any_token;                /* one was decoded already */
    bool any_text;                 /* the start of the text is behind us: nothing to strip any more */
    bool run_is_invalid;           /* the run of byte tokens is not UTF-8: n_held counts its U+FFFDs to come */
    uint32_t n_stripped;
    size_t n_held;
    char held[DETOKENIZER_MAX_HELD];
} detokenizer;

void detokenizer_init(detokenizer *state, const ls_tokenizer *tokenizer, bool skip_special);
/* Appends what became certain with this id to *out. An id outside the vocabulary gives no text. */
ls_status detokenizer_push(detokenizer *state, int32_t id, text_buffer *out, ls_error *err);
/* Appends what is still held: the end of the text. */
ls_status detokenizer_flush(detokenizer *state, text_buffer *out, ls_error *err);

#endif
