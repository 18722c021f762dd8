/* See sampling_options.h. */
#include "cli/sampling_options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* An id at the front of *text, which moves behind it. What ids a model has, ls_request_submit knows. */
static bool read_id(const char **text, int32_t *out) {
    char *end;
    errno = 0;
    long long id = strtoll(*text, &end, 10);
    if (end == *text || errno != 0 || id < 0 || id > INT32_MAX) {
        return false;
    }
    *text = end;
    *out = (int32_t)id;
    return true;
}

static ls_status read_bias(const char *text, ls_logit_bias *out, ls_error *err) {
    const char *at = text;
    char *end = NULL;
    if (read_id(&at, &out->token) && *at == '=') {
        out->bias = strtof(at + 1, &end);
    }
    if (end == NULL || end == at + 1 || *end != '\0' || isnan(out->bias) || out->bias == INFINITY) {
        return error_set(err, LS_EINVAL, "--logit-bias %s: expected ID=BIAS, such as 42=-1.5 or 42=-inf", text);
    }
    return LS_OK;
}

static ls_status read_biases(sampling_options *out, const ls_options *options, ls_error *err) {
    size_t n = options->n_list[OPT_LOGIT_BIAS];
    out->logit_bias = calloc(n + 1, sizeof *out->logit_bias);
    if (out->logit_bias == NULL) {
        return error_set(err, LS_ENOMEM, "--logit-bias: out of memory");
    }
    for (; out->n_logit_bias < n; out->n_logit_bias++) {
        TRY(read_bias(options->list[OPT_LOGIT_BIAS][out->n_logit_bias], &out->logit_bias[out->n_logit_bias], err));
    }
    return LS_OK;
}

/* "1,2,3" */
static ls_status read_ids(const ls_options *options, option_id option, int32_t **out, size_t *n_out, ls_error *err) {
    const option_def *def = &option_table[option];
    const char *text = options->value[option].text;
    if (!options->value[option].set) {
        return LS_OK;
    }
    *out = malloc((strlen(text) / 2 + 1) * sizeof **out); /* an id and its comma take two bytes at least */
    if (*out == NULL) {
        return error_set(err, LS_ENOMEM, "--%s: out of memory", def->name);
    }
    const char *at = text;
    for (;;) {
        if (!read_id(&at, &(*out)[*n_out]) || (*at != ',' && *at != '\0')) {
            return error_set(err, LS_EINVAL, "--%s %s: expected token ids with commas between them, such as 1,2,3",
                             def->name, text);
        }
        (*n_out)++;
        if (*at == '\0') {
            return LS_OK;
        }
        at++;
    }
}

ls_status sampling_options_read(sampling_options *out, const ls_options *options, ls_error *err) {
    TRY(read_biases(out, options, err));
    TRY(read_ids(options, OPT_ALLOWED_TOKEN_IDS, &out->allowed, &out->n_allowed, err));
    TRY(read_ids(options, OPT_STOP_TOKEN_IDS, &out->stop, &out->n_stop, err));
    out->seed = (uint64_t)options->value[OPT_SEED].integer;
    if (!options->value[OPT_SEED].set && getrandom(&out->seed, sizeof out->seed, 0) == sizeof out->seed) {
        out->seed >>= 32;
    }
    return LS_OK;
}

void sampling_options_deinit(sampling_options *sampling) {
    free(sampling->logit_bias);
    free(sampling->allowed);
    free(sampling->stop);
    *sampling = (sampling_options){0};
}

static double real_or(const option_value *value, double fallback) {
    return value->set ? value->real : fallback;
}

void sampling_options_apply(const sampling_options *sampling, const ls_options *options, ls_request_params *params) {
    const option_value *v = options->value;
    params->max_tokens = (int)v[OPT_MAX_TOKENS].integer;
    params->min_tokens = (int)v[OPT_MIN_TOKENS].integer;
    params->temperature = real_or(&v[OPT_TEMPERATURE], -1); /* negative: the model's default */
    params->top_k = v[OPT_TOP_K].set ? (int)v[OPT_TOP_K].integer : -1;
    params->top_p = real_or(&v[OPT_TOP_P], -1);
    params->min_p = real_or(&v[OPT_MIN_P], -1);
    params->repetition_penalty = real_or(&v[OPT_REPETITION_PENALTY], 0); /* 0: the model's default */
    params->presence_penalty = v[OPT_PRESENCE_PENALTY].real;
    params->frequency_penalty = v[OPT_FREQUENCY_PENALTY].real;
    params->logit_bias = sampling->logit_bias;
    params->n_logit_bias = sampling->n_logit_bias;
    params->allowed_tokens = sampling->allowed;
    params->n_allowed_tokens = sampling->n_allowed;
    params->bad_words = options->list[OPT_BAD_WORDS];
    params->n_bad_words = options->n_list[OPT_BAD_WORDS];
    params->stop = options->list[OPT_STOP];
    params->n_stop = options->n_list[OPT_STOP];
    params->stop_tokens = sampling->stop;
    params->n_stop_tokens = sampling->n_stop;
    params->ignore_eos = v[OPT_IGNORE_EOS].integer != 0;
    params->seed = sampling->seed;
}
