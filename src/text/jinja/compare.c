/* See value.h: comparing and walking values. */
#include <math.h>
#include <string.h>

#include "text/jinja/value.h"
#include "text/utf8.h"

int64_t jinja_range_at(const jinja_range *range, size_t i) {
    return range->start + (int64_t)i * range->step;
}

bool jinja_length(const jinja_value *value, size_t *n) {
    switch (value->kind) {
    case JINJA_UNDEFINED:
        *n = 0;
        return true;
    case JINJA_STR:
        *n = jinja_str_chars(value->str);
        return true;
    case JINJA_LIST:
    case JINJA_TUPLE:
        *n = value->list->n;
        return true;
    case JINJA_DICT:
        *n = value->dict->n;
        return true;
    case JINJA_VIEW:
        *n = value->view->dict->n;
        return true;
    case JINJA_RANGE:
        *n = value->range->n;
        return true;
    default:
        return false;
    }
}

/* ---- comparing ---- */

bool jinja_same(const jinja_value *a, const jinja_value *b) {
    if (a->kind != b->kind) {
        return false;
    }
    switch (a->kind) {
    case JINJA_NONE:
        return true;
    case JINJA_BOOL:
        return a->b == b->b;
    case JINJA_INT: /* CPython keeps one of each small integer only */
        return a->i == b->i;
    case JINJA_FLOAT:
        return a->f == b->f;
    case JINJA_STR: /* likewise for strings that look like names; equal text is the useful answer */
        return a->str == b->str || (a->str->n == b->str->n && memcmp(a->str->s, b->str->s, a->str->n) == 0);
    default:
        return a->list == b->list;
    }
}

/* An int against a float without rounding the int. */
static int order_mixed(int64_t i, double f) {
    if (f >= 9223372036854775808.0) {
        return -1;
    }
    if (f < -9223372036854775808.0) {
        return 1;
    }
    int64_t whole = (int64_t)f;
    if (i != whole) {
        return i < whole ? -1 : 1;
    }
    double rest = f - (double)whole;
    return rest > 0 ? -1 : rest < 0;
}

static int order_numbers(const jinja_value *a, const jinja_value *b, bool *unordered) {
    *unordered = (a->kind == JINJA_FLOAT && isnan(a->f)) || (b->kind == JINJA_FLOAT && isnan(b->f));
    int64_t x = 0, y = 0;
    bool whole_a = jinja_as_int(a, &x), whole_b = jinja_as_int(b, &y);
    if (*unordered) {
        return 1;
    }
    if (whole_a && whole_b) {
        return (x > y) - (x < y);
    }
    if (!whole_a && !whole_b) {
        return (a->f > b->f) - (a->f < b->f);
    }
    return whole_a ? order_mixed(x, b->f) : -order_mixed(y, a->f);
}

static int order_strings(const jinja_str *a, const jinja_str *b) {
    size_t n = a->n < b->n ? a->n : b->n;
    int order = n == 0 ? 0 : memcmp(a->s, b->s, n); /* UTF-8 keeps the order of code points */
    return order != 0 ? order : (a->n > b->n) - (a->n < b->n);
}

static ls_status equal_lists(jinja_run *run, const jinja_list *a, const jinja_list *b, bool *out, ls_error *err) {
    bool equal = a->n == b->n;
    for (size_t i = 0; i < a->n && equal && a != b; i++) {
        TRY(jinja_equal(run, &a->item[i], &b->item[i], &equal, err));
    }
    *out = equal;
    return LS_OK;
}

static ls_status equal_dicts(jinja_run *run, const jinja_dict *a, const jinja_dict *b, bool *out, ls_error *err) {
    bool equal = a->n == b->n;
    for (size_t i = 0; i < a->n && equal && a != b; i++) {
        jinja_value other;
        TRY(jinja_dict_get(run, b, &a->entry[i].key, &other, err));
        equal = other.kind != JINJA_MISSING;
        if (equal) {
            TRY(jinja_equal(run, &a->entry[i].value, &other, &equal, err));
        }
    }
    *out = equal;
    return LS_OK;
}

static ls_status equal_nested(jinja_run *run, const jinja_value *a, const jinja_value *b, bool *out, ls_error *err) {
    switch (a->kind) {
    case JINJA_LIST:
    case JINJA_TUPLE:
        return equal_lists(run, a->list, b->list, out, err);
    case JINJA_DICT:
        return equal_dicts(run, a->dict, b->dict, out, err);
    case JINJA_RANGE:
        *out = a->range->n == b->range->n && (a->range->n == 0 || a->range->start == b->range->start) &&
               (a->range->n <= 1 || a->range->step == b->range->step);
        return LS_OK;
    case JINJA_METHOD:
        *out = a->method->builtin == b->method->builtin && jinja_same(&a->method->self, &b->method->self);
        return LS_OK;
    default:
        *out = jinja_same(a, b);
        return LS_OK;
    }
}

ls_status jinja_equal(jinja_run *run, const jinja_value *a, const jinja_value *b, bool *out, ls_error *err) {
    if (jinja_is_number(a) && jinja_is_number(b)) {
        bool unordered;
        *out = order_numbers(a, b, &unordered) == 0;
        return LS_OK;
    }
    if (a->kind != b->kind) {
        *out = false;
        return LS_OK;
    }
    if (a->kind == JINJA_STR) {
        *out = a->str->n == b->str->n && memcmp(a->str->s, b->str->s, a->str->n) == 0;
        return jinja_step(run, *out ? a->str->n / 64 : 0, err);
    }
    if (a->kind == JINJA_UNDEFINED) {
        *out = true;
        return LS_OK;
    }
    TRY(jinja_enter(run, err));
    ls_status st = equal_nested(run, a, b, out, err);
    jinja_leave(run);
    return st;
}

static ls_status order_lists(jinja_run *run, const jinja_list *a, const jinja_list *b, const char *op, int *out,
                             bool *unordered, ls_error *err) {
    size_t n = a->n < b->n ? a->n : b->n;
    for (size_t i = 0; i < n; i++) {
        bool equal;
        TRY(jinja_equal(run, &a->item[i], &b->item[i], &equal, err));
        if (!equal) {
            return jinja_order(run, &a->item[i], &b->item[i], op, out, unordered, err);
        }
    }
    *out = (a->n > b->n) - (a->n < b->n);
    return LS_OK;
}

ls_status jinja_order(jinja_run *run, const jinja_value *a, const jinja_value *b, const char *op, int *out,
                      bool *unordered, ls_error *err) {
    *unordered = false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *out = order_numbers(a, b, unordered);
        return LS_OK;
    }
    if (a->kind == JINJA_UNDEFINED || b->kind == JINJA_UNDEFINED) {
        return jinja_fail_undefined(run, a->kind == JINJA_UNDEFINED ? a : b, err);
    }
    if (a->kind == JINJA_STR && b->kind == JINJA_STR) {
        *out = order_strings(a->str, b->str);
        return jinja_step(run, (a->str->n < b->str->n ? a->str->n : b->str->n) / 64, err);
    }
    if (a->kind == b->kind && (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE)) {
        TRY(jinja_enter(run, err));
        ls_status st = order_lists(run, a->list, b->list, op, out, unordered, err);
        jinja_leave(run);
        return st;
    }
    return jinja_fail(run, err, "'%s' is not possible between %s and %s", op, jinja_type_name(a), jinja_type_name(b));
}

ls_status jinja_contains(jinja_run *run, const jinja_value *item, const jinja_value *in, bool *out, ls_error *err) {
    if (in->kind == JINJA_STR) {
        if (item->kind != JINJA_STR) {
            return jinja_fail(run, err, "'in' a string needs a string, not %s", jinja_type_name(item));
        }
        TRY(jinja_step(run, in->str->n / 64, err));
        *out = item->str->n == 0 || memmem(in->str->s, in->str->n, item->str->s, item->str->n) != NULL;
        return LS_OK;
    }
    if (in->kind == JINJA_DICT || (in->kind == JINJA_VIEW && in->view->kind == JINJA_KEYS)) {
        jinja_value found;
        TRY(jinja_dict_get(run, in->kind == JINJA_DICT ? in->dict : in->view->dict, item, &found, err));
        *out = found.kind != JINJA_MISSING;
        return LS_OK;
    }
    if (!jinja_iterable(in)) {
        return jinja_fail(run, err, "'in' is not possible in a value of type %s", jinja_type_name(in));
    }
    jinja_cursor cursor;
    TRY(jinja_cursor_init(run, &cursor, in, err));
    for (bool more = true, equal = false;;) {
        jinja_value value;
        TRY(jinja_cursor_next(run, &cursor, &value, &more, err));
        if (!more) {
            *out = false;
            return LS_OK;
        }
        TRY(jinja_equal(run, &value, item, &equal, err));
        if (equal || (value.kind == JINJA_FLOAT && item->kind == JINJA_FLOAT && value.f == item->f)) {
            *out = true;
            return LS_OK;
        }
    }
}

/* ---- walking ---- */

bool jinja_iterable(const jinja_value *value) {
    switch (value->kind) {
    case JINJA_UNDEFINED:
    case JINJA_STR:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
    case JINJA_RANGE:
    case JINJA_VIEW:
    case JINJA_ITERATOR:
        return true;
    default:
        return false;
    }
}

ls_status jinja_cursor_init(jinja_run *run, jinja_cursor *cursor, const jinja_value *over, ls_error *err) {
    if (!jinja_iterable(over)) {
        return jinja_fail(run, err, "a value of type %s cannot be iterated over", jinja_type_name(over));
    }
    *cursor = (jinja_cursor){.over = *over};
    return LS_OK;
}

static ls_status next_of_view(jinja_run *run, jinja_cursor *cursor, jinja_value *out, ls_error *err) {
    const jinja_entry *entry = &cursor->over.view->dict->entry[cursor->at];
    switch (cursor->over.view->kind) {
    case JINJA_KEYS:
        *out = entry->key;
        return LS_OK;
    case JINJA_VALUES:
        *out = entry->value;
        return LS_OK;
    case JINJA_ITEMS:
        break;
    }
    return jinja_pair(run, entry->key, entry->value, out, err);
}

static ls_status next_of_str(jinja_run *run, jinja_cursor *cursor, jinja_value *out, bool *more, ls_error *err) {
    const jinja_str *str = cursor->over.str;
    *more = cursor->at < str->n;
    if (*more) {
        size_t n_bytes;
        utf8_decode(str->s + cursor->at, &n_bytes);
        TRY(jinja_str_copy(&run->heap, str->s + cursor->at, n_bytes, out, err));
        out->str->n_chars = 1;
        cursor->at += n_bytes;
    }
    return LS_OK;
}

static ls_status next_of_iterator(jinja_iterator *iterator, jinja_value *out, bool *more, ls_error *err) {
    *more = iterator->at < iterator->items.n;
    if (*more) {
        *out = iterator->items.item[iterator->at++];
    } else if (iterator->failed < 0) {
        ls_status st = iterator->failed;
        iterator->failed = LS_OK; /* a generator that failed has ended */
        return error_set(err, st, "%s", iterator->why);
    }
    return LS_OK;
}

ls_status jinja_cursor_next(jinja_run *run, jinja_cursor *cursor, jinja_value *out, bool *more, ls_error *err) {
    TRY(jinja_step(run, 1, err));
    const jinja_value *over = &cursor->over;
    size_t n = 0;
    switch (over->kind) {
    case JINJA_STR:
        return next_of_str(run, cursor, out, more, err);
    case JINJA_ITERATOR:
        return next_of_iterator(over->iterator, out, more, err);
    default:
        jinja_length(over, &n);
        *more = cursor->at < n;
    }
    if (!*more) {
        return LS_OK;
    }
    switch (over->kind) {
    case JINJA_LIST:
    case JINJA_TUPLE:
        *out = over->list->item[cursor->at];
        break;
    case JINJA_DICT:
        *out = over->dict->entry[cursor->at].key;
        break;
    case JINJA_RANGE:
        *out = jinja_int(jinja_range_at(over->range, cursor->at));
        break;
    default:
        TRY(next_of_view(run, cursor, out, err));
    }
    cursor->at++;
    return LS_OK;
}

ls_status jinja_collect(jinja_run *run, const jinja_value *value, jinja_list **out, ls_error *err) {
    jinja_cursor cursor;
    TRY(jinja_cursor_init(run, &cursor, value, err));
    size_t n = 0;
    jinja_length(value, &n);
    jinja_value list;
    TRY(jinja_list_new(run, JINJA_LIST, n, &list, err));
    for (;;) {
        jinja_value item;
        bool more;
        TRY(jinja_cursor_next(run, &cursor, &item, &more, err));
        if (!more) {
            *out = list.list;
            return LS_OK;
        }
        TRY(jinja_list_push(run, list.list, item, err));
    }
}
