/* See file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

ls_status file_map(ls_file *file, const char *path, ls_error *err) {
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
