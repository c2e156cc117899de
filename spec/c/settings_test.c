/* Settings, as those who write the environment meet them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host/memory_limit.h"
#include "host/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

enum { LINE_MAX_BYTES = 1024 };

/* What the last call said. */
static char err[LINE_MAX_BYTES];
static char warnings[8 * LINE_MAX_BYTES]; /* a newline after each */

static void note_warning(void *ud, const char *line) {
  assert_ptr_equal(ud, warnings);
  assert_null(strchr(line, '\n'));
  strcat(strcat(warnings, line), "\n");
}

/* Opens with up to a dozen variables. */
#define OPEN(...) open_with((char *const[]){__VA_ARGS__, NULL})

static struct settings *open_with(char *const *environ_) {
  struct settings *s = (void *)err;
  int rc;

  err[0] = warnings[0] = '\0';
  rc = settings_open(&s, environ_, note_warning, warnings, err, sizeof err);
  assert_null(strchr(err, '\n'));
  if (rc < 0) {
    assert_int_equal(rc, -1);
    assert_null(s);
    assert_true(err[0] != '\0');
  } else {
    assert_non_null(s);
    assert_string_equal(err, "");
  }
  return s;
}

#define REFUSES(line, ...)          \
  do {                              \
    assert_null(OPEN(__VA_ARGS__)); \
    assert_string_equal(err, line); \
  } while (0)

#define ACCEPTS(...)                               \
  do {                                             \
    struct settings *accepted = OPEN(__VA_ARGS__); \
    if (accepted == NULL)                          \
      fail_msg("%s", err);                         \
    settings_close(accepted);                      \
  } while (0)

/* Puts into the defaults: 0 and *number, or -1 and err. */
static int try_put(int id, const char *text, double *number) {
  struct settings *s = OPEN(NULL);
  int rc = settings_put(s, id, text, err, sizeof err);

  *number = settings_number(s, id);
  assert_int_equal(settings_is_set(s, id), rc == 0);
  settings_close(s);
  return rc;
}

static void assert_reads(int id, const char *text, double expected) {
  double number;

  if (try_put(id, text, &number) < 0)
    fail_msg("'%s': %s", text, err);
  if (number != expected)
    fail_msg("'%s' is read as %g", text, number);
}

static void assert_refused(int id, const char *text) {
  double number;

  if (try_put(id, text, &number) == 0)
    fail_msg("%s accepts '%s'", settings_name(id), text);
  assert_memory_equal(err, settings_name(id), strlen(settings_name(id)));
}

#define READS(id, expected, ...)                              \
  do {                                                        \
    const char *texts[] = {__VA_ARGS__};                      \
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) \
      assert_reads(id, texts[i], expected);                   \
  } while (0)

#define REFUSED(id, ...)                                      \
  do {                                                        \
    const char *texts[] = {__VA_ARGS__};                      \
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) \
      assert_refused(id, texts[i]);                           \
  } while (0)

static void assert_shown(const struct settings *s, int id, const char *text) {
  char buf[LINE_MAX_BYTES];

  assert_ptr_equal(settings_show(s, id, buf, sizeof buf), buf);
  assert_string_equal(buf, text);
}

/* ---- Everyday environments -------------------------------------------- */

static void has_the_defaults_of_the_documentation(void **state) {
  struct settings *s = OPEN(NULL);

  (void)state;
  assert_true(settings_number(s, SETTING_ENABLED) == 1);
  assert_null(settings_text(s, SETTING_REDIS_HOST));
  assert_true(settings_number(s, SETTING_REDIS_PORT) == 6379);
  assert_true(settings_number(s, SETTING_DEFAULT_TTL) == 300);
  assert_true(settings_number(s, SETTING_PERSISTENT_TTL) == 3600);
  assert_true(settings_number(s, SETTING_REDIS_TIMEOUT) == 1);
  assert_true(settings_number(s, SETTING_REDIS_CONNECT_TIMEOUT) == 1);
  assert_true(settings_number(s, SETTING_REQUIRE_REDIS) == 0);
  assert_string_equal(settings_text(s, SETTING_REDIS_MODE), "auto");
  assert_string_equal(settings_text(s, SETTING_REDIS_READ_FROM), "primary");
  assert_string_equal(settings_text(s, SETTING_NAMESPACE), "");
  assert_string_equal(settings_text(s, SETTING_LOG), "warn");
  for (int id = 0; id < SETTING_COUNT; id++) {
    assert_false(settings_is_set(s, id));
    if (id != SETTING_MEMORY_MAX_BYTES)
      assert_string_equal(settings_source(s, id), "default");
  }
  settings_close(s);
}

static void needs_no_environment(void **state) {
  struct settings *s;

  (void)state;
  assert_int_equal(settings_open(&s, NULL, NULL, NULL, err, sizeof err), 0);
  settings_close(s);
  settings_close(NULL);
}

static void is_disabled_by_false(void **state) {
  struct settings *s = OPEN("CACHE_ENABLED=False");

  (void)state;
  assert_true(settings_number(s, SETTING_ENABLED) == 0);
  assert_true(settings_is_set(s, SETTING_ENABLED));
  assert_string_equal(settings_source(s, SETTING_ENABLED), "environment");
  assert_string_equal(settings_text(s, SETTING_ENABLED), "False");
  settings_close(s);
}

static void an_empty_redis_host_is_unset(void **state) {
  struct settings *s = OPEN("CACHE_REDIS_HOST=", "CACHE_DEFAULT_TTL=60",
                            "CACHE_PERSISTENT_TTL=300");

  (void)state;
  assert_false(settings_is_set(s, SETTING_REDIS_HOST));
  assert_null(settings_text(s, SETTING_REDIS_HOST));
  assert_true(settings_number(s, SETTING_DEFAULT_TTL) == 60);
  assert_true(settings_number(s, SETTING_PERSISTENT_TTL) == 300);
  settings_close(s);
}

static void takes_a_local_redis(void **state) {
  struct settings *s =
      OPEN("CACHE_REDIS_HOST=localhost", "CACHE_REDIS_PORT=6379");

  (void)state;
  assert_string_equal(settings_text(s, SETTING_REDIS_HOST), "localhost");
  assert_true(settings_is_set(s, SETTING_REDIS_PORT));
  settings_close(s);
}

static void takes_the_production_environment(void **state) {
  struct settings *s =
      OPEN("PATH=/bin", "CACHE_ENABLED=True", "CACHE_REDIS_HOST=redis-cluster",
           "CACHE_REDIS_PORT=6379", "CACHE_DEFAULT_TTL=300",
           "CACHE_PERSISTENT_TTL=3600");

  (void)state;
  assert_true(settings_number(s, SETTING_ENABLED) == 1);
  assert_string_equal(settings_text(s, SETTING_REDIS_HOST), "redis-cluster");
  assert_string_equal(warnings, "");
  settings_close(s);
}

static void every_empty_variable_is_unset(void **state) {
  (void)state;
  for (int id = 0; id < SETTING_COUNT; id++) {
    char variable[LINE_MAX_BYTES];
    struct settings *s;

    snprintf(variable, sizeof variable, "%s=", settings_variable(id));
    s = OPEN(variable, "CACHE_NO_SUCH=", "CACHE_BARE");
    assert_false(settings_is_set(s, id));
    assert_string_equal(warnings, "");
    settings_close(s);
  }
}

static void reads_only_its_own_names(void **state) {
  struct settings *s =
      OPEN("MOONSTASH_REQUIRE=x", "MOONSTASH_TRACE=1", "MOONSTASH_LOGS=1",
           "MOONSTASH_LOG=Debug", "XCACHE_ENABLED=0", "ENABLED=0",
           "cache_enabled=0", "CACHE=1", "log=error", "default_ttl=x");

  (void)state;
  assert_string_equal(warnings, "");
  assert_string_equal(settings_text(s, SETTING_LOG), "debug");
  for (int id = 0; id < SETTING_COUNT; id++)
    assert_int_equal(settings_is_set(s, id), id == SETTING_LOG);
  settings_close(s);
}

static void the_first_of_two_equal_names_counts(void **state) {
  struct settings *s = OPEN("CACHE_DEFAULT_TTL=1", "CACHE_DEFAULT_TTL=2");

  (void)state;
  assert_true(settings_number(s, SETTING_DEFAULT_TTL) == 1);
  settings_close(s);
}

/* ---- Unknown names ---------------------------------------------------- */

#define WARNS(line, variable)                 \
  do {                                        \
    settings_close(OPEN(variable));           \
    assert_string_equal(warnings, line "\n"); \
  } while (0)

static void an_unknown_name_gets_the_nearest_known_one(void **state) {
  (void)state;
  WARNS("CACHE_DEFAULT_TLL is not a setting; did you mean CACHE_DEFAULT_TTL?",
        "CACHE_DEFAULT_TLL=60");
  WARNS("CACHE_REDISHOST is not a setting; did you mean CACHE_REDIS_HOST?",
        "CACHE_REDISHOST=a");
  WARNS("CACHE_enabled is not a setting; did you mean CACHE_ENABLED?",
        "CACHE_enabled=0");
  WARNS("CACHE_LOG is not a setting; did you mean MOONSTASH_LOG?",
        "CACHE_LOG=info");
}

static void an_unknown_name_far_from_all_gets_no_suggestion(void **state) {
  (void)state;
  WARNS("CACHE_DIR is not a setting", "CACHE_DIR=/tmp");
  WARNS("CACHE_ is not a setting", "CACHE_=1");
  WARNS("CACHE_\\x1b[2J\\xff is not a setting", "CACHE_\x1b[2J\xff=1");
}

static void a_long_unknown_name_is_cut(void **state) {
  char variable[4 * LINE_MAX_BYTES];

  (void)state;
  memset(variable, 'A', sizeof variable);
  memcpy(variable, "CACHE_", 6);
  strcpy(variable + sizeof variable - 3, "=1");
  settings_close(OPEN(variable));
  assert_true(strlen(warnings) < 120);
  assert_non_null(strstr(warnings, "AAA... is not a setting\n"));
}

static void each_unknown_name_warns_once_and_stops_nothing(void **state) {
  (void)state;
  settings_close(OPEN("CACHE_A=1", "CACHE_ENABLED=1", "CACHE_B=secret"));
  assert_string_equal(warnings, "CACHE_A is not a setting\n"
                                "CACHE_B is not a setting\n");
}

static void finds_settings_by_their_lower_case_name(void **state) {
  const char *nearest;

  (void)state;
  for (int id = 0; id < SETTING_COUNT; id++) {
    assert_int_equal(settings_find(settings_name(id), &nearest), id);
    assert_null(nearest);
  }
  assert_int_equal(settings_find("log", &nearest), SETTING_LOG);
  assert_int_equal(settings_find("default_tll", &nearest), -1);
  assert_string_equal(nearest, "default_ttl");
  assert_int_equal(settings_find("DEFAULT_TTL", &nearest), -1);
  assert_string_equal(nearest, "default_ttl");
  assert_int_equal(settings_find("colour", &nearest), -1);
  assert_null(nearest);
  assert_int_equal(settings_find("", &nearest), -1);
  assert_null(nearest);
}

/* ---- Kinds of values -------------------------------------------------- */

static void reads_booleans_in_any_case(void **state) {
  (void)state;
  READS(SETTING_ENABLED, 1, "true", "True", "TRUE", "1", "yes", "Yes", "on",
        "ON");
  READS(SETTING_ENABLED, 0, "false", "False", "FALSE", "0", "no", "No", "off",
        "Off");
  REFUSED(SETTING_ENABLED, "maybe", "2", "-1", "t", "y", " true", "true ", "10",
          "truefalse", "enabled");
}

static void reads_seconds_with_fractions(void **state) {
  (void)state;
  READS(SETTING_DEFAULT_TTL, 0, "0", "0.0", "00", "0.", ".0");
  READS(SETTING_DEFAULT_TTL, 60, "60", "60.0", "060", "60.");
  READS(SETTING_DEFAULT_TTL, 0.5, "0.5", ".5", "0.500000000000000000000000");
  READS(SETTING_REDIS_TIMEOUT, 0.001, "0.001");
  READS(SETTING_PERSISTENT_TTL, 1e10, "10000000000");
  READS(SETTING_PERSISTENT_TTL, 300.1, "300.1");
}

static void refuses_what_is_no_number_of_seconds(void **state) {
  (void)state;
  REFUSED(SETTING_DEFAULT_TTL, "inf", "INFINITY", "nan", "-1", "-0", "+1",
          "0x10", "1e3", "60s", "60 ", " 60", "1,5", "1.2.3", ".", "x",
          "10000000001", "1\n");
  /* 0 means never: what is not 0 may not become it. */
  REFUSED(SETTING_DEFAULT_TTL, "0.0009", "0.00000000000000000000000000001");
}

static void refuses_endless_digits(void **state) {
  char digits[SETTING_TEXT_MAX];

  (void)state;
  memset(digits, '9', sizeof digits);
  digits[sizeof digits - 1] = '\0';
  for (int id = 0; id < SETTING_COUNT; id++)
    if (settings_kind(id) == 'n')
      assert_refused(id, digits);
}

static void reads_ports(void **state) {
  (void)state;
  READS(SETTING_REDIS_PORT, 1, "1");
  READS(SETTING_REDIS_PORT, 65535, "65535");
  REFUSED(SETTING_REDIS_PORT, "0", "65536", "-1", "6379x", "6379.0", "redis",
          "18446744073709551617");
}

static void reads_database_numbers(void **state) {
  (void)state;
  READS(SETTING_REDIS_DB, 0, "0");
  READS(SETTING_REDIS_DB, 15, "15");
  REFUSED(SETTING_REDIS_DB, "-1", "1.5", "a", "4294967296");
}

static void reads_bytes_with_suffixes(void **state) {
  (void)state;
  READS(SETTING_MEMORY_MAX_BYTES, 65536, "65536", "64K", "64k", "64KB", "64Ki",
        "64KiB", "64kib");
  READS(SETTING_MEMORY_MAX_BYTES, 64.0 * MIB, "64M", "64MB", "64MiB", "65536K");
  READS(SETTING_MEMORY_MAX_BYTES, 1.0 * GIB, "1G", "1GiB", "1gb");
  READS(SETTING_MEMORY_MAX_BYTES, 2048.0 * GIB, "2T", "2TiB");
  REFUSED(SETTING_MEMORY_MAX_BYTES, "0", "65535", "63K", "1", "-64M", "64 M",
          "64X", "64MM", "64MiBs", "64i", "64B", "1.5G", "M", "99999999T",
          "18446744073709551616");
}

static void reads_choices_in_any_case(void **state) {
  struct settings *s =
      OPEN("CACHE_REDIS_MODE=Cluster", "CACHE_REDIS_READ_FROM=ANY");

  (void)state;
  assert_string_equal(settings_text(s, SETTING_REDIS_MODE), "cluster");
  assert_string_equal(settings_text(s, SETTING_REDIS_READ_FROM), "any");
  settings_close(s);
  REFUSED(SETTING_REDIS_MODE, "single", "clusters", "auto,cluster");
  REFUSED(SETTING_REDIS_READ_FROM, "master", "slave");
  REFUSED(SETTING_LOG, "verbose", "warning");
}

static void reads_lists_of_hosts(void **state) {
  (void)state;
  READS(SETTING_REDIS_HOST, 0, "localhost", "a,b", "a:1,b:65535", "10.0.0.1",
        "[::1]", "[::1]:6379", "[fe80::1%eth0]:1,b", "redis_1.local:6379");
  REFUSED(SETTING_REDIS_HOST, ",", "a,", ",a", "a,,b", "a:", "a:0", "a:65536",
          "a:b", ":6379", "::1", "[::1", "[]", "[::1]x", "[::1]:", "a b",
          "a, b", "redis://a", "u@a", "a\tb", "a\x7f");
}

static void reads_an_address_to_listen_on(void **state) {
  (void)state;
  READS(SETTING_METRICS_LISTEN, 0, "127.0.0.1:9100", "[::]:9100", "*:9100");
  REFUSED(SETTING_METRICS_LISTEN, "9100", "localhost", ":9100", "a:0", "a:1:2",
          "a b:1");
}

static void refuses_control_characters_in_text(void **state) {
  (void)state;
  READS(SETTING_NAMESPACE, 0, "app:", "caf\xc3\xa9", "with blank");
  REFUSED(SETTING_NAMESPACE, "a\nb", "\x1b[2J", "a\x7f", "\t");
  REFUSED(SETTING_REDIS_PASSWORD, "a\nb");
  REFUSED(SETTING_REDIS_TLS_CA, "/etc\r");
}

static void reads_urls(void **state) {
  (void)state;
  READS(SETTING_REDIS_URL, 0, "redis://localhost", "redis://localhost/",
        "redis://h:6380/2", "rediss://u:p@h:1", "redis://:p@h", "redis://u@h",
        "redis://[::1]:6379/0", "redis://h?db=3", "unix:///run/r.sock",
        "unix://u:p@/run/r.sock?db=1", "redis://u:p%40%2f@h", "redis://a:b@c@h",
        "redis://u:p:q@h");
  REFUSED(SETTING_REDIS_URL, "localhost", "localhost:6379", "http://h",
          "redis:h", "://h", "redis://", "redis://:6379", "redis://h:0",
          "redis://h:x", "redis://h/x", "redis://h/1/2", "redis://h?x=1",
          "redis://h?db=x", "redis://h/1?db=1", "redis://h?", "redis://h#1",
          "redis://u:%4@h", "redis://u:%zz@h", "unix://h/run/r", "unix://",
          "unix:///", "REDISS://h", "redis://a,b", "redis://h\n");
}

static void refuses_text_that_is_too_long(void **state) {
  char text[SETTING_TEXT_MAX + 1];
  double number;

  (void)state;
  memset(text, 'a', sizeof text);
  text[SETTING_TEXT_MAX] = '\0';
  assert_int_equal(try_put(SETTING_NAMESPACE, text, &number), -1);
  assert_non_null(strstr(err, "is longer than 1023 bytes"));
  assert_true(strlen(err) < 150);
  text[SETTING_TEXT_MAX - 1] = '\0';
  assert_reads(SETTING_NAMESPACE, text, 0);
}

/* ---- What is said ----------------------------------------------------- */

static void a_refusal_names_the_variable_and_the_value(void **state) {
  (void)state;
  REFUSES("CACHE_ENABLED: 'maybe' is not a boolean "
          "(true/false, 1/0, yes/no, on/off)",
          "CACHE_ENABLED=maybe");
  REFUSES("CACHE_DEFAULT_TTL: '-1' is not a number of seconds "
          "(0, or 0.001 to 10000000000)",
          "CACHE_DEFAULT_TTL=-1");
  REFUSES("CACHE_REDIS_PORT: '70000' is not a port (1 to 65535)",
          "CACHE_REDIS_PORT=70000");
  REFUSES("CACHE_MEMORY_MAX_BYTES: '1K' is below the minimum of 64 KiB",
          "CACHE_MEMORY_MAX_BYTES=1K");
  REFUSES("CACHE_REDIS_MODE: 'single' is not one of "
          "auto, standalone, cluster, sentinel",
          "CACHE_REDIS_MODE=single");
  REFUSES("MOONSTASH_LOG: 'loud' is not one of error, warn, info, debug",
          "MOONSTASH_LOG=loud");
}

static void a_refusal_is_safe_to_print(void **state) {
  char variable[900] = "CACHE_ENABLED=";

  (void)state;
  REFUSES("CACHE_ENABLED: '\\x1b[31m\\x0a\\xff' is not a boolean "
          "(true/false, 1/0, yes/no, on/off)",
          "CACHE_ENABLED=\x1b[31m\n\xff");
  memset(variable + strlen(variable), '\x01', 800);
  assert_null(OPEN(variable));
  assert_true(strlen(err) < 400);
  assert_non_null(strstr(err, "\\x01...' is not a boolean"));
}

static void a_refusal_fits_the_space_it_is_given(void **state) {
  char *environ_[] = {"CACHE_ENABLED=maybe", NULL};
  struct settings *s;
  char little[8];

  (void)state;
  assert_int_equal(
      settings_open(&s, environ_, NULL, NULL, little, sizeof little), -1);
  assert_string_equal(little, "CACHE_E");
}

static void shows_values_and_unset(void **state) {
  struct settings *s =
      OPEN("CACHE_DEFAULT_TTL=60", "CACHE_NAMESPACE=caf\xc3\xa9");
  char little[8];

  (void)state;
  assert_shown(s, SETTING_DEFAULT_TTL, "60");
  assert_shown(s, SETTING_PERSISTENT_TTL, "3600");
  assert_shown(s, SETTING_REDIS_HOST, "unset");
  assert_shown(s, SETTING_REDIS_URL, "unset");
  assert_shown(s, SETTING_REDIS_PASSWORD, "unset");
  assert_shown(s, SETTING_NAMESPACE, "caf\\xc3\\xa9");
  settings_show(s, SETTING_NAMESPACE, little, sizeof little);
  assert_string_equal(little, "caf...");
  settings_show(s, SETTING_PERSISTENT_TTL, little, 5);
  assert_string_equal(little, "3600");
  settings_show(s, SETTING_REDIS_MODE, little, 4);
  assert_string_equal(little, "...");
  settings_close(s);
}

static void masks_secrets(void **state) {
  static const char *const urls[][2] = {
      {"redis://h:1/2", "redis://h:1/2"},
      {"redis://u:hunter2@h:1/2", "redis://u:****@h:1/2"},
      {"redis://:hunter2@h", "redis://:****@h"},
      {"redis://u:@h", "redis://u:@h"},
      {"redis://hunter2@h", "redis://****@h"},
      {"redis://u:a@b:hunter2@h", "redis://u:****@h"},
      {"rediss://u:hunter%32@[::1]:1", "rediss://u:****@[::1]:1"},
      {"unix://u:hunter2@/run/a@b?db=1", "unix://u:****@/run/a@b?db=1"},
  };
  struct settings *s = OPEN("CACHE_REDIS_PASSWORD=hunter2");

  (void)state;
  assert_shown(s, SETTING_REDIS_PASSWORD, "****");
  assert_string_equal(settings_text(s, SETTING_REDIS_PASSWORD), "hunter2");
  for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
    assert_int_equal(
        settings_put(s, SETTING_REDIS_URL, urls[i][0], err, sizeof err), 0);
    assert_shown(s, SETTING_REDIS_URL, urls[i][1]);
  }
  settings_close(s);
}

static void a_secret_is_in_no_refusal(void **state) {
  static char *const variables[] = {
      "CACHE_REDIS_PASSWORD=hunter2\n",
      "CACHE_REDIS_URL=hunter2",
      "CACHE_REDIS_URL=http://u:hunter2@h",
      "CACHE_REDIS_URL=redis://u:hunter2",
      "CACHE_REDIS_URL=redis://u:hunter2/x@h",
      "CACHE_REDIS_URL=redis://u:12/hunter2@h",
      "CACHE_REDIS_URL=redis://u:12?hunter2@h",
      "CACHE_REDIS_URL=redis://u:12#hunter2@h",
      "CACHE_REDIS_URL=redis://u:%hunter2@h",
      "CACHE_REDIS_URL=redis://h?password=hunter2",
      "CACHE_REDIS_URL=redis://u:hunter2@a,b",
      "CACHE_REDIS_URL=unix://u:hunter2/x@/run/r",
      "CACHE_REDIS_URL=redis://u:hunter2@h\n",
  };

  (void)state;
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
    assert_null(OPEN(variables[i]));
    assert_null(strstr(err, "hunter2"));
    assert_non_null(strstr(err, ": the value (not shown) "));
  }
  assert_null(OPEN("CACHE_REDIS_URL=redis://u:hunter2@h",
                   "CACHE_REDIS_PASSWORD=hunter22"));
  assert_null(strstr(err, "hunter2"));
  settings_close(OPEN("CACHE_REDIS_PASSWRD=hunter2"));
  assert_string_equal(warnings, "CACHE_REDIS_PASSWRD is not a setting; "
                                "did you mean CACHE_REDIS_PASSWORD?\n");
}

static void quotes_nothing_that_may_be_a_url(void **state) {
  (void)state;
  REFUSES("CACHE_REDIS_HOST: the value (not shown) is not a list of hosts; a "
          "URL belongs in CACHE_REDIS_URL",
          "CACHE_REDIS_HOST=redis://u:p4ss@h");
  REFUSES("CACHE_REDIS_HOST: the value (not shown) is not a list of hosts; a "
          "URL belongs in CACHE_REDIS_URL",
          "CACHE_REDIS_HOST=a,p4ss@h");
  REFUSES("CACHE_REDIS_PORT: the value (not shown) is not a port (1 to 65535)",
          "CACHE_REDIS_PORT=redis://:p4ss@h:6379");
}

static void knows_kinds_names_and_secrets(void **state) {
  (void)state;
  assert_string_equal(settings_name(SETTING_DEFAULT_TTL), "default_ttl");
  assert_string_equal(settings_variable(SETTING_DEFAULT_TTL),
                      "CACHE_DEFAULT_TTL");
  assert_string_equal(settings_variable(SETTING_LOG), "MOONSTASH_LOG");
  assert_int_equal(settings_kind(SETTING_ENABLED), 'b');
  assert_int_equal(settings_kind(SETTING_MEMORY_MAX_BYTES), 'n');
  assert_int_equal(settings_kind(SETTING_REDIS_MODE), 's');
  for (int id = 0; id < SETTING_COUNT; id++)
    assert_int_equal(settings_is_secret(id),
                     id == SETTING_REDIS_URL || id == SETTING_REDIS_PASSWORD);
}

/* ---- Contradictions --------------------------------------------------- */

static void url_and_host_may_not_differ(void **state) {
  (void)state;
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_HOST name different hosts; "
          "set one of them",
          "CACHE_REDIS_URL=redis://a", "CACHE_REDIS_HOST=b");
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_HOST name different hosts; "
          "set one of them",
          "CACHE_REDIS_URL=unix:///run/r", "CACHE_REDIS_HOST=b");
  assert_null(OPEN("CACHE_REDIS_HOST=a,b", "CACHE_REDIS_URL=redis://a"));
  assert_null(OPEN("CACHE_REDIS_HOST=a:1", "CACHE_REDIS_URL=redis://a:2"));
  ACCEPTS("CACHE_REDIS_HOST=Redis", "CACHE_REDIS_URL=redis://u:p@redis:1/2");
  ACCEPTS("CACHE_REDIS_HOST=[::1]:1", "CACHE_REDIS_URL=redis://[::1]");
}

static void url_and_single_variables_may_not_differ(void **state) {
  static char url[] = "CACHE_REDIS_URL=redis://u:p%40@h:1/2";

  (void)state;
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_PORT name different ports; "
          "set one of them",
          url, "CACHE_REDIS_PORT=2");
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_DB name different databases; "
          "set one of them",
          url, "CACHE_REDIS_DB=0");
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_USERNAME name different users; "
          "set one of them",
          url, "CACHE_REDIS_USERNAME=v");
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_PASSWORD give different passwords; "
          "set one of them",
          url, "CACHE_REDIS_PASSWORD=p%40");
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_PASSWORD_FILE both give a password; "
          "set one of them",
          url, "CACHE_REDIS_PASSWORD_FILE=/p");
  assert_null(OPEN(url, "CACHE_REDIS_PASSWORD=p"));
  assert_null(OPEN(url, "CACHE_REDIS_PASSWORD=p@x"));
  assert_null(OPEN("CACHE_REDIS_URL=redis://h?db=1", "CACHE_REDIS_DB=2"));
  ACCEPTS(url, "CACHE_REDIS_PORT=1", "CACHE_REDIS_DB=2",
          "CACHE_REDIS_USERNAME=u", "CACHE_REDIS_PASSWORD=p@");
  ACCEPTS("CACHE_REDIS_URL=redis://h", "CACHE_REDIS_PORT=1", "CACHE_REDIS_DB=2",
          "CACHE_REDIS_USERNAME=u", "CACHE_REDIS_PASSWORD=p");
}

static void password_and_password_file_exclude_each_other(void **state) {
  (void)state;
  REFUSES("CACHE_REDIS_PASSWORD and CACHE_REDIS_PASSWORD_FILE both give a "
          "password; set one of them",
          "CACHE_REDIS_PASSWORD=p", "CACHE_REDIS_PASSWORD_FILE=/p");
}

static void rediss_may_not_meet_tls_off(void **state) {
  (void)state;
  REFUSES("CACHE_REDIS_URL and CACHE_REDIS_TLS disagree about TLS "
          "(rediss:// means on); set one of them",
          "CACHE_REDIS_URL=rediss://h", "CACHE_REDIS_TLS=no");
  ACCEPTS("CACHE_REDIS_URL=rediss://h", "CACHE_REDIS_TLS=yes");
  ACCEPTS("CACHE_REDIS_URL=rediss://h");
  ACCEPTS("CACHE_REDIS_URL=redis://h", "CACHE_REDIS_TLS=no");
}

static void certificate_and_key_need_each_other(void **state) {
  (void)state;
  REFUSES("CACHE_REDIS_TLS_CERT is set, but CACHE_REDIS_TLS_KEY is not",
          "CACHE_REDIS_TLS_CERT=/c");
  REFUSES("CACHE_REDIS_TLS_KEY is set, but CACHE_REDIS_TLS_CERT is not",
          "CACHE_REDIS_TLS_KEY=/k");
  ACCEPTS("CACHE_REDIS_TLS_KEY=/k", "CACHE_REDIS_TLS_CERT=/c");
}

static void a_required_redis_must_be_named(void **state) {
  (void)state;
  REFUSES("CACHE_REQUIRE_REDIS is on, but neither CACHE_REDIS_HOST nor "
          "CACHE_REDIS_URL is set",
          "CACHE_REQUIRE_REDIS=1", "CACHE_REDIS_HOST=");
  ACCEPTS("CACHE_REQUIRE_REDIS=1", "CACHE_REDIS_HOST=h");
  ACCEPTS("CACHE_REQUIRE_REDIS=1", "CACHE_REDIS_URL=redis://h");
  ACCEPTS("CACHE_REQUIRE_REDIS=0");
}

/* ---- configure_caches ------------------------------------------------- */

static void put_overlays_the_environment(void **state) {
  struct settings *s = OPEN("CACHE_DEFAULT_TTL=60");
  const int id = SETTING_DEFAULT_TTL;

  (void)state;
  assert_int_equal(settings_put(s, id, "5", err, sizeof err), 0);
  assert_true(settings_number(s, id) == 5);
  assert_string_equal(settings_source(s, id), "configure_caches");
  assert_int_equal(settings_put(s, id, "", err, sizeof err), 0);
  assert_true(settings_number(s, id) == 300);
  assert_string_equal(settings_source(s, id), "default");
  settings_close(s);
}

static void a_refused_put_names_the_setting_and_changes_nothing(void **state) {
  struct settings *s = OPEN("CACHE_DEFAULT_TTL=60");

  (void)state;
  assert_int_equal(
      settings_put(s, SETTING_DEFAULT_TTL, "soon", err, sizeof err), -1);
  assert_string_equal(err, "default_ttl: 'soon' is not a number of seconds "
                           "(0, or 0.001 to 10000000000)");
  assert_true(settings_number(s, SETTING_DEFAULT_TTL) == 60);
  assert_string_equal(settings_source(s, SETTING_DEFAULT_TTL), "environment");
  settings_close(s);
}

static void several_are_put_into_a_copy_and_then_checked(void **state) {
  struct settings *s = OPEN("CACHE_REDIS_HOST=a");
  struct settings *copy = settings_copy(s);

  (void)state;
  assert_int_equal(
      settings_put(copy, SETTING_REDIS_TLS_KEY, "/k", err, sizeof err), 0);
  assert_int_equal(settings_check(copy, err, sizeof err), -1);
  assert_string_equal(err, "redis_tls_key is set, but redis_tls_cert is not");
  assert_int_equal(
      settings_put(copy, SETTING_REDIS_TLS_CERT, "/c", err, sizeof err), 0);
  assert_int_equal(settings_check(copy, err, sizeof err), 0);
  assert_null(settings_text(s, SETTING_REDIS_TLS_CERT));
  settings_put(copy, SETTING_REDIS_URL, "redis://b", err, sizeof err);
  assert_int_equal(settings_check(copy, err, sizeof err), -1);
  assert_string_equal(err, "redis_url and CACHE_REDIS_HOST name different "
                           "hosts; set one of them");
  settings_put(copy, SETTING_REDIS_HOST, "", err, sizeof err);
  assert_int_equal(settings_check(copy, err, sizeof err), 0);
  settings_close(s);
  assert_string_equal(settings_text(copy, SETTING_REDIS_URL), "redis://b");
  settings_close(copy);
}

/* Whatever the bytes: no crash, one printable line, and what is accepted can
 * be shown, copied and put again. */
static void survives_any_text(void **state) {
  static const char alphabet[] = "redis:/unx@?#%[]=db,.0123456789aKMiB\n\x80 ";
  struct settings *s = OPEN(NULL);
  unsigned seed = 1;

  (void)state;
  for (int round = 0; round < 200000; round++) {
    char text[48] = "redis://", buf[LINE_MAX_BYTES];
    int id = rand_r(&seed) % SETTING_COUNT;
    size_t at = rand_r(&seed) % 2 ? 8 : 0;
    size_t end = at + (size_t)rand_r(&seed) % (sizeof text - at);

    while (at < end)
      text[at++] = alphabet[(size_t)rand_r(&seed) % (sizeof alphabet - 1)];
    text[end] = '\0';
    err[0] = '\0';
    if (settings_put(s, id, text, err, sizeof err) == 0)
      assert_string_equal(err, "");
    else
      assert_true(err[0] != '\0');
    settings_check(s, err, sizeof err);
    settings_show(s, id, buf, sizeof buf);
    for (const char *p = err; *p != '\0'; p++)
      assert_true(*p >= ' ' && *p < 0x7f);
    for (const char *p = buf; *p != '\0'; p++)
      assert_true(*p >= ' ' && *p < 0x7f);
  }
  settings_close(s);
}

/* ---- The machine's memory --------------------------------------------- */

static char root[] = "/tmp/settings-test-XXXXXX";

static int make_root(void **state) {
  (void)state;
  return mkdtemp(root) == NULL;
}

static int remove_root(void **state) {
  char command[LINE_MAX_BYTES];

  (void)state;
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

/* A file of the pretended machine, with the folders above it. */
static void pretend(const char *file, const char *text) {
  char path[LINE_MAX_BYTES];
  FILE *f;

  snprintf(path, sizeof path, "%s%s", root, file);
  for (char *p = path + strlen(root) + 1; *p != '\0'; p++)
    if (*p == '/') {
      *p = '\0';
      mkdir(path, 0700);
      *p = '/';
    }
  f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
}

static void fresh_root(void) {
  assert_int_equal(remove_root(NULL), 0);
  assert_int_equal(mkdir(root, 0700), 0);
}

static void no_cgroup_is_no_limit(void **state) {
  (void)state;
  fresh_root();
  assert_true(memory_limit_cgroup(root) == MEMORY_UNLIMITED);
  pretend("/proc/self/cgroup", "0::/a\n");
  assert_true(memory_limit_cgroup(root) == MEMORY_UNLIMITED);
  pretend("/proc/self/cgroup", "\n0\n::\n0:memory\n7::x\n0::/../up\n");
  assert_true(memory_limit_cgroup(root) == MEMORY_UNLIMITED);
}

static void the_lowest_v2_limit_on_the_way_up_counts(void **state) {
  (void)state;
  fresh_root();
  pretend("/proc/self/cgroup", "0::/a/b\n");
  pretend("/sys/fs/cgroup/a/b/memory.max", "max\n");
  assert_true(memory_limit_cgroup(root) == MEMORY_UNLIMITED);
  pretend("/sys/fs/cgroup/a/memory.max", "268435456\n");
  assert_true(memory_limit_cgroup(root) == 256 * MIB);
  pretend("/sys/fs/cgroup/memory.max", "134217728\n");
  assert_true(memory_limit_cgroup(root) == 128 * MIB);
  pretend("/sys/fs/cgroup/a/b/memory.max", "garbage\n");
  assert_true(memory_limit_cgroup(root) == 128 * MIB);
  pretend("/sys/fs/cgroup/a/b/memory.max", "67108864\n");
  assert_true(memory_limit_cgroup(root) == 64 * MIB);
}

static void a_namespaced_v2_group_reads_its_root(void **state) {
  (void)state;
  fresh_root();
  pretend("/proc/self/cgroup", "0::/\n");
  pretend("/sys/fs/cgroup/memory.max", "536870912\n");
  assert_true(memory_limit_cgroup(root) == 512 * MIB);
  pretend("/proc/self/cgroup", "0::/../../x\n");
  assert_true(memory_limit_cgroup(root) == 512 * MIB);
}

static void the_v1_limit_counts(void **state) {
  (void)state;
  fresh_root();
  pretend("/proc/self/cgroup", "9:name=systemd:/\n8:cpu,memory:/docker/x\n"
                               "5:memoryx:/y\n0::/\n");
  pretend("/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n");
  pretend("/sys/fs/cgroup/memory/y/memory.limit_in_bytes", "1\n");
  assert_true(memory_limit_cgroup(root) == 256 * MIB); /* host's path */
  pretend("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes",
          "9223372036854771712\n");
  assert_true(memory_limit_cgroup(root) == 256 * MIB);
  pretend("/sys/fs/cgroup/unified/memory.max", "134217728\n");
  assert_true(memory_limit_cgroup(root) == 128 * MIB);
}

static void takes_a_quarter_up_to_one_gib(void **state) {
  struct memory_limit share;

  (void)state;
  share = memory_limit_share(2 * GIB, MEMORY_UNLIMITED);
  assert_true(share.bytes == 512 * MIB);
  assert_string_equal(share.source, "a quarter of the machine's memory");
  share = memory_limit_share(2 * GIB, 256 * MIB);
  assert_true(share.bytes == 64 * MIB);
  assert_string_equal(share.source, "a quarter of the cgroup limit");
  share = memory_limit_share(64 * GIB, 64 * GIB);
  assert_true(share.bytes == 1 * GIB);
  share = memory_limit_share(MEMORY_UNLIMITED, MEMORY_UNLIMITED);
  assert_true(share.bytes == 64 * MIB);
}

static void the_bound_of_this_machine_is_the_default(void **state) {
  struct settings *s = OPEN(NULL);
  struct memory_limit share =
      memory_limit_share(memory_limit_ram(), memory_limit_cgroup(""));
  char text[32];

  (void)state;
  snprintf(text, sizeof text, "%llu", (unsigned long long)share.bytes);
  assert_true(settings_number(s, SETTING_MEMORY_MAX_BYTES) ==
              (double)share.bytes);
  assert_shown(s, SETTING_MEMORY_MAX_BYTES, text);
  assert_string_equal(settings_source(s, SETTING_MEMORY_MAX_BYTES),
                      share.source);
  assert_int_equal(
      settings_put(s, SETTING_MEMORY_MAX_BYTES, "64M", err, sizeof err), 0);
  assert_string_equal(settings_source(s, SETTING_MEMORY_MAX_BYTES),
                      "configure_caches");
  assert_shown(s, SETTING_MEMORY_MAX_BYTES, "64M");
  settings_put(s, SETTING_MEMORY_MAX_BYTES, "", err, sizeof err);
  assert_shown(s, SETTING_MEMORY_MAX_BYTES, text);
  settings_close(s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(has_the_defaults_of_the_documentation),
      cmocka_unit_test(needs_no_environment),
      cmocka_unit_test(is_disabled_by_false),
      cmocka_unit_test(an_empty_redis_host_is_unset),
      cmocka_unit_test(takes_a_local_redis),
      cmocka_unit_test(takes_the_production_environment),
      cmocka_unit_test(every_empty_variable_is_unset),
      cmocka_unit_test(reads_only_its_own_names),
      cmocka_unit_test(the_first_of_two_equal_names_counts),
      cmocka_unit_test(an_unknown_name_gets_the_nearest_known_one),
      cmocka_unit_test(an_unknown_name_far_from_all_gets_no_suggestion),
      cmocka_unit_test(a_long_unknown_name_is_cut),
      cmocka_unit_test(each_unknown_name_warns_once_and_stops_nothing),
      cmocka_unit_test(finds_settings_by_their_lower_case_name),
      cmocka_unit_test(reads_booleans_in_any_case),
      cmocka_unit_test(reads_seconds_with_fractions),
      cmocka_unit_test(refuses_what_is_no_number_of_seconds),
      cmocka_unit_test(refuses_endless_digits),
      cmocka_unit_test(reads_ports),
      cmocka_unit_test(reads_database_numbers),
      cmocka_unit_test(reads_bytes_with_suffixes),
      cmocka_unit_test(reads_choices_in_any_case),
      cmocka_unit_test(reads_lists_of_hosts),
      cmocka_unit_test(reads_an_address_to_listen_on),
      cmocka_unit_test(refuses_control_characters_in_text),
      cmocka_unit_test(reads_urls),
      cmocka_unit_test(refuses_text_that_is_too_long),
      cmocka_unit_test(a_refusal_names_the_variable_and_the_value),
      cmocka_unit_test(a_refusal_is_safe_to_print),
      cmocka_unit_test(a_refusal_fits_the_space_it_is_given),
      cmocka_unit_test(shows_values_and_unset),
      cmocka_unit_test(masks_secrets),
      cmocka_unit_test(a_secret_is_in_no_refusal),
      cmocka_unit_test(quotes_nothing_that_may_be_a_url),
      cmocka_unit_test(knows_kinds_names_and_secrets),
      cmocka_unit_test(url_and_host_may_not_differ),
      cmocka_unit_test(url_and_single_variables_may_not_differ),
      cmocka_unit_test(password_and_password_file_exclude_each_other),
      cmocka_unit_test(rediss_may_not_meet_tls_off),
      cmocka_unit_test(certificate_and_key_need_each_other),
      cmocka_unit_test(a_required_redis_must_be_named),
      cmocka_unit_test(put_overlays_the_environment),
      cmocka_unit_test(a_refused_put_names_the_setting_and_changes_nothing),
      cmocka_unit_test(several_are_put_into_a_copy_and_then_checked),
      cmocka_unit_test(survives_any_text),
      cmocka_unit_test(no_cgroup_is_no_limit),
      cmocka_unit_test(the_lowest_v2_limit_on_the_way_up_counts),
      cmocka_unit_test(a_namespaced_v2_group_reads_its_root),
      cmocka_unit_test(the_v1_limit_counts),
      cmocka_unit_test(takes_a_quarter_up_to_one_gib),
      cmocka_unit_test(the_bound_of_this_machine_is_the_default),
  };

  return cmocka_run_group_tests_name("settings", tests, make_root, remove_root);
}
