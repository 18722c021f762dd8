/* generation_config.json: what the publishers of a checkpoint sample with. See spec.h. */
#include "base/file.h"
#include "model/spec_read.h"

#define PATH_BYTES 4096

static ls_status read_sampling(ls_generation_defaults *out, const json_doc *doc, ls_error *err) {
    bool do_sample = true;
    TRY(json_find_bool(doc, doc->root, "do_sample", &do_sample, err));
    out->has_temperature = key_given(doc, "temperature");
    TRY(json_find_real(doc, doc->root, "temperature", &out->temperature, err));
    if (out->temperature < 0) {
        return error_set(err, LS_EFORMAT, "%s: temperature: %g is below 0", doc->name, out->temperature);
    }
    out->has_top_k = key_given(doc, "top_k");
    TRY(json_find_int(doc, doc->root, "top_k", -1, INT32_MAX, &out->top_k, err));
    out->top_k = out->top_k < 0 ? 0 : out->top_k; /* transformers writes 0 for "all", vLLM -1 */
    out->has_top_p = key_given(doc, "top_p");
    TRY(json_find_real(doc, doc->root, "top_p", &out->top_p, err));
    if (out->has_top_p && (out->top_p <= 0 || out->top_p > 1)) {
        return error_set(err, LS_EFORMAT, "%s: top_p: %g is outside 0..1", doc->name, out->top_p);
    }
    out->has_min_p = key_given(doc, "min_p");
    TRY(json_find_real(doc, doc->root, "min_p", &out->min_p, err));
    if (out->min_p < 0 || out->min_p > 1) {
        return error_set(err, LS_EFORMAT, "%s: min_p: %g is outside 0..1", doc->name, out->min_p);
    }
    if (!do_sample) { /* greedy, whatever else stands there */
        *out = (ls_generation_defaults){.has_temperature = true};
    }
    out->has_repetition_penalty = key_given(doc, "repetition_penalty");
    TRY(json_find_real(doc, doc->root, "repetition_penalty", &out->repetition_penalty, err));
    if (out->has_repetition_penalty && !(out->repetition_penalty >= 0.01 && out->repetition_penalty <= 100)) {
        return error_set(err, LS_EFORMAT, "%s: repetition_penalty: %g is outside 0.01..100", doc->name,
                         out->repetition_penalty);
    }
    return LS_OK;
}

static ls_status read_document(ls_generation_defaults *out, const json_doc *doc, int n_vocab, ls_error *err) {
    if (!json_is_object(doc->root)) {
        return error_set(err, LS_EFORMAT, "%s: expected a JSON object", doc->name);
    }
    ls_generation_defaults fresh = {0};
    TRY(read_sampling(&fresh, doc, err));
    TRY(read_eos(doc, n_vocab, fresh.eos, &fresh.n_eos, err));
    *out = fresh;
    return LS_OK;
}

ls_status generation_defaults_read(ls_generation_defaults *out, const char *folder, int n_vocab, ls_error *err) {
    char path[PATH_BYTES];
    TRY(path_join(path, sizeof path, folder, "generation_config.json", err));
    json_doc doc;
    ls_status st = json_doc_read(&doc, path, CONFIG_MAX_BYTES, err);
    if (st == LS_ENOTFOUND) {
        if (err != NULL) {
            *err = (ls_error){0}; /* no failure after all */
        }
        *out = (ls_generation_defaults){0};
        return LS_OK;
    }
    TRY(st);
    st = read_document(out, &doc, n_vocab, err);
    json_doc_deinit(&doc);
    TRY(st);
    return LS_OK;
}
