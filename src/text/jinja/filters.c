/*
 * Filters of single values: text, numbers, JSON. Those of sequences are in filters_list.c. See builtin.h; the
 * model is jinja2/filters.py, with Hugging Face's tojson.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja/eval.h"
#include "text/jinja/unicode.h"
#include "text/utf8.h"

#define FILTER(name)                                                                                                   \
    static ls_status name(jinja_run *run, const jinja_value *self, const jinja_call *call, const jinja_value *arg,     \
                          jinja_value *out, ls_error *err)
#define UNUSED (void)run, (void)self, (void)call, (void)arg, (void)err

/* ---- text ---- */

static ls_status cased(jinja_run *run, const jinja_value *self, jinja_casing to, jinja_value *out, ls_error *err) {
    jinja_str *str;
    TRY(jinja_arg_soft_str(run, self, &str, err));
    return jinja_str_cased(run, str, to, out, err);
}

FILTER(do_upper) {
    UNUSED;
    return cased(run, self, JINJA_TO_UPPER, out, err);
}
FILTER(do_lower) {
    UNUSED;
    return cased(run, self, JINJA_TO_LOWER, out, err);
}
FILTER(do_capitalize) {
    UNUSED;
    return cased(run, self, JINJA_TO_CAPITAL, out, err);
}
FILTER(do_title) {
    UNUSED;
    return cased(run, self, JINJA_TO_WORDS, out, err);
}

FILTER(do_trim) {
    UNUSED;
    jinja_str *str, *chars = NULL;
    TRY(jinja_arg_soft_str(run, self, &str, err));
    if (jinja_given(&arg[0]) && arg[0].kind != JINJA_NONE) {
        TRY(jinja_arg_str(run, &arg[0], "what is trimmed", &chars, err));
    }
    return jinja_str_strip(run, str, chars, true, true, out, err);
}

FILTER(do_replace) {
    UNUSED;
    jinja_str *str, *old, *fresh;
    int64_t count = -1;
    TRY(jinja_arg_soft_str(run, self, &str, err));
    TRY(jinja_arg_soft_str(run, &arg[0], &old, err));
    TRY(jinja_arg_soft_str(run, &arg[1], &fresh, err));
    if (arg[2].kind != JINJA_NONE) {
        TRY(jinja_arg_int(run, &arg[2], -1, &count, err));
    }
    TRY(jinja_str_replace(run, str, old, fresh, count, out, err));
    out->str->markup = false;
    return LS_OK;
}

FILTER(do_center) {
    UNUSED;
    jinja_str *str;
    int64_t width;
    TRY(jinja_arg_soft_str(run, self, &str, err));
    TRY(jinja_arg_int(run, &arg[0], 80, &width, err));
    return jinja_str_center(run, str, width, NULL, out, err);
}

FILTER(do_string) {
    UNUSED;
    return jinja_to_str(run, self, out, err);
}

/* A string with another markup flag. */
static ls_status with_markup(jinja_run *run, const jinja_str *str, bool markup, jinja_value *out, ls_error *err) {
    TRY(jinja_str_borrow(&run->heap, str->s, str->n, out, err));
    out->str->markup = markup;
    return LS_OK;
}

FILTER(do_safe) {
    UNUSED;
    jinja_str *str;
    TRY(jinja_arg_soft_str(run, self, &str, err));
    return with_markup(run, str, true, out, err);
}

static ls_status escape(jinja_run *run, const jinja_value *self, bool force, jinja_value *out, ls_error *err) {
    jinja_str *str;
    jinja_text text = {0};
    TRY(jinja_arg_soft_str(run, self, &str, err));
    if (str->markup && !force) {
        *out = *self;
        return LS_OK;
    }
    TRY(jinja_text_add_escaped(run, &text, str->s, str->n, err));
    TRY(jinja_text_done(run, &text, out, err));
    out->str->markup = true;
    return LS_OK;
}

FILTER(do_escape) {
    UNUSED;
    return escape(run, self, false, out, err);
}
FILTER(do_forceescape) {
    UNUSED;
    return escape(run, self, true, out, err);
}

FILTER(do_indent) {
    UNUSED;
    jinja_str *str, *indent = NULL;
    int64_t width = 0;
    bool first = jinja_arg_truth(&arg[1], false), blank = jinja_arg_truth(&arg[2], false);
    TRY(self->kind == JINJA_UNDEFINED ? jinja_fail_undefined(run, self, err) : LS_OK);
    TRY(jinja_arg_str(run, self, "what is indented", &str, err));
    if (arg[0].kind == JINJA_STR) {
        indent = arg[0].str;
    } else {
        TRY(jinja_arg_int(run, &arg[0], 4, &width, err));
    }
    jinja_value with_newline, lines, newline;
    TRY(jinja_str_borrow(&run->heap, "\n", 1, &newline, err));
    newline.str->markup = str->markup;
    TRY(jinja_binary(run, '+', self, &newline, &with_newline, err));
    TRY(jinja_str_splitlines(run, with_newline.str, false, &lines, err));
    jinja_text text = {0};
    for (size_t i = 0; i < lines.list->n; i++) {
        const jinja_str *line = lines.list->item[i].str;
        TRY(jinja_text_add(run, &text, "\n", i > 0, err));
        if (i == 0 ? first : blank || line->n > 0) {
            TRY(indent != NULL ? jinja_text_add(run, &text, indent->s, indent->n, err)
                               : jinja_text_add_times(run, &text, " ", 1, width, err));
        }
        TRY(jinja_text_add(run, &text, line->s, line->n, err));
    }
    TRY(jinja_text_done(run, &text, out, err));
    out->str->markup = str->markup;
    return LS_OK;
}

FILTER(do_truncate) {
    UNUSED;
    jinja_str *str, *end = NULL;
    int64_t length, leeway;
    TRY(jinja_arg_int(run, &arg[0], 255, &length, err));
    TRY(jinja_arg_int(run, &arg[3], 5, &leeway, err));
    if (jinja_given(&arg[2])) {
        TRY(jinja_arg_str(run, &arg[2], "the end", &end, err));
    }
    int64_t n_end = end == NULL ? 3 : (int64_t)jinja_str_chars(end);
    if (length < n_end || leeway < 0) {
        return jinja_fail(run, err, "expected length >= %lld and leeway >= 0", (long long)n_end);
    }
    size_t items = 0;
    if (!jinja_length(self, &items)) {
        return jinja_fail(run, err, "a value of type %s has no length", jinja_type_name(self));
    }
    if ((int64_t)items <= length || (int64_t)items - length <= leeway) { /* whatever it is */
        *out = *self;
        return LS_OK;
    }
    TRY(jinja_arg_str(run, self, "what is truncated", &str, err));
    size_t cut = jinja_str_offset(str, (size_t)(length - n_end));
    if (!jinja_arg_truth(&arg[1], false)) {
        const char *blank = memrchr(str->s, ' ', cut);
        cut = blank == NULL ? cut : (size_t)(blank - str->s);
    }
    jinja_text text = {0};
    TRY(jinja_text_add(run, &text, str->s, cut, err));
    TRY(jinja_text_add(run, &text, end == NULL ? "..." : end->s, end == NULL ? 3 : end->n, err));
    return jinja_text_done(run, &text, out, err);
}

FILTER(do_wordcount) {
    UNUSED;
    jinja_str *str;
    int64_t words = 0;
    bool inside = false;
    size_t n_bytes;
    TRY(jinja_arg_soft_str(run, self, &str, err));
    TRY(jinja_step(run, str->n / 16, err));
    for (size_t i = 0; i < str->n; i += n_bytes) {
        int32_t c = utf8_decode(str->s + i, &n_bytes);
        bool word = c == '_' || jinja_char_is_alpha(c) || jinja_char_is_numeric(c);
        words += word && !inside;
        inside = word;
    }
    *out = jinja_int(words);
    return LS_OK;
}

FILTER(do_urlencode) {
    UNUSED;
    jinja_str *str;
    jinja_text text = {0};
    if (self->kind == JINJA_DICT || (self->kind != JINJA_STR && jinja_iterable(self))) {
        return jinja_fail_as(run, LS_EUNSUPPORTED, err, "urlencode is supported for strings only");
    }
    TRY(jinja_arg_soft_str(run, self, &str, err));
    for (size_t i = 0; i < str->n; i++) {
        char c = str->s[i], escaped[8];
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                     (c != '\0' && strchr("_.-~/", c) != NULL);
        snprintf(escaped, sizeof escaped, plain ? "%c" : "%%%02X", (unsigned char)c);
        TRY(jinja_text_add_c(run, &text, escaped, err));
    }
    return jinja_text_done(run, &text, out, err);
}

/* ---- numbers ---- */

/* The text of a number as Python's int() and float() take it: without white space around, without single underscores
 * between digits. false: not so, or too long to be one. */
static bool number_text(const jinja_str *str, char out[400]) {
    size_t from = 0, to = str->n, n = 0, n_bytes;
    while (from < to && jinja_char_is_space(utf8_decode(str->s + from, &n_bytes))) {
        from += n_bytes;
    }
    while (to > from && (unsigned char)str->s[to - 1] < 0x80 && jinja_char_is_space(str->s[to - 1])) {
        to--;
    }
    for (size_t i = from; i < to; i++) {
        char c = str->s[i];
        bool between = i > from && i + 1 < to && str->s[i - 1] != '_' && str->s[i + 1] != '_';
        if ((c == '_' && !between) || c == '\0' || n == 399) {
            return false;
        }
        if (c != '_') {
            out[n++] = c;
        }
    }
    out[n] = '\0';
    return n > 0;
}

static int digit_of(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'z' ? c - 'a' + 10
           : c >= 'A' && c <= 'Z' ? c - 'A' + 10
                                  : 99;
}

typedef enum parsed { PARSED, NOT_A_NUMBER, TOO_LARGE } parsed;

static parsed parse_int(const jinja_str *str, int64_t base, int64_t *out) {
    char text[400];
    const char *s = text;
    if (!number_text(str, text)) {
        return NOT_A_NUMBER;
    }
    bool negative = *s == '-';
    s += *s == '-' || *s == '+';
    int marked = s[0] == '0' ? ((s[1] | 0x20) == 'x'   ? 16
                                : (s[1] | 0x20) == 'o' ? 8
                                : (s[1] | 0x20) == 'b' ? 2
                                                       : 0)
                             : 0;
    if (marked != 0 && (base == marked || base == 0)) {
        s += 2;
        base = marked;
    } else if (base == 0) {
        base = 10;
        if (s[0] == '0' && strspn(s, "0") != strlen(s)) {
            return NOT_A_NUMBER;
        }
    }
    int64_t value = 0;
    bool large = false;
    if (*s == '\0') {
        return NOT_A_NUMBER;
    }
    for (; *s != '\0'; s++) {
        int digit = digit_of(*s);
        if (digit >= base) {
            return NOT_A_NUMBER;
        }
        large = large || __builtin_mul_overflow(value, base, &value) ||
                __builtin_add_overflow(value, negative ? -digit : digit, &value);
    }
    *out = value;
    return large ? TOO_LARGE : PARSED;
}

static bool parse_float(const jinja_str *str, double *out) {
    char text[400], *end;
    if (!number_text(str, text)) {
        return false;
    }
    const char *s = text + (text[0] == '-' || text[0] == '+');
    bool word = strcasecmp(s, "inf") == 0 || strcasecmp(s, "infinity") == 0 || strcasecmp(s, "nan") == 0;
    if (!word && (strspn(s, "0123456789.eE+-") != strlen(s) || *s == '-' || *s == '+')) {
        return false; /* strtod would take hexadecimal too */
    }
    *out = strtod(text, &end);
    return *end == '\0' && end > text;
}

static ls_status float_to_int(const jinja_run *run, double f, jinja_value *out, ls_error *err) {
    if (f >= 9223372036854775808.0 || f < -9223372036854775808.0) {
        return jinja_fail(run, err, "the result does not fit a 64-bit integer");
    }
    *out = jinja_int((int64_t)f);
    return LS_OK;
}

FILTER(do_int) {
    UNUSED;
    jinja_value fallback = jinja_given(&arg[0]) ? arg[0] : jinja_int(0);
    int64_t base, value;
    double f;
    TRY(jinja_arg_int(run, &arg[1], 10, &base, err));
    if (jinja_as_int(self, &value)) {
        *out = jinja_int(value);
        return LS_OK;
    }
    if (self->kind == JINJA_UNDEFINED) {
        return jinja_fail_undefined(run, self, err);
    }
    if (self->kind == JINJA_STR) {
        parsed result = base == 0 || (base >= 2 && base <= 36) ? parse_int(self->str, base, &value) : NOT_A_NUMBER;
        if (result == TOO_LARGE) {
            return jinja_fail(run, err, "the result does not fit a 64-bit integer");
        }
        if (result == PARSED) {
            *out = jinja_int(value);
            return LS_OK;
        }
        if (!parse_float(self->str, &f) || !isfinite(f)) {
            *out = fallback;
            return LS_OK;
        }
        return float_to_int(run, f, out, err);
    }
    if (self->kind != JINJA_FLOAT || isnan(self->f)) {
        *out = fallback;
        return LS_OK;
    }
    if (isinf(self->f)) {
        return jinja_fail(run, err, "cannot convert float infinity to integer");
    }
    return float_to_int(run, self->f, out, err);
}

FILTER(do_float) {
    UNUSED;
    double f;
    if (self->kind == JINJA_UNDEFINED) {
        return jinja_fail_undefined(run, self, err);
    }
    if (jinja_is_number(self)) {
        *out = jinja_float(jinja_as_float(self));
    } else if (self->kind == JINJA_STR && parse_float(self->str, &f)) {
        *out = jinja_float(f);
    } else {
        *out = jinja_given(&arg[0]) ? arg[0] : jinja_float(0);
    }
    return LS_OK;
}

FILTER(do_abs) {
    UNUSED;
    int64_t value;
    if (jinja_as_int(self, &value)) {
        jinja_value positive = jinja_int(value);
        return value < 0 ? jinja_unary(run, '-', &positive, out, err) : (*out = positive, LS_OK);
    }
    if (self->kind != JINJA_FLOAT) {
        return self->kind == JINJA_UNDEFINED ? jinja_fail_undefined(run, self, err)
                                             : jinja_fail(run, err, "abs of a value of type %s", jinja_type_name(self));
    }
    *out = jinja_float(fabs(self->f));
    return LS_OK;
}

/* Python's round() is exact on the decimal expansion and rounds ties to even, as printf does. */
static double round_decimal(double value, int64_t precision) {
    char text[800];
    if (!isfinite(value) || precision > 320) {
        return value;
    }
    if (precision >= 0) {
        snprintf(text, sizeof text, "%.*f", (int)precision, value);
        return strtod(text, NULL);
    }
    if (precision < -310) {
        return copysign(0, value);
    }
    double scale = pow(10, (double)-precision), scaled = value / scale, rounded = round(scaled);
    if (fabs(scaled - rounded) == 0.5) {
        rounded = 2 * round(scaled / 2);
    }
    return rounded * scale;
}

/* round(int, -n): to a multiple of 10^n, ties to even. */
static ls_status round_int(const jinja_run *run, int64_t value, int64_t precision, jinja_value *out, ls_error *err) {
    if (precision >= 0) {
        *out = jinja_int(value);
        return LS_OK;
    }
    if (precision < -18) {
        *out = jinja_int(0);
        return LS_OK;
    }
    int64_t scale = 1;
    for (int64_t i = precision; i < 0; i++) {
        scale *= 10;
    }
    int64_t rest = value % scale, down = value - rest;
    rest = rest < 0 ? -rest : rest;
    bool away = rest > scale / 2 || (rest == scale / 2 && (down / scale) % 2 != 0);
    if (away && __builtin_add_overflow(down, value < 0 ? -scale : scale, &down)) {
        return jinja_fail(run, err, "the result does not fit a 64-bit integer");
    }
    *out = jinja_int(down);
    return LS_OK;
}

FILTER(do_round) {
    UNUSED;
    int64_t precision, value;
    TRY(jinja_arg_int(run, &arg[0], 0, &precision, err));
    const char *method = !jinja_given(&arg[1]) ? "common" : arg[1].kind == JINJA_STR ? arg[1].str->s : "";
    bool ceiling = strcmp(method, "ceil") == 0, flooring = strcmp(method, "floor") == 0;
    if (!ceiling && !flooring && strcmp(method, "common") != 0) {
        return jinja_fail(run, err, "method must be common, ceil or floor");
    }
    if (!jinja_is_number(self)) {
        return self->kind == JINJA_UNDEFINED
                   ? jinja_fail_undefined(run, self, err)
                   : jinja_fail(run, err, "round of a value of type %s", jinja_type_name(self));
    }
    if (!ceiling && !flooring) {
        if (jinja_as_int(self, &value)) {
            return round_int(run, value, precision, out, err);
        }
        *out = jinja_float(round_decimal(self->f, precision));
        return LS_OK;
    }
    double scale = pow(10, (double)precision), scaled = jinja_as_float(self) * scale;
    if (!isfinite(scaled) || scale == 0) {
        return jinja_fail(run, err, "round: out of range");
    }
    *out = jinja_float((ceiling ? ceil(scaled) : floor(scaled)) / scale);
    return LS_OK;
}

/* ---- any value ---- */

FILTER(do_default) {
    UNUSED;
    if (self->kind == JINJA_UNDEFINED || (jinja_arg_truth(&arg[1], false) && !jinja_truth(self))) {
        if (jinja_given(&arg[0])) {
            *out = arg[0];
            return LS_OK;
        }
        return jinja_str_borrow(&run->heap, "", 0, out, err);
    }
    *out = *self;
    return LS_OK;
}

static ls_status length_or_fail(jinja_run *run, const jinja_value *self, size_t *n, ls_error *err) {
    return jinja_length(self, n) ? LS_OK
                                 : jinja_fail(run, err, "a value of type %s has no length", jinja_type_name(self));
}

FILTER(do_length) {
    UNUSED;
    size_t n = 0;
    jinja_value length = {.kind = JINJA_MISSING};
    if (self->kind == JINJA_LOOP) {
        jinja_value name;
        TRY(jinja_str_borrow(&run->heap, "length", strlen("length"), &name, err));
        TRY(jinja_loop_attribute(run, self->loop, name.str, &length, err));
        *out = length;
        return LS_OK;
    }
    TRY(length_or_fail(run, self, &n, err));
    *out = jinja_int((int64_t)n);
    return LS_OK;
}

FILTER(do_attr) {
    UNUSED;
    jinja_str *name;
    TRY(jinja_arg_str(run, &arg[0], "the name of an attribute", &name, err));
    if (self->kind == JINJA_DICT && jinja_find_method(self, name) == NULL) { /* attributes only, no items */
        return jinja_undefined_of(run, self, name, out, err);
    }
    return jinja_get_attribute(run, self, name, out, err);
}

static ls_status separator_of(jinja_run *run, const jinja_value *pair, size_t i, const jinja_str **out, ls_error *err) {
    jinja_str *str;
    TRY(jinja_arg_str(run, &pair->list->item[i], "a separator", &str, err));
    *out = str;
    return LS_OK;
}

FILTER(do_tojson) {
    UNUSED;
    jinja_json_style style = {.ensure_ascii = jinja_arg_truth(&arg[0], false),
                              .sort_keys = jinja_arg_truth(&arg[3], false),
                              .pretty = jinja_given(&arg[1]) && arg[1].kind != JINJA_NONE};
    jinja_text text = {0}, level = {0};
    jinja_value indent;
    int64_t width;
    if (style.pretty) {
        if (arg[1].kind == JINJA_STR) {
            indent = arg[1];
        } else {
            TRY(jinja_arg_int(run, &arg[1], 0, &width, err));
            TRY(jinja_text_add_times(run, &level, " ", 1, width, err));
            TRY(jinja_text_done(run, &level, &indent, err));
        }
        style.indent = indent.str;
    }
    if (jinja_given(&arg[2]) && arg[2].kind != JINJA_NONE) {
        if ((arg[2].kind != JINJA_LIST && arg[2].kind != JINJA_TUPLE) || arg[2].list->n != 2) {
            return jinja_fail(run, err, "separators are a pair of strings");
        }
        TRY(separator_of(run, &arg[2], 0, &style.comma, err));
        TRY(separator_of(run, &arg[2], 1, &style.colon, err));
    }
    TRY(jinja_text_add_json(run, &text, self, &style, err));
    return jinja_text_done(run, &text, out, err);
}

FILTER(do_unsupported) {
    UNUSED;
    (void)out;
    return jinja_fail_as(run, LS_EUNSUPPORTED, err, "this filter is not supported");
}

const jinja_builtin *jinja_find_filter(const jinja_str *name) {
    static const jinja_builtin filters[] = {
        {"abs", "", do_abs},
        {"attr", "name", do_attr},
        {"capitalize", "", do_capitalize},
        {"center", "width?", do_center},
        {"count", "", do_length},
        {"d", "default_value? boolean?", do_default},
        {"default", "default_value? boolean?", do_default},
        {"e", "", do_escape},
        {"escape", "", do_escape},
        {"float", "default?", do_float},
        {"forceescape", "", do_forceescape},
        {"indent", "width? first? blank?", do_indent},
        {"int", "default? base?", do_int},
        {"length", "", do_length},
        {"lower", "", do_lower},
        {"replace", "old new count?", do_replace},
        {"round", "precision? method?", do_round},
        {"safe", "", do_safe},
        {"string", "", do_string},
        {"title", "", do_title},
        {"tojson", "ensure_ascii? indent? separators? sort_keys?", do_tojson},
        {"trim", "chars?", do_trim},
        {"truncate", "length? killwords? end? leeway?", do_truncate},
        {"upper", "", do_upper},
        {"urlencode", "", do_urlencode},
        {"wordcount", "", do_wordcount},
        {"filesizeformat", NULL, do_unsupported},
        {"format", NULL, do_unsupported},
        {"pprint", NULL, do_unsupported},
        {"random", NULL, do_unsupported},
        {"striptags", NULL, do_unsupported},
        {"urlize", NULL, do_unsupported},
        {"wordwrap", NULL, do_unsupported},
        {"xmlattr", NULL, do_unsupported},
    };
    const jinja_builtin *found = jinja_find_in(filters, sizeof filters / sizeof *filters, name);
    return found != NULL ? found : jinja_find_list_filter(name);
}
