/* See timeline.h. */
#include "cli/timeline.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double rate(int64_t count, int64_t us) {
    return us > 0 ? (double)count * 1e6 / (double)us : 0;
}

static double per_step_ms(int64_t us, int64_t steps) {
    return steps > 0 ? (double)us / 1000 / (double)steps : 0;
}

/* How long ago exec was, to 10 ms: field 22 of /proc/self/stat is in clock ticks since the machine's start. 0: not known. */
static int64_t process_age_us(void) {
    char line[1024];
    struct timespec now;
    FILE *file = fopen("/proc/self/stat", "r");
    size_t n = file != NULL ? fread(line, 1, sizeof line - 1, file) : 0;
    line[n] = '\0';
    if (file != NULL) {
        fclose(file);
    }
    const char *at = strrchr(line, ')'); /* behind the program's name */
    for (int i = 2; i < 22 && at != NULL; i++) {
        at = strchr(at + 1, ' ');
    }
    if (at == NULL || clock_gettime(CLOCK_BOOTTIME, &now) != 0) {
        return 0;
    }
    int64_t start_us = (int64_t)(strtoll(at, NULL, 10) * 1000000 / sysconf(_SC_CLK_TCK));
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 - start_us;
}

void timeline_print(FILE *out, const ls_timeline *t) {
    int64_t step_bytes = t->weight_bytes_per_step + t->kv_bytes_per_step;
    double step_ms = per_step_ms(t->decode_us, t->decode_steps);
    double exchange_ms = per_step_ms(t->exchange_us, t->decode_steps);
    double host_ms = per_step_ms(t->decode_host_us, t->decode_steps);
    const bool on_cpu = strcmp(t->device, "CPU") == 0;
    fprintf(out, "\nload     %9.1f ms  config, tokenizer, tensors mapped\n", (double)t->load_us / 1000);
    fprintf(out, "plan     %9.1f ms  %.1f MB: weights %.1f, KV cache %.1f, other %.1f\n", (double)t->plan_us / 1000,
            (double)(t->weights_memory_bytes + t->kv_memory_bytes + t->other_memory_bytes) / 1e6,
            (double)t->weights_memory_bytes / 1e6, (double)t->kv_memory_bytes / 1e6,
            (double)t->other_memory_bytes / 1e6);
    if (!on_cpu) {
        fprintf(out, "device   %9.1f ms  driver %.1f, context %.1f; beside load, and part of plan if that took less\n",
                (double)(t->driver_us + t->context_us) / 1000, (double)t->driver_us / 1000,
                (double)t->context_us / 1000);
    }
    fprintf(out, "shard    %9.1f ms  %d %s x %d %s, %s, %s; weights %.1f ms, %.1f MB, %.2f GB/s\n",
            (double)t->shard_us / 1000, t->n_ranks, t->n_ranks == 1 ? "rank" : "ranks", t->n_threads,
            t->n_threads == 1 ? "thread" : "threads", t->device, ls_dtype_name(t->dtype), (double)t->weights_us / 1000,
            (double)t->load_bytes / 1e6, rate(t->load_bytes, t->weights_us) / 1e9);
    if (t->no_gpu[0] != '\0') {
        fprintf(out, "no GPU                %s\n", t->no_gpu);
    }
    if (t->n_graphs > 0) {
        fprintf(out, "graphs   %9.1f ms  %d of decode steps, captured\n", (double)t->graphs_us / 1000, t->n_graphs);
    }
    if (t->plan[0] != '\0') {
        fprintf(out, "plan                  %s, of decode steps of up to 16 sequences\n", t->plan);
    }
    if (t->first_token_us >= 0) {
        fprintf(out, "start    %9.1f ms  from the program's start to the first token\n",
                (double)(process_age_us() - t->age_us + t->first_token_us) / 1000);
    }
    fprintf(out, "prefill  %9.1f ms  %lld tokens, %.1f tokens/s\n", (double)t->prefill_us / 1000,
            (long long)t->prefill_tokens, rate(t->prefill_tokens, t->prefill_us));
    fprintf(out, "decode   %9.1f ms  %lld tokens, %.1f tokens/s, %.3f ms/token\n", (double)t->decode_us / 1000,
            (long long)t->decode_tokens, rate(t->decode_tokens, t->decode_us), step_ms);
    if (t->decode_steps == 0) {
        return;
    }
    fprintf(out, "read     %9.2f MB  a step: weights %.2f, KV %.2f; %.2f GB/s\n", (double)step_bytes / 1e6,
            (double)t->weight_bytes_per_step / 1e6, (double)t->kv_bytes_per_step / 1e6,
            (double)step_bytes / (step_ms * 1e6));
    fprintf(out, "limit    %9.3f ms  a step: %s read the same weights at %.2f GB/s (%s)\n", t->limit_us_per_step / 1000,
            on_cpu ? "these threads" : "its own loads", t->read_bytes_per_s / 1e9, on_cpu ? t->isa : t->device);
    fprintf(out, "ratio    %9.1f %%   of the limit\n", t->limit_ratio * 100);
    if (t->exchange_us < 0) {
        fprintf(out, "exchange not measured without --profile, %d of them a step\n", t->exchanges_per_step);
    } else {
        fprintf(out, "exchange %9.3f ms  a step, %d of them, %.1f %% of its time\n", exchange_ms, t->exchanges_per_step,
                step_ms > 0 ? exchange_ms / step_ms * 100 : 0);
    }
    fprintf(out, "host     %9.3f ms  before a step, in which no rank had work: %.1f %% of both\n", host_ms,
            step_ms > 0 ? host_ms / (step_ms + host_ms) * 100 : 0);
}

json_t *timeline_json(const ls_timeline *t) {
    json_t *object = json_pack(
        "{s:s, s:i, s:I, s:i, s:i, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, "
        "s:I, s:I, s:i, s:I, "
        "s:I, "
        "s:I, s:I, s:f, s:f, s:f, "
        "s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:I}",
        "device", t->device, "graphs", t->n_graphs, "graphs_us", (json_int_t)t->graphs_us, "ranks", t->n_ranks,
        "threads_per_rank", t->n_threads, "dtype", ls_dtype_name(t->dtype), "kv_cache_dtype",
        ls_dtype_name(t->kv_cache_dtype), "isa", t->isa, "load_us", (json_int_t)t->load_us, "plan_us",
        (json_int_t)t->plan_us, "shard_us", (json_int_t)t->shard_us, "prefill_us", (json_int_t)t->prefill_us,
        "decode_us", (json_int_t)t->decode_us, "prefill_tokens", (json_int_t)t->prefill_tokens, "decode_tokens",
        (json_int_t)t->decode_tokens, "prefill_steps", (json_int_t)t->prefill_steps, "decode_steps",
        (json_int_t)t->decode_steps, "tokens_per_s", rate(t->decode_tokens, t->decode_us), "ms_per_token",
        per_step_ms(t->decode_us, t->decode_steps), "weight_bytes_per_step", (json_int_t)t->weight_bytes_per_step,
        "kv_bytes_per_step", (json_int_t)t->kv_bytes_per_step, "exchanges_per_step", t->exchanges_per_step,
        "exchange_us", (json_int_t)t->exchange_us, "weights_memory_bytes", (json_int_t)t->weights_memory_bytes,
        "kv_memory_bytes", (json_int_t)t->kv_memory_bytes, "other_memory_bytes", (json_int_t)t->other_memory_bytes,
        "read_gb_per_s", t->read_bytes_per_s / 1e9, "limit_ms_per_step", t->limit_us_per_step / 1000, "limit_ratio",
        t->limit_ratio, "driver_us", (json_int_t)t->driver_us, "context_us", (json_int_t)t->context_us, "weights_us",
        (json_int_t)t->weights_us, "load_bytes", (json_int_t)t->load_bytes, "load_gb_per_s",
        rate(t->load_bytes, t->weights_us) / 1e9, "first_token_us", (json_int_t)t->first_token_us, "start_us",
        (json_int_t)(t->first_token_us < 0 ? -1 : process_age_us() - t->age_us + t->first_token_us), "prefill_host_us",
        (json_int_t)t->prefill_host_us, "decode_host_us", (json_int_t)t->decode_host_us);
    if (object != NULL && t->no_gpu[0] != '\0') {
        json_object_set_new(object, "no_gpu", json_string(t->no_gpu));
    }
    if (object != NULL && t->plan[0] != '\0') {
        json_object_set_new(object, "plan", json_string(t->plan));
    }
    return object;
}

/* Where several GPUs or ranks are timed: each of the fastest one, and of the slowest. */
static void print_spread(FILE *out, const ls_profile_line *l, bool several) {
    if (several) {
        fprintf(out, " %10.2f %10.2f", l->least_us / (double)l->launches, l->most_us / (double)l->launches);
    }
    fputc('\n', out);
}

void profile_print(FILE *out, const ls_profile_line *line, size_t n, double limit_bytes_per_s) {
    for (int decode = 1; decode >= 0; decode--) {
        double all_us = 0;
        bool several = false;
        for (size_t i = 0; i < n; i++) {
            several = several || line[i].most_us > line[i].least_us;
            all_us += line[i].decode == decode ? line[i].total_us : 0;
        }
        if (all_us <= 0) {
            continue;
        }
        fprintf(out, "\n%-8s %28s %10s %10s %7s %10s %9s %8s%s\n", decode ? "decode" : "prefill", "ops", "launches",
                "us each", "share", "MB each", "GB/s", "limit", several ? "   least us    most us" : "");
        for (size_t i = 0; i < n; i++) {
            const ls_profile_line *l = &line[i];
            if (l->decode == decode) {
                double each = (double)l->launches, gb_per_s = l->bytes / (l->total_us * 1e3);
                fprintf(out, "%-8s %28s %10lld %10.2f %6.1f%% %10.3f %9.1f %7.1f%%", "", l->ops, (long long)l->launches,
                        l->total_us / each, l->total_us / all_us * 100, l->bytes / each / 1e6, gb_per_s,
                        limit_bytes_per_s > 0 ? gb_per_s * 1e11 / limit_bytes_per_s : 0);
                print_spread(out, l, several);
            }
        }
    }
}
