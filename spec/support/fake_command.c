/* RESP2: parsing commands, writing replies, and what a server answers before
 * it is asked for keys.
 */
#define _GNU_SOURCE
#include "fake_redis.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
  ARGUMENTS_MAX = 1024 * 1024,      /* as Redis */
  ARGUMENT_MAX = 512 * 1024 * 1024, /* bytes, as Redis */
  HEADER_MAX = 32,                  /* bytes of "*N\r\n", "$N\r\n" */
  INLINE_MAX = 64 * 1024,           /* bytes, as Redis */
  BUFFER_MIN = 256
};

void buffer_reserve(struct buffer *buffer, size_t size) {
  size_t capacity = buffer->capacity > 0 ? buffer->capacity : BUFFER_MIN;
  while (capacity - buffer->size < size)
    capacity *= 2;
  if (capacity == buffer->capacity)
    return;
  buffer->data = realloc(buffer->data, capacity);
  if (buffer->data == NULL)
    abort();
  buffer->capacity = capacity;
}

void buffer_append(struct buffer *buffer, const void *data, size_t size) {
  if (size == 0)
    return;
  buffer_reserve(buffer, size);
  memcpy(buffer->data + buffer->size, data, size);
  buffer->size += size;
}

void buffer_printf(struct buffer *buffer, const char *format, ...) {
  char *text;
  va_list arguments;
  va_start(arguments, format);
  int size = vasprintf(&text, format, arguments);
  va_end(arguments);
  if (size < 0)
    abort();
  buffer_append(buffer, text, size);
  free(text);
}

void buffer_free(struct buffer *buffer) {
  free(buffer->data);
  *buffer = (struct buffer){0};
}

/* ---- commands ---- */

static void add_argument(struct command *command, const char *data,
                         size_t size) {
  if (command->count == command->capacity) {
    command->capacity = command->capacity > 0 ? 2 * command->capacity : 8;
    command->arguments = realloc(
        command->arguments, command->capacity * sizeof command->arguments[0]);
    if (command->arguments == NULL)
      abort();
  }
  command->arguments[command->count++] = (struct slice){data, size};
}

/* A header at *at, such as "*3\r\n". Returns 1 and moves *at behind it, 0 if
 * it is not complete, -1 if it is none. */
static int take_header(const char **at, const char *end, char type,
                       long long max, long long *value) {
  char digits[HEADER_MAX + 1], *stop;
  size_t size = end - *at < HEADER_MAX ? end - *at : HEADER_MAX;
  if (size == 0)
    return 0;
  const char *line_end = memchr(*at, '\n', size);
  if (**at != type || (line_end == NULL && size == HEADER_MAX))
    return -1;
  if (line_end == NULL)
    return 0;
  size = line_end - *at;
  memcpy(digits, *at, size);
  digits[size] = '\0';
  *value = strtoll(digits + 1, &stop, 10);
  if (strcmp(stop, "\r") != 0 || stop == digits + 1 || *value < 0 ||
      *value > max)
    return -1;
  *at = line_end + 1;
  return 1;
}

static ptrdiff_t parse_inline(struct command *command, const char *data,
                              size_t size) {
  const char *end = memchr(data, '\n', size);
  if (end == NULL)
    return size > INLINE_MAX ? -1 : 0;
  for (const char *at = data; at < end;) {
    const char *begin = at;
    while (at < end && strchr(" \t\r", *at) == NULL)
      at++;
    if (at > begin)
      add_argument(command, begin, at - begin);
    else
      at++;
  }
  return end + 1 - data;
}

ptrdiff_t command_parse(struct command *command, const char *data,
                        size_t size) {
  const char *at = data, *end = data + size;
  long long count, length;
  command->count = 0;
  if (size > 0 && *data != '*')
    return parse_inline(command, data, size);
  int rc = take_header(&at, end, '*', ARGUMENTS_MAX, &count);
  for (long long i = 0; rc > 0 && i < count; i++) {
    rc = take_header(&at, end, '$', ARGUMENT_MAX, &length);
    if (rc <= 0)
      break;
    if (end - at < length + 2)
      return 0;
    if (memcmp(at + length, "\r\n", 2) != 0)
      return -1;
    add_argument(command, at, length);
    at += length + 2;
  }
  return rc > 0 ? at - data : rc;
}

bool command_is(const struct command *command, size_t i, const char *word) {
  return i < command->count && command->arguments[i].size == strlen(word) &&
         strncasecmp(command->arguments[i].data, word, strlen(word)) == 0;
}

/* ---- replies ---- */

void reply_bulk(struct buffer *reply, const char *data, size_t size) {
  buffer_printf(reply, "$%zu\r\n", size);
  buffer_append(reply, data, size);
  buffer_append(reply, "\r\n", 2);
}

static void reply_string(struct buffer *reply, const char *text) {
  reply_bulk(reply, text, strlen(text));
}

static const char *word_of(const struct step *profile, enum step_word word,
                           const char *fallback) {
  return profile != NULL && profile->words[word] != NULL ? profile->words[word]
                                                         : fallback;
}

static void answer_hello(const struct command *command,
                         const struct step *profile, int id,
                         struct buffer *reply) {
  if (strcmp(word_of(profile, WORD_HELLO, "ok"), "ok") != 0) {
    buffer_printf(reply, "-ERR unknown command 'HELLO', with args beginning "
                         "with: \r\n");
    return;
  }
  if (command->count > 1 && !command_is(command, 1, "2")) {
    buffer_printf(reply, "-NOPROTO unsupported protocol version\r\n");
    return;
  }
  buffer_printf(reply, "*14\r\n");
  reply_string(reply, "server");
  reply_string(reply, "redis");
  reply_string(reply, "version");
  reply_string(reply, word_of(profile, WORD_VERSION, "7.0.15"));
  reply_string(reply, "proto");
  buffer_printf(reply, ":2\r\n");
  reply_string(reply, "id");
  buffer_printf(reply, ":%d\r\n", id);
  reply_string(reply, "mode");
  reply_string(reply, word_of(profile, WORD_MODE, "standalone"));
  reply_string(reply, "role");
  reply_string(reply, word_of(profile, WORD_ROLE, "master"));
  reply_string(reply, "modules");
  buffer_printf(reply, "*0\r\n");
}

static void answer_info(const struct step *profile, struct buffer *reply) {
  struct buffer text = {0};
  const char *mode = word_of(profile, WORD_MODE, "standalone");
  buffer_printf(&text,
                "# Server\r\nredis_version:%s\r\nredis_mode:%s\r\n"
                "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n"
                "# Persistence\r\nloading:0\r\n"
                "# Replication\r\nrole:%s\r\nconnected_slaves:0\r\n"
                "# Cluster\r\ncluster_enabled:%d\r\n",
                word_of(profile, WORD_VERSION, "7.0.15"), mode,
                word_of(profile, WORD_ROLE, "master"),
                strcmp(mode, "cluster") == 0);
  reply_bulk(reply, text.data, text.size);
  buffer_free(&text);
}

static void answer_client(const struct command *command, int id,
                          struct buffer *reply) {
  if (command_is(command, 1, "SETINFO"))
    buffer_printf(reply, "-ERR unknown subcommand '%.*s'. Try CLIENT HELP.\r\n",
                  (int)command->arguments[1].size, command->arguments[1].data);
  else if (command_is(command, 1, "ID"))
    buffer_printf(reply, ":%d\r\n", id);
  else
    buffer_printf(reply, "+OK\r\n");
}

bool answer_handshake(const struct command *command, const struct step *profile,
                      int id, struct buffer *reply) {
  if (command_is(command, 0, "HELLO"))
    answer_hello(command, profile, id, reply);
  else if (command_is(command, 0, "AUTH") || command_is(command, 0, "SELECT"))
    buffer_printf(reply, "+OK\r\n");
  else if (command_is(command, 0, "CLIENT"))
    answer_client(command, id, reply);
  else if (command_is(command, 0, "INFO"))
    answer_info(profile, reply);
  else if (command_is(command, 0, "PING") && command->count > 1)
    reply_bulk(reply, command->arguments[1].data, command->arguments[1].size);
  else if (command_is(command, 0, "PING"))
    buffer_printf(reply, "+PONG\r\n");
  else
    return false;
  return true;
}
