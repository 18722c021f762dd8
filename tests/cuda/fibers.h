/*
 * CUDA C as plain C++, for kernels that run where there is no GPU: what they call, and their threads as fibers of one thread of
 * the host, which run in turn until each waits at a barrier, in a warp's exchange, or looks again. How blocks share the host
 * is the includer's business: it has `fibers` and slots for each warp, and calls run_warp.
 */
#ifndef LS_TESTS_CUDA_FIBERS_H
#define LS_TESTS_CUDA_FIBERS_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct index3 {
    unsigned x, y, z;
};
static thread_local index3 threadIdx, blockIdx, blockDim, gridDim;

static void emulate_check(bool good, const char *what) {
    if (!good) {
        fprintf(stderr, "emulated kernel: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
                threadIdx.x);
        abort();
    }
}

/* ---- Fibers ---- */

enum state { RUNS, AT_BARRIER, IN_WARP, DONE };
enum { SLOT_BYTES = 32, PLACES = 16 };

struct fiber {
    void *sp;
    state is;
    unsigned turn;         /* of the warp's exchanges */
    unsigned place, meets; /* of the barrier it waits at: its number (0: __syncthreads), its threads */
};
typedef char warp_slots[2][32][SLOT_BYTES];

static thread_local fiber *current;
static thread_local warp_slots *slots; /* [warps] of the block that runs */
static thread_local void *scheduler_sp;
static thread_local void (*kernel_entry)(const void *);
static thread_local const void *kernel_args;

/* One for all objects that are linked together. */
extern "C" __attribute__((visibility("hidden"))) void emulate_switch(void **save, void *to);
__asm__(".text\n.weak emulate_switch\n.hidden emulate_switch\nemulate_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void pause_as(state why) {
    current->is = why;
    emulate_switch(&current->sp, scheduler_sp);
}

static void emulate_start() {
    kernel_entry(kernel_args);
    pause_as(DONE);
    abort();
}

/* end: of its stack, a multiple of 64. */
static void fiber_begin(fiber *f, char *end) {
    void **top = reinterpret_cast<void **>(end - 64);
    *--top = NULL; /* so that emulate_start finds its stack aligned as a call leaves it */
    *--top = reinterpret_cast<void *>(emulate_start);
    for (int r = 0; r < 6; r++) {
        *--top = NULL;
    }
    *f = {top, RUNS, 0, 0, 0};
}

/* Lanes go on, in order or backwards, until none can but for those that look again; all wait for their warp: once more. */
static void run_warp(fiber *fibers, unsigned warp, bool backwards) {
    for (bool again = true; again;) {
        int waiting[4] = {0, 0, 0, 0};
        for (unsigned l = 0; l < 32; l++) {
            const unsigned i = warp * 32 + (backwards ? 31 - l : l);
            if (fibers[i].is == RUNS) {
                current = &fibers[i];
                threadIdx = {i, 0, 0};
                emulate_switch(&scheduler_sp, current->sp);
            }
            waiting[fibers[i].is]++;
        }
        again = waiting[IN_WARP] == 32;
        emulate_check(again || waiting[IN_WARP] == 0 || waiting[RUNS] > 0, "lanes of a warp wait for different things");
        for (unsigned l = 0; l < 32 && again; l++) {
            fibers[warp * 32 + l].is = RUNS;
        }
    }
}

static void emulate_all_gather(const void *mine, size_t bytes, void *all) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, buffer = current->turn++ % 2;
    emulate_check(bytes <= SLOT_BYTES, "an exchange is too large");
    memcpy(slots[warp][buffer][lane], mine, bytes);
    pause_as(IN_WARP);
    for (int i = 0; i < 32; i++) {
        memcpy((char *)all + i * bytes, slots[warp][buffer][i], bytes);
    }
}

/* Emulated kernels may take longer than ranks wait for one another: with LS_EMULATE_SLOW set time goes slower, so many times (1: 100). */
static uint64_t emulate_time() {
    static const char *const text = getenv("LS_EMULATE_SLOW");
    static const uint64_t by = text != NULL ? (uint64_t)atoi(text) : 0, slow = text == NULL ? 1 : by > 1 ? by : 100;
    return (uint64_t)std::chrono::steady_clock::now().time_since_epoch().count() / slow;
}

static void emulate_look_again() {
    pause_as(RUNS);
}

/* ---- What kernels call ---- */

static void emulate_meet(unsigned place, unsigned threads) {
    emulate_check(place < PLACES, "a barrier of this number");
    current->place = place;
    current->meets = threads;
    pause_as(AT_BARRIER);
}
static void __syncthreads() {
    emulate_meet(0, blockDim.x);
}
static void __syncwarp() {
    char all[32], none = 0;
    emulate_all_gather(&none, 1, all);
}
static void __threadfence() {}
template <typename T> static T __shfl_xor_sync(unsigned, T value, int lanes) {
    T all[32];
    emulate_all_gather(&value, sizeof value, all);
    return all[(threadIdx.x % 32) ^ lanes];
}
template <typename T> static T __shfl_sync(unsigned, T value, int lane) {
    T all[32];
    emulate_all_gather(&value, sizeof value, all);
    return all[lane];
}
template <typename T> static T __shfl_up_sync(unsigned, T value, int lanes) {
    T all[32];
    emulate_all_gather(&value, sizeof value, all);
    const int lane = threadIdx.x % 32;
    return all[lane >= lanes ? lane - lanes : lane];
}
static uint32_t __ballot_sync(unsigned, bool value) {
    bool all[32];
    uint32_t bits = 0;
    emulate_all_gather(&value, sizeof value, all);
    for (int i = 0; i < 32; i++) {
        bits |= (uint32_t)all[i] << i;
    }
    return bits;
}
static int __popc(uint32_t bits) {
    return __builtin_popcount(bits);
}
static uint32_t atomicAdd(uint32_t *p, uint32_t n) {
    uint32_t old = *p;
    *p += n;
    return old;
}
static int32_t atomicCAS(int32_t *p, int32_t expected, int32_t value) {
    __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
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
static float __fadd_rn(float a, float b) {
    return a + b;
}
static float __fmul_rn(float a, float b) {
    return a * b;
}
static uint32_t __umulhi(uint32_t a, uint32_t b) {
    return (uint32_t)((uint64_t)a * b >> 32);
}
static int __clz(int x) {
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
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
template <int DTYPE> static float emulate_half(uint32_t bits) {
    uint16_t low = (uint16_t)bits;
    if (DTYPE == 2) {
        return __uint_as_float((uint32_t)low << 16);
    }
    __half half;
    memcpy(&half, &low, sizeof half);
    return __half2float(half);
}

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

#endif
