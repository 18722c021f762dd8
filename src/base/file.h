/* Whole files as memory: read-only maps, and what was read from pipes. */
#ifndef LS_BASE_FILE_H
#define LS_BASE_FILE_H

#include "base/error.h"

typedef struct ls_file {
    const uint8_t *data; /* NULL for an empty file */
    size_t bytes;
} ls_file;

/* Maps a regular file. Missing: LS_ENOTFOUND; a folder, unreadable or not mappable: LS_EIO. The text names the path.
 * A file that another process shortens while mapped raises SIGBUS on access: checkpoints are replaced by renaming,
 * never in place (the Hugging Face cache does so). */
ls_status file_map(ls_file *file, const char *path, ls_error *err);
/* The same for what a user names, which may also be a pipe or a terminal: read to its end, at most FILE_STREAM_BYTES
 * (LS_ETOOLONG). Let go of it with file_unmap. */
#define FILE_STREAM_BYTES ((size_t)1 << 30)
ls_status file_map_or_read(ls_file *file, const char *path, ls_error *err);
void file_unmap(ls_file *file); /* accepts a zeroed file */

bool file_exists(const char *path); /* a regular file that can be opened for reading */
bool folder_exists(const char *path);

/* "<folder>/<name>" into out; LS_EINVAL if it does not fit. */
ls_status path_join(char *out, size_t out_bytes, const char *folder, const char *name, ls_error *err);

#endif
