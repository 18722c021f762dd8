/* See vocab.h. */
#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "text/hash.h"
#include "text/utf8.h"

/* GPT-2's alphabet: the 188 printable bytes of Latin-1 stand for themselves, the other 68 are U+0100 .. U+0143 in order.
 * -1 for a code point outside it. */
static int byte_of_character(int32_t c) {
    if ((c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF)) {
        return c;
    }
    int32_t k = c - 0x100; /* the k-th byte that is not printable: 00..20, 7F..A0, AD */
    if (k < 0 || k > 67) {
        return -1;
    }
    return k <= 0x20 ? k : k <= 0x42 ? k - 0x21 + 0x7F : 0xAD;
}

size_t byte_level_decode(const char *spelling, size_t n, char *out, bool *raw) {
    size_t n_out = 0;
    *raw = false;
    for (size_t at = 0, n_bytes; at < n; at += n_bytes) {
        int byte = byte_of_character(utf8_decode(spelling + at, &n_bytes));
        if (byte < 0) {
            *raw = true;
            memcpy(out, spelling, n);
            return n;
        }
        out[n_out++] = (char)byte;
    }
    return n_out;
}

ls_status vocab_init(vocab *v, bool byte_level, int32_t max_id, size_t n_tokens, size_t n_bytes, ls_error *err) {
    size_t n_slots = 16;
    while (n_slots < 2 * n_tokens) {
        n_slots *= 2;
    }
    v->token = calloc((size_t)max_id + 1, sizeof *v->token); /* untouched pages of a sparse vocabulary cost nothing */
    v->bytes = malloc(n_bytes + 1);
    v->slot = malloc(n_slots * sizeof *v->slot);
    if (v->token == NULL || v->bytes == NULL || v->slot == NULL) {
        vocab_deinit(v);
        return error_set(err, LS_ENOMEM, "out of memory: a vocabulary of %zu tokens with ids up to %d", n_tokens,
                         (int)max_id);
    }
    memset(v->slot, 0xFF, n_slots * sizeof *v->slot);
    v->slot_mask = n_slots - 1;
    v->bytes_capacity = n_bytes + 1;
    v->max_id = max_id;
    v->byte_level = byte_level;
    v->seed = hash_seed();
    return LS_OK;
}

void vocab_deinit(vocab *v) {
    if (!v->borrowed) {
        free(v->token);
        free(v->bytes);
        free(v->slot);
    }
    *v = (vocab){0};
}

/* The slot of the token, or the free one where it belongs. Half of the slots are always free. */
static size_t slot_of(const vocab *v, const char *bytes, size_t n, bool raw) {
    size_t at = hash_bytes(bytes, n, v->seed + raw) & v->slot_mask;
    for (; v->slot[at] >= 0; at = (at + 1) & v->slot_mask) {
        const vocab_token *token = &v->token[v->slot[at]];
        if (token->n_bytes == n && ((token->flags & TOKEN_RAW) != 0) == raw &&
            memcmp(v->bytes + token->offset, bytes, n) == 0) {
            break;
        }
    }
    return at;
}

/* The key of a spelling: bytes, written to out, and whether they are raw. */
static size_t key_of(const vocab *v, const char *spelling, size_t n, char *out, bool *raw) {
    if (v->byte_level) {
        return byte_level_decode(spelling, n, out, raw);
    }
    *raw = false;
    memcpy(out, spelling, n);
    return n;
}

vocab_added vocab_add(vocab *v, int32_t id, const char *spelling, size_t n) {
    if (v->token[id].flags & TOKEN_PRESENT) {
        return VOCAB_SAME_ID;
    }
    bool raw;
    size_t n_bytes = key_of(v, spelling, n, v->bytes + v->n_bytes, &raw);
    size_t at = slot_of(v, v->bytes + v->n_bytes, n_bytes, raw);
    if (v->slot[at] >= 0) {
        return VOCAB_SAME_TEXT;
    }
    v->slot[at] = id;
    v->token[id] = (vocab_token){.offset = (uint32_t)v->n_bytes,
                                 .n_bytes = (uint32_t)n_bytes,
                                 .text = (uint32_t)v->n_bytes,
                                 .n_text_bytes = (uint32_t)n_bytes,
                                 .flags = TOKEN_PRESENT | (raw ? TOKEN_RAW : 0)};
    v->n_bytes += n_bytes;
    v->n_tokens++;
    return VOCAB_ADDED;
}

ls_status vocab_set_text(vocab *v, int32_t id, const char *text, size_t n, ls_error *err) {
    if (n > VOCAB_MAX_BYTES - v->n_bytes) {
        return error_set(err, LS_EUNSUPPORTED, "a vocabulary of more than %d bytes is not supported", VOCAB_MAX_BYTES);
    }
    if (n > v->bytes_capacity - v->n_bytes) {
        size_t capacity = v->n_bytes + n + v->n_bytes / 2 + 4096;
        char *grown = realloc(v->bytes, capacity);
        if (grown == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: %zu bytes of tokens", capacity);
        }
        v->bytes = grown;
        v->bytes_capacity = capacity;
    }
    memcpy(v->bytes + v->n_bytes, text, n);
    v->token[id].text = (uint32_t)v->n_bytes;
    v->token[id].n_text_bytes = (uint32_t)n;
    v->n_bytes += n;
    return LS_OK;
}

int32_t vocab_find(const vocab *v, const char *bytes, size_t n, bool raw) {
    return v->slot[slot_of(v, bytes, n, raw)];
}

int32_t vocab_find_spelling(const vocab *v, const char *spelling, size_t n, char *scratch) {
    bool raw;
    size_t n_bytes = key_of(v, spelling, n, scratch, &raw);
    return vocab_find(v, scratch, n_bytes, raw);
}
