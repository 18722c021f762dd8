/* See utf8.h. */
#include "text/utf8.h"

#include <string.h>

utf8_kind utf8_next(const char *s, size_t n, size_t *n_bytes) {
    const unsigned char *p = (const unsigned char *)s;
    unsigned char first = p[0];
    *n_bytes = 1;
    if (first < 0x80) {
        return UTF8_CHARACTER;
    }
    if (first < 0xC2 || first > 0xF4) {
        return UTF8_INVALID;
    }
    size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    /* The second byte also keeps out long spellings, surrogates and what lies above U+10FFFF. */
    unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < length; i++) {
        if (i == n) {
            return UTF8_CUT;
        }
        if (p[i] < low || p[i] > high) {
            return UTF8_INVALID;
        }
        low = 0x80;
        high = 0xBF;
        *n_bytes = i + 1;
    }
    return UTF8_CHARACTER;
}

size_t utf8_valid_bytes(const char *s, size_t n) {
    size_t at = 0;
    while (at < n) {
        uint64_t eight;
        if (n - at >= sizeof eight) { /* most text is mostly ASCII */
            memcpy(&eight, s + at, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        size_t n_bytes;
        if (utf8_next(s + at, n - at, &n_bytes) != UTF8_CHARACTER) {
            break;
        }
        at += n_bytes;
    }
    return at;
}

ls_status utf8_append_lossy(text_buffer *out, const char *s, size_t n, ls_error *err) {
    while (n > 0) {
        size_t valid = utf8_valid_bytes(s, n);
        TRY(text_buffer_append(out, s, valid, err));
        s += valid;
        n -= valid;
        if (n > 0) {
            size_t n_bytes;
            utf8_next(s, n, &n_bytes);
            TRY(text_buffer_append(out, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, err));
            s += n_bytes;
            n -= n_bytes;
        }
    }
    return LS_OK;
}

int32_t utf8_decode(const char *s, size_t *n_bytes) {
    const unsigned char *p = (const unsigned char *)s;
    if (p[0] < 0x80) {
        *n_bytes = 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *n_bytes = 2;
        return (p[0] & 0x1F) << 6 | (p[1] & 0x3F);
    }
    if (p[0] < 0xF0) {
        *n_bytes = 3;
        return (p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F);
    }
    *n_bytes = 4;
    return (p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

size_t utf8_encode(int32_t point, char out[UTF8_MAX_BYTES]) {
    uint32_t c = (uint32_t)point;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) {
        out[i] = (char)(0x80 | (c & 0x3F));
    }
    out[0] = (char)((0xF00u >> n & 0xFF) | c);
    return n;
}

bool utf8_is_space(int32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t utf8_skip_spaces(const char *text, size_t n, size_t at) {
    size_t n_bytes;
    while (at < n && utf8_is_space(utf8_decode(text + at, &n_bytes))) {
        at += n_bytes;
    }
    return at;
}

size_t utf8_skip_spaces_back(const char *text, size_t low, size_t at) {
    while (at > low) {
        size_t before = at - 1, n_bytes;
        while (utf8_is_continuation(text[before])) {
            before--;
        }
        if (!utf8_is_space(utf8_decode(text + before, &n_bytes))) {
            break;
        }
        at = before;
    }
    return at;
}
