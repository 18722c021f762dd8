/*
 * Byte pair encoding: one piece of text to token ids.
 *
 * A piece starts as symbols; as long as two neighbours are in the merge table, those with the lowest rank (the leftmost
 * of equals) become one. Ranks are places in the file's list of merges. The result is exactly that of Hugging Face
 * `tokenizers`.
 *
 * First symbols: byte-level models have one for each byte, others one for each character. What the vocabulary does not
 * have becomes the byte tokens "<0xE2>" of its UTF-8 (byte_fallback, if it has all of them), else the unknown token (one
 * for a run of them with fuse_unk), else nothing: it is dropped before merging.
 */
#ifndef LS_TEXT_BPE_H
#define LS_TEXT_BPE_H

#include "text/token_list.h"
#include "text/vocab.h"

#define BPE_NONE UINT32_MAX /* no rank, no neighbour */
enum { BPE_JOINT_BITS = 18 };

typedef struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* BPE_NONE: a free slot */
    int32_t id;    /* what the two become */
} bpe_merge;

typedef struct bpe {
    bpe_merge *merge; /* open addressing */
    size_t merge_mask;
    uint64_t seed;
    bool borrowed;         /* the merge table belongs to somebody else */
    int32_t byte_id[256];  /* byte-level: the token of a byte; else its fallback token. -1: not in the vocabulary */
    int32_t ascii_id[128]; /* not byte-level: the token of a character */
    uint64_t *joint;       /* bit set of hashed pairs of first symbols that some merge may join (see bpe.c) */
    bool can_cut;          /* `joint` holds all such pairs */
    int32_t unknown_id;    /* -1: none */
    bool byte_level, byte_fallback, fuse_unknown;
    bool ignore_merges; /* a piece that is a token of the model becomes that token, whatever the merges say */
} bpe;

/* Starts an empty merge table with room for n_merges. `b` is zeroed before. */
ls_status bpe_init(bpe *b, size_t n_merges, ls_error *err);
void bpe_deinit(bpe *b); /* accepts a zeroed one */

/* Of two merges of one pair the later counts. The caller keeps within n_merges and passes ids of the vocabulary. */
void bpe_add_merge(bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);

/* What follows from vocabulary and merges, once both are complete and the settings (byte_level .. ) are set. */
ls_status bpe_freeze(bpe *b, const vocab *v, ls_error *err);

/* Working memory of one encoding thread; start zeroed. */
typedef struct bpe_symbol {
    uint32_t prev, next; /* BPE_NONE at the ends */
    uint32_t rank;       /* of the merge with the next symbol; BPE_NONE if there is none, and for symbols merged away */
    int32_t id, merged;  /* what this is; what it becomes when merged with the next */
    uint32_t n_bytes;
} bpe_symbol;

typedef struct bpe_scratch {
    bpe_symbol *symbol;
    uint64_t *heap;
    size_t n_symbols, n_heap; /* capacities */
} bpe_scratch;
void bpe_scratch_deinit(bpe_scratch *scratch);

/* Appends the ids of one piece of fewer than 2^31 bytes, with their spans if it has some. */
ls_status bpe_encode(const bpe *b, const vocab *v, const text_view *piece, bpe_scratch *scratch, token_list *out,
                     ls_error *err);

#endif
