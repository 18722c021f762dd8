/* ls_verify: the prompt, two engines, and the comparison of verify.c. Described in lockstep.h. */
#include "engine/verify.h"

#include "text/token_list.h"

static const char builtin_text[] =
    "The river ran past 17 houses before it reached the sea. \"Is it far?\" asked the girl; nobody knew. In 1893, "
    "after the ice had gone, her father built a boat of oak and pine, 12.5 metres long, and called it Caf\xc3\xa9 du "
    "Nord. int main(void) { return 0; } They sailed at dawn: slowly, then faster, then so fast that the gulls fell "
    "behind. \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xe3\x81\xae\xe6\x9c\xac.\n\n";

/* A made-up id, the same on every run (splitmix64). */
static int32_t made_up(uint64_t seed, size_t i, int n_vocab) {
    uint64_t x = seed + (i + 1) * 0x9E3779B97F4A7C15;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return (int32_t)((x ^ x >> 31) % (uint64_t)n_vocab);
}

static ls_status read_prompt(const ls_model *model, const ls_verify_params *params, token_list *out, ls_error *err) {
    const size_t n = params->n_prompt_tokens;
    const int n_vocab = model->spec.n_vocab;
    if (params->prompt_tokens == NULL && model->tokenizer != NULL) {
        TRY(tokenizer_encode(model->tokenizer, builtin_text, sizeof builtin_text - 1,
                             TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL, out, err));
        size_t n_text = out->n;
        while (out->n < n && n_text > 0) {
            TRY(token_list_push(out, out->id[out->n - n_text], err));
        }
        out->n = n < out->n ? n : out->n;
    }
    while (out->n < n) {
        size_t i = out->n;
        TRY(token_list_push(
            out, params->prompt_tokens != NULL ? params->prompt_tokens[i] : made_up(model->dummy_seed, i, n_vocab),
            err));
        if (out->id[i] < 0 || out->id[i] >= n_vocab) {
            return error_set(err, LS_EINVAL, "prompt token %zu has id %d; the model's vocabulary ends at %d", i,
                             out->id[i], n_vocab - 1);
        }
    }
    return LS_OK;
}

static ls_status check_sizes(const ls_model *model, const ls_verify_params *params, ls_error *err) {
    enum { MOST_ROWS = 1 << 20 };
    if (params->tested == NULL || params->reference == NULL) {
        return error_set(err, LS_EINVAL, "ls_verify_params: tested or reference is missing");
    }
    if (params->n_prompt_tokens < 1 || params->n_prompt_tokens > MOST_ROWS || params->decode_steps < 0 ||
        params->decode_steps > MOST_ROWS) {
        return error_set(err, LS_EINVAL, "verify: a prompt of %zu tokens and %d decode steps: 1 to %d, and 0 to %d",
                         params->n_prompt_tokens, params->decode_steps, MOST_ROWS, MOST_ROWS);
    }
    if (params->n_sequences < 1 || params->n_sequences > VERIFY_SEQS) {
        return error_set(err, LS_EINVAL, "verify: %d sequences: must be 1 to %d", params->n_sequences, VERIFY_SEQS);
    }
    int total = verify_tokens((int)params->n_prompt_tokens, params->decode_steps, params->n_sequences);
    if (total > model->spec.max_position_tokens) {
        return error_set(
            err, LS_ETOOLONG, "verify: %zu prompt tokens and %d decode steps are more than the model's %d positions",
            params->n_prompt_tokens, total - (int)params->n_prompt_tokens, model->spec.max_position_tokens);
    }
    return LS_OK;
}

/* An engine with room for these sequences. */
static ls_status open_sized(ls_model *model, const ls_engine_params *given, const ls_verify_params *params,
                            const char *which, ls_engine **engine, ls_quantization *quantization, ls_error *err) {
    ls_engine_params sized = LS_ENGINE_PARAMS_INIT;
    TRY(check_struct_size("ls_engine_params", given->struct_size, sizeof *given, err));
    memcpy(&sized, given, given->struct_size);
    sized.struct_size = sizeof sized;
    const int n_prompt = (int)params->n_prompt_tokens, n_seqs = params->n_sequences;
    sized.max_model_len_tokens = verify_tokens(n_prompt, params->decode_steps, n_seqs);
    sized.max_num_seqs = n_seqs;
    sized.max_num_batched_tokens = verify_rows(n_prompt, n_seqs);
    sized.kv_cache_memory_bytes = (int64_t)1 << 50; /* as many pages as they need */
    *quantization = sized.quantization;
    if (sized.device == NULL || strcmp(sized.device, "auto") == 0) {
        sized.device = "cpu";
    }
    ls_status st = ls_engine_open(model, &sized, engine, err);
    if (st == LS_OK && (*engine)->config.on_device && (*engine)->config.n_ranks > 1) {
        return error_set(
            err, LS_EUNSUPPORTED,
            "verify: the %s engine has %d ranks on GPUs: it runs ops of one; leave --tensor-parallel-size at 1", which,
            (*engine)->config.n_ranks);
    }
    return st < 0 ? error_prefix(err, st, "the %s engine", which) : LS_OK;
}

ls_status ls_verify(ls_model *model, const ls_verify_params *params, ls_verify_report *out, ls_error *err) {
    TRY(check_struct_size("ls_verify_params", params->struct_size, sizeof *params, err));
    TRY(check_struct_size("ls_verify_report", out->struct_size, SIZE_MAX, err));
    ls_verify_params known = LS_VERIFY_PARAMS_INIT;
    memcpy(&known, params, params->struct_size);
    TRY(check_sizes(model, &known, err));
    verify_pair pair = {.n_seqs = known.n_sequences};
    token_list prompt = {0};
    ls_verify_report report = {.struct_size = out->struct_size};
    ls_status st = LS_OK;
    TRY_GOTO(read_prompt(model, &known, &prompt, err), fail);
    TRY_GOTO(open_sized(model, known.tested, &known, "tested", &pair.tested, &pair.tested_quantization, err), fail);
    TRY_GOTO(
        open_sized(model, known.reference, &known, "reference", &pair.reference, &pair.reference_quantization, err),
        fail);
    TRY_GOTO(verify_engines(&pair, prompt.id, (int)prompt.n, known.decode_steps, &report, err), fail);
    memcpy(out, &report, out->struct_size < sizeof report ? out->struct_size : sizeof report);
fail:
    ls_engine_close(&pair.tested);
    ls_engine_close(&pair.reference);
    token_list_deinit(&prompt);
    return st;
}
