/*
 * See bpe.h. The symbols of a piece are a doubly linked list over an array; a symbol knows the rank of the merge with
 * its right neighbour.
 *
 * A piece is first cut where no merge can ever join: a merge of tokens L and R joins the last first symbol of L and the
 * first one of R, so two neighbours that are no such pair for any merge stay apart for ever, and what lies left of them
 * never meets what lies right. `joint` is the set of those pairs, hashed to bits: a pair too many only costs time. It
 * makes words of the single long piece that a SentencePiece-style text is. (Not done where unknown or byte tokens take
 * part in merges: they are first symbols of several characters.)
 *
 * Two ways to find the next merge in a stretch share everything else:
 *   - short ones (nearly all): walk the list, which is quadratic and still the fastest below some 50 symbols;
 *   - long ones: a binary heap of (rank, position), so that n symbols take O(n log n).
 * Heap entries are never removed when their symbol changes; an entry counts only if its rank is still its symbol's.
 */
#include "text/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/hash.h"
#include "text/utf8.h"

enum { SHORT_SYMBOLS = 48 };

ls_status bpe_init(bpe *b, size_t n_merges, ls_error *err) {
    size_t n_slots = 16;
    while (n_slots < n_merges + n_merges / 2) {
        n_slots *= 2;
    }
    b->merge = malloc(n_slots * sizeof *b->merge);
    if (b->merge == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: %zu merges", n_merges);
    }
    for (size_t i = 0; i < n_slots; i++) {
        b->merge[i] = (bpe_merge){.rank = BPE_NONE};
    }
    b->merge_mask = n_slots - 1;
    b->seed = hash_seed();
    return LS_OK;
}

void bpe_deinit(bpe *b) {
    if (!b->borrowed) {
        free(b->merge);
    }
    free(b->joint);
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

/* ---- What can be joined ---- */

static size_t joint_bit(int32_t left, int32_t right) {
    return hash_u64(pair_of(left, right), 0x9FB21C651E98DF25u) >> (64 - BPE_JOINT_BITS);
}

static bool may_join(const bpe *b, int32_t left, int32_t right) {
    size_t bit = joint_bit(left, right);
    return b->joint[bit / 64] >> (bit % 64) & 1;
}

/* The token of one character, or of one byte in byte-level models. */
static int32_t first_symbol(const bpe *b, const vocab *v, const char *text, size_t n) {
    if (b->byte_level) {
        return b->byte_id[(unsigned char)text[0]];
    }
    return (unsigned char)text[0] < 0x80 ? b->ascii_id[(unsigned char)text[0]] : vocab_find(v, text, n, false);
}

static void add_joint(bpe *b, const vocab *v, const bpe_merge *merge) {
    const vocab_token *left = &v->token[merge->pair >> 32], *right = &v->token[(uint32_t)merge->pair];
    if (left->n_bytes == 0 || right->n_bytes == 0) {
        return; /* no symbol is empty */
    }
    const char *first = v->bytes + right->offset, *last = v->bytes + left->offset + left->n_bytes - 1;
    size_t n_first = 1, n_last = 1;
    if (!b->byte_level) {
        utf8_decode(first, &n_first);
        for (; utf8_is_continuation(*last); last--) {
            n_last++;
        }
    }
    int32_t left_id = first_symbol(b, v, last, n_last), right_id = first_symbol(b, v, first, n_first);
    if (left_id >= 0 && right_id >= 0) { /* else no text leads here */
        size_t bit = joint_bit(left_id, right_id);
        b->joint[bit / 64] |= (uint64_t)1 << (bit % 64);
    }
}

/* True if the token is a first symbol that may stand for more or less than one character. */
static bool is_odd_symbol(const bpe *b, int32_t id, const uint8_t *is_byte_token) {
    return id == b->unknown_id || (is_byte_token[id / 8] >> (id % 8) & 1);
}

static void find_symbols(bpe *b, const vocab *v) {
    for (int i = 0; i < 256; i++) {
        char byte = (char)i, code[8];
        int n = snprintf(code, sizeof code, "<0x%02X>", (unsigned)i);
        b->byte_id[i] = b->byte_level ? vocab_find(v, &byte, 1, false) : vocab_find(v, code, (size_t)n, false);
        if (b->byte_id[i] >= 0 && !(v->token[b->byte_id[i]].flags & TOKEN_IN_MODEL)) {
            b->byte_id[i] = -1;
        }
        if (i < 128) {
            b->ascii_id[i] = vocab_find(v, &byte, 1, false);
            if (b->ascii_id[i] >= 0 && !(v->token[b->ascii_id[i]].flags & TOKEN_IN_MODEL)) {
                b->ascii_id[i] = -1;
            }
        }
    }
}

ls_status bpe_freeze(bpe *b, const vocab *v, ls_error *err) {
    find_symbols(b, v);
    uint8_t *is_byte_token = calloc((size_t)v->max_id / 8 + 1, 1);
    b->joint = calloc((1u << BPE_JOINT_BITS) / 64, sizeof *b->joint);
    if (b->joint == NULL || is_byte_token == NULL) {
        free(is_byte_token);
        return error_set(err, LS_ENOMEM, "out of memory: pairs of symbols");
    }
    for (int i = 0; i < 256 && b->byte_fallback && !b->byte_level; i++) {
        if (b->byte_id[i] >= 0) {
            is_byte_token[b->byte_id[i] / 8] |= (uint8_t)(1u << (b->byte_id[i] % 8));
        }
    }
    b->can_cut = true;
    for (size_t i = 0; i <= b->merge_mask; i++) {
        const bpe_merge *merge = &b->merge[i];
        if (merge->rank != BPE_NONE) {
            add_joint(b, v, merge);
            b->can_cut = b->can_cut && !is_odd_symbol(b, (int32_t)(merge->pair >> 32), is_byte_token) &&
                         !is_odd_symbol(b, (int32_t)merge->pair, is_byte_token);
        }
    }
    free(is_byte_token);
    return LS_OK;
}

/* ---- Merging ---- */

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

/* Symbols of a piece being loaded. An unknown character waits to be fused with the next one. */
typedef struct loader {
    bpe_symbol *symbol;
    uint32_t n;
    uint32_t n_unknown_bytes; /* > 0: an unknown symbol waits */
} loader;

static void add_symbol(loader *l, int32_t id, size_t n_bytes) {
    l->symbol[l->n++] = (bpe_symbol){.id = id, .n_bytes = (uint32_t)n_bytes};
}

static void add_unknown(const bpe *b, loader *l) {
    if (l->n_unknown_bytes > 0) {
        add_symbol(l, b->unknown_id, l->n_unknown_bytes);
        l->n_unknown_bytes = 0;
    }
}

/* A character that is no token. Byte tokens overtake an unknown symbol that waits: so they do in `tokenizers`. */
static void add_missing(const bpe *b, loader *l, const char *text, size_t n) {
    bool all = b->byte_fallback && !b->byte_level;
    for (size_t i = 0; all && i < n; i++) {
        all = b->byte_id[(unsigned char)text[i]] >= 0;
    }
    if (all) {
        for (size_t i = 0; i < n; i++) {
            add_symbol(l, b->byte_id[(unsigned char)text[i]], 1);
        }
    } else if (b->unknown_id >= 0) {
        if (!b->fuse_unknown) {
            add_unknown(b, l);
        }
        l->n_unknown_bytes += (uint32_t)n;
    }
}

/* The first symbols of a piece, at most one for each byte; only id and n_bytes are set. */
static uint32_t load(const bpe *b, const vocab *v, const char *piece, size_t n, bpe_symbol *symbol) {
    loader l = {.symbol = symbol};
    for (size_t at = 0, n_bytes = 1; at < n; at += n_bytes) {
        int32_t id;
        if (b->byte_level) {
            id = b->byte_id[(unsigned char)piece[at]];
        } else if ((unsigned char)piece[at] < 0x80) {
            n_bytes = 1;
            id = b->ascii_id[(unsigned char)piece[at]];
        } else {
            utf8_decode(piece + at, &n_bytes);
            id = vocab_find(v, piece + at, n_bytes, false);
            id = id >= 0 && (v->token[id].flags & TOKEN_IN_MODEL) ? id : -1;
        }
        if (id < 0) {
            add_missing(b, &l, piece + at, n_bytes);
        } else {
            add_unknown(b, &l);
            add_symbol(&l, id, n_bytes);
        }
    }
    add_unknown(b, &l);
    return l.n;
}

/* Symbol i takes in its next one; both pairs around it get new ranks. */
static void merge_at(const bpe *b, bpe_symbol *symbol, uint32_t i) {
    uint32_t gone = symbol[i].next;
    symbol[i].id = symbol[i].merged;
    symbol[i].n_bytes += symbol[gone].n_bytes;
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

static void merge_short(const bpe *b, bpe_symbol *symbol, uint32_t start) {
    for (;;) {
        uint32_t best = start;
        for (uint32_t i = symbol[start].next; i != BPE_NONE; i = symbol[i].next) {
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

/* The heap holds fewer than 2 (end - start) entries: one for each first pair; a merge takes one and adds two at most. */
static void merge_long(const bpe *b, bpe_symbol *symbol, uint32_t start, uint32_t end, uint64_t *heap) {
    size_t n = 0;
    for (uint32_t i = start; i < end; i++) {
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

/* Links symbols [start, end) and merges them as far as it goes. */
static void merge_stretch(const bpe *b, bpe_symbol *symbol, uint32_t start, uint32_t end, uint64_t *heap) {
    for (uint32_t i = start; i < end; i++) {
        symbol[i].prev = i > start ? i - 1 : BPE_NONE;
        symbol[i].next = i + 1 < end ? i + 1 : BPE_NONE;
        symbol[i].rank = BPE_NONE;
    }
    for (uint32_t i = start; i + 1 < end; i++) {
        rank_pair(b, symbol, i);
    }
    if (end - start <= SHORT_SYMBOLS) {
        merge_short(b, symbol, start);
    } else {
        merge_long(b, symbol, start, end, heap);
    }
}

static ls_status push(const text_view *piece, size_t *at, const bpe_symbol *symbol, token_list *out, ls_error *err) {
    if (piece->span == NULL) {
        return token_list_push(out, symbol->id, err);
    }
    size_t end = *at + symbol->n_bytes;
    text_span span = {piece->span[*at].start, piece->span[end - 1].end};
    *at = end;
    return token_list_push_span(out, symbol->id, span, err);
}

ls_status bpe_encode(const bpe *b, const vocab *v, const text_view *piece, bpe_scratch *scratch, token_list *out,
                     ls_error *err) {
    size_t n = piece->n, at = 0;
    if (b->ignore_merges) {
        int32_t whole = vocab_find(v, piece->text, n, false);
        if (whole >= 0 && (v->token[whole].flags & TOKEN_IN_MODEL)) {
            return push(piece, &at, &(bpe_symbol){.id = whole, .n_bytes = (uint32_t)n}, out, err);
        }
    }
    TRY(reserve(scratch, n, n > SHORT_SYMBOLS ? 2 * n : 0, err));
    bpe_symbol *symbol = scratch->symbol;
    uint32_t n_symbols = load(b, v, piece->text, n, symbol);
    for (uint32_t start = 0, end; start < n_symbols; start = end) {
        end = start + 1;
        while (end < n_symbols && (!b->can_cut || may_join(b, symbol[end - 1].id, symbol[end].id))) {
            end++;
        }
        if (end == start + 1) {
            TRY(push(piece, &at, &symbol[start], out, err));
            continue;
        }
        merge_stretch(b, symbol, start, end, scratch->heap);
        for (uint32_t i = start; i != BPE_NONE; i = symbol[i].next) {
            TRY(push(piece, &at, &symbol[i], out, err));
        }
    }
    return LS_OK;
}
