/*
 * See bpe.h. The symbols of a piece are a doubly linked list over an array; a symbol knows the rank of the merge with
 * its right neighbour. Two ways to find the next merge share everything else:
 *   - short pieces (nearly all of them): walk the list, which is quadratic and still the fastest below some 50 symbols;
 *   - long pieces: a binary heap of (rank, position), so that n symbols take O(n log n).
 * Heap entries are never removed when their symbol changes; an entry counts only if its rank is still its symbol's.
 */
#include "text/bpe.h"

#include <stdlib.h>

#include "text/hash.h"

enum { SHORT_SYMBOLS = 48 };

ls_status bpe_init(bpe *b, const vocab *v, size_t n_merges, ls_error *err) {
    size_t n_slots = 16;
    while (n_slots < n_merges + n_merges / 2) {
        n_slots *= 2;
    }
    b->merge = malloc(n_slots * sizeof *b->merge);
    if (b->merge == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: %zu merges", n_merges);
    }
    for (size_t i = 0; i < n_slots; i++) {
        b->merge[i].rank = BPE_NONE;
    }
    b->merge_mask = n_slots - 1;
    b->seed = hash_seed();
    for (int i = 0; i < 256; i++) {
        char byte = (char)i;
        b->byte_id[i] = vocab_find(v, &byte, 1, false);
    }
    return LS_OK;
}

void bpe_deinit(bpe *b) {
    free(b->merge);
    *b = (bpe){0};
}

/* The slot of the pair, or the free one where it belongs. A third of the slots is always free. */
static size_t slot_of(const bpe *b, uint64_t pair) {
    size_t at = hash_u64(pair, b->seed) & b->merge_mask;
    while (b->merge[at].rank != BPE_NONE && b->merge[at].pair != pair) {
        at = (at + 1) & b->merge_mask;
    }
    return at;
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)left << 32 | (uint32_t)right;
}

void bpe_add_merge(bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    uint64_t pair = pair_of(left, right);
    b->merge[slot_of(b, pair)] = (bpe_merge){.pair = pair, .rank = rank, .id = id};
}

static ls_status reserve(bpe_scratch *scratch, size_t n_symbols, size_t n_heap, ls_error *err) {
    if (n_symbols > scratch->n_symbols) {
        size_t n = n_symbols < 1024 ? 1024 : n_symbols;
        bpe_symbol *symbol = realloc(scratch->symbol, n * sizeof *symbol);
        if (symbol == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: a piece of %zu bytes", n_symbols);
        }
        scratch->symbol = symbol;
        scratch->n_symbols = n;
    }
    if (n_heap > scratch->n_heap) {
        uint64_t *heap = realloc(scratch->heap, n_heap * sizeof *heap);
        if (heap == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: a piece of %zu bytes", n_symbols);
        }
        scratch->heap = heap;
        scratch->n_heap = n_heap;
    }
    return LS_OK;
}

void bpe_scratch_deinit(bpe_scratch *scratch) {
    free(scratch->symbol);
    free(scratch->heap);
    *scratch = (bpe_scratch){0};
}

/* Looks up the merge of symbol i with its next one. */
static void rank_pair(const bpe *b, bpe_symbol *symbol, uint32_t i) {
    symbol[i].rank = BPE_NONE;
    if (symbol[i].next != BPE_NONE) {
        const bpe_merge *merge = &b->merge[slot_of(b, pair_of(symbol[i].id, symbol[symbol[i].next].id))];
        symbol[i].rank = merge->rank;
        symbol[i].merged = merge->id;
    }
}

/* One symbol for each byte the vocabulary has. */
static uint32_t load(const bpe *b, const char *piece, size_t n, bpe_symbol *symbol) {
    uint32_t n_symbols = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_id[(unsigned char)piece[i]];
        if (id >= 0) {
            symbol[n_symbols] = (bpe_symbol){.prev = n_symbols - 1, .next = n_symbols + 1, .id = id};
            n_symbols++;
        }
    }
    if (n_symbols > 0) {
        symbol[0].prev = BPE_NONE;
        symbol[n_symbols - 1].next = BPE_NONE;
    }
    for (uint32_t i = 0; i < n_symbols; i++) {
        rank_pair(b, symbol, i);
    }
    return n_symbols;
}

/* Symbol i takes in its next one; both pairs around it get new ranks. */
static void merge_at(const bpe *b, bpe_symbol *symbol, uint32_t i) {
    uint32_t gone = symbol[i].next;
    symbol[i].id = symbol[i].merged;
    symbol[i].next = symbol[gone].next;
    if (symbol[i].next != BPE_NONE) {
        symbol[symbol[i].next].prev = i;
    }
    symbol[gone].rank = BPE_NONE;
    rank_pair(b, symbol, i);
    if (symbol[i].prev != BPE_NONE) {
        rank_pair(b, symbol, symbol[i].prev);
    }
}

static void merge_short(const bpe *b, bpe_symbol *symbol) {
    for (;;) {
        uint32_t best = 0;
        for (uint32_t i = symbol[0].next; i != BPE_NONE; i = symbol[i].next) {
            if (symbol[i].rank < symbol[best].rank) {
                best = i;
            }
        }
        if (symbol[best].rank == BPE_NONE) {
            return;
        }
        merge_at(b, symbol, best);
    }
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t entry) {
    size_t at = (*n)++;
    while (at > 0 && heap[(at - 1) / 2] > entry) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = entry;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n) {
    uint64_t top = heap[0];
    uint64_t last = heap[--*n];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < *n; at = child) {
        if (child + 1 < *n && heap[child + 1] < heap[child]) {
            child++;
        }
        if (heap[child] >= last) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

/* The heap holds fewer than 2 n_symbols entries: one for each first pair; a merge takes one and adds two at most. */
static void merge_long(const bpe *b, bpe_symbol *symbol, uint32_t n_symbols, uint64_t *heap) {
    size_t n = 0;
    for (uint32_t i = 0; i < n_symbols; i++) {
        if (symbol[i].rank != BPE_NONE) {
            heap_push(heap, &n, (uint64_t)symbol[i].rank << 32 | i);
        }
    }
    while (n > 0) {
        uint64_t top = heap_pop(heap, &n);
        uint32_t i = (uint32_t)top;
        if (symbol[i].rank != (uint32_t)(top >> 32)) {
            continue; /* stale */
        }
        merge_at(b, symbol, i);
        uint32_t changed[2] = {symbol[i].prev, i};
        for (int k = 0; k < 2; k++) {
            if (changed[k] != BPE_NONE && symbol[changed[k]].rank != BPE_NONE) {
                heap_push(heap, &n, (uint64_t)symbol[changed[k]].rank << 32 | changed[k]);
            }
        }
    }
}

ls_status bpe_encode(const bpe *b, const vocab *v, const char *piece, size_t n, bpe_scratch *scratch, token_list *out,
                     ls_error *err) {
    if (b->ignore_merges) {
        int32_t whole = vocab_find(v, piece, n, false);
        if (whole >= 0 && v->token[whole].in_model) {
            return token_list_push(out, whole, err);
        }
    }
    TRY(reserve(scratch, n, n > SHORT_SYMBOLS ? 2 * n : 0, err));
    bpe_symbol *symbol = scratch->symbol;
    uint32_t n_symbols = load(b, piece, n, symbol);
    if (n_symbols == 0) {
        return LS_OK;
    }
    if (n_symbols <= SHORT_SYMBOLS) {
        merge_short(b, symbol);
    } else {
        merge_long(b, symbol, n_symbols, scratch->heap);
    }
    for (uint32_t i = 0; i != BPE_NONE; i = symbol[i].next) {
        TRY(token_list_push(out, symbol[i].id, err));
    }
    return LS_OK;
}
