/*
 * A whole decode step as one cooperative kernel, M = 1 .. 16, sm_90 on: one block on each SM, and weights that never stop coming.
 * For a rank with a GPU of its own; ranks that share one run the same code with a part of its SMs each (persist_shared.cu).
 *
 * Shape. Per-op kernels stop and start the stream of weights at every border. Here a PRODUCER, one warp, walks the op table once a
 * step and copies this block's part of every op, in order, into a ring in shared memory (tensor copies; a chunk's barrier counts its
 * bytes). It waits for a slot and for its window (bytes in flight: more would only make exchanges wait in the memory's queues), never
 * for activations: what an op will need is there when its input is. Eight other warps COMPUTE, and one thread looks at the clock. All
 * that is particular to a model is in the table (persist.c, from the program).
 *
 * Matmuls. A block has a contiguous range of rows of every op, to the row, so that all blocks have as many bytes; it works through them in
 * tiles of 16 rows (ffn_in: 8 of gate and the same 8 of up), and what is left over. A warp takes one LEAF of a tile, as in
 * decode_matmul.cu, with fewer leaves (more ranks) several tiles at a time. A CHUNK of the ring is some neighbouring leaves of a
 * tile's rows, or a PIECE of one that is too long. Sums have two rooms, so that warps go on with the next tile while the last ones add
 * this one's leaves.
 *
 * Copies. A copy takes an SM's copy engine 57 ns, however short, and a chunk costs the producer some fifty instructions one after
 * another, in which an SM's share of the memory (23 bytes a ns) brings several KB: hence few copies, boxes of all of a chunk's rows and
 * of some of the next block's where a tile is short, and chunks of 16 to 32 KB. Their rows lie as far apart as the box is wide, a multiple of 64 bytes. A quarter of a warp reads 64 bytes of each of two rows, so
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
 * With one rank and few rows the block that has an element makes all of its sum. Where many rows of x are too much for every block
 * to read (n_parts), a row's nodes of the leaf tree go to the owner first: one hop more. The norm is every block's own work, from
 * all of h; with many rows it is an op of its own that some blocks do for all.
 *
 * Ranks. Each has its leaves of out and ffn_out, and an owner for each element of h. Whoever makes a node stores it with all ranks,
 * in memory that peers map (args.node[]); owners poll their own memory alone, add all nodes up the leaf tree, and go on as with one
 * rank. So bits are those of one rank, and an exchange is one hop over the link more than n_parts are: a slice to each block, said
 * again within the rank. (That every block polls all nodes was no faster with two ranks, and needs all of h in each.) The end of a
 * step is an exchange too: block 0 sends the rank's best of each row, of the drawn noise or of the logits, to all ranks and takes
 * the best of all (by value, then the lower id), so that all begin the next step with the same token.
 *
 * Bits are those of the kernels that run op by op: the same chains, trees, splits and order of the norm's sum.
 *
 * Memory order. Words carry their own readiness, hence relaxed: st and ld of 8 bytes are whole, a word whose epoch is the one that
 * is waited for has its value with it, and no other data is found by way of it. That needs no fence, on this GPU (.gpu) or between
 * GPUs (.sys). Shared memory goes between warps by barriers of the eight. Where warps write into a chunk (attention), a fence stands
 * before it is given back, since the next copy is another proxy's. What else has an order to keep:
 *   A word written again. A reader polls until its word has its epoch, never to look again: a later word may come at any time after
 *   that, and only one that comes before would be its loss. So each second write has to follow from every read of the first by a
 *   chain of values: load, what was computed of it, store, load elsewhere. No machine stores what it has not computed, so that a
 *   chain is an order without fences. Within a rank it is above. Of nodes: rank A writes those of reduction k where those of k - 2
 *   were (two slots, in turn). It had all of h of k - 1 then, hence nodes of k - 1 from rank B. Any of these was made of an input
 *   that blocks of B had made of all of h of k - 2, each of which owners there had made of all nodes of k - 2. One slot would not
 *   do: B may still poll for nodes of k - 1. The count of a step's reductions is odd, so the first of a step (embed, which waits for
 *   nothing) has the slot of the last of the step before: A's kernel had ended by then, hence had bests from B's block 0, which had
 *   heard from all of B's blocks behind their last nodes. So bests are exchanged in every step, also where the host draws all rows.
 *   One place for them is enough: A has nodes of this step's embed from B, whose kernel of the step before is over.
 *   Epochs follow from the count of launches, which is the same on all ranks: each plan has its rooms and its count, and all ranks
 *   run the same plans in the same order. Rooms are zero before the first launch of any rank (the host waits for all), and epochs
 *   begin at 1.
 *   Drawn tokens, KV and the step's input go from kernel to kernel of one stream, on one GPU.
 *   The end of waiting (persist_stuck.ends_ns) orders nothing: who sees it makes nothing of use any more, and what it tells the host
 *   the host reads when the kernel is over.
 *
 * Every wait has a deadline (persist_watch): of the kernel, since a step takes a hundredth of it at most. The first block of any
 * rank whose patience ends tells all ranks when waiting ends, which each block's watch looks at. After that nobody waits; the producer asks
 * for nothing more but lets what is under way land. Who stood waiting for another rank says for which and in which op; the host
 * names the earliest (persist_check).
 *
 * What it costs, counted for Qwen3-4B in bf16: a layer is 1.53 MB of weights an SM, 65 us at 3.1 TB/s. Words that an SM reads of L2 for
 * a layer: M = 1: 96 KB (h 20 twice, att 16, act 39). M = 8: 325 KB, M = 16: 610 KB with norms apart and out and ffn_out in four parts;
 * 770 and 1540 KB without. Five exchanges a layer: qkv (to the blocks of attention), att, h, act, h; a norm apart, and parts, are one hop
 * more each. From an op's last byte to the next one's first mma, in clocks: the last leaf (320 elements: 10 times two
 * dependent mmas) 700, sums and tree 200, the word to L2 and back to who polls 1300, norm 600: some 1.6 us, while which
 * the ring fills further (180 KB are 8 us).
 */
#include "backend/cuda/kern/persist_step.cuh"

#define DEFINE_PERSIST(name, act, int8, columns, kv)                                                                   \
    extern "C" __global__ void __launch_bounds__(PERSIST_ALL_THREADS, 1)                                               \
        persist_##name(const __grid_constant__ persist_args a) {                                                       \
        PERSIST_BODY(act, int8, columns, kv, a);                                                                       \
    }

DEFINE_PERSISTS(DEFINE_PERSIST)
