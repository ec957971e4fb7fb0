"""The `shoal` command, also as `python -m shoal`: how its process begins and ends."""

import atexit
import contextlib
import gc
import os
import sys
import threading
from typing import NoReturn


def command() -> NoReturn:
    """Run the command line of this process.

    Most verbs take less time than an interpreter needs to look for garbage among modules while it loads them, and to take them
    apart in the end: so it does neither.
    """
    gc.disable()
    from shoal.cli.main import main

    code = main()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None or closed; main() has told what it could not say
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    command()
