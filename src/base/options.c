/* See options.h. */
#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Sets of commands: all that take a model, all that open an engine, those and the plan of one, all that draw tokens. */
#define COMMANDS_SAMPLE (COMMAND_GENERATE | COMMAND_CHAT)
#define COMMANDS_RUN (COMMANDS_SAMPLE | COMMAND_SERVE | COMMAND_PERPLEXITY | COMMAND_VERIFY | COMMAND_BENCH)
#define COMMANDS_PLAN (COMMANDS_RUN | COMMAND_PLAN)
#define COMMANDS_ALL (COMMANDS_PLAN | COMMAND_TOKENIZE | COMMAND_TEMPLATE | COMMAND_PULL | COMMAND_DOCTOR)

const command_def command_table[COMMAND_COUNT] = {
    {COMMAND_GENERATE, "generate", NULL, "continue one or more prompts",
     "Results go to standard output, the timeline to standard error. With --json all goes to standard output: an "
     "object "
     "for each answer (prompt, choice, text, tokens, prompt_tokens, finish_reason, stop_reason, logits_hash), then one "
     "with the timeline and the seed. Equal hashes mean that the logits behind every token had the same bits.\n\n"
     "On a terminal a bar on standard error shows how loading goes, and how prompts of 1024 tokens and more are read."},
    {COMMAND_CHAT, "chat", "MODEL", "talk with a model",
     "A message is a line; a backslash at its end continues it on the next. Ctrl-C stops an answer, Ctrl-D ends the "
     "conversation. /reset forgets the conversation, /save FILE writes it as JSON, /help lists the commands.\n\n"
     "Thinking (<think>...</think>) is dimmed, and left out of later turns by the model's chat template. When standard "
     "input is no terminal, each line of it is a message. On a terminal a bar shows how a long prompt is read."},
    {COMMAND_SERVE, "serve", "MODEL", "serve a model over HTTP, as OpenAI's API has it",
     "Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health, /metrics, "
     "/version; "
     "docs/server.md says what each takes. The address goes to standard error as soon as it listens; until the model "
     "is "
     "loaded, /health tells how far that is and requests are refused with 503.\n\n"
     "SIGTERM or Ctrl-C ends it: running requests are finished, new ones refused, for at most --shutdown-timeout "
     "seconds; "
     "Ctrl-C once more ends it at once. Exit code 0 if every answer was given, 1 if some were cut off, 3 if the "
     "engine "
     "failed (a supervisor should start it again)."},
    {COMMAND_BENCH, "bench", NULL, "measure models, this machine, or a server under load",
     "lockstep bench latency: prompts of --input-len tokens (pp26: one of 26) to their first token, --output-len "
     "tokens "
     "behind one of 26 (tg128), and 20 tokens in all, of the first run and of later ones.\n\n"
     "lockstep bench throughput: the same decode steps for each --batch-size, and requests of mixed lengths, in "
     "batches "
     "that wait for their longest (static) and continuously.\n\n"
     "lockstep bench sweep: decode steps for every combination of --batch-size, --input-len and what --vary names; "
     "with "
     "--prompt-file also the perplexity of its text.\n\n"
     "lockstep bench startup: processes from exec to the first token, stage by stage, with the model's files in the "
     "page "
     "cache and without.\n\n"
     "lockstep bench ops, limits, exchange: each op of a step; what memory, links and cores can do at best; what it "
     "takes "
     "ranks to add up a vector.\n\n"
     "A figure is the median of --repetitions, with the least and the most of them in brackets. What cannot run is "
     "listed with the reason. --output-json keeps all for lockstep report and for --compare, which marks what has "
     "become worse by more than both spreads and 1 %, and then exits with 1.\n\n"
     "lockstep bench serve sends completions to any server of OpenAI's API and measures what its clients see: TTFT, "
     "the time to "
     "the first token; TPOT, the mean time of each further token of an answer; ITL, the times between two pieces of a "
     "stream; "
     "E2E, the time of whole answers. Prompts are random token ids, or those of --dataset: a JSON object a line with "
     "prompt (a "
     "text or token ids), and optionally output_len and arrival (seconds since the beginning).\n\n"
     "Requests begin at once, or at random times with --request-rate, or as the file says; with --max-concurrency no "
     "more than "
     "so many run at a time. Exit code 1 if a request failed."},
    {COMMAND_REPORT, "report", "RESULTS...", "make pages of tables and plots from results of lockstep bench",
     "Reads what lockstep bench --output-json and bench/peers/run.py wrote, and nothing else: what was not measured is "
     "said to be missing, with the command that measures it. --html writes one page that needs no other file, "
     "--markdown the same tables as text; without either, the text goes to standard output. Plots are made by gnuplot "
     "where it is installed.\n\n"
     "Exit code 1 if a target was missed."},
    {COMMAND_TOKENIZE, "tokenize", NULL, "show the tokens of a text", NULL},
    {COMMAND_TEMPLATE, "template", NULL, "show what a chat template makes of messages", NULL},
    {COMMAND_PLAN, "plan", "MODEL", "show the memory of every rank before anything is loaded",
     "No weights are read: a folder with config.json is enough, or a name whose shapes are built in. --load-format "
     "safetensors checks the tensors as well.\n\n"
     "--device cuda plans for a GPU, which need not be there if --device-memory-bytes says how large it is: ranks' "
     "bytes "
     "are the GPU's, and pinned is memory of this machine that it copies from and to. What the driver takes besides is "
     "measured where there is the GPU, else assumed. Without --device, a GPU that is here is planned for, but with "
     "--device-memory-bytes ranks on the CPU.\n\n"
     "The budget of a rank is --gpu-memory-utilization times the device's total memory, minus what others use of it. "
     "With --device-memory-bytes every rank has a device of that size, and nobody else uses it. Without, the ranks "
     "share this machine: total is its memory (or its control group's, if that is less) divided by the ranks, and used "
     "by others is what is not available of it. GB are 10^9 bytes."},
    {COMMAND_PERPLEXITY, "perplexity", "MODEL", "measure how well a model predicts a text",
     "The text is turned into tokens as a whole, with what the tokenizer adds (a beginning-of-text token stands before "
     "the first one only), and cut into windows of --max-model-len tokens that do not overlap. Each window is "
     "predicted "
     "from its own tokens alone, its first token is not scored, and a last window of one token is left out. The result "
     "is "
     "the mean negative log-likelihood of the scored tokens (natural logarithm, double precision over f32 logits) and "
     "its "
     "exponential, the perplexity: what 'Perplexity of fixed-length models' in the documentation of transformers "
     "computes "
     "with a stride of the window's length."},
    {COMMAND_VERIFY, "verify", "MODEL", "compare two back ends or dtypes, op by op",
     "Two engines run the same tokens: a prompt of 40, then 4 of the reference's own choice; then four shorter prompts "
     "beside it as one step, and two steps with a token of each of the five. First every op alone, "
     "on the reference's inputs, so that errors do not pile up; then the first engine runs by itself. What every op "
     "of every layer writes on every rank is compared by max|a-b| / max|b| of a row, with the tolerance of the coarser "
     "format (f32 1e-5, f16 2e-3, bf16 2e-2, int8 5e-2); engines of the same formats must agree to the bit, whatever "
     "their ranks, threads and instruction sets. Exit code 1 if they differ by more.\n\n"
     "With --device cuda every step runs by the kernels that it has in use: prompts by those for any step, the others "
     "by those for decode steps, which are compared where they leave what the next one reads. The first difference is "
     "told with its op, layer, rank and kernels.\n\n"
     "Names in --against are those of the options under Engine: --against dtype=f32,tensor-parallel-size=1. Sizes of "
     "context, batch and KV cache are verify's own."},
    {COMMAND_PULL, "pull", "MODEL", "download a model from the hub into the local cache",
     "The model's folder goes to standard output, progress to standard error. What an interrupted download left is "
     "used; "
     "every file is verified by its hash. The cache is huggingface_hub's, and so are the variables: HF_HUB_CACHE or "
     "HF_HOME for its folder, HF_TOKEN for private and gated models, HF_ENDPOINT for a mirror, HF_HUB_OFFLINE=1 for "
     "no network."},
    {COMMAND_DOCTOR, "doctor", "MODEL", "show what this machine can do and whether it is well",
     "Memory bandwidth and multiply-adds are measured, which takes some seconds; what cannot be read is said to be "
     "unknown. Of each GPU: what it is, its driver and state (as nvidia-smi knows them), whether this build has "
     "kernels "
     "for it, and measured: reading its memory, copies from and to pinned memory, the time from kernel to kernel in a "
     "graph (and where the next one may begin early), and a bf16 matmul by cuBLASLt. Every check ends with ok, warning "
     "or problem, and says what to do. With a model: whether it opens and "
     "is complete, whether it fits into memory, and how fast it can be here. Exit code 1 if there is a problem."},
    {COMMAND_HELP, "help", "COMMAND", "show the manual of a command", NULL},
};

const char *option_group_name(option_group group) {
    static const char *const names[GROUP_COUNT] = {"Model",  "Input", "Sampling", "Engine",
                                                   "Server", "Load",  "Measure",  "Output"};
    return (unsigned)group < GROUP_COUNT ? names[group] : "unknown";
}

const option_def option_table[OPTION_COUNT] = {
    [OPT_MODEL] = {OPT_MODEL, COMMANDS_ALL, GROUP_MODEL, OPTION_TEXT, "model", NULL, 'm', "MODEL", NULL, 0, 0, NULL,
                   "Model: a folder with config.json, tokenizer.json and *.safetensors; a name on the hub, such as "
                   "Qwen/Qwen3-4B or Qwen/Qwen3-4B@REVISION; or the word 'demo' for the built-in one"},
    [OPT_REVISION] = {OPT_REVISION, COMMANDS_ALL, GROUP_MODEL, OPTION_TEXT, "revision", NULL, 0, "REV", NULL, 0, 0,
                      NULL, "Branch, tag or commit of a model on the hub (default: main)"},
    [OPT_LOAD_FORMAT] =
        {OPT_LOAD_FORMAT, COMMANDS_PLAN, GROUP_MODEL, OPTION_CHOICE, "load-format", NULL, 0, "FORMAT", "auto", 0, 0,
         "auto|safetensors|dummy",
         "auto and safetensors read the checkpoint; dummy makes up weights in the model's shapes and reads "
         "none: the shapes of known names, such as Qwen/Qwen3-4B, are built in"},
    [OPT_CACHE_FOLDER] = {OPT_CACHE_FOLDER, COMMANDS_RUN | COMMAND_TOKENIZE | COMMAND_TEMPLATE | COMMAND_DOCTOR,
                          GROUP_MODEL, OPTION_TEXT, "cache-folder", NULL, 0, "FOLDER", NULL, 0, 0, NULL,
                          "Where parsed tokenizers are kept for faster starts, empty for nowhere (default: "
                          "$XDG_CACHE_HOME/lockstep, else ~/.cache/lockstep)"},
    [OPT_PROMPT] = {OPT_PROMPT, COMMAND_GENERATE | COMMAND_TOKENIZE, GROUP_INPUT, OPTION_LIST, "prompt", NULL, 'p',
                    "TEXT", NULL, 0, 0, NULL,
                    "Prompt to continue, or text to tokenize; give it several times for a batch"},
    [OPT_PROMPT_FILE] = {OPT_PROMPT_FILE, COMMAND_GENERATE | COMMAND_PERPLEXITY | COMMAND_BENCH, GROUP_INPUT,
                         OPTION_LIST, "prompt-file", NULL, 'f', "FILE", NULL, 0, 0, NULL,
                         "File whose text is a prompt, - for standard input; give it several times for a batch"},
    [OPT_REPEAT_PROMPT] = {OPT_REPEAT_PROMPT, COMMAND_GENERATE, GROUP_INPUT, OPTION_INT, "repeat-prompt", NULL, 0, "N",
                           "1", 1, 65536, NULL, "Run every prompt N times at once, as N prompts: to measure batches"},
    [OPT_SYSTEM] = {OPT_SYSTEM, COMMAND_CHAT, GROUP_INPUT, OPTION_TEXT, "system", NULL, 0, "TEXT", NULL, 0, 0, NULL,
                    "System message that opens the conversation"},
    [OPT_MESSAGES] = {OPT_MESSAGES, COMMAND_TEMPLATE, GROUP_INPUT, OPTION_TEXT, "messages", NULL, 0, "JSON", NULL, 0, 0,
                      NULL, "The conversation: an array of messages, or @FILE that holds one"},
    [OPT_TOOLS] = {OPT_TOOLS, COMMAND_TEMPLATE, GROUP_INPUT, OPTION_TEXT, "tools", NULL, 0, "JSON", NULL, 0, 0, NULL,
                   "Tools the model may call: an array, or @FILE"},
    [OPT_CHAT_TEMPLATE_KWARGS] = {OPT_CHAT_TEMPLATE_KWARGS, COMMAND_TEMPLATE | COMMAND_CHAT | COMMAND_SERVE,
                                  GROUP_INPUT, OPTION_TEXT, "chat-template-kwargs", NULL, 0, "JSON", NULL, 0, 0, NULL,
                                  "What else the template may read: an object such as {\"enable_thinking\": false}"},
    [OPT_CHAT_TEMPLATE_NAME] = {OPT_CHAT_TEMPLATE_NAME, COMMAND_TEMPLATE | COMMAND_CHAT | COMMAND_SERVE, GROUP_INPUT,
                                OPTION_TEXT, "chat-template-name", NULL, 0, "NAME", NULL, 0, 0, NULL,
                                "Which of the model's named templates (default: as transformers chooses)"},
    [OPT_NO_GENERATION_PROMPT] = {OPT_NO_GENERATION_PROMPT, COMMAND_TEMPLATE, GROUP_INPUT, OPTION_FLAG,
                                  "no-generation-prompt", NULL, 0, NULL, NULL, 0, 0, NULL,
                                  "Leave out what opens the assistant's turn"},
    [OPT_NO_PARSE_SPECIAL] = {OPT_NO_PARSE_SPECIAL, COMMAND_TOKENIZE, GROUP_INPUT, OPTION_FLAG, "no-parse-special",
                              NULL, 0, NULL, NULL, 0, 0, NULL, "Special tokens written in the text are text"},
    [OPT_NO_ADD_SPECIAL] = {OPT_NO_ADD_SPECIAL, COMMAND_TOKENIZE, GROUP_INPUT, OPTION_FLAG, "no-add-special", NULL, 0,
                            NULL, NULL, 0, 0, NULL,
                            "Leave out what the tokenizer adds, such as a beginning-of-text token"},
    [OPT_MAX_TOKENS] =
        {OPT_MAX_TOKENS, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_INT, "max-tokens", "predict", 'n', "N", "128", 0,
         1 << 24, NULL,
         "Most tokens to generate for each prompt; a chat goes on to the end of the context unless this is given"},
    [OPT_MIN_TOKENS] = {OPT_MIN_TOKENS, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_INT, "min-tokens", NULL, 0, "N", "0", 0,
                        1 << 24, NULL,
                        "No end-of-text token, stop id or stop string ends an answer before it has N tokens"},
    [OPT_TEMPERATURE] = {OPT_TEMPERATURE, COMMANDS_SAMPLE | COMMAND_BENCH, GROUP_SAMPLING, OPTION_REAL, "temp",
                         "temperature", 0, "T", NULL, 0, 100, NULL,
                         "Sampling temperature, 0 for greedy (default: generation_config.json's, else 1)"},
    [OPT_TOP_K] = {OPT_TOP_K, COMMANDS_SAMPLE | COMMAND_BENCH, GROUP_SAMPLING, OPTION_INT, "top-k", NULL, 0, "K", NULL,
                   0, 1 << 30, NULL,
                   "Keep the K most likely tokens, 0 for all (default: generation_config.json's, else 0)"},
    [OPT_TOP_P] = {OPT_TOP_P, COMMANDS_SAMPLE | COMMAND_BENCH, GROUP_SAMPLING, OPTION_REAL, "top-p", NULL, 0, "P", NULL,
                   0, 1, NULL,
                   "Keep the most likely tokens that hold this share of what top-k left, 1 for all (default: "
                   "generation_config.json's, else 1)"},
    [OPT_MIN_P] = {OPT_MIN_P, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_REAL, "min-p", NULL, 0, "P", NULL, 0, 1, NULL,
                   "Drop tokens less likely than this share of the most likely one's probability, 0 for none (default: "
                   "generation_config.json's, else 0)"},
    [OPT_REPETITION_PENALTY] = {OPT_REPETITION_PENALTY, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_REAL,
                                "repetition-penalty", NULL, 0, "X", NULL, 0.01, 100, NULL,
                                "Divide positive logits of tokens in prompt and answer by X, multiply negative ones "
                                "(default: generation_config.json's, else 1)"},
    [OPT_PRESENCE_PENALTY] = {OPT_PRESENCE_PENALTY, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_REAL, "presence-penalty",
                              NULL, 0, "X", "0", -100, 100, NULL,
                              "Subtract X from the logits of tokens that are in the answer"},
    [OPT_FREQUENCY_PENALTY] = {OPT_FREQUENCY_PENALTY, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_REAL, "frequency-penalty",
                               NULL, 0, "X", "0", -100, 100, NULL,
                               "Subtract X from the logits of tokens in the answer for each time they are there"},
    [OPT_LOGIT_BIAS] = {OPT_LOGIT_BIAS, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_LIST, "logit-bias", NULL, 0, "ID=BIAS",
                        NULL, 0, 0, NULL,
                        "Add BIAS to the logit of token ID, -inf forbids it; several: give it several times"},
    [OPT_ALLOWED_TOKEN_IDS] = {OPT_ALLOWED_TOKEN_IDS, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_TEXT, "allowed-token-ids",
                               NULL, 0, "IDS", NULL, 0, 0, NULL,
                               "Draw only these tokens: ids with commas between them"},
    [OPT_BAD_WORDS] = {OPT_BAD_WORDS, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_LIST, "bad-words", NULL, 0, "TEXT", NULL,
                       0, 0, NULL, "Text that may not appear in the answer; several: give it several times"},
    [OPT_STOP] = {OPT_STOP, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_LIST, "stop", NULL, 0, "TEXT", NULL, 0, 0, NULL,
                  "End an answer before this text; several: give it several times"},
    [OPT_STOP_TOKEN_IDS] = {OPT_STOP_TOKEN_IDS, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_TEXT, "stop-token-ids", NULL, 0,
                            "IDS", NULL, 0, 0, NULL, "End an answer at these tokens: ids with commas between them"},
    [OPT_IGNORE_EOS] = {OPT_IGNORE_EOS, COMMANDS_SAMPLE, GROUP_SAMPLING, OPTION_FLAG, "ignore-eos", NULL, 0, NULL, NULL,
                        0, 0, NULL, "Go on after an end-of-text token"},
    [OPT_SEED] =
        {OPT_SEED, COMMANDS_SAMPLE | COMMAND_BENCH, GROUP_SAMPLING, OPTION_INT, "seed", NULL, 's', "N", NULL, -0x1p63,
         0x1p63, NULL,
         "Seed of sampling: the same seed gives the same text at any -tp and in any batch (default: random, printed)"},
    [OPT_NUM_RETURN_SEQUENCES] = {OPT_NUM_RETURN_SEQUENCES, COMMAND_GENERATE, GROUP_SAMPLING, OPTION_INT,
                                  "num-return-sequences", NULL, 0, "N", "1", 1, 4096, NULL,
                                  "Answers to each prompt, all from one seed"},
    [OPT_LOGPROBS] =
        {OPT_LOGPROBS, COMMAND_GENERATE, GROUP_SAMPLING, OPTION_INT, "logprobs", NULL, 0, "N", NULL, 0, 20, NULL,
         "With --json: log probability of each token of the answer, and the N most likely ones in its place"},
    [OPT_PROMPT_LOGPROBS] = {OPT_PROMPT_LOGPROBS, COMMAND_GENERATE, GROUP_SAMPLING, OPTION_INT, "prompt-logprobs", NULL,
                             0, "N", NULL, 0, 20, NULL, "With --json: the same for the tokens of the prompt"},
    [OPT_DEVICE] =
        {OPT_DEVICE, COMMANDS_PLAN, GROUP_ENGINE, OPTION_TEXT, "device", "devices", 0, "DEVICE", "auto", 0, 0, NULL,
         "What runs the model: cpu, cuda, cuda:N for one of several GPUs, or auto: a GPU if there is one that "
         "the model fits on, else the CPU. --devices 0,1 names a GPU for each rank; ranks may share one (0,0)"},
    [OPT_TENSOR_PARALLEL_SIZE] = {OPT_TENSOR_PARALLEL_SIZE, COMMANDS_PLAN, GROUP_ENGINE, OPTION_INT,
                                  "tensor-parallel-size", "tp", 0, "R", "1", 1, 8, NULL,
                                  "Ranks that share the model: 1, 2, 4 or 8"},
    [OPT_EXCHANGE] =
        {OPT_EXCHANGE, COMMANDS_PLAN, GROUP_ENGINE, OPTION_CHOICE, "exchange", NULL, 0, "HOW", "auto", 0, 0,
         "auto|fused|nccl|host",
         "How ranks on GPUs add up: fused, by stores to one another's memory; host, through the host's; nccl, by "
         "NCCL's library; auto takes fused where all GPUs can, else host, and NCCL between several hosts"},
    [OPT_THREADS] = {OPT_THREADS, COMMANDS_PLAN | COMMAND_DOCTOR, GROUP_ENGINE, OPTION_INT, "threads", NULL, 't', "N",
                     NULL, 1, 1024, NULL, "CPU threads of each rank (default: the cores divided by the ranks)"},
    [OPT_DTYPE] = {OPT_DTYPE, COMMANDS_PLAN, GROUP_ENGINE, OPTION_CHOICE, "dtype", NULL, 0, "TYPE", "auto", 0, 0,
                   "auto|f32|bf16|f16", "Type of weights and activations; auto is the checkpoint's"},
    [OPT_QUANTIZATION] =
        {OPT_QUANTIZATION, COMMANDS_PLAN, GROUP_ENGINE, OPTION_CHOICE, "quantization", NULL, 'q', "METHOD", "none", 0,
         0, "none|w8a16|w8a8",
         "Matrices as 8-bit integers with scales: w8a16 with activations of --dtype, w8a8 with 8-bit activations too"},
    [OPT_KV_CACHE_DTYPE] = {OPT_KV_CACHE_DTYPE, COMMANDS_PLAN, GROUP_ENGINE, OPTION_CHOICE, "kv-cache-dtype", NULL, 0,
                            "TYPE", "auto", 0, 0, "auto|f32|bf16|f16", "Type of the KV cache; auto is --dtype's"},
    [OPT_MAX_MODEL_LEN] = {OPT_MAX_MODEL_LEN, COMMANDS_PLAN, GROUP_ENGINE, OPTION_INT, "max-model-len", NULL, 0, "N",
                           NULL, 1, 1 << 24, NULL,
                           "Longest prompt plus answer in tokens (default: the model's, or what the KV cache holds)"},
    [OPT_MAX_NUM_SEQS] = {OPT_MAX_NUM_SEQS, COMMANDS_PLAN, GROUP_ENGINE, OPTION_INT, "max-num-seqs", NULL, 0, "N", "16",
                          1, 4096, NULL, "Most sequences that run at once; others wait"},
    [OPT_MAX_NUM_BATCHED_TOKENS] =
        {OPT_MAX_NUM_BATCHED_TOKENS, COMMANDS_PLAN, GROUP_ENGINE, OPTION_INT, "max-num-batched-tokens", NULL, 0, "N",
         NULL, 1, 1 << 20, NULL, "Most rows of one step: longer prompts run in chunks (default: 512, on a GPU 2048)"},
    [OPT_KV_CACHE_MEMORY_BYTES] =
        {OPT_KV_CACHE_MEMORY_BYTES, COMMANDS_PLAN, GROUP_ENGINE, OPTION_INT, "kv-cache-memory-bytes", NULL, 0, "BYTES",
         NULL, 1, 1e15, NULL,
         "Size of the KV cache, all ranks together (default: all sequences at full length, at most 4Gi)"},
    [OPT_GPU_MEMORY_UTILIZATION] = {OPT_GPU_MEMORY_UTILIZATION, COMMANDS_PLAN, GROUP_ENGINE, OPTION_REAL,
                                    "gpu-memory-utilization", NULL, 0, "SHARE", "0.9", 0.01, 1, NULL,
                                    "Share of a device's total memory that may be used, less what others use of it"},
    [OPT_DEVICE_MEMORY_BYTES] =
        {OPT_DEVICE_MEMORY_BYTES, COMMAND_PLAN, GROUP_ENGINE, OPTION_INT, "device-memory-bytes", "device-memory",
         0, "BYTES", NULL, 1, 1e15, NULL,
         "Memory of one device, such as 80G: say what fits (default: this machine's, divided by the ranks)"},
    [OPT_CPU_ISA] = {OPT_CPU_ISA, COMMANDS_RUN | COMMAND_DOCTOR, GROUP_ENGINE, OPTION_CHOICE, "cpu-isa", NULL, 0, "ISA",
                     "auto", 0, 0, "auto|ref|avx2|avx512",
                     "Instruction set of the CPU's kernels; auto is the best this machine has; all give the same bits"},
    [OPT_KERNELS] =
        {OPT_KERNELS, COMMANDS_RUN, GROUP_ENGINE, OPTION_CHOICE, "kernels", NULL, 0, "SET", "auto", 0, 0,
         "auto|generic",
         "Kernels of a GPU: auto takes those made for the chip; generic those for chips that are not known, "
         "which the driver compiles at start"},
    [OPT_PLAN] =
        {OPT_PLAN, COMMANDS_RUN, GROUP_ENGINE, OPTION_CHOICE, "plan", NULL, 0, "PLAN", "auto", 0, 0,
         "auto|graph|persistent",
         "How a GPU runs decode steps of up to 16 sequences: graph is a launch an op; persistent one launch a step, "
         "on chips from Hopper on, with GPUs that reach each other's memory; auto is graph, so far"},
    [OPT_GRAPH_SIZES] = {OPT_GRAPH_SIZES, COMMANDS_RUN, GROUP_ENGINE, OPTION_TEXT, "graph-sizes", NULL, 0, "SIZES",
                         "1,2,4,8,16,24,32,48,64,96,128,192,256", 0, 0, NULL,
                         "On a GPU, decode steps of up to so many rows are captured as graphs at the start: rising "
                         "numbers out of 1,2,4,8,16,24,32,48,64,96,128,192,256, or none"},
    [OPT_ASYNC_SCHEDULING] =
        {OPT_ASYNC_SCHEDULING, COMMANDS_RUN, GROUP_ENGINE, OPTION_CHOICE, "async-scheduling", NULL, 0, "MODE", "auto",
         0, 0, "auto|off",
         "On a GPU, auto starts the next decode step while the last one runs, from tokens that are still there; off "
         "waits for each step; both give the same text"},
    [OPT_NO_PREFIX_CACHING] = {OPT_NO_PREFIX_CACHING, COMMAND_SERVE, GROUP_ENGINE, OPTION_FLAG,
                               "no-enable-prefix-caching", NULL, 0, NULL, NULL, 0, 0, NULL,
                               "Compute every prompt anew, also the part that it has in common with earlier ones"},
    [OPT_AGAINST] = {OPT_AGAINST, COMMAND_VERIFY, GROUP_ENGINE, OPTION_TEXT, "against", NULL, 0, "SETTINGS",
                     "device=cpu,dtype=f32,cpu-isa=ref", 0, 0, NULL,
                     "The engine to compare with: options as name=value with commas between them; what is not named is "
                     "as given for the first"},
    [OPT_HOSTS] = {OPT_HOSTS, COMMANDS_SAMPLE | COMMAND_PERPLEXITY | COMMAND_SERVE | COMMAND_BENCH, GROUP_ENGINE,
                   OPTION_CHOICE, "hosts", NULL, 0, "MODE", "auto", 0, 0, "auto|off",
                   "auto: where mpirun, srun or torchrun started several processes, one on each host, the ranks are "
                   "spread over them; off: this process is alone"},
    [OPT_JOIN_TIMEOUT] = {OPT_JOIN_TIMEOUT, COMMANDS_SAMPLE | COMMAND_PERPLEXITY | COMMAND_BENCH, GROUP_ENGINE,
                          OPTION_REAL, "join-timeout", NULL, 0, "SECONDS", "60", 0.1, 86400, NULL,
                          "How long processes on several hosts wait for each other at the start"},
    [OPT_HOST_TIMEOUT] = {OPT_HOST_TIMEOUT, COMMANDS_SAMPLE | COMMAND_PERPLEXITY | COMMAND_BENCH, GROUP_ENGINE,
                          OPTION_REAL, "host-timeout", NULL, 0, "SECONDS", "5", 0.5, 86400, NULL,
                          "A host that gives no sign of life for so long is lost, and all end"},
    [OPT_HOST] = {OPT_HOST, COMMAND_SERVE, GROUP_SERVER, OPTION_TEXT, "host", NULL, 0, "ADDRESS", "127.0.0.1", 0, 0,
                  NULL, "Address to listen on; 0.0.0.0 or :: for all, which wants --api-key"},
    [OPT_PORT] = {OPT_PORT, COMMAND_SERVE, GROUP_SERVER, OPTION_INT, "port", NULL, 0, "PORT", "8000", 0, 65535, NULL,
                  "Port to listen on; 0 takes any that is free and tells it"},
    [OPT_SERVED_MODEL_NAME] = {OPT_SERVED_MODEL_NAME, COMMAND_SERVE, GROUP_SERVER, OPTION_LIST, "served-model-name",
                               NULL, 0, "NAME", NULL, 0, 0, NULL,
                               "What requests call the model; several times for several names, the first of which "
                               "answers carry (default: as --model has it)"},
    [OPT_API_KEY] = {OPT_API_KEY, COMMAND_SERVE | COMMAND_BENCH, GROUP_SERVER, OPTION_LIST, "api-key", NULL, 0, "KEY",
                     NULL, 0, 0, NULL,
                     "Key that requests must carry, on every path but /health; several times for several keys. In "
                     "LOCKSTEP_API_KEY other users of the machine do not see it"},
    [OPT_API_KEY_FILE] = {OPT_API_KEY_FILE, COMMAND_SERVE, GROUP_SERVER, OPTION_TEXT, "api-key-file", NULL, 0, "FILE",
                          NULL, 0, 0, NULL, "File with a key a line; # begins a comment"},
    [OPT_SSL_CERTFILE] = {OPT_SSL_CERTFILE, COMMAND_SERVE, GROUP_SERVER, OPTION_TEXT, "ssl-certfile", NULL, 0, "FILE",
                          NULL, 0, 0, NULL, "Certificate chain (PEM) for TLS"},
    [OPT_SSL_KEYFILE] = {OPT_SSL_KEYFILE, COMMAND_SERVE, GROUP_SERVER, OPTION_TEXT, "ssl-keyfile", NULL, 0, "FILE",
                         NULL, 0, 0, NULL, "Its private key (PEM)"},
    [OPT_ALLOWED_ORIGINS] =
        {OPT_ALLOWED_ORIGINS, COMMAND_SERVE, GROUP_SERVER, OPTION_LIST, "allowed-origins", NULL, 0, "ORIGIN", NULL, 0,
         0, NULL,
         "Origin whose pages a browser may let read answers, or * for all; several times for several "
         "(default: none)"},
    [OPT_MAX_NUM_QUEUED_REQS] = {OPT_MAX_NUM_QUEUED_REQS, COMMAND_SERVE, GROUP_SERVER, OPTION_INT,
                                 "max-num-queued-reqs", NULL, 0, "N", "1000", 0, 1000000, NULL,
                                 "Most requests that wait while --max-num-seqs run; more are refused with 429"},
    [OPT_MAX_CONNECTIONS] = {OPT_MAX_CONNECTIONS, COMMAND_SERVE, GROUP_SERVER, OPTION_INT, "max-connections", NULL, 0,
                             "N", "4096", 1, 1000000, NULL, "Most open connections; others wait until one closes"},
    [OPT_MAX_BODY_BYTES] = {OPT_MAX_BODY_BYTES, COMMAND_SERVE, GROUP_SERVER, OPTION_INT, "max-body-bytes", NULL, 0,
                            "BYTES", "4194304", 1024, 1 << 30, NULL, "Longest body of a request; longer ones get 413"},
    [OPT_HTTP_TIMEOUT] = {OPT_HTTP_TIMEOUT, COMMAND_SERVE, GROUP_SERVER, OPTION_INT, "http-timeout", NULL, 0, "SECONDS",
                          "60", 1, 86400, NULL,
                          "A connection on which nothing is read or written for so long is closed; answers may take "
                          "longer"},
    [OPT_SHUTDOWN_TIMEOUT] = {OPT_SHUTDOWN_TIMEOUT, COMMAND_SERVE, GROUP_SERVER, OPTION_INT, "shutdown-timeout", NULL,
                              0, "SECONDS", "30", 0, 86400, NULL, "How long running requests may take after SIGTERM"},
    [OPT_STALL_TIMEOUT] = {OPT_STALL_TIMEOUT, COMMAND_SERVE, GROUP_SERVER, OPTION_INT, "stall-timeout", NULL, 0,
                           "SECONDS", "30", 1, 86400, NULL,
                           "/health says stalled when work has waited for so long without a step"},
    [OPT_METRICS_PREFIX] = {OPT_METRICS_PREFIX, COMMAND_SERVE, GROUP_SERVER, OPTION_TEXT, "metrics-prefix", NULL, 0,
                            "PREFIX", "lockstep:", 0, 0, NULL,
                            "What names at /metrics begin with; vllm: for its dashboards"},
    [OPT_ACCESS_LOG] = {OPT_ACCESS_LOG, COMMAND_SERVE, GROUP_SERVER, OPTION_TEXT, "access-log", NULL, 0, "FILE", NULL,
                        0, 0, NULL,
                        "Where to write a JSON object for each request, - for standard output; without prompts"},
    [OPT_BASE_URL] = {OPT_BASE_URL, COMMAND_BENCH, GROUP_LOAD, OPTION_TEXT, "base-url", NULL, 0, "URL",
                      "http://127.0.0.1:8000", 0, 0, NULL, "The server to measure"},
    [OPT_ENDPOINT] = {OPT_ENDPOINT, COMMAND_BENCH, GROUP_LOAD, OPTION_TEXT, "endpoint", NULL, 0, "PATH",
                      "/v1/completions", 0, 0, NULL, "Where completions are asked for"},
    [OPT_NUM_PROMPTS] = {OPT_NUM_PROMPTS, COMMAND_BENCH, GROUP_LOAD, OPTION_INT, "num-prompts", NULL, 0, "N", "100", 1,
                         1e6, NULL, "Requests to send"},
    [OPT_REQUEST_RATE] = {OPT_REQUEST_RATE, COMMAND_BENCH, GROUP_LOAD, OPTION_REAL, "request-rate", NULL, 0, "R", NULL,
                          1e-3, 1e6, NULL, "Mean requests per second, at random times (default: all at once)"},
    [OPT_MAX_CONCURRENCY] = {OPT_MAX_CONCURRENCY, COMMAND_BENCH, GROUP_LOAD, OPTION_INT, "max-concurrency", NULL, 0,
                             "N", "256", 1, 10000, NULL, "Most requests at a time"},
    [OPT_RANDOM_INPUT_LEN] = {OPT_RANDOM_INPUT_LEN, COMMAND_BENCH, GROUP_LOAD, OPTION_INT, "random-input-len", NULL, 0,
                              "N", "256", 1, 1e7, NULL, "Tokens of a random prompt"},
    [OPT_RANDOM_OUTPUT_LEN] = {OPT_RANDOM_OUTPUT_LEN, COMMAND_BENCH, GROUP_LOAD, OPTION_INT, "random-output-len", NULL,
                               0, "N", "256", 1, 1e7, NULL, "Tokens to ask for"},
    [OPT_RANDOM_RANGE_RATIO] = {OPT_RANDOM_RANGE_RATIO, COMMAND_BENCH, GROUP_LOAD, OPTION_REAL, "random-range-ratio",
                                NULL, 0, "X", "0", 0, 0.99, NULL,
                                "Lengths are drawn from (1 - X) to (1 + X) times as long"},
    [OPT_DATASET] = {OPT_DATASET, COMMAND_BENCH, GROUP_LOAD, OPTION_TEXT, "dataset", "dataset-path", 0, "FILE", NULL, 0,
                     0, NULL,
                     "Prompts instead of random ones: JSON lines, see below; from the beginning again at its end"},
    [OPT_GOODPUT] = {OPT_GOODPUT, COMMAND_BENCH, GROUP_LOAD, OPTION_TEXT, "goodput", NULL, 0, "LIMITS", NULL, 0, 0,
                     NULL, "Count the requests that keep to these milliseconds, such as ttft:200,tpot:20,e2el:5000"},
    [OPT_INPUT_LEN] = {OPT_INPUT_LEN, COMMAND_BENCH, GROUP_MEASURE, OPTION_TEXT, "input-len", NULL, 0, "LIST", NULL, 0,
                       0, NULL,
                       "Tokens of the prompts, commas between them (default: latency 26,128,512,2048; else 26)"},
    [OPT_OUTPUT_LEN] = {OPT_OUTPUT_LEN, COMMAND_BENCH, GROUP_MEASURE, OPTION_INT, "output-len", NULL, 0, "N", "128", 2,
                        1e6, NULL, "Decode steps that are timed"},
    [OPT_BATCH_SIZE] =
        {OPT_BATCH_SIZE, COMMAND_BENCH, GROUP_MEASURE, OPTION_TEXT, "batch-size", NULL, 0, "LIST", NULL, 0, 0, NULL,
         "Sequences at a time, commas between them (default: throughput 1,2,4,8,16,32,64,128,256; else 1)"},
    [OPT_VARY] = {OPT_VARY, COMMAND_BENCH, GROUP_MEASURE, OPTION_LIST, "vary", NULL, 0, "NAME=VALUES", NULL, 0, 0, NULL,
                  "sweep: an option and the values it is to have, such as dtype=f32,bf16 or graph-sizes=default,none; "
                  "several: give it several times"},
    [OPT_EXCHANGE_SIZES] = {OPT_EXCHANGE_SIZES, COMMAND_BENCH, GROUP_MEASURE, OPTION_TEXT, "exchange-sizes", NULL, 0,
                            "LIST", "1Ki,4Ki,10Ki,16Ki,64Ki,256Ki,1Mi,4Mi,16Mi,64Mi", 0, 0, NULL,
                            "exchange: bytes of the vectors, commas between them"},
    [OPT_REPETITIONS] = {OPT_REPETITIONS, COMMAND_BENCH, GROUP_MEASURE, OPTION_INT, "repetitions", NULL, 'r', "N", "5",
                         1, 10000, NULL, "How often each figure is measured"},
    [OPT_COMPARE] = {OPT_COMPARE, COMMAND_BENCH, GROUP_MEASURE, OPTION_TEXT, "compare", NULL, 0, "FILE", NULL, 0, 0,
                     NULL, "Earlier results (--output-json): mark what has become worse"},
    [OPT_RESULTS] = {OPT_RESULTS, COMMAND_REPORT, GROUP_MEASURE, OPTION_LIST, "results", NULL, 0, "FILE", NULL, 0, 0,
                     NULL, "Results to read; the flag may be left out"},
    [OPT_OUTPUT] = {OPT_OUTPUT, COMMAND_BENCH, GROUP_OUTPUT, OPTION_CHOICE, "output", NULL, 'o', "FORM", "md", 0, 0,
                    "md|csv|json", "Form of the results on standard output"},
    [OPT_OUTPUT_JSON] = {OPT_OUTPUT_JSON, COMMAND_BENCH, GROUP_OUTPUT, OPTION_TEXT, "output-json", NULL, 0, "FILE",
                         NULL, 0, 0, NULL, "Also write the results to a file, as JSON"},
    [OPT_HTML] = {OPT_HTML, COMMAND_REPORT, GROUP_OUTPUT, OPTION_TEXT, "html", NULL, 0, "FILE", NULL, 0, 0, NULL,
                  "Where to write the page"},
    [OPT_MARKDOWN] = {OPT_MARKDOWN, COMMAND_REPORT, GROUP_OUTPUT, OPTION_TEXT, "markdown", NULL, 0, "FILE", NULL, 0, 0,
                      NULL, "Where to write the text, - for standard output"},
    [OPT_TIMELINE] = {OPT_TIMELINE, COMMAND_GENERATE, GROUP_OUTPUT, OPTION_CHOICE, "timeline", NULL, 0, "FORM", "text",
                      0, 0, "text|json|none",
                      "Form of the timeline on standard error; with none no bar of loading or reading either"},
    [OPT_PROFILE] = {OPT_PROFILE, COMMAND_GENERATE, GROUP_OUTPUT, OPTION_FLAG, "profile", NULL, 0, NULL, NULL, 0, 0,
                     NULL,
                     "Time every kernel of a GPU (without graphs, so steps are slower), or on the CPU every op of the "
                     "first rank, and print a table on standard error; with several GPUs or ranks on this host, also "
                     "what the fastest and the slowest of them took"},
    [OPT_TRACE] = {OPT_TRACE, COMMAND_GENERATE, GROUP_OUTPUT, OPTION_TEXT, "trace", NULL, 0, "FILE", NULL, 0, 0, NULL,
                   "Write what each rank did when, for chrome://tracing or ui.perfetto.dev"},
    [OPT_JSON] = {OPT_JSON,
                  COMMAND_GENERATE | COMMAND_TOKENIZE | COMMAND_TEMPLATE | COMMAND_PLAN | COMMAND_PERPLEXITY |
                      COMMAND_VERIFY | COMMAND_DOCTOR | COMMAND_BENCH,
                  GROUP_OUTPUT, OPTION_FLAG, "json", NULL, 0, NULL, NULL, 0, 0, NULL, "Print JSON, one object a line"},
    [OPT_VERBOSE] = {OPT_VERBOSE, COMMANDS_ALL | COMMAND_REPORT, GROUP_OUTPUT, OPTION_FLAG, "verbose", NULL, 'v', NULL,
                     NULL, 0, 0, NULL, "Log what happens, and the way an error took"},
};

/* What the value was called by: a flag or a variable. */
static void describe(const option_def *def, bool from_env, char *out, size_t out_bytes) {
    int n = snprintf(out, out_bytes, "%s%s", from_env ? "LOCKSTEP_" : "--", def->name);
    for (int i = 0; from_env && i < n && (size_t)i < out_bytes; i++) {
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
    }
}

static double suffix_factor(const char *suffix) {
    static const struct {
        const char *text;
        double factor;
    } known[] = {{"", 1},     {"k", 1e3},   {"M", 1e6},      {"G", 1e9},
                 {"K", 1024}, {"Ki", 1024}, {"Mi", 1048576}, {"Gi", 1073741824}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].text, suffix) == 0) {
            return known[i].factor;
        }
    }
    return 0;
}

static ls_status parse_number(const option_def *def, const char *what, const char *text, option_value *value,
                              ls_error *err) {
    char *end;
    errno = 0;
    bool integer = def->type == OPTION_INT;
    long long whole = integer ? strtoll(text, &end, 10) : 0;
    double number = integer ? (double)whole : strtod(text, &end);
    double factor = integer ? suffix_factor(end) : *end == '\0' ? 1 : 0;
    if (end == text || errno != 0 || factor == 0 || !isfinite(number)) {
        return error_set(err, LS_EINVAL, "%s %s: expected %s", what, text, integer ? "an integer" : "a number");
    }
    if (number * factor < def->min || number * factor > def->max) {
        return error_set(err, LS_EINVAL, "%s %s: must be from %.15g to %.15g", what, text, def->min, def->max);
    }
    value->real = number * factor;
    value->integer = integer && factor == 1 ? whole : (int64_t)fmin(value->real, 0x1.fffffffffffffp62);
    return LS_OK;
}

static bool is_choice(const char *choices, const char *text) {
    size_t n = strlen(text);
    if (n == 0 || strchr(text, '|') != NULL) {
        return false; /* two choices are no choice */
    }
    for (const char *c = choices; c != NULL; c = strchr(c, '|')) {
        c += *c == '|';
        if (strncmp(c, text, n) == 0 && (c[n] == '|' || c[n] == '\0')) {
            return true;
        }
    }
    return false;
}

static ls_status parse(const option_def *def, bool from_env, const char *text, option_value *value, ls_error *err) {
    char what[64];
    describe(def, from_env, what, sizeof what);
    option_value fresh = {.set = true, .from_env = from_env, .text = text};
    if (def->type == OPTION_INT || def->type == OPTION_REAL) {
        TRY(parse_number(def, what, text, &fresh, err));
    } else if (def->type == OPTION_CHOICE && !is_choice(def->choices, text)) {
        return error_set(err, LS_EINVAL, "%s %s: must be one of %s", what, text, def->choices);
    } else if (def->type == OPTION_FLAG) {
        if (strcmp(text, "0") != 0 && strcmp(text, "1") != 0) {
            return error_set(err, LS_EINVAL, "%s %s: must be 0 or 1", what, text);
        }
        fresh.integer = text[0] == '1';
    }
    *value = fresh;
    return LS_OK;
}

static ls_status list_append(ls_options *options, option_id id, const char *text, ls_error *err) {
    size_t n = options->n_list[id];
    const char **grown = realloc(options->list[id], (n + 1) * sizeof *grown);
    if (grown == NULL) {
        return error_set(err, LS_ENOMEM, "options: out of memory");
    }
    grown[n] = text;
    options->list[id] = grown;
    options->n_list[id] = n + 1;
    return LS_OK;
}

static ls_status take(ls_options *options, const option_def *def, bool from_env, const char *text, ls_error *err) {
    bool replaces = options->value[def->id].from_env && !from_env;
    TRY(parse(def, from_env, text, &options->value[def->id], err));
    if (replaces) {
        options->n_list[def->id] = 0;
    }
    return def->type == OPTION_LIST ? list_append(options, def->id, text, err) : LS_OK;
}

ls_status options_init(ls_options *options, ls_error *err) {
    *options = (ls_options){0};
    for (int id = 0; id < OPTION_COUNT; id++) {
        const option_def *def = &option_table[id];
        char variable[64];
        describe(def, true, variable, sizeof variable);
        const char *from_env = getenv(variable);
        if (from_env != NULL) {
            TRY(take(options, def, true, from_env, err));
        } else if (def->fallback != NULL) {
            TRY(parse(def, false, def->fallback, &options->value[id], err));
        }
    }
    return LS_OK;
}

void options_deinit(ls_options *options) {
    for (int id = 0; id < OPTION_COUNT; id++) {
        free(options->list[id]);
    }
    *options = (ls_options){0};
}

ls_status options_set(ls_options *options, option_id id, const char *text, ls_error *err) {
    return take(options, &option_table[id], false, text != NULL ? text : "1", err);
}

bool options_given(const ls_options *options, option_id id) {
    return options->value[id].set && options->value[id].text != option_table[id].fallback;
}

bool options_color(void) {
    const char *no_color = getenv("NO_COLOR");
    const char *terminal = getenv("TERM");
    return (no_color == NULL || no_color[0] == '\0') && terminal != NULL && strcmp(terminal, "dumb") != 0;
}

const char *options_cache_folder(const ls_options *options, char *scratch, size_t scratch_bytes) {
    const option_value *given = &options->value[OPT_CACHE_FOLDER];
    if (given->set) {
        return given->text[0] != '\0' ? given->text : NULL;
    }
    const char *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    bool has_cache = cache != NULL && cache[0] == '/'; /* the XDG rules: a relative path is none */
    if (!has_cache && (home == NULL || home[0] != '/')) {
        return NULL;
    }
    int n = snprintf(scratch, scratch_bytes, "%s/%slockstep", has_cache ? cache : home, has_cache ? "" : ".cache/");
    return n > 0 && (size_t)n < scratch_bytes ? scratch : NULL;
}

/* ---- Launchers' variables ---- */

/* The value of a variable that is there and not empty. */
static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

static ls_status read_count(const char *name, int *out, ls_error *err) {
    char *end;
    const char *text = variable(name);
    long value = text != NULL ? strtol(text, &end, 10) : -1;
    if (text == NULL || *end != '\0' || value < 0 || value > 1000000) {
        return error_set(err, LS_EINVAL, "%s is %s: expected a number; --hosts off runs this process alone", name,
                         text != NULL ? text : "unset");
    }
    *out = (int)value;
    return LS_OK;
}

ls_status options_launch_read(options_launch *out, ls_error *err) {
    static const struct {
        const char *launcher, *process, *count, *local;
    } known[] = {{"torchrun (RANK, WORLD_SIZE)", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
                 {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
                 {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
                 {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}};
    const char *address = variable("MASTER_ADDR"), *port = variable("MASTER_PORT");
    *out = (options_launch){.n_processes = 1};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (variable(known[i].process) == NULL || variable(known[i].count) == NULL) {
            continue;
        }
        out->launcher = known[i].launcher;
        TRY(read_count(known[i].process, &out->process, err));
        TRY(read_count(known[i].count, &out->n_processes, err));
        if (variable(known[i].local) != NULL) {
            TRY(read_count(known[i].local, &out->local, err));
        }
        if (i == 0 && out->n_processes > 1 && (address == NULL || port == NULL)) {
            return error_set(err, LS_EINVAL,
                             "RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT, where process 0 is to "
                             "be found; --hosts off runs this process alone");
        }
        if (address != NULL && port != NULL) {
            snprintf(out->address, sizeof out->address, "%s:%s", address, port);
        }
        return LS_OK;
    }
    return LS_OK;
}

/* ---- The hub's variables ---- */

static bool is_true(const char *text) {
    static const char *const words[] = {"1", "on", "yes", "true"};
    for (size_t i = 0; text != NULL && i < sizeof words / sizeof *words; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* <folder><tail>, with "~/" as the home folder. */
static ls_status put_path(char *out, size_t out_bytes, const char *folder, const char *tail, ls_error *err) {
    const char *home = strncmp(folder, "~/", 2) == 0 ? variable("HOME") : NULL;
    int n = snprintf(out, out_bytes, "%s%s%s", home != NULL ? home : "", folder + (home != NULL ? 1 : 0), tail);
    return n > 0 && (size_t)n < out_bytes ? LS_OK : error_set(err, LS_EINVAL, "the path %.100s... is too long", folder);
}

static ls_status put_hub_folders(options_hub_text *text, ls_error *err) {
    const char *cache = variable("HF_HUB_CACHE"), *home = variable("HF_HOME"), *xdg = variable("XDG_CACHE_HOME");
    text->home[0] = '\0';
    if (home != NULL) {
        TRY(put_path(text->home, sizeof text->home, home, "", err));
    } else if (xdg != NULL) {
        TRY(put_path(text->home, sizeof text->home, xdg, "/huggingface", err));
    } else if (variable("HOME") != NULL) {
        TRY(put_path(text->home, sizeof text->home, "~/.cache/huggingface", "", err));
    }
    cache = cache != NULL ? cache : variable("HUGGINGFACE_HUB_CACHE"); /* its older name */
    if (cache != NULL) {
        return put_path(text->cache_folder, sizeof text->cache_folder, cache, "", err);
    }
    if (text->home[0] == '\0') {
        return error_set(err, LS_EINVAL, "no folder for downloads: HF_HUB_CACHE, HF_HOME and HOME are all unset");
    }
    return put_path(text->cache_folder, sizeof text->cache_folder, text->home, "/hub", err);
}

/* The first word of the file where huggingface_hub's login puts the token; none without such a file. */
static void read_token_file(options_hub_text *text) {
    char path[4096] = "";
    const char *given = variable("HF_TOKEN_PATH");
    if (given != NULL || text->home[0] != '\0') {
        put_path(path, sizeof path, given != NULL ? given : text->home, given != NULL ? "" : "/token", NULL);
    }
    FILE *file = path[0] != '\0' ? fopen(path, "re") : NULL;
    if (file != NULL) {
        if (fscanf(file, "%1023s", text->token) != 1) {
            text->token[0] = '\0';
        }
        fclose(file);
    }
}

ls_status options_hub(ls_hub_params *params, options_hub_text *text, ls_error *err) {
    const char *token = variable("HF_TOKEN");
    token = token != NULL ? token : variable("HUGGING_FACE_HUB_TOKEN"); /* its older name */
    text->token[0] = '\0';
    TRY(put_hub_folders(text, err));
    if (!is_true(getenv("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) {
        if (token != NULL && sscanf(token, "%1023s", text->token) != 1) {
            text->token[0] = '\0';
        } else if (token == NULL) {
            read_token_file(text);
        }
    }
    params->cache_folder = text->cache_folder;
    params->token = text->token[0] != '\0' ? text->token : NULL;
    params->endpoint = variable("HF_ENDPOINT");
    params->ca_file = variable("SSL_CERT_FILE");
    params->offline = is_true(variable("HF_HUB_OFFLINE")) || is_true(variable("TRANSFORMERS_OFFLINE"));
    return LS_OK;
}
