/* See value.h: making, dicts, and what can be asked of one value. Comparing and walking are in compare.c. */
#include "text/jinja/value.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "text/utf8.h"

/* ---- failing and counting ---- */

static ls_status fail_with(const jinja_run *run, ls_status status, ls_error *err, const char *format, va_list args) {
    char text[sizeof err->text];
    vsnprintf(text, sizeof text, format, args);
    /* vsnprintf may have cut a character in two. */
    text[utf8_valid_bytes(text, strlen(text))] = '\0';
    return error_set(err, status, "%s:%d: %s", run->name, run->line, text);
}

ls_status jinja_fail(const jinja_run *run, ls_error *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    ls_status st = fail_with(run, LS_EFORMAT, err, format, args);
    va_end(args);
    return st;
}

ls_status jinja_fail_as(const jinja_run *run, ls_status status, ls_error *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    ls_status st = fail_with(run, status, err, format, args);
    va_end(args);
    return st;
}

ls_status jinja_fail_undefined(const jinja_run *run, const jinja_value *value, ls_error *err) {
    const jinja_undefined *undefined = value->undefined;
    if (undefined == NULL) {
        return jinja_fail(run, err, "undefined value");
    }
    if (undefined->hint != NULL) {
        return jinja_fail(run, err, "%s", undefined->hint);
    }
    const char *name = undefined->name == NULL ? "?" : undefined->name->s;
    if (undefined->of == NULL) {
        return jinja_fail(run, err, "'%.100s' is undefined", name);
    }
    return jinja_fail(run, err, "a value of type %s has no '%.100s'", undefined->of, name);
}

ls_status jinja_step(jinja_run *run, size_t n, ls_error *err) {
    if (n > run->limits.steps - run->steps) {
        run->steps = run->limits.steps;
        return jinja_fail_as(run, LS_ETOOLONG, err, "more than %llu steps", (unsigned long long)run->limits.steps);
    }
    run->steps += n;
    return LS_OK;
}

ls_status jinja_enter(jinja_run *run, ls_error *err) {
    TRY(jinja_step(run, 1, err));
    if (run->depth >= run->limits.depth) {
        return jinja_fail_as(run, LS_ETOOLONG, err, "nested deeper than %d levels", run->limits.depth);
    }
    run->depth++;
    return LS_OK;
}

ls_status jinja_take(jinja_run *run, size_t n, size_t bytes, void *out_pointer, ls_error *err) {
    ls_status st = jinja_heap_take_array(&run->heap, n, bytes, out_pointer, err);
    return st < 0 ? error_prefix(err, st, "%s:%d", run->name, run->line) : LS_OK;
}

/* ---- making ---- */

ls_status jinja_str_borrow(jinja_heap *heap, const char *s, size_t n, jinja_value *out, ls_error *err) {
    jinja_str *str;
    TRY(jinja_heap_take(heap, sizeof *str, &str, err));
    *str = (jinja_str){.s = s, .n = n, .n_chars = SIZE_MAX};
    *out = (jinja_value){.kind = JINJA_STR, .str = str};
    return LS_OK;
}

ls_status jinja_str_copy(jinja_heap *heap, const char *s, size_t n, jinja_value *out, ls_error *err) {
    char *copy;
    TRY(jinja_heap_take(heap, n < SIZE_MAX ? n + 1 : n, &copy, err));
    if (n > 0) {
        memcpy(copy, s, n);
    }
    copy[n] = '\0';
    return jinja_str_borrow(heap, copy, n, out, err);
}

ls_status jinja_str_piece(jinja_run *run, const jinja_str *str, size_t from, size_t to, jinja_value *out,
                          ls_error *err) {
    ls_status st;
    TRY_GOTO(jinja_step(run, (to - from) / 64, err), fail);
    if (to == str->n) { /* the NUL behind it serves both */
        TRY_GOTO(jinja_str_borrow(&run->heap, str->s + from, to - from, out, err), fail);
    } else {
        TRY_GOTO(jinja_str_copy(&run->heap, str->s + from, to - from, out, err), fail);
    }
    out->str->markup = str->markup;
fail:
    return st;
}

ls_status jinja_undefined_of(jinja_run *run, const jinja_value *of, const jinja_str *name, jinja_value *out,
                             ls_error *err) {
    jinja_undefined *undefined;
    TRY(jinja_take(run, 1, sizeof *undefined, &undefined, err));
    undefined->name = name;
    undefined->of = of == NULL ? NULL : jinja_type_name(of);
    *out = jinja_undefined_value(undefined);
    return LS_OK;
}

ls_status jinja_undefined_because(jinja_run *run, const char *hint, jinja_value *out, ls_error *err) {
    jinja_undefined *undefined;
    TRY(jinja_take(run, 1, sizeof *undefined, &undefined, err));
    undefined->hint = hint;
    *out = jinja_undefined_value(undefined);
    return LS_OK;
}

ls_status jinja_list_new(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *out, ls_error *err) {
    jinja_list *list;
    TRY(jinja_take(run, 1, sizeof *list, &list, err));
    if (capacity > 0) {
        TRY(jinja_take(run, capacity, sizeof *list->item, &list->item, err));
        list->capacity = capacity;
    }
    *out = (jinja_value){.kind = kind, .list = list};
    return LS_OK;
}

ls_status jinja_list_push(jinja_run *run, jinja_list *list, jinja_value value, ls_error *err) {
    if (list->n == list->capacity) {
        size_t capacity = list->capacity == 0 ? 4 : list->capacity * 2;
        jinja_value *item;
        ls_status st =
            jinja_heap_grow(&run->heap, list->item, list->n * sizeof *item, capacity * sizeof *item, &item, err);
        if (st < 0) {
            return error_prefix(err, st, "%s:%d", run->name, run->line);
        }
        list->item = item;
        list->capacity = capacity;
    }
    list->item[list->n++] = value;
    return LS_OK;
}

ls_status jinja_pair(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out, ls_error *err) {
    jinja_value pair;
    TRY(jinja_list_new(run, JINJA_TUPLE, 2, &pair, err));
    pair.list->item[0] = a;
    pair.list->item[1] = b;
    pair.list->n = 2;
    *out = pair;
    return LS_OK;
}

ls_status jinja_iterator_new(jinja_run *run, jinja_iterator **iterator, jinja_value *out, ls_error *err) {
    TRY(jinja_take(run, 1, sizeof **iterator, iterator, err));
    *out = (jinja_value){.kind = JINJA_ITERATOR, .iterator = *iterator};
    return LS_OK;
}

ls_status jinja_iterator_defer(jinja_run *run, jinja_iterator *iterator, ls_status st, ls_error *err) {
    if (st >= 0 || st == LS_ENOMEM || st == LS_ETOOLONG) { /* limits do not wait */
        return st < 0 ? st : LS_OK;
    }
    jinja_value why;
    TRY(jinja_str_copy(&run->heap, err->text, strlen(err->text), &why, err));
    iterator->failed = st;
    iterator->why = why.str->s;
    return LS_OK;
}

/* ---- dicts ---- */

enum { INDEX_FROM = 9, MAX_HASH_DEPTH = 100 };

static uint64_t hash_bytes(const char *s, size_t n) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ (unsigned char)s[i]) * 0x100000001B3u;
    }
    return hash ^ hash >> 29;
}

/* Equal values have equal hashes, also across types: 1, 1.0 and true are one key. */
static uint64_t hash_of(const jinja_value *value, int depth) {
    uint64_t hash = (uint64_t)value->kind * 0x9E3779B97F4A7C15u;
    int64_t whole = value->kind == JINJA_BOOL && value->b;
    switch (value->kind) {
    case JINJA_BOOL:
        return hash_bytes((const char *)&whole, sizeof whole);
    case JINJA_INT:
        return hash_bytes((const char *)&value->i, sizeof value->i);
    case JINJA_FLOAT:
        if (value->f >= -9.2e18 && value->f <= 9.2e18 && value->f == (double)(int64_t)value->f) {
            whole = (int64_t)value->f;
            return hash_bytes((const char *)&whole, sizeof whole);
        }
        return hash_bytes((const char *)&value->f, sizeof value->f);
    case JINJA_STR:
        return hash_bytes(value->str->s, value->str->n);
    case JINJA_TUPLE:
        for (size_t i = 0; i < value->list->n && depth < MAX_HASH_DEPTH; i++) {
            hash = (hash ^ hash_of(&value->list->item[i], depth + 1)) * 0x100000001B3u;
        }
        return hash;
    default: /* few of these are ever keys: one hash per type will do */
        return hash;
    }
}

static bool hashable(const jinja_value *value, int depth) {
    if (value->kind == JINJA_TUPLE) {
        for (size_t i = 0; i < value->list->n; i++) {
            if (depth >= MAX_HASH_DEPTH || !hashable(&value->list->item[i], depth + 1)) {
                return false;
            }
        }
        return true;
    }
    if (value->kind == JINJA_VIEW) { /* views of values compare by identity, the others are sets */
        return value->view->kind == JINJA_VALUES;
    }
    return value->kind != JINJA_LIST && value->kind != JINJA_DICT;
}

bool jinja_hashable(const jinja_value *value) {
    return hashable(value, 0);
}

ls_status jinja_dict_new(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *out, ls_error *err) {
    jinja_dict *dict;
    TRY(jinja_take(run, 1, sizeof *dict, &dict, err));
    if (capacity > 0) {
        TRY(jinja_take(run, capacity, sizeof *dict->entry, &dict->entry, err));
        dict->capacity = capacity;
    }
    *out = (jinja_value){.kind = kind, .dict = dict};
    return LS_OK;
}

static void index_entry(jinja_dict *dict, size_t i) {
    size_t at = dict->entry[i].hash & (dict->n_slots - 1);
    while (dict->slot[at] != 0) {
        at = (at + 1) & (dict->n_slots - 1);
    }
    dict->slot[at] = (uint32_t)i + 1;
}

static ls_status make_room(jinja_run *run, jinja_dict *dict, ls_error *err) {
    if (dict->n == dict->capacity) {
        size_t capacity = dict->capacity == 0 ? 4 : dict->capacity * 2;
        jinja_entry *entry;
        TRY(jinja_take(run, capacity, sizeof *entry, &entry, err));
        if (dict->n > 0) {
            memcpy(entry, dict->entry, dict->n * sizeof *entry);
        }
        dict->entry = entry;
        dict->capacity = capacity;
    }
    if (dict->n + 1 >= INDEX_FROM && (dict->n + 1) * 2 > dict->n_slots) {
        if (dict->n >= UINT32_MAX / 4) {
            return jinja_fail_as(run, LS_ETOOLONG, err, "a dict of more than %u items", UINT32_MAX / 4);
        }
        size_t n_slots = dict->n_slots == 0 ? (size_t)4 * INDEX_FROM : dict->n_slots * 2;
        n_slots = (size_t)1 << (64 - __builtin_clzll(n_slots - 1));
        TRY(jinja_take(run, n_slots, sizeof *dict->slot, &dict->slot, err));
        dict->n_slots = n_slots;
        for (size_t i = 0; i < dict->n; i++) {
            index_entry(dict, i);
        }
    }
    return LS_OK;
}

/* *at is the entry, or SIZE_MAX. */
static ls_status find_entry(jinja_run *run, const jinja_dict *dict, const jinja_value *key, uint64_t hash, size_t *at,
                            ls_error *err) {
    bool equal = false;
    if (dict->n_slots == 0) {
        for (size_t i = 0; i < dict->n; i++) {
            if (dict->entry[i].hash == hash) {
                TRY(jinja_equal(run, &dict->entry[i].key, key, &equal, err));
                if (equal) {
                    *at = i;
                    return LS_OK;
                }
            }
        }
    } else {
        for (size_t s = hash & (dict->n_slots - 1); dict->slot[s] != 0; s = (s + 1) & (dict->n_slots - 1)) {
            size_t i = dict->slot[s] - 1;
            if (dict->entry[i].hash == hash) {
                TRY(jinja_equal(run, &dict->entry[i].key, key, &equal, err));
                if (equal) {
                    *at = i;
                    return LS_OK;
                }
            }
            TRY(jinja_step(run, 1, err)); /* keys can be chosen to collide */
        }
    }
    *at = SIZE_MAX;
    return LS_OK;
}

static ls_status need_hashable(const jinja_run *run, const jinja_value *key, ls_error *err) {
    if (!jinja_hashable(key)) {
        return jinja_fail(run, err, "a value of type %s cannot be a key", jinja_type_name(key));
    }
    return LS_OK;
}

ls_status jinja_dict_set(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value, ls_error *err) {
    TRY(need_hashable(run, &key, err));
    uint64_t hash = hash_of(&key, 0);
    size_t at;
    TRY(find_entry(run, dict, &key, hash, &at, err));
    if (at != SIZE_MAX) {
        dict->entry[at].value = value;
        return LS_OK;
    }
    TRY(make_room(run, dict, err));
    dict->entry[dict->n++] = (jinja_entry){.key = key, .value = value, .hash = hash};
    if (dict->n_slots > 0) {
        index_entry(dict, dict->n - 1);
    }
    return LS_OK;
}

ls_status jinja_dict_get(jinja_run *run, const jinja_dict *dict, const jinja_value *key, jinja_value *out,
                         ls_error *err) {
    TRY(need_hashable(run, key, err));
    size_t at;
    TRY(find_entry(run, dict, key, hash_of(key, 0), &at, err));
    *out = at == SIZE_MAX ? (jinja_value){.kind = JINJA_MISSING} : dict->entry[at].value;
    return LS_OK;
}

static bool entry_is(const jinja_entry *entry, uint64_t hash, const char *name, size_t n) {
    return entry->hash == hash && entry->key.kind == JINJA_STR && entry->key.str->n == n &&
           memcmp(entry->key.str->s, name, n) == 0;
}

const jinja_value *jinja_dict_find(const jinja_dict *dict, const char *name, size_t n) {
    uint64_t hash = hash_bytes(name, n);
    if (dict->n_slots == 0) {
        for (size_t i = 0; i < dict->n; i++) {
            if (entry_is(&dict->entry[i], hash, name, n)) {
                return &dict->entry[i].value;
            }
        }
        return NULL;
    }
    for (size_t s = hash & (dict->n_slots - 1); dict->slot[s] != 0; s = (s + 1) & (dict->n_slots - 1)) {
        if (entry_is(&dict->entry[dict->slot[s] - 1], hash, name, n)) {
            return &dict->entry[dict->slot[s] - 1].value;
        }
    }
    return NULL;
}

/* ---- asking ---- */

const char *jinja_type_name(const jinja_value *value) {
    static const char *const names[] = {
        [JINJA_MISSING] = "missing",
        [JINJA_UNDEFINED] = "Undefined",
        [JINJA_NONE] = "NoneType",
        [JINJA_BOOL] = "bool",
        [JINJA_INT] = "int",
        [JINJA_FLOAT] = "float",
        [JINJA_STR] = "str",
        [JINJA_LIST] = "list",
        [JINJA_TUPLE] = "tuple",
        [JINJA_DICT] = "dict",
        [JINJA_NAMESPACE] = "Namespace",
        [JINJA_RANGE] = "range",
        [JINJA_VIEW] = "dict_view",
        [JINJA_ITERATOR] = "generator",
        [JINJA_LOOP] = "LoopContext",
        [JINJA_MACRO] = "Macro",
        [JINJA_METHOD] = "method",
        [JINJA_FUNCTION] = "function",
    };
    if (value->kind == JINJA_VIEW) {
        static const char *const views[] = {"dict_keys", "dict_values", "dict_items"};
        return views[value->view->kind];
    }
    return names[value->kind];
}

bool jinja_truth(const jinja_value *value) {
    size_t n;
    switch (value->kind) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return value->b;
    case JINJA_INT:
        return value->i != 0;
    case JINJA_FLOAT:
        return value->f != 0;
    default:
        return !jinja_length(value, &n) || n > 0;
    }
}

size_t jinja_str_chars(jinja_str *str) {
    if (str->n_chars == SIZE_MAX) {
        size_t chars = 0;
        for (size_t i = 0; i < str->n; i++) {
            chars += !utf8_is_continuation(str->s[i]);
        }
        str->n_chars = chars;
    }
    return str->n_chars;
}

size_t jinja_str_offset(jinja_str *str, size_t char_index) {
    size_t chars = jinja_str_chars(str);
    if (char_index >= chars) {
        return str->n;
    }
    if (chars == str->n) {
        return char_index;
    }
    size_t at = 0;
    for (size_t seen = 0; at < str->n; at++) {
        if (!utf8_is_continuation(str->s[at]) && seen++ == char_index) {
            break;
        }
    }
    return at;
}

bool jinja_str_is(const jinja_str *str, const char *text) {
    return strlen(text) == str->n && memcmp(str->s, text, str->n) == 0;
}

bool jinja_as_int(const jinja_value *value, int64_t *out) {
    if (value->kind == JINJA_INT) {
        *out = value->i;
        return true;
    }
    if (value->kind == JINJA_BOOL) {
        *out = value->b;
        return true;
    }
    return false;
}

double jinja_as_float(const jinja_value *number) {
    return number->kind == JINJA_FLOAT ? number->f : number->kind == JINJA_INT ? (double)number->i : (double)number->b;
}
