/* See hub.h. */
#include "file/hub.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"

#define INDEX_MAX_BYTES 100000000u /* as in safetensors.c */
#define PART_MAX 96                /* characters of ORG and of NAME */

/* ---- Names ---- */

static bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* The hub's own rule for ORG and for NAME: word characters, '-' and '.', a word character at both ends. */
static bool is_part(const char *text, size_t n) {
    if (n == 0 || n > PART_MAX || !is_word(text[0]) || !is_word(text[n - 1])) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        bool doubled = i > 0 && text[i] == text[i - 1] && (text[i] == '-' || text[i] == '.');
        if (doubled || (!is_word(text[i]) && text[i] != '-' && text[i] != '.')) {
            return false;
        }
    }
    return true;
}

static bool is_repo(const char *text, size_t n) {
    const char *slash = memchr(text, '/', n);
    size_t n_org = slash != NULL ? (size_t)(slash - text) : 0;
    bool is_git = n > 4 && memcmp(text + n - 4, ".git", 4) == 0;
    return slash != NULL && !is_git && is_part(text, n_org) && is_part(slash + 1, n - n_org - 1);
}

/* git's rule for branches and tags, for everything that could mean something in a path or a URL. */
static bool is_revision(const char *text) {
    size_t n = strlen(text);
    if (!hub_file_name_is_safe(text) || text[n - 1] == '.' || strstr(text, "..") != NULL ||
        strstr(text, "@{") != NULL) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (strchr(" ~^:?*[", text[i]) != NULL || (text[i] == '.' && (i == 0 || text[i - 1] == '/'))) {
            return false;
        }
    }
    return true;
}

bool hub_is_hash(const char *text, size_t n) {
    return strlen(text) == n && strspn(text, "0123456789abcdef") == n;
}

bool hub_file_name_is_safe(const char *name) {
    size_t n = strlen(name);
    if (n == 0 || n >= HUB_REVISION_BYTES) {
        return false;
    }
    for (size_t i = 0, begin = 0; i <= n; i++) {
        if (i < n && ((unsigned char)name[i] < 0x20 || name[i] == 0x7f || name[i] == '\\')) {
            return false;
        }
        if (i == n || name[i] == '/') {
            size_t bytes = i - begin;
            bool dots = (bytes == 1 && name[begin] == '.') || (bytes == 2 && memcmp(name + begin, "..", 2) == 0);
            if (bytes == 0 || dots) {
                return false;
            }
            begin = i + 1;
        }
    }
    return true;
}

ls_status hub_name_parse(hub_name *name, const char *text, ls_error *err) {
    const char *at = strchr(text, '@');
    size_t n = at != NULL ? (size_t)(at - text) : strlen(text);
    if (!is_repo(text, n)) {
        return error_set(
            err, LS_EINVAL,
            "'%.200s' is not a name of a model on the hub: such a name is ORGANISATION/MODEL, with letters, "
            "digits, '-', '_' and '.' (no '--', '..' or '.git' at the end)",
            text);
    }
    if (at != NULL && !is_revision(at + 1)) {
        return error_set(err, LS_EINVAL, "'%.200s' is not a revision: expected a branch, a tag or a commit", at + 1);
    }
    hub_name fresh = {0};
    memcpy(fresh.repo, text, n);
    snprintf(fresh.revision, sizeof fresh.revision, "%s", at != NULL ? at + 1 : "main");
    fresh.is_commit = hub_is_hash(fresh.revision, HUB_COMMIT_BYTES - 1);
    *name = fresh;
    return LS_OK;
}

bool hub_file_is_text(const char *name) {
    static const char *const known[] = {"config.json",           "generation_config.json",  "tokenizer.json",
                                        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"};
    static const char folder[] = "additional_chat_templates/";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i]) == 0) {
            return true;
        }
    }
    size_t n = strlen(name);
    return strncmp(name, folder, strlen(folder)) == 0 && strchr(name + strlen(folder), '/') == NULL &&
           n > strlen(folder) + strlen(".jinja") && strcmp(name + n - strlen(".jinja"), ".jinja") == 0;
}

/* ---- Paths ---- */

ls_status hub_place_init(hub_place *place, const char *cache, const hub_name *name, ls_error *err) {
    const char *slash = strchr(name->repo, '/');
    char folder[HUB_REPO_BYTES + sizeof "models----"];
    char locked[sizeof folder + sizeof ".locks/"];
    snprintf(folder, sizeof folder, "models--%.*s--%s", (int)(slash - name->repo), name->repo, slash + 1);
    snprintf(locked, sizeof locked, ".locks/%s", folder);
    TRY(path_join(place->repo, sizeof place->repo, cache, folder, err));
    TRY(path_join(place->locks, sizeof place->locks, cache, locked, err));
    place->cache = cache;
    return LS_OK;
}

/* <repo>/<folder>/<name> */
static ls_status inside(const hub_place *place, const char *folder, const char *name, char *out, size_t out_bytes,
                        ls_error *err) {
    char path[HUB_PATH_BYTES];
    TRY(path_join(path, sizeof path, place->repo, folder, err));
    return path_join(out, out_bytes, path, name, err);
}

ls_status hub_snapshot_path(const hub_place *place, const char *commit, char *out, size_t out_bytes, ls_error *err) {
    return inside(place, "snapshots", commit, out, out_bytes, err);
}

ls_status hub_blob_path(const hub_place *place, const char *etag, char *out, size_t out_bytes, ls_error *err) {
    return inside(place, "blobs", etag, out, out_bytes, err);
}

ls_status hub_make_folders(const char *path, ls_error *err) {
    char part[HUB_PATH_BYTES];
    for (const char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        if ((size_t)(slash - path) >= sizeof part) {
            return error_set(err, LS_EINVAL, "path too long: %s", path);
        }
        memcpy(part, path, (size_t)(slash - path));
        part[slash - path] = '\0';
        /* What is there already may lie in a folder that we could not write to. */
        if (mkdir(part, 0777) != 0 && !folder_exists(part)) {
            return error_set(err, LS_EIO, "%s: cannot make this folder: %s", part, strerror(errno));
        }
    }
    return LS_OK;
}

/* ---- Refs ---- */

bool hub_ref_read(const hub_place *place, const hub_name *name, char commit[HUB_COMMIT_BYTES]) {
    char path[HUB_PATH_BYTES], text[HUB_COMMIT_BYTES + 8] = {0};
    if (inside(place, "refs", name->revision, path, sizeof path, NULL) != LS_OK) {
        return false;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? strcspn(text, " \r\n") : 0] = '\0';
    if (!hub_is_hash(text, HUB_COMMIT_BYTES - 1)) {
        return false;
    }
    memcpy(commit, text, HUB_COMMIT_BYTES);
    return true;
}

ls_status hub_ref_write(const hub_place *place, const hub_name *name, const char *commit, ls_error *err) {
    char path[HUB_PATH_BYTES], fresh[HUB_PATH_BYTES + 8], old[HUB_COMMIT_BYTES];
    if (name->is_commit || (hub_ref_read(place, name, old) && strcmp(old, commit) == 0)) {
        return LS_OK;
    }
    TRY(inside(place, "refs", name->revision, path, sizeof path, err));
    TRY(hub_make_folders(path, err));
    snprintf(fresh, sizeof fresh, "%s.XXXXXX", path);
    int fd = mkostemp(fresh, O_CLOEXEC);
    bool good = fd >= 0 && write(fd, commit, strlen(commit)) == (ssize_t)strlen(commit) && fchmod(fd, 0644) == 0;
    good = fd >= 0 && close(fd) == 0 && good && rename(fresh, path) == 0;
    if (!good) {
        int why = errno;
        if (fd >= 0) {
            unlink(fresh);
        }
        return error_set(err, LS_EIO, "%s: cannot write: %s", path, strerror(why));
    }
    return LS_OK;
}

/* ---- Snapshots ---- */

bool hub_has_file(const char *snapshot, const char *file) {
    char path[HUB_PATH_BYTES];
    return path_join(path, sizeof path, snapshot, file, NULL) == LS_OK && file_exists(path);
}

static ls_status require_file(const char *snapshot, const char *file, ls_error *err) {
    return hub_has_file(snapshot, file) ? LS_OK : error_set(err, LS_ENOTFOUND, "%s/%s: missing", snapshot, file);
}

static int compare_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static ls_status read_map(const json_doc *index, const json_t *map, hub_shard_fn fn, void *user, ls_error *err) {
    size_t n = 0;
    const char **file = calloc(json_object_size(map) + 1, sizeof *file);
    ls_status st = LS_OK;
    if (file == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", index->name);
    }
    for (void *at = json_object_iter((json_t *)map); at != NULL; at = json_object_iter_next((json_t *)map, at)) {
        const char *name = json_string_value(json_object_iter_value(at));
        if (name == NULL || !hub_file_name_is_safe(name) || strchr(name, '/') != NULL) {
            TRY_GOTO(error_set(err, LS_EFORMAT, "%s: weight_map: '%.100s' is not the name of a file in the folder",
                               index->name, name != NULL ? name : "(not a string)"),
                     done);
        }
        file[n++] = name;
    }
    qsort(file, n, sizeof *file, compare_text);
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || strcmp(file[i], file[i - 1]) != 0) {
            TRY_GOTO(fn(user, file[i], err), done);
        }
    }
done:
    free(file);
    return st;
}

ls_status hub_index_read(const char *path, hub_shard_fn fn, void *user, ls_error *err) {
    json_doc index = {0};
    json_t *map = NULL;
    ls_status st = LS_OK;
    TRY(json_doc_read(&index, path, INDEX_MAX_BYTES, err));
    TRY_GOTO(json_find_object(&index, index.root, "weight_map", &map, err), done);
    if (json_object_size(map) == 0) {
        TRY_GOTO(error_set(err, LS_EFORMAT, "%s: weight_map: missing or empty", index.name), done);
    }
    TRY_GOTO(read_map(&index, map, fn, user, err), done);
done:
    json_doc_deinit(&index);
    return st;
}

static ls_status require_shard(void *user, const char *file, ls_error *err) {
    return require_file(user, file, err);
}

ls_status hub_snapshot_check(const char *snapshot, unsigned parts, ls_error *err) {
    char snapshot_copy[HUB_PATH_BYTES], index[HUB_PATH_BYTES];
    if (parts & HUB_CONFIG) {
        TRY(require_file(snapshot, "config.json", err));
    }
    if (parts & HUB_TOKENIZER) {
        TRY(require_file(snapshot, "tokenizer.json", err));
    }
    if ((parts & HUB_WEIGHTS) == 0) {
        return LS_OK;
    }
    TRY(path_join(index, sizeof index, snapshot, "model.safetensors.index.json", err));
    if (!file_exists(index)) {
        return require_file(snapshot, "model.safetensors", err);
    }
    snprintf(snapshot_copy, sizeof snapshot_copy, "%s", snapshot);
    return hub_index_read(index, require_shard, snapshot_copy, err);
}

ls_status hub_link(const hub_place *place, const char *commit, const char *file, const char *etag, ls_error *err) {
    char snapshot[HUB_PATH_BYTES], path[HUB_PATH_BYTES], blob[HUB_PATH_BYTES], target[HUB_PATH_BYTES];
    char fresh[HUB_PATH_BYTES + 32];
    TRY(hub_snapshot_path(place, commit, snapshot, sizeof snapshot, err));
    TRY(path_join(path, sizeof path, snapshot, file, err));
    if (file_exists(path)) {
        return LS_OK;
    }
    TRY(hub_blob_path(place, etag, blob, sizeof blob, err));
    TRY(hub_make_folders(path, err));
    size_t n = 0;
    for (const char *c = file; c != NULL && n + 3 < sizeof target; c = strchr(c + 1, '/')) {
        n += (size_t)snprintf(target + n, sizeof target - n, "../");
    }
    snprintf(target + n, sizeof target - n, "../blobs/%s", etag);
    /* Made beside it and renamed: two processes may do this at once, and a broken link may be in the way. */
    snprintf(fresh, sizeof fresh, "%s.%d.link", path, (int)getpid());
    if (symlink(target, fresh) == 0 && rename(fresh, path) == 0) {
        return LS_OK;
    }
    int why = errno;
    unlink(fresh);
    /* A file system without links: the file itself moves, as huggingface_hub has it. */
    if ((why == EPERM || why == EOPNOTSUPP || why == ENOSYS) && rename(blob, path) == 0) {
        return LS_OK;
    }
    return error_set(err, LS_EIO, "%s: cannot make this link: %s", path, strerror(why));
}

void hub_tag_cache(const hub_place *place) {
    static const char text[] = "Signature: 8a477f597d28d172789f06886806bc55\n"
                               "# This file is a cache directory tag created by huggingface_hub.\n"
                               "# For information about cache directory tags, see:\n"
                               "#\thttps://bford.info/cachedir/\n";
    char path[HUB_PATH_BYTES];
    if (path_join(path, sizeof path, place->cache, "CACHEDIR.TAG", NULL) != LS_OK) {
        return;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0 && (write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd) != 0)) {
        unlink(path);
    }
}

/* ---- Locks ---- */

ls_status hub_lock_try(const hub_place *place, const char *etag, int *fd, ls_error *err) {
    char path[HUB_PATH_BYTES], name[HUB_ETAG_BYTES + 8];
    struct stat open_one, named_one;
    snprintf(name, sizeof name, "%s.lock", etag);
    TRY(path_join(path, sizeof path, place->locks, name, err));
    TRY(hub_make_folders(path, err));
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0664);
    if (lock < 0) {
        return error_set(err, LS_EIO, "%s: cannot write: %s", path, strerror(errno));
    }
    if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
        *fd = errno == EWOULDBLOCK || errno == EINTR ? -1 : -2;
        close(lock);
        return LS_OK;
    }
    /* Some programs delete the file when they unlock it: a lock on a file without a name locks nobody out. */
    if (fstat(lock, &open_one) != 0 || stat(path, &named_one) != 0 || open_one.st_ino != named_one.st_ino) {
        close(lock);
        lock = -1;
    }
    *fd = lock;
    return LS_OK;
}

/* ---- What is in the cache ---- */

/* Bytes of the files in a folder; links count nothing. */
static int64_t folder_bytes(const char *path) {
    DIR *dir = opendir(path);
    int64_t bytes = 0;
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        struct stat info;
        if (fstatat(dirfd(dir), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode)) {
            bytes += info.st_size;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return bytes;
}

/* The only snapshot of a model without a main branch in the cache. */
static bool only_snapshot(const hub_place *place, char commit[HUB_COMMIT_BYTES]) {
    char path[HUB_PATH_BYTES];
    int n = 0;
    DIR *dir = path_join(path, sizeof path, place->repo, "snapshots", NULL) == LS_OK ? opendir(path) : NULL;
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (hub_is_hash(entry->d_name, HUB_COMMIT_BYTES - 1)) {
            memcpy(commit, entry->d_name, HUB_COMMIT_BYTES);
            n++;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return n == 1;
}

static ls_hub_model describe(const hub_place *place, const hub_name *name) {
    ls_hub_model model = {0};
    char path[HUB_PATH_BYTES], commit[HUB_COMMIT_BYTES];
    snprintf(model.name, sizeof model.name, "%s", name->repo);
    if (hub_ref_read(place, name, commit) || only_snapshot(place, commit)) {
        memcpy(model.commit, commit, sizeof commit);
        model.complete = hub_snapshot_path(place, commit, path, sizeof path, NULL) == LS_OK &&
                         hub_snapshot_check(path, HUB_CONFIG | HUB_TOKENIZER | HUB_WEIGHTS, NULL) == LS_OK;
    }
    if (path_join(path, sizeof path, place->repo, "blobs", NULL) == LS_OK) {
        model.bytes = folder_bytes(path);
    }
    return model;
}

/* "models--ORG--NAME" back into "ORG/NAME", which neither part's "--" can make ambiguous. */
static bool name_of_folder(hub_name *name, const char *folder) {
    char text[HUB_REPO_BYTES];
    const char *org = folder + strlen("models--");
    const char *dashes = strncmp(folder, "models--", strlen("models--")) == 0 ? strstr(org, "--") : NULL;
    if (dashes == NULL || strlen(org) >= sizeof text) {
        return false;
    }
    snprintf(text, sizeof text, "%.*s/%s", (int)(dashes - org), org, dashes + 2);
    return hub_name_parse(name, text, NULL) == LS_OK;
}

static int compare_model(const void *a, const void *b) {
    return strcmp(((const ls_hub_model *)a)->name, ((const ls_hub_model *)b)->name);
}

ls_status hub_list(const char *cache, ls_hub_model **out, size_t *n_out, ls_error *err) {
    size_t n = 0, room = 0;
    ls_hub_model *model = NULL;
    hub_place *place = malloc(sizeof *place); /* large for a stack */
    DIR *dir = opendir(cache);
    ls_status st = LS_OK;
    if (place == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "%s: out of memory", cache), fail);
    }
    if (dir == NULL && errno != ENOENT) {
        TRY_GOTO(error_set(err, LS_EIO, "%s: cannot read: %s", cache, strerror(errno)), fail);
    }
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        hub_name name;
        if (!name_of_folder(&name, entry->d_name) || hub_place_init(place, cache, &name, NULL) != LS_OK) {
            continue;
        }
        if (n == room) {
            room = 2 * room + 16;
            ls_hub_model *grown = realloc(model, room * sizeof *grown);
            if (grown == NULL) {
                TRY_GOTO(error_set(err, LS_ENOMEM, "%s: out of memory", cache), fail);
            }
            model = grown;
        }
        model[n++] = describe(place, &name);
    }
    if (n > 0) {
        qsort(model, n, sizeof *model, compare_model);
    }
    *out = model;
    *n_out = n;
    model = NULL;
fail:
    free(model);
    free(place);
    if (dir != NULL) {
        closedir(dir);
    }
    return st;
}
