/* See sampler.h. */
#include "engine/sampler.h"

#include "backend/sample_math.h"

static bool better(ls_candidate a, ls_candidate b) {
    return a.z > b.z || (a.z == b.z && a.id < b.id);
}

/* A binary heap with the best candidate on top: building it is linear, so taking the best few of a vocabulary is cheap. */
static void sift_down(ls_candidate *heap, int n, int i) {
    for (;;) {
        int child = 2 * i + 1;
        if (child >= n) {
            return;
        }
        if (child + 1 < n && better(heap[child + 1], heap[child])) {
            child++;
        }
        if (!better(heap[child], heap[i])) {
            return;
        }
        ls_candidate t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
        i = child;
    }
}

static ls_candidate heap_pop(ls_candidate *heap, int *n) {
    ls_candidate best = heap[0];
    heap[0] = heap[--(*n)];
    sift_down(heap, *n, 0);
    return best;
}

/* All candidates of the row in heap order. */
static int gather_row(const sampler_row *row, float temperature, ls_candidate *heap) {
    int n = 0;
    for (int r = 0; r < row->n_ranks; r++) {
        for (int i = 0; i < row->vocab_count[r]; i++) {
            heap[n++] = (ls_candidate){row->logits[r][i] / temperature, row->vocab_first[r] + i};
        }
    }
    for (int i = n / 2 - 1; i >= 0; i--) {
        sift_down(heap, n, i);
    }
    return n;
}

/* Candidates of the row by falling z: first from the ranks' offers, then, when those run out, from the whole row. */
typedef struct candidate_stream {
    const sampler_row *row;
    float temperature;
    int next[LS_MAX_RANKS]; /* into each rank's offer */
    int n_taken, n_vocab;
    ls_candidate *heap;
    int n_heap; /* -1: not gathered yet */
} candidate_stream;

static bool offers_exhausted(const candidate_stream *stream) {
    /* A rank whose whole offer is taken may hold a better token than what the others still offer. */
    for (int r = 0; r < stream->row->n_ranks; r++) {
        const ls_sample_part *part = stream->row->part[r];
        if (stream->next[r] == part->n_best && part->n_best < stream->row->vocab_count[r]) {
            return true;
        }
    }
    return false;
}

static ls_candidate stream_next(candidate_stream *stream) {
    if (stream->n_heap < 0 && offers_exhausted(stream)) {
        stream->n_heap = gather_row(stream->row, stream->temperature, stream->heap);
        for (int i = 0; i < stream->n_taken; i++) {
            heap_pop(stream->heap, &stream->n_heap);
        }
    }
    stream->n_taken++;
    if (stream->n_heap >= 0) {
        return heap_pop(stream->heap, &stream->n_heap);
    }
    int best = -1;
    for (int r = 0; r < stream->row->n_ranks; r++) {
        const ls_sample_part *part = stream->row->part[r];
        if (stream->next[r] < part->n_best &&
            (best < 0 || better(part->best[stream->next[r]], stream->row->part[best]->best[stream->next[best]]))) {
            best = r;
        }
    }
    return stream->row->part[best]->best[stream->next[best]++];
}

static candidate_stream stream_open(const sampler_row *row, float temperature, ls_candidate *scratch) {
    candidate_stream stream = {.row = row, .temperature = temperature, .heap = scratch, .n_heap = -1};
    for (int r = 0; r < row->n_ranks; r++) {
        stream.n_vocab += row->vocab_count[r];
    }
    return stream;
}

static int32_t pick_filtered(const sampler_row *row, const ls_sample_params *how, ls_candidate *scratch) {
    candidate_stream stream = stream_open(row, how->temperature, scratch);
    int k = how->top_k > 0 && how->top_k < stream.n_vocab ? how->top_k : stream.n_vocab;
    float best_z = 0.0F;
    float mass; /* that top-k leaves, in units of exp(best_z) */
    if (k < stream.n_vocab) {
        mass = 0.0F;
        for (int i = 0; i < k && how->top_p < 1.0F; i++) {
            float z = stream_next(&stream).z;
            best_z = i == 0 ? z : best_z;
            mass += ls_exp(z - best_z);
        }
        stream = stream_open(row, how->temperature, scratch);
    } else {
        softmax_node node[LS_MAX_RANKS] = {{0}};
        for (int r = 0; r < row->n_ranks; r++) {
            node[r] = (softmax_node){row->part[r]->max, row->part[r]->sum};
        }
        mass = softmax_tree(node, row->n_ranks).sum; /* its max is the best z */
    }
    float wanted = how->top_p < 1.0F ? how->top_p * mass : INFINITY;
    float held = 0.0F;
    double drawn_value = -INFINITY;
    int32_t drawn = -1;
    for (int i = 0; i < k && (i == 0 || held < wanted); i++) {
        ls_candidate c = stream_next(&stream);
        best_z = i == 0 ? c.z : best_z;
        held += ls_exp(c.z - best_z);
        double value = (double)c.z + gumbel(how->seed, how->position, c.id);
        if (value > drawn_value || (value == drawn_value && c.id < drawn)) {
            drawn_value = value;
            drawn = c.id;
        }
    }
    return drawn;
}

int32_t sampler_pick(const sampler_row *row, const ls_sample_params *how, ls_candidate *scratch) {
    if (how->temperature != 0.0F && (how->top_k > 0 || how->top_p < 1.0F)) {
        return pick_filtered(row, how, scratch);
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
