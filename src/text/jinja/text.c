/* See text.h. */
#include "text/jinja/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja/unicode.h"
#include "text/utf8.h"

ls_status jinja_text_add(jinja_run *run, jinja_text *text, const char *s, size_t n, ls_error *err) {
    TRY(jinja_step(run, n / 64, err));
    if (n > run->limits.output_bytes - text->n) {
        return jinja_fail_as(run, LS_ETOOLONG, err, "more than %zu bytes of text", run->limits.output_bytes);
    }
    if (text->n + n + 1 > text->capacity) {
        size_t capacity = text->capacity * 2;
        if (capacity < text->n + n + 1) {
            capacity = text->n + n + 1;
        }
        ls_status st = jinja_heap_grow(&run->heap, text->s, text->n, capacity, &text->s, err);
        if (st < 0) {
            return error_prefix(err, st, "%s:%d", run->name, run->line);
        }
        text->capacity = capacity;
    }
    if (n > 0) {
        memcpy(text->s + text->n, s, n);
    }
    text->n += n;
    text->s[text->n] = '\0';
    return LS_OK;
}

ls_status jinja_text_add_c(jinja_run *run, jinja_text *text, const char *s, ls_error *err) {
    return jinja_text_add(run, text, s, strlen(s), err);
}

size_t jinja_encode_utf8(int32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

ls_status jinja_text_add_char(jinja_run *run, jinja_text *text, int32_t c, ls_error *err) {
    char bytes[4];
    return jinja_text_add(run, text, bytes, jinja_encode_utf8(c, bytes), err);
}

ls_status jinja_text_add_times(jinja_run *run, jinja_text *text, const char *s, size_t n, int64_t times,
                               ls_error *err) {
    for (int64_t i = 0; i < times && n > 0; i++) {
        TRY(jinja_step(run, 1, err));
        TRY(jinja_text_add(run, text, s, n, err));
    }
    return LS_OK;
}

ls_status jinja_text_done(jinja_run *run, jinja_text *text, jinja_value *out, ls_error *err) {
    TRY(jinja_text_add(run, text, "", 0, err)); /* so that there is a NUL */
    return jinja_str_borrow(&run->heap, text->s, text->n, out, err);
}

ls_status jinja_text_add_escaped(jinja_run *run, jinja_text *text, const char *s, size_t n, ls_error *err) {
    size_t from = 0;
    for (size_t i = 0; i < n; i++) {
        const char *entity = s[i] == '&'    ? "&amp;"
                             : s[i] == '<'  ? "&lt;"
                             : s[i] == '>'  ? "&gt;"
                             : s[i] == '\'' ? "&#39;"
                             : s[i] == '"'  ? "&#34;"
                                            : NULL;
        if (entity != NULL) {
            TRY(jinja_text_add(run, text, s + from, i - from, err));
            TRY(jinja_text_add_c(run, text, entity, err));
            from = i + 1;
        }
    }
    return jinja_text_add(run, text, s + from, n - from, err);
}

/* ---- numbers ---- */

void jinja_format_float(double f, char out[JINJA_FLOAT_BYTES]) {
    if (isnan(f)) {
        snprintf(out, JINJA_FLOAT_BYTES, "nan");
        return;
    }
    if (isinf(f)) {
        snprintf(out, JINJA_FLOAT_BYTES, f < 0 ? "-inf" : "inf");
        return;
    }
    char digits[JINJA_FLOAT_BYTES];
    for (int precision = 0; precision < 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, f);
        if (strtod(digits, NULL) == f) {
            break;
        }
    }
    char *e = strchr(digits, 'e');
    int exponent = (int)strtol(e + 1, NULL, 10);
    if (exponent < -4 || exponent >= 16) {
        *e = '\0';
        snprintf(out, JINJA_FLOAT_BYTES, "%.30se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int decimals =
        (int)(e - digits) - 2 - (f < 0 || signbit(f)) - exponent; /* digits behind the first, and the point */
    snprintf(out, JINJA_FLOAT_BYTES, "%.*f", decimals < 1 ? 1 : decimals, f);
}

/* ---- repr ---- */

static ls_status add_repr_of_str(jinja_run *run, jinja_text *text, const jinja_str *str, ls_error *err) {
    bool single = memchr(str->s, '\'', str->n) != NULL, twice = memchr(str->s, '"', str->n) != NULL;
    char quote[2] = {single && !twice ? '"' : '\'', '\0'};
    TRY(jinja_text_add_c(run, text, quote, err));
    size_t n_bytes;
    for (size_t i = 0; i < str->n; i += n_bytes) {
        int32_t c = utf8_decode(str->s + i, &n_bytes);
        char escape[16] = "";
        if (c == quote[0] || c == '\\') {
            snprintf(escape, sizeof escape, "\\%c", c);
        } else if (c == '\n' || c == '\r' || c == '\t') {
            snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        } else if (!jinja_char_is_printable(c)) {
            snprintf(escape, sizeof escape, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
        }
        if (escape[0] != '\0') {
            TRY(jinja_text_add_c(run, text, escape, err));
        } else {
            TRY(jinja_text_add(run, text, str->s + i, n_bytes, err));
        }
    }
    return jinja_text_add_c(run, text, quote, err);
}

static ls_status add_repr_of_items(jinja_run *run, jinja_text *text, const jinja_value *value, const char *open,
                                   const char *close, ls_error *err) {
    TRY(jinja_text_add_c(run, text, open, err));
    jinja_cursor cursor;
    TRY(jinja_cursor_init(run, &cursor, value, err));
    for (bool first = true, more = true;; first = false) {
        jinja_value item;
        TRY(jinja_cursor_next(run, &cursor, &item, &more, err));
        if (!more) {
            return jinja_text_add_c(run, text, close, err);
        }
        if (!first) {
            TRY(jinja_text_add_c(run, text, ", ", err));
        }
        TRY(jinja_text_add_repr(run, text, &item, err));
    }
}

static ls_status add_repr_of_dict(jinja_run *run, jinja_text *text, const jinja_dict *dict, ls_error *err) {
    TRY(jinja_text_add_c(run, text, "{", err));
    for (size_t i = 0; i < dict->n; i++) {
        TRY(jinja_text_add_c(run, text, i > 0 ? ", " : "", err));
        TRY(jinja_text_add_repr(run, text, &dict->entry[i].key, err));
        TRY(jinja_text_add_c(run, text, ": ", err));
        TRY(jinja_text_add_repr(run, text, &dict->entry[i].value, err));
    }
    return jinja_text_add_c(run, text, "}", err);
}

static ls_status add_repr_of_range(jinja_run *run, jinja_text *text, const jinja_range *range, ls_error *err) {
    char out[96];
    long long start = range->start, stop = range->stop, step = range->step;
    if (step == 1) {
        snprintf(out, sizeof out, "range(%lld, %lld)", start, stop);
    } else {
        snprintf(out, sizeof out, "range(%lld, %lld, %lld)", start, stop, step);
    }
    return jinja_text_add_c(run, text, out, err);
}

static ls_status add_repr_nested(jinja_run *run, jinja_text *text, const jinja_value *value, ls_error *err) {
    switch (value->kind) {
    case JINJA_LIST:
        return add_repr_of_items(run, text, value, "[", "]", err);
    case JINJA_TUPLE:
        return add_repr_of_items(run, text, value, "(", value->list->n == 1 ? ",)" : ")", err);
    case JINJA_DICT:
        return add_repr_of_dict(run, text, value->dict, err);
    case JINJA_NAMESPACE:
        TRY(jinja_text_add_c(run, text, "<Namespace ", err));
        TRY(add_repr_of_dict(run, text, value->dict, err));
        return jinja_text_add_c(run, text, ">", err);
    case JINJA_VIEW:
        TRY(jinja_text_add_c(run, text, jinja_type_name(value), err));
        return add_repr_of_items(run, text, value, "([", "])", err);
    default: /* Python would give an address */
        TRY(jinja_text_add_c(run, text, "<", err));
        TRY(jinja_text_add_c(run, text, jinja_type_name(value), err));
        return jinja_text_add_c(run, text, ">", err);
    }
}

ls_status jinja_text_add_repr(jinja_run *run, jinja_text *text, const jinja_value *value, ls_error *err) {
    char number[JINJA_FLOAT_BYTES];
    switch (value->kind) {
    case JINJA_UNDEFINED:
        return jinja_text_add_c(run, text, "Undefined", err);
    case JINJA_NONE:
        return jinja_text_add_c(run, text, "None", err);
    case JINJA_BOOL:
        return jinja_text_add_c(run, text, value->b ? "True" : "False", err);
    case JINJA_INT:
        snprintf(number, sizeof number, "%lld", (long long)value->i);
        return jinja_text_add_c(run, text, number, err);
    case JINJA_FLOAT:
        jinja_format_float(value->f, number);
        return jinja_text_add_c(run, text, number, err);
    case JINJA_RANGE:
        return add_repr_of_range(run, text, value->range, err);
    case JINJA_STR:
        if (!value->str->markup) {
            return add_repr_of_str(run, text, value->str, err);
        }
        TRY(jinja_text_add_c(run, text, "Markup(", err));
        TRY(add_repr_of_str(run, text, value->str, err));
        return jinja_text_add_c(run, text, ")", err);
    default:
        break;
    }
    TRY(jinja_enter(run, err));
    ls_status st = add_repr_nested(run, text, value, err);
    jinja_leave(run);
    return st;
}

ls_status jinja_text_add_str(jinja_run *run, jinja_text *text, const jinja_value *value, ls_error *err) {
    if (value->kind == JINJA_STR) {
        return jinja_text_add(run, text, value->str->s, value->str->n, err);
    }
    return value->kind == JINJA_UNDEFINED ? LS_OK : jinja_text_add_repr(run, text, value, err);
}

ls_status jinja_to_str(jinja_run *run, const jinja_value *value, jinja_value *out, ls_error *err) {
    if (value->kind == JINJA_STR) {
        *out = *value;
        return LS_OK;
    }
    jinja_text text = {0};
    TRY(jinja_text_add_str(run, &text, value, err));
    return jinja_text_done(run, &text, out, err);
}
