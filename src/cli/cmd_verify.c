/*
 * lockstep verify: two engines of one model, compared op by op. Exit code 1 where they differ by more than they may. With
 * --json one object.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/cli.h"

typedef struct verify_run {
    ls_options options, against;
    char *settings; /* --against, cut into names and values */
    ls_model *model;
    ls_verify_report report;
} verify_run;

/* ---- The settings of the reference ---- */

static ls_status find_option(const char *name, option_id *out, ls_error *err) {
    char known[512] = "";
    size_t used = 0;
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *def = &option_table[id];
        if (def->group != GROUP_ENGINE || (def->commands & COMMAND_VERIFY) == 0 || id == OPT_AGAINST) {
            continue;
        }
        char key[2] = {def->key, '\0'};
        if (strcmp(name, def->name) == 0 || (def->alias != NULL && strcmp(name, def->alias) == 0) ||
            (def->key != 0 && strcmp(name, key) == 0)) {
            *out = (option_id)id;
            return LS_OK;
        }
        if (used < sizeof known) {
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used > 0 ? ", " : "", def->name);
        }
    }
    return error_set(err, LS_EINVAL, "--against: '%s' is no setting of an engine; there are %s", name, known);
}

/* The options as given, and on them what --against says. Lists and texts are borrowed from the given ones. */
static ls_status read_against(verify_run *run, ls_error *err) {
    run->against = run->options;
    run->settings = strdup(run->options.value[OPT_AGAINST].text);
    if (run->settings == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory");
    }
    char *next = run->settings;
    for (char *setting = strsep(&next, ","); setting != NULL; setting = strsep(&next, ",")) {
        char *value = strchr(setting, '=');
        if (setting[0] == '\0') {
            continue;
        }
        if (value == NULL) {
            return error_set(err, LS_EINVAL,
                             "--against: '%s' has no value: settings are name=value with commas between", setting);
        }
        *value++ = '\0';
        option_id id = OPT_DTYPE;
        TRY(find_option(setting, &id, err));
        ls_status st = options_set(&run->against, id, value, err);
        if (st < 0) {
            return error_prefix(err, st, "--against");
        }
    }
    return LS_OK;
}

/* ---- Text ---- */

static const char *step_name(const ls_verify_report *report, int step) {
    return step == 0                            ? "prompt"
           : step <= report->n_decode_steps     ? "decode"
           : step == report->n_decode_steps + 1 ? "prompts of several sequences"
                                                : "decode of several sequences";
}

static void describe_place(const ls_verify_report *report, const ls_verify_place *place, char *out, size_t out_bytes) {
    char layer[24] = "", rank[24] = "all ranks together";
    if (place->layer >= 0) {
        snprintf(layer, sizeof layer, " of layer %d", place->layer);
    }
    if (place->rank >= 0) {
        snprintf(rank, sizeof rank, "rank %d", place->rank);
    }
    snprintf(out, out_bytes, "op %s%s, %s, buffer %s, position %d (%s)", place->op, layer, rank, place->buffer,
             place->position, step_name(report, place->step));
}

static void print_table(const ls_verify_report *report, const ls_verify_op *table, const char *title) {
    char where[192];
    printf("\n%s\n%-9s %9s %-6s %11s  %s\n", title, "op", "rows", "bits", "worst error", "where");
    for (int i = 0; i < LS_VERIFY_OPS; i++) {
        const ls_verify_op *line = &table[i];
        if (line->n_compared == 0) {
            continue;
        }
        where[0] = '\0';
        if (!line->bits_equal) {
            describe_place(report, line->worst.error > 0 ? &line->worst : &line->first_bits, where, sizeof where);
        }
        printf("%-9s %9" PRId64 " %-6s %11.3g  %s\n", line->op, line->n_compared, line->bits_equal ? "equal" : "differ",
               line->worst.error, where);
    }
}

static void print_text(const verify_run *run) {
    const ls_verify_report *r = &run->report;
    char place[192];
    printf("%s against %s: a prompt of %d tokens and %d decode steps", run->options.value[OPT_MODEL].text,
           run->options.value[OPT_AGAINST].text, r->n_prompt_tokens, r->n_decode_steps);
    if (r->n_sequences > 1) {
        printf(", then %d sequences together", r->n_sequences);
    }
    printf("\n");
    printf("tolerance of an op %g, of logits %g of the row's largest value%s\n", r->tolerance, r->logits_tolerance,
           r->bits_expected ? "; same formats: all bits must be equal" : "");
    print_table(r, r->isolated, "Each op alone, on the reference's inputs:");
    print_table(r, r->running, "Free run, errors pile up:");
    printf("\nlogits    %d rows, worst error %.3g; %d of them have a clear best token, %d choose another\n",
           r->n_logits_rows, r->logits_error, r->n_margin_rows, r->n_other_choices);
    if (r->passed) {
        printf("verified\n");
        return;
    }
    describe_place(r, &r->first, place, sizeof place);
    printf("DIFFERENT: first in %s, %s: error %.3g\n", r->first.running ? "the free run" : "an op alone", place,
           r->first.error);
    if (r->first_kernels[0] != '\0') {
        printf("kernels between the border before it and this one: %s\n", r->first_kernels);
    }
}

/* ---- JSON ---- */

/* Infinity cannot stand in JSON: a place whose error is not finite has null. */
static json_t *place_json(const ls_verify_place *place) {
    if (!place->found) {
        return json_null();
    }
    return json_pack("{s:b, s:s, s:s, s:i, s:i, s:i, s:i, s:o}", "running", place->running, "op", place->op, "buffer",
                     place->buffer, "layer", place->layer, "rank", place->rank, "step", place->step, "position",
                     place->position, "error", isfinite(place->error) ? json_real(place->error) : json_null());
}

static json_t *table_json(const ls_verify_op *table) {
    json_t *array = json_array();
    for (int i = 0; i < LS_VERIFY_OPS; i++) {
        if (table[i].n_compared > 0) {
            json_array_append_new(array, json_pack("{s:s, s:I, s:b, s:o, s:o}", "op", table[i].op, "rows",
                                                   (json_int_t)table[i].n_compared, "bits_equal", table[i].bits_equal,
                                                   "worst", place_json(&table[i].worst), "first_bits",
                                                   place_json(&table[i].first_bits)));
        }
    }
    return array;
}

static ls_status print_json(const verify_run *run, ls_error *err) {
    const ls_verify_report *r = &run->report;
    json_t *object = json_pack("{s:s, s:s, s:b, s:b, s:i, s:i, s:f, s:f, s:o, s:o, s:o, s:i, s:o, s:i, s:i}", "model",
                               run->options.value[OPT_MODEL].text, "against", run->options.value[OPT_AGAINST].text,
                               "passed", r->passed, "bits_expected", r->bits_expected, "prompt_tokens",
                               r->n_prompt_tokens, "decode_steps", r->n_decode_steps, "tolerance", r->tolerance,
                               "logits_tolerance", r->logits_tolerance, "isolated", table_json(r->isolated), "running",
                               table_json(r->running), "first", place_json(&r->first), "logits_rows", r->n_logits_rows,
                               "logits_error", isfinite(r->logits_error) ? json_real(r->logits_error) : json_null(),
                               "margin_rows", r->n_margin_rows, "other_choices", r->n_other_choices);
    if (object == NULL || json_object_set_new(object, "sequences", json_integer(r->n_sequences)) != 0 ||
        json_object_set_new(object, "first_kernels", json_string(r->first_kernels)) != 0) {
        json_decref(object);
        return error_set(err, LS_ENOMEM, "cannot write JSON: a name that is not UTF-8, or out of memory");
    }
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(object);
    return LS_OK;
}

/* ---- The command ---- */

static ls_status verify_all(verify_run *run, int argc, char **argv, ls_error *err) {
    TRY(options_init(&run->options, err));
    TRY(args_parse(&run->options, COMMAND_VERIFY, argc, argv, err));
    const option_value *v = run->options.value;
    if (!v[OPT_MODEL].set) {
        return error_set(err, LS_EINVAL, "verify needs a model: lockstep verify demo");
    }
    TRY(read_against(run, err));
    TRY(cli_open_to_run(&run->options, &run->model, err));
    ls_engine_params tested = cli_engine_params(&run->options, NULL),
                     reference = cli_engine_params(&run->against, NULL);
    ls_verify_params params = LS_VERIFY_PARAMS_INIT;
    params.tested = &tested;
    params.reference = &reference;
    run->report = (ls_verify_report)LS_VERIFY_REPORT_INIT;
    TRY(ls_verify(run->model, &params, &run->report, err));
    if (v[OPT_JSON].integer != 0) {
        return print_json(run, err);
    }
    print_text(run);
    return LS_OK;
}

int cmd_verify(int argc, char **argv) {
    verify_run run = {0};
    ls_error error = {0};
    ls_status st = verify_all(&run, argc, argv, &error);
    int code = st < 0              ? cli_fail(&error, run.options.value[OPT_VERBOSE].integer != 0)
               : run.report.passed ? EXIT_GOOD
                                   : EXIT_FAILED;
    ls_model_close(&run.model);
    free(run.settings);
    options_deinit(&run.options);
    return code;
}
