/*
 * Tokenizer: text to token ids and back, from a Hugging Face tokenizer.json.
 *
 * Ids, decoded text and places in the input are those of Hugging Face `tokenizers` for the same file. What the file asks
 * for and we do not have is LS_EUNSUPPORTED and names the field; what we have is at the top of tokenizer_sections.c.
 * One exception: a character newer than Unicode 14 is no letter or digit to PCRE2 10.42, so that it may be split
 * differently. tokenizer.json is untrusted: parsed defensively, sizes checked, nothing executed; the regular expressions
 * in it run under PCRE2's match and heap limits.
 */
#ifndef LS_TEXT_TOKENIZER_H
#define LS_TEXT_TOKENIZER_H

#include "text/token_list.h"

typedef struct ls_tokenizer ls_tokenizer; /* immutable once open; any thread may use it */

/* Opens a tokenizer.json. With a cache folder (made if it is missing; its parent must exist) the parsed form of the file
 * is kept there, keyed by the file's content, so that the next open is several times faster; whatever is wrong with the
 * folder or a file in it only costs that time. NULL: no cache. */
ls_status tokenizer_open(ls_tokenizer **out, const char *path, const char *cache_folder, ls_error *err);
/* From memory; `name` is what messages call it. */
ls_status tokenizer_parse(ls_tokenizer **out, const char *name, const char *json, size_t json_bytes, ls_error *err);
void tokenizer_close(ls_tokenizer **tokenizer); /* accepts NULL inside; sets it to NULL */

typedef enum tokenizer_flags {
    TOKENIZER_PARSE_SPECIAL = 1, /* special tokens written in the text become their ids (HF's default); added tokens
                                    that are not special always do */
    TOKENIZER_ADD_SPECIAL = 2,   /* what the post-processor adds, such as a beginning-of-text token (HF's default) */
    TOKENIZER_SPANS = 4          /* out->span says where in the text each token lies, in whole characters. A token that
                                    the post-processor added has {0, 0} */
} tokenizer_flags;

/* Appends the ids of text[0 .. text_bytes) to *out. Any bytes are allowed, NUL too; where they are not UTF-8 the
 * result is as if each maximal invalid part (utf8.h) were U+FFFD. On failure *out keeps what it held before: memory ran
 * out, the text is beyond 64 MiB (LS_ETOOLONG), or it drives the file's pattern past its limits (LS_EUNSUPPORTED).
 * Thread safe; takes n log n time at worst with the patterns of real tokenizers. */
ls_status tokenizer_encode(const ls_tokenizer *tokenizer, const char *text, size_t text_bytes, unsigned flags,
                           token_list *out, ls_error *err);

/* The bytes one id stands for in the middle of a text (may be a part of a character). Borrowed from the tokenizer.
 * False if the id is not in the vocabulary: models have more logits than tokens. */
bool tokenizer_token_bytes(const ls_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes);
bool tokenizer_is_special(const ls_tokenizer *tokenizer, int32_t id);

/* The id of the token that is exactly this text, added tokens first; -1 if none is. Text is as the file spells it
 * ("<|im_end|>", "\u2581the"), but for byte-level models, where it is what the spelling stands for (" the"). */
int32_t tokenizer_find(const ls_tokenizer *tokenizer, const char *token_text);
int32_t tokenizer_max_id(const ls_tokenizer *tokenizer);

#endif
