/* How much memory we may use: the files of the kernel, read once.
 *
 * A cgroup's limit counts for everything below it, so the one that binds is
 * the lowest on the way from our group up to the root. /proc/self/cgroup names
 * our group in each hierarchy; in a container without a cgroup namespace it
 * may name the host's path, which does not exist here: what cannot be read is
 * passed over, and the walk still ends at the container's own root.
 */
#include "host/memory_limit.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
  SHARE_DIVISOR = 4,     /* the default store takes a quarter */
  LIMIT_DIGITS_MAX = 32, /* bytes of a limit file that are read */
  MEMORY_PATH_MAX = 4096 /* bytes of a path below /proc and /sys */
};

#define SHARE_MAX ((uint64_t)1 << 30)      /* 1 GiB */
#define SHARE_UNKNOWN ((uint64_t)64 << 20) /* if nothing can be found out */

/* Where a hierarchy may be mounted, and what a group's limit is called. The
 * second is v2 beside v1, as systemd's "hybrid" layout has it. */
static const struct hierarchy {
  const char *controller; /* "" for v2's line "0::/path" */
  const char *mount;
  const char *file;
} hierarchies[] = {
    {"", "/sys/fs/cgroup", "memory.max"},
    {"", "/sys/fs/cgroup/unified", "memory.max"},
    {"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
};

uint64_t memory_limit_ram(void) {
  long pages = sysconf(_SC_PHYS_PAGES);
  long page_bytes = sysconf(_SC_PAGESIZE);

  if (pages <= 0 || page_bytes <= 0)
    return MEMORY_UNLIMITED;
  return (uint64_t)pages * (uint64_t)page_bytes;
}

/* "max", a missing file and nonsense are no limit. */
static uint64_t read_limit(const char *path) {
  char text[LIMIT_DIGITS_MAX] = "";
  FILE *file = fopen(path, "re");
  unsigned long long limit;
  char *end;

  if (file == NULL)
    return MEMORY_UNLIMITED;
  if (fgets(text, sizeof text, file) == NULL)
    text[0] = '\0';
  fclose(file);
  if (text[0] < '0' || text[0] > '9')
    return MEMORY_UNLIMITED;
  errno = 0;
  limit = strtoull(text, &end, 10);
  if (errno != 0 || (*end != '\0' && *end != '\n'))
    return MEMORY_UNLIMITED;
  return limit;
}

/* The lowest limit of group and all above it. Shortens group on its way. */
static uint64_t walk_up(const char *root, const struct hierarchy *at,
                        char *group) {
  uint64_t lowest = MEMORY_UNLIMITED;
  char path[MEMORY_PATH_MAX * 2];
  char *slash;

  assert(group[0] == '/' || group[0] == '\0');
  for (;;) {
    int n = snprintf(path, sizeof path, "%s%s%s/%s", root, at->mount, group,
                     at->file);
    uint64_t limit =
        n > 0 && (size_t)n < sizeof path ? read_limit(path) : MEMORY_UNLIMITED;

    if (limit < lowest)
      lowest = limit;
    if ((slash = strrchr(group, '/')) == NULL)
      return lowest;
    *slash = '\0';
  }
}

/* Is name one of the comma-separated list? The empty list has the name "". */
static int has_controller(const char *list, const char *name) {
  size_t length = strlen(name);

  for (;;) {
    size_t n = strcspn(list, ",");

    if (n == length && memcmp(list, name, n) == 0)
      return 1;
    if (list[n] == '\0')
      return 0;
    list += n + 1;
  }
}

/* One line of /proc/self/cgroup: "id:controllers:/path". */
static uint64_t limit_of_line(const char *root, char *line) {
  uint64_t lowest = MEMORY_UNLIMITED;
  char *controllers = strchr(line, ':');
  char *path = controllers != NULL ? strchr(++controllers, ':') : NULL;

  if (path == NULL)
    return MEMORY_UNLIMITED;
  *path++ = '\0';
  path[strcspn(path, "\n")] = '\0';
  /* A group outside our namespace's root ("/../x") cannot be reached. */
  if (path[0] != '/' || path[1] == '\0' || strstr(path, "/..") != NULL)
    path[0] = '\0';
  for (size_t i = 0; i < sizeof hierarchies / sizeof *hierarchies; i++) {
    char group[MEMORY_PATH_MAX];
    uint64_t limit;

    if (!has_controller(controllers, hierarchies[i].controller))
      continue;
    snprintf(group, sizeof group, "%s", path);
    limit = walk_up(root, &hierarchies[i], group);
    if (limit < lowest)
      lowest = limit;
  }
  return lowest;
}

uint64_t memory_limit_cgroup(const char *root) {
  uint64_t lowest = MEMORY_UNLIMITED;
  char line[MEMORY_PATH_MAX];
  FILE *file;

  snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
  if ((file = fopen(line, "re")) == NULL)
    return MEMORY_UNLIMITED;
  while (fgets(line, sizeof line, file) != NULL) {
    uint64_t limit = limit_of_line(root, line);

    if (limit < lowest)
      lowest = limit;
  }
  fclose(file);
  return lowest;
}

struct memory_limit memory_limit_share(uint64_t ram, uint64_t cgroup) {
  struct memory_limit share;

  share.bytes = (ram < cgroup ? ram : cgroup) / SHARE_DIVISOR;
  share.source = ram <= cgroup ? "a quarter of the machine's memory"
                               : "a quarter of the cgroup limit";
  if (ram == MEMORY_UNLIMITED && cgroup == MEMORY_UNLIMITED) {
    share.bytes = SHARE_UNKNOWN;
    share.source = "a guess, the machine's memory is unknown";
  } else if (share.bytes > SHARE_MAX) {
    share.bytes = SHARE_MAX;
    share.source = "the most that is taken unasked";
  }
  return share;
}
