/*
 * Names of models, the cache's layout, and what a hub answers, without a network: what is accepted and what is refused, and
 * that nothing leads out of the cache.
 */
#include "file/hub.h"

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "file/http.h"
#include "file/hub_answer.h"

#define SHA1 "0123456789abcdef0123456789abcdef01234567"
#define SHA256 "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static char cache[64];

static int make_cache(void **state) {
    (void)state;
    strcpy(cache, "/tmp/lockstep-hub-XXXXXX");
    return mkdtemp(cache) == NULL;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

static int remove_cache(void **state) {
    (void)state;
    return nftw(cache, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void write_file(const char *folder, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(hub_make_folders(path, NULL), LS_OK);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0 && fclose(file) == 0);
}

/* ---- Names ---- */

static void names(void **state) {
    (void)state;
    static const char *const good[] = {"Qwen/Qwen3-4B",      "a/b",           "_a/b_",
                                       "A.b-c_d/0.1",        "org/name@main", "org/name@" SHA1,
                                       "org/name@refs/pr/1", "org/name@v1.0", "org/name@feature-x/y_z"};
    static const char *const bad[] = {"",
                                      "name",
                                      "/name",
                                      "org/",
                                      "org//name",
                                      "org/a/b",
                                      "../name",
                                      "org/..",
                                      "org/a..b",
                                      "org/a--b",
                                      "-org/name",
                                      "org/name-",
                                      "org/.name",
                                      "org/name.git",
                                      "org/na me",
                                      "org/n\xc3\xa4",
                                      "./name",
                                      "org/name@",
                                      "org/name@..",
                                      "org/name@a..b",
                                      "org/name@/a",
                                      "org/name@a/",
                                      "org/name@a//b",
                                      "org/name@a b",
                                      "org/name@a~1",
                                      "org/name@.a",
                                      "org/name@a/.b",
                                      "org/name@a:b",
                                      "org/name@a\\b",
                                      "org/name@a\n",
                                      "org/name@@{1}",
                                      "org/name@a."};
    char longest[256];
    hub_name name;
    ls_error err = {0};
    for (size_t i = 0; i < COUNT(good); i++) {
        if (hub_name_parse(&name, good[i], &err) != LS_OK) {
            fail_msg("%s: %s", good[i], err.text);
        }
        assert_true(ls_hub_is_name(good[i]));
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        if (hub_name_parse(&name, bad[i], &err) != LS_EINVAL || err.text[0] == '\0') {
            fail_msg("'%s' is accepted", bad[i]);
        }
        assert_false(ls_hub_is_name(bad[i]));
    }
    for (int n = 96; n <= 97; n++) { /* the longest part that the hub has */
        snprintf(longest, sizeof longest, "org/%0*d", n, 0);
        assert_int_equal(hub_name_parse(&name, longest, NULL), n == 96 ? LS_OK : LS_EINVAL);
    }
    assert_int_equal(hub_name_parse(&name, "org/name", NULL), LS_OK);
    assert_string_equal(name.repo, "org/name");
    assert_string_equal(name.revision, "main");
    assert_false(name.is_commit);
    assert_int_equal(hub_name_parse(&name, "org/name@" SHA1, NULL), LS_OK);
    assert_string_equal(name.revision, SHA1);
    assert_true(name.is_commit);
}

static void file_names(void **state) {
    (void)state;
    static const char *const safe[] = {"a", "a/b.json", ".hidden", "a..b", "a b", "..."};
    static const char *const unsafe[] = {"",     "/a", "../a", "a/../b", "a/..", "./a",
                                         "a//b", "a/", "a\\b", "a\nb",   "a\x7f"};
    for (size_t i = 0; i < COUNT(safe); i++) {
        assert_true(hub_file_name_is_safe(safe[i]));
    }
    for (size_t i = 0; i < COUNT(unsafe); i++) {
        if (hub_file_name_is_safe(unsafe[i])) {
            fail_msg("'%s' is accepted", unsafe[i]);
        }
    }
    char longest[300];
    memset(longest, 'a', sizeof longest);
    longest[256] = '\0';
    assert_false(hub_file_name_is_safe(longest));
    assert_true(hub_file_is_text("config.json") && hub_file_is_text("additional_chat_templates/tool_use.jinja"));
    assert_false(hub_file_is_text("additional_chat_templates/.jinja"));
    assert_false(hub_file_is_text("additional_chat_templates/a/b.jinja"));
    assert_false(hub_file_is_text("sub/config.json") || hub_file_is_text("model.safetensors"));
}

/* ---- What a hub answers ---- */

static void header_values(void **state) {
    (void)state;
    char etag[HUB_ETAG_BYTES];
    assert_true(hub_etag_read("\"" SHA1 "\"", etag));
    assert_string_equal(etag, SHA1);
    assert_true(hub_etag_read("W/\"" SHA256 "\"", etag) && hub_etag_read(SHA256, etag));
    assert_string_equal(etag, SHA256);
    assert_true(hub_etag_read("\"0123456789ABCDEF0123456789abcdef01234567\"", etag));
    assert_string_equal(etag, SHA1);
    assert_false(hub_etag_read("", etag) || hub_etag_read("\"\"", etag) || hub_etag_read("../../x", etag));
    assert_false(hub_etag_read("\"" SHA1 "0\"", etag) || hub_etag_read("\"" SHA1 "\"x", etag));
    assert_string_equal(etag, "");
    int64_t n = 7, first, last, total;
    assert_true(hub_size_read("0", &n) && n == 0);
    assert_true(hub_size_read("70368744177664", &n) && n == HUB_FILE_MAX_BYTES);
    assert_false(hub_size_read("70368744177665", &n) || hub_size_read("", &n) || hub_size_read("-1", &n));
    assert_false(hub_size_read("12x", &n) || hub_size_read(" 1", &n) || hub_size_read("99999999999999999999999", &n));
    assert_true(n == HUB_FILE_MAX_BYTES);
    assert_true(hub_range_read("bytes 5-9/10", &first, &last, &total) && first == 5 && last == 9 && total == 10);
    static const char *const bad[] = {"",           "bytes 5-10/10", "bytes 9-5/10", "bytes 0-1/*",
                                      "bytes */10", "bytes 0-1/10x", "0-1/10"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_false(hub_range_read(bad[i], &first, &last, &total));
    }
}

static ls_status parse_listing(hub_listing *listing, const char *text, ls_error *err) {
    return hub_listing_parse(listing, "list", text, strlen(text), err);
}

static void listings(void **state) {
    (void)state;
    hub_listing listing = {0};
    ls_error err = {0};
    assert_int_equal(
        parse_listing(&listing,
                      "{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": \"b\", \"size\": 3, \"blobId\": \"" SHA1
                      "\"}, {\"rfilename\": \"a\", \"size\": 1, \"blobId\": \"" SHA1
                      "\", \"lfs\": {\"sha256\": \"" SHA256 "\", \"size\": 9}}, {\"rfilename\": \"../x\"}, "
                      "{\"rfilename\": \"c\"}, {\"other\": 1}], \"config\": {\"model_max_length\": "
                      "1000000000000000019884624838656}}",
                      &err),
        LS_OK);
    assert_string_equal(listing.commit, SHA1);
    assert_int_equal(listing.n, 3);
    assert_string_equal(hub_listing_find(&listing, "a")->etag, SHA256);
    assert_true(hub_listing_find(&listing, "a")->bytes == 9 && hub_listing_find(&listing, "b")->bytes == 3);
    assert_string_equal(hub_listing_find(&listing, "b")->etag, SHA1);
    assert_true(hub_listing_find(&listing, "c")->bytes == -1);
    assert_null(hub_listing_find(&listing, "../x"));
    hub_listing_deinit(&listing);
    static const struct {
        const char *text, *word;
    } bad[] = {{"", "not valid JSON"},
               {"[]", "sha"},
               {"{\"sha\": \"main\"}", "sha"},
               {"{\"sha\": 5}", "sha"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": {}}", "siblings"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": 5}]}", "rfilename"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": \"a\", \"size\": -1}]}", "size"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": \"a\", \"size\": 1e30}]}", "size"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": \"a\", \"size\": 1.5}]}", "size"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": \"a\", \"blobId\": \"../x\"}]}", "../x"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": \"a\", \"lfs\": 1}]}", "lfs"},
               {"{\"sha\": \"" SHA1 "\", \"siblings\": [{\"rfilename\": \"a\"}, {\"rfilename\": \"a\"}]}", "twice"}};
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_int_equal(parse_listing(&listing, bad[i].text, &err), LS_EFORMAT);
        if (strstr(err.text, bad[i].word) == NULL || listing.file != NULL) {
            fail_msg("%s: %s", bad[i].text, err.text);
        }
    }
}

static void origins(void **state) {
    (void)state;
    assert_true(http_same_origin("https://hub.example/a", "https://HUB.example:443"));
    assert_true(http_same_origin("http://hub.example:80/a?b", "http://hub.example"));
    assert_false(http_same_origin("https://hub.example:444/", "https://hub.example"));
    assert_false(http_same_origin("http://hub.example/", "https://hub.example"));
    assert_false(http_same_origin("https://hub.example.evil/", "https://hub.example"));
    assert_false(http_same_origin("https://hub.example@evil/", "https://hub.example"));
    assert_false(http_same_origin("https://evil/?https://hub.example", "https://hub.example"));
    assert_false(http_same_origin("nonsense", "nonsense"));
}

static void bad_settings(void **state) {
    (void)state;
    static const char *const endpoints[] = {"",
                                            "hub.example",
                                            "ftp://hub.example",
                                            "https://user:pass@hub.example",
                                            "https://hub.example?x",
                                            "https://hub.example\r\nX: y"};
    char *folder = NULL;
    ls_error err = {0};
    ls_hub_params params = LS_HUB_PARAMS_INIT;
    assert_int_equal(ls_hub_find(&params, "org/name", &folder, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "cache_folder"));
    params.cache_folder = cache;
    for (size_t i = 0; i < COUNT(endpoints); i++) {
        params.endpoint = endpoints[i];
        assert_int_equal(ls_hub_find(&params, "org/name", &folder, &err), LS_EINVAL);
        assert_non_null(strstr(err.text, "HF_ENDPOINT"));
    }
    params.endpoint = NULL;
    params.connections = 65;
    assert_int_equal(ls_hub_find(&params, "org/name", &folder, &err), LS_EINVAL);
    params.struct_size = 0;
    assert_int_equal(ls_hub_find(&params, "org/name", &folder, &err), LS_EINVAL);
    assert_non_null(strstr(err.text, "LS_..._INIT"));
    assert_null(folder);
}

/* ---- The cache ---- */

typedef struct shard_names {
    char text[256];
} shard_names;

static ls_status note_shard(void *user, const char *file, ls_error *err) {
    shard_names *names = user;
    size_t n = strlen(names->text);
    (void)err;
    snprintf(names->text + n, sizeof names->text - n, "%s ", file);
    return LS_OK;
}

static void indexes(void **state) {
    (void)state;
    char path[128];
    shard_names found = {0};
    ls_error err = {0};
    snprintf(path, sizeof path, "%s/index.json", cache);
    write_file(cache, "index.json", "{\"weight_map\": {\"x\": \"b\", \"y\": \"a\", \"z\": \"b\"}}");
    assert_int_equal(hub_index_read(path, note_shard, &found, &err), LS_OK);
    assert_string_equal(found.text, "a b ");
    static const char *const bad[] = {"{}",
                                      "[]",
                                      "{\"weight_map\": {}}",
                                      "{\"weight_map\": 1}",
                                      "{\"weight_map\": {\"x\": 1}}",
                                      "{\"weight_map\": {\"x\": \"../b\"}}",
                                      "{\"weight_map\": {\"x\": \"a/b\"}}",
                                      "{\"weight_map\": {\"x\": \"\"}}",
                                      "{\"weight_map\": {\"x\": \"..\"}}"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        write_file(cache, "index.json", bad[i]);
        assert_int_equal(hub_index_read(path, note_shard, &found, &err), LS_EFORMAT);
        assert_string_equal(found.text, "a b ");
    }
}

static void snapshots(void **state) {
    (void)state;
    static hub_place place;
    hub_name name;
    char snapshot[HUB_PATH_BYTES], commit[HUB_COMMIT_BYTES] = "", path[HUB_PATH_BYTES + 64];
    ls_error err = {0};
    assert_int_equal(hub_name_parse(&name, "org/name", NULL), LS_OK);
    assert_int_equal(hub_place_init(&place, cache, &name, &err), LS_OK);
    assert_non_null(strstr(place.repo, "/models--org--name"));
    assert_false(hub_ref_read(&place, &name, commit));
    assert_int_equal(hub_ref_write(&place, &name, SHA1, &err), LS_OK);
    assert_true(hub_ref_read(&place, &name, commit));
    assert_string_equal(commit, SHA1);
    assert_int_equal(hub_ref_write(&place, &name, SHA1, &err), LS_OK);
    write_file(place.repo, "refs/main", SHA1 "\n"); /* as an editor would leave it */
    assert_true(hub_ref_read(&place, &name, commit));
    static const char *const bad[] = {"", "../../..", "main", SHA1 "0", SHA256};
    for (size_t i = 0; i < COUNT(bad); i++) {
        write_file(place.repo, "refs/main", bad[i]);
        assert_false(hub_ref_read(&place, &name, commit));
    }
    assert_int_equal(hub_snapshot_path(&place, SHA1, snapshot, sizeof snapshot, &err), LS_OK);
    assert_int_equal(hub_snapshot_check(snapshot, HUB_CONFIG, &err), LS_ENOTFOUND);
    assert_non_null(strstr(err.text, "config.json: missing"));
    write_file(place.repo, "blobs/" SHA256, "12345");
    /* A broken link is replaced, a good one is left alone. */
    snprintf(path, sizeof path, "%s/config.json", snapshot);
    assert_int_equal(hub_make_folders(path, &err), LS_OK);
    assert_int_equal(symlink("../../blobs/gone", path), 0);
    assert_int_equal(hub_link(&place, SHA1, "config.json", SHA256, &err), LS_OK);
    assert_int_equal(hub_link(&place, SHA1, "config.json", SHA1, &err), LS_OK);
    assert_int_equal(hub_link(&place, SHA1, "deep/er/tokenizer.json", SHA256, &err), LS_OK);
    assert_true(hub_has_file(snapshot, "config.json") && hub_has_file(snapshot, "deep/er/tokenizer.json"));
    assert_int_equal(hub_snapshot_check(snapshot, HUB_CONFIG, &err), LS_OK);
    assert_int_equal(hub_snapshot_check(snapshot, HUB_CONFIG | HUB_TOKENIZER, &err), LS_ENOTFOUND);
    assert_int_equal(hub_snapshot_check(snapshot, HUB_WEIGHTS, &err), LS_ENOTFOUND);
    write_file(snapshot, "model.safetensors.index.json", "{\"weight_map\": {\"x\": \"s1\", \"y\": \"s2\"}}");
    write_file(snapshot, "s1", "");
    assert_int_equal(hub_snapshot_check(snapshot, HUB_WEIGHTS, &err), LS_ENOTFOUND);
    assert_non_null(strstr(err.text, "s2: missing"));
    write_file(snapshot, "s2", "");
    assert_int_equal(hub_snapshot_check(snapshot, HUB_WEIGHTS, &err), LS_OK);
}

static void locks(void **state) {
    (void)state;
    static hub_place place;
    hub_name name;
    int first = -3, second = -3;
    char path[HUB_PATH_BYTES + 128];
    assert_int_equal(hub_name_parse(&name, "org/locks", NULL), LS_OK);
    assert_int_equal(hub_place_init(&place, cache, &name, NULL), LS_OK);
    assert_int_equal(hub_lock_try(&place, SHA256, &first, NULL), LS_OK);
    assert_true(first >= 0);
    assert_int_equal(hub_lock_try(&place, SHA256, &second, NULL), LS_OK);
    assert_int_equal(second, -1);
    assert_int_equal(hub_lock_try(&place, SHA1, &second, NULL), LS_OK); /* another file is another lock */
    assert_true(second >= 0);
    close(second);
    close(first);
    assert_int_equal(hub_lock_try(&place, SHA256, &first, NULL), LS_OK);
    assert_true(first >= 0);
    snprintf(path, sizeof path, "%s/.locks/models--org--locks/" SHA256 ".lock", cache);
    assert_int_equal(unlink(path), 0); /* as some versions of filelock do when they unlock */
    assert_int_equal(hub_lock_try(&place, SHA256, &second, NULL), LS_OK);
    assert_true(second >= 0);
    close(second);
    close(first);
}

static void listing_the_cache(void **state) {
    (void)state;
    char folder[128];
    ls_hub_model *model = NULL;
    size_t n = 9;
    ls_hub_params params = LS_HUB_PARAMS_INIT;
    snprintf(folder, sizeof folder, "%s/empty", cache);
    params.cache_folder = folder;
    assert_int_equal(ls_hub_list(&params, &model, &n, NULL), LS_OK);
    assert_true(n == 0);
    ls_free(model);
    write_file(folder, "models--z--last/blobs/x", "123");
    write_file(folder, "models--a--b/blobs/x", "12345");
    write_file(folder, "models--a--b/refs/main", SHA1);
    write_file(folder, "models--a--b/snapshots/" SHA1 "/config.json", "{}");
    write_file(folder, "models--nonsense/x", "");
    write_file(folder, "models--a--..--c/x", "");
    write_file(folder, "datasets--a--b/x", "");
    assert_int_equal(ls_hub_list(&params, &model, &n, NULL), LS_OK);
    assert_int_equal(n, 2);
    assert_string_equal(model[0].name, "a/b");
    assert_string_equal(model[0].commit, SHA1);
    assert_true(model[0].bytes == 5 && !model[0].complete);
    assert_string_equal(model[1].name, "z/last");
    assert_string_equal(model[1].commit, "");
    ls_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),         cmocka_unit_test(file_names),
        cmocka_unit_test(header_values), cmocka_unit_test(listings),
        cmocka_unit_test(origins),       cmocka_unit_test(bad_settings),
        cmocka_unit_test(indexes),       cmocka_unit_test(snapshots),
        cmocka_unit_test(locks),         cmocka_unit_test(listing_the_cache),
    };
    return cmocka_run_group_tests(tests, make_cache, remove_cache);
}
