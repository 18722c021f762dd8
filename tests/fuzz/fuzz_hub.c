/*
 * Fuzz target: what a hub answers. The first byte says which part: 'l' a list of files, 'i' an index, 'h' the values of
 * headers, one a line, 'n' a name with a revision. Whatever is accepted must stay inside the cache.
 */
#include "file/hub_answer.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64]; /* made once per process; in memory where the system has such a folder */
static char path[128];

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void remove_folder(void) {
    unlink(path);
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/fuzz-hub-XXXXXX" : "/tmp/fuzz-hub-XXXXXX");
    require(mkdtemp(folder) != NULL, "scratch folder made");
    snprintf(path, sizeof path, "%s/index.json", folder);
    atexit(remove_folder);
    return 0;
}

/* By another way than the code under test: no part of a path is "..", none is empty. */
static void require_inside(const char *name) {
    char around[HUB_REVISION_BYTES + 2];
    require(name[0] != '\0' && strlen(name) < HUB_REVISION_BYTES, "length of a name");
    snprintf(around, sizeof around, "/%s/", name);
    require(strstr(around, "/../") == NULL && strstr(around, "/./") == NULL && strstr(around, "//") == NULL, "inside");
}

static void require_hash(const char *etag) {
    size_t n = strlen(etag);
    require((n == 40 || n == 64) && strspn(etag, "0123456789abcdef") == n, "a hash");
}

static void try_listing(const char *text, size_t n) {
    ls_error err = {0};
    hub_listing listing = {0};
    ls_status st = hub_listing_parse(&listing, "list", text, n, &err);
    require(st == LS_OK || (err.status == st && err.text[0] != '\0' && listing.file == NULL), "a failure has a text");
    if (st == LS_OK) {
        require(hub_is_hash(listing.commit, 40), "commit");
        for (size_t i = 0; i < listing.n; i++) {
            const hub_file *file = &listing.file[i];
            require_inside(file->name);
            require(file->bytes >= -1 && file->bytes <= HUB_FILE_MAX_BYTES, "size");
            require(hub_listing_find(&listing, file->name) == file, "each name once");
            if (file->etag[0] != '\0') {
                require_hash(file->etag);
            }
        }
    }
    hub_listing_deinit(&listing);
}

static ls_status check_shard(void *user, const char *file, ls_error *err) {
    (void)user;
    (void)err;
    require_inside(file);
    require(strchr(file, '/') == NULL, "a shard lies beside its index");
    return LS_OK;
}

static void try_index(const uint8_t *data, size_t n) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    require(fd >= 0 && write(fd, data, n) == (ssize_t)n && close(fd) == 0, "scratch file written");
    ls_error err = {0};
    ls_status st = hub_index_read(path, check_shard, NULL, &err);
    require(st == LS_OK || (err.status == st && err.text[0] != '\0'), "a failure has a text");
}

static void try_header(const char *value) {
    char etag[HUB_ETAG_BYTES];
    int64_t bytes = -1, first = 0, last = 0, total = 0;
    if (hub_etag_read(value, etag)) {
        require_hash(etag);
    } else {
        require(etag[0] == '\0', "no hash");
    }
    require(hub_size_read(value, &bytes) ? bytes >= 0 && bytes <= HUB_FILE_MAX_BYTES : bytes == -1, "size");
    if (hub_range_read(value, &first, &last, &total)) {
        require(first >= 0 && first <= last && last < total && total <= HUB_FILE_MAX_BYTES, "range");
    }
}

static void try_name(const char *text) {
    hub_name name;
    static hub_place place;
    if (hub_name_parse(&name, text, NULL) == LS_OK) {
        require_inside(name.repo);
        require_inside(name.revision);
        require(hub_place_init(&place, "/cache", &name, NULL) == LS_OK, "a name has a place");
        require(strchr(place.repo + strlen("/cache/"), '/') == NULL, "one folder");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) {
        return 0;
    }
    char *text = malloc(size);
    require(text != NULL, "memory");
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    if (data[0] == 'l') {
        try_listing(text, size - 1);
    } else if (data[0] == 'i') {
        try_index(data + 1, size - 1);
    } else if (data[0] == 'n') {
        try_name(text);
    } else {
        for (char *line = text; line != NULL; line = strchr(line, '\n') != NULL ? strchr(line, '\n') + 1 : NULL) {
            char value[256];
            snprintf(value, sizeof value, "%.*s", (int)strcspn(line, "\n"), line);
            try_header(value);
        }
    }
    free(text);
    return 0;
}
