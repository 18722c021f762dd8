/*
 * The options table: every entry is well-formed, has its flag, variable and default, and refuses what lies outside its
 * limits by the name that the user gave. Loops run over option_table, so that a new option is covered by being there.
 */
#include "base/options.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FOR_EACH(def) for (const option_def *def = option_table; def < option_table + OPTION_COUNT; def++)

static void variable_of(const option_def *def, char out[64]) {
    snprintf(out, 64, "LOCKSTEP_%s", def->name);
    for (char *c = out; *c != '\0'; c++) {
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    }
}

/* Tests start without any of our variables. */
static int clear_environment(void **state) {
    (void)state;
    char variable[64];
    FOR_EACH(def) {
        variable_of(def, variable);
        unsetenv(variable);
    }
    return 0;
}

static bool is_number(const option_def *def) {
    return def->type == OPTION_INT || def->type == OPTION_REAL;
}

static void table_is_well_formed(void **state) {
    (void)state;
    FOR_EACH(def) {
        int id = (int)(def - option_table);
        assert_int_equal(def->id, id);
        assert_int_not_equal(def->commands, 0);
        assert_non_null(def->name);
        assert_true(strspn(def->name, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(def->name));
        assert_true(strlen(def->help) > 10 && def->help[strlen(def->help) - 1] != '.');
        assert_int_equal(def->arg == NULL, def->type == OPTION_FLAG);
        assert_int_equal(def->choices != NULL, def->type == OPTION_CHOICE);
        assert_true(is_number(def) ? def->min < def->max : def->min == 0 && def->max == 0);
        assert_true(def->max <= 9007199254740992.0 || def->id == OPT_SEED); /* numbers pass through a double */
        for (const option_def *other = option_table; other < def; other++) {
            assert_string_not_equal(def->name, other->name);
            assert_true(def->alias == NULL || strcmp(def->alias, other->name) != 0);
            assert_true(def->alias == NULL || other->alias == NULL || strcmp(def->alias, other->alias) != 0);
            assert_true(def->key == 0 || def->key != other->key);
        }
    }
}

static void defaults(void **state) {
    (void)state;
    ls_options options;
    ls_error err = {0};
    assert_int_equal(options_init(&options, &err), LS_OK);
    FOR_EACH(def) {
        const option_value *value = &options.value[def->id];
        assert_int_equal(value->set, def->fallback != NULL);
        assert_int_equal(options.n_list[def->id], 0);
        if (def->fallback != NULL) {
            assert_string_equal(value->text, def->fallback);
            assert_true(def->type != OPTION_INT || value->integer == strtoll(def->fallback, NULL, 10));
        } else {
            assert_true(value->integer == 0 && value->real == 0 && value->text == NULL);
        }
    }
    assert_int_equal(options.value[OPT_MAX_TOKENS].integer, 128);
    assert_int_equal(options.value[OPT_TENSOR_PARALLEL_SIZE].integer, 1);
    assert_string_equal(options.value[OPT_DTYPE].text, "auto");
    assert_false(options.value[OPT_TEMPERATURE].set);
    options_deinit(&options);
}

/* The number as an option of this type would be written. */
static void write_number(const option_def *def, double value, char out[64]) {
    if (def->type == OPTION_INT) {
        snprintf(out, 64, "%lld", (long long)value);
    } else {
        snprintf(out, 64, "%.17g", value);
    }
}

static void assert_refused(const option_def *def, bool by_env, const char *text) {
    ls_options options;
    ls_error err = {0};
    char name[80];
    if (by_env) {
        variable_of(def, name);
        setenv(name, text, 1);
        assert_int_equal(options_init(&options, &err), LS_EINVAL);
        unsetenv(name);
    } else {
        snprintf(name, sizeof name, "--%s", def->name);
        assert_int_equal(options_init(&options, &err), LS_OK);
        option_value before = options.value[def->id];
        assert_int_equal(options_set(&options, def->id, text, &err), LS_EINVAL);
        assert_memory_equal(&before, &options.value[def->id], sizeof before);
    }
    options_deinit(&options);
    if (memcmp(err.text, name, strlen(name)) != 0 || strstr(err.text, text) == NULL) {
        fail_msg("'%s' does not name %s and %s", err.text, name, text);
    }
    if (def->type == OPTION_CHOICE) {
        assert_non_null(strstr(err.text, def->choices));
    }
}

static void limits_hold_for_flags_and_variables(void **state) {
    (void)state;
    FOR_EACH(def) {
        if (!is_number(def) || def->id == OPT_SEED) { /* a seed has all of 64 bits: there is nothing outside */
            continue;
        }
        double step = def->type == OPTION_INT ? 1 : (def->max - def->min) * 1e-9;
        const double inside[] = {def->min, def->max}, outside[] = {def->min - step, def->max + step};
        char text[64], variable[64];
        for (int i = 0; i < 2; i++) {
            ls_options options;
            ls_error err = {0};
            variable_of(def, variable);
            write_number(def, inside[i], text);
            setenv(variable, text, 1);
            assert_int_equal(options_init(&options, &err), LS_OK);
            unsetenv(variable);
            assert_true(options.value[def->id].set && options.value[def->id].real == inside[i]);
            options_deinit(&options);
            assert_int_equal(options_init(&options, &err), LS_OK);
            assert_int_equal(options_set(&options, def->id, text, &err), LS_OK);
            assert_true(options.value[def->id].real == inside[i]);
            assert_true(def->type == OPTION_REAL || options.value[def->id].integer == (int64_t)inside[i]);
            options_deinit(&options);
            write_number(def, outside[i], text);
            assert_refused(def, false, text);
            assert_refused(def, true, text);
        }
    }
}

/* Exactly, though a double has 53 bits. */
static void seeds_have_all_bits(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t value;
    } good[] = {{"-1", -1},
                {"9007199254740993", 9007199254740993},
                {"9223372036854775807", INT64_MAX},
                {"-9223372036854775808", INT64_MIN},
                {"-2k", -2000}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        ls_options options;
        assert_int_equal(options_init(&options, NULL), LS_OK);
        assert_int_equal(options_set(&options, OPT_SEED, good[i].text, NULL), LS_OK);
        assert_true(options.value[OPT_SEED].integer == good[i].value);
        options_deinit(&options);
    }
    assert_refused(&option_table[OPT_SEED], false, "9223372036854775808");
    assert_refused(&option_table[OPT_SEED], false, "-9223372036854775809");
    assert_refused(&option_table[OPT_SEED], false, "9223372036854775807k");
}

static void what_is_no_number_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",      "x",    "1x", "1 ", "--", "0x10", "1,5", "1KK", "1kB", "nan", "inf", "-inf", "99999999999999999999999",
        "1e999", "1.5.2"};
    FOR_EACH(def) {
        for (size_t i = 0; is_number(def) && i < sizeof bad / sizeof *bad; i++) {
            if (def->type == OPTION_REAL && strcmp(bad[i], "0x10") == 0) {
                continue; /* strtod reads it; no option minds */
            }
            assert_refused(def, false, bad[i]);
            assert_refused(def, true, bad[i]);
        }
    }
    assert_refused(&option_table[OPT_MAX_TOKENS], false, "1.5");
    assert_refused(&option_table[OPT_TEMPERATURE], false, "1K");
}

static void suffixes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t value;
    } good[] = {{"3", 3},        {"3k", 3000},     {"3K", 3072},       {"3Ki", 3072},
                {"3M", 3000000}, {"3Mi", 3145728}, {"3G", 3000000000}, {"3Gi", 3221225472},
                {"+7", 7},       {"007", 7},       {"4096", 4096},     {"900000G", 900000000000000}};
    ls_options options;
    ls_error err = {0};
    assert_int_equal(options_init(&options, &err), LS_OK);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(options_set(&options, OPT_KV_CACHE_MEMORY_BYTES, good[i].text, &err), LS_OK);
        assert_int_equal(options.value[OPT_KV_CACHE_MEMORY_BYTES].integer, good[i].value);
    }
    assert_int_equal(options_set(&options, OPT_KV_CACHE_MEMORY_BYTES, "1000001G", &err),
                     LS_EINVAL); /* by the product */
    assert_int_equal(options_set(&options, OPT_SEED, "8999999999999999", &err), LS_OK);
    assert_int_equal(options.value[OPT_SEED].integer, 8999999999999999);
    options_deinit(&options);
}

static void choices(void **state) {
    (void)state;
    FOR_EACH(def) {
        if (def->type != OPTION_CHOICE) {
            continue;
        }
        char words[128], *rest = words;
        snprintf(words, sizeof words, "%s", def->choices);
        int n = 0;
        for (char *word; (word = strsep(&rest, "|")) != NULL; n++) {
            ls_options options;
            ls_error err = {0};
            assert_int_equal(options_init(&options, &err), LS_OK);
            assert_int_equal(options_set(&options, def->id, word, &err), LS_OK);
            assert_string_equal(options.value[def->id].text, word);
            options_deinit(&options);
            char longer[64], shorter[64];
            snprintf(longer, sizeof longer, "%sx", word);
            snprintf(shorter, sizeof shorter, "%.*s", (int)strlen(word) - 1, word);
            assert_refused(def, false, longer);
            assert_refused(def, true, shorter);
        }
        assert_true(n >= 2);
        assert_refused(def, false, "");
        assert_refused(def, false, "|");
        assert_refused(def, false, def->choices); /* all of them at once are none of them */
        snprintf(words, sizeof words, "%.*s", (int)strcspn(def->choices, "|") + 1, def->choices);
        assert_refused(def, false, words);
    }
}

static void texts_flags_and_lists(void **state) {
    (void)state;
    ls_options options;
    ls_error err = {0};
    assert_int_equal(options_init(&options, &err), LS_OK);
    FOR_EACH(def) {
        if (def->type == OPTION_FLAG) {
            assert_int_equal(options.value[def->id].integer, 0);
            assert_int_equal(options_set(&options, def->id, NULL, &err), LS_OK); /* as on the command line */
            assert_int_equal(options.value[def->id].integer, 1);
        } else if (def->type == OPTION_TEXT) {
            assert_int_equal(options_set(&options, def->id, "one", &err), LS_OK);
            assert_int_equal(options_set(&options, def->id, "two", &err), LS_OK);
            assert_string_equal(options.value[def->id].text, "two");
        } else if (def->type == OPTION_LIST) {
            static const char *const items[] = {"one", "", "one", "three"};
            for (size_t i = 0; i < 4; i++) {
                assert_int_equal(options_set(&options, def->id, items[i], &err), LS_OK);
                assert_int_equal(options.n_list[def->id], i + 1);
            }
            for (size_t i = 0; i < 4; i++) {
                assert_string_equal(options.list[def->id][i], items[i]);
            }
        }
    }
    options_deinit(&options);
    assert_int_equal(options.n_list[OPT_PROMPT], 0);
}

static void flags_by_variable(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool on;
    } forms[] = {{"1", true}, {"0", false}};
    FOR_EACH(def) {
        for (size_t i = 0; def->type == OPTION_FLAG && i < 2; i++) {
            ls_options options;
            ls_error err = {0};
            char variable[64];
            variable_of(def, variable);
            setenv(variable, forms[i].text, 1);
            assert_int_equal(options_init(&options, &err), LS_OK);
            unsetenv(variable);
            assert_int_equal(options.value[def->id].integer != 0, forms[i].on);
            options_deinit(&options);
        }
        static const char *const unclear[] = {"", "no", "false", "yes", "2"};
        for (size_t i = 0; def->type == OPTION_FLAG && i < 5; i++) {
            assert_refused(def, true, unclear[i]);
        }
    }
}

/* The command line replaces what the environment said, lists too. */
static void the_command_line_wins(void **state) {
    (void)state;
    ls_options options;
    ls_error err = {0};
    setenv("LOCKSTEP_TOP_K", "5", 1);
    setenv("LOCKSTEP_PROMPT", "from the environment", 1);
    assert_int_equal(options_init(&options, &err), LS_OK);
    assert_int_equal(options.value[OPT_TOP_K].integer, 5);
    assert_int_equal(options.n_list[OPT_PROMPT], 1);
    assert_string_equal(options.list[OPT_PROMPT][0], "from the environment");
    assert_int_equal(options_set(&options, OPT_TOP_K, "6", &err), LS_OK);
    assert_int_equal(options.value[OPT_TOP_K].integer, 6);
    assert_int_equal(options_set(&options, OPT_PROMPT, "from", &err), LS_OK);
    assert_int_equal(options_set(&options, OPT_PROMPT, "flags", &err), LS_OK);
    unsetenv("LOCKSTEP_TOP_K");
    unsetenv("LOCKSTEP_PROMPT");
    assert_int_equal(options.n_list[OPT_PROMPT], 2);
    assert_string_equal(options.list[OPT_PROMPT][0], "from");
    options_deinit(&options);
}

/* What --cache-folder, XDG_CACHE_HOME and HOME say together. */
static void cache_folders(void **state) {
    (void)state;
    static const struct {
        const char *flag, *xdg, *home, *folder;
    } cases[] = {{NULL, "/x", "/h", "/x/lockstep"},
                 {NULL, NULL, "/h", "/h/.cache/lockstep"},
                 {NULL, "", "/h", "/h/.cache/lockstep"},
                 {NULL, "rel", "/h", "/h/.cache/lockstep"},
                 {NULL, NULL, NULL, NULL},
                 {NULL, NULL, "rel", NULL},
                 {"", "/x", "/h", NULL},
                 {"mine", "/x", "/h", "mine"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ls_options options;
        char scratch[64], tiny[8];
        cases[i].xdg != NULL ? setenv("XDG_CACHE_HOME", cases[i].xdg, 1) : unsetenv("XDG_CACHE_HOME");
        cases[i].home != NULL ? setenv("HOME", cases[i].home, 1) : unsetenv("HOME");
        assert_int_equal(options_init(&options, NULL), LS_OK);
        if (cases[i].flag != NULL) {
            assert_int_equal(options_set(&options, OPT_CACHE_FOLDER, cases[i].flag, NULL), LS_OK);
        }
        const char *folder = options_cache_folder(&options, scratch, sizeof scratch);
        assert_int_equal(folder == NULL, cases[i].folder == NULL);
        if (folder != NULL) {
            assert_string_equal(folder, cases[i].folder);
            assert_true(cases[i].flag != NULL || options_cache_folder(&options, tiny, sizeof tiny) == NULL);
        }
        options_deinit(&options);
    }
}

/* The variables of huggingface_hub: each line sets some and says what comes of them. */
static void hub_variables(void **state) {
    (void)state;
    static const char *const all[] = {"HF_HUB_CACHE",
                                      "HUGGINGFACE_HUB_CACHE",
                                      "HF_HOME",
                                      "XDG_CACHE_HOME",
                                      "HOME",
                                      "HF_TOKEN",
                                      "HF_TOKEN_PATH",
                                      "HUGGING_FACE_HUB_TOKEN",
                                      "HF_ENDPOINT",
                                      "HF_HUB_OFFLINE",
                                      "TRANSFORMERS_OFFLINE",
                                      "HF_HUB_DISABLE_IMPLICIT_TOKEN",
                                      "SSL_CERT_FILE"};
    static const struct {
        const char *set[8];
        const char *folder, *token;
        bool offline;
    } cases[] = {
        {{"HOME=/h"}, "/h/.cache/huggingface/hub", NULL, false},
        {{"HOME=/h", "XDG_CACHE_HOME=/x"}, "/x/huggingface/hub", NULL, false},
        {{"HOME=/h", "XDG_CACHE_HOME=/x", "HF_HOME=/f"}, "/f/hub", NULL, false},
        {{"HOME=/h", "HF_HOME=~/f"}, "/h/f/hub", NULL, false},
        {{"HOME=/h", "HF_HOME=/f", "HF_HUB_CACHE=/c"}, "/c", NULL, false},
        {{"HOME=/h", "HF_HUB_CACHE=~/c"}, "/h/c", NULL, false},
        {{"HUGGINGFACE_HUB_CACHE=/old"}, "/old", NULL, false},
        {{"HOME=/h", "HF_HUB_CACHE=", "HF_HUB_OFFLINE=1"}, "/h/.cache/huggingface/hub", NULL, true},
        {{"HOME=/h", "HF_HUB_OFFLINE=0"}, "/h/.cache/huggingface/hub", NULL, false},
        {{"HOME=/h", "TRANSFORMERS_OFFLINE=True"}, "/h/.cache/huggingface/hub", NULL, true},
        {{"HOME=/h", "HF_TOKEN= hf_a\n"}, "/h/.cache/huggingface/hub", "hf_a", false},
        {{"HOME=/h", "HUGGING_FACE_HUB_TOKEN=hf_b"}, "/h/.cache/huggingface/hub", "hf_b", false},
        {{"HOME=/h", "HF_TOKEN=hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN=1"}, "/h/.cache/huggingface/hub", NULL, false},
        {{"HOME=/h", "HF_TOKEN_PATH=@/token"}, "/h/.cache/huggingface/hub", "hf_file", false},
        {{"HF_HOME=@"}, "@/hub", "hf_file", false},
        {{"HF_HOME=@", "HF_TOKEN=hf_a"}, "@/hub", "hf_a", false},
        {{"HOME=/h", "HF_TOKEN_PATH=@/none"}, "/h/.cache/huggingface/hub", NULL, false},
    };
    char folder[] = "/tmp/lockstep-token-XXXXXX", path[64], value[256];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/token", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs("hf_file\n", file) >= 0 && fclose(file) == 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ls_hub_params params = LS_HUB_PARAMS_INIT;
        options_hub_text text;
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) {
            unsetenv(all[j]);
        }
        for (size_t j = 0; j < 8 && cases[i].set[j] != NULL; j++) {
            const char *equals = strchr(cases[i].set[j], '='), *at = strchr(equals, '@');
            char name[64];
            snprintf(name, sizeof name, "%.*s", (int)(equals - cases[i].set[j]), cases[i].set[j]);
            snprintf(value, sizeof value, "%s%s", at != NULL ? folder : "", at != NULL ? at + 1 : equals + 1);
            setenv(name, value, 1);
        }
        assert_int_equal(options_hub(&params, &text, NULL), LS_OK);
        const char *expected = cases[i].folder;
        snprintf(value, sizeof value, "%s%s", *expected == '@' ? folder : "", expected + (*expected == '@'));
        assert_string_equal(params.cache_folder, value);
        assert_int_equal(params.offline, cases[i].offline);
        assert_int_equal(params.token == NULL, cases[i].token == NULL);
        if (params.token != NULL) {
            assert_string_equal(params.token, cases[i].token);
        }
        assert_null(params.endpoint);
        assert_null(params.ca_file);
    }
    ls_hub_params params = LS_HUB_PARAMS_INIT;
    options_hub_text text;
    ls_error err = {0};
    unlink(path);
    rmdir(folder);
    setenv("HF_ENDPOINT", "https://mirror.example", 1);
    setenv("SSL_CERT_FILE", "/ca.pem", 1);
    assert_int_equal(options_hub(&params, &text, &err), LS_OK);
    assert_string_equal(params.endpoint, "https://mirror.example");
    assert_string_equal(params.ca_file, "/ca.pem");
    unsetenv("HOME");
    assert_int_equal(options_hub(&params, &text, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "HF_HUB_CACHE"));
}

/* ---- Launchers ---- */

static const char *const launch_names[] = {
    "RANK",        "WORLD_SIZE",   "OMPI_COMM_WORLD_RANK",       "PMI_RANK",      "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",    "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",       "SLURM_NTASKS",  "MASTER_ADDR",
    "MASTER_PORT", "LOCAL_RANK",   "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID"};

/* text: "NAME=value NAME=value". */
static ls_status read_launch(const char *text, options_launch *out, ls_error *err) {
    char copy[256], *next = copy;
    for (size_t i = 0; i < sizeof launch_names / sizeof *launch_names; i++) {
        unsetenv(launch_names[i]);
    }
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strsep(&next, " "); word != NULL; word = strsep(&next, " ")) {
        char *value = strchr(word, '=');
        if (value != NULL) {
            *value = '\0';
            setenv(word, value + 1, 1);
        }
    }
    *err = (ls_error){0};
    ls_status st = options_launch_read(out, err);
    for (size_t i = 0; i < sizeof launch_names / sizeof *launch_names; i++) {
        unsetenv(launch_names[i]);
    }
    return st;
}

static void launchers_are_understood(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int process, n_processes;
        const char *address;
        int local;
    } good[] = {
        {"", 0, 1, "", 0},
        {"RANK=1", 0, 1, "", 0},
        {"MASTER_ADDR=a MASTER_PORT=1", 0, 1, "", 0},
        {"RANK=0 WORLD_SIZE=1", 0, 1, "", 0},
        {"RANK=3 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=29500", 3, 4, "a:29500", 0},
        {"RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=29500", 3, 4, "a:29500", 1},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", 1, 2, "", 0},
        {"OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1", 5, 8, "", 1},
        {"SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=2", 5, 8, "", 2},
        {"PMI_RANK=1 PMI_SIZE=8 MPI_LOCALRANKID=1", 1, 8, "", 1},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=7", 1, 2, "a:7", 0},
        {"PMI_RANK=1 PMI_SIZE=8", 1, 8, "", 0},
        {"SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8", 5, 8, "", 0},
        {"SLURM_PROCID=0 SLURM_NTASKS=8", 0, 1, "", 0}, /* a batch script is alone */
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4", 1, 2, "a:1", 0},
    };
    static const char *const bad[] = {"RANK=0 WORLD_SIZE=2", "RANK=x WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1",
                                      "PMI_RANK=-1 PMI_SIZE=2", "PMI_RANK=0 PMI_SIZE=2x",
                                      "RANK=0 WORLD_SIZE=9999999999 MASTER_ADDR=a MASTER_PORT=1"};
    options_launch launch;
    ls_error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(read_launch(good[i].text, &launch, &err), LS_OK);
        assert_int_equal(launch.process, good[i].process);
        assert_int_equal(launch.n_processes, good[i].n_processes);
        assert_string_equal(launch.address, good[i].address);
        assert_int_equal(launch.local, good[i].local);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_launch(bad[i], &launch, &err), LS_EINVAL);
        assert_non_null(strstr(err.text, "--hosts off"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_well_formed),
        cmocka_unit_test(cache_folders),
        cmocka_unit_test(hub_variables),
        cmocka_unit_test(defaults),
        cmocka_unit_test(limits_hold_for_flags_and_variables),
        cmocka_unit_test(seeds_have_all_bits),
        cmocka_unit_test(what_is_no_number_is_refused),
        cmocka_unit_test(suffixes),
        cmocka_unit_test(choices),
        cmocka_unit_test(texts_flags_and_lists),
        cmocka_unit_test(flags_by_variable),
        cmocka_unit_test(the_command_line_wins),
        cmocka_unit_test(launchers_are_understood),
    };
    return cmocka_run_group_tests(tests, clear_environment, NULL);
}
