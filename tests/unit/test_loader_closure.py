import glob
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import elf_image
import pytest

from shoal.loader import Kind, inspect, library_closure
from shoal.loader import cache as loader_cache
from shoal.loader.closure import search_closure
from shoal.loader.elf import parse
from shoal.loader.layers import LayerTree
from shoal.loader.linker import hwcaps_levels, levels_of
from shoal.status import InternalError, Stage, Status

CC = shutil.which("cc") or shutil.which("gcc")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler to build programs with")
glibc = pytest.mark.skipif("ld-musl" in str(inspect(os.path.realpath("/bin/sh")).image), reason="this system's linker is not glibc's")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}


@pytest.fixture
def old_enough(monkeypatch):
    """Files just written count as settled, as they would a moment later."""
    monkeypatch.setattr("shoal.loader.cache.SETTLE_NS", -(10**12))


def closure_of(path):
    return library_closure(inspect(path), path)


def real_linker_s(path: str) -> set[str] | None:
    """What the program's own linker loads, by path; None when it fails."""
    interpreter = inspect(path).image.interpreter
    # By its real path, as the kernel would tell it: run this way the linker does not resolve links for $ORIGIN.
    listed = subprocess.run([interpreter, "--list", os.path.realpath(path)], capture_output=True, text=True, env=ENV, check=False)
    if listed.returncode:
        return None
    lines = (re.match(r"\s*(?:(\S+) => )?(/\S+) \(0x", line) for line in listed.stdout.splitlines())
    return {line[2] for line in lines if line and os.path.basename(line[2]) != os.path.basename(interpreter)}


def sample() -> list[str]:
    everything = sorted(path for place in ("/usr/bin/*", "/usr/sbin/*", "/opt/*/bin/*") for path in glob.glob(place))
    named = [shutil.which(name) for name in ("git", "gcc", "perl", "node", "python3", "java", "expr", "busctl", "ssh", "bash")]
    return [path for path in [*named, os.path.realpath(sys.executable), *everything[:: max(1, len(everything) // 80)]] if path]


@glibc
def test_the_closure_of_this_system_s_programs_is_what_their_linker_loads():
    compared = 0
    for path in sample():
        if not os.access(path, os.R_OK | os.X_OK) or inspect(path).kind is not Kind.DYNAMIC:
            continue
        expected = real_linker_s(path)
        if expected is None:
            with pytest.raises(InternalError):
                closure_of(path)
            continue
        found = closure_of(path)
        assert {library.path for library in found.libraries} == expected, path
        assert found.interpreter.inside == inspect(path).image.interpreter
        compared += 1
    assert compared > 10


@pytest.fixture
def cc(tmp_path):
    def cc(out: str, source: str, *options: str) -> str:
        target = tmp_path / out
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [CC, "-x", "c", "-", "-x", "none", "-o", target, "-Wl,--no-as-needed", *options]
        subprocess.run(command, input=source, text=True, check=True, cwd=tmp_path)
        return str(target)

    return cc


SHARED = ("-shared", "-fPIC")
NEW, OLD = "-Wl,--enable-new-dtags", "-Wl,--disable-new-dtags"


def run_in_its_own_world(closure, program: str, root: Path) -> int:
    """Run the program where nothing exists but its closure, its own file being at a place no library knows."""
    for library in closure:
        target = root / library.inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library.path, target)
    (root / "hidden").mkdir()
    shutil.copy(program, root / "hidden/program")
    unshare = [] if os.geteuid() == 0 else ["unshare", "-r"]
    return subprocess.run(
        [*unshare, "chroot", root, "/hidden/program"], env={"PATH": os.environ["PATH"]}, check=False, timeout=60
    ).returncode


chroots = pytest.mark.skipif(
    os.geteuid() != 0
    and (not shutil.which("unshare") or subprocess.run(["unshare", "-r", "true"], capture_output=True, check=False).returncode != 0),
    reason="needs root or user namespaces, to change the root directory",
)


@needs_cc
@glibc
@chroots
def test_libraries_beside_the_program_are_found_by_a_child_that_does_not_see_the_program(cc, tmp_path):
    cc("app/lib/deep/libc1.so", "int c1(void) { return 7; }", *SHARED)
    cc("app/lib/libb1.so", "int c1(void); int b1(void) { return c1(); }", *SHARED, "-Lapp/lib/deep", "-lc1", "-Wl,-rpath,$ORIGIN/deep", NEW)
    link = ("-Lapp/lib", "-lb1", "-Wl,-rpath-link,app/lib/deep")
    program = cc("app/bin/prog", "int b1(void); int main(void) { return b1(); }", *link, "-Wl,-rpath,${ORIGIN}/../lib", NEW)
    found = closure_of(program)
    assert {library.path for library in found.libraries} == real_linker_s(program)
    by_name = {os.path.basename(library.path): library for library in found.libraries}
    assert set(by_name) == {"libb1.so", "libc1.so", "libc.so.6"}
    default = os.path.dirname(by_name["libc.so.6"].inside)
    assert by_name["libb1.so"].inside == f"{default}/libb1.so"
    assert by_name["libc1.so"].inside == f"{default}/libc1.so"
    assert run_in_its_own_world(found, program, tmp_path / "root") == 7


@needs_cc
@glibc
@chroots
def test_absolute_run_paths_stay_where_they_are_and_their_origins_with_them(cc, tmp_path):
    cc("one/x/libc2.so", "int c2(void) { return 8; }", *SHARED)
    cc("one/lib/libb2.so", "int c2(void); int b2(void) { return c2(); }", *SHARED, "-Lone/x", "-lc2", "-Wl,-rpath,$ORIGIN/../x", NEW)
    link = ("-Lone/lib", "-lb2", "-Wl,-rpath-link,one/x")
    program = cc("prog", "int b2(void); int main(void) { return b2(); }", *link, f"-Wl,-rpath,{tmp_path}/nowhere:{tmp_path}/one/lib/", NEW)
    found = closure_of(program)
    assert {library.path for library in found.libraries} == real_linker_s(program)
    inside = {library.inside for library in found.libraries}
    assert {f"{tmp_path}/one/lib/libb2.so", f"{tmp_path}/one/x/libc2.so"} < inside
    assert run_in_its_own_world(found, program, tmp_path / "root") == 8


@needs_cc
@glibc
def test_a_path_up_through_a_directory_the_child_will_not_have_is_not_relied_upon(cc, tmp_path):
    (tmp_path / "gone").mkdir()
    cc("lib/libb3.so", "int b3(void) { return 0; }", *SHARED)
    program = cc("prog", "int b3(void); int main(void) { return b3(); }", "-Llib", "-lb3", f"-Wl,-rpath,{tmp_path}/gone/../lib", NEW)
    found = {os.path.basename(library.path): library for library in closure_of(program).libraries}
    assert found["libb3.so"].path == f"{tmp_path}/gone/../lib/libb3.so"
    assert os.path.dirname(found["libb3.so"].inside) == os.path.dirname(found["libc.so.6"].inside)


@needs_cc
@glibc
@chroots
def test_rpath_is_inherited_and_runpath_is_not(cc, tmp_path):
    cc("lib/libc4.so", "int c4(void) { return 9; }", *SHARED)
    cc("lib/libb4.so", "int c4(void); int b4(void) { return c4(); }", *SHARED, "-Llib", "-lc4")
    source, link = "int b4(void); int main(void) { return b4(); }", ("-Llib", "-lb4", "-Wl,-rpath-link,lib", f"-Wl,-rpath,{tmp_path}/lib")
    old = cc("old", source, *link, OLD)
    found = closure_of(old)
    assert {library.path for library in found.libraries} == real_linker_s(old)
    assert run_in_its_own_world(found, old, tmp_path / "root") == 9
    new = cc("new", source, *link, NEW)
    assert real_linker_s(new) is None
    with pytest.raises(InternalError, match=r"libc4\.so") as caught:
        closure_of(new)
    assert caught.value.stage is Stage.LOADER
    assert "libb4.so" in caught.value.detail, "it says who needs it"


@needs_cc
@glibc
def test_a_library_of_another_machine_is_passed_over_and_a_broken_one_is_not(cc, tmp_path):
    cc("good/libb5.so", "int b5(void) { return 0; }", *SHARED)
    program = cc(
        "prog",
        "int b5(void); int main(void) { return b5(); }",
        "-Lgood",
        "-lb5",
        f"-Wl,-rpath,{tmp_path}/foreign:{tmp_path}/bad:{tmp_path}/good",
        NEW,
    )
    for name in ("foreign", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "foreign/libb5.so").write_bytes(elf_image.build(machine=40))
    found = closure_of(program)
    assert f"{tmp_path}/good/libb5.so" in {library.inside for library in found.libraries}
    assert {library.path for library in found.libraries} == real_linker_s(program)
    (tmp_path / "bad/libb5.so").write_bytes(b"not an ELF at all")
    assert real_linker_s(program) is None
    with pytest.raises(InternalError, match=r"bad/libb5\.so is not a program"):
        closure_of(program)


@needs_cc
@glibc
@pytest.mark.skipif(not hwcaps_levels(), reason="this processor has no x86-64 level above the first")
def test_the_variant_for_this_processor_is_taken(cc, tmp_path):
    cc("lib/libb6.so", "int b6(void) { return 0; }", *SHARED)
    cc(f"lib/glibc-hwcaps/{hwcaps_levels()[-1]}/libb6.so", "int b6(void) { return 1; }", *SHARED)
    program = cc("prog", "int b6(void); int main(void) { return b6(); }", "-Llib", "-lb6", f"-Wl,-rpath,{tmp_path}/lib", NEW)
    found = {library.path for library in closure_of(program).libraries}
    assert f"{tmp_path}/lib/glibc-hwcaps/{hwcaps_levels()[-1]}/libb6.so" in found
    assert found == real_linker_s(program)


@needs_cc
@glibc
def test_one_file_under_two_names_is_there_under_both(cc, tmp_path):
    cc("lib/liba7.so", "int a7(void) { return 0; }", *SHARED)
    (tmp_path / "lib/libb7.so").symlink_to("liba7.so")
    program = cc("prog", "int a7(void); int main(void) { return a7(); }", "-Llib", "-la7", "-lb7", f"-Wl,-rpath,{tmp_path}/lib", NEW)
    inside = [library.inside for library in closure_of(program).libraries]
    assert {f"{tmp_path}/lib/liba7.so", f"{tmp_path}/lib/libb7.so"} < set(inside)
    assert len(inside) == len(set(inside))


@needs_cc
@glibc
def test_an_absolute_needed_name_is_served_at_that_path_and_a_relative_one_refused(cc, tmp_path):
    library = cc("lib/plain.so", "int p8(void) { return 0; }", *SHARED)
    source = "int p8(void); int main(void) { return p8(); }"
    assert library in {found.inside for found in closure_of(cc("absolute", source, library)).libraries}
    with pytest.raises(InternalError, match=r"lib/plain\.so"):
        closure_of(cc("relative", source, "lib/plain.so"))


@needs_cc
@glibc
def test_a_library_only_the_program_s_own_place_leads_to_cannot_serve_one_that_refuses_default_directories(cc, tmp_path):
    cc("lib/libb9.so", "int b9(void) { return 0; }", *SHARED)
    program = cc(
        "prog", "int b9(void); int main(void) { return b9(); }", "-Llib", "-lb9", "-Wl,-z,nodefaultlib", "-Wl,-rpath,$ORIGIN/lib", NEW
    )
    with pytest.raises(InternalError, match="DF_1_NODEFLIB"):
        closure_of(program)


def write_elf(path: Path, **parts) -> str:
    path.write_bytes(elf_image.build(**parts))
    path.chmod(0o755)
    return str(path)


def test_a_missing_interpreter_or_library_is_named(tmp_path):
    with pytest.raises(InternalError, match=r"/nowhere/ld\.so") as caught:
        closure_of(write_elf(tmp_path / "a", interpreter=b"/nowhere/ld.so\0"))
    assert caught.value.stage is Stage.LOADER
    interpreter = os.fsencode(inspect("/bin/true").image.interpreter) + b"\0"
    with pytest.raises(InternalError, match=r"no-such-library\.so") as caught:
        closure_of(write_elf(tmp_path / "b", interpreter=interpreter, needed=[b"no-such-library.so"]))
    assert str(tmp_path / "b") in caught.value.detail
    with pytest.raises(InternalError, match="absolute"):
        closure_of(write_elf(tmp_path / "c", interpreter=b"lib/ld.so\0"))
    (tmp_path / "text").write_text("no linker")
    with pytest.raises(InternalError, match="unusable"):
        closure_of(write_elf(tmp_path / "d", interpreter=os.fsencode(tmp_path / "text") + b"\0"))


def test_ld_library_path_is_not_consulted(tmp_path, monkeypatch):
    libc = next(library for library in closure_of("/bin/true").libraries)
    shutil.copy(libc.path, tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert libc in closure_of("/bin/true").libraries


@needs_cc
@glibc
def test_a_closure_is_remembered_until_a_library_changes_or_another_is_put_in_front(cc, tmp_path, old_enough):
    library = cc("lib/libr.so", "int r(void) { return 0; }", *SHARED)
    (tmp_path / "front").mkdir()
    program = cc("prog", "int r(void); int main(void) { return r(); }", "-Llib", "-lr", f"-Wl,-rpath,{tmp_path}/front:{tmp_path}/lib", NEW)
    first = closure_of(program)
    assert closure_of(program) is first
    os.utime(library)
    second = closure_of(program)
    assert second != first
    assert closure_of(program) is second
    shutil.copy(library, tmp_path / "front")
    assert f"{tmp_path}/front/libr.so" in {found.path for found in closure_of(program).libraries}
    shutil.rmtree(tmp_path / "front")
    shutil.rmtree(tmp_path / "lib")
    with pytest.raises(InternalError, match=r"libr\.so"):
        closure_of(program)


@needs_cc
@glibc
def test_two_places_of_one_program_have_two_closures(cc, tmp_path, old_enough):
    cc("one/libt.so", "int t(void) { return 0; }", *SHARED)
    program = cc("one/prog", "int t(void); int main(void) { return t(); }", "-Lone", "-lt", "-Wl,-rpath,$ORIGIN", NEW)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.remove(tmp_path / "two/prog")
    os.link(program, tmp_path / "two/prog")
    (tmp_path / "link").symlink_to("two/prog")
    for place, at in (("one", "one/prog"), ("two", "two/prog"), ("two", "link")):
        assert f"{tmp_path}/{place}/libt.so" in {library.path for library in closure_of(str(tmp_path / at)).libraries}


def test_finding_out_again_about_a_known_program_takes_no_time():
    closure_of("/bin/true")
    best = 1.0
    for _ in range(200):
        start = time.perf_counter()
        library_closure(inspect("/bin/true"), "/bin/true")
        best = min(best, time.perf_counter() - start)
    assert best < 60e-6, f"{best * 1e6:.0f} us"
    assert len(loader_cache._caches) > 0


def test_the_levels_of_a_processor_follow_from_its_flags():
    v2 = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"
    v3 = v2 + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
    assert levels_of(f"processor\t: 0\nflags\t\t: fpu {v2}\n") == ("x86-64-v2",)
    assert levels_of(f"flags\t: {v3}\n") == ("x86-64-v3", "x86-64-v2")
    assert levels_of(f"flags\t: {v3.replace('popcnt', '')}\n") == ()
    assert levels_of("Features\t: fp asimd\n") == ()


# --- trees that are not this host's ---------------------------------------------------------------------


def tree_of(files: dict[str, bytes | str]) -> LayerTree:
    """A tree with these files; text is the target of a link."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    file = open(os.memfd_create("layer", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115 - the tree owns it
    file.write(layer.getvalue())
    file.flush()
    tree = LayerTree()
    tree.add_layer(file)
    return tree


def search(tree: LayerTree, origin: str | None = "/app", **parts) -> dict[str, str]:
    data = elf_image.build(**parts)
    image = parse(lambda offset, size: data[offset : offset + size], len(data))
    try:
        closure, _ = search_closure(image, "prog", origin, tree)
    finally:
        tree.close()
    return {library.path: library.inside for library in closure}


MUSL = "/lib/ld-musl-x86_64.so.1"
LIB = elf_image.build()


def test_musl_is_its_own_libc_and_searches_its_defaults():
    files = {MUSL: LIB, "/usr/local/lib/liba.so": elf_image.build(needed=[b"libb.so", b"libc.musl-x86_64.so.1"]), "/usr/lib/libb.so": LIB}
    assert search(tree_of(files), interpreter=MUSL.encode() + b"\0", needed=[b"liba.so", b"libc.so", b"libm.so.1"]) == {
        MUSL: MUSL, "/usr/local/lib/liba.so": "/usr/local/lib/liba.so", "/usr/lib/libb.so": "/usr/lib/libb.so",
    }  # fmt: skip


def test_musl_s_path_file_replaces_its_defaults_but_not_in_the_child():
    files = {
        MUSL: LIB,
        "/etc/ld-musl-x86_64.path": b"/odd\n/usr/lib\n",
        "/odd/liba.so": LIB,
        "/usr/lib/libb.so": LIB,
        "/usr/local/lib/libc1.so": LIB,
    }
    interpreter = MUSL.encode() + b"\0"
    found = search(tree_of(files), interpreter=interpreter, needed=[b"liba.so", b"libb.so"])
    assert found == {MUSL: MUSL, "/odd/liba.so": "/lib/liba.so", "/usr/lib/libb.so": "/usr/lib/libb.so"}
    with pytest.raises(InternalError, match=r"libc1\.so"):
        search(tree_of(files), interpreter=interpreter, needed=[b"libc1.so"])


def test_musl_inherits_run_paths_and_drops_those_with_other_tokens():
    liba = elf_image.build(needed=[b"libb.so"])
    files = {MUSL: LIB, "/opt/l/liba.so": liba, "/opt/l/libb.so": LIB}
    interpreter = MUSL.encode() + b"\0"
    assert search(tree_of(files), interpreter=interpreter, needed=[b"liba.so"], runpath=b"/opt/l")["/opt/l/libb.so"] == "/opt/l/libb.so"
    with pytest.raises(InternalError, match=r"liba\.so"):
        search(tree_of(files), interpreter=interpreter, needed=[b"liba.so"], runpath=b"/opt/l:/$LIB")


GLIBC = "/lib64/ld-linux-x86-64.so.2"
LINKER = elf_image.build(soname=b"ld-linux-x86-64.so.2", tail=b"\0/lib64/\0/usr/lib64/\0" + b"/etc/ld.so.cache\0")


def test_glibc_s_default_directories_are_read_from_the_linker_itself():
    files = {GLIBC: LINKER, "/usr/lib64/liba.so": elf_image.build(needed=[b"ld-linux-x86-64.so.2"]), "/usr/lib/libb.so": LIB}
    interpreter = GLIBC.encode() + b"\0"
    assert search(tree_of(files), interpreter=interpreter, needed=[b"liba.so"]) == {
        GLIBC: GLIBC,
        "/usr/lib64/liba.so": "/usr/lib64/liba.so",
    }
    with pytest.raises(InternalError, match=r"libb\.so"):
        search(tree_of(files), interpreter=interpreter, needed=[b"libb.so"])


def test_a_store_with_a_libc_of_its_own_works():
    store = "/nix/store/abc-glibc-2.40/lib"
    linker = elf_image.build(soname=b"ld-linux-x86-64.so.2", tail=f"\0{store}/\0".encode())
    files = {f"{store}/ld-linux-x86-64.so.2": linker, f"{store}/libc.so.6": LIB}
    found = search(tree_of(files), interpreter=f"{store}/ld-linux-x86-64.so.2\0".encode(), needed=[b"libc.so.6"])
    assert found[f"{store}/libc.so.6"] == f"{store}/libc.so.6"


def test_lib_and_platform_stand_for_what_the_linker_says():
    files = {GLIBC: LINKER, "/opt/lib64/liba.so": LIB, "/opt/x86_64/libb.so": LIB, "/lib64/libc.so.6": LIB}
    found = search(
        tree_of(files),
        interpreter=GLIBC.encode() + b"\0",
        needed=[b"liba.so", b"libb.so", b"libc.so.6"],
        rpath=b"/opt/$LIB:/opt/${PLATFORM}",
    )
    assert found["/opt/lib64/liba.so"] == "/opt/lib64/liba.so"
    if "/opt/x86_64/libb.so" in found:
        assert found["/opt/x86_64/libb.so"] == "/lib64/libb.so", "the child's linker may call the platform by another name"


def test_without_an_origin_its_paths_are_left_out_as_the_linker_does():
    files = {GLIBC: LINKER, "/app/liba.so": LIB}
    with pytest.raises(InternalError, match=r"liba\.so"):
        search(tree_of(files), origin=None, interpreter=GLIBC.encode() + b"\0", needed=[b"liba.so"], runpath=b"$ORIGIN")


def test_a_soname_already_loaded_answers_for_it_and_optional_filters_may_be_missing():
    liba = elf_image.build(soname=b"libreal.so", entries=[(0x7FFFFFFD, 1)])
    files = {GLIBC: LINKER, "/lib64/liba.so": liba}
    found = search(tree_of(files), interpreter=GLIBC.encode() + b"\0", needed=[b"liba.so", b"libreal.so"])
    assert set(found) == {GLIBC, "/lib64/liba.so"}


def test_links_inside_a_tree_are_followed_inside_it_only():
    files = {GLIBC: LINKER, "/lib64/liba.so": "/etc/../../../usr/real.so", "/usr/real.so": LIB, "/lib64/libb.so": "libb.so", "/etc/f": b""}
    interpreter = GLIBC.encode() + b"\0"
    assert search(tree_of(files), interpreter=interpreter, needed=[b"liba.so"])["/lib64/liba.so"] == "/lib64/liba.so"
    with pytest.raises(InternalError, match=r"libb\.so") as caught:
        search(tree_of(files), interpreter=interpreter, needed=[b"libb.so"])
    assert caught.value.status is Status.INTERNAL


def test_two_files_that_would_be_one_path_for_the_child_are_refused():
    liba = elf_image.build(needed=[b"/y/../lib64/libx.so"])
    files = {
        GLIBC: LINKER,
        "/lib64/libx.so": LIB,
        "/y": "/deep/er",
        "/deep/lib64/libx.so": elf_image.build(soname=b"o"),
        "/deep/er/f": b"",
        "/y2/liba.so": liba,
    }
    with pytest.raises(InternalError, match=r"libx\.so"):
        search(tree_of(files), interpreter=GLIBC.encode() + b"\0", needed=[b"libx.so", b"/y2/liba.so"])
