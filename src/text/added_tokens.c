/* See added_tokens.h. */
#include "text/added_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

ls_status added_set_add(added_set *set, const char *text, const added_token *token, ls_error *err) {
    if (set->n == set->capacity) {
        size_t capacity = set->capacity ? 2 * set->capacity : 32;
        added_token *grown = realloc(set->token, capacity * sizeof *grown);
        if (grown == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: %zu added tokens", capacity);
        }
        set->token = grown;
        set->capacity = capacity;
    }
    char *copy = malloc(token->n_bytes);
    if (copy == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: an added token of %zu bytes", token->n_bytes);
    }
    memcpy(copy, text, token->n_bytes);
    set->token[set->n] = *token;
    set->token[set->n++].text = copy;
    return LS_OK;
}

static int compare(const void *left, const void *right) {
    const added_token *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes);
    return order != 0 ? order : (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

void added_set_freeze(added_set *set) {
    if (set->n > 0) {
        qsort(set->token, set->n, sizeof *set->token, compare);
    }
    for (size_t i = 0, byte = 0; byte <= 256; byte++) {
        while (i < set->n && (unsigned char)set->token[i].text[0] < byte) {
            i++;
        }
        set->first[byte] = i;
    }
}

void added_set_deinit(added_set *set) {
    for (size_t i = 0; i < set->n; i++) {
        free(set->token[i].text);
    }
    free(set->token);
    *set = (added_set){0};
}

/* The first of tokens [low, high) with byte `depth` >= byte. They agree in all bytes before that, and have it. */
static size_t lower_bound(const added_set *set, size_t low, size_t high, size_t depth, unsigned byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)set->token[middle].text[depth] < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

const added_token *added_set_match(const added_set *set, const char *text, size_t n) {
    if (n == 0) {
        return NULL;
    }
    unsigned char byte = (unsigned char)text[0];
    size_t low = set->first[byte], high = set->first[byte + 1];
    const added_token *longest = NULL;
    for (size_t depth = 1; low < high; depth++) {
        if (set->token[low].n_bytes == depth) { /* the shortest sorts first */
            longest = &set->token[low++];
        }
        if (depth == n) {
            break;
        }
        byte = (unsigned char)text[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1u);
    }
    return longest;
}

/* Unicode's White_Space, which is \s in Rust. */
static bool is_space(int32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static size_t skip_spaces(const char *text, size_t n, size_t at) {
    size_t n_bytes;
    while (at < n && is_space(utf8_decode(text + at, &n_bytes))) {
        at += n_bytes;
    }
    return at;
}

static size_t skip_spaces_back(const char *text, size_t low, size_t at) {
    while (at > low) {
        size_t before = at - 1, n_bytes;
        while (utf8_is_continuation(text[before])) {
            before--;
        }
        if (!is_space(utf8_decode(text + before, &n_bytes))) {
            break;
        }
        at = before;
    }
    return at;
}

void added_scan_init(added_scan *scan, const added_set *set, const char *text, size_t n, bool keep_special) {
    *scan = (added_scan){.set = set, .text = text, .n = n, .keep_special = keep_special, .waiting = -1};
}

/* The next match from scan->at on, which moves behind it. A special token that is to stay text still uses up its place,
 * as with Hugging Face's encode_special_tokens: no other token matches inside. */
static const added_token *next_match(added_scan *scan) {
    const added_set *set = scan->set;
    while (scan->at < scan->n) {
        unsigned char byte = (unsigned char)scan->text[scan->at];
        const added_token *token = NULL;
        if (set->first[byte] < set->first[byte + 1]) {
            token = added_set_match(set, scan->text + scan->at, scan->n - scan->at);
        }
        scan->at += token ? token->n_bytes : 1;
        if (token != NULL && !(token->special && scan->keep_special)) {
            return token;
        }
    }
    return NULL;
}

static void set_text_part(const added_scan *scan, size_t end, added_part *part) {
    *part = (added_part){.text = scan->text + scan->done, .n_bytes = end - scan->done, .id = -1};
}

/* What lies behind the last match. */
static bool rest(added_scan *scan, added_part *part) {
    if (scan->done >= scan->n) {
        return false;
    }
    set_text_part(scan, scan->n, part);
    scan->done = scan->n;
    return true;
}

bool added_scan_next(added_scan *scan, added_part *part) {
    if (scan->waiting >= 0) {
        *part = (added_part){.id = scan->waiting};
        scan->waiting = -1;
        return true;
    }
    const added_token *token;
    size_t start, end;
    do {
        token = next_match(scan);
        if (token == NULL) {
            return rest(scan, part);
        }
        start = scan->at - token->n_bytes;
        end = scan->at;
        if (token->strip_left) {
            start = start > scan->done ? skip_spaces_back(scan->text, scan->done, start) : scan->done;
        }
        if (token->strip_right) { /* a strip before this match may have reached beyond it already */
            end = skip_spaces(scan->text, scan->n, end > scan->done ? end : scan->done);
        }
    } while (start >= end); /* a token made of spaces, which the token before took with it */
    if (start > scan->done) {
        set_text_part(scan, start, part);
        scan->waiting = token->id;
    } else {
        *part = (added_part){.id = token->id};
    }
    scan->done = end;
    return true;
}
