/* Preloaded into a process: keeps, beside each file of $POWER_CUT_FOLDER that is synced, what a power cut would leave.
 * A copy NAME.synced holds the file as of its last fsync or fdatasync; bytes written after it are not on the disk yet. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void keep(int descriptor) {
  char link[64], path[4096], draft[4200], kept[4200], buffer[65536];
  const char *folder = getenv("POWER_CUT_FOLDER");
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (!folder || length < 0) return;
  path[length] = 0;
  if (strncmp(path, folder, strlen(folder))) return;
  snprintf(draft, sizeof draft, "%s.draft", path);
  snprintf(kept, sizeof kept, "%s.synced", path);
  int from = open(path, O_RDONLY), to = open(draft, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  for (ssize_t count; from >= 0 && to >= 0 && (count = read(from, buffer, sizeof buffer)) > 0;)
    if (write(to, buffer, count) != count) abort();
  close(from);
  close(to);
  rename(draft, kept);
}

int fsync(int descriptor) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  keep(descriptor);
  return real(descriptor);
}

int fdatasync(int descriptor) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  keep(descriptor);
  return real(descriptor);
}
