"""What is computed beside the caller's work: its result, its error, its context; the collector that holds still meanwhile."""

from __future__ import annotations

import gc
from contextvars import ContextVar
from threading import Event, Thread, current_thread

import pytest

from fcgen.build.deep import collector_off
from fcgen.build.later import Later

word: ContextVar[str] = ContextVar("word", default="")


def test_a_result_comes_from_a_thread_with_the_callers_context() -> None:
    token = word.set("here")
    go = Event()
    later = Later(lambda: (go.wait(60), word.get(), current_thread().name))
    word.reset(token)
    assert not later.failed
    go.set()
    assert later.result() == (True, "here", "fcgen") == later.result() and not later.failed


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    later = Later(lambda: {}["nothing"])
    for _ in range(2):
        with pytest.raises(KeyError, match="nothing"):
            later.result()
    assert later.failed


def test_without_threads_it_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", no)
    assert Later(lambda: current_thread().name).result() == current_thread().name


def test_what_is_begun_in_a_block_has_ended_when_the_block_is_left() -> None:
    go = Event()
    with pytest.raises(KeyError, match="the block's"), Later(lambda: go.wait(60) and {}["the thread's"]) as later:
        go.set()
        raise KeyError("the block's")
    assert later.failed


def test_the_collector_goes_on_when_the_last_thread_has_left_and_only_if_it_was_on() -> None:
    assert gc.isenabled()
    inside, go = Event(), Event()

    def other() -> bool:
        with collector_off():
            inside.set()
            return go.wait(60)

    with collector_off():
        later = Later(other)
        assert inside.wait(60)
    assert not gc.isenabled()
    go.set()
    assert later.result() and gc.isenabled()
    gc.disable()
    try:
        with collector_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
