/*
 * Words that cross ranks: storing, waiting, giving up. The protocol is exchange_args.h's.
 */
#ifndef LS_BACKEND_CUDA_EXCHANGE_CUH
#define LS_BACKEND_CUDA_EXCHANGE_CUH

#include "backend/cuda/kern/common.cuh"
#include "backend/cuda/kern/exchange_args.h"
#include "backend/cuda/kern/exchange_ptx.cuh"

DEVICE uint64_t *box_words(const exchange_group_args &g, int rank, uint32_t epoch, int node, int row) {
    uint64_t *words = reinterpret_cast<uint64_t *>(g.box[rank] + g.layout.words);
    return words + (((int64_t)(epoch & 1) * EXCHANGE_NODES + node) * EXCHANGE_ROWS + row) * g.layout.d;
}

DEVICE uint64_t *box_offer(const exchange_group_args &g, int rank, uint32_t epoch, int from, int row) {
    uint64_t *offers = reinterpret_cast<uint64_t *>(g.box[rank] + g.layout.offers);
    const int64_t at = ((int64_t)(epoch & 1) * EXCHANGE_RANKS + from) * g.layout.n_out_max + row;
    return offers + at * EXCHANGE_OFFER_WORDS;
}

DEVICE uint32_t *box_met(const exchange_group_args &g, int rank) {
    return reinterpret_cast<uint32_t *>(g.box[rank] + g.layout.met);
}

DEVICE uint32_t *box_abort(const exchange_group_args &g, int rank) {
    return reinterpret_cast<uint32_t *>(g.box[rank] + g.layout.abort);
}

DEVICE uint64_t word_of(uint32_t bits, uint32_t epoch) {
    return (uint64_t)epoch << 32 | bits;
}

/* One thread's waiting: again() after each look that found nothing says whether to look again. Who waits for longer than
 * the group's patience says what for, and ends everybody's waiting; nothing that comes after that is of use to anybody. */
struct patience {
    const exchange_group_args &group;
    const exchange_self &self;
    const int kind;
    uint32_t looks;
    uint64_t since;

    DEVICE_MEMBER patience(const exchange_group_args &g, const exchange_self &s, int kind_)
        : group(g), self(s), kind(kind_), looks(0), since(0) {}

    DEVICE_MEMBER bool again(int from) {
        between_looks();
        if (++looks % 256 != 0) {
            return true;
        }
        if (load_flag(box_abort(group, self.rank)) != 0) {
            return false;
        }
        const uint64_t now = global_time();
        since = since == 0 ? now : since;
        if (now - since < group.patience_ns) {
            return true;
        }
        store_peer_word(self.stuck, (uint64_t)kind << EXCHANGE_STUCK_KIND | (uint64_t)from << EXCHANGE_STUCK_FROM |
                                        (uint32_t)self.op_index);
        for (int r = 0; r < group.n_ranks; r++) {
            store_flag(box_abort(group, r), 1);
        }
        return false;
    }
};

#endif
