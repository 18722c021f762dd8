/*
 * Writes what is made from the tables in src/base/options.c, the only source of commands and options:
 *
 *     make_docs lockstep.1 | lockstep | _lockstep | commands.md | options.md >FILE
 *
 * lockstep.1 is the man page, lockstep bash's completion, _lockstep zsh's. `make docs` writes the Markdown pages to docs/,
 * where they are committed; tests/e2e/test_docs.c fails when they are stale.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/options.h"

/* When the words of this file last changed; not the time of the build, so that equal sources give equal pages. */
#define MANUAL_DATE "2026-11-23"
#define MADE_BY "made by tools/make_docs.c from the tables in src/base/options.c"

typedef struct example {
    unsigned command;
    const char *line, *why;
} example;

/* Every option here must be one of its command: check_examples. */
static const example examples[] = {
    {COMMAND_GENERATE, "lockstep generate -m demo -p \"Once upon a time\" -n 100 --temp 0",
     "the built-in model tells a story, always the same"},
    {COMMAND_GENERATE, "lockstep generate -m ~/models/Qwen3-4B -p \"The capital of France is\" -tp 2",
     "a folder as Hugging Face writes it, on two ranks"},
    {COMMAND_GENERATE, "lockstep generate -m demo -p \"The cat\" -p \"A dragon\" --seed 7 --json",
     "two prompts as one batch, as JSON"},
    {COMMAND_GENERATE, "lockstep generate -m Qwen/Qwen3-4B --load-format dummy -p \"measure me\" --max-model-len 2048",
     "the speed of a model that is not here: its shapes with made-up weights"},
    {COMMAND_CHAT, "lockstep chat Qwen/Qwen3-4B --system \"Answer in one sentence.\"", "a conversation"},
    {COMMAND_SERVE, "lockstep serve Qwen/Qwen3-4B --port 8000", "an OpenAI-compatible server on this machine"},
    {COMMAND_BENCH, "lockstep bench serve --num-prompts 200 --request-rate 20 --goodput ttft:500,tpot:30",
     "the latency that clients of a running server see"},
    {COMMAND_BENCH, "lockstep bench latency -m Qwen/Qwen3-4B --load-format dummy --output-json latency.json",
     "prefill and decode of a model's shapes, kept for a report"},
    {COMMAND_BENCH, "lockstep bench sweep -m demo --vary dtype=f32,bf16 --vary quantization=none,w8a16 -f story.txt",
     "memory, speed and perplexity by type"},
    {COMMAND_REPORT, "lockstep report latency.json sweep.json --html report.html",
     "tables and plots of what was measured, in one page"},
    {COMMAND_TOKENIZE, "lockstep tokenize -m demo -p \"Hello, world\"", "ids, and the bytes that each stands for"},
    {COMMAND_TEMPLATE, "lockstep template -m demo --messages '[{\"role\": \"user\", \"content\": \"Hi\"}]'",
     "the prompt that a chat becomes"},
    {COMMAND_PLAN, "lockstep plan Qwen/Qwen3-32B --load-format dummy -tp 4 --device-memory 80G",
     "does it fit, and how much context is left?"},
    {COMMAND_PERPLEXITY, "lockstep perplexity demo -f story.txt", "how well the model predicts a text"},
    {COMMAND_VERIFY, "lockstep verify demo --against dtype=f32,cpu-isa=ref", "where two ways to compute it differ"},
    {COMMAND_PULL, "lockstep pull Qwen/Qwen3-0.6B", "download once; later starts read the local cache"},
    {COMMAND_DOCTOR, "lockstep doctor", "cores, memory and their measured speed"},
    {COMMAND_HELP, "lockstep help generate", "the options of a command"},
};
enum { N_EXAMPLES = sizeof examples / sizeof *examples };

typedef struct entry {
    const char *name, *text;
} entry;

static const entry variables[] = {
    {"LOCKSTEP_<OPTION>",
     "Any option: its long name in capitals with underscores; --top-k is LOCKSTEP_TOP_K. A flag on "
     "the command line wins. Options without a value take 0 or 1."},
    {"HF_HOME",
     "Folder of what is kept from the hub (default: $XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface)."},
    {"HF_HUB_CACHE",
     "Folder of downloaded models (default: $HF_HOME/hub). Its older name HUGGINGFACE_HUB_CACHE works too."},
    {"HF_HUB_OFFLINE", "1: use what is in the cache, never the network. TRANSFORMERS_OFFLINE=1 says the same."},
    {"HF_TOKEN",
     "Access token for models that ask for one (default: what the file HF_TOKEN_PATH holds). Its older name "
     "HUGGING_FACE_HUB_TOKEN works too."},
    {"HF_TOKEN_PATH",
     "File that holds the access token (default: $HF_HOME/token, where Hugging Face's login puts it)."},
    {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1: send no token."},
    {"HF_ENDPOINT", "Address of the hub (default: https://huggingface.co)."},
    {"SSL_CERT_FILE", "Certificates to trust instead of the system's."},
    {"XDG_CACHE_HOME", "Folder of caches: parsed tokenizers and the history of chat are kept in its folder lockstep "
                       "(default: ~/.cache)."},
    {"RANK, WORLD_SIZE",
     "Number of this process among those on several hosts, and how many they are, as torchrun sets "
     "them. Else Open MPI's OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE, PMI_RANK and PMI_SIZE, or "
     "srun's SLURM_PROCID and SLURM_STEP_NUM_TASKS. See --hosts."},
    {"MASTER_ADDR, MASTER_PORT",
     "Where the first of these processes is to be found by TCP; without them MPI finds it."},
    {"HOME", "The home folder that the defaults above begin with."},
    {"NO_COLOR", "Anything but empty: chat writes no colours on a terminal."},
    {"TERM", "Kind of terminal; chat writes no colours on one that is dumb."},
};

static const entry paths[] = {
    {"~/.cache/lockstep",
     "Parsed tokenizers, and the history of chat; may be deleted at any time. See --cache-folder."},
    {"~/.cache/huggingface/hub", "Models from the hub, as Hugging Face's own programs keep them."},
    {"../share/lockstep/demo", "The built-in model 'demo', seen from the folder of the program."},
};

static const entry exit_codes[] = {
    {"0", "All went well."},
    {"1", "It failed; standard error says why, in one sentence."},
    {"2", "The command line or a setting is wrong; the message names it."},
    {"3", "A rank, a host or a device failed while it ran; starting it again may help."},
    {"130", "Ctrl-C ended it."},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- What the formats share ---- */

/* What stands for a character in a format, or NULL: itself. */
typedef const char *(*escape_fn)(char c);

static void put_escaped(escape_fn escape, const char *text) {
    for (; *text != '\0'; text++) {
        const char *other = escape(*text);
        other != NULL ? fputs(other, stdout) : putchar(*text);
    }
}

static bool belongs(const option_def *option, const command_def *command) {
    return (option->commands & command->command) != 0;
}

/* The names of an option as they are typed, at most 3; `both`: long names with one dash as well, at most 5. */
static int names_of(const option_def *option, char out[5][64], bool both) {
    const char *names[] = {option->name, option->alias};
    int n = 0;
    if (option->key != 0) {
        snprintf(out[n++], 64, "-%c", option->key);
    }
    for (size_t i = 0; i < COUNT(names) && names[i] != NULL; i++) {
        snprintf(out[n++], 64, "%s%s", strlen(names[i]) > 2 ? "--" : "-", names[i]);
        if (both && strlen(names[i]) > 2) {
            snprintf(out[n++], 64, "-%s", names[i]);
        }
    }
    return n;
}

/* "generate, chat": the commands that an option belongs to. */
static void list_commands(const option_def *option, char *out, size_t out_bytes) {
    size_t n = 0;
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (belongs(option, &command_table[i]) && n < out_bytes) {
            n += (size_t)snprintf(out + n, out_bytes - n, "%s%s", n > 0 ? ", " : "", command_table[i].name);
        }
    }
}

static bool flag_is_of(const char *flag, size_t n, const command_def *command) {
    for (int id = 0; id < OPTION_COUNT; id++) {
        char names[5][64];
        int n_names = names_of(&option_table[id], names, false);
        for (int i = 0; i < n_names && belongs(&option_table[id], command); i++) {
            if (strlen(names[i]) == n && strncmp(names[i], flag, n) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* An example that the command would refuse is a mistake of ours: nothing is written then. */
static bool check_examples(void) {
    for (size_t i = 0; i < N_EXAMPLES; i++) {
        const command_def *command = command_table;
        while (command->command != examples[i].command) {
            command++;
        }
        char quote = '\0';
        const char *line = examples[i].line;
        for (const char *c = line; *c != '\0'; c++) {
            size_t n = strcspn(c, " =");
            if (quote != '\0' || *c == '"' || *c == '\'') {
                quote = quote == '\0' ? *c : (char)(*c == quote ? '\0' : quote);
            } else if (*c == '-' && c > line && c[-1] == ' ' && !flag_is_of(c, n, command)) {
                fprintf(stderr, "make_docs: example '%s': %s has no option %.*s\n", line, command->name, (int)n, c);
                return false;
            }
        }
    }
    return true;
}

/* ---- Man page: man(7) macros ---- */

static const char *escape_man(char c) {
    switch (c) {
    case '\\':
        return "\\e";
    case '-':
        return "\\-";
    case '\'':
        return "\\(aq";
    case '"':
        return "\\(dq";
    case '`':
        return "\\(ga";
    case '~':
        return "\\(ti";
    case '^':
        return "\\(ha";
    case '.':
        return "\\&."; /* a line may not begin with a bare dot */
    default:
        return NULL;
    }
}

/* Running text, in lines of at most 78 characters; empty lines part paragraphs. */
static void man_text(const char *text, const char *end) {
    size_t column = 0;
    while (*text != '\0') {
        if (*text == '\n') {
            printf("\n.PP\n");
            text += strspn(text, "\n");
            column = 0;
        }
        char word[128];
        int n = snprintf(word, sizeof word, "%.*s", (int)strcspn(text, " \n"), text);
        bool breaks = column > 0 && column + 2 * (size_t)n > 70; /* escapes may double a word */
        fputs(column == 0 ? "" : breaks ? "\n" : " ", stdout);
        put_escaped(escape_man, word);
        column = (breaks ? 0 : column) + (size_t)n + 1;
        text += strcspn(text, " \n");
        text += *text == ' ';
    }
    printf("%s\n", end);
}

static void man_entries(const char *title, const entry *entries, size_t n) {
    printf(".SH %s\n", title);
    for (size_t i = 0; i < n; i++) {
        printf(".TP\n.B ");
        put_escaped(escape_man, entries[i].name);
        putchar('\n');
        man_text(entries[i].text, "");
    }
}

static void man_option(const option_def *option) {
    char names[5][64];
    int n = names_of(option, names, false);
    printf(".TP\n");
    for (int i = 0; i < n; i++) {
        printf("%s\\fB", i > 0 ? ", " : "");
        put_escaped(escape_man, names[i]);
        printf("\\fR");
    }
    if (option->arg != NULL) {
        printf(" \\fI");
        put_escaped(escape_man, option->arg);
        printf("\\fR");
    }
    putchar('\n');
    man_text(option->help, ".");
    if (option->choices != NULL) {
        printf("One of");
        for (const char *c = option->choices; *c != '\0';) {
            size_t n_choice = strcspn(c, "|");
            printf(" \\fB%.*s\\fR%s", (int)n_choice, c, c[n_choice] != '\0' ? "," : ".\n");
            c += n_choice + (c[n_choice] != '\0');
        }
    }
    if (option->fallback != NULL) {
        printf("Default: ");
        put_escaped(escape_man, option->fallback);
        printf(".\n");
    }
    char commands[256];
    snprintf(commands, sizeof commands, "Commands: ");
    list_commands(option, commands + strlen(commands), sizeof commands - strlen(commands));
    man_text(commands, ".");
}

static void man_command(const command_def *command) {
    printf(".SS %s\n.B lockstep %s\n", command->name, command->name);
    if (command->command != COMMAND_HELP) {
        printf(".RI [ option \" ...]\"\n");
    }
    if (command->word != NULL) {
        printf(".RI [ %s ]\n", command->word);
    }
    printf(".PP\n%c%s.\n", toupper((unsigned char)command->summary[0]), command->summary + 1);
    if (command->text != NULL) {
        printf(".PP\n");
        man_text(command->text, "");
    }
}

static void write_man(void) {
    printf(".\\\" %s\n.TH LOCKSTEP 1 " MANUAL_DATE " \"lockstep " LS_VERSION "\"\n", MADE_BY);
    printf(".SH NAME\nlockstep \\- tensor\\-parallel inference for open\\-weight language models\n"
           ".SH SYNOPSIS\n.B lockstep\n.I command\n.RI [ option \" ...]\"\n.br\n.B lockstep \\-\\-version\n"
           ".SH DESCRIPTION\n");
    man_text(
        "lockstep runs a language model as one program on 1, 2, 4 or 8 ranks that each hold a share of every layer. "
        "It compiles nothing when it starts, plans every byte of memory before it loads, and gives the same bits at "
        "any number of ranks. In this version the ranks are teams of CPU threads.",
        "\n.PP");
    man_text("An option's value follows it as the next word or behind an equals sign. Long names also work with one "
             "dash. Integers take the suffixes k, M, G (powers of 1000) and K, Ki, Mi, Gi (powers of 1024).",
             "\n.SH COMMANDS");
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        man_command(&command_table[i]);
    }
    printf(".SH OPTIONS\n");
    for (int group = 0; group < GROUP_COUNT; group++) {
        printf(".SS %s\n", option_group_name((option_group)group));
        for (int id = 0; id < OPTION_COUNT; id++) {
            if ((int)option_table[id].group == group) {
                man_option(&option_table[id]);
            }
        }
    }
    man_entries("ENVIRONMENT", variables, COUNT(variables));
    man_entries("FILES", paths, COUNT(paths));
    man_entries("EXIT STATUS", exit_codes, COUNT(exit_codes));
    printf(".SH EXAMPLES\n");
    for (size_t i = 0; i < N_EXAMPLES; i++) {
        printf(".TP\n.B ");
        put_escaped(escape_man, examples[i].line);
        printf("\n%c%s%s\n", toupper((unsigned char)examples[i].why[0]), examples[i].why + 1,
               examples[i].why[strlen(examples[i].why) - 1] == '?' ? "" : ".");
    }
}

/* ---- Completions ---- */

static const char *escape_shell(char c) {
    return c == '\'' ? "'\\''" : NULL; /* inside single quotes */
}

static void put_command_names(void) {
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        printf("%s%s", i > 0 ? " " : "", command_table[i].name);
    }
}

static void put_choices(const char *choices) {
    for (; *choices != '\0'; choices++) {
        putchar(*choices == '|' ? ' ' : *choices);
    }
}

/* What a value is, from what help calls it. */
typedef enum value_kind { VALUE_NONE, VALUE_OTHER, VALUE_CHOICE, VALUE_FILE, VALUE_FOLDER, VALUE_MODEL } value_kind;

static value_kind value_of(const option_def *option) {
    static const struct {
        const char *arg;
        value_kind kind;
    } known[] = {{"FILE", VALUE_FILE}, {"FOLDER", VALUE_FOLDER}, {"MODEL", VALUE_MODEL}};
    if (option->arg == NULL || option->choices != NULL) {
        return option->arg == NULL ? VALUE_NONE : VALUE_CHOICE;
    }
    for (size_t i = 0; i < COUNT(known); i++) {
        if (strcmp(option->arg, known[i].arg) == 0) {
            return known[i].kind;
        }
    }
    return VALUE_OTHER;
}

static void bash_values(const option_def *option) {
    value_kind kind = value_of(option);
    char names[5][64];
    int n = names_of(option, names, true);
    if (kind == VALUE_NONE) {
        return;
    }
    printf("    ");
    for (int i = 0; i < n; i++) {
        printf("%s%s", i > 0 ? " | " : "", names[i]);
    }
    printf(")\n        ");
    if (kind == VALUE_CHOICE) {
        printf("mapfile -t COMPREPLY < <(compgen -W '");
        put_choices(option->choices);
        printf("' -- \"$cur\")\n        ");
    } else if (kind != VALUE_OTHER) {
        printf("_lockstep_%s\n        ", kind == VALUE_FILE ? "paths -f" : kind == VALUE_FOLDER ? "paths -d" : "model");
    }
    printf("return\n        ;;\n");
}

static void write_bash(void) {
    printf("# shellcheck shell=bash\n# bash completion of lockstep, %s\n\n", MADE_BY);
    printf("_lockstep_paths() {\n    compopt -o filenames 2>/dev/null\n"
           "    mapfile -t COMPREPLY < <(compgen \"$1\" -- \"$cur\")\n}\n\n"
           "_lockstep_model() {\n    compopt -o filenames 2>/dev/null\n"
           "    mapfile -t COMPREPLY < <(compgen -W demo -- \"$cur\"; compgen -d -- \"$cur\")\n}\n\n"
           "_lockstep() {\n    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} options=\n"
           "    COMPREPLY=()\n    # --option=value comes as three words.\n    if [[ $cur == = ]]; then\n        cur=\n"
           "    elif [[ $prev == = ]]; then\n        prev=${COMP_WORDS[COMP_CWORD - 2]}\n    fi\n"
           "    if ((COMP_CWORD == 1)); then\n        mapfile -t COMPREPLY < <(compgen -W '");
    put_command_names();
    printf(" --help --version' -- \"$cur\")\n        return\n    fi\n    case $prev in\n");
    for (int id = 0; id < OPTION_COUNT; id++) {
        bash_values(&option_table[id]);
    }
    printf("    esac\n    case ${COMP_WORDS[1]} in\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        const command_def *command = &command_table[i];
        printf("    %s)\n        options='--help", command->name);
        for (int id = 0; id < OPTION_COUNT; id++) {
            char names[5][64];
            int n = names_of(&option_table[id], names, false);
            for (int k = 0; k < n && belongs(&option_table[id], command); k++) {
                printf(" %s", names[k]);
            }
        }
        printf("'\n");
        if (command->command == COMMAND_HELP) {
            printf("        [[ $cur != -* ]] && options='");
            put_command_names();
            printf("'\n");
        } else if (command->word != NULL) {
            printf("        if [[ $cur != -* ]]; then\n            _lockstep_model\n            return\n        fi\n");
        }
        printf("        ;;\n");
    }
    printf("    esac\n"
           "    mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$cur\")\n}\n\ncomplete -F _lockstep lockstep\n");
}

static const char *escape_zsh(char c) {
    switch (c) {
    case '\'':
        return "'\\''";
    case '[':
        return "\\[";
    case ']':
        return "\\]";
    case ':':
        return "\\:";
    case '\\':
        return "\\\\";
    default:
        return NULL;
    }
}

static void zsh_option(const option_def *option) {
    char names[5][64];
    int n = names_of(option, names, false);
    for (int i = 0; i < n; i++) {
        printf(" \\\n            '");
        if (option->type == OPTION_LIST) {
            putchar('*');
        } else if (n > 1) {
            for (int k = 0; k < n; k++) {
                printf("%s%s", k == 0 ? "(" : " ", names[k]);
            }
            putchar(')');
        }
        printf("%s%s[", names[i], option->arg != NULL && strncmp(names[i], "--", 2) == 0 ? "=" : "");
        put_escaped(escape_zsh, option->help);
        putchar(']');
        if (option->arg != NULL) {
            printf(":%s:", option->arg);
        }
        value_kind kind = value_of(option);
        if (kind == VALUE_CHOICE) {
            putchar('(');
            put_choices(option->choices);
            putchar(')');
        } else if (kind >= VALUE_FILE) {
            printf("%s", kind == VALUE_FILE ? "_files" : kind == VALUE_FOLDER ? "_directories" : "_lockstep_model");
        }
        putchar('\'');
    }
}

static void write_zsh(void) {
    printf("#compdef lockstep\n# zsh completion of lockstep, %s\n\n", MADE_BY);
    printf("_lockstep_model() {\n"
           "    _alternative 'names:built-in model:(demo)' 'folders:model folder:_directories'\n}\n\n"
           "_lockstep() {\n    local -a commands\n    commands=(\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        printf("        '%s:", command_table[i].name);
        put_escaped(escape_shell, command_table[i].summary);
        printf("'\n");
    }
    printf("    )\n    if ((CURRENT == 2)); then\n        _describe -t commands command commands\n"
           "        return\n    fi\n    shift words\n    ((CURRENT--))\n    case $words[1] in\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        const command_def *command = &command_table[i];
        printf("    %s)\n        _arguments '--help[List the options]'", command->name);
        for (int id = 0; id < OPTION_COUNT; id++) {
            if (belongs(&option_table[id], command)) {
                zsh_option(&option_table[id]);
            }
        }
        if (command->command == COMMAND_HELP) {
            printf(" \\\n            '1:%s:(", command->word);
            put_command_names();
            printf(")'");
        } else if (command->word != NULL) {
            printf(" \\\n            '1:%s:_lockstep_model'", command->word);
        }
        printf("\n        ;;\n");
    }
    printf("    esac\n}\n\n_lockstep \"$@\"\n");
}

/* ---- Markdown ---- */

static const char *escape_markdown(char c) {
    switch (c) {
    case '*':
        return "\\*";
    case '_':
        return "\\_";
    case '|':
        return "\\|";
    case '<':
        return "&lt;";
    default:
        return NULL;
    }
}

static void markdown_entries(const char *title, const entry *entries, size_t n) {
    printf("\n## %s\n\n", title);
    for (size_t i = 0; i < n; i++) {
        printf("- `%s`: ", entries[i].name);
        put_escaped(escape_markdown, entries[i].text);
        putchar('\n');
    }
}

static void markdown_option(const option_def *option) {
    char names[5][64];
    int n = names_of(option, names, false);
    printf("| ");
    for (int i = 0; i < n; i++) {
        bool last = i + 1 == n;
        printf("`%s%s%s`%s", names[i], last && option->arg != NULL ? " " : "",
               last && option->arg != NULL ? option->arg : "", last ? "" : ", ");
    }
    printf(" | ");
    put_escaped(escape_markdown, option->help);
    printf(".");
    if (option->choices != NULL) {
        printf(" One of ");
        for (const char *c = option->choices; *c != '\0';) {
            size_t n_choice = strcspn(c, "|");
            printf("`%.*s`%s", (int)n_choice, c, c[n_choice] != '\0' ? ", " : ".");
            c += n_choice + (c[n_choice] != '\0');
        }
    }
    printf(" | %s%s%s | ", option->fallback != NULL ? "`" : "", option->fallback != NULL ? option->fallback : "",
           option->fallback != NULL ? "`" : "");
    char commands[256];
    list_commands(option, commands, sizeof commands);
    printf("%s |\n", commands);
}

static void write_options(void) {
    printf("<!-- %s: `make docs` -->\n# Options\n\n", MADE_BY);
    printf(
        "A value comes from the command line, else from the environment, else it is the default. It follows its option "
        "as the\nnext word or behind an equals sign. Long names also work with one dash: `-tp 2`. Integers take the "
        "suffixes k, M, G\n(powers of 1000) and K, Ki, Mi, Gi (powers of 1024).\n");
    for (int group = 0; group < GROUP_COUNT; group++) {
        printf("\n## %s\n\n| option | what it does | default | commands |\n|---|---|---|---|\n",
               option_group_name((option_group)group));
        for (int id = 0; id < OPTION_COUNT; id++) {
            if ((int)option_table[id].group == group) {
                markdown_option(&option_table[id]);
            }
        }
    }
    markdown_entries("Environment", variables, COUNT(variables));
}

/* The options of a command, a line for each group. */
static void markdown_options_of(const command_def *command) {
    int group = -1;
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *option = &option_table[id];
        if (belongs(option, command) && (int)option->group != group) {
            printf("\n- %s: `--%s`", option_group_name(option->group), option->name);
            group = (int)option->group;
        } else if (belongs(option, command)) {
            printf(", `--%s`", option->name);
        }
    }
    printf("%s", group < 0 ? "" : "\n");
}

static void write_commands(void) {
    printf("<!-- %s: `make docs` -->\n# Commands\n\n", MADE_BY);
    printf("`lockstep help COMMAND` prints a command's options; [options.md](options.md) describes them.\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        const command_def *command = &command_table[i];
        printf("\n## lockstep %s%s%s%s\n\n%c%s.\n", command->name, command->word != NULL ? " [" : "",
               command->word != NULL ? command->word : "", command->word != NULL ? "]" : "",
               toupper((unsigned char)command->summary[0]), command->summary + 1);
        if (command->text != NULL) {
            putchar('\n');
            put_escaped(escape_markdown, command->text);
            putchar('\n');
        }
        printf("\n```sh\n");
        for (size_t k = 0; k < N_EXAMPLES; k++) {
            if (examples[k].command == command->command) {
                printf("# %s\n%s\n", examples[k].why, examples[k].line);
            }
        }
        printf("```\n");
        markdown_options_of(command);
    }
    markdown_entries("Exit status", exit_codes, COUNT(exit_codes));
    markdown_entries("Files", paths, COUNT(paths));
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*write)(void);
    } pages[] = {{"lockstep.1", write_man},
                 {"lockstep", write_bash},
                 {"_lockstep", write_zsh},
                 {"commands.md", write_commands},
                 {"options.md", write_options}};
    for (size_t i = 0; i < COUNT(pages) && argc == 2; i++) {
        if (strcmp(argv[1], pages[i].name) == 0) {
            if (!check_examples()) {
                return EXIT_FAILURE;
            }
            pages[i].write();
            return fflush(stdout) == 0 && !ferror(stdout) ? EXIT_SUCCESS : EXIT_FAILURE;
        }
    }
    fprintf(stderr, "usage: make_docs lockstep.1 | lockstep | _lockstep | commands.md | options.md\n");
    return 2;
}
