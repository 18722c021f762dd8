/* See logit_edits.h. */
#include "engine/logit_edits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Records ---- */

static bool has_penalties(const logit_edits *edits) {
    return edits->repetition != 1.0F || edits->presence != 0.0F || edits->frequency != 0.0F;
}

static int32_t *find_slot(const logit_edits *edits, int32_t id) {
    uint32_t mask = (uint32_t)edits->n_slots - 1;
    uint32_t at = ((uint32_t)id * 0x9E3779B9u >> 7) & mask;
    while (edits->slot[at] != 0 && edits->edit[edits->slot[at] - 1].id != id) {
        at = (at + 1) & mask;
    }
    return &edits->slot[at];
}

/* Index of the record of id, made if there is none. */
static int record_of(logit_edits *edits, int32_t id) {
    int32_t *slot = find_slot(edits, id);
    if (*slot == 0) {
        edits->edit[edits->n] = (ls_logit_edit){.id = id, .penalty = 1.0F};
        edits->cause[edits->n] = (edit_cause){0};
        *slot = ++edits->n;
    }
    return *slot - 1;
}

/* The edit that its causes amount to. */
static void renew(logit_edits *edits, int i, bool may_end) {
    const edit_cause *why = &edits->cause[i];
    ls_logit_edit *edit = &edits->edit[i];
    edit->bias = why->bias;
    edit->penalty = why->seen ? edits->repetition : 1.0F;
    edit->offset = why->n_in_answer > 0 ? -(edits->presence + edits->frequency * (float)why->n_in_answer) : 0.0F;
    if (why->bad_word || (why->ends_answer && !may_end)) {
        edit->offset = -INFINITY;
    }
}

/* ---- Bad words ---- */

/* The ids of a word as the tokenizer writes it, appended as one entry; nothing if it has none. */
static ls_status add_word(logit_edits *edits, const ls_tokenizer *tokenizer, const char *text, int n_vocab,
                          ls_error *err) {
    token_list ids = {0};
    ls_status st = LS_OK;
    TRY_GOTO(tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, err), fail);
    if (ids.n > 0) {
        int32_t *grown = realloc(edits->word, ((size_t)edits->n_word + ids.n + 1) * sizeof *grown);
        if (grown == NULL) {
            TRY_GOTO(error_set(err, LS_ENOMEM, "request: out of memory"), fail);
        }
        edits->word = grown;
        grown[edits->n_word++] = (int32_t)ids.n;
        for (size_t i = 0; i < ids.n; i++) {
            if (ids.id[i] >= n_vocab) {
                TRY_GOTO(error_set(err, LS_EINVAL, "bad_words: \"%s\" is not in the vocabulary", text), fail);
            }
            grown[edits->n_word++] = ids.id[i];
        }
    }
fail:
    token_list_deinit(&ids);
    return st;
}

/* Each word as it stands and with a space before it, which are different tokens (as vLLM does). */
static ls_status read_bad_words(logit_edits *edits, const ls_request_params *p, const ls_tokenizer *tokenizer,
                                int n_vocab, ls_error *err) {
    for (size_t i = 0; i < p->n_bad_words; i++) {
        const char *word = p->bad_words[i];
        word += word != NULL ? strspn(word, " ") : 0;
        if (word == NULL || word[0] == '\0') {
            return error_set(err, LS_EINVAL, "bad_words: word %zu is empty", i + 1);
        }
        if (tokenizer == NULL) {
            return error_set(err, LS_EINVAL, "bad_words: this model has no tokenizer");
        }
        size_t n = strlen(word);
        char *spaced = malloc(n + 2);
        if (spaced == NULL) {
            return error_set(err, LS_ENOMEM, "request: out of memory");
        }
        spaced[0] = ' ';
        memcpy(spaced + 1, word, n + 1);
        ls_status st = add_word(edits, tokenizer, word, n_vocab, err);
        st = st == LS_OK ? add_word(edits, tokenizer, spaced, n_vocab, err) : st;
        free(spaced);
        TRY(st);
    }
    return LS_OK;
}

/* Whether the text ends in all but the last token of the word. */
static bool word_is_due(const int32_t *word, int n, const int32_t *token, int n_tokens) {
    return n_tokens >= n - 1 && memcmp(token + n_tokens - (n - 1), word, (size_t)(n - 1) * sizeof *word) == 0;
}

/* ---- The whole ---- */

static ls_status check_range(const char *name, double value, double low, double high, ls_error *err) {
    return value >= low && value <= high
               ? LS_OK
               : error_set(err, LS_EINVAL, "%s %g: must be from %g to %g", name, value, low, high);
}

static ls_status check_params(const ls_request_params *p, double repetition, int n_vocab, ls_error *err) {
    TRY(check_range("repetition_penalty", repetition, 0.01, 100, err));
    TRY(check_range("presence_penalty", p->presence_penalty, -100, 100, err));
    TRY(check_range("frequency_penalty", p->frequency_penalty, -100, 100, err));
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        int32_t id = p->logit_bias[i].token;
        if (id < 0 || id >= n_vocab) {
            return error_set(err, LS_EINVAL, "logit_bias: token id %d; the model's vocabulary ends at %d", id,
                             n_vocab - 1);
        }
        if (!(p->logit_bias[i].bias <= 1e6F)) {
            return error_set(err, LS_EINVAL, "logit_bias: the bias of token %d must be a number up to 1e6", id);
        }
    }
    return LS_OK;
}

static ls_status reserve(logit_edits *edits, size_t capacity, ls_error *err) {
    size_t n_slots = 2;
    while (n_slots < 2 * capacity) {
        n_slots *= 2;
    }
    edits->edit = calloc(capacity + 1, sizeof *edits->edit);
    edits->cause = calloc(capacity + 1, sizeof *edits->cause);
    edits->slot = calloc(n_slots, sizeof *edits->slot);
    edits->n_slots = (int)n_slots;
    edits->capacity = (int)capacity;
    if (edits->edit == NULL || edits->cause == NULL || edits->slot == NULL) {
        return error_set(err, LS_ENOMEM, "request: out of memory");
    }
    return LS_OK;
}

ls_status logit_edits_init(logit_edits *edits, const ls_request_params *params, double repetition,
                           const int32_t *ending, int n_ending, const ls_tokenizer *tokenizer, int n_vocab,
                           int token_capacity, ls_error *err) {
    *edits = (logit_edits){.repetition = (float)repetition,
                           .presence = (float)params->presence_penalty,
                           .frequency = (float)params->frequency_penalty,
                           .min_tokens = params->min_tokens};
    TRY(check_params(params, repetition, n_vocab, err));
    TRY(read_bad_words(edits, params, tokenizer, n_vocab, err));
    size_t capacity = params->n_logit_bias + (size_t)edits->n_word + (edits->min_tokens > 0 ? (size_t)n_ending : 0) +
                      (has_penalties(edits) ? (size_t)token_capacity : 0);
    if (capacity == 0) {
        return LS_OK;
    }
    TRY(reserve(edits, capacity < (size_t)n_vocab ? capacity : (size_t)n_vocab, err));
    for (size_t i = 0; i < params->n_logit_bias; i++) {
        edits->cause[record_of(edits, params->logit_bias[i].token)].bias += params->logit_bias[i].bias;
    }
    for (int i = 0; i < edits->n_word; i += edits->word[i] + 1) {
        record_of(edits, edits->word[i + edits->word[i]]);
    }
    for (int i = 0; i < n_ending && edits->min_tokens > 0; i++) {
        edits->cause[record_of(edits, ending[i])].ends_answer = true;
    }
    for (int i = 0; i < edits->n; i++) {
        renew(edits, i, false);
    }
    return LS_OK;
}

void logit_edits_deinit(logit_edits *edits) {
    free(edits->edit);
    free(edits->cause);
    free(edits->slot);
    free(edits->word);
    *edits = (logit_edits){0};
}

void logit_edits_push(logit_edits *edits, int32_t token, bool in_answer) {
    if (edits->capacity == 0 || !has_penalties(edits)) {
        return;
    }
    int i = record_of(edits, token);
    edits->cause[i].seen = true;
    edits->cause[i].n_in_answer += in_answer;
    renew(edits, i, false);
}

void logit_edits_prepare(logit_edits *edits, const int32_t *token, int n_prompt, int n_tokens) {
    bool may_end = n_tokens - n_prompt >= edits->min_tokens;
    for (int i = 0; i < edits->n_word; i += edits->word[i] + 1) {
        edits->cause[record_of(edits, edits->word[i + edits->word[i]])].bad_word = false;
    }
    for (int i = 0; i < edits->n_word; i += edits->word[i] + 1) {
        edit_cause *why = &edits->cause[record_of(edits, edits->word[i + edits->word[i]])];
        why->bad_word |= word_is_due(&edits->word[i + 1], edits->word[i], token, n_tokens);
    }
    if (edits->n_word > 0 || edits->min_tokens > 0) {
        for (int i = 0; i < edits->n; i++) {
            renew(edits, i, may_end);
        }
    }
}
