// snapshots SOURCE DIR COUNT THREADS one|many: the raw ioctls, COUNT snapshots of SOURCE from THREADS threads, then their
// removal. With `one` all are made in DIR, which serialises their commits on its lock; with `many` each
// thread has a directory of its own. Prints the milliseconds that both took in all: `CREATE DESTROY`.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 512 };

static int source, count, threads, parents[MAX_THREADS];

static void each(int thread, unsigned long request, int fd) {
  for (int i = thread; i < count; i += threads) {
    struct btrfs_ioctl_vol_args_v2 args = {.fd = fd};
    snprintf(args.name, sizeof args.name, "snapshot-%d", i);
    if (ioctl(parents[thread], request, &args) < 0) err(1, "%s", args.name);
  }
}

static void *create(void *thread) {
  each((int)(long)thread, BTRFS_IOC_SNAP_CREATE_V2, source);
  return NULL;
}

static void *destroy(void *thread) {
  each((int)(long)thread, BTRFS_IOC_SNAP_DESTROY_V2, 0);
  return NULL;
}

static double in_parallel(void *(*work)(void *)) {
  pthread_t running[MAX_THREADS];
  struct timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (long i = 0; i < threads; i++)
    if (pthread_create(&running[i], NULL, work, (void *)i)) errx(1, "pthread_create");
  for (int i = 0; i < threads; i++) pthread_join(running[i], NULL);
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (end.tv_sec - start.tv_sec) * 1e3 + (end.tv_nsec - start.tv_nsec) / 1e6;
}

int main(int argc, char **argv) {
  if (argc != 6) errx(2, "usage: snapshots SOURCE DIR COUNT THREADS one|many");
  source = open(argv[1], O_RDONLY | O_DIRECTORY);
  int dir = open(argv[2], O_RDONLY | O_DIRECTORY);
  if (source < 0 || dir < 0) err(1, "open");
  count = atoi(argv[3]);
  threads = atoi(argv[4]);
  if (count < 1 || threads < 1 || threads > MAX_THREADS) errx(2, "COUNT and THREADS: 1 to %d", MAX_THREADS);
  int many = !strcmp(argv[5], "many");
  for (int i = 0; i < threads; i++) {
    char name[32];
    snprintf(name, sizeof name, "shard-%d", i);
    if (many && mkdirat(dir, name, 0755)) err(1, "%s", name);
    parents[i] = many ? openat(dir, name, O_RDONLY | O_DIRECTORY) : dir;
    if (parents[i] < 0) err(1, "%s", name);
  }
  double created = in_parallel(create), destroyed = in_parallel(destroy);
  for (int i = 0; many && i < threads; i++) {
    char name[32];
    snprintf(name, sizeof name, "shard-%d", i);
    unlinkat(dir, name, AT_REMOVEDIR);
  }
  printf("%.3f %.3f\n", created, destroyed);
  return 0;
}
