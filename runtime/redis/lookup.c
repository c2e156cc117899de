/* A look-up belongs to its thread and to its handle on the loop, and is freed
 * when both are gone. The lock is for `closing`: nothing may be sent to a
 * handle that is closed. */
#include "redis/lookup.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct lookup {
  uv_async_t done;
  pthread_mutex_t lock;
  int closing;      /* the handle is, or is about to be; see above */
  atomic_int users; /* thread and handle */
  lookup_fn *fn;
  void *ud;
  struct addrinfo *addresses; /* the thread's until it has sent `done` */
  char error[96];
  char port[16];
  char name[]; /* NUL-terminated */
};

static void leave(struct lookup *l) {
  if (atomic_fetch_sub(&l->users, 1) > 1)
    return;
  if (l->addresses != NULL)
    freeaddrinfo(l->addresses);
  pthread_mutex_destroy(&l->lock);
  free(l);
}

static void *look_up(void *arg) {
  const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
  struct lookup *l = arg;
  int rc = getaddrinfo(l->name, l->port, &hints, &l->addresses);
  if (rc != 0) {
    l->addresses = NULL;
    snprintf(l->error, sizeof l->error, "%s",
             rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc));
  }
  pthread_mutex_lock(&l->lock);
  if (!l->closing)
    uv_async_send(&l->done);
  pthread_mutex_unlock(&l->lock);
  leave(l);
  return NULL;
}

static void on_closed(uv_handle_t *handle) {
  leave(handle->data);
}

void lookup_abandon(struct lookup *l) {
  pthread_mutex_lock(&l->lock);
  l->closing = 1;
  pthread_mutex_unlock(&l->lock);
  uv_close((uv_handle_t *)&l->done, on_closed);
}

static void on_done(uv_async_t *done) {
  struct lookup *l = done->data;
  lookup_abandon(l); /* frees it later: it is still there for fn */
  struct addrinfo *addresses = l->addresses;
  l->addresses = NULL;
  l->fn(l, l->ud, addresses, l->error);
}

/* Signals are for the threads that expect them. */
static int start_thread(struct lookup *l) {
  pthread_attr_t attr;
  pthread_t thread;
  sigset_t all, old;
  sigfillset(&all);
  pthread_attr_init(&attr);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int rc = pthread_create(&thread, &attr, look_up, l);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attr);
  return rc;
}

struct lookup *lookup_start(uv_loop_t *loop, const char *name, int port,
                            lookup_fn *fn, void *ud) {
  size_t size = strlen(name) + 1;
  struct lookup *l = calloc(1, sizeof *l + size);
  if (l == NULL)
    return NULL;
  l->done.data = l;
  l->fn = fn;
  l->ud = ud;
  memcpy(l->name, name, size);
  snprintf(l->port, sizeof l->port, "%d", port);
  pthread_mutex_init(&l->lock, NULL);
  if (uv_async_init(loop, &l->done, on_done) < 0) {
    pthread_mutex_destroy(&l->lock);
    free(l);
    return NULL;
  }
  atomic_init(&l->users, 2);
  if (start_thread(l) != 0) {
    atomic_store(&l->users, 1);
    lookup_abandon(l);
    return NULL;
  }
  return l;
}

void lookup_hold_loop(struct lookup *l, int hold) {
  if (hold)
    uv_ref((uv_handle_t *)&l->done);
  else
    uv_unref((uv_handle_t *)&l->done);
}
