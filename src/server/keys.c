/* See keys.h. */
#include "server/keys.h"

#include <ctype.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/file.h"

ls_status keys_add(key_ring *ring, const char *key, size_t n_bytes, ls_error *err) {
    if (n_bytes == 0) {
        return error_set(err, LS_EINVAL, "--api-key: a key may not be empty");
    }
    uint8_t(*grown)[KEY_DIGEST_BYTES] = realloc(ring->digest, (ring->n + 1) * sizeof *grown);
    if (grown == NULL) {
        return error_set(err, LS_ENOMEM, "--api-key: out of memory");
    }
    ring->digest = grown;
    SHA256((const uint8_t *)key, n_bytes, ring->digest[ring->n++]);
    return LS_OK;
}

ls_status keys_add_file(key_ring *ring, const char *path, ls_error *err) {
    ls_file file = {0};
    size_t before = ring->n;
    ls_status st = LS_OK;
    TRY(file_map_or_read(&file, path, err));
    const char *text = (const char *)file.data, *end = text + file.bytes;
    while (st == LS_OK && text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *stop = newline != NULL ? newline : end, *next = newline != NULL ? newline + 1 : end;
        while (text < stop && isspace((unsigned char)*text)) {
            text++;
        }
        while (stop > text && isspace((unsigned char)stop[-1])) {
            stop--;
        }
        if (stop > text && *text != '#') {
            st = keys_add(ring, text, (size_t)(stop - text), err);
        }
        text = next;
    }
    file_unmap(&file);
    if (st == LS_OK && ring->n == before) {
        return error_set(err, LS_EINVAL, "--api-key-file %s: there is no key in it", path);
    }
    return st;
}

int keys_find(const key_ring *ring, const char *authorization) {
    static const char scheme[] = "Bearer ";
    uint8_t digest[KEY_DIGEST_BYTES];
    int found = -1;
    if (authorization == NULL || strncasecmp(authorization, scheme, sizeof scheme - 1) != 0) {
        return -1;
    }
    const char *key = authorization + sizeof scheme - 1;
    SHA256((const uint8_t *)key, strlen(key), digest);
    for (size_t i = 0; i < ring->n; i++) {
        int equal = CRYPTO_memcmp(digest, ring->digest[i], sizeof digest) == 0;
        found = equal ? (int)i : found;
    }
    return found;
}

void keys_deinit(key_ring *ring) {
    free(ring->digest);
    *ring = (key_ring){0};
}
