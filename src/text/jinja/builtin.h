/*
 * Filters, tests, methods and global functions: tables of names, parameters and C functions.
 *
 * A spec lists the parameters: "sep? maxsplit?" may be given by position or by name and be left out; a leading "/" means by
 * position only. The function finds them in arg[], JINJA_MISSING where not given. Where spec is NULL the function reads
 * the call itself. `self` is the value filtered, tested or asked; for global functions NULL.
 */
#ifndef LS_TEXT_JINJA_BUILTIN_H
#define LS_TEXT_JINJA_BUILTIN_H

#include "text/jinja/value.h"

enum { JINJA_MAX_PARAMETERS = 6 };

typedef struct jinja_call {
    jinja_value *arg;
    size_t n;
    jinja_str **name; /* of keyword[i] */
    jinja_value *keyword;
    size_t n_keywords;
} jinja_call;

typedef ls_status (*jinja_builtin_fn)(jinja_run *run, const jinja_value *self, const jinja_call *call,
                                      const jinja_value *arg, jinja_value *out, ls_error *err);

typedef struct jinja_builtin {
    const char *name, *spec;
    jinja_builtin_fn fn;
} jinja_builtin;

/* NULL: no such name. */
const jinja_builtin *jinja_find_filter(const jinja_str *name);
const jinja_builtin *jinja_find_test(const jinja_str *name);
const jinja_builtin *jinja_find_function(const jinja_str *name);
const jinja_builtin *jinja_find_method(const jinja_value *self, const jinja_str *name);
/* The tables that the above look into, by file. */
const jinja_builtin *jinja_find_list_filter(const jinja_str *name);
const jinja_builtin *jinja_find_str_method(const jinja_str *name);
const jinja_builtin *jinja_find_in(const jinja_builtin *table, size_t n, const jinja_str *name);

ls_status jinja_invoke(jinja_run *run, const jinja_builtin *builtin, const jinja_value *self, const jinja_call *call,
                       jinja_value *out, ls_error *err);

/* ---- for the functions themselves ---- */

/* An argument as a type; `fallback` where it was not given (or is none, for jinja_arg_int_or). */
ls_status jinja_arg_int(jinja_run *run, const jinja_value *arg, int64_t fallback, int64_t *out, ls_error *err);
ls_status jinja_arg_str(jinja_run *run, const jinja_value *arg, const char *what, jinja_str **out, ls_error *err);
/* str(value), for filters that take anything. */
ls_status jinja_arg_soft_str(jinja_run *run, const jinja_value *value, jinja_str **out, ls_error *err);
static inline bool jinja_given(const jinja_value *arg) {
    return arg->kind != JINJA_MISSING;
}
static inline bool jinja_arg_truth(const jinja_value *arg, bool fallback) {
    return jinja_given(arg) ? jinja_truth(arg) : fallback;
}

/* Of strings, for filters and methods alike; the result keeps self's markup. */
ls_status jinja_str_strip(jinja_run *run, const jinja_str *str, const jinja_str *chars, bool left, bool right,
                          jinja_value *out, ls_error *err);
typedef enum jinja_casing {
    JINJA_TO_UPPER,
    JINJA_TO_LOWER,
    JINJA_TO_CAPITAL,
    JINJA_TO_TITLE,
    JINJA_TO_WORDS,
    JINJA_TO_SWAPPED,
    JINJA_TO_FOLDED
} jinja_casing;
ls_status jinja_str_cased(jinja_run *run, const jinja_str *str, jinja_casing to, jinja_value *out, ls_error *err);
ls_status jinja_str_replace(jinja_run *run, const jinja_str *str, const jinja_str *old, const jinja_str *fresh,
                            int64_t count, jinja_value *out, ls_error *err);
ls_status jinja_str_center(jinja_run *run, jinja_str *str, int64_t width, const jinja_str *fill, jinja_value *out,
                           ls_error *err);
ls_status jinja_str_splitlines(jinja_run *run, const jinja_str *str, bool keep_ends, jinja_value *out, ls_error *err);
bool jinja_str_all(const jinja_str *str, bool (*is)(int32_t c)); /* and not empty */
bool jinja_str_is_cased(const jinja_str *str, bool upper);       /* isupper(), islower() */

#endif
