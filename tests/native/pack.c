/* See pack.h. */
#include "pack.h"

#include "request.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sanitizer/asan_interface.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

/* launch.c is compiled with this in place of mmap, and calls it for its children's stacks. A child that is killed in the middle
 * of an op leaves AddressSanitizer's marks around variables that are no more, and the next child on that stack would be taken
 * to overwrite them: so they are wiped before each launch. */
#define STACKS 64
static _Atomic(char *) stacks[STACKS];
static _Atomic size_t stack_size;

void *map_child_stack(void *at, size_t size, int protection, int flags, int fd, off_t offset);
void *map_child_stack(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    char *stack = mmap(at, size, protection, flags, fd, offset), *none = NULL;
    atomic_store(&stack_size, size);
    for (int i = 0; i < STACKS; i++, none = NULL)
        if (stack == MAP_FAILED || atomic_load(&stacks[i]) == stack || atomic_compare_exchange_strong(&stacks[i], &none, stack))
            break;
    return stack;
}

/* The runtime's own makes system calls in the child, on a stack that it takes for the wrong one. */
void __asan_handle_no_return(void);
void __asan_handle_no_return(void) {}

static void wipe_stacks(void)
{
    for (int i = 0; i < STACKS && atomic_load(&stacks[i]); i++)
        ASAN_UNPOISON_MEMORY_REGION(atomic_load(&stacks[i]), atomic_load(&stack_size));
}

struct pack *pack_new(uint32_t flags)
{
    struct pack *pack = calloc(1, sizeof *pack);
    pack->head = (struct plan_head){
        .magic = PLAN_MAGIC, .blob_len = 1, .flags = flags, .cgroup_fd = NO_FD, .enter_fd = NO_FD, .exec_fd = CWD_FD,
    };
    pack->blob = calloc(1, 1);
    if (flags & PLAN_SHARE_FDS && !(flags & PLAN_COLLECT))
        op_add(pack, OP_UNSHARE_FDS)->a = 1024;
    return pack;
}

void pack_free(struct pack *pack)
{
    free(pack->blob);
    free(pack);
}

struct op *op_add(struct pack *pack, enum op_code code)
{
    struct op *op = &pack->ops[pack->head.count++];
    *op = (struct op){ .code = (uint16_t)code, .fd = NO_FD, .fd2 = NO_FD, .out = -1, .str = NO_STR, .str2 = NO_STR };
    return op;
}

static uint32_t append(struct pack *pack, const void *bytes, size_t size)
{
    uint32_t offset = pack->head.blob_len;
    pack->blob = realloc(pack->blob, offset + size);
    if (size)
        memcpy(pack->blob + offset, bytes, size);
    pack->head.blob_len += (uint32_t)size;
    return offset;
}

uint32_t pack_text(struct pack *pack, const char *text) { return *text ? append(pack, text, strlen(text) + 1) : 0; }

uint32_t pack_bytes(struct pack *pack, const void *bytes, size_t size)
{
    append(pack, "\0\0\0\0\0\0\0", -pack->head.blob_len % 8);
    uint32_t offset = append(pack, bytes, size);
    append(pack, "", 1);
    return offset;
}

void pack_exec_path(struct pack *pack, const char *path)
{
    pack->head.exec_fd = CWD_FD;
    pack->head.exec_path = pack_text(pack, path);
}

void pack_seccomp(struct pack *pack, const void *filter, unsigned count)
{
    uint32_t at = pack_bytes(pack, filter, count * 8);
    struct op *op = op_add(pack, OP_SECCOMP);
    op->str = at;
    op->a = count;
}

void pack_answer(struct pack *pack, long nr, uint32_t action)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    op_add(pack, OP_NO_NEW_PRIVS);
    pack_seccomp(pack, filter, sizeof filter / sizeof *filter);
}

void pack_fd_map(struct pack *pack, const int32_t (*pairs)[2], unsigned count, int null_fd)
{
    uint32_t at = pack_bytes(pack, pairs, count * sizeof *pairs);
    struct op *op = op_add(pack, OP_FD_MAP);
    op->str = at;
    op->a = count;
    op->fd = null_fd;
}

void *pack_bake(const struct pack *pack, size_t *size)
{
    size_t ops = pack->head.count * sizeof(struct op);
    *size = sizeof pack->head + ops + pack->head.blob_len;
    char *baked = malloc(*size);
    memcpy(baked, &pack->head, sizeof pack->head);
    memcpy(baked + sizeof pack->head, pack->ops, ops);
    memcpy(baked + sizeof pack->head + ops, pack->blob, pack->head.blob_len);
    return baked;
}

static char **copy_strings(const char *const *strings, uint32_t *count)
{
    for (*count = 0; strings && strings[*count];)
        ++*count;
    char **copy = malloc((*count + 1) * sizeof *copy);
    for (uint32_t i = 0; i < *count; i++)
        copy[i] = strdup(strings[i]);
    copy[*count] = NULL;
    return copy;
}

static void free_strings(char **strings)
{
    for (char **string = strings; *string; string++)
        free(*string);
    free(strings);
}

/* Appends strings, each with its NUL; counts them and their bytes. */
static void append_strings(char **end, const char *const *strings, uint32_t *count, uint32_t *size)
{
    char *begin = *end;
    for (*count = 0; strings && strings[*count]; ++*count)
        *end = stpcpy(*end, strings[*count]) + 1;
    *size = (uint32_t)(*end - begin);
}

static size_t size_of(const char *const *strings)
{
    size_t size = 0;
    for (; strings && *strings; strings++)
        size += strlen(*strings) + 1;
    return size;
}

void *pack_request(const struct pack *pack, const char *const *argv, const char *const *envp, uint32_t fds, size_t *size)
{
    size_t plan_size;
    char *baked = pack_bake(pack, &plan_size);
    *size = sizeof(struct request) + plan_size + size_of(argv) + size_of(envp);
    char *message = malloc(*size), *end = message + sizeof(struct request) + plan_size;
    struct request *request = (struct request *)message;
    *request = (struct request){ .plan_size = (uint32_t)plan_size, .fds = fds };
    memcpy(request + 1, baked, plan_size);
    append_strings(&end, argv, &request->argc, &request->argv_size);
    append_strings(&end, envp, &request->envc, &request->envp_size);
    free(baked);
    return message;
}

/* Pieces of memory of exactly their sizes: an op may split strings in place, and the caller's copy stays as it is. */
struct plan *plan_new(const void *baked, size_t size, const char *const *argv, const char *const *envp)
{
    char *memory = malloc(size);
    memcpy(memory, baked, size);
    struct plan *plan = malloc(sizeof *plan); /* on the heap, for its red zones */
    struct plan_head *head = (struct plan_head *)memory;
    *plan = (struct plan){ .head = head, .ops = (struct op *)(head + 1) };
    plan->blob = (char *)(head + 1) + (size >= sizeof *head ? head->count * sizeof(struct op) : 0);
    plan->argv = copy_strings(argv, &plan->argc);
    plan->envp = copy_strings(envp, &plan->envc);
    for (int i = 0; i < SLOTS; i++)
        plan->slots[i] = NO_FD;
    return plan;
}

void plan_free(struct plan *plan)
{
    free_strings(plan->argv);
    free_strings(plan->envp);
    free((void *)(uintptr_t)plan->head);
    free(plan);
}

struct result run_baked(const void *baked, size_t size, const char *const *argv, const char *const *envp)
{
    struct result result = { .out = { .pid = -1, .pidfd = -1 } };
    struct plan *plan = plan_new(baked, size, argv, envp);
    result.refused = verify_plan(plan, size);
    if (result.refused == 0) {
        wipe_stacks();
        launch(plan, &result.out);
    }
    memcpy(result.slots, plan->slots, sizeof result.slots);
    plan_free(plan);
    return result;
}

struct result run_pack(const struct pack *pack, const char *const *argv, const char *const *envp)
{
    static const char *const nobody[] = { "peer", NULL };
    size_t size;
    void *baked = pack_bake(pack, &size);
    struct result result = run_baked(baked, size, argv ? argv : nobody, envp);
    free(baked);
    return result;
}
