/*
 * See tokenizer.h. This file runs the parts (tokenizer_parts.h); tokenizer_file.c reads them. Encoding keeps everything
 * that changes in an `encoder` on the stack, so that one tokenizer serves any number of threads.
 */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/file.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

enum {
    MAX_FILE_BYTES = 256 << 20, /* keeps all counts of the file within 32 bits */
    MAX_TEXT_BYTES = 64 << 20   /* far beyond any context; keeps all offsets within 32 bits */
};

static ls_status open_bytes(ls_tokenizer **out, const char *name, const char *json, size_t json_bytes,
                            const char *cache_folder, ls_error *err) {
    ls_status st;
    if (json_bytes > MAX_FILE_BYTES) {
        return error_set(err, LS_EFORMAT, "%s: %zu bytes, more than the %d that a tokenizer may have", name, json_bytes,
                         MAX_FILE_BYTES);
    }
    ls_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", name);
    }
    TRY_GOTO(tokenizer_read(tokenizer, name, json, json_bytes, cache_folder, err), fail);
    *out = tokenizer;
    return LS_OK;
fail:
    tokenizer_close(&tokenizer);
    return st;
}

ls_status tokenizer_parse(ls_tokenizer **out, const char *name, const char *json, size_t json_bytes, ls_error *err) {
    return open_bytes(out, name, json, json_bytes, NULL, err);
}

ls_status tokenizer_open(ls_tokenizer **out, const char *path, const char *cache_folder, ls_error *err) {
    ls_status st;
    ls_file file;
    TRY(file_map(&file, path, err));
    TRY_GOTO(open_bytes(out, path, (const char *)file.data, file.bytes, cache_folder, err), fail);
fail:
    file_unmap(&file);
    return st;
}

void tokenizer_reset(ls_tokenizer *t) {
    added_set_deinit(&t->added);
    added_set_deinit(&t->added_normalized);
    normalizer_deinit(&t->normal);
    pretokenizer_deinit(&t->pre);
    decoder_deinit(&t->decode);
    bpe_deinit(&t->bpe);
    vocab_deinit(&t->vocab);
    if (t->cache != NULL) {
        munmap(t->cache, t->n_cache);
    }
    *t = (ls_tokenizer){0};
}

void tokenizer_close(ls_tokenizer **tokenizer) {
    if (*tokenizer != NULL) {
        tokenizer_reset(*tokenizer);
        free(*tokenizer);
        *tokenizer = NULL;
    }
}

/* One call of tokenizer_encode. */
typedef struct encoder {
    const ls_tokenizer *tokenizer;
    bool keep_special;
    bool spans_wanted;
    traced_text input; /* the text with U+FFFD where it is not UTF-8, and its spans */
    normalize_scratch normalize;
    pretokenizer_scratch pre;
    bpe_scratch bpe;
    token_list *out;
} encoder;

static void encoder_deinit(encoder *e) {
    traced_deinit(&e->input);
    normalize_scratch_deinit(&e->normalize);
    pretokenizer_scratch_deinit(&e->pre);
    bpe_scratch_deinit(&e->bpe);
}

static ls_status push_added(encoder *e, const text_view *text, const added_part *part, ls_error *err) {
    if (!e->spans_wanted) {
        return token_list_push(e->out, part->id, err);
    }
    text_span span = {text->span[part->start].start, text->span[part->end - 1].end};
    return token_list_push_span(e->out, part->id, span, err);
}

/* Normalised text without added tokens. */
static ls_status encode_plain(encoder *e, const text_view *text, bool at_start, ls_error *err) {
    const ls_tokenizer *t = e->tokenizer;
    TRY(pretokenizer_run(&t->pre, text, at_start, &e->pre, err));
    const piece_list *pieces = &e->pre.pieces;
    for (size_t i = 0; i < pieces->n; i++) {
        text_view piece = view_part(&pieces->text, pieces->piece[i].start, pieces->piece[i].end);
        piece.span = e->spans_wanted ? piece.span : NULL;
        TRY(bpe_encode(&t->bpe, &t->vocab, &piece, &e->bpe, e->out, err));
    }
    return LS_OK;
}

/* Text as it came, without the added tokens that are looked for there. */
static ls_status encode_raw(encoder *e, const text_view *text, bool at_start, ls_error *err) {
    const ls_tokenizer *t = e->tokenizer;
    text_view normal;
    TRY(normalizer_run(&t->normal, text, &e->normalize, &normal, err));
    added_scan scan;
    added_scan_init(&scan, &t->added_normalized, normal.text, normal.n, e->keep_special);
    for (added_part part; added_scan_next(&scan, &part);) {
        if (part.id >= 0) {
            TRY(push_added(e, &normal, &part, err));
        } else {
            text_view plain = view_part(&normal, part.start, part.end);
            TRY(encode_plain(e, &plain, at_start && part.start == 0, err));
        }
    }
    return LS_OK;
}

static ls_status encode_text(encoder *e, const text_view *text, ls_error *err) {
    added_scan scan;
    added_scan_init(&scan, &e->tokenizer->added, text->text, text->n, e->keep_special);
    for (added_part part; added_scan_next(&scan, &part);) {
        if (part.id >= 0) {
            TRY(push_added(e, text, &part, err));
        } else {
            text_view raw = view_part(text, part.start, part.end);
            TRY(encode_raw(e, &raw, part.start == 0, err));
        }
    }
    return LS_OK;
}

/* Copies the input with U+FFFD for every invalid part, one span for each character. */
static ls_status trace_input(traced_text *to, const char *text, size_t n, bool traced, ls_error *err) {
    traced_start(to, traced);
    TRY(traced_put(to, "", 0, (text_span){0}, err));
    if (!traced) {
        return utf8_append_lossy(&to->text, text, n, err);
    }
    for (size_t at = 0, n_bytes; at < n; at += n_bytes) {
        bool valid = utf8_next(text + at, n - at, &n_bytes) == UTF8_CHARACTER;
        text_span span = {(uint32_t)at, (uint32_t)(at + n_bytes)};
        TRY(traced_put(to, valid ? text + at : UTF8_REPLACEMENT, valid ? n_bytes : UTF8_REPLACEMENT_BYTES, span, err));
    }
    return LS_OK;
}

/* Moves *at over k characters of the input, or maximal invalid parts of it, at most to `end`. */
static uint32_t skip_forward(const char *text, uint32_t at, uint32_t end, size_t k) {
    for (; k > 0 && at < end; k--) {
        size_t n_bytes;
        utf8_next(text + at, end - at, &n_bytes);
        at += (uint32_t)n_bytes;
    }
    return at;
}

static uint32_t skip_back(const char *text, uint32_t start, uint32_t at, size_t k) {
    for (; k > 0 && at > start; k--) {
        do {
            at--;
        } while (at > start && utf8_is_continuation(text[at]));
    }
    return at;
}

/* Whether text[0 .. n), any bytes, begins or ends with a space; *n_bytes is its length. */
static bool begins_with_space(const char *text, size_t n, size_t *n_bytes) {
    return n > 0 && utf8_next(text, n, n_bytes) == UTF8_CHARACTER && utf8_is_space(utf8_decode(text, n_bytes));
}

static bool ends_with_space(const char *text, size_t n, size_t *n_bytes) {
    size_t at = n;
    while (at > 0 && n - at < UTF8_MAX_BYTES) {
        at--;
        if (!utf8_is_continuation(text[at])) {
            return begins_with_space(text + at, n - at, n_bytes) && *n_bytes == n - at;
        }
    }
    return false;
}

/* White space at the ends of a token: characters of its text, which for an added token is the text it was found as. */
static void count_spaces(const char *text, size_t n, size_t *leading, size_t *trailing) {
    size_t n_bytes;
    *leading = *trailing = 0;
    for (size_t at = 0; begins_with_space(text + at, n - at, &n_bytes); at += n_bytes) {
        ++*leading;
    }
    for (size_t end = n; ends_with_space(text, end, &n_bytes); end -= n_bytes) {
        ++*trailing;
    }
}

/* In byte-level spelling only the space itself is one: other white space is spelled with letters. */
static void count_blanks(const char *text, size_t n, size_t *leading, size_t *trailing) {
    for (*leading = 0; *leading < n && text[*leading] == ' '; ++*leading) {
    }
    for (*trailing = 0; *trailing < n && text[n - 1 - *trailing] == ' '; ++*trailing) {
    }
}

/* ByteLevel's trim_offsets: spaces do not belong to a token's place. */
static void trim_spans(const ls_tokenizer *t, const char *text, size_t from, bool add_prefix_space, token_list *out) {
    for (size_t i = from; i < out->n; i++) {
        const vocab_token *token = &t->vocab.token[out->id[i]];
        text_span *span = &out->span[i];
        size_t leading, trailing;
        if (token->flags & TOKEN_ADDED && out->id[i] != t->bpe.unknown_id) {
            count_spaces(text + span->start, span->end - span->start, &leading, &trailing);
        } else if (!t->vocab.byte_level) {
            count_spaces(t->vocab.bytes + token->offset, token->n_bytes, &leading, &trailing);
        } else {
            count_blanks(t->vocab.bytes + token->offset, token->n_bytes, &leading, &trailing);
        }
        if (leading == 1 && add_prefix_space && (i == from || span->start == 0)) {
            leading = 0;
        }
        span->start = skip_forward(text, span->start, span->end, leading);
        span->end = skip_back(text, span->start, span->end, trailing);
    }
}

static ls_status push_fixed(token_list *out, const int32_t *id, int n, ls_error *err) {
    for (int i = 0; i < n; i++) {
        TRY(token_list_push(out, id[i], err));
    }
    return LS_OK;
}

static ls_status encode_all(encoder *e, const char *text, size_t n, unsigned flags, ls_error *err) {
    const ls_tokenizer *t = e->tokenizer;
    bool add_special = flags & TOKENIZER_ADD_SPECIAL;
    bool traced = e->spans_wanted || pretokenizer_needs_spans(&t->pre, t->normal.n_steps > 0);
    text_view view = {text, n, NULL};
    if (traced || utf8_valid_bytes(text, n) < n) {
        TRY(trace_input(&e->input, text, n, traced, err));
        view = traced_view(&e->input);
    }
    TRY(push_fixed(e->out, t->post.before, add_special ? t->post.n_before : 0, err));
    size_t from = e->out->n;
    TRY(encode_text(e, &view, err));
    for (int i = 0; e->spans_wanted && e->out->span != NULL && i < t->post.n_trims; i++) {
        trim_spans(t, text, from, t->post.add_prefix_space[i], e->out);
    }
    return push_fixed(e->out, t->post.behind, add_special ? t->post.n_behind : 0, err);
}

ls_status tokenizer_encode(const ls_tokenizer *tokenizer, const char *text, size_t text_bytes, unsigned flags,
                           token_list *out, ls_error *err) {
    ls_status st;
    if (text_bytes > MAX_TEXT_BYTES) {
        return error_set(err, LS_ETOOLONG, "a text of %zu bytes is more than the %d that can be encoded at once",
                         text_bytes, MAX_TEXT_BYTES);
    }
    size_t n_before = out->n;
    encoder e = {.tokenizer = tokenizer, .keep_special = !(flags & TOKENIZER_PARSE_SPECIAL), .out = out};
    e.spans_wanted = flags & TOKENIZER_SPANS;
    if (e.spans_wanted) {
        TRY_GOTO(token_list_grow(out, true, err), fail); /* a list without tokens has spans too */
    }
    TRY_GOTO(encode_all(&e, text, text_bytes, flags, err), fail);
fail:
    encoder_deinit(&e);
    if (st < 0) {
        out->n = n_before;
    }
    return st;
}

bool tokenizer_token_bytes(const ls_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes) {
    const vocab_token *token = vocab_get(&tokenizer->vocab, id);
    if (token == NULL) {
        return false;
    }
    *bytes = tokenizer->vocab.bytes + token->text;
    *n_bytes = token->n_text_bytes;
    return true;
}

bool tokenizer_is_special(const ls_tokenizer *tokenizer, int32_t id) {
    const vocab_token *token = vocab_get(&tokenizer->vocab, id);
    return token != NULL && (token->flags & TOKEN_SPECIAL);
}

int32_t tokenizer_find(const ls_tokenizer *tokenizer, const char *token_text) {
    size_t n = strlen(token_text);
    const added_set *sets[] = {&tokenizer->added, &tokenizer->added_normalized};
    for (int i = 0; i < 2; i++) {
        const added_token *token = added_set_match(sets[i], token_text, n);
        if (token != NULL && token->n_bytes == n) {
            return token->id;
        }
    }
    int32_t id = vocab_find(&tokenizer->vocab, token_text, n, false);
    return id >= 0 || !tokenizer->vocab.byte_level ? id : vocab_find(&tokenizer->vocab, token_text, n, true);
}

int32_t tokenizer_max_id(const ls_tokenizer *tokenizer) {
    return tokenizer->vocab.max_id;
}
