/* See download.h. One thread, libcurl's multi interface. */
#include "file/download.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"

#define PIECE_BYTES ((int64_t)8 << 20)
#define WRITEBACK_BYTES ((int64_t)32 << 20)
enum { SPARE_PIECES = 4, POLL_MS = 100, LOCK_RETRY_MS = 200, PROGRESS_MS = 100 };

typedef enum transfer_state { TRANSFER_CLOSED, TRANSFER_OPEN, TRANSFER_DONE } transfer_state;

/* One file. */
typedef struct transfer {
    const hub_file *file;
    transfer_state state;
    int lock, fd; /* while open */
    char blob[HUB_PATH_BYTES], part[HUB_PATH_BYTES + 16];
    EVP_MD_CTX *digest;
    int64_t written;  /* bytes in part, all of them hashed */
    int64_t next;     /* first byte that is in no piece yet */
    int64_t flushed;  /* bytes whose way to the disk has been started */
    char *location;   /* where the hub sends us for it; NULL: not known, or the hub itself */
    bool located;     /* an answer has come: pieces may go side by side */
    bool takes_whole; /* the server ignores ranges */
    int restarts, n_pieces;
} transfer;

/* A slot for one piece: buffer holds the n bytes from start on, end is the piece's. */
typedef struct piece {
    transfer *of;  /* NULL: free */
    CURL *request; /* NULL: it waits, for a retry or for its turn to be written */
    uint8_t *buffer;
    int64_t start, end;
    size_t n;
    bool checked, discards, is_ignored; /* of the answer: looked at; not the file; not the range */
    int retries, redirects;
    int64_t retry_at_ms;
    char url[HTTP_URL_BYTES];
    http_answer answer;
    struct session *session;
    ls_status status; /* a failure for which no retry helps */
    ls_error error;
} piece;

typedef struct session {
    download *d;
    CURLM *multi;
    transfer *transfer;
    size_t n_transfers, n_done;
    piece *piece;
    size_t n_pieces;
    int n_open;
    int64_t done_bytes; /* of files finished here, before those of d->progress */
    int64_t base_bytes, next_lock_ms, next_report_ms;
    bool is_told;
} session;

static int64_t now_ms(void) {
    return clock_ns() / 1000000;
}

/* ---- Writing a file ---- */

static ls_status digest_start(transfer *t, ls_error *err) {
    char header[64];
    bool is_git = strlen(t->file->etag) == 40; /* git hashes a header before the bytes */
    int n = snprintf(header, sizeof header, "blob %lld", (long long)t->file->bytes) + 1;
    if (t->digest == NULL) {
        t->digest = EVP_MD_CTX_new();
    }
    if (t->digest == NULL || EVP_DigestInit_ex(t->digest, is_git ? EVP_sha1() : EVP_sha256(), NULL) != 1 ||
        (is_git && EVP_DigestUpdate(t->digest, header, (size_t)n) != 1)) {
        return error_set(err, LS_ENOMEM, "%s: cannot begin its hash", t->file->name);
    }
    return LS_OK;
}

/* Forgets what is there: the next byte is the first. */
static ls_status transfer_rewind(transfer *t, ls_error *err) {
    if (ftruncate(t->fd, 0) != 0) {
        return error_set(err, LS_EIO, "%s: cannot write: %s", t->part, strerror(errno));
    }
    t->written = t->next = t->flushed = 0;
    return digest_start(t, err);
}

/* Hashes what an earlier download left. */
static ls_status transfer_resume(transfer *t, ls_error *err) {
    struct stat info;
    TRY(digest_start(t, err));
    if (fstat(t->fd, &info) != 0 || info.st_size > t->file->bytes) {
        return transfer_rewind(t, err);
    }
    size_t room = 1 << 20;
    uint8_t *bytes = malloc(room);
    if (bytes == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", t->part);
    }
    ssize_t n = 1;
    while (t->written < info.st_size && n > 0) {
        n = pread(t->fd, bytes, room, t->written);
        if (n > 0) {
            EVP_DigestUpdate(t->digest, bytes, (size_t)n);
            t->written += n;
        }
    }
    free(bytes);
    t->next = t->flushed = t->written;
    return n >= 0 ? LS_OK : error_set(err, LS_EIO, "%s: cannot read: %s", t->part, strerror(errno));
}

static ls_status transfer_write(transfer *t, const uint8_t *bytes, size_t n, ls_error *err) {
    for (size_t done = 0; done < n;) {
        ssize_t written = pwrite(t->fd, bytes + done, n - done, t->written + (int64_t)done);
        if (written < 0 && errno != EINTR) {
            return error_set(err, LS_EIO,
                             "%s: cannot write: %s; what is there is kept, and the download can go on later", t->part,
                             strerror(errno));
        }
        done += written > 0 ? (size_t)written : 0;
    }
    if (EVP_DigestUpdate(t->digest, bytes, n) != 1) {
        return error_set(err, LS_EINTERNAL, "%s: cannot be hashed", t->part);
    }
    t->written += (int64_t)n;
    if (t->written - t->flushed >= WRITEBACK_BYTES) { /* so that the end need not wait for gigabytes */
        sync_file_range(t->fd, t->flushed, t->written - t->flushed, SYNC_FILE_RANGE_WRITE);
        t->flushed = t->written;
    }
    return LS_OK;
}

static void transfer_close(transfer *t) {
    EVP_MD_CTX_free(t->digest);
    free(t->location);
    if (t->fd >= 0) {
        close(t->fd);
    }
    if (t->lock >= 0) {
        close(t->lock);
    }
    t->digest = NULL;
    t->location = NULL;
    t->fd = t->lock = -1;
}

static bool blob_is_there(const transfer *t) {
    struct stat info;
    return stat(t->blob, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == t->file->bytes;
}

/* ---- Progress ---- */

static ls_status report(session *s, const hub_file *finished, ls_error *err) {
    download *d = s->d;
    if (d->fn == NULL || (finished == NULL && now_ms() < s->next_report_ms)) {
        return LS_OK;
    }
    s->next_report_ms = now_ms() + PROGRESS_MS;
    d->progress.bytes = s->base_bytes + s->done_bytes;
    for (size_t i = 0; i < s->n_transfers; i++) {
        d->progress.bytes += s->transfer[i].state == TRANSFER_OPEN ? s->transfer[i].written : 0;
    }
    for (size_t i = 0; i < s->n_pieces; i++) {
        d->progress.bytes += s->piece[i].of != NULL ? (int64_t)s->piece[i].n : 0;
    }
    d->progress.is_waiting = s->n_open == 0 && s->n_done < s->n_transfers;
    d->progress.file = finished != NULL ? finished->name : NULL;
    d->progress.file_bytes = finished != NULL ? finished->bytes : 0;
    return d->fn(d->user, &d->progress) ? LS_OK
                                        : error_set(err, LS_EABORTED, "%s: the download was stopped", d->name->repo);
}

/* ---- Beginning and end of a file ---- */

static ls_status transfer_done(session *s, transfer *t, ls_error *err) {
    download *d = s->d;
    s->n_open -= t->state == TRANSFER_OPEN;
    t->state = TRANSFER_DONE;
    s->n_done++;
    s->done_bytes += t->file->bytes;
    transfer_close(t);
    d->progress.files++;
    TRY(hub_link(d->place, d->commit, t->file->name, t->file->etag, err));
    return report(s, t->file, err);
}

/* All bytes are there: are they right? */
static ls_status transfer_verify(session *s, transfer *t, ls_error *err) {
    uint8_t hash[EVP_MAX_MD_SIZE];
    char text[2 * EVP_MAX_MD_SIZE + 1];
    unsigned n = 0;
    if (EVP_DigestFinal_ex(t->digest, hash, &n) != 1) {
        return error_set(err, LS_EINTERNAL, "%s: cannot be hashed", t->part);
    }
    for (unsigned i = 0; i < n; i++) {
        snprintf(text + (size_t)2 * i, 3, "%02x", hash[i]);
    }
    if (strcmp(text, t->file->etag) == 0) {
        if (fdatasync(t->fd) != 0 || (rename(t->part, t->blob) != 0 && !blob_is_there(t))) {
            return error_set(err, LS_EIO, "%s: cannot write: %s", t->blob, strerror(errno));
        }
        return transfer_done(s, t, err);
    }
    if (t->restarts++ == 0) {
        log_line(&s->d->client->log, LS_LOG_WARN, "%s: %s: its bytes do not match their hash; fetching it again",
                 s->d->name->repo, t->file->name);
        free(t->location);
        t->location = NULL;
        t->located = false;
        return transfer_rewind(t, err);
    }
    unlink(t->part);
    return error_set(err, LS_ENETWORK, "%s: %s: its bytes do not match their hash (%s, expected %s), twice; removed",
                     s->d->name->repo, t->file->name, text, t->file->etag);
}

/* Locks and opens a file, where no other process has it. */
static ls_status transfer_open(session *s, transfer *t, ls_error *err) {
    int lock;
    TRY(hub_lock_try(s->d->place, t->file->etag, &lock, err));
    if (lock == -1) {
        if (!s->is_told) {
            s->is_told = true;
            log_line(&s->d->client->log, LS_LOG_INFO, "%s: another process downloads it too; sharing the work",
                     s->d->name->repo);
        }
        return LS_OK;
    }
    t->lock = lock;
    if (blob_is_there(t)) { /* the other one was faster */
        return transfer_done(s, t, err);
    }
    t->fd = open(t->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (t->fd < 0) {
        return error_set(err, LS_EIO, "%s: cannot write: %s", t->part, strerror(errno));
    }
    t->state = TRANSFER_OPEN;
    s->n_open++;
    TRY(transfer_resume(t, err));
    return t->written == t->file->bytes ? transfer_verify(s, t, err) : LS_OK;
}

/* ---- Pieces ---- */

static void piece_stop(piece *p) {
    if (p->request != NULL) {
        curl_multi_remove_handle(p->session->multi, p->request);
        curl_easy_cleanup(p->request);
        p->request = NULL;
    }
}

static void piece_free(piece *p) {
    piece_stop(p);
    p->of->n_pieces--;
    p->of = NULL;
}

/* Writes a piece's bytes, if all before them are written; the next pieces may then follow. */
static ls_status piece_drain(piece *p, ls_error *err) {
    transfer *t = p->of;
    if (p->n > 0 && p->start == t->written) {
        TRY(transfer_write(t, p->buffer, p->n, err));
        p->start += (int64_t)p->n;
        p->n = 0;
    }
    return LS_OK;
}

/* A failure that no retry mends. Ends the transfer: libcurl takes 0 bytes taken for an error. */
static size_t piece_fail(piece *p, ls_status status) {
    p->status = status;
    return 0;
}

static size_t wrong_size(piece *p, const char *what, int64_t bytes) {
    return piece_fail(p, error_set(&p->error, LS_ENETWORK, "%s: %s: its list says %lld bytes, %s %lld",
                                   p->session->d->name->repo, p->of->file->name, (long long)p->of->file->bytes, what,
                                   (long long)bytes));
}

/* The first byte of a body: what is it? Returns false to end the transfer. */
static bool piece_check(piece *p) {
    transfer *t = p->of;
    long status = 0;
    curl_off_t length = -1;
    int64_t first, last, total, at = p->start + (int64_t)p->n;
    const char *range = http_header(p->request, "Content-Range");
    p->checked = true;
    curl_easy_getinfo(p->request, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(p->request, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    p->discards = status != 200 && status != 206;
    if (p->discards) {
        return true;
    }
    if (status == 206) {
        if (range == NULL || !hub_range_read(range, &first, &last, &total) || first != at || last >= p->end) {
            p->is_ignored = true;
            return false;
        }
        if (total != t->file->bytes) {
            return wrong_size(p, "its server", total) != 0;
        }
    } else if (at != 0) {
        p->is_ignored = true;
        return false;
    } else if (length >= 0 && length != t->file->bytes) {
        return wrong_size(p, "its server", length) != 0;
    } else if (p->end != t->file->bytes) {
        if (t->n_pieces > 1) { /* it took ranges before */
            p->is_ignored = true;
            return false;
        }
        t->takes_whole = true;
        p->end = t->next = t->file->bytes;
    }
    if (!t->located && p->redirects > 0) {
        free(t->location);
        t->location = strdup(p->url);
    }
    t->located = true;
    return true;
}

static size_t piece_take(char *bytes, size_t unit, size_t n, void *user) {
    piece *p = user;
    n *= unit;
    if (!p->checked && !piece_check(p)) {
        return 0;
    }
    if (p->discards) {
        return n;
    }
    if ((int64_t)n > p->end - p->start - (int64_t)p->n) {
        return wrong_size(p, "and what comes is longer, at least", p->start + (int64_t)p->n + (int64_t)n);
    }
    p->session->d->progress.fetched_bytes += (int64_t)n;
    for (size_t taken = 0; taken < n;) {
        size_t room = (size_t)PIECE_BYTES - p->n;
        if (room == 0) { /* only a piece that is a whole file is longer than its buffer, and it is always next */
            ls_status st = piece_drain(p, &p->error);
            if (st != LS_OK) {
                return piece_fail(p, st);
            }
            continue;
        }
        size_t now = n - taken < room ? n - taken : room;
        memcpy(p->buffer + p->n, bytes + taken, now);
        p->n += now;
        taken += now;
    }
    return n;
}

/* Sends the request for what the piece still lacks to p->url. */
static ls_status piece_send(piece *p, ls_error *err) {
    char range[64];
    int64_t first = p->start + (int64_t)p->n;
    p->checked = p->discards = p->is_ignored = false;
    p->request = http_request(p->session->d->client, p->url, p->answer.why);
    if (p->request == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", p->of->file->name);
    }
    curl_easy_setopt(p->request, CURLOPT_WRITEFUNCTION, piece_take);
    curl_easy_setopt(p->request, CURLOPT_WRITEDATA, p);
    curl_easy_setopt(p->request, CURLOPT_PRIVATE, p);
    curl_easy_setopt(p->request, CURLOPT_BUFFERSIZE, 256L * 1024);
    if (first > 0 || (p->end < p->of->file->bytes && !p->of->takes_whole)) {
        snprintf(range, sizeof range, "%lld-%lld", (long long)first, (long long)p->end - 1);
        curl_easy_setopt(p->request, CURLOPT_RANGE, range);
    }
    return curl_multi_add_handle(p->session->multi, p->request) == CURLM_OK
               ? LS_OK
               : error_set(err, LS_EINTERNAL, "libcurl does not take a request");
}

/* From its beginning: to the hub, or to where it has sent us. */
static ls_status piece_begin(piece *p, ls_error *err) {
    const download *d = p->session->d;
    p->redirects = 0;
    if (p->of->location != NULL) {
        snprintf(p->url, sizeof p->url, "%s", p->of->location);
    } else {
        http_file_url(d->client, d->name, d->commit, p->of->file->name, p->url);
    }
    return piece_send(p, err);
}

/* ---- What became of a request ---- */

/* Drops all pieces of a file and begins it again. */
static ls_status restart(session *s, transfer *t, ls_error *err) {
    for (size_t i = 0; i < s->n_pieces; i++) {
        if (s->piece[i].of == t) {
            piece_free(&s->piece[i]);
        }
    }
    return transfer_rewind(t, err);
}

static ls_status gave_up(piece *p, bool at_hub, ls_error *err) {
    const download *d = p->session->d;
    const http_answer *answer = &p->answer;
    char host[128];
    snprintf(host, sizeof host, "%.*s", (int)strcspn(p->url, "?"), p->url); /* a signature is nobody's business */
    if (answer->code == CURLE_OK && answer->status < 300) {
        return error_set(err, LS_ENETWORK, "%s: %s: %s breaks off after %lld of %lld bytes", d->name->repo,
                         p->of->file->name, host, (long long)p->start + (long long)p->n, (long long)p->end);
    }
    if (!at_hub && answer->code == CURLE_OK) {
        return error_set(err, LS_ENETWORK, "%s: %s: %s says HTTP %ld", d->name->repo, p->of->file->name, host,
                         answer->status);
    }
    return http_explain(d->client, d->name, p->of->file->name, answer, err);
}

static ls_status piece_retry(session *s, piece *p, ls_error *err) {
    const http_client *client = s->d->client;
    transfer *t = p->of;
    bool at_hub = http_same_origin(p->url, client->endpoint);
    bool is_short = p->answer.code == CURLE_OK && p->answer.status < 300;
    /* A refusal elsewhere may mean that the address has expired: the hub gives a new one. */
    bool may_retry = is_short || http_worth_retry(&p->answer) || (!at_hub && p->answer.code == CURLE_OK);
    int64_t delay_ms = http_retry_delay_ms(client, p->retries, &p->answer);
    if (!may_retry || p->retries >= client->max_retries || delay_ms > HTTP_MAX_WAIT_MS) {
        return gave_up(p, at_hub, err);
    }
    if (!at_hub) {
        free(t->location);
        t->location = NULL;
        t->located = false;
    }
    log_line(&client->log, LS_LOG_INFO, "%s: %s; again in %lld ms", t->file->name,
             is_short                     ? "the transfer broke off"
             : p->answer.code != CURLE_OK ? curl_easy_strerror(p->answer.code)
                                          : "the server cannot serve it now",
             (long long)delay_ms);
    p->retries++;
    p->retry_at_ms = now_ms() + delay_ms;
    if (t->takes_whole) { /* the next answer begins at the first byte again */
        TRY(transfer_rewind(t, err));
        p->start = 0;
        p->n = 0;
        t->next = t->file->bytes;
    }
    return LS_OK;
}

static ls_status piece_answered(session *s, piece *p, CURLcode code, ls_error *err) {
    transfer *t = p->of;
    http_answer_read(p->request, code, &p->answer);
    piece_stop(p);
    if (p->status == LS_OK && p->answer.status == 416) {
        wrong_size(p, "and its server has less than", p->end);
    }
    if (p->status != LS_OK) {
        if (err != NULL) {
            *err = p->error;
        }
        return p->status;
    }
    if (p->is_ignored) {
        if (t->takes_whole) {
            return error_set(err, LS_ENETWORK, "%s: %s: its server answers with other bytes than were asked for",
                             s->d->name->repo, t->file->name);
        }
        t->takes_whole = true;
        return restart(s, t, err);
    }
    if (http_is_redirect(&p->answer)) {
        TRY(http_check_redirect(p->url, &p->answer, p->redirects++, err));
        memcpy(p->url, p->answer.redirect, sizeof p->url);
        return piece_send(p, err);
    }
    bool is_whole = p->start + (int64_t)p->n == p->end;
    return is_whole && !p->discards ? LS_OK : piece_retry(s, p, err);
}

/* A piece that has been written to its end; with the last one the file is whole. */
static ls_status piece_done(session *s, piece *p, ls_error *err) {
    transfer *t = p->of;
    piece_free(p);
    return t->written == t->file->bytes ? transfer_verify(s, t, err) : LS_OK;
}

/* Writes what is next in each file, and ends files that are whole. */
static ls_status drain_all(session *s, ls_error *err) {
    bool again = true;
    while (again) {
        again = false;
        for (size_t i = 0; i < s->n_pieces; i++) {
            piece *p = &s->piece[i];
            if (p->of == NULL || p->start != p->of->written) {
                continue;
            }
            TRY(piece_drain(p, err));
            if (p->start == p->end && p->request == NULL) {
                TRY(piece_done(s, p, err));
                again = true;
            }
        }
    }
    return LS_OK;
}

/* ---- Scheduling ---- */

/* The next piece of the first file that has one to give. */
static ls_status start_piece(session *s, piece *p, bool *started, ls_error *err) {
    *started = false;
    for (size_t i = 0; i < s->n_transfers; i++) {
        transfer *t = &s->transfer[i];
        if (t->state != TRANSFER_OPEN || t->next >= t->file->bytes || (!t->located && t->n_pieces > 0)) {
            continue;
        }
        if (p->buffer == NULL && (p->buffer = malloc((size_t)PIECE_BYTES)) == NULL) {
            return error_set(err, LS_ENOMEM, "%s: out of memory for a download", t->file->name);
        }
        int64_t left = t->file->bytes - t->next;
        p->of = t;
        p->start = t->next;
        p->end = t->next + (t->takes_whole || left < PIECE_BYTES ? left : PIECE_BYTES);
        p->n = 0;
        p->retries = 0;
        p->retry_at_ms = 0;
        t->next = p->end;
        t->n_pieces++;
        *started = true;
        return piece_begin(p, err);
    }
    return LS_OK;
}

static ls_status start_all(session *s, ls_error *err) {
    int n_active = 0, limit = s->d->client->connections;
    int64_t now = now_ms();
    if (now >= s->next_lock_ms) {
        bool is_busy = false;
        for (size_t i = 0; i < s->n_transfers && s->n_open < 2 * limit; i++) {
            if (s->transfer[i].state == TRANSFER_CLOSED) {
                TRY(transfer_open(s, &s->transfer[i], err));
                is_busy = is_busy || s->transfer[i].state == TRANSFER_CLOSED;
            }
        }
        s->next_lock_ms = is_busy ? now + LOCK_RETRY_MS : now;
    }
    for (size_t i = 0; i < s->n_pieces; i++) {
        n_active += s->piece[i].request != NULL;
    }
    for (size_t i = 0; i < s->n_pieces && n_active < limit; i++) {
        piece *p = &s->piece[i];
        bool started = false;
        if (p->of == NULL) {
            TRY(start_piece(s, p, &started, err));
        } else if (p->request == NULL && p->start + (int64_t)p->n < p->end && now >= p->retry_at_ms) {
            started = true;
            TRY(piece_begin(p, err));
        }
        n_active += started;
    }
    return LS_OK;
}

static ls_status run(session *s, ls_error *err) {
    while (s->n_done < s->n_transfers) {
        int n_running, n_messages;
        TRY(start_all(s, err));
        if (curl_multi_perform(s->multi, &n_running) != CURLM_OK) {
            return error_set(err, LS_EINTERNAL, "libcurl gave up");
        }
        for (CURLMsg *m; (m = curl_multi_info_read(s->multi, &n_messages)) != NULL;) {
            piece *p = NULL;
            CURLcode code = m->data.result;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &p);
            TRY(piece_answered(s, p, code, err));
        }
        TRY(drain_all(s, err));
        TRY(report(s, NULL, err));
        if (s->n_done < s->n_transfers) {
            curl_multi_poll(s->multi, NULL, 0, n_running > 0 ? POLL_MS : POLL_MS / 5, NULL);
        }
    }
    return LS_OK;
}

/* ---- All of it ---- */

/* The blobs that are missing, each once; the rest is linked. */
static ls_status collect(session *s, const hub_file *const *file, size_t n, ls_error *err) {
    download *d = s->d;
    char snapshot[HUB_PATH_BYTES];
    TRY(hub_snapshot_path(d->place, d->commit, snapshot, sizeof snapshot, err));
    for (size_t i = 0; i < n; i++) {
        transfer *t = &s->transfer[s->n_transfers];
        bool is_twin = false;
        *t = (transfer){.file = file[i], .fd = -1, .lock = -1};
        TRY(hub_blob_path(d->place, file[i]->etag, t->blob, sizeof t->blob, err));
        snprintf(t->part, sizeof t->part, "%s.incomplete", t->blob);
        if (hub_has_file(snapshot, file[i]->name)) {
            continue;
        }
        if (blob_is_there(t)) {
            TRY(hub_link(d->place, d->commit, file[i]->name, file[i]->etag, err));
            continue;
        }
        for (size_t j = 0; j < s->n_transfers; j++) {
            is_twin = is_twin || strcmp(s->transfer[j].file->etag, file[i]->etag) == 0;
        }
        s->n_transfers += !is_twin;
    }
    return LS_OK;
}

/* Room for what is missing. */
static ls_status check_space(session *s, ls_error *err) {
    struct statvfs fs;
    struct stat part;
    int64_t need = 0;
    for (size_t i = 0; i < s->n_transfers; i++) {
        const transfer *t = &s->transfer[i];
        int64_t have = stat(t->part, &part) == 0 && part.st_size <= t->file->bytes ? part.st_size : 0;
        need += t->file->bytes - have;
    }
    if (statvfs(s->d->place->repo, &fs) == 0 && (double)need > (double)fs.f_bavail * (double)fs.f_frsize) {
        return error_set(err, LS_EIO, "%s: %.1f GB are to be downloaded, but only %.1f GB are free there",
                         s->d->place->repo, (double)need / 1e9, (double)fs.f_bavail * (double)fs.f_frsize / 1e9);
    }
    return LS_OK;
}

static ls_status prepare(session *s, const hub_file *const *file, size_t n, ls_error *err) {
    download *d = s->d;
    s->n_pieces = (size_t)d->client->connections + SPARE_PIECES;
    s->transfer = calloc(n + 1, sizeof *s->transfer);
    s->piece = calloc(s->n_pieces, sizeof *s->piece);
    s->multi = curl_multi_init();
    if (s->transfer == NULL || s->piece == NULL || s->multi == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory for a download", d->name->repo);
    }
    for (size_t i = 0; i < s->n_pieces; i++) {
        s->piece[i].session = s;
    }
    TRY(collect(s, file, n, err));
    if (s->n_transfers == 0) {
        return LS_OK;
    }
    TRY(hub_make_folders(s->transfer[0].blob, err));
    hub_tag_cache(d->place);
    s->base_bytes = d->progress.total_bytes;
    d->progress.total_files += (int)s->n_transfers;
    for (size_t i = 0; i < s->n_transfers; i++) {
        d->progress.total_bytes += s->transfer[i].file->bytes;
    }
    return check_space(s, err);
}

ls_status download_files(download *d, const hub_file *const *file, size_t n, ls_error *err) {
    session s = {.d = d};
    ls_status st = LS_OK;
    d->progress.struct_size = sizeof d->progress;
    TRY_GOTO(prepare(&s, file, n, err), done);
    TRY_GOTO(run(&s, err), done);
    for (size_t i = 0; i < n; i++) { /* names that share a blob */
        TRY_GOTO(hub_link(d->place, d->commit, file[i]->name, file[i]->etag, err), done);
    }
done:
    for (size_t i = 0; s.piece != NULL && i < s.n_pieces; i++) {
        piece_stop(&s.piece[i]);
        free(s.piece[i].buffer);
    }
    for (size_t i = 0; i < s.n_transfers; i++) {
        transfer_close(&s.transfer[i]);
    }
    free(s.piece);
    free(s.transfer);
    curl_multi_cleanup(s.multi);
    return st;
}
