"""How tasks come to the processes."""

import multiprocessing
import os
import time
from pathlib import Path

from sfvgen_planner.workers import play_all


class Teller:
    """Tells in which process it plays."""

    def play(self, task):
        return task, os.getpid()

    def close(self):
        pass


class Sleeper(Teller):
    """Tells where it plays, then takes longer than anyone waits."""

    def play(self, folder):
        (folder / str(os.getpid())).touch()
        time.sleep(600)


def give_work(folder):
    list(play_all(Sleeper(), [folder, folder], num_workers=2))


def is_running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_everyone_has_a_task_before_anyone_has_two():
    told = list(play_all(Teller(), range(3), num_workers=3))
    assert [task for task, _ in told] == [0, 1, 2]
    assert len({process for _, process in told} | {os.getpid()}) == 4


def test_nobody_goes_on_after_the_parent_was_killed(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=give_work, args=(tmp_path,))
    parent.start()
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(map(is_running, workers))
    parent.kill()
    parent.join()
    until(lambda: not any(map(is_running, workers)))
