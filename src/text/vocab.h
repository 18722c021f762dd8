/*
 * The vocabulary: id -> bytes and bytes -> id.
 *
 * A byte-level tokenizer.json spells every byte as one printable character ("Ġthe" is " the"). There each token is kept
 * as the bytes it stands for. A spelling with a character outside that alphabet (an added "[ X ]", for instance) stands
 * for its own UTF-8 and is marked RAW: a raw token and a spelled one may have the same bytes and are still different
 * tokens, so RAW is a part of the key. That makes spelling <-> (bytes, raw) one to one. In other files tokens are their
 * spelling, none is raw.
 *
 * A token also has the text that decoding makes of it ("▁the" is " the"), which lies elsewhere in `bytes` if it differs.
 *
 * Built once (vocab_init with totals, then vocab_add), immutable afterwards. The arrays may be borrowed: tokenizer_cache.c
 * keeps them in a mapped file, which is why a token has no padding and no bool.
 */
#ifndef LS_TEXT_VOCAB_H
#define LS_TEXT_VOCAB_H

#include "base/error.h"

enum { VOCAB_MAX_ID = (1 << 24) - 1, VOCAB_MAX_BYTES = 1 << 30 };

enum {
    TOKEN_PRESENT = 1,
    TOKEN_RAW = 2,
    TOKEN_IN_MODEL = 4, /* in model.vocab */
    TOKEN_ADDED = 8,    /* in added_tokens */
    TOKEN_SPECIAL = 16, /* left out by decoding on request */
    TOKEN_BYTE = 32,    /* "<0xE2>" where that decodes to a byte, its text */
    TOKEN_KEPT = 64,    /* special, but decoding leaves it in all the same */
    TOKEN_FLAGS = 127
};

typedef struct vocab_token {
    uint32_t offset, n_bytes;    /* in vocab.bytes */
    uint32_t text, n_text_bytes; /* in vocab.bytes: what decoding gives */
    uint32_t flags;
} vocab_token;

typedef struct vocab {
    vocab_token *token; /* [max_id + 1] */
    char *bytes;
    int32_t *slot; /* open addressing: id, or -1 */
    size_t slot_mask, n_tokens, n_bytes, bytes_capacity;
    uint64_t seed;
    int32_t max_id;
    bool byte_level;
    bool borrowed; /* the arrays belong to somebody else */
} vocab;

/* Room for n_tokens tokens with ids in [0, max_id] and n_bytes of spelling in all. `v` is zeroed before. */
ls_status vocab_init(vocab *v, bool byte_level, int32_t max_id, size_t n_tokens, size_t n_bytes, ls_error *err);
void vocab_deinit(vocab *v); /* accepts a zeroed one */

typedef enum vocab_added { VOCAB_ADDED, VOCAB_SAME_ID, VOCAB_SAME_TEXT } vocab_added;

/* Adds a token by its spelling, or says which part of it is taken. The caller keeps within vocab_init's totals. */
vocab_added vocab_add(vocab *v, int32_t id, const char *spelling, size_t n);
ls_status vocab_set_text(vocab *v, int32_t id, const char *text, size_t n, ls_error *err);

/* The id of a token, or -1. */
int32_t vocab_find(const vocab *v, const char *bytes, size_t n, bool raw);
int32_t vocab_find_spelling(const vocab *v, const char *spelling, size_t n, char *scratch); /* scratch: n bytes */

/* NULL if there is no such token. */
static inline const vocab_token *vocab_get(const vocab *v, int32_t id) {
    return id >= 0 && id <= v->max_id && (v->token[id].flags & TOKEN_PRESENT) ? &v->token[id] : NULL;
}

/* Undoes byte-level spelling (valid UTF-8) into out, which has room for n bytes, and returns the byte count. Where a
 * character is outside the alphabet, *raw is set and out is the spelling as it is. */
size_t byte_level_decode(const char *spelling, size_t n, char *out, bool *raw);

#endif
