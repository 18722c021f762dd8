/*
 * A checkpoint: named tensors in safetensors files. Borrowed views, nothing is copied.
 *
 * Format: https://github.com/huggingface/safetensors (8-byte little-endian header length, JSON header, data).
 * Two forms of a folder are read: model.safetensors alone, or model.safetensors.index.json ("weight_map": tensor ->
 * file) with its shards; the index wins when both are there. The index says which files to open and where each of its
 * tensors must be; what a shard holds beyond the index is part of the checkpoint all the same.
 *
 * Everything in the files is untrusted and checked when opened, before any tensor is used: header length against the
 * file, JSON shape, dtype names, shape products against overflow and against data_offsets, offsets inside the file,
 * no two tensors overlapping, no hole, no duplicate name (in one file or across shards), index entries that point
 * outside the folder, shards or tensors that the index names and the files lack. Errors name file and tensor.
 */
#ifndef LS_FILE_SAFETENSORS_H
#define LS_FILE_SAFETENSORS_H

#include "base/error.h"

#define TENSOR_MAX_DIMS 8

/* Every dtype of the format (safetensors 0.8) and its bits, so that sizes can be checked; weights may only be the first
 * three. */
#define TENSOR_DTYPE_MAP(X)                                                                                            \
    X(F32, 32)                                                                                                         \
    X(BF16, 16)                                                                                                        \
    X(F16, 16)                                                                                                         \
    X(F64, 64)                                                                                                         \
    X(I64, 64)                                                                                                         \
    X(I32, 32)                                                                                                         \
    X(I16, 16)                                                                                                         \
    X(I8, 8)                                                                                                           \
    X(U64, 64)                                                                                                         \
    X(U32, 32)                                                                                                         \
    X(U16, 16)                                                                                                         \
    X(U8, 8)                                                                                                           \
    X(BOOL, 8)                                                                                                         \
    X(F8_E4M3, 8)                                                                                                      \
    X(F8_E5M2, 8)                                                                                                      \
    X(F8_E8M0, 8)                                                                                                      \
    X(F8_E4M3FNUZ, 8)                                                                                                  \
    X(F8_E5M2FNUZ, 8)                                                                                                  \
    X(F6_E2M3, 6)                                                                                                      \
    X(F6_E3M2, 6)                                                                                                      \
    X(F4, 4)                                                                                                           \
    X(C64, 64)

typedef enum tensor_dtype {
#define X(name, bits) TENSOR_##name,
    TENSOR_DTYPE_MAP(X)
#undef X
} tensor_dtype;

typedef struct ls_tensor {
    const char *name; /* borrowed from the checkpoint */
    const char *file; /* "folder/file" for messages; borrowed from the checkpoint */
    tensor_dtype dtype;
    int n_dims;
    int64_t shape[TENSOR_MAX_DIMS];
    const uint8_t *data; /* little-endian, row-major; not aligned to anything; valid until checkpoint_close */
    size_t bytes;
} ls_tensor;

typedef struct ls_checkpoint ls_checkpoint; /* immutable once open; any thread may read it */

/* No folder, no checkpoint in it, or a shard missing: LS_ENOTFOUND. Anything wrong inside a file: LS_EFORMAT; a dtype
 * that the format does not know: LS_EUNSUPPORTED. */
ls_status checkpoint_open(ls_checkpoint **out, const char *folder, ls_error *err);
/* One file, whatever its name. */
ls_status checkpoint_open_file(ls_checkpoint **out, const char *path, ls_error *err);
void checkpoint_close(ls_checkpoint **checkpoint); /* accepts NULL inside; sets it to NULL */

/* NULL if there is none. O(log n). */
const ls_tensor *checkpoint_find(const ls_checkpoint *checkpoint, const char *name);
/* The tensor, which must be there (LS_ENOTFOUND) and have exactly this shape (LS_EFORMAT: "expected [a, b], found
 * [c, d]"). Its dtype is the caller's to check. */
ls_status checkpoint_get(const ls_checkpoint *checkpoint, const char *name, int n_dims, const int64_t *shape,
                         const ls_tensor **out, ls_error *err);

/* All tensors in name order. */
size_t checkpoint_count(const ls_checkpoint *checkpoint);
const ls_tensor *checkpoint_at(const ls_checkpoint *checkpoint, size_t index);
/* Has the system read the files into its page cache, as far as it likes to. Takes as long as queueing the reads. */
void checkpoint_read_ahead(const ls_checkpoint *checkpoint);
size_t checkpoint_file_bytes(const ls_checkpoint *checkpoint); /* sum of its files */

const char *tensor_dtype_name(tensor_dtype dtype); /* as in the format: "F32", "BF16", ... */

#endif
