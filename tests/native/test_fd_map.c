/* FD_MAP: every descriptor exactly where it was asked for, nothing else open, whatever the caller's table looks like. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SEEN_MAX 1200

struct seen {
    unsigned long long dev, ino;
    int open, cloexec;
};

static struct stat stat_of(int fd)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0, "descriptor %d: errno %d", fd, errno);
    return st;
}

/* A file that no other descriptor of ours refers to, at exactly this number. */
static void file_at(int fd)
{
    int made = (int)syscall(SYS_memfd_create, "map", 1u);
    CHECK(made >= 0, "memfd_create: errno %d", errno);
    if (made != fd) {
        CHECK(dup3(made, fd, O_CLOEXEC) == fd, "dup3 to %d: errno %d", fd, errno);
        close(made);
    }
}

static void all_open_up_to(rlim_t limit)
{
    struct rlimit both = { limit, limit };
    if (setrlimit(RLIMIT_NOFILE, &both))
        skip("the limit of descriptors cannot be %d here: errno %d", (int)limit, errno);
}

static int out_of_the_way(int fd)
{
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 1010);
    CHECK(moved >= 0, "descriptor %d: errno %d", fd, errno);
    close(fd);
    return moved;
}

enum program { BY_PATH, BY_FD };

/* Starts the peer with these pairs plus one for its output, and checks that the child has these and no others. */
static void map_and_look(const int32_t (*pairs)[2], unsigned count, int report_at, enum program program, int exec_at)
{
    static struct seen seen[SEEN_MAX], wanted[SEEN_MAX];
    static int32_t all[TARGETS][2];
    int pipe_fds[2];
    memset(seen, 0, sizeof seen);
    memset(wanted, 0, sizeof wanted);
    CHECK(pipe2(pipe_fds, O_CLOEXEC) == 0, "errno %d", errno);
    int null = out_of_the_way(open("/dev/null", O_RDWR | O_CLOEXEC));
    pipe_fds[0] = out_of_the_way(pipe_fds[0]);
    pipe_fds[1] = out_of_the_way(pipe_fds[1]);
    for (unsigned i = 0; i < count; i++)
        memcpy(all[i], pairs[i], sizeof all[i]);
    all[count][0] = pipe_fds[1];
    all[count][1] = report_at;
    for (unsigned i = 0; i <= count; i++) {
        struct stat st = stat_of(all[i][0]);
        wanted[all[i][1] & ~TARGET_CLOEXEC] = (struct seen){ st.st_dev, st.st_ino, !(all[i][1] & TARGET_CLOEXEC), 0 };
    }
    struct stat at_null = stat_of(null);
    for (int i = 0; i < 3; i++)
        if (!wanted[i].ino)
            wanted[i] = (struct seen){ at_null.st_dev, at_null.st_ino, 1, 0 };

    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->ops[0].a = 2048;
    pack_fd_map(pack, (const int32_t(*)[2])all, count + 1, null);
    if (program == BY_PATH) {
        pack_exec_path(pack, peer_path());
    } else {
        int made = open(peer_path(), O_RDONLY | O_CLOEXEC);
        CHECK(made >= 0, "%s: errno %d", peer_path(), errno);
        if (made != exec_at) {
            CHECK(dup3(made, exec_at, O_CLOEXEC) == exec_at, "errno %d", errno);
            close(made);
        }
        pack->head.exec_fd = exec_at;
    }
    char out[16];
    snprintf(out, sizeof out, "%d", report_at);
    struct result result = run_pack(pack, (const char *const[]){ "peer", "fds", out, NULL }, NULL);
    pack_free(pack);
    close(pipe_fds[1]);
    close(null);
    if (program == BY_FD)
        close(exec_at);
    static char text[1 << 17];
    read_all(pipe_fds[0], text, sizeof text);
    CHECK(wait_for(result.out) == 0, "the program failed");
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        int fd = 0, cloexec = 0;
        struct seen one = { .open = 1 };
        CHECK(sscanf(line, "%d %llu %llu %d", &fd, &one.dev, &one.ino, &cloexec) == 4, "%s", line);
        CHECK(fd < SEEN_MAX, "descriptor %d is open in the program", fd);
        CHECK(cloexec == 0, "descriptor %d would be closed by another exec", fd);
        seen[fd] = one;
    }
    for (int fd = 0; fd < SEEN_MAX; fd++) {
        CHECK(seen[fd].open == wanted[fd].open, "descriptor %d: open %d, expected %d", fd, seen[fd].open, wanted[fd].open);
        CHECK(!seen[fd].open || (seen[fd].dev == wanted[fd].dev && seen[fd].ino == wanted[fd].ino), "descriptor %d is another file", fd);
    }
}

static void nothing_granted(void) { map_and_look(NULL, 0, 5, BY_PATH, 0); }

static void swap_of_two(void)
{
    file_at(7);
    file_at(8);
    map_and_look((const int32_t[][2]){ { 7, 8 }, { 8, 7 } }, 2, 1, BY_PATH, 0);
    map_and_look((const int32_t[][2]){ { 7, 8 }, { 8, 7 } }, 2, 900, BY_FD, 9);
    close(7);
    close(8);
}

/* Cycles of every length up to 20, in both directions, next to one that stays in its place. */
static void cycles(void)
{
    for (int length = 1; length <= 20; length++) {
        int32_t pairs[21][2];
        for (int i = 0; i < length; i++) {
            file_at(10 + i);
            pairs[i][0] = 10 + i;
            pairs[i][1] = 10 + (length & 1 ? (i + 1) % length : (i + length - 1) % length);
        }
        file_at(40);
        pairs[length][0] = pairs[length][1] = 40;
        map_and_look((const int32_t(*)[2])pairs, (unsigned)length + 1, 3, BY_FD, 50);
        for (int i = 0; i < length; i++)
            close(10 + i);
        close(40);
    }
}

static void standard_streams_may_be_crossed(void)
{
    int saved[3];
    for (int i = 0; i < 3; i++)
        saved[i] = fcntl(i, F_DUPFD_CLOEXEC, 100);
    for (int i = 0; i < 3; i++)
        file_at(i);
    map_and_look((const int32_t[][2]){ { 0, 2 }, { 1, 0 }, { 2, 1 } }, 3, 3, BY_PATH, 0);
    map_and_look((const int32_t[][2]){ { 1, 0 } }, 1, 1, BY_FD, 2); /* the program is standard error */
    for (int i = 0; i < 3; i++) {
        dup2(saved[i], i);
        close(saved[i]);
    }
}

static void one_source_many_targets(void)
{
    file_at(6);
    map_and_look((const int32_t[][2]){ { 6, 0 }, { 6, 1 }, { 6, 2 }, { 6, 6 }, { 6, 1023 }, { 6, 30 } }, 6, 3, BY_PATH, 0);
    close(6);
}

static void targets_up_to_the_last(void)
{
    all_open_up_to(2048);
    file_at(1023);
    file_at(1500);
    map_and_look((const int32_t[][2]){ { 1023, 1022 }, { 1500, 1023 } }, 2, 1021, BY_FD, 1022);
    close(1023);
    close(1500);
}

/* 1000 targets in a row leave no number below them for the copies that keep them apart. */
static void a_thousand_targets(void)
{
    static int32_t pairs[1000][2];
    all_open_up_to(4096);
    for (int i = 0; i < 1000; i++) {
        file_at(3 + i);
        pairs[i][0] = 3 + i;
        pairs[i][1] = 3 + (i + 1) % 1000;
    }
    map_and_look((const int32_t(*)[2])pairs, 1000, 1010, BY_FD, 1020);
    for (int i = 0; i < 1000; i++)
        close(3 + i);
}

static void close_on_exec_targets_are_gone(void)
{
    file_at(20);
    file_at(21);
    map_and_look((const int32_t[][2]){ { 20, 21 | TARGET_CLOEXEC }, { 21, 20 }, { 20, 30 | TARGET_CLOEXEC } }, 3, 3, BY_PATH, 0);
    map_and_look((const int32_t[][2]){ { 20, 20 | TARGET_CLOEXEC }, { 21, 21 } }, 2, 3, BY_FD, 30);
    close(20);
    close(21);
}

/* The program's own descriptor is at a number that is wanted: as a target, as a source, as both. */
static void program_at_a_target(void)
{
    file_at(11);
    map_and_look((const int32_t[][2]){ { 11, 12 } }, 1, 3, BY_FD, 12);
    map_and_look((const int32_t[][2]){ { 11, 3 }, { 11, 4 }, { 11, 5 } }, 3, 6, BY_FD, 4);
    int program = open(peer_path(), O_RDONLY | O_CLOEXEC);
    dup3(program, 12, O_CLOEXEC);
    close(program);
    map_and_look((const int32_t[][2]){ { 12, 13 }, { 11, 12 } }, 2, 3, BY_FD, 12);
    close(11);
}

static struct result map_only(const int32_t (*pairs)[2], unsigned count, int null)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack_fd_map(pack, pairs, count, null);
    pack_exec_path(pack, peer_path());
    struct result result = run_pack(pack, NULL, NULL);
    pack_free(pack);
    return result;
}

static void closed_sources(void)
{
    for (int closed = 3; closed < 40; closed++) {
        int taken = fcntl(closed, F_GETFD) >= 0;
        struct result result = map_only((const int32_t[][2]){ { closed, 50 } }, 1, 0);
        if (taken)
            CHECK(wait_for(result.out) == 0, "an open source was refused");
        else
            CHECK_OUTCOME(result, STAGE_OPS, 1, EBADF);
    }
    CHECK_OUTCOME(map_only((const int32_t[][2]){ { SLOT(5), 50 } }, 1, 0), STAGE_OPS, 1, EBADF); /* a slot that nothing filled */
    CHECK_OUTCOME(map_only((const int32_t[][2]){ { 5, 5 } }, 1, 0), STAGE_OPS, 1, EBADF);
    CHECK_OUTCOME(map_only((const int32_t[][2]){ { 9999, 5 } }, 1, 0), STAGE_OPS, 1, EBADF);
    CHECK_OUTCOME(map_only(NULL, 0, NO_FD), STAGE_OPS, 1, EBADF); /* nothing to fill 0-2 with */
    CHECK_OUTCOME(map_only(NULL, 0, 77), STAGE_OPS, 1, EBADF);
}

/* The copies made meanwhile land on free numbers, and a closed source is a free number: what comes there is not what was
 * to be granted. Tried for each number where a copy can land, for the program's own descriptor, for /dev/null. */
static void a_closed_source_is_noticed_when_a_copy_lands_on_it(void)
{
    int lowest = next_fd();
    for (int closed = lowest; closed < lowest + 6; closed++) {
        CHECK_OUTCOME(map_only((const int32_t[][2]){ { 0, 100 }, { 1, 101 }, { 2, 102 }, { closed, 103 } }, 4, 0), STAGE_OPS, 1, EBADF);
        CHECK_OUTCOME(map_only((const int32_t[][2]){ { 0, 100 }, { 1, 101 }, { 2, 102 } }, 3, closed), STAGE_OPS, 1, EBADF);
        struct pack *pack = pack_new(PLAN_SHARE_FDS);
        pack_fd_map(pack, (const int32_t[][2]){ { closed == lowest ? 300 : closed, 100 } }, 1, 0);
        int program = open(peer_path(), O_RDONLY | O_CLOEXEC);
        pack->head.exec_fd = program;
        CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, 1, EBADF);
        close(program);
        pack_free(pack);
    }
}

/* Every number above 2 that the limit allows is a target: copies have nowhere to go. It works right up to that. */
static void low_limits(void)
{
    int32_t pairs[64][2];
    file_at(63);
    all_open_up_to(64);
    for (int i = 0; i < 61; i++) {
        pairs[i][0] = 63;
        pairs[i][1] = 3 + i;
    }
    struct result result = map_only((const int32_t(*)[2])pairs, 61, 0);
    CHECK(result.out.report.stage == STAGE_OPS && result.out.report.index == 1 && result.out.report.err == EMFILE,
          "no room for copies: stage %d, index %d, errno %d", result.out.report.stage, result.out.report.index, result.out.report.err);
    /* With n targets n copies are needed, and one of /dev/null. */
    CHECK(wait_for(map_only((const int32_t(*)[2])pairs, 20, 0).out) == 0, "with room for copies");
    for (int i = 0; i < 20; i++)
        pairs[i][1] = 63 - 2 * i;
    CHECK(wait_for(map_only((const int32_t(*)[2])pairs, 20, 0).out) == 0, "with room between targets");
    close(63);
    /* A target that the limit forbids. */
    CHECK_OUTCOME(map_only((const int32_t[][2]){ { 0, 64 } }, 1, 0), STAGE_OPS, 1, EBADF);
    CHECK_OUTCOME(map_only((const int32_t[][2]){ { 0, 1023 } }, 1, 0), STAGE_OPS, 1, EBADF);
    /* The whole table is taken; the child's is its own, so closing what was not granted makes no room in time. */
    int last = -1;
    for (int fd; (fd = fcntl(0, F_DUPFD_CLOEXEC, 3)) >= 0;)
        last = fd;
    CHECK(last == 63, "the last descriptor is %d", last);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack_fd_map(pack, (const int32_t[][2]){ { 0, 40 } }, 1, 0);
    pack_exec_path(pack, peer_path());
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_CLONE, -1, EMFILE); /* not even a pidfd */
    close(63);
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, 1, EMFILE);
    pack_free(pack);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    int null = open("/dev/null", O_RDWR); /* the table as it was when the test began: 0, 1, 2 and what the harness has */
    close(null);
    _exit(sanitizer_complained || has_children());
}

/* What lies above the number that UNSHARE_FDS names is not even copied. */
static void what_is_left_behind(void)
{
    all_open_up_to(4096);
    file_at(3000);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->ops[0].a = 3000;
    pack_fd_map(pack, (const int32_t[][2]){ { 3000, 9 } }, 1, 0);
    pack_exec_path(pack, peer_path());
    CHECK_OUTCOME(run_pack(pack, NULL, NULL), STAGE_OPS, 1, EBADF);
    pack->ops[0].a = 3001;
    CHECK(wait_for(run_pack(pack, NULL, NULL).out) == 0, "the program failed");
    CHECK(fcntl(3000, F_GETFD) == FD_CLOEXEC, "the caller's own descriptor changed");
    close(3000);
    pack_free(pack);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "with nothing granted, 0-2 are /dev/null and nothing else is open", nothing_granted },
        { "two descriptors can be swapped", swap_of_two },
        { "cycles of up to 20 descriptors come out right", cycles },
        { "0, 1 and 2 can be crossed, and the program can be one of them", standard_streams_may_be_crossed },
        { "one descriptor can be granted many times", one_source_many_targets },
        { "1023 can be a target, a source and the program", targets_up_to_the_last },
        { "a thousand descriptors in a row can be rotated", a_thousand_targets },
        { "close-on-exec targets are gone after exec", close_on_exec_targets_are_gone },
        { "the program's descriptor can be in the way of a target", program_at_a_target },
        { "a closed source is EBADF", closed_sources },
        { "a closed source is EBADF also where a copy landed on its number", a_closed_source_is_noticed_when_a_copy_lands_on_it },
        { "a low limit is EMFILE, not a wrong descriptor", low_limits },
        { "what lies above UNSHARE_FDS's number is left behind", what_is_left_behind },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
