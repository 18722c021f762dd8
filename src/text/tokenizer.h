/*
 * Tokenizer: text to token ids and back, from a Hugging Face tokenizer.json.
 *
 * Ids are those of Hugging Face `tokenizers` for the same file. What the file asks for and we do not have is
 * LS_EUNSUPPORTED and names the field; what we have is byte-level BPE (Qwen, GPT-2): see the top of tokenizer_file.c.
 * One exception: a character newer than Unicode 14 is no letter or digit to PCRE2 10.42, so that it may be split
 * differently. tokenizer.json is untrusted: parsed defensively, sizes checked, nothing executed; the regular expression
 * in it runs under PCRE2's match and heap limits.
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
    TOKENIZER_PARSE_SPECIAL = 1, /* special tokens written in the text become their ids (HF's default); added tokens
                                    that are not special always do */
    TOKENIZER_ADD_SPECIAL = 2    /* what the post-processor adds, such as a beginning-of-text token: nothing, with the
                                    post-processors that are read today (none, ByteLevel) */
} tokenizer_flags;

/* Appends the ids of text[0 .. text_bytes) to *out. Any bytes are allowed, NUL too; where they are not UTF-8 the
 * result is as if each maximal invalid part (utf8.h) were U+FFFD. On failure *out keeps what it held before: memory ran
 * out, the text is beyond 64 MiB (LS_ETOOLONG), or it drives the file's pattern past its limits (LS_EUNSUPPORTED).
 * Thread safe; takes n log n time at worst with the patterns of real tokenizers. */
ls_status tokenizer_encode(const ls_tokenizer *tokenizer, const char *text, size_t text_bytes, unsigned flags,
                           token_list *out, ls_error *err);

/* The bytes one id stands for (byte-level decoding done; may be a part of a character). Borrowed from the tokenizer.
 * False if the id is not in the vocabulary: models have more logits than tokens. */
bool tokenizer_token_bytes(const ls_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes);
bool tokenizer_is_special(const ls_tokenizer *tokenizer, int32_t id);

/* The id of the token that stands for exactly this text (" the", "<|im_end|>"), added tokens first; -1 if none does. */
int32_t tokenizer_find(const ls_tokenizer *tokenizer, const char *token_text);
int32_t tokenizer_max_id(const ls_tokenizer *tokenizer);

#endif
