/*
 * A libcuda.so.1 for machines without a GPU: LS_EMULATE_GPUS of them (default 1), whose memory is the process's and whose
 * kernels are those of the emulators beside this folder. Streams are threads, so that GPUs run side by side and wait for one
 * another; what is launched between BeginCapture and EndCapture is a graph. Slow, for tiny models: it is there to test what
 * the host does.
 *
 *   LS_EMULATE_SMS               of a GPU (default 132)
 *   LS_EMULATE_NO_PEERS, LS_EMULATE_BROKEN_LINK   GPUs do not reach each other; a word changes on its way
 *   LS_EMULATE_FAILS=D:NAME:N    the N-th run of kernel NAME on GPU D fails: nothing runs on it any more, and it says so; or,
 *                                of cuStreamCreate, cuCtxSetCurrent, cuMemAlloc, cuLaunchKernel and cuGraphLaunch, the N-th
 *                                call for GPU D fails
 *   LS_EMULATE_HANGS=D:NAME:N    such a call does not come back
 *
 * Where something fails it says `emulated: ...` on stderr.
 */
#include <cuda.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backend/cuda/kern/pair_args.h"

extern "C" {
const void *decode_emulate_kernel(const char *name);
void decode_emulate_launch(const void *kernel, const unsigned grid[3], unsigned block, unsigned shared_bytes,
                           const void *args, bool backwards);
size_t decode_emulate_bytes(const void *kernel);
void persist_emulate_run(const void *kernel, const unsigned grid[2], unsigned block, unsigned shared_bytes,
                         const void *args);
const void *exchange_emulate_kernel(const char *name, size_t *arg_bytes);
void exchange_emulate_launch(const void *kernel, const unsigned grid[2], unsigned threads, unsigned shared_bytes,
                             const void *args, unsigned seed);
bool emulate_launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes,
                    void **args);
bool load_emulate_launch(const char *name, unsigned grid, unsigned block, const void *args);
}

static const size_t MEMORY_BYTES = (size_t)1 << 30;

static int n_gpus() {
    const char *text = getenv("LS_EMULATE_GPUS");
    return text != NULL ? atoi(text) : 1;
}

static int n_sms() {
    const char *text = getenv("LS_EMULATE_SMS");
    return text != NULL ? atoi(text) : 132;
}

typedef std::function<void()> task;

/* ---- Streams ---- */

static thread_local CUcontext context_now;

struct CUstream_st {
    const int gpu = (int)(uintptr_t)context_now - 1;
    std::atomic<bool> broken{false}; /* its GPU has failed */
    std::mutex lock;
    std::condition_variable changed;
    std::deque<task> tasks;
    bool ends = false, captures = false;
    uint64_t n_given = 0, n_done = 0;
    std::vector<task> captured;
    std::thread worker;

    CUstream_st() : worker([this] { work(); }) {}
    ~CUstream_st() {
        {
            std::lock_guard<std::mutex> held(lock);
            ends = true;
        }
        changed.notify_all();
        worker.join();
    }
    void work() {
        std::unique_lock<std::mutex> held(lock);
        for (;;) {
            changed.wait(held, [this] { return ends || !tasks.empty(); });
            if (tasks.empty()) {
                return;
            }
            task next = tasks.front();
            tasks.pop_front();
            held.unlock();
            next();
            held.lock();
            n_done++;
            changed.notify_all();
        }
    }
    void give(const task &t) {
        std::lock_guard<std::mutex> held(lock);
        if (captures) {
            captured.push_back(t);
            return;
        }
        n_given++;
        tasks.push_back(t);
        changed.notify_all();
    }
    void wait() {
        std::unique_lock<std::mutex> held(lock);
        const uint64_t until = n_given;
        changed.wait(held, [this, until] { return n_done >= until; });
    }
    bool idle() {
        std::lock_guard<std::mutex> held(lock);
        return n_done == n_given;
    }
};

/* Whether this is the one of NAME's on the GPU that the variable means. */
static bool is_meant(const char *variable, int gpu, const char *name) {
    static std::atomic<long> seen;
    const char *text = getenv(variable);
    char wanted[64] = "";
    int of = -1;
    long n = 0;
    if (text == NULL || sscanf(text, "%d:%63[^:]:%ld", &of, wanted, &n) != 3 || of != gpu ||
        strcmp(wanted, name) != 0 || ++seen != n) {
        return false;
    }
    fprintf(stderr, "emulated: %s=%s\n", variable, text);
    return true;
}

static bool call_fails(int gpu, const char *name) {
    if (is_meant("LS_EMULATE_HANGS", gpu, name)) {
        for (;;) {
            std::this_thread::sleep_for(std::chrono::seconds(1));
        }
    }
    return is_meant("LS_EMULATE_FAILS", gpu, name);
}

static bool kernel_fails(CUstream stream, const char *name) {
    stream->broken = stream->broken || is_meant("LS_EMULATE_FAILS", stream->gpu, name);
    return stream->broken;
}

struct CUevent_st {
    bool broken = false;
    std::mutex lock;
    std::condition_variable changed;
    uint64_t n_recorded = 0, n_happened = 0;
};
struct CUgraph_st {
    std::vector<task> tasks;
};
struct CUgraphExec_st {
    std::vector<task> tasks;
};

/* ---- Kernels ---- */

struct CUfunc_st {
    std::string name;
};
static std::mutex kernels_lock; /* the emulators but for the exchange's know one kernel at a time */

static void run_kernel(const char *name, const unsigned grid[3], unsigned block, unsigned shared, char *args) {
    size_t bytes;
    const void *kernel = exchange_emulate_kernel(name, &bytes);
    if (kernel != NULL) {
        exchange_emulate_launch(kernel, grid, block, shared, args, 0);
        return;
    }
    std::lock_guard<std::mutex> held(kernels_lock);
    void *list[] = {args};
    kernel = decode_emulate_kernel(name);
    if (kernel != NULL) {
        decode_emulate_launch(kernel, grid, block, shared, args, false);
    } else if (!(strncmp(name, "load_", 5) == 0 ? load_emulate_launch(name, grid[0], block, args)
                                                : emulate_launch(name, grid[0], grid[1], block, shared, list))) {
        fprintf(stderr, "emulated driver: cannot launch %s\n", name);
        abort();
    }
}

/* kern/pair.cu: what tells of links, of which LS_EMULATE_BROKEN_LINK changes a word. */
static uint32_t pattern_at(int64_t i, uint32_t seed) {
    uint32_t x = (uint32_t)i * 2654435761u ^ seed;
    x ^= x >> 15;
    return x * 2246822519u ^ (uint32_t)(i >> 32);
}

static void run_pair_kernel(const std::string &name, const void *given) {
    if (name == "pair_ping") {
        const pair_ping_args a = *static_cast<const pair_ping_args *>(given);
        for (uint32_t i = 1; i <= a.n; i++) {
            if (a.begins) {
                __atomic_store_n(a.there, i, __ATOMIC_RELEASE);
            }
            while (__atomic_load_n(a.here, __ATOMIC_ACQUIRE) != i) {
                std::this_thread::yield();
            }
            if (!a.begins) {
                __atomic_store_n(a.there, i, __ATOMIC_RELEASE);
            }
        }
        return;
    }
    const pair_pattern_args a = *static_cast<const pair_pattern_args *>(given);
    for (int64_t i = 0; i < a.n; i++) {
        const uint32_t word = pattern_at(i, a.seed);
        if (name == "pair_fill") {
            a.data[i] = word;
        } else if (a.data[i] != word && (unsigned long long)i < *a.first_bad) {
            *a.first_bad = (unsigned long long)i;
        }
    }
    if (name == "pair_fill" && getenv("LS_EMULATE_BROKEN_LINK") != NULL) {
        a.data[a.n / 3] ^= 1;
    }
}

static CUresult launch(const char *name, unsigned x, unsigned y, unsigned z, unsigned block, unsigned shared,
                       CUstream stream, void **args) {
    enum { MOST_ARGS = 1536 };
    if (strncmp(name, "persist_", 8) == 0) { /* its blocks run together, and beside those of other GPUs */
        const void *kernel = decode_emulate_kernel(name);
        const char *from = static_cast<const char *>(args[0]);
        const std::vector<char> copy(from, from + decode_emulate_bytes(kernel));
        stream->give([=] {
            const unsigned grid[2] = {x, y};
            persist_emulate_run(kernel, grid, block, shared, copy.data());
        });
        return CUDA_SUCCESS;
    }
    if (strncmp(name, "read_", 5) == 0) { /* measures the memory of a GPU: there is none */
        return CUDA_SUCCESS;
    }
    if (strncmp(name, "pair_", 5) == 0) {
        std::vector<char> copy(sizeof(pair_ping_args) > sizeof(pair_pattern_args) ? sizeof(pair_ping_args)
                                                                                  : sizeof(pair_pattern_args));
        memcpy(copy.data(), args[0], name[5] == 'p' ? sizeof(pair_ping_args) : sizeof(pair_pattern_args));
        const std::string kernel = name;
        stream->give([=] { run_pair_kernel(kernel, copy.data()); });
        return CUDA_SUCCESS;
    }
    if (strcmp(name, "count_launch") == 0) {
        uint32_t *count = *static_cast<uint32_t *const *>(args[0]);
        stream->give([=] { ++*count; });
        return CUDA_SUCCESS;
    }
    if (strcmp(name, "copy_words") == 0) {
        const int32_t *from = *static_cast<const int32_t *const *>(args[0]);
        int32_t *to = *static_cast<int32_t *const *>(args[1]);
        const int32_t n = *static_cast<const int32_t *>(args[2]);
        stream->give([=] { memcpy(to, from, (size_t)n * 4); });
        return CUDA_SUCCESS;
    }
    std::vector<char> copy(MOST_ARGS);
    memcpy(copy.data(), args[0], MOST_ARGS); /* more than there is; a stack has more */
    stream->give([=]() mutable {
        const unsigned grid[3] = {x, y, z};
        std::vector<char> own(copy.size() + 64);
        char *at = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(own.data()) + 63) / 64 * 64);
        memcpy(at, copy.data(), copy.size());
        if (kernel_fails(stream, name)) {
            return;
        }
        run_kernel(name, grid, block, shared, at);
    });
    return CUDA_SUCCESS;
}

/* ---- The driver's functions ---- */

extern "C" {
/* libnccl.cpp's: behind what the stream has, or into what it captures. Takes the task over. */
void emulate_give(CUstream stream, task *given) {
    stream->give(*given);
    delete given;
}
CUresult cuInit(unsigned) {
    return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *out) {
    *out = CUDA_VERSION;
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult, const char **out) {
    *out = "CUDA_ERROR";
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char **out) {
    *out = "emulated";
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *out) {
    *out = n_gpus();
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *out, int i) {
    *out = i;
    return i < n_gpus() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char *out, int n, CUdevice) {
    snprintf(out, (size_t)n, "emulated GPU");
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *out, CUdevice_attribute what, CUdevice) {
    *out = what == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT                ? n_sms()
           : what == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR          ? 9
           : what == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR          ? 0
           : what == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? 227 << 10
                                                                           : 1 << 20;
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *out, CUdevice) {
    *out = MEMORY_BYTES;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetPCIBusId(char *out, int n, CUdevice device) {
    snprintf(out, (size_t)n, "0000:00:%02d.0", device);
    return CUDA_SUCCESS;
}
CUresult cuDeviceCanAccessPeer(int *out, CUdevice, CUdevice) {
    *out = getenv("LS_EMULATE_NO_PEERS") == NULL;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device) {
    *out = (CUcontext)(uintptr_t)(device + 1);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
    if (call_fails((int)(uintptr_t)context - 1, "cuCtxSetCurrent")) {
        return CUDA_ERROR_UNKNOWN;
    }
    context_now = context;
    return CUDA_SUCCESS;
}
CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned) {
    return peer == context_now ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
CUresult cuMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = MEMORY_BYTES;
    *free_bytes = MEMORY_BYTES / 4 * 3;
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr *out, size_t bytes) {
    if (call_fails((int)(uintptr_t)context_now - 1, "cuMemAlloc")) {
        return CUDA_ERROR_UNKNOWN;
    }
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    *out = (CUdeviceptr)p;
    memset(p, 0xff, bytes);
    return context_now == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr p) {
    free((void *)p);
    return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned) {
    *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
    return CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void *p) {
    free(p);
    return CUDA_SUCCESS;
}
CUresult cuMemHostRegister(void *, size_t, unsigned) {
    return CUDA_SUCCESS;
}
CUresult cuMemHostUnregister(void *) {
    return CUDA_SUCCESS;
}
CUresult cuMemHostGetDevicePointer(CUdeviceptr *out, void *p, unsigned) {
    *out = (CUdeviceptr)p;
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t n) {
    memcpy(to, (void *)from, n);
    return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t n, CUstream stream) {
    stream->give([=] { memcpy((void *)to, from, n); });
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t n, CUstream stream) {
    stream->give([=] { memcpy(to, (void *)from, n); });
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
    stream->give([=] { memcpy((void *)to, (void *)from, n); });
    return CUDA_SUCCESS;
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t n, CUstream stream) {
    return cuMemcpyDtoDAsync(to, from, n, stream);
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t n, CUstream stream) {
    stream->give([=] { memset((void *)to, byte, n); });
    return CUDA_SUCCESS;
}
CUresult cuMemsetD2D32Async(CUdeviceptr to, size_t pitch, unsigned value, size_t width, size_t height,
                            CUstream stream) {
    stream->give([=] {
        for (size_t y = 0; y < height; y++) {
            for (size_t x = 0; x < width; x++) {
                ((unsigned *)(to + y * pitch))[x] = value;
            }
        }
    });
    return CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream *out, unsigned) {
    if (call_fails((int)(uintptr_t)context_now - 1, "cuStreamCreate")) {
        return CUDA_ERROR_UNKNOWN;
    }
    *out = new CUstream_st;
    return context_now == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) {
    delete stream;
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
    stream->wait();
    return CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream stream) {
    return stream->broken ? CUDA_ERROR_ILLEGAL_ADDRESS : stream->idle() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventCreate(CUevent *out, unsigned) {
    *out = new CUevent_st;
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) {
    delete event;
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
    {
        std::lock_guard<std::mutex> held(event->lock);
        event->n_recorded++;
    }
    stream->give([=] {
        std::lock_guard<std::mutex> held(event->lock);
        event->n_happened++;
        event->broken = event->broken || stream->broken;
        event->changed.notify_all();
    });
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent event) {
    std::lock_guard<std::mutex> held(event->lock);
    return event->n_happened != event->n_recorded ? CUDA_ERROR_NOT_READY
           : event->broken                        ? CUDA_ERROR_ILLEGAL_ADDRESS
                                                  : CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent event) {
    std::unique_lock<std::mutex> held(event->lock);
    const uint64_t until = event->n_recorded;
    event->changed.wait(held, [=] { return event->n_happened >= until; });
    return CUDA_SUCCESS;
}
CUresult cuEventElapsedTime(float *out, CUevent, CUevent) {
    *out = 1;
    return CUDA_SUCCESS;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    stream->give([=] { cuEventSynchronize(event); });
    return CUDA_SUCCESS;
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
    std::lock_guard<std::mutex> held(stream->lock);
    stream->captures = true;
    stream->captured.clear();
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *out) {
    std::lock_guard<std::mutex> held(stream->lock);
    stream->captures = false;
    *out = new CUgraph_st{stream->captured};
    return CUDA_SUCCESS;
}
CUresult cuGraphInstantiate(CUgraphExec *out, CUgraph graph, unsigned long long) {
    *out = new CUgraphExec_st{graph->tasks};
    return CUDA_SUCCESS;
}
CUresult cuGraphUpload(CUgraphExec, CUstream) {
    return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    if (call_fails(stream->gpu, "cuGraphLaunch")) {
        return CUDA_ERROR_UNKNOWN;
    }
    for (const task &t : exec->tasks) {
        stream->give(t);
    }
    return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec exec) {
    delete exec;
    return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) {
    delete graph;
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *out, const void *) {
    *out = (CUmodule)(uintptr_t)1;
    return context_now == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) {
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *out, CUmodule, const char *name) {
    *out = new CUfunc_st{name}; /* as many as there are kernels and ranks */
    return CUDA_SUCCESS;
}
CUresult cuFuncLoad(CUfunction) {
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) {
    return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *out, CUfunction fn, int, size_t) {
    enum { SMALL_BLOCKS = 16 };
    *out = fn->name.compare(0, 8, "persist_") == 0 ? 1 : SMALL_BLOCKS;
    return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t, void *base,
                                const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                                const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    const struct { /* what emulated kernels read; those of prefill know of no more than box_rows */
        void *base;
        uint64_t columns, rows, row_bytes;
        uint32_t box_columns, box_rows, element, swizzled;
    } of = {base,
            size[0],
            size[1],
            stride[0],
            box[0],
            box[1],
            type == CU_TENSOR_MAP_DATA_TYPE_UINT64 ? 8u : 2u,
            swizzle == CU_TENSOR_MAP_SWIZZLE_128B};
    memcpy(map, &of, sizeof of);
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction fn, unsigned x, unsigned y, unsigned z, unsigned block, unsigned, unsigned,
                        unsigned shared, CUstream stream, void **args, void **) {
    return call_fails(stream->gpu, "cuLaunchKernel") ? CUDA_ERROR_UNKNOWN
                                                     : launch(fn->name.c_str(), x, y, z, block, shared, stream, args);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction fn, void **args, void **) {
    const bool together = c->numAttrs > 0 && c->attrs[0].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    if (call_fails(c->hStream->gpu, "cuLaunchKernel")) {
        return CUDA_ERROR_UNKNOWN;
    }
    if (together && c->gridDimX * c->gridDimY > (unsigned)n_sms()) {
        return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    }
    return launch(fn->name.c_str(), c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->sharedMemBytes, c->hStream,
                  args);
}
}
