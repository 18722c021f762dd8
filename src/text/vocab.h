/*
 * The vocabulary: id -> bytes and bytes -> id, byte-level spelling undone.
 *
 * A byte-level tokenizer.json spells every byte as one printable character ("Ġthe" is " the"). Each token is kept as
 * the bytes it stands for. A spelling with a character outside that alphabet (an added "[ X ]", for instance) stands for
 * its own UTF-8 and is marked `raw`: a raw token and a spelled one may have the same bytes and are still different
 * tokens, so `raw` is a part of the key. That makes spelling <-> (bytes, raw) one to one.
 *
 * Built once (vocab_init with totals, then vocab_add), immutable afterwards.
 */
#ifndef LS_TEXT_VOCAB_H
#define LS_TEXT_VOCAB_H

#include "base/error.h"

enum { VOCAB_MAX_ID = (1 << 24) - 1 };

typedef struct vocab_token {
    uint32_t offset, n_bytes; /* in vocab.bytes */
    bool present, raw;
    bool in_model, added, special; /* set by the reader: in model.vocab, in added_tokens, and special there */
} vocab_token;

typedef struct vocab {
    vocab_token *token; /* [max_id + 1] */
    char *bytes;
    int32_t *slot; /* open addressing: id, or -1 */
    size_t slot_mask, n_tokens, n_bytes;
    uint64_t seed;
    int32_t max_id;
} vocab;

/* Room for n_tokens tokens with ids in [0, max_id] and n_bytes of spelling in all. `v` is zeroed before. */
ls_status vocab_init(vocab *v, int32_t max_id, size_t n_tokens, size_t n_bytes, ls_error *err);
void vocab_deinit(vocab *v); /* accepts a zeroed one */

typedef enum vocab_added { VOCAB_ADDED, VOCAB_SAME_ID, VOCAB_SAME_TEXT } vocab_added;

/* Adds a token by its spelling, or says which part of it is taken. The caller keeps within vocab_init's totals. */
vocab_added vocab_add(vocab *v, int32_t id, const char *spelling, size_t n);

/* The id of a token, or -1. */
int32_t vocab_find(const vocab *v, const char *bytes, size_t n, bool raw);
int32_t vocab_find_spelling(const vocab *v, const char *spelling, size_t n, char *scratch); /* scratch: n bytes */

/* Undoes byte-level spelling (valid UTF-8) into out, which has room for n bytes, and returns the byte count. Where a
 * character is outside the alphabet, *raw is set and out is the spelling as it is. */
size_t byte_level_decode(const char *spelling, size_t n, char *out, bool *raw);

#endif
