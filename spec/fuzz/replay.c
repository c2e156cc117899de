/* Replays files and folders through a fuzz target, without libFuzzer. Each
 * input runs once more for every allocation it makes, with that one failing.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec_fuzz.h"

enum { INPUT_MAX = 1 << 20, FAILURES_MAX = 2000 };

static int replay_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    return -1;
  }
  uint8_t *data = malloc(INPUT_MAX);
  size_t size = data != NULL ? fread(data, 1, INPUT_MAX, file) : 0;
  fclose(file);
  uint8_t *exact = malloc(size > 0 ? size : 1); /* for sanitizers: no slack */
  if (data != NULL && exact != NULL) {
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    for (long i = 0; i < FAILURES_MAX && fuzz_with_failure(exact, size, i); i++)
      ;
  }
  free(exact);
  free(data);
  return 0;
}

static int replay(const char *path) {
  DIR *folder = opendir(path);
  int count = 0;
  if (folder == NULL)
    return replay_file(path) < 0 ? -1 : 1;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    char file[4096];
    if (entry->d_name[0] == '.')
      continue;
    snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
    if (replay_file(file) < 0) {
      closedir(folder);
      return -1;
    }
    count++;
  }
  closedir(folder);
  return count;
}

int main(int argc, char **argv) {
  int count = 0;
  for (int i = 1; i < argc; i++) {
    int n = replay(argv[i]);
    if (n < 0)
      return 1;
    count += n;
  }
  printf("%d inputs\n", count);
  return count > 0 ? 0 : 1;
}
