/*
 * See tokenizer_cache.h. A cache file is a header and five parts, each at a multiple of 16 bytes:
 *
 *     header | tokens [max_id + 1] | merges [merge_mask + 1] | slots [slot_mask + 1] | token bytes | rest
 *
 * Its name is the hash of the tokenizer.json it was made from. The file is untrusted: sizes must add up, the checksum must
 * fit (against accidents), and every number in it that will index anything is checked (against everything else). Hash
 * tables must have a free slot, since a search ends there. What the tables say beyond that can only make wrong ids.
 */
#include "text/tokenizer_cache.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "text/hash.h"
#include "text/utf8.h"

enum { CACHE_VERSION = 1, ALIGNMENT = 16 };
static const char magic[8] = "LSTOKEN";

typedef struct cache_header {
    char magic[8];
    uint64_t checksum;   /* of all that follows it */
    uint32_t byte_order; /* 0x01020304 */
    uint32_t version;
    cache_key key;
    uint64_t vocab_seed, merge_seed;
    uint64_t slot_mask, merge_mask, n_tokens, n_bytes, n_rest;
    int32_t max_id;
    uint32_t byte_level;
} cache_header;

_Static_assert(offsetof(cache_header, checksum) == CACHE_CHECKSUM_AT, "where the checksum lies");
_Static_assert(sizeof(cache_header) % ALIGNMENT == 0, "parts are aligned");

typedef struct layout {
    size_t token, merge, slot, bytes, rest, end; /* offsets */
} layout;

static size_t aligned(size_t n) {
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static layout layout_of(const cache_header *h) {
    layout at;
    at.token = sizeof *h;
    at.merge = aligned(at.token + ((size_t)h->max_id + 1) * sizeof(vocab_token));
    at.slot = aligned(at.merge + (h->merge_mask + 1) * sizeof(bpe_merge));
    at.bytes = aligned(at.slot + (h->slot_mask + 1) * sizeof(int32_t));
    at.rest = aligned(at.bytes + h->n_bytes);
    at.end = at.rest + h->n_rest;
    return at;
}

cache_key cache_key_of(const char *json, size_t n) {
    cache_key key = {.n_bytes = n};
    key.hash[0] = hash_bytes(json, n, 0x6C6F636B73746570u);
    key.hash[1] = hash_bytes(json, n, 0xD6E8FEB86659FD93u);
    return key;
}

uint64_t cache_checksum(const char *data, size_t n) {
    size_t from = CACHE_CHECKSUM_AT + sizeof(uint64_t);
    return hash_bytes(data + from, n - from, 0xA0761D6478BD642Fu);
}

/* ---- Reading ---- */

static bool is_mask(uint64_t mask) {
    return mask < (uint64_t)1 << 30 && (mask & (mask + 1)) == 0;
}

static bool header_fits(const cache_header *h, size_t n, const cache_key *key) {
    return memcmp(h->magic, magic, sizeof magic) == 0 && h->byte_order == 0x01020304 && h->version == CACHE_VERSION &&
           memcmp(&h->key, key, sizeof *key) == 0 && h->max_id >= 0 && h->max_id <= VOCAB_MAX_ID &&
           h->byte_level <= 1 && is_mask(h->slot_mask) && is_mask(h->merge_mask) &&
           h->n_tokens <= (uint64_t)h->max_id + 1 && h->n_bytes <= VOCAB_MAX_BYTES && h->n_rest <= n &&
           layout_of(h).end == n;
}

static bool token_fits(const vocab *v, const vocab_token *token) {
    if (token->flags & ~(uint32_t)TOKEN_FLAGS || token->offset > v->n_bytes || token->text > v->n_bytes ||
        token->n_bytes > v->n_bytes - token->offset || token->n_text_bytes > v->n_bytes - token->text) {
        return false;
    }
    if (v->byte_level) {
        return !(token->flags & TOKEN_BYTE);
    }
    const char *spelling = v->bytes + token->offset, *text = v->bytes + token->text;
    return utf8_valid_bytes(spelling, token->n_bytes) == token->n_bytes && !(token->flags & TOKEN_RAW) &&
           (token->flags & TOKEN_BYTE ? token->n_text_bytes == 1
                                      : utf8_valid_bytes(text, token->n_text_bytes) == token->n_text_bytes);
}

static bool vocab_fits(const vocab *v) {
    size_t n_free = 0;
    for (int32_t id = 0; id <= v->max_id; id++) {
        if (!token_fits(v, &v->token[id])) {
            return false;
        }
    }
    for (size_t i = 0; i <= v->slot_mask; i++) {
        n_free += v->slot[i] == -1;
        if (v->slot[i] != -1 && vocab_get(v, v->slot[i]) == NULL) {
            return false;
        }
    }
    return n_free > 0;
}

static bool merges_fit(const bpe *b, const vocab *v) {
    size_t n_free = 0;
    for (size_t i = 0; i <= b->merge_mask; i++) {
        const bpe_merge *merge = &b->merge[i];
        n_free += merge->rank == BPE_NONE;
        if (merge->rank != BPE_NONE &&
            (merge->pair >> 32 > VOCAB_MAX_ID || (uint32_t)merge->pair > VOCAB_MAX_ID ||
             vocab_get(v, (int32_t)(merge->pair >> 32)) == NULL ||
             vocab_get(v, (int32_t)(uint32_t)merge->pair) == NULL || vocab_get(v, merge->id) == NULL)) {
            return false;
        }
    }
    return n_free > 0;
}

bool cache_use(ls_tokenizer *t, const char *data, size_t n, const cache_key *key, const char **rest, size_t *n_rest) {
    cache_header h;
    if (n < sizeof h) {
        return false;
    }
    memcpy(&h, data, sizeof h);
    if (!header_fits(&h, n, key) || cache_checksum(data, n) != h.checksum) {
        return false;
    }
    layout at = layout_of(&h);
    char *base = (char *)data; /* borrowed arrays are never written */
    vocab v = {.token = (vocab_token *)(void *)(base + at.token),
               .bytes = base + at.bytes,
               .slot = (int32_t *)(void *)(base + at.slot),
               .slot_mask = h.slot_mask,
               .n_tokens = h.n_tokens,
               .n_bytes = h.n_bytes,
               .seed = h.vocab_seed,
               .max_id = h.max_id,
               .byte_level = h.byte_level,
               .borrowed = true};
    bpe b = {.merge = (bpe_merge *)(void *)(base + at.merge),
             .merge_mask = h.merge_mask,
             .seed = h.merge_seed,
             .borrowed = true};
    if (!vocab_fits(&v) || !merges_fit(&b, &v)) {
        return false;
    }
    t->vocab = v;
    t->bpe = b;
    *rest = data + at.rest;
    *n_rest = h.n_rest;
    return true;
}

static bool path_of(char *out, size_t n, const char *folder, const cache_key *key, const char *ending) {
    int length = snprintf(out, n, "%s/%016llx%016llx.%s", folder, (unsigned long long)key->hash[0],
                          (unsigned long long)key->hash[1], ending);
    return length > 0 && (size_t)length < n;
}

bool cache_load(ls_tokenizer *t, const char *folder, const cache_key *key, const char **rest, size_t *n_rest) {
    char path[4096];
    struct stat info;
    int fd = path_of(path, sizeof path, folder, key, "tokenizer") ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        return false;
    }
    void *map = MAP_FAILED;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
        map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    }
    close(fd);
    if (map == MAP_FAILED) {
        return false;
    }
    if (!cache_use(t, map, (size_t)info.st_size, key, rest, n_rest)) {
        munmap(map, (size_t)info.st_size);
        return false;
    }
    t->cache = map;
    t->n_cache = (size_t)info.st_size;
    return true;
}

/* ---- Writing ---- */

static char *image_of(const ls_tokenizer *t, const cache_key *key, const char *rest, size_t n_rest, size_t *n) {
    cache_header h = {.byte_order = 0x01020304,
                      .version = CACHE_VERSION,
                      .key = *key,
                      .vocab_seed = t->vocab.seed,
                      .merge_seed = t->bpe.seed,
                      .slot_mask = t->vocab.slot_mask,
                      .merge_mask = t->bpe.merge_mask,
                      .n_tokens = t->vocab.n_tokens,
                      .n_bytes = t->vocab.n_bytes,
                      .n_rest = n_rest,
                      .max_id = t->vocab.max_id,
                      .byte_level = t->vocab.byte_level};
    memcpy(h.magic, magic, sizeof magic);
    layout at = layout_of(&h);
    char *image = calloc(1, at.end);
    if (image == NULL) {
        return NULL;
    }
    memcpy(image, &h, sizeof h);
    memcpy(image + at.token, t->vocab.token, ((size_t)h.max_id + 1) * sizeof *t->vocab.token);
    memcpy(image + at.merge, t->bpe.merge, (h.merge_mask + 1) * sizeof *t->bpe.merge);
    memcpy(image + at.slot, t->vocab.slot, (h.slot_mask + 1) * sizeof *t->vocab.slot);
    memcpy(image + at.bytes, t->vocab.bytes, h.n_bytes);
    memcpy(image + at.rest, rest, n_rest);
    h.checksum = cache_checksum(image, at.end);
    memcpy(image, &h, sizeof h);
    *n = at.end;
    return image;
}

static bool write_all(int fd, const char *data, size_t n) {
    while (n > 0) {
        ssize_t written = write(fd, data, n);
        if (written <= 0) {
            return false;
        }
        data += written;
        n -= (size_t)written;
    }
    return true;
}

void cache_store(const ls_tokenizer *t, const char *folder, const cache_key *key, const char *rest, size_t n_rest) {
    char path[4096], temporary[4096];
    size_t n = 0;
    if (!path_of(path, sizeof path, folder, key, "tokenizer") ||
        !path_of(temporary, sizeof temporary, folder, key, "XXXXXX")) {
        return;
    }
    (void)mkdir(folder, 0700); /* it may be there; if this fails so does what follows */
    char *image = image_of(t, key, rest, n_rest, &n);
    int fd = image != NULL ? mkstemp(temporary) : -1;
    if (fd >= 0) {
        bool written = write_all(fd, image, n);
        written = close(fd) == 0 && written;
        if (!written || rename(temporary, path) != 0) {
            unlink(temporary);
        }
    }
    free(image);
}
