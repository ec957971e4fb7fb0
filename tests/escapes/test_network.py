"""The network: a program in a sandbox has a loopback device of its own, and nothing of the host's answers there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from attempts import Given

AF_PACKET, AF_NETLINK, AF_VSOCK, AF_ALG = 17, 16, 40, 38
SIOCSIFFLAGS = 0x8914
HIGH = 1 << 32


def abstract(name):
    return struct.pack("=H", socket.AF_UNIX) + b"\0" + name.encode()


def unix(path):
    return struct.pack("=H", socket.AF_UNIX) + os.fsencode(path) + b"\0"


def ipv4(host, port):
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def ipv6(host, port):
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, socket.inet_pton(socket.AF_INET6, host), 0)


def connect(address, kind=socket.SOCK_STREAM):
    family = struct.unpack_from("=H", address)[0]
    return (("socket", family, kind, 0), ("connect", Given(1), address, len(address)))


@pytest.fixture
def listeners():
    """Opens listening sockets of the host; gives the socket and its address as C has it."""
    with contextlib.ExitStack() as stack:

        def listen(family, address, kind=socket.SOCK_STREAM):
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)
            if kind != socket.SOCK_DGRAM:
                listener.listen()
            listener.setblocking(False)
            return listener

        yield listen


@pytest.mark.cell
def test_an_abstract_socket_of_the_host_is_not_reached(outside, inside, listeners):
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        name = f"shoal-escapes-{os.getpid()}-{kind}"
        listeners(socket.AF_UNIX, f"\0{name}", kind)
        attempt = connect(abstract(name), kind)
        assert outside.errnos(*attempt) == [0, 0]
        for filtered in ("default", "off"):
            assert inside.but(seccomp=filtered).errnos(*attempt) == [0, errno.ECONNREFUSED]


@pytest.mark.cell
def test_what_listens_on_the_loopback_of_the_host_is_not_reached(outside, inside, listeners):
    addresses = [ipv4("127.0.0.1", listeners(socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1])]
    with contextlib.suppress(OSError):  # a machine without IPv6
        addresses.append(ipv6("::1", listeners(socket.AF_INET6, ("::1", 0)).getsockname()[1]))
    for address in addresses:
        assert outside.errnos(*connect(address)) == [0, 0]
        for filtered in ("default", "off"):
            assert inside.but(seccomp=filtered).errnos(*connect(address)) == [0, errno.ECONNREFUSED]
    assert inside.enforced["network"] is True


@pytest.mark.cell
def test_no_packet_leaves_for_the_world(inside, listeners):
    receiver = listeners(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM)
    here = ipv4("127.0.0.1", receiver.getsockname()[1])
    send = ("sendto", Given(1), "x", 1, 0, here, len(here))
    assert inside.errnos(("socket", socket.AF_INET, socket.SOCK_DGRAM, 0), send) == [0, 0]  # to its own loopback
    with pytest.raises(BlockingIOError):
        receiver.recv(1)
    for address in (ipv4("192.0.2.1", 53), ipv4("169.254.169.254", 80), ipv6("2001:db8::1", 53)):
        assert inside.errnos(*connect(address))[1] == errno.ENETUNREACH
        assert inside.errnos(*connect(address, socket.SOCK_DGRAM))[1] == errno.ENETUNREACH


@pytest.mark.cell
def test_the_network_of_the_host_is_reached_when_it_was_asked_for_and_only_then(inside, listeners):
    name = f"shoal-escapes-host-{os.urandom(8).hex()}"
    listeners(socket.AF_UNIX, f"\0{name}")
    port = listeners(socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1]
    host = inside.but(network="host")
    assert host.errnos(*connect(ipv4("127.0.0.1", port))) == [0, 0]
    assert host.enforced["network"] is False
    # Abstract sockets belong to a network, but are not one: where the kernel can tell them apart, they stay closed.
    assert host.errnos(*connect(abstract(name)))[1] == (errno.EPERM if host.is_scoped else 0)


@pytest.mark.cell
def test_raw_sockets_and_other_families_are_closed(outside, inside):
    raw = (
        ("socket", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        ("socket", socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    )
    others = (
        ("socket", AF_PACKET, socket.SOCK_RAW, 0),
        ("socket", HIGH | AF_PACKET, socket.SOCK_RAW, 0),
        ("socket", AF_VSOCK, socket.SOCK_STREAM, 0),
        ("socket", AF_ALG, socket.SOCK_SEQPACKET, 0),
        ("socket", AF_NETLINK, socket.SOCK_RAW, 9),  # audit
        ("socket", AF_NETLINK, socket.SOCK_RAW, HIGH | 12),  # netfilter
        ("socketpair", AF_PACKET, socket.SOCK_RAW, 0, bytes(8)),
    )
    if os.geteuid() == 0:
        assert outside.errnos(raw[0], others[0]) == [0, 0]
    assert inside.errnos(*raw) == [errno.EPERM] * 2
    assert inside.errnos(*others) == [errno.EAFNOSUPPORT] * len(others)
    assert inside.but(seccomp="off").errnos(*raw, *others[:2]) == [errno.EPERM] * 4


@pytest.mark.cell
def test_devices_and_routes_are_not_changed(outside, inside):
    """By netlink and by ioctl, also not in the network of its own."""
    newlink = struct.pack("=IHHIIBxHiII", 32, 16, 0x605, 1, 0, 0, 0, 0, 0, 0)  # RTM_NEWLINK: request, acknowledge, create
    kernel = struct.pack("=HHII", AF_NETLINK, 0, 0, 0)
    steps = (
        ("socket", AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE),
        ("sendto", Given(1), newlink, len(newlink), 0, kernel, len(kernel)),
        ("recvfrom", Given(1), bytes(20), 20, 0, 0, 0),
        ("socket", socket.AF_INET, socket.SOCK_DGRAM, 0),
        ("ioctl", Given(4), SIOCSIFFLAGS, b"lo" + bytes(14) + struct.pack("h", 0) + bytes(22)),
    )
    for filtered in ("default", "off"):
        for network in ("none", "host"):
            outcomes = inside.but(seccomp=filtered, network=network).calls(*steps)
            assert struct.unpack_from("=i", outcomes[2].data, 16)[0] == -errno.EPERM
            assert outcomes[4].errno == errno.EPERM


# --- sockets that are files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(listeners, folder):
    """A unix socket that anybody may connect to, in a directory of its own."""
    at = folder / "service"
    at.mkdir()
    listener = listeners(socket.AF_UNIX, str(at / "socket"))
    (at / "socket").chmod(0o777)
    return at, listener


@pytest.mark.cell
def test_a_socket_that_is_a_file_is_not_reached_where_its_directory_was_not_granted(outside, inside, service):
    at, _ = service
    assert outside.errnos(*connect(unix(at / "socket"))) == [0, 0]
    assert inside.errnos(*connect(unix(at / "socket"))) == [0, errno.ENOENT]


@pytest.mark.cell
def test_a_directory_that_is_read_gives_what_listens_in_it(inside, service):
    """To connect changes no file, so a read-only mount does not prevent it, nor does a network of one's own. SECURITY.md says so."""
    at, listener = service
    assert inside.but(read={"/service": at}).errnos(*connect(unix("/service/socket"))) == [0, 0]
    listener.accept()[0].close()
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    assert "A directory that contains a unix socket gives what listens there" in text


@pytest.mark.cell
def test_a_socket_in_a_directory_that_is_read_keeps_its_permissions(inside, service):
    at, _ = service
    (at / "socket").chmod(0o700)
    expected = errno.EACCES if inside.has_own_user else 0
    assert inside.but(read={"/service": at}).errnos(*connect(unix("/service/socket"))) == [0, expected]


@pytest.mark.cell
def test_no_socket_is_made_where_only_reading_was_granted(inside, service):
    at, _ = service
    address = unix("/service/another")
    steps = (("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0), ("bind", Given(1), address, len(address)))
    assert inside.but(read={"/service": at}).errnos(*steps) == [0, errno.EROFS]


@pytest.mark.cell
def test_sandboxes_with_a_directory_in_common_meet_there_as_granted(inside, folder):
    """What one makes there belongs to the caller, and so to the other: that is what it is for."""
    address = unix("/common/socket")
    stream = ("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
    box = inside.but(write={"/common": folder})
    with box.held(stream, ("bind", Given(1), address, len(address)), ("listen", Given(1), 5)) as other:
        assert [outcome.errno for outcome in other.outcomes] == [0, 0, 0]
        assert box.errnos(*connect(address)) == [0, 0]
        assert inside.errnos(*connect(address)) == [0, errno.ENOENT]
