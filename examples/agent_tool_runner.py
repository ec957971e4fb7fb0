"""Run the tool calls of an agent at the same time, each in a sandbox of its own, and show what they say as they say it.

    python examples/agent_tool_runner.py [--trio] [CALLS.json]

CALLS.json is a list such as [{"name": "count", "tool": "shell", "input": "wc -l /work/*"}]; the tools are `shell` and `python`. Every call
sees the system's programs, read-only, a /tmp of its own, and the directory of CALLS.json at /work, read-only; no network, no environment,
no other process. It may take 5 seconds (TIME_LIMIT_S in the environment changes that) and print 64 KiB. A third tool, `answer`, is a shell
that ends the other calls when it succeeds, since an agent that has its answer needs no more. Prints a line for each line of output,
then a summary in JSON. Without CALLS.json, runs a few calls that an agent makes one day, with the current directory at /work.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anyio

from shoal import Sandbox, aio

TIME_LIMIT_S = float(os.environ.get("TIME_LIMIT_S", "5"))
OUTPUT_BYTES = 64 << 10
TOOLS: dict[str, Callable[[str], list[str]]] = {
    "shell": lambda line: ["/bin/sh", "-c", line],
    "python": lambda source: ["/usr/bin/python3", "-I", "-c", source],
    "answer": lambda line: ["/bin/sh", "-c", line],
}

BUILT_IN = [
    {"name": "look", "tool": "shell", "input": "ls /work | head -n 3; ls /home"},
    {"name": "sum", "tool": "python", "input": "print(sum(range(10)))"},
    {"name": "phone home", "tool": "python", "input": "from urllib.request import urlopen; urlopen('http://198.51.100.1/')"},
    {"name": "hang", "tool": "shell", "input": "echo begun; (setsid sleep 600 &); sleep 600"},
    {"name": "flood", "tool": "shell", "input": "yes | head -c 1000000 | tr -d '\\n'"},
]


@dataclass
class Outcome:
    """What is told of a call."""

    name: str
    status: str = "cancelled"
    returncode: int | None = None
    output: list[str] = field(default_factory=list)
    cpu_ms: int = 0


async def call_tool(name: str, command: list[str], box: Sandbox) -> Outcome:
    """Run one call and stream what it says. Cancelled, it ends the call with all that it has started."""
    outcome, room = Outcome(name), OUTPUT_BYTES
    try:
        async with aio.open_process(
            command, sandbox=box, stdin=aio.DEVNULL, stderr=aio.STDOUT, text=True, encoding="utf-8", errors="replace"
        ) as process:
            async for line in process.stdout:
                room -= len(line)
                if room < 0:
                    process.kill()
                    outcome.status = "too much output"
                    break
                print(f"{name}: {line.rstrip()}", flush=True)
                outcome.output.append(line.rstrip("\n"))
            outcome.returncode = await process.wait()
            if room >= 0:
                outcome.status = process.reason or "unknown"
            outcome.cpu_ms = round((process.usage.user_s + process.usage.system_s) * 1000) if process.usage else 0
    except OSError as error:  # the model has asked for what is not there
        outcome.status, outcome.output = "not started", [str(error)]
    return outcome


async def run_calls(calls: list[dict[str, str]], work: Path) -> list[Outcome]:
    """All calls at the same time; the first `answer` that ends well ends the others."""
    box = Sandbox(
        read={"/usr": "/usr", "/work": work},
        cwd="/work",
        wall_time=TIME_LIMIT_S,
        open_files=64,
        file_size="16M",
    )
    outcomes = {call["name"]: Outcome(call["name"]) for call in calls}

    async def one(call: dict[str, str]) -> None:
        outcome = outcomes[call["name"]] = await call_tool(call["name"], TOOLS[call["tool"]](call["input"]), box)
        if call["tool"] == "answer" and outcome.returncode == 0:
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(one, call)
    return list(outcomes.values())


def main(arguments: list[str]) -> int:
    backend = "trio" if "--trio" in arguments else "asyncio"
    files = [word for word in arguments if word != "--trio"]
    if len(files) > 1 or files[:1] in (["-h"], ["--help"]):
        print(__doc__, file=sys.stderr)
        return 2
    calls = json.loads(Path(files[0]).read_text()) if files else BUILT_IN
    work = Path(files[0]).resolve().parent if files else Path.cwd()
    unknown = [call["tool"] for call in calls if call["tool"] not in TOOLS]
    if unknown:
        print(f"there is no tool {unknown[0]!r}; there are: {', '.join(TOOLS)}", file=sys.stderr)
        return 2
    outcomes = anyio.run(run_calls, calls, work, backend=backend)
    print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
