/* API keys. Only their SHA-256 is kept; looking one up takes the same time whatever it is and whichever it equals. */
#ifndef LS_SERVER_KEYS_H
#define LS_SERVER_KEYS_H

#include "base/error.h"

enum { KEY_DIGEST_BYTES = 32 };

typedef struct key_ring {
    uint8_t (*digest)[KEY_DIGEST_BYTES]; /* owned, [n] */
    size_t n;
} key_ring;

/* Empty keys are refused. LS_EINVAL, LS_ENOMEM. */
ls_status keys_add(key_ring *ring, const char *key, size_t n_bytes, ls_error *err);
/* A key a line; blanks around it, empty lines and those that begin with # do not count. LS_EINVAL if there is none. */
ls_status keys_add_file(key_ring *ring, const char *path, ls_error *err);
/* The index of the key in an Authorization header ("Bearer <key>"); -1: none of ours. */
int keys_find(const key_ring *ring, const char *authorization);
void keys_deinit(key_ring *ring);

#endif
