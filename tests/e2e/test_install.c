/*
 * `make install` into an empty folder: what lies there, and that programs built against it alone run, by pkg-config with
 * the shared and with the static library, and from Python; `make uninstall` leaves nothing.
 *
 * make gets this run's own flags through the environment, so it links again and compiles nothing. Where a sanitizer runs,
 * the library cannot be loaded into plain programs: those tests skip.
 */
#include <unistd.h>

#include "e2e.h"

/* The folders that install and uninstall are given; $TREE is ours. */
#define FOLDERS "DESTDIR=$TREE PREFIX=/usr libdir=/usr/lib64"
/* -I/usr/include and -L/usr/lib64 are left out where they are the system's; below a sysroot they are not. */
#define PKG_CONFIG                                                                                                     \
    "PKG_CONFIG_LIBDIR=$TREE/usr/lib64/pkgconfig PKG_CONFIG_SYSROOT_DIR=$TREE PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 "       \
    "PKG_CONFIG_ALLOW_SYSTEM_LIBS=1 pkg-config "

static char tree[PATH_BYTES];
static char log_text[1 << 16];

static int install(void **state) {
    (void)state;
    folder_make(tree);
    setenv("TREE", tree, 1);
    SHELL(log_text, "make --no-print-directory install " FOLDERS);
    assert_null(strstr(log_text, "  CC "));
    return 0;
}

static int clean_up(void **state) {
    (void)state;
    return shell(log_text, sizeof log_text, "rm -r $TREE");
}

static void skip_if_sanitized(void) {
    if (sanitized()) {
        print_message("skipped: a sanitized library does not load into plain programs\n");
        skip();
    }
}

static void files_lie_where_they_should(void **state) {
    (void)state;
    static const char *const paths[] = {"bin/lockstep",
                                        "include/lockstep.h",
                                        "include/lockstep_hosts.h",
                                        "lib64/liblockstep.a",
                                        "lib64/liblockstep.so",
                                        "lib64/liblockstep.so.0",
                                        "lib64/liblockstep.so." LS_VERSION,
                                        "lib64/pkgconfig/lockstep.pc",
                                        "share/bash-completion/completions/lockstep",
                                        "share/doc/lockstep/README.md",
                                        "share/doc/lockstep/docs/options.md",
                                        "share/doc/lockstep/examples/generate.c",
                                        "share/lockstep/demo/config.json",
                                        "share/man/man1/lockstep.1",
                                        "share/zsh/site-functions/_lockstep"};
    for (size_t i = 0; i < COUNT(paths); i++) {
        char path[2 * PATH_BYTES];
        snprintf(path, sizeof path, "%s/usr/%s", tree, paths[i]);
        if (access(path, R_OK) != 0) {
            fail_msg("%s is missing", path);
        }
    }
    char out[4096];
    SHELL(out, PKG_CONFIG "--modversion lockstep");
    assert_string_equal(out, LS_VERSION "\n");
    SHELL(out, "readelf -d $TREE/usr/lib64/liblockstep.so | grep -c 'SONAME.*\\[liblockstep.so.0\\]'");
    assert_string_equal(out, "1\n");
}

/* The functions of the header, no more and no fewer. */
static void library_exports_its_interface(void **state) {
    (void)state;
    skip_if_sanitized();
    char declared[8192], exported[8192];
    SHELL(declared, "sed -n 's/^LS_API .*[ *]\\(ls_[a-z0-9_]*\\)(.*/\\1/p' include/*.h | LC_ALL=C sort");
    SHELL(exported, "nm -D --defined-only $TREE/usr/lib64/liblockstep.so | cut -d ' ' -f 3 | LC_ALL=C sort");
    assert_non_null(strstr(declared, "ls_engine_step\n"));
    assert_string_equal(exported, declared);
}

static void installed_program_finds_the_demo(void **state) {
    (void)state;
    char out[4096], here[4096];
    SHELL(out, "cd / && $TREE/usr/bin/lockstep generate -m demo -p 'Once upon a time' -n 8 --temp 0 2>/dev/null");
    SHELL(here, "${LS_BIN:-build/lockstep} generate -m demo -p 'Once upon a time' -n 8 --temp 0 2>/dev/null");
    assert_non_null(strstr(out, "Once upon a time"));
    assert_string_equal(out, here);
}

/* examples/generate.c on the installed demo model, linked as `libs` says; its output. */
static void build_and_run(const char *name, const char *libs, char *out, size_t out_bytes) {
    SHELL(log_text,
          "cc -Werror -o $TREE/%s $TREE/usr/share/doc/lockstep/examples/generate.c $(" PKG_CONFIG
          "--cflags lockstep) $(%s)",
          name, libs);
    assert_string_equal(log_text, "");
    shell_good(out, out_bytes, __FILE__, __LINE__,
               "LD_LIBRARY_PATH=$TREE/usr/lib64 $TREE/%s $TREE/usr/share/lockstep/demo 'Once upon a time'", name);
    assert_non_null(strstr(out, "(64 tokens, length)"));
}

static void programs_link_and_run(void **state) {
    (void)state;
    skip_if_sanitized();
    char shared[4096], fixed[4096], out[4096];
    build_and_run("shared", PKG_CONFIG "--libs lockstep", shared, sizeof shared);
    build_and_run("fixed", PKG_CONFIG "--static --libs lockstep | sed s/-llockstep/-l:liblockstep.a/", fixed,
                  sizeof fixed);
    assert_string_equal(shared, fixed);
    SHELL(out, "readelf -d $TREE/shared | grep -c 'NEEDED.*liblockstep.so.0'");
    assert_string_equal(out, "1\n");
    SHELL(out, "readelf -d $TREE/fixed | grep -c liblockstep || true");
    assert_string_equal(out, "0\n");
    SHELL(out, "rm $TREE/shared $TREE/fixed");
}

#define PYTHON_EXAMPLE "LD_LIBRARY_PATH=$TREE/usr/lib64 python3 $TREE/usr/share/doc/lockstep/examples/generate.py "

static void python_streams_the_same_text(void **state) {
    (void)state;
    skip_if_sanitized();
    char out[4096], wanted[4096];
    SHELL(out, PYTHON_EXAMPLE "$TREE/usr/share/lockstep/demo 'The cat'");
    SHELL(wanted, "${LS_BIN:-build/lockstep} generate -m demo -p 'The cat' -n 64 --temp 0 2>/dev/null | tail -c +8");
    assert_true(strlen(out) > 64);
    assert_string_equal(out, wanted);
    assert_int_equal(shell(out, sizeof out, PYTHON_EXAMPLE "/nowhere 'Once'"), 1);
    assert_non_null(strstr(out, "/nowhere: no such folder"));
}

static void python_structures_are_those_of_the_header(void **state) {
    (void)state;
    char out[16384];
    SHELL(out, "python3 tests/e2e/python_layout.py >$TREE/layout.c && grep -c offsetof $TREE/layout.c");
    assert_true(atoi(out) > 50);
    SHELL(out, "cc -std=c17 -fsyntax-only -I$TREE/usr/include $TREE/layout.c && rm $TREE/layout.c");
}

/* The last test: it takes away what the others used. */
static void uninstall_leaves_nothing(void **state) {
    (void)state;
    char out[8192];
    SHELL(log_text, "make --no-print-directory uninstall " FOLDERS);
    SHELL(out, "find $TREE -mindepth 1 \\( ! -type d -o -name '*lockstep*' \\)");
    assert_string_equal(out, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_lie_where_they_should),      cmocka_unit_test(library_exports_its_interface),
        cmocka_unit_test(installed_program_finds_the_demo), cmocka_unit_test(programs_link_and_run),
        cmocka_unit_test(python_streams_the_same_text),     cmocka_unit_test(python_structures_are_those_of_the_header),
        cmocka_unit_test(uninstall_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, install, clean_up);
}
