/*
 * The trace: every op of every layer of every step appears on every thread, in the program's order; stages nest; what a
 * ring cannot hold is counted; an engine without a trace has none. And the file that generate --trace writes.
 */
#include <unistd.h>

#include "cli_run.h"

#include "engine/engine.h"

enum { MAX_EVENTS = 1 << 16 };

typedef struct collected {
    ls_trace_event event[MAX_EVENTS];
    int n;
} collected;

static void collect(void *user, const ls_trace_event *event) {
    collected *all = user;
    assert_true(all->n < MAX_EVENTS);
    all->event[all->n++] = *event;
}

static collected *trace_of(ls_engine *engine, int64_t *n_lost) {
    collected *all = calloc(1, sizeof *all);
    ls_error err = {0};
    assert_non_null(all);
    ASSERT_OK(ls_engine_get_trace(engine, collect, all, n_lost, &err), &err);
    return all;
}

/* Runs two prompts that overlap; returns the steps it took. */
static int run_some(ls_engine *engine) {
    job jobs[] = {{.text = "Once upon a time", .max_tokens = 4}, {.text = "The", .max_tokens = 3, .join_step = 2}};
    int n_steps = jobs_run(engine, jobs, COUNT(jobs));
    jobs_clear(jobs, COUNT(jobs));
    for (size_t i = 0; i < COUNT(jobs); i++) {
        ls_request_free(&jobs[i].request);
    }
    return n_steps;
}

static bool inside(const ls_trace_event *inner, const ls_trace_event *outer) {
    const double slack_us = 0.01; /* of rounding */
    return inner->start_us >= outer->start_us - slack_us &&
           inner->start_us + inner->duration_us <= outer->start_us + outer->duration_us + slack_us;
}

/* The start, then schedule, run, publish and their step, over and over. Fills run[step]. */
static int check_engine_row(const collected *all, int n_steps, const ls_trace_event **run) {
    static const char *const start[] = {"load", "plan", "shard"};
    static const char *const stages[] = {"schedule", "run", "sample and publish", "step"};
    const ls_trace_event *e = all->event;
    for (int i = 0; i < 3; i++, e++) {
        assert_string_equal(e->name, start[i]);
        assert_true(e->rank == -1 && e->thread == -1 && e->step == -1 && e->duration_us > 0);
        assert_true(i == 0 || e->start_us >= e[-1].start_us + e[-1].duration_us - 1);
    }
    for (int step = 0; step < n_steps; step++, e += 4) {
        for (int i = 0; i < 4; i++) {
            assert_string_equal(e[i].name, stages[i]);
            assert_true(e[i].rank == -1 && e[i].layer == -1 && e[i].step == step && e[i].rows == e[3].rows);
            assert_true(e[i].rows > 0 && inside(&e[i], &e[3]));
            assert_true(i == 0 || i == 3 || e[i].start_us >= e[i - 1].start_us + e[i - 1].duration_us - 0.01);
        }
        assert_true(e[0].start_us >= e[-1].start_us + e[-1].duration_us - 1);
        run[step] = &e[1];
    }
    return (int)(e - all->event);
}

static void every_op_of_every_step(void **state) {
    (void)state;
    const ls_trace_event *run[64];
    const int teams[][2] = {{1, 1}, {2, 1}, {2, 2}};
    for (size_t i = 0; i < COUNT(teams); i++) {
        ls_model *model = demo_model();
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        params.tensor_parallel_size = teams[i][0];
        params.threads = teams[i][1];
        params.trace_events = 4096;
        ls_engine *engine = engine_open(model, &params);
        int n_steps = run_some(engine);
        assert_in_range(n_steps, 4, 10);
        int64_t n_lost = -1;
        collected *all = trace_of(engine, &n_lost);
        assert_int_equal(n_lost, 0);
        int at = check_engine_row(all, n_steps, run);
        for (int rank = 0; rank < teams[i][0]; rank++) {
            for (int thread = 0; thread < teams[i][1]; thread++) {
                for (int op = 0; op < n_steps * engine->program[0]->n_ops; op++, at++) {
                    const ls_trace_event *e = &all->event[at];
                    const ls_op *wanted = &engine->program[rank]->op[op % engine->program[0]->n_ops];
                    int step = op / engine->program[0]->n_ops;
                    assert_true(e->rank == rank && e->thread == thread && e->step == step);
                    assert_string_equal(e->name, op_kind_name(wanted->kind));
                    assert_int_equal(e->layer, wanted->layer);
                    assert_int_equal(e->rows, run[step]->rows);
                    assert_true(inside(e, run[step]));
                    assert_true(op == 0 || e->start_us >= e[-1].start_us + e[-1].duration_us - 0.01);
                }
            }
        }
        assert_int_equal(at, all->n);
        free(all);
        ls_engine_close(&engine);
        ls_model_close(&model);
    }
}

static void the_oldest_are_overwritten(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.threads = 1;
    params.trace_events = 70;
    ls_engine *engine = engine_open(model, &params);
    /* Planned: two rows' heads and their rings. */
    assert_int_equal(engine->rank_arena[0].by_tag[MEM_TRACE], 64 + 70 * 32);
    assert_int_equal(engine->host_arena.by_tag[MEM_TRACE], 64 + 70 * 32);
    int n_steps = run_some(engine), n_ops = engine->program[0]->n_ops;
    int64_t n_lost = -1;
    collected *all = trace_of(engine, &n_lost);
    assert_true(n_ops < 70 && 2 * n_ops > 70 && 4 * n_steps < 70);
    assert_int_equal(n_lost, n_steps * n_ops - 70);
    assert_int_equal(all->n, 3 + 4 * n_steps + 70);
    const ls_trace_event *last = &all->event[all->n - 1];
    assert_string_equal(last->name, "sample");
    assert_int_equal(last->step, n_steps - 1);
    assert_int_equal(all->event[all->n - 70].step, n_steps - 2); /* the tail of the step before */
    assert_int_equal(all->event[all->n - n_ops].step, n_steps - 1);
    assert_string_equal(all->event[all->n - n_ops].name, "embed");
    free(all);
    ls_engine_close(&engine);
    params.trace_events = -1;
    ls_error err = {0};
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EINVAL, "trace_events");
    ls_model_close(&model);
}

static void none_without_asking(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = engine_open(model, &params);
    ls_error err = {0};
    int64_t n_lost;
    assert_int_equal(engine->rank_arena[0].by_tag[MEM_TRACE] + engine->host_arena.by_tag[MEM_TRACE], 0);
    ASSERT_FAILS(ls_engine_get_trace(engine, collect, NULL, &n_lost, &err), &err, LS_EINVAL, "trace_events", "--trace");
    ls_engine_close(&engine);
    ls_model_close(&model);
}

static void the_file(void **state) {
    (void)state;
    char folder[PATH_BYTES], path[PATH_BYTES + 32];
    folder_make(folder);
    snprintf(path, sizeof path, "%s/trace.json", folder);
    expect(CLI(DEMO, "-p", "The", "-n", "3", "--temp", "0", "-tp", "2", "-t", "1", "--trace", path), 0, "ratio");
    json_error_t why;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    assert_non_null(root);
    const json_t *events = json_object_get(root, "traceEvents"), *event;
    assert_true(number_of(json_object_get(root, "otherData"), "lost_events") == 0);
    int n_attn[2] = {0}, n_steps = 0, n_rows = 0;
    size_t i;
    json_array_foreach(events, i, event) {
        const char *name = json_string_value(json_object_get(event, "name"));
        const json_t *args = json_object_get(event, "args");
        assert_non_null(name);
        if (strcmp(json_string_value(json_object_get(event, "ph")), "X") != 0) {
            n_rows += strcmp(name, "thread_name") == 0;
            continue;
        }
        assert_true(number_of(event, "ts") >= 0 && number_of(event, "dur") >= 0 && number_of(event, "pid") == 1);
        int tid = (int)number_of(event, "tid");
        if (strcmp(name, "attn") == 0) {
            assert_true(tid == 1 || tid == 1025);
            assert_true(number_of(args, "layer") == n_attn[tid != 1] % 8);
            n_attn[tid != 1]++;
        }
        n_steps += strcmp(name, "step") == 0;
    }
    assert_int_equal(n_rows, 3);
    assert_int_equal(n_steps, 3);
    assert_int_equal(n_attn[0], 24);
    assert_int_equal(n_attn[1], 24);
    json_decref(root);
    folder_remove(folder);
    expect(CLI(DEMO, "-p", "The", "--trace", "/nowhere/trace.json"), 1,
           "--trace /nowhere/trace.json: cannot be written");
    expect(CLI(DEMO, "-p", "The", "-n", "1", "--trace", "/dev/full"), 1, "--trace /dev/full: cannot be written");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_of_every_step),
        cmocka_unit_test(the_oldest_are_overwritten),
        cmocka_unit_test(none_without_asking),
        cmocka_unit_test(the_file),
    };
    return cmocka_run_group_tests(tests, cli_find_program, NULL);
}
