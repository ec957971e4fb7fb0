/* Claims about the core, each tested in a process of its own. At the end of each, nothing may be left: no descriptor, no child,
 * no sanitizer's complaint (a child shares our memory until exec, so its complaints are seen here as well). */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include "pack.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(claim, ...)                                                                                                         \
    do                                                                                                                            \
        if (!(claim))                                                                                                             \
            check_failed(__FILE__, __LINE__, #claim, __VA_ARGS__);                                                                \
    while (0)
/* The launch failed, there and with this errno, and gave neither pid nor pidfd. */
#define CHECK_OUTCOME(result, stage, index, err) check_outcome(__FILE__, __LINE__, result, stage, index, err)
void check_outcome(const char *file, int line, struct result result, int stage, int index, int err);

void check_failed(const char *file, int line, const char *claim, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));
void skip(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

struct test {
    const char *claim;
    void (*run)(void);
};
/* Runs all, or those whose claim contains argv[1]. Returns what main returns. */
int run_tests(const struct test *tests, size_t count, int argc, char **argv);

/* Which descriptors below `limit` are open; counts them. `open_fds` may be NULL. No /proc needed. */
int fds_open(uint8_t *open_fds, int limit);
int has_children(void);
extern volatile int sanitizer_complained;

/* Descriptor numbers are given out from the lowest: what the next call will get. */
int next_fd(void);
/* The program that tests start, the folder it is in, and shoal-init. */
const char *peer_path(void);
int peer_folder(void);
const char *init_path(void);
int open_file(const char *path);
/* Waits for a started program and closes its pidfd. Returns its exit status, or -signal. */
int wait_for(struct outcome out);
/* The same, but fails the test when it takes too long. */
int ended(struct outcome out);
#define PATIENCE_MS 5000
/* Close-on-exec. */
void make_pipe(int fds[2]);
void make_sockets(int type, int fds[2]);
/* Reads all until end of file, at most size - 1 bytes, and adds a NUL. Closes fd. */
size_t read_all(int fd, char *buffer, size_t size);

/* What is behind a descriptor. */
#define SEEN_MAX 1200
struct seen {
    unsigned long long dev, ino;
    int open;
};
struct seen seen_at(int fd);
/* A file that no other descriptor of ours refers to, at exactly this number. */
void file_at(int fd);
/* What "peer fds" wrote to `from`: these and no others are open, and each would survive another exec. Closes `from`. */
void check_seen(int from, const struct seen *wanted);
void limit_fds(int limit);

/* Root becomes an ordinary user, for good. Skips the test where it cannot. */
void become_ordinary(void);

/* A new child "shoal-native-PID" of our cgroup in the v2 hierarchy, to be removed by its path. Returns a descriptor, or -1. */
int cgroup_new(char *path, size_t size);

/* CLONE_NEWUSER | CLONE_NEWNS, or CLONE_NEWNS where only that is to be had. Skips the test where neither is. */
uint64_t mount_world(void);
/* Adds ops that map uid 0 and gid 0 of a new user namespace to us, if `world` is one. */
void pack_id_maps(struct pack *pack, uint64_t world);

#endif
