// Takes more than it should get, as its argument says.
//   memory MIB [SECONDS]  touches that much memory, says so, and waits
//   files                 opens files until it is refused one, and says how many it got
//   spin                  says so and computes for ever
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Where everybody can see it: the compiler would leave out memory that nobody looks at.
char *volatile taken;

int main(int argc, char **argv) {
  const char *verb = argc > 1 ? argv[1] : "";
  setvbuf(stdout, NULL, _IONBF, 0);
  if (!strcmp(verb, "memory")) {
    long mib = argc > 2 ? atol(argv[2]) : 1024;
    for (long i = 0; i < mib; i++) {
      char *some = malloc(1 << 20);
      if (!some) {
        printf("no more memory after %ld MiB\n", i);
        // What most programs do about it.
        abort();
      }
      memset(some, (int)(i | 1), 1 << 20);
      taken = some;
    }
    printf("has %ld MiB\n", mib);
    sleep(argc > 3 ? (unsigned)atoi(argv[3]) : 0);
    return 0;
  }
  if (!strcmp(verb, "files")) {
    int got = 0;
    while (got < 10000000) {
      if (open("/many", O_RDWR | O_CREAT, 0600) < 0) {
        printf("refused after %d files: %s\n", got, strerror(errno));
        return 0;
      }
      got++;
    }
    puts("was never refused");
    return 1;
  }
  puts("spinning");
  for (volatile unsigned long i = 0;; i++) {
  }
}
