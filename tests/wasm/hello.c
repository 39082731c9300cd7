// Does what its arguments say, one after the other; without any it greets. What it prints is what the tests look for.
//   args                 prints its arguments, one a line
//   env NAME             prints a variable's value
//   cat FILE             prints a file
//   write FILE TEXT      writes a file
//   ls DIRECTORY         lists a directory
//   stderr TEXT          prints to standard error
//   stdin                copies standard input to standard output
//   sleep MILLISECONDS   waits
//   clock                prints whether the clocks go forward, and the year
//   random               prints whether two random numbers differ
//   trap                 executes an invalid instruction
//   busy FILE            computes while a file exists and waits while it does not, for ever
//   exit CODE            ends
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what) {
  printf("%s: %s\n", what, strerror(errno));
  return 1;
}

static int copy(FILE *from) {
  char buffer[4096];
  size_t n;
  while ((n = fread(buffer, 1, sizeof buffer, from)) > 0) {
    fwrite(buffer, 1, n, stdout);
    fflush(stdout);
  }
  return ferror(from) ? fail("read") : 0;
}

static int cat(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file) return fail(path);
  int failed = copy(file);
  fclose(file);
  return failed;
}

static int put(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  if (!file) return fail(path);
  int failed = fputs(text, file) < 0;
  failed |= fclose(file) != 0;
  return failed ? fail(path) : 0;
}

static int list(const char *path) {
  DIR *directory = opendir(path);
  if (!directory) return fail(path);
  for (struct dirent *entry; (entry = readdir(directory));)
    if (entry->d_name[0] != '.') puts(entry->d_name);
  closedir(directory);
  return 0;
}

static void tell_clock(void) {
  struct timespec one, two;
  clock_gettime(CLOCK_MONOTONIC, &one);
  usleep(2000);
  clock_gettime(CLOCK_MONOTONIC, &two);
  long long passed = (two.tv_sec - one.tv_sec) * 1000000000LL + two.tv_nsec - one.tv_nsec;
  time_t now = time(NULL);
  printf("clock %s %d\n", passed >= 2000000 ? "forward" : "stands", gmtime(&now)->tm_year + 1900);
}

static void tell_random(void) {
  unsigned char one[16], two[16];
  int failed = getentropy(one, sizeof one) || getentropy(two, sizeof two);
  printf("random %s\n", !failed && memcmp(one, two, sizeof one) ? "differs" : "repeats");
}

static void busy(const char *path) {
  for (volatile unsigned n = 0;; n = 0) {
    if (access(path, F_OK)) usleep(200000);
    else while (++n < 1000000);
  }
}

int main(int argc, char **argv) {
  int failed = 0;
  if (argc == 1) puts("hello from wasm");
  for (int i = 1; i < argc; i++) {
    const char *verb = argv[i];
    const char *next = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(verb, "args")) {
      for (int j = 0; j < argc; j++) puts(argv[j]);
    } else if (!strcmp(verb, "env")) {
      const char *value = getenv(next);
      printf("%s=%s\n", next, value ? value : "(not set)");
      i++;
    } else if (!strcmp(verb, "cat")) {
      failed |= cat(next), i++;
    } else if (!strcmp(verb, "write")) {
      failed |= put(next, i + 2 < argc ? argv[i + 2] : ""), i += 2;
    } else if (!strcmp(verb, "ls")) {
      failed |= list(next), i++;
    } else if (!strcmp(verb, "stderr")) {
      fprintf(stderr, "%s\n", next), i++;
    } else if (!strcmp(verb, "stdin")) {
      failed |= copy(stdin);
    } else if (!strcmp(verb, "sleep")) {
      fflush(stdout);
      usleep(1000 * (useconds_t)atoi(next)), i++;
    } else if (!strcmp(verb, "clock")) {
      tell_clock();
    } else if (!strcmp(verb, "random")) {
      tell_random();
    } else if (!strcmp(verb, "trap")) {
      fflush(stdout);
      __builtin_trap();
    } else if (!strcmp(verb, "busy")) {
      busy(next);
    } else if (!strcmp(verb, "exit")) {
      exit(atoi(next));
    } else {
      puts(verb);
    }
    fflush(stdout);
  }
  return failed;
}
