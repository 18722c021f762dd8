/* The access log: a JSON object a line when a call ends. Prompts, answers and keys are not in it. */
#include <time.h>

#include "server/serving.h"

static double milliseconds(int64_t us) {
    return (double)us / 1000;
}

void access_log_write(const call *c, int64_t now) {
    FILE *file = c->server->params->access_log;
    if (file == NULL) {
        return;
    }
    struct timespec wall;
    struct tm utc;
    char time[40];
    clock_gettime(CLOCK_REALTIME, &wall);
    gmtime_r(&wall.tv_sec, &utc);
    size_t n = strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(time + n, sizeof time - n, ".%03dZ", (int)(wall.tv_nsec / 1000000));
    json_t *line =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:f}", "time", time, "id", c->id, "remote", c->remote, "method",
                  c->method, "path", c->path, "status", c->status, "total_ms", milliseconds(now - c->began_us));
    if (line == NULL) {
        return; /* a path that is not UTF-8 */
    }
    if (c->key >= 0) {
        json_object_set_new(line, "key", json_integer(c->key));
    }
    if (c->usage.finish != NULL) {
        json_object_set_new(line, "prompt_tokens", json_integer(c->usage.prompt_tokens));
        json_object_set_new(line, "cached_tokens", json_integer(c->usage.cached_tokens));
        json_object_set_new(line, "completion_tokens", json_integer(c->usage.completion_tokens));
        json_object_set_new(line, "finish", json_string(c->usage.finish));
    }
    if (c->usage.queued_us >= 0) {
        json_object_set_new(line, "queued_ms", json_real(milliseconds(c->usage.queued_us)));
    }
    if (c->usage.first_token_us >= 0) {
        json_object_set_new(line, "first_token_ms", json_real(milliseconds(c->usage.first_token_us)));
    }
    json_dumpf(line, file, JSON_COMPACT | JSON_REAL_PRECISION(6));
    fputc('\n', file);
    fflush(file);
    json_decref(line);
}
