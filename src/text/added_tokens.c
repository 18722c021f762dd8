/* See added_tokens.h. */
#include "text/added_tokens.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

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

bool added_set_freeze(added_set *set) {
    if (set->n > 0) {
        qsort(set->token, set->n, sizeof *set->token, compare);
    }
    for (size_t i = 0, byte = 0; byte <= 256; byte++) {
        while (i < set->n && (unsigned char)set->token[i].text[0] < byte) {
            i++;
        }
        set->first[byte] = i;
    }
    for (size_t i = 1; i < set->n; i++) {
        if (compare(&set->token[i - 1], &set->token[i]) == 0) {
            return false;
        }
    }
    return true;
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

void added_scan_init(added_scan *scan, const added_set *set, const char *text, size_t n, bool keep_special) {
    *scan = (added_scan){.set = set, .text = text, .n = n, .keep_special = keep_special, .waiting = -1};
}

/* \w in Rust: letters, marks, decimal and letter numbers, connecting punctuation, joiners, circled letters. */
static bool is_word(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
               (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
    }
}

static bool stands_alone(const char *text, size_t n, size_t start, size_t end) {
    size_t n_bytes, before = start;
    if (start > 0) {
        do {
            before--;
        } while (utf8_is_continuation(text[before]));
    }
    return (start == 0 || !is_word(utf8_decode(text + before, &n_bytes))) &&
           (end == n || !is_word(utf8_decode(text + end, &n_bytes)));
}

/* The next match from scan->at on, which moves behind it. A special token that is to stay text, and a part of a word that
 * should be a single one, still use up their place, as with Hugging Face: no other token matches inside. */
static const added_token *next_match(added_scan *scan) {
    const added_set *set = scan->set;
    while (scan->at < scan->n) {
        unsigned char byte = (unsigned char)scan->text[scan->at];
        const added_token *token = NULL;
        size_t start = scan->at;
        if (set->first[byte] < set->first[byte + 1]) {
            token = added_set_match(set, scan->text + start, scan->n - start);
        }
        scan->at += token ? token->n_bytes : 1;
        if (token != NULL && !(token->special && scan->keep_special) &&
            (!token->single_word || stands_alone(scan->text, scan->n, start, scan->at))) {
            return token;
        }
    }
    return NULL;
}

bool added_scan_next(added_scan *scan, added_part *part) {
    if (scan->waiting >= 0) {
        *part = (added_part){scan->waiting_at, scan->done, scan->waiting};
        scan->waiting = -1;
        return true;
    }
    const added_token *token;
    size_t start, end;
    do {
        token = next_match(scan);
        if (token == NULL) { /* what lies behind the last match */
            *part = (added_part){scan->done, scan->n, -1};
            scan->done = scan->n;
            return part->start < part->end;
        }
        start = scan->at - token->n_bytes;
        end = scan->at;
        if (token->strip_left) {
            start = start > scan->done ? utf8_skip_spaces_back(scan->text, scan->done, start) : scan->done;
        }
        if (token->strip_right) { /* a strip before this match may have reached beyond it already */
            end = utf8_skip_spaces(scan->text, scan->n, end > scan->done ? end : scan->done);
        }
    } while (start >= end); /* a token made of spaces, which the token before took with it */
    *part = (added_part){start, end, token->id};
    if (start > scan->done) {
        *part = (added_part){scan->done, start, -1};
        scan->waiting = token->id;
        scan->waiting_at = start;
    }
    scan->done = end;
    return true;
}
