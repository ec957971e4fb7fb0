/* A shoal-init that makes cells: what it is given it checks, what it makes is its caller's, and nothing is left of it.
 *
 * The cells made here have a pid namespace of their own and nothing else; it takes root, or a user namespace. */
#include "recipe.h"
#include "request.h"
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct maker {
    struct outcome out;
    int sock;
};

static struct pack *keeper_plan(void)
{
    struct pack *pack = pack_new(0);
    pack->head.clone_flags = CLONE_NEWPID;
    pack_fd_map(pack, (const int32_t[][2]){ { SLOT(KEEPER_CONTROL), 3 } }, 1, 0);
    return pack;
}

static struct pack *prepare_plan(void)
{
    struct pack *pack = pack_new(0);
    struct op *wait = op_add(pack, OP_WAIT_READY);
    wait->fd = SLOT(PREPARE_CONTROL);
    wait->fd2 = SLOT(PREPARE_KEEPER);
    pack_fd_map(pack, (const int32_t[][2]){ { SLOT(PREPARE_SOCKET), REQUEST_SOCKET }, { 5, REQUEST_BASE } }, 2, 0);
    return pack;
}

/* The file of a recipe. Consumes the plans. */
static char *bake(struct pack *keeper, struct pack *prepare, size_t *size)
{
    size_t first, second;
    char *one = pack_bake(keeper, &first), *two = pack_bake(prepare, &second);
    size_t at = sizeof(struct recipe) + (first + 7) / 8 * 8;
    *size = at + second;
    char *file = calloc(1, *size);
    *(struct recipe *)(void *)file = (struct recipe){ .keeper_size = (uint32_t)first, .prepare_size = (uint32_t)second, .mode = 'g', .comm = "made" };
    memcpy(file + sizeof(struct recipe), one, first);
    memcpy(file + at, two, second);
    free(one);
    free(two);
    pack_free(keeper);
    pack_free(prepare);
    return file;
}

static struct maker maker_of(const void *file, size_t size)
{
    int pair[2], image = open_file(init_path()), base = peer_folder(), null = open("/dev/null", O_RDWR);
    int recipe = memfd_create("recipe", MFD_CLOEXEC);
    CHECK(write(recipe, file, size) == (ssize_t)size, "errno %d", errno);
    make_sockets(SOCK_STREAM, pair);
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack_fd_map(pack, (const int32_t[][2]){ { pair[1], RECIPE_REQUESTS }, { recipe, RECIPE_FILE }, { base, 5 } }, 3, null);
    op_add(pack, OP_SIGNALS);
    pack->head.exec_fd = image;
    struct result result = run_pack(pack, (const char *const[]){ "a maker of cells", "f", NULL }, NULL);
    CHECK(result.out.report.stage == STAGE_EXEC && result.out.report.err == 0, "errno %d", result.out.report.err);
    pack_free(pack);
    close(pair[1]);
    close(recipe);
    close(image);
    close(base);
    close(null);
    return (struct maker){ result.out, pair[0] };
}

static struct maker maker_new(struct pack *keeper, struct pack *prepare)
{
    if (geteuid() != 0)
        skip("takes root");
    size_t size;
    char *file = bake(keeper, prepare, &size);
    struct maker maker = maker_of(file, size);
    free(file);
    return maker;
}

static void ask(struct maker maker, uint32_t cells)
{
    send_message(maker.sock, &cells, sizeof cells, NULL, 0);
}

/* The next answer. `fds`: its descriptors, or -1. */
static struct made answer(struct maker maker, int fds[4])
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
    struct made made = { 0 };
    struct iovec piece = { &made, sizeof made };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    struct pollfd watch = { .fd = maker.sock, .events = POLLIN };
    CHECK(poll(&watch, 1, PATIENCE_MS) == 1, "no answer");
    ssize_t size = recvmsg(maker.sock, &message, MSG_CMSG_CLOEXEC);
    CHECK(size == sizeof made, "%zd bytes, errno %d", size, errno);
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    for (int i = 0; i < 4; i++)
        fds[i] = -1;
    if (head)
        memcpy(fds, CMSG_DATA(head), head->cmsg_len - CMSG_LEN(0));
    return made;
}

static void over(struct maker maker)
{
    close(maker.sock);
    int status = ended(maker.out);
    CHECK(status == 0, "it ended with %d", status);
}

/* Our child ends in time. Returns its status as waitpid gives it. */
static int child_ended(int pidfd, pid_t pid)
{
    struct pollfd watch = { .fd = pidfd, .events = POLLIN };
    int status = 0;
    CHECK(poll(&watch, 1, PATIENCE_MS) == 1, "%d lives", pid);
    CHECK(waitpid(pid, &status, 0) == pid, "errno %d: it is not our child", errno);
    close(pidfd);
    return status;
}

static void end_cell(struct made made, const int fds[4])
{
    close(fds[2]);
    close(fds[3]);
    int status = child_ended(fds[1], made.waiting);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
    status = child_ended(fds[0], made.keeper);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
}

static void makes_what_is_asked_for(void)
{
    struct maker maker = maker_new(keeper_plan(), prepare_plan());
    ask(maker, 2);
    ask(maker, 1);
    for (int i = 0; i < 3; i++) {
        int fds[4];
        struct made made = answer(maker, fds);
        CHECK(made.err == 0 && made.keeper > 0 && made.waiting > 0, "errno %d", made.err);
        end_cell(made, fds);
    }
    over(maker);
}

static void one_becomes_a_program(void)
{
    struct maker maker = maker_new(keeper_plan(), prepare_plan());
    ask(maker, 1);
    int fds[4], out[2];
    struct made made = answer(maker, fds);
    make_pipe(out);
    struct pack *pack = pack_new(0);
    pack_fd_map(pack, (const int32_t[][2]){ { SLOT(0), 4 } }, 1, 0);
    pack_exec_path(pack, strrchr(peer_path(), '/') + 1);
    pack->head.exec_fd = REQUEST_BASE;
    size_t size;
    void *message = pack_request(pack, (const char *const[]){ "peer", "self", "4", NULL }, NULL, 1, &size);
    struct report report;
    struct waiting waiting = { { .pid = made.waiting, .pidfd = fds[1] }, fds[3] };
    int err = hand_over_message(waiting, message, &out[1], &report);
    CHECK(err == 0 && report.stage == STAGE_EXEC && report.err == 0, "errno %d, stage %d, errno %d", err, report.stage, report.err);
    close(out[1]);
    char said[256];
    read_all(out[0], said, sizeof said);
    CHECK(atoi(said) == 2, "it is process %s of its cell", said);
    free(message);
    pack_free(pack);
    end_cell(made, fds);
    over(maker);
}

static void its_end_does_not_end_what_it_made(void)
{
    struct maker maker = maker_new(keeper_plan(), prepare_plan());
    ask(maker, 1);
    int fds[4];
    struct made made = answer(maker, fds);
    kill(maker.out.pid, SIGKILL);
    CHECK(ended(maker.out) == -SIGKILL, "it lives");
    close(maker.sock);
    struct pollfd watch = { .fd = fds[1], .events = POLLIN };
    CHECK(poll(&watch, 1, 0) == 0, "the waiting process has ended");
    end_cell(made, fds);
}

static void check_failure(struct maker maker, int err, int keeper, int waiting)
{
    ask(maker, 1);
    int fds[4];
    struct made made = answer(maker, fds);
    CHECK(made.err == err, "errno %d, expected %d", made.err, err);
    CHECK(fds[0] == -1, "it came with descriptors");
    CHECK(!made.keeper == !keeper && !made.waiting == !waiting, "keeper %d, waiting %d", made.keeper, made.waiting);
    for (int i = 0; i < 2; i++) {
        pid_t pid = i ? made.keeper : made.waiting; /* which does not end before the other one is reaped */
        if (pid)
            child_ended((int)syscall(SYS_pidfd_open, pid, 0), pid);
    }
    over(maker);
}

static struct pack *failing(struct pack *pack)
{
    struct pack *bad = pack_new(0);
    bad->head.clone_flags = pack->head.clone_flags;
    op_add(bad, OP_SETNS)->fd = 0; /* /dev/null is no namespace: EINVAL */
    pack_free(pack);
    return bad;
}

static void a_failing_first_process_is_told(void) { check_failure(maker_new(failing(keeper_plan()), prepare_plan()), EINVAL, 1, 1); }

static void a_failing_waiting_process_is_told(void) { check_failure(maker_new(keeper_plan(), failing(prepare_plan())), EINVAL, 1, 1); }

static void no_namespace_is_told(void)
{
    if (geteuid() != 0)
        skip("takes root");
    become_ordinary();
    size_t size;
    char *file = bake(keeper_plan(), prepare_plan(), &size);
    struct maker maker = maker_of(file, size);
    free(file);
    check_failure(maker, EPERM, 0, 0);
}

static void check_refused(const void *file, size_t size)
{
    struct maker maker = maker_of(file, size);
    int status = ended(maker.out);
    CHECK(status == 0, "it ended with %d", status);
    char byte;
    ssize_t got = read(maker.sock, &byte, 1);
    CHECK(got == 0, "it said something");
    close(maker.sock);
}

static void each_part_of_a_recipe_is_refused(void)
{
    size_t size;
    char *file = bake(keeper_plan(), prepare_plan(), &size);
    for (size_t part = 0; part < size; part += part < 200 ? 7 : 29)
        check_refused(file, part);
    free(file);
}

#define REFUSED(...)                                                                                                              \
    do {                                                                                                                          \
        size_t size;                                                                                                              \
        char *file = bake(keeper_plan(), prepare_plan(), &size);                                                                  \
        struct recipe *recipe = (struct recipe *)(void *)file;                                                                    \
        struct plan_head *first = (struct plan_head *)(recipe + 1);                                                               \
        struct plan_head *second = (struct plan_head *)(void *)((char *)first + (recipe->keeper_size + 7) / 8 * 8);               \
        (void)second;                                                                                                             \
        __VA_ARGS__;                                                                                                              \
        check_refused(file, size);                                                                                                \
        free(file);                                                                                                               \
    } while (0)

static void a_recipe_that_does_not_verify_is_refused(void)
{
    REFUSED(recipe->keeper_size = 0);
    REFUSED(recipe->keeper_size = 0xffffffff);
    REFUSED(recipe->prepare_size = 0xfffffff8);
    REFUSED(recipe->keeper_size -= 8, recipe->prepare_size += 8);
    REFUSED(first->magic++);
    REFUSED(second->magic++);
    REFUSED(first->count = 0xffffffff);
    REFUSED(second->count = PLAN_OPS_MAX + 1);
    REFUSED(first->clone_flags |= CLONE_VM);
    REFUSED(first->cgroup_fd = 0);
    REFUSED(second->cgroup_fd = 0);
    REFUSED(second->enter_fd = 0);
    REFUSED(first->flags = PLAN_COLLECT);
    REFUSED(second->flags = PLAN_SHARE_FDS);
}

static void a_request_that_is_none_ends_it(void)
{
    struct maker maker = maker_new(keeper_plan(), prepare_plan());
    CHECK(write(maker.sock, "x", 1) == 1, "errno %d", errno);
    over(maker);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "it makes as many cells as it is asked for, which end with their sockets", makes_what_is_asked_for },
        { "what waits in one becomes a program, the second process of its cell", one_becomes_a_program },
        { "what it made outlives it", its_end_does_not_end_what_it_made },
        { "a first process that fails is told with its errno, and is the caller's", a_failing_first_process_is_told },
        { "the same of a waiting process", a_failing_waiting_process_is_told },
        { "where no namespace can be made that is told", no_namespace_is_told },
        { "each part of a recipe is refused", each_part_of_a_recipe_is_refused },
        { "a recipe that does not verify is refused", a_recipe_that_does_not_verify_is_refused },
        { "a request that is none ends it", a_request_that_is_none_ends_it },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
