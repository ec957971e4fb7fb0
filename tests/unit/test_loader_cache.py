import os
import threading
import time

import pytest

from shoal.loader.cache import BoundedCache, FileIdentity, identity_at


def test_an_identity_changes_with_contents_mode_and_replacement(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    seen = [identity_at(str(path))]
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(seen[0].mtime_ns, seen[0].mtime_ns))
    other.rename(path)
    seen.append(identity_at(str(path)))
    path.write_bytes(b"three")
    seen.append(identity_at(str(path)))
    assert len(set(seen)) == 3
    assert seen[-1] == FileIdentity.of(os.stat(path))


def test_nothing_there_has_no_identity(tmp_path):
    assert identity_at(str(tmp_path / "missing")) is None
    assert identity_at("a\0b") is None


def test_a_file_changed_just_now_is_not_settled_whatever_its_mtime_says(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(0, 0))
    assert not identity_at(str(path)).is_settled()
    assert FileIdentity(1, 2, 3, 4, time.time_ns() - 10**9).is_settled()
    assert not FileIdentity(1, 2, 3, 4, time.time_ns() + 10**12).is_settled()


def test_the_value_used_longest_ago_goes_first():
    cache = BoundedCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)
    cache.put("a", 4)
    assert cache.get("a") == 4
    cache.clear()
    assert len(cache) == 0


def test_a_cache_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        BoundedCache(0)


def test_threads_never_see_a_value_of_another_key_or_more_than_the_capacity():
    cache = BoundedCache(8)
    wrong = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        start.wait()
        for step in range(2000):
            key = (seed * 7 + step * 13) % 20
            found = cache.get(key)
            if found not in (None, key * 3) or len(cache) > 9:
                wrong.append((key, found))
            cache.put(key, key * 3)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(cache) == 8


def test_a_child_of_fork_is_not_stuck_on_a_lock_that_was_held():
    cache = BoundedCache(2)
    cache.put("a", 1)
    with cache._lock:
        pid = os.fork()
        if pid == 0:
            cache.put("b", 2)
            os._exit(0 if cache.get("b") == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
