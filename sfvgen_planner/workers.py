"""Play many episodes, in order, in one process or in several."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar, cast

from sfvgen_planner.errors import SfvgenError, require_count

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
# A worker finds its next task waiting while its last episode is being stored.
TASKS_PER_WORKER = 2
# Episodes that are ahead of the one to be stored next wait in memory.
EPISODES_AHEAD_PER_WORKER = 4
SECONDS_TO_STOP = 5.0


class Player(Protocol[Task_contra, Result_co]):
    """What plays episodes. It is sent to the processes by pickle before it plays any."""

    def play(self, task: Task_contra) -> Result_co:
        """Play one episode; environments and models are made when first needed."""

    def close(self) -> None:
        """Close the environment."""


def play_all(
    player: Player[Task, Result], tasks: Sequence[Task], num_workers: int = 1
) -> Iterator[Result]:
    """Play the tasks and yield what comes of them in the tasks' order.

    Args:
        player: Plays them; closed at the end.
        tasks: What to play.
        num_workers: Number of processes; with 1 all happens in this one. With more, a script needs
            the usual `if __name__ == "__main__":`.

    Raises:
        SfvgenError: An episode failed, a worker process died, or `num_workers` is below 1.
    """
    check_num_workers(num_workers)
    if num_workers == 1:
        with closing(player):
            for task in tasks:
                yield player.play(task)
        return
    player.close()
    pool = _WorkerPool(player, min(num_workers, len(tasks)))
    with closing(pool):
        yield from pool.play(tasks)


def check_num_workers(num_workers: int) -> None:
    """Refuse fewer than one process."""
    require_count("num_workers", num_workers)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: "Connection[object, object]"
    pending: deque[int] = field(default_factory=deque)


class _WorkerPool(Generic[Task, Result]):
    def __init__(self, player: Player[Task, Result], num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        with _worker_surroundings():
            for _ in range(num_workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, player), daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))

    def play(self, tasks: Sequence[Task]) -> Iterator[Result]:
        replies: dict[int, object] = {}
        next_task = 0
        for index in range(len(tasks)):
            limit = min(len(tasks), index + EPISODES_AHEAD_PER_WORKER * len(self._workers))
            while index not in replies:
                while next_task < limit:
                    # One for each before anyone gets a second: a task may take minutes.
                    worker = min(self._workers, key=lambda w: len(w.pending))
                    if len(worker.pending) == TASKS_PER_WORKER:
                        break
                    self._send(worker, tasks[next_task])
                    worker.pending.append(next_task)
                    next_task += 1
                busy = {w.connection: w for w in self._workers if w.pending}
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    replies[worker.pending.popleft()] = self._receive(worker)
            # A failure waits for its turn, so that the episodes before it are stored whatever the
            # number of workers.
            reply = replies.pop(index)
            if isinstance(reply, Exception):
                raise reply
            yield cast(Result, reply)

    def _send(self, worker: _Worker, task: Task) -> None:
        try:
            worker.connection.send(task)
        except OSError as error:
            raise self._died(worker) from error

    def _receive(self, worker: _Worker) -> object:
        try:
            return worker.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died(worker) from error

    def _died(self, worker: _Worker) -> SfvgenError:
        worker.process.join(SECONDS_TO_STOP)
        return SfvgenError(
            f"a worker process died (exit code {worker.process.exitcode}), perhaps for want of "
            "memory; what is stored so far is kept: try again with fewer workers"
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(SECONDS_TO_STOP)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()


def _serve(connection: "Connection[object, object]", player: Player[Any, object]) -> None:
    """Play the tasks that come in until the other side closes."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        while True:
            task = connection.recv()
            reply: object
            try:
                reply = player.play(task)
            except SfvgenError as error:
                reply = error
            except Exception:
                reply = RuntimeError(f"an episode failed in a worker:\n{traceback.format_exc()}")
            connection.send(reply)
    except (EOFError, OSError):
        pass
    finally:
        player.close()


def _leave_with_parent() -> None:
    """End this process once its parent is gone: a killed one can't end it, and a task is long."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _worker_surroundings() -> Iterator[None]:
    """Start processes that leave Ctrl-C to us and use one thread each.

    Both have to be in force before a child runs its first line, hence are inherited.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS")}
    if in_main_thread:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for name, value in threads.items():
            if value is None:
                os.environ[name] = "1"
        yield
    finally:
        for name, value in threads.items():
            if value is None:
                os.environ.pop(name, None)
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
