"""shoal in notebooks: `%load_ext shoal`, then `%%shoal` runs a cell in a sandbox. See docs/notebooks.md.

IPython calls `load_ipython_extension()`. Nothing else happens on import.
"""

from __future__ import annotations

from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext shoal` does: give this IPython the magics `%shoal` and `%%shoal`.

    Raises:
        ImportError: this is no IPython; the extra is shoal[notebook].
    """
    try:
        from shoal.notebook.magic import Magic
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "IPython":
            raise
        what = "the magics need IPython 8.20 or later, which comes with an extra: pip install 'shoal[notebook]'"
        raise ImportError(what, name="IPython") from error
    shell.register_magic_function(Magic(shell).shoal, "line_cell", "shoal")


def unload_ipython_extension(shell: Any) -> None:
    """What `%unload_ext shoal` does: take them away. What runs in the background goes on."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("shoal", None)
