/* What every command that runs a model does first: find it, open it, open an engine on it as the options say. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/cli.h"
#include "cli/progress.h"

void cli_log(void *user, ls_log_level level, const char *text) {
    static const char *const names[] = {"error", "warning", "info", "debug", "trace"};
    (void)user;
    fprintf(stderr, "lockstep: %s: %s\n", names[level], text);
}

/* The built-in model: beside the binary, one or two levels up, or in share/. */
static ls_status find_demo(char *out, size_t out_bytes, ls_error *err) {
    static const char *const places[] = {"demo", "../demo", "../../demo", "../share/lockstep/demo"};
    char folder[4096];
    ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (n > 0) {
        folder[n] = '\0';
        *strrchr(folder, '/') = '\0';
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            char config[4096];
            TRY(path_join(out, out_bytes, folder, places[i], err));
            if (path_join(config, sizeof config, out, "config.json", NULL) == LS_OK && file_exists(config)) {
                return LS_OK;
            }
        }
    }
    return error_set(err, LS_ENOTFOUND, "the built-in model 'demo' is not beside the program; give its folder with -m");
}

ls_status cli_read_argument(const option_value *value, char **out, ls_error *err) {
    *out = NULL;
    if (!value->set) {
        return LS_OK;
    }
    ls_file file = {0};
    const char *text = value->text;
    size_t n = strlen(text);
    if (text[0] == '@') {
        TRY(file_map_or_read(&file, text + 1, err));
        text = (const char *)file.data;
        n = file.bytes;
    }
    *out = strndup(n > 0 ? text : "", n);
    file_unmap(&file);
    return *out != NULL ? LS_OK : error_set(err, LS_ENOMEM, "out of memory");
}

/* What is no folder and looks like a name on the hub is one. */
static bool is_on_hub(const char *name) {
    return !folder_exists(name) && ls_hub_is_name(name);
}

static ls_status find_model(const ls_options *options, bool skip_weights, char *out, size_t out_bytes, ls_error *err) {
    const char *name = options->value[OPT_MODEL].text;
    if (strcmp(name, "demo") == 0) {
        return find_demo(out, out_bytes, err);
    }
    if (is_on_hub(name)) {
        ls_status st = cli_hub_find(options, skip_weights, out, out_bytes, err);
        bool is_unknown = st == LS_ENOTFOUND || st == LS_EDENIED || st == LS_ENETWORK;
        return is_unknown ? error_prefix(err, st, "no folder here has this name, so it is one on the hub") : st;
    }
    if (strlen(name) >= out_bytes) {
        return error_set(err, LS_EINVAL, "--model: longer than %zu bytes", out_bytes - 1);
    }
    memcpy(out, name, strlen(name) + 1);
    return LS_OK;
}

ls_status cli_find_model(const ls_options *options, char *out, size_t out_bytes, ls_error *err) {
    return find_model(options, false, out, out_bytes, err);
}

ls_status cli_find_text(const ls_options *options, char *out, size_t out_bytes, ls_error *err) {
    return find_model(options, true, out, out_bytes, err);
}

/* device: for ls_model_params. */
static ls_status open_model(const ls_options *options, const char *device, ls_model **out, ls_error *err) {
    const option_value *v = options->value;
    bool is_dummy = strcmp(v[OPT_LOAD_FORMAT].text, "dummy") == 0;
    char folder[4096], cache[4096];
    ls_model_params params = LS_MODEL_PARAMS_INIT;
    params.model = v[OPT_MODEL].text;
    params.load_format = is_dummy ? LS_LOAD_DUMMY : LS_LOAD_SAFETENSORS;
    params.cache_folder = options_cache_folder(options, cache, sizeof cache);
    params.log_fn = cli_log;
    params.device = device;
    params.log_level = v[OPT_VERBOSE].integer != 0 ? LS_LOG_DEBUG : LS_LOG_WARN;
    /* Shapes that are built in need nothing from the hub. */
    if (is_dummy && is_on_hub(params.model)) {
        ls_status st = ls_model_open(&params, out, err);
        if (st != LS_ENOTFOUND) {
            return st;
        }
    }
    TRY(find_model(options, is_dummy, folder, sizeof folder, err));
    params.model = folder;
    return ls_model_open(&params, out, err);
}

ls_status cli_open_model(const ls_options *options, ls_model **out, ls_error *err) {
    return open_model(options, NULL, out, err);
}

ls_status cli_open_to_run(const ls_options *options, ls_model **out, ls_error *err) {
    return open_model(options, options->value[OPT_DEVICE].text, out, err);
}

static ls_dtype dtype_of(const char *text) {
    for (int dtype = LS_AUTO; dtype <= LS_F16; dtype++) {
        if (strcmp(text, ls_dtype_name((ls_dtype)dtype)) == 0) {
            return (ls_dtype)dtype;
        }
    }
    return LS_AUTO;
}

static ls_quantization quantization_of(const char *text) {
    for (int method = LS_QUANTIZATION_NONE; method <= LS_QUANTIZATION_W8A8; method++) {
        if (strcmp(text, ls_quantization_name((ls_quantization)method)) == 0) {
            return (ls_quantization)method;
        }
    }
    return LS_QUANTIZATION_NONE;
}

ls_engine_params cli_engine_params(const ls_options *options, ls_hosts *hosts) {
    const option_value *v = options->value;
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    /* Where it was not given, --devices may say it. */
    params.tensor_parallel_size =
        options_given(options, OPT_TENSOR_PARALLEL_SIZE) ? (int)v[OPT_TENSOR_PARALLEL_SIZE].integer : 0;
    params.exchange = v[OPT_EXCHANGE].text;
    params.threads = (int)v[OPT_THREADS].integer;
    params.dtype = dtype_of(v[OPT_DTYPE].text);
    params.quantization = quantization_of(v[OPT_QUANTIZATION].text);
    params.kv_cache_dtype = dtype_of(v[OPT_KV_CACHE_DTYPE].text);
    params.max_model_len_tokens = (int)v[OPT_MAX_MODEL_LEN].integer;
    params.max_num_seqs = (int)v[OPT_MAX_NUM_SEQS].integer;
    params.max_num_batched_tokens = (int)v[OPT_MAX_NUM_BATCHED_TOKENS].integer;
    params.kv_cache_memory_bytes = v[OPT_KV_CACHE_MEMORY_BYTES].integer;
    params.device = v[OPT_DEVICE].text;
    params.kernels = v[OPT_KERNELS].text;
    params.graph_sizes = v[OPT_GRAPH_SIZES].text;
    params.plan = v[OPT_PLAN].text;
    params.async_scheduling = v[OPT_ASYNC_SCHEDULING].text;
    params.gpu_memory_utilization = v[OPT_GPU_MEMORY_UTILIZATION].real;
    params.profile = v[OPT_PROFILE].integer != 0;
    params.cpu_isa = strcmp(v[OPT_CPU_ISA].text, "auto") == 0 ? NULL : v[OPT_CPU_ISA].text;
    params.hosts = hosts;
    return params;
}

ls_status cli_open_engine(const ls_options *options, ls_model *model, const ls_engine_params *params, ls_engine **out,
                          ls_error *err) {
    const char *timeline = options->value[OPT_TIMELINE].text;
    ls_engine_params shown = *params;
    progress_view view = progress_begin("loading");
    if (strcmp(timeline, "none") != 0) {
        shown.progress_fn = progress_of_loading;
        shown.progress_user = &view;
    }
    ls_status st = ls_engine_open(model, &shown, out, err);
    progress_clear(&view);
    return st;
}

ls_status cli_open(const ls_options *options, ls_hosts *hosts, ls_model **model, ls_engine **engine, ls_error *err) {
    TRY(hosts != NULL ? cli_open_model(options, model, err) : cli_open_to_run(options, model, err));
    ls_engine_params params = cli_engine_params(options, hosts);
    return cli_open_engine(options, *model, &params, engine, err);
}
