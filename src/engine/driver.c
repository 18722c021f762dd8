/*
 * Who drives an engine: the caller, step by step, or a thread of the engine's own that steps while there is work. The lock
 * and its rules are described in engine.h, the public functions in lockstep.h.
 *
 * News (new tokens, an end) is kept as a list of requests, each in it at most once, for ls_engine_poll; event_fd is an
 * eventfd that is readable exactly while the list is not empty.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/engine.h"

ls_status driver_init(ls_engine *engine, ls_error *err) {
    pthread_condattr_t monotonic;
    engine->driver.event_fd = -1;
    engine->driver.news_end = &engine->driver.news;
    bool good = pthread_condattr_init(&monotonic) == 0;
    if (good) {
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        good = pthread_mutex_init(&engine->lock, NULL) == 0 && pthread_cond_init(&engine->step_over, NULL) == 0 &&
               pthread_cond_init(&engine->work, NULL) == 0 && pthread_cond_init(&engine->told, &monotonic) == 0;
        pthread_condattr_destroy(&monotonic);
    }
    return good ? LS_OK : error_set(err, LS_ENOMEM, "engine: out of memory");
}

void driver_deinit(ls_engine *engine) {
    if (engine->driver.event_fd >= 0) {
        close(engine->driver.event_fd);
    }
    pthread_cond_destroy(&engine->told);
    pthread_cond_destroy(&engine->work);
    pthread_cond_destroy(&engine->step_over);
    pthread_mutex_destroy(&engine->lock);
}

void engine_lock_idle(ls_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->n_idle_waiters++;
    while (engine->in_step) {
        pthread_cond_wait(&engine->step_over, &engine->lock);
    }
    engine->n_idle_waiters--;
    pthread_cond_broadcast(&engine->step_over); /* the driver waits for this */
}

void driver_wake(ls_engine *engine) {
    pthread_cond_signal(&engine->work);
}

/* ---- Stepping ---- */

ls_status ls_engine_step(ls_engine *engine, ls_error *err) {
    pthread_mutex_lock(&engine->lock);
    ls_status st = engine->driver.started
                       ? error_set(err, LS_EINVAL,
                                   "ls_engine_step: the engine's own thread drives it; ls_engine_stop "
                                   "ends that")
                       : engine_step(engine, err);
    pthread_mutex_unlock(&engine->lock);
    return st;
}

static void *drive(void *arg) {
    ls_engine *engine = arg;
    pthread_mutex_lock(&engine->lock);
    while (!engine->driver.stopping) {
        if (engine->n_idle_waiters > 0) {
            pthread_cond_wait(&engine->step_over, &engine->lock);
        } else if (engine_step(engine, NULL) != LS_OK) { /* idle; or dead, which its requests have been told */
            pthread_cond_wait(&engine->work, &engine->lock);
        }
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

static ls_status start(ls_engine *engine, ls_error *err) {
    engine_driver *driver = &engine->driver;
    if (driver->started) {
        return error_set(err, LS_EINVAL, "ls_engine_start: the engine runs already");
    }
    if (driver->event_fd < 0) {
        driver->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    }
    if (driver->event_fd < 0) {
        return error_set(err, LS_EIO, "ls_engine_start: no file descriptor: %s", strerror(errno));
    }
    driver->stopping = false;
    int rc = thread_start(&driver->thread, drive, engine);
    if (rc != 0) {
        return error_set(err, LS_ENOMEM, "ls_engine_start: no thread: %s", strerror(rc));
    }
    driver->started = true;
    return LS_OK;
}

ls_status ls_engine_start(ls_engine *engine, ls_error *err) {
    pthread_mutex_lock(&engine->lock);
    ls_status st = start(engine, err);
    pthread_mutex_unlock(&engine->lock);
    return st;
}

void ls_engine_stop(ls_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    bool started = engine->driver.started;
    engine->driver.stopping = true;
    pthread_cond_signal(&engine->work);
    pthread_cond_broadcast(&engine->told);
    pthread_mutex_unlock(&engine->lock);
    if (started) {
        pthread_join(engine->driver.thread, NULL);
        pthread_mutex_lock(&engine->lock);
        engine->driver.started = false;
        pthread_mutex_unlock(&engine->lock);
    }
}

/* ---- News ---- */

void driver_tell(ls_engine *engine, ls_request *request) {
    engine_driver *driver = &engine->driver;
    if (!driver->started || request->has_news) {
        return;
    }
    if (driver->news == NULL) {
        eventfd_write(driver->event_fd, 1);
        pthread_cond_broadcast(&engine->told);
    }
    request->has_news = true;
    request->next_news = NULL;
    *driver->news_end = request;
    driver->news_end = &request->next_news;
}

/* The list has become empty. */
static void quiet(engine_driver *driver) {
    eventfd_t count;
    driver->news_end = &driver->news;
    eventfd_read(driver->event_fd, &count);
}

static ls_request *take_news(engine_driver *driver) {
    ls_request *request = driver->news;
    driver->news = request->next_news;
    request->has_news = false;
    if (driver->news == NULL) {
        quiet(driver);
    }
    return request;
}

void driver_forget(ls_engine *engine, ls_request *request) {
    engine_driver *driver = &engine->driver;
    if (!request->has_news) {
        return;
    }
    ls_request **link = &driver->news;
    while (*link != request) {
        link = &(*link)->next_news;
    }
    *link = request->next_news;
    if (driver->news_end == &request->next_news) {
        driver->news_end = link;
    }
    request->has_news = false;
    if (driver->news == NULL) {
        quiet(driver);
    }
}

static void wait_for_news(ls_engine *engine, int64_t timeout_us) {
    int64_t until_ns = timeout_us < 0 ? INT64_MAX : clock_ns() + timeout_us * 1000;
    struct timespec until = {(time_t)(until_ns / 1000000000), (long)(until_ns % 1000000000)};
    while (engine->driver.news == NULL && engine->driver.started && !engine->driver.stopping) {
        int rc = timeout_us < 0 ? pthread_cond_wait(&engine->told, &engine->lock)
                                : pthread_cond_timedwait(&engine->told, &engine->lock, &until);
        if (rc == ETIMEDOUT) {
            return;
        }
    }
}

ls_status ls_engine_poll(ls_engine *engine, int64_t timeout_us, ls_request **out, size_t n_max, size_t *n,
                         ls_error *err) {
    enum { LONGEST_US = INT32_MAX }; /* half an hour: enough, and no overflow */
    ls_status st = LS_OK;
    pthread_mutex_lock(&engine->lock);
    if (!engine->driver.started) {
        st = error_set(err, LS_EINVAL, "ls_engine_poll: the engine was not started (ls_engine_start)");
    } else {
        wait_for_news(engine, timeout_us < LONGEST_US ? timeout_us : LONGEST_US);
        size_t taken = 0;
        while (taken < n_max && engine->driver.news != NULL) {
            out[taken++] = take_news(&engine->driver);
        }
        *n = taken;
    }
    pthread_mutex_unlock(&engine->lock);
    return st;
}

int ls_engine_poll_fd(ls_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    int fd = engine->driver.event_fd;
    pthread_mutex_unlock(&engine->lock);
    return fd;
}

ls_status ls_engine_check(ls_engine *engine, ls_error *err) {
    pthread_mutex_lock(&engine->lock);
    ls_status st = engine_check_alive(engine, err);
    pthread_mutex_unlock(&engine->lock);
    return st;
}

ls_status ls_engine_get_stats(ls_engine *engine, ls_engine_stats *out, ls_error *err) {
    TRY(check_struct_size("ls_engine_stats", out->struct_size, SIZE_MAX, err));
    pthread_mutex_lock(&engine->lock);
    const engine_stats *stats = &engine->stats;
    ls_engine_stats now = {.struct_size = out->struct_size,
                           .n_running = engine->n_running,
                           .n_pages = engine->pages.n_pages,
                           .n_free_pages = engine->pages.n_free,
                           .steps = stats->prefill_steps + stats->decode_steps,
                           .preemptions = stats->preemptions,
                           .prompt_tokens = stats->prefill_tokens,
                           .generated_tokens = stats->generated_tokens,
                           .finished = stats->finished,
                           .failed = stats->failed,
                           .cancelled = stats->cancelled,
                           .prefix_query_tokens = stats->prefix_query_tokens,
                           .prefix_hit_tokens = stats->prefix_hit_tokens};
    for (const ls_request *request = engine->waiting; request != NULL; request = request->next_waiting) {
        now.n_waiting++;
    }
    for (const ls_request *request = engine->kept; request != NULL; request = request->next_kept) {
        now.n_free_pages += request->n_pages; /* theirs until somebody needs them */
    }
    pthread_mutex_unlock(&engine->lock);
    memcpy(out, &now, out->struct_size < sizeof now ? out->struct_size : sizeof now);
    return LS_OK;
}
