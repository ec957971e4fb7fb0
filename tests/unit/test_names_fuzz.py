"""The fuzz target of the record language works, and finds nothing in a moment. tests/fuzz/names_query.py goes on for longer."""

import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).resolve().parents[1] / "fuzz" / "names_query.py"


def fuzz(folder, *arguments, before=""):
    words = [str(TARGET), *map(str, arguments)]
    program = f"{before}\nimport runpy, sys; sys.argv = {words!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_text_is_a_query_or_a_manager_error(tmp_path, seed):
    done = fuzz(tmp_path, "--plain", "--seconds", 2, "--seed", seed)
    assert done.returncode == 0, done.stderr
    assert "all are queries or errors" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_written_down(tmp_path):
    broken = "import shoal.manager.names.parse as module; module.unquoted = lambda text: text[1:-1]"
    done = fuzz(tmp_path, "--plain", "--seconds", 60, "--seed", 1, before=broken)
    assert done.returncode == 1
    (failed,) = tmp_path.iterdir()
    assert fuzz(tmp_path, failed, before=broken).returncode == 1
    assert fuzz(tmp_path, failed).returncode == 0
