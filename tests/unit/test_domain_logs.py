"""Reading the log of a domain while its init writes it and begins a new file."""

import os
import struct
import threading

import pytest

from shoal.manager.logs import LogReader, names, open_log

HEAD = struct.Struct("=QII")


def entry(text, stream=1):
    return HEAD.pack(1, len(text), stream) + text


def rotate(directory, text):
    """As an init does."""
    older, newer = (directory / name for name in names(7))
    newer.rename(older)
    newer.write_bytes(entry(text))


def number_of(fd):
    return int(os.pread(fd, 100, HEAD.size))


def test_the_two_files_belong_together_however_fast_the_log_grows(tmp_path):
    (tmp_path / names(7)[1]).write_bytes(entry(b"0"))
    rotate(tmp_path, b"1")
    done = threading.Event()

    def write():
        number = 1
        while not done.is_set():
            number += 1
            text = str(number).encode()
            (tmp_path / "new").write_bytes(entry(text))
            (tmp_path / names(7)[1]).rename(tmp_path / names(7)[0])
            (tmp_path / "new").rename(tmp_path / names(7)[1])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2000):
            _, fds = open_log(tmp_path, 7)
            numbers = [number_of(fd) for fd in fds]
            for fd in fds:
                os.close(fd)
            assert numbers == list(range(numbers[-1] - len(numbers) + 1, numbers[-1] + 1))
            assert numbers
    finally:
        done.set()
        writer.join()


def test_what_there_is_is_read_where_the_disk_had_no_room_for_a_new_file(tmp_path):
    (tmp_path / names(7)[0]).write_bytes(entry(b"0"))
    state, (fd,) = open_log(tmp_path, 7)
    assert (state, number_of(fd)) == ((0, 0), 0)
    os.close(fd)
    assert open_log(tmp_path, 8) == ((0, 0), [])


def test_nothing_is_left_open_where_a_file_cannot_be_opened(tmp_path):
    (tmp_path / names(7)[0]).symlink_to("/dev/null")
    (tmp_path / names(7)[1]).write_bytes(entry(b"0"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="symbolic links"):
        open_log(tmp_path, 7)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_has_the_number_of_an_earlier_one_is_read_from_its_beginning(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    first.write_bytes(entry(b"the first, and long\n"))
    second.write_bytes(entry(b"the second\n"))
    third.write_bytes(entry(b"the third\n"))
    answers = [(first, second), (second, third), (third, first)]

    def ask(seen):
        files = answers.pop(0)
        if files == (third, first):
            first.write_bytes(entry(b"the fourth\n"))  # where the first was, after that had gone
        return (not answers, (0, len(answers))), [os.open(file, os.O_RDONLY) for file in files]

    read = [each.data for each in LogReader(ask).entries(follow=True)]
    assert read == [b"the first, and long\n", b"the second\n", b"the third\n", b"the fourth\n"]


def test_an_entry_that_is_being_written_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "log"
    whole = entry(b"one\n") + entry(b"two\n", 2)
    lengths = [3, HEAD.size + 2, len(whole) - 1, len(whole)]

    def ask(seen):
        length = lengths.pop(0)
        path.write_bytes(whole[:length])
        return (not lengths, (0, length)), [os.open(path, os.O_RDONLY)]

    assert [(each.stream, each.data) for each in LogReader(ask).entries(follow=True)] == [(1, b"one\n"), (2, b"two\n")]
