/*
 * Added tokens: strings that are cut out of the text before anything else sees them, and their ids.
 *
 * A set is a sorted array. Of all tokens that begin at a place the longest counts, and matches do not overlap
 * (Aho-Corasick's leftmost-longest). A tokenizer has two sets: one for the text as it came, one for normalised text.
 */
#ifndef LS_TEXT_ADDED_TOKENS_H
#define LS_TEXT_ADDED_TOKENS_H

#include "base/error.h"

/* Scanning looks at up to this many bytes for each byte of text: the bound on what an evil file can cost. */
enum { ADDED_TOKEN_MAX_BYTES = 1024 };

typedef struct added_token {
    char *text; /* owned */
    size_t n_bytes;
    int32_t id;
    bool special;
    bool single_word;             /* counts only where no word goes on to its left or right */
    bool strip_left, strip_right; /* takes the white space around it with it */
} added_token;

typedef struct added_set {
    added_token *token; /* sorted by text, once frozen */
    size_t n, capacity;
    size_t first[257]; /* tokens that begin with byte b: first[b] .. first[b + 1] */
} added_set;

/* Copies the text: 1 .. ADDED_TOKEN_MAX_BYTES bytes. */
ls_status added_set_add(added_set *set, const char *text, const added_token *token, ls_error *err);
/* After the last addition, before the first search. False if two tokens have one text. */
bool added_set_freeze(added_set *set);
void added_set_deinit(added_set *set); /* accepts a zeroed one */

/* The longest token that text[0 .. n) begins with, or NULL. */
const added_token *added_set_match(const added_set *set, const char *text, size_t n);

/* Walks over a text (valid UTF-8) in parts: tokens of the set, and what lies between them. */
typedef struct added_scan {
    const added_set *set;
    const char *text;
    size_t n;
    bool keep_special; /* special tokens stay text */
    size_t at, done;   /* matches are looked for from here; parts were given up to here */
    int32_t waiting;   /* id of a token to give after the text before it, or -1 */
    size_t waiting_at; /* where it begins */
} added_scan;

typedef struct added_part {
    size_t start, end; /* in the text; with the white space that a token takes with it */
    int32_t id;        /* -1: text */
} added_part;

void added_scan_init(added_scan *scan, const added_set *set, const char *text, size_t n, bool keep_special);
bool added_scan_next(added_scan *scan, added_part *part); /* false at the end */

#endif
