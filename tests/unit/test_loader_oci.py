import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile

import elf_image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.handles.vmo import Vmo
from shoal.loader import OciLayoutResolver, inspect, library_closure
from shoal.loader import oci as oci_module
from shoal.loader.layers import LayerTree
from shoal.status import AccessDeniedError, BadHandleError, InternalError, NotFoundError, NotSupportedError, SpawnError, Status

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
REF = "org.opencontainers.image.ref.name"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def tar(files, **modes) -> bytes:
    """A layer. Text is the target of a link, None a directory, a tuple a hard link's target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.mode = modes.get(os.path.basename(path), 0o755)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            elif isinstance(content, tuple):
                member.type, member.linkname = tarfile.LNKTYPE, content[0]
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


class Layout:
    """An image layout being written."""

    def __init__(self, path):
        self.path, self.manifests = path, []
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str, **more):
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def json(self, value, media_type: str, **more):
        return self.blob(json.dumps(value).encode(), media_type, **more)

    def image(self, ref, layers, config=None, pack=lambda data: data, suffix="", **more):
        described = [self.blob(pack(data), LAYER + suffix) for data in layers]
        diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
        whole = {"architecture": ARCHITECTURE, "os": "linux", "config": config or {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {"schemaVersion": 2, "config": self.json(whole, "application/vnd.oci.image.config.v1+json"), "layers": described}
        annotations = {} if ref is None else {REF: ref}
        descriptor = self.json(manifest, MANIFEST, annotations=annotations, **more)
        self.write([*self.manifests, descriptor])
        return descriptor

    def write(self, manifests):
        self.manifests = manifests
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "layout")


def resolve(layout, name):
    with OciLayoutResolver(layout.path) as resolver:
        return resolver.resolve(name)


def content(layout, name) -> bytes:
    resolved = resolve(layout, name)
    data = resolved.executable.read()
    resolved.close()
    return data


PROGRAM = elf_image.build()


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), ("+gzip", gzip.compress), ("+gzip", lambda d: gzip.compress(d[:700]) + gzip.compress(d[700:]))]
)
def test_a_program_is_found_by_reference_and_path(layout, suffix, pack):
    layout.image("tool:1", [tar({"bin/tool": PROGRAM})], pack=pack, suffix=suffix)
    assert content(layout, "tool:1//bin/tool") == PROGRAM
    with pytest.raises(NotFoundError, match="bin/other"):
        resolve(layout, "tool:1//bin/other")
    with pytest.raises(NotFoundError, match="tool:2"):
        resolve(layout, "tool:2//bin/tool")


def test_an_image_may_be_named_by_its_digest(layout):
    digest = layout.image(None, [tar({"tool": PROGRAM})])["digest"]
    assert content(layout, f"{digest}//tool") == PROGRAM
    with pytest.raises(NotFoundError):
        resolve(layout, "")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"Entrypoint": ["/opt/a", "-x"], "Cmd": ["/opt/b"]}, b"a"),
        ({"Entrypoint": None, "Cmd": ["/opt/b"]}, b"b"),
        ({"Cmd": ["b"], "Env": ["PATH=/nowhere::/opt:/usr/bin"]}, b"b"),
        ({"Cmd": ["b"]}, b"usr"),
        ({"Cmd": ["./b"], "WorkingDir": "/opt"}, b"b"),
    ],
)
def test_without_a_path_the_image_says_what_runs(layout, config, expected):
    layout.image("i", [tar({"opt/a": b"a", "opt/b": b"b", "usr/bin/b": b"usr"})], config)
    assert content(layout, "i") == expected


@pytest.mark.parametrize("config", [{}, {"Cmd": []}, {"Cmd": "sh"}, {"Cmd": [5]}, {"Cmd": ["/missing"]}])
def test_an_image_that_names_no_program_is_not_found(layout, config):
    layout.image("i", [tar({"opt/a": b"a"})], config)
    with pytest.raises(NotFoundError):
        resolve(layout, "i")


def test_a_file_that_is_not_executable_is_denied(layout):
    layout.image("i", [tar({"data": b"x", "folder": None}, data=0o644)])
    with pytest.raises(AccessDeniedError, match="/data"):
        resolve(layout, "i//data")
    with pytest.raises(NotFoundError):
        resolve(layout, "i//folder")


def test_layers_hide_replace_and_link(layout):
    below = tar(
        {"usr/lib/a": b"a", "usr/lib/b": b"b", "lib": "usr/lib", "d/x": b"x", "d/y": b"y", "gone/z": b"z", "f": b"f", "dir/in": b"in"}
    )
    above = tar({
        "lib/.wh.a": b"", "lib/c": b"c", "d/new": b"new", "d/.wh..wh..opq": b"", ".wh.gone": b"",
        "hard": ("usr/lib/b",), "abs": "/lib/c", "out": "../../../etc/passwd", "f/g": b"g",
        "dir": b"a file now", "./dot": b"dot", "../up": b"up",
    })  # fmt: skip
    layout.image("i", [below, above])
    found = {
        "usr/lib/b": b"b",
        "lib/b": b"b",
        "usr/lib/c": b"c",
        "lib/c": b"c",
        "abs": b"c",
        "d/new": b"new",
        "dir": b"a file now",
        "dot": b"dot",
    }
    for path, data in found.items():
        assert content(layout, f"i//{path}") == data, path
    assert content(layout, "i//hard") == b"b"
    for path in ("usr/lib/a", "lib/a", "d/x", "d/y", "gone/z", "out", "dir/in", "f/g", "up", "etc/passwd"):
        with pytest.raises(NotFoundError):
            resolve(layout, f"i//{path}")


def image_of_true() -> dict[str, bytes]:
    closure = library_closure(inspect("/bin/true"), "/bin/true")
    files = {"bin/true": "/bin/true", **{library.inside.lstrip("/"): library.path for library in closure}}
    read = {}
    for path, source in files.items():
        with open(source, "rb") as file:
            read[path] = file.read()
    return read


@pytest.mark.skipif(os.geteuid() != 0 and not shutil.which("unshare"), reason="needs root or unshare, to change the root directory")
def test_a_dynamic_program_comes_with_its_image_s_libraries_and_runs_on_them(layout, tmp_path):
    layout.image("i", [tar(image_of_true())])
    resolved = resolve(layout, "i//bin/true")
    assert resolved.closure is None
    root = tmp_path / "root"
    for path, vmo in (("/hidden/true", resolved.executable), *resolved.files):
        assert isinstance(vmo, Vmo)
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(vmo.read())
        target.chmod(0o755)
    resolved.close()
    unshare = [] if os.geteuid() == 0 else ["unshare", "-r"]
    assert subprocess.run([*unshare, "chroot", root, "/hidden/true"], check=False, timeout=60).returncode == 0


def test_a_library_missing_in_the_image_is_internal_even_if_the_host_has_it(layout):
    files = image_of_true()
    libc = next(path for path in files if "libc." in path)
    del files[libc]
    layout.image("i", [tar(files)])
    with pytest.raises(InternalError, match=os.path.basename(libc)):
        resolve(layout, "i//bin/true")


def test_an_index_leads_to_the_image_for_this_machine(layout):
    ours = layout.image(None, [tar({"tool": b"ours"})], platform={"os": "linux", "architecture": ARCHITECTURE})
    other = layout.image(None, [tar({"tool": b"other"})], platform={"os": "linux", "architecture": "s390x"})
    both = layout.json({"manifests": [other, ours]}, INDEX, annotations={REF: "tool"})
    theirs = layout.json({"manifests": [other]}, INDEX, annotations={REF: "foreign"})
    layout.write([both, theirs])
    assert content(layout, "tool//tool") == b"ours"
    with pytest.raises(NotFoundError, match="this machine"):
        resolve(layout, "foreign//tool")


def test_indexes_do_not_nest_for_ever(layout):
    descriptor = layout.image("x", [tar({"tool": PROGRAM})])
    for _ in range(6):
        descriptor = layout.json({"manifests": [descriptor]}, INDEX, annotations={REF: "deep"})
    layout.write([descriptor])
    with pytest.raises(InternalError, match="indexes"):
        resolve(layout, "deep//tool")


def damage_refused(layout, match):
    with pytest.raises(InternalError, match=match) as caught:
        resolve(layout, "i//tool")
    assert caught.value.status is Status.IO


@pytest.mark.parametrize("suffix", ["", "+gzip"])
def test_a_blob_whose_bytes_changed_is_refused(layout, suffix):
    pack = gzip.compress if suffix else bytes
    layout.image("i", [tar({"tool": PROGRAM, "more": os.urandom(5000)})], pack=pack, suffix=suffix)
    for blob in (layout.path / "blobs/sha256").iterdir():
        good = blob.read_bytes()
        for bad in (
            good[:-1],
            good + b"x",
            good[:50] + bytes([good[50] ^ 1]) + good[51:],
            good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
            b"",
        ):
            blob.write_bytes(bad)
            damage_refused(layout, "damaged")
        blob.unlink()
        damage_refused(layout, "cannot open")
        blob.write_bytes(good)
    assert content(layout, "i//tool") == PROGRAM


def test_a_link_in_place_of_a_blob_or_a_digest_with_a_path_is_refused(layout):
    descriptor = layout.image("i", [tar({"tool": PROGRAM})])
    for digest in ("sha256:../../oci-layout", "md5:" + "0" * 32, "sha256:" + "A" * 64, ""):
        layout.write([{**descriptor, "digest": digest}])
        damage_refused(layout, "descriptor with digest")
    layout.write([{**descriptor, "size": 10**12}])
    damage_refused(layout, "size")


def test_layers_must_be_those_the_configuration_lists(layout):
    data = tar({"tool": PROGRAM})
    for diff_ids in ([], ["sha256:" + "0" * 64], ["nonsense"], None):
        config = layout.json({"rootfs": {"diff_ids": diff_ids}}, "application/vnd.oci.image.config.v1+json")
        layout.write([layout.json({"config": config, "layers": [layout.blob(data, LAYER)]}, MANIFEST, annotations={REF: "i"})])
        damage_refused(layout, "damaged")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100000, '{"manifests": 5}', '{"manifests": [5, {"annotations": []}]}'])
def test_an_index_that_is_not_one_never_gets_further(layout, text):
    (layout.path / "index.json").write_text(text)
    with pytest.raises(SpawnError):
        resolve(layout, "i//tool")


def test_other_media_types_and_versions_are_not_supported(layout, tmp_path):
    layout.image("i", [tar({"tool": PROGRAM})], suffix="+lzma")
    with pytest.raises(NotSupportedError, match="lzma"):
        resolve(layout, "i//tool")
    (layout.path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(NotSupportedError, match=r"2\.0\.0"):
        OciLayoutResolver(layout.path)
    with pytest.raises(NotFoundError):
        OciLayoutResolver(tmp_path / "missing")
    with pytest.raises(InternalError, match="oci-layout"):
        OciLayoutResolver(tmp_path)


def zstd_module():
    for name in ("compression.zstd", "zstandard"):
        try:
            return __import__(name, fromlist=["x"])
        except ImportError:
            pass
    return None


@pytest.mark.skipif(zstd_module() is None or not shutil.which("zstd"), reason="needs Python 3.14 or zstandard, and the zstd tool")
def test_a_zstd_layer_is_read(layout):
    def pack(data):
        return subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout

    layout.image("i", [tar({"tool": PROGRAM})], pack=pack, suffix="+zstd")
    assert content(layout, "i//tool") == PROGRAM


@pytest.mark.skipif(zstd_module() is not None, reason="zstd is there")
def test_a_zstd_layer_without_the_module_says_what_is_needed(layout):
    layout.image("i", [tar({"tool": PROGRAM})], suffix="+zstd")
    with pytest.raises(NotSupportedError, match="zstandard"):
        resolve(layout, "i//tool")


def test_an_image_that_unpacks_to_too_much_is_refused_before_it_does(layout, monkeypatch):
    monkeypatch.setattr(oci_module, "UNPACKED_BYTES", 1 << 20)
    layout.image("i", [tar({"tool": bytes(4 << 20)})], pack=gzip.compress, suffix="+gzip")
    with pytest.raises(SpawnError) as caught:
        resolve(layout, "i//tool")
    assert caught.value.status is Status.OUT_OF_RANGE


def test_images_stay_unpacked_up_to_a_number_and_nothing_stays_open_afterwards(layout):
    for name in "abc":
        layout.image(name, [tar({"tool": name.encode()})])
    before = len(os.listdir("/proc/self/fd"))
    with OciLayoutResolver(layout.path, keep=2) as resolver:
        for name in "aabbcca":
            resolved = resolver.resolve(f"{name}//tool")
            assert resolved.executable.read() == name.encode()
            resolved.close()
        assert len(os.listdir("/proc/self/fd")) == before + 1 + 2
        shutil.rmtree(layout.path / "blobs")
        with pytest.raises(InternalError):
            resolver.resolve("b//tool")
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(BadHandleError):
        resolver.resolve("a//tool")


NAME = st.lists(st.sampled_from(["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "é"]), min_size=1, max_size=4).map("/".join)
CONTENT = st.one_of(st.none(), NAME, st.tuples(NAME), st.binary(max_size=5))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(NAME, CONTENT, max_size=8), max_size=3), st.lists(NAME, max_size=5), st.integers(0, 3000), st.integers(0, 255)
)
def test_no_layer_breaks_a_tree_or_leads_out_of_it(layers, paths, at, value):
    tree = LayerTree()
    try:
        for files in layers:
            data = bytearray(tar(files))
            data[at % len(data)] = value
            file = open(os.memfd_create("layer", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115 - the tree owns it
            file.write(data)
            file.flush()
            status = Status.OK
            try:
                tree.add_layer(file)
            except SpawnError as error:
                status = error.status
            assert status in (Status.OK, Status.IO)
        for path in paths:
            found = tree.file(path)
            if found is not None:
                assert ".." not in found.path.split("/")
                assert tree.find(found.path) == tree.find(path)
                assert len(found.read(0, found.size)) <= found.size
    finally:
        tree.close()
