/*
 * Whether the processes of a run run the same: each sends host 0 what decides the step's arrays and the bits, as text, and
 * host 0 names the first that differs. Files are compared by hashes, of the tensors' data by samples: all of it would have
 * to be read by everybody.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/file.h"
#include "engine/engine.h"
#include "text/hash.h"

enum { VALUE_BYTES = 64, MAX_LINES = 20 };

typedef struct compare_line {
    char what[32], value[VALUE_BYTES];
} compare_line;

typedef struct comparison {
    compare_line line[MAX_LINES];
    int n;
} comparison;

static void add(comparison *all, const char *what, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void add(comparison *all, const char *what, const char *format, ...) {
    compare_line *line = &all->line[all->n++];
    va_list args;
    snprintf(line->what, sizeof line->what, "%s", what);
    va_start(args, format);
    vsnprintf(line->value, sizeof line->value, format, args);
    va_end(args);
}

static void add_file(comparison *all, const ls_model *model, const char *name) {
    char path[4096];
    ls_file file;
    if (model->folder == NULL || path_join(path, sizeof path, model->folder, name, NULL) != LS_OK ||
        file_map(&file, path, NULL) != LS_OK) {
        add(all, name, "absent");
        return;
    }
    add(all, name, "%zu bytes, hash %016" PRIx64, file.bytes, hash_bytes((const char *)file.data, file.bytes, 1));
    file_unmap(&file);
}

/* Names, dtypes and shapes; and some bytes of every tensor, at another place in each. */
static void add_checkpoint(comparison *all, const ls_checkpoint *checkpoint) {
    enum { SAMPLE_BYTES = 64 };
    uint64_t header = 1, data = 1;
    const size_t n = checkpoint != NULL ? checkpoint_count(checkpoint) : 0;
    for (size_t i = 0; i < n; i++) {
        const ls_tensor *tensor = checkpoint_at(checkpoint, i);
        header = hash_bytes(tensor->name, strlen(tensor->name), header);
        header = hash_bytes((const char *)tensor->shape, (size_t)tensor->n_dims * sizeof *tensor->shape,
                            header ^ (uint64_t)tensor->dtype);
        const size_t bytes = tensor->bytes < SAMPLE_BYTES ? tensor->bytes : SAMPLE_BYTES;
        const size_t place = (size_t)(hash_u64(i, 1) % (tensor->bytes - bytes + 1));
        data = hash_bytes((const char *)tensor->data + place, bytes, data);
        data = hash_bytes((const char *)tensor->data + tensor->bytes - bytes, bytes, data);
    }
    add(all, "checkpoint (names, shapes)", "%zu tensors, hash %016" PRIx64, n, header);
    add(all, "checkpoint (data)", "hash %016" PRIx64, data);
}

static void describe(comparison *all, const ls_engine *engine) {
    const engine_config *c = &engine->config;
    const ls_model *model = engine->model;
    const ls_spec *spec = &model->spec;
    *all = (comparison){0};
    add(all, "version", "%s", ls_version());
    add_file(all, model, "config.json");
    add_file(all, model, "tokenizer.json");
    add(all, "model", "L %d, D %d, F %d, H %d, K %d, d %d, V %d", spec->n_layers, spec->d_model, spec->d_ffn,
        spec->n_heads, spec->n_kv_heads, spec->d_head, spec->n_vocab);
    add(all, "--load-format", "%s, seed %" PRIu64, model->checkpoint != NULL ? "safetensors" : "dummy",
        model->dummy_seed);
    add_checkpoint(all, model->checkpoint);
    add(all, "--tensor-parallel-size", "%d", c->n_ranks);
    add(all, "--dtype", "%s", ls_dtype_name(c->dtype));
    add(all, "--quantization", "%s", ls_quantization_name(c->quantization));
    add(all, "--kv-cache-dtype", "%s", ls_dtype_name(c->kv_dtype));
    add(all, "--max-model-len", "%d", c->max_len);
    add(all, "--max-num-seqs", "%d", c->max_seqs);
    add(all, "--max-num-batched-tokens", "%d", c->m_max);
    add(all, "KV cache", "%d pages (--kv-cache-memory-bytes)", c->n_pages);
    add(all, "device", "%.60s", c->on_device ? engine->device_name : "CPU");
}

static ls_status compare(const ls_engine *engine, int host, const comparison *theirs, const comparison *ours,
                         ls_error *err) {
    for (int i = 0; i < ours->n; i++) {
        if (strncmp(ours->line[i].value, theirs->line[i].value, VALUE_BYTES) != 0) {
            return error_set(err, LS_EINVAL,
                             "%s differs: its %.31s is %.63s, that of host 0 is %s; give all hosts the same options, "
                             "files and version",
                             hosts_label(engine->hosts, host), ours->line[i].what, theirs->line[i].value,
                             ours->line[i].value);
        }
    }
    return LS_OK;
}

ls_status hosts_compare(ls_engine *engine, ls_error *err) {
    comparison ours, theirs;
    if (engine->hosts == NULL) {
        return LS_OK;
    }
    hosts_set_phase(engine->hosts, PHASE_COMPARING, 0);
    describe(&ours, engine);
    if (engine->config.host > 0) {
        host_transfer up = {.host = 0, .sends = true, .data = &ours, .bytes = sizeof ours};
        TRY(hosts_transfer(engine->hosts, &up, 1, 0, err));
    }
    for (int host = 1; host < engine->config.n_hosts && engine->config.host == 0; host++) {
        host_transfer down = {.host = host, .data = &theirs, .bytes = sizeof theirs};
        TRY(hosts_transfer(engine->hosts, &down, 1, 0, err));
        TRY(compare(engine, host, &theirs, &ours, err));
    }
    hosts_set_phase(engine->hosts, PHASE_LOADING, 0);
    return LS_OK;
}
