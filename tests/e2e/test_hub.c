/*
 * Models by name, against an imitation of the hub (hub_server.py): what is asked and what is not, where the token goes,
 * ranges, retries, failures, resuming after kill -9, two processes at once, offline, and the command line on top of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <pty.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "e2e.h"

static char scratch[PATH_BYTES], endpoint[64], tls_endpoint[64];
static pid_t server;
static int server_input;

/* ---- The server ---- */

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

static void path_in(char path[PATH_BYTES], const char *format, ...) __attribute__((format(printf, 2, 3)));
static void path_in(char path[PATH_BYTES], const char *format, ...) {
    va_list args;
    int n = snprintf(path, PATH_BYTES, "%s/", scratch);
    va_start(args, format);
    n += vsnprintf(path + n, PATH_BYTES - (size_t)n, format, args);
    va_end(args);
    assert_true(n < PATH_BYTES);
}

static int start_server(void **state) {
    int input[2];
    char ports[PATH_BYTES];
    (void)state;
    static const char *const unwanted[] = {"http_proxy",    "https_proxy",  "all_proxy",      "HTTPS_PROXY",
                                           "ALL_PROXY",     "HF_HOME",      "HF_HUB_OFFLINE", "HF_TOKEN",
                                           "HF_TOKEN_PATH", "SSL_CERT_FILE"};
    for (size_t i = 0; i < COUNT(unwanted); i++) {
        unsetenv(unwanted[i]);
    }
    folder_make(scratch);
    if (pipe2(input, O_CLOEXEC) != 0 || (server = fork()) < 0) {
        return -1;
    }
    if (server == 0) {
        dup2(input[0], STDIN_FILENO);
        execlp("python3", "python3", "tests/e2e/hub_server.py", scratch, (char *)NULL);
        _exit(127);
    }
    close(input[0]);
    server_input = input[1];
    path_in(ports, "ports");
    for (int i = 0; i < 1000; i++) {
        int hub, cdn, tls;
        FILE *file = fopen(ports, "r");
        if (file != NULL && fscanf(file, "%d %d %d", &hub, &cdn, &tls) == 3) {
            snprintf(endpoint, sizeof endpoint, "http://127.0.0.1:%d", hub);
            snprintf(tls_endpoint, sizeof tls_endpoint, "https://127.0.0.1:%d", tls);
            return fclose(file);
        }
        usleep(20000);
    }
    return -1;
}

static int stop_server(void **state) {
    (void)state;
    close(server_input);
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
    return nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The log's requests whose path holds a word (and whose server has that name, if it is not NULL). */
static json_t *requests(const char *word, const char *name) {
    size_t n;
    usleep(20000); /* the server logs a request when it has answered it */
    char *text = (char *)file_read(scratch, "log", &n);
    json_t *all = json_array();
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        json_t *entry = json_loads(line, 0, NULL);
        const char *path = json_string_value(json_object_get(entry, "path"));
        const char *by = json_string_value(json_object_get(entry, "server"));
        if (path != NULL && strstr(path, word) != NULL && (name == NULL || strcmp(by, name) == 0)) {
            json_array_append(all, entry);
        }
        json_decref(entry);
    }
    free(text);
    return all;
}

static int64_t number_of(const json_t *entry, const char *key) {
    return json_integer_value(json_object_get(entry, key));
}

static size_t n_requests(const char *word, const char *name) {
    json_t *all = requests(word, name);
    size_t n = json_array_size(all);
    json_decref(all);
    return n;
}

/* Bytes that were sent of a repository's large files, of those requests whose path also holds `also` if it is not NULL
 * (the hub counts in a signature how often it has sent us to a file), and the first of them. */
static int64_t sent_bytes(const char *repo, const char *also, int64_t *lowest) {
    json_t *all = requests(repo, "cdn");
    int64_t bytes = 0;
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *entry = json_array_get(all, i);
        if (also != NULL && strstr(json_string_value(json_object_get(entry, "path")), also) == NULL) {
            continue;
        }
        bytes += number_of(entry, "sent");
        if (lowest != NULL && json_object_get(entry, "first") != NULL && number_of(entry, "first") < *lowest) {
            *lowest = number_of(entry, "first");
        }
    }
    json_decref(all);
    return bytes;
}

/* ---- Finding ---- */

static void keep_line(void *user, ls_log_level level, const char *text) {
    (void)level;
    snprintf(user, 512, "%s", text);
}

static ls_hub_params params_with(const char *cache) {
    ls_hub_params params = LS_HUB_PARAMS_INIT;
    params.cache_folder = cache;
    params.endpoint = endpoint;
    params.retry_delay_ms = 5;
    params.timeout_ms = 2000;
    return params;
}

/* A cache of its own for each test. */
static void cache_make(char cache[PATH_BYTES], const char *name) {
    path_in(cache, "%s", name);
    assert_int_equal(mkdir(cache, 0777), 0);
}

static void assert_good(const ls_hub_params *params, const char *name, char folder[PATH_BYTES]) {
    ls_error err = {0};
    char *found = NULL;
    ASSERT_OK(ls_hub_find(params, name, &found, &err), &err);
    assert_non_null(found);
    assert_true(strlen(found) < PATH_BYTES);
    strcpy(folder, found);
    ls_free(found);
}

static void assert_bad(const ls_hub_params *params, const char *name, ls_status expected, const char *word) {
    ls_error err = {0};
    char *found = NULL;
    ASSERT_FAILS(ls_hub_find(params, name, &found, &err), &err, expected, word);
    assert_null(found);
}

/* Finds org/NAME in a fresh cache and expects a failure that leaves neither a blob nor a link to the weights. */
static void expect_failure(const char *name, ls_status expected, const char *word) {
    char cache[PATH_BYTES], repo[128], path[PATH_BYTES];
    snprintf(repo, sizeof repo, "org/%s", name);
    cache_make(cache, name);
    ls_hub_params params = params_with(cache);
    params.max_retries = 3;
    assert_bad(&params, repo, expected, word);
    snprintf(path, sizeof path, "models--org--%s/refs/main", name);
    char ref[PATH_BYTES];
    path_in(ref, "%s/%s", name, path);
    assert_int_not_equal(access(ref, F_OK), 0);
}

static int64_t size_of(const char *folder, const char *name) {
    char path[2 * PATH_BYTES];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return stat(path, &info) == 0 ? info.st_size : -1;
}

/* A link of a snapshot to a blob, as huggingface_hub makes it. */
static void assert_link(const char *folder, const char *name, const char *up) {
    char path[2 * PATH_BYTES], target[PATH_BYTES] = "";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_true(readlink(path, target, sizeof target - 1) > 0);
    assert_int_equal(strncmp(target, up, strlen(up)), 0);
    assert_int_equal(strncmp(target + strlen(up), "blobs/", 6), 0);
}

typedef struct watched {
    int n_calls, n_files;
    int64_t bytes, total, fetched;
    int stop_after; /* files; 0: never */
} watched;

static bool watch(void *user, const ls_hub_progress *p) {
    watched *s = user;
    assert_true(p->bytes >= s->bytes && p->bytes <= p->total_bytes);
    assert_true(p->total_bytes >= s->total && p->files <= p->total_files);
    s->n_calls++;
    s->n_files += p->file != NULL;
    s->bytes = p->bytes;
    s->total = p->total_bytes;
    s->fetched = p->fetched_bytes;
    return s->stop_after == 0 || s->n_files < s->stop_after;
}

static void layout_and_progress(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES], again[PATH_BYTES], ref[64] = "";
    watched seen = {0};
    cache_make(cache, "plain");
    ls_hub_params params = params_with(cache);
    params.progress_fn = watch;
    params.user = &seen;
    assert_good(&params, "org/plain", folder);
    assert_int_equal(size_of(folder, "model.safetensors"), (20 << 20) + 123);
    assert_int_equal(size_of(folder, "tokenizer_config.json"), 0);
    assert_int_equal(size_of(folder, "README.md"), -1);
    assert_int_equal(size_of(folder, "pytorch_model.bin"), -1);
    assert_int_equal(size_of(folder, "additional_chat_templates/deep/no.jinja"), -1);
    assert_link(folder, "model.safetensors", "../../");
    assert_link(folder, "config.json", "../../");
    assert_link(folder, "additional_chat_templates/tool_use.jinja", "../../../");
    size_t n;
    char *text = (char *)file_read(cache, "models--org--plain/refs/main", &n);
    snprintf(ref, sizeof ref, "%s", text);
    free(text);
    assert_int_equal(strlen(ref), 40);
    assert_non_null(strstr(folder, ref));
    assert_int_equal(seen.n_files, 6);
    assert_int_equal(seen.bytes, seen.total);
    assert_int_equal(seen.fetched, seen.total);
    assert_int_equal(sent_bytes("org/plain", NULL, NULL), (20 << 20) + 123 + 5000); /* each byte once */
    params.progress_fn = NULL;
    /* Known: only the branch is asked for; a commit not even that. */
    size_t before = n_requests("org/plain", NULL);
    assert_good(&params, "org/plain", again);
    assert_string_equal(folder, again);
    assert_int_equal(n_requests("org/plain", NULL), before + 1);
    char name[128];
    snprintf(name, sizeof name, "org/plain@%s", ref);
    assert_good(&params, name, again);
    assert_string_equal(folder, again);
    assert_int_equal(n_requests("org/plain", NULL), before + 1);
    assert_good(&params, "org/plain@refs/pr/1", again);
    assert_string_equal(folder, again);
    assert_int_equal(size_of(cache, "models--org--plain/refs/refs/pr/1"), 40);
    /* The branch moves: what is the same is not fetched again. */
    char command[256];
    snprintf(command, sizeof command, "python3 -c 'import urllib.request as u; u.urlopen(\"%s/_move/org/plain\")'",
             endpoint);
    assert_int_equal(system(command), 0);
    assert_good(&params, "org/plain", again);
    assert_string_not_equal(folder, again);
    assert_int_equal(sent_bytes("org/plain", NULL, NULL), (20 << 20) + 123 + 5000);
    ls_hub_model *model;
    ls_error err = {0};
    ASSERT_OK(ls_hub_list(&params, &model, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_string_equal(model[0].name, "org/plain");
    assert_true(model[0].complete && model[0].bytes > 20 << 20);
    assert_non_null(strstr(again, model[0].commit));
    ls_free(model);
}

static void sharded_and_without_weights(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES];
    cache_make(cache, "sharded");
    ls_hub_params params = params_with(cache);
    params.skip_weights = true;
    assert_good(&params, "org/sharded", folder);
    assert_int_equal(size_of(folder, "tokenizer.json"), 5000);
    assert_int_equal(size_of(folder, "model.safetensors.index.json"), -1);
    params.skip_weights = false;
    assert_good(&params, "org/sharded", folder);
    assert_int_equal(size_of(folder, "model-00001-of-00003.safetensors"), 9 << 20);
    assert_int_equal(size_of(folder, "model-00002-of-00003.safetensors"), 100);
    assert_int_equal(size_of(folder, "model-00003-of-00003.safetensors"), 0);
    assert_int_equal(size_of(folder, "model-00009-of-00009.safetensors"), -1);
    assert_int_equal(sent_bytes("org/sharded", NULL, NULL), (9 << 20) + 100 + 5000);
}

static void the_token_stays_with_the_hub(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES];
    cache_make(cache, "private");
    ls_hub_params params = params_with(cache);
    assert_bad(&params, "org/private", LS_EDENIED, "set HF_TOKEN");
    params.token = "hf_wrong";
    assert_bad(&params, "org/private", LS_EDENIED, "does not accept the token");
    params.token = "hf_secret\r\nX-Evil: 1";
    assert_bad(&params, "org/private", LS_EINVAL, "token");
    params.token = "hf_secret";
    assert_good(&params, "org/private", folder);
    json_t *hub = requests("org/private", "hub"), *cdn = requests("org/private", "cdn");
    size_t n_with = 0;
    for (size_t i = 0; i < json_array_size(hub); i++) {
        n_with += strcmp(json_string_value(json_object_get(json_array_get(hub, i), "token")), "Bearer hf_secret") == 0;
    }
    assert_int_equal(n_with, json_array_size(hub) - 2); /* the first two had none, and a wrong one */
    assert_true(json_array_size(cdn) >= 2);
    for (size_t i = 0; i < json_array_size(cdn); i++) {
        assert_string_equal(json_string_value(json_object_get(json_array_get(cdn, i), "token")), "");
    }
    json_decref(hub);
    json_decref(cdn);
}

static void refusals(void **state) {
    (void)state;
    expect_failure("gated", LS_EDENIED, "gated: ask for access at http://127.0.0.1");
    expect_failure("absent", LS_ENOTFOUND, "no such model");
    expect_failure("lost", LS_ENOTFOUND, "model.safetensors: not on");
    expect_failure("alwaysbusy", LS_ENETWORK, "too many requests");
    expect_failure("broken", LS_ENETWORK, "HTTP 500: it ?[31mhurts"); /* nothing a terminal obeys */
    expect_failure("noconfig", LS_EUNSUPPORTED, "no config.json");
    expect_failure("noweights", LS_EUNSUPPORTED, "no model.safetensors");
    expect_failure("garbage", LS_EFORMAT, "not valid JSON");
    expect_failure("loop", LS_ENETWORK, "more than 5 redirects");
    expect_failure("scheme", LS_ENETWORK, "file:///etc/passwd");
    char cache[PATH_BYTES];
    cache_make(cache, "revision");
    ls_hub_params params = params_with(cache);
    assert_bad(&params, "org/other@nope", LS_ENOTFOUND, "has no revision 'nope'");
}

static void what_a_hub_could_try(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES], path[PATH_BYTES];
    expect_failure("evilindex", LS_EFORMAT, "../../evil.safetensors");
    expect_failure("lackingindex", LS_EFORMAT, "model-00004-of-00003.safetensors, which the repository lacks");
    expect_failure("evilhash", LS_EFORMAT, "not a hash");
    expect_failure("evilcommit", LS_EFORMAT, "sha");
    expect_failure("huge", LS_EIO, "free");
    expect_failure("liar", LS_ENETWORK, "its list says 299000 bytes");
    expect_failure("liarmore", LS_ENETWORK, "its list says 301000 bytes");
    cache_make(cache, "evilname");
    ls_hub_params params = params_with(cache);
    assert_good(&params, "org/evilname", folder);
    assert_int_equal(size_of(folder, "../evil"), -1);
    path_in(path, "evilname/evil");
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_not_equal(access("/tmp/lockstep-evil", F_OK), 0);
    cache_make(cache, "other");
    params = params_with(cache);
    assert_bad(&params, "org/othercommit@1111111111111111111111111111111111111111", LS_ENOTFOUND, "has no revision");
    assert_bad(&params, "org/../etc", LS_EINVAL, "not a name");
    assert_bad(&params, "org/name@../../x", LS_EINVAL, "not a revision");
}

/* What goes wrong once or twice is mended by asking again. */
static void mended(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t bytes, extra; /* of the weights; sent besides each byte once, at most */
    } cases[] = {{"norange", (20 << 20) + 123, 0},
                 {"wrongrange", 9 << 20, 9 << 20},
                 {"fickle", 20 << 20, 100 << 20}, /* ranges at first, then none */
                 {"direct", 300000, 0},
                 {"renamed", 300000, 0},
                 {"nometa", 300000, 0},
                 {"flaky", 300000, 0},
                 {"truncated", 300000, 0},
                 {"reset", 300000, 300000},
                 {"wholetruncated", 300000, 300000},
                 {"corrupt", 300000, 300000},
                 {"expires", 300000, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        char cache[PATH_BYTES], folder[PATH_BYTES], repo[64];
        snprintf(repo, sizeof repo, "org/%s", cases[i].name);
        cache_make(cache, cases[i].name);
        ls_hub_params params = params_with(cache);
        assert_good(&params, repo, folder);
        assert_int_equal(size_of(folder, "model.safetensors"), cases[i].bytes);
        int64_t sent = sent_bytes(repo, NULL, NULL);
        if (strcmp(cases[i].name, "direct") == 0) {
            assert_int_equal(sent, 0);
        } else if (sent < cases[i].bytes + 5000 || sent > cases[i].bytes + 5000 + cases[i].extra) {
            fail_msg("%s: %lld bytes sent", repo, (long long)sent);
        }
    }
}

static void waits_as_told_and_for_slow_servers(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES];
    cache_make(cache, "busy");
    ls_hub_params params = params_with(cache);
    params.skip_weights = true;
    double start = now_s();
    assert_good(&params, "org/busy", folder);
    assert_true(now_s() - start >= 2); /* one second for the list, one for the files side by side */
    assert_true(now_s() - start < 30);
    params.skip_weights = false;
    params.timeout_ms = 300; /* a body may stand still for three times as long, rounded up to seconds */
    assert_good(&params, "org/slow", folder);
    assert_int_equal(size_of(folder, "model.safetensors"), 300000);
}

static void corrupt_bytes_are_never_kept(void **state) {
    (void)state;
    char name[PATH_BYTES];
    size_t n = n_requests("org/alwayscorrupt", "cdn");
    expect_failure("alwayscorrupt", LS_ENETWORK, "do not match their hash");
    assert_true(n_requests("org/alwayscorrupt", "cdn") >= n + 2); /* tried once more */
    path_in(name, "alwayscorrupt/models--org--alwayscorrupt/snapshots");
    assert_int_equal(size_of(name, "model.safetensors"), -1);
    char command[2 * PATH_BYTES];
    path_in(name, "alwayscorrupt/models--org--alwayscorrupt/blobs");
    snprintf(command, sizeof command, "test -z \"$(find %s -size +200k)\"", name);
    assert_int_equal(system(command), 0);
    expect_failure("alwaystruncated", LS_ENETWORK, "");
}

static void encryption(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES];
    cache_make(cache, "tls");
    ls_hub_params params = params_with(cache);
    params.endpoint = tls_endpoint;
    params.max_retries = 1;
    assert_bad(&params, "org/tlsdirect", LS_ENETWORK, "certificate is not trusted");
    params.ca_file = "/nowhere.pem";
    assert_bad(&params, "org/direct-tls", LS_EIO, "/nowhere.pem");
    params.ca_file = "tests/e2e/hub_server.pem";
    assert_good(&params, "org/direct-tls", folder);
    assert_int_equal(size_of(folder, "model.safetensors"), 300000);
    assert_bad(&params, "org/downgrade", LS_ENETWORK, "refused, it is not encrypted");
    assert_bad(&params, "org/tlscdn", LS_ENETWORK, "refused, it is not encrypted"); /* the CDN has no TLS */
}

static void offline_and_unreachable(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES], again[PATH_BYTES], line[512] = "";
    cache_make(cache, "offline");
    ls_hub_params params = params_with(cache);
    params.offline = true;
    assert_bad(&params, "org/off", LS_ENOTFOUND, "HF_HUB_OFFLINE");
    assert_int_equal(n_requests("org/off", NULL), 0);
    params.offline = false;
    assert_good(&params, "org/off", folder);
    size_t n = n_requests("org/off", NULL);
    params.offline = true;
    assert_good(&params, "org/off", again);
    assert_string_equal(folder, again);
    assert_int_equal(n_requests("org/off", NULL), n);
    /* Nobody listens: the cache, with a warning; without a snapshot an error. */
    params.offline = false;
    params.endpoint = "http://127.0.0.1:1";
    params.max_retries = 2;
    params.log_fn = keep_line;
    params.user = line;
    params.log_level = LS_LOG_WARN;
    assert_good(&params, "org/off", again);
    assert_string_equal(folder, again);
    assert_non_null(strstr(line, "using what the cache has"));
    assert_bad(&params, "org/off2", LS_ENETWORK, "cannot be reached");
    ls_hub_state hub = LS_HUB_STATE_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_hub_check(&params, &hub, &err), &err);
    assert_false(hub.reachable);
    assert_non_null(strstr(hub.text, "cannot be reached"));
    params.endpoint = endpoint;
    ASSERT_OK(ls_hub_check(&params, &hub, &err), &err);
    assert_true(hub.reachable && hub.http_status == 200 && hub.latency_us > 0);
    /* A file is missing: offline says which. */
    char path[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_int_equal(unlink(path), 0);
    params.offline = true;
    assert_bad(&params, "org/off", LS_ENOTFOUND, "model.safetensors: missing");
}

/* A cache as huggingface_hub writes it, with other files than ours, and without what only we would fetch. */
static void a_cache_of_huggingface_hub(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES], command[4 * PATH_BYTES];
    static const char commit[] = "0123456789abcdef0123456789abcdef01234567";
    cache_make(cache, "theirs");
    snprintf(command, sizeof command,
             "cd %s && mkdir -p .locks/models--org--theirs models--org--theirs/refs models--org--theirs/blobs "
             "models--org--theirs/snapshots/%s datasets--org--x && cd models--org--theirs && printf %s >refs/main && "
             "for f in config.json tokenizer.json model.safetensors README.md; do printf '{}' >blobs/$f.x && "
             "ln -s ../../blobs/$f.x snapshots/%s/$f; done",
             cache, commit, commit, commit);
    assert_int_equal(system(command), 0);
    ls_hub_params params = params_with(cache);
    params.offline = true;
    assert_good(&params, "org/theirs", folder);
    assert_non_null(strstr(folder, commit));
    params.offline = false;
    char name[128];
    snprintf(name, sizeof name, "org/theirs@%s", commit);
    assert_good(&params, name, folder); /* a commit: no network */
    assert_int_equal(n_requests("org/theirs", NULL), 0);
    ls_hub_model *model;
    size_t n;
    ASSERT_OK(ls_hub_list(&params, &model, &n, NULL), &(ls_error){0});
    assert_int_equal(n, 1);
    assert_string_equal(model[0].commit, commit);
    assert_int_equal(model[0].bytes, 8);
    ls_free(model);
}

static void caches_that_cannot_be_written(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES], again[PATH_BYTES];
    cache_make(cache, "readonly");
    ls_hub_params params = params_with(cache);
    assert_good(&params, "org/ro", folder);
    /* A file where a folder should be refuses root as well. */
    file_write(cache, "models--org--blocked", "", 0);
    assert_bad(&params, "org/blocked", LS_EIO, "models--org--blocked");
    if (geteuid() != 0) {
        assert_int_equal(chmod(cache, 0555), 0);
        assert_good(&params, "org/ro", again); /* complete: nothing to write */
        assert_string_equal(folder, again);
        assert_bad(&params, "org/ro2", LS_EIO, "models--org--ro2");
        assert_int_equal(chmod(cache, 0755), 0);
    }
}

/* A disk that takes 100 kB of a file and no more. */
static void writing_fails_half_way(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES];
    int status;
    cache_make(cache, "full");
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        ls_hub_params params = params_with(cache);
        ls_error err = {0};
        char *found = NULL;
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){100000, 100000});
        bool good = ls_hub_find(&params, "org/full", &found, &err) == LS_EIO && found == NULL &&
                    strstr(err.text, ".incomplete: cannot write: ") != NULL;
        _exit(good ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    ls_hub_params params = params_with(cache);
    assert_good(&params, "org/full", folder);
    assert_int_equal(size_of(folder, "model.safetensors"), 300000);
    /* What was written is used; the tokenizer's 5000 bytes may have been on their way when the first try ended. */
    assert_in_range(sent_bytes("org/full", "signature=1", NULL), 200000, 205000);
}

/* ---- Processes ---- */

static pid_t fork_find(const char *cache, const char *repo, int connections) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        ls_hub_params params = params_with(cache);
        char *folder = NULL;
        params.connections = connections;
        _exit(ls_hub_find(&params, repo, &folder, NULL) == LS_OK ? 0 : 1);
    }
    return child;
}

static void killed_and_resumed(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES], find[2 * PATH_BYTES], part[PATH_BYTES] = "";
    enum { BIG = 48 << 20 };
    struct stat info = {0};
    cache_make(cache, "big");
    pid_t child = fork_find(cache, "org/big", 2); /* slowly */
    snprintf(find, sizeof find, "find %s -name '*.incomplete' -size +1000k 2>/dev/null", cache);
    for (int i = 0; i < 1000 && part[0] == '\0'; i++) {
        usleep(5000);
        FILE *found = popen(find, "r");
        if (found == NULL || fscanf(found, "%511s", part) != 1) {
            part[0] = '\0';
        }
        pclose(found);
    }
    for (int i = 0; i < 1000 && info.st_size <= 9000 << 10; i++) {
        usleep(1000);
        assert_int_equal(stat(part, &info), 0);
    }
    assert_int_equal(kill(child, SIGKILL), 0);
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(stat(part, &info), 0);
    assert_true(info.st_size > 9000 << 10 && info.st_size < BIG);
    int64_t lowest = INT64_MAX;
    watched seen = {0};
    ls_hub_params params = params_with(cache);
    params.progress_fn = watch;
    params.user = &seen;
    assert_good(&params, "org/big", folder);
    assert_int_equal(size_of(folder, "model.safetensors"), BIG);
    assert_int_equal(sent_bytes("org/big", "signature=1", &lowest), BIG - info.st_size);
    assert_int_equal(lowest, info.st_size);
    assert_int_equal(seen.fetched, BIG - info.st_size);
    assert_int_equal(seen.bytes, BIG); /* the small files were complete */
}

static void stopped_by_the_caller(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES];
    watched seen = {.stop_after = 2};
    cache_make(cache, "stopped");
    ls_hub_params params = params_with(cache);
    params.progress_fn = watch;
    params.user = &seen;
    assert_bad(&params, "org/stopped", LS_EABORTED, "stopped");
    seen = (watched){0};
    assert_good(&params, "org/stopped", folder);
    assert_true(seen.n_files <= 4);
}

static void two_processes_share_the_work(void **state) {
    (void)state;
    char cache[PATH_BYTES], folder[PATH_BYTES];
    cache_make(cache, "duo");
    pid_t child[2] = {fork_find(cache, "org/duo", 0), fork_find(cache, "org/duo", 0)};
    for (int i = 0; i < 2; i++) {
        int status;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(sent_bytes("org/duo", NULL, NULL), (24 << 20) + 5000); /* each byte once */
    ls_hub_params params = params_with(cache);
    params.offline = true;
    assert_good(&params, "org/duo", folder);
}

/* ---- The command line ---- */

static char *run(const char *arguments, int expected) {
    char command[4 * PATH_BYTES], cache[PATH_BYTES], *out = calloc(1, 1 << 16);
    const char *program = getenv("LS_BIN");
    path_in(cache, "cli");
    snprintf(command, sizeof command, "HF_HUB_CACHE=%s HF_ENDPOINT=%s/ HF_TOKEN=hf_secret %s %s 2>%s/stderr", cache,
             endpoint, program != NULL ? program : "build/lockstep", arguments, scratch);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    assert_true(fread(out, 1, (1 << 16) - 1, pipe) < 1 << 16);
    int status = pclose(pipe);
    if (WEXITSTATUS(status) != expected) {
        size_t n;
        fail_msg("%s: exit code %d: %s", arguments, WEXITSTATUS(status), file_read(scratch, "stderr", &n));
    }
    return out;
}

static void expect_stderr(const char *word) {
    size_t n;
    char *text = (char *)file_read(scratch, "stderr", &n);
    if (strstr(text, word) == NULL) {
        fail_msg("no '%s' in: %s", word, text);
    }
    free(text);
}

static void command_line(void **state) {
    (void)state;
    /* Text alone first: tokenize fetches no weights. */
    free(run("tokenize -m org/demo -p Once", 0));
    assert_int_equal(n_requests("org/demo/resolve", NULL), 4);
    char *out = run("pull org/demo", 0);
    assert_non_null(strstr(out, "/cli/models--org--demo/snapshots/"));
    expect_stderr("org/demo: model-00003-of-00003.safetensors, 4.33 MB (");
    free(out);
    out = run("generate -m org/demo -p 'Once upon a time' -n 4 --temp 0", 0);
    assert_non_null(strstr(out, "Once upon a time"));
    free(out);
    free(run("pull org/private-cli", 0)); /* HF_TOKEN and HF_ENDPOINT arrive */
    free(run("pull org/demo --revision nope", 1));
    expect_stderr("has no revision 'nope'");
    free(run("pull org/demo@main --revision main", 2));
    free(run("pull", 2));
    free(run("pull nonsense", 2));
    expect_stderr("'nonsense' is not a name of a model");
    free(run("generate -m org/absent -p a", 1));
    expect_stderr("no such model");
    /* Shapes that are built in are not looked up; others take the config from the hub, and nothing large. */
    free(run("generate -m Qwen/Qwen3-0.6B --load-format dummy -p a -n 0 --max-model-len 0", 2));
    assert_int_equal(n_requests("Qwen", NULL), 0);
    free(run("generate -m org/demo-dummy --load-format dummy -p a -n 1", 0));
    assert_int_equal(n_requests("org/demo-dummy", "cdn"), 0);
    assert_true(n_requests("org/demo-dummy", "hub") > 2);
}

/* On a terminal: one line that is drawn again and again, and taken away at the end. */
static void bar_on_a_terminal(void **state) {
    (void)state;
    char cache[PATH_BYTES], *seen = calloc(1, 1 << 16);
    const char *program = getenv("LS_BIN");
    size_t n = 0;
    int terminal, status;
    path_in(cache, "bar");
    fflush(NULL);
    pid_t child = forkpty(&terminal, NULL, NULL, &(struct winsize){.ws_row = 24, .ws_col = 100});
    assert_true(child >= 0);
    if (child == 0) {
        setenv("HF_HUB_CACHE", cache, 1);
        setenv("HF_ENDPOINT", endpoint, 1);
        execl(program != NULL ? program : "build/lockstep", "lockstep", "pull", "org/duo-bar", (char *)NULL);
        _exit(127);
    }
    for (ssize_t got = 1; got > 0 && n + 1 < 1 << 16; n += got > 0 ? (size_t)got : 0) {
        got = read(terminal, seen + n, (1 << 16) - 1 - n);
    }
    close(terminal);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    static const char *const parts[] = {
        "org/duo-bar [", " % ", " of 25.2 MB", "/s", "\r\033[K", "/bar/models--org--duo-bar/"};
    for (size_t i = 0; i < COUNT(parts); i++) {
        if (strstr(seen, parts[i]) == NULL) {
            fail_msg("no '%s' in: %s", parts[i], seen);
        }
    }
    for (char *line = strtok(seen, "\r\n"); line != NULL; line = strtok(NULL, "\r\n")) {
        assert_true(strlen(line) < 100 + strlen("\033[K") || strstr(line, "/bar/models--") != NULL);
    }
    free(seen);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_and_progress),
        cmocka_unit_test(sharded_and_without_weights),
        cmocka_unit_test(the_token_stays_with_the_hub),
        cmocka_unit_test(refusals),
        cmocka_unit_test(what_a_hub_could_try),
        cmocka_unit_test(mended),
        cmocka_unit_test(waits_as_told_and_for_slow_servers),
        cmocka_unit_test(corrupt_bytes_are_never_kept),
        cmocka_unit_test(encryption),
        cmocka_unit_test(offline_and_unreachable),
        cmocka_unit_test(a_cache_of_huggingface_hub),
        cmocka_unit_test(caches_that_cannot_be_written),
        cmocka_unit_test(writing_fails_half_way),
        cmocka_unit_test(killed_and_resumed),
        cmocka_unit_test(stopped_by_the_caller),
        cmocka_unit_test(two_processes_share_the_work),
        cmocka_unit_test(command_line),
        cmocka_unit_test(bar_on_a_terminal),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
