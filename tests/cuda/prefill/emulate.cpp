/* Runs the prefill kernels on the CPU, a block (or a cluster of them) after another (x86-64 only). See emulate.h. */
#include "emulate.h"

#include "../../../src/backend/cuda/kern/gemm.cu"
#include "../../../src/backend/cuda/kern/prefill_attn.cu"
#include "../../../src/backend/cuda/kern/prefill_flash.cu"
#include "../../../src/backend/cuda/kern/prefill_matmul.cu"
#include "../../../src/backend/cuda/kern/prefill_rows.cu"
#include "../../../src/backend/cuda/kern/wide.cu"

enum { MAX_THREADS = 384, CLUSTER = GEMM_CLUSTER, ALL_THREADS = CLUSTER * MAX_THREADS, STACK = 128 << 10, SHARED = 232448 };

emulated_index threadIdx, blockIdx, gridDim;
thread_local __align__(1024) uint8_t mm_shared[SHARED], attn_shared[SHARED], flash_shared[CLUSTER * EMULATED_SHARED];

struct fiber {
    void *stack_pointer;
    uint8_t *stack;
    bool is_alive;
    std::deque<emulated_copy> copies;
    std::deque<prefill::emulated_group> groups;
};

struct emulated_warp {
    int arrived, generation;
    alignas(16) uint8_t memory[1024];
};

struct emulated_place {
    int arrived, generation;
};

/* Blocks that run at the same time, one or a cluster: thread i is of block i / n_threads. */
struct emulated_blocks {
    int n_threads, n_all, n_alive, n_alive_in[CLUSTER], current;
    unsigned first; /* blockIdx.x of the first */
    fiber thread[ALL_THREADS];
    emulated_warp warp[ALL_THREADS / 32];
    emulated_place all[CLUSTER], together, place[CLUSTER][16];
    void *caller;
    void (*kernel)(void **args);
    void **args;
};
static emulated_blocks block;
std::map<void *, prefill::emulated_barrier> prefill::emulated_barriers;

/* Saves the stack's place and the registers that functions preserve, and goes on with another stack. */
extern "C" void emulate_switch(void **from, void *to);
asm(".globl emulate_switch\nemulate_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static int next_alive() {
    int i = block.current;
    do {
        i = (i + 1) % block.n_all;
    } while (!block.thread[i].is_alive);
    return i;
}

static void set_current(int i) {
    block.current = i;
    threadIdx = {(unsigned)(i % block.n_threads), 0, 0};
    blockIdx.x = block.first + (unsigned)(i / block.n_threads);
}

static void switch_to(int i) {
    fiber *from = &block.thread[block.current];
    set_current(i);
    emulate_switch(&from->stack_pointer, block.thread[i].stack_pointer);
}

static void yield() {
    int i = next_alive();
    if (i == block.current) {
        printf("FATAL a barrier that not all threads reach\n");
        abort();
    }
    switch_to(i);
}

void emulated_yield() {
    yield();
}

static void meet(int &arrived, int &generation, int expected) {
    int mine = generation;
    if (++arrived == expected) {
        arrived = 0;
        generation++;
    }
    while (generation == mine) {
        yield();
    }
}

int emulated_block_of_cluster() {
    return block.current / block.n_threads;
}
void __syncthreads() {
    emulated_place &all = block.all[emulated_block_of_cluster()];
    meet(all.arrived, all.generation, block.n_alive_in[emulated_block_of_cluster()]);
}
void emulated_meet_cluster() {
    meet(block.together.arrived, block.together.generation, block.n_all);
}
void emulated_warp_meet() {
    emulated_warp &warp = block.warp[block.current / 32];
    meet(warp.arrived, warp.generation, 32);
}
void emulated_meet_at(int i, int threads, bool waits) {
    emulated_place &place = block.place[emulated_block_of_cluster()][i];
    if (waits) {
        meet(place.arrived, place.generation, threads);
    } else if (++place.arrived == threads) {
        place.arrived = 0;
        place.generation++;
    }
}
int emulated_lane() {
    return block.current % 32;
}
void *emulated_warp_memory() {
    return block.warp[block.current / 32].memory;
}
std::deque<emulated_copy> &emulated_copies() {
    return block.thread[block.current].copies;
}

std::deque<prefill::emulated_group> &prefill::emulated_groups() {
    return block.thread[block.current].groups;
}

static void run_thread() {
    void *unused;
    block.kernel(block.args);
    block.thread[block.current].is_alive = false;
    block.n_alive_in[emulated_block_of_cluster()]--;
    if (--block.n_alive == 0) {
        emulate_switch(&unused, block.caller);
    }
    switch_to(next_alive());
}

static void run_blocks(int n_blocks, int n_threads) {
    block.n_threads = n_threads;
    block.n_all = block.n_alive = n_blocks * n_threads;
    block.together.arrived = 0;
    for (int i = 0; i < n_blocks; i++) {
        block.n_alive_in[i] = n_threads;
        block.all[i].arrived = 0;
    }
    for (emulated_warp &warp : block.warp) {
        warp.arrived = 0;
    }
    for (auto &places : block.place) {
        for (emulated_place &place : places) {
            place.arrived = 0;
        }
    }
    prefill::emulated_barriers.clear();
    for (int i = 0; i < block.n_all; i++) {
        fiber *f = &block.thread[i];
        f->stack = f->stack == nullptr ? (uint8_t *)aligned_alloc(64, STACK) : f->stack;
        f->is_alive = true;
        f->copies.clear();
        f->groups.clear();
        void **top = (void **)(f->stack + STACK - 64);
        *--top = nullptr; /* nobody to return to, and the alignment of a call */
        *--top = (void *)run_thread;
        for (int j = 0; j < 6; j++) {
            *--top = nullptr;
        }
        f->stack_pointer = top;
    }
    block.first = blockIdx.x;
    set_current(0);
    emulate_switch(&block.caller, block.thread[0].stack_pointer);
}

#define KERNEL(name, type) {#name, [](void **args) { name(*(const type *)args[0]); }},
#define MATMUL(name) KERNEL(name, prefill_matmul_args)
#define BOTH(d)                                                                                                        \
    KERNEL(prefill_attn_bf16_##d, prefill_attn_args)                                                                   \
    KERNEL(prefill_attn_f16_##d, prefill_attn_args)                                                                    \
    KERNEL(prefill_flash_bf16_##d, prefill_flash_args)                                                                 \
    KERNEL(prefill_flash_f16_##d, prefill_flash_args)
#define GEMM_BOTH_TYPES(n) KERNEL(gemm_bf16_##n, gemm_args) KERNEL(gemm_f16_##n, gemm_args)
#define WIDE_BOTH_TYPES(n) KERNEL(wide_bf16_##n, wide_args) KERNEL(wide_f16_##n, wide_args)
static const struct {
    const char *name;
    void (*run)(void **args);
} kernels[] = {
    KERNEL(prefill_qkv, prefill_qkv_args)
    KERNEL(prefill_silu, prefill_silu_args) KERNEL(prefill_widen, prefill_widen_args) KERNEL(prefill_faults, prefill_faults_args)
    MATMUL(prefill_mm_bf16_32) MATMUL(prefill_mm_bf16_128) MATMUL(prefill_mm_f16_32) MATMUL(prefill_mm_f16_128)
    MATMUL(prefill_mm_bf16_int8_32) MATMUL(prefill_mm_bf16_int8_64) MATMUL(prefill_mm_f16_int8_32)
    MATMUL(prefill_mm_f16_int8_64) MATMUL(prefill_mm_f32) MATMUL(prefill_mm_f32_int8)
    WIDE_BOTH_TYPES(32_long) WIDE_BOTH_TYPES(32) WIDE_BOTH_TYPES(64_long) WIDE_BOTH_TYPES(64) WIDE_BOTH_TYPES(128)
    GEMM_BOTH_TYPES(qkv_256) GEMM_BOTH_TYPES(silu_256) GEMM_BOTH_TYPES(silu_240) GEMM_BOTH_TYPES(silu_160)
    GEMM_BOTH_TYPES(rows_256) GEMM_BOTH_TYPES(rows_160) GEMM_BOTH_TYPES(rows_96)
    BOTH(64) BOTH(80) BOTH(96) BOTH(128) BOTH(256) KERNEL(prefill_attn_any, prefill_attn_args)};

/* False: no such kernel, or a launch that the driver would refuse. Shared memory behind shared_bytes must stay untouched. */
extern "C" bool emulate_launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes,
                               void **args) {
    block.kernel = nullptr;
    block.args = args;
    for (const auto &kernel : kernels) {
        block.kernel = strcmp(kernel.name, name) == 0 ? kernel.run : block.kernel;
    }
    if (block.kernel == nullptr || grid_x == 0 || grid_y == 0 || grid_y > 65535 || threads == 0 || threads % 32 != 0 ||
        threads > MAX_THREADS || shared_bytes > SHARED) {
        return false;
    }
    const unsigned cluster = strncmp(name, "gemm_", 5) == 0 ? GEMM_CLUSTER : 1;
    if (grid_x % cluster != 0) {
        return false;
    }
    static bool backwards; /* every other launch: results do not depend on the order of blocks */
    backwards = !backwards;
    gridDim = {grid_x, grid_y, 1};
    for (unsigned at = 0; at < grid_x * grid_y; at += cluster) {
        const unsigned i = backwards ? grid_x * grid_y - cluster - at : at;
        blockIdx = {i % grid_x, i / grid_x, 0};
        memset(mm_shared, 0xff, SHARED);
        memset(attn_shared, 0xff, SHARED);
        memset(flash_shared, 0xff, cluster * EMULATED_SHARED);
        run_blocks((int)cluster, (int)threads);
        for (unsigned j = shared_bytes; j < SHARED; j++) {
            if (mm_shared[j] != 0xff || attn_shared[j] != 0xff || flash_shared[j] != 0xff ||
                flash_shared[(cluster - 1) * EMULATED_SHARED + j] != 0xff) {
                printf("FATAL %s writes to byte %u of %u of shared memory\n", name, j, shared_bytes);
                abort();
            }
        }
    }
    return true;
}
