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

from sfvgen_policies import Policy, make_policy

from sfvgen_planner.data.environment import Environment, make_env
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.errors import SfvgenError

# A worker finds its next task waiting while its last episode is being stored.
TASKS_PER_WORKER = 2
# Episodes that are ahead of the one to be stored next wait in memory.
EPISODES_AHEAD_PER_WORKER = 4
SECONDS_TO_STOP = 5.0


@dataclass(frozen=True)
class EpisodeTask:
    """One episode to play."""

    source: EpisodeSource
    seed: int


class EpisodePlayer:
    """Plays episodes of one environment id; keeps the environment from one to the next."""

    def __init__(self, env_id: str, frame_skip: int = 1, image_size: int | None = None) -> None:
        """Set what all episodes have in common; environments are made when first needed."""
        self.env_id = env_id
        self.frame_skip = frame_skip
        self.image_size = image_size
        self._source: EpisodeSource | None = None
        self._env: Environment | None = None
        self._policy: Policy | None = None

    def prepare(self, source: EpisodeSource) -> tuple[Environment, Policy]:
        """Return the environment and the policy of a source.

        Raises:
            SfvgenError: One of them does not exist or cannot be made.
        """
        if self._env is None or self._policy is None or source != self._source:
            self.close()
            self._env = make_env(self.env_id, source.env_kwargs, self.frame_skip)
            try:
                self._policy = make_policy(source.policy, self._env, **source.policy_kwargs)
            except (ValueError, TypeError) as error:
                raise SfvgenError(f"cannot make the policy {source.policy!r}: {error}") from error
            self._source = source
        return self._env, self._policy

    def play(self, task: EpisodeTask) -> Episode:
        """Play one episode."""
        env, policy = self.prepare(task.source)
        try:
            return record_episode(env, policy, task.seed, task.source, self.image_size)
        except SfvgenError as error:
            raise SfvgenError(
                f"{self.env_id}, policy {task.source.policy!r}, seed {task.seed}: {error}"
            ) from error

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
        self._env = self._policy = self._source = None


def play_episodes(
    player: EpisodePlayer, tasks: Sequence[EpisodeTask], num_workers: int = 1
) -> Iterator[Episode]:
    """Play the tasks and yield their episodes in the tasks' order.

    Args:
        player: Plays them; closed at the end.
        tasks: What to play.
        num_workers: Number of processes; with 1 all happens in this one.

    Raises:
        SfvgenError: An episode failed, or a worker process died.
    """
    if num_workers == 1:
        with closing(player):
            for task in tasks:
                yield player.play(task)
        return
    player.close()
    pool = _WorkerPool(player, min(num_workers, len(tasks)))
    with closing(pool):
        yield from pool.play(tasks)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: "Connection[object, object]"
    pending: deque[int] = field(default_factory=deque)


class _WorkerPool:
    def __init__(self, player: EpisodePlayer, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        with _worker_surroundings():
            for _ in range(num_workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, player), daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))

    def play(self, tasks: Sequence[EpisodeTask]) -> Iterator[Episode]:
        replies: dict[int, object] = {}
        next_task = 0
        for index in range(len(tasks)):
            limit = min(len(tasks), index + EPISODES_AHEAD_PER_WORKER * len(self._workers))
            while index not in replies:
                for worker in sorted(self._workers, key=lambda w: len(w.pending)):
                    while next_task < limit and len(worker.pending) < TASKS_PER_WORKER:
                        self._send(worker, tasks[next_task])
                        worker.pending.append(next_task)
                        next_task += 1
                busy = {w.connection: w for w in self._workers if w.pending}
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    replies[worker.pending.popleft()] = self._receive(worker)
            # A failure waits for its turn, so that the episodes before it are stored whatever the
            # number of workers.
            yield _episode(replies.pop(index))

    def _send(self, worker: _Worker, task: EpisodeTask) -> None:
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
            "memory; the episodes stored so far are kept: try again with fewer workers"
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(SECONDS_TO_STOP)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()


def _serve(connection: "Connection[object, object]", player: EpisodePlayer) -> None:
    """Play the tasks that come in until the other side closes."""
    try:
        while True:
            task = connection.recv()
            assert isinstance(task, EpisodeTask)
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


def _episode(reply: object) -> Episode:
    if isinstance(reply, Exception):
        raise reply
    assert isinstance(reply, Episode)
    return reply


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
