/*
 * Readers of what the system says, on files made up here: memory, control groups v1 and v2 with nested limits, limits seen
 * from inside of a container, files that are missing, cut off or nonsense.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/machine.h"

/* ---- A root of our own ---- */

static char root[64];

static int make_root(void **state) {
    (void)state;
    strcpy(root, "/tmp/lockstep-machine-XXXXXX");
    return mkdtemp(root) == NULL;
}

static int remove_root(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

/* Writes <root>/<path> and the folders on its way. */
static void put(const char *path, const char *text) {
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void assert_cgroup(double cpus, int64_t bytes, int64_t used) {
    machine_cgroup group;
    machine_read_cgroup(root, &group);
    assert_true(group.cpus == cpus);
    assert_int_equal(group.memory_bytes, bytes);
    assert_int_equal(group.memory_used_bytes, used);
}

/* ---- Tests ---- */

static void memory(void **state) {
    (void)state;
    machine_memory m;
    machine_read_memory(root, &m); /* nothing there */
    assert_int_equal(m.total_bytes, MACHINE_UNKNOWN);
    assert_int_equal(m.available_bytes, MACHINE_UNKNOWN);
    put("proc/meminfo", "MemTotal:       24690000 kB\nMemFree: 5 kB\nMemAvailable:   23710000 kB\n");
    machine_read_memory(root, &m);
    assert_int_equal(m.total_bytes, 24690000LL * 1024);
    assert_int_equal(m.available_bytes, 23710000LL * 1024);
    put("proc/meminfo", "MemTotalOther: 1 kB\nMemTotal:\t7 kB"); /* an old kernel, and a last line without its end */
    machine_read_memory(root, &m);
    assert_int_equal(m.total_bytes, 7 * 1024);
    assert_int_equal(m.available_bytes, MACHINE_UNKNOWN);
    machine_read_memory("/", &m); /* this machine */
    assert_true(m.total_bytes > 1 << 20);
    assert_true(m.available_bytes > 0 && m.available_bytes <= m.total_bytes);
}

static void lines_and_values(void **state) {
    (void)state;
    char text[16];
    assert_false(machine_read_line(root, "nowhere", text, sizeof text));
    assert_string_equal(text, "");
    put("one", "always [madvise] never\nsecond\n");
    assert_true(machine_read_line(root, "one", text, sizeof text));
    assert_string_equal(text, "always [madvise"); /* cut */
    put("two", "");
    assert_false(machine_read_line(root, "two", text, sizeof text));
    assert_true(machine_chosen_word("always [madvise] never", text, sizeof text));
    assert_string_equal(text, "madvise");
    assert_true(machine_chosen_word("[always] madvise", text, 7));
    assert_string_equal(text, "always");
    assert_false(machine_chosen_word("[always] madvise", text, 6)); /* no room */
    assert_false(machine_chosen_word("always never", text, sizeof text));
    assert_false(machine_chosen_word("always [never", text, sizeof text));
    assert_string_equal(text, "");
    put("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU\nmodel\t: 7\nflags\t\t: fpu avx2\n\nmodel name: B\n");
    assert_true(machine_read_value(root, "proc/cpuinfo", "model name", text, sizeof text));
    assert_string_equal(text, "Some CPU");
    assert_true(machine_read_value(root, "proc/cpuinfo", "model", text, sizeof text));
    assert_string_equal(text, "7");
    assert_false(machine_read_value(root, "proc/cpuinfo", "Features", text, sizeof text));
    assert_string_equal(text, "");
    put("etc/os-release", "NAME=X\nPRETTY_NAME=\"An OS 12\"\n");
    assert_true(machine_read_value(root, "etc/os-release", "PRETTY_NAME", text, sizeof text));
    assert_string_equal(text, "An OS 12");
}

static void cgroup_v2(void **state) {
    (void)state;
    assert_cgroup(MACHINE_UNKNOWN, MACHINE_UNKNOWN, MACHINE_UNKNOWN); /* no /proc */
    put("proc/self/cgroup", "0::/\n");
    assert_cgroup(0, 0, 0); /* the root has no files */
    put("proc/self/cgroup", "0::/slice/pod/box\n");
    put("sys/fs/cgroup/slice/pod/box/cpu.max", "max 100000\n");
    put("sys/fs/cgroup/slice/pod/box/memory.max", "max\n");
    assert_cgroup(0, 0, 0);
    put("sys/fs/cgroup/slice/pod/cpu.max", "150000 100000\n"); /* what is above counts too */
    put("sys/fs/cgroup/slice/pod/memory.max", "8000000000\n");
    put("sys/fs/cgroup/slice/pod/memory.current", "3000000000\n");
    put("sys/fs/cgroup/slice/pod/memory.stat", "anon 1\nfile 1000000000\nfile_mapped 5\n");
    assert_cgroup(1.5, 8000000000, 2000000000);
    put("sys/fs/cgroup/slice/cpu.max", "50000 100000\n");  /* tighter */
    put("sys/fs/cgroup/slice/memory.max", "9000000000\n"); /* looser */
    assert_cgroup(0.5, 8000000000, 2000000000);
    put("sys/fs/cgroup/slice/pod/box/memory.max", "1000000\n"); /* tightest, of unknown use */
    assert_cgroup(0.5, 1000000, MACHINE_UNKNOWN);
}

static void cgroup_seen_from_a_container(void **state) {
    (void)state;
    put("proc/self/cgroup", "0::/of/the/host\n"); /* a path that is not mounted here: the mount's root is the group */
    put("sys/fs/cgroup/cpu.max", "400000 100000\n");
    put("sys/fs/cgroup/memory.max", "2000000000\n");
    put("sys/fs/cgroup/memory.current", "10\n");
    put("sys/fs/cgroup/memory.stat", "file 20\n"); /* read a moment later: more cache than memory is none in use */
    assert_cgroup(4, 2000000000, 0);
}

static void cgroup_v1(void **state) {
    (void)state;
    put("proc/self/cgroup", "9:name=systemd:/x\n5:cpuset:/\n4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/\n");
    assert_cgroup(0, 0, 0);
    put("sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us", "100000\n");
    put("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "9223372036854771712\n"); /* v1 for none */
    assert_cgroup(0, 0, 0);
    put("sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", "250000\n");
    put("sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n");
    put("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "1000000000\n");
    put("sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "700000000\n");
    put("sys/fs/cgroup/memory/docker/1/memory.stat", "cache 1\ntotal_cache 200000000\n");
    assert_cgroup(2.5, 1000000000, 500000000);
}

static void nonsense(void **state) {
    (void)state;
    put("proc/self/cgroup", "\n:\n::\nabc\n0::nowhere\n7:cpu:\n3:memory,cpu:/a\n");
    put("sys/fs/cgroup/memory,cpu/a/cpu.cfs_quota_us", "many\n");
    put("sys/fs/cgroup/memory,cpu/a/memory.limit_in_bytes", "-7\n");
    put("sys/fs/cgroup/cpu.max", "\n");
    put("sys/fs/cgroup/memory.max", "");
    assert_cgroup(0, 0, 0);
    put("sys/fs/cgroup/cpu.max", "100000 0\n"); /* no period */
    assert_cgroup(0, 0, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(memory, make_root, remove_root),
        cmocka_unit_test_setup_teardown(lines_and_values, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cgroup_v2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cgroup_seen_from_a_container, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cgroup_v1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(nonsense, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
