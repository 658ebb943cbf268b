"""Captured functions, on a CPU with emulated graphs."""

import pytest
import torch

from sfvgen_planner.world_model.cuda_graphs import CapturedFunction, CapturedGraph
from tests.emulated_graphs import emulate_graphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request, monkeypatch):
    if request.param == "cpu":
        emulate_graphs(monkeypatch)
    return request.param


def scaled_sum(tensors, scale):
    return {"sum": scale * (tensors["a"] + tensors["b"][0]), "none": None}


def draw(device, size):
    a, b = torch.randn(2, size, device=device)
    return {"a": a, "b": [b]}


def test_a_shape_runs_twice_and_is_replayed_from_then_on(device):
    captured = CapturedFunction(scaled_sum)
    for size, scale, state, graphs in [
        (3, 2, None, 0),
        (3, 2, None, 1),
        (3, 2, None, 1),
        (5, 2, None, 1),
        (3, 4, None, 1),
        (3, 2, "other", 1),
        (3, 2, "other", 2),
        (3, 4, None, 3),
        (3, 2, None, 3),
        (3, 4, None, 3),
        (3, 2, "other", 3),
    ]:
        tensors = draw(device, size)
        found = captured(tensors, scale, state=state)
        assert torch.allclose(found["sum"], scale * (tensors["a"] + tensors["b"][0]))
        assert found["none"] is None
        assert sum(graph is not None for graph in captured._graphs.values()) == graphs


def test_few_shapes_are_kept(device):
    captured = CapturedFunction(scaled_sum, max_graphs=2)
    for size in (3, 3, 4, 4, 3, 5, 5):
        captured(draw(device, size), 1)
    kept = {key[1][0][0][0]: graph for key, graph in captured._graphs.items()}
    assert set(kept) == {3, 5}
    assert all(isinstance(graph, CapturedGraph) for graph in kept.values())


@needs_gpu
def test_graphs_share_memory_also_after_all_of_them_are_gone():
    captured = CapturedFunction(scaled_sum, max_graphs=1)
    for _ in range(2):
        for size in (3, 3, 3, 4, 4, 4):
            tensors = draw("cuda", size)
            found = captured(tensors, 1)["sum"]
            assert torch.equal(found, tensors["a"] + tensors["b"][0])
