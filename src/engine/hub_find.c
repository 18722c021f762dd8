/* Models by name: cache first, then the hub. The public functions are described in lockstep.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "engine/engine.h"
#include "file/download.h"

enum { LISTING_MAX_BYTES = 32 << 20, FIND_MAX_FILES = 10000 };

/* What one call to ls_hub_find knows. */
typedef struct finder {
    const ls_hub_params *params;
    hub_name name;
    hub_place place;
    http_client client;
    hub_listing listing;
    const hub_file **wanted; /* [n_wanted] from the listing; owned */
    size_t n_wanted;
    char snapshot[HUB_PATH_BYTES];
    download download;
} finder;

static ls_status take_params(ls_hub_params *known, const ls_hub_params *params, ls_error *err) {
    TRY(check_struct_size("ls_hub_params", params->struct_size, sizeof *params, err));
    memcpy(known, params, params->struct_size);
    if (known->cache_folder == NULL || known->cache_folder[0] == '\0') {
        return error_set(err, LS_EINVAL, "ls_hub_params: cache_folder is missing");
    }
    return LS_OK;
}

/* ---- Which files ---- */

static ls_status want(void *user, const char *name, ls_error *err) {
    finder *f = user;
    const hub_file *file = hub_listing_find(&f->listing, name);
    if (file == NULL) {
        return error_set(err, LS_EFORMAT, "%s: model.safetensors.index.json names %s, which the repository lacks",
                         f->name.repo, name);
    }
    if (f->n_wanted == FIND_MAX_FILES) {
        return error_set(err, LS_EUNSUPPORTED, "%s: more than %d files", f->name.repo, FIND_MAX_FILES);
    }
    f->wanted[f->n_wanted++] = file;
    return LS_OK;
}

static const char *const INDEX = "model.safetensors.index.json";
static const char *const SINGLE = "model.safetensors";

/* Before anything is fetched: is this a model that we read? */
static ls_status check_listing(const finder *f, ls_error *err) {
    bool weights = !f->params->skip_weights;
    const char *missing = NULL;
    if (hub_listing_find(&f->listing, "config.json") == NULL) {
        missing = "config.json";
    } else if (weights && hub_listing_find(&f->listing, "tokenizer.json") == NULL) {
        missing = "tokenizer.json";
    } else if (weights && hub_listing_find(&f->listing, INDEX) == NULL &&
               hub_listing_find(&f->listing, SINGLE) == NULL) {
        missing = "model.safetensors";
    }
    return missing == NULL ? LS_OK
                           : error_set(err, LS_EUNSUPPORTED, "%s: the repository has no %s, which lockstep needs",
                                       f->name.repo, missing);
}

/* What the list does not say of a file, the file's own headers do. */
static ls_status complete_metadata(finder *f, hub_file *file, ls_error *err) {
    if (file->bytes >= 0 && file->etag[0] != '\0') {
        return LS_OK;
    }
    char url[HTTP_URL_BYTES];
    http_body body = {.max = 1 << 16};
    http_answer *answer = calloc(1, sizeof *answer);
    if (answer == NULL) {
        return error_set(err, LS_ENOMEM, "hub: out of memory");
    }
    ls_status st = LS_OK;
    http_file_url(&f->client, &f->name, f->listing.commit, file->name, url);
    TRY_GOTO(http_fetch(&f->client, url, true, f->client.max_retries, 0, &body, answer, err), done);
    if (answer->code != CURLE_OK || answer->status >= 400) {
        TRY_GOTO(http_explain(&f->client, &f->name, file->name, answer, err), done);
    }
    if (answer->bytes < 0 || answer->etag[0] == '\0') {
        TRY_GOTO(error_set(err, LS_ENETWORK,
                           "%s: %s: %s does not say the size and hash of this file, so it cannot be verified",
                           f->name.repo, file->name, f->client.endpoint),
                 done);
    }
    file->bytes = answer->bytes;
    memcpy(file->etag, answer->etag, sizeof file->etag);
done:
    free(body.data);
    free(answer);
    return st;
}

static ls_status fetch_wanted(finder *f, ls_error *err) {
    for (size_t i = 0; i < f->n_wanted; i++) {
        TRY(complete_metadata(f, (hub_file *)f->wanted[i], err));
    }
    return download_files(&f->download, f->wanted, f->n_wanted, err);
}

/* Config, tokenizer and templates; the weights, or their index and then what it names. */
static ls_status fetch_all(finder *f, ls_error *err) {
    bool sharded = hub_listing_find(&f->listing, INDEX) != NULL;
    char index[HUB_PATH_BYTES];
    f->wanted = calloc(FIND_MAX_FILES, sizeof *f->wanted);
    if (f->wanted == NULL) {
        return error_set(err, LS_ENOMEM, "hub: out of memory");
    }
    for (size_t i = 0; i < f->listing.n; i++) {
        if (hub_file_is_text(f->listing.file[i].name)) {
            TRY(want(f, f->listing.file[i].name, err));
        }
    }
    if (!f->params->skip_weights) {
        TRY(want(f, sharded ? INDEX : SINGLE, err));
    }
    TRY(fetch_wanted(f, err));
    if (f->params->skip_weights || !sharded) {
        return LS_OK;
    }
    f->n_wanted = 0;
    TRY(path_join(index, sizeof index, f->snapshot, INDEX, err));
    TRY(hub_index_read(index, want, f, err));
    return fetch_wanted(f, err);
}

/* ---- The hub ---- */

/* The list of files of the revision. In a hurry: the cache has an answer already. */
static ls_status ask_listing(finder *f, bool in_a_hurry, ls_error *err) {
    char url[HTTP_URL_BYTES];
    http_body body = {.max = LISTING_MAX_BYTES};
    http_answer *answer = calloc(1, sizeof *answer);
    if (answer == NULL) {
        return error_set(err, LS_ENOMEM, "hub: out of memory");
    }
    ls_status st = LS_OK;
    http_listing_url(&f->client, &f->name, url);
    TRY_GOTO(http_fetch(&f->client, url, false, in_a_hurry ? 0 : f->client.max_retries,
                        in_a_hurry ? f->client.timeout_ms : 0, &body, answer, err),
             done);
    if (answer->code != CURLE_OK || answer->status != 200) {
        TRY_GOTO(http_explain(&f->client, &f->name, NULL, answer, err), done);
    }
    TRY_GOTO(hub_listing_parse(&f->listing, "the hub's list of files", body.data, body.n, err), done);
    if (f->name.is_commit && strcmp(f->listing.commit, f->name.revision) != 0) {
        TRY_GOTO(error_set(err, LS_ENETWORK, "%s: %s was asked for commit %s and answered with %s", f->name.repo,
                           f->client.endpoint, f->name.revision, f->listing.commit),
                 done);
    }
done:
    free(body.data);
    free(answer);
    return st;
}

static ls_status find_online(finder *f, bool has_local, ls_error *err) {
    TRY(http_init(&f->client, f->params, err));
    ls_error why = {0};
    ls_status st = ask_listing(f, has_local, &why);
    if (has_local && (st == LS_ENETWORK || st == LS_EDENIED)) {
        log_line(&f->client.log, LS_LOG_WARN, "%s; using what the cache has", why.text);
        return LS_OK;
    }
    if (st != LS_OK) {
        if (err != NULL) {
            *err = why;
        }
        return st;
    }
    TRY(check_listing(f, err));
    TRY(hub_snapshot_path(&f->place, f->listing.commit, f->snapshot, sizeof f->snapshot, err));
    f->download = (download){.client = &f->client,
                             .place = &f->place,
                             .name = &f->name,
                             .commit = f->listing.commit,
                             .fn = f->params->progress_fn,
                             .user = f->params->user};
    TRY(fetch_all(f, err));
    if (hub_ref_write(&f->place, &f->name, f->listing.commit, &why) != LS_OK) {
        log_line(&f->client.log, LS_LOG_WARN, "%s", why.text); /* the files are there all the same */
    }
    return LS_OK;
}

static ls_status find(finder *f, const char *name, ls_error *err) {
    ls_error why = {0};
    char commit[HUB_COMMIT_BYTES] = "";
    unsigned parts = HUB_CONFIG | HUB_TOKENIZER | (f->params->skip_weights ? 0 : HUB_WEIGHTS);
    TRY(hub_name_parse(&f->name, name, err));
    TRY(hub_place_init(&f->place, f->params->cache_folder, &f->name, err));
    if (f->name.is_commit) {
        memcpy(commit, f->name.revision, sizeof commit);
    }
    bool has_local = commit[0] != '\0' || hub_ref_read(&f->place, &f->name, commit);
    if (has_local) {
        TRY(hub_snapshot_path(&f->place, commit, f->snapshot, sizeof f->snapshot, err));
        has_local = hub_snapshot_check(f->snapshot, parts, &why) == LS_OK;
    }
    if (has_local && (f->name.is_commit || f->params->offline)) {
        return LS_OK;
    }
    if (f->params->offline) {
        return error_set(err, LS_ENOTFOUND,
                         "%s is not in the cache %s%s%s, and the hub is switched off (HF_HUB_OFFLINE)", name,
                         f->params->cache_folder, why.text[0] != '\0' ? ": " : "", why.text);
    }
    return find_online(f, has_local, err);
}

ls_status ls_hub_find(const ls_hub_params *params, const char *name, char **folder, ls_error *err) {
    ls_hub_params known = {0};
    TRY(take_params(&known, params, err));
    finder *f = calloc(1, sizeof *f); /* large for a stack */
    if (f == NULL) {
        return error_set(err, LS_ENOMEM, "hub: out of memory");
    }
    ls_status st = LS_OK;
    f->params = &known;
    TRY_GOTO(find(f, name, err), done);
    char *found = strdup(f->snapshot);
    if (found == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "hub: out of memory"), done);
    }
    *folder = found;
done:
    hub_listing_deinit(&f->listing);
    http_deinit(&f->client);
    free(f->wanted);
    free(f);
    return st;
}

bool ls_hub_is_name(const char *text) {
    hub_name name;
    return hub_name_parse(&name, text, NULL) == LS_OK;
}

/* ---- For doctor ---- */

ls_status ls_hub_check(const ls_hub_params *params, ls_hub_state *out, ls_error *err) {
    ls_hub_params known = {0};
    http_client client = {0};
    http_body body = {.max = 1 << 20};
    ls_status st = LS_OK;
    TRY(take_params(&known, params, err));
    TRY(check_struct_size("ls_hub_state", out->struct_size, SIZE_MAX, err));
    TRY(http_init(&client, &known, err));
    http_answer *answer = calloc(1, sizeof *answer);
    if (answer == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "hub: out of memory"), done);
    }
    TRY_GOTO(http_fetch(&client, client.endpoint, true, 0, client.timeout_ms, &body, answer, err), done);
    ls_hub_state state = {.struct_size = out->struct_size,
                          .reachable = answer->code == CURLE_OK,
                          .http_status = (int)answer->status,
                          .latency_us = answer->latency_us};
    if (answer->code != CURLE_OK) {
        hub_name nothing = {.repo = "hub"};
        ls_error why = {0};
        http_explain(&client, &nothing, NULL, answer, &why);
        snprintf(state.text, sizeof state.text, "%s", why.text);
    }
    memcpy(out, &state, out->struct_size < sizeof state ? out->struct_size : sizeof state);
done:
    free(body.data);
    free(answer);
    http_deinit(&client);
    return st;
}

ls_status ls_hub_list(const ls_hub_params *params, ls_hub_model **out, size_t *n, ls_error *err) {
    ls_hub_params known = {0};
    TRY(take_params(&known, params, err));
    return hub_list(known.cache_folder, out, n, err);
}
