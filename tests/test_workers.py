"""How tasks come to the processes."""

import os

from sfvgen_planner.workers import play_all


class Teller:
    """Tells in which process it plays."""

    def play(self, task):
        return task, os.getpid()

    def close(self):
        pass


def test_everyone_has_a_task_before_anyone_has_two():
    told = list(play_all(Teller(), range(3), num_workers=3))
    assert [task for task, _ in told] == [0, 1, 2]
    assert len({process for _, process in told} | {os.getpid()}) == 4
