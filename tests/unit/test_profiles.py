"""Profiles: what a file means, whose wins, what it inherits, and what is said of a mistake."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.profile import as_toml, changed
from shoal.sandbox import profiles
from shoal.sandbox.box import Sandbox
from shoal.sandbox.grants import Grant, Kind, lay_out
from shoal.sandbox.launch import Boxed
from shoal.sandbox.profiles import ProfileError, load, load_file, mistakes_in, names, path_of
from shoal.sandbox.program import Program
from shoal.sandbox.seccomp import Seccomp

SHIPPED = ["build", "node", "python", "service", "untrusted"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own profiles: none yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = tmp_path / "shoal" / "profiles"
    made.mkdir(parents=True)
    return made


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


# --- those that come with shoal ---------------------------------------------------------------------


def test_these_come_with_shoal(folder: Path) -> None:
    assert names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_asks_for_nothing_that_a_machine_may_lack(folder: Path, name: str) -> None:
    box = load(name)
    assert all(os.path.exists(path) for path in box.read)
    assert box.limits == "best-effort"
    assert not box.require
    assert not box.devices
    assert mistakes_in(path_of(name)) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_says_in_its_first_line_what_it_is_for(name: str) -> None:
    first = Path(profiles.SHIPPED, f"{name}.toml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) < 115


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"untrusted"}))
def test_usr_comes_with_the_links_that_lead_into_it(name: str) -> None:
    """A C program finds its interpreter at /lib64 or /lib; other files of /usr that are named must not keep those away."""
    program = Program("sh", os.path.realpath("/bin/sh"))
    places = {grant.dest for grant in Boxed(load(name)).grants(program, "/tmp")}
    assert {path for path in ("/bin", "/lib", "/lib64") if os.path.islink(path)} <= places


def test_a_directory_that_is_less_writable_is_not_shown_by_way_of_a_link() -> None:
    if not os.path.islink("/lib"):
        pytest.skip("needs a merged /usr")
    asked = [Grant(Kind.PATH, "/usr", "/usr", writable=True), Grant(Kind.PATH, "/usr/lib/os-release", "/usr/lib/os-release")]
    assert "/lib" not in {grant.dest for grant in lay_out(asked, program="/usr/bin/true", network=False)}


def test_a_profile_brings_the_files_of_the_interpreter_that_runs_in_it(folder: Path, tmp_path: Path) -> None:
    base, env = tmp_path / "base", tmp_path / "env"
    for path in (base / "bin", base / "lib" / "python3.99", env / "bin"):
        path.mkdir(parents=True)
    (base / "lib" / "python3.99" / "os.py").touch()
    (base / "bin" / "python3.99").touch()
    (env / "pyvenv.cfg").touch()
    (env / "bin" / "python").symlink_to(base / "bin" / "python3.99")
    assert {str(base), str(env)} <= set(load("python", str(env / "bin" / "python")).read)
    assert str(env) not in load("python", str(base / "bin" / "python3.99")).read
    assert load("python", "").read == [path for path in load("python", "/usr/bin/true").read if path != str(base)]


def test_what_lies_above_a_program_is_not_handed_over_without_evidence(folder: Path, tmp_path: Path) -> None:
    """~/bin/python3 must not hand over the user's home."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").touch()
    assert str(tmp_path) not in load("python", str(tmp_path / "bin" / "python3")).read
    (tmp_path / "bin" / "link").symlink_to("/usr/bin/env")
    assert str(tmp_path) not in load("python", str(tmp_path / "bin" / "link")).read


def test_from_python_the_interpreter_is_this_one(folder: Path) -> None:
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))
    assert prefix in Sandbox.profile("python").read or prefix == "/usr"
    assert Sandbox.profile("python", memory="1G").memory == "1G"


# --- the user's own ---------------------------------------------------------------------------------


def test_a_file_is_a_sandbox_with_the_same_names(folder: Path) -> None:
    write(
        folder,
        "all",
        """
        read = ["/usr", "data"]
        write = {"/out" = "./out"}
        tmp = "64M"
        cwd = "/out"
        network = "host"
        devices = ["kvm"]
        memory = "1G"
        swap = 0
        pids = 10
        cpus = 1.5
        cpu_time = "10s"
        wall_time = 2.5
        open_files = 64
        file_size = 1000000
        core_set = [0, 2]
        nice = 5
        limits = "best-effort"
        require = ["seccomp"]
        user = "caller"
        linger = "wait"
        secrets = ["TOKEN"]
        env.TOKEN = "x"
        io."/dev/sda" = "10M"
        [seccomp]
        base = "default"
        allow = ["ptrace"]
        on_denied = "kill"
        """,
    )
    assert load("all") == Sandbox(
        read=["/usr", "data"],
        write={"/out": "./out"},
        tmp="64M",
        cwd="/out",
        network="host",
        devices=["kvm"],
        memory="1G",
        swap=0,
        pids=10,
        cpus=1.5,
        cpu_time="10s",
        wall_time=2.5,
        open_files=64,
        file_size=1000000,
        core_set=[0, 2],
        nice=5,
        limits="best-effort",
        require=["seccomp"],
        user="caller",
        linger="wait",
        secrets=["TOKEN"],
        env={"TOKEN": "x"},
        io={"/dev/sda": "10M"},
        seccomp=Seccomp(base="default", allow=["ptrace"], on_denied="kill"),
    )


def test_every_attribute_of_a_sandbox_can_be_said() -> None:
    assert set(profiles.FORMS) == {item.name for item in dataclasses.fields(Sandbox)} | {"inherits"}


def test_an_empty_file_is_a_sandbox_as_it_is() -> None:
    assert load_file(os.devnull) == Sandbox()


def test_the_users_own_wins_over_one_of_the_same_name(folder: Path) -> None:
    path = write(folder, "python", "pids = 7")
    assert (load("python"), path_of("python")) == (Sandbox(pids=7), path)
    assert names() == SHIPPED


def test_one_that_inherits_its_own_name_builds_upon_the_one_it_replaces(folder: Path) -> None:
    shipped = load("untrusted")
    write(folder, "untrusted", 'inherits = "untrusted"\nmemory = "1G"')
    assert load("untrusted") == shipped.replace(memory="1G")


def test_without_a_good_XDG_CONFIG_HOME_it_is_dot_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config" / "shoal" / "profiles"
    folder.mkdir(parents=True)
    write(folder, "mine", "pids = 7")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert load("mine").pids == 7
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert names() == sorted(["mine", *SHIPPED])


def test_a_relative_path_stays_relative_to_the_caller(folder: Path) -> None:
    write(folder, "mine", 'read = ["./data"]\nwrite = {"/out" = "../out"}')
    box = load("mine")
    assert (box.read, box.write) == (["./data"], {"/out": "../out"})


# --- what is inherited ------------------------------------------------------------------------------


def test_lists_and_tables_add_and_single_values_win(folder: Path) -> None:
    write(
        folder,
        "below",
        'read = ["/a"]\ndevices = ["kvm"]\nrequire = ["user"]\nsecrets = ["A"]\ncore_set = [0, 1]\npids = 5\nnice = 1\n'
        'env = {A = "1", B = "1"}',
    )
    write(
        folder,
        "above",
        'inherits = "below"\nread = ["/b"]\ndevices = ["fuse", "kvm"]\nrequire = ["seccomp"]\nsecrets = ["B"]\ncore_set = [2]\npids = 6\n'
        'env = {B = "2", C = "2"}',
    )
    assert load("above") == Sandbox(
        read=["/a", "/b"],
        devices=["kvm", "fuse"],
        require=["user", "seccomp"],
        secrets=["A", "B"],
        core_set=[2],
        pids=6,
        nice=1,
        env={"A": "1", "B": "2", "C": "2"},
    )


def test_the_upper_one_decides_what_may_be_written(folder: Path, tmp_path: Path) -> None:
    here = str(tmp_path)
    write(folder, "below", f'read = ["{here}", "/usr"]\nwrite = ["{here}/w"]')
    write(folder, "above", f'inherits = "below"\nread = ["{here}/w"]\nwrite = ["{here}/"]')
    box = load("above")
    assert (box.read, box.write) == (["/usr", f"{here}/w"], [f"{here}/"])


def test_a_list_and_a_table_become_a_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(folder, "below", f'read = ["{tmp_path}/link", "/usr"]')
    write(folder, "above", 'inherits = "below"\n[read]\n"/data" = "./data"\n"/usr" = "/opt/usr"')
    link, real = f"{tmp_path}/link", f"{os.path.realpath(tmp_path)}/real"
    assert load("above").read == {link: link, real: link, "/data": "./data", "/usr": "/opt/usr"}


def test_a_chain_is_followed_and_a_circle_refused(folder: Path) -> None:
    write(folder, "a", "nice = 1\npids = 5")
    write(folder, "b", 'inherits = "a"\nnice = 2')
    write(folder, "c", 'inherits = "b"')
    assert load("c") == Sandbox(nice=2, pids=5)
    path = write(folder, "a", 'pids = 5\ninherits = "c"')
    with pytest.raises(ProfileError, match=r"inherits itself: a -> c -> b -> a"):
        load("a")
    write(folder, "self", 'inherits = "self"')
    with pytest.raises(ProfileError, match="inherits itself: self -> self"):
        load("self")
    assert [(item.line, item.key) for item in mistakes_in(path)] == [(1, "inherits")]  # as b has it, where the circle closes


def test_a_mistake_in_what_is_inherited_names_that_file(folder: Path) -> None:
    path = write(folder, "below", "pids = 0")
    write(folder, "above", 'inherits = "below"')
    with pytest.raises(ProfileError) as caught:
        load("above")
    assert (caught.value.path, caught.value.line, caught.value.key) == (path, 1, "pids")
    write(folder, "above", '\ninherits = "pythn"')
    with pytest.raises(ProfileError, match=r"above\.toml:2: inherits: there is no profile 'pythn'; did you mean 'python'"):
        load("above")


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ("pids = 5\nmemroy = '1G'", 2, "memroy", "did you mean 'memory'"),
        ("inherit = 'python'", 1, "inherit", "did you mean 'inherits'"),
        ("pids = '5'", 1, "pids", "pids has to be a whole number; this is text"),
        ("pids = true", 1, "pids", "pids has to be a whole number; this is true or false"),
        ("pids = 5.0", 1, "pids", "pids has to be a whole number; this is a number"),
        ("pids = 0", 1, "pids", "between 1 and"),
        ("memory = 1.5", 1, "memory", 'memory has to be a number of bytes, or text such as "512M"'),
        ("memory = 'lots'", 1, "memory", "memory: 'lots' is not a size"),
        ("wall_time = 0", 1, "wall_time", "wall_time is 0"),
        ("wall_time = 2026-01-01", 1, "wall_time", "this is a date or time"),
        ("read = '/usr'", 1, "read", "read has to be a list of paths"),
        ("read = [5]", 1, "read", "5 is not a path"),
        ("[write]\nout = '.'", 1, "write", "has to be an absolute path, not 'out'"),
        ("network = 'hosts'", 1, "network", "did you mean 'host'"),
        ("seccomp = 'strikt'", 1, "seccomp", "did you mean 'strict'"),
        ("[seccomp]\ndenny = ['ptrace']", 2, "seccomp", "did you mean 'deny'"),
        ("[seccomp]\ndeny = ['ptrac']", 1, "seccomp", "did you mean 'ptrace'"),
        ("seccomp.deny = 'ptrace'", 1, "seccomp", "list of names"),
        ("core_set = 3", 1, "core_set", "a list of numbers of processors"),
        ("require = ['seccom']", 1, "require", "did you mean 'seccomp'"),
        ("devices = 'kvm'", 1, "devices", "a list of names"),
        ("nice = 50", 1, "nice", "between -20 and 19"),
        ("cwd = 'here'", 1, "cwd", "absolute path"),
        ("inherits = ['a']", 1, "inherits", "the name of a profile"),
        ("inherits = '../a'", 1, "inherits", "cannot be the name of a profile"),
        ("io = {'/dev/sda' = 'fast'}", 1, "io", "not a size"),
        ("[env]\nA = 'x'\n\n\nmemory = '1G'", 5, "env", "memory stands in the table env; put it above [env]"),
        ("[env]\n\nA = 5", 3, "env", "env.A has to be text; this is a number"),
        ('env = {A = "x\\u0000"}', 1, "env", "zero byte"),
        ("pids = 5\npids = 6\n", 2, "", "overwrite"),
        ("pids == 5", 1, "", ""),
        ("a = [\n1,\n", None, "", "end of document"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_the_nearest_right_word(
    folder: Path, text: str, line: int | None, key: str, said: str
) -> None:
    path = write(folder, "wrong", text)
    with pytest.raises(ProfileError) as caught:
        load("wrong")
    error = caught.value
    assert (error.path, error.line, error.key) == (path, line, key)
    assert error.message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert said in error.message
    assert isinstance(error, ValueError)


def test_all_mistakes_of_a_file_are_told_at_once(folder: Path) -> None:
    path = write(folder, "wrong", "pids = 'a'\nread = ['/usr']\nmemroy = 1\n[env]\nA = 1\npids = 5\n")
    assert [(item.line, item.key) for item in mistakes_in(path)] == [(1, "pids"), (3, "memroy"), (5, "env"), (6, "env")]


def test_the_value_of_a_variable_is_in_no_message(folder: Path) -> None:
    path = write(folder, "wrong", 'secrets = ["TOKEN"]\n[env]\nTOKEN = 12345678\n"A=B" = "87654321"')
    told = " ".join(item.message for item in mistakes_in(path))
    assert "TOKEN" in told
    assert "12345678" not in told
    assert "87654321" not in told


@pytest.mark.parametrize("data", [b"\xff\xfe", b"pids = 5\n# \xff", b"a = " + b"[" * 100_000, b"#" * (profiles.LARGEST + 1)])
def test_what_is_no_profile_at_all_is_told(folder: Path, data: bytes) -> None:
    (folder / "bad.toml").write_bytes(data)
    with pytest.raises(ProfileError, match=r"bad\.toml"):
        load("bad")


def test_a_file_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / "bad.toml").mkdir()
    with pytest.raises(ProfileError, match=r"bad\.toml: Is a directory"):
        load("bad")
    with pytest.raises(ProfileError, match="No such file"):
        load_file(str(folder / "none.toml"))


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "../python", "a\0b", "a\nb", "-x", " python"])
def test_a_name_leads_nowhere_else(folder: Path, name: str) -> None:
    (folder / ".hidden.toml").write_text("pids = 5")
    with pytest.raises(ProfileError, match="cannot be the name of a profile"):
        load(name)
    assert ".hidden" not in names()


def test_a_profile_that_is_not_there_is_told_with_the_nearest(folder: Path) -> None:
    write(folder, "mine", "")
    with pytest.raises(ProfileError, match="there is no profile 'mines'; did you mean 'mine'"):
        load("mines")
    with pytest.raises(ValueError, match="'pyhton'; did you mean 'python'"):
        Sandbox.profile("pyhton")


# --- as TOML again ----------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
BOXES = st.builds(
    Sandbox,
    read=st.one_of(st.lists(WORDS, max_size=3), st.dictionaries(WORDS.map("/{}".format), WORDS, max_size=3)),
    env=st.dictionaries(WORDS.filter(lambda word: "=" not in word and word not in profiles.FORMS), WORDS, max_size=3),
    tmp=st.sampled_from([True, False, "64M", 8192]),
    cpus=st.one_of(st.none(), st.floats(0.01, 99999)),
    nice=st.one_of(st.none(), st.integers(-20, 19)),
    core_set=st.lists(st.integers(0, 8191), max_size=3),
    seccomp=st.sampled_from(["default", "off", Seccomp(deny=["ptrace"]), Seccomp(allow=["read"]), Seccomp(base="strict", on_denied=13)]),
)


@given(BOXES)
def test_what_is_shown_is_a_profile_that_means_the_same(box: Sandbox) -> None:
    text = as_toml(box)
    assert tomllib.loads(text) == changed(box)
    assert without_a_file(text) == box


def without_a_file(text: str) -> Sandbox:
    """The Sandbox that a text is."""
    values = tomllib.loads(text)
    if isinstance(values.get("seccomp"), dict):
        values["seccomp"] = Seccomp(**values["seccomp"])
    return Sandbox(**values)


def test_what_is_shown_has_no_value_of_a_secret() -> None:
    box = Sandbox(env={"TOKEN": "hunter2", "A": "b"}, secrets=["TOKEN"])
    assert "hunter2" not in as_toml(box)
    assert changed(box)["env"] == {"TOKEN": "***", "A": "b"}


# --- what it costs ----------------------------------------------------------------------------------


def test_the_parser_is_loaded_with_the_first_profile() -> None:
    code = "import sys, shoal.sandbox.profiles as p; a = 'tomllib' in sys.modules; p.load('python'); print(a, 'tomllib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
