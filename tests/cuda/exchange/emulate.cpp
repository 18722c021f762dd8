/*
 * The kernels of exchanges on the CPU. All blocks of a launch run together, since they wait for one another: their threads are
 * fibers of one thread, which go on in turn until each waits at a barrier, in a warp's shuffle or for a word. Which block
 * comes first changes with `seed`: it must change no bit.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <memory>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct index3 {
    unsigned x, y, z;
};
static thread_local index3 threadIdx, blockIdx, blockDim, gridDim;

static void emulate_check(bool good, const char *what) {
    if (!good) {
        fprintf(stderr, "emulated exchange: %s (block %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, threadIdx.x);
        abort();
    }
}

/* ---- Fibers ---- */

enum state { RUNS, AT_BARRIER, IN_WARP, LOOKS, DONE };
enum { STACK_BYTES = 24 << 10, SLOT_BYTES = 16, SHARED_FLOATS = 16 << 10 };

struct fiber {
    void *sp;
    state is;
    unsigned turn;
};
struct block {
    index3 index;
    std::vector<fiber> fibers;
    std::vector<float> shared;
    std::vector<char> slots; /* [warps][2][32][SLOT_BYTES] */
    std::unique_ptr<char[]> stacks; /* not cleared: that takes longer than all else */
};

alignas(16) static thread_local float row_kept[SHARED_FLOATS];
static thread_local block *now;
static thread_local fiber *current;
static thread_local void *scheduler_sp;
static thread_local void (*kernel_entry)(const void *);
static thread_local const void *kernel_args;

extern "C" void exchange_emulate_switch(void **save, void *to);
__asm__(".text\n.globl exchange_emulate_switch\nexchange_emulate_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void pause_as(state why) {
    current->is = why;
    exchange_emulate_switch(&current->sp, scheduler_sp);
}

extern "C" void exchange_emulate_start(void) {
    kernel_entry(kernel_args);
    pause_as(DONE);
    abort();
}

/* Emulated kernels may take longer than ranks wait for one another: with LS_EMULATE_SLOW set time goes slower. */
static uint64_t emulate_time() {
    const uint64_t slow = getenv("LS_EMULATE_SLOW") != NULL ? 100 : 1;
    return (uint64_t)std::chrono::steady_clock::now().time_since_epoch().count() / slow;
}

static void emulate_look_again() {
    pause_as(LOOKS);
}

static void emulate_all_gather(const void *mine, size_t bytes, void *all) {
    fiber *self = current;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, buffer = self->turn++ % 2;
    char *slots = now->slots.data() + (warp * 2 + buffer) * 32 * SLOT_BYTES;
    emulate_check(bytes <= SLOT_BYTES, "a shuffle is too large");
    memcpy(slots + lane * SLOT_BYTES, mine, bytes);
    pause_as(IN_WARP);
    for (int i = 0; i < 32; i++) {
        memcpy((char *)all + i * bytes, slots + i * SLOT_BYTES, bytes);
    }
}

/* ---- What kernels call ---- */

static void __syncthreads() {
    pause_as(AT_BARRIER);
}
static void __syncwarp() {
    char all[32], none = 0;
    emulate_all_gather(&none, 1, all);
}
template <typename T> static T __shfl_xor_sync(unsigned, T value, int lanes) {
    T all[32];
    emulate_all_gather(&value, sizeof value, all);
    return all[(threadIdx.x % 32) ^ lanes];
}
static int32_t atomicCAS(int32_t *p, int32_t expected, int32_t value) {
    int32_t old = *p;
    *p = old == expected ? value : old;
    return old;
}
template <typename T> static T __ldcg(const T *p) {
    return *p;
}
static float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static long long __double_as_longlong(double value) {
    long long bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t all = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        out |= (uint32_t)(all >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    }
    return out;
}
static int min(int a, int b) {
    return a < b ? a : b;
}
static int max(int a, int b) {
    return a > b ? a : b;
}
template <int DTYPE> static float emulate_half(uint32_t) {
    return 0;
}
static void emulate_copy(void *, const void *, bool) {}
static void emulate_copies_until(int) {}

#undef __shared__
#undef __global__
#undef __device__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __shared__ thread_local
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#include "backend/cuda/kern/exchange.cu"

/* ---- Launching ---- */

static void begin_block(block *b, unsigned n_threads) {
    b->fibers.resize(n_threads);
    b->shared.assign(SHARED_FLOATS, NAN);
    b->slots.resize(n_threads / 32 * 2 * 32 * SLOT_BYTES);
    b->stacks.reset(new char[(size_t)n_threads * STACK_BYTES + 64]);
    char *stacks = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(b->stacks.get()) + 63) / 64 * 64);
    for (unsigned i = 0; i < n_threads; i++) {
        void **top = reinterpret_cast<void **>(stacks + (size_t)(i + 1) * STACK_BYTES - 64);
        *--top = NULL;
        *--top = reinterpret_cast<void *>(exchange_emulate_start);
        for (int r = 0; r < 6; r++) {
            *--top = NULL;
        }
        b->fibers[i] = {top, RUNS, 0};
    }
}

static void run_warp(block *b, unsigned warp) {
    for (bool again = true; again;) {
        int in_warp = 0;
        for (unsigned l = 0; l < 32; l++) {
            fiber &f = b->fibers[warp * 32 + l];
            if (f.is == RUNS) {
                current = &f;
                threadIdx = {warp * 32 + l, 0, 0};
                exchange_emulate_switch(&scheduler_sp, f.sp);
            }
            in_warp += f.is == IN_WARP;
        }
        again = in_warp == 32;
        for (unsigned l = 0; l < 32 && again; l++) {
            b->fibers[warp * 32 + l].is = RUNS;
        }
    }
}

/* One turn of a block; whether all of it is done. */
static bool run_turn(block *b) {
    const unsigned n = (unsigned)b->fibers.size();
    unsigned n_done = 0, n_waiting = 0;
    now = b;
    blockIdx = b->index;
    memcpy(row_kept, b->shared.data(), sizeof row_kept);
    for (unsigned warp = 0; warp < n / 32; warp++) {
        run_warp(b, warp);
    }
    memcpy(b->shared.data(), row_kept, sizeof row_kept);
    for (fiber &f : b->fibers) {
        n_done += f.is == DONE;
        n_waiting += f.is == AT_BARRIER;
    }
    emulate_check(n_done == 0 || n_waiting == 0, "threads end while others wait at a barrier");
    for (fiber &f : b->fibers) {
        if (f.is == LOOKS || (f.is == AT_BARRIER && n_waiting == n)) {
            f.is = RUNS;
        }
    }
    return n_done == n;
}

struct kernel {
    const char *name;
    void (*entry)(const void *);
    size_t bytes;
};
#define KERNEL(name, type)                                                                                             \
    {                                                                                                                  \
#name, [](const void *args) { name(*static_cast<const type *>(args)); }, sizeof(type)                          \
    }
static const kernel kernels[] = {KERNEL(exchange_rows, exchange_rows_args), KERNEL(exchange_push, exchange_slice_args),
                                 KERNEL(exchange_take, exchange_slice_args), KERNEL(exchange_meet, exchange_meet_args),
                                 KERNEL(exchange_offers, exchange_offers_args), KERNEL(exchange_sum, exchange_slice_args),
                                 KERNEL(exchange_offer, exchange_draw_args), KERNEL(exchange_draw, exchange_draw_args)};

extern "C" const void *exchange_emulate_kernel(const char *name, size_t *arg_bytes) {
    for (const kernel &k : kernels) {
        if (strcmp(k.name, name) == 0) {
            *arg_bytes = k.bytes;
            return &k;
        }
    }
    return NULL;
}

extern "C" void exchange_emulate_launch(const void *kernel_, const unsigned grid[2], unsigned threads,
                                        unsigned shared_bytes, const void *args, unsigned seed) {
    std::vector<block> blocks(grid[0] * grid[1]);
    kernel_entry = static_cast<const kernel *>(kernel_)->entry;
    kernel_args = args;
    gridDim = {grid[0], grid[1], 1};
    blockDim = {threads, 1, 1};
    emulate_check(threads % 32 == 0 && shared_bytes <= sizeof row_kept, "a block of this shape");
    for (unsigned i = 0; i < blocks.size(); i++) {
        blocks[i].index = {i % grid[0], i / grid[0], 0};
        begin_block(&blocks[i], threads);
    }
    for (size_t n_done = 0; n_done < blocks.size();) {
        n_done = 0;
        for (size_t i = 0; i < blocks.size(); i++) {
            n_done += run_turn(&blocks[(i * (seed % 2 == 0 ? 1 : blocks.size() - 1) + seed) % blocks.size()]);
        }
    }
}
