/*
 * Methods of strings, and of dicts, lists, tuples and ranges: those that Python's have and the immutable sandbox lets
 * through. See builtin.h. What they do to strings is in str.c.
 */
#include <string.h>

#include "text/jinja/eval.h"
#include "text/jinja/unicode.h"
#include "text/utf8.h"

#define METHOD(name)                                                                                                   \
    static ls_status name(jinja_run *run, const jinja_value *self, const jinja_call *call, const jinja_value *arg,     \
                          jinja_value *out, ls_error *err)
#define UNUSED (void)run, (void)self, (void)call, (void)arg, (void)err

/* ---- strings ---- */

static ls_status strip(jinja_run *run, const jinja_value *self, const jinja_value *chars, bool left, bool right,
                       jinja_value *out, ls_error *err) {
    jinja_str *set = NULL;
    if (jinja_given(chars) && chars->kind != JINJA_NONE) {
        TRY(jinja_arg_str(run, chars, "strip's argument", &set, err));
    }
    return jinja_str_strip(run, self->str, set, left, right, out, err);
}

METHOD(str_strip) {
    (void)call;
    return strip(run, self, &arg[0], true, true, out, err);
}
METHOD(str_lstrip) {
    (void)call;
    return strip(run, self, &arg[0], true, false, out, err);
}
METHOD(str_rstrip) {
    (void)call;
    return strip(run, self, &arg[0], false, true, out, err);
}
METHOD(str_upper) {
    UNUSED;
    return jinja_str_cased(run, self->str, JINJA_TO_UPPER, out, err);
}
METHOD(str_lower) {
    UNUSED;
    return jinja_str_cased(run, self->str, JINJA_TO_LOWER, out, err);
}
METHOD(str_capitalize) {
    UNUSED;
    return jinja_str_cased(run, self->str, JINJA_TO_CAPITAL, out, err);
}
METHOD(str_title) {
    UNUSED;
    return jinja_str_cased(run, self->str, JINJA_TO_TITLE, out, err);
}
METHOD(str_swapcase) {
    UNUSED;
    return jinja_str_cased(run, self->str, JINJA_TO_SWAPPED, out, err);
}
METHOD(str_casefold) {
    UNUSED;
    return jinja_str_cased(run, self->str, JINJA_TO_FOLDED, out, err);
}

METHOD(str_replace) {
    (void)call;
    jinja_str *old, *fresh;
    int64_t count;
    TRY(jinja_arg_str(run, &arg[0], "what is replaced", &old, err));
    TRY(jinja_arg_str(run, &arg[1], "the replacement", &fresh, err));
    TRY(jinja_arg_int(run, &arg[2], -1, &count, err));
    return jinja_str_replace(run, self->str, old, fresh, count, out, err);
}

/* Where white space begins and ends, from byte i on: split() without a separator. */
static size_t skip_while(const jinja_str *str, size_t i, bool space) {
    size_t n_bytes;
    while (i < str->n && jinja_char_is_space(utf8_decode(str->s + i, &n_bytes)) == space) {
        i += n_bytes;
    }
    return i;
}

static ls_status split_space(jinja_run *run, const jinja_str *str, int64_t max, jinja_list *list, ls_error *err) {
    jinja_value piece;
    for (size_t at = skip_while(str, 0, true); at < str->n;) {
        size_t end = max == 0 ? str->n : skip_while(str, at, false);
        TRY(jinja_str_piece(run, str, at, end, &piece, err));
        TRY(jinja_list_push(run, list, piece, err));
        if (max == 0) {
            break;
        }
        max -= max > 0;
        at = skip_while(str, end, true);
        TRY(jinja_step(run, 1, err));
    }
    return LS_OK;
}

static ls_status split_at(jinja_run *run, const jinja_str *str, const jinja_str *sep, int64_t max, jinja_list *list,
                          ls_error *err) {
    size_t at = 0;
    jinja_value piece;
    for (const char *found; max != 0 && (found = memmem(str->s + at, str->n - at, sep->s, sep->n)) != NULL;) {
        size_t to = (size_t)(found - str->s);
        TRY(jinja_str_piece(run, str, at, to, &piece, err));
        TRY(jinja_list_push(run, list, piece, err));
        TRY(jinja_step(run, 1, err));
        at = to + sep->n;
        max -= max > 0;
    }
    TRY(jinja_str_piece(run, str, at, str->n, &piece, err));
    return jinja_list_push(run, list, piece, err);
}

/* The last place of sep in s[0 .. n); SIZE_MAX if there is none. */
static size_t find_last(const char *s, size_t n, const jinja_str *sep) {
    for (size_t i = n >= sep->n ? n - sep->n + 1 : 0; i-- > 0;) {
        if (memcmp(s + i, sep->s, sep->n) == 0) {
            return i;
        }
    }
    return SIZE_MAX;
}

/* From the right, which matters only if there are more pieces than max + 1. */
static ls_status rsplit_at(jinja_run *run, const jinja_str *str, const jinja_str *sep, int64_t max, jinja_list *list,
                           ls_error *err) {
    size_t end = str->n;
    jinja_value piece;
    for (size_t found; max != 0 && (found = find_last(str->s, end, sep)) != SIZE_MAX; max -= max > 0) {
        TRY(jinja_str_piece(run, str, found + sep->n, end, &piece, err));
        TRY(jinja_list_push(run, list, piece, err));
        end = found;
    }
    TRY(jinja_str_piece(run, str, 0, end, &piece, err));
    return jinja_list_push(run, list, piece, err);
}

/* The same as skip_while, backwards. */
static size_t skip_back_while(const jinja_str *str, size_t end, bool space) {
    while (end > 0) {
        size_t start = end, n_bytes;
        do {
            start--;
        } while (start > 0 && utf8_is_continuation(str->s[start]));
        if (jinja_char_is_space(utf8_decode(str->s + start, &n_bytes)) != space) {
            break;
        }
        end = start;
    }
    return end;
}

static ls_status rsplit_space(jinja_run *run, const jinja_str *str, int64_t max, jinja_list *list, ls_error *err) {
    jinja_value piece;
    for (size_t end = skip_back_while(str, str->n, true); end > 0;) {
        size_t from = max == 0 ? 0 : skip_back_while(str, end, false);
        TRY(jinja_str_piece(run, str, from, end, &piece, err));
        TRY(jinja_list_push(run, list, piece, err));
        end = max == 0 ? 0 : skip_back_while(str, from, true);
        max -= max > 0;
        TRY(jinja_step(run, 1, err));
    }
    return LS_OK;
}

static void reverse_list(jinja_list *list) {
    for (size_t i = 0; i < list->n / 2; i++) {
        jinja_value other = list->item[i];
        list->item[i] = list->item[list->n - 1 - i];
        list->item[list->n - 1 - i] = other;
    }
}

static ls_status split(jinja_run *run, const jinja_value *self, const jinja_value *arg, bool right, jinja_value *out,
                       ls_error *err) {
    int64_t max;
    jinja_value list;
    jinja_str *sep = NULL;
    TRY(jinja_arg_int(run, &arg[1], -1, &max, err));
    TRY(jinja_list_new(run, JINJA_LIST, 0, &list, err));
    TRY(jinja_step(run, self->str->n / 64, err));
    if (jinja_given(&arg[0]) && arg[0].kind != JINJA_NONE) {
        TRY(jinja_arg_str(run, &arg[0], "the separator", &sep, err));
        if (sep->n == 0) {
            return jinja_fail(run, err, "empty separator");
        }
    }
    bool limited = right && max >= 0;
    if (sep == NULL) {
        TRY(limited ? rsplit_space(run, self->str, max, list.list, err)
                    : split_space(run, self->str, max, list.list, err));
    } else {
        TRY(limited || right ? rsplit_at(run, self->str, sep, max, list.list, err)
                             : split_at(run, self->str, sep, max, list.list, err));
    }
    if (limited || (right && sep != NULL)) {
        reverse_list(list.list);
    }
    *out = list;
    return LS_OK;
}

METHOD(str_split) {
    (void)call;
    return split(run, self, arg, false, out, err);
}
METHOD(str_rsplit) {
    (void)call;
    return split(run, self, arg, true, out, err);
}

static ls_status partition(jinja_run *run, const jinja_value *self, const jinja_value *arg, bool right,
                           jinja_value *out, ls_error *err) {
    jinja_str *sep;
    const jinja_str *str = self->str;
    TRY(jinja_arg_str(run, arg, "the separator", &sep, err));
    if (sep->n == 0) {
        return jinja_fail(run, err, "empty separator");
    }
    TRY(jinja_step(run, str->n / 64, err));
    const char *found = right ? NULL : memmem(str->s, str->n, sep->s, sep->n);
    size_t at = right ? find_last(str->s, str->n, sep) : found == NULL ? SIZE_MAX : (size_t)(found - str->s);
    size_t border[4] = {0, at, at + sep->n, str->n};
    if (at == SIZE_MAX) {
        border[1] = border[2] = right ? 0 : str->n;
    }
    jinja_value list, piece;
    TRY(jinja_list_new(run, JINJA_TUPLE, 3, &list, err));
    for (int i = 0; i < 3; i++) {
        TRY(jinja_str_piece(run, str, border[i], border[i + 1], &piece, err));
        TRY(jinja_list_push(run, list.list, piece, err));
    }
    *out = list;
    return LS_OK;
}

METHOD(str_partition) {
    (void)call;
    return partition(run, self, &arg[0], false, out, err);
}
METHOD(str_rpartition) {
    (void)call;
    return partition(run, self, &arg[0], true, out, err);
}

/* The bytes of self between two optional bounds in characters; false if the bounds cross. */
static ls_status bounds(jinja_run *run, jinja_str *str, const jinja_value *start, const jinja_value *end, size_t *from,
                        size_t *to, bool *valid, ls_error *err) {
    int64_t n = (int64_t)jinja_str_chars(str), bound[2] = {0, n};
    const jinja_value *given[2] = {start, end};
    for (int i = 0; i < 2; i++) {
        if (jinja_given(given[i]) && given[i]->kind != JINJA_NONE) {
            TRY(jinja_arg_int(run, given[i], 0, &bound[i], err));
            bound[i] += bound[i] < 0 ? n : 0;
            bound[i] = bound[i] < 0 ? 0 : bound[i];
        }
    }
    bound[1] = bound[1] > n ? n : bound[1];
    *valid = bound[0] <= bound[1];
    *from = jinja_str_offset(str, (size_t)bound[0]);
    *to = jinja_str_offset(str, (size_t)bound[1]);
    return jinja_step(run, str->n / 64, err);
}

static ls_status match_end(jinja_run *run, const jinja_value *self, const jinja_value *arg, bool at_end,
                           jinja_value *out, ls_error *err) {
    jinja_list one = {.item = (jinja_value *)arg, .n = 1}; /* read only */
    const jinja_list *options = arg[0].kind == JINJA_TUPLE ? arg[0].list : &one;
    size_t from, to;
    bool valid, found = false;
    TRY(bounds(run, self->str, &arg[1], &arg[2], &from, &to, &valid, err));
    for (size_t i = 0; i < options->n && !found; i++) {
        jinja_str *piece;
        TRY(jinja_arg_str(run, &options->item[i], "what is looked for", &piece, err));
        found = valid && piece->n <= to - from &&
                memcmp(self->str->s + (at_end ? to - piece->n : from), piece->s, piece->n) == 0;
        TRY(jinja_step(run, 1, err));
    }
    *out = jinja_bool(found);
    return LS_OK;
}

METHOD(str_startswith) {
    (void)call;
    return match_end(run, self, arg, false, out, err);
}
METHOD(str_endswith) {
    (void)call;
    return match_end(run, self, arg, true, out, err);
}

static ls_status find_chars(jinja_run *run, const jinja_value *self, const jinja_value *arg, bool last, int64_t *out,
                            ls_error *err) {
    jinja_str *piece, *str = self->str;
    size_t from, to, at = SIZE_MAX;
    bool valid;
    TRY(jinja_arg_str(run, &arg[0], "what is looked for", &piece, err));
    TRY(bounds(run, str, &arg[1], &arg[2], &from, &to, &valid, err));
    if (valid && last) {
        at = find_last(str->s + from, to - from, piece);
        at = at == SIZE_MAX ? at : at + from;
    } else if (valid) {
        const char *found = piece->n == 0 ? str->s + from : memmem(str->s + from, to - from, piece->s, piece->n);
        at = found == NULL ? SIZE_MAX : (size_t)(found - str->s);
    }
    *out = -1;
    if (at != SIZE_MAX) {
        jinja_str before = {.s = str->s, .n = at, .n_chars = SIZE_MAX};
        *out = (int64_t)jinja_str_chars(&before);
    }
    return LS_OK;
}

METHOD(str_find) {
    (void)call;
    int64_t at;
    TRY(find_chars(run, self, arg, false, &at, err));
    *out = jinja_int(at);
    return LS_OK;
}
METHOD(str_rfind) {
    (void)call;
    int64_t at;
    TRY(find_chars(run, self, arg, true, &at, err));
    *out = jinja_int(at);
    return LS_OK;
}
METHOD(str_index) {
    TRY(str_find(run, self, call, arg, out, err));
    return out->i < 0 ? jinja_fail(run, err, "substring not found") : LS_OK;
}
METHOD(str_rindex) {
    TRY(str_rfind(run, self, call, arg, out, err));
    return out->i < 0 ? jinja_fail(run, err, "substring not found") : LS_OK;
}

METHOD(str_count) {
    (void)call;
    jinja_str *piece;
    size_t from, to;
    bool valid;
    int64_t count = 0;
    TRY(jinja_arg_str(run, &arg[0], "what is counted", &piece, err));
    TRY(bounds(run, self->str, &arg[1], &arg[2], &from, &to, &valid, err));
    if (piece->n == 0) {
        jinja_str part = {.s = self->str->s + from, .n = valid ? to - from : 0, .n_chars = SIZE_MAX};
        count = valid ? (int64_t)jinja_str_chars(&part) + 1 : 0;
    }
    for (const char *found;
         valid && piece->n > 0 && (found = memmem(self->str->s + from, to - from, piece->s, piece->n)) != NULL;
         count++) {
        from = (size_t)(found - self->str->s) + piece->n;
    }
    *out = jinja_int(count);
    return LS_OK;
}

METHOD(str_join) {
    (void)call;
    jinja_list *items;
    jinja_text text = {0};
    TRY(jinja_collect(run, &arg[0], &items, err));
    for (size_t i = 0; i < items->n; i++) {
        jinja_str *item;
        TRY(jinja_arg_str(run, &items->item[i], "each item of join", &item, err));
        if (i > 0) {
            TRY(jinja_text_add(run, &text, self->str->s, self->str->n, err));
        }
        TRY(jinja_text_add(run, &text, item->s, item->n, err));
    }
    TRY(jinja_text_done(run, &text, out, err));
    out->str->markup = self->str->markup;
    return LS_OK;
}

METHOD(str_splitlines) {
    (void)call;
    return jinja_str_splitlines(run, self->str, jinja_arg_truth(&arg[0], false), out, err);
}

static ls_status remove_affix(jinja_run *run, const jinja_value *self, const jinja_value *arg, bool suffix,
                              jinja_value *out, ls_error *err) {
    jinja_str *affix;
    const jinja_str *str = self->str;
    TRY(jinja_arg_str(run, arg, "what is removed", &affix, err));
    bool found = affix->n <= str->n && memcmp(suffix ? str->s + str->n - affix->n : str->s, affix->s, affix->n) == 0;
    size_t cut = found ? affix->n : 0;
    return jinja_str_piece(run, str, suffix ? 0 : cut, suffix ? str->n - cut : str->n, out, err);
}

METHOD(str_removeprefix) {
    (void)call;
    return remove_affix(run, self, &arg[0], false, out, err);
}
METHOD(str_removesuffix) {
    (void)call;
    return remove_affix(run, self, &arg[0], true, out, err);
}

/* The filling character of center, ljust and rjust; NULL: a blank. */
static ls_status fill_of(jinja_run *run, const jinja_value *arg, jinja_str **out, ls_error *err) {
    *out = NULL;
    if (jinja_given(arg)) {
        TRY(jinja_arg_str(run, arg, "the fill character", out, err));
        if (jinja_str_chars(*out) != 1) {
            return jinja_fail(run, err, "The fill character must be exactly one character long");
        }
    }
    return LS_OK;
}

static ls_status justify(jinja_run *run, const jinja_value *self, const jinja_value *arg, bool pad_left,
                         jinja_value *out, ls_error *err) {
    int64_t width, pad;
    jinja_str *fill;
    jinja_text text = {0};
    TRY(jinja_arg_int(run, &arg[0], 0, &width, err));
    TRY(fill_of(run, &arg[1], &fill, err));
    pad = width > (int64_t)jinja_str_chars(self->str) ? width - (int64_t)jinja_str_chars(self->str) : 0;
    const char *s = fill == NULL ? " " : fill->s;
    size_t n = fill == NULL ? 1 : fill->n;
    TRY(jinja_text_add_times(run, &text, s, n, pad_left ? pad : 0, err));
    TRY(jinja_text_add(run, &text, self->str->s, self->str->n, err));
    TRY(jinja_text_add_times(run, &text, s, n, pad_left ? 0 : pad, err));
    return jinja_text_done(run, &text, out, err);
}

METHOD(str_ljust) {
    (void)call;
    return justify(run, self, arg, false, out, err);
}
METHOD(str_rjust) {
    (void)call;
    return justify(run, self, arg, true, out, err);
}
METHOD(str_center) {
    (void)call;
    int64_t width;
    jinja_str *fill;
    TRY(jinja_arg_int(run, &arg[0], 0, &width, err));
    TRY(fill_of(run, &arg[1], &fill, err));
    return jinja_str_center(run, self->str, width, fill, out, err);
}
METHOD(str_zfill) {
    (void)call;
    int64_t width, chars = (int64_t)jinja_str_chars(self->str);
    jinja_text text = {0};
    TRY(jinja_arg_int(run, &arg[0], 0, &width, err));
    size_t sign = self->str->n > 0 && (self->str->s[0] == '-' || self->str->s[0] == '+');
    TRY(jinja_text_add(run, &text, self->str->s, sign, err));
    TRY(jinja_text_add_times(run, &text, "0", 1, width > chars ? width - chars : 0, err));
    TRY(jinja_text_add(run, &text, self->str->s + sign, self->str->n - sign, err));
    return jinja_text_done(run, &text, out, err);
}

static bool is_alnum(int32_t c) {
    return jinja_char_is_alpha(c) || jinja_char_is_digit(c) || jinja_char_is_numeric(c);
}
static bool is_ascii(int32_t c) {
    return c < 0x80;
}

#define QUESTION(name, answer)                                                                                         \
    METHOD(name) {                                                                                                     \
        UNUSED;                                                                                                        \
        *out = jinja_bool(answer);                                                                                     \
        return jinja_step(run, self->str->n / 16, err);                                                                \
    }
QUESTION(str_isalpha, jinja_str_all(self->str, jinja_char_is_alpha))
QUESTION(str_isalnum, jinja_str_all(self->str, is_alnum))
QUESTION(str_isascii, self->str->n == 0 || jinja_str_all(self->str, is_ascii))
QUESTION(str_isdecimal, jinja_str_all(self->str, jinja_char_is_decimal))
QUESTION(str_isdigit, jinja_str_all(self->str, jinja_char_is_digit))
QUESTION(str_isspace, jinja_str_all(self->str, jinja_char_is_space))
QUESTION(str_isprintable, self->str->n == 0 || jinja_str_all(self->str, jinja_char_is_printable))
QUESTION(str_isupper, jinja_str_is_cased(self->str, true))
QUESTION(str_islower, jinja_str_is_cased(self->str, false))

METHOD(str_unsupported) {
    (void)self, (void)call, (void)arg, (void)out;
    return jinja_fail_as(run, LS_EUNSUPPORTED, err, "this method of strings is not supported");
}

const jinja_builtin *jinja_find_str_method(const jinja_str *name) {
    static const jinja_builtin methods[] = {
        {"strip", "/chars?", str_strip},
        {"lstrip", "/chars?", str_lstrip},
        {"rstrip", "/chars?", str_rstrip},
        {"split", "sep? maxsplit?", str_split},
        {"rsplit", "sep? maxsplit?", str_rsplit},
        {"startswith", "/prefix start? end?", str_startswith},
        {"endswith", "/suffix start? end?", str_endswith},
        {"replace", "/old new count?", str_replace},
        {"upper", "", str_upper},
        {"lower", "", str_lower},
        {"capitalize", "", str_capitalize},
        {"title", "", str_title},
        {"swapcase", "", str_swapcase},
        {"casefold", "", str_casefold},
        {"find", "/sub start? end?", str_find},
        {"rfind", "/sub start? end?", str_rfind},
        {"index", "/sub start? end?", str_index},
        {"rindex", "/sub start? end?", str_rindex},
        {"count", "/sub start? end?", str_count},
        {"join", "/iterable", str_join},
        {"splitlines", "keepends?", str_splitlines},
        {"partition", "/sep", str_partition},
        {"rpartition", "/sep", str_rpartition},
        {"removeprefix", "/prefix", str_removeprefix},
        {"removesuffix", "/suffix", str_removesuffix},
        {"ljust", "/width fill?", str_ljust},
        {"rjust", "/width fill?", str_rjust},
        {"center", "/width fill?", str_center},
        {"zfill", "/width", str_zfill},
        {"isalpha", "", str_isalpha},
        {"isalnum", "", str_isalnum},
        {"isascii", "", str_isascii},
        {"isdecimal", "", str_isdecimal},
        {"isdigit", "", str_isdigit},
        {"isspace", "", str_isspace},
        {"isprintable", "", str_isprintable},
        {"isupper", "", str_isupper},
        {"islower", "", str_islower},
        {"format", NULL, str_unsupported},
        {"format_map", NULL, str_unsupported},
        {"encode", NULL, str_unsupported},
        {"translate", NULL, str_unsupported},
        {"maketrans", NULL, str_unsupported},
        {"expandtabs", NULL, str_unsupported},
        {"isidentifier", NULL, str_unsupported},
        {"isnumeric", NULL, str_unsupported},
        {"istitle", NULL, str_unsupported},
    };
    return jinja_find_in(methods, sizeof methods / sizeof *methods, name);
}

/* ---- dicts, lists, tuples, ranges ---- */

static ls_status view_of(jinja_run *run, const jinja_value *self, jinja_view_kind kind, jinja_value *out,
                         ls_error *err) {
    jinja_view *view;
    TRY(jinja_take(run, 1, sizeof *view, &view, err));
    *view = (jinja_view){.dict = self->dict, .kind = kind};
    *out = (jinja_value){.kind = JINJA_VIEW, .view = view};
    return LS_OK;
}

METHOD(dict_keys) {
    UNUSED;
    return view_of(run, self, JINJA_KEYS, out, err);
}
METHOD(dict_values) {
    UNUSED;
    return view_of(run, self, JINJA_VALUES, out, err);
}
METHOD(dict_items) {
    UNUSED;
    return view_of(run, self, JINJA_ITEMS, out, err);
}
METHOD(dict_get) {
    UNUSED;
    TRY(jinja_dict_get(run, self->dict, &arg[0], out, err));
    if (!jinja_given(out)) {
        *out = jinja_given(&arg[1]) ? arg[1] : jinja_none();
    }
    return LS_OK;
}
METHOD(any_copy) { /* values never change, so a copy is the same */
    UNUSED;
    *out = *self;
    return LS_OK;
}

static ls_status count_in(jinja_run *run, const jinja_value *self, const jinja_value *item, int64_t *count,
                          int64_t *first, ls_error *err) {
    jinja_list *items;
    TRY(jinja_collect(run, self, &items, err));
    *count = 0;
    *first = -1;
    for (size_t i = 0; i < items->n; i++) {
        bool equal;
        TRY(jinja_equal(run, &items->item[i], item, &equal, err));
        *first = equal && *count == 0 ? (int64_t)i : *first;
        *count += equal;
    }
    return LS_OK;
}

METHOD(list_count) {
    UNUSED;
    int64_t count, first;
    TRY(count_in(run, self, &arg[0], &count, &first, err));
    *out = jinja_int(count);
    return LS_OK;
}
METHOD(list_index) {
    UNUSED;
    int64_t count, first;
    if (call->n != 1) {
        return jinja_fail_as(run, LS_EUNSUPPORTED, err, "index() with bounds is not supported");
    }
    TRY(count_in(run, self, &arg[0], &count, &first, err));
    *out = jinja_int(first);
    return first < 0 ? jinja_fail(run, err, "the value is not in the list") : LS_OK;
}

const jinja_builtin *jinja_find_method(const jinja_value *self, const jinja_str *name) {
    static const jinja_builtin of_dicts[] = {
        {"get", "/key default?", dict_get}, {"items", "", dict_items}, {"keys", "", dict_keys},
        {"values", "", dict_values},        {"copy", "", any_copy},    {"fromkeys", NULL, str_unsupported},
    };
    static const jinja_builtin of_lists[] = {
        {"count", "/value", list_count}, {"index", "/value start? stop?", list_index}, {"copy", "", any_copy}};
    switch (self->kind) {
    case JINJA_STR:
        return jinja_find_str_method(name);
    case JINJA_DICT:
        return jinja_find_in(of_dicts, sizeof of_dicts / sizeof *of_dicts, name);
    case JINJA_LIST:
        return jinja_find_in(of_lists, 3, name);
    case JINJA_TUPLE:
    case JINJA_RANGE:
        return jinja_find_in(of_lists, 2, name);
    case JINJA_LOOP:
        return jinja_find_loop_method(name);
    default:
        return NULL;
    }
}
