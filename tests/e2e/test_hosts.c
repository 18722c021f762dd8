/*
 * Ranks on several hosts, the command line tool run as a user would: the same bits as on one host, and an end within
 * seconds, by name, whatever happens to a host.
 *
 * The hosts are network namespaces with a veth pair between them. Where these may not be made (they need root and ip), all
 * hosts are this one, and the test that takes the link down is skipped. So are those of mpirun without Open MPI.
 */
#include "cli_run.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HOSTS = 2, MOST = 4, FIRST_PORT = 29400 };

/* By then every process has ended, whatever happened. */
static double end_s(void) {
    const char *san = getenv("LS_SAN");
    return san != NULL && san[0] != '\0' ? 25 : 10;
}

/* ---- Hosts ---- */

static struct {
    bool apart; /* namespaces of their own */
    int here, there[HOSTS];
    char name[HOSTS][32];
    char address[32];
    int port;
} net;

static bool make_namespaces(void) {
    char out[4096];
    int pid = (int)getpid(), code = 0;
    for (int i = 0; i < HOSTS; i++) {
        snprintf(net.name[i], sizeof net.name[i], "ls%d%c", pid, 'a' + i);
    }
    const char *a = net.name[0], *b = net.name[1];
    /* Those of a test that crashed. */
    shell(out, sizeof out,
          "ip netns list | sed -n 's/^ls\\([0-9]*\\)\\([ab]\\).*/\\1 \\2/p' | while read pid side; do "
          "[ -d /proc/$pid ] || ip netns del ls$pid$side; done");
    code = shell(out, sizeof out,
                 "ip netns add %s && ip netns add %s && ip -n %s link add veth0 type veth peer name veth0 netns %s && "
                 "ip -n %s addr add 10.77.0.1/24 dev veth0 && ip -n %s addr add 10.77.0.2/24 dev veth0 && "
                 "for n in %s %s; do ip -n $n link set veth0 up && ip -n $n link set lo up || exit 1; done",
                 a, b, a, b, a, b, a, b);
    for (int i = 0; i < HOSTS && code == 0; i++) {
        char path[64];
        snprintf(path, sizeof path, "/var/run/netns/%s", net.name[i]);
        net.there[i] = open(path, O_RDONLY | O_CLOEXEC);
        code = net.there[i] < 0;
    }
    if (code != 0) {
        print_message("no network namespaces (%s): all hosts are this one\n", out);
    }
    return code == 0;
}

static void remove_namespaces(void) {
    char out[1024];
    for (int i = 0; i < HOSTS; i++) {
        shell(out, sizeof out, "ip netns del %s 2>/dev/null", net.name[i]);
    }
}

static int set_up(void **state) {
    net.here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    net.apart = make_namespaces();
    if (!net.apart) {
        remove_namespaces(); /* what there is of them */
    }
    snprintf(net.address, sizeof net.address, "%s", net.apart ? "10.77.0.1" : "127.0.0.1");
    net.port = FIRST_PORT + (int)getpid() % 200 * 16;
    return cli_find_program(state);
}

static int tear_down(void **state) {
    (void)state;
    if (net.apart) {
        remove_namespaces();
    }
    return 0;
}

/* Processes on several hosts in turn: process i lives on host i % 2. */
typedef struct group {
    int n;
    cli_run run[MOST];
    char env[MOST][4][64];
    bool ended[MOST];
    int status[MOST];
} group;

static void start_one(group *g, int i, const char *const *args, int port, int size) {
    cli_run *run = &g->run[i];
    *run = (cli_run){.n_input = 0};
    for (size_t k = 0; args[k] != NULL; k++) {
        run->args[k] = args[k];
    }
    snprintf(g->env[i][0], 64, "MASTER_ADDR=%s", net.address);
    snprintf(g->env[i][1], 64, "MASTER_PORT=%d", port);
    snprintf(g->env[i][2], 64, "RANK=%d", i);
    snprintf(g->env[i][3], 64, "WORLD_SIZE=%d", size);
    for (int k = 0; k < 4; k++) {
        run->env[k] = g->env[i][k];
    }
    if (net.apart) {
        assert_int_equal(setns(net.there[i % HOSTS], CLONE_NEWNET), 0);
    }
    cli_start(run);
    if (net.apart) {
        assert_int_equal(setns(net.here, CLONE_NEWNET), 0);
    }
}

static void start(group *g, int n, const char *const *args) {
    *g = (group){.n = n};
    for (int i = 0; i < n; i++) {
        start_one(g, i, args, net.port, n);
    }
}

static bool has_ended(group *g, int i) {
    siginfo_t info = {0};
    if (!g->ended[i] && waitid(P_PID, (id_t)g->run[i].child, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        info.si_pid != 0) {
        g->ended[i] = true;
    }
    return g->ended[i];
}

/* Whether all but `but` (-1: none) ended in time; what did not is killed. */
static bool end_in_time(group *g, int but, double seconds) {
    double until = now_s() + seconds;
    bool all = false;
    while (!all && now_s() < until) {
        all = true;
        for (int i = 0; i < g->n; i++) {
            all = (i == but || has_ended(g, i)) && all;
        }
        usleep(2000);
    }
    return all;
}

static void collect(group *g) {
    for (int i = 0; i < g->n; i++) {
        if (!has_ended(g, i)) {
            kill(g->run[i].child, SIGKILL);
        }
        cli_wait(&g->run[i]);
    }
}

static void clear(group *g) {
    for (int i = 0; i < g->n; i++) {
        cli_free(&g->run[i]);
    }
}

static void assert_says(const group *g, int i, int code, const char *const *words) {
    const cli_run *run = &g->run[i];
    bool good = run->code == code;
    for (; good && *words != NULL; words++) {
        good = strstr(run->err, *words) != NULL;
    }
    if (!good) {
        print_error("process %d: exit code %d instead of %d, or no \"%s\"; it said: %s\n", i, run->code, code,
                    *words != NULL ? *words : "", run->err);
        fail();
    }
}
#define ASSERT_SAYS(g, i, code, ...) assert_says((g), (i), (code), (const char *const[]){__VA_ARGS__, NULL})

/* ---- The same bits ---- */

/* All but the last line, which is the timeline's. */
static size_t answers_of(const char *out) {
    size_t n = strlen(out);
    n -= n > 0 && out[n - 1] == '\n';
    while (n > 0 && out[n - 1] != '\n') {
        n--;
    }
    return n;
}

#define SAMPLED                                                                                                        \
    "-p", "Once upon a time", "-p", "The dog", "-n", "24", "--num-return-sequences", "2", "--temp", "0.9", "--top-p",  \
        "0.8", "--repetition-penalty", "1.1", "--logit-bias", "300=-2", "--logprobs", "2", "--seed", "7"
#define SMALL "-t", "1", "--device", "cpu", "--max-model-len", "256", "--max-num-seqs", "3", "--json"

static void check_bits(const char *dtype, const char *size, int n) {
    const char *const many[] = {DEMO, SAMPLED, SMALL, "--dtype", dtype, "-tp", size, NULL};
    cli_run one = CLI(DEMO, SAMPLED, SMALL, "--dtype", dtype, "--hosts", "off");
    group g;
    cli(&one);
    assert_code(&one, 0);
    start(&g, n, many);
    bool in_time = end_in_time(&g, -1, 60);
    collect(&g);
    for (int i = 0; i < n; i++) {
        ASSERT_SAYS(&g, i, 0, "");
        assert_true(i == 0 || (g.run[i].n_out == 0 && g.run[i].err[0] == '\0'));
    }
    assert_true(in_time);
    size_t bytes = answers_of(one.out);
    assert_true(bytes > 1000 && strstr(one.out, "logits_hash") != NULL);
    assert_int_equal(answers_of(g.run[0].out), bytes);
    assert_memory_equal(g.run[0].out, one.out, bytes);
    clear(&g);
    cli_free(&one);
}

static void the_same_bits_as_one_host(void **state) {
    (void)state;
    check_bits("f32", "2", 2);
    check_bits("bf16", "4", 2);
    if (!sanitized()) {
        check_bits("bf16", "2", 2);
        check_bits("f32", "4", 4);
    }
}

static void other_commands_too(void **state) {
    (void)state;
    char folder[PATH_BYTES], text[PATH_BYTES + 16];
    folder_make(folder);
    file_write(folder, "text", "Once upon a time there was a dog.", 33);
    snprintf(text, sizeof text, "%s/text", folder);
    const char *const many[] = {"perplexity", "demo", "-f", text, "-tp", "2", "-t", "1", "--device", "cpu", NULL};
    cli_run one = CLI("perplexity", "demo", "-f", text, "-t", "1", "--device", "cpu");
    group g;
    cli(&one);
    assert_code(&one, 0);
    start(&g, 2, many);
    assert_true(end_in_time(&g, -1, 60));
    collect(&g);
    ASSERT_SAYS(&g, 0, 0, "");
    ASSERT_SAYS(&g, 1, 0, "");
    assert_non_null(strstr(one.out, "perplexity"));
    assert_memory_equal(one.out, g.run[0].out, 20);
    clear(&g);
    cli_free(&one);
    folder_remove(folder);
}

/* ---- A host fails ---- */

/* A run of so many steps that it does not end by itself while a test looks; its tokens are printed as they come. */
#define LONG                                                                                                           \
    "-p", "Once upon a time", "-n", "2000", "--ignore-eos", "--temp", "0", "-t", "1", "--device", "cpu",               \
        "--max-model-len", "2040", "--timeline", "none"

static void wait_s(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* Until some tokens were printed. */
static void wait_until_it_steps(const group *g) {
    struct stat file;
    double until = now_s() + 60;
    do {
        wait_s(0.005);
        assert_int_equal(fstat(fileno(g->run[0].out_file), &file), 0);
    } while (file.st_size < 40 && now_s() < until);
    assert_true(file.st_size >= 40);
}

static void set_link(bool up) {
    char out[512];
    SHELL(out, "ip -n %s link set veth0 %s", net.name[1], up ? "up" : "down");
}

static void a_killed_host_ends_all(void **state) {
    (void)state;
    for (int victim = 0; victim < 2; victim++) {
        const char *const args[] = {DEMO, LONG, "-tp", "4", NULL};
        const char *const name = victim == 0 ? "host 0 (" : "host 1 (";
        group g;
        start(&g, 2, args);
        wait_until_it_steps(&g);
        kill(g.run[victim].child, SIGKILL);
        bool in_time = end_in_time(&g, -1, end_s());
        collect(&g);
        assert_true(in_time);
        ASSERT_SAYS(&g, 1 - victim, 3, name, "its process has ended", "; it was ", "and this host ", " step ");
        clear(&g);
    }
}

static void a_stopped_host_ends_all(void **state) {
    (void)state;
    const char *const args[] = {DEMO, LONG, "-tp", "2", NULL};
    group g;
    start(&g, 2, args);
    wait_until_it_steps(&g);
    kill(g.run[1].child, SIGSTOP);
    bool in_time = end_in_time(&g, 1, end_s()); /* by the timeout that is the default */
    kill(g.run[1].child, SIGCONT);
    bool last = end_in_time(&g, -1, end_s());
    collect(&g);
    assert_true(in_time && last);
    ASSERT_SAYS(&g, 0, 3, "host 1 (", "gave no sign of life for 5", "; it was ", "and this host ", " step ");
    ASSERT_SAYS(&g, 1, 3, "host 0 (");
    clear(&g);
}

static void a_host_that_is_cut_off_ends_all(void **state) {
    (void)state;
    if (!net.apart) {
        skip();
    }
    const char *const args[] = {DEMO, LONG, "-tp", "2", "--host-timeout", "2", NULL};
    group g;
    start(&g, 2, args);
    wait_until_it_steps(&g);
    set_link(false);
    bool in_time = end_in_time(&g, -1, end_s());
    set_link(true);
    collect(&g);
    assert_true(in_time);
    ASSERT_SAYS(&g, 0, 3, "host 1 (", "gave no sign of life for 2", " step ");
    ASSERT_SAYS(&g, 1, 3, "host 0 (", "gave no sign of life for 2", " step ");
    clear(&g);
}

/* Host 0 waits for a line from its user, the other for a step. */
static void a_host_that_fails_between_steps_is_noticed(void **state) {
    (void)state;
    int line[2];
    group g = {.n = 2};
    const char *const args[] = {"chat", "demo", "-tp", "2", "-t", "1", "--device", "cpu", NULL};
    assert_int_equal(pipe(line), 0);
    int before = dup(STDIN_FILENO);
    dup2(line[0], STDIN_FILENO);
    for (int i = 0; i < 2; i++) {
        start_one(&g, i, args, net.port, 2);
    }
    dup2(before, STDIN_FILENO);
    close(before);
    close(line[0]);
    wait_s(0.7);
    assert_false(has_ended(&g, 0) || has_ended(&g, 1));
    kill(g.run[1].child, SIGKILL);
    bool in_time = end_in_time(&g, -1, end_s());
    close(line[1]);
    collect(&g);
    assert_true(in_time);
    ASSERT_SAYS(&g, 0, 3, "host 1 (", "its process has ended", "waiting for step 1");
    clear(&g);
}

static void ctrl_c_ends_all_in_order(void **state) {
    (void)state;
    const char *const args[] = {DEMO, LONG, "-tp", "2", NULL};
    group g;
    start(&g, 2, args);
    wait_until_it_steps(&g);
    kill(g.run[0].child, SIGINT);
    bool in_time = end_in_time(&g, -1, end_s());
    collect(&g);
    assert_true(in_time);
    ASSERT_SAYS(&g, 0, 130, "");
    ASSERT_SAYS(&g, 1, 0, "");
    clear(&g);
}

/* ---- Hosts that do not fit together ---- */

static void differ(const char *const *args, const char *const *others, const char *const *words) {
    group g = {.n = 2};
    start_one(&g, 0, args, net.port, 2);
    start_one(&g, 1, others, net.port, 2);
    bool in_time = end_in_time(&g, -1, end_s());
    collect(&g);
    assert_true(in_time);
    assert_says(&g, 0, g.run[0].code, words);
    assert_true(g.run[0].code > 0 && g.run[1].code > 0);
    assert_int_equal(g.run[0].n_out, 0);
    ASSERT_SAYS(&g, 1, g.run[1].code, "lockstep: ");
    clear(&g);
}

#define BRIEF "-p", "Once", "-n", "4", "-t", "1", "--device", "cpu", "-tp", "2"
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void other_options_are_named(void **state) {
    (void)state;
    differ(ARGS(DEMO, BRIEF, "--dtype", "bf16"), ARGS(DEMO, BRIEF, "--dtype", "f32"),
           WORDS("host 1 (", "--dtype is f32", "host 0 is bf16"));
    differ(ARGS(DEMO, BRIEF), ARGS(DEMO, BRIEF, "--max-model-len", "128"), WORDS("host 1 (", "--max-model-len is 128"));
    differ(ARGS(DEMO, BRIEF), ARGS(DEMO, "-p", "Once", "-tp", "4", "-t", "1"),
           WORDS("host 1 (", "--tensor-parallel-size is 4"));
}

static void copy_demo(char folder[PATH_BYTES]) {
    char out[256];
    folder_make(folder);
    SHELL(out, "cp demo/* %s/", folder);
}

static void other_files_are_named(void **state) {
    (void)state;
    static const char shard[] = "model-00003-of-00003.safetensors";
    char folder[PATH_BYTES], out[256];
    size_t n;
    copy_demo(folder);
    uint8_t *bytes = file_read(folder, shard, &n);
    bytes[n - 1] ^= 1;
    file_write(folder, shard, bytes, n);
    free(bytes);
    differ(ARGS(DEMO, BRIEF), ARGS("generate", "-m", folder, BRIEF), WORDS("host 1 (", "checkpoint (data)"));
    folder_remove(folder);
    for (int i = 0; i < 2; i++) {
        const char *const name = i == 0 ? "config.json" : "tokenizer.json";
        copy_demo(folder);
        SHELL(out, "echo >>%s/%s", folder, name);
        differ(ARGS(DEMO, BRIEF), ARGS("generate", "-m", folder, BRIEF), WORDS("host 1 (", name, "bytes, hash"));
        folder_remove(folder);
    }
    differ(ARGS(DEMO, BRIEF), ARGS("generate", "-m", "/nowhere", BRIEF), WORDS("host 1 (", "/nowhere: no such folder"));
}

static void wrong_numbers_are_named(void **state) {
    (void)state;
    const char *const args[] = {DEMO, BRIEF, "--join-timeout", "1", NULL};
    group g = {.n = 1};
    start_one(&g, 0, args, net.port, 2); /* nobody comes */
    assert_true(end_in_time(&g, -1, end_s()));
    collect(&g);
    ASSERT_SAYS(&g, 0, 3, "process 0 of 2", "host 1 did not come in time");
    clear(&g);
    g = (group){.n = 2};
    start_one(&g, 1, args, net.port, 2); /* nobody is there */
    g.ended[0] = true;
    double until = now_s() + end_s();
    while (!has_ended(&g, 1) && now_s() < until) {
        usleep(5000);
    }
    cli_wait(&g.run[1]);
    ASSERT_SAYS(&g, 1, 3, "process 1 of 2", "host 0", "could not be reached");
    cli_free(&g.run[1]);
    g = (group){.n = 2};
    start_one(&g, 0, args, net.port, 2);
    start_one(&g, 1, args, net.port, 4);
    assert_true(end_in_time(&g, -1, end_s()));
    collect(&g);
    ASSERT_SAYS(&g, 0, 2, "counts 4 processes", "counts 2");
    ASSERT_SAYS(&g, 1, 3, "counts 4 processes");
    clear(&g);
    start(&g, 3, args);
    assert_true(end_in_time(&g, -1, end_s()));
    collect(&g);
    ASSERT_SAYS(&g, 0, 2, "3 processes", "2, 4 or 8");
    clear(&g);
}

static void wrong_settings_are_refused(void **state) {
    (void)state;
    cli_run run = CLI(DEMO, BRIEF, "--hosts", "auto");
    run.env[0] = "RANK=0";
    run.env[1] = "WORLD_SIZE=2";
    expect(run, 2, "MASTER_ADDR");
    run = CLI(DEMO, BRIEF, "--hosts", "off");
    run.env[0] = "RANK=0";
    run.env[1] = "WORLD_SIZE=2";
    expect(run, 0, ">Once");
    run = CLI(DEMO, BRIEF);
    run.env[0] = "RANK=nobody";
    run.env[1] = "WORLD_SIZE=2";
    expect(run, 2, "RANK is nobody");
    run.env[0] = "RANK=0";
    run.env[1] = "WORLD_SIZE=1"; /* torchrun with one process */
    expect(run, 0, ">Once");
    differ(ARGS(DEMO, "-p", "Once", "-t", "1", "-tp", "1"), ARGS(DEMO, "-p", "Once", "-t", "1", "-tp", "1"),
           WORDS("--tensor-parallel-size 1", "2 hosts"));
    differ(ARGS(DEMO, BRIEF, "--device", "cuda", "--exchange", "fused"),
           ARGS(DEMO, BRIEF, "--device", "cuda", "--exchange", "fused"),
           WORDS("--exchange fused", "GPUs of several hosts exchange by NCCL", "auto"));
    differ(ARGS(DEMO, BRIEF, "--device", "cuda"), ARGS(DEMO, BRIEF),
           WORDS("host 1 (", "runs on the CPU, this host on GPUs", "the same --device"));
}

/* Somebody connects who is not one of us. */
static void strangers_are_ignored(void **state) {
    (void)state;
    const char *const args[] = {DEMO, BRIEF, NULL};
    group g = {.n = 2};
    start_one(&g, 0, args, net.port, 2);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)net.port)};
    inet_pton(AF_INET, net.address, &to.sin_addr);
    if (net.apart) {
        assert_int_equal(setns(net.there[1], CLONE_NEWNET), 0);
    }
    int fd = -1;
    double until = now_s() + end_s();
    do {
        close(fd);
        usleep(5000);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    } while (connect(fd, (struct sockaddr *)&to, sizeof to) != 0 && now_s() < until);
    if (net.apart) {
        assert_int_equal(setns(net.here, CLONE_NEWNET), 0);
    }
    char request[80] = "GET / HTTP/1.1\r\n\r\n";
    assert_int_equal(send(fd, request, sizeof request, MSG_NOSIGNAL), sizeof request);
    start_one(&g, 1, args, net.port, 2);
    assert_true(end_in_time(&g, -1, end_s()));
    close(fd);
    collect(&g);
    ASSERT_SAYS(&g, 0, 0, "");
    ASSERT_SAYS(&g, 1, 0, "");
    clear(&g);
}

/* ---- The library, each host a thread ---- */

typedef struct library_host {
    int self;
    char address[48];
    ls_model *model;
    ls_status st;
    ls_error err;
} library_host;

static void join_and_open(library_host *h, ls_hosts **hosts, ls_engine **engine) {
    ls_hosts_params where = LS_HOSTS_PARAMS_INIT;
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    where.n_hosts = 2;
    where.host = h->self;
    where.address = h->address;
    params.tensor_parallel_size = 2;
    params.threads = 1;
    params.max_model_len_tokens = 256;
    params.device = "cpu";
    ASSERT_OK(ls_hosts_join(&where, hosts, &h->err), &h->err);
    assert_int_equal(ls_hosts_self(*hosts), h->self);
    params.hosts = *hosts;
    ASSERT_OK(ls_engine_open(h->model, &params, engine, &h->err), &h->err);
}

/* Gives up before the first step, after one that is not its business. */
static void *library_follower(void *arg) {
    library_host *h = arg;
    ls_hosts *hosts = NULL;
    ls_engine *engine = NULL;
    ls_error why = {.status = LS_EIO, .text = "the disk of host 1 is full"};
    join_and_open(h, &hosts, &engine);
    h->st = ls_engine_step(engine, &h->err);
    ls_engine_close(&engine);
    ls_hosts_leave(&hosts, &why);
    return NULL;
}

static void requests_fail_with_the_reason(void **state) {
    (void)state;
    library_host h[2] = {{.self = 0, .model = demo_model()}, {.self = 1, .model = demo_model()}};
    pthread_t thread;
    ls_hosts *hosts = NULL;
    ls_engine *engine = NULL;
    ls_request *request = NULL;
    ls_request_params p = LS_REQUEST_PARAMS_INIT;
    ls_result result = LS_RESULT_INIT;
    ls_error err = {0};
    for (int i = 0; i < 2; i++) {
        snprintf(h[i].address, sizeof h[i].address, "127.0.0.1:%d", net.port);
    }
    /* The first engine of a process has NVTX look for its profiler, which its header does without a lock. */
    ls_engine_params small = {.struct_size = sizeof small, .threads = 1, .max_model_len_tokens = 64};
    ls_engine *first = engine_open(h[0].model, &small);
    ls_engine_close(&first);
    assert_int_equal(pthread_create(&thread, NULL, library_follower, &h[1]), 0);
    join_and_open(&h[0], &hosts, &engine);
    ASSERT_FAILS(ls_engine_follow(engine, &err), &err, LS_EINVAL, "host 0 steps");
    p.prompt = "Once";
    p.prompt_bytes = 4;
    ASSERT_OK(ls_request_submit(engine, &p, &request, &err), &err);
    ASSERT_FAILS(ls_engine_step(engine, &err), &err, LS_EABORTED, "host 1 (", "the disk of host 1 is full");
    ASSERT_OK(ls_request_get_result(request, &result, &err), &err);
    assert_int_equal(result.finish, LS_FINISH_ERROR);
    assert_int_equal(result.status, LS_EABORTED);
    assert_non_null(strstr(result.error, "the disk of host 1 is full"));
    pthread_join(thread, NULL);
    assert_int_equal(h[1].st, LS_EINVAL); /* host 0 steps */
    ls_engine_close(&engine);
    ls_hosts_leave(&hosts, &err);
    ls_model_close(&h[0].model);
    ls_model_close(&h[1].model);
}

/* ---- Any moment of the start ---- */

/* Kills or interrupts one process, each time at another moment: the other ends too, by itself, and the next run finds its
 * port free. A few runs at a time, each at a port of its own. */
static void an_end_at_any_moment_leaves_nothing(void **state) {
    (void)state;
    enum { AT_ONCE = 10 };
    const int n_moments = sanitized() ? 12 : 100;
    const double longest_s = sanitized() ? 1.5 : 0.3;
    const char *const args[] = {DEMO, LONG, "-tp", "2", "--join-timeout", "0.6", "--host-timeout", "3", NULL};
    group g[AT_ONCE];
    int n_said = 0;
    for (int moment = 0; moment < n_moments; moment += AT_ONCE) {
        double when[AT_ONCE], began = now_s();
        int victim[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) {
            g[k] = (group){.n = 2};
            start_one(&g[k], 0, args, net.port + k, 2);
            start_one(&g[k], 1, args, net.port + k, 2);
            when[k] = longest_s * (moment + k) / n_moments;
            victim[k] = (moment / AT_ONCE + k) % 2;
        }
        for (int k = 0; k < AT_ONCE; k++) {
            double left = began + when[k] - now_s();
            wait_s(left > 0 ? left : 0);
            assert_false(has_ended(&g[k], victim[k]));
            kill(g[k].run[victim[k]].child, (moment / 2 + k) % 3 == 0 ? SIGINT : SIGKILL);
        }
        for (int k = 0; k < AT_ONCE; k++) {
            bool in_time = end_in_time(&g[k], -1, end_s());
            collect(&g[k]);
            const cli_run *other = &g[k].run[1 - victim[k]];
            if (!in_time || other->code < 0 || strstr(other->err, "in use") != NULL) {
                print_error("moment %d: %s; code %d: %s\n", moment + k, in_time ? "in time" : "too late", other->code,
                            other->err);
                fail();
            }
            n_said += strstr(other->err, "host") != NULL;
            clear(&g[k]);
        }
    }
    assert_true(n_said >= n_moments / 2);
}

/* ---- MPI ---- */

enum { OUTPUT = 1 << 15 };

/* As root, where it refuses otherwise; and daemons that notice a link that is down, as docs/hosts.md says. */
#define MPIRUN                                                                                                         \
    "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout -s KILL 60 mpirun --oversubscribe --bind-to "   \
    "none --mca oob_tcp_keepalive_time 1 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 2 "

static void skip_without_mpi(bool wants_hosts) {
    char out[OUTPUT];
    if (sanitized() || !has_program("mpirun") || (wants_hosts && !net.apart) ||
        shell(out, sizeof out, MPIRUN "-np 1 true") != 0) {
        skip();
    }
}

static void the_same_bits_under_mpirun(void **state) {
    (void)state;
    static const char args[] = "generate -m demo -p 'Once upon a time' -n 24 --temp 0 --json -t 1 --device cpu";
    char one[OUTPUT], many[OUTPUT];
    skip_without_mpi(false);
    SHELL(one, "%s %s | head -1", cli_program(), args);
    SHELL(many, MPIRUN "-np 2 %s %s -tp 4 | head -1", cli_program(), args);
    assert_non_null(strstr(one, "logits_hash"));
    assert_string_equal(one, many);
}

/* Where mpirun may not tell a process whom it runs for: the wrong library, or a launcher of another kind. */
static void mpi_that_is_alone_says_so(void **state) {
    (void)state;
    skip_without_mpi(false);
    cli_run run = CLI(DEMO, BRIEF);
    run.env[0] = "PMI_RANK=0";
    run.env[1] = "PMI_SIZE=2";
    run.env[2] = "OMPI_MCA_ess_singleton_isolated=1";
    expect(run, 2, "MPI counts 1 processes");
}

/* mpirun over the namespaces, which stand in for ssh: a line of shell that runs `what` on both hosts. Its output goes to
 * <folder>/out. */
static void mpirun_there(const char *folder, const char *what) {
    char script[2048], out[64];
    int n = snprintf(script, sizeof script,
                     "#!/bin/sh\nhost=$1\nshift\ncase $host in 10.77.0.1) ns=%s ;; *) ns=%s ;; esac\n"
                     "exec ip netns exec $ns unshare -u sh -c \"hostname $ns; $*\"\n",
                     net.name[0], net.name[1]);
    file_write(folder, "agent", script, (size_t)n);
    n = snprintf(script, sizeof script,
                 "hostname %s\nexport " MPIRUN
                 "--mca plm_rsh_agent %s/agent --host 10.77.0.1:1,10.77.0.2:1 -np 2 %s %s >%s/out 2>&1\n",
                 net.name[0], folder, cli_program(), what, folder);
    char *timeout = strstr(script, "timeout -s");
    assert_non_null(timeout);
    timeout[-1] = '\n'; /* the variables before it are exported */
    file_write(folder, "run", script, (size_t)n);
    SHELL(out, "chmod +x %s/agent; ip netns exec %s unshare -u sh %s/run </dev/null >/dev/null 2>&1 &", folder,
          net.name[0], folder);
}

/* How many processes run on a host; of our program alone, or all. */
static int count_there(int host, bool all) {
    char out[64];
    SHELL(out, "for p in $(ip netns pids %s); do readlink /proc/$p/exe; done | grep -c %s || true", net.name[host],
          all ? "." : cli_program());
    return (int)strtol(out, NULL, 10);
}

static bool nobody_is_left(double seconds) {
    for (double until = now_s() + seconds; now_s() < until; wait_s(0.1)) {
        if (count_there(0, true) + count_there(1, true) == 0) {
            return true;
        }
    }
    return false;
}

static bool has_printed(const char *folder, off_t bytes) {
    char path[PATH_BYTES + 8];
    struct stat file;
    snprintf(path, sizeof path, "%s/out", folder);
    return stat(path, &file) == 0 && file.st_size >= bytes;
}

static char *end_of_run(const char *folder) {
    char out[64];
    size_t n;
    bool alone = nobody_is_left(end_s());
    SHELL(out, "for n in %s %s; do for p in $(ip netns pids $n); do kill -9 $p; done; done", net.name[0], net.name[1]);
    char *text = (char *)file_read(folder, "out", &n);
    if (!alone) {
        print_error("not all have ended in time; they said: %s\n", text);
    }
    assert_true(alone);
    return text;
}

/* absolute: mpirun's daemons start elsewhere. */
static void absolute_folder(char folder[PATH_BYTES]) {
    char relative[PATH_BYTES], *path;
    folder_make(relative);
    path = realpath(relative, NULL);
    assert_non_null(path);
    snprintf(folder, PATH_BYTES, "%s", path);
    free(path);
}

static void hosts_under_mpirun_end_within_seconds(void **state) {
    (void)state;
    skip_without_mpi(true);
    for (int cut = 0; cut < 2; cut++) {
        char folder[PATH_BYTES], out[64];
        absolute_folder(folder);
        mpirun_there(folder,
                     "generate -m demo -p Once -n 2000 --ignore-eos --temp 0 -t 1 --device cpu --max-model-len 2040 "
                     "--timeline none -tp 2");
        for (double until = now_s() + 20; !has_printed(folder, 40) && now_s() < until;) {
            wait_s(0.02);
        }
        assert_int_equal(count_there(0, false), 1);
        assert_int_equal(count_there(1, false), 1);
        if (cut) {
            set_link(false);
        } else {
            SHELL(out, "for p in $(ip netns pids %s); do [ $(readlink /proc/$p/exe) != %s ] || kill -9 $p; done",
                  net.name[1], cli_program());
        }
        char *text = end_of_run(folder);
        set_link(true);
        /* mpirun may be the first to notice, and names the host; ours then say what they were doing. */
        bool named = strstr(text, cut ? "host 1 (" : "exited on signal 9") != NULL ||
                     (cut && strstr(text, "on node 10.77.0.2") != NULL);
        bool phase = strstr(text, " step ") != NULL;
        if (!named || !phase) {
            print_error("%s: it ended with: %s\n", cut ? "cut off" : "killed",
                        text + (strlen(text) > 900 ? strlen(text) - 900 : 0));
        }
        assert_true(named && phase);
        free(text);
        folder_remove(folder);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_bits_as_one_host),
        cmocka_unit_test(other_commands_too),
        cmocka_unit_test(a_killed_host_ends_all),
        cmocka_unit_test(a_stopped_host_ends_all),
        cmocka_unit_test(a_host_that_is_cut_off_ends_all),
        cmocka_unit_test(a_host_that_fails_between_steps_is_noticed),
        cmocka_unit_test(ctrl_c_ends_all_in_order),
        cmocka_unit_test(other_options_are_named),
        cmocka_unit_test(other_files_are_named),
        cmocka_unit_test(wrong_numbers_are_named),
        cmocka_unit_test(wrong_settings_are_refused),
        cmocka_unit_test(strangers_are_ignored),
        cmocka_unit_test(requests_fail_with_the_reason),
        cmocka_unit_test(an_end_at_any_moment_leaves_nothing),
        cmocka_unit_test(the_same_bits_under_mpirun),
        cmocka_unit_test(mpi_that_is_alone_says_so),
        cmocka_unit_test(hosts_under_mpirun_end_within_seconds),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
