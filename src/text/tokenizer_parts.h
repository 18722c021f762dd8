/*
 * What a tokenizer is made of, in the order a text passes through it. Private to tokenizer.c, which runs the parts, and
 * tokenizer_file.c, which reads them from tokenizer.json.
 */
#ifndef LS_TEXT_TOKENIZER_PARTS_H
#define LS_TEXT_TOKENIZER_PARTS_H

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

struct ls_tokenizer {
    added_set added;            /* cut out of the text as it came */
    bool nfc;                   /* then the text is normalised */
    added_set added_normalized; /* cut out of normalised text */
    pretokenizer pre;           /* what is left is split into pieces */
    bpe bpe;                    /* and each piece becomes ids */
    vocab vocab;
};

/* Fills a zeroed tokenizer. On failure it is half built; tokenizer_close takes it. */
ls_status tokenizer_read(ls_tokenizer *tokenizer, const char *name, const char *json, size_t json_bytes, ls_error *err);

#endif
