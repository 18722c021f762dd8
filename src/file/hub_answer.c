/* See hub_answer.h. */
#include "file/hub_answer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LISTING_MAX_FILES = 100000 };

bool hub_etag_read(const char *value, char etag[HUB_ETAG_BYTES]) {
    etag[0] = '\0';
    value += strncmp(value, "W/", 2) == 0 ? 2 : 0;
    value += *value == '"';
    size_t n = strspn(value, "0123456789abcdefABCDEF");
    if ((n != 40 && n != 64) || (value[n] != '\0' && strcmp(value + n, "\"") != 0)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        etag[i] = value[i] >= 'A' && value[i] <= 'F' ? (char)(value[i] - 'A' + 'a') : value[i];
    }
    etag[n] = '\0';
    return true;
}

/* Digits at *text, which moves behind them. */
static bool take_number(const char **text, int64_t *out) {
    int64_t value = 0;
    const char *c = *text;
    for (; *c >= '0' && *c <= '9'; c++) {
        value = value * 10 + (*c - '0');
        if (value > HUB_FILE_MAX_BYTES) {
            return false;
        }
    }
    bool any = c != *text;
    *text = c;
    *out = value;
    return any;
}

bool hub_size_read(const char *value, int64_t *bytes) {
    int64_t number;
    bool good = take_number(&value, &number) && *value == '\0';
    if (good) {
        *bytes = number;
    }
    return good;
}

bool hub_range_read(const char *value, int64_t *first, int64_t *last, int64_t *total) {
    int64_t a, b, n;
    if (strncmp(value, "bytes ", 6) != 0) {
        return false;
    }
    value += 6;
    bool good = take_number(&value, &a) && *value++ == '-' && take_number(&value, &b) && *value++ == '/' &&
                take_number(&value, &n) && *value == '\0' && a <= b && b < n;
    if (good) {
        *first = a;
        *last = b;
        *total = n;
    }
    return good;
}

static int compare_file(const void *a, const void *b) {
    return strcmp(((const hub_file *)a)->name, ((const hub_file *)b)->name);
}

/* A whole number of bytes. All numbers of a list are reals: its other parts hold integers beyond 64 bits. */
static ls_status find_bytes(const json_doc *doc, const json_t *object, int64_t *out, ls_error *err) {
    double bytes = -1;
    TRY(json_find_real(doc, object, "size", &bytes, err));
    if (json_object_get(object, "size") == NULL || json_is_null(json_object_get(object, "size"))) {
        return LS_OK;
    }
    if (bytes < 0 || bytes > (double)HUB_FILE_MAX_BYTES || bytes != (double)(int64_t)bytes) {
        return error_set(err, LS_EFORMAT, "%s: siblings: size: %g is no size of a file", doc->name, bytes);
    }
    *out = (int64_t)bytes;
    return LS_OK;
}

/* One of siblings. *out is left alone where its name is not one to use. */
static ls_status read_file_entry(const json_doc *doc, const json_t *entry, hub_file *out, bool *usable, ls_error *err) {
    hub_file file = {.bytes = -1};
    json_t *lfs = NULL;
    const char *hash = NULL;
    *usable = false;
    TRY(json_find_string(doc, entry, "rfilename", &file.name, err));
    if (file.name == NULL || !hub_file_name_is_safe(file.name)) {
        return LS_OK;
    }
    TRY(find_bytes(doc, entry, &file.bytes, err));
    TRY(json_find_string(doc, entry, "blobId", &hash, err));
    TRY(json_find_object(doc, entry, "lfs", &lfs, err));
    if (lfs != NULL) {
        hash = NULL; /* blobId is the pointer's then */
        TRY(json_find_string(doc, lfs, "sha256", &hash, err));
        TRY(find_bytes(doc, lfs, &file.bytes, err));
    }
    if (hash != NULL && !hub_etag_read(hash, file.etag)) {
        return error_set(err, LS_EFORMAT, "%s: siblings: %s: '%.80s' is not a hash", doc->name, file.name, hash);
    }
    *out = file;
    *usable = true;
    return LS_OK;
}

static ls_status read_siblings(hub_listing *listing, const json_t *siblings, ls_error *err) {
    size_t n = json_array_size(siblings);
    if (n > LISTING_MAX_FILES) {
        return error_set(err, LS_EFORMAT, "%s: siblings: %zu files, more than %d", listing->doc.name, n,
                         LISTING_MAX_FILES);
    }
    listing->file = calloc(n + 1, sizeof *listing->file);
    if (listing->file == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory for %zu files", listing->doc.name, n);
    }
    for (size_t i = 0; i < n; i++) {
        bool usable;
        TRY(read_file_entry(&listing->doc, json_array_get(siblings, i), &listing->file[listing->n], &usable, err));
        listing->n += usable;
    }
    qsort(listing->file, listing->n, sizeof *listing->file, compare_file);
    for (size_t i = 1; i < listing->n; i++) {
        if (compare_file(&listing->file[i - 1], &listing->file[i]) == 0) {
            return error_set(err, LS_EFORMAT, "%s: siblings: %s: there twice", listing->doc.name,
                             listing->file[i].name);
        }
    }
    return LS_OK;
}

ls_status hub_listing_parse(hub_listing *listing, const char *name, const char *text, size_t text_bytes,
                            ls_error *err) {
    hub_listing fresh = {0};
    json_t *siblings = NULL;
    const char *commit = NULL;
    ls_status st = LS_OK;
    TRY(json_doc_parse_reals(&fresh.doc, name, text, text_bytes, err));
    TRY_GOTO(json_find_string(&fresh.doc, fresh.doc.root, "sha", &commit, err), fail);
    if (commit == NULL || !hub_is_hash(commit, HUB_COMMIT_BYTES - 1)) {
        TRY_GOTO(error_set(err, LS_EFORMAT, "%s: sha: missing, or not a commit", fresh.doc.name), fail);
    }
    memcpy(fresh.commit, commit, HUB_COMMIT_BYTES);
    TRY_GOTO(json_find_array(&fresh.doc, fresh.doc.root, "siblings", &siblings, err), fail);
    TRY_GOTO(read_siblings(&fresh, siblings, err), fail);
    *listing = fresh;
    return LS_OK;
fail:
    hub_listing_deinit(&fresh);
    return st;
}

void hub_listing_deinit(hub_listing *listing) {
    free(listing->file);
    json_doc_deinit(&listing->doc);
    *listing = (hub_listing){0};
}

hub_file *hub_listing_find(const hub_listing *listing, const char *name) {
    hub_file key = {.name = name};
    return listing->n == 0 ? NULL : bsearch(&key, listing->file, listing->n, sizeof key, compare_file);
}
