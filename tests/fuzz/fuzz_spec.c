/*
 * Fuzz target: config.json and, behind a leading 'g', generation_config.json. A spec that is read must be one that the
 * rest of the program can build on without checking again.
 */
#include "model/spec.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64]; /* made once per process; in memory where the system has such a folder */
static char path[128];

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void remove_folder(void) {
    unlink(path);
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/fuzz-spec-XXXXXX" : "/tmp/fuzz-spec-XXXXXX");
    require(mkdtemp(folder) != NULL, "scratch folder made");
    snprintf(path, sizeof path, "%s/generation_config.json", folder);
    atexit(remove_folder);
    return 0;
}

static void check_eos(const int32_t *eos, int n_eos, int n_vocab) {
    require(n_eos >= 0 && n_eos <= SPEC_MAX_EOS, "n_eos in range");
    for (int i = 0; i < n_eos; i++) {
        require(eos[i] >= 0 && eos[i] < n_vocab, "eos is a token");
    }
}

static void check_rope(const ls_spec *spec) {
    float inv_freq[128];
    float factor = 0;
    rope_frequencies(&spec->rope, spec->d_head, spec->max_position_tokens, inv_freq, &factor);
    require(isfinite(factor), "attention factor is finite");
    for (int i = 0; i < spec->d_head / 2; i++) {
        require(isfinite(inv_freq[i]), "frequency is finite");
    }
}

static void check_spec(const ls_spec *spec) {
    require(spec->family != NULL, "has a family");
    require(spec->n_layers >= 1 && spec->n_layers <= SPEC_MAX_LAYERS, "n_layers in range");
    require(spec->d_model >= 1 && spec->d_ffn >= 1 && spec->n_vocab >= 1 && spec->max_position_tokens >= 1, "sizes");
    require(spec->n_kv_heads >= 1 && spec->n_heads % spec->n_kv_heads == 0, "heads divide");
    require(spec->d_head >= 16 && spec->d_head <= 256 && spec->d_head % 16 == 0, "d_head in range");
    require(spec->norm_eps > 0, "eps");
    require(spec->dtype == LS_F32 || spec->dtype == LS_BF16 || spec->dtype == LS_F16, "dtype known");
    bool windowed = false;
    for (int i = 0; i < SPEC_MAX_LAYERS; i++) {
        windowed = windowed || spec->layer_windowed[i];
    }
    require(windowed == (spec->window_tokens > 0), "a window exactly where a layer uses it");
    check_eos(spec->eos, spec->n_eos, spec->n_vocab);
    check_rope(spec);
}

static void try_spec(const char *text, size_t n) {
    ls_error err = {0};
    json_doc doc;
    if (json_doc_parse(&doc, "config.json", text, n, &err) != LS_OK) {
        return;
    }
    ls_spec spec = {0};
    ls_status st = spec_from_json(&spec, &doc, &err);
    require(st == LS_OK || (spec.family == NULL && err.status == st && err.text[0] != '\0'), "a failure has a text");
    if (st == LS_OK) {
        check_spec(&spec);
    }
    json_doc_deinit(&doc);
}

static void try_generation(const uint8_t *data, size_t n) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    require(fd >= 0 && write(fd, data, n) == (ssize_t)n && close(fd) == 0, "scratch file written");
    ls_error err = {0};
    ls_generation_defaults d = {0};
    if (generation_defaults_read(&d, folder, 1000, &err) == LS_OK) {
        check_eos(d.eos, d.n_eos, 1000);
        require(d.temperature >= 0 && d.top_k >= 0 && (!d.has_top_p || (d.top_p > 0 && d.top_p <= 1)), "in range");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 0 && data[0] == 'g') {
        try_generation(data + 1, size - 1);
    } else {
        try_spec((const char *)data, size);
    }
    return 0;
}
