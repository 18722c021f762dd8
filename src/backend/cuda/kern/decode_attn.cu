/*
 * Attention of decode steps, one row a sequence; with it what the QKV matmul leaves to be done: QK norm, RoPE,
 * rounding of q, and appending k and v at the row's position. Formulas in ops.h.
 *
 * Splits. The tokens that a row attends to, from the first one's unit of 32 on, are cut into splits of `split_tokens`:
 * 512 (DECODE_ATTN_TOKENS), or more where that would make more than 16 of them (32 past 16384 tokens); up to 1024
 * (DECODE_ATTN_WHOLE) are one. So a short context needs no combining, and a long one spreads over the chip. (ops.h's splits are the CPU's; the formula is
 * the same.) An ITEM is (row, up to four query heads of one KV head, split); block b takes items b, b + gridDim.x, ... of
 * the step's.
 *
 * A warp takes units warp, warp + n_warps, ... of its item's split, with a running maximum, sum and o of its own: no
 * warp waits for another until the split's end, where the warps' results are added in order. With several splits each
 * one's result goes to memory, and the block that finishes last adds them in index order.
 *
 * K and V come to shared memory by asynchronous copies, a unit of each ahead: the next unit's K is asked for when the
 * scores are done, its V when o is. Past tokens were written by earlier steps (the copy of this step's input lies
 * between), so the first units are on their way before the kernels before this one end; the row's own k and v are
 * put in by hand.
 *
 * bf16 and f16: scores are K q^T, 16 tokens by 8 columns, and o is V^T p^T. q and p are f32 here and each takes two
 * columns: what rounding leaves of columns 0 .. 3 is in columns 4 .. 7, so that as good as nothing is lost. f32: plain
 * fma.
 *
 * Bits: splits, units and orders follow from the row's own tokens; the number of warps from the chip, the head size,
 * the KV dtype and whether persist.cu, which has eight, must give the same. Neither the grid nor the other rows decide any. With
 * more than four heads a KV head several blocks append the same bytes. Steps of many rows go by decode_attn_chain.cu, which has other bits.
 */
#include "backend/cuda/kern/decode_attn.cuh"

/* ---- The kernel ---- */

template <int KV, int WIDTH> DEVICE void attn(const decode_attn_args &a) {
    using units = stream<KV, WIDTH>;
    static_assert(sizeof(shared<KV, WIDTH>) <= DECODE_ATTN_BYTES, "room for what warps share");
    shared<KV, WIDTH> &s = *reinterpret_cast<shared<KV, WIDTH> *>(attn_room);
    const int warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    char *const k_room = warp_room(a, warp), *const v_room = k_room + UNIT * a.row_bytes;
    float *const o_room = o_of_warp(a, warp), *const p_room = o_room + HEADS * a.d;
    let_next_kernel_start();
    item it, next;
    int index = blockIdx.x;
    const int count = find_item(a, index, &it);
    if (index >= count) {
        return;
    }
    unit ahead;
    ahead.find(a, it, warp);
    units::ask(a, a.k_cache, ahead, k_room);
    units::ask(a, a.v_cache, ahead, v_room);
    rotation<WIDTH> turn;
    attn_job<KV, WIDTH> mine;
    turn.load(norm_of_job(a, warp), a.rope + (int64_t)it.position * a.d, a.d);
    mine.find(a, it, warp);
    wait_for_earlier_kernels();
    for (;;) {
        for (int job = warp; job < N_JOBS; job += n_warps) {
            if (job != warp || index != (int)blockIdx.x) {
                turn.load(norm_of_job(a, job), a.rope + (int64_t)it.position * a.d, a.d);
                mine.find(a, it, job);
            }
            mine.load(a, it, job);
            mine.finish(a, it, job, turn, &s);
        }
        index += gridDim.x;
        next = it;
        if (index < count) {
            find_item(a, index, &next);
        }
        __syncthreads();
        const int n_units = it.n_units(), beyond = index < count ? warp : next.n_units();
        unit of_next;
        of_next.find(a, next, beyond);
        if (warp < n_units) {
            worker<KV, WIDTH> w;
            w.begin(s);
            for (int u = warp; u < n_units; u += n_warps) {
                const int token = it.first + u * UNIT;
                ahead.find(a, it, u + n_warps);
                if (u + n_warps >= n_units) {
                    ahead = of_next;
                }
                units::await(a, it, u, k_room, s.own[0]);
                w.score(a, k_room);
                __syncwarp();
                units::ask(a, a.k_cache, ahead, k_room);
                w.soften(a.scale * LOG2_E, it.lo - token, it.end - token);
                units::await(a, it, u, v_room, s.own[1]);
                w.weigh(a, v_room, p_room);
                __syncwarp();
                units::ask(a, a.v_cache, ahead, v_room);
            }
            w.end(a, o_room, s.max[warp], s.sum[warp]);
        } else {
            units::ask(a, a.k_cache, of_next, k_room);
            units::ask(a, a.v_cache, of_next, v_room);
        }
        __syncthreads();
        add_warps<KV, WIDTH>(a, it, s);
        if (it.n_splits > 1 && is_last_split(a, it, &s.is_last)) {
            add_splits(a, it, threadIdx.x, blockDim.x);
        }
        if (index >= count) {
            return;
        }
        __syncthreads(); /* before what warps share is used again */
        it = next;
    }
}

/* Names: KV dtype, the largest head size. */
#define DEFINE_ATTN(name, kv, width)                                                                                   \
    extern "C" __global__ void __launch_bounds__((width > 128 ? DECODE_ATTN_WIDE : DECODE_ATTN_WARPS) * 32, 1)         \
        decode_attn_##name##_##width(const __grid_constant__ decode_attn_args a) {                                     \
        attn<kv, width>(a);                                                                                            \
    }
#define DEFINE_ATTNS(name, kv) DEFINE_ATTN(name, kv, 64) DEFINE_ATTN(name, kv, 128) DEFINE_ATTN(name, kv, 256)

DEFINE_ATTNS(f32, KERN_F32)
DEFINE_ATTNS(bf16, KERN_BF16)
DEFINE_ATTNS(f16, KERN_F16)
