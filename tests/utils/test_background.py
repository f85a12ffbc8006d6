"""Work ahead of a loop and behind it: order, bounds, errors at their place, and threads that end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial

import pytest

from utils.background import WorkBehind, look_ahead

LONG = 10.0
"""Seconds that no test needs; a wait that takes so long has failed."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


def numbers(
    count: int, taken: list[int], closed: list[str] | None = None
) -> Generator[Callable[[], int], None, None]:
    """Jobs that give 0, 1, …; says which were taken, and when it was closed."""
    try:
        for number in range(count):
            taken.append(number)
            yield partial(int, number)
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        return number

    jobs = (partial(slow_first, number) for number in range(12))
    assert [result() for result in look_ahead(jobs, workers, 4)] == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_at_its_place_and_the_rest_goes_on(workers: int) -> None:
    def inverse(number: int) -> float:
        return 1 / number

    given: list[float | str] = []
    for result in look_ahead((partial(inverse, number) for number in (1, 0, 2, 0)), workers, 3):
        try:
            given.append(result())
        except ZeroDivisionError:
            given.append("error")
    assert given == [1, "error", 0.5, "error"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_jobs_themselves_comes_after_those_before(workers: int) -> None:
    def jobs() -> Generator[Callable[[], int], None, None]:
        yield partial(int, 1)
        raise OSError("the disk has gone")

    results = look_ahead(jobs(), workers, 2)
    assert next(results)() == 1
    with closing(results), pytest.raises(OSError, match="has gone"):
        next(results)()


def test_no_more_jobs_are_taken_than_the_limit_allows() -> None:
    taken: list[int] = []
    with closing(look_ahead(numbers(100, taken), 2, 3)) as results:
        for used in range(1, 20):
            assert next(results)() == used - 1
            wait_until(partial(lambda expected: len(taken) == expected, used + 3))  # that many are taken …
            time.sleep(0.005)
            assert len(taken) == used + 3  # … and no more


def test_without_workers_nothing_is_done_ahead() -> None:
    taken: list[int] = []
    with closing(look_ahead(numbers(5, taken), 0, 0)) as results:
        assert next(results)() == 0 and taken == [0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_leaving_early_drops_what_has_not_begun(workers: int, error: type[BaseException] | None) -> None:
    """The threads' end is what `no_thread_is_left` looks at."""
    taken: list[int] = []
    closed: list[str] = []

    def leave() -> None:
        with closing(look_ahead(numbers(10_000, taken, closed), workers, 4)) as results:
            assert next(results)() == 0
            if error is not None:
                raise error

    if error is None:
        leave()
    else:
        with pytest.raises(error):
            leave()
    assert len(taken) <= 6
    assert closed == ["look-ahead-feeder" if workers else "MainThread"]  # a video is closed where it was read


def test_ctrl_c_while_waiting_for_a_result_ends_the_threads() -> None:
    main, ended = threading.get_ident(), []

    def slow() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.2)
        ended.append(True)

    def wait() -> None:
        with closing(look_ahead((job for job in [slow]), 1, 1)) as results:
            next(results)()

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert ended == [True]  # what runs is waited for


# ------------------------------------------------------------------------------------- behind


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_everything_has_run_when_it_is_finished(workers: int) -> None:
    done: list[int] = []
    queue = WorkBehind(workers, 2)
    for number in range(20):
        queue.run(partial(done.append, number))
    queue.finish()
    assert sorted(done) == list(range(20))


def test_what_is_given_in_order_runs_in_order_beside_the_rest() -> None:
    done: list[int] = []
    queue = WorkBehind(3, 6)

    def slow_at_times(number: int) -> None:
        time.sleep(0.004 * (number % 2))
        done.append(number)

    for number in range(20):
        queue.run(partial(slow_at_times, number), in_order=True)
        queue.run(partial(time.sleep, 0.001))
    queue.finish()
    assert done == list(range(20))


def test_the_caller_waits_when_too_much_is_waiting() -> None:
    given: list[int] = []
    queue, may_run = WorkBehind(1, 2), threading.Event()

    def give() -> None:
        for number in range(4):
            queue.run(partial(may_run.wait, LONG))
            given.append(number)

    caller = threading.Thread(target=give)
    caller.start()
    wait_until(lambda: len(given) == 2)
    time.sleep(0.01)
    assert given == [0, 1]
    may_run.set()
    caller.join(LONG)
    queue.finish()
    assert given == [0, 1, 2, 3]


def fail() -> None:
    raise OSError("the disk is full")


def test_an_error_comes_out_of_a_later_call_once() -> None:
    done: list[int] = []
    queue = WorkBehind(1, 1)
    queue.run(fail)
    with pytest.raises(OSError, match="full"):
        queue.run(partial(done.append, 1))  # a slot is free only after the failure
    queue.run(partial(done.append, 2))  # the queue is still usable
    queue.finish()
    assert done == [2]


def test_an_error_of_the_last_work_comes_out_at_the_end() -> None:
    queue = WorkBehind(2, 4)
    queue.run(fail)
    with pytest.raises(OSError, match="full"):
        queue.finish()


def test_without_workers_an_error_comes_out_at_once() -> None:
    with pytest.raises(OSError, match="full"):
        WorkBehind(0, 0).run(fail)
