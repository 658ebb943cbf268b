"""Processes that start at once, because the server that they are forked from has torch loaded."""

import multiprocessing
import os
import socket
from types import SimpleNamespace

FORKED = multiprocessing.get_context("forkserver")


def quick_workers(monkeypatch):
    """Let the workers that play episodes start at once too."""
    quick = SimpleNamespace(
        get_context=lambda method: FORKED, parent_process=multiprocessing.parent_process
    )
    monkeypatch.setattr("sfvgen_planner.workers.multiprocessing", quick)


def run_on_two_processes(function, folder):
    """Call `function(folder)` in two processes that a launcher told of each other."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    processes = [
        FORKED.Process(target=_one_of_two, args=(rank, port, function, folder)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def _one_of_two(rank, port, function, folder):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**place, **address}.items()})
    function(folder)
