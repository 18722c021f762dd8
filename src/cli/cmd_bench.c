/* lockstep bench WHAT: measurements, and what becomes of their results. The measurements are in bench/. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cli/bench/bench.h"

typedef struct measurement {
    const char *name;
    bench_fn run;
    bool has_model, of_server;
} measurement;

static const measurement bench_table[] = {
    {"latency", bench_latency, true, false},
    {"throughput", bench_throughput, true, false},
    {"startup", bench_startup, true, false},
    {"sweep", bench_sweep, true, false},
    {"ops", bench_ops, true, false},
    {"limits", bench_limits, false, false},
    {"exchange", bench_exchange, false, false},
    {"serve", bench_serve, false, true},
};
enum { N_MEASUREMENTS = sizeof bench_table / sizeof *bench_table };

static const measurement *find(const char *name) {
    for (int i = 0; i < N_MEASUREMENTS; i++) {
        if (strcmp(bench_table[i].name, name) == 0) {
            return &bench_table[i];
        }
    }
    return NULL;
}

ls_status bench_list(const bench *b, option_id id, const char *fallback, int64_t min, int64_t max, int_list *out,
                     ls_error *err) {
    const option_value *v = &b->options.value[id];
    char text[512];
    snprintf(text, sizeof text, "%s", v->set ? v->text : fallback);
    out->n = 0;
    for (char *at = text, *save = NULL; (at = strtok_r(at, ",", &save)) != NULL; at = NULL) {
        char *end;
        int64_t value = strtoll(at, &end, 10);
        const int shift = strcmp(end, "Ki") == 0 ? 10 : strcmp(end, "Mi") == 0 ? 20 : strcmp(end, "Gi") == 0 ? 30 : 0;
        const bool good = end > at && (shift > 0 || *end == '\0') && value >= 0 && value <= INT32_MAX &&
                          value << shift >= min && value << shift <= max;
        if (!good || out->n == LIST_MOST) {
            return error_set(err, LS_EINVAL,
                             "--%s %.100s: expected up to %d integers from %lld to %lld with commas between them",
                             option_table[id].name, v->text, LIST_MOST, (long long)min, (long long)max);
        }
        out->item[out->n++] = value << shift;
    }
    return out->n > 0 ? LS_OK : error_set(err, LS_EINVAL, "--%s: an empty list", option_table[id].name);
}

/* ---- The document ---- */

/* --api-key, or what getopt takes for it: one dash, the beginning of its name. */
static bool names_key(const char *word) {
    const char *name = word + strspn(word, "-");
    const size_t n = strcspn(name, "=");
    return name > word && n > 0 && strncmp("api-key", name, n) == 0;
}

/* The command line as it was given, "lockstep bench ...", keys left out. */
static json_t *command_text(int argc, char **argv) {
    char text[4096];
    size_t n = (size_t)snprintf(text, sizeof text, "lockstep bench");
    for (int i = 0; i < argc && n < sizeof text; i++) {
        const bool is_key = i > 0 && names_key(argv[i - 1]) && strchr(argv[i - 1], '=') == NULL;
        const bool has_key = names_key(argv[i]) && strchr(argv[i], '=') != NULL;
        const char *word = is_key ? "..." : has_key ? "--api-key=..." : argv[i];
        const char *quote = strpbrk(word, " \t\"$&;()<>|*?") != NULL ? "'" : "";
        n += (size_t)snprintf(text + n, sizeof text - n, " %s%s%s", quote, word, quote);
    }
    json_t *out = json_string(text);
    return out != NULL ? out : json_string("lockstep bench");
}

/* Of a model in a folder: the folder's own name, as wherever it lies says nothing elsewhere. */
static const char *model_name(const char *given) {
    struct stat info;
    const char *slash = strrchr(given, '/');
    return slash != NULL && slash[1] != '\0' && stat(given, &info) == 0 ? slash + 1 : given;
}

static json_t *model_json(bench *b) {
    ls_model_info m = LS_MODEL_INFO_INIT;
    if (b->of_server) {
        const char *given = b->options.value[OPT_MODEL].text;
        return json_pack("{s:s*}", "name", given != NULL ? model_name(given) : NULL);
    }
    if (b->model == NULL && b->options.value[OPT_MODEL].set) {
        cli_open_model(&b->options, &b->model, NULL); /* of startup: others have it open */
    }
    if (b->model == NULL || ls_model_get_info(b->model, &m, NULL) != LS_OK) {
        return json_null();
    }
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:s}", "name",
                     model_name(b->options.value[OPT_MODEL].text), "family", m.family, "layers", m.n_layers, "d_model",
                     m.d_model, "d_ffn", m.d_ffn, "heads", m.n_heads, "kv_heads", m.n_kv_heads, "d_head", m.d_head,
                     "vocabulary", m.n_vocab, "dtype", ls_dtype_name(m.dtype), "load_format",
                     b->options.value[OPT_LOAD_FORMAT].text);
}

static json_t *document(bench *b, json_t *command) {
    char date[32] = "";
    time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc) != NULL) {
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
    json_t *root = json_pack("{s:i, s:s, s:s, s:s, s:s, s:O, s:i, s:o}", "lockstep_results", RESULTS_VERSION, "what",
                             b->what, "version", ls_version(), "commit", bench_commit(), "date", date, "command",
                             command, "repetitions", b->repetitions, "device", bench_device(&b->options));
    json_t *model = model_json(b);
    if (json_is_object(model)) {
        json_object_set(root, "model", model);
    }
    json_decref(model);
    json_object_set(root, "rows", b->rows);
    return root;
}

static ls_status save(const json_t *root, const char *path, ls_error *err) {
    FILE *file = fopen(path, "we");
    if (file != NULL) {
        results_write(root, FORM_JSON, file);
    }
    if (file == NULL || ferror(file) || fclose(file) != 0) {
        return error_set(err, LS_EIO, "--output-json %s: %s", path, strerror(errno));
    }
    return LS_OK;
}

static results_form form_of(const ls_options *options) {
    const char *text = options->value[OPT_OUTPUT].text;
    return options->value[OPT_JSON].integer != 0 || strcmp(text, "json") == 0 ? FORM_JSON
           : strcmp(text, "csv") == 0                                         ? FORM_CSV
                                                                              : FORM_MARKDOWN;
}

static ls_status tell(bench *b, json_t *command, const json_doc *before, bool *worse, ls_error *err) {
    const option_value *v = b->options.value;
    json_t *root = document(b, command);
    const results_form form = form_of(&b->options);
    if (!b->of_server || form == FORM_CSV) {
        results_write(root, form, stdout);
    }
    ls_status st = v[OPT_OUTPUT_JSON].set ? save(root, v[OPT_OUTPUT_JSON].text, err) : LS_OK;
    if (st == LS_OK && before->root != NULL) {
        int n_worse = 0;
        results_compare(before->root, root, v[OPT_COMPARE].text, form == FORM_MARKDOWN ? stdout : stderr, &n_worse);
        *worse = n_worse > 0;
    }
    json_decref(root);
    return st;
}

/* ---- The command ---- */

static ls_status read_options(bench *b, const measurement *m, int argc, char **argv, ls_error *err) {
    TRY(options_init(&b->options, err));
    TRY(args_parse(&b->options, COMMAND_BENCH, argc, argv, err));
    const option_value *v = b->options.value;
    if (m->has_model && !v[OPT_MODEL].set) {
        return error_set(err, LS_EINVAL, "bench %s needs a model: lockstep bench %s -m demo", m->name, m->name);
    }
    b->of_server = m->of_server;
    b->repetitions = m->of_server ? 1 : (int)v[OPT_REPETITIONS].integer;
    b->random = v[OPT_SEED].set ? (uint64_t)v[OPT_SEED].integer : 1;
    return options_set(&b->options, OPT_TIMELINE, "none", err); /* no bars between the tables */
}

static ls_status measure(bench *b, const measurement *m, json_t *command, bool *worse, ls_error *err) {
    const option_value *v = b->options.value;
    json_doc before = {0};
    if (v[OPT_COMPARE].set) { /* before an hour is spent */
        TRY(results_read(&before, v[OPT_COMPARE].text, err));
    }
    ls_status st = m->run == bench_exchange ? cli_hosts_join(&b->options, &b->hosts, err) : LS_OK;
    st = st == LS_OK ? m->run(b, err) : st;
    results_finish(b->rows);
    if (st == LS_OK && ls_hosts_self(b->hosts.group) == 0) {
        st = tell(b, command, &before, worse, err);
    }
    json_doc_deinit(&before);
    return st;
}

/* --help ends the program; other options are of a measurement that was not named. */
static int no_measurement(int argc, char **argv) {
    ls_options options = {0};
    if (argc > 1 && argv[1][0] == '-' && options_init(&options, NULL) == LS_OK) {
        args_parse(&options, COMMAND_BENCH, argc, argv, NULL);
    }
    options_deinit(&options);
    fprintf(stderr, "lockstep bench: say what: ");
    for (int i = 0; i < N_MEASUREMENTS; i++) {
        fprintf(stderr, "lockstep bench %s%s", bench_table[i].name, i + 1 < N_MEASUREMENTS ? ", " : "");
    }
    fprintf(stderr, "; lockstep bench --help lists their options\n");
    return EXIT_USAGE;
}

int cmd_bench(int argc, char **argv) {
    const measurement *m = argc > 1 ? find(argv[1]) : NULL;
    if (m == NULL) {
        return no_measurement(argc, argv);
    }
    bench b = {.what = m->name, .rows = json_array()};
    ls_error error = {0};
    bool worse = false;
    json_t *command = command_text(argc - 1, argv + 1);
    ls_status st = read_options(&b, m, argc - 1, argv + 1, &error);
    st = st == LS_OK ? measure(&b, m, command, &worse, &error) : st;
    int code = st < 0              ? cli_fail(&error, b.options.value[OPT_VERBOSE].integer != 0)
               : worse || b.failed ? EXIT_FAILED
                                   : EXIT_GOOD;
    bench_close(&b);
    ls_model_close(&b.model);
    cli_hosts_leave(&b.hosts, st, &error);
    json_decref(command);
    json_decref(b.rows);
    options_deinit(&b.options);
    return code;
}
