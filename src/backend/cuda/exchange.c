/* See exchange.h. */
#include "backend/cuda/exchange.h"

#include <stdio.h>

_Static_assert((int)EXCHANGE_RANKS == (int)LS_MAX_RANKS && (int)EXCHANGE_NODES == (int)CUDA_NODES,
               "kernels and engine agree");

enum { MAX_ROW_THREADS = 1024, WARP = 32 };

static void *at(CUdeviceptr address) {
    return (void *)(uintptr_t)address; // NOLINT(performance-no-int-to-ptr)
}

static exchange_self self_of(const cuda_exchange *e, int op_index) {
    const int rank = e->rank->bind.group.rank;
    return (exchange_self){.step = at(e->rank->step),
                           .epochs = at(e->epochs),
                           .stuck = (uint64_t *)(uintptr_t)&e->group->stuck[rank],
                           .rank = rank,
                           .op_index = op_index};
}

static unsigned row_threads(int d) {
    const int items = d % 4 == 0 ? d / 4 : d, threads = (items + WARP - 1) / WARP * WARP;
    return (unsigned)(threads < MAX_ROW_THREADS ? threads : MAX_ROW_THREADS);
}

static unsigned row_bytes(int d) {
    return (unsigned)((d + 3) / 4 * 4 + WARP) * (unsigned)sizeof(float);
}

/* ---- Opening ---- */

/* All blocks of a launch must be on the chip at once: they wait for one another. */
static ls_status check_fits(const cuda_exchange *e, CUfunction fn, const char *name, int blocks, unsigned threads,
                            unsigned bytes, ls_error *err) {
    const cuda_rank *rank = e->rank;
    int per_sm = 0;
    TRY(cuda_check(rank, rank->driver->cuOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, fn, (int)threads, bytes),
                   name, err));
    if (per_sm * rank->facts.sm_count >= blocks) {
        return LS_OK;
    }
    return error_set(
        err, LS_EUNSUPPORTED,
        "%s, device %d: its %d SMs hold %d blocks of %s at a time, the ranks on it need %d: put fewer ranks "
        "on it (--devices)",
        rank->facts.name, rank->facts.device, rank->facts.sm_count, per_sm * rank->facts.sm_count, name, blocks);
}

ls_status exchange_open(cuda_exchange *out, cuda_rank *rank, const exchange_group *group, CUdeviceptr epochs,
                        int n_here, ls_error *err) {
    enum { PLAIN_SHARED_BYTES = 48 << 10 };
    const int d = rank->bind.d_model;
    *out = (cuda_exchange){.rank = rank, .group = group, .epochs = epochs};
    TRY(cuda_rank_kernel(rank, "exchange_rows", &out->rows, err));
    TRY(cuda_rank_kernel(rank, "exchange_push", &out->push, err));
    TRY(cuda_rank_kernel(rank, "exchange_take", &out->take, err));
    TRY(cuda_rank_kernel(rank, "exchange_meet", &out->meet, err));
    TRY(cuda_rank_kernel(rank, "exchange_offers", &out->offers, err));
    TRY(cuda_rank_kernel(rank, "exchange_sum", &out->sum, err));
    TRY(cuda_rank_kernel(rank, "exchange_offer", &out->offer, err));
    TRY(cuda_rank_kernel(rank, "exchange_draw", &out->draw, err));
    const CUfunction keeps_rows[] = {out->rows, out->take};
    for (int i = 0; i < 2 && row_bytes(d) > PLAIN_SHARED_BYTES; i++) {
        TRY(cuda_check(rank,
                       rank->driver->cuFuncSetAttribute(keeps_rows[i], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                        (int)row_bytes(d)),
                       "exchange", err));
    }
    TRY(check_fits(out, out->rows, "exchange_rows", n_here * EXCHANGE_ROWS, row_threads(d), row_bytes(d), err));
    return check_fits(out, out->offers, "exchange_offers", n_here * EXCHANGE_OFFER_BLOCKS, EXCHANGE_OFFER_THREADS, 0,
                      err);
}

/* ---- Launching ---- */

static ls_status launch(const cuda_exchange *e, CUfunction fn, const char *name, unsigned x, int n, unsigned threads,
                        unsigned bytes, void *args, ls_error *err) {
    return cuda_launch_overlapping(e->rank, fn, name, x, (unsigned)n, 1, threads, bytes, (void *[]){args}, err);
}

static ls_status launch_meet(cuda_exchange *const *here, int n, int index, ls_error *err) {
    exchange_meet_args args = {.group = here[0]->group->args};
    for (int i = 0; i < n; i++) {
        args.member[i] = self_of(here[i], index);
    }
    return launch(here[0], here[0]->meet, "exchange_meet", 1, n, WARP, 0, &args, err);
}

static const float *vector(const cuda_rank *rank, int i) {
    return i < 0 ? NULL : rank->bind.weight[i].data;
}

static const float *part_of(const ls_bind *bind, int slot) {
    return (const float *)bind->buf[BUF_PART] + (int64_t)slot * CUDA_NODES * bind->m_max * bind->d_model;
}

/* The norm that an op begins with. */
static int norm_of(const ls_op *behind, float *eps) {
    switch (behind->kind) {
    case OP_QKV:
        *eps = behind->qkv.eps;
        return behind->qkv.norm;
    case OP_FFN_IN:
        *eps = behind->ffn_in.eps;
        return behind->ffn_in.norm;
    case OP_HEAD:
        *eps = behind->head.eps;
        return behind->head.norm;
    default:
        return -1;
    }
}

/* What the exchange at `first` is on this rank: its vectors, and the norm behind it. */
static exchange_member member_of(const cuda_exchange *e, const ls_op *op, int n_ops, int first, float *eps,
                                 int32_t *out_rows) {
    const cuda_rank *rank = e->rank;
    const op_exchange *a = &op[first].exchange;
    exchange_member member = {.self = self_of(e, first),
                              .part = part_of(&rank->bind, a->slot),
                              .bias = vector(rank, a->bias),
                              .h = rank->bind.buf[BUF_H],
                              .x = rank->bind.buf[BUF_X],
                              .fault = (int32_t *)rank->bind.fault};
    if (first + 1 < n_ops) {
        member.norm = vector(rank, norm_of(&op[first + 1], eps));
        *out_rows = op[first + 1].kind == OP_HEAD;
    }
    return member;
}

static ls_status launch_rows(cuda_exchange *const *here, int n, const ls_op *const *op, int n_ops, int first,
                             const decode_how *how, ls_error *err) {
    const ls_bind *bind = &here[0]->rank->bind;
    exchange_rows_args args = {.group = here[0]->group->args,
                               .node_stride = (int64_t)bind->m_max * bind->d_model,
                               .n_nodes = how->n_nodes,
                               .init = op[0][first].exchange.init,
                               .d = bind->d_model,
                               .dtype = bind->dtype};
    for (int i = 0; i < n; i++) {
        args.member[i] = member_of(here[i], op[i], n_ops, first, &args.eps, &args.out_rows);
    }
    return launch(here[0], here[0]->rows, "exchange_rows", (unsigned)how->n_rows, n, row_threads(args.d),
                  row_bytes(args.d), &args, err);
}

/* Rows by their owners: exchange_args.h. */
static ls_status launch_slices(cuda_exchange *const *here, int n, const ls_op *const *op, int n_ops, int first,
                               const decode_how *how, ls_error *err) {
    const cuda_exchange *e = here[0];
    const ls_bind *bind = &e->rank->bind;
    const int d = bind->d_model, n_ranks = e->group->args.n_ranks, slot = op[0][first].exchange.slot;
    exchange_slice_args args = {.node_stride = (int64_t)bind->m_max * d,
                                .n_ranks = n_ranks,
                                .n_nodes = how->n_nodes,
                                .init = op[0][first].exchange.init,
                                .d = d,
                                .dtype = bind->dtype};
    const int64_t inbox = ((int64_t)slot * CUDA_NODES + EXCHANGE_INBOX) * args.node_stride;
    for (int r = 0; r < n_ranks; r++) {
        args.inbox[r] = (void *)(uintptr_t)(bind->peer_part[r] + inbox);
        args.x[r] = e->group->x[r];
    }
    for (int i = 0; i < n; i++) {
        const exchange_member m = member_of(here[i], op[i], n_ops, first, &args.eps, &args.out_rows);
        args.member[i] = (exchange_slice){m.self, m.part, args.inbox[m.self.rank], m.bias, m.h, m.norm, m.fault};
    }
    TRY(launch(e, e->push, "exchange_push", (unsigned)how->n_rows, n, row_threads(d), 0, &args, err));
    TRY(launch_meet(here, n, first, err));
    TRY(launch(e, e->take, "exchange_take", (unsigned)((how->n_rows + n_ranks - 1) / n_ranks), n, row_threads(d),
               row_bytes(d), &args, err));
    return launch_meet(here, n, first, err);
}

/* The rank's nodes to where the others find them: bind.peer_part. */
static ls_status stage_part(const cuda_rank *rank, int slot, const decode_how *how, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const int64_t node = (int64_t)bind->m_max * bind->d_model, first = (int64_t)slot * CUDA_NODES * node;
    const size_t bytes = (size_t)how->n_rows * (size_t)bind->d_model * sizeof(float);
    float *to = (float *)(uintptr_t)bind->peer_part[bind->group.rank];
    for (int i = 0; i < how->n_nodes; i++) {
        const int64_t offset = first + i * node;
        TRY(cuda_check(rank,
                       rank->driver->cuMemcpyDtoHAsync(to + offset,
                                                       (CUdeviceptr)(uintptr_t)((float *)bind->buf[BUF_PART] + offset),
                                                       bytes, rank->stream),
                       "staging a part", err));
    }
    return LS_OK;
}

/* Decode's rows: all ranks' nodes come here, where words would lie, and the leaf tree over them is one over nodes of this rank's.
 * More rows: NCCL adds up. Padding of a bucket goes with them, as far as the buffers go. */
static ls_status launch_by_nccl(const cuda_exchange *e, const ls_op *op, int n_ops, int first, const decode_how *how,
                                ls_error *err) {
    const ls_bind *bind = &e->rank->bind;
    const int d = bind->d_model, rows = how->n_rows < bind->m_max ? how->n_rows : bind->m_max;
    exchange_slice_args args = {.node_stride = (int64_t)bind->m_max * d,
                                .n_ranks = 1,
                                .n_nodes = how->n_nodes,
                                .init = op[first].exchange.init,
                                .d = d,
                                .dtype = bind->dtype};
    const exchange_member m = member_of(e, op, n_ops, first, &args.eps, &args.out_rows);
    args.member[0] = (exchange_slice){m.self, m.part, NULL, m.bias, m.h, m.norm, m.fault};
    args.member[0].self.rank = 0;
    args.x[0] = m.x;
    if (how->n_nodes > 1) {
        TRY(launch(e, e->sum, "exchange_sum", (unsigned)rows, 1, row_threads(d), 0, &args, err));
        args.n_nodes = 1;
    }
    const size_t count = (size_t)rows * (size_t)d;
    const int number = bind->group.rank;
    if (how->n_rows <= EXCHANGE_ROWS) {
        float *all = (float *)(uintptr_t)e->group->args.box[number];
        TRY(nccl_gather(e->group->nccl, e->rank, number, m.part, all, count * sizeof(float), err));
        args.member[0].part = all;
        args.node_stride = (int64_t)count;
        args.n_nodes = e->group->args.n_ranks;
    } else {
        TRY(nccl_sum(e->group->nccl, e->rank, number, (float *)(uintptr_t)m.part, count, err));
    }
    return cuda_launch(e->rank, e->take, "exchange_take", (unsigned)rows, 1, 1, row_threads(d), row_bytes(d),
                       (void *[]){&args}, err);
}

/* The gathered offers lie where words of them would. */
static ls_status draw_by_nccl(const cuda_exchange *e, const ls_op *sample, int n_out, ls_error *err) {
    cuda_rank *rank = e->rank;
    const int number = rank->bind.group.rank;
    const exchange_group_args *group = &e->group->args;
    exchange_offered *offered = (exchange_offered *)(group->box[number] + group->layout.offers);
    exchange_draw_args args = {.step = at(rank->step),
                               .part = at(rank->workspace),
                               .mine = offered,
                               .all = offered + n_out,
                               .drawn = at(rank->drawn),
                               .n_slices = decode_sample_slices(sample),
                               .vocab_first = sample->sample.vocab_first,
                               .n_ranks = group->n_ranks,
                               .n_out = n_out};
    TRY(launch(e, e->offer, "exchange_offer", (unsigned)n_out, 1, WARP, 0, &args, err));
    TRY(nccl_gather(e->group->nccl, rank, number, args.mine, offered + n_out, (size_t)n_out * sizeof *offered, err));
    return cuda_launch(rank, e->draw, "exchange_draw", (unsigned)n_out, 1, 1, WARP, 0, (void *[]){&args}, err);
}

ls_status exchange_launch(cuda_exchange *const *here, int n, const ls_op *const *op, int n_ops, int first,
                          const decode_how *how, ls_error *err) {
    if (here[0]->group->nccl != NULL) {
        return launch_by_nccl(here[0], op[0], n_ops, first, how, err);
    }
    if (how->n_rows <= EXCHANGE_ROWS) {
        return launch_rows(here, n, op, n_ops, first, how, err);
    }
    if (!here[0]->group->staged) {
        return launch_slices(here, n, op, n_ops, first, how, err);
    }
    for (int i = 0; i < n; i++) {
        TRY(stage_part(here[i]->rank, op[i][first].exchange.slot, how, err));
    }
    TRY(launch_meet(here, n, first, err));
    for (int i = 0; i < n; i++) {
        TRY(decode_launch_rows(here[i]->rank, op[i], n_ops, first, how, err));
    }
    return LS_OK;
}

ls_status exchange_launch_offers(cuda_exchange *const *here, int n, const ls_op *const *op, int index, int n_rows,
                                 int n_out, ls_error *err) {
    exchange_offers_args args = {.group = here[0]->group->args};
    if (here[0]->group->nccl != NULL) {
        return n_out > 0 ? draw_by_nccl(here[0], &op[0][index], n_out, err) : LS_OK;
    }
    if (n_rows > EXCHANGE_ROWS && here[0]->group->staged) {
        TRY(launch_meet(here, n, index, err));
    }
    if (n_out == 0) {
        return LS_OK;
    }
    for (int i = 0; i < n; i++) {
        const cuda_rank *rank = here[i]->rank;
        args.member[i] = (exchange_offers_member){.self = self_of(here[i], index),
                                                  .part = at(rank->workspace),
                                                  .drawn = at(rank->drawn),
                                                  .n_slices = decode_sample_slices(&op[i][index]),
                                                  .vocab_first = op[i][index].sample.vocab_first};
    }
    const int per_block = EXCHANGE_OFFER_THREADS / WARP, blocks = (n_out + per_block - 1) / per_block;
    return launch(here[0], here[0]->offers, "exchange_offers",
                  (unsigned)(blocks < EXCHANGE_OFFER_BLOCKS ? blocks : EXCHANGE_OFFER_BLOCKS), n,
                  EXCHANGE_OFFER_THREADS, 0, &args, err);
}

/* ---- When it fails ---- */

ls_status exchange_check(const exchange_group *group, const ls_op *op, int n_ops, ls_error *err) {
    for (int r = 0; r < group->args.n_ranks; r++) {
        const uint64_t word = group->stuck[r];
        if (word == 0) {
            continue;
        }
        const int index = (int)(uint32_t)word, from = (int)(word >> EXCHANGE_STUCK_FROM & 0xff);
        const ls_op *o = index >= 0 && index < n_ops ? &op[index] : NULL;
        char where[64] = "";
        if (o != NULL && o->layer >= 0) {
            snprintf(where, sizeof where, " of layer %d", o->layer);
        }
        return error_set(
            err, LS_EABORTED,
            "rank %d waited %.1f s in op %s%s for rank %d, from which nothing came: its GPU has stopped, or "
            "the link between them is broken",
            r, (double)group->args.patience_ns / 1e9, o != NULL ? op_kind_name(o->kind) : "?", where, from);
    }
    return LS_OK;
}
