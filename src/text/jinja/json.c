/* json.dumps() as Hugging Face's tojson filter calls it. See text.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja/sort.h"
#include "text/jinja/text.h"
#include "text/utf8.h"

static ls_status add_value(jinja_run *run, jinja_text *text, const jinja_value *value, const jinja_json_style *style,
                           int level, ls_error *err);

/* What stands for c inside quotes; empty: c itself. */
static void escape_of(int32_t c, bool ensure_ascii, char out[16]) {
    const char *plain = "\"\\\n\r\t\b\f", *letter = "\"\\nrtbf";
    const char *found = c > 0 && c < 0x80 ? strchr(plain, c) : NULL;
    out[0] = '\0';
    if (found != NULL) {
        snprintf(out, 16, "\\%c", letter[found - plain]);
    } else if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
        snprintf(out, 16, "\\u%04x", (unsigned)c);
    } else if (ensure_ascii && c >= 0x10000) {
        unsigned rest = (unsigned)c - 0x10000;
        snprintf(out, 16, "\\u%04x\\u%04x", 0xD800 | rest >> 10, 0xDC00 | (rest & 0x3FF));
    }
}

static ls_status add_string(jinja_run *run, jinja_text *text, const char *s, size_t n, const jinja_json_style *style,
                            ls_error *err) {
    TRY(jinja_text_add(run, text, "\"", 1, err));
    size_t from = 0, n_bytes;
    for (size_t i = 0; i < n; i += n_bytes) {
        char escape[16];
        escape_of(utf8_decode(s + i, &n_bytes), style->ensure_ascii, escape);
        if (escape[0] != '\0') {
            TRY(jinja_text_add(run, text, s + from, i - from, err));
            TRY(jinja_text_add_c(run, text, escape, err));
            from = i + n_bytes;
        }
    }
    TRY(jinja_text_add(run, text, s + from, n - from, err));
    return jinja_text_add(run, text, "\"", 1, err);
}

static ls_status add_scalar(jinja_run *run, jinja_text *text, const jinja_value *value, ls_error *err) {
    switch (value->kind) {
    case JINJA_NONE:
        return jinja_text_add_c(run, text, "null", err);
    case JINJA_BOOL:
        return jinja_text_add_c(run, text, value->b ? "true" : "false", err);
    case JINJA_INT:
        return jinja_text_add_repr(run, text, value, err);
    case JINJA_FLOAT:
        if (!isfinite(value->f)) {
            return jinja_text_add_c(run, text, isnan(value->f) ? "NaN" : value->f < 0 ? "-Infinity" : "Infinity", err);
        }
        return jinja_text_add_repr(run, text, value, err);
    default:
        return jinja_fail(run, err, "a value of type %s cannot be written as JSON", jinja_type_name(value));
    }
}

static ls_status add_key(jinja_run *run, jinja_text *text, const jinja_value *key, const jinja_json_style *style,
                         ls_error *err) {
    if (key->kind == JINJA_STR) {
        return add_string(run, text, key->str->s, key->str->n, style, err);
    }
    if (!jinja_is_number(key) && key->kind != JINJA_NONE) {
        return jinja_fail(run, err, "a value of type %s cannot be a key in JSON", jinja_type_name(key));
    }
    TRY(jinja_text_add(run, text, "\"", 1, err));
    TRY(add_scalar(run, text, key, err));
    return jinja_text_add(run, text, "\"", 1, err);
}

static ls_status add_line(jinja_run *run, jinja_text *text, const jinja_json_style *style, int level, ls_error *err) {
    if (!style->pretty) {
        return LS_OK;
    }
    TRY(jinja_text_add(run, text, "\n", 1, err));
    return jinja_text_add_times(run, text, style->indent->s, style->indent->n, level, err);
}

/* Between items (i > 0) and before the first one. */
static ls_status add_comma(jinja_run *run, jinja_text *text, const jinja_json_style *style, size_t i, int level,
                           ls_error *err) {
    if (i > 0 && style->comma != NULL) {
        TRY(jinja_text_add(run, text, style->comma->s, style->comma->n, err));
    } else if (i > 0) {
        TRY(jinja_text_add_c(run, text, style->pretty ? "," : ", ", err));
    }
    return add_line(run, text, style, level, err);
}

static ls_status add_list(jinja_run *run, jinja_text *text, const jinja_list *list, const jinja_json_style *style,
                          int level, ls_error *err) {
    if (list->n == 0) {
        return jinja_text_add_c(run, text, "[]", err);
    }
    TRY(jinja_text_add(run, text, "[", 1, err));
    for (size_t i = 0; i < list->n; i++) {
        TRY(add_comma(run, text, style, i, level + 1, err));
        TRY(add_value(run, text, &list->item[i], style, level + 1, err));
    }
    TRY(add_line(run, text, style, level, err));
    return jinja_text_add(run, text, "]", 1, err);
}

static ls_status add_dict(jinja_run *run, jinja_text *text, const jinja_dict *dict, const jinja_json_style *style,
                          int level, ls_error *err) {
    if (dict->n == 0) {
        return jinja_text_add_c(run, text, "{}", err);
    }
    size_t *order;
    TRY(jinja_take(run, dict->n, sizeof *order, &order, err));
    jinja_value *keys;
    TRY(jinja_take(run, dict->n, sizeof *keys, &keys, err));
    for (size_t i = 0; i < dict->n; i++) {
        order[i] = i;
        keys[i] = dict->entry[i].key;
    }
    if (style->sort_keys) {
        TRY(jinja_sort(run, keys, order, dict->n, false, err));
    }
    TRY(jinja_text_add(run, text, "{", 1, err));
    for (size_t i = 0; i < dict->n; i++) {
        const jinja_entry *entry = &dict->entry[order[i]];
        TRY(add_comma(run, text, style, i, level + 1, err));
        TRY(add_key(run, text, &entry->key, style, err));
        if (style->colon != NULL) {
            TRY(jinja_text_add(run, text, style->colon->s, style->colon->n, err));
        } else {
            TRY(jinja_text_add_c(run, text, ": ", err));
        }
        TRY(add_value(run, text, &entry->value, style, level + 1, err));
    }
    TRY(add_line(run, text, style, level, err));
    return jinja_text_add(run, text, "}", 1, err);
}

static ls_status add_nested(jinja_run *run, jinja_text *text, const jinja_value *value, const jinja_json_style *style,
                            int level, ls_error *err) {
    if (value->kind == JINJA_DICT) {
        return add_dict(run, text, value->dict, style, level, err);
    }
    if (value->kind == JINJA_LIST || value->kind == JINJA_TUPLE) {
        return add_list(run, text, value->list, style, level, err);
    }
    return add_scalar(run, text, value, err);
}

static ls_status add_value(jinja_run *run, jinja_text *text, const jinja_value *value, const jinja_json_style *style,
                           int level, ls_error *err) {
    if (value->kind == JINJA_STR) {
        return add_string(run, text, value->str->s, value->str->n, style, err);
    }
    TRY(jinja_enter(run, err));
    ls_status st = add_nested(run, text, value, style, level, err);
    jinja_leave(run);
    return st;
}

ls_status jinja_text_add_json(jinja_run *run, jinja_text *text, const jinja_value *value, const jinja_json_style *style,
                              ls_error *err) {
    return add_value(run, text, value, style, 0, err);
}
