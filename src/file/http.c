/* See http.h. */
#include "file/http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "file/hub_answer.h"

/* ---- Client ---- */

/* Where distributions keep their certificates: a libcurl that was built on one (make bundle) looks in the wrong place on
 * another. */
static const char *system_ca_file(void) {
    static const char *const known[] = {
        "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Ubuntu, Arch, Alpine */
        "/etc/pki/tls/certs/ca-bundle.crt",                  /* Fedora, RHEL */
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* newer Fedora, RHEL */
        "/etc/ssl/ca-bundle.pem",                            /* SUSE */
        "/etc/ssl/cert.pem",                                 /* Alpine, BSD */
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (file_exists(known[i])) {
            return known[i];
        }
    }
    return NULL;
}

static ls_status add_header(struct curl_slist **list, const char *line, ls_error *err) {
    struct curl_slist *grown = curl_slist_append(*list, line);
    if (grown == NULL) {
        return error_set(err, LS_ENOMEM, "hub: out of memory");
    }
    *list = grown;
    return LS_OK;
}

static ls_status set_token(http_client *client, const char *token, ls_error *err) {
    char line[1200];
    TRY(add_header(&client->without_token, "Accept: */*", err));
    TRY(add_header(&client->with_token, "Accept: */*", err));
    if (token == NULL || token[0] == '\0') {
        return LS_OK;
    }
    for (const char *c = token; *c != '\0'; c++) {
        if (*c <= ' ' || *c >= 0x7f) {
            return error_set(err, LS_EINVAL, "the hub's token holds a character that no token has (byte %d of it)",
                             (int)(c - token) + 1);
        }
    }
    if ((size_t)snprintf(line, sizeof line, "Authorization: Bearer %s", token) >= sizeof line) {
        return error_set(err, LS_EINVAL, "the hub's token is longer than %d characters", 1000);
    }
    client->has_token = true;
    return add_header(&client->with_token, line, err);
}

static bool is_scheme(const char *url, const char *scheme) {
    return strncasecmp(url, scheme, strlen(scheme)) == 0;
}

ls_status http_init(http_client *client, const ls_hub_params *params, ls_error *err) {
    http_client fresh = {
        .ca_file = params->ca_file != NULL ? params->ca_file : system_ca_file(),
        .connections = params->connections > 0 ? params->connections : 8,
        .max_retries = params->max_retries > 0 ? params->max_retries : 5,
        .retry_delay_ms = params->retry_delay_ms > 0 ? params->retry_delay_ms : 1000,
        .timeout_ms = params->timeout_ms > 0 ? params->timeout_ms : 10000,
        .log = {params->log_fn, params->user, params->log_level},
    };
    const char *endpoint = params->endpoint != NULL ? params->endpoint : "https://huggingface.co";
    size_t n = strlen(endpoint);
    if (params->connections > 64 || params->max_retries > 100) {
        return error_set(err, LS_EINVAL, "ls_hub_params: at most 64 connections and 100 max_retries");
    }
    while (n > 0 && endpoint[n - 1] == '/') {
        n--;
    }
    if (n >= sizeof fresh.endpoint || (!is_scheme(endpoint, "https://") && !is_scheme(endpoint, "http://")) ||
        strpbrk(endpoint, "@?# \r\n") != NULL) {
        return error_set(err, LS_EINVAL, "'%.200s' is not the address of a hub: expected https://HOST (HF_ENDPOINT)",
                         endpoint);
    }
    memcpy(fresh.endpoint, endpoint, n);
    if (params->ca_file != NULL && !file_exists(params->ca_file)) {
        return error_set(err, LS_EIO, "%s: cannot read this file of certificates (SSL_CERT_FILE)", params->ca_file);
    }
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        return error_set(err, LS_EINTERNAL, "libcurl cannot be initialised");
    }
    *client = fresh;
    ls_status st = set_token(client, params->token, err);
    if (st != LS_OK) {
        http_deinit(client);
    }
    return st;
}

void http_deinit(http_client *client) {
    if (client->without_token != NULL) {
        curl_slist_free_all(client->without_token);
        curl_slist_free_all(client->with_token);
        curl_global_cleanup();
    }
    *client = (http_client){0};
}

/* ---- URLs ---- */

static void append_escaped(char *out, size_t *n, size_t out_bytes, const char *text, bool keep_slash) {
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     strchr("-._~", c) != NULL || (c == '/' && keep_slash);
        *n += (size_t)snprintf(out + *n, *n < out_bytes ? out_bytes - *n : 0, plain ? "%c" : "%%%02X", c);
        *n = *n < out_bytes ? *n : out_bytes - 1;
    }
}

void http_listing_url(const http_client *client, const hub_name *name, char out[HTTP_URL_BYTES]) {
    size_t n = (size_t)snprintf(out, HTTP_URL_BYTES, "%s/api/models/%s/revision/", client->endpoint, name->repo);
    append_escaped(out, &n, HTTP_URL_BYTES - 16, name->revision, false);
    snprintf(out + n, HTTP_URL_BYTES - n, "?blobs=true");
}

void http_file_url(const http_client *client, const hub_name *name, const char *commit, const char *file,
                   char out[HTTP_URL_BYTES]) {
    size_t n = (size_t)snprintf(out, HTTP_URL_BYTES, "%s/%s/resolve/%s/", client->endpoint, name->repo, commit);
    append_escaped(out, &n, HTTP_URL_BYTES, file, true);
}

/* Scheme, host and port of a URL, the port also where it is the scheme's own. */
static bool origin_of(const char *url, char *out, size_t out_bytes) {
    char *scheme = NULL, *host = NULL, *port = NULL;
    CURLU *parts = curl_url();
    bool good = parts != NULL && curl_url_set(parts, CURLUPART_URL, url, 0) == CURLUE_OK &&
                curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
                curl_url_get(parts, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
                curl_url_get(parts, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK;
    int n = good ? snprintf(out, out_bytes, "%s://%s:%s", scheme, host, port) : 0;
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(parts);
    return good && n > 0 && (size_t)n < out_bytes;
}

bool http_same_origin(const char *url, const char *other) {
    char a[1024], b[1024];
    return origin_of(url, a, sizeof a) && origin_of(other, b, sizeof b) && strcasecmp(a, b) == 0;
}

/* ---- Requests ---- */

CURL *http_request(const http_client *client, const char *url, char *why) {
    CURL *request = curl_easy_init();
    if (request == NULL) {
        return NULL;
    }
    bool to_hub = http_same_origin(url, client->endpoint);
    long timeout_ms = client->timeout_ms;
    curl_easy_setopt(request, CURLOPT_URL, url);
    curl_easy_setopt(request, CURLOPT_HTTPHEADER, to_hub ? client->with_token : client->without_token);
    curl_easy_setopt(request, CURLOPT_USERAGENT, "lockstep/" LS_VERSION);
    curl_easy_setopt(request, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(request, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(request, CURLOPT_NOSIGNAL, 1L);
    /* Several streams in one connection would share its window: ranges are worth it only on connections of their own. */
    curl_easy_setopt(request, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(request, CURLOPT_CONNECTTIMEOUT_MS, timeout_ms);
    curl_easy_setopt(request, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(request, CURLOPT_LOW_SPEED_TIME, (3 * timeout_ms + 999) / 1000);
    if (client->ca_file != NULL) {
        curl_easy_setopt(request, CURLOPT_CAINFO, client->ca_file);
    }
    if (why != NULL) {
        why[0] = '\0';
        curl_easy_setopt(request, CURLOPT_ERRORBUFFER, why);
    }
    return request;
}

const char *http_header(CURL *request, const char *name) {
    struct curl_header *header;
    return curl_easy_header(request, name, 0, CURLH_HEADER, -1, &header) == CURLHE_OK ? header->value : NULL;
}

/* A header's text for people: what a terminal might obey becomes '?'. */
static void copy_printable(char *out, size_t out_bytes, const char *text) {
    snprintf(out, out_bytes, "%s", text != NULL ? text : "");
    for (char *c = out; *c != '\0'; c++) {
        *c = *c >= ' ' && *c < 0x7f ? *c : '?';
    }
}

void http_answer_read(CURL *request, CURLcode code, http_answer *answer) {
    curl_off_t wait_s = 0, first_byte_us = 0;
    char *redirect = NULL;
    answer->code = code;
    answer->bytes = -1;
    answer->etag[0] = answer->redirect[0] = '\0';
    curl_easy_getinfo(request, CURLINFO_RESPONSE_CODE, &answer->status);
    curl_easy_getinfo(request, CURLINFO_RETRY_AFTER, &wait_s);
    curl_easy_getinfo(request, CURLINFO_STARTTRANSFER_TIME_T, &first_byte_us);
    curl_easy_getinfo(request, CURLINFO_REDIRECT_URL, &redirect);
    answer->latency_us = first_byte_us;
    answer->retry_ms = wait_s <= 0 ? 0 : wait_s < INT32_MAX / 1000 ? wait_s * 1000 : INT32_MAX;
    if (redirect != NULL && strlen(redirect) < sizeof answer->redirect) {
        memcpy(answer->redirect, redirect, strlen(redirect) + 1);
    }
    copy_printable(answer->error_code, sizeof answer->error_code, http_header(request, "X-Error-Code"));
    copy_printable(answer->error_message, sizeof answer->error_message, http_header(request, "X-Error-Message"));
    const char *linked = http_header(request, "X-Linked-ETag"), *etag = http_header(request, "ETag");
    const char *size = http_header(request, "X-Linked-Size");
    if (linked != NULL || etag != NULL) {
        hub_etag_read(linked != NULL ? linked : etag, answer->etag);
    }
    if (size == NULL && answer->status == 200) {
        size = http_header(request, "Content-Length");
    }
    if (size != NULL) {
        hub_size_read(size, &answer->bytes);
    }
}

bool http_is_redirect(const http_answer *answer) {
    return answer->code == CURLE_OK && answer->status >= 300 && answer->status < 400 && answer->redirect[0] != '\0';
}

ls_status http_check_redirect(const char *from, const http_answer *answer, int n_before, ls_error *err) {
    const char *to = answer->redirect;
    if (!is_scheme(to, "https://") && !is_scheme(to, "http://")) {
        return error_set(err, LS_ENETWORK, "%.150s redirects to %.150s, which is not the web", from, to);
    }
    if (is_scheme(from, "https://") && !is_scheme(to, "https://")) {
        return error_set(err, LS_ENETWORK, "%.150s redirects to %.150s: refused, it is not encrypted", from, to);
    }
    if (n_before >= HTTP_MAX_REDIRECTS) {
        return error_set(err, LS_ENETWORK, "%.200s: more than %d redirects", from, HTTP_MAX_REDIRECTS);
    }
    return LS_OK;
}

/* ---- What to do about failures ---- */

static bool is_certificate_problem(CURLcode code) {
    return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
           code == CURLE_SSL_ISSUER_ERROR || code == CURLE_SSL_CERTPROBLEM;
}

bool http_worth_retry(const http_answer *answer) {
    if (answer->code != CURLE_OK && answer->code != CURLE_HTTP_RETURNED_ERROR) {
        return !is_certificate_problem(answer->code) && answer->code != CURLE_OUT_OF_MEMORY &&
               answer->code != CURLE_URL_MALFORMAT && answer->code != CURLE_UNSUPPORTED_PROTOCOL;
    }
    return answer->status == 408 || answer->status == 429 || answer->status >= 500;
}

int64_t http_retry_delay_ms(const http_client *client, int retry, const http_answer *answer) {
    int64_t delay = (int64_t)client->retry_delay_ms << (retry < 5 ? retry : 5);
    delay +=
        (int64_t)((uint64_t)clock_ns() / 1000 % (uint64_t)(delay / 4 + 1)); /* not all clients at the same moment */
    return answer->retry_ms > delay ? answer->retry_ms : delay;
}

/* HTTP statuses that say something about the model, its revision or its file. */
static ls_status explain_refusal(const http_client *client, const hub_name *name, const char *file,
                                 const http_answer *answer, ls_error *err) {
    const char *host = client->endpoint, *code = answer->error_code, *words = answer->error_message;
    if (strcmp(code, "GatedRepo") == 0) {
        return error_set(err, LS_EDENIED, "%s is gated: ask for access at %s/%s%s", name->repo, host, name->repo,
                         client->has_token ? " with the account whose token this is" : ", then set HF_TOKEN");
    }
    if (strcmp(code, "RevisionNotFound") == 0) {
        return error_set(err, LS_ENOTFOUND, "%s has no revision '%s' on %s", name->repo, name->revision, host);
    }
    if (answer->status == 401 && strncmp(words, "Invalid credentials", 19) == 0) {
        return error_set(err, LS_EDENIED, "%s does not accept the token: set HF_TOKEN to a valid one, or to nothing",
                         host);
    }
    if (answer->status == 401 || answer->status == 403) {
        return error_set(err, LS_EDENIED, "%s: %s says HTTP %ld%s%s: the model does not exist, or is private; %s",
                         name->repo, host, answer->status, words[0] != '\0' ? ", " : "", words,
                         client->has_token ? "the token does not open it" : "set HF_TOKEN if you may read it");
    }
    if (file != NULL && strcmp(code, "RepoNotFound") != 0) {
        return error_set(err, LS_ENOTFOUND, "%s: %s: not on %s", name->repo, file, host);
    }
    return error_set(err, LS_ENOTFOUND, "%s: no such model on %s", name->repo, host);
}

ls_status http_explain(const http_client *client, const hub_name *name, const char *file, const http_answer *answer,
                       ls_error *err) {
    char what[HUB_REPO_BYTES + HUB_REVISION_BYTES + 4];
    snprintf(what, sizeof what, "%s%s%s", name->repo, file != NULL ? ": " : "", file != NULL ? file : "");
    if (answer->code == CURLE_OUT_OF_MEMORY) {
        return error_set(err, LS_ENOMEM, "%s: libcurl is out of memory", what);
    }
    if (is_certificate_problem(answer->code)) {
        return error_set(err, LS_ENETWORK,
                         "%s: %s: its certificate is not trusted: %s; certificates were looked for in %s; set "
                         "SSL_CERT_FILE if yours are elsewhere",
                         what, client->endpoint, answer->why,
                         client->ca_file != NULL ? client->ca_file
                                                 : "libcurl's own place, and no system's file is here");
    }
    if (answer->code != CURLE_OK) {
        return error_set(err, LS_ENETWORK, "%s: %s cannot be reached, or breaks off: %s", what, client->endpoint,
                         answer->why[0] != '\0' ? answer->why : curl_easy_strerror(answer->code));
    }
    if (answer->status == 429) {
        return error_set(err, LS_ENETWORK, "%s: %s has had too many requests from here (HTTP 429); try again later%s",
                         what, client->endpoint, client->has_token ? "" : ", or with a token in HF_TOKEN");
    }
    if (answer->status == 401 || answer->status == 403 || answer->status == 404 || answer->status == 410) {
        return explain_refusal(client, name, file, answer, err);
    }
    return error_set(err, LS_ENETWORK, "%s: %s says HTTP %ld%s%s", what, client->endpoint, answer->status,
                     answer->error_message[0] != '\0' ? ": " : "", answer->error_message);
}

/* ---- Small questions ---- */

static size_t take_body(char *bytes, size_t unit, size_t n, void *user) {
    http_body *body = user;
    n *= unit;
    if (n > body->max - body->n) {
        return 0; /* ends the transfer with CURLE_WRITE_ERROR */
    }
    char *grown = realloc(body->data, body->n + n + 1);
    if (grown == NULL) {
        return 0;
    }
    memcpy(grown + body->n, bytes, n);
    body->data = grown;
    body->n += n;
    grown[body->n] = '\0';
    return n;
}

/* One request, no redirect, no retry. */
static ls_status ask(const http_client *client, const char *url, bool head, int64_t left_ms, http_body *body,
                     http_answer *answer, ls_error *err) {
    body->n = 0;
    CURL *request = http_request(client, url, answer->why);
    if (request == NULL) {
        return error_set(err, LS_ENOMEM, "hub: out of memory");
    }
    curl_easy_setopt(request, CURLOPT_NOBODY, head ? 1L : 0L);
    curl_easy_setopt(request, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(request, CURLOPT_WRITEDATA, body);
    if (left_ms > 0) {
        curl_easy_setopt(request, CURLOPT_TIMEOUT_MS, (long)left_ms);
    }
    CURLcode code = curl_easy_perform(request);
    http_answer_read(request, code, answer);
    curl_easy_cleanup(request);
    if (code == CURLE_WRITE_ERROR) {
        return error_set(err, LS_ENETWORK, "%.300s: the answer is longer than %zu bytes", url, body->max);
    }
    return LS_OK;
}

ls_status http_fetch(const http_client *client, const char *url, bool head, int max_retries, int64_t total_ms,
                     http_body *body, http_answer *answer, ls_error *err) {
    char at[HTTP_URL_BYTES];
    int64_t start_ms = clock_ns() / 1000000;
    int n_redirects = 0, n_retries = 0;
    snprintf(at, sizeof at, "%s", url);
    for (;;) {
        int64_t left_ms = total_ms > 0 ? start_ms + total_ms - clock_ns() / 1000000 : 0;
        TRY(ask(client, at, head, total_ms > 0 && left_ms < 1 ? 1 : left_ms, body, answer, err));
        if (http_is_redirect(answer) && !(head && !http_same_origin(at, answer->redirect))) {
            TRY(http_check_redirect(at, answer, n_redirects++, err));
            memcpy(at, answer->redirect, sizeof at);
            continue;
        }
        /* Nobody there at all, before anything has begun: most likely nobody will be. */
        bool is_absent = answer->code == CURLE_COULDNT_RESOLVE_HOST || answer->code == CURLE_COULDNT_RESOLVE_PROXY ||
                         answer->code == CURLE_COULDNT_CONNECT;
        if (n_retries >= (is_absent && max_retries > 2 ? 2 : max_retries) || !http_worth_retry(answer)) {
            return LS_OK;
        }
        int64_t wait_ms = http_retry_delay_ms(client, n_retries++, answer);
        if (wait_ms > HTTP_MAX_WAIT_MS || (total_ms > 0 && wait_ms >= left_ms)) {
            return LS_OK;
        }
        log_line(&client->log, wait_ms < 5000 ? LS_LOG_INFO : LS_LOG_WARN, "%s: %s; again in %lld ms", client->endpoint,
                 answer->code != CURLE_OK ? curl_easy_strerror(answer->code) : "the server is busy",
                 (long long)wait_ms);
        usleep((useconds_t)wait_ms * 1000);
    }
}
