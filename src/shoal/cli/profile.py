"""shoal profile: list the profiles there are, show what one comes down to, check one for mistakes.

Exit code 1 when `check` finds any.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from shoal.cli.output import CommandError, Outcome, printable
from shoal.sandbox import profiles
from shoal.sandbox.box import Sandbox
from shoal.sandbox.seccomp import Seccomp

_NOTES = """\
shoal profile list          all that there are, and where; yours win over those that come with shoal
shoal profile show NAME     what it comes down to: what it inherits included, and without what is as it would be anyway
shoal profile check FILE    all its mistakes; a NAME does as well

A profile is a TOML file with the attributes of shoal.Sandbox. Yours are in {folder}:

  inherits = "python"
  read = ["./data"]
  memory = "2G"

  [env]
  LANG = "de_DE.UTF-8"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal profile list | show NAME | check FILE-OR-NAME [--json]"
    parser.epilog = _NOTES.format(folder=profiles.user_folder())
    actions = parser.add_subparsers(prog="shoal profile", dest="action", required=True, metavar="list|show|check", help=argparse.SUPPRESS)
    for action, does, word in (
        ("list", "Print which profiles there are.", None),
        ("show", "Print what a profile comes down to.", "NAME"),
        ("check", "Print all mistakes of a profile.", "FILE-OR-NAME"),
    ):
        own = actions.add_parser(action, description=does)
        if word:
            own.add_argument("name", nargs="?", metavar=word)
        own.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> Outcome:
    if args.action == "list":
        return _list()
    if args.name is None:
        raise CommandError(f"which profile? there are: {', '.join(profiles.names())}")
    return _show(args.name) if args.action == "show" else _check(args.name)


def _list() -> Outcome:
    found = [{"name": name, "path": profiles.path_of(name)} for name in profiles.names()]
    for profile in found:
        profile["summary"] = _summary(profile["path"])
    width = max((len(profile["name"]) for profile in found), default=0)
    lines = []
    for profile in found:
        where = "" if profiles.is_shipped(profile["path"]) else f"  ({profile['path']})"
        lines.append(printable(f"{profile['name']:<{width}}  {profile['summary']}{where}").rstrip())
    return Outcome(text="\n".join(lines), data=found)


def _summary(path: str) -> str:
    """The comment that a file begins with."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            line = file.readline(400).strip()
    except OSError as error:
        return str(error.strerror)
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def _show(name: str) -> Outcome:
    box = profiles.load(name, "")
    return Outcome(text=as_toml(box), data={"name": name, "path": profiles.path_of(name), "sandbox": changed(box)})


def _check(word: str) -> Outcome:
    path = word if os.sep in word or word.endswith(".toml") else profiles.path_of(word)
    mistakes = profiles.mistakes_in(path)
    data = {
        "path": path,
        "ok": not mistakes,
        "mistakes": [{"path": item.path, "line": item.line, "key": item.key, "message": item.message} for item in mistakes],
    }
    text = "\n".join(printable(item.message) for item in mistakes) or f"{printable(path)}: no mistakes"
    return Outcome(text=text, data=data, code=1 if mistakes else 0)


# --- as TOML ----------------------------------------------------------------------------------------


def changed(box: Sandbox) -> dict[str, Any]:
    """What is not as it would be anyway, in the types of JSON and TOML, and without the values of secrets."""
    plain, found = Sandbox(), {}
    for item in dataclasses.fields(box):
        value = getattr(box, item.name)
        if value != getattr(plain, item.name):
            found[item.name] = _plain(value)
    if "env" in found:
        found["env"] = {name: "***" if name in box.secrets else value for name, value in found["env"].items()}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Seccomp):
        default = Seccomp(base=value.base)
        fields = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {name: _plain(item) for name, item in fields if name == "base" or item != getattr(default, name)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fsdecode(value) if isinstance(value, bytes | os.PathLike) else value


def as_toml(box: Sandbox) -> str:
    """The profile that `box` would be: what is not as it would be anyway."""
    values = changed(box)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{_key(inner)} = {_toml(item)}" for inner, item in value.items())]
    return "\n".join(lines).lstrip("\n") or "# as it is without a profile"


def _key(word: str) -> str:
    return word if word.isascii() and word.replace("_", "a").replace("-", "a").isalnum() else _toml(word)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # TOML's text in quotes is JSON's, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
