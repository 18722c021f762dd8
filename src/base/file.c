/* See file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* To the end, into anonymous memory that grows, so that it goes as a map does. */
static ls_status read_stream(int fd, const char *path, ls_file *out, ls_error *err) {
    size_t room = 1 << 20, n = 0;
    char *bytes = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ls_status st = bytes == MAP_FAILED ? error_set(err, LS_ENOMEM, "%s: out of memory", path) : LS_OK;
    ssize_t got = 1;
    while (st == LS_OK && got != 0) {
        if (n == room) {
            void *grown = room < FILE_STREAM_BYTES ? mremap(bytes, room, 2 * room, MREMAP_MAYMOVE) : MAP_FAILED;
            if (grown == MAP_FAILED) {
                st = room < FILE_STREAM_BYTES
                         ? error_set(err, LS_ENOMEM, "%s: out of memory", path)
                         : error_set(err, LS_ETOOLONG, "%s: more than %zu bytes came", path, FILE_STREAM_BYTES);
                break;
            }
            bytes = grown;
            room *= 2;
        }
        got = read(fd, bytes + n, room - n);
        if (got < 0 && errno != EINTR) {
            st = error_set(err, LS_EIO, "%s: %s", path, strerror(errno));
        }
        n += got > 0 ? (size_t)got : 0;
    }
    if (st == LS_OK && n > 0) { /* whole pages of what was not needed go back; file_unmap lets go of the others */
        bytes = mremap(bytes, room, n, 0);
        *out = (ls_file){(const uint8_t *)bytes, n};
    } else if (bytes != MAP_FAILED) {
        munmap(bytes, room);
    }
    return st;
}

static ls_status map_file(ls_file *file, const char *path, bool may_stream, ls_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return error_set(err, errno == ENOENT || errno == ENOTDIR ? LS_ENOTFOUND : LS_EIO, "%s: %s", path,
                         strerror(errno));
    }
    struct stat info;
    ls_status st = LS_OK;
    ls_file fresh = {0};
    if (fstat(fd, &info) != 0) {
        st = error_set(err, LS_EIO, "%s: %s", path, strerror(errno));
    } else if (may_stream && (S_ISFIFO(info.st_mode) || S_ISCHR(info.st_mode))) {
        st = read_stream(fd, path, &fresh, err);
    } else if (!S_ISREG(info.st_mode)) {
        st = error_set(err, LS_EIO, "%s: not a regular file", path);
    } else if (info.st_size > 0) {
        fresh.bytes = (size_t)info.st_size;
        void *map = mmap(NULL, fresh.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            st = error_set(err, LS_EIO, "%s: cannot map: %s", path, strerror(errno));
        } else {
            fresh.data = map;
        }
    }
    close(fd);
    if (st == LS_OK) {
        *file = fresh;
    }
    return st;
}

ls_status file_map(ls_file *file, const char *path, ls_error *err) {
    return map_file(file, path, false, err);
}

ls_status file_map_or_read(ls_file *file, const char *path, ls_error *err) {
    return map_file(file, path, true, err);
}

void file_unmap(ls_file *file) {
    if (file->data != NULL) {
        munmap((void *)file->data, file->bytes);
    }
    *file = (ls_file){0};
}

bool file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) && access(path, R_OK) == 0;
}

bool folder_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

ls_status path_join(char *out, size_t out_bytes, const char *folder, const char *name, ls_error *err) {
    int n = snprintf(out, out_bytes, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= out_bytes) {
        return error_set(err, LS_EINVAL, "path too long: %s/%s", folder, name);
    }
    return LS_OK;
}
