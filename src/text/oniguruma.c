/*
 * See oniguruma.h. One pass over the pattern with one bit of state (inside a class or not), and a list of what is known
 * to be the same; anything else is refused. Differences that were checked against Oniguruma 6.9:
 *   \s        has no U+180E there: spelled out        \w \b     other sets: refused
 *   \h \v     other meanings: refused                 [a[b]&&c] sets in sets: refused
 *   {,n}      is {0,n} there: refused                 {n}+ {n}? are no possessive and lazy forms there: refused
 *   (?m) (?i) in the middle: other reach: refused     (* begins a verb in PCRE2: refused
 */
#include "text/oniguruma.h"

#include <string.h>

#define SPACES "\\t-\\r \\x{85}\\p{Z}" /* Unicode's White_Space */

static ls_status refuse(size_t at, const char *what, ls_error *err) {
    return error_set(err, LS_EUNSUPPORTED, "byte %zu of the pattern: %s is not supported", at, what);
}

static bool is_alphanumeric(char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* pattern[at] is a backslash. Sets *used to the bytes read. */
static ls_status translate_escape(const char *pattern, size_t n, size_t at, bool in_class, size_t *used,
                                  text_buffer *out, ls_error *err) {
    if (at + 1 == n) {
        return refuse(at, "a backslash at the end", err);
    }
    char c = pattern[at + 1];
    *used = 2;
    if (c == 's') {
        const char *set = in_class ? SPACES : "[" SPACES "]";
        return text_buffer_append(out, set, strlen(set), err);
    }
    if (c == 'S' && !in_class) {
        return text_buffer_append(out, "[^" SPACES "]", strlen("[^" SPACES "]"), err);
    }
    if ((c == 'p' || c == 'P' || c == 'x') && at + 2 < n && pattern[at + 2] == '{') {
        const char *close = memchr(pattern + at, '}', n - at);
        if (close == NULL) {
            return refuse(at, "an open brace", err);
        }
        *used = (size_t)(close - pattern) + 1 - at;
    } else if (is_alphanumeric(c) && strchr(in_class ? "dDrntfae" : "dDrntfaeAz", c) == NULL) {
        return refuse(at, "this escape", err);
    }
    return text_buffer_append(out, pattern + at, *used, err);
}

/* pattern[at] is an opening parenthesis: what follows must be a group that is the same to both. */
static ls_status check_group(const char *pattern, size_t n, size_t at, ls_error *err) {
    static const char *const same[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:"};
    if (at + 1 == n || (pattern[at + 1] != '?' && pattern[at + 1] != '*')) {
        return LS_OK;
    }
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        if (n - at >= strlen(same[i]) && memcmp(pattern + at, same[i], strlen(same[i])) == 0) {
            return LS_OK;
        }
    }
    if (at == 0 && n >= 4 && memcmp(pattern, "(?i)", 4) == 0) {
        return LS_OK;
    }
    return refuse(at, "this kind of group", err);
}

/* pattern[at] is an opening brace outside a class: {n}, {n,} or {n,m}, with no ? or + behind it. */
static ls_status check_repeat(const char *pattern, size_t n, size_t at, ls_error *err) {
    size_t end = at + 1;
    while (end < n && ((pattern[end] >= '0' && pattern[end] <= '9') || (pattern[end] == ',' && end > at + 1))) {
        end++;
    }
    if (end == at + 1 || end == n || pattern[end] != '}') {
        return refuse(at, "this use of a brace", err);
    }
    if (end + 1 < n && (pattern[end + 1] == '?' || pattern[end + 1] == '+')) {
        return refuse(at, "a counted repeat followed by ? or +", err);
    }
    return LS_OK;
}

/* pattern[at] is a plain character inside a class. */
static ls_status check_in_class(const char *pattern, size_t n, size_t at, ls_error *err) {
    if (pattern[at] == '[') {
        return refuse(at, "a class in a class", err);
    }
    if (pattern[at] == '&' && at + 1 < n && pattern[at + 1] == '&') {
        return refuse(at, "&& in a class", err);
    }
    if (pattern[at] == ']' && (pattern[at - 1] == '[' || (pattern[at - 1] == '^' && pattern[at - 2] == '['))) {
        return refuse(at, "] at the start of a class", err);
    }
    return LS_OK;
}

ls_status oniguruma_to_pcre2(const char *pattern, size_t n, text_buffer *out, ls_error *err) {
    bool in_class = false;
    for (size_t at = 0, used; at < n; at += used) {
        char c = pattern[at];
        used = 1;
        if (c == '\\') {
            TRY(translate_escape(pattern, n, at, in_class, &used, out, err));
            continue;
        }
        if (in_class) {
            TRY(check_in_class(pattern, n, at, err));
            in_class = c != ']';
        } else if (c == '[') {
            in_class = true;
        } else if (c == '(') {
            TRY(check_group(pattern, n, at, err));
        } else if (c == '{') {
            TRY(check_repeat(pattern, n, at, err));
        }
        TRY(text_buffer_append(out, &c, 1, err));
    }
    return LS_OK;
}
