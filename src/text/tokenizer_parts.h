/*
 * What a tokenizer is made of, in the order a text passes through it. Private to src/text: tokenizer.c and detokenize.c
 * run the parts, tokenizer_file.c reads them from tokenizer.json, tokenizer_cache.c keeps the large ones.
 */
#ifndef LS_TEXT_TOKENIZER_PARTS_H
#define LS_TEXT_TOKENIZER_PARTS_H

#include "base/file.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalize.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

enum { POST_MAX_IDS = 64, POST_MAX_TRIMS = 4 };

/* What is done with the ids: some before and behind them on request, and spaces trimmed off their spans. */
typedef struct post_processor {
    int32_t before[POST_MAX_IDS], behind[POST_MAX_IDS];
    int n_before, n_behind;
    bool add_prefix_space[POST_MAX_TRIMS]; /* one trim each: true keeps one space of a token at the start */
    int n_trims;
} post_processor;

struct ls_tokenizer {
    added_set added;            /* cut out of the text as it came */
    normalizer normal;          /* then the text is normalised */
    added_set added_normalized; /* cut out of normalised text */
    pretokenizer pre;           /* what is left is split into pieces */
    bpe bpe;                    /* and each piece becomes ids */
    vocab vocab;
    post_processor post;
    decoder decode; /* and back */
    void *cache;    /* mapped file that vocab and bpe borrow from, or NULL */
    size_t n_cache; /* its bytes */
};

void tokenizer_reset(ls_tokenizer *t); /* frees what it holds; zeroed again */

/* Fills a zeroed tokenizer. On failure it is half built; tokenizer_close takes it. `cache_folder` may be NULL. */
ls_status tokenizer_read(ls_tokenizer *tokenizer, const char *name, const char *json, size_t json_bytes,
                         const char *cache_folder, ls_error *err);
/* The second half of reading from a cache: t has the tables already, `rest` is the text of the other sections. False, with
 * an empty tokenizer, if that does not work out for any reason. */
bool tokenizer_read_cached_rest(ls_tokenizer *t, const char *name, const char *rest, size_t n_rest);

#endif
