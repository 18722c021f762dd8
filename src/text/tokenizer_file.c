/*
 * tokenizer.json to the parts of a tokenizer.
 *
 * What is read: a BPE model with byte-level alphabet; normalizer NFC or none; pre_tokenizer Split and ByteLevel;
 * post_processor ByteLevel or none; decoder ByteLevel; added tokens. Each section has one function, and each of them
 * refuses, by the name of the field, what it does not know: a tokenizer that opens gives Hugging Face's ids.
 *
 * The file is untrusted. Nothing recurses on its nesting, and ids index arrays only after they were checked.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/normalize.h"
#include "text/tokenizer_parts.h"

/* An object of the file and its dotted path, so that every message can say where. */
typedef struct place {
    const json_doc *doc;
    const json_t *object;
    char path[96]; /* "" or ends in a dot: a key goes behind it */
} place;

typedef struct bytes {
    const char *data;
    size_t n;
} bytes;

static ls_status malformed(const place *at, const char *key, const char *what, ls_error *err) {
    return error_set(err, LS_EFORMAT, "%s: %s%s: %s", at->doc->name, at->path, key, what);
}

/* Values come from the file: only short plain ones are repeated. */
static ls_status unsupported(const place *at, const char *key, const char *value, ls_error *err) {
    size_t n = strspn(value, " _-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
    bool plain = n > 0 && n <= 60 && value[n] == '\0';
    return error_set(err, LS_EUNSUPPORTED, "%s: %s%s: %s is not supported", at->doc->name, at->path, key,
                     plain ? value : "this value");
}

/* NULL when absent or null. */
static const json_t *find(const place *at, const char *key) {
    const json_t *value = json_object_get(at->object, key);
    return json_is_null(value) ? NULL : value;
}

static ls_status find_string(const place *at, const char *key, bytes *out, ls_error *err) {
    const json_t *value = find(at, key);
    if (value == NULL) {
        return LS_OK;
    }
    if (!json_is_string(value)) {
        return malformed(at, key, "expected a string", err);
    }
    *out = (bytes){json_string_value(value), json_string_length(value)};
    return LS_OK;
}

static ls_status get_string(const place *at, const char *key, bytes *out, ls_error *err) {
    return find(at, key) ? find_string(at, key, out, err) : malformed(at, key, "missing", err);
}

static ls_status find_bool(const place *at, const char *key, bool *out, ls_error *err) {
    const json_t *value = find(at, key);
    if (value != NULL && !json_is_boolean(value)) {
        return malformed(at, key, "expected true or false", err);
    }
    *out = value ? json_is_true(value) : *out;
    return LS_OK;
}

static ls_status get_bool(const place *at, const char *key, bool *out, ls_error *err) {
    return find(at, key) ? find_bool(at, key, out, err) : malformed(at, key, "missing", err);
}

static ls_status id_of(const place *at, const char *key, const json_t *value, int32_t *out, ls_error *err) {
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > VOCAB_MAX_ID) {
        return error_set(err, LS_EFORMAT, "%s: %s%s: a token id is an integer from 0 to %d", at->doc->name, at->path,
                         key, VOCAB_MAX_ID);
    }
    *out = (int32_t)json_integer_value(value);
    return LS_OK;
}

/* The section (an object) under a key; child->object is NULL when it is absent or null. */
static ls_status find_section(const place *at, const char *key, place *child, ls_error *err) {
    *child = (place){.doc = at->doc, .object = find(at, key)};
    snprintf(child->path, sizeof child->path, "%s%s.", at->path, key);
    if (child->object != NULL && !json_is_object(child->object)) {
        return malformed(at, key, "expected an object", err);
    }
    return LS_OK;
}

static ls_status find_list(const place *at, const char *key, const json_t **list, ls_error *err) {
    *list = find(at, key);
    if (*list != NULL && !json_is_array(*list)) {
        return malformed(at, key, "expected a list", err);
    }
    return LS_OK;
}

/* Element i, an object, of the list under a key. */
static ls_status get_item(const place *at, const char *key, const json_t *list, size_t i, place *item, ls_error *err) {
    *item = (place){.doc = at->doc, .object = json_array_get(list, i)};
    snprintf(item->path, sizeof item->path, "%s%s[%zu].", at->path, key, i);
    if (!json_is_object(item->object)) {
        return error_set(err, LS_EFORMAT, "%s: %s%s[%zu]: expected an object", at->doc->name, at->path, key, i);
    }
    return LS_OK;
}

static bool equals(bytes value, const char *text) {
    return value.n == strlen(text) && memcmp(value.data, text, value.n) == 0;
}

/* normalizer: null, NFC, or a Sequence of NFC. */
static ls_status read_normalizer(const place *root, ls_tokenizer *t, ls_error *err) {
    place section;
    bytes type;
    TRY(find_section(root, "normalizer", &section, err));
    if (section.object == NULL) {
        return LS_OK;
    }
    TRY(get_string(&section, "type", &type, err));
    if (equals(type, "NFC")) {
        t->nfc = true;
        return LS_OK;
    }
    if (!equals(type, "Sequence")) {
        return unsupported(&section, "type", type.data, err);
    }
    const json_t *list;
    TRY(find_list(&section, "normalizers", &list, err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        place item;
        TRY(get_item(&section, "normalizers", list, i, &item, err));
        TRY(get_string(&item, "type", &type, err));
        if (!equals(type, "NFC")) {
            return unsupported(&item, "type", type.data, err);
        }
        t->nfc = true;
    }
    return LS_OK;
}

static ls_status read_split(const place *at, ls_tokenizer *t, ls_error *err) {
    place pattern;
    bytes behavior, regex;
    TRY(get_string(at, "behavior", &behavior, err));
    if (!equals(behavior, "Isolated")) { /* with which `invert` changes nothing: both kinds of part are kept */
        return unsupported(at, "behavior", behavior.data, err);
    }
    TRY(find_section(at, "pattern", &pattern, err));
    if (find(&pattern, "Regex") == NULL) {
        return unsupported(at, "pattern", "a pattern that is no Regex", err);
    }
    TRY(get_string(&pattern, "Regex", &regex, err));
    ls_status st = pretokenizer_add_split(&t->pre, regex.data, regex.n, err);
    return st < 0 ? error_prefix(err, st, "%s: %sRegex", at->doc->name, pattern.path) : st;
}

static ls_status read_byte_level(const place *at, ls_tokenizer *t, ls_error *err) {
    bool add_prefix_space, use_regex = true;
    TRY(get_bool(at, "add_prefix_space", &add_prefix_space, err));
    TRY(find_bool(at, "use_regex", &use_regex, err));
    if (add_prefix_space) {
        TRY(pretokenizer_add_space(&t->pre, err));
    }
    if (use_regex) {
        TRY(pretokenizer_add_split(&t->pre, pretokenizer_gpt2_pattern, strlen(pretokenizer_gpt2_pattern), err));
    }
    return LS_OK;
}

/* pre_tokenizer: ByteLevel, or a Sequence of Splits that ends in ByteLevel (what stood behind it would see the spelling
 * of bytes instead of text). */
static ls_status read_pre_tokenizer(const place *root, ls_tokenizer *t, ls_error *err) {
    place section;
    bytes type = {"none", 4};
    TRY(find_section(root, "pre_tokenizer", &section, err));
    if (section.object != NULL) {
        TRY(get_string(&section, "type", &type, err));
    }
    if (equals(type, "ByteLevel")) {
        return read_byte_level(&section, t, err);
    }
    if (!equals(type, "Sequence")) {
        return unsupported(&section, "type", type.data, err);
    }
    const json_t *list;
    TRY(find_list(&section, "pretokenizers", &list, err));
    size_t n = json_array_size(list);
    for (size_t i = 0; i < n; i++) {
        place item;
        TRY(get_item(&section, "pretokenizers", list, i, &item, err));
        TRY(get_string(&item, "type", &type, err));
        if (i + 1 == n && equals(type, "ByteLevel")) {
            return read_byte_level(&item, t, err);
        }
        if (!equals(type, "Split")) {
            return unsupported(&item, "type", type.data, err);
        }
        TRY(read_split(&item, t, err));
    }
    return unsupported(&section, "pretokenizers", "a Sequence that does not end in ByteLevel", err);
}

/* One entry of added_tokens; *token borrows its text from the document. */
static ls_status read_added_token(const place *at, added_token *token, bytes *text, bool *normalized, ls_error *err) {
    bool single_word;
    TRY(id_of(at, "id", find(at, "id"), &token->id, err));
    TRY(get_string(at, "content", text, err));
    TRY(get_bool(at, "special", &token->special, err));
    TRY(get_bool(at, "normalized", normalized, err));
    TRY(get_bool(at, "lstrip", &token->strip_left, err));
    TRY(get_bool(at, "rstrip", &token->strip_right, err));
    TRY(get_bool(at, "single_word", &single_word, err));
    token->n_bytes = text->n;
    if (single_word) {
        return unsupported(at, "single_word", "true", err);
    }
    if (text->n > ADDED_TOKEN_MAX_BYTES) {
        return unsupported(at, "content", "a token of more than 1024 bytes", err);
    }
    return text->n > 0 ? LS_OK : malformed(at, "content", "empty", err);
}

/* A normalized token is looked for, and decoded, in its normal form: only those that are in it are taken. */
static ls_status check_normal(const place *at, bytes text, ls_error *err) {
    normalize_scratch scratch = {0};
    bytes normal;
    ls_status st = normalize_nfc(text.data, text.n, &scratch, &normal.data, &normal.n, err);
    if (st == LS_OK && (normal.n != text.n || memcmp(normal.data, text.data, text.n) != 0)) {
        st = unsupported(at, "content", "a normalized token that is not in NFC", err);
    }
    normalize_scratch_deinit(&scratch);
    return st;
}

/* Hugging Face gives an added token the id of the same text in the model, or else the next id behind the model; the id
 * in the file is no more than a remark. Where the two differ the file contradicts itself. */
static ls_status add_token(const place *item, ls_tokenizer *t, int32_t *next_id, char *scratch, ls_error *err) {
    added_token token = {0};
    bytes text;
    bool normalized;
    TRY(read_added_token(item, &token, &text, &normalized, err));
    int32_t id = vocab_find_spelling(&t->vocab, text.data, text.n, scratch);
    bool is_new = id < 0;
    if (is_new) {
        id = (*next_id)++;
    }
    if (token.id != id) {
        return error_set(err, LS_EFORMAT, "%s: %sid: %d, but by its content and place it is %d", item->doc->name,
                         item->path, (int)token.id, (int)id);
    }
    if (is_new && vocab_add(&t->vocab, id, text.data, text.n) != VOCAB_ADDED) {
        return malformed(item, "id", "taken by another token", err);
    }
    vocab_token *entry = &t->vocab.token[id];
    if (entry->added) {
        return malformed(item, "content", "listed twice", err);
    }
    entry->added = true;
    entry->special = token.special;
    if (normalized && t->nfc) {
        TRY(check_normal(item, text, err));
    }
    return added_set_add(normalized ? &t->added_normalized : &t->added, text.data, &token, err);
}

static ls_status read_added_tokens(const place *root, const json_t *list, ls_tokenizer *t, char *scratch,
                                   ls_error *err) {
    int32_t next_id = (int32_t)t->vocab.n_tokens;
    for (size_t i = 0; i < json_array_size(list); i++) {
        place item;
        TRY(get_item(root, "added_tokens", list, i, &item, err));
        TRY(add_token(&item, t, &next_id, scratch, err));
    }
    added_set_freeze(&t->added);
    added_set_freeze(&t->added_normalized);
    return LS_OK;
}

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

static ls_status count_tokens(const place *root, const place *model, json_t *tokens, const json_t *added, totals *sum,
                              ls_error *err) {
    const char *key;
    size_t n;
    json_t *value;
    json_object_keylen_foreach(tokens, key, n, value) {
        int32_t id;
        TRY(id_of(model, "vocab", value, &id, err));
        count(sum, id, n);
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        place item;
        added_token token;
        bytes text;
        bool normalized;
        TRY(get_item(root, "added_tokens", added, i, &item, err));
        TRY(read_added_token(&item, &token, &text, &normalized, err));
        count(sum, token.id, text.n);
    }
    return LS_OK;
}

static ls_status read_vocab(const place *model, json_t *tokens, ls_tokenizer *t, ls_error *err) {
    const char *key;
    size_t n;
    json_t *value;
    json_object_keylen_foreach(tokens, key, n, value) {
        int32_t id = (int32_t)json_integer_value(value); /* checked when it was counted */
        if (vocab_add(&t->vocab, id, key, n) != VOCAB_ADDED) {
            return error_set(err, LS_EFORMAT, "%s: %svocab: two tokens with id %d", model->doc->name, model->path,
                             (int)id);
        }
        t->vocab.token[id].in_model = true;
    }
    return LS_OK;
}

/* "left right" or ["left", "right"]. */
static bool split_merge(const json_t *merge, bytes *left, bytes *right) {
    const json_t *first = json_array_get(merge, 0), *second = json_array_get(merge, 1);
    if (json_array_size(merge) == 2 && json_is_string(first) && json_is_string(second)) {
        *left = (bytes){json_string_value(first), json_string_length(first)};
        *right = (bytes){json_string_value(second), json_string_length(second)};
        return true;
    }
    if (!json_is_string(merge)) {
        return false;
    }
    const char *text = json_string_value(merge), *end = text + json_string_length(merge);
    const char *space = memchr(text, ' ', (size_t)(end - text));
    if (space == NULL || memchr(space + 1, ' ', (size_t)(end - space - 1)) != NULL) {
        return false;
    }
    *left = (bytes){text, (size_t)(space - text)};
    *right = (bytes){space + 1, (size_t)(end - space - 1)};
    return true;
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

static ls_status bad_merge(const place *model, size_t i, const char *what, ls_error *err) {
    return error_set(err, LS_EFORMAT, "%s: %smerges[%zu]: %s", model->doc->name, model->path, i, what);
}

static ls_status read_merges(const place *model, const json_t *list, ls_tokenizer *t, size_t longest, char *scratch,
                             ls_error *err) {
    TRY(bpe_init(&t->bpe, &t->vocab, json_array_size(list), err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *merge = json_array_get(list, i);
        bytes left, right;
        if (json_is_string(merge) && strncmp(json_string_value(merge), "#version", 8) == 0) {
            continue; /* the head of merges.txt, left in */
        }
        if (!split_merge(merge, &left, &right)) {
            return bad_merge(model, i, "expected \"left right\" or [\"left\", \"right\"]", err);
        }
        if (!add_merge(left, right, (uint32_t)i, t, longest, scratch)) {
            return bad_merge(model, i, "its parts and what they make must be in the vocabulary", err);
        }
    }
    return LS_OK;
}

/* The settings of a BPE model that must be off. unk_token may be set where it can never be used. */
static ls_status check_model(const place *model, const ls_tokenizer *t, ls_error *err) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof affixes / sizeof *affixes; i++) {
        bytes affix = {0};
        TRY(find_string(model, affixes[i], &affix, err));
        if (affix.n > 0) {
            return unsupported(model, affixes[i], affix.data, err);
        }
    }
    bool byte_fallback = false;
    TRY(find_bool(model, "byte_fallback", &byte_fallback, err));
    if (byte_fallback) {
        return unsupported(model, "byte_fallback", "true", err);
    }
    const json_t *dropout = find(model, "dropout");
    if (dropout != NULL && json_number_value(dropout) != 0.0) {
        return unsupported(model, "dropout", "a dropout", err);
    }
    bytes unknown = {0};
    TRY(find_string(model, "unk_token", &unknown, err));
    for (int byte = 0; unknown.data != NULL && byte < 256; byte++) {
        if (t->bpe.byte_id[byte] < 0) {
            return unsupported(model, "unk_token", "an unknown token beside an incomplete byte alphabet", err);
        }
    }
    return LS_OK;
}

static ls_status read_model(const place *root, ls_tokenizer *t, ls_error *err) {
    ls_status st;
    place model, section;
    bytes type = {"BPE", 3}; /* older files do not say */
    const json_t *merges, *added;
    char *scratch = NULL;
    totals sum = {.max_id = -1};
    TRY(find_section(root, "model", &model, err));
    if (model.object == NULL) {
        return malformed(root, "model", "missing", err);
    }
    TRY(find_string(&model, "type", &type, err));
    if (!equals(type, "BPE")) {
        return unsupported(&model, "type", type.data, err);
    }
    TRY(find_section(&model, "vocab", &section, err));
    TRY(find_list(&model, "merges", &merges, err));
    TRY(find_list(root, "added_tokens", &added, err));
    json_t *tokens = json_object_get(model.object, "vocab");
    if (json_object_size(tokens) == 0 || merges == NULL) {
        return malformed(&model, json_object_size(tokens) == 0 ? "vocab" : "merges", "missing", err);
    }
    TRY(count_tokens(root, &model, tokens, added, &sum, err));
    TRY(vocab_init(&t->vocab, sum.max_id, sum.n_tokens, sum.n_bytes, err));
    scratch = malloc(2 * sum.longest + 1);
    if (scratch == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "out of memory: a token of %zu bytes", sum.longest), fail);
    }
    TRY_GOTO(read_vocab(&model, tokens, t, err), fail);
    TRY_GOTO(read_merges(&model, merges, t, sum.longest, scratch, err), fail);
    TRY_GOTO(find_bool(&model, "ignore_merges", &t->bpe.ignore_merges, err), fail);
    TRY_GOTO(check_model(&model, t, err), fail);
    TRY_GOTO(read_added_tokens(root, added, t, scratch, err), fail);
fail:
    free(scratch);
    return st;
}

/* Sections that only matter after encoding, or must be off. ByteLevel as a post-processor moves offsets, not ids. */
static ls_status check_rest(const place *root, ls_error *err) {
    place section;
    bytes type = {"none", 4};
    TRY(find_section(root, "decoder", &section, err));
    if (section.object != NULL) {
        TRY(get_string(&section, "type", &type, err));
    }
    if (!equals(type, "ByteLevel")) {
        return unsupported(&section, "type", type.data, err);
    }
    TRY(find_section(root, "post_processor", &section, err));
    if (section.object != NULL) {
        TRY(get_string(&section, "type", &type, err));
        if (!equals(type, "ByteLevel")) {
            return unsupported(&section, "type", type.data, err);
        }
    }
    static const char *const off[] = {"truncation", "padding"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        if (find(root, off[i]) != NULL) {
            return unsupported(root, off[i], "other than null", err);
        }
    }
    return LS_OK;
}

ls_status tokenizer_read(ls_tokenizer *tokenizer, const char *name, const char *json, size_t json_bytes,
                         ls_error *err) {
    ls_status st;
    json_doc doc = {0};
    TRY(json_doc_parse(&doc, name, json, json_bytes, err));
    place root = {.doc = &doc, .object = doc.root};
    if (!json_is_object(doc.root)) {
        TRY_GOTO(error_set(err, LS_EFORMAT, "%s: expected an object", doc.name), fail);
    }
    TRY_GOTO(check_rest(&root, err), fail);
    TRY_GOTO(read_normalizer(&root, tokenizer, err), fail);
    TRY_GOTO(read_pre_tokenizer(&root, tokenizer, err), fail);
    TRY_GOTO(read_model(&root, tokenizer, err), fail);
fail:
    json_doc_deinit(&doc);
    return st;
}
