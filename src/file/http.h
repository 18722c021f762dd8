/*
 * Requests to a hub, through libcurl: certificates are always checked, redirects are followed by us, one at a time, so that
 * the token goes to the endpoint alone (its scheme, host and port) and https never becomes http.
 *
 * Proxies are libcurl's: it reads https_proxy and its kin from the environment by itself. A client is used by one thread.
 */
#ifndef LS_FILE_HTTP_H
#define LS_FILE_HTTP_H

#include <curl/curl.h>

#include "base/log.h"
#include "file/hub.h"

enum { HTTP_URL_BYTES = 8192, HTTP_MAX_REDIRECTS = 5, HTTP_MAX_WAIT_MS = 600000 };

typedef struct http_client {
    char endpoint[1024]; /* without a '/' at the end */
    const char *ca_file; /* NULL: libcurl's own */
    struct curl_slist *with_token, *without_token;
    bool has_token;
    int connections, max_retries, retry_delay_ms, timeout_ms;
    ls_log log;
} http_client;

/* params are borrowed for the client's life, with the defaults of ls_hub_params for what is zero. LS_EINVAL names the
 * field. */
ls_status http_init(http_client *client, const ls_hub_params *params, ls_error *err);
void http_deinit(http_client *client); /* accepts a zeroed client */

/* What came before the body of an answer. */
typedef struct http_answer {
    CURLcode code;                 /* CURLE_OK: an HTTP answer came, of any status */
    long status;                   /* 0: none */
    int64_t retry_ms;              /* that the server asks to wait; 0: nothing said */
    int64_t latency_us;            /* until the first byte */
    char redirect[HTTP_URL_BYTES]; /* absolute; "" */
    char etag[HUB_ETAG_BYTES];     /* the file's hash (X-Linked-ETag, else ETag); "" */
    int64_t bytes;                 /* the file's size (X-Linked-Size, else Content-Length where it is the file); -1 */
    char error_code[64], error_message[160]; /* the hub's own, printable; "" */
    char why[CURL_ERROR_SIZE];               /* libcurl's */
} http_answer;

/* A request with everything set but what receives the body; why is the answer's, or NULL. The caller's, to be freed with
 * curl_easy_cleanup. NULL if there is no memory. */
CURL *http_request(const http_client *client, const char *url, char *why);
/* A header of the answer so far, or NULL; borrowed from the request. */
const char *http_header(CURL *request, const char *name);
/* Reads a finished request. */
void http_answer_read(CURL *request, CURLcode code, http_answer *answer);

bool http_is_redirect(const http_answer *answer);
/* Whether a redirect may be followed: LS_ENETWORK for https to http, for schemes that are neither, for loops. */
ls_status http_check_redirect(const char *from, const http_answer *answer, int n_before, ls_error *err);
bool http_same_origin(const char *url, const char *other);

/* Whether the same request may succeed later, and how long to wait for the n-th retry (0 the first). */
bool http_worth_retry(const http_answer *answer);
int64_t http_retry_delay_ms(const http_client *client, int retry, const http_answer *answer);

/* What went wrong, for people; never LS_OK. revision and file may be NULL. */
ls_status http_explain(const http_client *client, const hub_name *name, const char *file, const http_answer *answer,
                       ls_error *err);

typedef struct http_body {
    char *data; /* owned; NUL-terminated */
    size_t n, max;
} http_body;

/* One small question with redirects and retries. head: no body is asked for, and a redirect to another origin is the
 * answer rather than followed: the hub describes the file in it. total_ms bounds it all; 0: no bound. body->max is the
 * most that is taken. LS_OK whenever an HTTP answer came: its status is the caller's to judge. */
ls_status http_fetch(const http_client *client, const char *url, bool head, int max_retries, int64_t total_ms,
                     http_body *body, http_answer *answer, ls_error *err);

/* <endpoint>/api/models/<repo>/revision/<revision>?blobs=true and <endpoint>/<repo>/resolve/<commit>/<file>. */
void http_listing_url(const http_client *client, const hub_name *name, char out[HTTP_URL_BYTES]);
void http_file_url(const http_client *client, const hub_name *name, const char *commit, const char *file,
                   char out[HTTP_URL_BYTES]);

#endif
