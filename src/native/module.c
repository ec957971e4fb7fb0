/* Entry points of shoal._native: the only file here that knows Python. Uses the limited API (abi3, CPython 3.11+). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "inherited.h"
#include "op.h"
#include "request.h"
#include "sys.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Points `out` at each of `count` NUL-terminated strings packed in `blob`. False when there are not exactly that many. */
static int split(char *blob, Py_ssize_t size, char **out, Py_ssize_t count)
{
    char *end = blob + size;
    for (Py_ssize_t i = 0; i < count; i++) {
        char *nul = blob < end ? memchr(blob, '\0', (size_t)(end - blob)) : NULL;
        if (!nul)
            return 0;
        out[i] = blob;
        blob = nul + 1;
    }
    out[count] = NULL;
    return blob == end;
}

static PyObject *outcome_tuple(const struct plan *plan, const struct outcome *out)
{
    PyObject *slots = Py_None;
    if (plan->head->flags & PLAN_COLLECT && out->report.stage == STAGE_EXEC) {
        int count = SLOTS; /* up to the last one filled */
        while (count > 0 && plan->slots[count - 1] < 0)
            count--;
        slots = PyTuple_New(count);
        for (int i = 0; slots && i < count; i++) {
            PyObject *fd = PyLong_FromLong(plan->slots[i]);
            if (!fd || PyTuple_SetItem(slots, i, fd) < 0)
                Py_CLEAR(slots);
        }
        if (!slots)
            return NULL;
    } else {
        Py_INCREF(slots);
    }
    return Py_BuildValue("(iiiiiN)", out->pid, out->pidfd, out->report.stage, out->report.index, out->report.err, slots);
}

PyDoc_STRVAR(launch_doc, "launch(plan, argv, argc, envp, envc, /)\n--\n\n"
                         "Execute a packed plan. argv and envp are NUL-terminated strings, packed, and their number.\n"
                         "envp None: what execv(3) hands over, which is the C library's environ.\n"
                         "Returns (pid, pidfd, stage, op index, errno, slots).");

static PyObject *native_launch(PyObject *self, PyObject *args)
{
    (void)self;
    const char *bytes, *argv, *envp;
    Py_ssize_t size, argv_size, envp_size, argc, envc;
    if (!PyArg_ParseTuple(args, "y#y#nz#n:launch", &bytes, &size, &argv, &argv_size, &argc, &envp, &envp_size, &envc))
        return NULL;
    if (argc < 0 || envc < 0 || argc > argv_size || envc > envp_size || size < (Py_ssize_t)sizeof(struct plan_head))
        return PyErr_Format(PyExc_ValueError, "launch: sizes that cannot be");
    while (!envp && environ && environ[envc])
        envc++;
    size_t round = ((size_t)size + 15) & ~(size_t)15;
    size_t pointers = ((size_t)argc + (size_t)envc + 2) * sizeof(char *);
    char *memory = malloc(round + pointers + (size_t)argv_size + (size_t)envp_size);
    if (!memory)
        return PyErr_NoMemory();
    char **vectors = (char **)(memory + round);
    char *strings = memory + round + pointers;
    memcpy(memory, bytes, (size_t)size);
    memcpy(strings, argv, (size_t)argv_size);
    if (envp)
        memcpy(strings + argv_size, envp, (size_t)envp_size);
    struct plan_head *head = (struct plan_head *)memory;
    struct plan plan = { .head = head,
                         .ops = (struct op *)(head + 1),
                         .blob = (char *)(head + 1) + head->count * sizeof(struct op),
                         .argv = vectors,
                         .envp = vectors + argc + 1,
                         .argc = (uint32_t)argc,
                         .envc = envp ? (uint32_t)envc : 0 }; /* no op may write into what is not our copy */
    PyObject *result = NULL;
    int bad = !split(strings, argv_size, plan.argv, argc) || (envp && !split(strings + argv_size, envp_size, plan.envp, envc));
    if (!envp) { /* the pointers only: the strings stay where they are, as for execv; the array may move meanwhile */
        if (envc)
            memcpy(plan.envp, environ, (size_t)envc * sizeof *environ);
        plan.envp[envc] = NULL;
    }
    if (bad)
        PyErr_SetString(PyExc_ValueError, "launch: argv or envp is not as many strings as said");
    else if ((bad = verify_plan(&plan, (size_t)size)))
        PyErr_Format(PyExc_ValueError, bad < 0 ? "launch: the plan's header is not valid" : "launch: op %d is not valid", bad - 1);
    if (!bad) {
        struct outcome out;
        Py_BEGIN_ALLOW_THREADS
        launch(&plan, &out);
        Py_END_ALLOW_THREADS
        result = outcome_tuple(&plan, &out);
    }
    free(memory);
    return result;
}

PyDoc_STRVAR(fork_into_doc, "fork_into(plan, report_fd, /)\n--\n\n"
                            "Fork this process, which has one thread, into what a packed plan says: its ops run in the copy, which then\n"
                            "returns None. Returns (pid, pidfd, errno) in the caller. The copy tells by report_fd how the ops went.");

static PyObject *native_fork_into(PyObject *self, PyObject *args)
{
    (void)self;
    const char *bytes;
    Py_ssize_t size;
    int report_fd;
    if (!PyArg_ParseTuple(args, "y#i:fork_into", &bytes, &size, &report_fd))
        return NULL;
    char *memory = size < (Py_ssize_t)sizeof(struct plan_head) ? NULL : malloc((size_t)size);
    if (!memory)
        return PyErr_NoMemory();
    memcpy(memory, bytes, (size_t)size);
    struct plan_head *head = (struct plan_head *)memory;
    char *none = NULL;
    struct plan plan = { .head = head,
                         .ops = (struct op *)(head + 1),
                         .blob = (char *)(head + 1) + head->count * sizeof(struct op),
                         .argv = &none,
                         .envp = &none };
    int bad = head->count > PLAN_OPS_MAX ? -1 : verify_plan(&plan, (size_t)size);
    if (!bad && (head->flags || head->clone_flags))
        bad = -1; /* it is no launch: there is nothing to be shared, and what is entered is there already */
    if (bad) {
        free(memory);
        return PyErr_Format(PyExc_ValueError, bad < 0 ? "fork_into: the plan's header is not valid" : "fork_into: op %d is not valid", bad - 1);
    }
    struct outcome out;
    PyOS_BeforeFork();
    int is_copy = fork_into(&plan, report_fd, &out);
    if (is_copy)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    free(memory);
    if (is_copy)
        Py_RETURN_NONE;
    return Py_BuildValue("(iii)", out.pid, out.pidfd, out.report.err);
}

PyDoc_STRVAR(wait_doc, "wait(pidfd, options, /)\n--\n\n"
                       "waitid(P_PIDFD) for any kind of child: (pid, si_code, si_status, user_s, system_s, max_rss_kib),\n"
                       "or None with WNOHANG while it runs. Raises OSError.");

static PyObject *native_wait(PyObject *self, PyObject *args)
{
    (void)self;
    int pidfd, options;
    if (!PyArg_ParseTuple(args, "ii:wait", &pidfd, &options))
        return NULL;
    siginfo_t info;
    struct rusage usage;
    long ret;
    do {
        memset(&info, 0, sizeof info);
        memset(&usage, 0, sizeof usage);
        /* What does not sleep keeps the lock: giving it up and getting it back takes several times as long. */
        PyThreadState *others = options & 1 /* WNOHANG */ ? NULL : PyEval_SaveThread();
        ret = sys5(__NR_waitid, 3 /* P_PIDFD */, pidfd, &info, options | __WALL, &usage);
        if (others)
            PyEval_RestoreThread(others);
    } while (ret == -EINTR && PyErr_CheckSignals() == 0);
    if (ret < 0) {
        if (PyErr_Occurred())
            return NULL;
        errno = (int)-ret;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (info.si_pid == 0)
        Py_RETURN_NONE;
    return Py_BuildValue("(iiiddl)", (int)info.si_pid, info.si_code, info.si_status,
                         (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec * 1e-6,
                         (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec * 1e-6, usage.ru_maxrss);
}

PyDoc_STRVAR(find_duplicate_doc, "find_duplicate(fd, others, /)\n--\n\n"
                                 "The first of `others` (packed C ints) that is the same open file as `fd`, or -1: kcmp(2).\n"
                                 "Raises OSError where the kernel does not answer.");

static PyObject *native_find_duplicate(PyObject *self, PyObject *args)
{
    (void)self;
    int fd;
    const char *others;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "iy#:find_duplicate", &fd, &others, &size))
        return NULL;
    long pid = sys0(__NR_getpid);
    for (Py_ssize_t i = 0; i + (Py_ssize_t)sizeof(int) <= size; i += (Py_ssize_t)sizeof(int)) {
        int other;
        memcpy(&other, others + i, sizeof other);
        long ret = sys5(__NR_kcmp, pid, pid, 0 /* KCMP_FILE */, fd, other);
        if (ret == 0)
            return PyLong_FromLong(other);
        if (ret < 0 && ret != -EBADF) {
            errno = (int)-ret;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    return PyLong_FromLong(-1);
}

PyDoc_STRVAR(hand_over_doc, "hand_over(sock, pidfd, plan, argv, argc, envp, envc, fds, /)\n--\n\n"
                            "Launch into a process that waits. `fds` is packed C ints, for the slots of the plan in order.\n"
                            "Returns (stage, op index, errno) as launch() does; STAGE_NONE: nothing was started.");

static PyObject *native_hand_over(PyObject *self, PyObject *args)
{
    (void)self;
    int sock, pidfd, err;
    const char *plan, *argv, *envp, *fds;
    Py_ssize_t plan_size, argv_size, envp_size, fds_size, argc, envc;
    if (!PyArg_ParseTuple(args, "iiy#y#ny#ny#:hand_over", &sock, &pidfd, &plan, &plan_size, &argv, &argv_size, &argc, &envp, &envp_size,
                          &envc, &fds, &fds_size))
        return NULL;
    struct report report = { .stage = STAGE_NONE, .index = -1, .err = E2BIG };
    Py_ssize_t count = fds_size / (Py_ssize_t)sizeof(int);
    if (plan_size <= REQUEST_BYTES && argv_size <= REQUEST_BYTES && envp_size <= REQUEST_BYTES && count <= REQUEST_FDS && argc >= 0 &&
        envc >= 0 && argc <= REQUEST_STRINGS && envc <= REQUEST_STRINGS) {
        struct request request = { (uint32_t)plan_size, (uint32_t)argv_size, (uint32_t)argc,
                                   (uint32_t)envp_size, (uint32_t)envc,      (uint32_t)count };
        int numbers[REQUEST_FDS];
        memcpy(numbers, fds, (size_t)count * sizeof(int));
        struct parts parts = { plan, argv, envp, numbers };
        Py_BEGIN_ALLOW_THREADS
        err = hand_over(sock, pidfd, &request, &parts, &report);
        Py_END_ALLOW_THREADS
        if (err)
            report.err = err;
    }
    return Py_BuildValue("(iii)", report.stage, report.index, report.err);
}

PyDoc_STRVAR(inherited_doc, "inherited(/)\n--\n\n"
                            "What a child made by this thread would take over from it, as bytes to be compared.");

static PyObject *native_inherited(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    char buffer[INHERITED_BYTES];
    return PyBytes_FromStringAndSize(buffer, (Py_ssize_t)inherited(buffer, sizeof buffer));
}

PyDoc_STRVAR(inherited_by_thread_doc, "inherited_by_thread(/)\n--\n\n"
                                      "What a child made by this thread would get otherwise from another thread, as bytes to be compared.");

static PyObject *native_inherited_by_thread(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    char buffer[INHERITED_BYTES];
    return PyBytes_FromStringAndSize(buffer, (Py_ssize_t)inherited_by_thread(buffer, sizeof buffer));
}

PyDoc_STRVAR(landlock_abi_doc, "landlock_abi(/)\n--\n\nThe version of Landlock that the kernel offers, 0 for none: landlock(7).");

static PyObject *native_landlock_abi(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    long abi = sys3(__NR_landlock_create_ruleset, 0, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */);
    return PyLong_FromLong(abi > 0 ? abi : 0);
}

static PyMethodDef methods[] = {
    { "find_duplicate", native_find_duplicate, METH_VARARGS, find_duplicate_doc },
    { "fork_into", native_fork_into, METH_VARARGS, fork_into_doc },
    { "hand_over", native_hand_over, METH_VARARGS, hand_over_doc },
    { "inherited", native_inherited, METH_NOARGS, inherited_doc },
    { "inherited_by_thread", native_inherited_by_thread, METH_NOARGS, inherited_by_thread_doc },
    { "landlock_abi", native_landlock_abi, METH_NOARGS, landlock_abi_doc },
    { "launch", native_launch, METH_VARARGS, launch_doc },
    { "wait", native_wait, METH_VARARGS, wait_doc },
    { NULL, NULL, 0, NULL },
};

static int add_ops(PyObject *module)
{
    static const char *const names[] = {
#define X(name, fn, operands) #name,
        OPS(X)
#undef X
    };
    PyObject *tuple = PyTuple_New(OP_COUNT);
    for (int i = 0; tuple && i < OP_COUNT; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name || PyTuple_SetItem(tuple, i, name) < 0)
            Py_CLEAR(tuple);
    }
    int ret = tuple ? PyModule_AddObjectRef(module, "OPS", tuple) : -1;
    Py_XDECREF(tuple);
    return ret;
}

static int module_exec(PyObject *module)
{
    static atomic_flag seen = ATOMIC_FLAG_INIT; /* by another interpreter */
    if (!atomic_flag_test_and_set(&seen) && pthread_atfork(NULL, NULL, launch_after_fork))
        return PyErr_NoMemory(), -1;
    if (add_ops(module) < 0 || PyModule_AddIntMacro(module, STAGE_CLONE) < 0 || PyModule_AddIntMacro(module, STAGE_ENTER) < 0 ||
        PyModule_AddIntMacro(module, STAGE_OPS) < 0 || PyModule_AddIntMacro(module, STAGE_EXEC) < 0 ||
        PyModule_AddIntMacro(module, PLAN_SHARE_FDS) < 0 || PyModule_AddIntMacro(module, PLAN_COLLECT) < 0 ||
        PyModule_AddIntMacro(module, PLAN_SIBLING) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "PLAN_MAGIC", PLAN_MAGIC);
}

static PyModuleDef_Slot module_slots[] = {
    { Py_mod_exec, module_exec },
#ifdef Py_mod_multiple_interpreters
    { Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED },
#endif
#ifdef Py_mod_gil
    { Py_mod_gil, Py_MOD_GIL_NOT_USED },
#endif
    { 0, NULL },
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shoal._native",
    .m_doc = "Executes a packed plan between clone and exec. See op.h for its layout, shoal/packing.py for who packs it.",
    .m_methods = methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module_def); }
