/*
 * The independent oracle: the formulas of ops.h in double precision, as they stand there, without leaves, splits, vectors
 * or threads. It shares no code with src/ but the types: it has its own rounding, exponential (libm's) and Philox.
 * Inputs are what the implementation reads; x = act(norm(h)) is rounded as the contract says, results are not.
 */
#include "harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double oracle_round(ls_dtype dtype, double value) {
    if (dtype == LS_F32) {
        return (float)value;
    }
    if (value == 0 || !isfinite(value)) {
        return value;
    }
    int exponent; /* |value| < 2^exponent */
    frexp(value, &exponent);
    int digits = dtype == LS_F16 ? 11 : 8;
    int smallest = dtype == LS_F16 ? -24 : -133; /* exponent of the least subnormal */
    int unit = exponent - digits > smallest ? exponent - digits : smallest;
    double rounded = ldexp(rint(ldexp(value, -unit)), unit);
    double largest = dtype == LS_F16 ? 65504 : ldexp(255, 120);
    return fabs(rounded) > largest ? copysign(INFINITY, value) : rounded;
}

/* ---- Formulas: out[] is [rows][cols] of the output with the same index in kern_result ---- */

float oracle_quantize(const double *value, int64_t n, int8_t *q) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs(value[i]));
    }
    const float scale = (float)most / 127.0F;
    for (int64_t i = 0; i < n; i++) {
        q[i] = (int8_t)(scale == 0 ? 0 : fmax(-127, fmin(127, rint((double)((float)value[i] / scale)))));
    }
    return scale;
}

/* The quantised formulas, in double precision. */
static double matmul_int8(const kern_tensor *w, int64_t row, const double *x, bool quantize_x) {
    double sum = 0;
    for (int i = 0; i < LS_LEAVES; i++) {
        const int64_t from = leaf_border(w->cols, i), n = leaf_border(w->cols, i + 1) - from;
        const int8_t *q = w->q + row * w->cols + from;
        double scale = w->scale[row * LS_LEAVES + i], leaf = 0;
        int8_t *xq = quantize_x ? malloc((size_t)n + 1) : NULL;
        scale *= quantize_x ? oracle_quantize(x + from, n, xq) : 1;
        for (int64_t k = 0; k < n; k++) {
            leaf += q[k] * (quantize_x ? xq[k] : x[from + k]);
        }
        free(xq);
        sum += scale * leaf;
    }
    return sum;
}

/* y[n] = w[n] . x + bias[n]; bias = KW_COUNT: none. */
static void matmul(const kern_problem *p, kern_weight weight, kern_weight bias, const double *x, double *y) {
    const kern_tensor *w = &p->weight[weight];
    for (int n = 0; n < w->rows && w->q != NULL; n++) {
        y[n] = matmul_int8(w, n, x, p->c->quantization == LS_QUANTIZATION_W8A8) +
               (bias < KW_COUNT && p->weight[bias].rows > 0 ? p->weight[bias].value[n] : 0);
    }
    if (w->q != NULL) {
        return;
    }
    for (int n = 0; n < w->rows; n++) {
        double sum = bias < KW_COUNT && p->weight[bias].rows > 0 ? p->weight[bias].value[n] : 0;
        for (int k = 0; k < w->cols; k++) {
            sum += (double)w->value[(int64_t)n * w->cols + k] * x[k];
        }
        y[n] = sum;
    }
}

static const float EPS = 1e-6F; /* as harness.c sets it */

static void norm(const double *h, const float *w, int n, ls_dtype dtype, double *out) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += h[i] * h[i];
    }
    for (int i = 0; i < n; i++) {
        double x = h[i] / sqrt(sum / n + EPS) * w[i];
        out[i] = dtype == LS_AUTO ? x : oracle_round(dtype, x);
    }
}

static double *widen(const float *value, int64_t n) {
    double *wide = malloc((size_t)(n > 0 ? n : 1) * sizeof *wide);
    for (int64_t i = 0; i < n; i++) {
        wide[i] = value[i];
    }
    return wide;
}

/* act(norm(h)) of a row; the caller frees it. */
static double *normed_row(const kern_problem *p, int row) {
    int d = p->c->d_model;
    double *x = widen(p->in + (int64_t)row * d, d);
    norm(x, p->weight[KW_NORM].value, d, p->c->dtype, x);
    return x;
}

static void oracle_embed(const kern_problem *p, int row, double *out) {
    const int d = p->c->d_model;
    int32_t token = p->token[row];
    const float *from =
        token < 0 ? p->input_rows + (int64_t)(-1 - token) * d : p->weight[KW_TABLE].value + (int64_t)token * d;
    for (int i = 0; i < d; i++) {
        out[i] = from[i];
    }
    for (int leaf = 0; leaf < LS_LEAVES && token >= 0 && p->weight[KW_TABLE].q != NULL; leaf++) {
        for (int64_t i = leaf_border(d, leaf); i < leaf_border(d, leaf + 1); i++) {
            out[i] = (double)p->weight[KW_TABLE].q[(int64_t)token * d + i] *
                     p->weight[KW_TABLE].scale[(int64_t)token * LS_LEAVES + leaf];
        }
    }
}

static void head_norm_and_rope(const kern_problem *p, kern_weight weight, const float *rope, double *y) {
    int d = p->c->d_head;
    if (p->weight[weight].rows > 0) {
        norm(y, p->weight[weight].value, d, LS_AUTO, y);
    }
    for (int i = 0; i < d / 2; i++) {
        double a = y[i], b = y[i + d / 2], c = rope[2 * i], s = rope[2 * i + 1];
        y[i] = a * c - b * s;
        y[i + d / 2] = b * c + a * s;
    }
}

static void oracle_qkv(const kern_problem *p, int row, double *q, double *k, double *v) {
    const kern_case *c = p->c;
    const float *rope = p->rope + (int64_t)p->row_pos[row] * c->d_head;
    double *x = normed_row(p, row);
    matmul(p, KW_Q, KW_Q_BIAS, x, q);
    matmul(p, KW_K, KW_K_BIAS, x, k);
    matmul(p, KW_V, KW_V_BIAS, x, v);
    for (int head = 0; head < c->n_heads; head++) {
        head_norm_and_rope(p, KW_Q_NORM, rope, q + head * c->d_head);
    }
    for (int head = 0; head < c->n_kv; head++) {
        head_norm_and_rope(p, KW_K_NORM, rope, k + head * c->d_head);
    }
    free(x);
}

static void oracle_attn(const kern_problem *p, int row, double *out) {
    const kern_case *c = p->c;
    const int d = c->d_head, stride = c->n_kv * d, seq = p->row_seq[row], pos = p->row_pos[row];
    const int lo = c->window > 0 && pos - c->window + 1 > 0 ? pos - c->window + 1 : 0;
    double *weight = malloc((size_t)(pos + 1) * sizeof *weight);
    for (int head = 0; head < c->n_heads; head++) {
        const float *q = p->in + (int64_t)row * p->in_cols + head * d;
        const int kv_head = head / (c->n_heads / c->n_kv);
        double max = -INFINITY, sum = 0;
        for (int j = lo; j <= pos; j++) {
            const float *k = p->k[seq] + (int64_t)j * stride + kv_head * d;
            double s = 0;
            for (int i = 0; i < d; i++) {
                s += (double)q[i] * k[i];
            }
            weight[j] = s / sqrt(d);
            max = weight[j] > max ? weight[j] : max;
        }
        for (int j = lo; j <= pos; j++) {
            sum += weight[j] = exp(weight[j] - max);
        }
        for (int i = 0; i < d; i++) {
            double o = 0;
            for (int j = lo; j <= pos; j++) {
                o += weight[j] * p->v[seq][(int64_t)j * stride + kv_head * d + i];
            }
            out[head * d + i] = o / sum;
        }
    }
    free(weight);
}

static void oracle_exchange(const kern_problem *p, int row, double *out) {
    const int d = p->c->d_model;
    for (int i = 0; i < d; i++) {
        out[i] = (p->c->init ? 0 : p->in[(int64_t)row * d + i]) + (p->c->bias ? p->weight[KW_ROW_BIAS].value[i] : 0);
        for (int leaf = 0; leaf < LS_LEAVES; leaf++) {
            out[i] += p->leaf[((int64_t)leaf * p->n_rows + row) * d + i];
        }
    }
}

static void oracle_ffn_in(const kern_problem *p, int row, double *out) {
    const int f = p->c->n;
    double *x = normed_row(p, row);
    double *up = malloc((size_t)f * sizeof *up);
    matmul(p, KW_GATE, KW_GATE_BIAS, x, out);
    matmul(p, KW_UP, KW_UP_BIAS, x, up);
    for (int i = 0; i < f; i++) {
        out[i] = out[i] / (1 + exp(-out[i])) * up[i];
    }
    free(up);
    free(x);
}

static void oracle_row(const kern_problem *p, int row, double *out[KERN_MAX_OUTPUTS]) {
    switch (p->c->kind) {
    case OP_EMBED:
        oracle_embed(p, row, out[0]);
        break;
    case OP_QKV:
        oracle_qkv(p, row, out[0], out[1], out[2]);
        break;
    case OP_ATTN:
        oracle_attn(p, row, out[0]);
        break;
    case OP_OUT:
    case OP_FFN_OUT: {
        double *x = widen(p->in + (int64_t)row * p->in_cols, p->in_cols);
        matmul(p, KW_ROW, KW_COUNT, x, out[0]);
        free(x);
        break;
    }
    case OP_EXCHANGE:
        oracle_exchange(p, row, out[0]);
        break;
    case OP_FFN_IN:
        oracle_ffn_in(p, row, out[0]);
        break;
    default: { /* head */
        double *x = normed_row(p, row);
        matmul(p, KW_HEAD, KW_COUNT, x, out[0]);
        free(x);
    }
    }
}

/* ---- Sampling: candidates and the drawn token must be exactly these ---- */

static uint32_t oracle_philox(uint64_t seed, uint32_t id, uint32_t position, uint32_t choice) {
    uint32_t counter[4] = {id, position, choice, 0}, key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = counter[0] * UINT64_C(0xD2511F53), b = counter[2] * UINT64_C(0xCD9E8D57);
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ counter[1] ^ key[0], (uint32_t)b,
                            (uint32_t)(a >> 32) ^ counter[3] ^ key[1], (uint32_t)a};
        memcpy(counter, next, sizeof counter);
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    return counter[0];
}

static int by_z_then_id(const void *a, const void *b) {
    const ls_candidate *x = a, *y = b;
    return x->z != y->z ? (x->z > y->z ? -1 : 1) : x->id < y->id ? -1 : x->id > y->id;
}

static float edited_logit(float x, int id, const ls_sample_params *how) {
    for (int i = 0; i < how->n_edits; i++) {
        if (how->edit[i].id == id) {
            x += how->edit[i].bias;
            x = x > 0 ? x / how->edit[i].penalty : x * how->edit[i].penalty;
            x += how->edit[i].offset;
        }
    }
    for (int i = 0; how->allowed != NULL && i < how->n_allowed; i++) {
        if (how->allowed[i] == id) {
            return x;
        }
    }
    return how->allowed == NULL ? x : -INFINITY;
}

/* What log probabilities are made of: the node of the row as it came, and its best ones. */
static bool check_raw(const kern_problem *p, int row, const float *got, kern_report *report) {
    const ls_sample_params *how = &p->sample[row];
    const int n = p->c->n;
    const float *logits = p->in + (int64_t)row * n;
    ls_candidate *all = malloc((size_t)n * sizeof *all);
    double sum = 0;
    int32_t n_top;
    memcpy(&n_top, got + 2, sizeof n_top);
    for (int i = 0; i < n; i++) {
        all[i] = (ls_candidate){logits[i], i};
    }
    qsort(all, (size_t)n, sizeof *all, by_z_then_id);
    for (int i = 0; i < n; i++) {
        sum += exp((double)all[i].z - all[0].z);
    }
    int wanted = how->n_top < 0 ? 0 : how->n_top < n ? how->n_top : n;
    bool good = n_top == wanted && memcmp(got + 3, all, (size_t)wanted * sizeof *all) == 0;
    if (how->n_top >= 0) {
        good = good && got[0] == all[0].z && fabs(got[1] - sum) <= 1e-5 * sum;
    }
    free(all);
    return good ? true
                : kern_fail(report, "oracle: row %d: the logits as they came: max %g, sum %g, %d of %d best", row,
                            (double)got[0], (double)got[1], n_top, wanted);
}

/* One row as harness.c gathers it: max, sum, drawn value (two words), drawn id, n_best, then (z, id) by rank. */
static bool check_offer(const kern_problem *p, int row, const float *got, double *worst, kern_report *report) {
    const ls_sample_params *how = &p->sample[row];
    const int n = p->c->n;
    const bool greedy = how->temperature == 0,
               filtered = !greedy && (how->top_k > 0 || how->top_p < 1 || how->min_p > 0);
    ls_candidate *all = malloc((size_t)n * sizeof *all);
    double sum = 0, drawn_value = -INFINITY, got_value;
    int32_t drawn = -1, got_drawn, got_best;
    bool good = true;
    for (int i = 0; i < n; i++) {
        float x = edited_logit(p->in[(int64_t)row * n + i], i, how);
        all[i] = (ls_candidate){greedy ? x : x / how->temperature, i};
        double u = (oracle_philox(how->seed, (uint32_t)i, (uint32_t)how->position, how->choice) + 0.5) / 4294967296.0;
        double value = (double)all[i].z - log(-log(u));
        if (value > drawn_value) {
            drawn_value = value;
            drawn = i;
        }
    }
    qsort(all, (size_t)n, sizeof *all, by_z_then_id);
    int n_left = 0; /* not forbidden */
    while (n_left < n && all[n_left].z > -INFINITY) {
        sum += exp((double)all[n_left++].z - all[0].z);
    }
    memcpy(&got_value, got + 2, sizeof got_value);
    memcpy(&got_drawn, got + 4, sizeof got_drawn);
    memcpy(&got_best, got + 5, sizeof got_best);
    int room = how->top_k > 0 && how->top_k < LS_SAMPLE_BEST ? how->top_k : LS_SAMPLE_BEST;
    int wanted = greedy ? 1 : !filtered ? 0 : n_left < room ? n_left : room;
    if (got_best != wanted || memcmp(got + 6, all, (size_t)wanted * sizeof *all) != 0) {
        good = kern_fail(report, "oracle: row %d: the %d best candidates are not the %d that sorting gives", row,
                         got_best, wanted);
    } else if (!greedy && !filtered && (got_drawn != drawn || got_value != drawn_value)) {
        good = kern_fail(report, "oracle: row %d: drew %d (%g), not %d (%g)", row, got_drawn, got_value, drawn,
                         drawn_value);
    } else if (filtered) {
        double error = fabs(got[1] - sum) / sum;
        *worst = error > *worst ? error : *worst;
        if (got[0] != all[0].z || !(error <= 1e-5)) {
            good = kern_fail(report, "oracle: row %d: max %g and sum %g, not %g and %g", row, (double)got[0],
                             (double)got[1], (double)all[0].z, sum);
        }
    }
    free(all);
    return good && check_raw(p, row, got + 6 + 2 * LS_SAMPLE_BEST, report);
}

/* ---- Comparison ---- */

/* How well an exact implementation keeps the rounding points. Each sum in f32 differs from the oracle's by some 1e-7, so
 * that few values fall to the other side of a rounding, and rows without such a value agree as in f32. */
typedef struct rounding_count {
    int64_t n_values, n_differ; /* rounded outputs: not the oracle's value after rounding */
    int n_rows, n_far;          /* f32 outputs: beyond f32's tolerance */
} rounding_count;

static const double TOLERANCE[] = {[LS_F32] = 1e-5, [LS_BF16] = 2e-2, [LS_F16] = 2e-3, [LS_INT8] = 5e-2};

/* Per row max|a - b| / max|b|: ops.h section 4. */
static bool check_row(const kern_output *out, int row, const double *wanted, double *worst, rounding_count *count,
                      kern_report *report) {
    const float *got = out->value + (int64_t)row * out->cols;
    double largest = 0, apart = 0;
    int where = 0;
    for (int i = 0; i < out->cols; i++) {
        double difference = fabs(got[i] - wanted[i]);
        largest = fmax(largest, fabs(wanted[i]));
        if (!isfinite(got[i])) {
            return kern_fail(report, "oracle: %s row %d element %d is %g, not %g", out->name, row, i, (double)got[i],
                             wanted[i]);
        }
        if ((double)got[i] != oracle_round(out->rounded, got[i])) {
            return kern_fail(report, "%s row %d element %d: %a is not representable in %s", out->name, row, i,
                             (double)got[i], ls_dtype_name(out->rounded));
        }
        if (difference > apart) {
            apart = difference;
            where = i;
        }
        count->n_differ += out->rounded != LS_F32 && got[i] != oracle_round(out->rounded, wanted[i]);
        count->n_values += out->rounded != LS_F32;
    }
    double error = apart == 0 ? 0 : apart / largest;
    *worst = error > *worst ? error : *worst;
    count->n_rows += out->rounded == LS_F32;
    count->n_far += out->rounded == LS_F32 && error > TOLERANCE[LS_F32];
    return error <= TOLERANCE[out->tolerance] ||
           kern_fail(report,
                     "oracle: %s row %d element %d is %.9g, not %.9g: error %.2g of the row's largest, %.0g allowed",
                     out->name, row, where, (double)got[where], wanted[where], error, TOLERANCE[out->tolerance]);
}

static bool check_roundings(const kern_problem *p, const rounding_count *count, kern_report *report) {
    if (count->n_differ > 2 + count->n_values / 5) {
        return kern_fail(report, "rounding: %lld of %lld values are not what rounding once gives",
                         (long long)count->n_differ, (long long)count->n_values);
    }
    /* In longer rows some value of x falls to the other side more often than not. */
    return p->c->d_model > 200 || count->n_far <= count->n_rows / 3 ||
           kern_fail(report, "rounding: %d of %d rows are further than 1e-5 from sums of rounded values", count->n_far,
                     count->n_rows);
}

/* Quantised, and still within int8's tolerance of what the unquantised weights give. */
static bool near_plain(const kern_output *out, int row, const double *wanted, kern_report *report) {
    const float *got = out->value + (int64_t)row * out->cols;
    double largest = 0, apart = 0;
    for (int i = 0; i < out->cols; i++) {
        largest = fmax(largest, fabs(wanted[i]));
        apart = fmax(apart, fabs(got[i] - wanted[i]));
    }
    return apart <= TOLERANCE[LS_INT8] * largest ||
           kern_fail(report, "oracle: %s row %d is %.2g of its largest away from unquantised", out->name, row,
                     apart / largest);
}

/* One row of all outputs. */
static bool check_outputs(const kern_problem *p, const kern_result *result, int i, double *worst, rounding_count *count,
                          kern_report *report) {
    double *wanted[KERN_MAX_OUTPUTS];
    bool good = true;
    for (int o = 0; o < result->n_outputs; o++) {
        wanted[o] = malloc((size_t)result->out[o].cols * sizeof **wanted);
    }
    oracle_row(p, result->row[i], wanted);
    for (int o = 0; o < result->n_outputs && good; o++) {
        good = result->out[o].per_rank || check_row(&result->out[o], i, wanted[o], worst, count, report);
    }
    if (p->c->quantization != LS_QUANTIZATION_NONE && good) { /* and near what the numbers were before */
        kern_problem plain = *p;
        for (int w = 0; w < KW_COUNT; w++) {
            plain.weight[w].q = NULL;
        }
        oracle_row(&plain, result->row[i], wanted);
        for (int o = 0; o < result->n_outputs && good; o++) {
            good = result->out[o].per_rank || near_plain(&result->out[o], i, wanted[o], report);
        }
    }
    for (int o = 0; o < result->n_outputs; o++) {
        free(wanted[o]);
    }
    return good;
}

bool oracle_check(const kern_problem *p, const kern_result *result, bool exact, double *worst, kern_report *report) {
    rounding_count count = {0};
    bool good = true;
    *worst = 0;
    for (int i = 0; i < result->n_rows && good; i++) {
        good =
            p->c->kind == OP_SAMPLE
                ? check_offer(p, result->row[i], result->out[0].value + (int64_t)i * result->out[0].cols, worst, report)
                : check_outputs(p, result, i, worst, &count, report);
    }
    return good && (!exact || check_roundings(p, &count, report));
}
