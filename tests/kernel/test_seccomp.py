"""System-call filters in the kernel: what each closes, shown to work without it first, and what goes on working.

The probe below is a static C program that installs a filter from a file and makes calls, or executes a program. It works with no
part of shoal but the filter's bytes; the last tests go through a packed plan.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rig.features import has

from shoal import _native
from shoal.handles.process import Process
from shoal.packing import Packer
from shoal.sandbox import syscalls
from shoal.sandbox.seccomp import Filter, Seccomp, filter_for

PATIENCE_S = 120
LAST = 1000
SIGSYS = -signal.SIGSYS

PROBE = r"""
/* probe FILTER call NR ARG...    one call: "ok", or an errno number, or "signal N", or "ended"
 * probe FILTER sweep LAST NR...  each call from 0 to LAST but the NRs, all arguments -1: the number and the same words
 * probe FILTER tiocsti           a character put into a terminal's input, and once more with a bit in the high half
 * probe FILTER i386              getpid of the 32-bit ABI
 * probe FILTER exec PATH ARG...
 * FILTER is a file, or "-" for none. ARG is a number, "buf" for zeroed memory, "root" for the path "/", "self" for the pid. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sock_filter code[4096];
static struct sock_fprog program = { 0, code };
static volatile int *answer; /* shared: -1 nothing yet, 0 ok, else errno */
static char zeros[65536];

static void confine(void)
{
    if (program.len && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))) {
        fprintf(stderr, "the filter is not taken: errno %d\n", errno);
        _exit(99);
    }
}

static void in_child(void (*act)(long, long *), long number, long *args)
{
    int status;
    *answer = -1;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit none = { 0, 0 };
        setrlimit(RLIMIT_CORE, &none);
        setsid(); /* no terminal to hang up */
        act(number, args);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 99)
        exit(99);
    if (WIFSIGNALED(status))
        printf("signal %d\n", WTERMSIG(status));
    else if (*answer < 0)
        printf("ended\n");
    else if (*answer)
        printf("%d\n", *answer);
    else
        printf("ok\n");
}

static void call(long number, long *a)
{
    confine();
    pid_t self = syscall(SYS_getpid);
    long ret = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (syscall(SYS_getpid) != self)
        _exit(0); /* the call has made a process */
    *answer = ret < 0 && ret >= -4095 ? errno : 0;
}

static void put_character(long unused, long *a)
{
    (void)unused;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    grantpt(master);
    unlockpt(master);
    int slave = open(ptsname(master), O_RDWR); /* and it is ours, since we lead a session */
    confine();
    *answer = syscall(SYS_ioctl, slave, a[0], "x") ? errno : 0;
}

static void i386(long unused, long *a)
{
    (void)unused, (void)a;
    confine();
#ifdef __x86_64__
    long ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    *answer = ret < 0 ? (int)-ret : 0;
#else
    *answer = ENOSYS;
#endif
}

int main(int argc, char **argv)
{
    answer = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (strcmp(argv[1], "-")) {
        FILE *file = fopen(argv[1], "rb");
        program.len = (unsigned short)fread(code, sizeof *code, 4096, file);
        fclose(file);
    }
    const char *verb = argv[2];
    if (!strcmp(verb, "exec")) {
        confine();
        execv(argv[3], argv + 3);
        return 98;
    }
    if (!strcmp(verb, "call")) {
        long args[6] = { 0 };
        for (int i = 4; i < argc && i < 10; i++)
            args[i - 4] = !strcmp(argv[i], "buf")    ? (long)zeros
                          : !strcmp(argv[i], "root") ? (long)"/"
                          : !strcmp(argv[i], "self") ? getpid()
                                                     : (long)strtoull(argv[i], 0, 0);
        in_child(call, strtol(argv[3], 0, 0), args);
    } else if (!strcmp(verb, "sweep")) {
        for (long number = 0; number <= atol(argv[3]); number++) {
            long args[6] = { -1, -1, -1, -1, -1, -1 };
            int skip = 0;
            for (int i = 4; i < argc; i++)
                skip |= atol(argv[i]) == number;
            if (skip)
                continue;
            printf("%ld ", number);
            in_child(call, number, args);
        }
    } else if (!strcmp(verb, "tiocsti")) {
        long request[2] = { TIOCSTI, TIOCSTI | 1L << 32 };
        in_child(put_character, 0, &request[0]);
        in_child(put_character, 0, &request[1]);
    } else if (!strcmp(verb, "i386"))
        in_child(i386, 0, 0);
    return 0;
}
"""

START = r"""
/* Needs write and nothing else; with an argument, also getpid. No C library: that would need more before main. */
#if defined __x86_64__
__asm__(".globl _start\n_start: mov (%rsp), %rdi\n and $-16, %rsp\n call begin\n");
static long raw(long n, long a, long b, long c)
{
    long ret;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return ret;
}
enum { WRITE = 1, GETPID = 39, EXIT = 231 };
#else
__asm__(".globl _start\n_start: ldr x0, [sp]\n bl begin\n");
static long raw(long n, long a, long b, long c)
{
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}
enum { WRITE = 64, GETPID = 172, EXIT = 94 };
#endif
__attribute__((used)) void begin(long argc)
{
    if (argc > 1)
        raw(GETPID, 0, 0, 0);
    raw(WRITE, 1, (long)"here", 4);
    for (;;)
        raw(EXIT, 7, 0, 0);
}
"""

Probe = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seccomp")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters are kept here, not in the home directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def compiled(folder: Path, name: str, source: str, *options: str) -> str:
    (folder / f"{name}.c").write_text(source)
    target = folder / name
    if not target.exists():
        subprocess.run(["gcc", "-O1", "-static", "-Wall", *options, str(folder / f"{name}.c"), "-o", str(target)], check=True)
    return str(target)


@pytest.fixture
def probe(folder: Path, tmp_path: Path) -> Probe:
    """Runs the probe with a filter: a mode, a list, or None."""
    path = compiled(folder, "probe", PROBE)

    def run(
        mode: str | Seccomp | None, *args: str | int | Path, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        chosen = None if mode is None else filter_for(mode)
        file = "-"
        if chosen is not None:
            file = str(tmp_path / "filter")
            Path(file).write_bytes(chosen.program)
        command = [path, file, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=cwd, env=env)
        assert done.returncode != 99, done.stderr
        return done

    return run


@pytest.fixture
def says(probe: Probe) -> Callable[..., str]:
    """What the kernel says to one call: "ok", the name of an errno, or "signal N"."""

    def ask(mode: str | Seccomp | None, name: str, *args: str | int) -> str:
        word = probe(mode, "call", number(name), *args).stdout.strip()
        return errno.errorcode[int(word)] if word.isdigit() else word

    return ask


def number(name: str) -> int:
    found = syscalls.number_of(name, os.uname().machine)
    if found is None:
        pytest.skip(f"{os.uname().machine} has no {name}")
    return found


# --- every number ---------------------------------------------------------------------------------------------------------------

# Those that block, that cannot be called from C, that make something that stays, or that a machine is better not asked for.
NOT_SWEPT = ("pause", "vfork", "msgget", "sync", "init_module", "kill")


@pytest.fixture(scope="session")
def swept(folder: Path) -> Callable[[str | None], dict[int, str]]:
    """What each number answers when all its arguments are -1, with a mode or without."""
    found: dict[str | None, dict[int, str]] = {}

    def sweep(mode: str | None) -> dict[int, str]:
        if mode not in found:
            file = "-"
            if mode is not None:
                chosen = filter_for(mode)
                assert chosen is not None
                (folder / mode).write_bytes(chosen.program)
                file = str(folder / mode)
            skipped = [str(at) for name in NOT_SWEPT if (at := syscalls.number_of(name, os.uname().machine)) is not None]
            command = [compiled(folder, "probe", PROBE), file, "sweep", str(LAST), *skipped]
            out = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
            found[mode] = {int(at): word for at, word in (line.split(" ", 1) for line in out.splitlines())}
        return found[mode]

    return sweep


def _names(mode: str) -> Filter:
    found = filter_for(mode)
    assert found is not None
    return found


@pytest.mark.parametrize("mode", ["default", "strict"])
def test_an_open_call_answers_as_without_a_filter(mode: str, swept: Callable[[str | None], dict[int, str]]) -> None:
    names, free, held = _names(mode), swept(None), swept(mode)
    seen = {names.name_of(at): (free[at], word) for at, word in held.items() if names.name_of(at) not in names.denied | names.limited}
    # restart_syscall answers for whatever was interrupted last.
    known = {name: words for name, words in seen.items() if not name.startswith("call ") and name != "restart_syscall"}
    assert len(known) > 200
    assert {name: words for name, words in known.items() if words[0] != words[1]} == {}


@pytest.mark.parametrize("mode", ["default", "strict"])
def test_a_closed_call_answers_eperm_or_enosys_and_an_unknown_number_enosys(
    mode: str, swept: Callable[[str | None], dict[int, str]]
) -> None:
    names, held = _names(mode), swept(mode)
    for at, word in held.items():
        name = names.name_of(at)
        rule = syscalls.RULES[mode].get(name, "absent")
        if rule != "open":
            assert word == str(errno.EPERM if rule == "refused" else errno.ENOSYS), name


def test_what_is_refused_reaches_the_kernel_without_a_filter(swept: Callable[[str | None], dict[int, str]]) -> None:
    """Otherwise the test above would say nothing. An ordinary user is told EPERM by the kernel itself for some."""
    names, free = _names("default"), swept(None)
    refused = {at: names.name_of(at) for at in free if syscalls.RULES["default"].get(names.name_of(at)) == "refused"}
    assert len(refused) > 50
    already = {name for at, name in refused.items() if free[at] == str(errno.EPERM)}
    if not has("root") or not _unconfined():
        pytest.skip("needs root with its capabilities and no filter")
    assert already <= {"bpf", "perf_event_open", "userfaultfd"}, "what a machine may close to root too"


def _unconfined() -> bool:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    needed = sum(1 << cap for cap in (2, *range(16, 23), 25, 26, 34))  # what the refused calls ask for, SYS_MODULE to SYSLOG
    return int(status["CapEff"], 16) & needed == needed and status["Seccomp"].strip() == "0"


# --- one by one -----------------------------------------------------------------------------------------------------------------

CLONE_NEWUSER, CLONE_NEWUTS, CLONE_NEWNET, CLONE_THREAD = 0x10000000, 0x04000000, 0x40000000, 0x10000
AS_ROOT = pytest.mark.root
FAMILY, REFUSED, ABSENT = "EAFNOSUPPORT", "EPERM", "ENOSYS"


@pytest.mark.parametrize(
    ("name", "args", "answer"),
    [
        ("ptrace", [0], REFUSED),
        ("process_vm_readv", ["self", "buf", 0, "buf", 0, 0], REFUSED),
        ("process_vm_writev", ["self", "buf", 0, "buf", 0, 0], REFUSED),
        ("kcmp", ["self", "self", 1, 0, 0], REFUSED),
        ("keyctl", [0, -4, 1], REFUSED),
        ("userfaultfd", [1], REFUSED),
        ("io_uring_setup", [1, "buf"], REFUSED),
        ("adjtimex", ["buf"], REFUSED),
        ("clock_adjtime", [0, "buf"], REFUSED),
        ("unshare", [CLONE_NEWUSER], REFUSED),
        ("clone", [CLONE_NEWUSER | signal.SIGCHLD], REFUSED),
        ("clone", [CLONE_NEWUSER | signal.SIGCHLD | 1 << 32], REFUSED),
        ("personality", [0x0400000], REFUSED),
        ("personality", [0x0100000], REFUSED),
        ("clone3", ["buf", 0], ABSENT),
        ("modify_ldt", [0, "buf", 0], ABSENT),
        ("socket", [16, 3, 15], FAMILY),
        ("socket", [38, 5, 0], FAMILY),
        ("socket", [40, 1, 0], FAMILY),
        ("socket", [40 | 1 << 32, 1, 0], FAMILY),
        pytest.param("unshare", [CLONE_NEWUTS], REFUSED, marks=AS_ROOT),
        pytest.param("unshare", [CLONE_NEWNET], REFUSED, marks=AS_ROOT),
        pytest.param("clone", [CLONE_NEWUTS | signal.SIGCHLD], REFUSED, marks=AS_ROOT),
        pytest.param("chroot", ["root"], REFUSED, marks=AS_ROOT),
        pytest.param("syslog", [10], REFUSED, marks=AS_ROOT),
        pytest.param("fanotify_init", [0, 0], REFUSED, marks=AS_ROOT),
        pytest.param("ioperm", [0x80, 1, 1], REFUSED, marks=AS_ROOT),
        pytest.param("iopl", [0], REFUSED, marks=AS_ROOT),
        pytest.param("open_tree", [-100, "root", 1], REFUSED, marks=AS_ROOT),
        pytest.param("vhangup", [], REFUSED, marks=AS_ROOT),
        pytest.param("socket", [17, 3, 0], FAMILY, marks=AS_ROOT),
    ],
)
def test_what_works_without_a_filter_is_refused_by_default_and_by_strict(
    says: Callable[..., str], name: str, args: list[str | int], answer: str
) -> None:
    free = says(None, name, *args)
    if free in (answer, ABSENT):
        pytest.skip(f"this kernel refuses {name} by itself: {free}")
    assert free in ("ok", "EINVAL")  # EINVAL: it was looked at
    assert says("default", name, *args) == answer
    assert says("strict", name, *args) == answer


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("fork", []),
        ("clone", [signal.SIGCHLD]),
        ("unshare", [0x400]),
        ("socket", [2, 1, 0]),
        ("socket", [16, 3, 0]),
        ("inotify_init1", [0]),
        ("capset", ["buf", "buf"]),
        ("shmget", [0, 4096, 0o600]),
    ],
)
def test_strict_closes_what_default_leaves_open(says: Callable[..., str], name: str, args: list[str | int]) -> None:
    if name == "shmget":
        args = [1, 4096, 0]  # one that is not there, so that nothing is made
    assert says("default", name, *args) == says(None, name, *args) != REFUSED
    assert says("strict", name, *args) == (FAMILY if name == "socket" else REFUSED)


@pytest.mark.parametrize("mode", ["default", "strict"])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("socket", [1, 1, 0]),
        ("personality", [0xFFFFFFFF]),
        ("personality", [0x0040000]),
        ("getrandom", ["buf", 16, 0]),
        ("memfd_create", ["root", 0]),
        ("prctl", [38, 1, 0, 0, 0]),
        ("prctl", [16, "buf"]),
        ("epoll_create1", [0]),
        ("eventfd2", [0, 0]),
        ("sched_getaffinity", [0, 128, "buf"]),
        ("openat", [-100, "root", 0o200000]),
        ("statx", [-100, "root", 0, 0x7FF, "buf"]),
        ("membarrier", [0, 0, 0]),
    ],
)
def test_what_programs_live_from_works(says: Callable[..., str], mode: str, name: str, args: list[str | int]) -> None:
    assert says(None, name, *args) == "ok"
    assert says(mode, name, *args) == "ok"


@pytest.mark.parametrize("mode", ["default", "strict"])
def test_nothing_is_typed_into_a_terminal_not_even_with_a_bit_in_the_high_half(probe: Probe, mode: str) -> None:
    free = probe(None, "tiocsti").stdout.split()
    if free == [str(errno.EIO)] * 2:
        pytest.skip("this kernel has dev.tty.legacy_tiocsti=0")
    assert free == ["ok", "ok"]
    assert probe(mode, "tiocsti").stdout.split() == [str(errno.EPERM)] * 2


def test_the_32_bit_abi_is_killed(probe: Probe) -> None:
    if probe(None, "i386").stdout.strip() != "ok":
        pytest.skip("needs a kernel with the 32-bit ABI")
    assert probe("default", "i386").stdout.strip() == f"signal {int(signal.SIGSYS)}"
    assert probe(Seccomp(base="none"), "i386").stdout.strip() == f"signal {int(signal.SIGSYS)}"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs x86-64")
def test_x32_is_not_there(probe: Probe) -> None:
    assert probe("default", "call", 0x40000000 + number("getppid")).stdout.strip() == str(errno.ENOSYS)


# --- lists of one's own ---------------------------------------------------------------------------------------------------------


def test_a_denied_call_gets_what_was_chosen(says: Callable[..., str]) -> None:
    assert says(None, "getppid") == "ok"
    assert says(Seccomp(deny=["getppid"]), "getppid") == "EPERM"
    assert says(Seccomp(deny=["getppid"], on_denied=errno.EACCES), "getppid") == "EACCES"
    assert says(Seccomp(deny=["getppid"], on_denied="kill"), "getppid") == f"signal {int(signal.SIGSYS)}"
    assert says(Seccomp(deny=["getppid"], on_denied="kill"), "clone3", "buf", 0) == "ENOSYS"


def test_an_allowed_call_is_open_in_all_its_forms_and_the_rest_stays_closed(says: Callable[..., str]) -> None:
    wanted = Seccomp(base="default", allow=["ptrace", "socket"])
    assert says(wanted, "ptrace", 0) == "ok"
    assert says(wanted, "socket", 16, 3, 15) == "ok"
    assert says(wanted, "kcmp", "self", "self", 1, 0, 0) == "EPERM"


def test_a_filter_may_be_put_on_top_of_another(probe: Probe, folder: Path) -> None:
    program = filter_for("default")
    assert program is not None
    (folder / "inner").write_bytes(program.program)
    again = [compiled(folder, "probe", PROBE), str(folder / "inner"), "call", str(number("ptrace")), "0"]
    assert probe("default", "exec", *again).stdout.strip() == str(errno.EPERM)


# --- programs -------------------------------------------------------------------------------------------------------------------


def installed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}")
    return path


PYTHON = """
import asyncio, mmap, multiprocessing, os, select, shutil, signal, socket, subprocess, sys, tempfile, threading, time

async def serve():
    async def echo(reader, writer):
        writer.write(await reader.read(5))
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello")
    assert await reader.read() == b"hello"
    writer.close()
    server.close()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(1)", stdout=subprocess.PIPE)
    assert (await process.communicate())[0] == b"1\\n"

def double(number):
    return number * 2

if __name__ == "__main__":
    asyncio.run(serve())
    results = []
    threads = [threading.Thread(target=results.append, args=(number,)) for number in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(results) == list(range(20))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]
    assert subprocess.run(["sh", "-c", "echo a | cat; exit 3"], capture_output=True).returncode == 3
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    with tempfile.TemporaryDirectory() as folder:
        open(folder + "/a", "w").write("x")
        shutil.copy2(folder + "/a", folder + "/b")
        shutil.copytree(folder, folder + "/c")
        os.mkfifo(folder + "/d")
    memory = os.memfd_create("x")
    os.truncate(memory, 4096)
    mmap.mmap(memory, 4096)[0] = 1
    select.epoll().close()
    socket.if_nameindex()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    [one.close() for one in socket.socketpair()]
    signal.setitimer(signal.ITIMER_REAL, 1000)
    signal.pidfd_send_signal(os.pidfd_open(os.getpid()), 0)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
    time.sleep(0.001)
    print("done")
"""


def test_python_with_threads_processes_and_asyncio_works_by_default(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PYTHON)
    done = probe("default", "exec", sys.executable, "-W", "ignore", tmp_path / "script.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_gcc_and_make_work_by_default(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('#include <stdio.h>\nint main(void) { return puts("made") < 0; }\n')
    (tmp_path / "Makefile").write_text("a: a.c\n\tgcc -O2 -pipe a.c -o a\n")
    done = probe("default", "exec", installed("make"), "-s", "-j2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert probe("default", "exec", tmp_path / "a").stdout == "made\n"


def test_git_works_by_default(probe: Probe, tmp_path: Path) -> None:
    git = installed("git")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "file").write_text("x")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"], ["gc", "-q"], ["clone", "-q", ".", "../copy"]):
        done = probe("default", "exec", git, *command, cwd=tmp_path / "work", env=env)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert (tmp_path / "copy" / "file").read_text() == "x"


def test_a_shell_works_by_default(probe: Probe) -> None:
    script = "echo b; (echo a; sleep 0) | sort & wait; trap 'echo trapped' USR1; kill -USR1 $$; ls / >/dev/null && echo end"
    done = probe("default", "exec", installed("busybox"), "sh", "-c", script)
    assert (done.stdout.split(), done.stderr) == (["b", "a", "trapped", "end"], "")


NODE = """
const fs = require('fs'), net = require('net'), child = require('child_process'), { Worker } = require('worker_threads');
const server = net.createServer(socket => socket.end('hello')).listen(0, '127.0.0.1', () =>
  net.connect(server.address().port, '127.0.0.1').on('data', data => {
    server.close();
    require('os').networkInterfaces();
    child.execFileSync('/bin/true');
    fs.promises.readdir('/').then(() => new Worker('process.exit(0)', { eval: true }).on('exit', () => console.log('' + data)));
  }));
"""


def test_node_works_by_default_and_computes_under_strict(probe: Probe) -> None:
    node = installed("node")
    done = probe("default", "exec", node, "-e", NODE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    done = probe("strict", "exec", node, "-e", "require('fs').promises.readFile('/etc/passwd').then(() => console.log(6 * 7))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


@pytest.mark.parametrize("mode", ["default", "strict"])
def test_a_java_machine_works(probe: Probe, tmp_path: Path, mode: str) -> None:
    if shutil.which("javac") is None:
        done = probe(mode, "exec", installed("java"), "-Xmx64m", "-version")
        assert done.returncode == 0, done.stderr
        return
    (tmp_path / "A.java").write_text('class A { public static void main(String[] a) { System.out.println("done"); } }')
    subprocess.run(["javac", "A.java"], cwd=tmp_path, check=True)
    done = probe(mode, "exec", installed("java"), "-Xmx64m", "-cp", tmp_path, "A")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


COMPUTE = """
import decimal, json, os, random, shutil, sys, tempfile, threading
threads = [threading.Thread(target=lambda: sum(range(10000))) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with tempfile.TemporaryDirectory() as folder:
    open(folder + "/a", "w").write(json.dumps(random.random()))
    shutil.copy2(folder + "/a", folder + "/b")
for attempt in (os.fork, lambda: __import__("subprocess").run(["/bin/true"]), lambda: __import__("socket").socket()):
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
"""


def test_python_computes_under_strict_and_can_neither_make_a_process_nor_reach_a_network(probe: Probe) -> None:
    done = probe("strict", "exec", sys.executable, "-c", COMPUTE)
    refused = [os.strerror(errno.EPERM), os.strerror(errno.EPERM), os.strerror(errno.EAFNOSUPPORT)]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, refused, "")


def test_a_compiled_program_runs_under_strict(probe: Probe, tmp_path: Path) -> None:
    source = '#include <stdio.h>\n#include <stdlib.h>\nint main(void) { puts("made"); fflush(stdout); abort(); }\n'
    for name, options in (("static", ["-static"]), ("dynamic", [])):
        (tmp_path / f"{name}.c").write_text(source)
        subprocess.run(["gcc", *options, f"{name}.c", "-o", name], cwd=tmp_path, check=True)
        done = probe("strict", "exec", tmp_path / name, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (-signal.SIGABRT, "made\n")


def test_a_shell_under_strict_executes_in_its_own_place_only(probe: Probe) -> None:
    shell = installed("busybox")
    assert probe("strict", "exec", shell, "sh", "-c", "exec busybox echo one").stdout == "one\n"
    done = probe("strict", "exec", shell, "sh", "-c", "/bin/true; echo two")
    assert done.returncode != 0
    assert "Operation not permitted" in done.stderr


# --- through a plan -------------------------------------------------------------------------------------------------------------


def planned(wanted: Seccomp, path: str, *args: str) -> tuple[int, bytes]:
    """Launched as shoal does it: return code, and what was written to standard output."""
    chosen = filter_for(wanted)
    assert chosen is not None
    read, write = os.pipe()
    with open(os.devnull, "rb") as null, open(read, "rb") as out:
        packer = Packer()
        packer.unshare_fds()
        packer.op("NO_NEW_PRIVS", "setting no_new_privs")
        packer.fd_map([(write, 1)], null.fileno())
        packer.seccomp(chosen.program, chosen.label)
        packer.op("SIGNALS", "resetting signals")
        argv = [path, *args]
        plan = packer.packed(exec_path=path).filled(())
        pid, pidfd, *report = _native.launch(plan, b"".join(arg.encode() + b"\0" for arg in argv), len(argv), b"", 0)
        os.close(write)
        assert pid > 0, report
        with Process._started(pidfd, pid, "start") as process:
            return process.wait(timeout=PATIENCE_S), out.read()


@pytest.fixture
def start(folder: Path) -> str:
    return compiled(folder, "start", START, "-nostdlib", "-ffreestanding", "-fno-stack-protector")


def test_a_list_need_not_name_what_starts_the_program(start: str) -> None:
    assert planned(Seccomp(allow=["write"], on_denied="kill"), start) == (7, b"here")
    assert planned(Seccomp(allow=[], on_denied="kill"), start) == (SIGSYS, b"")
    assert planned(Seccomp(allow=[]), start) == (7, b"")


def test_what_a_list_does_not_name_kills_where_that_was_chosen(start: str) -> None:
    assert planned(Seccomp(allow=["write"], on_denied="kill"), start, "getpid") == (SIGSYS, b"")
    assert planned(Seccomp(allow=["write"]), start, "getpid") == (7, b"here")
    assert planned(Seccomp(allow=["write", "getpid"], on_denied="kill"), start, "getpid") == (7, b"here")
