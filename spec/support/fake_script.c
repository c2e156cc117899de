/* Reads the fake server's scripts. A line is a step: a word, then what the
 * table says about that word. Nothing is freed: a script lives as long as the
 * program.
 */
#define _GNU_SOURCE
#include "fake_redis.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_MISTAKE = 2, HEX_DIGITS = 2, HEX_BASE = 16, SPLIT_PAUSE_US = 1000 };

/* What follows the step's name. */
enum syntax {
  TAKES_NOTHING,
  TAKES_COUNT,
  TAKES_COUNT_TEXT,
  TAKES_COUNT_SEED,
  TAKES_SIZE_PAUSE,
  TAKES_PAUSE,
  TAKES_TEXT,
  TAKES_PATH,
  TAKES_OPTIONS
};

static const struct {
  const char *name;
  enum syntax syntax;
} steps[STEP_KINDS] = {
    [STEP_CLOSE] = {"close", TAKES_NOTHING},
    [STEP_DRAIN] = {"drain", TAKES_NOTHING},
    [STEP_HALF_CLOSE] = {"half-close", TAKES_NOTHING},
    [STEP_HANDSHAKE] = {"handshake", TAKES_OPTIONS},
    [STEP_HANG] = {"hang", TAKES_NOTHING},
    [STEP_LISTEN] = {"listen", TAKES_NOTHING},
    [STEP_RANDOM] = {"random", TAKES_COUNT_SEED},
    [STEP_READ] = {"read", TAKES_COUNT},
    [STEP_READ_BYTES] = {"read-bytes", TAKES_COUNT},
    [STEP_REFUSE] = {"refuse", TAKES_NOTHING},
    [STEP_REPEAT] = {"repeat", TAKES_COUNT_TEXT},
    [STEP_RESET] = {"reset", TAKES_NOTHING},
    [STEP_SEND] = {"send", TAKES_TEXT},
    [STEP_SEND_FILE] = {"send-file", TAKES_PATH},
    [STEP_SERVE] = {"serve", TAKES_OPTIONS},
    [STEP_SLEEP] = {"sleep", TAKES_PAUSE},
    [STEP_SPLIT] = {"split", TAKES_SIZE_PAUSE},
};

static const struct {
  enum step_kind step;
  const char *name;
  int index; /* of words (handshake) or numbers (serve) */
} options[] = {
    {STEP_HANDSHAKE, "hello", WORD_HELLO},
    {STEP_HANDSHAKE, "mode", WORD_MODE},
    {STEP_HANDSHAKE, "role", WORD_ROLE},
    {STEP_HANDSHAKE, "until", WORD_UNTIL},
    {STEP_HANDSHAKE, "version", WORD_VERSION},
    {STEP_SERVE, "close", NUMBER_CLOSE},
    {STEP_SERVE, "corrupt", NUMBER_CORRUPT},
    {STEP_SERVE, "count", NUMBER_COUNT},
    {STEP_SERVE, "delay", NUMBER_DELAY},
    {STEP_SERVE, "drop", NUMBER_DROP},
    {STEP_SERVE, "duplicate", NUMBER_DUPLICATE},
    {STEP_SERVE, "every", NUMBER_EVERY},
    {STEP_SERVE, "freeze", NUMBER_FREEZE},
    {STEP_SERVE, "insert", NUMBER_INSERT},
    {STEP_SERVE, "reset", NUMBER_RESET},
};

enum { OPTIONS = sizeof options / sizeof options[0] };

struct reader {
  const char *name; /* for messages */
  int line;
  const char *at;  /* what is left of the line */
  const char *end; /* a NUL is there */
};

static void __attribute__((noreturn, format(printf, 2, 3)))
mistake(const struct reader *r, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "%s:%d: ", r->name, r->line);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(EXIT_MISTAKE);
}

static void *allocate(size_t size) {
  void *memory = calloc(1, size);
  if (memory == NULL)
    abort();
  return memory;
}

static void skip_blanks(struct reader *r) {
  r->at += strspn(r->at, " \t\r");
}

/* The next word, or NULL at the end of the line. */
static char *take_word(struct reader *r) {
  skip_blanks(r);
  size_t size = strcspn(r->at, " \t\r");
  if (size == 0)
    return NULL;
  char *word = strndup(r->at, size);
  if (word == NULL)
    abort();
  r->at += size;
  return word;
}

static char *need_word(struct reader *r, const char *what) {
  char *word = take_word(r);
  if (word == NULL)
    mistake(r, "%s is missing", what);
  return word;
}

static uint64_t to_number(struct reader *r, const char *word) {
  char *end;
  if (strcmp(word, "forever") == 0)
    return UINT64_MAX;
  uint64_t number = strtoull(word, &end, 10);
  if (*word < '0' || *word > '9' || *end != '\0')
    mistake(r, "'%s' is not a number", word);
  return number;
}

static uint64_t take_number(struct reader *r, const char *what) {
  char *word = need_word(r, what);
  uint64_t number = to_number(r, word);
  free(word);
  return number;
}

/* Milliseconds, which may have a fraction. */
static uint64_t take_pause(struct reader *r) {
  char *word = need_word(r, "a number of milliseconds"), *end;
  double ms = strtod(word, &end);
  if (*end != '\0' || !(ms >= 0 && ms < 1e9))
    mistake(r, "'%s' is not a number of milliseconds", word);
  free(word);
  return (uint64_t)(ms * US_PER_MS);
}

static char hex_byte(struct reader *r) {
  char digits[HEX_DIGITS + 1] = {0}, *end;
  strncpy(digits, r->at, HEX_DIGITS);
  unsigned long byte = strtoul(digits, &end, HEX_BASE);
  if (end != digits + HEX_DIGITS || strspn(digits, "+- ") > 0)
    mistake(r, "\\x needs two hexadecimal digits");
  r->at += HEX_DIGITS;
  return (char)byte;
}

static char escaped_byte(struct reader *r) {
  static const char letters[] = "rnt0\\\"", bytes[] = "\r\n\t\0\\\"";
  char letter = *r->at++;
  if (letter == 'x')
    return hex_byte(r);
  const char *found = letter != '\0' ? strchr(letters, letter) : NULL;
  if (found == NULL)
    mistake(r, "unknown escape: \\%c", letter);
  return bytes[found - letters];
}

/* The rest of the line after one blank, with its escapes undone. */
static void take_text(struct reader *r, struct buffer *text) {
  if (r->at < r->end)
    r->at++;
  while (r->at < r->end) {
    char byte = *r->at++;
    if (byte == '\\')
      byte = escaped_byte(r);
    buffer_append(text, &byte, 1);
  }
  if (text->size == 0)
    mistake(r, "a text is missing");
}

static void take_option(struct reader *r, struct step *step, char *option) {
  char *value = strchr(option, '=');
  if (value == NULL || value[1] == '\0')
    mistake(r, "'%s' is not an option and its value", option);
  *value++ = '\0';
  for (int i = 0; i < OPTIONS; i++) {
    if (options[i].step != step->kind || strcmp(options[i].name, option) != 0)
      continue;
    if (step->kind == STEP_HANDSHAKE)
      step->words[options[i].index] = value;
    else if ((step->numbers[options[i].index] = to_number(r, value)) == 0)
      mistake(r, "%s counts from 1", option);
    return;
  }
  mistake(r, "unknown option: %s", option);
}

/* `insert` is the last option: the rest of the line is its text. */
static void take_options(struct reader *r, struct step *step) {
  char *option;
  while (step->numbers[NUMBER_INSERT] == 0 && (option = take_word(r)) != NULL)
    take_option(r, step, option);
  if (step->numbers[NUMBER_INSERT] != 0)
    take_text(r, &step->text);
}

static void take_arguments(struct reader *r, struct step *step) {
  switch (steps[step->kind].syntax) {
  case TAKES_NOTHING:
    break;
  case TAKES_COUNT:
    step->count = take_number(r, "a count");
    break;
  case TAKES_COUNT_TEXT:
    step->count = take_number(r, "a count");
    take_text(r, &step->text);
    break;
  case TAKES_COUNT_SEED:
    step->count = take_number(r, "a count");
    skip_blanks(r);
    step->seed = r->at < r->end ? take_number(r, "a seed") : 1;
    break;
  case TAKES_SIZE_PAUSE:
    step->count = take_number(r, "a size");
    skip_blanks(r);
    step->pause_us = r->at < r->end ? take_pause(r) : SPLIT_PAUSE_US;
    break;
  case TAKES_PAUSE:
    step->pause_us = take_pause(r);
    break;
  case TAKES_TEXT:
    take_text(r, &step->text);
    break;
  case TAKES_PATH:
    take_text(r, &step->text);
    buffer_append(&step->text, "", 1);
    break;
  case TAKES_OPTIONS:
    take_options(r, step);
    break;
  }
}

static struct step *take_step(struct reader *r, const char *name) {
  struct step *step = allocate(sizeof *step);
  int kind = 0;
  while (kind < STEP_KINDS && strcmp(steps[kind].name, name) != 0)
    kind++;
  if (kind == STEP_KINDS)
    mistake(r, "unknown step: %s", name);
  step->kind = kind;
  take_arguments(r, step);
  skip_blanks(r);
  if (r->at < r->end)
    mistake(r, "too much: %s", r->at);
  return step;
}

struct script *script_read(FILE *file, const char *name) {
  struct script *script = allocate(sizeof *script);
  struct section *section = allocate(sizeof *section);
  struct step **last = &section->first;
  struct reader r = {.name = name};
  char *line = NULL;
  size_t capacity = 0;
  script->first = section;
  for (ssize_t size; (size = getline(&line, &capacity, file)) > 0;) {
    r.line++;
    if (line[size - 1] == '\n')
      line[--size] = '\0';
    r.at = line;
    r.end = line + size;
    char *word = take_word(&r);
    if (word != NULL && *word != '#') {
      if (strcmp(word, "log") == 0) {
        script->log_path = need_word(&r, "a path");
      } else if (strcmp(word, "connection") == 0) {
        section = section->next = allocate(sizeof *section);
        last = &section->first;
      } else {
        *last = take_step(&r, word);
        last = &(*last)->next;
      }
    }
    free(word);
  }
  free(line);
  return script;
}
