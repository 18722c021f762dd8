/* Reference: what one rank offers for each output row: its softmax node, its best candidates, its Gumbel winner. */
#include "backend/sample_math.h"
#include "backend/cpu/cpu.h"

/* The order of candidates: better first. */
static bool better(float z, int32_t id, ls_candidate than) {
    return z > than.z || (z == than.z && id < than.id);
}

/* Puts a candidate that is better than the last one into its place in a list of at most `room`. Ids come in rising
 * order, so an equal z goes behind. */
static void offer(ls_candidate *best, int *n, int room, float z, int32_t id) {
    if (*n == room && !better(z, id, best[room - 1])) {
        return;
    }
    int i = *n < room ? (*n)++ : room - 1;
    for (; i > 0 && better(z, id, best[i - 1]); i--) {
        best[i] = best[i - 1];
    }
    best[i] = (ls_candidate){z, id};
}

static softmax_node leaf_softmax(const float *logits, int64_t first, int64_t last, float temperature) {
    softmax_node node = {-INFINITY, 0.0F};
    for (int64_t i = first; i < last; i++) {
        float z = logits[i] / temperature;
        node.max = z > node.max ? z : node.max;
    }
    for (int64_t i = first; i < last; i++) {
        node.sum += ls_exp(logits[i] / temperature - node.max);
    }
    return node;
}

static void sample_row(const op_sample *a, const float *logits, const ls_sample_params *how, ls_sample_part *part) {
    bool greedy = how->temperature == 0.0F;
    bool filtered = !greedy && (how->top_k > 0 || how->top_p < 1.0F);
    float temperature = greedy ? 1.0F : how->temperature;
    int room = greedy ? 1 : filtered ? LS_SAMPLE_BEST : 0;
    *part = (ls_sample_part){.drawn_value = -INFINITY, .drawn_id = -1};

    for (int32_t i = 0; i < a->vocab_count && room > 0; i++) {
        offer(part->best, &part->n_best, room, logits[i] / temperature, a->vocab_first + i);
    }
    if (filtered) {
        softmax_node node[LS_LEAVES];
        for (int i = 0; i < a->leaf_count; i++) {
            node[i] = leaf_softmax(logits, leaf_border(a->n_vocab, a->leaf_first + i) - a->vocab_first,
                                   leaf_border(a->n_vocab, a->leaf_first + i + 1) - a->vocab_first, temperature);
        }
        softmax_node all = softmax_tree(node, a->leaf_count);
        part->max = all.max;
        part->sum = all.sum;
    } else if (!greedy) {
        for (int32_t i = 0; i < a->vocab_count; i++) {
            int32_t id = a->vocab_first + i;
            double value = (double)(logits[i] / temperature) + gumbel(how->seed, how->position, id);
            if (value > part->drawn_value) {
                part->drawn_value = value;
                part->drawn_id = id;
            }
        }
    }
}

void ref_sample(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_sample *a = &op->sample;
    const float *logits = bind->buf[BUF_LOGITS];
    ls_sample_part *part = bind->buf[BUF_SAMPLE];
    int64_t first, last;
    team_range(team, step->n_out, 1, &first, &last);
    for (int64_t i = first; i < last; i++) {
        sample_row(a, logits + i * a->vocab_count, &step->sample[i], &part[i]);
    }
}
