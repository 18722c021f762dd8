/*
 * Models by name in the Hugging Face cache. No network here: see download.h.
 *
 *   <cache>/models--ORG--NAME/refs/<revision>            the commit that a branch or tag had when it was looked up last
 *                             snapshots/<commit>/<file>  symbolic links to ../../blobs/<etag>
 *                             blobs/<etag>               the bytes; etag is their SHA-256, or git's SHA-1 of small files
 *                             blobs/<etag>.incomplete    the first bytes of one: always a prefix, never with holes
 *   <cache>/.locks/models--ORG--NAME/<etag>.lock         flock, held while <etag> is downloaded
 *
 * This is huggingface_hub's layout, byte for byte, so that both can use one cache at the same time. A blob gets its name
 * by renaming once its hash has been verified; a ref is written when its snapshot is complete. Names, revisions, commits
 * and file names are checked before they become paths: nothing here leaves the cache folder.
 */
#ifndef LS_FILE_HUB_H
#define LS_FILE_HUB_H

#include "base/error.h"

enum {
    HUB_REPO_BYTES = 200,     /* "ORG/NAME", each at most 96 */
    HUB_REVISION_BYTES = 256, /* also of file names */
    HUB_COMMIT_BYTES = 41,
    HUB_ETAG_BYTES = 65,
    HUB_PATH_BYTES = 4096
};

/* A name as the user gives it: ORG/NAME[@REVISION]. */
typedef struct hub_name {
    char repo[HUB_REPO_BYTES];
    char revision[HUB_REVISION_BYTES]; /* "main" where none was given */
    bool is_commit;                    /* the revision is a full commit hash: it can never mean anything else */
} hub_name;

/* LS_EINVAL says what is wrong with it. */
ls_status hub_name_parse(hub_name *name, const char *text, ls_error *err);

bool hub_is_hash(const char *text, size_t n); /* exactly n lower-case hexadecimal digits */
bool hub_file_name_is_safe(const char *name); /* relative, no "." or ".." part, no control character */
bool hub_file_is_text(const char *name);      /* config, tokenizer and chat templates: what is fetched of any model */

/* Where a model lies: <cache>/models--ORG--NAME and below. LS_EINVAL if a path is too long. */
typedef struct hub_place {
    const char *cache;         /* borrowed */
    char repo[HUB_PATH_BYTES]; /* the model's folder */
    char locks[HUB_PATH_BYTES];
} hub_place;
ls_status hub_place_init(hub_place *place, const char *cache, const hub_name *name, ls_error *err);
ls_status hub_snapshot_path(const hub_place *place, const char *commit, char *out, size_t out_bytes, ls_error *err);
ls_status hub_blob_path(const hub_place *place, const char *etag, char *out, size_t out_bytes, ls_error *err);

/* The commit that a revision had when it was looked up last. False if it is not known. */
bool hub_ref_read(const hub_place *place, const hub_name *name, char commit[HUB_COMMIT_BYTES]);
/* Does nothing where it says so already. */
ls_status hub_ref_write(const hub_place *place, const hub_name *name, const char *commit, ls_error *err);

/* What a snapshot must hold. Optional files, such as chat templates, are not asked for: only the hub knows of them. */
enum { HUB_CONFIG = 1, HUB_TOKENIZER = 2, HUB_WEIGHTS = 4 };
/* LS_ENOTFOUND names the first file that is missing. */
ls_status hub_snapshot_check(const char *snapshot, unsigned parts, ls_error *err);

/* Calls fn for every different file that weight_map of a model.safetensors.index.json names, in the order of names. Names
 * that lead out of the folder are LS_EFORMAT. */
typedef ls_status (*hub_shard_fn)(void *user, const char *file, ls_error *err);
ls_status hub_index_read(const char *path, hub_shard_fn fn, void *user, ls_error *err);

/* Makes snapshots/<commit>/<file> a link to a blob that is there. Replaces a broken link, leaves a good one alone. */
ls_status hub_link(const hub_place *place, const char *commit, const char *file, const char *etag, ls_error *err);
bool hub_has_file(const char *snapshot, const char *file);

/* The folders of path, made where they are missing; the part behind the last '/' is not. LS_EIO names the path. */
ls_status hub_make_folders(const char *path, ls_error *err);

/* Makes CACHEDIR.TAG, by which backups know what to leave out; the same as huggingface_hub's. Best effort. */
void hub_tag_cache(const hub_place *place);

/* Tries to lock a blob. *fd >= 0: locked, until close; -1: another process holds it; -2: this file system has no locks. */
ls_status hub_lock_try(const hub_place *place, const char *etag, int *fd, ls_error *err);

/* See ls_hub_list. */
ls_status hub_list(const char *cache, ls_hub_model **out, size_t *n, ls_error *err);

#endif
