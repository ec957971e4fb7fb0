"""docs/reference.md says what the docstrings say, and leaves no public name out."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import shoal
import shoal.aio

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "docs" / "generate_reference.py"


def generator():
    spec = importlib.util.spec_from_file_location("generate_reference", GENERATOR)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date():
    run = subprocess.run([sys.executable, GENERATOR, "--check"], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_public_name_is_in_the_reference():
    text = generator().reference()
    public = [name for name, value in vars(shoal).items() if not name.startswith("_") and not isinstance(value, ModuleType)]
    # There once IPython has asked for them.
    public = [name for name in public if not name.endswith("_ipython_extension")]
    public.remove("TYPE_CHECKING")
    public.append("OciLayoutResolver")  # not in the module before it is used
    assert "spawn" in public
    assert [name for name in public if f"\n### {name}\n" not in text] == []
    assert "\n### take_handle\n" in text
    names = [name for name, value in vars(shoal.aio).items() if not name.startswith("_") and not isinstance(value, ModuleType)]
    assert "open_process" in names
    assert [name for name in names if f"\n### {name}\n" not in text and name != "annotations"] == []


def test_a_long_signature_is_one_parameter_a_line():
    module = generator()
    text = "def f(a: int, /, b, c='a default as long as this makes a long line', *, d: int | None = None, **rest) -> None: ..."
    node = module.ast.parse(text).body[0]
    assert module.signature(node).splitlines() == [
        "f(",
        "    a: int,",
        "    /,",
        "    b,",
        "    c = 'a default as long as this makes a long line',",
        "    *,",
        "    d: int | None = None,",
        "    **rest,",
        ") -> None",
    ]
