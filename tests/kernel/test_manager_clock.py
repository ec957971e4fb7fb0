"""A manager while somebody sets the clock back and forth: for it alone, by a library that is loaded before the C library."""

import subprocess

import pytest
from rig import managed

from shoal import Sandbox
from shoal.manager import DomainRights, ExitStatus, ManagerError

HOUR = 3600
SHIFTING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void)
{
    long seconds = 0;
    FILE *file = fopen(getenv("SHIFT_FILE"), "r");
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1)
            seconds = 0;
        fclose(file);
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int ret = (int)syscall(SYS_clock_gettime, clock, at);
    if (ret == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += shift();
    return ret;
}

time_t time(time_t *to)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    return to ? *to = at.tv_sec : at.tv_sec;
}
"""


@pytest.fixture
def set_clock(tmp_path, monkeypatch):
    """Sets the clock by so many seconds, for every manager that is started from now on."""
    (tmp_path / "shifting.c").write_text(SHIFTING)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", tmp_path / "shifting.so", tmp_path / "shifting.c"], check=True)
    (tmp_path / "shift").write_text("0")
    monkeypatch.setenv("SHIFT_FILE", str(tmp_path / "shift"))
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "shifting.so"))

    def set_clock(seconds):
        draft = tmp_path / "draft"
        draft.write_text(str(seconds))
        draft.rename(tmp_path / "shift")

    return set_clock


@pytest.fixture
def state(set_clock, monkeypatch):
    with managed.state_directory(monkeypatch.setenv) as directory:
        yield directory


manager = managed.manager


def sh(manager, script, **how):
    return manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", script], envp={"PATH": "/usr/bin:/bin"}, **how)


def next_manager(state):
    pid = managed.manager_pid(state)
    managed.kill(pid)
    managed.wait_gone(pid)


def test_the_clock_of_the_manager_is_shifted(manager, set_clock):
    set_clock(HOUR * 24 * 365)
    sh(manager, "exit 0").wait()
    audited = manager.audit(1)[0][0]
    set_clock(0)
    assert sh(manager, "exit 0").wait().code == 0
    assert audited - manager.audit(1)[0][0] > HOUR * 24 * 364


@pytest.mark.parametrize("seconds", [-HOUR * 24 * 365 * 60, -HOUR, HOUR, HOUR * 24 * 365 * 30])
def test_domains_live_and_end_as_ever(state, manager, set_clock, seconds):
    before = sh(manager, "sleep 1000")
    set_clock(seconds)
    assert sh(manager, "exit 3").wait() == ExitStatus(3, "exited", None)
    assert before.wait(nohang=True) is None
    assert manager.domains() == [before.id]
    next_manager(state)
    assert before.status().state == "running"
    set_clock(0)
    before.kill()
    assert before.wait() == ExitStatus(9, "killed", 9)


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_a_capability_is_good_for_as_long_as_it_was_said(manager, set_clock, seconds):
    domain = sh(manager, "sleep 1000")
    lasting = manager.domain(domain.cap.attenuate(DomainRights.STATUS, expires="10m"))
    short = manager.domain(domain.cap.attenuate(DomainRights.STATUS, expires=0.05))
    set_clock(seconds)
    assert lasting.status().state == "running"
    managed.wait_until(lambda: short.cap.expires_in() < 0)
    with pytest.raises(ManagerError, match="expired"):
        short.status()
    domain.kill()


@pytest.mark.cell
@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_the_wall_time_of_a_domain_is_its_own(state, manager, set_clock, seconds):
    short, long = (
        sh(manager, "sleep 1000", sandbox=Sandbox(read=["/usr"], wall_time=2)),
        sh(manager, "sleep 1000", sandbox=Sandbox(read=["/usr"], wall_time="10m")),
    )
    set_clock(seconds)
    next_manager(state)
    assert short.wait(timeout=30) == ExitStatus(9, "wall_time", 9)
    assert long.wait(nohang=True) is None
    long.kill()
