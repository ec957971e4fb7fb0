"""Run a Python script nobody has read, with one input, one output, and no way to anything else.

    python examples/run_untrusted_script.py SCRIPT [ARGUMENT...] < input > output

The script gets: itself (read-only), Python's shared libraries and standard library (read-only), an empty 16 MiB /tmp,
standard input and output, and 10 seconds (TIME_LIMIT_S in the environment changes that). It gets no other file, no
network, no environment, no other process to see, and it leaves nothing running. Ends with the script's exit status,
128+N for signal N, 124 when it was stopped.
"""

import os
import sys
import sysconfig
from pathlib import Path

import shoal
from shoal import AddNsEntry, Directory, Job, Process, SpawnFlags

TIME_LIMIT_S = float(os.environ.get("TIME_LIMIT_S", "10"))


def start(script: Path, arguments: list[str], job: Job) -> Process:
    python = os.path.realpath(sys.executable)
    library = sysconfig.get_path("stdlib")
    inside = f"/script/{script.name}"
    return shoal.spawn(
        python,
        ["python3", "-I", "-S", inside, *arguments],
        flags=SpawnFlags.DEFAULT_LDSVC | SpawnFlags.CLONE_STDIO,
        # Without a /usr/bin to find itself in, Python is told where its library is.
        environ={"PYTHONHOME": sys.base_prefix, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8", "PWD": "/tmp"},
        actions=[
            AddNsEntry(library, Directory.open(library)),
            AddNsEntry(inside, Directory.file(script)),
            AddNsEntry("/tmp", Directory.tmpfs("16M", mode=0o1777)),
            AddNsEntry("/dev", Directory.devices()),
        ],
        job=job,
        die_with_caller=True,
    )


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    with Job.default().create_child() as job, start(Path(arguments[0]).resolve(), arguments[1:], job) as child:
        try:
            status = child.wait(timeout=TIME_LIMIT_S)
        except TimeoutError:
            print(f"stopped after {TIME_LIMIT_S:g} s", file=sys.stderr)
            status = 124
        finally:
            job.kill()  # whatever the script left running
            job.wait_empty()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
