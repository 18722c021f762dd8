/*
 * The small sections of tokenizer.json. What is read:
 *   normalizer      NFC NFKC NFD NFKD Lowercase Strip Replace Prepend, a Sequence of them
 *   pre_tokenizer   Split Digits Whitespace WhitespaceSplit Metaspace, a Sequence of them that may end in ByteLevel
 *   decoder         ByteLevel; Metaspace; a Sequence of Replaces, ByteFallback, Fuse and one Strip at the start
 *   post_processor  ByteLevel TemplateProcessing RobertaProcessing BertProcessing, a Sequence of them
 * Each has one function, and each of them refuses, by the name of the field, what it does not know: a tokenizer that
 * opens gives Hugging Face's ids.
 */
#include "text/tokenizer_sections.h"

#include <string.h>

/* The elements of a section that is one thing of some type or a Sequence of things. */
typedef struct element_list {
    json_place section;
    const json_t *list; /* NULL: the section itself is the only element */
    const char *key;
    size_t n, next;
} element_list;

static ls_status open_elements(const json_place *root, const char *name, const char *key, element_list *list,
                               ls_error *err) {
    json_bytes type = {0};
    *list = (element_list){.key = key};
    TRY(place_find_section(root, name, &list->section, err));
    if (list->section.object == NULL) {
        return LS_OK;
    }
    TRY(place_get_string(&list->section, "type", &type, err));
    list->n = 1;
    if (json_bytes_equal(type, "Sequence")) {
        TRY(place_find_list(&list->section, key, &list->list, err));
        if (list->list == NULL) {
            return place_malformed(&list->section, key, "missing", err);
        }
        list->n = json_array_size(list->list);
    }
    return LS_OK;
}

/* Call n times. */
static ls_status next_element(element_list *list, json_place *item, json_bytes *type, ls_error *err) {
    if (list->list == NULL) {
        *item = list->section;
        return place_get_string(item, "type", type, err);
    }
    return place_get_typed_item(&list->section, list->key, list->list, list->next++, item, type, err);
}

/* {"String": "..."} or {"Regex": "..."}. */
static ls_status read_pattern(const json_place *at, pattern *out, ls_error *err) {
    json_place section;
    json_bytes text;
    TRY(place_find_section(at, "pattern", &section, err));
    if (section.object == NULL) {
        return place_malformed(at, "pattern", "missing", err);
    }
    bool is_regex = place_find(&section, "Regex") != NULL;
    const char *key = is_regex ? "Regex" : "String";
    TRY(place_get_string(&section, key, &text, err));
    ls_status st =
        is_regex ? pattern_init_regex(out, text.data, text.n, err) : pattern_init_literal(out, text.data, text.n, err);
    return st < 0 ? error_prefix(err, st, "%s: %s%s", at->doc->name, section.path, key) : st;
}

static ls_status read_text(const json_place *at, const char *key, text_buffer *out, ls_error *err) {
    json_bytes text;
    TRY(place_get_string(at, key, &text, err));
    return text_buffer_append(out, text.data, text.n, err);
}

/* Exactly one character. */
static ls_status read_mark(const json_place *at, const char *key, char *mark, size_t *n_mark, ls_error *err) {
    json_bytes text;
    TRY(place_get_string(at, key, &text, err));
    size_t n = text.n > 0 ? 1 : 0;
    while (n < text.n && ((unsigned char)text.data[n] & 0xC0) == 0x80) {
        n++;
    }
    if (n == 0 || n < text.n) {
        return place_malformed(at, key, "expected one character", err);
    }
    memcpy(mark, text.data, n);
    *n_mark = n;
    return LS_OK;
}

/* ---- normalizer ---- */

static ls_status read_normalizer_step(const json_place *at, json_bytes type, normalizer_step *step, ls_error *err) {
    static const struct {
        const char *name;
        normalizer_kind kind;
        unicode_form form;
    } known[] = {
        {"NFC", NORMALIZER_FORM, UNICODE_NFC},  {"NFKC", NORMALIZER_FORM, UNICODE_NFKC},
        {"NFD", NORMALIZER_FORM, UNICODE_NFD},  {"NFKD", NORMALIZER_FORM, UNICODE_NFKD},
        {"Lowercase", NORMALIZER_LOWERCASE, 0}, {"Strip", NORMALIZER_STRIP, 0},
        {"Replace", NORMALIZER_REPLACE, 0},     {"Prepend", NORMALIZER_PREPEND, 0},
    };
    size_t i = 0;
    while (i < sizeof known / sizeof *known && !json_bytes_equal(type, known[i].name)) {
        i++;
    }
    if (i == sizeof known / sizeof *known) {
        return place_unsupported(at, "type", type.data, err);
    }
    step->kind = known[i].kind;
    step->form = known[i].form;
    if (step->kind == NORMALIZER_STRIP) {
        TRY(place_get_bool(at, "strip_left", &step->left, err));
        return place_get_bool(at, "strip_right", &step->right, err);
    }
    if (step->kind == NORMALIZER_REPLACE) {
        TRY(read_text(at, "content", &step->content, err));
        return read_pattern(at, &step->pattern, err);
    }
    return step->kind == NORMALIZER_PREPEND ? read_text(at, "prepend", &step->content, err) : LS_OK;
}

static ls_status read_normalizer(const json_place *root, ls_tokenizer *t, ls_error *err) {
    element_list list;
    TRY(open_elements(root, "normalizer", "normalizers", &list, err));
    for (size_t i = 0; i < list.n; i++) {
        json_place item;
        json_bytes type;
        normalizer_step step = {0};
        TRY(next_element(&list, &item, &type, err));
        ls_status st = read_normalizer_step(&item, type, &step, err);
        if (st < 0) {
            pattern_deinit(&step.pattern);
            text_buffer_deinit(&step.content);
            return st;
        }
        TRY(normalizer_add(&t->normal, &step, err));
    }
    return LS_OK;
}

/* ---- pre_tokenizer ---- */

static ls_status read_split(const json_place *at, pretokenizer_step *step, ls_error *err) {
    static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                            "Contiguous"}; /* in the order of split_behavior */
    json_bytes behavior;
    TRY(place_get_string(at, "behavior", &behavior, err));
    size_t i = 0;
    while (i < sizeof behaviors / sizeof *behaviors && !json_bytes_equal(behavior, behaviors[i])) {
        i++;
    }
    if (i == sizeof behaviors / sizeof *behaviors) {
        return place_unsupported(at, "behavior", behavior.data, err);
    }
    step->kind = PRETOKENIZER_SPLIT;
    step->behavior = (split_behavior)i;
    TRY(place_get_bool(at, "invert", &step->invert, err));
    return read_pattern(at, &step->pattern, err);
}

static ls_status fixed_split(const char *regex, split_behavior behavior, bool invert, pretokenizer_step *step,
                             ls_error *err) {
    *step = (pretokenizer_step){.kind = PRETOKENIZER_SPLIT, .behavior = behavior, .invert = invert};
    return pattern_init_regex(&step->pattern, regex, strlen(regex), err);
}

static ls_status read_metaspace(const json_place *at, pretokenizer_step *step, ls_error *err) {
    json_bytes scheme = {"always", 6};
    bool add_prefix_space = true;
    step->kind = PRETOKENIZER_META;
    TRY(read_mark(at, "replacement", step->mark, &step->n_mark, err));
    TRY(place_find_string(at, "prepend_scheme", &scheme, err));
    TRY(place_find_bool(at, "add_prefix_space", &add_prefix_space, err));
    if (json_bytes_equal(scheme, "always")) {
        step->prepend = PREPEND_ALWAYS;
    } else if (json_bytes_equal(scheme, "first")) {
        step->prepend = PREPEND_FIRST;
    } else if (!json_bytes_equal(scheme, "never")) {
        return place_unsupported(at, "prepend_scheme", scheme.data, err);
    }
    if (!add_prefix_space && step->prepend != PREPEND_NEVER) {
        return place_malformed(at, "add_prefix_space", "false, but prepend_scheme is not never", err);
    }
    return LS_OK;
}

/* \w and \s of Rust's regular expressions, which Whitespace uses: letters, marks, decimal and letter numbers, connecting
 * punctuation, joiners, circled letters. */
#define WORD                                                                                                           \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200C}\\x{200D}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"                      \
    "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"

static ls_status read_pre_tokenizer_step(const json_place *at, json_bytes type, pretokenizer_step *step,
                                         ls_error *err) {
    bool individual = false;
    if (json_bytes_equal(type, "Split")) {
        return read_split(at, step, err);
    }
    if (json_bytes_equal(type, "Digits")) {
        TRY(place_get_bool(at, "individual_digits", &individual, err));
        return fixed_split("\\p{N}", individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false, step, err);
    }
    if (json_bytes_equal(type, "WhitespaceSplit")) {
        return fixed_split("\\s", SPLIT_REMOVED, false, step, err);
    }
    if (json_bytes_equal(type, "Whitespace")) {
        return fixed_split("[" WORD "]+|[^" WORD "\\s]+", SPLIT_REMOVED, true, step, err);
    }
    return json_bytes_equal(type, "Metaspace") ? read_metaspace(at, step, err)
                                               : place_unsupported(at, "type", type.data, err);
}

static ls_status add_step(ls_tokenizer *t, ls_status st, pretokenizer_step *step, ls_error *err) {
    if (st < 0) {
        pattern_deinit(&step->pattern);
        return st;
    }
    return pretokenizer_add(&t->pre, step, err);
}

static ls_status read_byte_level(const json_place *at, ls_tokenizer *t, ls_error *err) {
    bool add_prefix_space, use_regex = true;
    pretokenizer_step step = {.kind = PRETOKENIZER_SPACE};
    t->vocab.byte_level = true;
    TRY(place_get_bool(at, "add_prefix_space", &add_prefix_space, err));
    TRY(place_find_bool(at, "use_regex", &use_regex, err));
    if (add_prefix_space) {
        TRY(pretokenizer_add(&t->pre, &step, err));
    }
    return use_regex
               ? add_step(t, fixed_split(pretokenizer_gpt2_pattern, SPLIT_ISOLATED, false, &step, err), &step, err)
               : LS_OK;
}

static ls_status read_pre_tokenizer(const json_place *root, ls_tokenizer *t, ls_error *err) {
    element_list list;
    TRY(open_elements(root, "pre_tokenizer", "pretokenizers", &list, err));
    for (size_t i = 0; i < list.n; i++) {
        json_place item;
        json_bytes type;
        pretokenizer_step step = {0};
        TRY(next_element(&list, &item, &type, err));
        if (t->vocab.byte_level) { /* what stands behind it would see the spelling of bytes instead of text */
            return place_unsupported(&item, "type", "a step behind ByteLevel", err);
        }
        if (json_bytes_equal(type, "ByteLevel")) {
            TRY(read_byte_level(&item, t, err));
            continue;
        }
        bool split = true;
        TRY(add_step(t, read_pre_tokenizer_step(&item, type, &step, err), &step, err));
        const pretokenizer_step *added = &t->pre.step[t->pre.n_steps - 1];
        if (added->kind == PRETOKENIZER_META) {
            TRY(place_find_bool(&item, "split", &split, err));
        }
        if (added->kind == PRETOKENIZER_META && split) {
            step = (pretokenizer_step){.kind = PRETOKENIZER_SPLIT, .behavior = SPLIT_MERGED_WITH_NEXT};
            ls_status st = pattern_init_literal(&step.pattern, added->mark, added->n_mark, err);
            TRY(add_step(t, st, &step, err));
        }
    }
    return LS_OK;
}

/* ---- decoder ---- */

static ls_status read_replace(const json_place *at, decoder *d, ls_error *err) {
    if (d->n_replaces == DECODER_MAX_REPLACES) {
        return place_unsupported(at, "type", "more than 8 Replaces", err);
    }
    decoder_replace *replace = &d->replace[d->n_replaces++]; /* freed with the decoder, also when half read */
    TRY(read_text(at, "content", &replace->content, err));
    return read_pattern(at, &replace->pattern, err);
}

static ls_status read_strip(const json_place *at, decoder *d, ls_error *err) {
    int64_t start, stop;
    TRY(read_mark(at, "content", d->strip, &d->n_strip_bytes, err));
    TRY(place_get_int(at, "start", INT32_MAX, &start, err));
    TRY(place_get_int(at, "stop", INT32_MAX, &stop, err));
    if (stop > 0) {
        return place_unsupported(at, "stop", "other than 0", err);
    }
    d->n_strip = (size_t)start;
    return LS_OK;
}

static ls_status read_metaspace_decoder(const json_place *at, decoder *d, ls_error *err) {
    pretokenizer_step same = {0}; /* the fields are those of the pre-tokenizer */
    TRY(read_metaspace(at, &same, err));
    d->drop_first_marks = same.prepend != PREPEND_NEVER;
    memcpy(d->mark, same.mark, sizeof d->mark);
    d->n_mark = same.n_mark;
    return LS_OK;
}

/* Steps come in the order of decoder.h. `reached` is the last one: 1 Replace, 2 ByteFallback, 3 Fuse, 4 Strip; 5 is for
 * steps that stand alone. */
static ls_status read_decoder(const json_place *root, ls_tokenizer *t, ls_error *err) {
    static const struct {
        const char *name;
        int stage;
    } known[] = {{"Replace", 1}, {"ByteFallback", 2}, {"Fuse", 3}, {"Strip", 4}, {"ByteLevel", 5}, {"Metaspace", 5}};
    decoder *d = &t->decode;
    element_list list;
    int reached = 0;
    TRY(open_elements(root, "decoder", "decoders", &list, err));
    if (list.n == 0) {
        return place_unsupported(root, "decoder", "no decoder", err);
    }
    for (size_t i = 0; i < list.n; i++) {
        json_place item;
        json_bytes type;
        TRY(next_element(&list, &item, &type, err));
        int stage = 0;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
            stage = json_bytes_equal(type, known[k].name) ? known[k].stage : stage;
        }
        if (stage == 0) {
            return place_unsupported(&item, "type", type.data, err);
        }
        bool in_order = stage > reached || (stage == reached && (stage == 1 || stage == 3));
        if (!in_order || (stage == 4 && reached != 3) || (stage == 5 && list.n > 1)) {
            return place_unsupported(&item, "type", "a step at this place", err);
        }
        reached = stage;
        d->byte_fallback = d->byte_fallback || stage == 2;
        d->byte_level = json_bytes_equal(type, "ByteLevel");
        if (stage == 1) {
            TRY(read_replace(&item, d, err));
        } else if (stage == 4) {
            TRY(read_strip(&item, d, err));
        } else if (json_bytes_equal(type, "Metaspace")) {
            TRY(read_metaspace_decoder(&item, d, err));
        }
    }
    if (d->byte_level != t->vocab.byte_level) {
        return place_unsupported(root, "decoder", "ByteLevel in only one of pre_tokenizer and decoder", err);
    }
    return LS_OK;
}

/* ---- post_processor ---- */

/* A token of the vocabulary. */
static ls_status add_id(const json_place *at, const char *key, const json_t *value, const vocab *v, int32_t *list,
                        int *n, ls_error *err) {
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (id < 0 || id > VOCAB_MAX_ID || vocab_get(v, (int32_t)id) == NULL) {
        return place_malformed(at, key, "expected the id of a token", err);
    }
    if (*n == POST_MAX_IDS) {
        return place_unsupported(at, key, "more than 64 tokens", err);
    }
    list[(*n)++] = (int32_t)id;
    return LS_OK;
}

/* One piece of a template: {"SpecialToken": {"id": name}} or {"Sequence": {"id": "A"}}. */
static ls_status read_template_piece(const json_place *at, const json_place *special, bool *seen, ls_tokenizer *t,
                                     ls_error *err) {
    json_place piece, token;
    json_bytes name;
    post_processor *post = &t->post;
    TRY(place_find_section(at, "Sequence", &piece, err));
    if (piece.object != NULL) {
        TRY(place_get_string(&piece, "id", &name, err));
        if (*seen || !json_bytes_equal(name, "A")) {
            return place_unsupported(&piece, "id", "a template with other than one Sequence A", err);
        }
        *seen = true;
        return LS_OK;
    }
    TRY(place_find_section(at, "SpecialToken", &piece, err));
    if (piece.object == NULL) {
        return place_malformed(at, "SpecialToken", "missing", err);
    }
    TRY(place_get_string(&piece, "id", &name, err));
    const json_t *list;
    token = (json_place){.doc = at->doc, .object = json_object_getn(special->object, name.data, name.n)};
    memcpy(token.path, special->path, sizeof token.path);
    TRY(place_find_list(&token, "ids", &list, err));
    if (list == NULL) {
        return place_malformed(&piece, "id", "not in special_tokens", err);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        TRY(add_id(&token, "ids", json_array_get(list, i), &t->vocab, *seen ? post->behind : post->before,
                   *seen ? &post->n_behind : &post->n_before, err));
    }
    return LS_OK;
}

static ls_status read_template(const json_place *at, ls_tokenizer *t, ls_error *err) {
    json_place special;
    const json_t *list;
    bool seen = false;
    TRY(place_find_section(at, "special_tokens", &special, err));
    TRY(place_find_list(at, "single", &list, err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_place item;
        TRY(place_get_item(at, "single", list, i, &item, err));
        TRY(read_template_piece(&item, &special, &seen, t, err));
    }
    return seen ? LS_OK : place_unsupported(at, "single", "a template without Sequence A", err);
}

/* "cls" and "sep" of the older processors: [text, id]. */
static ls_status read_ends(const json_place *at, ls_tokenizer *t, ls_error *err) {
    const json_t *cls, *sep;
    post_processor *post = &t->post;
    TRY(place_find_list(at, "cls", &cls, err));
    TRY(place_find_list(at, "sep", &sep, err));
    TRY(add_id(at, "cls", json_array_get(cls, 1), &t->vocab, post->before, &post->n_before, err));
    return add_id(at, "sep", json_array_get(sep, 1), &t->vocab, post->behind, &post->n_behind, err);
}

static ls_status read_trim(const json_place *at, post_processor *post, ls_error *err) {
    bool trim, add_prefix_space;
    TRY(place_get_bool(at, "trim_offsets", &trim, err));
    TRY(place_get_bool(at, "add_prefix_space", &add_prefix_space, err));
    if (!trim) {
        return LS_OK;
    }
    if (post->n_trims == POST_MAX_TRIMS) {
        return place_unsupported(at, "trim_offsets", "more than 4 trims", err);
    }
    post->add_prefix_space[post->n_trims++] = add_prefix_space;
    return LS_OK;
}

ls_status post_processor_read(const json_place *root, ls_tokenizer *t, ls_error *err) {
    element_list list;
    bool has_ends = false; /* a second template would get the parts of the first one, which `tokenizers` cannot do */
    TRY(open_elements(root, "post_processor", "processors", &list, err));
    for (size_t i = 0; i < list.n; i++) {
        json_place item;
        json_bytes type;
        TRY(next_element(&list, &item, &type, err));
        bool is_byte_level = json_bytes_equal(type, "ByteLevel"),
             is_roberta = json_bytes_equal(type, "RobertaProcessing");
        bool is_template = json_bytes_equal(type, "TemplateProcessing");
        if (!is_byte_level && !is_roberta && !is_template && !json_bytes_equal(type, "BertProcessing")) {
            return place_unsupported(&item, "type", type.data, err);
        }
        if (!is_byte_level && has_ends) {
            return place_unsupported(&item, "type", "a second processor that adds tokens", err);
        }
        if (is_byte_level || is_roberta) {
            TRY(read_trim(&item, &t->post, err));
        }
        if (!is_byte_level) {
            has_ends = true;
            TRY(is_template ? read_template(&item, t, err) : read_ends(&item, t, err));
        }
    }
    return LS_OK;
}

ls_status sections_read(const json_place *root, ls_tokenizer *t, ls_error *err) {
    static const char *const off[] = {"truncation", "padding"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        if (place_find(root, off[i]) != NULL) {
            return place_unsupported(root, off[i], "other than null", err);
        }
    }
    TRY(read_normalizer(root, t, err));
    TRY(read_pre_tokenizer(root, t, err));
    return read_decoder(root, t, err);
}
