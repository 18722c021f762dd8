/*
 * The ranks of a CUDA engine and the GPUs they are on. See cuda_engine.h.
 *
 * Each rank has a cuda_engine of its own; rank 0's is the engine's. Ranks on one GPU share its context and stream, which belong
 * to the first of them, the GPU's leader: it captures and launches for all of them, an op at a time (backend/cuda/exchange.h
 * says why). GPUs reach one another's memory by peer access; where that is not to be had, exchanges go through pinned memory.
 */
#include <stdlib.h>

#include "engine/cuda_engine.h"

static const uint64_t patience_ns = 4000000000; /* what fails is to be told within 5 s */

/* ---- Which GPU is whose ---- */

ls_status cuda_devices_check(const device_choice *choice, int n_ranks, ls_error *err) {
    if (choice->n_devices == 0 || choice->n_devices == n_ranks) {
        return LS_OK;
    }
    return error_set(
        err, LS_EINVAL,
        "--devices: names %d GPU%s for %d rank%s (--tensor-parallel-size): name one for each rank, the same "
        "one several times if they are to share it",
        choice->n_devices, choice->n_devices == 1 ? "" : "s", n_ranks, n_ranks == 1 ? "" : "s");
}

int cuda_most_on_a_device(const device_choice *choice, int n_ranks) {
    int most = 0;
    for (int r = 0; r < n_ranks; r++) {
        int here = 0;
        for (int i = 0; i <= r; i++) {
            here += device_of_rank(choice, i) == device_of_rank(choice, r);
        }
        most = here > most ? here : most;
    }
    return most;
}

static ls_status count_devices(const cuda_driver *driver, const device_choice *choice, int n_ranks, ls_error *err) {
    int n = 0;
    if (n_ranks == 1 || choice->n_devices > 0 || driver->cuDeviceGetCount(&n) != CUDA_SUCCESS || n >= n_ranks) {
        return LS_OK;
    }
    char list[2 * LS_MAX_RANKS] = "0";
    for (int r = 1; r < n_ranks; r++) {
        memcpy(list + 2 * r - 1, ",0", 3);
    }
    return error_set(
        err, LS_EUNSUPPORTED,
        "--tensor-parallel-size %d: the NVIDIA driver shows %d GPU%s (CUDA_VISIBLE_DEVICES may hide some); "
        "ranks share one if it is named for each of them: --devices %s",
        n_ranks, n, n == 1 ? "" : "s", list);
}

static ls_status make_ranks(ls_engine *engine, const device_choice *choice, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    const int n_ranks = engine->config.rank_count;
    for (int r = 0; r < n_ranks; r++) {
        cuda_engine *cuda = r == 0 ? first : calloc(1, sizeof *cuda);
        if (cuda == NULL) {
            return error_set(err, LS_ENOMEM, "engine: out of memory");
        }
        first->of[r] = cuda;
        first->n_ranks = r + 1;
        cuda->engine = engine;
        cuda->driver = first->driver;
        cuda->ordinal = device_of_rank(choice, r);
        cuda->n_graphs = first->n_graphs;
        memcpy(cuda->graph_rows, first->graph_rows, sizeof cuda->graph_rows);
        for (int i = 0; i <= r && cuda->leader == NULL; i++) {
            cuda->leader = first->of[i]->ordinal == cuda->ordinal ? first->of[i] : NULL;
        }
        cuda->leader->here[cuda->leader->n_here++] = first_rank(engine) + r;
    }
    return LS_OK;
}

/* ---- Opening ---- */

static ls_status open_rank(cuda_engine *cuda, int number, bool generic, ls_error *err) {
    const int n_ranks = cuda->engine->config.n_ranks;
    ls_status st = LS_OK;
    if (cuda->leader == cuda) {
        st = cuda_rank_open(&cuda->rank, cuda->driver, cuda->ordinal, generic, err);
    } else {
        cuda_rank_open_beside(&cuda->rank, &cuda->leader->rank);
    }
    if (st != LS_OK) {
        return n_ranks == 1 ? st : error_prefix(err, st, "rank %d", number);
    }
    cuda->rank.bind.group = (ls_group){number, n_ranks}; /* messages name it */
    TRY(cuda_load_open(&cuda->load_kernels, &cuda->rank, err));
    return cuda_rank_kernel(&cuda->rank, "copy_words", &cuda->copy_words, err);
}

/* The ranks of a GPU, its leader first. */
static ls_status open_here(cuda_engine *leader, const void *arg, ls_error *err) {
    const bool *generic = arg;
    for (int i = 0; i < leader->n_here; i++) {
        TRY(open_rank(cuda_of(leader->engine, leader->here[i]), leader->here[i], *generic, err));
    }
    return LS_OK;
}

/* Kernels and how many nodes of the leaf tree they leave depend on the chip. */
static ls_status check_same_kind(const cuda_engine *first, ls_error *err) {
    for (int r = 1; r < first->n_ranks; r++) {
        const cuda_facts *a = &first->rank.facts, *b = &first->of[r]->rank.facts;
        if (a->cc_major != b->cc_major || a->cc_minor != b->cc_minor || a->sm_count != b->sm_count) {
            return error_set(
                err, LS_EUNSUPPORTED,
                "ranks want GPUs of one kind: device %d is a %s with %d SMs, device %d a %s with %d; choose "
                "with --devices",
                a->device, a->name, a->sm_count, b->device, b->name, b->sm_count);
        }
    }
    return LS_OK;
}

/* ---- Peers ---- */

/* Whether every GPU can store to every other one's memory; if not, *why says which. */
static ls_status enable_peers(cuda_engine *first, bool *can, ls_error *why, ls_error *err) {
    const cuda_driver *api = first->driver;
    *can = true;
    for (int a = 0; a < first->n_ranks; a++) {
        for (int b = 0; b < first->n_ranks; b++) {
            const cuda_engine *from = first->of[a], *to = first->of[b];
            int yes = 0;
            if (a == b || from->leader != from || to->leader != to) {
                continue;
            }
            TRY(cuda_check(&from->rank, api->cuDeviceCanAccessPeer(&yes, from->rank.device, to->rank.device),
                           "asking for peer access", err));
            CUresult rc = CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
            if (yes) {
                TRY(cuda_rank_enter(&from->rank, err));
                rc = api->cuCtxEnablePeerAccess(to->rank.context, 0);
            }
            if (rc != CUDA_SUCCESS && rc != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) {
                *can = false;
                error_set(why, LS_EUNSUPPORTED, "GPU %d cannot store to the memory of GPU %d: %s", from->ordinal,
                          to->ordinal, cuda_error_text(first->driver, rc));
            }
        }
    }
    return cuda_rank_enter(&first->rank, err);
}

static ls_status join_nccl(cuda_engine *leader, const void *arg, ls_error *err) {
    const cuda_engine *first = engine_cuda(leader->engine);
    ls_error why = {0};
    if (cuda_rank_enter(&leader->rank, &why) != LS_OK) {
        nccl_stay_away(first->nccl, &why);
        return error_set(err, why.status, "%s", why.text);
    }
    return nccl_join(first->nccl, arg, &leader->rank, leader->here[0], first->engine->config.n_ranks, err);
}

static bool is_host_lost(const void *engine) {
    return hosts_lost(((const ls_engine *)engine)->hosts);
}

/* Host 0 names the group, all hosts know it. */
static ls_status name_group(const cuda_engine *first, ncclUniqueId *out, ls_error *err) {
    ls_hosts *hosts = first->engine->hosts;
    ncclUniqueId all[HOSTS_MAX];
    if (hosts == NULL || ls_hosts_self(hosts) == 0) {
        TRY(nccl_new_id(first->nccl, out, err));
    }
    if (hosts != NULL) {
        TRY(hosts_swap(hosts, out, all, sizeof *out, err));
        *out = all[0];
    }
    return LS_OK;
}

static ls_status open_nccl(cuda_engine *first, ls_error *err) {
    for (int r = 0; r < first->n_ranks; r++) {
        const cuda_engine *leader = first->of[r]->leader;
        if (leader != first->of[r]) {
            return error_set(
                err, LS_EUNSUPPORTED,
                "--exchange nccl: ranks %d and %d share GPU %d, which NCCL cannot; name a GPU for each rank "
                "(--devices), or use fused",
                leader->here[0], first_rank(first->engine) + r, leader->ordinal);
        }
    }
    const nccl_members here = {first_rank(first->engine), first->n_ranks, is_host_lost, first->engine};
    ls_status st = nccl_open(&first->nccl, &here, err);
    if (st != LS_OK) {
        return error_prefix(err, st,
                            "--exchange nccl needs NCCL's library (pip install nvidia-nccl-cu13); or leave it at auto");
    }
    ncclUniqueId id = {{0}};
    TRY(name_group(first, &id, err));
    st = cuda_crew_run(first, join_nccl, &id, sizeof id, err);
    TRY(st != LS_OK && hosts_lost(first->engine->hosts) ? hosts_why(first->engine->hosts, err) : st);
    return cuda_rank_enter(&first->rank, err);
}

static ls_status choose_exchange(ls_engine *engine, const ls_engine_params *params, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    const char *asked = params->exchange != NULL ? params->exchange : "auto";
    ls_error why = {0};
    bool can = true;
    if (engine->hosts != NULL || (first->n_ranks > 1 && strcmp(asked, "nccl") == 0)) {
        return open_nccl(first, err);
    }
    if (first->n_ranks == 1 || strcmp(asked, "host") == 0) {
        engine->config.staged = first->n_ranks > 1;
        return LS_OK;
    }
    TRY(enable_peers(first, &can, &why, err));
    if (!can && strcmp(asked, "fused") == 0) {
        return error_set(err, why.status, "--exchange fused: %s; leave it at auto, or use host", why.text);
    }
    if (!can) {
        log_line(&engine->model->log, LS_LOG_WARN, "exchanges go through the host's memory: %s", why.text);
    }
    engine->config.staged = !can;
    return LS_OK;
}

ls_status cuda_exchange_check(const ls_engine_params *params, ls_error *err) {
    const char *asked = params->exchange;
    static const char *const known[] = {"auto", "fused", "nccl", "host"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (asked == NULL || strcmp(asked, known[i]) == 0) {
            return LS_OK;
        }
    }
    return error_set(err, LS_EINVAL, "--exchange %s: must be auto, fused, nccl or host", asked);
}

ls_status cuda_ranks_open(ls_engine *engine, const ls_engine_params *params, bool generic, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    device_choice choice;
    TRY(device_choice_read(&choice, params->device, err));
    TRY(count_devices(first->driver, &choice, engine->config.rank_count, err));
    TRY(make_ranks(engine, &choice, err));
    TRY(cuda_crew_open(first, err));
    TRY(cuda_crew_run(first, open_here, &generic, sizeof generic, err));
    TRY(cuda_rank_enter(&first->rank, err));
    TRY(check_same_kind(first, err));
    return choose_exchange(engine, params, err);
}

/* The same among hosts, whose GPUs are of one kind too. */
static ls_status least_of_hosts(const cuda_engine *first, double share, gpu_memory *least, ls_error *err) {
    ls_hosts *hosts = first->engine->hosts;
    const gpu_memory ours = *least;
    gpu_memory all[HOSTS_MAX];
    if (hosts == NULL) {
        return LS_OK;
    }
    TRY(hosts_swap(hosts, &ours, all, sizeof ours, err));
    for (int host = 0; host < hosts_count(hosts); host++) {
        if (all[host].sm_count != ours.sm_count || all[host].cc_major != ours.cc_major) {
            return error_set(err, LS_EUNSUPPORTED,
                             "ranks want GPUs of one kind: those of %s have %d SMs (sm_%dx), those here %d (sm_%dx)",
                             hosts_label(hosts, host), all[host].sm_count, all[host].cc_major, ours.sm_count,
                             ours.cc_major);
        }
        *least = memory_left(&all[host], share) < memory_left(least, share) ? all[host] : *least;
    }
    return LS_OK;
}

/* What the fullest GPU has for each of its ranks decides for all. */
ls_status cuda_ranks_memory(const cuda_engine *first, double share, gpu_memory *out, ls_error *err) {
    for (int r = 0; r < first->n_ranks; r++) {
        const cuda_engine *cuda = first->of[r];
        gpu_memory found;
        if (cuda->leader != cuda) {
            continue;
        }
        TRY(cuda_rank_enter(&cuda->rank, err));
        TRY(cuda_memory_of(&cuda->rank, cuda->n_here, &found, err));
        if (r == 0 || memory_left(&found, share) < memory_left(out, share)) {
            *out = found;
        }
    }
    TRY(least_of_hosts(first, share, out, err));
    return cuda_rank_enter(&first->rank, err);
}

/* ---- The group, once memory is placed ---- */

ls_status cuda_ranks_join(ls_engine *engine, ls_error *err) {
    cuda_engine *first = engine_cuda(engine);
    const engine_config *config = &engine->config;
    exchange_group *group = &first->group;
    if (config->n_ranks == 1) {
        return LS_OK;
    }
    group->args.n_ranks = config->n_ranks;
    group->args.patience_ns = patience_ns;
    group->args.layout = exchange_layout_of(engine->model->spec.d_model, config->n_out_max);
    group->stuck = engine->host.stuck;
    group->staged = config->staged;
    group->nccl = first->nccl;
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        group->args.box[r] = config->staged ? engine->host.box[r] : engine->rank[r].box;
        group->x[r] = engine->rank[r].bind.buf[BUF_X];
    }
    for (int r = first_rank(engine); r < end_rank(engine); r++) {
        cuda_engine *cuda = cuda_of(engine, r);
        for (int peer = 0; peer < first->n_ranks && config->staged; peer++) {
            cuda->rank.bind.peer_part[peer] = engine->host.staged[peer];
        }
        TRY(cuda_rank_enter(&cuda->rank, err));
        TRY(exchange_open(&cuda->exchange, &cuda->rank, group, (CUdeviceptr)(uintptr_t)engine->rank[r].epochs,
                          cuda->leader->n_here, err));
    }
    return cuda_rank_enter(&first->rank, err);
}

/* ---- Launching ---- */

/* Nodes that each rank leaves for the exchange at op `first`. */
static int nodes_before(const cuda_rank *rank, const ls_op *op, int first, const ls_step *step, bool decode) {
    const ls_op *before = first > 0 ? &op[first - 1] : NULL;
    if (before == NULL || (before->kind != OP_OUT && before->kind != OP_FFN_OUT)) {
        return 1;
    }
    return decode ? decode_row_nodes(rank, before, step->n_rows) : prefill_row_nodes(rank, before, step);
}

ls_status cuda_ranks_launch(cuda_engine *leader, int first, const ls_step *step, int rows, ls_error *err) {
    const ls_engine *engine = leader->engine;
    const engine_config *config = &engine->config;
    const int n = leader->n_here, n_ops = engine->program[0]->n_ops;
    const bool decode = rows > 0 && rows <= CUDA_MAX_DECODE;
    const int n_rows = rows == 0 ? step->n_rows : rows < config->m_max || decode ? rows : config->m_max;
    const int n_out = rows == 0 ? step->n_out : n_rows < config->n_out_max || decode ? n_rows : config->n_out_max;
    const ls_step sizes = {.n_rows = n_rows, .n_out = n_out};
    cuda_exchange *here[LS_MAX_RANKS] = {NULL};
    const ls_op *op[LS_MAX_RANKS] = {NULL};
    for (int i = 0; i < n; i++) {
        here[i] = &cuda_of(engine, leader->here[i])->exchange;
        op[i] = engine->program[leader->here[i]]->op;
    }
    const ls_op_kind kind = op[0][first].kind;
    if (kind == OP_EXCHANGE) {
        const decode_how how = {
            .n_rows = n_rows, .n_out = n_out, .n_nodes = nodes_before(here[0]->rank, op[0], first, &sizes, decode)};
        return exchange_launch(here, n, op, n_ops, first, &how, err);
    }
    for (int i = 0; i < n; i++) {
        int n_taken = 1;
        TRY(decode     ? decode_launch(here[i]->rank, op[i], n_ops, first, rows, &n_taken, err)
            : rows > 0 ? prefill_launch_decode(here[i]->rank, op[i], n_ops, first, n_rows, n_out, &n_taken, err)
                       : prefill_launch(here[i]->rank, op[i], n_ops, first, step, false, &n_taken, err));
        if (n_taken != 1) {
            return error_set(err, LS_EINTERNAL, "%d ops at a time on several ranks", n_taken);
        }
    }
    return kind == OP_SAMPLE ? exchange_launch_offers(here, n, op, first, n_rows, n_out, err) : LS_OK;
}

/* Why a step that came to its end, or did not, is of no use; LS_OK: nobody waited in vain. */
ls_status cuda_ranks_check(const ls_engine *engine, ls_error *err) {
    const cuda_engine *first = engine_cuda(engine);
    return engine->config.n_ranks == 1
               ? LS_OK
               : exchange_check(&first->group, engine->program[0]->op, engine->program[0]->n_ops, err);
}
