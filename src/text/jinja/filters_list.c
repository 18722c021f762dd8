/*
 * Filters of sequences. See builtin.h; the model is jinja2/filters.py.
 *
 * What are generators there are iterators here: they can be walked once, have no length, and a failure in them shows when
 * they are walked (jinja_iterator_defer).
 */
#include <string.h>

#include "text/jinja/eval.h"
#include "text/jinja/sort.h"

#define FILTER(name)                                                                                                   \
    static ls_status name(jinja_run *run, const jinja_value *self, const jinja_call *call, const jinja_value *arg,     \
                          jinja_value *out, ls_error *err)
#define UNUSED (void)run, (void)self, (void)call, (void)arg, (void)err

/* ---- attributes by path: "a.0.b" ---- */

static bool all_digits(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9') {
            return false;
        }
    }
    return n > 0 && n < 18;
}

static ls_status get_part(jinja_run *run, const jinja_value *of, const char *part, size_t n, jinja_value *out,
                          ls_error *err) {
    jinja_value key;
    if (all_digits(part, n)) {
        int64_t index = 0;
        for (size_t i = 0; i < n; i++) {
            index = index * 10 + (part[i] - '0');
        }
        key = jinja_int(index);
    } else {
        TRY(jinja_str_copy(&run->heap, part, n, &key, err));
    }
    return jinja_get_item(run, of, &key, out, err);
}

/* item[attribute]; with `fallback` for what is undefined on the way. */
static ls_status get_path(jinja_run *run, jinja_value item, const jinja_value *attribute, const jinja_value *fallback,
                          jinja_value *out, ls_error *err) {
    if (attribute->kind != JINJA_STR) {
        if (jinja_given(attribute) && attribute->kind != JINJA_NONE) {
            TRY(jinja_get_item(run, &item, attribute, &item, err));
            item = item.kind == JINJA_UNDEFINED && fallback != NULL ? *fallback : item;
        }
        *out = item;
        return LS_OK;
    }
    const char *s = attribute->str->s, *end = s + attribute->str->n;
    for (;;) {
        const char *dot = memchr(s, '.', (size_t)(end - s));
        TRY(get_part(run, &item, s, (size_t)((dot == NULL ? end : dot) - s), &item, err));
        item = item.kind == JINJA_UNDEFINED && fallback != NULL ? *fallback : item;
        if (dot == NULL) {
            *out = item;
            return LS_OK;
        }
        s = dot + 1;
    }
}

/* Strings without regard to case, others as they are. */
static ls_status fold_key(jinja_run *run, bool case_sensitive, jinja_value *key, ls_error *err) {
    if (!case_sensitive && key->kind == JINJA_STR) {
        TRY(jinja_str_cased(run, key->str, JINJA_TO_LOWER, key, err));
    }
    return LS_OK;
}

/* ---- one item, or one value from all ---- */

FILTER(do_first) {
    UNUSED;
    jinja_cursor cursor;
    bool more;
    TRY(jinja_cursor_init(run, &cursor, self, err));
    TRY(jinja_cursor_next(run, &cursor, out, &more, err));
    return more ? LS_OK : jinja_undefined_because(run, "No first item, sequence was empty.", out, err);
}

/* Python's reversed(): what has an order from the end. Iterators have none, views and dicts do. */
static bool reversible(const jinja_value *value) {
    return jinja_iterable(value) && value->kind != JINJA_ITERATOR;
}

FILTER(do_last) {
    UNUSED;
    jinja_list *items;
    if (!reversible(self)) {
        return jinja_fail(run, err, "a value of type %s has no last item", jinja_type_name(self));
    }
    TRY(jinja_collect(run, self, &items, err));
    if (items->n == 0) {
        return jinja_undefined_because(run, "No last item, sequence was empty.", out, err);
    }
    *out = items->item[items->n - 1];
    return LS_OK;
}

static ls_status extreme(jinja_run *run, const jinja_value *self, const jinja_value *arg, bool max, jinja_value *out,
                         ls_error *err) {
    jinja_list *items;
    jinja_value best_key = {.kind = JINJA_MISSING}, key;
    TRY(jinja_collect(run, self, &items, err));
    for (size_t i = 0; i < items->n; i++) {
        TRY(get_path(run, items->item[i], &arg[1], NULL, &key, err));
        TRY(fold_key(run, jinja_arg_truth(&arg[0], false), &key, err));
        int order = 0;
        bool unordered = false;
        if (i > 0) {
            TRY(jinja_order(run, &key, &best_key, max ? ">" : "<", &order, &unordered, err));
        }
        if (i == 0 || (!unordered && (max ? order > 0 : order < 0))) {
            best_key = key;
            *out = items->item[i];
        }
    }
    return items->n > 0 ? LS_OK : jinja_undefined_because(run, "No aggregated item, sequence was empty.", out, err);
}

FILTER(do_min) {
    UNUSED;
    return extreme(run, self, arg, false, out, err);
}
FILTER(do_max) {
    UNUSED;
    return extreme(run, self, arg, true, out, err);
}

FILTER(do_sum) {
    UNUSED;
    jinja_list *items;
    jinja_value total = jinja_given(&arg[1]) ? arg[1] : jinja_int(0), item;
    if (total.kind == JINJA_STR) {
        return jinja_fail(run, err, "sum() can't sum strings");
    }
    TRY(jinja_collect(run, self, &items, err));
    for (size_t i = 0; i < items->n; i++) {
        TRY(get_path(run, items->item[i], &arg[0], NULL, &item, err));
        TRY(jinja_binary(run, '+', &total, &item, &total, err));
    }
    *out = total;
    return LS_OK;
}

FILTER(do_join) {
    UNUSED;
    jinja_cursor cursor;
    jinja_text text = {0};
    jinja_str *between = NULL;
    if (jinja_given(&arg[0])) {
        TRY(jinja_arg_soft_str(run, &arg[0], &between, err));
    }
    TRY(jinja_cursor_init(run, &cursor, self, err));
    for (bool first = true, more;; first = false) {
        jinja_value item;
        TRY(jinja_cursor_next(run, &cursor, &item, &more, err));
        if (!more) {
            return jinja_text_done(run, &text, out, err);
        }
        if (!first && between != NULL) {
            TRY(jinja_text_add(run, &text, between->s, between->n, err));
        }
        if (jinja_given(&arg[1]) && arg[1].kind != JINJA_NONE) {
            TRY(get_path(run, item, &arg[1], NULL, &item, err));
        }
        TRY(jinja_text_add_str(run, &text, &item, err));
    }
}

/* ---- lists ---- */

FILTER(do_list) {
    UNUSED;
    jinja_list *items;
    TRY(jinja_collect(run, self, &items, err));
    *out = (jinja_value){.kind = JINJA_LIST, .list = items};
    return LS_OK;
}

FILTER(do_reverse) {
    UNUSED;
    jinja_list *items;
    jinja_iterator *iterator;
    if (self->kind == JINJA_STR) {
        const jinja_value all[3] = {jinja_none(), jinja_none(), jinja_int(-1)};
        return jinja_get_slice(run, self, all, out, err);
    }
    TRY(jinja_collect(run, self, &items, err));
    for (size_t i = 0; i < items->n / 2; i++) {
        jinja_value other = items->item[i];
        items->item[i] = items->item[items->n - 1 - i];
        items->item[items->n - 1 - i] = other;
    }
    if (!reversible(self)) {
        *out = (jinja_value){.kind = JINJA_LIST, .list = items};
        return LS_OK;
    }
    TRY(jinja_iterator_new(run, &iterator, out, err));
    iterator->items = *items;
    return LS_OK;
}

/* Items in the order of their keys. */
static ls_status sorted(jinja_run *run, const jinja_list *items, const jinja_value *key, bool reverse, jinja_value *out,
                        ls_error *err) {
    size_t *order;
    jinja_value list;
    TRY(jinja_take(run, items->n, sizeof *order, &order, err));
    for (size_t i = 0; i < items->n; i++) {
        order[i] = i;
    }
    TRY(jinja_sort(run, key, order, items->n, reverse, err));
    TRY(jinja_list_new(run, JINJA_LIST, items->n, &list, err));
    for (size_t i = 0; i < items->n; i++) {
        TRY(jinja_list_push(run, list.list, items->item[order[i]], err));
    }
    *out = list;
    return LS_OK;
}

/* "a,b.c": a tuple of keys. */
static ls_status sort_key(jinja_run *run, jinja_value item, const jinja_value *attribute, bool case_sensitive,
                          jinja_value *out, ls_error *err) {
    jinja_value keys, key, path;
    TRY(jinja_list_new(run, JINJA_LIST, 1, &keys, err));
    const char *s = attribute->kind == JINJA_STR ? attribute->str->s : "";
    const char *end = attribute->kind == JINJA_STR ? s + attribute->str->n : s;
    for (const char *comma = s; comma != NULL; s = comma == NULL ? s : comma + 1) {
        comma = memchr(s, ',', (size_t)(end - s));
        path = *attribute;
        if (attribute->kind == JINJA_STR) {
            TRY(jinja_str_copy(&run->heap, s, (size_t)((comma == NULL ? end : comma) - s), &path, err));
        }
        TRY(get_path(run, item, &path, NULL, &key, err));
        TRY(fold_key(run, case_sensitive, &key, err));
        TRY(jinja_list_push(run, keys.list, key, err));
    }
    *out = keys;
    return LS_OK;
}

FILTER(do_sort) {
    UNUSED;
    jinja_list *items;
    jinja_value *key;
    TRY(jinja_collect(run, self, &items, err));
    TRY(jinja_take(run, items->n, sizeof *key, &key, err));
    for (size_t i = 0; i < items->n; i++) {
        TRY(sort_key(run, items->item[i], &arg[2], jinja_arg_truth(&arg[1], false), &key[i], err));
    }
    return sorted(run, items, key, jinja_arg_truth(&arg[0], false), out, err);
}

FILTER(do_dictsort) {
    UNUSED;
    const char *by = !jinja_given(&arg[1]) ? "key" : arg[1].kind == JINJA_STR ? arg[1].str->s : "";
    bool by_value = strcmp(by, "value") == 0;
    if (!by_value && strcmp(by, "key") != 0) {
        return jinja_fail(run, err, "You can only sort by either \"key\" or \"value\"");
    }
    if (self->kind != JINJA_DICT) {
        return self->kind == JINJA_UNDEFINED ? jinja_fail_undefined(run, self, err)
                                             : jinja_fail(run, err, "dictsort needs a mapping");
    }
    jinja_value items, *key;
    const jinja_dict *dict = self->dict;
    TRY(jinja_list_new(run, JINJA_LIST, dict->n, &items, err));
    TRY(jinja_take(run, dict->n, sizeof *key, &key, err));
    for (size_t i = 0; i < dict->n; i++) {
        jinja_value pair;
        TRY(jinja_pair(run, dict->entry[i].key, dict->entry[i].value, &pair, err));
        TRY(jinja_list_push(run, items.list, pair, err));
        key[i] = pair.list->item[by_value];
        TRY(fold_key(run, jinja_arg_truth(&arg[0], false), &key[i], err));
    }
    return sorted(run, items.list, key, jinja_arg_truth(&arg[2], false), out, err);
}

FILTER(do_groupby) {
    UNUSED;
    jinja_list *items;
    jinja_value list, *key, *sort_keys;
    const jinja_value *fallback = jinja_given(&arg[1]) && arg[1].kind != JINJA_NONE ? &arg[1] : NULL;
    bool case_sensitive = jinja_arg_truth(&arg[2], false);
    TRY(jinja_collect(run, self, &items, err));
    TRY(jinja_take(run, items->n, sizeof *key, &key, err));
    TRY(jinja_take(run, items->n, sizeof *sort_keys, &sort_keys, err));
    size_t *order;
    TRY(jinja_take(run, items->n, sizeof *order, &order, err));
    for (size_t i = 0; i < items->n; i++) {
        order[i] = i;
        TRY(get_path(run, items->item[i], &arg[0], fallback, &key[i], err));
        sort_keys[i] = key[i];
        TRY(fold_key(run, case_sensitive, &sort_keys[i], err));
    }
    TRY(jinja_sort(run, sort_keys, order, items->n, false, err));
    TRY(jinja_list_new(run, JINJA_LIST, 0, &list, err));
    jinja_value group = {.kind = JINJA_MISSING}, pair;
    for (size_t i = 0; i < items->n; i++) {
        bool same = false;
        if (i > 0) {
            TRY(jinja_equal(run, &sort_keys[order[i - 1]], &sort_keys[order[i]], &same, err));
        }
        if (!same) {
            TRY(jinja_list_new(run, JINJA_LIST, 0, &group, err));
            TRY(jinja_pair(run, key[order[i]], group, &pair, err));
            TRY(jinja_list_push(run, list.list, pair, err));
        }
        TRY(jinja_list_push(run, group.list, items->item[order[i]], err));
    }
    *out = list;
    return LS_OK;
}

/* ---- iterators ---- */

static ls_status fill_items(jinja_run *run, const jinja_value *self, jinja_list *to, ls_error *err) {
    if (self->kind == JINJA_UNDEFINED) {
        return LS_OK;
    }
    if (self->kind != JINJA_DICT) {
        return jinja_fail(run, err, "Can only get item pairs from a mapping.");
    }
    for (size_t i = 0; i < self->dict->n; i++) {
        jinja_value pair;
        TRY(jinja_step(run, 1, err));
        TRY(jinja_pair(run, self->dict->entry[i].key, self->dict->entry[i].value, &pair, err));
        TRY(jinja_list_push(run, to, pair, err));
    }
    return LS_OK;
}

FILTER(do_items) {
    UNUSED;
    jinja_iterator *iterator;
    TRY(jinja_iterator_new(run, &iterator, out, err));
    return jinja_iterator_defer(run, iterator, fill_items(run, self, &iterator->items, err), err);
}

static ls_status fill_unique(jinja_run *run, const jinja_value *self, const jinja_value *arg, jinja_list *to,
                             ls_error *err) {
    jinja_cursor cursor;
    jinja_value seen, item, key, before;
    TRY(jinja_dict_new(run, JINJA_DICT, 0, &seen, err));
    TRY(jinja_cursor_init(run, &cursor, self, err));
    for (bool more;;) {
        TRY(jinja_cursor_next(run, &cursor, &item, &more, err));
        if (!more) {
            return LS_OK;
        }
        TRY(get_path(run, item, &arg[1], NULL, &key, err));
        TRY(fold_key(run, jinja_arg_truth(&arg[0], false), &key, err));
        TRY(jinja_dict_get(run, seen.dict, &key, &before, err));
        if (!jinja_given(&before)) {
            TRY(jinja_dict_set(run, seen.dict, key, jinja_bool(true), err));
            TRY(jinja_list_push(run, to, item, err));
        }
    }
}

FILTER(do_unique) {
    UNUSED;
    jinja_iterator *iterator;
    TRY(jinja_iterator_new(run, &iterator, out, err));
    return jinja_iterator_defer(run, iterator, fill_unique(run, self, arg, &iterator->items, err), err);
}

/* The call less its first n arguments. */
static jinja_call less(const jinja_call *call, size_t n) {
    jinja_call rest = *call;
    n = n < call->n ? n : call->n;
    rest.arg = n > 0 ? rest.arg + n : rest.arg;
    rest.n -= n;
    return rest;
}

static ls_status need_builtin(const jinja_run *run, const jinja_value *name, const jinja_builtin *found,
                              const char *what, ls_error *err) {
    if (found == NULL) {
        return jinja_fail(run, err, "No %s named '%.100s'.", what, name->kind == JINJA_STR ? name->str->s : "?");
    }
    return LS_OK;
}

/* map(attribute="a", default=b) */
static ls_status map_attributes(jinja_run *run, const jinja_value *self, const jinja_call *call, jinja_list *to,
                                ls_error *err) {
    const jinja_value *attribute = NULL, *fallback = NULL;
    for (size_t k = 0; k < call->n_keywords; k++) {
        if (jinja_str_is(call->name[k], "attribute")) {
            attribute = &call->keyword[k];
        } else if (jinja_str_is(call->name[k], "default")) {
            fallback = call->keyword[k].kind == JINJA_NONE ? NULL : &call->keyword[k];
        } else {
            return jinja_fail(run, err, "Unexpected keyword argument '%.100s'", call->name[k]->s);
        }
    }
    if (attribute == NULL) {
        return jinja_fail(run, err, "map requires a filter argument");
    }
    jinja_cursor cursor;
    jinja_value item;
    TRY(jinja_cursor_init(run, &cursor, self, err));
    for (bool more;;) {
        TRY(jinja_cursor_next(run, &cursor, &item, &more, err));
        if (!more) {
            return LS_OK;
        }
        TRY(get_path(run, item, attribute, fallback, &item, err));
        TRY(jinja_list_push(run, to, item, err));
    }
}

static ls_status fill_map(jinja_run *run, const jinja_value *self, const jinja_call *call, jinja_list *to,
                          ls_error *err) {
    if (!jinja_truth(self)) {
        return LS_OK;
    }
    if (call->n == 0) {
        return map_attributes(run, self, call, to, err);
    }
    const jinja_builtin *filter = call->arg[0].kind == JINJA_STR ? jinja_find_filter(call->arg[0].str) : NULL;
    jinja_call rest = less(call, 1);
    jinja_cursor cursor;
    jinja_value item, mapped;
    TRY(jinja_cursor_init(run, &cursor, self, err));
    for (bool more;;) {
        TRY(jinja_cursor_next(run, &cursor, &item, &more, err));
        if (!more) {
            return LS_OK;
        }
        TRY(need_builtin(run, &call->arg[0], filter, "filter", err));
        TRY(jinja_invoke(run, filter, &item, &rest, &mapped, err));
        TRY(jinja_list_push(run, to, mapped, err));
    }
}

FILTER(do_map) {
    UNUSED;
    jinja_iterator *iterator;
    TRY(jinja_iterator_new(run, &iterator, out, err));
    TRY(jinja_enter(run, err)); /* map('map', ...) */
    ls_status st = fill_map(run, self, call, &iterator->items, err);
    jinja_leave(run);
    return jinja_iterator_defer(run, iterator, st, err);
}

/* select, reject (attribute false), selectattr, rejectattr (true). */
static ls_status fill_selection(jinja_run *run, const jinja_value *self, const jinja_call *call, bool by_attribute,
                                bool keep, jinja_list *to, ls_error *err) {
    if (!jinja_truth(self)) {
        return LS_OK;
    }
    if (by_attribute && call->n == 0) {
        return jinja_fail(run, err, "Missing parameter for attribute name");
    }
    const jinja_value *test_name = call->n > by_attribute ? &call->arg[by_attribute] : NULL;
    const jinja_builtin *test =
        test_name != NULL && test_name->kind == JINJA_STR ? jinja_find_test(test_name->str) : NULL;
    jinja_call rest = less(call, (size_t)by_attribute + 1);
    jinja_cursor cursor;
    jinja_value item, tested;
    TRY(jinja_cursor_init(run, &cursor, self, err));
    for (bool more;;) {
        TRY(jinja_cursor_next(run, &cursor, &item, &more, err));
        if (!more) {
            return LS_OK;
        }
        tested = item;
        if (by_attribute) {
            TRY(get_path(run, item, &call->arg[0], NULL, &tested, err));
        }
        if (test_name != NULL) {
            TRY(need_builtin(run, test_name, test, "test", err));
            TRY(jinja_invoke(run, test, &tested, &rest, &tested, err));
        }
        if (jinja_truth(&tested) == keep) {
            TRY(jinja_list_push(run, to, item, err));
        }
    }
}

static ls_status selection(jinja_run *run, const jinja_value *self, const jinja_call *call, bool by_attribute,
                           bool keep, jinja_value *out, ls_error *err) {
    jinja_iterator *iterator;
    TRY(jinja_iterator_new(run, &iterator, out, err));
    ls_status st = fill_selection(run, self, call, by_attribute, keep, &iterator->items, err);
    return jinja_iterator_defer(run, iterator, st, err);
}

FILTER(do_select) {
    UNUSED;
    return selection(run, self, call, false, true, out, err);
}
FILTER(do_reject) {
    UNUSED;
    return selection(run, self, call, false, false, out, err);
}
FILTER(do_selectattr) {
    UNUSED;
    return selection(run, self, call, true, true, out, err);
}
FILTER(do_rejectattr) {
    UNUSED;
    return selection(run, self, call, true, false, out, err);
}

static ls_status fill_batch(jinja_run *run, const jinja_value *self, const jinja_value *arg, jinja_list *to,
                            ls_error *err) {
    jinja_list *items;
    jinja_value batch = {.kind = JINJA_MISSING};
    int64_t n;
    TRY(jinja_collect(run, self, &items, err));
    TRY(jinja_arg_int(run, &arg[0], 0, &n, err));
    for (size_t i = 0; i < items->n; i++) {
        if (!jinja_given(&batch) || (int64_t)batch.list->n == n) {
            TRY(jinja_list_new(run, JINJA_LIST, 0, &batch, err));
            TRY(jinja_list_push(run, to, batch, err));
        }
        TRY(jinja_list_push(run, batch.list, items->item[i], err));
    }
    while (jinja_given(&batch) && jinja_given(&arg[1]) && arg[1].kind != JINJA_NONE && (int64_t)batch.list->n < n) {
        TRY(jinja_step(run, 1, err));
        TRY(jinja_list_push(run, batch.list, arg[1], err));
    }
    return LS_OK;
}

FILTER(do_batch) {
    UNUSED;
    jinja_iterator *iterator;
    TRY(jinja_iterator_new(run, &iterator, out, err));
    return jinja_iterator_defer(run, iterator, fill_batch(run, self, arg, &iterator->items, err), err);
}

static ls_status fill_slices(jinja_run *run, const jinja_value *self, const jinja_value *arg, jinja_list *to,
                             ls_error *err) {
    jinja_list *items;
    int64_t n;
    TRY(jinja_collect(run, self, &items, err));
    TRY(jinja_arg_int(run, &arg[0], 0, &n, err));
    if (n == 0) {
        return jinja_fail(run, err, "integer division or modulo by zero");
    }
    int64_t each = n < 0 ? 0 : (int64_t)items->n / n, extra = n < 0 ? 0 : (int64_t)items->n % n;
    size_t at = 0;
    for (int64_t k = 0; k < n; k++) {
        jinja_value piece;
        TRY(jinja_step(run, 1, err));
        TRY(jinja_list_new(run, JINJA_LIST, 0, &piece, err));
        for (int64_t i = 0; i < each + (k < extra); i++) {
            TRY(jinja_list_push(run, piece.list, items->item[at++], err));
        }
        if (jinja_given(&arg[1]) && arg[1].kind != JINJA_NONE && k >= extra) {
            TRY(jinja_list_push(run, piece.list, arg[1], err));
        }
        TRY(jinja_list_push(run, to, piece, err));
    }
    return LS_OK;
}

FILTER(do_slice) {
    UNUSED;
    jinja_iterator *iterator;
    TRY(jinja_iterator_new(run, &iterator, out, err));
    return jinja_iterator_defer(run, iterator, fill_slices(run, self, arg, &iterator->items, err), err);
}

const jinja_builtin *jinja_find_list_filter(const jinja_str *name) {
    static const jinja_builtin filters[] = {
        {"batch", "linecount fill_with?", do_batch},
        {"dictsort", "case_sensitive? by? reverse?", do_dictsort},
        {"first", "", do_first},
        {"groupby", "attribute default? case_sensitive?", do_groupby},
        {"items", "", do_items},
        {"join", "d? attribute?", do_join},
        {"last", "", do_last},
        {"list", "", do_list},
        {"map", NULL, do_map},
        {"max", "case_sensitive? attribute?", do_max},
        {"min", "case_sensitive? attribute?", do_min},
        {"reject", NULL, do_reject},
        {"rejectattr", NULL, do_rejectattr},
        {"reverse", "", do_reverse},
        {"select", NULL, do_select},
        {"selectattr", NULL, do_selectattr},
        {"slice", "slices fill_with?", do_slice},
        {"sort", "reverse? case_sensitive? attribute?", do_sort},
        {"sum", "attribute? start?", do_sum},
        {"unique", "case_sensitive? attribute?", do_unique},
    };
    return jinja_find_in(filters, sizeof filters / sizeof *filters, name);
}
