/* value.name, value[key], value[a:b:c]: in the order in which Jinja2's sandbox looks. See eval.h. */
#include <string.h>

#include "text/jinja/eval.h"
#include "text/utf8.h"

static bool one_of(const jinja_str *name, const char *const *names, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (jinja_str_is(name, names[i])) {
            return true;
        }
    }
    return false;
}

/* Attributes that exist in Python but that the immutable sandbox keeps back. */
static bool is_unsafe(const jinja_value *of, const jinja_str *name) {
    static const char *const of_lists[] = {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"};
    static const char *const of_dicts[] = {"clear", "pop", "popitem", "setdefault", "update"};
    static const char *const of_all[] = {"__class__", "__doc__",  "__init__", "__eq__",  "__ne__",    "__str__",
                                         "__repr__",  "__hash__", "__dir__",  "__new__", "__reduce__"};
    switch (of->kind) {
    case JINJA_LIST:
        return one_of(name, of_lists, sizeof of_lists / sizeof *of_lists) ||
               one_of(name, of_all, sizeof of_all / sizeof *of_all);
    case JINJA_DICT:
        return one_of(name, of_dicts, sizeof of_dicts / sizeof *of_dicts) ||
               one_of(name, of_all, sizeof of_all / sizeof *of_all);
    default:
        return one_of(name, of_all, sizeof of_all / sizeof *of_all);
    }
}

/* Python's getattr: *out stays JINJA_MISSING where it raises AttributeError. */
static ls_status python_attribute(jinja_run *run, const jinja_value *of, const jinja_str *name, jinja_value *out,
                                  ls_error *err) {
    if (of->kind == JINJA_UNDEFINED) {
        bool dunder = name->n > 4 && memcmp(name->s, "__", 2) == 0 && memcmp(name->s + name->n - 2, "__", 2) == 0;
        return dunder ? LS_OK : jinja_fail_undefined(run, of, err);
    }
    if (of->kind == JINJA_NAMESPACE) {
        const jinja_value *found = jinja_dict_find(of->dict, name->s, name->n);
        if (found != NULL && (name->n == 0 || name->s[0] != '_')) {
            *out = *found;
        }
        return LS_OK;
    }
    if (is_unsafe(of, name)) {
        return jinja_undefined_because(run, "access to this attribute is unsafe", out, err);
    }
    if (of->kind == JINJA_LOOP) {
        TRY(jinja_loop_attribute(run, of->loop, name, out, err));
    } else if (of->kind == JINJA_MACRO && jinja_str_is(name, "name") && of->macro->node->name != NULL) {
        *out = (jinja_value){.kind = JINJA_STR, .str = of->macro->node->name};
    }
    const jinja_builtin *method = jinja_given(out) ? NULL : jinja_find_method(of, name);
    if (method != NULL) {
        jinja_method *bound;
        TRY(jinja_take(run, 1, sizeof *bound, &bound, err));
        bound->builtin = method;
        bound->self = *of;
        *out = (jinja_value){.kind = JINJA_METHOD, .method = bound};
    }
    return LS_OK;
}

/* Characters by index; *out stays JINJA_MISSING if it is out of range. */
static ls_status char_at(jinja_run *run, jinja_str *str, int64_t index, jinja_value *out, ls_error *err) {
    int64_t n = (int64_t)jinja_str_chars(str);
    index += index < 0 ? n : 0;
    if (index < 0 || index >= n) {
        return LS_OK;
    }
    TRY(jinja_step(run, (size_t)n == str->n ? 0 : (size_t)n / 64, err));
    size_t from = jinja_str_offset(str, (size_t)index), n_bytes;
    utf8_decode(str->s + from, &n_bytes);
    return jinja_str_piece(run, str, from, from + n_bytes, out, err);
}

/* Python's of[key]: *out stays JINJA_MISSING where it raises TypeError or LookupError. */
static ls_status python_item(jinja_run *run, const jinja_value *of, const jinja_value *key, jinja_value *out,
                             ls_error *err) {
    int64_t index = 0;
    bool by_index = jinja_as_int(key, &index);
    switch (of->kind) {
    case JINJA_UNDEFINED:
        return jinja_fail_undefined(run, of, err);
    case JINJA_DICT:
        return jinja_hashable(key) ? jinja_dict_get(run, of->dict, key, out, err) : LS_OK;
    case JINJA_STR:
        return by_index ? char_at(run, of->str, index, out, err) : LS_OK;
    case JINJA_LIST:
    case JINJA_TUPLE:
        index += index < 0 ? (int64_t)of->list->n : 0;
        if (by_index && index >= 0 && index < (int64_t)of->list->n) {
            *out = of->list->item[index];
        }
        return LS_OK;
    case JINJA_RANGE:
        index += index < 0 ? (int64_t)of->range->n : 0;
        if (by_index && index >= 0 && index < (int64_t)of->range->n) {
            *out = jinja_int(jinja_range_at(of->range, (size_t)index));
        }
        return LS_OK;
    default:
        return LS_OK;
    }
}

ls_status jinja_get_attribute(jinja_run *run, const jinja_value *of, const jinja_str *name, jinja_value *out,
                              ls_error *err) {
    jinja_value found = {.kind = JINJA_MISSING};
    TRY(python_attribute(run, of, name, &found, err));
    if (!jinja_given(&found) && of->kind == JINJA_DICT) {
        const jinja_value *item = jinja_dict_find(of->dict, name->s, name->n);
        found = item == NULL ? found : *item;
    } else if (!jinja_given(&found) && of->kind == JINJA_UNDEFINED) {
        return jinja_fail_undefined(run, of, err);
    }
    if (!jinja_given(&found)) {
        return jinja_undefined_of(run, of, name, out, err);
    }
    *out = found;
    return LS_OK;
}

ls_status jinja_get_item(jinja_run *run, const jinja_value *of, const jinja_value *key, jinja_value *out,
                         ls_error *err) {
    jinja_value found = {.kind = JINJA_MISSING};
    TRY(python_item(run, of, key, &found, err));
    if (!jinja_given(&found) && key->kind == JINJA_STR) {
        TRY(python_attribute(run, of, key->str, &found, err));
    }
    if (jinja_given(&found)) {
        *out = found;
        return LS_OK;
    }
    jinja_value name;
    jinja_text text = {0};
    TRY(jinja_text_add_str(run, &text, key->kind == JINJA_STR || jinja_is_number(key) ? key : &(jinja_value){0}, err));
    TRY(jinja_text_done(run, &text, &name, err));
    return jinja_undefined_of(run, of, name.str, out, err);
}

/* ---- slices ---- */

typedef struct slice {
    int64_t start, step;
    size_t n;
} slice;

static ls_status bound_of(const jinja_run *run, const jinja_value *value, int64_t fallback, int64_t *out,
                          ls_error *err) {
    if (value->kind == JINJA_NONE) {
        *out = fallback;
        return LS_OK;
    }
    if (!jinja_as_int(value, out)) {
        return jinja_fail(run, err, "slice indices must be integers or None, not %s", jinja_type_name(value));
    }
    return LS_OK;
}

static int64_t clamp(int64_t index, int64_t n, int64_t low, int64_t high) {
    if (index < 0) {
        index += n;
    }
    return index < low ? low : index > high ? high : index;
}

/* Python's slice.indices(n). */
static ls_status slice_of(const jinja_run *run, const jinja_value bound[3], size_t length, slice *out, ls_error *err) {
    int64_t n = (int64_t)length, start, stop, step;
    TRY(bound_of(run, &bound[2], 1, &step, err));
    if (step == 0) {
        return jinja_fail(run, err, "slice step cannot be zero");
    }
    bool back = step < 0;
    int64_t low = back ? -1 : 0, high = back ? n - 1 : n;
    TRY(bound_of(run, &bound[0], 0, &start, err));
    TRY(bound_of(run, &bound[1], 0, &stop, err));
    start = bound[0].kind == JINJA_NONE ? (back ? n - 1 : 0) : clamp(start, n, low, high);
    stop = bound[1].kind == JINJA_NONE ? (back ? -1 : n) : clamp(stop, n, low, high);
    out->start = start;
    out->step = step;
    if (back) {
        out->n = stop < start ? (size_t)(start - stop - 1) / (0 - (uint64_t)step) + 1 : 0;
    } else {
        out->n = start < stop ? (size_t)(stop - start - 1) / (uint64_t)step + 1 : 0;
    }
    return LS_OK;
}

static int64_t slice_at(const slice *s, size_t i) {
    return s->start + (int64_t)i * s->step;
}

static ls_status slice_str(jinja_run *run, jinja_str *str, const slice *s, jinja_value *out, ls_error *err) {
    TRY(jinja_step(run, str->n / 64, err));
    if (s->step == 1 || s->n == 0) {
        size_t from = jinja_str_offset(str, s->n == 0 ? 0 : (size_t)s->start);
        size_t to = s->n == 0 ? from : jinja_str_offset(str, (size_t)s->start + s->n);
        return jinja_str_piece(run, str, from, to, out, err);
    }
    size_t *offset, at = 0, n_bytes = 0, chars = jinja_str_chars(str);
    TRY(jinja_take(run, chars, sizeof *offset, &offset, err));
    for (size_t i = 0; i < chars; i++, at += n_bytes) {
        offset[i] = at;
        utf8_decode(str->s + at, &n_bytes);
    }
    jinja_text text = {0};
    for (size_t i = 0; i < s->n; i++) {
        size_t from = offset[slice_at(s, i)];
        utf8_decode(str->s + from, &n_bytes);
        TRY(jinja_text_add(run, &text, str->s + from, n_bytes, err));
    }
    TRY(jinja_text_done(run, &text, out, err));
    out->str->markup = str->markup;
    return LS_OK;
}

ls_status jinja_get_slice(jinja_run *run, const jinja_value *of, const jinja_value bound[3], jinja_value *out,
                          ls_error *err) {
    slice s = {0};
    size_t n = 0;
    if (of->kind == JINJA_UNDEFINED) {
        return jinja_fail_undefined(run, of, err);
    }
    if (of->kind != JINJA_STR && of->kind != JINJA_LIST && of->kind != JINJA_TUPLE && of->kind != JINJA_RANGE) {
        return jinja_fail(run, err, "a value of type %s has no slices", jinja_type_name(of));
    }
    jinja_length(of, &n);
    TRY(slice_of(run, bound, n, &s, err));
    if (of->kind == JINJA_STR) {
        return slice_str(run, of->str, &s, out, err);
    }
    if (of->kind == JINJA_RANGE) {
        jinja_range *range;
        TRY(jinja_take(run, 1, sizeof *range, &range, err));
        int64_t step;
        if (__builtin_mul_overflow(of->range->step, s.step, &step)) {
            step = 1; /* then there is at most one item */
        }
        int64_t start = jinja_range_at(of->range, s.n == 0 ? 0 : (size_t)s.start);
        *range = (jinja_range){.start = start, .step = step, .n = s.n};
        range->stop = s.n == 0 ? start : jinja_range_at(range, s.n - 1) + (step < 0 ? -1 : 1);
        *out = (jinja_value){.kind = JINJA_RANGE, .range = range};
        return LS_OK;
    }
    jinja_value list;
    TRY(jinja_step(run, s.n, err));
    TRY(jinja_list_new(run, of->kind, s.n, &list, err));
    for (size_t i = 0; i < s.n; i++) {
        TRY(jinja_list_push(run, list.list, of->list->item[slice_at(&s, i)], err));
    }
    *out = list;
    return LS_OK;
}
