/*
 * Reference: what one rank offers for each output row: its softmax node, its best candidates, its Gumbel winner.
 *
 * With fewer rows than threads a row is cut into slices of whole leaves, one a thread; the slices' offers merge into the
 * row's. Where a row is cut decides no bits: nodes follow the leaf tree, the rest is a choice of the best.
 */
#include "backend/cpu/cpu.h"
#include "backend/sample_math.h"

/* Ids [first, first + count) of one row. */
typedef struct sample_slice {
    int32_t first, count;
    int leaf_first, leaf_count;
    const float *raw;    /* [count] logits as they came */
    const float *logits; /* [count] edited; raw itself where there is nothing to edit */
} sample_slice;

/* Puts a candidate that is better than the last one into its place in a list of at most `room`. */
static void offer(ls_candidate *best, int32_t *n, int room, ls_candidate c) {
    if (*n == room && !candidate_better(c, best[room - 1])) {
        return;
    }
    int i = *n < room ? (*n)++ : room - 1;
    for (; i > 0 && candidate_better(c, best[i - 1]); i--) {
        best[i] = best[i - 1];
    }
    best[i] = c;
}

/* How many candidates a filtered row is offered. */
static int offer_room(const ls_sample_params *how) {
    return how->top_k > 0 && how->top_k < LS_SAMPLE_BEST ? how->top_k : LS_SAMPLE_BEST;
}

/* The best `room` of the slice, forbidden ones left out: a heap with the worst of them on top, sorted in the end. */
static int32_t offer_all(ls_candidate *best, int room, const float *logits, float temperature, const sample_slice *s) {
    int32_t n = 0, i = 0;
    for (; i < s->count && n < room; i++) {
        float z = logits[i] / temperature;
        if (z > -INFINITY) {
            best[n++] = (ls_candidate){z, s->first + i};
        }
    }
    candidate_heapify(best, n, false);
    for (; i < s->count && n > 0; i++) {
        float z = logits[i] / temperature;
        if (z > best[0].z) { /* a later one with the same z is worse */
            best[0] = (ls_candidate){z, s->first + i};
            candidate_sift(best, n, 0, false);
        }
    }
    for (int32_t left = n; left > 1; left--) {
        ls_candidate worst = best[0];
        best[0] = best[left - 1];
        candidate_sift(best, left - 1, 0, false);
        best[left - 1] = worst;
    }
    return n;
}

static float max_of(const float *x, int64_t n) {
    enum { LANES = 16 };
    float lane[LANES];
    for (int j = 0; j < LANES; j++) {
        lane[j] = -INFINITY;
    }
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
        }
    }
    float max = -INFINITY;
    for (; i < n; i++) {
        max = x[i] > max ? x[i] : max;
    }
    for (int j = 0; j < LANES; j++) {
        max = lane[j] > max ? lane[j] : max;
    }
    return max;
}

/* The lowest id of the best logit, which there is. */
static int32_t argmax(const float *x, int32_t n) {
    float max = max_of(x, n);
    int32_t i = 0;
    while (i + 1 < n && !(x[i] == max)) {
        i++;
    }
    return i;
}

static softmax_node leaf_softmax(const cpu_isa *isa, const float *logits, int64_t n, float temperature) {
    enum { BLOCK = 512 };
    float value[BLOCK];
    softmax_node node = {-INFINITY, 0.0F};
    float max = max_of(logits, n) / temperature; /* division keeps the order */
    if (!(max > -INFINITY)) {
        return node;
    }
    node.max = max;
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t count = n - i < BLOCK ? n - i : BLOCK;
        isa->exps(logits + i, temperature, max, count, value);
        for (int64_t j = 0; j < count; j++) {
            node.sum += value[j];
        }
    }
    return node;
}

static softmax_node slice_softmax(const op_sample *a, const cpu_isa *isa, const sample_slice *s, const float *logits,
                                  float temperature) {
    softmax_node node[LS_LEAVES];
    for (int i = 0; i < s->leaf_count; i++) {
        int64_t first = leaf_border(a->n_vocab, s->leaf_first + i);
        int64_t last = leaf_border(a->n_vocab, s->leaf_first + i + 1);
        node[i] = leaf_softmax(isa, logits + (first - s->first), last - first, temperature);
    }
    return softmax_tree(node, s->leaf_count);
}

/* The Gumbel winner. Most tokens cannot win whatever their noise, and most of the others not with the noise they got:
 * bounds tell so before a logarithm is taken. */
static void draw(const sample_slice *s, const ls_sample_params *how, ls_sample_part *part) {
    if (s->count == 0) {
        return;
    }
    int32_t likely = argmax(s->logits, s->count);
    if (!(s->logits[likely] > -INFINITY)) {
        return;
    }
    /* Something close to the winner first; it is met again in its turn, so that ties stay in order. */
    double floor_value = (double)(s->logits[likely] / how->temperature) + gumbel(how, s->first + likely);
    for (int32_t i = 0; i < s->count; i++) {
        double z = (double)(s->logits[i] / how->temperature);
        if (z + GUMBEL_MAX < floor_value) {
            continue;
        }
        int32_t id = s->first + i;
        uint32_t x = philox(how->seed, (uint32_t)id, (uint32_t)how->position, how->choice);
        if (z + gumbel_bound(x) < floor_value) {
            continue;
        }
        double value = z + gumbel_of(x);
        if (value > part->drawn_value) {
            part->drawn_value = value;
            part->drawn_id = id;
            floor_value = value > floor_value ? value : floor_value;
        }
    }
}

static void sample_slice_of_row(const op_sample *a, const cpu_isa *isa, const sample_slice *s,
                                const ls_sample_params *how, ls_sample_part *part) {
    *part = (ls_sample_part){.drawn_value = -INFINITY, .drawn_id = -1};
    if (how->n_top >= 0) {
        softmax_node raw = slice_softmax(a, isa, s, s->raw, 1.0F);
        part->raw_max = raw.max;
        part->raw_sum = raw.sum;
        part->n_top = offer_all(part->top, how->n_top, s->raw, 1.0F, s);
    }
    if (how->temperature == 0.0F) {
        int32_t i = s->count > 0 ? argmax(s->logits, s->count) : 0;
        if (s->count > 0 && s->logits[i] > -INFINITY) {
            part->best[part->n_best++] = (ls_candidate){s->logits[i], s->first + i};
        }
    } else if (sample_is_filtered(how)) {
        softmax_node all = slice_softmax(a, isa, s, s->logits, how->temperature);
        part->max = all.max;
        part->sum = all.sum;
        part->n_best = offer_all(part->best, offer_room(how), s->logits, how->temperature, s);
    } else {
        draw(s, how, part);
    }
}

/* Offers of neighbouring slices, in order of ids, become one. */
static void merge_slices(const ls_sample_part *slice, int n, const ls_sample_params *how, ls_sample_part *part) {
    softmax_node node[LS_LEAVES], raw[LS_LEAVES];
    *part = slice[0];
    for (int i = 0; i < n; i++) {
        node[i] = (softmax_node){slice[i].max, slice[i].sum};
        raw[i] = (softmax_node){slice[i].raw_max, slice[i].raw_sum};
    }
    for (int i = 1; i < n; i++) {
        if (slice[i].drawn_value > part->drawn_value) {
            part->drawn_value = slice[i].drawn_value;
            part->drawn_id = slice[i].drawn_id;
        }
        for (int j = 0; j < slice[i].n_best; j++) {
            offer(part->best, &part->n_best, offer_room(how), slice[i].best[j]);
        }
        for (int j = 0; j < slice[i].n_top; j++) {
            offer(part->top, &part->n_top, LS_SAMPLE_TOP, slice[i].top[j]);
        }
    }
    softmax_node all = softmax_tree(node, n), all_raw = softmax_tree(raw, n);
    part->max = all.max;
    part->sum = all.sum;
    part->raw_max = all_raw.max;
    part->raw_sum = all_raw.sum;
}

void ref_sample(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_sample *a = &op->sample;
    const float *logits = bind->buf[BUF_LOGITS];
    float *edited = (float *)bind->buf[BUF_EDITED] + (int64_t)team->thread * a->vocab_count;
    ls_sample_part *part = bind->buf[BUF_SAMPLE];
    ls_sample_part *slices = bind->buf[BUF_SLICE];
    int n_slices = 1;
    while (n_slices * 2 <= a->leaf_count && n_slices * 2 * step->n_out <= team->n_threads) {
        n_slices *= 2;
    }
    int64_t first, last;
    team_range(team, (int64_t)step->n_out * n_slices, 1, &first, &last); /* with slices, at most one a thread */
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / n_slices;
        int leaves = a->leaf_count / n_slices;
        int leaf_first = a->leaf_first + (int)(i % n_slices) * leaves;
        const ls_sample_params *how = &step->sample[row];
        sample_slice s = {
            .first = (int32_t)leaf_border(a->n_vocab, leaf_first), .leaf_first = leaf_first, .leaf_count = leaves};
        s.count = (int32_t)leaf_border(a->n_vocab, leaf_first + leaves) - s.first;
        s.logits = s.raw = logits + row * a->vocab_count + (s.first - a->vocab_first);
        if (how->n_edits > 0 || how->allowed != NULL) {
            edit_logits(how, s.raw, s.first, s.count, edited);
            s.logits = edited;
        }
        sample_slice_of_row(a, bind_isa(bind), &s, how, n_slices > 1 ? &slices[i] : &part[i]);
    }
    if (n_slices > 1 && team_wait(team)) {
        team_range(team, step->n_out, 1, &first, &last);
        for (int64_t i = first; i < last; i++) {
            merge_slices(&slices[i * n_slices], n_slices, &step->sample[i], &part[i]);
        }
    }
}
