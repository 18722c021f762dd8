/*
 * See normalize.h. A "plain" character neither changes under NFC nor combines with what stands before it: those below
 * U+0300, and ideographs (U+4000 .. U+9FFF). Only runs of others, each with the character before it, are taken apart
 * and put together again. utf8proc has the tables and composes; marks are ordered here, since utf8proc's way takes time
 * quadratic in the number of marks on one letter, which the sender of a text chooses.
 */
#include "text/normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

enum { MAX_DECOMPOSITION = 4 };
static const utf8proc_option_t nfc_options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;

void normalize_scratch_deinit(normalize_scratch *scratch) {
    text_buffer_deinit(&scratch->text);
    free(scratch->point);
    *scratch = (normalize_scratch){0};
}

/* By the first byte of a character, which rises with the code point: U+0300 has 0xCC, U+4000 0xE4, U+9FFF 0xE9. */
static bool is_plain(unsigned char first) {
    return first < 0xCC || (first >= 0xE4 && first <= 0xE9);
}

/* The first place at or after `at` with a character that is not plain; n if there is none. */
static size_t find_non_plain(const char *text, size_t n, size_t at) {
    while (at < n) {
        uint64_t eight;
        if (n - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        if (!is_plain((unsigned char)text[at])) { /* bytes inside a character are below 0xC0: plain */
            break;
        }
        at++;
    }
    return at;
}

/* Marks (and one composition, U+11938) that came after Unicode 9, whose tables Hugging Face's NFC has; utf8proc 2.8 has
 * Unicode 15. To the older tables they are no marks: they stay where they are and nothing combines across them. */
static const struct {
    int32_t first, last;
} newer_marks[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0xECE, 0xECE},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},
    {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
};

bool normalize_is_newer_mark(int32_t point) {
    size_t low = 0, high = sizeof newer_marks / sizeof *newer_marks;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (newer_marks[middle].last < point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < sizeof newer_marks / sizeof *newer_marks && newer_marks[low].first <= point;
}

static int combining_class(int32_t point) {
    int class = utf8proc_get_property(point)->combining_class;
    return class != 0 && normalize_is_newer_mark(point) ? 0 : class;
}

/* Canonical ordering: each stretch of marks sorted by combining class, equal ones kept in order (a counting sort). */
static void order_marks(int32_t *point, size_t n, int32_t *sorted) {
    for (size_t start = 0; start < n;) {
        if (combining_class(point[start]) == 0) {
            start++;
            continue;
        }
        size_t end = start;
        size_t place[257] = {0};
        bool ordered = true;
        for (int before = 0, class; end < n && (class = combining_class(point[end])) != 0; end++) {
            ordered = ordered && class >= before;
            before = class;
            place[class + 1]++;
        }
        if (!ordered) {
            for (int class = 0; class < 256; class ++) {
                place[class + 1] += place[class];
            }
            for (size_t i = start; i < end; i++) {
                sorted[place[combining_class(point[i])]++] = point[i];
            }
            memcpy(point + start, sorted, (end - start) * sizeof *point);
        }
        start = end;
    }
}

/* Code points of a run, each taken apart, into scratch->point, with as much room behind them for sorting. */
static ls_status decompose(const char *run, size_t n, normalize_scratch *scratch, size_t *n_points, ls_error *err) {
    size_t room = n * MAX_DECOMPOSITION; /* a code point has at least one byte */
    if (2 * room > scratch->n_points) {
        int32_t *point = realloc(scratch->point, 2 * room * sizeof *point);
        if (point == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: normalising %zu bytes of text", n);
        }
        scratch->point = point;
        scratch->n_points = 2 * room;
    }
    size_t used = 0;
    int boundary = 0;
    for (size_t at = 0, n_bytes; at < n; at += n_bytes) {
        int32_t point = utf8_decode(run + at, &n_bytes);
        if (normalize_is_newer_mark(point)) {
            scratch->point[used++] = point;
            continue;
        }
        utf8proc_ssize_t got = utf8proc_decompose_char(point, scratch->point + used, (utf8proc_ssize_t)(room - used),
                                                       nfc_options, &boundary);
        if (got < 0 || (size_t)got > room - used) {
            return error_set(err, LS_EINTERNAL, "normalising text: utf8proc returned %lld", (long long)got);
        }
        used += (size_t)got;
    }
    order_marks(scratch->point, used, scratch->point + room);
    *n_points = used;
    return LS_OK;
}

static ls_status append_point(text_buffer *out, int32_t point, ls_error *err) {
    utf8proc_uint8_t bytes[UTF8_MAX_BYTES];
    size_t n_bytes = (size_t)utf8proc_encode_char(point, bytes);
    return text_buffer_append(out, (const char *)bytes, n_bytes, err);
}

/* Appends the NFC of one run. */
static ls_status compose(const char *run, size_t n, normalize_scratch *scratch, ls_error *err) {
    size_t n_points = 0;
    TRY(decompose(run, n, scratch, &n_points, err));
    for (size_t start = 0, end; start < n_points; start = end + 1) { /* stretches between newer marks */
        for (end = start; end < n_points && !normalize_is_newer_mark(scratch->point[end]); end++) {
        }
        int32_t *point = scratch->point + start;
        utf8proc_ssize_t composed = utf8proc_normalize_utf32(point, (utf8proc_ssize_t)(end - start), nfc_options);
        if (composed < 0) {
            return error_set(err, LS_EINTERNAL, "normalising text: %s", utf8proc_errmsg(composed));
        }
        for (utf8proc_ssize_t i = 0; i < composed; i++) {
            TRY(append_point(&scratch->text, point[i], err));
        }
        if (end < n_points) {
            TRY(append_point(&scratch->text, scratch->point[end], err));
        }
    }
    return LS_OK;
}

ls_status normalize_nfc(const char *text, size_t n, normalize_scratch *scratch, const char **out, size_t *n_out,
                        ls_error *err) {
    size_t found = find_non_plain(text, n, 0);
    if (found == n) {
        *out = text;
        *n_out = n;
        return LS_OK;
    }
    text_buffer_clear(&scratch->text);
    TRY(text_buffer_reserve(&scratch->text, n, err));
    size_t done = 0;
    while (found < n) {
        size_t start = found;
        if (start > done) { /* the run takes in the letter before its first mark */
            do {
                start--;
            } while (utf8_is_continuation(text[start]));
        }
        size_t end = found + 1;
        while (end < n && (utf8_is_continuation(text[end]) || !is_plain((unsigned char)text[end]))) {
            end++;
        }
        TRY(text_buffer_append(&scratch->text, text + done, start - done, err));
        TRY(compose(text + start, end - start, scratch, err));
        done = end;
        found = find_non_plain(text, n, end);
    }
    TRY(text_buffer_append(&scratch->text, text + done, n - done, err));
    *out = scratch->text.data;
    *n_out = scratch->text.n;
    return LS_OK;
}
