"""Training with FSDP: parameters that the processes of a run share out among themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import OffloadPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from sfvgen_planner.errors import require


def is_sharding(accelerator: Accelerator) -> bool:
    """Whether this is training with FSDP."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def prepare_plugin(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse settings that can't be trained or checkpointed exactly; leave precision to autocast.

    Raises:
        SfvgenError: Accelerate's config asks for one.
    """
    for setting, is_so in {
        "fsdp_version: 2": plugin.fsdp_version == 2,
        "fsdp_auto_wrap_policy: NO_WRAP": plugin.auto_wrap_policy is None,
        "fsdp_offload_params: false": type(plugin.cpu_offload) is OffloadPolicy,
        "fsdp_cpu_ram_efficient_loading: false": not plugin.cpu_ram_efficient_loading,
        "fsdp_activation_checkpointing: false": not plugin.activation_checkpointing,
    }.items():
        require(
            is_so,
            f"training with FSDP needs {setting} in Accelerate's config; docs/training.md has a "
            "config that works, and DDP needs none",
        )
    # FSDP's own cast would round the diffusion times and the loss, too.
    plugin.mixed_precision_policy = None


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; all of one that is not sharded."""
    if isinstance(tensor, DTensor):
        part: Tensor = tensor.to_local().detach()
        return part.requires_grad_(tensor.requires_grad)
    return tensor


def sharded_as(local: Tensor, like: Tensor) -> Tensor:
    """The tensor of which each process has the part `local`, if `like` is one of those."""
    if isinstance(like, DTensor):
        return DTensor.from_local(
            local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
    return local


def whole_tensor(tensor: Tensor) -> Tensor:
    """`tensor`, or all of it if it is sharded; then all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors made whole one by one; if any is sharded, all processes must call this together.

    Args:
        tensors: Sharded ones are gathered to the host, others stay as they are.
        keep: Whether this process needs the result; if not, it is empty.
    """
    gathered = {}
    for name, tensor in tensors.items():
        whole = whole_tensor(tensor)
        if keep:
            gathered[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return gathered


def scatter(whole: Tensor, like: Tensor) -> Tensor:
    """`whole`, which each process has, on the device of `like` and sharded as that is."""
    if isinstance(like, DTensor):
        mesh = like.device_mesh
        # A copy, as a view would keep the whole tensor in memory.
        return distribute_tensor(whole, mesh, like.placements, src_data_rank=None).clone()
    return whole.to(like.device)


class WholeModule:
    """The way back from a module that `Accelerator.prepare` has sharded in place.

    FSDP replaces a module's parameters, changes its class and adds hooks, and torch can't undo
    that. A module that is not sharded is left alone throughout.

    Args:
        module: Not yet prepared.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts = [_Part(part) for part in module.modules()]

    def release(self) -> None:
        """Free what FSDP has sharded; to be called as soon as the module is prepared."""
        if not any(isinstance(parameter, DTensor) for parameter in self._module.parameters()):
            self._parts = []
        for part in self._parts:
            part.note_additions()
            part.release()

    def restore(self) -> None:
        """Make the module whole, with its present values; all processes must call this together."""
        for part in self._parts:
            part.gather()
        for part in self._parts:
            part.exchange()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Make the module whole for a while; all processes must enter and leave this together."""
        self.restore()
        try:
            yield
        finally:
            for part in self._parts:
                part.exchange()
                part.release()


class _Part:
    """One submodule before it was sharded or, while it is whole again, as sharded."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._class = type(module)
        self._tables = {key: dict(value) for key, value in vars(module).items() if _is_table(key)}
        self._parameters = dict(module.named_parameters(recurse=False))
        self._attributes = dict(vars(module))

    def note_additions(self) -> None:
        """Tell apart what FSDP has added; the module's own attributes are not to be touched."""
        self._additions = vars(self._module).keys() - self._attributes.keys()
        self._attributes = {}

    def release(self) -> None:
        """Free the whole parameters."""
        for parameter in self._parameters.values():
            parameter.data = parameter.new_empty(0)

    def gather(self) -> None:
        """Fill the whole parameters from the shards."""
        for name, sharded in self._module.named_parameters(recurse=False):
            self._parameters[name].data = whole_tensor(sharded.detach())

    def exchange(self) -> None:
        """Swap what the module is with what it was."""
        variables = vars(self._module)
        self._class, self._module.__class__ = type(self._module), self._class
        for key, was in self._tables.items():
            self._tables[key] = dict(variables[key])
            # In place, as the handles of hooks refer to the table itself.
            variables[key].clear()
            variables[key].update(was)
        added = {key: variables.pop(key) for key in self._additions if key in variables}
        variables.update(self._attributes)
        self._attributes = added


def _is_table(attribute: str) -> bool:
    """Whether this attribute of a module is one that FSDP changes: parameters or hooks."""
    return attribute == "_parameters" or attribute.startswith(
        ("_forward_hooks", "_forward_pre_hooks", "_state_dict_", "_load_state_dict_")
    )
