/*
 * The kernels of exchanges on the CPU. All blocks of a launch run together, since they wait for one another: their threads are
 * fibers of one thread (fibers.h), and blocks take turns. Which comes first changes with `seed`: it must change no bit.
 */
#include <memory>
#include <vector>

#include "../fibers.h"

enum { STACK_BYTES = 24 << 10, SHARED_FLOATS = 16 << 10 };

struct block {
    index3 index;
    std::vector<fiber> fibers;
    std::vector<float> shared;
    std::unique_ptr<warp_slots[]> slots;
    std::unique_ptr<char[]> stacks; /* not cleared: that takes longer than all else */
};

alignas(16) static thread_local float row_kept[SHARED_FLOATS];

/* No kernel here copies so. */
static void emulate_copy(void *, const void *, bool) {}
static void emulate_copies_until(int) {}

#include "backend/cuda/kern/exchange.cu"

/* ---- Launching ---- */

static void begin_block(block *b, unsigned n_threads) {
    b->fibers.resize(n_threads);
    b->shared.assign(SHARED_FLOATS, NAN);
    b->slots.reset(new warp_slots[n_threads / 32]);
    b->stacks.reset(new char[(size_t)n_threads * STACK_BYTES + 64]);
    char *stacks = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(b->stacks.get()) + 63) / 64 * 64);
    for (unsigned i = 0; i < n_threads; i++) {
        fiber_begin(&b->fibers[i], stacks + (size_t)(i + 1) * STACK_BYTES);
    }
}

/* One turn of a block; whether all of it is done. */
static bool run_turn(block *b) {
    const unsigned n = (unsigned)b->fibers.size();
    unsigned n_done = 0, n_waiting = 0;
    slots = b->slots.get();
    blockIdx = b->index;
    memcpy(row_kept, b->shared.data(), sizeof row_kept);
    for (unsigned warp = 0; warp < n / 32; warp++) {
        run_warp(b->fibers.data(), warp, false);
    }
    memcpy(b->shared.data(), row_kept, sizeof row_kept);
    for (fiber &f : b->fibers) {
        n_done += f.is == DONE;
        n_waiting += f.is == AT_BARRIER;
    }
    emulate_check(n_done == 0 || n_waiting == 0, "threads end while others wait at a barrier");
    for (fiber &f : b->fibers) {
        if (f.is == AT_BARRIER && n_waiting == n) {
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
