"""The disk cache: whole entries or none, built once, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings

import pytest

from fcgen.errors import FcError
from fcgen.runtime import cache as cache_module
from fcgen.runtime.cache import DiskCache, cache_dir, key_of, open_cache
from tests.work import calls

KEY = key_of("a kernel", 1)
FILES = {"kernel.cubin": bytes(range(256)) * 100, "kernel.cu": b"// text", "empty": b""}
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are POSIX")


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path)


def entry_file(cache):
    (path,) = cache.root.glob("??/*.fce")
    return path


def test_what_is_put_is_got(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, FILES, {"arch": "sm_89", "registers": 40})
    assert cache.get(KEY) == FILES
    assert cache.get_entry(KEY).meta == {"arch": "sm_89", "registers": 40}
    assert cache.get(key_of("another")) is None


@pytest.mark.parametrize("damage", [
    pytest.param(lambda b: b"", id="empty"),
    pytest.param(lambda b: b[:10], id="short head"),
    pytest.param(lambda b: b[:-1], id="cut"),
    pytest.param(lambda b: b + b"x", id="longer"),
    pytest.param(lambda b: b"XXXX" + b[4:], id="magic"),
    pytest.param(lambda b: b[:8] + b"\xff" + b[9:], id="format"),
    pytest.param(lambda b: b[:-1] + bytes([b[-1] ^ 1]), id="flipped bit at the end"),
    pytest.param(lambda b: b[:60] + bytes([b[60] ^ 1]) + b[61:], id="flipped bit in the head"),
    pytest.param(lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:], id="flipped bit in the hash"),
])
def test_a_damaged_entry_is_removed_and_built_again(cache, damage):
    cache.put(KEY, FILES, {})
    path = entry_file(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(KEY) is None
    assert not path.exists()
    assert not cache.get_or_build(KEY, lambda: (FILES, {})).hit
    assert cache.get(KEY) == FILES


def test_an_entry_under_another_keys_name_is_not_used(cache):
    cache.put(KEY, FILES, {})
    other = key_of("other")
    target = cache._path(other)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(entry_file(cache).read_bytes())
    assert cache.get(other) is None


def test_a_build_that_fails_leaves_nothing(cache):
    def build():
        raise FcError("compile/nvrtc", "no")

    with pytest.raises(FcError):
        cache.get_or_build(KEY, build)
    assert cache.stats().entries == 0
    assert cache.get_or_build(KEY, lambda: (FILES, {})).files == FILES


def test_a_second_ask_is_a_hit(cache):
    assert not cache.get_or_build(KEY, lambda: (FILES, {"a": 1})).hit
    entry = cache.get_or_build(KEY, lambda: pytest.fail("built again"))
    assert entry.hit and entry.files == FILES and entry.meta == {"a": 1}


def test_threads_that_ask_at_once_build_once(cache):
    built = []

    def build():
        built.append(1)
        time.sleep(0.1)
        return FILES, {}

    threads = [threading.Thread(target=cache.get_or_build, args=(KEY, build)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


WORKER = """
import os, sys, time
from pathlib import Path
from fcgen.runtime.cache import DiskCache, key_of
root, log = Path(sys.argv[1]), Path(sys.argv[2])
def build():
    with open(log, "a") as out:
        out.write(f"{os.getpid()}\\n")
    time.sleep(0.5)
    return {"cubin": b"x" * 100000}, {}
entry = DiskCache(root).get_or_build(key_of("shared"), build)
assert entry.files["cubin"] == b"x" * 100000
"""


def test_processes_that_start_together_build_once(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", WORKER, str(tmp_path / "cache"), str(log)]
    (tmp_path / "cache").mkdir()
    workers = [subprocess.Popen(command) for _ in range(5)]
    assert [w.wait(timeout=60) for w in workers] == [0] * 5
    assert len(log.read_text().splitlines()) == 1


def test_a_lock_that_is_never_released_only_costs_time(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "LOCK_SECONDS", 0.05)
    held = cache._lock(KEY)
    try:
        assert cache.get_or_build(KEY, lambda: (FILES, {})).files == FILES
    finally:
        held.release()


def test_clear_removes_everything_and_stats_count(cache):
    for n in range(3):
        cache.get_or_build(key_of(n), lambda: (FILES, {}))
    assert cache.stats().entries == 3 and cache.stats().bytes > 3 * 25600
    assert cache.clear() == 3
    assert cache.stats().entries == 0 and not list(cache.root.glob("??/*"))
    assert not cache.get_or_build(KEY, lambda: (FILES, {})).hit


def test_no_half_written_file_is_left_when_the_disk_is_full(cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "replace", full)
    monkeypatch.setattr(cache_module, "_warned", set())
    with pytest.warns(UserWarning, match="No space left"):
        assert cache.get_or_build(KEY, lambda: (FILES, {})).files == FILES
    assert not [p for p in cache.root.glob("??/*") if p.suffix != ".lock"]


def test_an_entry_is_read_in_a_few_calls(cache):
    cache.put(KEY, {"cubin": os.urandom(200_000)}, {})
    assert calls(lambda: cache.get(KEY)) < 300  # and one pass over its bytes, to hash them


def test_the_folder_named_by_the_environment_is_made_private(monkeypatch, tmp_path):
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(tmp_path / "a" / "b"))
    path = cache_dir()
    assert path == tmp_path / "a" / "b" and path.is_dir()
    if hasattr(os, "getuid"):
        assert path.stat().st_mode & 0o777 == 0o700


# ---- folders that will not do --------------------------------------------------------------------------------------------


@pytest.fixture
def unwarned(monkeypatch):
    """As in a process that has not warned, and has kept nothing in memory."""
    monkeypatch.setattr(cache_module, "_warned", set())
    cache_module._in_memory.cache_clear()
    yield
    cache_module._in_memory.cache_clear()


def open_to_others(folder, monkeypatch):
    folder.chmod(0o777)


def of_the_group(folder, monkeypatch):
    folder.chmod(0o770)


def of_another_user(folder, monkeypatch):
    """A bind mount, or root's under sudo."""
    monkeypatch.setattr(cache_module.os, "getuid", lambda: folder.stat().st_uid + 1)


def not_writable(folder, monkeypatch):
    monkeypatch.setattr(cache_module.os, "access", lambda *a: False)


def a_file(folder, monkeypatch):
    folder.rmdir()
    folder.write_text("")


def below_a_file(folder, monkeypatch):
    a_file(folder, monkeypatch)
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(folder / "sub"))


def a_pipe(folder, monkeypatch):
    folder.rmdir()
    os.mkfifo(folder)


def a_link_to_nothing(folder, monkeypatch):
    folder.rmdir()
    folder.symlink_to(folder.with_name("gone"))


def no_home(folder, monkeypatch):
    for name in ("FCGEN_CACHE_DIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


UNUSABLE = (open_to_others, of_the_group, of_another_user, not_writable, a_file, below_a_file, a_pipe, a_link_to_nothing, no_home)


@posix
@pytest.mark.parametrize("spoil", UNUSABLE, ids=lambda f: f.__name__)
def test_a_folder_that_will_not_do_warns_once_and_the_work_goes_on(spoil, monkeypatch, tmp_path, unwarned):
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FCGEN_CACHE_DIR", str(folder))
    spoil(folder, monkeypatch)
    with pytest.warns(UserWarning, match="keeps no compiled kernels"):
        cache = open_cache()
    assert cache.root is None and not cache.get_or_build(KEY, lambda: (FILES, {"a": 1})).hit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entry = open_cache().get_or_build(KEY, lambda: pytest.fail("built twice in one process"))
    assert entry.hit and entry.files == FILES and entry.meta == {"a": 1}
    assert cache.stats().entries == 0 and cache.clear() == 0 and cache.get(KEY) is None
    with pytest.raises(FcError) as caught:
        cache_dir()
    assert caught.value.code == "cache/unusable" and caught.value.hint


def a_pipe_for_an_entry(path):
    os.mkfifo(path)


def a_folder_for_an_entry(path):
    path.mkdir()


def a_link_to_nothing_for_an_entry(path):
    path.symlink_to("gone")


def a_link_to_an_entry_elsewhere(path):
    elsewhere = DiskCache(path.parents[1] / "elsewhere")
    elsewhere.root.mkdir()
    elsewhere.put(KEY, {"cubin": b"planted"}, {})
    path.symlink_to(entry_file(elsewhere))


def a_device_for_an_entry(path):
    path.symlink_to("/dev/zero")


TAKEN = (a_pipe_for_an_entry, a_folder_for_an_entry, a_link_to_nothing_for_an_entry, a_link_to_an_entry_elsewhere, a_device_for_an_entry)


@posix
@pytest.mark.parametrize("take", TAKEN, ids=lambda f: f.__name__)
def test_what_is_no_entry_is_neither_read_nor_waited_for(take, cache, unwarned):
    path = cache._path(KEY)
    path.parent.mkdir()
    take(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if take is a_folder_for_an_entry else "error")
        assert cache.get_or_build(KEY, lambda: (FILES, {})).files == FILES
        cache.stats()
    assert take is a_folder_for_an_entry or cache.get(KEY) == FILES


@posix
def test_an_entry_of_another_user_is_not_used(cache, monkeypatch, unwarned):
    """Root squash, or a folder that was somebody else's: a kernel is code."""
    cache.put(KEY, {"cubin": b"planted"}, {})
    monkeypatch.setattr(cache_module.os, "getuid", lambda: os.stat(cache.root).st_uid + 1)
    assert cache.get(KEY) is None
    assert cache.get_or_build(KEY, lambda: (FILES, {})).files == FILES


@posix
@pytest.mark.parametrize("take", [a_pipe_for_an_entry, a_folder_for_an_entry, a_link_to_nothing_for_an_entry],
                         ids=["a pipe", "a folder", "a link"])
def test_a_lock_that_is_no_file_costs_a_warning_at_most(take, cache, unwarned):
    path = cache._path(KEY).with_suffix(".lock")
    path.parent.mkdir()
    take(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cache.get_or_build(KEY, lambda: (FILES, {})).files == FILES
    assert cache.get(KEY) == FILES


@pytest.mark.parametrize(("one", "other"), [
    (("ab", "c"), ("a", "bc")), ((1,), ("1",)), ((1,), (True,)), ((1,), (1.0,)), ((b"a",), ("a",)), ((None,), ("None",)),
    ((("a",), "b"), (("a", "b"),)), (({"a": 1},), ({"a": 2},)), (("a", ""), ("a",)), (({"a": 1},), (["a", 1],)),
])
def test_different_parts_have_different_keys(one, other):
    assert key_of(*one) != key_of(*other)


def test_keys_do_not_depend_on_the_order_of_a_dict_or_the_process():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    code = "from fcgen.runtime.cache import key_of; print(key_of('x', {'b': 1, 'a': (2.5, None)}))"
    keys = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(keys) == 1


def test_a_key_cannot_hold_an_object():
    with pytest.raises(TypeError):
        key_of(object())
