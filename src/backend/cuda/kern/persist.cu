/*
 * A whole decode step as one cooperative kernel, M = 1 .. 16, sm_90 on: one block on each SM, and weights that never stop coming.
 *
 * Shape. Per-op kernels stop and start the stream of weights at every border. Here a PRODUCER, one thread, walks the op table once a
 * step and copies this block's part of every op, in order, into a ring in shared memory (tensor copies; a chunk's barrier counts its
 * bytes). It waits for a slot and for its window (chunks in flight: more would only make exchanges wait in the memory's queues), never
 * for activations: what an op will need is there when its input is. Eight other warps COMPUTE, and one thread looks at the clock. All
 * that is particular to a model is in the table (persist.c, from the program).
 *
 * Matmuls. A block has a contiguous range of rows of every op, to the row, so that all blocks have as many bytes; it works through them in
 * tiles of 16 rows (ffn_in: 8 of gate and the same 8 of up), and what is left over. A warp takes one LEAF of a tile, as in
 * decode_matmul.cu, with fewer leaves (more ranks) several tiles at a time. A CHUNK of the ring is some neighbouring leaves of a
 * tile's rows, or a PIECE of one that is too long. Sums have two rooms, so that warps go on with the next tile while the last ones add
 * this one's leaves.
 *
 * Copies. A copy takes an SM's copy engine 57 ns, however short, and a chunk costs the producer some hundred instructions, in which an
 * SM's share of the memory (23 bytes a ns) brings several KB: hence few copies, boxes of all of a chunk's rows, and chunks of 16 to 32 KB.
 * Their rows lie as far apart as the box is wide, a multiple of 64 bytes. A quarter of a warp reads 64 bytes of each of two rows, so
 * that conflicts are two-way at worst, whatever the width: 8 instead of 4 clocks for 512 bytes, of which the stream needs 40. Padding
 * or swizzles would gain nothing. Rows of K and V are read one a lane or eight at a time, which would be eight-way: they have the
 * swizzle of 128 bytes. A slot holds the longest chunk of all: what shorter ones leave free is what it costs that nobody has to be
 * told where a chunk lies.
 *
 * Attention is the same stream: a chunk is K and V of one unit (32 tokens), or either, asked for ahead as weights are; the row's own k and v
 * are put in by hand, since this step makes them. Items go to blocks in turn. An item of split 0 adds the splits' parts when its
 * block has done all its items, so that no block waits for itself.
 *
 * Exchange. A value crosses SMs in a word of 8 bytes with the EPOCH of what wrote it: who needs it polls it; there are no counters,
 * fences, or barriers of the grid. An epoch is of one op of one step, so that nothing is cleared. There is one buffer for each
 * kind of vector (qkv, att, act, and h twice): between two writes of a word lies always an exchange that each
 * reader of the first had to take part in. Four exchanges a layer have all of a vector read by every block: att, h, act, h; qkv
 * goes to the blocks of attention alone.
 *
 * The residual stream lies in pieces: a block has the same elements of h in shared memory all along, adds to them, and publishes h.
 * With one rank and few rows the block that has an element makes all of its sum. With several ranks, or where many rows of x
 * are too much for every block to read (n_parts), a row's nodes of the leaf tree go to the owner (of all ranks) first: one hop more.
 * The norm is every block's own work, from all of h; with many rows it is an op of its own that some blocks do for all.
 *
 * Bits are those of the kernels that run op by op: the same chains, trees, splits and order of the norm's sum.
 *
 * Memory order. Words carry their own readiness, hence relaxed. Shared memory goes between warps by barriers of the eight.
 * Where warps write into a chunk (attention), a fence stands before it is given back, since the next copy is another proxy's.
 *
 * Every wait has a deadline (persist_watch). After an abort nobody waits; the producer asks for nothing more but lets what is under
 * way land.
 *
 * What it costs, counted for Qwen3-4B in bf16: a layer is 1.53 MB of weights an SM, 65 us at 3.1 TB/s. Words that an SM reads of L2 for
 * a layer: M = 1: 96 KB (h 20 twice, att 16, act 39). M = 8: 325 KB, M = 16: 610 KB with norms apart and out and ffn_out in four parts;
 * 770 and 1540 KB without. Five exchanges a layer: qkv (to the blocks of attention), att, h, act, h; a norm apart, and parts, are one hop
 * more each. From an op's last byte to the next one's first mma, in clocks: the last leaf (320 elements: 10 times two
 * dependent mmas) 700, sums and tree 200, the word to L2 and back to who polls 1300, norm 600: some 1.6 us, while which
 * the ring fills further (180 KB are 8 us).
 */
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

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PERSIST_BODY(act, int8, columns, kv) persist<act, int8, columns, kv>(a)
#else
#define PERSIST_BODY(act, int8, columns, kv)
#endif
/* Names: dtype of x (and KV), of W where it differs; the most rows. */
#define DEFINE_PERSIST(name, act, int8, columns, kv)                                                                   \
    extern "C" __global__ void __launch_bounds__(PERSIST_ALL_THREADS, 1)                                               \
        persist_##name##_##columns(const __grid_constant__ persist_args a) {                                           \
        PERSIST_BODY(act, int8, columns, kv);                                                                          \
    }
#define DEFINE_PERSISTS(name, act, int8, kv)                                                                           \
    DEFINE_PERSIST(name, act, int8, 8, kv)                                                                             \
    DEFINE_PERSIST(name, act, int8, 16, kv)

DEFINE_PERSISTS(f32, KERN_F32, false, KERN_F32)
DEFINE_PERSISTS(bf16, KERN_BF16, false, KERN_BF16)
DEFINE_PERSISTS(f16, KERN_F16, false, KERN_F16)
DEFINE_PERSISTS(int8_bf16, KERN_BF16, true, KERN_BF16)
