/*
 * Checkpoints: good ones give views of the right bytes, and every kind of broken one is refused with a status and a
 * text that names the file, the tensor and the field. Broken files are written into a fresh folder under /tmp.
 */
#include "file/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define PATH_BYTES 512

/* One temporary folder per test; remove_folder() knows the names that tests use. */
typedef struct fixture {
    char folder[64];
} fixture;

static const char *const FILE_NAMES[] = {"model.safetensors", "model.safetensors.index.json", "a.safetensors",
                                         "b.safetensors"};

static void path_of(char path[PATH_BYTES], const fixture *f, const char *name) {
    assert_true(snprintf(path, PATH_BYTES, "%s/%s", f->folder, name) < PATH_BYTES);
}

static int make_folder(void **state) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    strcpy(f->folder, "/tmp/lockstep-st-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    *state = f;
    return 0;
}

static int remove_folder(void **state) {
    fixture *f = *state;
    for (size_t i = 0; i < sizeof FILE_NAMES / sizeof FILE_NAMES[0]; i++) {
        char path[PATH_BYTES];
        path_of(path, f, FILE_NAMES[i]);
        if (unlink(path) != 0) {
            rmdir(path);
        }
    }
    rmdir(f->folder);
    free(f);
    return 0;
}

static void write_bytes(const fixture *f, const char *name, const void *bytes, size_t n) {
    char path[PATH_BYTES];
    path_of(path, f, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void write_text(const fixture *f, const char *name, const char *text) {
    write_bytes(f, name, text, strlen(text));
}

/* Header length, header, then data_bytes bytes 0, 1, 2, ... */
static void write_tensors(const fixture *f, const char *name, const char *header, size_t data_bytes) {
    uint8_t bytes[4096];
    size_t n = strlen(header);
    assert_true(8 + n + data_bytes <= sizeof bytes);
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)((uint64_t)n >> (8 * i));
    }
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < data_bytes; i++) {
        bytes[8 + n + i] = (uint8_t)i;
    }
    write_bytes(f, name, bytes, 8 + n + data_bytes);
}

static void assert_has(const char *text, const char *part) {
    if (strstr(text, part) == NULL) {
        fail_msg("expected \"%s\" in \"%s\"", part, text);
    }
}

/* Opens <folder>/<name>, or the folder where name is NULL, and expects this failure; parts may end early with NULL. */
static void expect_failure(const fixture *f, const char *name, ls_status status, const char *parts[4]) {
    char path[PATH_BYTES];
    path_of(path, f, name ? name : "");
    if (name == NULL) {
        path[strlen(path) - 1] = '\0';
    }
    ls_error err = {0};
    ls_checkpoint *const untouched = (ls_checkpoint *)f;
    ls_checkpoint *checkpoint = untouched;
    ls_status found = name ? checkpoint_open_file(&checkpoint, path, &err) : checkpoint_open(&checkpoint, path, &err);
    if (found != status) {
        fail_msg("expected %s, found %s: %s", ls_status_name(status), ls_status_name(found), err.text);
    }
    assert_ptr_equal(checkpoint, untouched);
    assert_int_equal(err.status, status);
    for (int i = 0; i < 4 && parts[i] != NULL; i++) {
        assert_has(err.text, parts[i]);
    }
    assert_int_equal(name ? checkpoint_open_file(&checkpoint, path, NULL) : checkpoint_open(&checkpoint, path, NULL),
                     status); /* err may be NULL */
}

#define EXPECT_FAILURE(f, name, status, ...) expect_failure(f, name, status, (const char *[4]){__VA_ARGS__})

/* Good files. */

static void one_file(void **state) {
    const fixture *f = *state;
    write_tensors(f, "model.safetensors",
                  "{\"__metadata__\":{\"format\":\"pt\"},"
                  "\"w\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                  "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"extra\":1},"
                  "\"empty\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[4,4]}}   ",
                  16);
    ls_error err = {0};
    ls_checkpoint *c = NULL;
    assert_int_equal(checkpoint_open(&c, f->folder, &err), LS_OK);
    assert_int_equal(checkpoint_count(c), 3);
    assert_string_equal(checkpoint_at(c, 0)->name, "a");
    assert_string_equal(checkpoint_at(c, 1)->name, "empty");
    assert_string_equal(checkpoint_at(c, 2)->name, "w");
    assert_null(checkpoint_at(c, 3));
    assert_null(checkpoint_find(c, "v"));
    assert_null(checkpoint_find(c, "__metadata__"));
    const ls_tensor *a = checkpoint_find(c, "a");
    assert_int_equal(a->n_dims, 0);
    assert_int_equal(a->bytes, 4);
    assert_int_equal(a->data[3], 3);
    const ls_tensor *empty = checkpoint_find(c, "empty");
    assert_int_equal(empty->bytes, 0);
    assert_int_equal(empty->shape[1], 7);
    const ls_tensor *w = NULL;
    assert_int_equal(checkpoint_get(c, "w", 2, (int64_t[]){2, 3}, &w, &err), LS_OK);
    assert_int_equal(w->dtype, TENSOR_BF16);
    assert_int_equal(w->data[0], 4);
    assert_int_equal(w->data[11], 15);
    assert_has(w->file, "/model.safetensors");
    struct stat info;
    char path[PATH_BYTES];
    path_of(path, f, "model.safetensors");
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(checkpoint_file_bytes(c), info.st_size);
    checkpoint_close(&c);
    assert_null(c);
    checkpoint_close(&c);
}

static void no_tensors(void **state) {
    const fixture *f = *state;
    write_tensors(f, "model.safetensors", "{}", 0);
    ls_error err = {0};
    ls_checkpoint *c = NULL;
    assert_int_equal(checkpoint_open(&c, f->folder, &err), LS_OK);
    assert_int_equal(checkpoint_count(c), 0);
    assert_null(checkpoint_find(c, "a"));
    checkpoint_close(&c);
}

static void every_dtype(void **state) {
    const fixture *f = *state;
    static const struct {
        const char *name;
        unsigned bits;
    } dtypes[] = {
#define X(name, bits) {#name, bits},
        TENSOR_DTYPE_MAP(X)
#undef X
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        char header[256];
        snprintf(header, sizeof header, "{\"x\":{\"dtype\":\"%s\",\"shape\":[8],\"data_offsets\":[0,%u]}}",
                 dtypes[i].name, dtypes[i].bits);
        write_tensors(f, "model.safetensors", header, dtypes[i].bits);
        ls_error err = {0};
        ls_checkpoint *c = NULL;
        assert_int_equal(checkpoint_open(&c, f->folder, &err), LS_OK);
        assert_int_equal(checkpoint_at(c, 0)->dtype, i);
        assert_string_equal(tensor_dtype_name(checkpoint_at(c, 0)->dtype), dtypes[i].name);
        assert_int_equal(checkpoint_at(c, 0)->bytes, dtypes[i].bits);
        checkpoint_close(&c);
    }
    assert_string_equal(tensor_dtype_name((tensor_dtype)1000), "unknown");
}

#define U8_AT(name, begin, end, size)                                                                                  \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #size "],\"data_offsets\":[" #begin "," #end "]}"

static void shards(void **state) {
    const fixture *f = *state;
    write_tensors(f, "a.safetensors", "{" U8_AT("m", 0, 4, 4) "," U8_AT("unlisted", 4, 5, 1) "}", 5);
    write_tensors(f, "b.safetensors", "{" U8_AT("k", 0, 2, 2) "," U8_AT("z", 2, 3, 1) "}", 3);
    write_tensors(f, "model.safetensors", "{" U8_AT("alone", 0, 1, 1) "}", 1);
    write_text(f, "model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":7},\"weight_map\":{\"z\":\"b.safetensors\",\"m\":\"a.safetensors\","
               "\"k\":\"b.safetensors\"}}");
    ls_error err = {0};
    ls_checkpoint *c = NULL;
    assert_int_equal(checkpoint_open(&c, f->folder, &err), LS_OK);
    assert_int_equal(checkpoint_count(c), 4);
    assert_null(checkpoint_find(c, "alone")); /* the index wins over model.safetensors */
    assert_non_null(checkpoint_find(c, "unlisted"));
    assert_has(checkpoint_find(c, "m")->file, "a.safetensors");
    assert_has(checkpoint_find(c, "z")->file, "b.safetensors");
    assert_int_equal(checkpoint_find(c, "z")->data[0], 2);
    checkpoint_close(&c);
}

static void demo_model(void **state) {
    (void)state;
    ls_error err = {0};
    ls_checkpoint *c = NULL;
    if (access("demo/config.json", R_OK) != 0) {
        print_message("demo/ is absent: skipped\n");
        skip();
    }
    if (checkpoint_open(&c, "demo", &err) != LS_OK) {
        fail_msg("%s", err.text);
    }
    const ls_tensor *t = NULL;
    assert_int_equal(checkpoint_get(c, "model.embed_tokens.weight", 2, (int64_t[]){4096, 256}, &t, &err), LS_OK);
    assert_int_equal(t->dtype, TENSOR_BF16);
    checkpoint_close(&c);
}

/* Look-ups. */

static void misshapen(void **state) {
    const fixture *f = *state;
    write_tensors(f, "model.safetensors", "{\"w\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]}}", 12);
    ls_error err = {0};
    ls_checkpoint *c = NULL;
    assert_int_equal(checkpoint_open(&c, f->folder, &err), LS_OK);
    const ls_tensor *const untouched = (const ls_tensor *)f;
    const ls_tensor *t = untouched;
    assert_int_equal(checkpoint_get(c, "w", 2, (int64_t[]){3, 2}, &t, &err), LS_EFORMAT);
    assert_has(err.text, "model.safetensors: tensor 'w': shape: expected [3, 2], found [2, 3]");
    assert_int_equal(checkpoint_get(c, "w", 1, (int64_t[]){6}, &t, &err), LS_EFORMAT);
    assert_has(err.text, "expected [6], found [2, 3]");
    assert_int_equal(checkpoint_get(c, "w", 0, NULL, &t, &err), LS_EFORMAT);
    assert_has(err.text, "expected [], found [2, 3]");
    assert_int_equal(checkpoint_get(c, "v", 2, (int64_t[]){2, 3}, &t, &err), LS_ENOTFOUND);
    assert_has(err.text, "model.safetensors: tensor 'v': missing");
    assert_ptr_equal(t, untouched);
    checkpoint_close(&c);
}

/* Broken files. */

static void bad_header_length(void **state) {
    const fixture *f = *state;
    const char *name = "a.safetensors";
    write_bytes(f, name, "", 0);
    EXPECT_FAILURE(f, name, LS_EFORMAT, name, "0 bytes", "header length");
    write_bytes(f, name, "\x02\0\0", 3);
    EXPECT_FAILURE(f, name, LS_EFORMAT, name, "3 bytes", "header length");
    write_bytes(f, name, "\x03\0\0\0\0\0\0\0{}", 10);
    EXPECT_FAILURE(f, name, LS_EFORMAT, name, "header length 3", "10 bytes");
    write_bytes(f, name, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    EXPECT_FAILURE(f, name, LS_EFORMAT, name, "header length 18446744073709551615", "100000000");
    write_bytes(f, name, "\0\0\0\0\0\0\0\0", 8);
    EXPECT_FAILURE(f, name, LS_EFORMAT, name, "JSON");
}

static void not_files(void **state) {
    const fixture *f = *state;
    char path[PATH_BYTES];
    path_of(path, f, "a.safetensors");
    EXPECT_FAILURE(f, "a.safetensors", LS_ENOTFOUND, "a.safetensors");
    assert_int_equal(mkdir(path, 0700), 0);
    EXPECT_FAILURE(f, "a.safetensors", LS_EIO, "a.safetensors", "not a regular file");
    EXPECT_FAILURE(f, NULL, LS_ENOTFOUND, f->folder, "neither model.safetensors");
    ls_error err = {0};
    ls_checkpoint *c = NULL;
    path_of(path, f, "nowhere");
    assert_int_equal(checkpoint_open(&c, path, &err), LS_ENOTFOUND);
    assert_has(err.text, "nowhere: no such folder");
    char *long_path = calloc(1, 5000);
    assert_non_null(long_path);
    memset(long_path, 'x', 4999);
    assert_int_equal(checkpoint_open(&c, long_path, &err), LS_EINVAL);
    free(long_path);
}

/* Each row is one file a.safetensors. */
static const struct header_case {
    const char *header;
    size_t data_bytes;
    ls_status status;
    const char *parts[3];
} BAD_HEADERS[] = {
    /* JSON */
    {"nonsense", 0, LS_EFORMAT, {"JSON"}},
    {"{\"w\":", 0, LS_EFORMAT, {"JSON"}},
    {"{} {}", 0, LS_EFORMAT, {"JSON"}},
    {"{\"\xff\":1}", 0, LS_EFORMAT, {"JSON"}},
    {"[]", 0, LS_EFORMAT, {"header: expected a JSON object"}},
    {"7", 0, LS_EFORMAT, {"header: expected a JSON object"}},
    {"{" U8_AT("w", 0, 1, 1) "," U8_AT("w", 1, 2, 1) "}", 2, LS_EFORMAT, {"JSON", "duplicate", "w"}},
    {"{\"__metadata__\":[]}", 0, LS_EFORMAT, {"__metadata__"}},
    {"{\"__metadata__\":{\"a\":1}}", 0, LS_EFORMAT, {"__metadata__"}},
    {"{\"w\":[]}", 0, LS_EFORMAT, {"tensor 'w': expected an object"}},
    {"{\"w\":null}", 0, LS_EFORMAT, {"tensor 'w': expected an object"}},
    /* dtype */
    {"{\"w\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, LS_EFORMAT, {"'w': dtype: expected a string"}},
    {"{\"w\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, LS_EFORMAT, {"'w': dtype:"}},
    {"{\"w\":{\"dtype\":\"F7\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     1,
     LS_EUNSUPPORTED,
     {"'w': dtype: unknown dtype 'F7'"}},
    {"{\"w\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
     4,
     LS_EUNSUPPORTED,
     {"'w': dtype: unknown dtype 'f32'"}},
    /* shape */
    {"{\"w\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, LS_EFORMAT, {"'w': shape: expected an array"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, LS_EFORMAT, {"'w': shape:"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1,1.0],\"data_offsets\":[0,1]}}", 1, LS_EFORMAT, {"'w': shape: dimension 1"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]}}", 1, LS_EFORMAT, {"'w': shape: dimension 0"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[-1,-1],\"data_offsets\":[0,1]}}",
     1,
     LS_EFORMAT,
     {"'w': shape: dimension 0", "not negative"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}",
     1,
     LS_EFORMAT,
     {"'w': shape: 9 dimensions, more than 8"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
     0,
     LS_EFORMAT,
     {"'w': shape: [4294967296, 4294967296] is too large"}},
    {"{\"w\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}",
     0,
     LS_EFORMAT,
     {"'w': shape: [4611686018427387904] is too large"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[18446744073709551617],\"data_offsets\":[0,1]}}", 1, LS_EFORMAT, {"JSON"}},
    {"{\"w\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}",
     1,
     LS_EFORMAT,
     {"'w': shape: [3] of F4 does not fill whole bytes"}},
    /* data_offsets */
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, LS_EFORMAT, {"'w': data_offsets: expected an array"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{}}}", 1, LS_EFORMAT, {"'w': data_offsets:"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, LS_EFORMAT, {"'w': data_offsets:"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1, LS_EFORMAT, {"'w': data_offsets:"}},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.0]}}", 1, LS_EFORMAT, {"'w': data_offsets:"}},
    {"{" U8_AT("w", -1, 0, 1) "}", 1, LS_EFORMAT, {"'w': data_offsets: [-1, 0] is no range"}},
    {"{" U8_AT("w", 1, 0, 1) "}", 1, LS_EFORMAT, {"'w': data_offsets: [1, 0] is no range"}},
    {"{" U8_AT("w", 0, 9, 9) "}", 8, LS_EFORMAT, {"'w': data_offsets: [0, 9] runs past the 8 bytes", "truncated"}},
    {"{" U8_AT("w", 9223372036854775807, 9223372036854775807, 0) "}", 8, LS_EFORMAT, {"'w': data_offsets:"}},
    {"{" U8_AT("w", 0, 8, 7) "}", 8, LS_EFORMAT, {"'w': data_offsets: [0, 8] spans 8 bytes, expected 7 for U8 [7]"}},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,8]}}",
     8,
     LS_EFORMAT,
     {"'w': data_offsets:", "8 bytes", "expected 16 for F32 [2, 2]"}},
    /* layout */
    {"{" U8_AT("v", 0, 4, 4) "," U8_AT("w", 3, 5, 2) "}", 5, LS_EFORMAT, {"'w': data_offsets: overlaps tensor 'v'"}},
    {"{" U8_AT("v", 0, 4, 4) "," U8_AT("w", 0, 4, 4) "}", 4, LS_EFORMAT, {"data_offsets: overlaps tensor"}},
    {"{" U8_AT("v", 0, 4, 4) "," U8_AT("e", 2, 2, 0) "}", 4, LS_EFORMAT, {"'e': data_offsets: overlaps tensor 'v'"}},
    {"{" U8_AT("v", 0, 1, 1) "," U8_AT("w", 3, 4, 1) "}",
     4,
     LS_EFORMAT,
     {"'w': data_offsets: a hole of 2 bytes before byte 3"}},
    {"{" U8_AT("w", 1, 2, 1) "}", 2, LS_EFORMAT, {"'w': data_offsets: a hole of 1 bytes"}},
    {"{" U8_AT("w", 0, 1, 1) "}", 3, LS_EFORMAT, {"a hole of 2 bytes at the end"}},
};

static void bad_headers(void **state) {
    const fixture *f = *state;
    for (size_t i = 0; i < sizeof BAD_HEADERS / sizeof BAD_HEADERS[0]; i++) {
        const struct header_case *c = &BAD_HEADERS[i];
        write_tensors(f, "a.safetensors", c->header, c->data_bytes);
        EXPECT_FAILURE(f, "a.safetensors", c->status, "a.safetensors: ", c->parts[0], c->parts[1], c->parts[2]);
    }
}

/* The cause must still be readable behind a name that fills the whole message. */
static void long_name(void **state) {
    const fixture *f = *state;
    char header[2048];
    char name[1500];
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1]}}", name);
    write_tensors(f, "a.safetensors", header, 1);
    EXPECT_FAILURE(f, "a.safetensors", LS_EFORMAT, "a.safetensors", "nnnn", "expected 2");
}

/* Each row is one index over the shards a (tensors m, n) and b (tensor k). */
static void bad_indexes(void **state) {
    const fixture *f = *state;
    static const struct {
        const char *text;
        ls_status status;
        const char *parts[3];
    } cases[] = {
        {"", LS_EFORMAT, {"JSON"}},
        {"{", LS_EFORMAT, {"JSON"}},
        {"[]", LS_EFORMAT, {"expected a JSON object"}},
        {"{}", LS_EFORMAT, {"weight_map: missing or empty"}},
        {"{\"weight_map\":{}}", LS_EFORMAT, {"weight_map: missing or empty"}},
        {"{\"weight_map\":[]}", LS_EFORMAT, {"weight_map: expected an object"}},
        {"{\"weight_map\":{\"m\":1}}", LS_EFORMAT, {"weight_map: tensor 'm': expected a plain file name"}},
        {"{\"weight_map\":{\"m\":\"\"}}", LS_EFORMAT, {"weight_map: tensor 'm': expected a plain file name"}},
        {"{\"weight_map\":{\"m\":\"..\"}}", LS_EFORMAT, {"tensor 'm': expected a plain file name, found '..'"}},
        {"{\"weight_map\":{\"m\":\"../a.safetensors\"}}", LS_EFORMAT, {"tensor 'm'", "'../a.safetensors'"}},
        {"{\"weight_map\":{\"m\":\"/etc/passwd\"}}", LS_EFORMAT, {"tensor 'm'", "'/etc/passwd'"}},
        {"{\"weight_map\":{\"m\":\"x/a.safetensors\"}}", LS_EFORMAT, {"tensor 'm'", "'x/a.safetensors'"}},
        {"{\"weight_map\":{\"m\":\"a.safetensors\\u0000x\"}}", LS_EFORMAT, {"tensor 'm': expected a plain file name"}},
        {"{\"weight_map\":{\"m\":\"c.safetensors\"}}", LS_ENOTFOUND, {"weight_map: missing shard", "c.safetensors"}},
        {"{\"weight_map\":{\"m\":\"a.safetensors\",\"x\":\"a.safetensors\"}}",
         LS_EFORMAT,
         {"weight_map: tensor 'x':", "a.safetensors lacks it"}},
        {"{\"weight_map\":{\"k\":\"a.safetensors\",\"m\":\"b.safetensors\"}}",
         LS_EFORMAT,
         {"weight_map: tensor '", "expected in", "found in"}},
        {"{\"weight_map\":{\"m\":\"a.safetensors\",\"m\":\"b.safetensors\"}}", LS_EFORMAT, {"JSON", "duplicate"}},
    };
    write_tensors(f, "a.safetensors", "{" U8_AT("m", 0, 1, 1) "," U8_AT("n", 1, 2, 1) "}", 2);
    write_tensors(f, "b.safetensors", "{" U8_AT("k", 0, 1, 1) "}", 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_text(f, "model.safetensors.index.json", cases[i].text);
        EXPECT_FAILURE(f, NULL, cases[i].status, "model.safetensors.index.json: ", cases[i].parts[0], cases[i].parts[1],
                       cases[i].parts[2]);
    }
}

static void bad_shards(void **state) {
    const fixture *f = *state;
    write_text(f, "model.safetensors.index.json", "{\"weight_map\":{\"m\":\"a.safetensors\",\"k\":\"b.safetensors\"}}");
    write_tensors(f, "a.safetensors", "{" U8_AT("m", 0, 1, 1) "," U8_AT("twice", 1, 2, 1) "}", 2);
    write_tensors(f, "b.safetensors", "{" U8_AT("k", 0, 1, 1) "," U8_AT("twice", 1, 2, 1) "}", 2);
    EXPECT_FAILURE(f, NULL, LS_EFORMAT, "tensor 'twice': also in", "a.safetensors", "b.safetensors");
    write_tensors(f, "b.safetensors", "{" U8_AT("k", 0, 2, 2) "}", 1);
    EXPECT_FAILURE(f, NULL, LS_EFORMAT, "b.safetensors: tensor 'k': data_offsets", "truncated");
    write_bytes(f, "b.safetensors", "", 0);
    EXPECT_FAILURE(f, NULL, LS_EFORMAT, "b.safetensors", "0 bytes");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(one_file),    TEST(no_tensors), TEST(every_dtype),       TEST(shards),
        TEST(demo_model),  TEST(misshapen),  TEST(bad_header_length), TEST(not_files),
        TEST(bad_headers), TEST(long_name),  TEST(bad_indexes),       TEST(bad_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
