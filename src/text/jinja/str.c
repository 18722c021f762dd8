/* What filters and methods do to strings. See builtin.h. */
#include <string.h>

#include "text/jinja/builtin.h"
#include "text/jinja/text.h"
#include "text/jinja/unicode.h"
#include "text/utf8.h"

/* The character before byte `end`, and where it starts. */
static int32_t char_before(const jinja_str *str, size_t end, size_t *start) {
    size_t n_bytes;
    *start = end;
    do {
        (*start)--;
    } while (*start > 0 && utf8_is_continuation(str->s[*start]));
    return utf8_decode(str->s + *start, &n_bytes);
}

static bool in_set(const jinja_str *chars, int32_t c) {
    if (chars == NULL) {
        return jinja_char_is_space(c);
    }
    size_t n_bytes;
    for (size_t i = 0; i < chars->n; i += n_bytes) {
        if (utf8_decode(chars->s + i, &n_bytes) == c) {
            return true;
        }
    }
    return false;
}

ls_status jinja_str_strip(jinja_run *run, const jinja_str *str, const jinja_str *chars, bool left, bool right,
                          jinja_value *out, ls_error *err) {
    size_t from = 0, to = str->n, n_bytes;
    size_t cost = chars == NULL ? 1 : chars->n + 1;
    while (left && from < to && in_set(chars, utf8_decode(str->s + from, &n_bytes))) {
        TRY(jinja_step(run, cost / 16, err));
        from += n_bytes;
    }
    while (right && to > from) {
        size_t start;
        if (!in_set(chars, char_before(str, to, &start))) {
            break;
        }
        TRY(jinja_step(run, cost / 16, err));
        to = start;
    }
    return jinja_str_piece(run, str, from, to, out, err);
}

/* jinja2's title filter starts words after these, str.title() after all that is not a letter. */
static bool starts_word_after(int32_t c) {
    return jinja_char_is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
}

static bool is_cased(int32_t c) {
    return jinja_char_is_upper(c) || jinja_char_is_lower(c) || jinja_char_is_title(c);
}

ls_status jinja_str_cased(jinja_run *run, const jinja_str *str, jinja_casing to, jinja_value *out, ls_error *err) {
    jinja_text text = {0};
    bool word_starts = true;
    size_t n_bytes;
    for (size_t i = 0; i < str->n; i += n_bytes) {
        int32_t c = utf8_decode(str->s + i, &n_bytes), cased[JINJA_MAX_CASED];
        jinja_case how = JINJA_LOWER;
        switch (to) {
        case JINJA_TO_UPPER:
            how = JINJA_UPPER;
            break;
        case JINJA_TO_FOLDED:
            how = JINJA_FOLD;
            break;
        case JINJA_TO_SWAPPED:
            how = jinja_char_is_upper(c) ? JINJA_LOWER : JINJA_UPPER;
            break;
        case JINJA_TO_CAPITAL:
        case JINJA_TO_TITLE:
            how = word_starts ? JINJA_TITLE : JINJA_LOWER;
            break;
        case JINJA_TO_WORDS:
            how = word_starts && !starts_word_after(c) ? JINJA_UPPER : JINJA_LOWER;
            break;
        case JINJA_TO_LOWER:
            break;
        }
        int n = jinja_char_case(c, how, cased);
        if (to == JINJA_TO_SWAPPED && !jinja_char_is_upper(c) && !jinja_char_is_lower(c)) {
            cased[0] = c;
            n = 1;
        }
        if (c == 0x3A3 && how == JINJA_LOWER && jinja_final_sigma(str->s, str->n, i)) {
            cased[0] = 0x3C2;
        }
        for (int k = 0; k < n; k++) {
            TRY(jinja_text_add_char(run, &text, cased[k], err));
        }
        word_starts = to == JINJA_TO_TITLE ? !is_cased(c) : to == JINJA_TO_WORDS && starts_word_after(c);
    }
    TRY(jinja_step(run, str->n / 4, err));
    TRY(jinja_text_done(run, &text, out, err));
    out->str->markup = str->markup;
    return LS_OK;
}

/* An empty `old` is found before every character and at the end. */
static ls_status replace_empty(jinja_run *run, const jinja_str *str, const jinja_str *fresh, int64_t count,
                               jinja_text *text, ls_error *err) {
    size_t n_bytes = 0;
    for (size_t i = 0; i <= str->n; i += n_bytes) {
        if (count != 0) {
            count--;
            TRY(jinja_text_add(run, text, fresh->s, fresh->n, err));
        }
        n_bytes = 1;
        if (i < str->n) {
            utf8_decode(str->s + i, &n_bytes);
            TRY(jinja_text_add(run, text, str->s + i, n_bytes, err));
        }
    }
    return jinja_step(run, str->n / 4, err);
}

ls_status jinja_str_replace(jinja_run *run, const jinja_str *str, const jinja_str *old, const jinja_str *fresh,
                            int64_t count, jinja_value *out, ls_error *err) {
    jinja_text text = {0};
    size_t at = 0;
    if (old->n == 0) {
        TRY(replace_empty(run, str, fresh, count, &text, err));
        at = str->n;
    }
    while (at < str->n) {
        const char *found = count == 0 || old->n == 0 ? NULL : memmem(str->s + at, str->n - at, old->s, old->n);
        size_t to = found == NULL ? str->n : (size_t)(found - str->s);
        TRY(jinja_text_add(run, &text, str->s + at, to - at, err));
        if (found == NULL) {
            break;
        }
        TRY(jinja_step(run, 1, err));
        TRY(jinja_text_add(run, &text, fresh->s, fresh->n, err));
        at = to + old->n;
        count -= count > 0;
    }
    TRY(jinja_text_done(run, &text, out, err));
    out->str->markup = str->markup;
    return LS_OK;
}

ls_status jinja_str_center(jinja_run *run, jinja_str *str, int64_t width, const jinja_str *fill, jinja_value *out,
                           ls_error *err) {
    int64_t chars = (int64_t)jinja_str_chars(str), pad = width > chars ? width - chars : 0;
    int64_t left = pad / 2 + (pad & width & 1);
    jinja_text text = {0};
    TRY(jinja_text_add_times(run, &text, fill == NULL ? " " : fill->s, fill == NULL ? 1 : fill->n, left, err));
    TRY(jinja_text_add(run, &text, str->s, str->n, err));
    TRY(jinja_text_add_times(run, &text, fill == NULL ? " " : fill->s, fill == NULL ? 1 : fill->n, pad - left, err));
    TRY(jinja_text_done(run, &text, out, err));
    out->str->markup = str->markup;
    return LS_OK;
}

ls_status jinja_str_splitlines(jinja_run *run, const jinja_str *str, bool keep_ends, jinja_value *out, ls_error *err) {
    jinja_value list, line;
    TRY(jinja_list_new(run, JINJA_LIST, 0, &list, err));
    size_t from = 0, n_bytes;
    for (size_t i = 0; i < str->n;) {
        int32_t c = utf8_decode(str->s + i, &n_bytes);
        size_t end = i;
        i += n_bytes;
        if (!jinja_char_is_line_end(c)) {
            continue;
        }
        if (c == '\r' && i < str->n && str->s[i] == '\n') {
            i++;
        }
        TRY(jinja_str_piece(run, str, from, keep_ends ? i : end, &line, err));
        TRY(jinja_list_push(run, list.list, line, err));
        from = i;
    }
    if (from < str->n) {
        TRY(jinja_str_piece(run, str, from, str->n, &line, err));
        TRY(jinja_list_push(run, list.list, line, err));
    }
    *out = list;
    return jinja_step(run, str->n / 16 + list.list->n, err);
}

bool jinja_str_all(const jinja_str *str, bool (*is)(int32_t c)) {
    size_t n_bytes;
    for (size_t i = 0; i < str->n; i += n_bytes) {
        if (!is(utf8_decode(str->s + i, &n_bytes))) {
            return false;
        }
    }
    return str->n > 0;
}

bool jinja_str_is_cased(const jinja_str *str, bool upper) {
    bool found = false;
    size_t n_bytes;
    for (size_t i = 0; i < str->n; i += n_bytes) {
        int32_t c = utf8_decode(str->s + i, &n_bytes);
        bool is_upper = jinja_char_is_upper(c), is_lower = jinja_char_is_lower(c);
        if (jinja_char_is_title(c) || (upper ? is_lower : is_upper)) {
            return false;
        }
        found = found || is_upper || is_lower;
    }
    return found;
}
