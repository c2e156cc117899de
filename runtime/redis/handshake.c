/* The first words on a connection: who we are, which database, and a PING,
 * for only its answer says that the server works (the kernel accepts
 * connections for a server that is stopped). One write; on servers or proxies
 * without HELLO a second one, with the commands of old.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis/conn_internal.h"

enum { HELLO, AUTH, SELECT, SET_NAME, SET_INFO, INFO, PING };

enum { OLDEST_MAJOR = 6, OLDEST_MINOR = 2 }; /* server version */

#define CLIENT_NAME "moonstash"

static void command(struct redis_conn *c, int kind, size_t args,
                    const char *name) {
  c->greetings[c->greeting_count++] = (uint8_t)kind;
  bytes_command(&c->greeting, args, name);
}

static void arg(struct redis_conn *c, const char *text) {
  bytes_arg(&c->greeting, text, strlen(text), NULL, 0);
}

static int has_password(const struct redis_conn *c) {
  return c->options.password[0] != '\0' || c->options.username[0] != '\0';
}

static void say_hello(struct redis_conn *c) {
  const struct redis_options *o = &c->options;
  command(c, HELLO, has_password(c) ? 6 : 3, "HELLO");
  arg(c, "2");
  if (has_password(c)) {
    arg(c, "AUTH");
    arg(c, o->username[0] ? o->username : "default");
    arg(c, o->password);
  }
  arg(c, "SETNAME");
  arg(c, CLIENT_NAME);
}

/* What HELLO would have done. */
static void say_plain(struct redis_conn *c) {
  const struct redis_options *o = &c->options;
  if (has_password(c)) {
    command(c, AUTH, o->username[0] ? 2 : 1, "AUTH");
    if (o->username[0])
      arg(c, o->username);
    arg(c, o->password);
  }
  command(c, SET_NAME, 2, "CLIENT");
  arg(c, "SETNAME");
  arg(c, CLIENT_NAME);
  command(c, INFO, 1, "INFO");
  arg(c, "server");
}

static void greet(struct redis_conn *c) {
  char db[16];
  c->greeting_count = c->greeted = 0;
  c->greeting.sent = c->greeting.length = 0;
  c->greeting.failed = 0;
  if (c->plain)
    say_plain(c);
  else
    say_hello(c);
  if (c->options.db != 0) {
    snprintf(db, sizeof db, "%d", c->options.db);
    command(c, SELECT, 1, "SELECT");
    arg(c, db);
  }
  if (!c->plain) {
    command(c, SET_INFO, 3, "CLIENT");
    arg(c, "SETINFO");
    arg(c, "LIB-NAME");
    arg(c, CLIENT_NAME);
  }
  command(c, PING, 0, "PING");
  if (c->greeting.failed)
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "out of memory");
  else
    pipe_flush(c);
}

void handshake_start(struct redis_conn *c) {
  c->state = CONN_HANDSHAKE;
  c->attempt_ms = conn_time_ms() + c->options.connect_timeout_ms;
  c->plain = 0;
  c->reader = reader_open();
  if (c->reader == NULL) {
    conn_drop(c, BACKEND_ECONNECTION, RETRY_SOON, "out of memory");
    return;
  }
  conn_arm(c);
  greet(c);
}

/* ---- replies ---- */

static int begins(const struct reply *reply, const char *word) {
  size_t n = strlen(word);
  return reply->length >= n && memcmp(reply->text, word, n) == 0;
}

static int is_text(const struct reply *reply, const char *text) {
  return reply->length == strlen(text) && begins(reply, text);
}

/* How much of an error can be told: servers and proxies of old repeat the
 * arguments of a command that they do not know, which may be a password. */
static size_t without_secrets(const struct redis_conn *c,
                              const struct reply *reply) {
  static const char arguments[] = ", with args beginning with";
  const char *end =
      memmem(reply->text, reply->length, arguments, sizeof arguments - 1);
  size_t length = end != NULL ? (size_t)(end - reply->text) : reply->length;
  const char *secret = c->options.password;
  if (*secret != '\0' &&
      memmem(reply->text, length, secret, strlen(secret)) != NULL)
    return 0;
  return length < WHY_SIZE ? length : WHY_SIZE;
}

/* The server's own words are the reason. */
static void refuse(struct redis_conn *c, const struct reply *reply) {
  static const char refused[] = "an error that repeats the password";
  int slow = begins(reply, "WRONGPASS") || begins(reply, "NOAUTH") ||
             begins(reply, "NOPERM") || begins(reply, "ERR invalid password") ||
             begins(reply, "ERR AUTH");
  int length = (int)without_secrets(c, reply);
  conn_drop(c, BACKEND_ESERVER, slow ? RETRY_SLOW : RETRY_SOON, "%.*s",
            length > 0 ? length : (int)sizeof refused - 1,
            length > 0 ? reply->text : refused);
}

/* Is a server of that version and mode one that we can use? Else it is
 * dropped. Either text may be empty: unknown. */
static int check_server(struct redis_conn *c, const char *version,
                        const char *mode) {
  int major, minor;
  if (sscanf(version, "%d.%d", &major, &minor) == 2 &&
      (major < OLDEST_MAJOR || (major == OLDEST_MAJOR && minor < OLDEST_MINOR)))
    conn_drop(c, BACKEND_EUNSUPPORTED, RETRY_SOON,
              "version %d.%d is too old: at least %d.%d is needed", major,
              minor, OLDEST_MAJOR, OLDEST_MINOR);
  else if (strcmp(mode, "cluster") == 0 && c->options.mode == REDIS_AUTO)
    conn_drop(c, BACKEND_EUNSUPPORTED, RETRY_SOON,
              "Redis Cluster: not in this version");
  else if (strcmp(mode, "sentinel") == 0)
    conn_drop(c, BACKEND_EUNSUPPORTED, RETRY_SOON,
              "Redis Sentinel: not in this version");
  else
    return 0;
  return -1;
}

static void copy_text(char *out, size_t size, const char *text, size_t length) {
  snprintf(out, size, "%.*s", (int)(length < size ? length : size), text);
}

/* The fields of HELLO's reply: name and value in turns, and nothing else in it
 * is called like one of those that matter. */
static int check_hello(struct redis_conn *c, const struct reply *reply,
                       const char *rest) {
  char version[32] = "", mode[32] = "";
  struct reply field, value;
  for (int64_t i = 0; i + 1 < reply->integer; i += 2) {
    rest = reply_read(rest, &field);
    const char *after = reply_read(rest, &value);
    if (value.type == REPLY_ARRAY) /* modules, the last one */
      break;
    if (begins(&field, "version"))
      copy_text(version, sizeof version, value.text, value.length);
    if (begins(&field, "mode"))
      copy_text(mode, sizeof mode, value.text, value.length);
    rest = after;
  }
  return check_server(c, version, mode);
}

/* The value of a field of INFO's text. */
static void info_field(const struct reply *info, const char *field, char *out,
                       size_t size) {
  size_t n = strlen(field);
  *out = '\0';
  for (size_t i = 0; i + n < info->length; i++)
    if (memcmp(info->text + i, field, n) == 0) {
      size_t end = i + n;
      while (end < info->length && info->text[end] != '\r')
        end++;
      copy_text(out, size, info->text + i + n, end - i - n);
      return;
    }
}

static int check_info(struct redis_conn *c, const struct reply *info) {
  char version[32], mode[32];
  info_field(info, "redis_version:", version, sizeof version);
  info_field(info, "redis_mode:", mode, sizeof mode);
  return check_server(c, version, mode);
}

/* Errors that a server gives although it serves: the user may not PING; it
 * cannot save, so that it refuses writes. */
static void on_pong(struct redis_conn *c, const struct reply *reply) {
  int error = reply->type == REPLY_ERROR;
  if (error && !begins(reply, "NOPERM") && !begins(reply, "MISCONF"))
    refuse(c, reply);
  else if (!error && !begins(reply, "PONG")) /* a reply too many before it */
    conn_desync(c, "PING was answered by something else");
  else
    conn_ready(c);
}

/* A server without HELLO; or the user may not say it. */
static int lacks_hello(const struct reply *reply) {
  return begins(reply, "ERR unknown command") || begins(reply, "NOPROTO") ||
         begins(reply, "NOPERM");
}

void handshake_reply(struct redis_conn *c, const struct reply *reply,
                     const char *rest) {
  static const enum reply_type answers[] = {
      [HELLO] = REPLY_ARRAY,     [AUTH] = REPLY_STATUS,
      [SELECT] = REPLY_STATUS,   [SET_NAME] = REPLY_STATUS,
      [SET_INFO] = REPLY_STATUS, [INFO] = REPLY_STRING,
      [PING] = REPLY_STATUS,
  };
  int error = reply->type == REPLY_ERROR;
  int kind = c->greetings[c->greeted++];
  int last = c->greeted == c->greeting_count;
  if (kind == HELLO && error && lacks_hello(reply))
    c->plain = 1;
  if (c->plain && c->greetings[0] == HELLO) { /* what follows is void */
    if (last)
      greet(c);
    return;
  }
  if (!error && (reply->type != answers[kind] ||
                 (reply->type == REPLY_STATUS &&
                  !is_text(reply, kind == PING ? "PONG" : "OK"))))
    conn_desync(c, "a reply of a kind that its command cannot have");
  else if (error && (kind == HELLO || kind == AUTH || kind == SELECT))
    refuse(c, reply);
  else if (kind == HELLO)
    check_hello(c, reply, rest);
  else if (kind == INFO && !error)
    check_info(c, reply);
  else if (kind == PING)
    on_pong(c, reply);
}
