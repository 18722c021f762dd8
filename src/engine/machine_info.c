/* What this machine and this build are. Described in lockstep.h; nothing is assumed, what cannot be read is unknown. */
#include <curl/curl.h>
#include <dlfcn.h>
#include <histedit.h>
#include <hwloc.h>
#include <jansson.h>
#include <openssl/crypto.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <utf8proc.h>

#include "base/machine.h"
#include "engine/engine.h"

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#ifdef LS_SANITIZER
#define SANITIZER TEXT(LS_SANITIZER)
#else
#define SANITIZER "none"
#endif
#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

/* ---- Processor ---- */

/* Whether `word` stands in a list with blanks between. */
static bool has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *at = strstr(list, word); at != NULL; at = strstr(at + 1, word)) {
        if ((at == list || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0')) {
            return true;
        }
    }
    return false;
}

static void append_word(char *list, size_t list_bytes, const char *word) {
    size_t n = strlen(list);
    snprintf(list + n, list_bytes - n, "%s%s", n > 0 ? " " : "", word);
}

static void read_processor(ls_machine_info *info) {
    static const char *const known[] = {"avx2",     "fma",      "f16c",        "avx512f",     "avx512bw", "avx512vl",
                                        "avx512dq", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16",
                                        "amx_int8", "asimd",    "sve",         "bf16",        "i8mm"};
    static const char *const isas[] = {"avx512", "avx2", "ref"};
    char flags[8192];
    machine_read_value("/", "proc/cpuinfo", "model name", info->cpu, sizeof info->cpu);
    if (!machine_read_value("/", "proc/cpuinfo", "flags", flags, sizeof flags)) {
        machine_read_value("/", "proc/cpuinfo", "Features", flags, sizeof flags); /* what ARM calls them */
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (has_word(flags, known[i])) {
            append_word(info->features, sizeof info->features, known[i]);
        }
    }
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (cpu_isa_find(isas[i]) != NULL) {
            append_word(info->isas, sizeof info->isas, isas[i]);
        }
    }
}

/* ---- Topology ---- */

static void read_caches(hwloc_topology_t topology, ls_machine_info *info) {
    static const hwloc_obj_type_t level[LS_MACHINE_CACHES] = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE,
                                                              HWLOC_OBJ_L4CACHE};
    for (int i = 0; i < LS_MACHINE_CACHES; i++) {
        int count = hwloc_get_nbobjs_by_type(topology, level[i]);
        if (count > 0) {
            hwloc_obj_t first = hwloc_get_obj_by_type(topology, level[i], 0);
            info->cache[info->n_caches].level = i + 1;
            info->cache[info->n_caches].count = count;
            info->cache[info->n_caches].bytes = (int64_t)first->attr->cache.size;
            info->n_caches++;
        }
    }
}

static int count_of(hwloc_topology_t topology, hwloc_obj_type_t type) {
    int n = hwloc_get_nbobjs_by_type(topology, type);
    return n > 0 ? n : MACHINE_UNKNOWN;
}

static void read_topology(ls_machine_info *info) {
    hwloc_topology_t topology;
    info->n_packages = info->n_cores = info->n_hardware_threads = info->n_nodes = MACHINE_UNKNOWN;
    if (hwloc_topology_init(&topology) != 0) {
        return;
    }
    if (hwloc_topology_load(topology) == 0) {
        info->n_packages = count_of(topology, HWLOC_OBJ_PACKAGE);
        info->n_cores = count_of(topology, HWLOC_OBJ_CORE);
        info->n_hardware_threads = count_of(topology, HWLOC_OBJ_PU);
        info->n_nodes = count_of(topology, HWLOC_OBJ_NUMANODE);
        for (int i = 0; i < info->n_nodes && i < LS_MACHINE_NODES; i++) {
            hwloc_obj_t node = hwloc_get_obj_by_type(topology, HWLOC_OBJ_NUMANODE, (unsigned)i);
            info->node_memory_bytes[i] = (int64_t)node->attr->numanode.local_memory;
        }
        read_caches(topology, info);
    }
    hwloc_topology_destroy(topology);
}

/* ---- System ---- */

static int64_t soft_limit(int which) {
    struct rlimit limit;
    if (getrlimit(which, &limit) != 0) {
        return MACHINE_UNKNOWN;
    }
    return limit.rlim_cur == RLIM_INFINITY ? INT64_MAX : (int64_t)limit.rlim_cur;
}

static void read_system(ls_machine_info *info) {
    struct utsname name;
    char pretty[64], line[128];
    machine_read_value("/", "etc/os-release", "PRETTY_NAME", pretty, sizeof pretty);
    if (uname(&name) == 0) {
        snprintf(info->os, sizeof info->os, "%s%s%.16s %.48s %.16s", pretty, pretty[0] != '\0' ? ", " : "",
                 name.sysname, name.release, name.machine);
    }
    machine_memory memory;
    machine_cgroup group;
    machine_read_memory("/", &memory);
    machine_read_cgroup("/", &group);
    info->memory_bytes = memory.total_bytes;
    info->available_memory_bytes = memory.available_bytes;
    info->cgroup_cpus = group.cpus;
    info->cgroup_memory_bytes = group.memory_bytes;
    info->cgroup_used_bytes = group.memory_used_bytes;
    machine_read_line("/", "sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line);
    machine_chosen_word(line, info->huge_pages, sizeof info->huge_pages);
    info->memlock_bytes = soft_limit(RLIMIT_MEMLOCK);
    info->max_open_files = soft_limit(RLIMIT_NOFILE);
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    info->has_cuda_driver = driver != NULL;
    if (driver != NULL) {
        dlclose(driver);
    }
}

/* ---- Libraries ---- */

static void add_library(ls_machine_info *info, const char *name, const char *version) {
    info->library[info->n_libraries].name = name;
    snprintf(info->library[info->n_libraries].version, sizeof info->library[0].version, "%s", version);
    info->n_libraries++;
}

static void read_libraries(ls_machine_info *info) {
    char version[64];
    add_library(info, "jansson", jansson_version_str());
    pcre2_config(PCRE2_CONFIG_VERSION, version); /* at most 24 bytes */
    add_library(info, "pcre2", version);
    add_library(info, "utf8proc", utf8proc_version());
    add_library(info, "libcurl", curl_version_info(CURLVERSION_NOW)->version);
    add_library(info, "OpenSSL", OpenSSL_version(OPENSSL_VERSION_STRING));
    snprintf(version, sizeof version, "%d.%d as built", LIBEDIT_MAJOR, LIBEDIT_MINOR);
    add_library(info, "libedit", version);
    unsigned api = hwloc_get_api_version();
    snprintf(version, sizeof version, "API %u.%u.%u", api >> 16, api >> 8 & 255, api & 255);
    add_library(info, "hwloc", version);
}

ls_status ls_machine_get_info(ls_machine_info *out, ls_error *err) {
    TRY(check_struct_size("ls_machine_info", out->struct_size, SIZE_MAX, err));
    ls_machine_info info = {.struct_size = out->struct_size,
                            .compiler = COMPILER,
                            .sanitizer = SANITIZER,
                            .back_ends = ls_cuda_archs()[0] != '\0' ? "cpu cuda" : "cpu",
                            .n_allowed_threads = core_count()};
    read_processor(&info);
    read_topology(&info);
    read_system(&info);
    read_libraries(&info);
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info);
    return LS_OK;
}
