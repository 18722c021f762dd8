/* The flags that say how tokens are drawn, as a request takes them; for every command that generates. */
#ifndef LS_CLI_SAMPLING_OPTIONS_H
#define LS_CLI_SAMPLING_OPTIONS_H

#include "base/options.h"

typedef struct sampling_options {
    ls_logit_bias *logit_bias; /* [n_logit_bias] */
    int32_t *allowed, *stop;   /* ids; NULL: none given */
    size_t n_logit_bias, n_allowed, n_stop;
    uint64_t seed; /* --seed, or a random one short enough to type */
} sampling_options;

/* Errors name the flag and the entry. What was read before one is the caller's to deinit. */
ls_status sampling_options_read(sampling_options *out, const ls_options *options, ls_error *err);
void sampling_options_deinit(sampling_options *sampling); /* accepts a zeroed one */

/* Fills params' fields of sampling and stopping, max_tokens among them. params borrows from both. */
void sampling_options_apply(const sampling_options *sampling, const ls_options *options, ls_request_params *params);

#endif
