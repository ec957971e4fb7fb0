"""A call on its way inside: the function with its arguments as a pickle, or an error that says what cannot be pickled.

What a call cannot import goes along by value: __main__ always does, with cloudpickle, and so do modules that no sandbox of this executor
can see. Which those are is worked out again when something has been imported since.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any

from shoal.executor.visible import out_of_sight

_registering = threading.RLock()
_FILE_NAME = 10
"""Which argument of types.CodeType it is."""
EXTRA = "shoal.SandboxExecutor takes cloudpickle and msgpack: pip install 'shoal[executor]'"


class Arguments:
    """Pickles calls for one executor.

    Args:
        path: where a call looks for modules; loaded: top-level packages that are loaded in it already.
    """

    def __init__(self, path: Sequence[str], loaded: frozenset[str]) -> None:
        try:
            import cloudpickle
            import msgpack  # noqa: F401  # needed later, and missed now
        except ImportError as error:
            raise ImportError(f"{EXTRA} ({error})", name=error.name) from None
        self._cloudpickle: Any = cloudpickle
        self._pickler = _keeping_file_names(cloudpickle)
        self._path, self._loaded = tuple(path), loaded
        self._seen = -1
        self._by_value: list[ModuleType] = []

    def pickled(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The call, as what `inside` reads.

        Raises:
            TypeError: something of it cannot be pickled; says what.
        """
        if not callable(function):
            raise TypeError(f"{function!r} cannot be called")
        try:
            return self._dumps((function, args, dict(kwargs)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever __reduce__ of anything raises
            raise TypeError(self._blame(function, args, kwargs, error)) from error

    def pickled_source(self, run: Callable[..., Any], source: str, inputs: Mapping[str, Any], outputs: list[str] | None) -> bytes:
        """The same for source text with its inputs, to be run by `run`."""
        try:
            return self._dumps((run, (source, dict(inputs), outputs), {}))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            for name, value in inputs.items():
                try:
                    self._dumps(value)
                except BaseException as own:
                    raise TypeError(f"input {name!r} ({_article(type(value).__name__)}) cannot be sent to a sandbox: {own}") from own
            raise TypeError(f"the code cannot be sent to a sandbox: {error}") from error

    def _dumps(self, value: object) -> bytes:
        with _registering:
            known = [module for module in self._out_of_sight() if module.__name__ not in self._cloudpickle.list_registry_pickle_by_value()]
            for module in known:
                self._cloudpickle.register_pickle_by_value(module)
            made = io.BytesIO()
            try:
                self._pickler(made, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
            finally:
                for module in known:
                    self._cloudpickle.unregister_pickle_by_value(module)
        return made.getvalue()

    def _out_of_sight(self) -> list[ModuleType]:
        if self._seen != len(sys.modules):
            self._seen = len(sys.modules)
            modules = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
            names = out_of_sight(modules, self._path, self._loaded)
            self._by_value = [module for name, module in modules if name in names]
        return self._by_value

    def _blame(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException) -> str:
        name = getattr(function, "__qualname__", None) or repr(function)
        parts = [(f"argument {index + 1} of {name}()", value) for index, value in enumerate(args)]
        parts += [(f"argument {key!r} of {name}()", value) for key, value in kwargs.items()]
        for what, value in [*parts, (f"the function {name}()", function)]:
            try:
                self._dumps(value)
            except BaseException as own:
                kind = type(value).__name__
                return f"{what} ({_article(kind)}) cannot be sent to a sandbox: {own}"
        return f"the call of {name}() cannot be sent to a sandbox: {error}"


def _keeping_file_names(cloudpickle: Any) -> Callable[..., Any]:
    """Its Pickler, by which code keeps the name of its file.

    Since 3.1.3 it leaves that away, so that a pickle does not depend on where a function was defined. A traceback does.
    """
    reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]

    def reduced(code: CodeType) -> tuple[Any, ...]:
        make, arguments = reduce_code(code)
        return make, (*arguments[:_FILE_NAME], code.co_filename, *arguments[_FILE_NAME + 1 :])

    return type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": ChainMap({CodeType: reduced}, cloudpickle.Pickler.dispatch_table)})


def _article(word: str) -> str:
    return ("an " if word[:1].lower() in "aeiou" else "a ") + word
