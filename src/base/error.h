/*
 * Errors: every fallible function takes `ls_error *err` as its last argument and returns ls_status.
 *
 * The text for people is written once, by error_set(), where the cause is known. TRY and TRY_GOTO pass a failure up and
 * note file:line on the way, into the error itself (there is no global log). Both expect a variable named `err` in
 * scope; TRY_GOTO also a variable `ls_status st`, which it sets.
 */
#ifndef LS_BASE_ERROR_H
#define LS_BASE_ERROR_H

#include "lockstep.h"

/* Writes status and text into *err (if not NULL) and returns status, so that callers can `return error_set(...)`.
 * Arguments are formatted before the old text is overwritten, so err->text may be one of them. */
ls_status error_set(ls_error *err, ls_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "<formatted>: " before the text that is there: context that the place of the cause could not know. */
ls_status error_prefix(ls_error *err, ls_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Appends file:line to err->trace while there is room. */
void error_trace(ls_error *err, const char *file, int line);

#define TRY(x)                                                                                                         \
    do {                                                                                                               \
        ls_status try_status_ = (x);                                                                                   \
        if (try_status_ < 0) {                                                                                         \
            error_trace(err, __FILE__, __LINE__);                                                                      \
            return try_status_;                                                                                        \
        }                                                                                                              \
    } while (0)

#define TRY_GOTO(x, label)                                                                                             \
    do {                                                                                                               \
        st = (x);                                                                                                      \
        if (st < 0) {                                                                                                  \
            error_trace(err, __FILE__, __LINE__);                                                                      \
            goto label;                                                                                                \
        }                                                                                                              \
    } while (0)

#endif
