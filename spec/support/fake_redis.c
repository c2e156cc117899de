/* A scripted server for specs of the Redis backend: it plays any bytes, at any
 * split, at any time.
 *
 *     fake_redis [--port N | --unix PATH] SCRIPT      (-: standard input)
 *
 * It listens on 127.0.0.1, on a free port unless told, prints "port N" (0 with
 * --unix) and runs until it is killed or its parent ends. A mistake in the
 * script is one line on stderr and exit code 2.
 *
 * A script has a step per line; # begins a line of comment. A line
 * `connection` begins the next section: the first connection plays the first
 * section, the second the second, and the last section is for all others too.
 * After its last step a connection is drained. Connections run side by side.
 *
 *   log PATH            (anywhere, for all) append what happens to this file
 *
 *   handshake [OPTION=VALUE...]
 *                       answer HELLO AUTH SELECT CLIENT INFO PING as Redis
 *                       7.0.15 does, until the first PING is answered.
 *                       version=6.0.16; mode=cluster; role=slave;
 *                       hello=unknown (an error as of Redis 5); until=HELLO
 *                       (another last command). Also what serve says later
 *   read N              wait for N whole commands
 *   read-bytes N        wait for N bytes
 *   send TEXT           TEXT is the rest of the line after one blank; escapes:
 *                       \r \n \t \0 \xNN \\ \"
 *   send-file PATH
 *   repeat N TEXT       send it N times (`forever`: until the peer goes)
 *   random N [SEED]     N random bytes, or `forever`; same seed, same bytes
 *   split N [MS]        from now on at most N bytes per write, and after each
 *                       a pause (1 ms), so that they are read one by one.
 *                       0: all at once again
 *   sleep MS            times may have a fraction
 *   drain               read on until the peer closes
 *   hang                neither read nor write until the peer closes
 *   half-close          end our direction (FIN), keep the other
 *   close               FIN
 *   reset               RST (TCP only)
 *   refuse, listen      connections to the port are refused, accepted again;
 *                       these and sleep also run after the end of a connection
 *   serve [OPTION=N...] be a tiny Redis: strings, one database for all
 *                       connections (fake_keys.c has the commands), with
 *                       faults. Replies count from 1 within this step.
 *                       count=N     go on with the next step after N commands
 *                       delay=MS    be late with every reply, or with
 *                       every=N     ... every N-th
 *                       drop=N      leave out the N-th reply
 *                       duplicate=N send it twice
 *                       corrupt=N   its first byte becomes ?
 *                       close=N     close in its middle
 *                       reset=N     RST in its middle
 *                       freeze=N    hang before it
 *                       insert=N TEXT  (last) extra bytes before it
 *
 * The log has a line per event, written before anything is sent in answer:
 *
 *     1 open                     connection 1 was accepted
 *     1 read 31                  one read(2) of 31 bytes
 *     1 command "GET" "a\x0d"    a command; its last byte came in that read
 *     1 bytes 12                 read-bytes has got them
 *     1 peer-closed, peer-reset, malformed (no command), close, reset,
 *     half-close, hang, refuse, listen
 *
 * An argument over 4 KiB is cut: "..."+N tells how many bytes are left out.
 *
 * A thread per connection and one that accepts; nothing is shared but the log,
 * the keys of serve (fake_keys.c) and the listener below. fake_script.c reads
 * scripts, fake_steps.c plays them, fake_command.c speaks RESP.
 */
#define _GNU_SOURCE
#include "fake_redis.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 511, STACK_BYTES = 256 * 1024, EXIT_USAGE = 2 };

struct visitor {
  int fd;
  int id;
  const struct section *section;
  FILE *log;
};

/* The listener. `refuse` ends the listening socket and puts a socket in its
 * place that is bound but does not listen: the port stays ours, and the kernel
 * refuses connections to it. */
static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int fd;
  bool refuses;
  const char *path; /* of the unix socket, or NULL */
  uint16_t port;
} listener = {
    PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, -1, false, NULL, 0};

static void check(int result, const char *what) {
  if (result >= 0)
    return;
  perror(what);
  exit(EXIT_FAILURE);
}

static int bound_unix(void) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(listener.path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    check(-1, listener.path);
  }
  strcpy(address.sun_path, listener.path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(fd, "socket");
  unlink(listener.path);
  check(bind(fd, (void *)&address, sizeof address), "bind");
  return fd;
}

static int bound_tcp(void) {
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_port = htons(listener.port),
                                .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof address;
  int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(fd, "socket");
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  check(bind(fd, (void *)&address, sizeof address), "bind");
  check(getsockname(fd, (void *)&address, &size), "getsockname");
  listener.port = ntohs(address.sin_port);
  return fd;
}

static int bound(void) {
  return listener.path != NULL ? bound_unix() : bound_tcp();
}

void listener_refuse(void) {
  pthread_mutex_lock(&listener.lock);
  if (!listener.refuses) {
    shutdown(listener.fd, SHUT_RDWR); /* accept wakes up and closes it */
    listener.fd = bound();
    listener.refuses = true;
  }
  pthread_mutex_unlock(&listener.lock);
}

void listener_listen(void) {
  pthread_mutex_lock(&listener.lock);
  if (listener.refuses) {
    check(listen(listener.fd, BACKLOG), "listen");
    listener.refuses = false;
    pthread_cond_signal(&listener.changed);
  }
  pthread_mutex_unlock(&listener.lock);
}

/* Waits for the next connection. */
static int next_connection(void) {
  for (;;) {
    pthread_mutex_lock(&listener.lock);
    while (listener.refuses)
      pthread_cond_wait(&listener.changed, &listener.lock);
    int fd = listener.fd;
    pthread_mutex_unlock(&listener.lock);
    int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (accepted >= 0)
      return accepted;
    int error = errno;
    pthread_mutex_lock(&listener.lock);
    bool replaced = fd != listener.fd;
    pthread_mutex_unlock(&listener.lock);
    if (replaced)
      close(fd);
    else if (error != EINTR && error != ECONNABORTED) {
      errno = error;
      check(-1, "accept");
    }
  }
}

static void *play(void *argument) {
  struct visitor visitor = *(struct visitor *)argument;
  free(argument);
  connection_play(visitor.fd, visitor.id, visitor.section, visitor.log);
  return NULL;
}

static void __attribute__((noreturn))
serve_forever(const struct script *script, FILE *log) {
  const struct section *section = script->first;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  for (int id = 1;; id++) {
    struct visitor *visitor = malloc(sizeof *visitor);
    if (visitor == NULL)
      abort();
    *visitor = (struct visitor){next_connection(), id, section, log};
    pthread_t thread;
    errno = pthread_create(&thread, &attributes, play, visitor);
    check(errno == 0 ? 0 : -1, "pthread_create");
    if (section->next != NULL)
      section = section->next;
  }
}

static struct script *read_script(const char *path) {
  if (strcmp(path, "-") == 0)
    return script_read(stdin, "script");
  FILE *file = fopen(path, "r");
  if (file == NULL) {
    perror(path);
    exit(EXIT_USAGE);
  }
  struct script *script = script_read(file, path);
  fclose(file);
  return script;
}

static void __attribute__((noreturn)) usage(void) {
  fputs("usage: fake_redis [--port N | --unix PATH] SCRIPT\n", stderr);
  exit(EXIT_USAGE);
}

int main(int argc, char **argv) {
  pid_t parent = getppid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) /* it ended before it could tell */
    return EXIT_FAILURE;
  if (argc != 2 && argc != 4)
    usage();
  if (argc == 4 && strcmp(argv[1], "--port") == 0)
    listener.port = (uint16_t)atoi(argv[2]);
  else if (argc == 4 && strcmp(argv[1], "--unix") == 0)
    listener.path = argv[2];
  else if (argc == 4)
    usage();
  const struct script *script = read_script(argv[argc - 1]);
  FILE *log = NULL;
  if (script->log_path != NULL && (log = fopen(script->log_path, "ae")) == NULL)
    check(-1, script->log_path);
  listener.fd = bound();
  check(listen(listener.fd, BACKLOG), "listen");
  printf("port %d\n", listener.port);
  fflush(stdout);
  serve_forever(script, log);
}
