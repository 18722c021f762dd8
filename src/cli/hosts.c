/*
 * Several processes, one a host, that a launcher started (options_launch): host 0 runs the command, the others follow its
 * engine and print nothing but errors.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

static sigset_t only_term(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    return set;
}

/* Launchers end the other processes by SIGTERM when one has failed: tells what this one was doing, and ends as it would
 * have without this thread. */
static void *watch_for_term(void *arg) {
    cli_hosts *hosts = arg;
    const sigset_t set = only_term();
    char what[256] = "joining the other hosts";
    int signal_number;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* the others are the main thread's */
    sigwait(&set, &signal_number);
    ls_hosts *group = atomic_load(&hosts->named);
    if (group != NULL) {
        ls_hosts_describe(group, what, sizeof what);
    }
    fprintf(stderr, "lockstep: ended by SIGTERM, as launchers do when another host has failed: %s\n", what);
    signal(SIGTERM, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(SIGTERM);
    return NULL;
}

/* A host was lost, and this process waits for something else: a line of the user's, a model to be read. */
static void on_lost(void *user, const ls_error *why) {
    (void)user;
    int code = cli_fail(why, false);
    _exit(code);
}

/* Several processes on one host, as torchrun starts them, take its GPUs in order, unless --devices names theirs or each sees none
 * but its own. */
static ls_status choose_gpus(ls_options *options, const options_launch *launch, char list[CLI_GPUS], ls_error *err) {
    const int n_here = (int)options->value[OPT_TENSOR_PARALLEL_SIZE].integer / launch->n_processes;
    const int first = launch->local * n_here;
    int n_gpus = 0;
    if (strcmp(options->value[OPT_DEVICE].text, "cuda") != 0 || launch->local == 0 ||
        ls_gpu_count(&n_gpus, NULL) != LS_OK || n_gpus < first + n_here || n_here > 8) {
        return LS_OK;
    }
    list[0] = '\0';
    for (int i = 0; i < n_here; i++) {
        const size_t used = strlen(list);
        snprintf(list + used, CLI_GPUS - used, "%s%d", i > 0 ? "," : "", first + i);
    }
    return n_here > 0 ? options_set(options, OPT_DEVICE, list, err) : LS_OK;
}

ls_status cli_hosts_join(ls_options *options, cli_hosts *out, ls_error *err) {
    const option_value *v = options->value;
    options_launch launch;
    ls_hosts_params params = LS_HOSTS_PARAMS_INIT;
    if (strcmp(v[OPT_HOSTS].text, "off") == 0) {
        return LS_OK;
    }
    TRY(options_launch_read(&launch, err));
    if (launch.n_processes <= 1) {
        return LS_OK;
    }
    TRY(choose_gpus(options, &launch, out->gpus, err));
    params.n_hosts = launch.n_processes;
    params.host = launch.process;
    params.address = launch.address[0] != '\0' ? launch.address : NULL;
    params.join_timeout_ms = (int)(v[OPT_JOIN_TIMEOUT].real * 1000);
    params.lost_timeout_ms = (int)(v[OPT_HOST_TIMEOUT].real * 1000);
    params.on_lost = on_lost;
    const sigset_t set = only_term();
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* in every thread but the one that waits for it */
    out->watched = pthread_create(&out->watch, NULL, watch_for_term, out) == 0;
    if (!out->watched) {
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    }
    ls_status st = ls_hosts_join(&params, &out->group, err);
    atomic_store(&out->named, out->group);
    return st == LS_OK ? st
                       : error_prefix(err, st, "%s started this as process %d of %d", launch.launcher, launch.process,
                                      launch.n_processes);
}

ls_status cli_follow(const ls_options *options, ls_engine_params params, ls_error *err) {
    ls_model *model = NULL;
    ls_engine *engine = NULL;
    ls_status st = cli_open_model(options, &model, err);
    if (st == LS_OK) {
        st = ls_engine_open(model, &params, &engine, err);
    }
    if (st == LS_OK) {
        st = ls_engine_follow(engine, err);
    }
    ls_engine_close(&engine);
    ls_model_close(&model);
    return st;
}

void cli_hosts_leave(cli_hosts *hosts, ls_status st, const ls_error *why) {
    if (hosts->watched) {
        pthread_cancel(hosts->watch);
        pthread_join(hosts->watch, NULL);
        const sigset_t set = only_term();
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    }
    ls_hosts_leave(&hosts->group, st < 0 ? why : NULL);
}
