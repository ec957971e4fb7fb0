/* A shoal-init that waits becomes what it is told to be, exactly, or says why not and ends: the rules of request.h. */
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define E EL3HLT /* no system call used here gives this one by itself */
#define FIRST_RECEIVED 5 /* the number that the first descriptor of a message gets */

#define CHECK_REPORT(report, stage, index, err) check_report(__LINE__, report, stage, index, err)
static void check_report(int line, struct report report, int stage, int index, int err)
{
    if (report.stage != stage || report.index != index || report.err != err)
        check_failed(__FILE__, line, "the answer is as expected", "stage %d, index %d, errno %d; expected stage %d, index %d, errno %d",
                     report.stage, report.index, report.err, stage, index, err);
}

static struct outcome wait_on(int far)
{
    int image = open_file(init_path()), base = peer_folder(), null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    struct outcome out = start_waiting(pack_new(PLAN_SHARE_FDS), image, base, far);
    CHECK(out.report.stage == STAGE_EXEC && out.report.err == 0, "stage %d, errno %d", out.report.stage, out.report.err);
    close(image);
    close(base);
    close(null);
    return out;
}

static struct waiting waiting_new(void)
{
    int pair[2];
    make_sockets(SOCK_SEQPACKET, pair);
    struct waiting waiting = { wait_on(pair[1]), pair[0] };
    close(pair[1]);
    return waiting;
}

static void over(struct waiting waiting, int status)
{
    int was = ended(waiting.out);
    CHECK(was == status, "it ended with %d, expected %d", was, status);
    close(waiting.sock);
}

/* Descriptors placed, then the peer. */
static void place_and_run(struct pack *pack, const int32_t (*pairs)[2], unsigned count)
{
    pack_fd_map(pack, pairs, count, 0);
    pack_exec_path(pack, strrchr(peer_path(), '/') + 1);
    pack->head.exec_fd = REQUEST_BASE;
}

static struct pack *peer_plan(const int32_t (*pairs)[2], unsigned count)
{
    struct pack *pack = pack_new(0);
    place_and_run(pack, pairs, count);
    return pack;
}

/* Consumes the plan. */
static struct report tell(struct waiting waiting, struct pack *pack, const char *const *argv, const char *const *envp, const int *fds,
                          unsigned count)
{
    size_t size;
    struct report report;
    void *message = pack_request(pack, argv, envp, count, &size);
    int err = hand_over_message(waiting, message, fds, &report);
    CHECK(err == 0, "nothing was sent: errno %d", err);
    free(message);
    pack_free(pack);
    return report;
}

/* The same for a plan that is to fail or to run the peer without any arguments. */
static struct report tell_plan(struct waiting waiting, struct pack *pack)
{
    return tell(waiting, pack, (const char *const[]){ "peer", NULL }, NULL, NULL, 0);
}

#define OUT_AS_3 ((const int32_t[][2]){ { SLOT(0), 3 } })

static void becomes_the_program(const char *const *argv, const char *const *envp)
{
    static char text[1 << 17];
    struct waiting waiting = waiting_new();
    int out[2];
    make_pipe(out);
    size_t size;
    struct pack *pack = peer_plan(OUT_AS_3, 1);
    char *message = pack_request(pack, argv, envp, 1, &size);
    const struct request *request = (const struct request *)message;
    size_t strings = request->argv_size + request->envp_size;
    CHECK_REPORT(tell(waiting, pack, argv, envp, &out[1], 1), STAGE_EXEC, 0, 0);
    close(out[1]);
    size_t got = read_all(out[0], text, sizeof text);
    CHECK(got == strings && memcmp(text, message + size - strings, strings) == 0, "%zu bytes of %zu, \"%s\"", got, strings, text);
    over(waiting, 0);
    free(message);
}

static void strings_are_the_same(void)
{
    static char big[20000];
    memset(big, 'x', sizeof big - 1);
    becomes_the_program((const char *const[]){ "peer", "vectors", "3", NULL }, NULL);
    becomes_the_program((const char *const[]){ "", "vectors", "3", "", " ", "a\nb", "\377\200", big, "", NULL },
                        (const char *const[]){ "A=1", "", "=", "no equals sign", "A=1", "B=\377", big, "", NULL });
}

static char *big_string(size_t size)
{
    char *text = malloc(size + 1);
    memset(text, 'x', size);
    text[size] = '\0';
    return text;
}

/* The message's size with nothing in the environment but a string of `size` bytes. */
static size_t size_with(const char *const *argv, char *text)
{
    size_t size;
    struct pack *pack = peer_plan(OUT_AS_3, 1);
    free(pack_request(pack, argv, (const char *const[]){ text, NULL }, 1, &size));
    pack_free(pack);
    return size;
}

static void up_to_the_limits(void)
{
    static const char *argv[REQUEST_STRINGS] = { "peer", "vectors", "3" };
    char *text = big_string(1000);
    size_t room = REQUEST_BYTES - size_with(argv, text);
    free(text);
    text = big_string(1000 + room);
    becomes_the_program(argv, (const char *const[]){ text, NULL });
    free(text);
    for (int i = 3; i < REQUEST_STRINGS - 2; i++)
        argv[i] = "a";
    becomes_the_program(argv, (const char *const[]){ "A=1", "B=2", NULL });
}

/* Hands over `sent` files and a pipe, which becomes descriptor `out_at`, and checks that the program has what `pairs` say. */
static void become_and_look(const int32_t (*pairs)[2], unsigned count, unsigned sent, int out_at)
{
    static struct seen wanted[SEEN_MAX];
    int32_t all[REQUEST_FDS][2];
    int fds[REQUEST_FDS], out[2];
    char number[16];
    memset(wanted, 0, sizeof wanted);
    struct waiting waiting = waiting_new();
    make_pipe(out);
    for (unsigned i = 0; i < sent; i++)
        file_at(fds[i] = 300 + (int)i);
    fds[sent] = out[1];
    for (int i = 0; i < 3; i++)
        wanted[i] = seen_at(0); /* /dev/null */
    for (unsigned i = 0; i < count; i++) {
        memcpy(all[i], pairs[i], sizeof all[i]);
        if (!(pairs[i][1] & TARGET_CLOEXEC))
            wanted[pairs[i][1]] = seen_at(fds[SLOT(0) - pairs[i][0]]);
    }
    all[count][0] = SLOT((int)sent);
    all[count][1] = out_at;
    wanted[out_at] = seen_at(out[1]);
    snprintf(number, sizeof number, "%d", out_at);
    struct pack *pack = peer_plan((const int32_t(*)[2])all, count + 1);
    CHECK_REPORT(tell(waiting, pack, (const char *const[]){ "peer", "fds", number, NULL }, NULL, fds, sent + 1), STAGE_EXEC, 0, 0);
    for (unsigned i = 0; i <= sent; i++)
        close(fds[i]);
    check_seen(out[0], wanted);
    over(waiting, 0);
}

static void descriptors_are_exact(void)
{
#define LOOK(sent, out_at, ...)                                                                                                   \
    become_and_look((const int32_t[][2])__VA_ARGS__, sizeof(const int32_t[][2])__VA_ARGS__ / sizeof(int32_t[2]), sent, out_at)
    become_and_look(NULL, 0, 0, 1);
    become_and_look(NULL, 0, 20, 3); /* handed over, but placed nowhere */
    /* They arrive as 5, 6...: each where the other was. */
    LOOK(2, 9, { { SLOT(0), 6 }, { SLOT(1), 5 } });
    LOOK(2, 5, { { SLOT(0), 6 }, { SLOT(1), 7 } });
    LOOK(2, 9, { { SLOT(0), 5 }, { SLOT(1), 6 } });
    /* Where its socket and its base are, and where copies of these may go. */
    LOOK(2, 5, { { SLOT(0), REQUEST_SOCKET }, { SLOT(1), REQUEST_BASE } });
    LOOK(1, REQUEST_SOCKET, { { SLOT(0), REQUEST_BASE } });
    LOOK(1, 8, { { SLOT(0), 9 } });
    LOOK(3, 1023, { { SLOT(0), 0 }, { SLOT(0), 1 }, { SLOT(1), 2 }, { SLOT(2), 7 } });
    LOOK(2, 0, { { SLOT(0), 8 | TARGET_CLOEXEC }, { SLOT(1), 1000 }, { SLOT(1), 2 } });
#undef LOOK
    for (int length = 3; length <= 12; length++) {
        int32_t cycle[12][2];
        for (int i = 0; i < length; i++) {
            cycle[i][0] = SLOT(i);
            cycle[i][1] = FIRST_RECEIVED + (i + 1) % length;
        }
        become_and_look((const int32_t(*)[2])cycle, (unsigned)length, (unsigned)length, length & 1 ? 3 : 40);
    }
}

/* A plan's own ops may fill further slots than those that came with it. */
static void descriptors_of_its_own(void)
{
    static struct seen wanted[SEEN_MAX];
    int out[2], root = open("/", O_PATH | O_CLOEXEC);
    struct waiting waiting = waiting_new();
    make_pipe(out);
    struct pack *pack = pack_new(0);
    uint32_t path = pack_text(pack, "/");
    struct op *op = op_add(pack, OP_OPEN);
    op->fd = CWD_FD;
    op->str = path;
    op->a = O_PATH;
    op->out = 1;
    place_and_run(pack, (const int32_t[][2]){ { SLOT(0), 3 }, { SLOT(1), 5 } }, 2);
    for (int i = 0; i < 3; i++)
        wanted[i] = seen_at(0);
    wanted[3] = seen_at(out[1]);
    wanted[5] = seen_at(root);
    CHECK_REPORT(tell(waiting, pack, (const char *const[]){ "peer", "fds", "3", NULL }, NULL, &out[1], 1), STAGE_EXEC, 1, 0);
    close(out[1]);
    close(root);
    check_seen(out[0], wanted);
    over(waiting, 0);
}

static void as_many_descriptors_as_a_message_takes(void)
{
    int32_t pairs[REQUEST_FDS - 1][2];
    for (int i = 0; i < REQUEST_FDS - 1; i++) {
        pairs[i][0] = SLOT(i);
        pairs[i][1] = 3 + (i + 7) % (REQUEST_FDS - 1);
    }
    become_and_look((const int32_t(*)[2])pairs, REQUEST_FDS - 1, REQUEST_FDS - 1, 0);
}

static void failing_ops_are_told(void)
{
    struct waiting waiting = waiting_new();
    CHECK_REPORT(tell_plan(waiting, peer_plan((const int32_t[][2]){ { SLOT(7), 9 } }, 1)), STAGE_OPS, 0, EBADF);
    over(waiting, 0);
    for (uint32_t index = 0; index < 5; index++) {
        struct pack *pack = pack_new(0);
        while (pack->head.count < index)
            op_add(pack, OP_UMASK);
        struct op *op = op_add(pack, OP_EXPECT);
        op->fd = 0;
        place_and_run(pack, NULL, 0);
        waiting = waiting_new();
        CHECK_REPORT(tell_plan(waiting, pack), STAGE_OPS, (int)index, ESTALE);
        over(waiting, 0);
    }
}

/* Also while descriptors are placed, which moves the very socket that the answer takes. */
static void failing_calls_in_placing_are_told(void)
{
    static const struct {
        int call, err;
    } rows[] = { { __NR_dup3, E }, { __NR_close_range, E }, { __NR_fcntl, EBADF } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct waiting waiting = waiting_new();
        int fds[2] = { 0, 0 };
        struct pack *pack = pack_new(0);
        pack_answer(pack, rows[i].call, SECCOMP_RET_ERRNO | E);
        place_and_run(pack, (const int32_t[][2]){ { SLOT(0), REQUEST_SOCKET }, { SLOT(1), REQUEST_BASE } }, 2);
        CHECK_REPORT(tell(waiting, pack, NULL, NULL, fds, 2), STAGE_OPS, 2, rows[i].err);
        over(waiting, 0);
    }
}

static void a_failing_exec_is_told(void)
{
    static const struct {
        const char *path;
        int fd, err;
    } rows[] = { { "none", REQUEST_BASE, ENOENT }, { "/dev/null", REQUEST_BASE, EACCES }, { "peer/x", REQUEST_BASE, ENOTDIR },
                 { "", SLOT(3), EBADF },           { "", REQUEST_BASE, EACCES },          { "peer", CWD_FD, ENOENT } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int mapped = 0; mapped < 2; mapped++) {
            struct waiting waiting = waiting_new();
            struct pack *pack = pack_new(0);
            op_add(pack, OP_UMASK);
            if (mapped)
                pack_fd_map(pack, NULL, 0, 0);
            pack_exec_path(pack, rows[i].path);
            pack->head.exec_fd = rows[i].fd;
            CHECK_REPORT(tell_plan(waiting, pack), STAGE_EXEC, mapped, rows[i].err);
            over(waiting, 0);
        }
}

/* The answer is there when the program has begun, and does not wait for its end. */
static void answers_at_exec(void)
{
    struct waiting waiting = waiting_new();
    int in[2];
    char byte;
    make_pipe(in);
    struct pack *pack = peer_plan((const int32_t[][2]){ { SLOT(0), 0 } }, 1);
    CHECK_REPORT(tell(waiting, pack, (const char *const[]){ "peer", "hold", "1", NULL }, NULL, in, 1), STAGE_EXEC, 0, 0);
    CHECK(recv(waiting.sock, &byte, 1, MSG_DONTWAIT) == 0, "the socket is open in the program");
    CHECK(poll(&(struct pollfd){ .fd = waiting.out.pidfd, .events = POLLIN }, 1, 0) == 0, "the program has ended");
    close(in[0]);
    close(in[1]);
    over(waiting, 0);
}

static void ends_with_its_socket(void)
{
    struct waiting waiting = waiting_new();
    close(waiting.sock);
    waiting.sock = -1;
    over(waiting, 0);
    waiting = waiting_new();
    send_message(waiting.sock, "", 0, NULL, 0); /* nothing, like nobody */
    CHECK_REPORT(last_answer(waiting), STAGE_NONE, -1, 0);
    over(waiting, 0);
}

/* Somebody who cannot be told what has become of it cannot have wanted it. */
static void does_nothing_for_nobody(void)
{
    int pair[2], out[2];
    size_t size;
    char text[8];
    make_sockets(SOCK_SEQPACKET, pair);
    make_pipe(out);
    struct pack *pack = peer_plan(OUT_AS_3, 1);
    void *message = pack_request(pack, (const char *const[]){ "peer", "self", "3", NULL }, NULL, 1, &size);
    send_message(pair[0], message, size, &out[1], 1);
    close(pair[0]);
    struct waiting waiting = { wait_on(pair[1]), -1 };
    close(pair[1]);
    close(out[1]);
    CHECK(read_all(out[0], text, sizeof text) == 0, "it ran a program");
    over(waiting, 0);
    free(message);
    pack_free(pack);
}

/* --- messages that are refused --- */

/* A good message, to be spoilt: its program would write to the one descriptor that comes with it. */
struct good {
    struct request *request; /* the message */
    struct plan_head *head;
    struct op *op;
    char *strings;
    size_t size;
};

static struct good good_new(void)
{
    struct good good;
    struct pack *pack = peer_plan(OUT_AS_3, 1);
    good.request = pack_request(pack, (const char *const[]){ "peer", "self", "3", NULL }, (const char *const[]){ "A=1", "B=2", NULL }, 1, &good.size);
    good.head = (struct plan_head *)(good.request + 1);
    good.op = (struct op *)(good.head + 1);
    good.strings = (char *)good.head + good.request->plan_size;
    pack_free(pack);
    return good;
}

/* Sends the first `size` bytes: what was answered, when it is certain that nothing was run (or, with `runs`, that it was). */
static struct report answer_to(const void *message, size_t size, int runs)
{
    struct waiting waiting = waiting_new();
    int out[2];
    char text[256];
    make_pipe(out);
    send_message(waiting.sock, message, size, &out[1], 1);
    close(out[1]);
    struct report report = last_answer(waiting);
    size_t got = read_all(out[0], text, sizeof text);
    CHECK(!got == !runs, "it %s a program", got ? "ran" : "did not run");
    over(waiting, 0);
    return report;
}

static void prefixes_are_refused(void)
{
    struct good good = good_new();
    CHECK_REPORT(answer_to(good.request, good.size, 1), STAGE_EXEC, 0, 0);
    for (size_t cut = 1; cut < good.size; cut++)
        CHECK_REPORT(answer_to(good.request, cut, 0), STAGE_PLAN, -1, EINVAL);
    free(good.request);
}

#define REFUSED(err, change)                                                                                                      \
    do {                                                                                                                          \
        struct good good = good_new();                                                                                            \
        struct request *r = good.request;                                                                                         \
        struct plan_head *h = good.head;                                                                                          \
        struct op *o = good.op;                                                                                                   \
        char *s = good.strings;                                                                                                   \
        (void)r, (void)h, (void)o, (void)s;                                                                                       \
        change;                                                                                                                   \
        CHECK_REPORT(answer_to(good.request, good.size, 0), STAGE_PLAN, -1, err);                                                 \
        free(good.request);                                                                                                       \
    } while (0)

static void counts_that_do_not_match(void)
{
    REFUSED(EINVAL, r->plan_size++);
    REFUSED(EINVAL, r->plan_size = 0);
    REFUSED(EINVAL, r->plan_size = 0xffffffff);
    REFUSED(EINVAL, r->plan_size = sizeof *h - 1; r->envp_size += (uint32_t)(s - (char *)h) - r->plan_size);
    REFUSED(EINVAL, r->argv_size++);
    REFUSED(EINVAL, r->envp_size--);
    REFUSED(EINVAL, r->argv_size++; r->envp_size--);
    REFUSED(EINVAL, r->argv_size--; r->envp_size++);
    REFUSED(EINVAL, r->plan_size--; r->argv_size++);
    REFUSED(EINVAL, r->plan_size += 0x80000000; r->argv_size += 0x80000000); /* in 32 bits the sum would be right */
    REFUSED(EINVAL, r->argc++);
    REFUSED(EINVAL, r->argc--);
    REFUSED(EINVAL, r->argc++; r->envc--);
    REFUSED(EINVAL, r->envc++);
    REFUSED(EINVAL, r->envc = 0);
    REFUSED(EINVAL, r->argc = REQUEST_STRINGS + 1);
    REFUSED(EINVAL, r->argc = 0xffffffff);
    REFUSED(EINVAL, r->argc = 0xffffffff; r->envc = 6);
    REFUSED(EINVAL, s[r->argv_size - 1] = 'x');
    REFUSED(EINVAL, s[r->argv_size + r->envp_size - 1] = 'x');
    REFUSED(EINVAL, s[0] = '\0'); /* one string more */
    REFUSED(EMFILE, r->fds++); /* fewer came than were sent */
    REFUSED(EMFILE, r->fds--);
    REFUSED(EMFILE, r->fds = 0xffffffff);
}

static void plans_that_do_not_verify(void)
{
    REFUSED(EINVAL, h->magic ^= 1);
    REFUSED(EINVAL, h->count++);
    REFUSED(EINVAL, h->count = 0);
    REFUSED(EINVAL, h->count = PLAN_OPS_MAX + 1);
    REFUSED(EINVAL, h->count = 0xffffffff);
    REFUSED(EINVAL, h->count = 0x66666667); /* times 40 it is 24, in 32 bits */
    REFUSED(EINVAL, h->blob_len++);
    REFUSED(EINVAL, h->blob_len--);
    REFUSED(EINVAL, h->exec_path = h->blob_len);
    REFUSED(EINVAL, h->exec_path = NO_STR);
    REFUSED(EINVAL, h->exec_fd = NO_FD);
    REFUSED(EINVAL, o->code = OP_COUNT);
    REFUSED(EINVAL, o->str = h->blob_len);
    REFUSED(EINVAL, o->a = TARGETS + 1);
    REFUSED(EINVAL, o->code = OP_ENV_PID; o->str = NO_STR; o->a = 0); /* "A=1" has no room */
}

/* What only a clone can do is refused: a program that was to be confined by it must not run without. */
static void plans_for_a_clone(void)
{
    REFUSED(EINVAL, h->flags = PLAN_SHARE_FDS | PLAN_COLLECT);
    REFUSED(EINVAL, h->flags = PLAN_SHARE_FDS | PLAN_COLLECT; o->code = OP_UMASK; h->exec_path = NO_STR);
    REFUSED(EINVAL, h->flags = PLAN_SHARE_FDS; o->code = OP_UNSHARE_FDS);
    REFUSED(EINVAL, h->clone_flags = 0x40000000 /* CLONE_NEWNET */);
    REFUSED(EINVAL, h->cgroup_fd = 0);
    REFUSED(EINVAL, h->enter_fd = 0);
    REFUSED(EINVAL, h->enter_flags = 0x20000000 /* CLONE_NEWPID */);
}

/* Where it is looked for in these places, before that of the plan. Returns what is answered last. */
static struct report look_in(const char *const *places, const char *own, int status)
{
    struct waiting waiting = waiting_new();
    struct pack *pack = pack_new(0);
    pack_fd_map(pack, NULL, 0, 0);
    pack_exec_path(pack, own);
    pack->head.exec_fd = REQUEST_BASE;
    op_add(pack, OP_INHERIT_SIGNALS)->a = ~0ull;
    for (; *places; places++) {
        uint32_t path = pack_text(pack, *places);
        op_add(pack, OP_TRY_EXEC)->str = path;
    }
    struct report report = tell_plan(waiting, pack);
    over(waiting, status);
    return report;
}

/* The answer comes before any of them, so that there is one, whichever it is. */
static void looks_in_all_places(void)
{
    const char *peer = peer_path(), *name = strrchr(peer, '/') + 1, *none = "/no/such", *refused = "/dev/null";
    CHECK_REPORT(look_in((const char *const[]){ peer, none, NULL }, "none", 0), STAGE_EXEC, 1, 0);
    CHECK_REPORT(look_in((const char *const[]){ none, refused, peer, NULL }, "none", 0), STAGE_EXEC, 1, 0);
    CHECK_REPORT(look_in((const char *const[]){ none, refused, NULL }, name, 0), STAGE_EXEC, 1, 0);
    CHECK_REPORT(look_in((const char *const[]){ none, none, NULL }, "none", 0), STAGE_EXEC, 1, ENOENT);
    CHECK_REPORT(look_in((const char *const[]){ none, refused, none, NULL }, "none", 0), STAGE_EXEC, 1, EACCES);
}

static void messages_that_are_too_long(void)
{
    struct good good = good_new();
    good.request = realloc(good.request, REQUEST_BYTES + 1);
    memset((char *)good.request + good.size, 0, REQUEST_BYTES + 1 - good.size);
    CHECK_REPORT(answer_to(good.request, good.size + 1, 0), STAGE_PLAN, -1, EINVAL);
    CHECK_REPORT(answer_to(good.request, REQUEST_BYTES, 0), STAGE_PLAN, -1, EINVAL);
    CHECK_REPORT(answer_to(good.request, REQUEST_BYTES + 1, 0), STAGE_PLAN, -1, EMSGSIZE);
    struct pack *pack = peer_plan(OUT_AS_3, 1);
    const char *argv[REQUEST_STRINGS + 2] = { "peer", "self", "3" };
    size_t size;
    for (int i = 3; i <= REQUEST_STRINGS; i++)
        argv[i] = "";
    void *strings = pack_request(pack, argv, NULL, 1, &size);
    CHECK_REPORT(answer_to(strings, size, 0), STAGE_PLAN, -1, EINVAL);
    free(strings);
    pack_free(pack);
    memset(good.request, 0xff, REQUEST_BYTES);
    CHECK_REPORT(answer_to(good.request, REQUEST_BYTES, 0), STAGE_PLAN, -1, EINVAL);
    free(good.request);
}

/* 5 to 19 are free: 15 can arrive, but not be placed, since that takes copies. */
static void descriptors_beyond_the_limit(void)
{
    static const struct {
        unsigned count;
        int stage, index, err;
    } rows[] = { { 3, STAGE_EXEC, 0, 0 }, { 15, STAGE_OPS, 0, EMFILE }, { 16, STAGE_PLAN, -1, EMFILE }, { REQUEST_FDS, STAGE_PLAN, -1, EMFILE } };
    limit_fds(20);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int fds[REQUEST_FDS] = { 0 };
        struct waiting waiting = waiting_new();
        struct report report = tell(waiting, peer_plan(OUT_AS_3, 1), (const char *const[]){ "peer", NULL }, NULL, fds, rows[i].count);
        CHECK_REPORT(report, rows[i].stage, rows[i].index, rows[i].err);
        over(waiting, 0);
    }
}

/* --- hand_over() --- */

static void what_cannot_be_sent(void)
{
    struct waiting waiting = waiting_new();
    struct good good = good_new();
    struct request was = *good.request;
    static const struct {
        struct request with; /* where it is not 0 */
        int fd, err;
    } rows[] = {
        { { .fds = REQUEST_FDS + 1 }, 0, E2BIG },
        { { .fds = 0xffffffff }, 0, E2BIG },
        { { .argc = REQUEST_STRINGS - 1 }, 0, E2BIG }, /* and 2 in the environment */
        { { .argc = 0xffffffff }, 0, E2BIG },
        { { .envc = REQUEST_STRINGS + 1 }, 0, E2BIG },
        { { .plan_size = REQUEST_BYTES }, 0, E2BIG },
        { { .argv_size = 0xffffffff }, 0, E2BIG },
        { { .plan_size = 0x80000000, .envp_size = 0x80000000 }, 0, E2BIG },
        { { .fds = 1 }, 999, EBADF },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct report report;
        uint32_t *field = (uint32_t *)good.request;
        *good.request = was;
        for (size_t k = 0; k < sizeof was / sizeof *field; k++)
            if (((const uint32_t *)&rows[i].with)[k])
                field[k] = ((const uint32_t *)&rows[i].with)[k];
        int err = hand_over_message(waiting, good.request, &rows[i].fd, &report);
        CHECK(err == rows[i].err, "row %zu: errno %d, expected %d", i, err, rows[i].err);
        CHECK_REPORT(report, STAGE_NONE, -1, 0);
    }
    free(good.request);
    CHECK_REPORT(tell_plan(waiting, peer_plan(NULL, 0)), STAGE_EXEC, 0, 0); /* it has not heard of any of these */
    over(waiting, 0);
}

static void one_byte_or_string_too_many(void)
{
    const char *argv[REQUEST_STRINGS + 2] = { "peer" };
    char *text = big_string(1000);
    size_t room = REQUEST_BYTES - size_with(argv, text), size;
    free(text);
    text = big_string(1000 + room + 1);
    for (int strings = 0; strings < 2; strings++) {
        struct waiting waiting = waiting_new();
        struct pack *pack = peer_plan(OUT_AS_3, 1);
        struct report report;
        for (int i = 1; strings && i <= REQUEST_STRINGS; i++)
            argv[i] = "";
        void *message = pack_request(pack, argv, (const char *const[]){ strings ? NULL : text, NULL }, 0, &size);
        int err = hand_over_message(waiting, message, NULL, &report);
        CHECK(err == E2BIG && report.stage == STAGE_NONE, "%zu bytes: errno %d, stage %d", size, err, report.stage);
        CHECK_REPORT(tell_plan(waiting, peer_plan(NULL, 0)), STAGE_EXEC, 0, 0);
        over(waiting, 0);
        free(message);
        pack_free(pack);
    }
    free(text);
}

static void nobody_there_any_more(void)
{
    struct waiting waiting = waiting_new();
    struct good good = good_new();
    struct report report;
    good.request->fds = 0;
    kill(waiting.out.pid, SIGKILL);
    CHECK(poll(&(struct pollfd){ .fd = waiting.out.pidfd, .events = POLLIN }, 1, PATIENCE_MS) == 1, "it is still there");
    int err = hand_over_message(waiting, good.request, NULL, &report);
    CHECK(err == EPIPE, "errno %d", err);
    CHECK_REPORT(report, STAGE_NONE, -1, 0);
    over(waiting, -SIGKILL);
    free(good.request);
}

/* What somebody does while a process that waited carries out its plan, held in it by WAIT_READY. */
struct meanwhile {
    struct waiting waiting;
    int told[2], ready[2];
    pthread_t caller;
    void (*act)(struct meanwhile *);
    int found; /* by `act` */
};

static void *act_when_told(void *arg)
{
    struct meanwhile *meanwhile = arg;
    char byte;
    if (read(meanwhile->told[0], &byte, 1) == 1)
        meanwhile->act(meanwhile);
    return NULL;
}

static void let_it_go_on(struct meanwhile *meanwhile)
{
    int zero = 0;
    CHECK(write(meanwhile->ready[1], &zero, sizeof zero) == sizeof zero, "errno %d", errno);
}

static struct report act_meanwhile(struct meanwhile *meanwhile)
{
    pthread_t thread;
    make_pipe(meanwhile->told);
    make_sockets(SOCK_STREAM, meanwhile->ready);
    int fds[] = { meanwhile->told[1], meanwhile->ready[0] };
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", FIRST_RECEIVED);
    struct pack *pack = pack_new(0);
    uint32_t where = pack_text(pack, path), what = pack_text(pack, "!");
    struct op *op = op_add(pack, OP_WRITE);
    op->str = where;
    op->str2 = what;
    op_add(pack, OP_WAIT_READY)->fd = SLOT(1);
    place_and_run(pack, NULL, 0);
    meanwhile->caller = pthread_self();
    CHECK(pthread_create(&thread, NULL, act_when_told, meanwhile) == 0, "no thread");
    struct report report = tell(meanwhile->waiting, pack, (const char *const[]){ "peer", NULL }, NULL, fds, 2);
    close(meanwhile->told[1]);
    pthread_join(thread, NULL);
    close(meanwhile->told[0]);
    close(meanwhile->ready[0]);
    close(meanwhile->ready[1]);
    return report;
}

static void kill_it(struct meanwhile *meanwhile) { kill(meanwhile->waiting.out.pid, SIGKILL); }

static void killed_before_it_answers(void)
{
    struct meanwhile meanwhile = { .waiting = waiting_new(), .act = kill_it };
    CHECK_REPORT(act_meanwhile(&meanwhile), STAGE_NONE, -1, 0);
    over(meanwhile.waiting, -SIGKILL);
}

/* Another launch of this moment may hold a copy of the socket that it waits on. */
static void killed_while_another_has_its_socket(void)
{
    int pair[2];
    make_sockets(SOCK_SEQPACKET, pair);
    struct meanwhile meanwhile = { .waiting = { wait_on(pair[1]), pair[0] }, .act = kill_it };
    CHECK_REPORT(act_meanwhile(&meanwhile), STAGE_NONE, -1, 0);
    over(meanwhile.waiting, -SIGKILL);
    close(pair[1]);
}

static volatile sig_atomic_t handled;
static void on_signal(int sig)
{
    (void)sig;
    handled++;
}

static void signal_the_caller(struct meanwhile *meanwhile)
{
    pthread_kill(meanwhile->caller, SIGUSR1);
    let_it_go_on(meanwhile);
}

static void a_signal_for_the_caller(void)
{
    struct sigaction action = { .sa_handler = on_signal };
    sigaction(SIGUSR1, &action, NULL);
    struct meanwhile meanwhile = { .waiting = waiting_new(), .act = signal_the_caller };
    CHECK_REPORT(act_meanwhile(&meanwhile), STAGE_EXEC, 2, 0);
    CHECK(handled == 1, "the handler ran %d times", handled);
    over(meanwhile.waiting, 0);
}

static void look_into_it(struct meanwhile *meanwhile)
{
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", meanwhile->waiting.out.pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        read_all(fd, name, sizeof name);
    snprintf(path, sizeof path, "/proc/%d/environ", meanwhile->waiting.out.pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    meanwhile->found = strcmp(name, "waiting\n") ? ENOENT : fd >= 0 ? 0 : errno;
    if (fd >= 0)
        close(fd);
    let_it_go_on(meanwhile);
}

static void shows_its_name_and_nothing_else(void)
{
    struct meanwhile meanwhile = { .act = look_into_it };
    int image = open_file(init_path()), base = peer_folder(), pair[2];
    become_ordinary(); /* root may look into everything */
    make_sockets(SOCK_SEQPACKET, pair);
    meanwhile.waiting = (struct waiting){ start_waiting(pack_new(PLAN_SHARE_FDS), image, base, pair[1]), pair[0] };
    close(pair[1]);
    close(image);
    close(base);
    CHECK_REPORT(act_meanwhile(&meanwhile), STAGE_EXEC, 2, 0);
    CHECK(meanwhile.found == EACCES, "errno %d", meanwhile.found);
    over(meanwhile.waiting, 0);
}

/* --- filters: they are the plan's, but what comes of them has to be known --- */

static void killed_by_its_own_filter(void)
{
    struct waiting waiting = waiting_new();
    struct pack *pack = pack_new(0);
    pack_answer(pack, __NR_umask, SECCOMP_RET_KILL_PROCESS);
    op_add(pack, OP_UMASK);
    place_and_run(pack, NULL, 0);
    CHECK_REPORT(tell_plan(waiting, pack), STAGE_NONE, -1, 0);
    over(waiting, -SIGSYS);
}

/* Whoever hears nothing takes it that nothing was run. */
static void does_not_run_what_it_cannot_tell_of(void)
{
    for (int way = 0; way < 3; way++) {
        struct waiting waiting = waiting_new();
        int out[2];
        char text[8];
        make_pipe(out);
        struct pack *pack = pack_new(0);
        if (way < 2)
            pack_answer(pack, __NR_sendto, SECCOMP_RET_ERRNO | (way ? E : 0));
        place_and_run(pack, OUT_AS_3, 1);
        if (way == 2)
            op_add(pack, OP_UNSHARE_FDS)->a = 4; /* the socket is above the targets by now */
        struct report report = tell(waiting, pack, (const char *const[]){ "peer", "self", "3", NULL }, NULL, &out[1], 1);
        close(out[1]);
        CHECK_REPORT(report, STAGE_NONE, -1, 0);
        CHECK(read_all(out[0], text, sizeof text) == 0, "it ran a program all the same");
        over(waiting, 0);
    }
}

static void ends_under_any_filter(void)
{
    static const uint32_t answers[] = { SECCOMP_RET_ERRNO, SECCOMP_RET_ERRNO | EINTR, SECCOMP_RET_ERRNO | E };
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        struct waiting waiting = waiting_new();
        struct sock_filter filter = BPF_STMT(BPF_RET | BPF_K, answers[i]);
        struct pack *pack = pack_new(0);
        op_add(pack, OP_NO_NEW_PRIVS);
        pack_seccomp(pack, &filter, 1);
        place_and_run(pack, NULL, 0);
        CHECK_REPORT(tell_plan(waiting, pack), STAGE_NONE, -1, 0);
        CHECK(ended(waiting.out) != 0, "it could end like any other");
        close(waiting.sock);
    }
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "arguments and environment arrive byte for byte", strings_are_the_same },
        { "a message of 64 KiB and one of 4096 strings work", up_to_the_limits },
        { "descriptors are exactly where they were asked for, and no others", descriptors_are_exact },
        { "ops may make further descriptors", descriptors_of_its_own },
        { "253 descriptors can be handed over", as_many_descriptors_as_a_message_takes },
        { "the op that failed is told, with its errno", failing_ops_are_told },
        { "also where descriptors are being placed", failing_calls_in_placing_are_told },
        { "a program that cannot be executed is told", a_failing_exec_is_told },
        { "the answer is there once the program runs, which has no socket", answers_at_exec },
        { "it ends with its socket", ends_with_its_socket },
        { "it runs nothing when the one who asked is gone", does_nothing_for_nobody },
        { "each part of a message is refused", prefixes_are_refused },
        { "counts that do not match are refused", counts_that_do_not_match },
        { "plans that do not verify are refused", plans_that_do_not_verify },
        { "plans that ask for what only a clone can do are refused", plans_for_a_clone },
        { "the program is looked for in all places that the plan has for it", looks_in_all_places },
        { "messages that are too long are refused", messages_that_are_too_long },
        { "descriptors beyond the limit are EMFILE", descriptors_beyond_the_limit },
        { "what cannot be sent is not sent", what_cannot_be_sent },
        { "one byte or one string too many is E2BIG", one_byte_or_string_too_many },
        { "a process that has ended is EPIPE", nobody_there_any_more },
        { "one killed before it answers has started nothing", killed_before_it_answers },
        { "the same while its socket is open elsewhere", killed_while_another_has_its_socket },
        { "a signal for the caller does not disturb it", a_signal_for_the_caller },
        { "it has the name of its program and shows nothing else", shows_its_name_and_nothing_else },
        { "one killed by its own filter has started nothing", killed_by_its_own_filter },
        { "it runs nothing that it could not tell of", does_not_run_what_it_cannot_tell_of },
        { "one that may not even exit ends all the same", ends_under_any_filter },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
