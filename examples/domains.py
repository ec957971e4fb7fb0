"""What the test of Barrelfish's process manager does, with shoal's: domains on this core and on another one, held by their capabilities.

    python examples/domains.py

Starts a manager with a state directory of its own, and leaves nothing. This file is the program that it starts, too: by its bare name,
through PATH, in the role that the second word of its arguments says. A line that begins with "Failed" means that something was not as it
should be, and the exit status is 1 then.
"""

import os
import select
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import shoal.manager
from shoal.manager import ManagerError
from shoal.startup import domain as own

NAME = "domains"
ASLEEP, LAST = "asleep", "that was the last line"
SLEEP_S = 0.5
AT_ONCE = 20


# --- the roles of the program that is started ---------------------------------------------------------------


def say(line):
    os.write(1, f"{line}\n".encode())  # at once, since the dispatchers of a domain have one log


def loop():
    say("looping")
    while True:
        signal.pause()


def sleeper():
    say(ASLEEP)
    time.sleep(SLEEP_S)
    say(LAST)


def spanner(first, other):
    """Runs on two cores in the end: a span starts the same program once more, with the same arguments."""
    first, other = int(first), int(other)
    if own.core() == first:
        own.span(other)
        with channel_to(other) as end:
            say(f"spanned: {end.recv(100).decode()}")
    else:
        with channel_to(first) as end:
            end.send(f"core {own.core()} is there".encode())
    loop()


def channel_to(core):
    return socket.socket(fileno=own.channel(core).consume())


def nothing():
    """Ends at once."""


ROLES = {"loop": loop, "sleep": sleeper, "span": spanner, "nothing": nothing}


# --- the test -----------------------------------------------------------------------------------------------


class Failed(Exception):
    pass


def check(is_so, what):
    if not is_so:
        raise Failed(what)


def start(manager, core, role, *words, **how):
    return manager.spawn_program(core, NAME, [NAME, role, *map(str, words)], **how)


def said(domain, text):
    """Waits until it has written a line that begins like this, and gives the line."""
    for line in lines(domain):
        if line.startswith(text):
            return line
    complaint = b"".join(domain.logs(stream="stderr")).decode()
    raise Failed(f"domain {domain.id} has ended and never said {text!r}; {complaint}")


def lines(domain):
    rest = ""
    for piece in domain.logs(stream="stdout", follow=True):
        *whole, rest = (rest + piece.decode()).split("\n")
        yield from whole


def killed_by_its_capability(manager, core):
    domain = start(manager, core, "loop")
    said(domain, "looping")
    pid = domain.status().pids[0]
    pidfd = os.pidfd_open(pid)
    try:
        manager.domain(domain.cap.to_token()).kill()  # whoever has the token can
        check(select.select([pidfd], [], [], 0)[0], f"process {pid} runs on after the kill")
    finally:
        os.close(pidfd)
    ended = domain.wait()
    check((ended.code, ended.reason) == (9, "killed"), f"a killed domain ended with {ended}")
    print(f"core {core}: killed by its capability, and gone when the kill returned")


def spans(manager, core, other):
    domain = start(manager, core, "span", core, other, own_capability=True)
    line = said(domain, "spanned")
    status = domain.status()
    check(sorted(status.cores) == sorted((core, other)), f"it runs on {status.cores}")
    domain.kill()
    for pid in status.pids:
        check(not Path(f"/proc/{pid}").exists(), f"dispatcher {pid} survived the kill of its domain")
    print(f"core {core}: {line}; one kill ends both")


def waits_until_it_has_ended(manager, core):
    domain = start(manager, core, "sleep")
    said(domain, ASLEEP)
    ended = domain.wait()
    back_s = time.time()
    check(ended.code == 0, f"the sleeper ended with {ended}")
    print(f"core {core}: the wait came back {back_s - last_line_s(domain):.3f} s after the last line")


def last_line_s(domain):
    """When it was written; it has to be there."""
    entries = list(domain.log_entries(stream="stdout"))
    check(b"".join(entry.data for entry in entries).decode().splitlines() == [ASLEEP, LAST], "a wait returned before the last line")
    return entries[-1].at_s


def waits_without_hanging(manager, core):
    domain = start(manager, core, "sleep")
    said(domain, ASLEEP)
    check(domain.wait(nohang=True) is None, "a wait with nohang on a living domain did not say that it lives")
    check(domain.status().state == "running", "asking has changed its state")
    first = domain.wait()
    last_line_s(domain)
    check(first == domain.wait(nohang=True) == domain.wait(), "not every wait was told the same")
    print(f"core {core}: nohang says that it lives, then how it ended, as often as one asks")


def measured(manager, core):
    taken_ms = []
    for _ in range(AT_ONCE):
        begun = time.perf_counter()
        domain = start(manager, core, "nothing")
        taken_ms.append((time.perf_counter() - begun) * 1000)
        check(domain.wait().code == 0, "a program that does nothing failed")
    spread = f"{min(taken_ms):.1f} to {max(taken_ms):.1f} ms"
    print(f"core {core}: {AT_ONCE} started, {statistics.median(taken_ms):.1f} ms each until it runs ({spread})")


def listed(manager, cores):
    domains = [start(manager, core, "loop") for core in cores]
    for _ in range(10):
        check(manager.domains(sort=True) == sorted(domain.id for domain in domains), "the list is not what was started, in order")
        for id in manager.domains(sort=False):
            status = manager.status(id)
            check(" ".join(status.argv).isprintable() and status.state == "running", f"domain {id} has an odd status: {status}")
    for domain in domains:
        domain.kill()
    check(manager.domains() == [], "domains are listed that have ended")
    print(f"listed ten times: {len(domains)} domains, sorted and not, each with its arguments and its state")


def refused(manager, core):
    """What the original never checks."""
    for act, code in (
        (lambda: start(manager, 253, "nothing"), "PROC_MGMT_ERR_INVALID_SPAWND"),
        (lambda: manager.spawn_program(core, "no-such-program-anywhere", ["no"]), "SPAWN_ERR_LOAD"),
        (lambda: manager.status(1 << 31), "PROC_MGMT_ERR_DOMAIN_TABLE_FIND"),
    ):
        try:
            act()
        except ManagerError as error:
            check(error.code == code, f"{error.code} instead of {code}")
        else:
            raise Failed(f"nobody said {code}")
    print("refused with its code: a core without a spawn daemon, a program that is not there, a domain that never was")


def every_step(manager):
    cores = manager.cores()
    here = cores[0]
    others = cores[1:2]
    if not others:
        print("there is one core only: what takes another one is left out")
    for core in (here, *others):
        killed_by_its_capability(manager, core)
    for core, other in ((other, here) for other in others):
        spans(manager, core, other)
        spans(manager, other, core)
    for core in (*others, here):
        waits_until_it_has_ended(manager, core)
        waits_without_hanging(manager, core)
    for core in (here, *others):
        measured(manager, core)
    listed(manager, (here, *others))
    refused(manager, here)


def put_into_path(directory):
    program = Path(directory, NAME)
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{Path(__file__).resolve()}' \"$@\"\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{directory}:{os.environ.get('PATH', '/usr/bin:/bin')}"


def main():
    with tempfile.TemporaryDirectory(prefix="shoal-domains-") as directory:
        put_into_path(directory)
        os.environ["SHOAL_STATE_DIR"] = os.path.join(directory, "state")
        with shoal.manager.connect() as manager:
            pidfd = os.pidfd_open(manager.names.get("proc_mgmt").attributes["pid"])
            try:
                every_step(manager)
            except (Failed, ManagerError) as error:
                print(f"Failed: {error}")
                return 1
            finally:
                for status in manager.statuses():
                    manager.domain(status.id).kill()
                manager.stop()
                select.select([pidfd], [], [])
                os.close(pidfd)
    print("all as it should be")
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ROLES[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())
