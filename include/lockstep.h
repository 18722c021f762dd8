/*
 * lockstep: tensor-parallel inference for open-weight language models. The only public header.
 *
 * Three opaque nouns:
 *   ls_model    what a checkpoint says: sizes, tokenizer, tensors on disk. Immutable once open; any thread may use it.
 *   ls_engine   a model made ready on R ranks: weights, KV pages, scheduler. One thread at a time drives it.
 *   ls_request  one prompt and the tokens that follow it. Belongs to its engine, and to the thread that drives it.
 *
 * Rules for every function here:
 *   - ls_status is returned: 0 good, positive a named outcome that is no error, negative an error.
 *   - Outputs go through pointers and are left untouched on failure.
 *   - `err` may be NULL. Otherwise, on failure it holds a sentence that names the file, field or flag and what to do.
 *   - Strings are UTF-8. Sizes end in their unit: _bytes, _tokens, _pages, _us.
 *   - The library never exits, aborts or prints. It logs through the callback it was given, or not at all.
 *   - Structs that callers fill start with struct_size; initialise them with their ls_*_defaults function, so that a
 *     program built against an older header keeps its meaning.
 */
#ifndef LOCKSTEP_H
#define LOCKSTEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LS_ABI_VERSION 1
#define LS_VERSION "0.1.0"

#define LS_API __attribute__((visibility("default")))

/* Code, value and text of every status: the one list of them. */
#define LS_STATUS_MAP(X)                                                                                               \
    X(LS_OK, 0, "ok")                                                                                                  \
    X(LS_IDLE, 1, "nothing to do")                                                                                     \
    X(LS_EINVAL, -1, "invalid argument or option")                                                                     \
    X(LS_EIO, -2, "a file could not be read")                                                                          \
    X(LS_ENOTFOUND, -3, "not found")                                                                                   \
    X(LS_EFORMAT, -4, "malformed file")                                                                                \
    X(LS_EUNSUPPORTED, -5, "unsupported model, value or feature")                                                      \
    X(LS_ENOMEM, -6, "out of memory")                                                                                  \
    X(LS_ETOOLONG, -7, "longer than the context or the KV cache")                                                      \
    X(LS_ENUMERIC, -8, "infinity or NaN")                                                                              \
    X(LS_EABORTED, -9, "aborted because another rank failed")                                                          \
    X(LS_EINTERNAL, -10, "internal error")

typedef enum ls_status {
#define X(name, value, text) name = value,
    LS_STATUS_MAP(X)
#undef X
} ls_status;

/* Constant strings; never NULL, also for values not in the list. */
LS_API const char *ls_status_name(ls_status status);
LS_API const char *ls_status_text(ls_status status);

/* What went wrong, for people. Plain data on the caller's storage; nothing to free. */
typedef struct ls_error {
    ls_status status;
    char text[512];  /* the cause, written where it was known */
    char trace[256]; /* "file:line < file:line ...": the way the error took, for bug reports */
} ls_error;

/* Element types. LS_AUTO means the checkpoint's own where a setting allows it. */
typedef enum ls_dtype { LS_AUTO = 0, LS_F32 = 1, LS_BF16 = 2, LS_F16 = 3 } ls_dtype;

LS_API const char *ls_dtype_name(ls_dtype dtype);   /* "auto", "f32", "bf16", "f16" */
LS_API size_t ls_dtype_bytes(ls_dtype dtype);       /* 4, 2, 2; 0 for LS_AUTO */

/* Log callback. `text` is one line without a newline, borrowed for the call. Called from any thread of the library,
 * one call at a time for each engine or model. */
typedef enum ls_log_level { LS_LOG_ERROR = 0, LS_LOG_WARN, LS_LOG_INFO, LS_LOG_DEBUG, LS_LOG_TRACE } ls_log_level;
typedef void (*ls_log_fn)(void *user, ls_log_level level, const char *text);

LS_API uint32_t ls_abi_version(void); /* LS_ABI_VERSION of the library that runs */
LS_API const char *ls_version(void);  /* LS_VERSION of the library that runs */

#ifdef __cplusplus
}
#endif
#endif /* LOCKSTEP_H */
