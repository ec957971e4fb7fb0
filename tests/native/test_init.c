/* shoal-init as the first process of new user and pid namespaces, by the rules in the comment at the head of init/main.c.
 *
 * As root the tests become an ordinary user first: what init may not do any more can only be seen on one that is not root. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORLD (CLONE_NEWUSER | CLONE_NEWPID)
#define PRIVATE_KIB_MAX 100

struct cell {
    struct outcome init;
    int control; /* ours */
    int said;    /* what init reported about its preparations */
};

struct guest {
    struct outcome out;
    int in, from; /* its descriptors 0 and 3 */
};

static int init_fd, peer_fd;

static struct cell cell_new(const char *tasks)
{
    struct cell cell;
    int pair[2];
    init_fd = open_file(init_path());
    peer_fd = open_file(peer_path());
    become_ordinary();
    make_sockets(SOCK_STREAM, pair);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->head.clone_flags = WORLD;
    pack_id_maps(pack, WORLD);
    pack_fd_map(pack, (const int32_t[][2]){ { pair[1], 3 } }, 1, 0);
    op_add(pack, OP_SIGNALS);
    pack->head.exec_fd = init_fd;
    cell.init = run_pack(pack, (const char *const[]){ "shoal-init", tasks, NULL }, NULL).out;
    pack_free(pack);
    close(pair[1]);
    if (cell.init.report.stage == STAGE_CLONE || (cell.init.report.stage == STAGE_OPS && cell.init.report.err == EPERM))
        skip("an ordinary user cannot make a user and a pid namespace here: errno %d", cell.init.report.err);
    CHECK(cell.init.report.stage == STAGE_EXEC && cell.init.report.err == 0, "stage %d, index %d, errno %d", cell.init.report.stage,
          cell.init.report.index, cell.init.report.err);
    cell.control = pair[0];
    cell.said = -1;
    CHECK(recv(cell.control, &cell.said, sizeof cell.said, 0) == sizeof cell.said, "init reported nothing");
    return cell;
}

static void tell(struct cell cell, char mode) { CHECK(send(cell.control, &mode, 1, MSG_NOSIGNAL) == 1, "errno %d", errno); }

/* The peer as the next process of the cell. */
static struct guest enter_with(struct cell cell, uint64_t also, const char *verb, const char *path, int drop_caps)
{
    struct guest guest;
    int in[2], out[2];
    make_pipe(in);
    make_pipe(out);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack->head.enter_fd = cell.init.pidfd;
    pack->head.enter_flags = WORLD | also;
    pack_fd_map(pack, (const int32_t[][2]){ { in[0], 0 }, { out[1], 3 } }, 2, 0);
    op_add(pack, OP_SIGNALS);
    if (drop_caps) {
        op_add(pack, OP_DROP_BOUNDING);
        op_add(pack, OP_DROP_CAPS);
    }
    pack->head.exec_fd = peer_fd;
    guest.out = run_pack(pack, (const char *const[]){ "peer", verb, "3", path, NULL }, NULL).out;
    pack_free(pack);
    close(in[0]);
    close(out[1]);
    guest.in = in[1];
    guest.from = out[0];
    CHECK(guest.out.report.stage == STAGE_EXEC && guest.out.report.err == 0, "stage %d, index %d, errno %d", guest.out.report.stage,
          guest.out.report.index, guest.out.report.err);
    return guest;
}

static struct guest enter(struct cell cell, uint64_t also, const char *verb) { return enter_with(cell, also, verb, NULL, 0); }

/* The errno that a program of the cell without capabilities gets when it looks into a process that it may see. */
static int looking_into(struct cell cell, int pid)
{
    char path[64], text[16];
    snprintf(path, sizeof path, "/proc/%d/environ", pid);
    struct guest guest = enter_with(cell, 0, "look", path, 1);
    read_all(guest.from, text, sizeof text);
    CHECK(wait_for(guest.out) == 0, "failed");
    close(guest.in);
    return atoi(text);
}

static void expect_line(struct guest guest, const char *expected)
{
    char line[64];
    size_t used = 0;
    struct pollfd watch = { .fd = guest.from, .events = POLLIN };
    while (used < sizeof line - 1 && (used == 0 || line[used - 1] != '\n')) {
        CHECK(poll(&watch, 1, PATIENCE_MS) == 1, "waited in vain for \"%s\"", expected);
        if (read(guest.from, line + used, 1) != 1)
            break;
        used++;
    }
    line[used - (used > 0)] = '\0';
    CHECK(strcmp(line, expected) == 0, "\"%s\", expected \"%s\"", line, expected);
}

static int is_running(struct outcome out)
{
    struct pollfd watch = { .fd = out.pidfd, .events = POLLIN };
    return poll(&watch, 1, 0) == 0;
}

static void over(struct cell cell, struct guest guest)
{
    close(cell.control);
    close(guest.in);
    close(guest.from);
    close(init_fd);
    close(peer_fd);
}

static const struct guest nobody = { .in = -1, .from = -1 };

static size_t proc_file(struct cell cell, const char *name, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", cell.init.pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? 0 : read_all(fd, text, size);
}

static void ends_after_its_program(void)
{
    struct cell cell = cell_new("");
    CHECK(cell.said == 0, "it reports errno %d", cell.said);
    struct guest guest = enter(cell, 0, "hold");
    tell(cell, 'g');
    expect_line(guest, "2");
    CHECK(is_running(cell.init), "init ended before the program did");
    close(guest.in);
    CHECK(ended(guest.out) == 0 && ended(cell.init) == 0, "failed");
    guest.in = -1;
    over(cell, guest);
}

/* The caller may tell init only when the program has ended already. */
static void ends_after_a_program_that_was_quick(void)
{
    struct cell cell = cell_new("");
    struct guest guest = enter(cell, 0, "self");
    CHECK(ended(guest.out) == 0, "failed");
    tell(cell, 'g');
    CHECK(ended(cell.init) == 0, "failed");
    over(cell, guest);
}

static void waits_for_orphans(void)
{
    struct cell cell = cell_new("");
    struct guest guest = enter(cell, 0, "orphan");
    tell(cell, 'g');
    expect_line(guest, "left");
    CHECK(ended(guest.out) == 0, "the program failed");
    close(cell.control); /* mode g does not care */
    cell.control = -1;
    struct guest other = enter(cell, 0, "hold");
    expect_line(other, "5"); /* the cell lives, and its pids go on: 3 and 4 were the two that the program left */
    close(other.in);
    CHECK(ended(other.out) == 0, "the other program failed");
    CHECK(is_running(cell.init), "init ended, but a process of the cell was alive");
    close(guest.in);
    guest.in = -1;
    expect_line(guest, "over");
    CHECK(ended(cell.init) == 0, "failed");
    close(other.from);
    over(cell, guest);
}

static void passes_signals_on(void)
{
    static const int signals[] = { SIGUSR1, SIGINT, SIGHUP, SIGQUIT, SIGPIPE, SIGWINCH, SIGCONT, 63 };
    struct cell cell = cell_new("");
    struct guest guest = enter(cell, 0, "take");
    tell(cell, 'g');
    expect_line(guest, "ready");
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        char expected[16];
        snprintf(expected, sizeof expected, "%d", signals[i]);
        CHECK(kill(cell.init.pid, signals[i]) == 0, "errno %d", errno);
        expect_line(guest, expected);
    }
    CHECK(kill(cell.init.pid, SIGTERM) == 0, "errno %d", errno);
    expect_line(guest, "15");
    CHECK(ended(guest.out) == 0 && ended(cell.init) == 0, "failed");
    over(cell, guest);
}

static void dies_with_its_caller(void)
{
    struct cell cell = cell_new("");
    struct guest guest = enter(cell, 0, "take");
    tell(cell, 'd');
    expect_line(guest, "ready");
    close(cell.control);
    cell.control = -1;
    CHECK(ended(guest.out) == -SIGKILL && ended(cell.init) == 0, "failed");
    over(cell, guest);
    struct cell quick = cell_new("");
    guest = enter(quick, 0, "self");
    tell(quick, 'd');
    CHECK(ended(guest.out) == 0 && ended(quick.init) == 0, "it does not end after its program");
    over(quick, guest);
}

static void holds_a_job(void)
{
    struct cell cell = cell_new("");
    tell(cell, 'j');
    for (int i = 2; i < 6; i++) { /* empty at first, and after each of these */
        char pid[16];
        struct guest guest = enter(cell, 0, i & 1 ? "take" : "hold");
        snprintf(pid, sizeof pid, "%d", i);
        expect_line(guest, i & 1 ? "ready" : pid);
        CHECK(kill(cell.init.pid, SIGTERM) == 0, "errno %d", errno); /* nobody to pass it on to, and init itself stays */
        if (i & 1)
            kill(guest.out.pid, SIGTERM);
        close(guest.in);
        CHECK(ended(guest.out) == 0, "failed");
        close(guest.from);
    }
    CHECK(is_running(cell.init), "init ended while its job was open");
    struct guest orphans = enter(cell, 0, "orphan"), last = enter(cell, 0, "take");
    expect_line(orphans, "left");
    expect_line(last, "ready");
    CHECK(ended(orphans.out) == 0, "failed");
    close(cell.control);
    cell.control = -1;
    CHECK(ended(last.out) == -SIGKILL && ended(cell.init) == 0, "failed");
    char rest[8];
    CHECK(read_all(orphans.from, rest, sizeof rest) == 0, "the orphan ran on: %s", rest);
    orphans.from = -1;
    close(orphans.in);
    over(cell, last);
}

static void ends_when_the_caller_gives_up(void)
{
    struct cell cell = cell_new("");
    struct guest guest = enter(cell, 0, "take");
    expect_line(guest, "ready");
    close(cell.control);
    cell.control = -1;
    CHECK(ended(guest.out) == -SIGKILL && ended(cell.init) == 0, "failed");
    over(cell, guest);
}

static void killing_it_kills_the_cell(void)
{
    struct cell cell = cell_new("");
    struct guest guest = enter(cell, 0, "take");
    tell(cell, 'g');
    expect_line(guest, "ready");
    CHECK(syscall(SYS_pidfd_send_signal, cell.init.pidfd, SIGKILL, NULL, 0) == 0, "errno %d", errno);
    CHECK(ended(guest.out) == -SIGKILL && ended(cell.init) == -SIGKILL, "failed");
    over(cell, guest);
}

static void refuses_what_it_does_not_know(void)
{
    struct cell cell = cell_new("?");
    CHECK(cell.said == EINVAL, "it reports errno %d", cell.said);
    close(cell.control); /* until then it may stay: somebody may be entering it */
    cell.control = -1;
    CHECK(ended(cell.init) == 0, "failed");
    over(cell, nobody);
}

static void makes_a_network(void)
{
    char ours[64] = "", its[64] = "", path[64];
    struct cell cell = cell_new("n");
    if (cell.said == EPERM || cell.said == ENOSPC) {
        close(cell.control);
        ended(cell.init);
        skip("no network namespace can be made here: errno %d", cell.said);
    }
    CHECK(cell.said == 0, "it reports errno %d", cell.said);
    snprintf(path, sizeof path, "/proc/%d/ns/net", cell.init.pid);
    CHECK(readlink("/proc/self/ns/net", ours, sizeof ours - 1) > 0 && readlink(path, its, sizeof its - 1) > 0, "errno %d", errno);
    CHECK(strcmp(ours, its), "it is still in our network");
    struct guest guest = enter(cell, CLONE_NEWNET, "loopback");
    tell(cell, 'g');
    char said[16];
    read_all(guest.from, said, sizeof said);
    guest.from = -1;
    CHECK(strcmp(said, "0") == 0, "through 127.0.0.1: errno %s", said);
    CHECK(ended(guest.out) == 0 && ended(cell.init) == 0, "failed");
    over(cell, guest);
}

static void can_do_nothing_and_shows_nothing(void)
{
    char text[8192];
    struct cell cell = cell_new("");
    tell(cell, 'j');
    CHECK(proc_file(cell, "status", text, sizeof text) > 0, "no status");
    static const char *const lines[] = { "Name:\tshoal-init\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
                                         "CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n" };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        CHECK(strstr(text, lines[i]), "not in its status: %s", lines[i]);
    struct guest other = enter_with(cell, 0, "hold", NULL, 1);
    expect_line(other, "2");
    int into_other = looking_into(cell, other.out.pid), into_init = looking_into(cell, cell.init.pid);
    CHECK(into_other == 0 && into_init == EACCES, "looking into another: errno %d, into init: errno %d", into_other, into_init);
    close(other.in);
    CHECK(ended(other.out) == 0, "failed");
    close(other.from);
    close(cell.control);
    cell.control = -1;
    CHECK(ended(cell.init) == 0, "failed");
    over(cell, nobody);
}

/* Of who is not dumpable, and so can write no map of its own. */
static void gives_a_user_namespace(void)
{
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary;
    int pair[2], err = -1, fd = -1;
    uid_t owner = (uid_t)-1;
    init_fd = open_file(init_path());
    become_ordinary();
    CHECK(prctl(PR_SET_DUMPABLE, 0) == 0, "errno %d", errno);
    make_sockets(SOCK_STREAM, pair);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack_fd_map(pack, (const int32_t[][2]){ { pair[1], 3 } }, 1, 0);
    op_add(pack, OP_SIGNALS);
    pack->head.exec_fd = init_fd;
    struct outcome init = run_pack(pack, (const char *const[]){ "shoal-init", "u", NULL }, NULL).out;
    pack_free(pack);
    close(pair[1]);
    struct iovec piece = { &err, sizeof err };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary };
    CHECK(recvmsg(pair[0], &message, 0) == sizeof err, "errno %d", errno);
    CHECK(ended(init) == 0, "failed");
    if (err == EPERM || err == ENOSPC)
        skip("an ordinary user cannot make a user namespace here: errno %d", err);
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    CHECK(err == 0 && head && head->cmsg_type == SCM_RIGHTS, "errno %d", err);
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
    CHECK(ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWUSER && ioctl(fd, NS_GET_OWNER_UID, &owner) == 0 && owner == geteuid(), "errno %d", errno);
    pack = pack_new(PLAN_SHARE_FDS);
    pack->head.enter_fd = fd;
    pack->head.enter_flags = CLONE_NEWUSER;
    pack->head.clone_flags = CLONE_NEWNS | CLONE_NEWPID;
    pack_fd_map(pack, NULL, 0, 0);
    op_add(pack, OP_SIGNALS);
    pack->head.exec_fd = init_fd;
    init = run_pack(pack, (const char *const[]){ "shoal-init", "", NULL }, NULL).out;
    pack_free(pack);
    CHECK(init.report.stage == STAGE_EXEC && init.report.err == 0, "stage %d, errno %d", init.report.stage, init.report.err);
    CHECK(ended(init) == 0, "failed");
    close(fd);
    close(pair[0]);
    close(init_fd);
}

static void costs_next_to_nothing(void)
{
    char text[8192];
    struct cell cell = cell_new("");
    struct guest guest = enter(cell, 0, "take");
    tell(cell, 'g');
    expect_line(guest, "ready");
    CHECK(kill(cell.init.pid, SIGUSR1) == 0, "errno %d", errno); /* it has been through its loop once this arrives */
    expect_line(guest, "10");
    size_t got = proc_file(cell, "smaps_rollup", text, sizeof text);
    close(cell.control);
    cell.control = -1;
    kill(cell.init.pid, SIGTERM);
    CHECK(ended(guest.out) == 0 && ended(cell.init) == 0, "failed");
    over(cell, guest);
    if (!got)
        skip("/proc/PID/smaps_rollup cannot be read here");
    long total = 0, kib = 0;
    for (char *line = text; (line = strstr(line, "\nPrivate_")); line++)
        if (sscanf(line, "\nPrivate_%*s %ld kB", &kib) == 1)
            total += kib;
    CHECK(strstr(text, "Private_Dirty"), "%s", text);
    CHECK(total <= PRIVATE_KIB_MAX, "%ld KiB of private memory", total);
    dprintf(1, "%ld KiB private; ", total);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "init stays as long as its program and ends after it", ends_after_its_program },
        { "it ends also when the program was quicker", ends_after_a_program_that_was_quick },
        { "it stays until the last orphan has ended", waits_for_orphans },
        { "it passes signals on to the program and survives them", passes_signals_on },
        { "in mode d it dies with its caller", dies_with_its_caller },
        { "in mode j it holds an empty namespace until it is let go", holds_a_job },
        { "it ends when the caller gives up before the start", ends_when_the_caller_gives_up },
        { "killing it kills the whole cell", killing_it_kills_the_cell },
        { "a task it does not know is EINVAL", refuses_what_it_does_not_know },
        { "it makes a network with a loopback that works", makes_a_network },
        { "it has no capabilities and is not dumpable", can_do_nothing_and_shows_nothing },
        { "it makes a user namespace for who cannot, which can be entered", gives_a_user_namespace },
        { "it costs at most 100 KiB of memory of its own", costs_next_to_nothing },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
