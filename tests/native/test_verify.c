/* verify_plan refuses whatever could lead a child outside of its plan, and says where. */
#include "check.h"

#include <linux/filter.h>
#include <sched.h>
#include <string.h>

static const char *const env[] = { "A=1", "LISTEN_PID=0123456789", NULL };

/* A plan that has one of everything that verify_plan looks at, and is fine. */
static struct pack *good(void)
{
    static const int32_t pairs[][2] = { { 0, 0 }, { 1, 5 }, { SLOT(3), 1023 | TARGET_CLOEXEC } };
    static const struct sock_filter allow = { .code = BPF_RET, .k = 0x7fff0000 };
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    uint32_t path = pack_text(pack, "/some/where");
    struct op *op = op_add(pack, OP_OPEN); /* op 1 */
    op->fd = CWD_FD;
    op->str = path;
    op->out = SLOTS - 1;
    op = op_add(pack, OP_MOVE_MOUNT); /* op 2 */
    op->fd = SLOT(0);
    op->fd2 = SLOT(SLOTS - 1);
    op->str = path;
    pack_fd_map(pack, pairs, 3, 0);                 /* op 3 */
    pack_seccomp(pack, &allow, 1);                  /* op 4 */
    op = op_add(pack, OP_ENV_PID);                  /* op 5 */
    op->a = 1;
    op->b = 11;
    op_add(pack, OP_UNSHARE)->a = CLONE_NEWNET;     /* op 6 */
    op = op_add(pack, OP_SETNS);                    /* op 7 */
    op->fd = 0;
    op->a = CLONE_NEWUTS;
    op = op_add(pack, OP_SYMLINK);                  /* op 8 */
    op->fd = 0;
    op->str = op->str2 = path;
    pack_exec_path(pack, "/no/such/program");
    return pack;
}

/* Verifies without launching: exact memory, so that a look beyond it is caught. */
static int verdict_on(const void *baked, size_t size)
{
    struct plan *plan = plan_new(baked, size, NULL, env);
    int said = verify_plan(plan, size);
    plan_free(plan);
    return said;
}

/* The same; consumes the plan. */
static int verdict(struct pack *pack)
{
    size_t size;
    void *baked = pack_bake(pack, &size);
    int said = verdict_on(baked, size);
    free(baked);
    pack_free(pack);
    return said;
}

#define HEAD(change)                                                                                                              \
    do {                                                                                                                          \
        struct pack *p = good();                                                                                                  \
        struct plan_head *h = &p->head;                                                                                           \
        (void)h;                                                                                                                  \
        change;                                                                                                                   \
        int said = verdict(p);                                                                                                    \
        CHECK(said == -1, "%s: verify_plan said %d", #change, said);                                                              \
    } while (0)

/* Refused, and the op named is the one changed. */
#define OP(i, change)                                                                                                             \
    do {                                                                                                                          \
        struct pack *p = good();                                                                                                  \
        struct op *o = &p->ops[i];                                                                                                \
        (void)o;                                                                                                                  \
        change;                                                                                                                   \
        int said = verdict(p);                                                                                                    \
        CHECK(said == (i) + 1, "op %d, %s: verify_plan said %d", i, #change, said);                                               \
    } while (0)

#define FINE(change)                                                                                                              \
    do {                                                                                                                          \
        struct pack *p = good();                                                                                                  \
        change;                                                                                                                   \
        int said = verdict(p);                                                                                                    \
        CHECK(said == 0, "%s: verify_plan said %d", #change, said);                                                               \
    } while (0)

static int32_t (*pairs_of(struct pack *p))[2] { return (int32_t(*)[2])(p->blob + p->ops[3].str); }

static void accepts_what_is_fine(void)
{
    FINE((void)p);
    FINE(p->ops[1].fd = 1 << 30);
    FINE(p->ops[1].out = 0);
    FINE(p->ops[2].str = p->head.blob_len - 1);
    FINE(p->head.clone_flags = 0x7e020000);
    FINE(p->ops[3].a = 0);
    FINE(p->ops[3].fd = NO_FD);
    FINE(p->head.flags = 0);
    FINE(p->head.flags |= PLAN_SIBLING);
    FINE(p->ops[5].b = 10);
    FINE(p->head.enter_fd = 3; p->head.enter_flags = CLONE_NEWPID);
}

static void refuses_bad_headers(void)
{
    HEAD(h->magic ^= 1);
    HEAD(h->magic = 0);
    HEAD(h->flags = 8);
    HEAD(h->flags = 0xffffffff);
    HEAD(h->clone_flags = CLONE_VM);
    HEAD(h->clone_flags = CLONE_THREAD | CLONE_SIGHAND);
    HEAD(h->clone_flags = CLONE_PARENT);
    HEAD(h->clone_flags = 17); /* an exit signal */
    HEAD(h->clone_flags = 1ull << 32);
    HEAD(h->clone_flags = 0x80); /* CLONE_NEWTIME: an exit signal for clone(2) */
    HEAD(h->enter_flags = CLONE_FILES);
    HEAD(h->enter_flags = ~0ull);
    HEAD(h->cgroup_fd = SLOT(0));
    HEAD(h->enter_fd = SLOT(3));
    HEAD(h->cgroup_fd = -2);
    HEAD(h->enter_fd = -99);
    HEAD(h->cgroup_fd = CWD_FD); /* not "no cgroup": a child that was to be confined must never run unconfined */
    HEAD(h->enter_fd = CWD_FD);
    HEAD(h->cgroup_fd = INT32_MIN);
    HEAD(h->exec_fd = NO_FD);
    HEAD(h->exec_fd = SLOT(SLOTS));
    HEAD(h->exec_fd = -999);
    HEAD(h->exec_path = NO_STR);
    HEAD(h->exec_path = h->blob_len);
    HEAD(h->exec_path = 0xfffffffe);
    HEAD(p->blob[h->blob_len - 1] = 'x');
    HEAD(p->ops[0].code = OP_UMASK); /* on the caller's table without leaving it first */
    HEAD(h->flags = PLAN_COLLECT);   /* what it makes would be lost */
}

static void refuses_wrong_sizes(void)
{
    struct pack *pack = good();
    size_t size;
    char *baked = pack_bake(pack, &size);
    for (size_t cut = 0; cut < size; cut++)
        CHECK(verdict_on(baked, cut) == -1, "the first %zu of %zu bytes were accepted", cut, size);
    free(baked);
    static const uint32_t counts[] = { 0, 1, 10, 4096, 4097, 0x06666667, 0x66666667, 0x7fffffff, 0xffffffff };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        struct plan_head *head = calloc(1, sizeof *head + 64);
        *head = pack->head;
        head->count = counts[i];
        head->blob_len = 64;
        struct plan plan = { .head = head, .ops = (struct op *)(head + 1) };
        plan.blob = (char *)(head + 1);
        head->flags = PLAN_COLLECT | PLAN_SHARE_FDS;
        int said = verify_plan(&plan, sizeof *head + 64);
        CHECK(counts[i] == 0 ? said == 0 : said == -1, "%u ops in 64 bytes: %d", counts[i], said);
        free(head);
    }
    static const uint32_t lengths[] = { 0, 1, 63, 65, 0x7fffffff, 0xffffffff };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct plan_head *head = calloc(1, sizeof *head + 64);
        *head = (struct plan_head){ .magic = PLAN_MAGIC, .blob_len = lengths[i], .cgroup_fd = NO_FD, .enter_fd = NO_FD, .exec_fd = 0 };
        struct plan plan = { .head = head, .ops = (struct op *)(head + 1), .blob = (char *)(head + 1) };
        CHECK(verify_plan(&plan, sizeof *head + 64) == -1, "a blob of %u in 64 bytes was accepted", lengths[i]);
        free(head);
    }
    pack_free(pack);
}

static void refuses_too_many_ops(void)
{
    struct pack *pack = pack_new(PLAN_SHARE_FDS);
    pack_exec_path(pack, "/");
    while (pack->head.count < PLAN_OPS_MAX)
        op_add(pack, OP_UMASK);
    struct pack *more = pack_new(PLAN_SHARE_FDS);
    pack_exec_path(more, "/");
    while (more->head.count <= PLAN_OPS_MAX)
        op_add(more, OP_UMASK);
    int most = verdict(pack), over = verdict(more);
    CHECK(most == 0 && over == -1, "%d ops: %d; one more: %d", PLAN_OPS_MAX, most, over);
}

static void refuses_bad_operands(void)
{
    OP(1, o->code = OP_COUNT);
    OP(1, o->code = 0xffff);
    OP(1, o->str = NO_STR);
    OP(1, o->str = p->head.blob_len);
    OP(1, o->str = 0xfffffffe);
    OP(8, o->str2 = NO_STR);
    OP(8, o->str2 = p->head.blob_len);
    OP(6, o->str = p->head.blob_len);  /* an operand it does not use is checked all the same */
    OP(6, o->str2 = p->head.blob_len);
    OP(1, o->fd = NO_FD);
    OP(1, o->fd = -2);
    OP(1, o->fd = -999);
    OP(1, o->fd = SLOT(SLOTS));
    OP(1, o->fd = INT32_MIN);
    OP(2, o->fd2 = NO_FD);
    OP(2, o->fd2 = SLOT(SLOTS));
    OP(6, o->fd = -7);
    OP(1, o->out = -1);
    OP(1, o->out = -2);
    OP(1, o->out = SLOTS);
    OP(1, o->out = INT32_MAX);
    OP(1, o->out = INT32_MIN);
    OP(2, o->out = 0); /* makes nothing */
    OP(6, o->a = CLONE_VM);
    OP(6, o->a = CLONE_FILES);
    OP(6, o->a |= 1ull << 40);
    OP(7, o->a = CLONE_FS);
}

static void refuses_each_op_without_what_it_needs(void)
{
#define X(name, fn, operands) { #name, operands },
    static const struct {
        const char *name;
        int needs;
    } all[] = { OPS(X) };
#undef X
    static const int bits[] = { FD, FD2, OUT, STR, STR2 };
    for (int code = 0; code < OP_COUNT; code++)
        for (int missing = -1; missing < 5; missing++) {
            if (missing >= 0 && !(all[code].needs & bits[missing]))
                continue;
            struct pack *p = pack_new(PLAN_SHARE_FDS);
            uint32_t at = pack_bytes(p, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
            pack_exec_path(p, "/");
            if (code == OP_TRY_EXEC)
                op_add(p, OP_INHERIT_SIGNALS);
            struct op *o = op_add(p, (enum op_code)code);
            int has = all[code].needs & ~(missing < 0 ? 0 : bits[missing]);
            o->fd = has & FD ? 0 : NO_FD;
            o->fd2 = has & FD2 ? 0 : NO_FD;
            o->out = has & OUT ? 0 : -1;
            o->str = has & STR ? at : NO_STR;
            o->str2 = has & STR2 ? at : NO_STR;
            o->a = code == OP_SECCOMP || code == OP_ENV_PID || code == OP_AFFINITY;
            o->a = code == OP_INHERIT_FDS ? 3 : o->a;
            o->b = code == OP_ENV_PID ? 11 : 0;
            int said = verdict(p);
            CHECK(said == (missing < 0 ? 0 : code == OP_TRY_EXEC ? 3 : 2), "%s, operand %d missing: verify_plan said %d", all[code].name, missing, said);
        }
}

static void refuses_bad_fd_maps(void)
{
    OP(3, o->a = TARGETS + 1);
    OP(3, o->a = 1 << 20);
    OP(3, o->a = ~0ull);
    OP(3, o->a = 1ull << 61); /* times 8 it is 0 */
    OP(3, o->a = (p->head.blob_len - o->str) / 8 + 1);
    OP(3, o->str = p->head.blob_len - 23); /* the last byte of the last pair is missing */
    OP(3, pairs_of(p)[0][0] = -1);
    OP(3, pairs_of(p)[0][0] = CWD_FD);
    OP(3, pairs_of(p)[2][0] = SLOT(SLOTS));
    OP(3, pairs_of(p)[2][0] = INT32_MIN);
    OP(3, pairs_of(p)[0][1] = -1);
    OP(3, pairs_of(p)[0][1] = TARGETS);
    OP(3, pairs_of(p)[0][1] = INT32_MAX);
    OP(3, pairs_of(p)[0][1] = INT32_MIN);
    OP(3, pairs_of(p)[0][1] = TARGETS | TARGET_CLOEXEC);
    OP(3, pairs_of(p)[1][1] = 0);                          /* twice */
    OP(3, pairs_of(p)[2][1] = 5);                          /* twice */
    OP(3, pairs_of(p)[1][1] = 1023);                       /* twice, once close-on-exec */
}

/* What verify_plan says of INHERIT_FDS with these numbers, of which it is told `count`. */
static int inherits(uint64_t count, int32_t a, int32_t b, int32_t c, int32_t d, int32_t e)
{
    struct pack *p = pack_new(PLAN_SHARE_FDS);
    pack_exec_path(p, "/");
    uint32_t at = pack_bytes(p, (const int32_t[]){ a, b, c, d, e }, 5 * sizeof(int32_t));
    struct op *o = op_add(p, OP_INHERIT_FDS);
    o->str = at;
    o->a = count;
    return verdict(p);
}

static void refuses_bad_inherited_descriptors(void)
{
    CHECK(inherits(3, -1, -1, -1, 0, 0) == 0 && inherits(5, 7, 7, 2, 0, 9) == 0, "a good one is refused");
    CHECK(inherits(0, -1, -1, -1, 0, 0) == 2 && inherits(2, -1, -1, -1, 0, 0) == 2, "fewer than three");
    CHECK(inherits(3, -2, -1, -1, 0, 0) == 2 && inherits(3, -1, -1, CWD_FD, 0, 0) == 2 && inherits(3, -1, SLOT(0), -1, 0, 0) == 2, "no number");
    CHECK(inherits(4, -1, -1, -1, -1, 0) == 2 && inherits(4, -1, -1, -1, INT32_MIN, 0) == 2, "a negative one to be kept");
    CHECK(inherits(5, -1, -1, -1, 9, 9) == 2 && inherits(5, -1, -1, -1, 9, 8) == 2, "not ascending");
    CHECK(inherits(INHERITED_FDS + 1, 0, 0, 0, 0, 0) == 2 && inherits(1ull << 62, 0, 0, 0, 0, 0) == 2 && inherits(4000, 0, 0, 0, 1, 2) == 2,
          "more than there are");
}

static void refuses_anything_but_exec_once_the_child_may_be_ended(void)
{
    static const enum op_code codes[][3] = {
        { OP_INHERIT_SIGNALS, OP_TRY_EXEC, OP_TRY_EXEC }, { OP_UMASK, OP_TRY_EXEC, OP_INHERIT_SIGNALS }, { OP_INHERIT_SIGNALS, OP_UMASK, OP_TRY_EXEC },
        { OP_INHERIT_SIGNALS, OP_TRY_EXEC, OP_UMASK }, { OP_SIGNALS, OP_TRY_EXEC, OP_TRY_EXEC }, { OP_INHERIT_SIGNALS, OP_INHERIT_SIGNALS, OP_TRY_EXEC },
    };
    static const int said[] = { 0, 3, 3, 4, 3, 3 };
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        struct pack *p = pack_new(PLAN_SHARE_FDS);
        pack_exec_path(p, "/");
        uint32_t path = pack_text(p, "/");
        for (int j = 0; j < 3; j++)
            op_add(p, codes[i][j])->str = codes[i][j] == OP_TRY_EXEC ? path : NO_STR;
        int found = verdict(p);
        CHECK(found == said[i], "row %zu: verify_plan said %d", i, found);
    }
}

static void refuses_bad_filters(void)
{
    OP(4, o->a = 0);
    OP(4, o->a = 4097);
    OP(4, o->a = ~0ull);
    OP(4, o->a = 1ull << 61);
    OP(4, o->a = (p->head.blob_len - o->str) / 8 + 1);
    OP(4, o->str += 1);
    OP(4, o->str += 2);
}

static void refuses_pids_outside_of_their_variable(void)
{
    OP(5, o->a = 2);
    OP(5, o->a = ~0ull);
    OP(5, o->a = 1ull << 32);
    OP(5, o->a = 0); /* "A=1" has no room */
    OP(5, o->b = 12);
    OP(5, o->b = 21);
    OP(5, o->b = 1ull << 40);
    OP(5, o->b = ~0ull); /* plus ten digits it would be 9 */
    OP(5, o->b = 0ull - 5);
    OP(5, o->b = 0ull - ENV_PID_DIGITS);
}

/* A plan that collects runs on the caller's own table: it may add to it, and nothing else. */
static int collects(enum op_code code, int made_after)
{
    static const int32_t none[1][2] = { { 0, 0 } };
    struct pack *p = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
    uint32_t path = pack_text(p, "/"), numbers = pack_bytes(p, "\0\0\0\0\0\0\0\0\0\0\0", 12);
    if (code == OP_FD_MAP)
        pack_fd_map(p, none, 0, 0);
    else
        op_add(p, code);
    if (code == OP_INHERIT_FDS || code == OP_TRY_EXEC) {
        p->ops[p->head.count - 1].str = code == OP_INHERIT_FDS ? numbers : path;
        p->ops[p->head.count - 1].a = 3;
    }
    for (int i = 0; i < made_after; i++) {
        struct op *o = op_add(p, OP_OPEN);
        o->fd = CWD_FD;
        o->str = path;
        o->out = i;
    }
    return verdict(p);
}

static void a_plan_that_collects_leaves_the_callers_table_alone(void)
{
    CHECK(collects(OP_UMASK, 2) == 0, "a harmless one is refused");
    CHECK(collects(OP_FD_MAP, 0) == 1, "it would close all descriptors of the caller");
    CHECK(collects(OP_SIGNALS, 0) == 1, "a signal could end it with descriptors open that nobody knows");
    CHECK(collects(OP_INHERIT_SIGNALS, 0) == 1, "the same");
    CHECK(collects(OP_INHERIT_FDS, 0) == 1, "it would close the caller's descriptors");
    CHECK(collects(OP_TRY_EXEC, 0) == 1, "it would not come back");
    CHECK(collects(OP_UNSHARE_FDS, 0) == 0, "leaving the table is harmless when nothing is made afterwards");
    CHECK(collects(OP_UNSHARE_FDS, 1) == 2, "its slot would be a number of another table, and be closed in the caller's");
}

static void each_slot_is_filled_once(void)
{
    struct pack *p = pack_new(PLAN_SHARE_FDS | PLAN_COLLECT);
    uint32_t path = pack_text(p, "/");
    for (int i = 0; i < 2; i++) {
        struct op *o = op_add(p, OP_OPEN);
        o->fd = CWD_FD;
        o->str = path;
        o->out = 7;
    }
    int said = verdict(p);
    CHECK(said == 2, "filled twice, the first would stay open for ever: verify_plan said %d", said);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "a good plan is accepted, up to each limit", accepts_what_is_fine },
        { "a malformed header is refused", refuses_bad_headers },
        { "a plan whose sizes do not add up is refused", refuses_wrong_sizes },
        { "4096 ops are accepted, 4097 refused", refuses_too_many_ops },
        { "a bad code, descriptor, slot, string or flag is refused, and its op named", refuses_bad_operands },
        { "every op is refused without any of its operands", refuses_each_op_without_what_it_needs },
        { "a malformed descriptor map is refused", refuses_bad_fd_maps },
        { "malformed numbers of descriptors to inherit are refused", refuses_bad_inherited_descriptors },
        { "nothing but exec may follow once a signal may end the child", refuses_anything_but_exec_once_the_child_may_be_ended },
        { "a malformed filter is refused", refuses_bad_filters },
        { "a pid is written inside of its variable or not at all", refuses_pids_outside_of_their_variable },
        { "a plan that collects cannot take the caller's descriptors", a_plan_that_collects_leaves_the_callers_table_alone },
        { "no slot can be filled twice", each_slot_is_filled_once },
    };
    return run_tests(tests, sizeof tests / sizeof *tests, argc, argv);
}
