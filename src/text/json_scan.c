/* See json_scan.h. */
#include "text/json_scan.h"

#include <string.h>

#include "text/utf8.h"

static size_t skip_white(const char *json, size_t n, size_t at) {
    while (at < n && (json[at] == ' ' || json[at] == '\n' || json[at] == '\r' || json[at] == '\t')) {
        at++;
    }
    return at;
}

/* ---- Skimming ---- */

/* json[at] is a quote: the place behind the closing one, or n. */
static size_t skim_string(const char *json, size_t n, size_t at) {
    for (at++; at < n; at++) {
        const char *quote = memchr(json + at, '"', n - at);
        const char *slash = quote ? memchr(json + at, '\\', (size_t)(quote - json) - at) : NULL;
        if (quote == NULL) {
            return n;
        }
        if (slash == NULL) {
            return (size_t)(quote - json) + 1;
        }
        at = (size_t)(slash - json) + 1; /* what is escaped is passed over */
    }
    return n;
}

/* The place behind the value that begins at `at`, or n. */
static size_t skim_value(const char *json, size_t n, size_t at) {
    size_t depth = 0;
    while (at < n) {
        char c = json[at];
        if (c == '"') {
            at = skim_string(json, n, at);
        } else {
            if ((c == ',' || c == '}' || c == ']') && depth == 0) {
                return at;
            }
            depth += c == '{' || c == '[';
            depth -= c == '}' || c == ']';
            at++;
        }
        if (depth == 0 && (c == '"' || c == '}' || c == ']')) {
            return at;
        }
    }
    return n;
}

json_range json_skim_member(const char *json, size_t n, size_t at, const char *key) {
    size_t n_key = strlen(key);
    at = skip_white(json, n, at);
    if (at == n || json[at] != '{') {
        return (json_range){0};
    }
    at = skip_white(json, n, at + 1);
    while (at < n && json[at] == '"') {
        size_t name = at + 1;
        at = skim_string(json, n, at);
        bool found = at - name == n_key + 1 && memcmp(json + name, key, n_key) == 0;
        at = skip_white(json, n, at);
        if (at == n || json[at] != ':') {
            break;
        }
        at = skip_white(json, n, at + 1);
        size_t end = skim_value(json, n, at);
        if (found) {
            return (json_range){at, end};
        }
        at = skip_white(json, n, end);
        if (at == n || json[at] != ',') {
            break;
        }
        at = skip_white(json, n, at + 1);
    }
    return (json_range){0};
}

size_t json_skim_count(const char *json, json_range list) {
    size_t count = 0;
    for (size_t at = list.start + 1; at < list.end;) {
        at = skip_white(json, list.end, at);
        size_t end = skim_value(json, list.end, at);
        if (end == at) {
            break;
        }
        count++;
        at = skip_white(json, list.end, end);
        at += at < list.end; /* the comma, or the end */
    }
    return count;
}

/* ---- Reading ---- */

void json_reader_deinit(json_reader *r) {
    text_buffer_deinit(&r->decoded[0]);
    text_buffer_deinit(&r->decoded[1]);
}

ls_status json_reader_error(const json_reader *r, const char *what, ls_error *err) {
    return error_set(err, LS_EFORMAT, "%s: %s: byte %zu: %s", r->name, r->field, r->at, what);
}

char json_reader_peek(json_reader *r) {
    r->at = skip_white(r->json, r->n, r->at);
    return r->at < r->n ? r->json[r->at] : '\0';
}

ls_status json_reader_expect(json_reader *r, char c, ls_error *err) {
    if (json_reader_peek(r) != c || r->at == r->n) {
        char what[] = "not valid JSON: expected ' '";
        what[sizeof what - 3] = c;
        return json_reader_error(r, what, err);
    }
    r->at++;
    return LS_OK;
}

ls_status json_reader_more(json_reader *r, char close, bool first, bool *more, ls_error *err) {
    if (json_reader_peek(r) == close) {
        r->at++;
        *more = false;
        return LS_OK;
    }
    *more = true;
    return first ? LS_OK : json_reader_expect(r, ',', err);
}

static int32_t hex_of(const json_reader *r, size_t at) {
    int32_t value = 0;
    if (r->n - at < 4) {
        return -1;
    }
    for (size_t i = at; i < at + 4; i++) {
        char c = r->json[i];
        int32_t digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
        if (digit < 0) {
            return -1;
        }
        value = value * 16 + digit;
    }
    return value;
}

/* r->at is behind \u: the code point, of two surrogates together. */
static int32_t read_escaped_point(json_reader *r) {
    int32_t point = hex_of(r, r->at);
    if (point < 0 || (point >= 0xDC00 && point <= 0xDFFF)) {
        return -1;
    }
    r->at += 4;
    if (point >= 0xD800 && point <= 0xDBFF) {
        int32_t low = r->n - r->at >= 6 && memcmp(r->json + r->at, "\\u", 2) == 0 ? hex_of(r, r->at + 2) : -1;
        if (low < 0xDC00 || low > 0xDFFF) {
            return -1;
        }
        r->at += 6;
        point = 0x10000 + (point - 0xD800) * 0x400 + (low - 0xDC00);
    }
    return point;
}

/* r->at is behind a backslash. */
static ls_status read_escape(json_reader *r, text_buffer *out, ls_error *err) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = r->at < r->n ? r->json[r->at] : '\0';
    const char *found = c != '\0' ? strchr(from, c) : NULL;
    if (found != NULL) {
        r->at++;
        return text_buffer_append(out, to + (found - from), 1, err);
    }
    r->at += c == 'u';
    int32_t point = c == 'u' ? read_escaped_point(r) : -1;
    if (point < 0) {
        return json_reader_error(r, "not valid JSON: a bad escape in a string", err);
    }
    char bytes[UTF8_MAX_BYTES];
    return text_buffer_append(out, bytes, utf8_encode(point, bytes), err);
}

/* The stretch from r->at without quote, backslash or control character. */
static ls_status read_stretch(json_reader *r, size_t *start, size_t *end, ls_error *err) {
    *start = r->at;
    while (r->at < r->n && (unsigned char)r->json[r->at] >= 0x20 && r->json[r->at] != '"' && r->json[r->at] != '\\') {
        r->at++;
    }
    *end = r->at;
    size_t valid = utf8_valid_bytes(r->json + *start, *end - *start);
    if (valid < *end - *start) {
        r->at = *start + valid;
        return json_reader_error(r, "not valid UTF-8", err);
    }
    if (r->at == r->n || (unsigned char)r->json[r->at] < 0x20) {
        return json_reader_error(r, "not valid JSON: a string that does not end", err);
    }
    return LS_OK;
}

ls_status json_reader_string(json_reader *r, int which, const char **data, size_t *n, ls_error *err) {
    size_t start, end;
    TRY(json_reader_expect(r, '"', err));
    TRY(read_stretch(r, &start, &end, err));
    if (r->json[r->at] == '"') {
        r->at++;
        *data = r->json + start;
        *n = end - start;
        return LS_OK;
    }
    text_buffer *out = &r->decoded[which];
    text_buffer_clear(out);
    TRY(text_buffer_append(out, r->json + start, end - start, err));
    while (r->json[r->at] == '\\') {
        r->at++;
        TRY(read_escape(r, out, err));
        TRY(read_stretch(r, &start, &end, err));
        TRY(text_buffer_append(out, r->json + start, end - start, err));
    }
    r->at++;
    *data = out->data;
    *n = out->n;
    return LS_OK;
}

static bool is_digit(const json_reader *r) {
    return r->at < r->n && r->json[r->at] >= '0' && r->json[r->at] <= '9';
}

ls_status json_reader_integer(json_reader *r, int64_t max, int64_t *out, bool *good, ls_error *err) {
    bool negative = json_reader_peek(r) == '-';
    r->at += negative;
    if (!is_digit(r)) {
        return json_reader_error(r, "expected an integer", err);
    }
    size_t first = r->at;
    int64_t value = 0;
    for (; is_digit(r); r->at++) {
        value = value > max ? value : value * 10 + (r->json[r->at] - '0');
    }
    if (r->json[first] == '0' && r->at > first + 1) {
        return json_reader_error(r, "not valid JSON: an integer that begins with 0", err);
    }
    char c = r->at < r->n ? r->json[r->at] : '\0';
    *good = !negative && value <= max && c != '.' && c != 'e' && c != 'E';
    *out = *good ? value : 0;
    return LS_OK;
}
