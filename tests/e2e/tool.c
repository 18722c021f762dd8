/* See tool.h. */
#include "tool.h"

#include <sys/wait.h>

char *tool(const char *args, int *code) {
    const char *bin = getenv("LS_BIN");
    char command[2048];
    int n = snprintf(command, sizeof command, "'%s' %s", bin != NULL ? bin : "build/lockstep", args);
    assert_true(n > 0 && (size_t)n < sizeof command);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t used = 0, capacity = 1 << 16;
    char *text = malloc(capacity);
    assert_non_null(text);
    for (size_t got; (got = fread(text + used, 1, capacity - 1 - used, pipe)) > 0;) {
        used += got;
        if (used == capacity - 1) {
            text = realloc(text, capacity *= 2);
            assert_non_null(text);
        }
    }
    text[used] = '\0';
    int status = pclose(pipe);
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return text;
}

void expect_tool(const char *args, int code, const char *const *words) {
    char both[2048];
    int got;
    snprintf(both, sizeof both, "%s 2>&1", args);
    char *text = tool(both, &got);
    bool good = got == code;
    for (; good && *words != NULL; words++) {
        good = strstr(text, *words) != NULL;
        if (!good) {
            print_error("expected %s\n", *words);
        }
    }
    if (!good) {
        print_error("lockstep %s: exit code %d, expected %d; it said: %s\n", args, got, code, text);
        fail();
    }
    free(text);
}

json_t *tool_json(const char *args, int code) {
    char with_json[2048];
    json_error_t error;
    int got;
    snprintf(with_json, sizeof with_json, "%s --json", args);
    char *text = tool(with_json, &got);
    if (got != code) {
        print_error("lockstep %s: exit code %d, expected %d; it said: %s\n", with_json, got, code, text);
        fail();
    }
    json_t *object = json_loads(text, 0, &error);
    if (!json_is_object(object)) {
        print_error("lockstep %s: %s in: %s\n", with_json, error.text, text);
        fail();
    }
    free(text);
    return object;
}

double json_number(const json_t *object, const char *path) {
    char key[256];
    snprintf(key, sizeof key, "%s", path);
    char *next = key;
    for (const char *part = strsep(&next, "."); part != NULL; part = strsep(&next, ".")) {
        object = json_object_get(object, part);
    }
    if (!json_is_number(object)) {
        print_error("no number at %s\n", path);
        fail();
    }
    return json_number_value(object);
}
