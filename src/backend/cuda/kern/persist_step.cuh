/*
 * A decode step as one block of the persistent decode kernel runs it: who does what, in the order of the table. See persist.cu.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_STEP_CUH
#define LS_BACKEND_CUDA_PERSIST_STEP_CUH

#include "backend/cuda/kern/persist_attn.cuh"
#include "backend/cuda/kern/persist_matmul.cuh"
#include "backend/cuda/kern/persist_producer.cuh"

template <int ACT, bool INT8, int COLUMNS, int KV> struct consumers {
    block_state &b; /* parts know it by its address: it must not lie beside them, or none would be kept in registers */
    matmul_part<ACT, INT8, COLUMNS> &matmul;
    attn_part<ACT, KV> &attn;

    DEVICE_MEMBER void stamp(int i, int which) {
        if (b.a.stamp != NULL && b.thread == 0) {
            persist_stamp *to = &b.a.stamp[(int64_t)i * gridDim.x + blockIdx.x];
            (&to->begin)[which] = global_time();
            to->starved = watch(b.a)->starved;
            watch(b.a)->starved = which == 2 ? 0 : to->starved;
        }
    }

    DEVICE_MEMBER void run_op(const persist_op &op, int i) {
        b.p.line = i;
        if (b.thread == 0) {
            store_shared_flag(reinterpret_cast<uint32_t *>(&watch(b.a)->line), (uint32_t)i);
        }
        stamp(i, 0);
        if (op.kind == PERSIST_EMBED) {
            b.embed(op);
        } else if (op.kind == PERSIST_NORM) {
            matmul.input.norm(op, NULL);
        } else if (op.kind == PERSIST_ATTN) {
            attn.run(op);
        } else {
            const op_share mine(op);
            if (mine.count > 0 && !b.p.is_blind()) {
                matmul.input.stage_input(op, mine);
            }
            stamp(i, 1);
            matmul.run(op, mine);
        }
        if ((op.kind == PERSIST_EMBED || op.kind == PERSIST_ROW) && b.nodes_of(op) > 1) {
            b.add_nodes(op);
        }
        if (op.kind == PERSIST_HEAD) {
            meet(); /* faults */
            matmul.head.put_offers(matmul.finisher());
            if (blockIdx.x == 0) {
                matmul.head.draw_rows(op);
            }
        }
        stamp(i, 2);
    }

    /* By warp 0: a line of the table begins to come to shared memory. */
    DEVICE_MEMBER void ask(persist_op *to, int i) const {
        if (i < b.a.n_ops && b.lane < (int)(sizeof(persist_op) / 16)) {
            copy_async(reinterpret_cast<uint4 *>(to) + b.lane, reinterpret_cast<const uint4 *>(b.a.op + i) + b.lane,
                       true);
        }
        end_copy_group();
    }

    /* line: [2] of the table, in turn. */
    DEVICE_MEMBER void run(persist_op *line) {
        if (b.warp == 0) {
            ask(&line[0], 0);
            wait_for_copies<0>();
        }
        if (b.thread < CUDA_MAX_DECODE) {
            b.fault()[b.thread] = 0;
        }
        meet();
        for (int i = 0; i < b.a.n_ops; i++) {
            if (b.warp == 0) {
                ask(&line[(i + 1) % 2], i + 1);
            }
            run_op(line[i % 2], i);
            if (b.warp == 0) {
                wait_for_copies<0>();
            }
            meet();
        }
        if (b.thread == 0) {
            /* Block 0 has heard from all blocks, so that all have read it. */
            if (blockIdx.x == 0 && !b.p.is_gone()) {
                *b.a.launches += 1;
            }
            barrier_arrive(&watch(b.a)->finished);
        }
        b.p.tell();
    }
};

template <int ACT, bool INT8, int COLUMNS, int KV> DEVICE void persist(const persist_args &a) {
    persist_op *line =
        reinterpret_cast<persist_op *>(shared_room() + a.at_lines); /* two of the consumers, in turn; the producer's */
    const int i = threadIdx.x, warp = i / 32;
    if (i == 0) {
        const ring r(a);
        for (int slot = 0; slot < a.n_slots; slot++) {
            barrier_init(r.full(slot), 1);
            barrier_init(r.empty(slot), PERSIST_WARPS);
        }
        barrier_init(r.sums(0), PERSIST_WARPS);
        barrier_init(r.sums(1), PERSIST_WARPS);
        barrier_init(&watch(a)->finished, 1);
        barriers_are_set();
        show_to_async();
        watch(a)->starved = 0;
        watch(a)->is_over = 0;
        watch(a)->line = -1;
        watch(a)->n_out = a.step->n_out;
    }
    if (i < PERSIST_WARPS + 1) {
        watch(a)->left[i][0] = PERSIST_WAIT_NONE;
    }
    if (warp == PERSIST_WARPS && i % 32 < CUDA_MAX_DECODE) {
        const lane_row row = row_of_lane(a.step, 0, a.step->n_rows);
        watch(a)->row[i % 32][0] = row.position;
        watch(a)->row[i % 32][1] = row.page_first;
    }
    __syncthreads();
    if (warp < PERSIST_WARPS) {
        block_state b(a);
        matmul_part<ACT, INT8, COLUMNS> matmul(b);
        attn_part<ACT, KV> attn{b};
        consumers<ACT, INT8, COLUMNS, KV>{b, matmul, attn}.run(line);
    } else if (warp == PERSIST_WARPS) {
        producer<units<ACT, INT8, COLUMNS, false>::W_BYTES> one(a);
        one.run(&line[2], KV == KERN_F32 ? 4 : 2);
    } else if (i % 32 == 0) {
        watch_over(a);
    }
}

/* Chips that a kernel is not for have it empty. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PERSIST_BODY(act, int8, columns, kv, args) persist<act, int8, columns, kv>(args)
#else
#define PERSIST_BODY(act, int8, columns, kv, args)
#endif
/* All kernels of a file: DEFINE(name, act, int8, columns, kv). Names: dtype of x (and KV), of W where it differs; the most rows. */
#define DEFINE_PERSISTS(DEFINE)                                                                                        \
    DEFINE(f32_8, KERN_F32, false, 8, KERN_F32)                                                                        \
    DEFINE(f32_16, KERN_F32, false, 16, KERN_F32)                                                                      \
    DEFINE(bf16_8, KERN_BF16, false, 8, KERN_BF16)                                                                     \
    DEFINE(bf16_16, KERN_BF16, false, 16, KERN_BF16)                                                                   \
    DEFINE(f16_8, KERN_F16, false, 8, KERN_F16)                                                                        \
    DEFINE(f16_16, KERN_F16, false, 16, KERN_F16)                                                                      \
    DEFINE(int8_bf16_8, KERN_BF16, true, 8, KERN_BF16)                                                                 \
    DEFINE(int8_bf16_16, KERN_BF16, true, 16, KERN_BF16)

#endif
