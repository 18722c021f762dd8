/*
 * See unicode_form.h. A "plain" character neither changes under the form nor combines with what stands before it:
 * for NFC those below U+0300, and ideographs (U+4000 .. U+9FFF). Only runs of others, each with the character before
 * it, are taken apart and put together again. utf8proc has the tables; ordering and composing are done here, since
 * utf8proc's way takes time quadratic in the number of marks on one letter, which the sender of a text chooses, and
 * does not tell what became of which character.
 */
#include "text/unicode_form.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

enum { MAX_POINTS_PER_BYTE = 8 }; /* U+FDFA, three bytes, is 18 characters in NFKD */

typedef struct point_range {
    int32_t first, last;
} point_range;

void form_scratch_deinit(form_scratch *scratch) {
    free(scratch->point);
    *scratch = (form_scratch){0};
}

static bool is_compatible(unicode_form form) {
    return form == UNICODE_NFKC || form == UNICODE_NFKD;
}

static bool is_composed(unicode_form form) {
    return form == UNICODE_NFC || form == UNICODE_NFKC;
}

/* By the first byte of a character, which rises with the code point: U+00C0 has 0xC3, U+0300 0xCC, U+4000 0xE4,
 * U+9FFF 0xE9. Bytes inside a character are below 0xC0: plain. */
static unsigned char first_suspect(unicode_form form) {
    return is_compatible(form) ? 0xC0 : form == UNICODE_NFD ? 0xC3 : 0xCC;
}

static bool is_plain(unsigned char first, unsigned char suspect) {
    return first < suspect || (first >= 0xE4 && first <= 0xE9);
}

/* The first place at or after `at` with a character that is not plain; n if there is none. */
static size_t find_non_plain(const char *text, size_t n, size_t at, unsigned char suspect) {
    while (at < n) {
        uint64_t eight;
        if (n - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        if (!is_plain((unsigned char)text[at], suspect)) {
            break;
        }
        at++;
    }
    return at;
}

bool unicode_form_suspect(unicode_form form, const char *text, size_t n, size_t *at) {
    *at = find_non_plain(text, n, 0, first_suspect(form));
    return *at < n;
}

/* Marks (and one composition, U+11938) that came after Unicode 9, whose tables Hugging Face's NFC has; utf8proc 2.8 has
 * Unicode 15. To the older tables they are no marks: they stay where they are and nothing combines across them. */
static const point_range newer_marks[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0xECE, 0xECE},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},
    {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
};

/* Characters whose compatibility decomposition came after Unicode 9. */
static const point_range newer_compatible[] = {
    {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},   {0xAB69, 0xAB69},   {0x10781, 0x10785}, {0x10787, 0x107B0},
    {0x107B2, 0x107BA}, {0x1E030, 0x1E06D}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9},
};

static bool in_ranges(const point_range *range, size_t n, int32_t point) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (range[middle].last < point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < n && range[low].first <= point;
}

bool unicode_is_newer_mark(int32_t point) {
    return in_ranges(newer_marks, sizeof newer_marks / sizeof *newer_marks, point);
}

static bool stays_whole(unicode_form form, int32_t point) {
    return unicode_is_newer_mark(point) ||
           (is_compatible(form) &&
            in_ranges(newer_compatible, sizeof newer_compatible / sizeof *newer_compatible, point));
}

static int combining_class(int32_t point) {
    int class = utf8proc_get_property(point)->combining_class;
    return class != 0 && unicode_is_newer_mark(point) ? 0 : class;
}

/* Canonical ordering: each stretch of marks sorted by combining class, equal ones kept in order (a counting sort). */
static void order_marks(form_point *point, size_t n, form_point *sorted) {
    for (size_t start = 0; start < n;) {
        if (combining_class(point[start].point) == 0) {
            start++;
            continue;
        }
        size_t end = start;
        size_t place[257] = {0};
        bool ordered = true;
        for (int before = 0, class; end < n && (class = combining_class(point[end].point)) != 0; end++) {
            ordered = ordered && class >= before;
            before = class;
            place[class + 1]++;
        }
        if (!ordered) {
            for (int class = 0; class < 256; class ++) {
                place[class + 1] += place[class];
            }
            for (size_t i = start; i < end; i++) {
                sorted[place[combining_class(point[i].point)]++] = point[i];
            }
            memcpy(point + start, sorted, (end - start) * sizeof *point);
        }
        start = end;
    }
}

static ls_status reserve(form_scratch *scratch, size_t n_points, ls_error *err) {
    if (n_points > scratch->n_points) {
        form_point *point = realloc(scratch->point, n_points * sizeof *point);
        if (point == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: normalising %zu characters of text", n_points);
        }
        scratch->point = point;
        scratch->n_points = n_points;
    }
    return LS_OK;
}

/* Code points of a run, each taken apart, into scratch->point, with as much room behind them for sorting. */
static ls_status decompose(unicode_form form, const char *run, size_t n, form_scratch *scratch, size_t *n_points,
                           ls_error *err) {
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (is_compatible(form) ? UTF8PROC_COMPAT : 0);
    size_t used = 0;
    int boundary = 0;
    TRY(reserve(scratch, 2 * n * MAX_POINTS_PER_BYTE, err)); /* a code point has at least one byte */
    for (size_t at = 0, n_bytes; at < n; at += n_bytes) {
        int32_t part[MAX_POINTS_PER_BYTE * UTF8_MAX_BYTES];
        part[0] = utf8_decode(run + at, &n_bytes);
        utf8proc_ssize_t got = 1;
        if (!stays_whole(form, part[0])) {
            got = utf8proc_decompose_char(part[0], part, MAX_POINTS_PER_BYTE * (utf8proc_ssize_t)n_bytes, options,
                                          &boundary);
        }
        if (got < 0 || (size_t)got > MAX_POINTS_PER_BYTE * n_bytes) {
            return error_set(err, LS_EINTERNAL, "normalising text: utf8proc returned %lld", (long long)got);
        }
        for (utf8proc_ssize_t i = 0; i < got; i++) {
            scratch->point[used++] = (form_point){part[i], i > 0};
        }
    }
    order_marks(scratch->point, used, scratch->point + n * MAX_POINTS_PER_BYTE);
    *n_points = used;
    return LS_OK;
}

/* What two characters become together, or -1. */
static int32_t composition(int32_t left, int32_t right) {
    if (left >= 0x1100 && left <= 0x1112 && right >= 0x1161 && right <= 0x1175) { /* Hangul */
        return 0xAC00 + ((left - 0x1100) * 21 + (right - 0x1161)) * 28;
    }
    if (left >= 0xAC00 && left <= 0xD7A3 && (left - 0xAC00) % 28 == 0 && right > 0x11A7 && right <= 0x11C2) {
        return left + (right - 0x11A7);
    }
    if (right < 0x300 || unicode_is_newer_mark(right) || unicode_is_newer_mark(left)) {
        return -1;
    }
    int32_t pair[2] = {left, right};
    return utf8proc_normalize_utf32(pair, 2, UTF8PROC_STABLE | UTF8PROC_COMPOSE) == 1 ? pair[0] : -1;
}

/* Composes in place; returns how many characters are left. A mark is blocked from its starter by one of the same or a
 * higher class between them. */
static size_t compose(form_point *point, size_t n) {
    size_t used = 0, starter = SIZE_MAX;
    int before = -1; /* class of the last mark behind the starter that did not combine */
    for (size_t i = 0; i < n; i++) {
        int class = combining_class(point[i].point);
        if (starter != SIZE_MAX && before < class) {
            int32_t together = composition(point[starter].point, point[i].point);
            if (together >= 0) {
                point[starter].point = together;
                point[starter].change += point[i].change - 1;
                continue;
            }
        }
        if (class == 0) {
            starter = used;
        }
        before = class == 0 ? -1 : class;
        point[used++] = point[i];
    }
    return used;
}

/* Appends the points of the run that begins at `at`, each with the span of what it replaces. */
static ls_status put_points(const text_view *from, size_t at, const form_point *point, size_t n, traced_text *to,
                            ls_error *err) {
    for (size_t i = 0; i < n; i++) {
        utf8proc_uint8_t bytes[UTF8_MAX_BYTES];
        size_t n_bytes = (size_t)utf8proc_encode_char(point[i].point, bytes);
        bool additional = point[i].change > 0 || at >= from->n;
        text_span span = additional ? (at > 0 ? view_span(from, at - 1) : (text_span){0}) : view_span(from, at);
        TRY(traced_put(to, (const char *)bytes, n_bytes, span, err));
        for (int32_t used = point[i].change; used <= 0 && at < from->n; used++) {
            do {
                at++;
            } while (at < from->n && utf8_is_continuation(from->text[at]));
        }
    }
    return LS_OK;
}

ls_status unicode_normalize(unicode_form form, const text_view *from, form_scratch *scratch, traced_text *to,
                            ls_error *err) {
    const char *text = from->text;
    size_t n = from->n, done = 0;
    unsigned char suspect = first_suspect(form);
    for (size_t found = find_non_plain(text, n, 0, suspect); found < n;) {
        size_t start = found, end = found + 1, n_points = 0;
        if (start > done) { /* the run takes in the letter before its first mark */
            do {
                start--;
            } while (utf8_is_continuation(text[start]));
        }
        while (end < n && (utf8_is_continuation(text[end]) || !is_plain((unsigned char)text[end], suspect))) {
            end++;
        }
        TRY(traced_copy(to, from, done, start, err));
        TRY(decompose(form, text + start, end - start, scratch, &n_points, err));
        n_points = is_composed(form) ? compose(scratch->point, n_points) : n_points;
        TRY(put_points(from, start, scratch->point, n_points, to, err));
        done = end;
        found = find_non_plain(text, n, end, suspect);
    }
    return traced_copy(to, from, done, n, err);
}
