/* The command line: luajit's habits, on a Moonstash runtime.
 *
 * Options are read here, with getopt, into a list of actions; a main task
 * (lua/moonstash/cli.lua) carries them out. Only this file installs signal
 * handlers, writes to stderr and exits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/runtime.h"

enum {
  EXIT_USAGE = 2,
  DRAIN_MS = 5000 /* what tasks get to end in after the script has */
};

enum { OPT_HELP = 256, OPT_VERSION, OPT_ENV, OPT_CHECK, OPT_BUSTED };

static const struct option long_options[] = {
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {"env", no_argument, NULL, OPT_ENV},
    {"check", required_argument, NULL, OPT_CHECK},
    {"busted", no_argument, NULL, OPT_BUSTED},
    {NULL, 0, NULL, 0},
};

static const char usage[] =
    "usage: moonstash [options]... [script [args]...]\n"
    "Runs Lua scripts with tasks and a cache.\n"
    "\n"
    "  -e chunk         run the string; `cache` and `task` are preset\n"
    "  -l name          require the module\n"
    "  -i               go interactive after the script\n"
    "  -v               print the versions\n"
    "  -E               read no environment variable\n"
    "  -j cmd[=args]    a JIT command (off, v, dump ...)\n"
    "  -O[opt]          JIT optimization options\n"
    "  -b ...           save or list bytecode, as luajit -b\n"
    "  -                run standard input as a script\n"
    "  --               stop reading options\n"
    "  --busted [args]  run busted specs, each in a task; with --clear-cache\n"
    "                   memory caches are emptied between tests, and with\n"
    "                   --test-timeout=SECONDS a test may take that long\n"
    "  --check files    check the syntax of files, run nothing\n"
    "  --env            print the effective settings and where they come from\n"
    "  --version        print the versions of Moonstash and its libraries\n"
    "  --help           print this\n"
    "\n"
    "Exit codes: 0, 1 after an error in a script, 2 for a mistake on this\n"
    "line, n after os.exit(n); a signal ends it as that signal.\n";

struct command {
  const char **actions; /* allocated strings: a letter and its argument */
  int action_count;
  int no_env, show_env, interactive;
  int script; /* index in argv */
};

static void *checked(void *p) {
  if (p == NULL) {
    fputs("moonstash: not enough memory\n", stderr);
    exit(EXIT_FAILURE);
  }
  return p;
}

static void add_action(struct command *c, char kind, const char *argument) {
  size_t len = argument != NULL ? strlen(argument) : 0;
  char *action = checked(malloc(len + 2));
  action[0] = kind;
  memcpy(action + 1, argument != NULL ? argument : "", len + 1);
  c->actions = checked(
      realloc(c->actions, (size_t)(c->action_count + 1) * sizeof *c->actions));
  c->actions[c->action_count++] = action;
}

/* Handles one option. 1 goes on, 0 stops reading, -1 is a mistake. */
static int read_option(struct command *c, int option) {
  switch (option) {
  case 'e':
  case 'l':
  case 'j':
  case 'O':
    add_action(c, (char)option, optarg);
    return 1;
  case 'v':
  case OPT_VERSION:
    add_action(c, 'v', NULL);
    return 1;
  case 'i':
    c->interactive = 1;
    add_action(c, 'i', NULL);
    return 1;
  case 'E':
    c->no_env = 1;
    return 1;
  case OPT_HELP:
    fputs(usage, stdout);
    exit(EXIT_SUCCESS);
  case OPT_ENV:
    c->show_env = 1;
    return 1;
  case OPT_CHECK:
    add_action(c, 'c', optarg);
    return 0; /* what follows are files, too */
  case OPT_BUSTED:
    add_action(c, 'B', NULL);
    return 0;
  }
  return -1;
}

static int read_options(struct command *c, int argc, char **argv) {
  if (argc > 1 && strncmp(argv[1], "-b", 2) == 0) {
    add_action(c, 'b', NULL);
    c->script = argc;
    return 0;
  }
  int option;
  while ((option = getopt_long(argc, argv, "+e:l:ivEj:O::", long_options,
                               NULL)) != -1) {
    int more = read_option(c, option);
    if (more < 0)
      return -1;
    if (more == 0)
      break;
  }
  c->script = optind;
  if (!c->show_env || optind == argc)
    return 0;
  fputs("moonstash: --env takes no arguments\n", stderr);
  return -1;
}

/* -1 after a mistake, which one line on stderr has named. */
static int read_command(struct command *c, int argc, char **argv) {
  char own[] = "moonstash", *name = argv[0];
  if (argc > 0)
    argv[0] = own; /* what getopt's messages begin with */
  int rc = read_options(c, argc, argv);
  argv[0] = name;
  return rc;
}

/* ---- hooks ---- */

static void write_log(void *ud, int level, const char *line) {
  static const char *const labels[] = {"", "warning: ", "info: ", "debug: "};
  (void)ud;
  fprintf(stderr, "moonstash: %s%s\n", labels[level], line);
}

static void write_error(void *ud, const char *task, const char *trace) {
  (void)ud;
  if (strcmp(task, "main") == 0)
    fprintf(stderr, "moonstash: %s\n", trace);
  else
    fprintf(stderr, "moonstash: %s failed: %s\n", task, trace);
}

static void write_setting(void *ud, const char *line) {
  (void)ud;
  puts(line);
}

/* ---- signals ---- */

static moonstash *interruptible; /* what the handler speaks to */
static volatile sig_atomic_t received;

static void on_signal(int signo);

/* Changes what a signal does, unless the parent wants it ignored. */
static void set_action(int signo, void (*handler)(int)) {
  struct sigaction old,
      action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigaction(signo, NULL, &old);
  if (old.sa_handler != SIG_IGN)
    sigaction(signo, &action, NULL);
}

static void set_actions(void (*handler)(int)) {
  set_action(SIGINT, handler);
  set_action(SIGTERM, handler);
}

/* The first SIGINT or SIGTERM asks; the default action is back before it
 * returns, so that a second one ends even a loop that never waits. */
static void on_signal(int signo) {
  int saved = errno;
  set_actions(SIG_DFL);
  received = signo;
  runtime_interrupt(interruptible, signo);
  errno = saved;
}

/* Dies of the signal, so that a parent sees it. */
static void die_of(int signo) {
  fflush(NULL);
  signal(signo, SIG_DFL);
  raise(signo);
}

/* ---- main ---- */

/* A prompt reads standard input byte by byte, so that a line's io.read gets
 * the next line; so no buffer may hold what was read ahead. */
static void prepare_input(const struct command *c) {
  if (c->interactive || isatty(STDIN_FILENO))
    setvbuf(stdin, NULL, _IONBF, 0);
}

static int run(struct command *c, int argc, char **argv) {
  moonstash *m;
  moonstash_options options = MOONSTASH_OPTIONS_INIT;
  options.flags = c->no_env ? MOONSTASH_NO_ENV : 0;
  options.log_fn = write_log;
  options.error_fn = write_error;
  if (c->show_env)
    return runtime_show_settings(&options, write_setting, NULL) == 0
               ? EXIT_SUCCESS
               : EXIT_FAILURE;
  int rc = moonstash_open(&m, &options);
  if (rc < 0)
    return EXIT_FAILURE; /* the log has told why */
  struct bind_cli cli = {c->actions, c->action_count, (const char *const *)argv,
                         argc, c->script};
  prepare_input(c);
  rc = runtime_run_cli(m, &cli);
  if (rc == 0) {
    interruptible = m;
    set_actions(on_signal);
    rc = moonstash_run(m);
  }
  if (rc < 0)
    fprintf(stderr, "moonstash: %s\n", moonstash_last_error(m));
  runtime_drain(m, DRAIN_MS);
  set_actions(SIG_DFL);
  moonstash_close(m, 0);
  if (received != 0)
    die_of(received);
  return rc < 0 ? EXIT_FAILURE : rc;
}

/* A descriptor below 3 that the parent has closed would become the loop's. */
static void open_standard_files(void) {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
      exit(EXIT_FAILURE);
}

int main(int argc, char **argv) {
  struct command c = {0};
  open_standard_files();
  int rc = EXIT_USAGE;
  if (read_command(&c, argc, argv) == 0)
    rc = run(&c, argc, argv);
  for (int i = 0; i < c.action_count; i++)
    free((char *)c.actions[i]);
  free(c.actions);
  return rc;
}
