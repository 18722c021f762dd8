/* See bench_load.h. */
#include "cli/bench/load.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

/* One connection's place. */
typedef struct slot {
    bench_load *load;
    bench_request *request; /* NULL: free */
    CURL *easy;
    struct curl_slist *headers;
    char *body, *line;
    size_t n_line, line_capacity;
    int64_t begin_ns;
    double piece_s; /* when the last one came; negative: none yet */
    bool done;      /* [DONE] came */
} slot;

ls_status bench_times_add(bench_times *times, double seconds, ls_error *err) {
    if (times->n == times->capacity) {
        size_t capacity = times->capacity > 0 ? 2 * times->capacity : 1024;
        double *grown = realloc(times->item, capacity * sizeof *grown);
        if (grown == NULL) {
            return error_set(err, LS_ENOMEM, "bench: out of memory");
        }
        times->item = grown;
        times->capacity = capacity;
    }
    times->item[times->n++] = seconds;
    return LS_OK;
}

/* ---- What comes back ---- */

static void note_piece(slot *s, double now_s) {
    if (s->piece_s < 0) {
        s->request->first_s = now_s;
    } else {
        bench_times_add(&s->load->gaps, now_s - s->piece_s, NULL);
    }
    s->piece_s = s->request->last_s = now_s;
}

static void note_error(bench_request *r, const json_t *error) {
    const json_t *text = json_is_object(error) ? json_object_get(error, "message") : error;
    snprintf(r->error, sizeof r->error, "%s",
             json_is_string(text) ? json_string_value(text) : "an error without words");
}

/* One event's JSON. */
static void read_event(slot *s, const char *text, double now_s) {
    bench_request *r = s->request;
    json_t *event = json_loads(text, JSON_ALLOW_NUL, NULL);
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    const json_t *usage = json_object_get(event, "usage");
    const json_t *piece = json_object_get(choice, "text");
    if (event == NULL || json_object_get(event, "error") != NULL) {
        note_error(r, event != NULL ? json_object_get(event, "error") : NULL);
    } else if (json_string_length(piece) > 0 || json_is_string(json_object_get(choice, "finish_reason"))) {
        note_piece(s, now_s);
    }
    if (json_is_object(usage)) {
        r->n_prompt = (int)json_integer_value(json_object_get(usage, "prompt_tokens"));
        r->n_output = (int)json_integer_value(json_object_get(usage, "completion_tokens"));
    }
    json_decref(event);
}

static void read_line(slot *s, double now_s) {
    static const char field[] = "data:";
    s->line[s->n_line] = '\0';
    const char *text = s->line + sizeof field - 1;
    if (s->n_line == 0 || (s->line[0] == '\r' && s->n_line == 1)) {
        return;
    }
    if (strncmp(s->line, field, sizeof field - 1) != 0) {
        if (s->line[0] == '{') { /* no stream: the body of an error */
            read_event(s, s->line, now_s);
        }
        return;
    }
    text += strspn(text, " ");
    if (strncmp(text, "[DONE]", 6) == 0) {
        s->done = true;
    } else {
        read_event(s, text, now_s);
    }
}

static double seconds_since(int64_t begin_ns) {
    return (double)(clock_ns() - begin_ns) * 1e-9;
}

static size_t on_bytes(char *bytes, size_t one, size_t n, void *user) {
    slot *s = user;
    double now_s = seconds_since(s->begin_ns);
    if (s->n_line + n + 1 > s->line_capacity) {
        size_t capacity = 2 * (s->n_line + n + 1);
        char *grown = realloc(s->line, capacity);
        if (grown == NULL) {
            return 0;
        }
        s->line = grown;
        s->line_capacity = capacity;
    }
    for (size_t i = 0; i < n * one; i++) {
        if (bytes[i] == '\n') {
            read_line(s, now_s);
            s->n_line = 0;
        } else {
            s->line[s->n_line++] = bytes[i];
        }
    }
    return n;
}

/* ---- Sending ---- */

static char *make_body(const bench_load *load, const bench_request *r) {
    json_t *body =
        json_pack("{s:O, s:i, s:b, s:b, s:{s:b}, s:I}", "prompt", r->prompt, "max_tokens", r->output_len, "stream", 1,
                  "ignore_eos", 1, "stream_options", "include_usage", 1, "seed", (json_int_t)load->seed);
    if (load->model != NULL) {
        json_object_set_new(body, "model", json_string(load->model));
    }
    if (load->temperature >= 0) {
        json_object_set_new(body, "temperature", json_real(load->temperature));
    }
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static ls_status send_request(slot *s, bench_request *r, CURLM *multi, ls_error *err) {
    free(s->body);
    s->body = make_body(s->load, r);
    if (s->body == NULL) {
        return error_set(err, LS_ENOMEM, "bench: out of memory");
    }
    s->request = r;
    s->n_line = 0;
    s->piece_s = -1;
    s->done = false;
    r->start_s = seconds_since(s->begin_ns);
    curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, s->body);
    curl_easy_setopt(s->easy, CURLOPT_POSTFIELDSIZE, (long)strlen(s->body));
    return curl_multi_add_handle(multi, s->easy) == CURLM_OK ? LS_OK
                                                             : error_set(err, LS_EINTERNAL, "bench: libcurl failed");
}

static void end_request(slot *s, CURLcode code) {
    bench_request *r = s->request;
    long status = 0;
    if (s->line != NULL && s->n_line > 0) {
        read_line(s, seconds_since(s->begin_ns));
    }
    curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &status);
    r->status = (int)status;
    if (code != CURLE_OK) {
        snprintf(r->error, sizeof r->error, "%s", curl_easy_strerror(code));
    } else if (status != 200 && r->error[0] == '\0') {
        snprintf(r->error, sizeof r->error, "HTTP status %ld", status);
    } else if (status == 200 && r->error[0] == '\0' && (!s->done || s->piece_s < 0)) {
        snprintf(r->error, sizeof r->error, "the stream ended early");
    }
    r->good = r->error[0] == '\0';
    s->request = NULL;
}

static ls_status open_slot(slot *s, bench_load *load, int64_t begin_ns, ls_error *err) {
    char key[600];
    s->load = load;
    s->begin_ns = begin_ns;
    s->easy = curl_easy_init();
    s->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (load->key != NULL && s->headers != NULL) {
        snprintf(key, sizeof key, "Authorization: Bearer %s", load->key);
        struct curl_slist *more = curl_slist_append(s->headers, key);
        s->headers = more != NULL ? more : s->headers;
    }
    if (s->easy == NULL || s->headers == NULL) {
        return error_set(err, LS_ENOMEM, "bench: out of memory");
    }
    curl_easy_setopt(s->easy, CURLOPT_URL, load->url);
    curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, s->headers);
    curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(s->easy, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(s->easy, CURLOPT_PRIVATE, s);
    curl_easy_setopt(s->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(s->easy, CURLOPT_TCP_NODELAY, 1L);
    return LS_OK;
}

static ls_status run(bench_load *load, slot *slots, int n_slots, CURLM *multi, ls_error *err) {
    int64_t begin_ns = clock_ns();
    size_t next = 0, n_ended = 0;
    for (int i = 0; i < n_slots; i++) {
        TRY(open_slot(&slots[i], load, begin_ns, err));
    }
    while (n_ended < load->n) {
        double now_s = seconds_since(begin_ns), wait_s = 0.1;
        for (int i = 0; i < n_slots && next < load->n; i++) {
            if (slots[i].request == NULL && load->request[next].arrival_s <= now_s) {
                TRY(send_request(&slots[i], &load->request[next++], multi, err));
            }
        }
        if (next < load->n && load->request[next].arrival_s > now_s && load->request[next].arrival_s - now_s < wait_s) {
            wait_s = load->request[next].arrival_s - now_s;
        }
        int n_running, n_left;
        if (curl_multi_perform(multi, &n_running) != CURLM_OK) {
            return error_set(err, LS_EINTERNAL, "bench: libcurl failed");
        }
        bool some = false;
        for (CURLMsg *m; (m = curl_multi_info_read(multi, &n_left)) != NULL; some = true) {
            slot *s;
            CURLcode code = m->data.result;
            CURL *easy = m->easy_handle;
            curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&s);
            end_request(s, code);
            curl_multi_remove_handle(multi, easy);
            n_ended++;
        }
        if (!some) {
            curl_multi_poll(multi, NULL, 0, (int)(wait_s * 1000) + 1, NULL);
        }
    }
    load->duration_s = seconds_since(begin_ns);
    return LS_OK;
}

ls_status bench_load_run(bench_load *load, ls_error *err) {
    int n_slots = load->max_concurrency < (int)load->n ? load->max_concurrency : (int)load->n;
    slot *slots = calloc((size_t)n_slots, sizeof *slots);
    CURLM *multi = curl_multi_init();
    ls_status st = slots != NULL && multi != NULL ? run(load, slots, n_slots, multi, err)
                                                  : error_set(err, LS_ENOMEM, "bench: out of memory");
    for (int i = 0; slots != NULL && i < n_slots; i++) {
        if (slots[i].request != NULL) {
            curl_multi_remove_handle(multi, slots[i].easy);
        }
        curl_easy_cleanup(slots[i].easy);
        curl_slist_free_all(slots[i].headers);
        free(slots[i].body);
        free(slots[i].line);
    }
    curl_multi_cleanup(multi);
    free(slots);
    return st;
}
