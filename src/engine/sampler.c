/* See sampler.h. */
#include "engine/sampler.h"

#include "backend/sample_math.h"

/* From a heap with the best on top: building it is linear, so taking the best few of a vocabulary is cheap. */
static ls_candidate heap_pop(ls_candidate *heap, int *n) {
    ls_candidate best = heap[0];
    heap[0] = heap[--(*n)];
    candidate_sift(heap, *n, 0, true);
    return best;
}

/* All candidates of the row in heap order. */
static int gather_row(const sampler_row *row, const ls_sample_params *how, ls_candidate *heap, float *edited) {
    int n = 0;
    for (int r = 0; r < row->n_ranks; r++) {
        edit_logits(how, row->logits[r], row->vocab_first[r], row->vocab_count[r], edited);
        for (int i = 0; i < row->vocab_count[r]; i++) {
            heap[n++] = (ls_candidate){edited[i] / how->temperature, row->vocab_first[r] + i};
        }
    }
    candidate_heapify(heap, n, true);
    return n;
}

/* Candidates of the row by falling z: first from the ranks' offers, then, when those run out, from the whole row. */
typedef struct candidate_stream {
    const sampler_row *row;
    const ls_sample_params *how;
    int next[LS_MAX_RANKS]; /* into each rank's offer */
    int n_taken, n_vocab;
    ls_candidate *heap;
    float *edited;
    int n_heap; /* -1: not gathered yet */
} candidate_stream;

static bool offers_exhausted(const candidate_stream *stream) {
    /* A rank whose whole offer is taken may hold a better token than what the others still offer. */
    for (int r = 0; r < stream->row->n_ranks; r++) {
        const ls_sample_part *part = stream->row->part[r];
        if (stream->next[r] == part->n_best && part->n_best == LS_SAMPLE_BEST &&
            part->n_best < stream->row->vocab_count[r]) {
            return true;
        }
    }
    return false;
}

/* z is -infinity when nothing is left that is not forbidden. */
static ls_candidate stream_next(candidate_stream *stream) {
    if (stream->n_heap < 0 && offers_exhausted(stream)) {
        stream->n_heap = gather_row(stream->row, stream->how, stream->heap, stream->edited);
        for (int i = 0; i < stream->n_taken; i++) {
            heap_pop(stream->heap, &stream->n_heap);
        }
    }
    stream->n_taken++;
    if (stream->n_heap >= 0 && stream->n_heap < 1) {
        return (ls_candidate){-INFINITY, -1};
    }
    if (stream->n_heap >= 0) {
        return heap_pop(stream->heap, &stream->n_heap);
    }
    int best = -1;
    for (int r = 0; r < stream->row->n_ranks; r++) {
        const ls_sample_part *part = stream->row->part[r];
        if (stream->next[r] < part->n_best &&
            (best < 0 ||
             candidate_better(part->best[stream->next[r]], stream->row->part[best]->best[stream->next[best]]))) {
            best = r;
        }
    }
    return best < 0 ? (ls_candidate){-INFINITY, -1} : stream->row->part[best]->best[stream->next[best]++];
}

/* The mass of what top-k leaves, in units of exp(best z). Takes from the stream where top-k is on. */
static float mass_of(candidate_stream *stream, int k) {
    const sampler_row *row = stream->row;
    if (k == stream->n_vocab) {
        softmax_node node[LS_MAX_RANKS] = {{0}};
        for (int r = 0; r < row->n_ranks; r++) {
            node[r] = (softmax_node){row->part[r]->max, row->part[r]->sum};
        }
        return softmax_tree(node, row->n_ranks).sum; /* its max is the best z */
    }
    float best_z = 0.0F, mass = 0.0F;
    for (int i = 0; i < k; i++) {
        float z = stream_next(stream).z;
        if (!(z > -INFINITY)) {
            break;
        }
        best_z = i == 0 ? z : best_z;
        mass += ls_exp(z - best_z);
    }
    return mass;
}

static int32_t pick_filtered(const sampler_row *row, const ls_sample_params *how, ls_candidate *scratch,
                             float *edited) {
    candidate_stream whole = {.row = row, .how = how, .heap = scratch, .edited = edited, .n_heap = -1};
    for (int r = 0; r < row->n_ranks; r++) {
        whole.n_vocab += row->vocab_count[r];
    }
    int k = how->top_k > 0 && how->top_k < whole.n_vocab ? how->top_k : whole.n_vocab;
    candidate_stream stream = whole;
    float wanted = how->top_p < 1.0F ? how->top_p * mass_of(&stream, k) : INFINITY;
    float best_z = 0.0F, held = 0.0F;
    double drawn_value = -INFINITY;
    int32_t drawn = -1;
    stream = whole;
    for (int i = 0; i < k && (i == 0 || held < wanted); i++) {
        ls_candidate c = stream_next(&stream);
        best_z = i == 0 ? c.z : best_z;
        if (!(c.z > -INFINITY) || ls_exp(c.z - best_z) < how->min_p) {
            break;
        }
        held += ls_exp(c.z - best_z);
        double value = (double)c.z + gumbel(how, c.id);
        if (value > drawn_value || (value == drawn_value && c.id < drawn)) {
            drawn_value = value;
            drawn = c.id;
        }
    }
    return drawn;
}

int32_t sampler_pick(const sampler_row *row, const ls_sample_params *how, ls_candidate *candidate, float *edited) {
    if (sample_is_filtered(how)) {
        return pick_filtered(row, how, candidate, edited);
    }
    /* Greedy and unfiltered: the best of the ranks' one offer each. Ranks come in order of ids, so ties go to the lower. */
    double value = -INFINITY;
    int32_t token = -1;
    for (int r = 0; r < row->n_ranks; r++) {
        const ls_sample_part *part = row->part[r];
        if (how->temperature == 0.0F && part->n_best > 0 && (token < 0 || (double)part->best[0].z > value)) {
            value = (double)part->best[0].z;
            token = part->best[0].id;
        } else if (how->temperature != 0.0F && part->drawn_id >= 0 && (token < 0 || part->drawn_value > value)) {
            value = part->drawn_value;
            token = part->drawn_id;
        }
    }
    return token;
}

/* ---- Log probabilities ---- */

/* log of the sum of exp of the whole row. */
static double log_mass(const sampler_row *row) {
    softmax_node node[LS_MAX_RANKS] = {{0}};
    for (int r = 0; r < row->n_ranks; r++) {
        node[r] = (softmax_node){row->part[r]->raw_max, row->part[r]->raw_sum};
    }
    softmax_node all = softmax_tree(node, row->n_ranks);
    return (double)all.max + log((double)all.sum);
}

/* In lanes, which compilers make vectors of. */
static int count_above(const float *x, int n, float limit) {
    enum { LANES = 16 };
    int lane[LANES] = {0}, i = 0, above = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            lane[j] += x[i + j] > limit;
        }
    }
    for (; i < n; i++) {
        above += x[i] > limit;
    }
    for (int j = 0; j < LANES; j++) {
        above += lane[j];
    }
    return above;
}

float sampler_logprob(const sampler_row *row, int32_t id, int *rank) {
    float logit = 0.0F;
    for (int r = 0; r < row->n_ranks; r++) {
        int32_t at = id - row->vocab_first[r];
        logit = at >= 0 && at < row->vocab_count[r] ? row->logits[r][at] : logit;
    }
    *rank = 0;
    for (int r = 0; r < row->n_ranks; r++) {
        *rank += count_above(row->logits[r], row->vocab_count[r], logit);
    }
    return (float)((double)logit - log_mass(row));
}

int sampler_top_logprobs(const sampler_row *row, int n, ls_candidate *out) {
    double mass = log_mass(row);
    int next[LS_MAX_RANKS] = {0};
    int n_out = 0;
    for (; n_out < n; n_out++) {
        int best = -1;
        for (int r = 0; r < row->n_ranks; r++) {
            const ls_sample_part *part = row->part[r];
            if (next[r] < part->n_top &&
                (best < 0 || candidate_better(part->top[next[r]], row->part[best]->top[next[best]]))) {
                best = r;
            }
        }
        if (best < 0) {
            return n_out;
        }
        ls_candidate c = row->part[best]->top[next[best]++];
        out[n_out] = (ls_candidate){(float)((double)c.z - mass), c.id};
    }
    return n_out;
}
