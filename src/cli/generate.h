/* Inside of lockstep generate: what its files share. */
#ifndef LS_CLI_GENERATE_H
#define LS_CLI_GENERATE_H

#include "cli/cli.h"
#include "cli/prompts.h"
#include "cli/reading.h"
#include "cli/sampling_options.h"
#include "cli/trace_file.h"

/* One answer to one prompt. */
typedef struct answer {
    const prompt_text *prompt;
    size_t i_prompt;
    uint32_t choice;
    ls_request *request;
} answer;

typedef struct generate {
    ls_options options;
    prompt_list prompts;
    sampling_options sampling;
    cli_hosts hosts;
    ls_model *model;
    ls_engine *engine;
    trace_file *trace;
    answer *answer; /* [n_answers] */
    size_t n_answers;
    reading reading;
    bool json, stream, has_tokenizer, interrupted, failed;
    bool shows_prompt; /* it is yet to be written before its answer */
} generate;

/* generate_json.c: one line on stdout for an answer. */
ls_status generate_print_json(const generate *g, const answer *a, const ls_result *result, ls_error *err);
/* The last line: timeline and seed on `out`. */
ls_status generate_print_end_json(generate *g, FILE *out, ls_error *err);

#endif
