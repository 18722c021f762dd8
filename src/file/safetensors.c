/*
 * Reading safetensors files. See safetensors.h for the format and the promise.
 *
 * A shard is one mapped file and its parsed header; a checkpoint is one or more shards and one array of all their
 * tensors. Opening runs in steps, each of which relies only on what the steps before it have proved:
 *   1. shard_open: the file is mapped; the header length lies inside the file; the header is a JSON object.
 *   2. read_entry, for each tensor: known dtype, sane shape, offsets inside the data that span what these two need.
 *   3. check_layout, for each shard in data order: the tensors tile its data, without overlap or hole.
 *   4. sort_by_name: no name occurs in two shards (twice in one is a JSON error already).
 *   5. check_index: every tensor is in the shard where the index places it.
 * Nothing is copied: names are keys of the header documents and data points into the maps, so both live as long as the
 * checkpoint. A half-opened checkpoint is a valid one to close, so every failure goes through checkpoint_close.
 *
 * Names come from strangers: messages print at most NAME_CHARS bytes of one, so that the cause still fits behind it.
 */
#include "file/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/file.h"
#include "base/json.h"

#define PREFIX_BYTES 8              /* the header length in front of the header */
#define HEADER_MAX_BYTES 100000000u /* as upstream */
#define INDEX_MAX_BYTES 100000000u
#define PATH_BYTES 4096
#define SHAPE_TEXT_BYTES 192 /* 8 dimensions of up to 20 digits */
#define NAME_CHARS "%.120s"

/* The one form of a message about a tensor: file, tensor, field, what is wrong. */
#define BAD_TENSOR(shard, tensor_name, format, ...)                                                                    \
    error_set(err, LS_EFORMAT, "%s: tensor '" NAME_CHARS "': " format, (shard)->header.name, tensor_name, __VA_ARGS__)

typedef struct shard_file {
    const char *file_name; /* as in weight_map, borrowed from the index; NULL without an index */
    ls_file file;
    json_doc header; /* header.name is what messages call the file */
    const uint8_t *data;
    size_t data_bytes;
} shard_file;

struct ls_checkpoint {
    json_doc index;     /* root is NULL without an index */
    shard_file *shards; /* in order of file_name */
    size_t n_shards;
    ls_tensor *tensors; /* in order of name */
    size_t n_tensors;
};

static const struct dtype_info {
    const char *name;
    unsigned bits;
} DTYPES[] = {
#define X(name, bits) {#name, bits},
    TENSOR_DTYPE_MAP(X)
#undef X
};

#define N_DTYPES (sizeof DTYPES / sizeof DTYPES[0])

const char *tensor_dtype_name(tensor_dtype dtype) {
    return (size_t)dtype < N_DTYPES ? DTYPES[dtype].name : "unknown";
}

static void format_shape(char text[SHAPE_TEXT_BYTES], int n_dims, const int64_t *shape) {
    size_t used = (size_t)snprintf(text, SHAPE_TEXT_BYTES, "[");
    for (int i = 0; i < n_dims && used < SHAPE_TEXT_BYTES; i++) {
        used += (size_t)snprintf(text + used, SHAPE_TEXT_BYTES - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    }
    if (used < SHAPE_TEXT_BYTES) {
        snprintf(text + used, SHAPE_TEXT_BYTES - used, "]");
    }
}

/* Step 1. What it opened before a failure stays in *shard, for checkpoint_close. */
static ls_status shard_open(shard_file *shard, const char *path, ls_error *err) {
    TRY(file_map(&shard->file, path, err));
    const ls_file *file = &shard->file;
    if (file->bytes < PREFIX_BYTES) {
        return error_set(err, LS_EFORMAT, "%s: %zu bytes; a safetensors file starts with an 8-byte header length", path,
                         file->bytes);
    }
    uint64_t header_bytes = 0;
    for (int i = PREFIX_BYTES - 1; i >= 0; i--) {
        header_bytes = header_bytes << 8 | file->data[i];
    }
    if (header_bytes > HEADER_MAX_BYTES) {
        return error_set(err, LS_EFORMAT, "%s: header length %llu is more than the %u bytes a header may have", path,
                         (unsigned long long)header_bytes, HEADER_MAX_BYTES);
    }
    if (header_bytes > file->bytes - PREFIX_BYTES) {
        return error_set(err, LS_EFORMAT, "%s: header length %llu runs past the end of the file, which has %zu bytes",
                         path, (unsigned long long)header_bytes, file->bytes);
    }
    const char *text = (const char *)file->data + PREFIX_BYTES;
    TRY(json_doc_parse(&shard->header, path, text, (size_t)header_bytes, err));
    if (!json_is_object(shard->header.root)) {
        return error_set(err, LS_EFORMAT, "%s: header: expected a JSON object", shard->header.name);
    }
    shard->data = file->data + PREFIX_BYTES + header_bytes;
    shard->data_bytes = file->bytes - PREFIX_BYTES - (size_t)header_bytes;
    return LS_OK;
}

static ls_status read_dtype(ls_tensor *tensor, const shard_file *shard, const char *name, const json_t *entry,
                            ls_error *err) {
    const char *text = json_string_value(json_object_get(entry, "dtype"));
    if (text == NULL) {
        return BAD_TENSOR(shard, name, "%s", "dtype: expected a string");
    }
    for (size_t i = 0; i < N_DTYPES; i++) {
        if (strcmp(text, DTYPES[i].name) == 0) {
            tensor->dtype = (tensor_dtype)i;
            return LS_OK;
        }
    }
    return error_set(err, LS_EUNSUPPORTED, "%s: tensor '" NAME_CHARS "': dtype: unknown dtype '%.32s'",
                     shard->header.name, name, text);
}

static ls_status read_shape(ls_tensor *tensor, const shard_file *shard, const char *name, const json_t *entry,
                            ls_error *err) {
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) {
        return BAD_TENSOR(shard, name, "%s", "shape: expected an array");
    }
    size_t n_dims = json_array_size(shape);
    if (n_dims > TENSOR_MAX_DIMS) {
        return BAD_TENSOR(shard, name, "shape: %zu dimensions, more than %d", n_dims, TENSOR_MAX_DIMS);
    }
    for (size_t i = 0; i < n_dims; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            return BAD_TENSOR(shard, name, "shape: dimension %zu: expected an integer that is not negative", i);
        }
        tensor->shape[i] = json_integer_value(dim);
    }
    tensor->n_dims = (int)n_dims;
    return LS_OK;
}

/* Bytes that dtype and shape need. Types of less than a byte are packed and must fill whole bytes. */
static ls_status needed_bytes(uint64_t *out, const ls_tensor *tensor, const shard_file *shard, const char *name,
                              ls_error *err) {
    char text[SHAPE_TEXT_BYTES];
    uint64_t bits = DTYPES[tensor->dtype].bits;
    for (int i = 0; i < tensor->n_dims; i++) {
        if (__builtin_mul_overflow(bits, (uint64_t)tensor->shape[i], &bits)) {
            format_shape(text, tensor->n_dims, tensor->shape);
            return BAD_TENSOR(shard, name, "shape: %s is too large to count", text);
        }
    }
    if (bits % 8 != 0) {
        format_shape(text, tensor->n_dims, tensor->shape);
        return BAD_TENSOR(shard, name, "shape: %s of %s does not fill whole bytes", text, DTYPES[tensor->dtype].name);
    }
    *out = bits / 8;
    return LS_OK;
}

static ls_status read_offsets(ls_tensor *tensor, const shard_file *shard, const char *name, const json_t *entry,
                              ls_error *err) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0); /* NULL also for what is no array */
    const json_t *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last)) {
        return BAD_TENSOR(shard, name, "%s", "data_offsets: expected an array of two integers");
    }
    long long begin = json_integer_value(first);
    long long end = json_integer_value(last);
    if (begin < 0 || begin > end) {
        return BAD_TENSOR(shard, name, "data_offsets: [%lld, %lld] is no range", begin, end);
    }
    if ((unsigned long long)end > shard->data_bytes) {
        return BAD_TENSOR(shard, name, "data_offsets: [%lld, %lld] runs past the %zu bytes of data: truncated file?",
                          begin, end, shard->data_bytes);
    }
    uint64_t needed = 0;
    TRY(needed_bytes(&needed, tensor, shard, name, err));
    if (needed != (uint64_t)(end - begin)) {
        char text[SHAPE_TEXT_BYTES];
        format_shape(text, tensor->n_dims, tensor->shape);
        return BAD_TENSOR(shard, name, "data_offsets: [%lld, %lld] spans %lld bytes, expected %llu for %s %s", begin,
                          end, end - begin, (unsigned long long)needed, DTYPES[tensor->dtype].name, text);
    }
    tensor->data = shard->data + begin;
    tensor->bytes = (size_t)needed;
    return LS_OK;
}

/* Step 2 for one tensor. Other keys than these three are ignored, as upstream does. */
static ls_status read_entry(ls_tensor *tensor, const shard_file *shard, const char *name, const json_t *entry,
                            ls_error *err) {
    if (!json_is_object(entry)) {
        return BAD_TENSOR(shard, name, "%s", "expected an object");
    }
    ls_tensor fresh = {.name = name, .file = shard->header.name};
    TRY(read_dtype(&fresh, shard, name, entry, err));
    TRY(read_shape(&fresh, shard, name, entry, err));
    TRY(read_offsets(&fresh, shard, name, entry, err));
    *tensor = fresh;
    return LS_OK;
}

/* An empty tensor sorts before the one that starts at the same place, so that tiling order is well defined. */
static int compare_data(const void *left, const void *right) {
    const ls_tensor *a = left;
    const ls_tensor *b = right;
    if (a->data != b->data) {
        return a->data < b->data ? -1 : 1;
    }
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

/* Step 3: reorders the shard's tensors. Bytes that no tensor owns could smuggle anything, so they are an error. */
static ls_status check_layout(ls_tensor *tensors, size_t n_tensors, const shard_file *shard, ls_error *err) {
    if (n_tensors > 0) {
        qsort(tensors, n_tensors, sizeof *tensors, compare_data);
    }
    size_t used = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        size_t begin = (size_t)(tensors[i].data - shard->data);
        if (begin < used) {
            return BAD_TENSOR(shard, tensors[i].name, "data_offsets: overlaps tensor '" NAME_CHARS "'",
                              tensors[i - 1].name);
        }
        if (begin > used) {
            return BAD_TENSOR(shard, tensors[i].name, "data_offsets: a hole of %zu bytes before byte %zu", begin - used,
                              begin);
        }
        used += tensors[i].bytes;
    }
    if (used != shard->data_bytes) {
        return error_set(err, LS_EFORMAT, "%s: a hole of %zu bytes at the end: the tensors fill %zu of %zu bytes",
                         shard->header.name, shard->data_bytes - used, used, shard->data_bytes);
    }
    return LS_OK;
}

/* "__metadata__" is the one key of a header that is no tensor: an object of strings, which nobody here needs. */
static ls_status check_metadata(const shard_file *shard, ls_error *err) {
    json_t *metadata = json_object_get(shard->header.root, "__metadata__");
    bool good = metadata == NULL || json_is_object(metadata);
    for (void *at = json_object_iter(metadata); good && at != NULL; at = json_object_iter_next(metadata, at)) {
        good = json_is_string(json_object_iter_value(at));
    }
    return good ? LS_OK
                : error_set(err, LS_EFORMAT, "%s: __metadata__: expected an object of strings", shard->header.name);
}

/* Steps 2 and 3 for one shard; appends to checkpoint->tensors, which has room. */
static ls_status read_shard(ls_checkpoint *checkpoint, const shard_file *shard, ls_error *err) {
    TRY(check_metadata(shard, err));
    ls_tensor *tensors = checkpoint->tensors + checkpoint->n_tensors;
    size_t n_tensors = 0;
    json_t *header = shard->header.root;
    for (void *at = json_object_iter(header); at != NULL; at = json_object_iter_next(header, at)) {
        const char *name = json_object_iter_key(at);
        if (strcmp(name, "__metadata__") == 0) {
            continue;
        }
        TRY(read_entry(&tensors[n_tensors], shard, name, json_object_iter_value(at), err));
        n_tensors++;
    }
    TRY(check_layout(tensors, n_tensors, shard, err));
    checkpoint->n_tensors += n_tensors;
    return LS_OK;
}

static int compare_names(const void *left, const void *right) {
    return strcmp(((const ls_tensor *)left)->name, ((const ls_tensor *)right)->name);
}

/* Step 4. */
static ls_status sort_by_name(ls_checkpoint *checkpoint, ls_error *err) {
    ls_tensor *tensors = checkpoint->tensors;
    if (checkpoint->n_tensors > 0) {
        qsort(tensors, checkpoint->n_tensors, sizeof *tensors, compare_names);
    }
    for (size_t i = 1; i < checkpoint->n_tensors; i++) {
        if (strcmp(tensors[i - 1].name, tensors[i].name) == 0) {
            return error_set(err, LS_EFORMAT, "%s: tensor '" NAME_CHARS "': also in %s", tensors[i].file,
                             tensors[i].name, tensors[i - 1].file);
        }
    }
    return LS_OK;
}

/* Steps 2 to 4, after all shards are open. */
static ls_status read_tensors(ls_checkpoint *checkpoint, ls_error *err) {
    size_t room = 1; /* never 0: calloc may answer NULL to that */
    for (size_t i = 0; i < checkpoint->n_shards; i++) {
        room += json_object_size(checkpoint->shards[i].header.root);
    }
    checkpoint->tensors = calloc(room, sizeof *checkpoint->tensors);
    if (checkpoint->tensors == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory for the names of %zu tensors", room);
    }
    for (size_t i = 0; i < checkpoint->n_shards; i++) {
        TRY(read_shard(checkpoint, &checkpoint->shards[i], err));
    }
    return sort_by_name(checkpoint, err);
}

static int compare_strings(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The name may become a path, so it must not leave the folder: a plain file name, not hidden, no NUL inside. */
static bool is_plain_file_name(const json_t *value) {
    const char *name = json_string_value(value);
    return name != NULL && name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL &&
           strlen(name) == json_string_length(value);
}

/* The distinct file names of weight_map in order, borrowed from it. *names has room for every entry. */
static ls_status collect_shard_names(const json_doc *index, json_t *map, const char **names, size_t *n_names,
                                     ls_error *err) {
    size_t n = 0;
    for (void *at = json_object_iter(map); at != NULL; at = json_object_iter_next(map, at)) {
        const json_t *value = json_object_iter_value(at);
        if (!is_plain_file_name(value)) {
            return error_set(err, LS_EFORMAT,
                             "%s: weight_map: tensor '" NAME_CHARS "': expected a plain file name, found '" NAME_CHARS
                             "'",
                             index->name, json_object_iter_key(at),
                             json_is_string(value) ? json_string_value(value) : "(no string)");
        }
        names[n++] = json_string_value(value);
    }
    qsort(names, n, sizeof *names, compare_strings);
    size_t n_distinct = 0;
    for (size_t i = 0; i < n; i++) {
        if (n_distinct == 0 || strcmp(names[n_distinct - 1], names[i]) != 0) {
            names[n_distinct++] = names[i];
        }
    }
    *n_names = n_distinct;
    return LS_OK;
}

static ls_status alloc_shards(ls_checkpoint *checkpoint, size_t n_shards, ls_error *err) {
    checkpoint->shards = calloc(n_shards, sizeof *checkpoint->shards);
    if (checkpoint->shards == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory for %zu shards", n_shards);
    }
    checkpoint->n_shards = n_shards;
    return LS_OK;
}

/* Step 1 for every file that the index names. */
static ls_status open_shards(ls_checkpoint *checkpoint, const char *folder, json_t *map, ls_error *err) {
    const json_doc *index = &checkpoint->index;
    ls_status st;
    size_t n_names = 0;
    const char **names = calloc(json_object_size(map), sizeof *names);
    if (names == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory for weight_map", index->name);
    }
    TRY_GOTO(collect_shard_names(index, map, names, &n_names, err), done);
    TRY_GOTO(alloc_shards(checkpoint, n_names, err), done);
    for (size_t i = 0; i < n_names; i++) {
        char path[PATH_BYTES];
        TRY_GOTO(path_join(path, sizeof path, folder, names[i], err), done);
        checkpoint->shards[i].file_name = names[i];
        st = shard_open(&checkpoint->shards[i], path, err);
        if (st == LS_ENOTFOUND) {
            st = error_prefix(err, st, "%s: weight_map: missing shard", index->name);
        }
        TRY_GOTO(st, done);
    }
done:
    free(names);
    return st;
}

static int compare_file_name(const void *name, const void *element) {
    return strcmp(name, ((const shard_file *)element)->file_name);
}

/* Step 5. */
static ls_status check_index(const ls_checkpoint *checkpoint, json_t *map, ls_error *err) {
    for (void *at = json_object_iter(map); at != NULL; at = json_object_iter_next(map, at)) {
        const char *name = json_object_iter_key(at);
        const char *file_name = json_string_value(json_object_iter_value(at));
        const shard_file *expected = bsearch(file_name, checkpoint->shards, checkpoint->n_shards, sizeof *expected,
                                             compare_file_name); /* never NULL: the shards come from this map */
        const ls_tensor *tensor = checkpoint_find(checkpoint, name);
        if (tensor == NULL) {
            return error_set(err, LS_EFORMAT, "%s: weight_map: tensor '" NAME_CHARS "': %s lacks it",
                             checkpoint->index.name, name, expected->header.name);
        }
        if (tensor->file != expected->header.name) {
            return error_set(err, LS_EFORMAT, "%s: weight_map: tensor '" NAME_CHARS "': expected in %s, found in %s",
                             checkpoint->index.name, name, expected->header.name, tensor->file);
        }
    }
    return LS_OK;
}

static ls_status open_index(ls_checkpoint *checkpoint, const char *folder, const char *index_path, ls_error *err) {
    TRY(json_doc_read(&checkpoint->index, index_path, INDEX_MAX_BYTES, err));
    const json_doc *index = &checkpoint->index;
    if (!json_is_object(index->root)) {
        return error_set(err, LS_EFORMAT, "%s: expected a JSON object", index->name);
    }
    json_t *map = NULL;
    TRY(json_find_object(index, index->root, "weight_map", &map, err));
    if (json_object_size(map) == 0) {
        return error_set(err, LS_EFORMAT, "%s: weight_map: missing or empty", index->name);
    }
    TRY(open_shards(checkpoint, folder, map, err));
    TRY(read_tensors(checkpoint, err));
    return check_index(checkpoint, map, err);
}

static ls_status open_single(ls_checkpoint *checkpoint, const char *path, ls_error *err) {
    TRY(alloc_shards(checkpoint, 1, err));
    TRY(shard_open(&checkpoint->shards[0], path, err));
    return read_tensors(checkpoint, err);
}

static ls_status checkpoint_alloc(ls_checkpoint **out, ls_error *err) {
    *out = calloc(1, sizeof **out);
    return *out ? LS_OK : error_set(err, LS_ENOMEM, "out of memory for a checkpoint");
}

ls_status checkpoint_open_file(ls_checkpoint **out, const char *path, ls_error *err) {
    ls_status st;
    ls_checkpoint *fresh = NULL;
    TRY_GOTO(checkpoint_alloc(&fresh, err), fail);
    TRY_GOTO(open_single(fresh, path, err), fail);
    *out = fresh;
    return LS_OK;
fail:
    checkpoint_close(&fresh);
    return st;
}

ls_status checkpoint_open(ls_checkpoint **out, const char *folder, ls_error *err) {
    char index_path[PATH_BYTES];
    char path[PATH_BYTES];
    TRY(path_join(index_path, sizeof index_path, folder, "model.safetensors.index.json", err));
    TRY(path_join(path, sizeof path, folder, "model.safetensors", err));
    if (!folder_exists(folder)) {
        return error_set(err, LS_ENOTFOUND, "%s: no such folder", folder);
    }
    if (!file_exists(index_path)) {
        if (!file_exists(path)) {
            return error_set(err, LS_ENOTFOUND,
                             "%s: no checkpoint: neither model.safetensors nor model.safetensors.index.json is there",
                             folder);
        }
        return checkpoint_open_file(out, path, err);
    }
    ls_status st;
    ls_checkpoint *fresh = NULL;
    TRY_GOTO(checkpoint_alloc(&fresh, err), fail);
    TRY_GOTO(open_index(fresh, folder, index_path, err), fail);
    *out = fresh;
    return LS_OK;
fail:
    checkpoint_close(&fresh);
    return st;
}

void checkpoint_close(ls_checkpoint **checkpoint) {
    ls_checkpoint *old = *checkpoint;
    if (old == NULL) {
        return;
    }
    free(old->tensors);
    for (size_t i = 0; i < old->n_shards; i++) {
        json_doc_deinit(&old->shards[i].header);
        file_unmap(&old->shards[i].file);
    }
    free(old->shards);
    json_doc_deinit(&old->index);
    free(old);
    *checkpoint = NULL;
}

static int compare_name(const void *name, const void *element) {
    return strcmp(name, ((const ls_tensor *)element)->name);
}

const ls_tensor *checkpoint_find(const ls_checkpoint *checkpoint, const char *name) {
    return bsearch(name, checkpoint->tensors, checkpoint->n_tensors, sizeof *checkpoint->tensors, compare_name);
}

ls_status checkpoint_get(const ls_checkpoint *checkpoint, const char *name, int n_dims, const int64_t *shape,
                         const ls_tensor **out, ls_error *err) {
    const ls_tensor *tensor = checkpoint_find(checkpoint, name);
    if (tensor == NULL) {
        const json_doc *doc = checkpoint->index.root ? &checkpoint->index : &checkpoint->shards[0].header;
        return error_set(err, LS_ENOTFOUND, "%s: tensor '" NAME_CHARS "': missing", doc->name, name);
    }
    bool same = tensor->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) {
        same = tensor->shape[i] == shape[i];
    }
    if (!same) {
        char expected[SHAPE_TEXT_BYTES];
        char found[SHAPE_TEXT_BYTES];
        format_shape(expected, n_dims, shape);
        format_shape(found, tensor->n_dims, tensor->shape);
        return error_set(err, LS_EFORMAT, "%s: tensor '" NAME_CHARS "': shape: expected %s, found %s", tensor->file,
                         name, expected, found);
    }
    *out = tensor;
    return LS_OK;
}

size_t checkpoint_count(const ls_checkpoint *checkpoint) {
    return checkpoint->n_tensors;
}

const ls_tensor *checkpoint_at(const ls_checkpoint *checkpoint, size_t index) {
    return index < checkpoint->n_tensors ? &checkpoint->tensors[index] : NULL;
}

void checkpoint_read_ahead(const ls_checkpoint *checkpoint) {
    for (size_t i = 0; i < checkpoint->n_shards; i++) {
        const ls_file *file = &checkpoint->shards[i].file;
        if (file->bytes > 0) {
            madvise((void *)file->data, file->bytes, MADV_WILLNEED);
        }
    }
}

size_t checkpoint_file_bytes(const ls_checkpoint *checkpoint) {
    size_t bytes = 0;
    for (size_t i = 0; i < checkpoint->n_shards; i++) {
        bytes += checkpoint->shards[i].file.bytes;
    }
    return bytes;
}
