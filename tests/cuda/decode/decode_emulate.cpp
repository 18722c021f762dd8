/*
 * The decode kernels on the CPU: a device for decode_check where there is no GPU. Slow, for small models.
 *
 * The .cu files are compiled as C++, with a block's threads as fibers (fibers.h); a warp whose lanes wait for different things
 * is an error. With LS_EMULATE_BACKWARDS set lanes and warps
 * run in the opposite order, which must give the same bits. Built with -fsanitize=address it finds accesses outside of
 * buffers, since each is an allocation of its own.
 */
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "../fibers.h"

enum { STACK_BYTES = 256 << 10, MAX_THREADS = 1024 };

static thread_local fiber fibers[MAX_THREADS];
static thread_local char *stacks[MAX_THREADS];
static thread_local warp_slots slots_of_warps[MAX_THREADS / 32];

/* Asynchronous copies of a thread, in order; to = NULL ends a group. What they bring is there when it is waited for, and
 * rubbish until then. */
struct pending_copy {
    char *to;
    char data[16];
};
static thread_local std::deque<pending_copy> copies[MAX_THREADS];

static void emulate_copy(void *to, const void *from, bool wanted) {
    pending_copy copy = {static_cast<char *>(to), {0}};
    if (to != NULL) {
        memset(to, 0xff, sizeof copy.data);
    }
    if (wanted) {
        memcpy(copy.data, from, sizeof copy.data);
    }
    copies[threadIdx.x].push_back(copy);
}

static void emulate_copies_until(int n_pending) {
    std::deque<pending_copy> &mine = copies[threadIdx.x];
    int n_groups = 0;
    for (const pending_copy &copy : mine) {
        n_groups += copy.to == NULL;
    }
    for (; n_groups > n_pending; mine.pop_front()) {
        if (mine.front().to == NULL) {
            n_groups--;
        } else {
            memcpy(mine.front().to, mine.front().data, sizeof mine.front().data);
        }
    }
}

/* What decode_emulate_device.c leaves in a CUtensorMap. */
struct emulated_map {
    const char *base;
    uint64_t columns, rows, row_bytes; /* columns of `element` bytes */
    uint32_t box_columns, box_rows, element, swizzled;
};

/* Copies of a block that have not come in. */
struct bulk {
    char *to;
    emulated_map map;
    int column, row;
    uint64_t *barrier;

    uint32_t width() const {
        return map.box_columns * map.element;
    }
    uint32_t bytes() const {
        return width() * map.box_rows;
    }
    void land() const {
        const uint64_t n = map.columns * map.element, first = (uint64_t)column * map.element;
        for (uint32_t r = 0; r < map.box_rows; r++) {
            for (uint32_t i = 0; i < width(); i += map.element) {
                const bool inside = row >= 0 && column >= 0 && (uint64_t)row + r < map.rows && first + i < n;
                const uint32_t at = r * width() + i;
                char *cell = to + (map.swizzled ? at ^ (at >> 7 & 7) << 4 : at);
                memset(cell, 0, map.element);
                if (inside) {
                    memcpy(cell, map.base + (row + r) * map.row_bytes + first + i, map.element);
                }
            }
        }
    }
};
static thread_local std::deque<bulk> bulks;
static void emulate_some_bulk();
extern thread_local uint4 persist_room[(228 << 10) / sizeof(uint4)];

alignas(16) thread_local float matmul_room[(228 << 10) / sizeof(float)];
alignas(16) thread_local float kept[1 << 14];
thread_local uint4 attn_room[(228 << 10) / sizeof(uint4)];
alignas(1024) thread_local uint4 persist_room[(228 << 10) / sizeof(uint4)];

#include "backend/cuda/kern/decode_attn.cu"
#include "backend/cuda/kern/decode_attn_chain.cu"
#include "backend/cuda/kern/decode_matmul.cu"
#include "backend/cuda/kern/decode_matmul_wide.cu"
#include "backend/cuda/kern/decode_sample.cu"
#include "backend/cuda/kern/decode_stream.cu"
#include "backend/cuda/kern/persist.cu"
#undef DEFINE_PERSIST
#include "backend/cuda/kern/persist_shared.cu"

/* ---- Launching ---- */

static void run_block(unsigned n_threads, bool backwards) {
    const unsigned n_warps = n_threads / 32;
    slots = slots_of_warps;
    for (unsigned i = 0; i < n_threads; i++) {
        if (stacks[i] == NULL) {
            stacks[i] = static_cast<char *>(aligned_alloc(64, STACK_BYTES));
        }
        fiber_begin(&fibers[i], stacks[i] + STACK_BYTES);
        copies[i].clear();
    }
    for (unsigned n_done = 0; n_done < n_threads;) {
        for (unsigned w = 0; w < n_warps; w++) {
            run_warp(fibers, backwards ? n_warps - 1 - w : w, backwards);
        }
        n_done = 0;
        unsigned n_waiting = 0, n_at[PLACES] = {0};
        for (unsigned i = 0; i < n_threads; i++) {
            n_done += fibers[i].is == DONE;
            n_waiting += fibers[i].is == AT_BARRIER;
            n_at[fibers[i].place] += fibers[i].is == AT_BARRIER;
        }
        emulate_check(n_at[0] == 0 || n_done == 0, "threads end while others wait at a barrier");
        for (unsigned i = 0; i < n_threads; i++) {
            fiber &f = fibers[i];
            if (f.is == AT_BARRIER && f.meets == n_at[f.place]) {
                f.is = RUNS;
            }
        }
        if (n_waiting + n_done < n_threads) {
            std::this_thread::yield();
        }
    }
    emulate_check(bulks.empty(), "copies have not come in at the end");
}

struct kernel {
    const char *name;
    void (*entry)(const void *);
    size_t bytes; /* of its arguments */
};
#define KERNEL(name, type)                                                                                             \
    {#name, [](const void *args) {                                                                                     \
         type copy;                                                                                                    \
         memcpy(&copy, args, sizeof copy);                                                                             \
         name(copy);                                                                                                   \
     }, sizeof(type)},
#define PERSISTS(name)                                                                                                 \
    KERNEL(persist_##name##_8, persist_args) KERNEL(persist_##name##_16, persist_args)                                 \
    KERNEL(persist_shared_##name##_8, persist_shared_args) KERNEL(persist_shared_##name##_16, persist_shared_args)
#define MATMULS(name)                                                                                                  \
    KERNEL(decode_matmul_##name##_odd, decode_matmul_args) KERNEL(decode_matmul_##name##_1, decode_matmul_args)        \
    KERNEL(decode_matmul_##name##_8, decode_matmul_args) KERNEL(decode_matmul_##name##_16, decode_matmul_args)
#define WIDE_MATMULS(name)                                                                                             \
    MATMULS(name)                                                                                                      \
    KERNEL(decode_matmul_##name##_24, decode_matmul_args) KERNEL(decode_matmul_##name##_32, decode_matmul_args)
#define LONG_MATMULS(name)                                                                                             \
    KERNEL(decode_matmul_##name##_1_long, decode_matmul_args)                                                          \
    KERNEL(decode_matmul_##name##_8_long, decode_matmul_args) KERNEL(decode_matmul_##name##_16_long, decode_matmul_args)
#define ATTNS(name)                                                                                                    \
    KERNEL(decode_attn_##name##_64, decode_attn_args)                                                                  \
    KERNEL(decode_attn_##name##_128, decode_attn_args) KERNEL(decode_attn_##name##_256, decode_attn_args)
#define CHAINS(name)                                                                                                   \
    KERNEL(decode_attn_chain_##name##_64, decode_attn_args) KERNEL(decode_attn_chain_##name##_128, decode_attn_args)
static const kernel kernels[] = {KERNEL(decode_embed, decode_embed_args) KERNEL(decode_exchange, decode_exchange_args)
                                     KERNEL(decode_exchange_slim, decode_exchange_args)
                                     KERNEL(decode_sample, decode_sample_args) MATMULS(f32) WIDE_MATMULS(bf16) WIDE_MATMULS(f16)
                                         MATMULS(int8_f32) WIDE_MATMULS(int8_bf16) WIDE_MATMULS(int8_f16) LONG_MATMULS(bf16) LONG_MATMULS(f16) ATTNS(f32) ATTNS(bf16)
                                                 ATTNS(f16) CHAINS(bf16) CHAINS(f16) PERSISTS(f32) PERSISTS(bf16) PERSISTS(f16) PERSISTS(int8_bf16)};

extern "C" const void *decode_emulate_kernel(const char *name) {
    for (const kernel &k : kernels) {
        if (strcmp(k.name, name) == 0) {
            return &k;
        }
    }
    return NULL;
}

extern "C" void decode_emulate_launch(const void *kernel_, const unsigned grid[3], unsigned block, unsigned shared_bytes,
                               const void *args, bool backwards) {
    kernel_entry = static_cast<const kernel *>(kernel_)->entry;
    kernel_args = args;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block, 1, 1};
    emulate_check(block % 32 == 0 && block <= MAX_THREADS && shared_bytes <= sizeof attn_room, "a block of this shape");
    const unsigned n = grid[0] * grid[1] * grid[2];
    for (unsigned i = 0; i < n; i++) {
        const unsigned b = backwards ? n - 1 - i : i;
        blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        memset(matmul_room, 0xff, shared_bytes);
        memset(kept, 0xff, shared_bytes < sizeof kept ? shared_bytes : sizeof kept);
        memset(attn_room, 0xff, shared_bytes);
        run_block(block, backwards);
    }
}

/* All blocks at once, each a thread of the host. */
static void start_blocks(std::vector<std::thread> &threads, const kernel *which, const unsigned grid[2], unsigned block,
                         unsigned shared_bytes, const void *args, bool backwards) {
    const auto copy = std::make_shared<persist_shared_args>(); /* no kernel has more */
    const unsigned x = grid[0], y = grid[1];
    memcpy(copy.get(), args, which->bytes);
    emulate_check(block % 32 == 0 && block <= MAX_THREADS && shared_bytes <= sizeof persist_room, "a block of this shape");
    for (unsigned i = 0; i < x * y; i++) {
        threads.emplace_back([=] {
            kernel_entry = which->entry;
            kernel_args = copy.get();
            gridDim = {x, y, 1};
            blockDim = {block, 1, 1};
            blockIdx = {i % x, i / x, 0};
            memset(persist_room, 0xff, shared_bytes);
            run_block(block, backwards);
            for (unsigned f = 0; f < block; f++) {
                free(stacks[f]);
                stacks[f] = NULL;
            }
        });
    }
}

static void join_all(std::vector<std::thread> &threads) {
    for (std::thread &one : threads) {
        one.join();
    }
    threads.clear();
}

/* Until persist_emulate_wait. Several grids may run. */
static std::vector<std::thread> running;

extern "C" void persist_emulate_launch(const void *kernel_, const unsigned grid[2], unsigned block, unsigned shared_bytes,
                                       const void *args, bool backwards) {
    start_blocks(running, static_cast<const kernel *>(kernel_), grid, block, shared_bytes, args, backwards);
}

extern "C" void persist_emulate_wait(void) {
    join_all(running);
}

/* Until all of it is done; from several threads at a time. */
extern "C" void persist_emulate_run(const void *kernel_, const unsigned grid[2], unsigned block, unsigned shared_bytes,
                                    const void *args) {
    std::vector<std::thread> threads;
    start_blocks(threads, static_cast<const kernel *>(kernel_), grid, block, shared_bytes, args, false);
    join_all(threads);
}

extern "C" size_t decode_emulate_bytes(const void *kernel_) {
    return static_cast<const kernel *>(kernel_)->bytes;
}
