/* Tables of the CPU back end: which inner loops this machine can run, and the ops. See cpu.h. */
#include "backend/cpu/cpu.h"

#include <stdio.h>
#include <string.h>

extern const cpu_isa cpu_isa_ref;
#if defined(__x86_64__)
extern const cpu_isa cpu_isa_avx2, cpu_isa_avx512;
#endif

/* Every machine with AVX2 has F16C. */
static bool isa_runs(const cpu_isa *isa) {
#if defined(__x86_64__)
    if (isa == &cpu_isa_avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    }
    if (isa == &cpu_isa_avx2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
#endif
    return isa == &cpu_isa_ref;
}

/* Best first. */
static const cpu_isa *const isas[] = {
#if defined(__x86_64__)
    &cpu_isa_avx512, &cpu_isa_avx2,
#endif
    &cpu_isa_ref};

const cpu_isa *cpu_isa_best(void) {
    size_t i = 0;
    while (!isa_runs(isas[i])) {
        i++; /* ends: the last one runs everywhere */
    }
    return isas[i];
}

const cpu_isa *cpu_isa_find(const char *name) {
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (strcmp(isas[i]->name, name) == 0) {
            return isa_runs(isas[i]) ? isas[i] : NULL;
        }
    }
    return NULL;
}

ls_status cpu_isa_choose(const cpu_isa **out, const char *name, ls_error *err) {
    const cpu_isa *isa = name == NULL ? cpu_isa_best() : cpu_isa_find(name);
    if (isa != NULL) {
        *out = isa;
        return LS_OK;
    }
    char have[64] = "";
    int used = 0;
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (isa_runs(isas[i])) {
            used += snprintf(have + used, sizeof have - (size_t)used, "%s%s", used > 0 ? ", " : "", isas[i]->name);
        }
    }
    return error_set(err, LS_EINVAL, "--cpu-isa %s: this machine has %s", name, have);
}

const char *op_kind_name(ls_op_kind kind) {
    static const char *const names[OP_KINDS] = {"embed",  "qkv",     "attn", "out",   "exchange",
                                                "ffn_in", "ffn_out", "head", "sample"};
    return (unsigned)kind < OP_KINDS ? names[kind] : "unknown";
}

const ls_op_table cpu_ref_ops = {.name = "cpu",
                                 .fn = {[OP_EMBED] = ref_embed,
                                        [OP_QKV] = ref_qkv,
                                        [OP_ATTN] = ref_attn,
                                        [OP_OUT] = ref_row,
                                        [OP_EXCHANGE] = ref_exchange,
                                        [OP_FFN_IN] = ref_ffn_in,
                                        [OP_FFN_OUT] = ref_row,
                                        [OP_HEAD] = ref_head,
                                        [OP_SAMPLE] = ref_sample}};
