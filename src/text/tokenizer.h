/*
 * Tokenizer: text to token ids and back, from a Hugging Face tokenizer.json.
 *
 * Ids are those of Hugging Face `tokenizers` for the same file. What the file asks for and we do not have is an error
 * that names the field. tokenizer.json is untrusted: parsed defensively, sizes checked, nothing executed; the regular
 * expression in it runs under PCRE2's match and depth limits.
 */
#ifndef LS_TEXT_TOKENIZER_H
#define LS_TEXT_TOKENIZER_H

#include "base/error.h"

typedef struct ls_tokenizer ls_tokenizer; /* immutable once open; any thread may use it */

/* Growable list of ids, owned by the caller: start zeroed, free with token_list_deinit. */
typedef struct token_list {
    int32_t *id;
    size_t n, capacity;
} token_list;
ls_status token_list_push(token_list *list, int32_t id, ls_error *err);
void token_list_deinit(token_list *list);

ls_status tokenizer_open(ls_tokenizer **out, const char *path, ls_error *err);
/* From memory (fuzzing); `name` is what messages call it. */
ls_status tokenizer_parse(ls_tokenizer **out, const char *name, const char *json, size_t json_bytes, ls_error *err);
void tokenizer_close(ls_tokenizer **tokenizer); /* accepts NULL inside; sets it to NULL */

typedef enum tokenizer_flags {
    TOKENIZER_PARSE_SPECIAL = 1, /* special tokens written in the text become their ids (HF's default) */
    TOKENIZER_ADD_SPECIAL = 2    /* what the post-processor adds, such as a beginning-of-text token */
} tokenizer_flags;

/* Appends the ids of text[0 .. text_bytes) to *out. Any bytes are allowed, NUL too; where they are not UTF-8 the
 * result is as if each bad byte were U+FFFD. On failure *out keeps what it held before. Thread safe. */
ls_status tokenizer_encode(const ls_tokenizer *tokenizer, const char *text, size_t text_bytes, unsigned flags,
                           token_list *out, ls_error *err);

/* The bytes one id stands for (byte-level decoding done; may be a part of a character). Borrowed from the tokenizer.
 * False if the id is not in the vocabulary: models have more logits than tokens. */
bool tokenizer_token_bytes(const ls_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes);
bool tokenizer_is_special(const ls_tokenizer *tokenizer, int32_t id);

/* -1 if the text is not exactly one token. */
int32_t tokenizer_find(const ls_tokenizer *tokenizer, const char *token_text);
int32_t tokenizer_max_id(const ls_tokenizer *tokenizer);

#endif
