/* FD_MAP: every descriptor exactly where it was asked for, nothing else open, whatever the caller's table looks like. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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
    static struct seen wanted[SEEN_MAX];
    static int32_t all[TARGETS][2];
    int pipe_fds[2];
    memset(wanted, 0, sizeof wanted);
    make_pipe(pipe_fds);
    int null = out_of_the_way(open("/dev/null", O_RDWR | O_CLOEXEC));
    pipe_fds[0] = out_of_the_way(pipe_fds[0]);
    pipe_fds[1] = out_of_the_way(pipe_fds[1]);
    for (unsigned i = 0; i < count; i++)
        memcpy(all[i], pairs[i], sizeof all[i]);
    all[count][0] = pipe_fds[1];
    all[count][1] = report_at;
    for (unsigned i = 0; i <= count; i++)
        if (!(all[i][1] & TARGET_CLOEXEC))
            wanted[all[i][1]] = seen_at(all[i][0]);
    for (int i = 0; i < 3; i++)
        if (!wanted[i].open)
            wanted[i] = seen_at(null);

    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->ops[0].a = 2048;
    pack_fd_map(pack, (const int32_t(*)[2])all, count + 1, null);
    if (program == BY_PATH) {
        pack_exec_path(pack, peer_path());
    } else {
        int made = open_file(peer_path());
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
    check_seen(pipe_fds[0], wanted);
    CHECK(wait_for(result.out) == 0, "the program failed");
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
    limit_fds(2048);
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
    limit_fds(4096);
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
    int program = open_file(peer_path());
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
        int program = open_file(peer_path());
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
    limit_fds(64);
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
    limit_fds(4096);
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

#define LAST 14

/* In a process of its own, whose table is as full as can be up to LAST: the op alone, and what it keeps for later. */
static void map_and_keep(const int32_t (*pairs)[2], unsigned count, int exec_at, int report_at)
{
    static struct seen before[LAST + 1], wanted[SEEN_MAX];
    static uint8_t is_open[SEEN_MAX];
    for (int fd = 3; fd <= LAST; fd++)
        file_at(fd);
    for (int fd = 0; fd <= LAST; fd++)
        before[fd] = seen_at(fd);
    for (int fd = 0; fd < 3; fd++)
        wanted[fd] = before[3];
    for (unsigned i = 0; i < count; i++)
        wanted[pairs[i][1] & ~TARGET_CLOEXEC] = before[pairs[i][0]];
    struct pack *pack = pack_new(0);
    size_t size;
    pack_fd_map(pack, pairs, count, 3);
    void *baked = pack_bake(pack, &size);
    struct plan *plan = plan_new(baked, size, NULL, NULL);
    CHECK(verify_plan(plan, size) == 0, "refused");
    plan->exec_fd = exec_at;
    plan->report_fd = report_at;
    int err = run_ops(plan);
    CHECK(err == 0, "errno %d", err);
    const int kept[2] = { plan->exec_fd, plan->report_fd }, was[2] = { exec_at, report_at };
    for (int i = 0; i < 2; i++) {
        CHECK((was[i] >= 0) == (kept[i] >= 0), "descriptor %d became %d", was[i], kept[i]);
        if (was[i] < 0)
            continue;
        CHECK(kept[i] < SEEN_MAX && !wanted[kept[i]].open, "%d was moved to %d, where something else is to be", was[i], kept[i]);
        CHECK(fcntl(kept[i], F_GETFD) == FD_CLOEXEC, "descriptor %d, kept as %d, would be inherited", was[i], kept[i]);
        wanted[kept[i]] = before[was[i]];
    }
    fds_open(is_open, SEEN_MAX);
    for (int fd = 0; fd < SEEN_MAX; fd++) {
        CHECK(is_open[fd] == wanted[fd].open, "descriptor %d: open %d, expected %d", fd, is_open[fd], wanted[fd].open);
        struct seen seen = is_open[fd] ? seen_at(fd) : wanted[fd];
        CHECK(seen.ino == wanted[fd].ino && seen.dev == wanted[fd].dev, "descriptor %d is another file", fd);
    }
    for (unsigned i = 0; i < count; i++)
        CHECK(fcntl(pairs[i][1] & ~TARGET_CLOEXEC, F_GETFD) == !!(pairs[i][1] & TARGET_CLOEXEC), "descriptor %d", pairs[i][1]);
    CHECK(!sanitizer_complained, "a sanitizer complained");
    plan_free(plan);
    free(baked);
    pack_free(pack);
}

/* Both wherever they may be: below the targets, between them, above; where a target goes, where a source is, in one place. */
static void what_is_needed_later_is_kept(void)
{
    static const int32_t pairs[][2] = { { 5, 9 }, { 9, 5 }, { 7, 7 }, { 5, 11 }, { 6, 13 | TARGET_CLOEXEC }, { 8, 0 }, { 14, 40 } };
    for (int exec_at = 1; exec_at <= LAST; exec_at++)
        for (int report_at = 2; report_at <= LAST; report_at++) {
            int status, exec_fd = exec_at == 1 ? CWD_FD : exec_at == 2 ? NO_FD : exec_at, report_fd = report_at == 2 ? NO_FD : report_at;
            for (unsigned count = 0; count <= sizeof pairs / sizeof *pairs; count += sizeof pairs / sizeof *pairs) {
                pid_t pid = fork();
                if (pid == 0) {
                    map_and_keep(pairs, count, exec_fd, report_fd);
                    _exit(0);
                }
                CHECK(waitpid(pid, &status, 0) == pid && status == 0, "%u pairs, the program at %d, the report at %d", count, exec_fd, report_fd);
            }
        }
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
        { "the program and a socket for reports are kept wherever they are", what_is_needed_later_is_kept },
        { "a closed source is EBADF", closed_sources },
        { "a closed source is EBADF also where a copy landed on its number", a_closed_source_is_noticed_when_a_copy_lands_on_it },
        { "a low limit is EMFILE, not a wrong descriptor", low_limits },
        { "what lies above UNSHARE_FDS's number is left behind", what_is_left_behind },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
