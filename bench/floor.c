/* The floor: what starting and awaiting a program costs with nothing on top: vfork, execve, waitpid.
 *
 * It reads requests "COUNT PATH\n" from one descriptor and answers each with COUNT durations in nanoseconds on one line,
 * so that a benchmark can take turns between it and its peers. Standard input, output and error are left alone: the
 * programs started inherit them exactly as they do from the other launchers.
 *
 * usage: floor REQUEST_FD ANSWER_FD
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long launch_ns(char *path)
{
    char *argv[] = {path, NULL};
    int status;
    long long started = now_ns();
    pid_t pid = vfork();
    if (pid == 0) {
        execve(path, argv, environ);
        _exit(127);
    }
    if (pid < 0)
        return -1;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? now_ns() - started : -1;
}

int main(int argc, char **argv)
{
    char path[4096];
    long count;
    if (argc != 3) {
        fprintf(stderr, "usage: floor REQUEST_FD ANSWER_FD\n");
        return 2;
    }
    FILE *requests = fdopen(atoi(argv[1]), "r"), *answers = fdopen(atoi(argv[2]), "w");
    if (!requests || !answers) {
        perror("floor: fdopen");
        return 2;
    }
    /* They arrive inheritable; what is started here must not have them. */
    fcntl(fileno(requests), F_SETFD, FD_CLOEXEC);
    fcntl(fileno(answers), F_SETFD, FD_CLOEXEC);
    while (fscanf(requests, "%ld %4095[^\n]", &count, path) == 2) {
        for (long i = 0; i < count; i++)
            fprintf(answers, i ? " %lld" : "%lld", launch_ns(path));
        fputc('\n', answers);
        if (fflush(answers))
            return 1;
    }
    return 0;
}
