"""What importing shoal loads: every program that starts others pays for it, and a child in a small world may lack it."""

import subprocess
import sys

import pytest

import shoal.loader

# Each of these costs milliseconds, or is not there in every world (ctypes needs libffi).
COSTLY = {"argparse", "asyncio", "ctypes", "email", "gzip", "hashlib", "json", "logging", "subprocess", "tarfile", "urllib.parse"}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_shoal_loads_nothing_costly():
    loaded = set(python("import sys, shoal; print(*sys.modules)").split())
    bare = set(python("import sys; print(*sys.modules)").split())  # what the installation itself brings along
    assert not COSTLY & (loaded - bare)


def test_a_python_without_ctypes_can_start_programs_and_say_what_the_machine_allows():
    out = python(
        "import sys; sys.modules['ctypes'] = None\n"
        "import shoal, shoal.probe\n"
        "flags = shoal.SpawnFlags.CLONE_NAMESPACE | shoal.SpawnFlags.DEFAULT_LDSVC\n"
        "with shoal.spawn('/bin/true', ['true'], flags=flags) as process: print(process.wait())\n"
        "print(len(shoal.probe.features()) > 5)"
    )
    assert out.split() == ["0", "True"]


def test_the_image_resolver_is_loaded_on_first_use():
    out = python(
        "import sys, shoal\n"
        "print('shoal.loader.oci' in sys.modules)\n"
        "from shoal import OciLayoutResolver\n"
        "print(OciLayoutResolver.__module__, shoal.loader.OciLayoutResolver is OciLayoutResolver)"
    )
    assert out.split() == ["False", "shoal.loader.oci", "True"]


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="OciResolver"):
        _ = shoal.loader.OciResolver
