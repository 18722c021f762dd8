/*
 * What the readers of config.json share: spec.c, rope.c, families and generation_defaults.c. Not for others.
 *
 * Absent and null differ, as in transformers: an absent key means the default of the family's config class, a null
 * means "none" or "derive it". The json_find_* functions treat both alike; key_absent() tells them apart.
 */
#ifndef LS_MODEL_SPEC_READ_H
#define LS_MODEL_SPEC_READ_H

#include "model/spec.h"

#define CONFIG_MAX_BYTES (16u << 20)
#define SPEC_MAX_POSITIONS (1 << 24)

/* "<file>: <key>: <why>": a value that is well-formed but that we cannot honour. */
#define REFUSE(doc, key, format, ...) error_set(err, LS_EUNSUPPORTED, "%s: %s: " format, (doc)->name, key, __VA_ARGS__)

bool key_absent(const json_doc *doc, const char *key); /* neither a value nor null */
bool key_given(const json_doc *doc, const char *key);  /* a value other than null */

/* Refuses a key that is true: "<file>: <key>: <family> models with it are not supported". */
ls_status refuse_true(const json_doc *doc, const char *key, const char *model_type, ls_error *err);

/* eos_token_id: an id, a list of ids, or null. Leaves the outputs alone where the key is absent or null. */
ls_status read_eos(const json_doc *doc, int n_vocab, int32_t eos[SPEC_MAX_EOS], int *n_eos, ls_error *err);

/* Which layers have the sliding window: those that layer_types says; without layer_types, those from first_layer on.
 * window_tokens = 0: there is no window, and layer_types may not ask for one. */
ls_status read_windows(ls_spec *spec, const json_doc *doc, int64_t window_tokens, int64_t first_layer, ls_error *err);

/* Qwen's rule, the same in both families: a window only with use_sliding_window, from layer max_window_layers on. */
ls_status read_qwen_windows(ls_spec *spec, const json_doc *doc, ls_error *err);

/* rope_parameters, or rope_theta and rope_scaling with "rope_type" or the older "type". */
ls_status rope_read(ls_rope *rope, const json_doc *doc, int max_position_tokens, ls_error *err);

#endif
