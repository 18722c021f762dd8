/*
 * The end of a step in the persistent decode kernel: logits, and the tokens drawn from them as in decode_sample.cu. Of several ranks
 * each tells all others what it has best, and each finds the same token: the next step begins without the host.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_HEAD_CUH
#define LS_BACKEND_CUDA_PERSIST_HEAD_CUH

#include "backend/cuda/kern/decode_sample.cuh"
#include "backend/cuda/kern/persist_block.cuh"

template <int COLUMNS> struct head_part {
    block_state &b;
    offer best; /* of this thread's output row */

    DEVICE_MEMBER explicit head_part(block_state &block) : b(block) {}

    /* Of every matmul, so that it takes registers in these alone. */
    DEVICE_MEMBER void begin() {
        best.value = -INFINITY;
        best.id = -1;
    }

    /* A thread meets one output row only (matmul_part::finisher decides which), ids rising. */
    DEVICE_MEMBER void put_logit(const persist_op &op, int m, int row, float value) {
        const cuda_step *step = b.a.step;
        if (!isfinite(value)) {
            b.note(step_array<int32_t>(step, step->out_row)[m], op.index);
        }
        const cuda_draw *how = &step_array<cuda_draw>(step, step->draw)[m];
        if (how->on_host) {
            b.a.logits[(int64_t)m * b.a.n_vocab + row] = value;
            return;
        }
        const float temperature = how->temperature, z = temperature == 0.0F ? value : value / temperature;
        offer mine;
        mine.value = (double)z;
        mine.id = row;
        if (!(z > -INFINITY)) {
            return;
        }
        if (temperature != 0.0F) {
            if (mine.value + GUMBEL_MAX < best.value) {
                return;
            }
            const uint32_t x =
                philox(how->seed, (uint32_t)(op.vocab_first + row), (uint32_t)how->position, how->choice);
            if (mine.value + gumbel_bound(x) < best.value) {
                return;
            }
            mine.value += gumbel_of(x);
        }
        best = better(best, mine);
    }

    static DEVICE_MEMBER offer shuffled(offer mine, int lanes) {
        offer other;
        other.value = __shfl_xor_sync(0xffffffffu, mine.value, lanes);
        other.id = __shfl_xor_sync(0xffffffffu, mine.id, lanes);
        return other;
    }

    /* Every block says what it has best for each output row, and the faults it saw. Behind a meeting. */
    DEVICE_MEMBER void put_offers(int finisher) {
        static_assert(sizeof(uint64_t) == sizeof best.value, "a double is two words");
#pragma unroll
        for (int lanes = DECODE_TILE / 2; lanes > 0; lanes /= 2) { /* so many threads have a row */
            best = better(best, shuffled(best, lanes));
        }
        const int m = finisher / DECODE_TILE;
        if (finisher % DECODE_TILE == 0 && m < b.n_rows) {
            const uint32_t epoch = b.epoch();
            uint64_t bits, *out = b.a.offer + ((int64_t)blockIdx.x * CUDA_MAX_DECODE + m) * 4;
            memcpy(&bits, &best.value, sizeof bits);
            store_words(out, word_of((uint32_t)bits, epoch), word_of((uint32_t)(bits >> 32), epoch));
            store_words(out + 2, word_of((uint32_t)best.id, epoch), word_of((uint32_t)b.fault()[m], epoch));
        }
    }

    /* The best of all ranks, ids of the whole vocabulary; by a warp. Lane r sends to rank r and waits for it. For rows that nobody draws
     * too: who has heard from a rank knows that all blocks there have taken all nodes of this step. */
    DEVICE_MEMBER offer best_of_ranks(const persist_op &op, int m, offer mine) {
        const persist_args &a = b.a;
        const uint32_t epoch = b.epoch();
        mine.id = mine.id < 0 ? -1 : op.vocab_first + mine.id;
        if (b.lane < a.n_ranks) {
            uint64_t bits, *to = bests_of(a, b.lane) + (a.rank * CUDA_MAX_DECODE + m) * 4;
            memcpy(&bits, &mine.value, sizeof bits);
            store_peer_words(to, word_of((uint32_t)bits, epoch), word_of((uint32_t)(bits >> 32), epoch));
            store_peer_word(to + 2, word_of((uint32_t)mine.id, epoch));
        }
        int at[3];
        uint32_t word[3];
#pragma unroll
        for (int j = 0; j < 3; j++) {
            at[j] = b.lane < a.n_ranks ? j : -1;
        }
        const uint64_t *from = bests_of(a, a.rank) + (min(b.lane, a.n_ranks - 1) * CUDA_MAX_DECODE + m) * 4;
        offer best;
        best.value = -INFINITY;
        best.id = -1;
        int missing;
        if (!take_words<3>(from, at, epoch, word, PERSIST_WAIT_BESTS, &b.p, &missing)) {
            b.p.name_missing(missing, 3, PERSIST_WAIT_BESTS, op.index, 3, b.lane);
        } else if (b.lane < a.n_ranks) {
            const uint64_t bits = (uint64_t)word[1] << 32 | word[0];
            memcpy(&best.value, &bits, sizeof bits);
            best.id = (int32_t)word[2];
        }
        __syncwarp();
#pragma unroll
        for (int lanes = PERSIST_MAX_RANKS / 2; lanes > 0; lanes /= 2) {
            best = better(best, shuffled(best, lanes));
        }
        return best;
    }

    /* Block 0 decides. A warp has a row. */
    DEVICE_MEMBER void draw_rows(const persist_op &op) {
        constexpr int BATCH = 4;
        const cuda_step *step = b.a.step;
        for (int m = b.warp; m < b.n_rows; m += PERSIST_WARPS) {
            offer all;
            all.value = -INFINITY;
            all.id = -1;
            uint32_t first = UINT32_MAX; /* 0, no fault, becomes the largest */
#pragma unroll 1
            for (int from = b.lane; from < (int)gridDim.x; from += 32 * BATCH) {
                int at[2 * BATCH];
                uint2 v[2 * BATCH];
#pragma unroll
                for (int j = 0; j < 2 * BATCH; j++) {
                    const int block = from + j / 2 * 32;
                    at[j] = block < (int)gridDim.x ? (block * CUDA_MAX_DECODE + m) * 4 + j % 2 * 2 : -1;
                }
                take_pairs<2 * BATCH>(b.a.offer, at, b.epoch(), v, PERSIST_WAIT_OFFERS, &b.p);
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    if (at[2 * j] >= 0) {
                        const uint64_t bits = (uint64_t)v[2 * j].y << 32 | v[2 * j].x;
                        offer its;
                        memcpy(&its.value, &bits, sizeof bits);
                        its.id = (int32_t)v[2 * j + 1].x;
                        all = better(all, its);
                        first = v[2 * j + 1].y - 1 < first ? v[2 * j + 1].y - 1 : first;
                    }
                }
            }
            __syncwarp();
#pragma unroll
            for (int lanes = 16; lanes > 0; lanes /= 2) {
                all = better(all, shuffled(all, lanes));
                const uint32_t its_first = __shfl_xor_sync(0xffffffffu, first, lanes);
                first = its_first < first ? its_first : first;
            }
            if (b.a.n_ranks > 1) {
                all = best_of_ranks(op, m, all);
            } else {
                all.id = all.id < 0 ? -1 : op.vocab_first + all.id;
            }
            if (b.lane == 0) {
                b.a.fault[m] = (int32_t)(first + 1);
            }
            if (b.lane == 0 && m < step->n_out) {
                const bool on_host = step_array<cuda_draw>(step, step->draw)[m].on_host != 0;
                b.a.drawn[m] = on_host || b.p.is_gone() ? -1 : all.id;
            }
        }
    }
};

#endif
