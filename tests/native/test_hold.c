/* A shoal-init that holds a program without a cell: the rules of init/hold.c and hold.h. */
#include "init/hold.h"
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

struct tree {
    struct outcome out; /* the holder */
    struct held held;
    int control, plans, pidfd;
};

static struct tree tree_new(const char *how)
{
    int control[2], plans[2];
    make_sockets(SOCK_STREAM, control);
    make_sockets(SOCK_SEQPACKET, plans);
    int image = open_file(init_path()), null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    op_add(pack, OP_SETSID);
    pack_fd_map(pack, (const int32_t[][2]){ { control[1], 3 }, { plans[1], 4 } }, 2, 0);
    op_add(pack, OP_SIGNALS);
    pack->head.exec_fd = image;
    struct tree tree = { run_pack(pack, (const char *const[]){ "shoal-init", how, NULL }, NULL).out, { 0, 0 }, control[0], plans[0], -1 };
    CHECK(tree.out.report.stage == STAGE_EXEC && tree.out.report.err == 0, "errno %d", tree.out.report.err);
    pack_free(pack);
    close(image);
    close(null);
    close(control[1]);
    close(plans[1]);
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))];
    struct iovec piece = { &tree.held, sizeof tree.held };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
    CHECK(recvmsg(tree.control, &message, MSG_CMSG_CLOEXEC) == sizeof tree.held, "errno %d", errno);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head)
        memcpy(&tree.pidfd, CMSG_DATA(head), sizeof tree.pidfd);
    return tree;
}

/* Its program: the peer, with descriptors 0 and 3. */
static void run_peer(struct tree tree, const char *verb, int in, int out)
{
    char path[4096];
    CHECK(realpath(peer_path(), path), "errno %d", errno);
    struct pack *pack = pack_new(0);
    op_add(pack, OP_SETSID);
    pack_fd_map(pack, (const int32_t[][2]){ { SLOT(0), 0 }, { SLOT(1), 3 } }, 2, 0);
    op_add(pack, OP_SIGNALS);
    pack_exec_path(pack, path);
    pack->head.exec_fd = CWD_FD;
    size_t size;
    void *message = pack_request(pack, (const char *const[]){ "peer", verb, "3", NULL }, NULL, 2, &size);
    struct report report;
    struct waiting waiting = { { .pidfd = tree.pidfd }, tree.plans };
    int err = hand_over_message(waiting, message, (const int[]){ in, out }, &report);
    CHECK(err == 0 && report.stage == STAGE_EXEC && report.err == 0, "errno %d, stage %d, errno %d", err, report.stage, report.err);
    free(message);
    pack_free(pack);
}

static void over(struct tree tree)
{
    int status = ended(tree.out);
    CHECK(status == 0, "it ended with %d", status);
    if (tree.control >= 0)
        close(tree.control);
    close(tree.plans);
    if (tree.pidfd >= 0)
        close(tree.pidfd);
}

static void check_end(struct tree tree, int code, int status)
{
    struct held_end end;
    ssize_t got = recv(tree.control, &end, sizeof end, MSG_WAITALL);
    CHECK(got == sizeof end, "%zd bytes", got);
    CHECK(end.code == code && end.status == status, "code %d, status %d", end.code, end.status);
    CHECK(end.max_rss_kib > 0 && end.user_us >= 0 && end.system_us >= 0, "%lld KiB", (long long)end.max_rss_kib);
}

static char line_of(int from)
{
    char text[64];
    ssize_t got = read(from, text, sizeof text);
    CHECK(got > 0, "errno %d", errno);
    return text[0];
}

struct pipes {
    int in[2], out[2];
};

static struct pipes pipes_new(void)
{
    struct pipes pipes;
    make_pipe(pipes.in);
    make_pipe(pipes.out);
    return pipes;
}

/* Both are the program's now. */
static void give(struct tree tree, const char *verb, struct pipes pipes)
{
    run_peer(tree, verb, pipes.in[0], pipes.out[1]);
    close(pipes.in[0]);
    close(pipes.out[1]);
}

static int is_living(struct tree tree)
{
    struct pollfd watch = { .fd = tree.out.pidfd, .events = POLLIN };
    return poll(&watch, 1, 0) == 0;
}

static void tells_of_the_end(void)
{
    struct tree tree = tree_new("h");
    struct pipes pipes = pipes_new();
    CHECK(tree.held.err == 0 && tree.held.pid > 0 && tree.pidfd >= 0, "errno %d", tree.held.err);
    give(tree, "hold", pipes);
    CHECK(write(tree.control, "d", 1) == 1, "errno %d", errno);
    line_of(pipes.out[0]);
    CHECK(is_living(tree), "it left its program alone");
    close(pipes.in[1]);
    check_end(tree, CLD_EXITED, 0);
    over(tree);
    close(pipes.out[0]);
}

static void tells_of_a_signal(void)
{
    struct tree tree = tree_new("h");
    struct pipes pipes = pipes_new();
    give(tree, "hold", pipes);
    CHECK(write(tree.control, "g", 1) == 1, "errno %d", errno);
    line_of(pipes.out[0]);
    CHECK(kill(tree.held.pid, SIGUSR1) == 0, "errno %d", errno);
    check_end(tree, CLD_KILLED, SIGUSR1);
    over(tree);
    close(pipes.in[1]);
    close(pipes.out[0]);
}

static void stays_for_what_is_left(void)
{
    struct tree tree = tree_new("h");
    struct pipes pipes = pipes_new();
    give(tree, "orphan", pipes);
    CHECK(write(tree.control, "g", 1) == 1, "errno %d", errno);
    check_end(tree, CLD_EXITED, 0);
    CHECK(line_of(pipes.out[0]) == 'l', "something was left");
    close(tree.control); /* nobody has to be there any more */
    tree.control = -1;
    CHECK(is_living(tree), "it left an orphan alone");
    close(pipes.in[1]);
    over(tree);
    close(pipes.out[0]);
}

/* The orphan has seen no end of its input, and would say so. */
static void ends_the_orphan(struct tree tree, struct pipes pipes)
{
    char text[64];
    over(tree);
    size_t got = read_all(pipes.out[0], text, sizeof text);
    CHECK(got == 0, "\"%s\"", text);
    close(pipes.in[1]);
}

static void ends_all_when_told(void)
{
    struct tree tree = tree_new("h");
    struct pipes pipes = pipes_new();
    give(tree, "orphan", pipes);
    CHECK(write(tree.control, "d", 1) == 1, "errno %d", errno);
    CHECK(line_of(pipes.out[0]) == 'l', "something was left");
    check_end(tree, CLD_EXITED, 0);
    CHECK(write(tree.control, "k", 1) == 1, "errno %d", errno);
    ends_the_orphan(tree, pipes);
}

static void ends_all_with_its_caller(void)
{
    struct tree tree = tree_new("h");
    struct pipes pipes = pipes_new();
    give(tree, "orphan", pipes);
    CHECK(write(tree.control, "d", 1) == 1, "errno %d", errno);
    CHECK(line_of(pipes.out[0]) == 'l', "something was left");
    close(tree.control);
    tree.control = -1;
    ends_the_orphan(tree, pipes);
}

static void ends_with_who_gave_up_before(void)
{
    struct tree tree = tree_new("h");
    close(tree.control);
    tree.control = -1;
    over(tree);
}

static void ends_a_program_nobody_has_confirmed(void)
{
    struct tree tree = tree_new("h");
    struct pipes pipes = pipes_new();
    give(tree, "orphan", pipes);
    CHECK(line_of(pipes.out[0]) == 'l', "something was left");
    close(tree.control);
    tree.control = -1;
    ends_the_orphan(tree, pipes);
}

static void reaches_nobody_without_the_rules(void)
{
    struct tree tree = tree_new("hs");
    CHECK(tree.held.err == ENOTRECOVERABLE && tree.held.pid == 0 && tree.pidfd < 0, "errno %d, pid %d", tree.held.err, tree.held.pid);
    close(tree.control);
    tree.control = -1;
    over(tree);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "the end of its program is told, and then it ends", tells_of_the_end },
        { "so is the signal that ended it", tells_of_a_signal },
        { "it stays for what its program leaves, also when its caller has gone", stays_for_what_is_left },
        { "it ends everything when it is told to", ends_all_when_told },
        { "it ends everything when its caller goes", ends_all_with_its_caller },
        { "it ends with a caller that gave up before there was a program", ends_with_who_gave_up_before },
        { "it ends a program that nobody has confirmed", ends_a_program_nobody_has_confirmed },
        { "without the rules that keep its signals inside it starts nothing", reaches_nobody_without_the_rules },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
