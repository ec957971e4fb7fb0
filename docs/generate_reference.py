"""Write docs/reference.md from the docstrings of the public names. `--check` only compares, and fails on a difference.

Reads source files instead of importing them: the text is then the same with every Python version, and a machine where
the native part cannot be built can still make it. Public is what shoal/__init__.py re-exports, in its order, and
the same for shoal.aio and shoal.manager, and the functions of shoal.startup; the modules a reader needs first come first. Standard
library only.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
TARGET = ROOT / "docs" / "reference.md"

INTRODUCTION = """\
# Reference

Every public name of `shoal`, from its docstring. Made by `make doc`; edit the docstrings, not this page.

Sizes are bytes, or text such as `"512M"`; durations are seconds, or text such as `"1m30s"`. *Ownership* says who closes what.
"""

FIRST = (
    "shoal.sandbox.run",
    "shoal.sandbox.box",
    "shoal.spawning",
    "shoal.flags",
    "shoal.actions",
    "shoal.handles",
    "shoal.plan",
    "shoal.status",
    "shoal.loader",
)

FACADES = ("shoal.aio", "shoal.manager")
"""Modules with names of their own."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function | ast.Assign | ast.AnnAssign
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Fails with|Ownership|Source|Open question):(.*)")
_ITEM = re.compile(r"([*\w][\w, *.`()]*):\s+(.*)")


class Module:
    """One source file and the definitions in it."""

    def __init__(self, name: str) -> None:
        path = SOURCE.joinpath(*name.split("."))
        self.name = name
        self.tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())

    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""

    def find(self, name: str) -> tuple[Definition, str]:
        """The definition of `name`, and its docstring (for a constant: the string right after it)."""
        for node, documentation in documented(self.tree.body):
            if name in names_of(node):
                return node, documentation
        raise LookupError(f"{self.name} defines no {name}")

    def reexports(self) -> Iterator[tuple[str, str]]:
        """(module, name) of each `from shoal.x import Name as Name`. A module that is a name itself, such as shoal.startup, is none."""
        # `if TYPE_CHECKING:`, and what takes an extra
        lazy = [node for branch in self.tree.body if isinstance(branch, ast.If | ast.Try) for node in branch.body]
        for node in [*self.tree.body, *lazy]:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("shoal."):
                for alias in node.names:
                    if not (alias.asname or alias.name).startswith("_"):
                        yield node.module, alias.name


def documented(body: list[ast.stmt]) -> Iterator[tuple[Definition, str]]:
    for index, node in enumerate(body):
        if isinstance(node, ast.ClassDef | Function):
            yield node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            after = body[index + 1] if index + 1 < len(body) else None
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            yield node, inspect.cleandoc(after.value.value) if is_text else ""  # type: ignore[union-attr]


def names_of(node: Definition) -> list[str]:
    if isinstance(node, ast.ClassDef | Function):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def decorators(node: ast.ClassDef | Function) -> set[str]:
    return {ast.unparse(item.func if isinstance(item, ast.Call) else item) for item in node.decorator_list}


def signature(node: Function, owner: str = "") -> str:
    """The call as a reader would write it: one line, or one parameter a line where that gets long."""
    arguments = node.args
    if owner and "staticmethod" not in decorators(node):
        arguments = ast.arguments(**{name: getattr(arguments, name) for name in ast.arguments._fields})
        if arguments.posonlyargs:
            arguments.posonlyargs = arguments.posonlyargs[1:]
        else:
            arguments.args = arguments.args[1:]
    prefix = f"{owner}.{node.name}" if owner else node.name
    prefix = f"await {prefix}" if isinstance(node, ast.AsyncFunctionDef) else prefix
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{prefix}({ast.unparse(arguments)}){returns}"
    if len(line) <= 100:
        return line
    parts = parameters(arguments)
    return f"{prefix}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def parameters(arguments: ast.arguments) -> list[str]:
    """Each parameter with its annotation and default, as ast would write it in a list of its own."""
    parts: list[str] = []
    plain = arguments.posonlyargs + arguments.args
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    for index, (argument, default) in enumerate(zip(plain, defaults, strict=True), 1):
        parts.append(ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else ""))
        if index == len(arguments.posonlyargs):
            parts.append("/")
    if arguments.vararg:
        parts.append("*" + ast.unparse(arguments.vararg))
    elif arguments.kwonlyargs:
        parts.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else ""))
    if arguments.kwarg:
        parts.append("**" + ast.unparse(arguments.kwarg))
    return parts


def prose(documentation: str) -> list[str]:
    """A docstring as Markdown: its sections become bold words, their items a list, indented text a code block."""
    lines: list[str] = []
    in_section = in_code = False
    for line in documentation.splitlines():
        match = None if line.startswith(" ") else _SECTION.fullmatch(line)
        indented = line.startswith("    ")
        if indented and not in_section and not in_code:
            lines += ["```text"]
            in_code = True
        elif in_code and not indented and line:
            while not lines[-1]:
                lines.pop()
            lines += ["```", ""]
            in_code = False
        if match:
            if lines and lines[-1]:
                lines.append("")
            lines.append(f"**{match[1]}:**{match[2]}")
            in_section = True
        elif in_section and indented:
            text = line[4:]
            item = None if text.startswith(" ") else _ITEM.fullmatch(text)
            if item:
                if not lines[-1].startswith("- "):
                    lines.append("")
                lines.append(f"- `{item[1].strip('`')}`: {item[2]}")
            else:
                lines[-1] += " " + text.strip()
        else:
            if line:
                in_section = False
            lines.append(line[4:] if in_code else line)
    if in_code:
        lines.append("```")
    return [*lines, ""]


def function(node: Function, documentation: str, owner: str = "") -> list[str]:
    title = f"{owner}.{node.name}" if owner else node.name
    return [f"{'####' if owner else '###'} {title}", "", "```text", signature(node, owner), "```", "", *prose(documentation)]


def class_(node: ast.ClassDef, documentation: str) -> list[str]:
    bases = [ast.unparse(base) for base in node.bases]
    head = f"class {node.name}" + (f"({', '.join(bases)})" if bases else "")
    lines = [f"### {node.name}", "", "```text", head, "```", "", *prose(documentation)]
    members = list(documented(node.body))
    lines += values(node, members, is_enum=any("enum." in base for base in bases))
    for member, text in members:
        if not isinstance(member, Function) or member.name.startswith("_") or not text:
            continue
        if decorators(member) & {"property", "functools.cached_property"}:
            kind = f" -> {ast.unparse(member.returns)}" if member.returns else ""
            lines += [f"#### {node.name}.{member.name}", "", "```text", f"{node.name}.{member.name}{kind}", "```", "", *prose(text)]
        else:
            lines += function(member, text, node.name)
    return lines


def values(node: ast.ClassDef, members: list[tuple[Definition, str]], *, is_enum: bool) -> list[str]:
    """A table of an enumeration's members or of a record's fields."""
    rows: list[str] = []
    is_record = "dataclass" in decorators(node) or any(ast.unparse(base) == "NamedTuple" for base in node.bases)
    for member, text in members:
        if isinstance(member, ast.ClassDef | Function) or names_of(member)[:1] in ([], ["__slots__"]):
            continue
        name = names_of(member)[0]
        if name.startswith("_"):
            continue
        meaning = " ".join(text.split())
        if is_enum and isinstance(member, ast.Assign):
            rows.append(f"| `{name}` | `{ast.unparse(member.value)}` | {meaning} |")
        elif is_record and isinstance(member, ast.AnnAssign):
            default = f" = {ast.unparse(member.value)}" if member.value else ""
            rows.append(f"| `{name}` | `{ast.unparse(member.annotation)}{default}` | {meaning} |".replace(" | None", " \\| None"))
    if not rows:
        return []
    head = "| Name | Value | Meaning |" if is_enum else "| Field | Type | Meaning |"
    if all(row.endswith("|  |") for row in rows):
        head = head.replace(" Meaning |", "")
        rows = [row.removesuffix("  |") for row in rows]
    return [head, "|" + "---|" * (head.count("|") - 1), *rows, ""]


def constant(node: ast.Assign | ast.AnnAssign, name: str, documentation: str) -> list[str]:
    value = f" = {ast.unparse(node.value)}" if node.value else ""
    return [f"### {name}", "", "```text", f"{name}{value}", "```", "", *prose(documentation)]


def describe(node: Definition, name: str, documentation: str) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return class_(node, documentation)
    if isinstance(node, Function):
        return function(node, documentation)
    return constant(node, name, documentation)


def reference() -> str:
    lines = [INTRODUCTION]
    modules: dict[str, Module] = {}
    for module, name in sorted(Module("shoal").reexports(), key=lambda item: FIRST.index(item[0]) if item[0] in FIRST else len(FIRST)):
        node, documentation = resolve(module, name)
        home = module
        if home not in modules:
            modules[home] = Module(home)
            lines += [f"## {home}", "", *prose(modules[home].docstring().split("\n\n")[0])]
        lines += describe(node, name, documentation)
    for facade in FACADES:
        lines += package(facade)
    for name in ("shoal.startup", "shoal.startup.domain"):
        lines += functions(name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def package(name: str) -> list[str]:
    """A package whose names are elsewhere."""
    home = Module(name)
    lines = [f"## {name}", "", *prose(home.docstring())]
    for module, exported in home.reexports():
        lines += describe(*resolved(module, exported))
    return lines


def resolved(module: str, name: str) -> tuple[Definition, str, str]:
    node, documentation = resolve(module, name)
    return node, name, documentation


def functions(name: str) -> list[str]:
    """A module that is used as a whole."""
    module = Module(name)
    lines = [f"## {name}", "", *prose(module.docstring())]
    for node, documentation in documented(module.tree.body):
        if isinstance(node, Function) and not node.name.startswith("_"):
            lines += function(node, documentation)
    return lines


def resolve(module: str, name: str) -> tuple[Definition, str]:
    """The definition behind a re-export, through packages that re-export it themselves."""
    source = Module(module)
    for inner, exported in source.reexports():
        if exported == name and inner != module:
            return resolve(inner, name)
    return source.find(name)


def main(arguments: list[str]) -> int:
    text = reference()
    if arguments == ["--check"]:
        if TARGET.exists() and TARGET.read_text() == text:
            return 0
        print(f"{TARGET.relative_to(ROOT)} is out of date; run: make doc", file=sys.stderr)
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
