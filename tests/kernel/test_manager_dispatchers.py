"""What a domain is handed, what it can say of itself, and its dispatchers: CNodes, its own capability, spans."""

import os
import shutil
import signal
import sys

import pytest
from rig.domains import code_of, core, manager_pid, sh, wait_gone

import shoal.manager
from shoal import File, Sandbox, Vmo
from shoal.manager import CNode, ExitStatus, ManagerError

EXITED, KILLED = "exited", "killed"

INSIDE = """
import os, sys, signal
from shoal.startup import domain
"""


def python(manager, script, *words, **how):
    return manager.spawn_program(how.pop("core", core(manager)), sys.executable, [sys.executable, "-c", INSIDE + script, *words], **how)


def said(domain):
    status = domain.wait(timeout=60)
    text = b"".join(domain.logs()).decode()
    assert status.code == 0, text
    return text.split()


def test_argument_and_inherited_cnodes_arrive_in_their_slots(manager, tmp_path):
    (tmp_path / "file").write_text("from the caller")
    args = CNode()
    args.put(0, File.from_fd(os.open(tmp_path / "file", os.O_RDONLY)), name="input")
    args.put(7, Vmo.from_bytes(b"seven"))
    read, write = os.pipe()
    inherit = CNode.inherit(fds={9: write})
    os.close(write)
    script = """
args = domain.args()
first = args.take(0)
print(sorted(args), args.names(), os.read(first.fileno(), 99).decode().split()[-1], args.take(7).read().decode())
os.write(9, b"nine")
"""
    domain = python(manager, script, args=args, inherit=inherit)
    assert said(domain) == ["[7]", "{}", "caller", "seven"]
    assert os.read(read, 99) == b"nine"
    os.close(read)
    with pytest.raises(ManagerError, match="used it up"):
        python(manager, "", args=args)


@pytest.mark.cell
def test_cnodes_and_the_own_capability_arrive_in_a_sandbox_too(manager):
    args = CNode()
    args.put(3, Vmo.from_bytes(b"three"))
    box = Sandbox(read=[*{sys.prefix, sys.base_prefix, "/usr", *site_of_shoal()}])
    script = (
        "print(domain.args().take(3).read().decode(), domain.capability().domain_id, domain.manager().status_of(domain.capability()).state)"
    )
    domain = python(manager, script, args=args, sandbox=box, own_capability=True)
    assert said(domain) == ["three", str(domain.id), "running"]


def site_of_shoal():
    return {os.path.dirname(os.path.dirname(shoal.__file__))}


def test_a_domain_holds_the_capability_for_itself_only_when_it_was_given(manager):
    script = """
cap = domain.capability()
print(cap.domain_id, domain.core(), domain.manager().status_of(cap).state)
try:
    domain.manager().domains()
except Exception as error:
    print(error.code)
"""
    given = python(manager, script, own_capability=True)
    assert said(given) == [str(given.id), str(core(manager)), "running", "PROC_MGMT_ERR_NOT_MONITOR"]
    script = """
try:
    domain.capability()
except Exception as error:
    print(error.code)
"""
    assert said(python(manager, script)) == ["PROC_MGMT_ERR_DOMAIN_CAP_HASH"]


def test_a_domain_ends_with_the_status_it_says(manager):
    domain = python(manager, "import shoal.manager; print('written', end=''); shoal.manager.exit(7)")
    assert domain.wait(timeout=60) == ExitStatus(7, EXITED, None)
    assert b"".join(domain.logs()) == b"written"


SPANNING = """
first, second = map(int, sys.argv[1:3])
here = domain.core()
if here == first:
    domain.span(second)
    try:
        domain.span(second)
    except Exception as error:
        print(error.code, flush=True)
    there = domain.channel(second)
    os.write(there.fileno(), b"ping")
    answer = os.read(there.fileno(), 99).decode()
    print(answer, domain.memory().read(4, 100).decode(), os.sched_getaffinity(0) == {first}, flush=True)
    signal.pause()
else:
    there = domain.channel(first)
    assert os.read(there.fileno(), 99) == b"ping"
    domain.memory().write(b"here", 100)
    os.write(there.fileno(), b"pong" if os.sched_getaffinity(0) == {second} else b"lost")
    signal.pause()
"""


def two_cores(manager):
    if len(manager.cores()) < 2:
        pytest.skip("needs two processors")
    return manager.cores()[:2]


def test_a_span_shares_memory_and_a_channel_and_ends_with_its_domain(manager):
    first, second = two_cores(manager)
    domain = python(manager, SPANNING, str(first), str(second), core=first, own_capability=True)
    lines = []
    for entry in domain.logs(follow=True):
        lines.append(entry.decode())
        if "True" in lines[-1] or "False" in lines[-1]:
            break
    assert "".join(lines).split() == ["PROC_MGMT_ERR_ALREADY_SPANNED", "pong", "here", "True"]
    status = domain.status()
    assert list(status.cores) == [first, second]
    domain.kill()
    for pid in status.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert domain.wait() == ExitStatus(9, KILLED, 9)


def test_a_span_from_outside_is_the_same_program_and_its_end_is_the_domains(manager):
    first, second = two_cores(manager)
    domain = sh(manager, "echo on $(grep -o 'list:.*' /proc/self/status | head -1); exec sleep 1000", core=first)
    assert next(domain.logs(follow=True)) == b"on list: %d\n" % first
    domain.span(second)
    pids = domain.status().pids
    os.kill(pids[1], signal.SIGTERM)
    assert domain.wait() == ExitStatus(128 + signal.SIGTERM, "signaled", signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    with pytest.raises(ManagerError) as error:
        domain.span(second)
    assert code_of(error) == "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING"


def test_a_span_that_fails_leaves_the_domain_as_it_was(manager, tmp_path):
    first, second = two_cores(manager)
    tmp_path.chmod(0o755)
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    domain = manager.spawn_program(first, program, ["sleep", "1000"])
    program.unlink()
    with pytest.raises(ManagerError) as error:
        domain.span(second)
    assert code_of(error) == "SPAWN_ERR_LOAD"
    with pytest.raises(ManagerError) as error:
        domain.span(9999)
    assert code_of(error) == "PROC_MGMT_ERR_INVALID_SPAWND"
    assert domain.status().cores == (first,)
    assert domain.wait(nohang=True) is None
    domain.kill()


def test_dispatchers_of_a_span_are_known_to_the_next_manager(state):
    with shoal.manager.connect() as manager:
        first, second = two_cores(manager)
        domain = sh(manager, "sleep 1000", core=first)
        domain.span(second)
        before = domain.status()
        os.kill(manager_pid(state), signal.SIGKILL)
        assert domain.status() == before
        domain.kill()
        for pid in before.pids:
            wait_gone(pid)
