/*
 * Byte pair encoding: the bytes of one piece to token ids.
 *
 * A piece starts as one symbol per byte; as long as two neighbours are in the merge table, those with the lowest rank
 * (the leftmost of equals) become one. Ranks are places in the file's list of merges. The result is exactly that of
 * Hugging Face `tokenizers`, also in this: a byte that the vocabulary does not have is dropped.
 */
#ifndef LS_TEXT_BPE_H
#define LS_TEXT_BPE_H

#include "text/tokenizer.h"
#include "text/vocab.h"

#define BPE_NONE UINT32_MAX /* no rank, no neighbour */

typedef struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* BPE_NONE: a free slot */
    int32_t id;    /* what the two become */
} bpe_merge;

typedef struct bpe {
    bpe_merge *merge; /* open addressing */
    size_t merge_mask;
    uint64_t seed;
    int32_t byte_id[256]; /* -1: not in the vocabulary */
    bool ignore_merges;   /* a piece that is a token of the model becomes that token, whatever the merges say */
} bpe;

/* Starts an empty merge table with room for n_merges. `b` is zeroed before; the vocabulary is complete. */
ls_status bpe_init(bpe *b, const vocab *v, size_t n_merges, ls_error *err);
void bpe_deinit(bpe *b); /* accepts a zeroed one */

/* Of two merges of one pair the later counts. The caller keeps within n_merges and passes ids of the vocabulary. */
void bpe_add_merge(bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);

/* Working memory of one encoding thread; start zeroed. */
typedef struct bpe_symbol {
    uint32_t prev, next; /* BPE_NONE at the ends */
    uint32_t rank;       /* of the merge with the next symbol; BPE_NONE if there is none, and for symbols merged away */
    int32_t id, merged;  /* what this is; what it becomes when merged with the next */
} bpe_symbol;

typedef struct bpe_scratch {
    bpe_symbol *symbol;
    uint64_t *heap;
    size_t n_symbols, n_heap; /* capacities */
} bpe_scratch;
void bpe_scratch_deinit(bpe_scratch *scratch);

/* Appends the ids of one piece of fewer than 2^31 bytes. */
ls_status bpe_encode(const bpe *b, const vocab *v, const char *piece, size_t n, bpe_scratch *scratch, token_list *out,
                     ls_error *err);

#endif
