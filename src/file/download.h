/*
 * Files of one commit, from the hub into the cache: several at once, in pieces, resumable, verified.
 *
 * A piece is 8 MiB of a file, fetched by a range request into memory. Pieces of a file are written in their order, and
 * hashed on the way: blobs/<etag>.incomplete is a prefix of the file at any moment, so its length is all that is needed to
 * go on after a crash, and the hash is known with the last byte. The blob gets its name only if the hash is right. A server
 * that ignores ranges sends one piece, the whole file.
 *
 * Every file is locked while it is fetched (hub.h). Nobody waits for one lock while it holds another without making
 * progress on that, so processes that download the same model share the work and cannot block one another.
 */
#ifndef LS_FILE_DOWNLOAD_H
#define LS_FILE_DOWNLOAD_H

#include "file/http.h"
#include "file/hub_answer.h"

typedef struct download {
    const http_client *client;
    const hub_place *place;
    const hub_name *name;
    const char *commit;
    ls_hub_progress_fn fn; /* may be NULL */
    void *user;
    ls_hub_progress progress; /* of this call and earlier ones with the same struct */
} download;

/* Fetches files whose size and hash are known, and links them into the commit's snapshot. What is there is only linked.
 * Files that were finished before a failure stay. Errors: those of ls_hub_find. */
ls_status download_files(download *d, const hub_file *const *file, size_t n, ls_error *err);

#endif
