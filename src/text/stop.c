/*
 * See stop.h. Node 0 is the root; the path to a node spells a beginning of some stop string, and `back` leads to the
 * longest proper ending of that path which is such a beginning too. What is held back is the path to the current node,
 * so its bytes need not be kept apart from the automaton: they are the end of one stop string's beginning.
 */
#include "text/stop.h"

#include <stdlib.h>
#include <string.h>

typedef struct stop_node {
    uint16_t child, sibling; /* first child; next child of the same parent; 0: none */
    uint16_t parent, back;
    uint16_t depth;
    int16_t string; /* longest stop string that ends here, or -1 */
    char byte;
} stop_node;

static uint16_t child_of(const stop_node *node, uint16_t parent, char byte) {
    uint16_t i = node[parent].child;
    while (i != 0 && node[i].byte != byte) {
        i = node[i].sibling;
    }
    return i;
}

static void add_string(stop_matcher *m, const char *string, size_t n, int16_t index) {
    uint16_t at = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t next = child_of(m->node, at, string[i]);
        if (next == 0) {
            next = (uint16_t)m->n_nodes++;
            m->node[next] = (stop_node){.sibling = m->node[at].child,
                                        .parent = at,
                                        .depth = (uint16_t)(m->node[at].depth + 1),
                                        .string = -1,
                                        .byte = string[i]};
            m->node[at].child = next;
        }
        at = next;
    }
    if (m->node[at].string < 0) { /* of two equal strings the first counts */
        m->node[at].string = index;
    }
}

/* The node after one more byte. Amortised constant: each step back undoes one forward. */
static uint16_t advance(const stop_node *node, uint16_t at, char byte) {
    for (;;) {
        uint16_t next = child_of(node, at, byte);
        if (next != 0 || at == 0) {
            return next;
        }
        at = node[at].back;
    }
}

/* Breadth first, so that every `back` is known before it is followed. queue has room for all nodes. */
static void link_back(stop_matcher *m, uint16_t *queue) {
    size_t n = 1;
    queue[0] = 0;
    for (size_t i = 0; i < n; i++) {
        for (uint16_t at = m->node[queue[i]].child; at != 0; at = m->node[at].sibling) {
            stop_node *node = &m->node[at];
            if (node->depth > 1) {
                node->back = advance(m->node, m->node[node->parent].back, node->byte);
                node->string = node->string >= 0 ? node->string : m->node[node->back].string;
            }
            queue[n++] = at;
        }
    }
}

ls_status stop_init(stop_matcher *m, const char *const *string, const size_t *n_bytes, size_t n_strings,
                    bool include_stop, ls_error *err) {
    size_t total = 0, deepest = 0;
    stop_matcher fresh = {.include_stop = include_stop, .found = -1, .n_nodes = 1};
    if (n_strings > STOP_MAX_STRINGS) {
        return error_set(err, LS_EINVAL, "%zu stop strings: at most %d are possible", n_strings, STOP_MAX_STRINGS);
    }
    for (size_t i = 0; i < n_strings; i++) {
        if (n_bytes[i] == 0 || n_bytes[i] > STOP_MAX_BYTES - total) {
            return error_set(err, LS_EINVAL, "stop string %zu: %s", i,
                             n_bytes[i] == 0 ? "empty" : "all together may have 4096 bytes");
        }
        total += n_bytes[i];
        deepest = n_bytes[i] > deepest ? n_bytes[i] : deepest;
    }
    if (n_strings > 0) {
        fresh.node = calloc(total + 1, sizeof *fresh.node);
        fresh.longest = malloc(deepest);
        uint16_t *queue = malloc((total + 1) * sizeof *queue);
        if (fresh.node == NULL || fresh.longest == NULL || queue == NULL) {
            free(queue);
            stop_deinit(&fresh);
            return error_set(err, LS_ENOMEM, "out of memory: stop strings");
        }
        fresh.n_longest = deepest;
        fresh.node[0].string = -1;
        for (size_t i = 0; i < n_strings; i++) {
            add_string(&fresh, string[i], n_bytes[i], (int16_t)i);
        }
        link_back(&fresh, queue);
        free(queue);
    }
    *m = fresh;
    return LS_OK;
}

void stop_deinit(stop_matcher *m) {
    free(m->node);
    free(m->longest);
    *m = (stop_matcher){.found = -1};
}

void stop_reset(stop_matcher *m) {
    m->state = 0;
    m->found = -1;
}

/* Appends the first n bytes of the path to a node, which has room. */
static void put_path(const stop_matcher *m, uint16_t at, size_t n, text_buffer *out) {
    for (size_t i = m->node[at].depth; i > 0; i--, at = m->node[at].parent) {
        m->longest[i - 1] = m->node[at].byte;
    }
    (void)text_buffer_append(out, m->longest, n, NULL);
}

/* How long the stop string is that ends at a node: the depth of the node where its own path ends. */
static size_t length_at(const stop_matcher *m, uint16_t at) {
    while (m->node[m->node[at].back].string == m->node[at].string) {
        at = m->node[at].back;
    }
    return m->node[at].depth;
}

ls_status stop_push(stop_matcher *m, const char *text, size_t n, text_buffer *out, ls_error *err) {
    if (m->node == NULL) {
        return text_buffer_append(out, text, n, err);
    }
    if (m->found >= 0) {
        return LS_OK;
    }
    TRY(text_buffer_reserve(out, n + m->n_longest, err));
    for (size_t i = 0; i < n; i++) {
        uint16_t before = m->state, at = advance(m->node, before, text[i]);
        size_t held = m->node[before].depth, keeps = m->node[at].depth;
        if (keeps == 0) {
            put_path(m, before, held, out);
            (void)text_buffer_append(out, text + i, 1, NULL);
        } else {
            put_path(m, before, held + 1 - keeps, out);
        }
        m->state = at;
        if (m->node[at].string >= 0) {
            m->found = m->node[at].string;
            put_path(m, at, m->include_stop ? keeps : keeps - length_at(m, at), out);
            m->state = 0;
            return LS_OK;
        }
    }
    return LS_OK;
}

ls_status stop_flush(stop_matcher *m, text_buffer *out, ls_error *err) {
    if (m->node == NULL || m->found >= 0) {
        return LS_OK;
    }
    TRY(text_buffer_reserve(out, m->n_longest, err));
    put_path(m, m->state, m->node[m->state].depth, out);
    m->state = 0;
    return LS_OK;
}
