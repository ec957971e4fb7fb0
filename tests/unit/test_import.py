"""Importing shoal where it is not installed as it has to be."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import shoal


def test_an_archive_without_the_core_is_refused_with_what_to_do(tmp_path: Path) -> None:
    package = Path(shoal.__file__).parent
    with zipfile.ZipFile(tmp_path / "shoal.zip", "w") as archive:
        for path in package.rglob("*"):
            archive.write(path, path.relative_to(package.parent))
    code = "import sys; sys.path.insert(0, 'shoal.zip')\ntry: import shoal\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the C core of shoal cannot be loaded from shoal.zip/shoal (")
    assert done.stdout.endswith("; shoal has to be installed with pip, and not in an archive\n")
