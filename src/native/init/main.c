/* shoal-init: a static program with six lives, by argv[1]:
 *   w...  a process of a cell that waits for its program (wait.c)
 *   f...  a process that makes cells ahead of their use (make.c)
 *   h...  what holds a program that has no cell (hold.c)
 *   d...  what inits of domains are forked from (nursery.c, domain.c)
 *   u...  what makes a user namespace for who cannot (userns.c)
 *   else  pid 1 of a cell, and argv[1] its tasks (keep.c)
 *
 * No libc, no allocation: one such process costs a few pages. */
#include "hold.h"
#include "init.h"
#include "../op.h"
#include "../sys.h"

#include <linux/prctl.h>

_Noreturn static void run(char **argv)
{
    const char *what = argv[0] ? argv[1] : 0;
    if (what && *what == 'f') {
        make_cells(argv);
    } else if (what && *what == 'd') {
        raise_inits(argv);
    } else if (what && *what == 'u') {
        give_user_namespace();
    } else if (what && *what == 'w') {
        sys5(__NR_prctl, PR_SET_NAME, argv[0], 0, 0, 0); /* what the program will be called, so that nobody sees another name */
        wait_for_plan();
    } else {
        sys5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* the program, which may run before we are told anything, shall not look in here */
        sys5(__NR_prctl, PR_SET_NAME, "shoal-init", 0, 0, 0);
        if (what && *what == 'h')
            hold(what + 1);
        keep_cell(what, 0);
    }
    leave(0);
}

/* The kernel starts us with argc, argv[0], argv[1]... on the stack. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tlea 8(%rsp), %rdi\n\tand $-16, %rsp\n\tcall shoal_init_start\n\thlt\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tadd x0, sp, #8\n\tbl shoal_init_start\n\tbrk #0\n");
#endif

_Noreturn void shoal_init_start(char **argv);
_Noreturn void shoal_init_start(char **argv) { run(argv); }

/* The compiler may turn an initialiser or a copy into a call of these. */
void *memset(void *to, int byte, size_t size);
void *memcpy(void *restrict to, const void *restrict from, size_t size);
size_t strlen(const char *text);
void *memset(void *to, int byte, size_t size)
{
    volatile char *p = to;
    while (size--)
        *p++ = (char)byte;
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    volatile char *p = to;
    for (const char *q = from; size--; q++)
        *p++ = *q;
    return to;
}

size_t strlen(const char *text)
{
    const volatile char *p = text;
    while (*p)
        p++;
    return (size_t)(p - text);
}
