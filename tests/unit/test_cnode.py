"""CNodes: what is in which slot, who owns it, and that a child finds it in the same slot."""

import errno
import json
import os
import socket
import sys
import sysconfig
import tempfile

import pytest

import shoal
from shoal import (
    PA_HND,
    AccessDeniedError,
    AlreadyExistsError,
    BadHandleError,
    BadStateError,
    Directory,
    File,
    HandleType,
    InvalidArgsError,
    NotFoundError,
    OutOfRangeError,
    Rights,
    Socket,
    SpawnFlags,
    TransferFd,
    Vmo,
)
from shoal.actions import AddHandle, CloneFd
from shoal.manager.cnode import FDSPAGE, KERNELCAP, SESSIONID, TASK_KERNEL, TASK_SESSION, CNode, Slot
from shoal.manager.errors import ManagerError

TASK, ARGS = HandleType.USER1, HandleType.USER0


def memory(text=b"in memory"):
    return Vmo.from_bytes(text)


@pytest.fixture(autouse=True)
def nothing_leaks(world):
    yield
    world.assert_unchanged()


# --- slots


def test_what_is_put_in_is_taken_out_once():
    with CNode() as node, memory() as first, memory() as second:
        node.put(5, first)
        node.put(0, second, name="settings")
        assert list(node) == [0, 5]
        assert (len(node), 5 in node, 4 in node) == (2, True, False)
        assert node.get(5) is first
        assert (node.find("settings"), node.find("other"), node.names()) == (0, None, {0: "settings"})
        assert node.take(5) is first
        assert (node.take(5), 5 in node) == (None, False)
        assert node.take("settings") is second
        assert (node.take("settings"), node.find("settings"), len(node)) == (None, None, 0)


def test_a_slot_that_was_emptied_can_be_filled_again_under_any_name():
    with CNode() as node, memory() as first, memory() as second:
        node.put(1, first, name="db")
        node.take(1)
        node.put(2, second, name="db")
        node.put(1, first)
        assert node.find("db") == 2


def test_there_are_256_slots():
    assert CNode.SLOTS == 256
    with CNode() as node, memory() as handle:
        for slot in (-1, 256, 1 << 40):
            with pytest.raises(OutOfRangeError, match="slots 0 to 255"):
                node.put(slot, handle)
            with pytest.raises(OutOfRangeError, match="slots 0 to 255"):
                node.take(slot)
        for slot in ("1", None, 1.0, True):
            with pytest.raises(TypeError):
                node.put(slot, handle)
        node.put(255, handle)
        assert node.take(255) is handle


def test_a_taken_slot_and_a_taken_name_are_refused_and_the_handle_stays_the_callers():
    with CNode() as node, memory() as first, memory() as second:
        node.put(1, first, name="db")
        with pytest.raises(AlreadyExistsError, match="slot 1 is taken, by a vmo handle called 'db'"):
            node.put(1, second)
        with pytest.raises(AlreadyExistsError, match="slot 1 is called 'db' already"):
            node.put(2, second, name="db")
        with pytest.raises(AlreadyExistsError, match="in another slot; put a duplicate"):
            node.put(2, first)
        assert not second.closed


@pytest.mark.parametrize("name", ["with\0zero", "x" * 256])
def test_a_name_that_cannot_be_is_refused(name):
    with CNode() as node, memory() as handle, pytest.raises(InvalidArgsError, match="at most 255 bytes"):
        node.put(1, handle, name=name)


def test_only_handles_that_can_be_handed_over_are_put_in():
    with CNode() as node, memory() as handle, handle.duplicate(Rights.READ) as fixed, Directory.proc() as recipe:
        with pytest.raises(AccessDeniedError, match=r"slot 1: the vmo handle lacks Rights\.TRANSFER"):
            node.put(1, fixed)
        with pytest.raises(InvalidArgsError, match="recipe can only be an entry of a namespace"):
            node.put(1, recipe)
        with pytest.raises(TypeError, match=r"File\.from_fd"):
            node.put(1, 0)
        with pytest.raises(TypeError, match="a name is text"):
            node.put(1, handle, name=7)
        handle.close()
        with pytest.raises(BadHandleError, match="closed or was handed over"):
            node.put(1, handle)
        assert len(node) == 0


def test_closing_closes_what_is_in_it_and_not_what_was_taken_out():
    node, inside, outside = CNode(), memory(), memory()
    node.put(1, inside)
    node.put(2, outside)
    node.take(2)
    node.close()
    node.close()
    assert (inside.closed, outside.closed) == (True, False)
    outside.close()


def test_a_printed_cnode_shows_what_is_where():
    with CNode() as node, memory() as handle:
        assert repr(node) == "<shoal.manager.CNode empty>"
        node.put(3, handle, name="db")
        assert repr(node) == "<shoal.manager.CNode 3: a vmo handle called 'db'>"


# --- what is inherited


def test_inherited_open_files_are_copies_under_the_numbers_asked_for(tmp_path):
    with open(tmp_path / "file", "w") as file, CNode.inherit(fds={7: file, 3: file.fileno()}) as node:
        assert node.inherited_fds == (3, 7)
        assert list(node) == [FDSPAGE]
        assert [(slot.slot, slot.kind) for slot in node.slots("inherit")] == [(3, "fd"), (7, "fd")]
        assert all(os.path.sameopenfile(slot.fd, file.fileno()) for slot in node.slots("inherit"))
        assert file.fileno() not in {slot.fd for slot in node.slots("inherit")}
        assert all(not os.get_inheritable(slot.fd) for slot in node.slots("inherit"))


def test_a_session_and_the_kernel_capability_have_slots_of_their_own():
    with memory() as session, memory() as kernel, CNode.inherit(session=session, kernel=kernel) as node:
        assert list(node) == [SESSIONID, KERNELCAP]
        assert node.get(SESSIONID) is session
        with node.handing_over("inherit") as actions:
            assert [(action.id, action.handle) for action in actions] == [
                (PA_HND(TASK, TASK_SESSION), session),
                (PA_HND(TASK, TASK_KERNEL), kernel),
            ]


def code_of(error):
    return error.code, error.__cause__.code


@pytest.mark.parametrize(
    ("given", "detail", "words"),
    [
        ({"fds": {5: 900}}, "SPAWN_ERR_SETUP_FDCAP", "descriptor 5: local descriptor 900 is not open"),
        ({"fds": {5: -1}}, "SPAWN_ERR_SETUP_FDCAP", "is not open"),
        ({"fds": {5: 1 << 70}}, "SPAWN_ERR_SETUP_FDCAP", "is not open"),
        ({"fds": {1024: 0}}, "SPAWN_ERR_SETUP_FDCAP", "descriptor 1024 is not in 0..1023"),
        ({"fds": {-1: 0}}, "SPAWN_ERR_SETUP_FDCAP", "descriptor -1 is not in 0..1023"),
        ({"session": "closed"}, "SPAWN_ERR_SETUP_SIDCAP", "slot 2: the vmo handle is closed"),
        ({"kernel": "fixed"}, "SPAWN_ERR_SETUP_KERNEL_CAP", "slot 3: the vmo handle lacks Rights.TRANSFER"),
    ],
)
def test_what_cannot_be_inherited_is_refused_with_the_seeds_codes_and_nothing_is_taken(given, detail, words, closed_fd):
    with memory() as handle, memory() as good, handle.duplicate(Rights.READ) as fixed, tempfile.TemporaryFile() as file:
        closed = memory()
        closed.close()
        stand_ins = {"closed": closed, "fixed": fixed}
        wanted = {name: stand_ins.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
        wanted = {"session": good} | wanted if "session" not in wanted else wanted
        wanted["fds"] = {9: file} | wanted.get("fds", {})
        with pytest.raises(ManagerError) as caught:
            CNode.inherit(**wanted)
        assert code_of(caught.value) == ("SPAWN_ERR_SETUP_INHERITED_CAPS", detail)
        assert words in caught.value.message
        assert not good.closed
        assert not file.closed


def test_a_closed_file_object_cannot_be_inherited():
    with tempfile.TemporaryFile() as file:
        pass
    with pytest.raises(ManagerError, match="is not open"):
        CNode.inherit(fds={5: file})


@pytest.mark.parametrize(
    "given", [{"fds": {"5": 0}}, {"fds": {5: "0"}}, {"fds": {True: 0}}, {"fds": {5: True}}, {"session": 0}, {"kernel": "x"}]
)
def test_what_is_of_the_wrong_type_is_a_type_error(given):
    with pytest.raises(TypeError):
        CNode.inherit(**given)


def test_inherited_files_and_arguments_do_not_mix():
    with CNode.inherit(fds={5: 0}) as node, pytest.raises(ManagerError) as caught:
        node.slots("args")
    assert code_of(caught.value) == ("SPAWN_ERR_SETUP_ARGCN", "SPAWN_ERR_COPY_ARGCN")
    with CNode() as node:
        node.put(FDSPAGE, memory())
        with pytest.raises(ManagerError) as caught:
            node.slots("inherit")
        assert code_of(caught.value) == ("SPAWN_ERR_SETUP_INHERITED_CAPS", "SPAWN_ERR_SETUP_FDCAP")


def test_other_slots_of_an_inherited_cnode_mean_nothing_and_are_used_up():
    with CNode() as node:
        handle = memory()
        node.put(9, handle)
        with node.handing_over("inherit") as actions:
            assert actions == ()
        assert handle.closed


# --- handing over


def test_the_arguments_become_startup_handles_of_their_slots():
    with CNode() as node:
        first, second = memory(), memory()
        node.put(200, first)
        node.put(0, second, name="db")
        with node.handing_over("args") as actions:
            assert actions == (AddHandle(PA_HND(ARGS, 0), second, "db"), AddHandle(PA_HND(ARGS, 200), first, ""))
        assert first.closed
        assert second.closed


def test_a_spawn_uses_a_cnode_up_also_when_it_fails(workload):
    for path, error in ((workload, None), ("/nowhere", NotFoundError)):
        node = CNode.inherit(fds={6: 0})
        args, handle = CNode(), memory()
        args.put(1, handle)
        with node.handing_over("inherit") as inherited, args.handing_over("args") as given:
            actions = [*inherited, *given]
            if error is None:
                with shoal.spawn(path, ["workload"], actions=actions) as process:
                    assert process.wait(timeout=60) == 0
            else:
                with pytest.raises(error):
                    shoal.spawn(path, ["workload"], actions=actions)
        assert handle.closed
        with memory() as more, pytest.raises(BadStateError, match="used it up"):
            node.put(2, more)
        for used, part in ((node, "inherit"), (args, "args")):
            assert "used up" in repr(used)
            with pytest.raises(ManagerError, match="used it up"), used.handing_over(part):
                pass


def test_a_handle_that_was_closed_meanwhile_fails_the_spawn_before_it_begins():
    with CNode() as node:
        handle, other = memory(), memory()
        node.put(4, handle)
        node.put(5, other)
        handle.close()
        with pytest.raises(ManagerError) as caught, node.handing_over("args"):
            pytest.fail("the block was entered")
        assert code_of(caught.value) == ("SPAWN_ERR_SETUP_ARGCN", "SPAWN_ERR_COPY_ARGCN")
        assert "slot 4" in caught.value.message
        assert other.closed


def test_a_cnode_crosses_to_another_process_as_descriptors_and_words():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    node = CNode()
    node.put(3, memory(b"three"), name="db")
    node.put(0, Socket.from_fd(socket.socket(socket.AF_UNIX)))
    with ours, theirs:
        slots = node.slots("args")
        words = json.dumps([[slot.slot, slot.kind, slot.rights, slot.name] for slot in slots])
        socket.send_fds(ours, [words.encode()], [slot.fd for slot in slots])
        node.close()
        data, fds, _, _ = socket.recv_fds(theirs, 4096, 8)
    there = CNode.received([Slot(slot, kind, rights, -1, name) for slot, kind, rights, name in json.loads(data)], fds)
    with there:
        assert list(there) == [0, 3]
        assert isinstance(there.get(0), Socket)
        assert there.get("db").read() == b"three"
        assert there.get("db").rights == Vmo.default_rights


@pytest.mark.parametrize(
    "slots",
    [
        [Slot(1, "vmo", 0, 0)],
        [Slot(1, "vmo", 0, 0), Slot(1, "vmo", 0, 0)],
        [Slot(256, "vmo", 0, 0), Slot(1, "vmo", 0, 0)],
        [Slot(1, "vmo", -1, 0), Slot(2, "vmo", 0, 0)],
        [Slot(1, "vmo", 0, 0, "x"), Slot(2, "vmo", 0, 0, "x")],
        [Slot(1024, "fd", 0, 0), Slot(2, "fd", 0, 0)],
    ],
)
def test_a_cnode_that_makes_no_sense_is_refused_and_its_descriptors_are_closed(slots):
    fds = [os.memfd_create("one"), os.memfd_create("two")]
    with pytest.raises(ManagerError) as caught:
        CNode.received(slots, fds)
    assert caught.value.code == "SPAWN_ERR_COPY_ARGCN"
    for fd in fds:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)


def test_a_kind_that_does_not_fit_is_a_file_all_the_same():
    with CNode.received([Slot(1, "vmo", int(Rights.READ), 0), Slot(2, "hologram", 0, 0)], list(os.pipe())) as node:
        assert [type(node.get(slot)) for slot in node] == [File, File]


# --- in the child

CODE = """
import json, os, sys
from shoal import startup, PA_HND, HandleType
before = sorted(startup.handles())
from shoal.startup import domain
node = domain.args()
print(json.dumps([
    before,
    sorted(startup.handles()),
    None if node is None else list(node),
    None if node is None else node.names(),
    None if node is None else {slot: [type(node.get(slot)).__name__, int(node.get(slot).rights)] for slot in node},
    domain.args() is node,
    None if node is None or node.get("db") is None else node.take("db").read().decode(),
    None if node is None else list(domain.args()),
    [os.readlink(f"/proc/self/fd/{fd}") for fd in json.loads(sys.argv[1])],
    os.environ.get("LISTEN_FDNAMES"),
]))
"""


def packages():
    return os.pathsep.join(entry for entry in sys.path if entry)


def child(world, *actions, fds=()):
    read, write = os.pipe()
    environ = {"PYTHONPATH": packages(), "PYTHONHOME": sys.base_prefix, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    flags, entries = SpawnFlags.DEFAULT_LDSVC, []
    if world == "caller":
        flags |= SpawnFlags.CLONE_NAMESPACE
    else:
        needed = {sysconfig.get_path("stdlib"), *(entry for entry in sys.path if os.path.isdir(entry))}
        entries = [shoal.AddNsEntry(path, Directory.open(path)) for path in sorted(needed)]
        entries.append(shoal.AddNsEntry("/proc", Directory.proc()))
    process = shoal.spawn(
        os.path.realpath(sys.executable),
        [sys.executable, "-c", CODE, json.dumps(list(fds))],
        flags=flags,
        environ=environ,
        actions=[TransferFd(write, 1), CloneFd(2, 2), *actions, *entries],
    )
    with process, open(read) as output:
        text = output.read()
        assert process.wait(timeout=120) == 0
    return json.loads(text)


@pytest.mark.parametrize("world_of", ["caller", "cell"])
def test_a_child_finds_its_arguments_in_the_same_slots_and_open_files_under_the_same_numbers(world_of, tmp_path):
    (tmp_path / "log").touch()
    args, read = CNode(), int(Rights.READ | Rights.TRANSFER)
    with memory(b"the database") as database:
        args.put(200, database.duplicate(Rights.READ | Rights.TRANSFER), name="db")
    args.put(0, File.from_fd(os.open(tmp_path / "log", os.O_RDONLY)))
    with open(tmp_path / "log") as log:
        inherit = CNode.inherit(fds={9: log, 30: log}, session=memory())
    with args.handing_over("args") as given, inherit.handing_over("inherit") as inherited:
        before, after, slots, names, kinds, same, text, left, links, listed = child(world_of, *given, *inherited, fds=[9, 30])
    assert before == sorted([PA_HND(ARGS, 0), PA_HND(ARGS, 200), PA_HND(TASK, TASK_SESSION)])
    assert after == [PA_HND(TASK, TASK_SESSION)]
    assert (slots, names) == ([0, 200], {"200": "db"})
    assert kinds == {"0": ["File", int(File.default_rights & ~Rights.WRITE)], "200": ["Vmo", read]}
    assert (same, text, left) == (True, "the database", [0])
    assert len(set(links)) == 1
    assert links[0].endswith("/log")
    assert listed is None  # claimed with the rest


def test_a_child_without_arguments_has_none():
    with CNode() as args, args.handing_over("args") as given:
        before, _, slots, *_ = child("caller", *given)
    assert (before, slots) == ([], None)


def test_names_are_what_socket_activated_programs_are_told(tmp_path):
    args = CNode()
    args.put(0, memory(), name="web server")  # not what they take for a name
    args.put(1, memory(), name="db")
    read, write = os.pipe()
    flags = SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC
    with (
        args.handing_over("args") as given,
        shoal.spawn(
            "/bin/sh",
            ["sh", "-c", 'echo "$LISTEN_FDS $LISTEN_FDNAMES"; echo "$SHOAL_STARTUP"'],
            flags=flags,
            actions=[TransferFd(write, 1), *given],
        ) as process,
        open(read) as output,
    ):
        listen, line = output.read().splitlines()
        assert process.wait(timeout=60) == 0
    assert listen == "2 vmo:db"
    assert line.split(" ")[2::2] == ["label=web%20server", "label=db"]


def test_a_handle_is_named_in_the_listing_of_a_plan(workload):
    with memory() as handle:
        plan = shoal.explain(workload, ["workload"], actions=[AddHandle(PA_HND(ARGS, 7), handle, "db")])
        assert plan.to_dict()["handles"][0]["name"] == "db"
        assert "0x000700f0 vmo 'db' at descriptor 3" in str(plan)
        with pytest.raises(TypeError, match=r"AddHandle\.name must be a str"):
            shoal.explain(workload, ["workload"], actions=[AddHandle(PA_HND(ARGS, 7), handle, 7)])
        with pytest.raises(InvalidArgsError, match="the name holds a zero byte"):
            shoal.explain(workload, ["workload"], actions=[AddHandle(PA_HND(ARGS, 7), handle, "a\0b")])
