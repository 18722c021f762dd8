/*
 * The parsed form of a tokenizer.json, kept in a file: vocabulary and merges as the arrays they are in memory, mapped and
 * used in place, and the text of all other sections, which are small and read anew.
 */
#ifndef LS_TEXT_TOKENIZER_CACHE_H
#define LS_TEXT_TOKENIZER_CACHE_H

#include "text/tokenizer_parts.h"

typedef struct cache_key {
    uint64_t hash[2];
    uint64_t n_bytes;
} cache_key;

cache_key cache_key_of(const char *json, size_t n);

/* Maps folder/<key> and lends its arrays to t->vocab and t->bpe; *rest is the text of the other sections, borrowed from
 * the map, which t owns. False, with t as it was, if there is no such file or anything is wrong with it. */
bool cache_load(ls_tokenizer *t, const char *folder, const cache_key *key, const char **rest, size_t *n_rest);

/* Writes the file, under another name first, so that readers and other writers see it whole or not at all. Failure is
 * silent: the next open tries again. */
void cache_store(const ls_tokenizer *t, const char *folder, const cache_key *key, const char *rest, size_t n_rest);

/* cache_load from memory that outlives the tokenizer (fuzzing). */
bool cache_use(ls_tokenizer *t, const char *data, size_t n, const cache_key *key, const char **rest, size_t *n_rest);
/* The checksum that a cache file of n bytes should have; it lies at byte CACHE_CHECKSUM_AT. */
uint64_t cache_checksum(const char *data, size_t n);
enum { CACHE_CHECKSUM_AT = 8 };

#endif
