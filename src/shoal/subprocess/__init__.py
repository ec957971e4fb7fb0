"""shoal.subprocess: the standard module's names and behaviour, and one more keyword, `sandbox=`.

    from shoal import subprocess

Without `sandbox` a program gets what the standard module gives it. Waits and signals go by pidfd, a timeout ends the whole tree, and
`Popen.kill(tree=True)` does, too. docs/change-one-import.md tells every difference.

All names are here and nothing else is, as in the standard module: other names of it that tools look at are its own objects.
"""

from subprocess import DEVNULL as DEVNULL
from subprocess import PIPE as PIPE
from subprocess import STDOUT as STDOUT
from subprocess import CalledProcessError as CalledProcessError
from subprocess import CompletedProcess as CompletedProcess
from subprocess import SubprocessError as SubprocessError
from subprocess import TimeoutExpired as TimeoutExpired
from subprocess import _active as _active  # type: ignore[attr-defined]
from subprocess import _args_from_interpreter_flags as _args_from_interpreter_flags  # type: ignore[attr-defined]
from subprocess import _cleanup as _cleanup  # type: ignore[attr-defined]
from subprocess import _fork_exec as _fork_exec  # type: ignore[attr-defined]
from subprocess import _optim_args_from_interpreter_flags as _optim_args_from_interpreter_flags  # type: ignore[attr-defined]
from subprocess import list2cmdline as list2cmdline

from shoal.subprocess.calls import call as call
from shoal.subprocess.calls import check_call as check_call
from shoal.subprocess.calls import check_output as check_output
from shoal.subprocess.calls import getoutput as getoutput
from shoal.subprocess.calls import getstatusoutput as getstatusoutput
from shoal.subprocess.calls import run as run
from shoal.subprocess.popen import Popen as Popen

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Popen",
    "SubprocessError",
    "TimeoutExpired",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "run",
]
