/*
 * Rows with top-k, top-p and min-p drawn by the device's `sample`, against what the CPU's op and the sampler make of the same
 * logits: the same tokens. Stands alone, as decode_check does; emulated it takes small vocabularies.
 *
 * Where the candidates are not listed (no top-k, or one above DECODE_LISTED) the mass that top-p is a share of is summed in another
 * order than on the CPU. There a token may also be the one that the CPU draws with top-p a hair's breadth lower or higher; of all
 * draws fewer than one in a hundred may need that.
 *
 *     sample_check                   checks and timings
 *     sample_check check|quick|time  only these; quick: small vocabularies
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cuda/kern/decode_args.h"
#include "backend/sample_math.h"
#include "decode_device.h"
#include "engine/sampler.h"

enum { ROWS = 256, IMAGE_BYTES = 1 << 15 };

typedef struct filter {
    float temperature;
    int32_t top_k;
    float top_p, min_p;
} filter;

static const filter filters[] = {
    {0.6F, 20, 0.95F, 0},   {1, 0, 0.9F, 0},         {1, 1, 1, 0},
    {0.7F, 256, 1, 0},      {0.7F, 257, 1, 0},       {0, 0, 1, 0},
    {1.3F, 0, 1, 0},        {1, 0, 1, 0.1F},         {2, 0, 1, 0.001F},
    {1, 300, 0.8F, 0},      {1, 256, 0.999F, 0},     {0.8F, 40, 0.9F, 0.02F},
    {5, 0, 0.99F, 0},       {5, 257, 0.5F, 0.0001F}, {3, 1000000, 0.7F, 0},
    {1, 0, 0.0001F, 0},     {1, 1, 0.5F, 0.5F},      {0.01F, 64, 0.99F, 0},
    {100, 100, 0.5F, 0},    {100, 0, 0.3F, 0},       {1, 2, 0.6F, 0},
    {1.5F, 0, 0.8F, 0.01F}, {1, 700, 1, 0.05F},      {1, 0, 1, 1},
};
enum { FILTERS = sizeof filters / sizeof *filters };

/* Shapes of a row of logits. */
typedef enum shape { PEAKED, FLAT, EQUAL, FEW_VALUES, RISING, WITH_NAN, NONE, SHAPES } shape;
static const char *const shape_names[SHAPES] = {"peaked", "flat", "equal", "few values", "rising", "with NaN", "none"};

/* ---- Small things ---- */

static uint64_t random_state = 5;

static float next_unit(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(uint32_t)(random_state >> 40) * 0x1p-24F;
}

static float next_normal(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        sum += next_unit();
    }
    return sum - 6;
}

static void *take(size_t bytes) {
    void *p = calloc(1, bytes + 64);
    if (p == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return p;
}

static int n_passed, n_failed, n_near;

/* ---- A case: a vocabulary, and rows that are drawn in one launch ---- */

typedef struct sampling {
    device *dev;
    cuda_rank *rank;
    int vocab, n_rows;
    float *logits, *on_device; /* [n_rows][vocab] */
    ls_sample_params how[ROWS];
    ls_op op;
    int bucket;
} sampling;

static void open_case(sampling *s, device *dev, int vocab, int n_rows) {
    const size_t bytes = (size_t)n_rows * (size_t)vocab * sizeof(float);
    *s = (sampling){.dev = dev, .vocab = vocab, .n_rows = n_rows, .logits = take(bytes), .bucket = n_rows};
    s->op = (ls_op){.kind = OP_SAMPLE, .layer = -1, .sample = {0, vocab, vocab, 0, LS_LEAVES}};
    device_mark(dev);
    ls_bind bind = {.group = {0, 1}, .dtype = LS_F32, .kv_dtype = LS_F32, .d_model = 64, .m_max = n_rows};
    bind.buf[BUF_LOGITS] = s->on_device = device_take(dev, bytes);
    s->rank = device_rank(dev, &bind, decode_sample_workspace(&s->op, n_rows));
}

static void close_case(sampling *s) {
    device_release(s->dev);
    free(s->logits);
}

static void set_how(sampling *s, int row, const filter *f) {
    s->how[row] = (ls_sample_params){.temperature = f->temperature,
                                     .top_k = f->top_k,
                                     .top_p = f->top_p,
                                     .min_p = f->min_p,
                                     .seed = 9 + (uint64_t)row * 0x300000001u,
                                     .choice = (uint32_t)row % 3,
                                     .position = 100 + row,
                                     .n_top = -1};
}

/* Rows in the order first, first + 1, ... of the case's, round and round; all that `sample` reads of a step. */
static void upload(sampling *s, int first, int n) {
    static uint8_t bytes[IMAGE_BYTES];
    cuda_step *step = (cuda_step *)bytes;
    *step = (cuda_step){.n_rows = n, .n_dec = n, .n_seqs = n, .n_out = n, .draw = 256};
    cuda_draw *draw = (cuda_draw *)(bytes + step->draw);
    const size_t row_bytes = (size_t)s->vocab * sizeof(float);
    for (int i = 0; i < n; i++) {
        const int row = (first + i) % s->n_rows;
        const ls_sample_params *how = &s->how[row];
        draw[i] = (cuda_draw){.temperature = how->temperature,
                              .position = how->position,
                              .choice = how->choice,
                              .seed = how->seed,
                              .is_filtered = sample_is_filtered(how),
                              .top_k = how->top_k < s->vocab ? how->top_k : 0,
                              .top_p = how->top_p,
                              .min_p = how->min_p};
        device_write(s->dev, s->on_device + (size_t)i * (size_t)s->vocab, s->logits + (size_t)row * (size_t)s->vocab,
                     row_bytes);
    }
    device_write(s->dev, (void *)(uintptr_t)s->rank->step, bytes, sizeof bytes);
}

static void enqueue(void *context) {
    sampling *s = context;
    ls_error err = {0};
    int taken;
    if (decode_launch(s->rank, &s->op, 1, 0, s->bucket, &taken, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
}

static void draw_there(sampling *s, int first, int n, int32_t *drawn) {
    upload(s, first, n);
    device_fill(s->dev, (void *)(uintptr_t)s->rank->drawn, 0x7f, (size_t)n * sizeof *drawn);
    enqueue(s);
    if (!device_wait(s->dev, "sample")) {
        exit(1);
    }
    device_read(s->dev, drawn, (void *)(uintptr_t)s->rank->drawn, (size_t)n * sizeof *drawn);
}

/* By the CPU's op and the sampler. */
static int32_t draw_here(const sampling *s, int row, float top_p) {
    ls_sample_params how = s->how[row];
    how.top_p = top_p;
    ls_sample_part *part = take(sizeof *part);
    float *edited = take((size_t)s->vocab * sizeof *edited);
    ls_candidate *scratch = take((size_t)s->vocab * sizeof *scratch);
    ls_bind bind = {.group = {0, 1}, .isa = cpu_isa_best()};
    bind.buf[BUF_LOGITS] = s->logits + (size_t)row * (size_t)s->vocab;
    bind.buf[BUF_EDITED] = edited;
    bind.buf[BUF_SAMPLE] = bind.buf[BUF_SLICE] = part;
    const ls_step step = {.n_out = 1, .sample = &how};
    const ls_team team = {0, 1, NULL};
    cpu_ref_ops.fn[OP_SAMPLE](&s->op, 0, &bind, &step, &team);
    const sampler_row offered = {
        .part = {part}, .logits = {bind.buf[BUF_LOGITS]}, .vocab_count = {s->vocab}, .n_ranks = 1};
    const int32_t token = sampler_pick(&offered, &how, scratch, edited);
    free(part);
    free(edited);
    free(scratch);
    return token;
}

static bool is_near(const sampling *s, int row, int32_t drawn) {
    const ls_sample_params *how = &s->how[row];
    const bool listed = how->top_k > 0 && how->top_k <= DECODE_LISTED && how->top_k < s->vocab;
    return !listed && how->top_p < 1 &&
           (drawn == draw_here(s, row, how->top_p * (1 - 2e-5F)) ||
            drawn == draw_here(s, row, how->top_p * (1 + 2e-5F)));
}

/* ---- Checks ---- */

static void fill_row(float *x, int n, shape of) {
    for (int i = 0; i < n; i++) {
        const float u = next_normal();
        x[i] = of == PEAKED       ? 1.5F * u + (next_unit() < 0.002F ? 8 : 0)
               : of == FLAT       ? 0.3F * u
               : of == EQUAL      ? 1.25F
               : of == FEW_VALUES ? (float)(int)u
               : of == RISING     ? (float)i * 0.01F
               : of == WITH_NAN   ? (i % 3 == 0 ? NAN : 2 * u)
                                  : -INFINITY;
        if (of == FEW_VALUES && next_unit() < 0.3F) {
            x[i] = next_unit() < 0.5F ? -INFINITY : -0.0F;
        }
    }
}

static void check_case(device *dev, int vocab, shape of) {
    sampling s;
    open_case(&s, dev, vocab, FILTERS);
    for (int row = 0; row < FILTERS; row++) {
        filter f = filters[row];
        /* What the CPU makes of NaN where it needs the whole row is nobody's promise. */
        f.top_k = of == WITH_NAN ? (f.top_k > 0 && f.top_k <= DECODE_LISTED && f.top_k < vocab ? f.top_k : 3) : f.top_k;
        set_how(&s, row, &f);
        fill_row(s.logits + (size_t)row * (size_t)vocab, vocab, of);
    }
    int32_t drawn[FILTERS], again[FILTERS];
    const int failed = n_failed, near = n_near;
    draw_there(&s, 0, FILTERS, drawn);
    draw_there(&s, 7, FILTERS - 2, again); /* other places in the batch */
    for (int row = 0; row < FILTERS; row++) {
        const ls_sample_params *how = &s.how[row];
        const int at = (row - 7 + FILTERS) % FILTERS;
        const int32_t wanted = draw_here(&s, row, how->top_p);
        const bool close = drawn[row] != wanted && is_near(&s, row, drawn[row]);
        const bool good = (drawn[row] == wanted || close) && (at >= FILTERS - 2 || again[at] == drawn[row]);
        n_near += close;
        n_passed += good;
        n_failed += !good;
        if (!good) {
            printf("FAILED vocabulary %d, %s, temperature %g, top-k %d, top-p %g, min-p %g: drew %d, then %d, not %d\n",
                   vocab, shape_names[of], (double)how->temperature, how->top_k, (double)how->top_p, (double)how->min_p,
                   drawn[row], at < FILTERS - 2 ? again[at] : drawn[row], wanted);
        }
    }
    printf("%-4s vocabulary %d, %s: %d near\n", n_failed == failed ? "ok" : "BAD", vocab, shape_names[of],
           n_near - near);
    fflush(stdout);
    close_case(&s);
}

static void check_all(device *dev, bool small_only) {
    static const int vocabs[] = {1, 50, 300, 1009, 2999, 20011, 151936};
    const size_t n = sizeof vocabs / sizeof *vocabs - (small_only || device_is_slow(dev) ? 1 : 0);
    for (size_t i = 0; i < n; i++) {
        for (int of = 0; of < SHAPES; of++) {
            check_case(dev, vocabs[i], (shape)of);
        }
    }
    n_failed += n_near * 100 > n_passed;
    printf("%d drawn near a border of top-p\n%d passed, %d failed\n", n_near, n_passed, n_failed);
}

/* ---- Timings ---- */

static double time_rows(sampling *s, int n, const filter *f) {
    for (int row = 0; row < n; row++) {
        set_how(s, row, f);
    }
    s->bucket = n;
    upload(s, 0, n);
    return device_time(s->dev, enqueue, s);
}

static void time_shape(device *dev, int vocab, shape of) {
    static const filter timed[] = {{0, 0, 1, 0},          {0.6F, 0, 1, 0},     {0.6F, 20, 0.95F, 0},
                                   {0.6F, 0, 0.9F, 0},    {0.6F, 0, 1, 0.05F}, {0.6F, 256, 0.95F, 0},
                                   {0.6F, 1000, 0.95F, 0}};
    static const int rows[] = {1, 8, 64, ROWS};
    sampling s;
    open_case(&s, dev, vocab, ROWS);
    fill_row(s.logits, vocab, of);
    for (int row = 1; row < ROWS; row++) { /* the same, elsewhere */
        for (int i = 0; i < vocab; i++) {
            s.logits[(size_t)row * (size_t)vocab + (size_t)i] = s.logits[(i + row * 977) % vocab];
        }
    }
    for (size_t i = 0; i < sizeof timed / sizeof *timed; i++) {
        printf("%s, %d tokens, temperature %g, top-k %d, top-p %g, min-p %g:", shape_names[of], vocab,
               (double)timed[i].temperature, timed[i].top_k, (double)timed[i].top_p, (double)timed[i].min_p);
        for (size_t j = 0; j < sizeof rows / sizeof *rows; j++) {
            const double us = time_rows(&s, rows[j], &timed[i]);
            printf(" %d rows %.1f us (%.0f GB/s)", rows[j], us, (double)rows[j] * vocab * 4 / (us + 1e-9) * 1e-3);
        }
        printf("\n");
        fflush(stdout);
    }
    close_case(&s);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all";
    device *dev = device_open();
    if (dev == NULL) {
        return 2;
    }
    if (strcmp(what, "time") != 0) {
        check_all(dev, strcmp(what, "quick") == 0);
    }
    if (strcmp(what, "check") != 0 && strcmp(what, "quick") != 0 && !device_is_slow(dev)) {
        time_shape(dev, 151936, PEAKED);
        time_shape(dev, 151936, FLAT);
    }
    device_close(dev);
    return n_failed > 0;
}
