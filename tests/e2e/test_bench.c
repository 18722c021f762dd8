/*
 * bench: every measurement gives results that hold together, --compare tells worse from better, and what is no results file
 * is refused by name. report: a page and a text from files alone; tests/e2e/report has made-up ones, whose text is golden.
 */
#include <math.h>
#include <unistd.h>

#include "tool.h"

#define ENGINE "-m demo --device cpu -t 1 -r 2 --output-len 4 "
#define REPORT_FILES                                                                                                   \
    "latency.json throughput.json sweep.json startup.json ops.json limits.json exchange.json serve.json "              \
    "peers.json"

static char folder[PATH_BYTES], build[PATH_BYTES];

static int make_folder(void **state) {
    (void)state;
    folder_make(folder);
    build_folder(build);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    folder_remove(folder);
    return 0;
}

static const char *text(const json_t *object, const char *key) {
    const char *value = json_string_value(json_object_get(object, key));
    return value != NULL ? value : "";
}

/* ---- Results ---- */

/* Every metric's figures are those of its runs. */
static void check_metrics(const json_t *row, size_t repetitions) {
    const char *name;
    json_t *m;
    json_object_foreach(json_object_get(row, "metrics"), name, m) {
        const json_t *runs = json_object_get(m, "runs");
        assert_int_equal(json_array_size(runs), repetitions);
        assert_int_equal((size_t)json_number(m, "n"), repetitions);
        double min = INFINITY, max = -INFINITY;
        for (size_t i = 0; i < repetitions; i++) {
            double run = json_number_value(json_array_get(runs, i));
            min = run < min ? run : min;
            max = run > max ? run : max;
        }
        assert_true(json_number(m, "min") == min && json_number(m, "max") == max);
        assert_true(json_number(m, "median") >= min && json_number(m, "median") <= max);
        assert_non_null(strstr("less more neither", text(m, "better")));
    }
}

/* Runs it; its document is in order; the rows are its caller's. */
static json_t *bench(const char *args) {
    char line[1024];
    snprintf(line, sizeof line, "bench %s", args);
    json_t *root = tool_json(line, 0);
    assert_int_equal((int)json_number(root, "lockstep_results"), 1);
    assert_true(strlen(text(root, "commit")) >= 7);
    assert_true(strlen(text(root, "date")) == strlen("2026-01-02T03:04:05Z"));
    assert_int_equal(strncmp(text(root, "command"), "lockstep bench", 14), 0);
    assert_true(strlen(text(json_object_get(root, "device"), "name")) > 2);
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        check_metrics(row, (size_t)json_number(root, "repetitions"));
    }
    return root;
}

static const json_t *row_of(const json_t *root, const char *test) {
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        if (strcmp(text(row, "test"), test) == 0) {
            return row;
        }
    }
    fail_msg("no row %s", test);
    return NULL;
}

static double median(const json_t *row, const char *metric) {
    char path[96];
    snprintf(path, sizeof path, "metrics.%s.median", metric);
    return json_number(row, path);
}

static void latency(void **state) {
    (void)state;
    json_t *root = bench("latency " ENGINE "--input-len 5,4096");
    assert_true(median(row_of(root, "total20"), "total_ms") > median(row_of(root, "total20"), "first_token_ms"));
    assert_true(median(row_of(root, "total20 first"), "total_ms") > 0);
    assert_true(median(row_of(root, "pp5"), "first_token_ms") > 0);
    assert_non_null(strstr(text(row_of(root, "pp4096"), "absent"), "2048"));
    const json_t *step = row_of(root, "tg4");
    assert_true(fabs(median(step, "weight_bytes") - 17847296) < 1);
    assert_true(median(step, "kv_bytes") > 0 && median(step, "step_ms") > 0);
    assert_true(median(step, "exchanges") == 17);
    json_decref(root);
}

static void throughput(void **state) {
    (void)state;
    json_t *root = bench("throughput " ENGINE "--batch-size 1,2 --input-len 8");
    assert_int_equal(json_array_size(json_object_get(root, "rows")), 4);
    const json_t *pair = json_array_get(json_object_get(root, "rows"), 1);
    const double ms = median(pair, "step_ms"), rate = median(pair, "tokens_per_s");
    assert_true(fabs(rate * ms / 2000 - 1) < 0.2); /* two tokens a step; medians of two runs each */
    assert_true(median(row_of(root, "mixed static"), "tokens_per_s") > 0);
    assert_true(median(row_of(root, "mixed continuous"), "tokens_per_s") > 0);
    json_decref(root);
}

static void sweep(void **state) {
    (void)state;
    json_t *root = bench("sweep " ENGINE "--vary dtype=f32,bf16 --vary tp=1,3 --input-len 8 --batch-size 1,2 -q w8a16");
    const json_t *rows = json_object_get(root, "rows");
    assert_int_equal(json_array_size(rows), 8);
    for (size_t i = 0; i < 8; i++) {
        const json_t *row = json_array_get(rows, i), *settings = json_object_get(row, "settings");
        const bool split = i / 2 % 2 == 1;
        assert_string_equal(text(settings, "dtype"), i < 4 ? "f32" : "bf16");
        assert_string_equal(text(settings, "quantization"), "w8a16");
        assert_int_equal((int)json_number(settings, "tp"), split ? 3 : 1);
        assert_int_equal((int)json_number(settings, "batch"), i % 2 == 0 ? 1 : 2);
        assert_int_equal(strstr(text(row, "absent"), "1, 2, 4 or 8") != NULL, split);
    }
    json_decref(root);
    root = bench("sweep " ENGINE "--vary temp=0,1 --vary graph-sizes=default,none -f tests/e2e/report/story.txt -r 1");
    assert_int_equal(json_array_size(json_object_get(root, "rows")), 4);
    const json_t *row = json_array_get(json_object_get(root, "rows"), 3);
    assert_string_equal(text(json_object_get(row, "settings"), "graph-sizes"), "none");
    assert_true(json_number(row, "settings.temp") == 1);
    assert_true(median(row, "perplexity") > 1 && median(row, "perplexity") < 100);
    json_decref(root);
}

static void startup(void **state) {
    (void)state;
    json_t *root = bench("startup " ENGINE "--max-model-len 64");
    const char *const tests[] = {"cold", "warm"};
    for (size_t i = 0; i < COUNT(tests); i++) {
        const json_t *row = row_of(root, tests[i]);
        const double whole = median(row, "process_ms"), first = median(row, "first_byte_ms");
        assert_true(first > 0 && whole >= first);
        assert_true(median(row, "load_ms") > 0 && median(row, "shard_ms") > 0 && median(row, "first_step_ms") > 0);
        assert_true(median(row, "load_ms") + median(row, "plan_ms") + median(row, "shard_ms") < whole);
    }
    assert_true(json_number(row_of(root, "warm"), "metrics.resident_percent.max") > 99);
    json_decref(root);
}

static void startup_of_made_up_weights(void **state) {
    (void)state;
    json_t *root = bench("startup " ENGINE "--load-format dummy -r 1");
    assert_true(median(row_of(root, "warm"), "shard_ms") > 0);
    json_decref(root);
}

/* flops a byte: a bf16 matrix is multiplied with one row, two operations for every two bytes, or with eight. */
static void ops(void **state) {
    (void)state;
    json_t *root = bench("ops " ENGINE "--input-len 8");
    size_t i, n = 0;
    json_t *row;
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        const bool decode = strcmp(text(json_object_get(row, "settings"), "phase"), "decode") == 0;
        if (strcmp(text(row, "test"), "out") == 0) {
            assert_true(fabs(median(row, "flops") / median(row, "bytes") - (decode ? 1 : 8)) < 1e-9);
            n++;
        }
        assert_true(median(row, "op_us") > 0);
    }
    assert_int_equal(n, 2);
    assert_true(median(row_of(root, "attn"), "flops") > 0);
    json_decref(root);
    EXPECT_TOOL("generate -m demo --device cpu -t 1 -p Once -n 3 --temp 0 --profile", 0, "us each", "ffn_in",
                "prefill");
    EXPECT_TOOL("generate -m demo --device cpu -t 1 -tp 2 -p Once -n 3 --temp 0 --profile", 0, "least us    most us");
}

static void limits(void **state) {
    (void)state;
    if (sanitized()) {
        print_message("skipped: speeds of a sanitizer\n");
        skip();
    }
    json_t *root = bench("limits --device cpu -r 1");
    assert_true(median(row_of(root, "DRAM read"), "bytes_per_s") > 1e8);
    assert_true(median(row_of(root, "CPU f32 multiply-add"), "flops_per_s") > 1e8);
    assert_true(median(row_of(root, "link of 2 CPU ranks"), "latency_us") > 0);
    assert_true(strlen(text(row_of(root, "HBM read"), "absent")) > 0);
    json_decref(root);
}

static void exchange(void **state) {
    (void)state;
    json_t *root = bench("exchange -t 1 -r 1 --exchange-sizes 64,64Ki");
    assert_int_equal(json_array_size(json_object_get(root, "rows")), 6);
    const json_t *row = json_array_get(json_object_get(root, "rows"), 1);
    assert_true(median(row, "exchange_us") > 0);
    assert_int_equal((int)json_number(row, "settings.bytes"), 65536);
    assert_string_equal(text(json_object_get(row, "settings"), "transport"), "threads");
    json_decref(root);
    root = bench("exchange --device cuda -r 1 -tp 2 --exchange-sizes 64");
    assert_non_null(strstr(text(row_of(root, "exchange"), "absent"), "--device cuda"));
    json_decref(root);
}

/* Two processes, as torchrun starts them: the first one prints. */
static void exchange_of_hosts(void **state) {
    (void)state;
    char out[16384];
    const int port = 20000 + (int)getpid() % 20000;
    SHELL(
        out,
        "run() { RANK=$1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=%d timeout 60 %s/lockstep bench exchange -tp 2 "
        "-t 1 -r 1 --exchange-sizes 1Ki -o csv; }; run 1 >%s/other 2>&1 & run 0 && wait && cat %s/other",
        port, build, folder, folder);
    assert_non_null(strstr(out, "transport=hosts, TCP"));
    assert_non_null(strstr(out, "exchange_us"));
    assert_null(strstr(strstr(out, "exchange_us") + 1, "exchange_us"));
}

static void exchange_refuses(void **state) {
    (void)state;
    ls_exchange_params params = LS_EXCHANGE_PARAMS_INIT;
    ls_exchange_speed speed = LS_EXCHANGE_SPEED_INIT;
    ls_error err = {0};
    params.n_ranks = 3;
    ASSERT_FAILS(ls_exchange_measure(&params, &speed, &err), &err, LS_EINVAL, "3 ranks");
    params = (ls_exchange_params)LS_EXCHANGE_PARAMS_INIT;
    params.bytes = 63;
    ASSERT_FAILS(ls_exchange_measure(&params, &speed, &err), &err, LS_EINVAL, "63 bytes");
    params = (ls_exchange_params)LS_EXCHANGE_PARAMS_INIT;
    params.n_rounds = 0;
    ASSERT_FAILS(ls_exchange_measure(&params, &speed, &err), &err, LS_EINVAL, "n_rounds");
    params = (ls_exchange_params)LS_EXCHANGE_PARAMS_INIT;
    params.device = "cuda";
    ASSERT_FAILS(ls_exchange_measure(&params, &speed, &err), &err, LS_EUNSUPPORTED, "--device cuda");
    params.struct_size = 0;
    ASSERT_FAILS(ls_exchange_measure(&params, &speed, &err), &err, LS_EINVAL, "ls_exchange_params");
    params = (ls_exchange_params)LS_EXCHANGE_PARAMS_INIT;
    params.n_ranks = 8;
    params.n_rounds = 3;
    params.threads = 1;
    ASSERT_OK(ls_exchange_measure(&params, &speed, &err), &err);
    assert_true(speed.min_us > 0 && speed.median_us >= speed.min_us && speed.max_us >= speed.median_us);
}

static void forms(void **state) {
    (void)state;
    EXPECT_TOOL("bench exchange -t 1 -r 1 -tp 2 --exchange-sizes 64", 0, "| test | exchange_us |", "| exchange |",
                "tp=2", "median (min to max)");
    EXPECT_TOOL("bench exchange -t 1 -r 1 -tp 2 --exchange-sizes 64 -o csv", 0,
                "what,test,settings,metric,median,min,max,n", "exchange,exchange,\"device=cpu tp=2 bytes=64",
                ",exchange_us,");
}

static void usage(void **state) {
    (void)state;
    EXPECT_TOOL("bench", 2, "bench latency", "bench serve");
    EXPECT_TOOL("bench other", 2, "bench latency");
    EXPECT_TOOL("bench latency", 2, "needs a model");
    EXPECT_TOOL("bench latency " ENGINE "--input-len 1,x", 2, "--input-len 1,x");
    EXPECT_TOOL("bench throughput " ENGINE "--batch-size 0", 2, "--batch-size 0");
    EXPECT_TOOL("bench sweep " ENGINE "--vary dtype", 2, "--vary dtype", "NAME=VALUE");
    EXPECT_TOOL("bench sweep " ENGINE "--vary port=1", 2, "--vary port=1", "no option");
    EXPECT_TOOL("bench sweep " ENGINE "--vary dtype=f99", 2, "--dtype f99");
    EXPECT_TOOL("bench exchange -tp 1", 2, "2, 4 or 8");
    EXPECT_TOOL("bench limits --output-json /no/folder/x.json -r 1 --device cpu -t 1", 1, "/no/folder/x.json");
    EXPECT_TOOL("report", 2, "report needs results");
}

/* ---- Comparing ---- */

/* All of a document's figures times `factor`. */
static void scale(json_t *root, double factor) {
    static const char *const keys[] = {"median", "min", "max"};
    size_t i;
    json_t *row, *m;
    const char *name;
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        json_object_foreach(json_object_get(row, "metrics"), name, m) {
            for (size_t k = 0; k < COUNT(keys); k++) {
                json_object_set_new(m, keys[k], json_real(json_number(m, keys[k]) * factor));
            }
        }
    }
}

static void compare(void **state) {
    (void)state;
    char args[1024], path[PATH_BYTES + 16];
    const char *run = "exchange -t 1 -r 2 -tp 2 --exchange-sizes 64";
    json_t *root = bench(run);
    snprintf(path, sizeof path, "%s/before.json", folder);
    snprintf(args, sizeof args, "bench %s --compare %s", run, path);
    /* Of microseconds before, these are ever so many; and rates of then were ever so high. */
    json_t *worse = json_deep_copy(root), *better = json_deep_copy(root);
    json_object_del(json_object_get(json_array_get(json_object_get(worse, "rows"), 0), "metrics"), "bytes_per_s");
    json_object_del(json_object_get(json_array_get(json_object_get(better, "rows"), 0), "metrics"), "bytes_per_s");
    scale(worse, 1e-6);
    scale(better, 1e6);
    assert_int_equal(json_dump_file(worse, path, 0), 0);
    EXPECT_TOOL(args, 1, "| exchange_us |", "| WORSE |");
    assert_int_equal(json_dump_file(better, path, 0), 0);
    EXPECT_TOOL(args, 0, "| exchange_us |", "| better |");
    /* Another row is no match. */
    json_object_set_new(json_object_get(json_array_get(json_object_get(worse, "rows"), 0), "settings"), "bytes",
                        json_integer(65));
    assert_int_equal(json_dump_file(worse, path, 0), 0);
    EXPECT_TOOL(args, 0, "1 rows are not in", "not measured any more: exchange");
    json_decref(worse);
    json_decref(better);
    json_decref(root);
}

/* ---- Reading what is no result ---- */

static void bad_files(void **state) {
    (void)state;
#define HEAD "{\"lockstep_results\": 1, \"what\": \"ops\", \"device\": {\"name\": \"x\"}, \"rows\": "
#define ROW(metric) HEAD "[{\"test\": \"t\", \"settings\": {}, \"metrics\": {\"a_ms\": " metric "}}]}"
    static const struct {
        const char *text, *word;
    } cases[] = {
        {"", "bad.json"},
        {"[1, 2", "bad.json"},
        {"[1]", "lockstep_results"},
        {"{}", "lockstep_results"},
        {"{\"lockstep_results\": \"1\"}", "lockstep_results"},
        {"{\"lockstep_results\": 99, \"what\": \"ops\", \"device\": {}, \"rows\": []}", "version 99"},
        {"{\"lockstep_results\": 1, \"what\": \"ops\"}", "device and rows"},
        {HEAD "{}}", "rows"},
        {HEAD "[1]}", "row 1"},
        {HEAD "[{\"test\": 1, \"settings\": {}, \"metrics\": {}}]}", "test"},
        {HEAD "[{\"test\": \"t\", \"settings\": {}}]}", "row 1"},
        {HEAD "[{\"test\": \"t\", \"settings\": {\"a\": []}, \"metrics\": {}}]}", "settings.a"},
        {HEAD "[{\"test\": \"t\", \"settings\": {}, \"metrics\": {}, \"absent\": \"w\"}]}", "row 1"},
        {ROW("3"), "metrics.a_ms"},
        {ROW("{\"better\": \"up\"}"), "metrics.a_ms.better"},
        {ROW("{\"better\": \"less\", \"n\": 0}"), "n"},
        {ROW("{\"better\": \"less\", \"n\": 1, \"median\": \"1\"}"), "metrics.a_ms.median"},
        {ROW("{\"better\": \"less\", \"n\": 1, \"median\": 1, \"min\": 2, \"max\": 3}"), "between min and max"},
    };
    char args[PATH_BYTES + 64];
    for (size_t i = 0; i < COUNT(cases); i++) {
        file_write(folder, "bad.json", cases[i].text, strlen(cases[i].text));
        snprintf(args, sizeof args, "report %s/bad.json", folder);
        EXPECT_TOOL(args, 1, "bad.json", cases[i].word);
    }
    snprintf(args, sizeof args, "bench exchange -r 1 --compare %s/bad.json", folder);
    EXPECT_TOOL(args, 1, "bad.json", "between min and max");
    EXPECT_TOOL("report /no/such.json", 1, "/no/such.json");
}

/* ---- Report ---- */

static void report_is_golden(void **state) {
    (void)state;
    char out[65536];
    /* Two targets are missed in these files: exit code 1. */
    assert_int_equal(shell(out, sizeof out,
                           "bin=$(realpath %s/lockstep); cd tests/e2e/report; $bin report " REPORT_FILES
                           " --markdown %s/r.md",
                           build, folder),
                     1);
    assert_non_null(strstr(out, "2 targets were missed"));
    if (shell(out, sizeof out, "diff tests/e2e/report/expected.md %s/r.md", folder) != 0) {
        fail_msg("the report is another one:\n%s", out);
    }
}

static void report_of_nothing_says_so(void **state) {
    (void)state;
    static const char empty[] = HEAD "[]}";
    char args[PATH_BYTES + 64];
    int code;
    file_write(folder, "empty.json", empty, strlen(empty));
    snprintf(args, sizeof args, "report %s/empty.json", folder);
    char *out = tool(args, &code);
    assert_int_equal(code, 0);
    int n = 0;
    for (const char *at = out; (at = strstr(at, ": not measured.")) != NULL; at++) {
        n++;
    }
    assert_int_equal(n, 22); /* every section but targets and sources; gains have one each */
    free(out);
}

static void page_stands_alone(void **state) {
    (void)state;
    char out[65536];
    size_t n;
    shell(out, sizeof out,
          "bin=$(realpath %s/lockstep); cd tests/e2e/report; $bin report " REPORT_FILES " --html %s/r.html", build,
          folder);
    char *html = (char *)file_read(folder, "r.html", &n);
    assert_null(strstr(html, "<b>")); /* of a device's name */
    assert_non_null(strstr(html, "Made-up H100 &lt;b&gt;"));
    assert_null(strstr(html, "<script"));
    assert_null(strstr(html, "src="));
    assert_null(strstr(html, "href=\"http"));
    assert_non_null(strstr(html, "prefers-color-scheme:dark"));
    int n_links = 0;
    for (const char *at = html; (at = strstr(at, "<a href=\"#")) != NULL; n_links++) { /* each leads to a heading */
        char id[64], heading[80];
        at += strlen("<a href=\"#");
        assert_int_equal(sscanf(at, "%40[a-z]", id), 1);
        snprintf(heading, sizeof heading, "<h2 id=\"%s\">", id);
        assert_non_null(strstr(html, heading));
    }
    assert_int_equal(n_links, 19);
    if (has_program("gnuplot")) {
        int n_plots = 0;
        for (const char *at = html; (at = strstr(at, "<svg ")) != NULL; at++) {
            n_plots++;
        }
        assert_int_equal(n_plots, 7);
        assert_null(strstr(html, "gnuplot made no plot"));
        assert_null(strstr(html, "rgb(  0")); /* all colours are the page's */
    } else {
        assert_non_null(strstr(html, "gnuplot is not installed"));
    }
    free(html);
    /* Without gnuplot the same page has tables. */
    shell(out, sizeof out,
          "bin=$(realpath %s/lockstep); cd tests/e2e/report; PATH=/nowhere $bin report latency.json --html %s/r.html",
          build, folder);
    html = (char *)file_read(folder, "r.html", &n);
    assert_null(strstr(html, "<svg "));
    assert_non_null(strstr(html, "gnuplot is not installed"));
    free(html);
}

/* The runner of other programs writes results too: lockstep's own row, and those that are not here as absent. */
static void peers_that_are_absent(void **state) {
    (void)state;
    char out[16384], args[PATH_BYTES + 64];
    if (sanitized() || !has_program("python3")) {
        print_message("skipped: a process that is slow, or python3 is not here\n");
        skip();
    }
    file_copy("demo", folder, "config.json");
    SHELL(out,
          "PATH=/usr/bin:/bin python3 bench/peers/run.py --lockstep %s/lockstep --model %s --name tiny --device cpu "
          "--peers vllm,llama,trtllm --modes bf16 --runs 1 --n 4 --llama-bench /no/llama-bench --output-json "
          "%s/peers.json",
          build, folder, folder);
    snprintf(args, sizeof args, "report %s/peers.json", folder);
    EXPECT_TOOL(args, 0, "| lockstep | bf16 | 1 | 1 | 26 |",
                "| vllm | bf16 | 1 | 1 | 26 | absent: no vllm on the PATH |",
                "| llama | bf16 | 1 | 1 | 26 | absent: no llama-bench", "| trtllm |");
}

/* What bench writes, report reads. */
static void round_trip(void **state) {
    (void)state;
    char args[PATH_BYTES + 256];
    snprintf(args, sizeof args, "bench exchange -t 1 -r 1 -tp 2 --exchange-sizes 64 --output-json %s/x.json", folder);
    EXPECT_TOOL(args, 0, "| exchange |");
    snprintf(args, sizeof args, "report %s/x.json", folder);
    EXPECT_TOOL(args, 0, "| cpu, threads | 2 | 64 |", "x.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(latency),
        cmocka_unit_test(throughput),
        cmocka_unit_test(sweep),
        cmocka_unit_test(startup),
        cmocka_unit_test(ops),
        cmocka_unit_test(limits),
        cmocka_unit_test(exchange),
        cmocka_unit_test(exchange_of_hosts),
        cmocka_unit_test(exchange_refuses),
        cmocka_unit_test(forms),
        cmocka_unit_test(usage),
        cmocka_unit_test(compare),
        cmocka_unit_test(bad_files),
        cmocka_unit_test(report_is_golden),
        cmocka_unit_test(report_of_nothing_says_so),
        cmocka_unit_test(page_stands_alone),
        cmocka_unit_test(peers_that_are_absent),
        cmocka_unit_test(round_trip),
        cmocka_unit_test(startup_of_made_up_weights),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
