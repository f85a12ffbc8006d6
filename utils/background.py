"""Work in threads around a loop that must not wait: ahead of it (`look_ahead`) and behind it (`WorkBehind`).

Threads are enough, because decoding, resizing and encoding pictures release Python's lock. Both are bounded, so
that a slow loop does not fill the memory, and both hand errors to the loop's own thread. What the work is, is
none of their business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
Job = Callable[[], T]
Jobs = Generator[Job[T], None, None]


def look_ahead(jobs: Jobs[T], workers: int, limit: int) -> Jobs[T]:
    """Run jobs before their results are asked for, and give the results in the order of the jobs.

    Args:
        jobs: taken one after the other, by one thread; what taking the next one costs is done ahead, too.
        workers: threads that run jobs; 0: no thread at all, a job runs when its result is asked for.
        limit: jobs that may have been taken whose result has not been asked for; at least 1.

    Yields:
        For each job a function that waits for its result and returns it, or raises what the job raised.

    Closing the generator drops the jobs that have not begun, waits for those that run, and ends the threads.

    Raises:
        Exception: whatever ``jobs`` raises, from the function in place of the next job's.
    """
    if not workers:
        yield from jobs
        return
    running = _LookAhead(jobs, workers, limit)
    try:  # from before the first thread starts: Ctrl-C may come at any moment
        running.start()
        yield from running.results()
    finally:
        running.close()


class _LookAhead(Generic[T]):
    """The threads of one `look_ahead`: a feeder that takes jobs whenever a slot is free, and a pool."""

    def __init__(self, jobs: Jobs[T], workers: int, limit: int) -> None:
        self._jobs = jobs
        self._slots = Semaphore(limit)
        self._stopped = Event()
        self._futures: SimpleQueue[Future[T] | None] = SimpleQueue()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="look-ahead")
        self._feeder = Thread(target=self._feed, name="look-ahead-feeder", daemon=True)

    def start(self) -> None:
        self._feeder.start()

    def results(self) -> Iterator[Job[T]]:
        while (future := self._futures.get()) is not None:
            self._slots.release()
            yield future.result

    def close(self) -> None:
        self._stopped.set()
        self._slots.release()  # the feeder may be waiting for one
        with suppress(RuntimeError):  # interrupted while starting it; it ends at once, because it is told to
            self._feeder.join()
        self._pool.shutdown(cancel_futures=True)

    def _feed(self) -> None:
        try:
            with closing(self._jobs):
                while True:
                    self._slots.acquire()
                    job = None if self._stopped.is_set() else next(self._jobs, None)
                    if job is None:
                        break
                    self._futures.put(self._pool.submit(job))
        except Exception as error:  # noqa: BLE001 - of the generator: it belongs to whoever asks for results
            failed: Future[T] = Future()
            failed.set_exception(error)
            self._futures.put(failed)
        finally:
            self._futures.put(None)


class WorkBehind:
    """Runs what it is given, in threads, while the caller goes on; call `finish` at the end.

    The first error of anything it ran comes out of the next call, once.
    """

    def __init__(self, workers: int, limit: int) -> None:
        """
        Args:
            workers: threads; 0: none, everything runs at once in the caller's.
            limit: at most so much may be waiting or running; the caller waits while there is more.
        """
        self._pools: list[ThreadPoolExecutor] = []
        if workers:
            self._pools = [ThreadPoolExecutor(n, thread_name_prefix="work-behind") for n in (workers, 1)]
        self._slots = Semaphore(limit)
        self._error: BaseException | None = None

    def run(self, work: Callable[[], object], *, in_order: bool = False) -> None:
        """Run something now or soon.

        Args:
            work: may run at the same time as anything else.
            in_order: after all that was given with this before, by the same thread.

        Raises:
            Exception: what ``work``, or something given earlier, raised.
        """
        if not self._pools:
            work()
            return
        self._slots.acquire()
        try:
            self._raise_error()
            future = self._pools[in_order].submit(work)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(self._done)

    def finish(self) -> None:
        """Wait until everything has run; ends the threads. Raises as `run` does."""
        try:
            for pool in self._pools:
                pool.shutdown()
        except BaseException:  # Ctrl-C while waiting
            for pool in self._pools:
                pool.shutdown(wait=False, cancel_futures=True)
            raise
        self._raise_error()

    def _done(self, future: Future[object]) -> None:
        if not future.cancelled() and self._error is None:
            self._error = future.exception()
        self._slots.release()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
