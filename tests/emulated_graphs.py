"""CUDA graphs played on a CPU, so that what goes into them and out of them is tested there."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
from torch.utils import _pytree as pytree

from sfvgen_planner.world_model import VideoWorldModel, cuda_graphs


class EmulatedGraph(cuda_graphs.CapturedGraph):
    """As a graph does, a replay works on its own inputs and fills its own outputs."""

    count = 0

    def __init__(self, function, arguments, pool):
        EmulatedGraph.count += 1
        values, structure = pytree.tree_flatten(arguments)
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in values]
        self._inputs = cuda_graphs._tensors(copies)
        self._work = partial(function, *pytree.tree_unflatten(copies, structure))
        self._output = self._work()
        self._graph = SimpleNamespace(replay=self._again)

    def _again(self):
        own, new = (
            cuda_graphs._tensors(pytree.tree_leaves(tree)) for tree in (self._output, self._work())
        )
        torch._foreach_copy_(own, new)


def emulate_graphs(monkeypatch):
    """Let a compiled model on the CPU capture its writes; `EmulatedGraph.count` tells how many."""
    monkeypatch.setattr(EmulatedGraph, "count", 0)
    monkeypatch.setattr(cuda_graphs, "CapturedGraph", EmulatedGraph)
    monkeypatch.setattr(cuda_graphs, "GraphPool", object)
    monkeypatch.setattr(cuda_graphs, "run_aside", lambda work: work())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(VideoWorldModel, "graph_pool", property(lambda model: model._fast))
