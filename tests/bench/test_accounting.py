"""The kernel's accounts of real processes."""

import sys

import pytest

from bench.accounting import ProcessGoneError, cpu_ns, memory_bytes
from bench.children import Child

BURN_IN_A_THREAD = """
import sys, threading, time
def burn():
    end = time.thread_time() + 0.1
    while time.thread_time() < end: pass
for line in sys.stdin:
    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    print("done", flush=True)
"""
GROW = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * int(line))
    print("done", flush=True)
"""


def test_cpu_counts_a_thread_that_has_ended() -> None:
    with Child.start("burner", [sys.executable, "-c", BURN_IN_A_THREAD]) as child:
        child.ask("once", 10)
        before = cpu_ns([child.pid])
        child.ask("again", 10)
        used = cpu_ns([child.pid]) - before

    assert used >= 100_000_000


def test_memory_counts_what_a_process_allocates() -> None:
    with Child.start("grower", [sys.executable, "-c", GROW]) as child:
        child.ask("1", 10)
        before = memory_bytes([child.pid])
        child.ask(str(16 << 20), 10)
        grown = memory_bytes([child.pid]) - before

    assert (16 << 20) <= grown < (18 << 20)


def test_accounts_of_several_processes_are_summed() -> None:
    with (
        Child.start("one", [sys.executable, "-c", GROW]) as one,
        Child.start("two", [sys.executable, "-c", GROW]) as two,
    ):
        for child in (one, two):
            child.ask("1", 10)

        assert memory_bytes([one.pid, two.pid]) == memory_bytes([one.pid]) + memory_bytes([two.pid])


def test_accounts_refuse_a_process_that_has_ended() -> None:
    with Child.start("grower", [sys.executable, "-c", GROW]) as child:
        child.ask("1", 10)

    with pytest.raises(ProcessGoneError):
        cpu_ns([child.pid])
    with pytest.raises(ProcessGoneError):
        memory_bytes([child.pid])
