/*
 * How a block of the persistent decode kernel comes by the input of a matmul: x from words, or from the residual stream
 * through the norm. In shared memory where it fits.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_INPUT_CUH
#define LS_BACKEND_CUDA_PERSIST_INPUT_CUH

#include "backend/cuda/kern/persist_block.cuh"

/* Four elements of x: as they lie in memory, and as words. */
template <int ACT> DEVICE void store_four(void *x, int i, const float (&v)[4]) {
    if (ACT == KERN_F32) {
        *reinterpret_cast<float4 *>(static_cast<float *>(x) + i) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        *reinterpret_cast<uint2 *>(static_cast<uint16_t *>(x) + i) =
            make_uint2(pair_of(ACT, v[0], v[1]), pair_of(ACT, v[2], v[3]));
    }
}

template <int ACT> DEVICE void put_four(uint64_t *words, int i, const float (&v)[4], uint32_t epoch) {
    if (ACT == KERN_F32) {
        store_words(words + i, word_of_float(v[0], epoch), word_of_float(v[1], epoch));
        store_words(words + i + 2, word_of_float(v[2], epoch), word_of_float(v[3], epoch));
    } else {
        store_words(words + i / 2, word_of(pair_of(ACT, v[0], v[1]), epoch), word_of(pair_of(ACT, v[2], v[3]), epoch));
    }
}

template <int ACT> struct input_part {
    static constexpr int PER_WORD = ACT == KERN_F32 ? 1 : 2, X_BYTES = ACT == KERN_F32 ? 4 : 2;

    block_state &b;

    DEVICE_MEMBER bool is_in_shared(const persist_op &op) const {
        return op.x_pitch * b.n_rows <= b.a.x_bytes;
    }
    DEVICE_MEMBER char *scratch() const {
        return b.a.scratch + (int64_t)blockIdx.x * b.a.scratch_bytes;
    }

    /* Where rows of x begin, so that elements are found by their number in all of k. */
    DEVICE_MEMBER char *x_of(const persist_op &op, const op_share &mine) const {
        return (is_in_shared(op) ? shared_room() + b.a.at_x : scratch()) - mine.first_column(op) * X_BYTES;
    }

    /* Columns [begin, end) of all rows of x, by `n` threads of which this is `i_thread`. */
    DEVICE_MEMBER void stage(const persist_op &op, char *x, int begin, int end, int i_thread, int n) {
        constexpr int PER = 2 * PER_WORD, BATCH = 8;
        const int n_x = b.rows_of(op), pairs = (end - begin) / PER;
        const uint64_t *in = op.in + begin / PER_WORD;
        int m = 0, i = i_thread;
        for (; m < n_x && i >= pairs; m++) {
            i -= pairs;
        }
        while (m < n_x) {
            int at[BATCH], to[BATCH];
            uint2 v[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                at[j] = m < n_x ? m * (op.in_stride / PER_WORD) + 2 * i : -1;
                to[j] = m * op.x_pitch + (begin + i * PER) * X_BYTES;
                for (i += n; m < n_x && i >= pairs; m++) {
                    i -= pairs;
                }
            }
            take_pairs<BATCH>(in, at, b.epoch_of_input(op), v, PERSIST_WAIT_INPUT, &b.p);
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                if (at[j] >= 0) {
                    *reinterpret_cast<uint2 *>(x + to[j]) = v[j];
                }
            }
        }
    }

    /* ---- The norm ---- */

    /* Row `in` of h; put(i, four elements of x from i on). Sums of squares in the order of decode_exchange: `theirs` warps, whose
     * threads have four elements each, and again norm_threads * 4 further on. Warp w of these takes theirs w, w + 8, ... Rows
     * alternate between two rooms, so that one meeting a row is enough; the caller meets at the end. */
    template <class PUT>
    DEVICE_MEMBER void norm_row(const persist_op &op, const uint64_t *in, int room, const PUT &put) {
        float *squares_of = reinterpret_cast<float *>(shared_room() + b.a.at_squares) + room * PERSIST_NORM_WARPS;
        if (op.k <= 4 * op.norm_threads) {
            norm_at_once(op, in, squares_of, put);
        } else {
            norm_in_turns(op, in, squares_of, put);
        }
    }

    DEVICE_MEMBER float norm_scale(const persist_op &op, const float *squares_of) const {
        const float squares = b.lane < op.norm_threads / 32 ? squares_of[b.lane] : 0.0F;
        return 1.0F / sqrtf(warp_sum(squares) / (float)op.k + op.eps);
    }

    DEVICE_MEMBER float4 take_four(const persist_op &op, const uint64_t *in, int i) {
        const int at[2] = {i, i + 2};
        uint2 v[2];
        take_pairs<2>(in, at, b.epoch_of_input(op), v, PERSIST_WAIT_INPUT, &b.p);
        return make_float4(__uint_as_float(v[0].x), __uint_as_float(v[0].y), __uint_as_float(v[1].x),
                           __uint_as_float(v[1].y));
    }

    static DEVICE_MEMBER float add_squares(float squares, const float4 &four) {
        squares = fmaf(four.x, four.x, squares);
        squares = fmaf(four.y, four.y, squares);
        squares = fmaf(four.z, four.z, squares);
        return fmaf(four.w, four.w, squares);
    }

    template <class PUT>
    static DEVICE_MEMBER void put_normed(const PUT &put, int i, const float4 &h, float scale, const float4 &w) {
        const float x[4] = {h.x * scale * w.x, h.y * scale * w.y, h.z * scale * w.z, h.w * scale * w.w};
        put(i, x);
    }

    /* All in registers, with one wait. The norm's weights, which are read once, are kept out of the little L1 that there is. */
    template <class PUT>
    DEVICE_MEMBER void norm_at_once(const persist_op &op, const uint64_t *in, float *squares_of, const PUT &put) {
        constexpr int MINE = PERSIST_NORM_WARPS / PERSIST_WARPS;
        const int theirs = op.norm_threads / 32;
        float4 w[MINE], four[MINE];
        int at[2 * MINE];
        uint2 v[2 * MINE];
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            const int i = ((b.warp + j * PERSIST_WARPS) * 32 + b.lane) * 4;
            const bool there = i < op.k;
            at[2 * j] = there ? i : -1;
            at[2 * j + 1] = there ? i + 2 : -1;
            w[j] = there ? __ldcg(reinterpret_cast<const float4 *>(op.norm + i)) : make_float4(0, 0, 0, 0);
        }
        take_pairs<2 * MINE>(in, at, b.epoch_of_input(op), v, PERSIST_WAIT_INPUT, &b.p);
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            four[j] = make_float4(__uint_as_float(v[2 * j].x), __uint_as_float(v[2 * j].y),
                                  __uint_as_float(v[2 * j + 1].x), __uint_as_float(v[2 * j + 1].y));
            const float squares = warp_sum(add_squares(0.0F, four[j]));
            const int their_warp = b.warp + j * PERSIST_WARPS;
            if (b.lane == 0 && their_warp < theirs) {
                squares_of[their_warp] = squares;
            }
        }
        meet();
        const float scale = norm_scale(op, squares_of);
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            if (at[2 * j] >= 0) {
                put_normed(put, at[2 * j], four[j], scale, w[j]);
            }
        }
    }

    /* Rows of more than 4096 elements, kept in shared memory. */
    template <class PUT>
    DEVICE_MEMBER void norm_in_turns(const persist_op &op, const uint64_t *in, float *squares_of, const PUT &put) {
        float *kept = reinterpret_cast<float *>(shared_room() + b.a.at_kept);
        const int theirs = op.norm_threads / 32;
#pragma unroll 1
        for (int w = b.warp; w < theirs; w += PERSIST_WARPS) {
            float squares = 0.0F;
#pragma unroll 1
            for (int i = (w * 32 + b.lane) * 4; i < op.k; i += op.norm_threads * 4) {
                const float4 four = take_four(op, in, i);
                *reinterpret_cast<float4 *>(kept + i) = four;
                squares = add_squares(squares, four);
            }
            squares = warp_sum(squares);
            if (b.lane == 0) {
                squares_of[w] = squares;
            }
        }
        meet();
        const float scale = norm_scale(op, squares_of);
#pragma unroll 1
        for (int w = b.warp; w < theirs; w += PERSIST_WARPS) { /* each thread reads what it kept itself */
#pragma unroll 1
            for (int i = (w * 32 + b.lane) * 4; i < op.k; i += op.norm_threads * 4) {
                put_normed(put, i, *reinterpret_cast<const float4 *>(kept + i), scale,
                           __ldcg(reinterpret_cast<const float4 *>(op.norm + i)));
            }
        }
    }

    DEVICE_MEMBER const uint64_t *row_of_h(const persist_op &op, int m) const {
        const bool of_outputs = op.of_outputs || op.kind == PERSIST_HEAD;
        return op.in + (int64_t)(of_outputs ? step_array<int32_t>(b.a.step, b.a.step->out_row)[m] : m) * op.in_stride;
    }

    /* Of all rows, by every block for itself, to x; or, x = NULL, some for all, an op of its own: an item is a part of a row. */
    DEVICE_MEMBER void norm(const persist_op &op, char *x) {
        const bool is_apart = x == NULL;
        const int count = b.rows_of(op) * op.n_parts, fours = op.k / 4;
        int room = 0;
#pragma unroll 1
        for (int index = is_apart ? blockIdx.x : 0; index < count; index += is_apart ? gridDim.x : 1, room ^= 1) {
            const int m = is_apart ? index / op.n_parts : index, part = is_apart ? index % op.n_parts : 0;
            const int first = is_apart ? fours * part / op.n_parts * 4 : 0;
            const int end = is_apart ? fours * (part + 1) / op.n_parts * 4 : op.k;
            uint64_t *out = op.out + (int64_t)m * (op.out_stride / PER_WORD);
            char *row = x + (int64_t)m * op.x_pitch;
            const uint32_t epoch = b.epoch();
            norm_row(op, row_of_h(op, m), room, [=](int i, const float(&v)[4]) {
                if (!is_apart) {
                    store_four<ACT>(row, i, v);
                } else if (i >= first && i < end) {
                    put_four<ACT>(out, i, v, epoch);
                }
            });
        }
        if (!is_apart) {
            meet();
        }
    }

    /* With eight leaves a warp needs its own alone: the op before ended in a meeting, so that none still reads what was
     * there. */
    DEVICE_MEMBER void stage_input(const persist_op &op, const op_share &mine) {
        char *x = x_of(op, mine);
        if (op.norm != NULL) {
            norm(op, x);
            return;
        }
        const bool alone = mine.n_leaves == PERSIST_WARPS;
        const int first = alone ? b.warp : mine.first_leaf, end = alone ? first + 1 : first + mine.n_leaves;
        stage(op, x, op.border[first], op.border[end], alone ? b.lane : b.thread, alone ? 32 : PERSIST_THREADS);
        if (alone) {
            __syncwarp();
        } else {
            meet();
        }
    }
};

#endif
