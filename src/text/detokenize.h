/*
 * Incremental decoding: ids in, text out, never half a character.
 *
 * Bytes that begin a UTF-8 character are held back until it is whole; bytes that can no longer become one come out as
 * U+FFFD, exactly as Hugging Face's decode of the whole list would give (Rust's String::from_utf8_lossy: one U+FFFD
 * for each maximal invalid part). The concatenation of all pieces and the final flush equals the decode of the whole.
 */
#ifndef LS_TEXT_DETOKENIZE_H
#define LS_TEXT_DETOKENIZE_H

#include "text/text_buffer.h"
#include "text/tokenizer.h"

typedef struct detokenizer {
    const ls_tokenizer *tokenizer; /* borrowed */
    bool skip_special;             /* special tokens give no text (HF's skip_special_tokens) */
    uint8_t held[4];               /* the beginning of a character */
    int n_held;
} detokenizer;

void detokenizer_init(detokenizer *state, const ls_tokenizer *tokenizer, bool skip_special);
/* Appends what became certain with this id to *out. An id outside the vocabulary gives no text. */
ls_status detokenizer_push(detokenizer *state, int32_t id, text_buffer *out, ls_error *err);
/* Appends U+FFFD for what is still held: the end of the text. */
ls_status detokenizer_flush(detokenizer *state, text_buffer *out, ls_error *err);

#endif
