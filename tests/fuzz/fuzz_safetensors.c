/*
 * Fuzz target: checkpoints. The first byte of an input says what the rest is: 0 one model file, 1 an index over two
 * good shards, 2 a shard beside a good one. What opens must keep the promises of safetensors.h; what does not must say
 * why and leave nothing behind.
 */
#include "file/safetensors.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INDEX "model.safetensors.index.json"
#define GOOD_INDEX "{\"weight_map\":{\"m\":\"a.safetensors\",\"k\":\"b.safetensors\"}}"
#define GOOD_A "{\"m\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}"
#define GOOD_B "{\"k\":{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[0,2]}}"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64]; /* made once per process; in memory where the system has such a folder */

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "broken promise: %s\n", what);
        abort();
    }
}

static void put(const char *name, const void *bytes, size_t n) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    require(fd >= 0 && write(fd, bytes, n) == (ssize_t)n && close(fd) == 0, "scratch file written");
}

static void put_shard(const char *name, const char *header) {
    uint8_t bytes[256] = {(uint8_t)strlen(header)};
    memcpy(bytes + 8, header, strlen(header));
    put(name, bytes, 8 + strlen(header) + 2);
}

static void remove_folder(void) {
    static const char *const names[] = {"model.safetensors", INDEX, "a.safetensors", "b.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/fuzz-st-XXXXXX" : "/tmp/fuzz-st-XXXXXX");
    require(mkdtemp(folder) != NULL, "scratch folder made");
    atexit(remove_folder);
    put_shard("b.safetensors", GOOD_B);
    return 0;
}

static void check_tensor(const ls_checkpoint *checkpoint, const ls_tensor *tensor) {
    require(checkpoint_find(checkpoint, tensor->name) == tensor, "found by its name");
    const ls_tensor *got = NULL;
    require(checkpoint_get(checkpoint, tensor->name, tensor->n_dims, tensor->shape, &got, NULL) == LS_OK &&
                got == tensor,
            "got by its shape");
    const int64_t shape[TENSOR_MAX_DIMS + 1] = {-1};
    require(checkpoint_get(checkpoint, tensor->name, TENSOR_MAX_DIMS + 1, shape, &got, NULL) == LS_EFORMAT,
            "not got by another shape");
    unsigned sum = 0;
    for (size_t i = 0; i < tensor->bytes; i++) {
        sum += tensor->data[i]; /* every byte can be read */
    }
    require(sum <= tensor->bytes * 255, "readable");
}

static void check_checkpoint(const ls_checkpoint *checkpoint) {
    size_t bytes = 0;
    for (size_t i = 0; i < checkpoint_count(checkpoint); i++) {
        const ls_tensor *tensor = checkpoint_at(checkpoint, i);
        require(i == 0 || strcmp(checkpoint_at(checkpoint, i - 1)->name, tensor->name) < 0, "in name order");
        check_tensor(checkpoint, tensor);
        bytes += tensor->bytes;
    }
    require(bytes < checkpoint_file_bytes(checkpoint), "no byte counted twice");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0 || data[0] > 2) {
        return -1;
    }
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (data[0] == 0) {
        put("model.safetensors", data + 1, size - 1);
    } else if (data[0] == 1) {
        put_shard("a.safetensors", GOOD_A);
        put(INDEX, data + 1, size - 1);
    } else {
        put("a.safetensors", data + 1, size - 1);
        put(INDEX, GOOD_INDEX, strlen(GOOD_INDEX));
    }
    ls_error err = {0};
    ls_checkpoint *checkpoint = NULL;
    ls_status st =
        data[0] == 0 ? checkpoint_open_file(&checkpoint, path, &err) : checkpoint_open(&checkpoint, folder, &err);
    require((st == LS_OK) == (checkpoint != NULL), "an output only on success");
    require(st == LS_OK || (err.status == st && err.text[0] != '\0'), "a failure has a text");
    if (st == LS_OK) {
        check_checkpoint(checkpoint);
    }
    checkpoint_close(&checkpoint);
    return 0;
}
