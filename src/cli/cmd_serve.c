/* lockstep serve: the server (src/server), with the model and the settings that the options name. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/progress.h"
#include "server/server.h"

typedef struct serve_command {
    ls_options options;
    server_params params;
    server_progress *progress;
    progress_view view;
    const char *name; /* of the model, where no other is given */
    char *kwargs;
} serve_command;

/* ---- Opening ---- */

static void on_loading(void *user, const ls_load_progress *p) {
    serve_command *c = user;
    server_progress_set(c->progress, "loading weights",
                        p->total_bytes > 0 ? (int)((double)p->bytes * 100 / (double)p->total_bytes) : 100);
    progress_of_loading(&c->view, p);
}

static ls_status open_text(const ls_options *options, ls_text **out, ls_error *err) {
    char folder[4096], cache[4096];
    TRY(cli_find_text(options, folder, sizeof folder, err));
    return ls_text_open(folder, options_cache_folder(options, cache, sizeof cache), out, err);
}

/* By a thread of the server's. */
static ls_status open_model(void *user, server_progress *progress, server_model *out, ls_error *err) {
    serve_command *c = user;
    ls_engine_params params = cli_engine_params(&c->options, NULL);
    ls_model_info info = LS_MODEL_INFO_INIT;
    ls_timeline timeline = LS_TIMELINE_INIT;
    c->progress = progress;
    server_progress_set(progress, "opening the model", -1);
    TRY(cli_open_to_run(&c->options, &out->model, err));
    TRY(ls_model_get_info(out->model, &info, err));
    if (info.has_tokenizer) {
        TRY(open_text(&c->options, &out->text, err));
    }
    c->view = progress_begin("loading");
    params.prefix_cache = c->options.value[OPT_NO_PREFIX_CACHING].integer == 0;
    params.progress_fn = on_loading;
    params.progress_user = c;
    ls_status st = ls_engine_open(out->model, &params, &out->engine, err);
    progress_clear(&c->view);
    TRY(st);
    server_progress_set(progress, "measuring memory", -1); /* now, because later it would hold up a step */
    return ls_engine_get_timeline(out->engine, &timeline, err);
}

/* ---- Settings ---- */

static void log_to_stderr(void *user, ls_log_level level, const char *text) {
    (void)user;
    if (level == LS_LOG_INFO) {
        fprintf(stderr, "lockstep: %s\n", text);
    } else {
        cli_log(user, level, text);
    }
}

static ls_status open_access_log(serve_command *c, ls_error *err) {
    const option_value *v = &c->options.value[OPT_ACCESS_LOG];
    if (!v->set) {
        return LS_OK;
    }
    c->params.access_log = strcmp(v->text, "-") == 0 ? stdout : fopen(v->text, "ae");
    return c->params.access_log != NULL
               ? LS_OK
               : error_set(err, LS_EIO, "--access-log %s: cannot be written: %s", v->text, strerror(errno));
}

/* Answers are one process's: the ranks of several are not shared here. */
static ls_status refuse_several_hosts(const ls_options *options, ls_error *err) {
    options_launch launch;
    if (strcmp(options->value[OPT_HOSTS].text, "off") == 0) {
        return LS_OK;
    }
    TRY(options_launch_read(&launch, err));
    return launch.n_processes <= 1 ? LS_OK
                                   : error_set(err, LS_EINVAL,
                                               "serve runs in one process, and %s started %d; start it once, or give "
                                               "--hosts off for servers that know nothing of each other",
                                               launch.launcher, launch.n_processes);
}

/* What could only be found out by whoever reads the answers. */
static ls_status check_names(const ls_options *options, ls_error *err) {
    const char *prefix = options->value[OPT_METRICS_PREFIX].text;
    for (const char *p = prefix; *p != '\0'; p++) {
        if (!isalpha((unsigned char)*p) && *p != '_' && *p != ':' && (p == prefix || !isdigit((unsigned char)*p))) {
            return error_set(err, LS_EINVAL,
                             "--metrics-prefix '%s': names of metrics are letters, digits, _ and :, and begin with no "
                             "digit",
                             prefix);
        }
    }
    for (size_t i = 0; i < options->n_list[OPT_SERVED_MODEL_NAME]; i++) {
        if (options->list[OPT_SERVED_MODEL_NAME][i][0] == '\0') {
            return error_set(err, LS_EINVAL, "--served-model-name: a name may not be empty");
        }
    }
    return LS_OK;
}

static void warn_of_open_door(const server_params *p) {
    const bool is_local =
        strncmp(p->host, "127.", 4) == 0 || strcmp(p->host, "localhost") == 0 || strcmp(p->host, "::1") == 0;
    if (!is_local && p->n_api_keys == 0 && p->api_key_file == NULL) {
        cli_log(NULL, LS_LOG_WARN, "no --api-key: whoever reaches this machine over the network may use the model");
    }
}

static ls_status read_options(serve_command *c, int argc, char **argv, ls_error *err) {
    ls_options *options = &c->options;
    const option_value *v = options->value;
    TRY(options_init(options, err));
    TRY(args_parse(options, COMMAND_SERVE, argc, argv, err));
    if (!v[OPT_MODEL].set) {
        return error_set(err, LS_EINVAL, "serve needs a model: lockstep serve FOLDER, a name on the hub, or demo");
    }
    TRY(refuse_several_hosts(options, err));
    TRY(check_names(options, err));
    bool named = options->n_list[OPT_SERVED_MODEL_NAME] > 0;
    c->name = v[OPT_MODEL].text;
    TRY(cli_read_argument(&v[OPT_CHAT_TEMPLATE_KWARGS], &c->kwargs, err));
    c->params = (server_params){
        .host = v[OPT_HOST].text,
        .port = (int)v[OPT_PORT].integer,
        .name = named ? options->list[OPT_SERVED_MODEL_NAME] : &c->name,
        .n_names = named ? options->n_list[OPT_SERVED_MODEL_NAME] : 1,
        .api_key = options->list[OPT_API_KEY],
        .n_api_keys = options->n_list[OPT_API_KEY],
        .api_key_file = v[OPT_API_KEY_FILE].text,
        .ssl_certfile = v[OPT_SSL_CERTFILE].text,
        .ssl_keyfile = v[OPT_SSL_KEYFILE].text,
        .allowed_origin = options->list[OPT_ALLOWED_ORIGINS],
        .n_allowed_origins = options->n_list[OPT_ALLOWED_ORIGINS],
        .chat_template_name = v[OPT_CHAT_TEMPLATE_NAME].text,
        .chat_template_kwargs = c->kwargs,
        .max_body_bytes = v[OPT_MAX_BODY_BYTES].integer,
        .max_connections = (int)v[OPT_MAX_CONNECTIONS].integer,
        .http_timeout_s = (int)v[OPT_HTTP_TIMEOUT].integer,
        .max_num_seqs = (int)v[OPT_MAX_NUM_SEQS].integer,
        .max_queued = (int)v[OPT_MAX_NUM_QUEUED_REQS].integer,
        .shutdown_timeout_s = (int)v[OPT_SHUTDOWN_TIMEOUT].integer,
        .stall_timeout_s = (int)v[OPT_STALL_TIMEOUT].integer,
        .metrics_prefix = v[OPT_METRICS_PREFIX].text,
        .log = {log_to_stderr, NULL, v[OPT_VERBOSE].integer != 0 ? LS_LOG_DEBUG : LS_LOG_INFO},
        .open = open_model,
        .open_user = c,
    };
    warn_of_open_door(&c->params);
    return open_access_log(c, err);
}

static int exit_code(server_end end) {
    switch (end) {
    case SERVER_DRAINED:
    case SERVER_NOT_OPENED: /* nothing was promised to anybody */
        return EXIT_GOOD;
    case SERVER_INTERRUPTED:
        return EXIT_INTERRUPTED;
    case SERVER_ENGINE_DIED:
        return EXIT_LOST;
    default:
        return EXIT_FAILED;
    }
}

int cmd_serve(int argc, char **argv) {
    serve_command c = {0};
    ls_error error = {0};
    server_end end = SERVER_STOPPED;
    ls_status st = read_options(&c, argc, argv, &error);
    st = st == LS_OK ? server_run(&c.params, &end, &error) : st;
    int code = st != LS_OK ? cli_fail(&error, c.options.value[OPT_VERBOSE].integer != 0) : exit_code(end);
    if (st == LS_OK && (end == SERVER_NOT_OPENED || end == SERVER_INTERRUPTED)) {
        _exit(code); /* the thread that opens the model cannot be called back */
    }
    if (c.params.access_log != NULL && c.params.access_log != stdout) {
        fclose(c.params.access_log);
    }
    free(c.kwargs);
    options_deinit(&c.options);
    return code;
}
