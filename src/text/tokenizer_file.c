/*
 * tokenizer.json to the parts of a tokenizer: vocabulary, merges, added tokens, settings of the BPE model. The other
 * sections are in tokenizer_sections.c.
 *
 * model.vocab and model.merges, nearly all of the file, are cut out of it and read by json_scan.h; what is left goes
 * through jansson. With a cache (tokenizer_cache.h) both come from there.
 *
 * The file is untrusted. Nothing recurses on its nesting, and ids index arrays only after they were checked.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/json_scan.h"
#include "text/tokenizer_cache.h"
#include "text/tokenizer_sections.h"

typedef struct bytes {
    const char *data;
    size_t n;
} bytes;

/* The file in three parts. */
typedef struct parts {
    const char *json;
    json_range vocab, merges; /* in json; empty if missing or of another type */
    text_buffer rest;         /* all but those two, with {} and [] in their places */
} parts;

static ls_status cut(parts *p, const char *json, size_t n, ls_error *err) {
    json_range model = json_skim_member(json, n, 0, "model");
    p->json = json;
    if (model.end > model.start) {
        p->vocab = json_skim_member(json, model.end, model.start, "vocab");
        p->merges = json_skim_member(json, model.end, model.start, "merges");
    }
    if (p->vocab.end > p->vocab.start && json[p->vocab.start] != '{') {
        p->vocab = (json_range){0};
    }
    if (p->merges.end > p->merges.start && json[p->merges.start] != '[') {
        p->merges = (json_range){0};
    }
    bool vocab_first = p->vocab.start < p->merges.start;
    json_range range[2] = {vocab_first ? p->vocab : p->merges, vocab_first ? p->merges : p->vocab};
    size_t done = 0;
    for (int i = 0; i < 2; i++) {
        if (range[i].end > range[i].start) {
            const char *empty = json[range[i].start] == '{' ? "{}" : "[]";
            TRY(text_buffer_append(&p->rest, json + done, range[i].start - done, err));
            TRY(text_buffer_append(&p->rest, empty, 2, err));
            done = range[i].end;
        }
    }
    return text_buffer_append(&p->rest, json + done, n - done, err);
}

/* ---- Vocabulary ---- */

/* Totals of the vocabulary with its added tokens, which is allocated once. */
typedef struct totals {
    int32_t max_id;
    size_t n_tokens, n_bytes, longest;
} totals;

static void count(totals *sum, int32_t id, size_t n_bytes) {
    sum->max_id = id > sum->max_id ? id : sum->max_id;
    sum->n_tokens++;
    sum->n_bytes += n_bytes;
    sum->longest = n_bytes > sum->longest ? n_bytes : sum->longest;
}

static ls_status bad_id(const json_reader *r, ls_error *err) {
    return error_set(err, LS_EFORMAT, "%s: %s: a token id is an integer from 0 to %d (byte %zu)", r->name, r->field,
                     VOCAB_MAX_ID, r->at);
}

/* Walks over model.vocab: counts its tokens into *sum, or adds them to the vocabulary if that is NULL. */
static ls_status walk_vocab(json_reader *r, json_range range, totals *sum, vocab *v, ls_error *err) {
    r->field = "model.vocab";
    r->at = range.start;
    TRY(json_reader_expect(r, '{', err));
    for (bool first = true;; first = false) {
        const char *spelling;
        size_t n;
        int64_t id;
        bool more, good;
        TRY(json_reader_more(r, '}', first, &more, err));
        if (!more) {
            return LS_OK;
        }
        TRY(json_reader_string(r, 0, &spelling, &n, err));
        TRY(json_reader_expect(r, ':', err));
        TRY(json_reader_integer(r, VOCAB_MAX_ID, &id, &good, err));
        if (!good) {
            return bad_id(r, err);
        }
        if (sum != NULL) {
            count(sum, (int32_t)id, n);
            continue;
        }
        vocab_added added = vocab_add(v, (int32_t)id, spelling, n);
        if (added != VOCAB_ADDED) {
            return error_set(err, LS_EFORMAT, "%s: %s: two tokens with %s %d (byte %zu)", r->name, r->field,
                             added == VOCAB_SAME_ID ? "id" : "the text of", (int)id, r->at);
        }
        v->token[id].flags |= TOKEN_IN_MODEL;
    }
}

/* ---- Merges ---- */

static ls_status bad_merge(const json_reader *r, size_t i, const char *what, ls_error *err) {
    return error_set(err, LS_EFORMAT, "%s: %s[%zu]: %s (byte %zu)", r->name, r->field, i, what, r->at);
}

/* "left right" or ["left", "right"]. *skip: the head of merges.txt, left in. */
static ls_status read_merge(json_reader *r, size_t i, bytes *left, bytes *right, bool *skip, ls_error *err) {
    static const char expected[] = "expected \"left right\" or [\"left\", \"right\"]";
    char c = json_reader_peek(r);
    *skip = false;
    if (c == '[') {
        bytes *half[2] = {left, right};
        r->at++;
        for (int k = 0; k < 2; k++) {
            if (json_reader_peek(r) != '"') {
                return bad_merge(r, i, expected, err);
            }
            TRY(json_reader_string(r, k, &half[k]->data, &half[k]->n, err));
            if (json_reader_peek(r) != (k == 0 ? ',' : ']')) {
                return bad_merge(r, i, expected, err);
            }
            r->at++;
        }
        return LS_OK;
    }
    if (c != '"') {
        return bad_merge(r, i, expected, err);
    }
    bytes text;
    TRY(json_reader_string(r, 0, &text.data, &text.n, err));
    const char *space = memchr(text.data, ' ', text.n), *end = text.data + text.n;
    if (text.n >= 8 && memcmp(text.data, "#version", 8) == 0) {
        *skip = true;
        return LS_OK;
    }
    if (space == NULL || memchr(space + 1, ' ', (size_t)(end - space - 1)) != NULL) {
        return bad_merge(r, i, expected, err);
    }
    *left = (bytes){text.data, (size_t)(space - text.data)};
    *right = (bytes){space + 1, (size_t)(end - space - 1)};
    return LS_OK;
}

/* Adds a merge if both parts and the two together are in the vocabulary. scratch: 2 * longest bytes. */
static bool add_merge(bytes left, bytes right, uint32_t rank, ls_tokenizer *t, size_t longest, char *scratch) {
    if (left.n > longest || right.n > longest - left.n) {
        return false;
    }
    char *joined = scratch + longest;
    memcpy(joined, left.data, left.n);
    memcpy(joined + left.n, right.data, right.n);
    int32_t left_id = vocab_find_spelling(&t->vocab, left.data, left.n, scratch);
    int32_t right_id = vocab_find_spelling(&t->vocab, right.data, right.n, scratch);
    int32_t id = vocab_find_spelling(&t->vocab, joined, left.n + right.n, scratch);
    if (left_id < 0 || right_id < 0 || id < 0) {
        return false;
    }
    bpe_add_merge(&t->bpe, left_id, right_id, rank, id);
    return true;
}

static ls_status read_merges(json_reader *r, json_range range, ls_tokenizer *t, size_t longest, ls_error *err) {
    ls_status st = LS_OK;
    char *scratch = malloc(2 * longest + 1);
    r->field = "model.merges";
    r->at = range.start;
    if (scratch == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "%s: out of memory: a token of %zu bytes", r->name, longest), fail);
    }
    TRY_GOTO(bpe_init(&t->bpe, json_skim_count(r->json, range), err), fail);
    TRY_GOTO(json_reader_expect(r, '[', err), fail);
    for (size_t i = 0;; i++) {
        bytes left, right;
        bool more, skip;
        TRY_GOTO(json_reader_more(r, ']', i == 0, &more, err), fail);
        if (!more) {
            break;
        }
        TRY_GOTO(read_merge(r, i, &left, &right, &skip, err), fail);
        if (!skip && !add_merge(left, right, (uint32_t)i, t, longest, scratch)) {
            TRY_GOTO(bad_merge(r, i, "its parts and what they make must be in the vocabulary", err), fail);
        }
    }
fail:
    free(scratch);
    return st;
}

/* ---- Added tokens ---- */

typedef struct added_entry {
    added_token token;
    bytes text;
    bool normalized;
} added_entry;

static ls_status read_added_token(const json_place *root, const json_t *list, size_t i, json_place *at,
                                  added_entry *entry, ls_error *err) {
    json_bytes text;
    int64_t id;
    added_token *token = &entry->token;
    *entry = (added_entry){0};
    TRY(place_get_item(root, "added_tokens", list, i, at, err));
    TRY(place_get_int(at, "id", VOCAB_MAX_ID, &id, err));
    TRY(place_get_string(at, "content", &text, err));
    TRY(place_get_bool(at, "special", &token->special, err));
    TRY(place_get_bool(at, "normalized", &entry->normalized, err));
    TRY(place_get_bool(at, "lstrip", &token->strip_left, err));
    TRY(place_get_bool(at, "rstrip", &token->strip_right, err));
    TRY(place_get_bool(at, "single_word", &token->single_word, err));
    token->id = (int32_t)id;
    token->n_bytes = text.n;
    entry->text = (bytes){text.data, text.n};
    if (text.n > ADDED_TOKEN_MAX_BYTES) {
        return place_unsupported(at, "content", "a token of more than 1024 bytes", err);
    }
    return text.n > 0 ? LS_OK : place_malformed(at, "content", "empty", err);
}

static ls_status count_added(const json_place *root, const json_t *list, totals *sum, ls_error *err) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_place at;
        added_entry entry;
        TRY(read_added_token(root, list, i, &at, &entry, err));
        count(sum, entry.token.id, entry.text.n);
    }
    return LS_OK;
}

/* Hugging Face gives an added token the id of the same text in the model, or else the next id behind the model; the id
 * in the file is no more than a remark. Where the two differ the file contradicts itself. */
static ls_status enter_added(const json_place *at, const added_entry *entry, ls_tokenizer *t, int32_t *next_id,
                             ls_error *err) {
    char scratch[ADDED_TOKEN_MAX_BYTES];
    bytes text = entry->text;
    int32_t id = vocab_find_spelling(&t->vocab, text.data, text.n, scratch);
    bool is_new = id < 0;
    if (is_new) {
        id = (*next_id)++;
    }
    if (entry->token.id != id) {
        return error_set(err, LS_EFORMAT, "%s: %sid: %d, but by its content and place it is %d", at->doc->name,
                         at->path, (int)entry->token.id, (int)id);
    }
    if (is_new && vocab_add(&t->vocab, id, text.data, text.n) != VOCAB_ADDED) {
        return place_malformed(at, "id", "taken by another token", err);
    }
    if (t->vocab.token[id].flags & TOKEN_ADDED) {
        return place_malformed(at, "content", "listed twice", err);
    }
    t->vocab.token[id].flags |= TOKEN_ADDED | (entry->token.special ? TOKEN_SPECIAL : 0);
    return LS_OK;
}

/* A normalized token is looked for, and decoded, in its normal form. If that differs from its content, decoding does not
 * leave it out as a special one either: `tokenizers` compares texts there. */
static ls_status add_normalized(const json_place *at, added_entry *entry, ls_tokenizer *t, bool cached, ls_error *err) {
    ls_status st;
    normalize_scratch scratch = {0};
    text_view text = {entry->text.data, entry->text.n, NULL}, normal;
    char *decoded = NULL;
    TRY_GOTO(normalizer_run(&t->normal, &text, &scratch, &normal, err), fail);
    if (normal.n == 0 || normal.n > ADDED_TOKEN_MAX_BYTES) {
        TRY_GOTO(place_unsupported(at, "content", "a normal form of 0 or more than 1024 bytes", err), fail);
    }
    if (!cached && (normal.n != text.n || memcmp(normal.text, text.text, text.n) != 0)) {
        bool raw = true;
        size_t n = normal.n;
        decoded = malloc(n);
        if (decoded == NULL) {
            TRY_GOTO(error_set(err, LS_ENOMEM, "%s: out of memory", at->doc->name), fail);
        }
        memcpy(decoded, normal.text, n);
        if (t->vocab.byte_level) {
            n = byte_level_decode(normal.text, normal.n, decoded, &raw);
        }
        TRY_GOTO(vocab_set_text(&t->vocab, entry->token.id, decoded, n, err), fail);
        t->vocab.token[entry->token.id].flags |= TOKEN_KEPT;
    }
    entry->token.n_bytes = normal.n;
    TRY_GOTO(added_set_add(&t->added_normalized, normal.text, &entry->token, err), fail);
fail:
    free(decoded);
    normalize_scratch_deinit(&scratch);
    return st;
}

/* `cached`: the vocabulary has the added tokens already, and must not change. */
static ls_status read_added_tokens(const json_place *root, const json_t *list, ls_tokenizer *t, bool cached,
                                   ls_error *err) {
    json_place at;
    added_entry entry;
    int32_t next_id = (int32_t)t->vocab.n_tokens;
    for (size_t i = 0; i < json_array_size(list); i++) {
        TRY(read_added_token(root, list, i, &at, &entry, err));
        if (cached) {
            const vocab_token *token = vocab_get(&t->vocab, entry.token.id);
            if (token == NULL || !(token->flags & TOKEN_ADDED)) {
                return place_malformed(&at, "id", "not in the cached vocabulary", err);
            }
        } else {
            TRY(enter_added(&at, &entry, t, &next_id, err));
        }
    }
    for (size_t i = 0; i < json_array_size(list);
         i++) { /* now that all are entered: normal forms need room of their own */
        TRY(read_added_token(root, list, i, &at, &entry, err));
        TRY(entry.normalized ? add_normalized(&at, &entry, t, cached, err)
                             : added_set_add(&t->added, entry.text.data, &entry.token, err));
    }
    if (!added_set_freeze(&t->added)) {
        return place_malformed(root, "added_tokens", "two tokens with one content", err);
    }
    if (!added_set_freeze(&t->added_normalized)) {
        return place_unsupported(root, "added_tokens", "two tokens with one normal form", err);
    }
    return LS_OK;
}

/* ---- The model ---- */

static bool has_all_bytes(const bpe *b) {
    for (int byte = 0; byte < 256; byte++) {
        if (b->byte_id[byte] < 0) {
            return false;
        }
    }
    return true;
}

/* The settings of a BPE model. An unknown token that is no token is refused where it could be needed. */
static ls_status read_settings(const json_place *model, ls_tokenizer *t, ls_error *err) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    bpe *b = &t->bpe;
    for (size_t i = 0; i < sizeof affixes / sizeof *affixes; i++) {
        json_bytes affix = {0};
        TRY(place_find_string(model, affixes[i], &affix, err));
        if (affix.n > 0) {
            return place_unsupported(model, affixes[i], affix.data, err);
        }
    }
    const json_t *dropout = place_find(model, "dropout");
    if (dropout != NULL && json_number_value(dropout) != 0.0) {
        return place_unsupported(model, "dropout", "a dropout", err);
    }
    json_bytes unknown = {0};
    TRY(place_find_bool(model, "ignore_merges", &b->ignore_merges, err));
    TRY(place_find_bool(model, "byte_fallback", &b->byte_fallback, err));
    TRY(place_find_bool(model, "fuse_unk", &b->fuse_unknown, err));
    TRY(place_find_string(model, "unk_token", &unknown, err));
    b->byte_level = t->vocab.byte_level;
    b->unknown_id = -1;
    if (unknown.data != NULL) {
        char scratch[256];
        int32_t id =
            unknown.n <= sizeof scratch ? vocab_find_spelling(&t->vocab, unknown.data, unknown.n, scratch) : -1;
        b->unknown_id = id >= 0 && (t->vocab.token[id].flags & TOKEN_IN_MODEL) ? id : -1;
    }
    TRY(bpe_freeze(b, &t->vocab, err));
    bool complete = has_all_bytes(b) && (b->byte_level || b->byte_fallback);
    if (unknown.data != NULL && b->unknown_id < 0 && !complete) {
        return place_unsupported(model, "unk_token", "an unknown token that is not in the vocabulary", err);
    }
    if (b->byte_level && b->byte_fallback && !complete) {
        return place_unsupported(model, "byte_fallback", "true beside an incomplete byte alphabet", err);
    }
    return LS_OK;
}

/* Vocabulary and merges of a file that was not in the cache. */
static ls_status read_tables(const json_place *root, const json_place *model, const json_t *added, const parts *p,
                             ls_tokenizer *t, ls_error *err) {
    ls_status st;
    totals sum = {.max_id = -1};
    json_reader r = {.name = root->doc->name, .json = p->json, .n = p->vocab.end};
    json_place section;
    const json_t *list;
    TRY(place_find_section(model, "vocab", &section, err));
    TRY(place_find_list(model, "merges", &list, err));
    if (p->vocab.end == 0 || p->merges.end == 0) {
        return place_malformed(model, p->vocab.end == 0 ? "vocab" : "merges", "missing", err);
    }
    TRY_GOTO(walk_vocab(&r, p->vocab, &sum, NULL, err), fail);
    if (sum.n_tokens == 0) {
        TRY_GOTO(place_malformed(model, "vocab", "empty", err), fail);
    }
    TRY_GOTO(count_added(root, added, &sum, err), fail);
    TRY_GOTO(vocab_init(&t->vocab, t->vocab.byte_level, sum.max_id, sum.n_tokens, sum.n_bytes, err), fail);
    TRY_GOTO(walk_vocab(&r, p->vocab, NULL, &t->vocab, err), fail);
    r.n = p->merges.end;
    TRY_GOTO(read_merges(&r, p->merges, t, sum.longest, err), fail);
fail:
    json_reader_deinit(&r);
    return st;
}

/* p: NULL if vocab and merges came from the cache. */
static ls_status read_document(const json_place *root, const parts *p, ls_tokenizer *t, ls_error *err) {
    json_place model;
    json_bytes type = {"BPE", 3}; /* older files do not say */
    const json_t *added;
    bool byte_level = t->vocab.byte_level; /* of a cached vocabulary */
    t->vocab.byte_level = false;
    TRY(place_find_section(root, "model", &model, err));
    if (model.object == NULL) {
        return place_malformed(root, "model", "missing", err);
    }
    TRY(place_find_string(&model, "type", &type, err));
    if (!json_bytes_equal(type, "BPE")) {
        return place_unsupported(&model, "type", type.data, err);
    }
    TRY(sections_read(root, t, err));
    TRY(place_find_list(root, "added_tokens", &added, err));
    if (p != NULL) {
        TRY(read_tables(root, &model, added, p, t, err));
    } else if (t->vocab.byte_level != byte_level) {
        return place_malformed(root, "pre_tokenizer", "not what the cached vocabulary is for", err);
    }
    TRY(read_settings(&model, t, err));
    TRY(read_added_tokens(root, added, t, p == NULL, err));
    TRY(post_processor_read(root, t, err));
    return p != NULL ? decoder_apply(&t->decode, &t->vocab, err) : LS_OK;
}

/* Parses the text of all but vocab and merges. An error in it is looked for again in the whole file, so that its place is
 * one in the file. */
static ls_status read_rest(const char *name, const char *rest, size_t n_rest, const char *json, size_t n,
                           const parts *p, ls_tokenizer *t, ls_error *err) {
    ls_status st;
    json_doc doc = {0};
    st = json_doc_parse(&doc, name, rest, n_rest, err);
    if (st < 0) {
        ls_status whole = json_doc_parse(&doc, name, json, n, err);
        json_doc_deinit(&doc);
        return whole < 0 ? whole : st;
    }
    json_place root = {.doc = &doc, .object = doc.root};
    if (!json_is_object(doc.root)) {
        TRY_GOTO(error_set(err, LS_EFORMAT, "%s: expected an object", doc.name), fail);
    }
    TRY_GOTO(read_document(&root, p, t, err), fail);
fail:
    json_doc_deinit(&doc);
    return st;
}

bool tokenizer_read_cached_rest(ls_tokenizer *t, const char *name, const char *rest, size_t n_rest) {
    if (read_rest(name, rest, n_rest, rest, n_rest, NULL, t, NULL) == LS_OK) {
        return true;
    }
    tokenizer_reset(t);
    return false;
}

ls_status tokenizer_read(ls_tokenizer *tokenizer, const char *name, const char *json, size_t n_json,
                         const char *cache_folder, ls_error *err) {
    ls_status st;
    parts p = {0};
    cache_key key = {0};
    if (cache_folder != NULL) {
        key = cache_key_of(json, n_json);
        const char *rest;
        size_t n_rest;
        if (cache_load(tokenizer, cache_folder, &key, &rest, &n_rest) &&
            tokenizer_read_cached_rest(tokenizer, name, rest, n_rest)) {
            return LS_OK;
        }
    }
    TRY_GOTO(cut(&p, n_json > 0 ? json : "", n_json, err), fail); /* an empty file is mapped to NULL */
    TRY_GOTO(read_rest(name, p.rest.data, p.rest.n, json, n_json, &p, tokenizer, err), fail);
    if (cache_folder != NULL) {
        cache_store(tokenizer, cache_folder, &key, p.rest.data, p.rest.n);
    }
fail:
    text_buffer_deinit(&p.rest);
    return st;
}
