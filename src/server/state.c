/*
 * The state of the server, as /health tells it: from the engine's step counter, not from a probe that would cost a request.
 *
 *   starting --> ok <--> stalled (work waits, and no step has ended for --stall-timeout seconds)
 *                 |         |
 *                 +----+----+--> draining --> the end      any but starting --> dead (a step failed for good)
 */
#include <string.h>

#include "server/serving.h"

void server_progress_set(server_progress *progress, const char *stage, int percent) {
    atomic_store(&progress->stage, stage);
    atomic_store(&progress->percent, percent);
}

const char *state_name(server_state state) {
    static const char *const names[] = {"starting", "ok", "stalled", "draining", "dead"};
    return names[state];
}

void state_check(server *s, int64_t now) {
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    ls_error error = {0};
    if (s->state == STATE_STARTING || s->state == STATE_DEAD) {
        return;
    }
    if (ls_engine_check(s->model.engine, &error) != LS_OK) {
        s->state = STATE_DEAD;
        s->died_us = now;
        snprintf(s->death, sizeof s->death, "%s", error.text);
        log_line(&s->params->log, LS_LOG_ERROR, "%s", error.text);
        return;
    }
    if (ls_engine_get_stats(s->model.engine, &stats, NULL) != LS_OK) {
        return;
    }
    bool works = stats.n_running + stats.n_waiting > 0;
    if (!works || stats.steps != s->steps_seen) {
        s->steps_seen = stats.steps;
        s->steps_seen_us = now;
    }
    bool stalls = now - s->steps_seen_us > (int64_t)s->params->stall_timeout_s * 1000000;
    if (stalls && s->state == STATE_OK) {
        s->n_stalls++;
        log_line(&s->params->log, LS_LOG_ERROR, "stalled: no step has ended for %d s, %d requests run, %d wait",
                 s->params->stall_timeout_s, stats.n_running, stats.n_waiting);
    } else if (!stalls && s->state == STATE_STALLED) {
        log_line(&s->params->log, LS_LOG_WARN, "steps go on");
    }
    s->state = stalls ? STATE_STALLED : STATE_OK;
}

const char *state_refuses(const server *s) {
    if (s->draining) {
        return "the server is shutting down";
    }
    if (s->state == STATE_STARTING) {
        return "the model is being loaded; /health says how far it is";
    }
    return s->state == STATE_DEAD ? s->death : NULL;
}

void api_health(call *c) {
    server *s = c->server;
    state_check(s, now_us()); /* the truth of now, not of the last tick */
    server_state state = s->draining && s->state != STATE_DEAD ? STATE_DRAINING : s->state;
    json_t *body = json_pack("{s:s}", "status", state_name(state));
    if (state == STATE_STARTING) {
        int percent = atomic_load(&s->progress.percent);
        json_object_set_new(body, "stage", json_string(atomic_load(&s->progress.stage)));
        json_object_set_new(body, "percent", percent >= 0 ? json_integer(percent) : json_null());
    } else {
        ls_engine_stats stats = LS_ENGINE_STATS_INIT;
        ls_engine_get_stats(s->model.engine, &stats, NULL);
        json_object_set_new(body, "running", json_integer(stats.n_running));
        json_object_set_new(body, "waiting", json_integer(stats.n_waiting));
        json_object_set_new(body, "steps", json_integer(stats.steps));
        json_object_set_new(body, "last_step_seconds", json_real((double)(now_us() - s->steps_seen_us) * 1e-6));
    }
    if (state == STATE_DEAD) {
        json_object_set_new(body, "reason", json_string(s->death));
    }
    call_reply_json(c, state == STATE_OK ? 200 : 503, body);
}

void api_version(call *c) {
    call_reply_json(c, 200, json_pack("{s:s}", "version", ls_version()));
}

void api_metrics(call *c) {
    const server *s = c->server;
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    ls_timeline timeline = LS_TIMELINE_INIT;
    struct evbuffer *out = evbuffer_new();
    bool ready = s->state != STATE_STARTING;
    if (ready) {
        ls_engine_get_stats(s->model.engine, &stats, NULL);
        ls_engine_get_timeline(s->model.engine, &timeline, NULL);
    }
    metrics_view view = {.prefix = s->params->metrics_prefix,
                         .model = s->params->name[0],
                         .stats = ready ? &stats : NULL,
                         .timeline = ready ? &timeline : NULL,
                         .state = state_name(s->draining && s->state != STATE_DEAD ? STATE_DRAINING : s->state),
                         .n_stalls = s->n_stalls,
                         .uptime_s = (double)(now_us() - s->started_us) * 1e-6};
    for (const call *other = s->calls; other != NULL; other = other->next) {
        view.n_calls++;
    }
    if (out != NULL) {
        metrics_write(&s->metrics, &view, out);
    }
    call_reply_text(c, out != NULL ? 200 : 503, "text/plain; version=0.0.4; charset=utf-8", out);
    if (out != NULL) {
        evbuffer_free(out);
    }
}
