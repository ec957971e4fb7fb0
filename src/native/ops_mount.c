/* Ops that make a child's world of files. Child side: see child.c for what may be done here.
 *
 * All path work is by descriptor. Where a path is resolved beneath a directory the child is building, symbolic links are
 * refused, so that nothing that was mounted there can lead the builder elsewhere. */
#include "op.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/stat.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif


#define MNT_DETACH 2

/* A handle on what `path` names beneath `dir`; "" is dir itself. */
static long open_beneath(int dir, const char *path, uint64_t flags)
{
    struct open_how how = {
        .flags = flags | O_PATH | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    return sys4(__NR_openat2, dir, *path ? path : ".", &how, sizeof how);
}

/* Splits "key=value,flag" in place, hands each part to fsconfig, and puts it together again: equal strings of a plan are one. */
static long configure(long fs, char *options)
{
    while (*options) {
        char *equals = NULL, *end = options;
        for (; *end && *end != ','; end++)
            if (*end == '=' && !equals)
                equals = end;
        char rest = *end;
        *end = '\0';
        if (equals)
            *equals = '\0';
        long ret = sys5(__NR_fsconfig, fs, equals ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options, equals ? equals + 1 : NULL, 0);
        if (equals)
            *equals = '=';
        *end = rest;
        if (ret < 0)
            return ret;
        options = rest ? end + 1 : end;
    }
    return sys5(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
}

int op_fsmount(struct plan *plan, const struct op *op)
{
    long fs = sys2(__NR_fsopen, plan_str(plan, op->str), FSOPEN_CLOEXEC);
    if (fs < 0)
        return (int)-fs;
    long ret = configure(fs, plan_str(plan, op->str2));
    if (ret >= 0)
        ret = sys3(__NR_fsmount, fs, FSMOUNT_CLOEXEC, op->a);
    sys1(__NR_close, fs);
    return plan_keep(plan, op, ret);
}

int op_open_tree(struct plan *plan, const struct op *op)
{
    const char *path = plan_str(plan, op->str);
    uint64_t flags = op->a | OPEN_TREE_CLOEXEC | (*path ? 0 : AT_EMPTY_PATH);
    return plan_keep(plan, op, sys3(__NR_open_tree, plan_fd(plan, op->fd), path, flags));
}

int op_mount_setattr(struct plan *plan, const struct op *op)
{
    /* The clone of a shared mount would go on taking part in what is mounted there. */
    struct mount_attr attr = { .attr_set = op->a, .propagation = MS_PRIVATE };
    if (op->fd2 != NO_FD) {
        int userns = plan_fd(plan, op->fd2);
        if (userns < 0)
            return EBADF;
        attr.userns_fd = (uint64_t)userns;
    }
    return (int)-sys5(__NR_mount_setattr, plan_fd(plan, op->fd), "", AT_EMPTY_PATH | (op->b & AT_RECURSIVE), &attr, sizeof attr);
}

static int mount_at(long tree, int dir, const char *path)
{
    long where = dir;
    if (*path) {
        where = open_beneath(dir, path, 0);
        if (where < 0)
            return (int)-where;
    }
    long ret = sys5(__NR_move_mount, tree, "", where, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    if (*path)
        sys1(__NR_close, where);
    return (int)-ret;
}

int op_move_mount(struct plan *plan, const struct op *op)
{
    return mount_at(plan_fd(plan, op->fd), plan_fd(plan, op->fd2), plan_str(plan, op->str));
}

/* Mounts what `str` names, if it still is the inode the caller looked at: a copy of the mount with everything below it, with
 * attributes of its own. The path was made free of symbolic links by the caller, so meeting one means that it was exchanged. */
int op_bind(struct plan *plan, const struct op *op)
{
    struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };
    long tree = -1, file = sys4(__NR_openat2, AT_FDCWD, plan_str(plan, op->str), &how, sizeof how);
    if (file < 0)
        return (int)-file;
    struct stat st;
    long ret = sys2(__NR_fstat, file, &st);
    if (ret == 0 && (st.st_dev != op->a || st.st_ino != op->b))
        ret = -ESTALE;
    if (ret == 0)
        ret = tree = sys3(__NR_open_tree, file, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
    sys1(__NR_close, file);
    if (ret >= 0) {
        struct mount_attr attr = { .attr_set = op->flags, .propagation = MS_PRIVATE };
        ret = sys5(__NR_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr);
    }
    if (ret >= 0)
        ret = -mount_at(tree, plan_fd(plan, op->fd2), plan_str(plan, op->str2));
    if (tree >= 0)
        sys1(__NR_close, tree);
    return (int)-ret;
}

/* Opens the directory that will hold the last component of `path`, and points *name at that component. */
static long open_parent(int dir, char *path, char **name)
{
    char *slash = NULL;
    for (char *p = path; *p; p++)
        if (*p == '/')
            slash = p;
    *name = slash ? slash + 1 : path;
    if (!slash)
        return open_beneath(dir, "", O_DIRECTORY);
    *slash = '\0';
    long parent = open_beneath(dir, path, O_DIRECTORY);
    *slash = '/';
    return parent;
}

/* mkdir -p, one component at a time. What is there already must be a directory (the next step would fail otherwise). */
int op_mkdirs(struct plan *plan, const struct op *op)
{
    int dir = plan_fd(plan, op->fd);
    char *path = plan_str(plan, op->str);
    for (char *end = path;; end++) {
        if (*end && *end != '/')
            continue;
        char rest = *end, *name;
        *end = '\0';
        long parent = open_parent(dir, path, &name);
        long ret = parent < 0 ? parent : sys3(__NR_mkdirat, parent, name, op->a);
        if (ret == -EEXIST || ret == -EROFS) { /* EROFS: an entry mounted read-only may hold it already */
            ret = open_beneath((int)parent, name, O_DIRECTORY);
            if (ret >= 0) {
                sys1(__NR_close, ret);
                ret = 0;
            }
        }
        if (parent >= 0)
            sys1(__NR_close, parent);
        *end = rest;
        if (ret < 0)
            return (int)-ret;
        if (!rest)
            return 0;
    }
}

/* An empty file for something to be mounted on, unless there is one. */
int op_touch(struct plan *plan, const struct op *op)
{
    char *name;
    long parent = open_parent(plan_fd(plan, op->fd), plan_str(plan, op->str), &name);
    if (parent < 0)
        return (int)-parent;
    long file = sys4(__NR_openat, parent, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, op->a);
    if (file == -EEXIST || file == -EROFS)
        file = open_beneath((int)parent, name, 0);
    sys1(__NR_close, parent);
    if (file < 0)
        return (int)-file;
    sys1(__NR_close, file);
    return 0;
}

/* A new file with the contents of another. The source's own offset is left alone. */
int op_copy(struct plan *plan, const struct op *op)
{
    char *name;
    long parent = open_parent(plan_fd(plan, op->fd2), plan_str(plan, op->str), &name);
    if (parent < 0)
        return (int)-parent;
    long file = sys4(__NR_openat, parent, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, op->a);
    sys1(__NR_close, parent);
    if (file < 0)
        return (int)-file;
    int64_t offset = 0;
    long ret;
    do
        ret = sys4(__NR_sendfile, file, plan_fd(plan, op->fd), &offset, 1 << 30);
    while (ret > 0);
    sys1(__NR_close, file);
    return (int)-ret;
}

int op_symlink(struct plan *plan, const struct op *op)
{
    char *name;
    long parent = open_parent(plan_fd(plan, op->fd), plan_str(plan, op->str), &name);
    if (parent < 0)
        return (int)-parent;
    long ret = sys3(__NR_symlinkat, plan_str(plan, op->str2), parent, name);
    sys1(__NR_close, parent);
    return (int)-ret;
}

int op_private_mounts(struct plan *plan, const struct op *op)
{
    (void)plan, (void)op;
    return (int)-sys5(__NR_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
}

static long change_root(int new)
{
    long old = sys4(__NR_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (old < 0)
        return old;
    long ret = sys1(__NR_fchdir, new);
    if (ret == 0)
        ret = sys2(__NR_pivot_root, ".", ".");
    if (ret == 0)
        ret = sys1(__NR_fchdir, old);
    if (ret == 0)
        ret = sys2(__NR_umount2, ".", MNT_DETACH);
    sys1(__NR_close, old);
    return ret;
}

/* Makes `fd` the root mount, lets go of everything that was there before (unless fd is NO_FD: there is nothing), and moves
 * into `fd2`, which is the topmost mount by then. What lies in `fd` itself cannot be reached by any path from fd2, but its
 * mounts stay alive: the program is executed from there. A process whose root is the topmost mount on "/" does not count as
 * chrooted (user_namespaces(7)), so programs inside may still make namespaces of their own. */
int op_pivot(struct plan *plan, const struct op *op)
{
    long ret = op->fd == NO_FD ? 0 : change_root(plan_fd(plan, op->fd)); /* a slot that nothing filled is not "nothing" */
    if (ret == 0)
        ret = sys1(__NR_fchdir, plan_fd(plan, op->fd2));
    if (ret == 0)
        ret = sys1(__NR_chroot, ".");
    return (int)-ret;
}
