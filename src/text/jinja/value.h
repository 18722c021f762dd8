/*
 * Values of the template language: Python's, as far as templates can tell.
 *
 * A jinja_value is two words and is copied freely; what it points to lives in the heap of the rendering (or, for
 * constants, of the template) and never changes, except namespaces, one-shot iterators and loops. Integers are 64 bits:
 * what would be larger is an error. Strings are valid UTF-8 and count their characters on demand.
 * Undefined values remember what was missing, for the message when they are used.
 *
 * A jinja_run is one rendering: its heap, its limits, and where it is in the template. All functions that can fail leave a
 * text "<template>:<line>: <cause>". `err` is never NULL in here (jinja_render sees to that).
 */
#ifndef LS_TEXT_JINJA_VALUE_H
#define LS_TEXT_JINJA_VALUE_H

#include <time.h>

#include "text/jinja/heap.h"

typedef enum jinja_kind {
    JINJA_MISSING = 0, /* no value at all: an argument not given, a name not set; templates never see it */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STR,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_RANGE,
    JINJA_VIEW,     /* dict.keys(), .values(), .items() */
    JINJA_ITERATOR, /* what map, select, items ... return: can be walked once, has no length */
    JINJA_LOOP,     /* the name `loop` */
    JINJA_MACRO,
    JINJA_METHOD,  /* a method bound to its value */
    JINJA_FUNCTION /* a global function */
} jinja_kind;

typedef struct jinja_str {
    const char *s; /* NUL-terminated; may hold NULs before */
    size_t n;
    size_t n_chars; /* SIZE_MAX until counted */
    bool markup;    /* Python's Markup: + escapes what is added */
} jinja_str;

typedef struct jinja_value {
    jinja_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        jinja_str *str;
        struct jinja_list *list; /* and tuples */
        struct jinja_dict *dict; /* and namespaces */
        struct jinja_range *range;
        struct jinja_view *view;
        struct jinja_iterator *iterator;
        struct jinja_loop *loop;
        struct jinja_macro *macro;
        struct jinja_method *method;
        const struct jinja_builtin *function;
        const struct jinja_undefined *undefined; /* NULL: nothing to tell */
    };
} jinja_value;

typedef struct jinja_list {
    jinja_value *item;
    size_t n, capacity;
} jinja_list;

typedef struct jinja_entry {
    jinja_value key, value;
    uint64_t hash;
} jinja_entry;

/* In the order of insertion; with an index of hashes once it is long. */
typedef struct jinja_dict {
    jinja_entry *entry;
    size_t n, capacity;
    uint32_t *slot; /* entry + 1, or 0; open addressing */
    size_t n_slots; /* a power of two, or 0 */
} jinja_dict;

typedef struct jinja_range {
    int64_t start, stop, step;
    size_t n;
} jinja_range;

typedef enum jinja_view_kind { JINJA_KEYS, JINJA_VALUES, JINJA_ITEMS } jinja_view_kind;

typedef struct jinja_view {
    const jinja_dict *dict;
    jinja_view_kind kind;
} jinja_view;

/* Worked out at once; a failure is kept until someone walks that far, as Python's generators do. */
typedef struct jinja_iterator {
    jinja_list items;
    size_t at;
    ls_status failed; /* LS_OK, or what follows the last item */
    const char *why;
} jinja_iterator;

typedef struct jinja_undefined {
    const char *hint;      /* whole message, or NULL */
    const jinja_str *name; /* what was looked up */
    const char *of;        /* type of the value it was looked up in; NULL: a variable */
} jinja_undefined;

typedef struct jinja_method {
    const struct jinja_builtin *builtin;
    jinja_value self;
} jinja_method;

typedef struct jinja_limits {
    size_t source_bytes; /* of a template */
    size_t output_bytes; /* of a rendering */
    size_t heap_bytes;   /* that a rendering's values may take */
    uint64_t steps;      /* about one per expression and 64 bytes of text */
    int depth;           /* of nested statements, expressions and macro calls */
} jinja_limits;

typedef struct jinja_run {
    jinja_heap heap;
    jinja_limits limits;
    uint64_t steps;
    int depth;
    int line;         /* of the template: where errors are said to be */
    const char *name; /* of the template */
    const struct tm *now;
    const jinja_dict *variables;
    struct jinja_text *out; /* where output goes: the page, a set block, a macro ... */
    const struct jinja_text *page;
    struct jinja_spans *spans; /* generation blocks; NULL: not asked for */
} jinja_run;

/* ---- failing and counting ---- */

/* "<template>:<line>: ..." with LS_EFORMAT, which stands for all errors that Python would raise. */
ls_status jinja_fail(const jinja_run *run, ls_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
ls_status jinja_fail_as(const jinja_run *run, ls_status status, ls_error *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Raised by operations on an undefined value. */
ls_status jinja_fail_undefined(const jinja_run *run, const jinja_value *value, ls_error *err);
/* Counts n steps. */
ls_status jinja_step(jinja_run *run, size_t n, ls_error *err);
/* Brackets around recursion: jinja_enter counts a step as well. */
ls_status jinja_enter(jinja_run *run, ls_error *err);
static inline void jinja_leave(jinja_run *run) {
    run->depth--;
}
/* Memory for n items of `bytes` bytes from the run's heap; failures name template and line. */
ls_status jinja_take(jinja_run *run, size_t n, size_t bytes, void *out_pointer, ls_error *err);

/* ---- making ---- */

static inline jinja_value jinja_none(void) {
    return (jinja_value){.kind = JINJA_NONE};
}
static inline jinja_value jinja_bool(bool b) {
    return (jinja_value){.kind = JINJA_BOOL, .b = b};
}
static inline jinja_value jinja_int(int64_t i) {
    return (jinja_value){.kind = JINJA_INT, .i = i};
}
static inline jinja_value jinja_float(double f) {
    return (jinja_value){.kind = JINJA_FLOAT, .f = f};
}
static inline jinja_value jinja_undefined_value(const jinja_undefined *undefined) {
    return (jinja_value){.kind = JINJA_UNDEFINED, .undefined = undefined};
}
/* A copy of the bytes; jinja_str_borrow: of the pointer only (NUL-terminated, lives as long as the heap). */
ls_status jinja_str_copy(jinja_heap *heap, const char *s, size_t n, jinja_value *out, ls_error *err);
ls_status jinja_str_borrow(jinja_heap *heap, const char *s, size_t n, jinja_value *out, ls_error *err);
/* Piece of a string: bytes [from, to). */
ls_status jinja_str_piece(jinja_run *run, const jinja_str *str, size_t from, size_t to, jinja_value *out,
                          ls_error *err);
ls_status jinja_undefined_of(jinja_run *run, const jinja_value *of, const jinja_str *name, jinja_value *out,
                             ls_error *err);
/* Undefined with a text of its own, which must outlive the run. */
ls_status jinja_undefined_because(jinja_run *run, const char *hint, jinja_value *out, ls_error *err);
ls_status jinja_list_new(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *out, ls_error *err);
ls_status jinja_list_push(jinja_run *run, jinja_list *list, jinja_value value, ls_error *err);
ls_status jinja_pair(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out, ls_error *err); /* a tuple */
ls_status jinja_iterator_new(jinja_run *run, jinja_iterator **iterator, jinja_value *out, ls_error *err);
/* After `st` broke off the making of an iterator: keeps the failure in it, or passes on one that must not wait. */
ls_status jinja_iterator_defer(jinja_run *run, jinja_iterator *iterator, ls_status st, ls_error *err);

/* ---- dicts ---- */

ls_status jinja_dict_new(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *out, ls_error *err);
/* Adds or replaces. Unhashable keys are an error. */
ls_status jinja_dict_set(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value, ls_error *err);
/* *out is JINJA_MISSING if the key is not there. Unhashable keys are an error. */
ls_status jinja_dict_get(jinja_run *run, const jinja_dict *dict, const jinja_value *key, jinja_value *out,
                         ls_error *err);
/* Same for a string key: cannot fail; NULL if not there. */
const jinja_value *jinja_dict_find(const jinja_dict *dict, const char *name, size_t n);

/* ---- asking ---- */

const char *jinja_type_name(const jinja_value *value); /* as Python calls it */
bool jinja_truth(const jinja_value *value);
bool jinja_hashable(const jinja_value *value);
/* false if the value has no length. */
bool jinja_length(const jinja_value *value, size_t *n);
size_t jinja_str_chars(jinja_str *str);
/* Byte offset of a character; n if beyond the end. */
size_t jinja_str_offset(jinja_str *str, size_t char_index);
bool jinja_str_is(const jinja_str *str, const char *text);
static inline bool jinja_is_number(const jinja_value *value) {
    return value->kind == JINJA_BOOL || value->kind == JINJA_INT || value->kind == JINJA_FLOAT;
}
/* An int or a bool as an int; false for all else. */
bool jinja_as_int(const jinja_value *value, int64_t *out);
double jinja_as_float(const jinja_value *number);
bool jinja_same(const jinja_value *a, const jinja_value *b); /* Python's `is` */
ls_status jinja_equal(jinja_run *run, const jinja_value *a, const jinja_value *b, bool *out, ls_error *err);
/* < 0, 0, > 0; `op` is for the message when the types have no order. NaN: *unordered. */
ls_status jinja_order(jinja_run *run, const jinja_value *a, const jinja_value *b, const char *op, int *out,
                      bool *unordered, ls_error *err);
ls_status jinja_contains(jinja_run *run, const jinja_value *item, const jinja_value *in, bool *out, ls_error *err);

/* ---- walking ---- */

typedef struct jinja_cursor {
    jinja_value over;
    size_t at; /* items, or bytes of a string, gone by */
} jinja_cursor;

bool jinja_iterable(const jinja_value *value);
ls_status jinja_cursor_init(jinja_run *run, jinja_cursor *cursor, const jinja_value *over, ls_error *err);
/* *more is false at the end, *out then untouched. Counts a step. */
ls_status jinja_cursor_next(jinja_run *run, jinja_cursor *cursor, jinja_value *out, bool *more, ls_error *err);
/* Python's list(value), as a fresh list. */
ls_status jinja_collect(jinja_run *run, const jinja_value *value, jinja_list **out, ls_error *err);
int64_t jinja_range_at(const jinja_range *range, size_t i);

#endif
