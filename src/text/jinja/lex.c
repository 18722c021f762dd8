/*
 * See lex.h. The rules follow jinja2/lexer.py, whose regular expressions are quoted where they decide.
 *
 * The source is copied with its newlines normalised (and one at the end removed), then read by a machine with two states:
 * data (lex_data) and inside a tag (lex_tag).
 */
#include "text/jinja/lex.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja/text.h"
#include "text/jinja/unicode.h"
#include "text/utf8.h"

typedef struct lexer {
    jinja_heap *heap;
    const char *name;
    const char *s; /* the source, NUL-terminated */
    size_t n, at;
    int line;
    bool line_starts;  /* the last tag ended with a newline, or there was none yet */
    char brackets[64]; /* closing ones that are awaited */
    int n_brackets;
    jinja_tokens *out;
} lexer;

#define LEX_FAIL(lx, ...) jinja_fail(&(jinja_run){.name = (lx)->name, .line = (lx)->line}, err, __VA_ARGS__)

static ls_status push(lexer *lx, jinja_token token, ls_error *err) {
    jinja_tokens *list = lx->out;
    if (list->n == list->capacity) {
        size_t capacity = list->capacity == 0 ? 64 : list->capacity * 2;
        TRY(jinja_heap_grow(lx->heap, list->token, list->n * sizeof token, capacity * sizeof token, &list->token, err));
        list->capacity = capacity;
    }
    list->token[list->n++] = token;
    return LS_OK;
}

static ls_status push_text(lexer *lx, jinja_token_kind kind, const char *s, size_t n, ls_error *err) {
    jinja_token token = {.kind = kind, .line = lx->line};
    TRY(jinja_str_copy(lx->heap, s, n, &token.value, err));
    return push(lx, token, err);
}

static bool starts_with(const lexer *lx, size_t at, const char *text) {
    size_t n = strlen(text);
    return n <= lx->n - at && memcmp(lx->s + at, text, n) == 0;
}

/* Goes on to `to`, counting lines. */
static void move(lexer *lx, size_t to) {
    for (; lx->at < to; lx->at++) {
        lx->line += lx->s[lx->at] == '\n';
    }
}

static size_t skip_space(const lexer *lx, size_t at) {
    while (at < lx->n) {
        size_t n_bytes;
        if (!jinja_char_is_space(utf8_decode(lx->s + at, &n_bytes))) {
            break;
        }
        at += n_bytes;
    }
    return at;
}

/* The end of s[from .. to) without the white space at its end. */
static size_t strip_right(const lexer *lx, size_t from, size_t to) {
    while (to > from) {
        size_t start = to, n_bytes;
        do {
            start--;
        } while (start > from && utf8_is_continuation(lx->s[start]));
        if (!jinja_char_is_space(utf8_decode(lx->s + start, &n_bytes))) {
            break;
        }
        to = start;
    }
    return to;
}

/* Where the text s[from .. to) before a tag ends, given the tag's sign. */
static size_t strip_before(const lexer *lx, size_t from, size_t to, char sign, bool variable) {
    if (sign == '-') {
        return strip_right(lx, from, to);
    }
    if (sign == '+' || variable) {
        return to;
    }
    size_t line = to;
    while (line > from && lx->s[line - 1] != '\n') {
        line--;
    }
    if ((line > from || lx->line_starts) && strip_right(lx, line, to) == line) {
        return line;
    }
    return to;
}

static ls_status push_data(lexer *lx, size_t to, char sign, bool variable, ls_error *err) {
    size_t end = strip_before(lx, lx->at, to, sign, variable);
    if (end > lx->at) {
        TRY(push_text(lx, JT_DATA, lx->s + lx->at, end - lx->at, err));
    }
    move(lx, to);
    return LS_OK;
}

/* Behind a tag that was closed at `at` ("%}" seen), with its sign: takes what white space control takes. */
static void close_tag(lexer *lx, size_t at, char sign, bool trim_newline) {
    if (sign == '-') {
        at = skip_space(lx, at);
    } else if (sign != '+' && trim_newline && at < lx->n && lx->s[at] == '\n') {
        at++;
    }
    move(lx, at);
    lx->line_starts = at > 0 && lx->s[at - 1] == '\n';
}

/* ---- data ---- */

/* Is there `{% <word> %}` at `at`? Gives its sign and where its "%}" or "-%}" is. */
static bool is_marker(const lexer *lx, size_t at, const char *word, char *sign, size_t *end) {
    if (!starts_with(lx, at, "{%")) {
        return false;
    }
    at += 2;
    *sign = at < lx->n && (lx->s[at] == '-' || lx->s[at] == '+') ? lx->s[at] : '\0';
    at = skip_space(lx, at + (*sign != '\0'));
    if (!starts_with(lx, at, word)) {
        return false;
    }
    *end = skip_space(lx, at + strlen(word));
    return true;
}

/* After `{% raw`: text up to `{% endraw %}`. `begin` is where the closing of the raw tag is. */
static ls_status lex_raw(lexer *lx, size_t begin, ls_error *err) {
    bool dash = lx->s[begin] == '-';
    close_tag(lx, begin + (dash ? 3 : 2), dash ? '-' : '\0', false); /* no newline is trimmed here */
    for (size_t at = lx->at; at < lx->n; at++) {
        char sign, close;
        size_t end;
        if (lx->s[at] != '{' || !is_marker(lx, at, "endraw", &sign, &end) || end >= lx->n) {
            continue;
        }
        close = lx->s[end] == '-' || lx->s[end] == '+' ? lx->s[end] : '\0';
        if (!starts_with(lx, end + (close != '\0'), "%}")) {
            continue;
        }
        /* line_starts is that of the raw tag */
        TRY(push_data(lx, at, sign, false, err));
        close_tag(lx, end + (close != '\0') + 2, close, true);
        return LS_OK;
    }
    return LEX_FAIL(lx, "Missing end of raw directive");
}

static ls_status lex_comment(lexer *lx, size_t at, ls_error *err) {
    const char *end = memmem(lx->s + at, lx->n - at, "#}", 2);
    if (end == NULL) {
        return LEX_FAIL(lx, "Missing end of comment tag");
    }
    size_t to = (size_t)(end - lx->s);
    char sign = to > at && (lx->s[to - 1] == '-' || lx->s[to - 1] == '+') ? lx->s[to - 1] : '\0';
    close_tag(lx, to + 2, sign, true);
    return LS_OK;
}

/* Text up to the next tag, and the opening of that tag. *in_tag says what comes next. */
static ls_status lex_data(lexer *lx, bool *in_tag, ls_error *err) {
    size_t at = lx->at;
    while (at < lx->n &&
           !(lx->s[at] == '{' && at + 1 < lx->n && strchr("{%#", lx->s[at + 1]) != NULL && lx->s[at + 1] != '\0')) {
        at++;
    }
    if (at == lx->n) {
        return push_data(lx, at, '+', false, err);
    }
    size_t raw_end = 0;
    char sign;
    if (is_marker(lx, at, "raw", &sign, &raw_end) &&
        (starts_with(lx, raw_end, "%}") || starts_with(lx, raw_end, "-%}"))) {
        TRY(push_data(lx, at, sign, false, err));
        return lex_raw(lx, raw_end, err);
    }
    char kind = lx->s[at + 1];
    sign = at + 2 < lx->n && (lx->s[at + 2] == '-' || lx->s[at + 2] == '+') ? lx->s[at + 2] : '\0';
    TRY(push_data(lx, at, sign, kind == '{', err));
    size_t inside = at + 2 + (sign != '\0');
    if (kind == '#') {
        return lex_comment(lx, inside, err);
    }
    TRY(push(lx, (jinja_token){.kind = kind == '{' ? JT_VARIABLE_BEGIN : JT_BLOCK_BEGIN, .line = lx->line}, err));
    move(lx, inside);
    *in_tag = true;
    return LS_OK;
}

/* ---- inside a tag ---- */

static bool is_digit(char c, int base) {
    if (base == 16) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    }
    return c >= '0' && c < '0' + base;
}

/* Digits, single underscores between them: where they end; `at` if there is none. With `leading`, an underscore may also
 * come first, as after "0x". */
static size_t skip_digits(const lexer *lx, size_t at, int base, bool leading) {
    size_t end = at;
    if (!leading && !is_digit(lx->s[at], base)) {
        return at;
    }
    for (;;) {
        size_t digit = end + (lx->s[end] == '_' && (end > at || leading));
        if (!is_digit(lx->s[digit], base)) {
            return end;
        }
        end = digit + 1;
    }
}

/* float_re, from a digit: the end of the float, or 0 if there is none here. */
static size_t float_end(const lexer *lx) {
    size_t start = lx->at;
    if (start > 0 && lx->s[start - 1] == '.') {
        return 0;
    }
    size_t whole = skip_digits(lx, start, 10, false), end = whole;
    if (lx->s[end] == '.' && is_digit(lx->s[end + 1], 10)) {
        end = skip_digits(lx, end + 1, 10, false);
    }
    if (lx->s[end] == 'e' || lx->s[end] == 'E') {
        size_t exponent = end + 1 + (lx->s[end + 1] == '+' || lx->s[end + 1] == '-');
        if (is_digit(lx->s[exponent], 10)) {
            return skip_digits(lx, exponent, 10, false);
        }
    }
    return end > whole ? end : 0;
}

static ls_status lex_number(lexer *lx, ls_error *err) {
    size_t start = lx->at, end = float_end(lx);
    bool real = end > 0;
    int base = 10;
    if (!real) {
        char mark = (char)(lx->s[start] == '0' ? lx->s[start + 1] | 0x20 : 0);
        base = mark == 'b' ? 2 : mark == 'o' ? 8 : mark == 'x' ? 16 : 10;
        end = base == 10 ? start : skip_digits(lx, start + 2, base, true);
        if (base != 10 && end == start + 2) { /* "0x" without digits is a zero and a name */
            base = 10;
        }
        if (base == 10) {
            end = skip_digits(lx, start, lx->s[start] == '0' ? 1 : 10, false);
        }
    }
    char digits[512];
    size_t n = 0;
    for (size_t i = start + (base == 10 ? 0 : 2); i < end; i++) {
        if (lx->s[i] != '_') {
            if (n + 1 == sizeof digits) {
                return LEX_FAIL(lx, "a number of more than %zu digits", n);
            }
            digits[n++] = lx->s[i];
        }
    }
    digits[n] = '\0';
    jinja_token token = {.kind = real ? JT_FLOAT : JT_INTEGER, .line = lx->line};
    if (real) {
        token.value = jinja_float(strtod(digits, NULL));
    } else {
        int64_t value = 0;
        for (size_t i = 0; i < n; i++) {
            int digit = digits[i] <= '9' ? digits[i] - '0' : (digits[i] | 0x20) - 'a' + 10;
            if (__builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, digit, &value)) {
                return LEX_FAIL(lx, "the integer %.40s... does not fit 64 bits", digits);
            }
        }
        token.value = jinja_int(value);
    }
    move(lx, end);
    return push(lx, token, err);
}

static ls_status lex_name(lexer *lx, ls_error *err) {
    size_t end = lx->at, n_bytes;
    while (end < lx->n && jinja_char_continues_name(utf8_decode(lx->s + end, &n_bytes))) {
        end += n_bytes;
    }
    if (!jinja_char_starts_name(utf8_decode(lx->s + lx->at, &n_bytes))) {
        return LEX_FAIL(lx, "Invalid character in identifier");
    }
    TRY(push_text(lx, JT_NAME, lx->s + lx->at, end - lx->at, err));
    move(lx, end);
    return LS_OK;
}

/* Hexadecimal digits of an escape; -1 if they are not there. */
static int32_t hex_value(const char *s, size_t n, int digits) {
    int64_t value = 0;
    for (int i = 0; i < digits; i++) {
        if ((size_t)i >= n || !is_digit(s[i], 16)) {
            return -1;
        }
        value = value * 16 + (s[i] <= '9' ? s[i] - '0' : (s[i] | 0x20) - 'a' + 10);
    }
    return value > 0x10FFFF ? -1 : (int32_t)value;
}

/* One escape at s[0] == '\\', n bytes to the end of the string: appends what it stands for and returns its length, or 0.
 * Like Python's str.encode("ascii", "backslashreplace").decode("unicode-escape"), which Jinja2 uses. */
static size_t unescape(const char *s, size_t n, char *to, size_t *n_to) {
    static const char plain[] = "\\'\"abfnrtv", meaning[] = "\\'\"\a\b\f\n\r\t\v";
    const char *found = n > 1 && s[1] != '\0' ? strchr(plain, s[1]) : NULL;
    if (n < 2) {
        return 0;
    }
    if (s[1] == '\n') {
        return 2;
    }
    if (found != NULL) {
        to[(*n_to)++] = meaning[found - plain];
        return 2;
    }
    if (s[1] == 'x' || s[1] == 'u' || s[1] == 'U') {
        int digits = s[1] == 'x' ? 2 : s[1] == 'u' ? 4 : 8;
        int32_t c = hex_value(s + 2, n - 2, digits);
        if (c < 0 || (c >= 0xD800 && c < 0xE000)) {
            return 0;
        }
        *n_to += jinja_encode_utf8(c, to + *n_to);
        return 2 + (size_t)digits;
    }
    if (is_digit(s[1], 8)) {
        int32_t c = 0;
        size_t i = 1;
        for (; i < 4 && i < n && is_digit(s[i], 8); i++) {
            c = c * 8 + (s[i] - '0');
        }
        *n_to += jinja_encode_utf8(c, to + *n_to);
        return i;
    }
    if (s[1] == 'N') {
        return 0; /* \N{NAME}: nobody does */
    }
    to[(*n_to)++] = '\\'; /* unknown: both stay */
    if ((unsigned char)s[1] < 0x80) {
        to[(*n_to)++] = s[1];
        return 2;
    }
    /* The character became a \x, \u or \U before its backslash was read as an escaped backslash. */
    size_t n_bytes;
    unsigned c = (unsigned)utf8_decode(s + 1, &n_bytes);
    char escape[16];
    int n_escape = snprintf(escape, sizeof escape, c < 0x100 ? "x%02x" : c < 0x10000 ? "u%04x" : "U%08x", c);
    memcpy(to + *n_to, escape, (size_t)n_escape);
    *n_to += (size_t)n_escape;
    return 1 + n_bytes;
}

static ls_status lex_string(lexer *lx, ls_error *err) {
    char quote = lx->s[lx->at];
    size_t start = lx->at + 1, end = start;
    while (end < lx->n && lx->s[end] != quote) {
        end += lx->s[end] == '\\' ? 2 : 1;
    }
    if (end >= lx->n) {
        return LEX_FAIL(lx, "unexpected char '%c': the string does not end", quote);
    }
    char *text;
    TRY(jinja_heap_take(lx->heap, (end - start) * 4 + 1, &text, err)); /* "\é" becomes "\xe9": 3 bytes to 4 */
    size_t n = 0;
    for (size_t i = start; i < end;) {
        if (lx->s[i] != '\\') {
            text[n++] = lx->s[i++];
            continue;
        }
        size_t length = unescape(lx->s + i, end - i, text, &n);
        if (length == 0) {
            return LEX_FAIL(lx, "bad escape sequence in a string: %.4s", lx->s + i);
        }
        i += length;
    }
    text[n] = '\0';
    jinja_token token = {.kind = JT_STRING, .line = lx->line};
    TRY(jinja_str_borrow(lx->heap, text, n, &token.value, err));
    move(lx, end + 1);
    return push(lx, token, err);
}

static ls_status balance(lexer *lx, char c, ls_error *err) {
    if (c == '(' || c == '[' || c == '{') {
        if (lx->n_brackets == (int)sizeof lx->brackets) {
            return LEX_FAIL(lx, "more than %d brackets open", lx->n_brackets);
        }
        lx->brackets[lx->n_brackets++] = (char)(c == '(' ? ')' : c == '[' ? ']' : '}');
    } else if (c == ')' || c == ']' || c == '}') {
        if (lx->n_brackets == 0) {
            return LEX_FAIL(lx, "unexpected '%c'", c);
        }
        if (lx->brackets[--lx->n_brackets] != c) {
            return LEX_FAIL(lx, "unexpected '%c', expected '%c'", c, lx->brackets[lx->n_brackets]);
        }
    }
    return LS_OK;
}

static ls_status lex_operator(lexer *lx, ls_error *err) {
    static const struct {
        char text[3];
        int op;
    } two[] = {{"//", JOP_FLOORDIV}, {"**", JOP_POW},  {"==", JOP_EQ},
               {"!=", JOP_NE},       {">=", JOP_GTEQ}, {"<=", JOP_LTEQ}};
    for (size_t i = 0; i < sizeof two / sizeof *two; i++) {
        if (starts_with(lx, lx->at, two[i].text)) {
            TRY(push(lx, (jinja_token){.kind = JT_OPERATOR, .op = two[i].op, .line = lx->line}, err));
            move(lx, lx->at + 2);
            return LS_OK;
        }
    }
    char c = lx->s[lx->at];
    if (c == '\0' || strchr("+-/*%~[](){}><=.:|,;", c) == NULL) {
        size_t n_bytes;
        utf8_decode(lx->s + lx->at, &n_bytes);
        return LEX_FAIL(lx, "unexpected char '%.*s'", (int)n_bytes, lx->s + lx->at);
    }
    TRY(balance(lx, c, err));
    TRY(push(lx, (jinja_token){.kind = JT_OPERATOR, .op = c, .line = lx->line}, err));
    move(lx, lx->at + 1);
    return LS_OK;
}

/* The closing of the tag, if it is here. */
static bool lex_close(lexer *lx, bool variable, jinja_token *token) {
    const char *close = variable ? "}}" : "%}";
    char sign = lx->s[lx->at];
    sign = (char)(sign == '-' || (sign == '+' && !variable) ? sign : '\0');
    if (lx->n_brackets > 0 || !starts_with(lx, lx->at + (sign != '\0'), close)) {
        return false;
    }
    *token = (jinja_token){.kind = variable ? JT_VARIABLE_END : JT_BLOCK_END, .line = lx->line};
    close_tag(lx, lx->at + (sign != '\0') + 2, sign, !variable);
    return true;
}

static ls_status lex_tag(lexer *lx, bool *in_tag, ls_error *err) {
    bool variable = lx->out->token[lx->out->n - 1].kind == JT_VARIABLE_BEGIN;
    for (;;) {
        jinja_token end;
        size_t n_bytes;
        if (lx->at < lx->n && lex_close(lx, variable, &end)) {
            *in_tag = false;
            return push(lx, end, err);
        }
        move(lx, skip_space(lx, lx->at));
        if (lx->at == lx->n) {
            return LS_OK; /* the parser will miss the end of the tag */
        }
        if (lex_close(lx, variable, &end)) {
            *in_tag = false;
            return push(lx, end, err);
        }
        char c = lx->s[lx->at];
        if (is_digit(c, 10)) {
            TRY(lex_number(lx, err));
        } else if (c == '\'' || c == '"') {
            TRY(lex_string(lx, err));
        } else if (jinja_char_continues_name(utf8_decode(lx->s + lx->at, &n_bytes))) {
            TRY(lex_name(lx, err));
        } else {
            TRY(lex_operator(lx, err));
        }
    }
}

/* "\r\n" and "\r" become "\n"; one newline at the end goes. */
static ls_status normalise(lexer *lx, const char *source, size_t n_bytes, ls_error *err) {
    char *copy;
    TRY(jinja_heap_take(lx->heap, n_bytes + 8, &copy, err)); /* zeros at the end: looking ahead needs no check */
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (source[i] == '\r') {
            i += i + 1 < n_bytes && source[i + 1] == '\n';
            copy[n++] = '\n';
        } else {
            copy[n++] = source[i];
        }
    }
    n -= n > 0 && copy[n - 1] == '\n';
    copy[n] = '\0';
    lx->s = copy;
    lx->n = n;
    return LS_OK;
}

ls_status jinja_lex(jinja_heap *heap, const char *name, const char *source, size_t n_bytes, jinja_tokens *out,
                    ls_error *err) {
    jinja_tokens tokens = {0};
    lexer lx = {.heap = heap, .name = name, .line = 1, .line_starts = true, .out = &tokens};
    TRY(normalise(&lx, source, n_bytes, err));
    bool in_tag = false;
    while (lx.at < lx.n) {
        if (in_tag) {
            TRY(lex_tag(&lx, &in_tag, err));
        } else {
            TRY(lex_data(&lx, &in_tag, err));
        }
    }
    TRY(push(&lx, (jinja_token){.kind = JT_EOF, .line = lx.line}, err));
    *out = tokens;
    return LS_OK;
}
