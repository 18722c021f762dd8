/*
 * What a hub answers, read with suspicion: the list of a repository's files, and the values of headers. No network here.
 */
#ifndef LS_FILE_HUB_ANSWER_H
#define LS_FILE_HUB_ANSWER_H

#include "base/json.h"
#include "file/hub.h"

#define HUB_FILE_MAX_BYTES ((int64_t)1 << 46)

typedef struct hub_file {
    const char *name;          /* relative, safe */
    int64_t bytes;             /* -1: not told */
    char etag[HUB_ETAG_BYTES]; /* SHA-256 or git's SHA-1, which is the blob's name; "": not told */
} hub_file;

/* The files of one commit. */
typedef struct hub_listing {
    char commit[HUB_COMMIT_BYTES];
    hub_file *file; /* [n], by name, each once; owned */
    size_t n;
    json_doc doc; /* owns the names */
} hub_listing;

/* Reads the answer to /api/models/ORG/NAME/revision/REV?blobs=true. Files whose names lead out of the folder are left out:
 * nothing that we ask for is called so. */
ls_status hub_listing_parse(hub_listing *listing, const char *name, const char *text, size_t text_bytes, ls_error *err);
void hub_listing_deinit(hub_listing *listing);                            /* accepts a zeroed listing */
hub_file *hub_listing_find(const hub_listing *listing, const char *name); /* NULL: not there */

/* The hash in an ETag header: W/"..." or "..." or bare. False, and "" in etag, unless it is 40 or 64 hexadecimal digits. */
bool hub_etag_read(const char *value, char etag[HUB_ETAG_BYTES]);
/* A number of bytes. False unless it is one in 0..HUB_FILE_MAX_BYTES. */
bool hub_size_read(const char *value, int64_t *bytes);
/* "bytes FIRST-LAST/TOTAL". False unless all three are there and fit one another. */
bool hub_range_read(const char *value, int64_t *first, int64_t *last, int64_t *total);

#endif
