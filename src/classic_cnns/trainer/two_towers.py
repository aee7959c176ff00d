"""A net of two towers on pairs of devices, one tower on each, as AlexNet was trained in 2012.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
NIPS 2012, section 3.2. A device stores one half of the rows (dimension 0) of each weight, bias,
gradient and optimizer state, and computes one half of each layer's kernels. It receives the other
half of the inputs of the layers in `net.crossings`, and of the scores. In a step on B images it
receives, and sends,

    B * (2 * sum over the crossings l of n_l / 2  +  classes / 2)    numbers,

where n_l is the number of inputs of layer l: at each crossing half of the inputs in the forward
pass, and half of their gradients, which are summed, in the backward pass. For AlexNet with 1000
classes these are 61,172 numbers per image. If the number of rows is odd, the first device has one
more.

Lightning's ModelParallelStrategy is not used: it bypasses our CheckpointIO, averages over pairs
only with FSDP, and makes weights DTensors, which conv2d does not accept.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from classic_cnns.trainer.ddp import DDP


def gather(half: Tensor, mesh: DeviceMesh, dim: int, size: int, gradient: Placement) -> Tensor:
    """The whole tensor, of size `size` in `dim`, from the halves of the two devices of a pair.

    `gradient` describes the gradient of the whole tensor on each device: Partial() if the two must
    be summed, Replicate() if they are equal.
    """
    shape = torch.Size([*half.shape[:dim], size, *half.shape[dim + 1 :]])
    stride = torch.empty(shape, device="meta").stride()
    parts = DTensor.from_local(half.contiguous(), mesh, [Shard(dim)], shape=shape, stride=stride)
    return parts.full_tensor(grad_placements=[gradient])


def split_towers(net: Any, mesh: DeviceMesh) -> dict[nn.Parameter, int]:
    """Keep only this device's tower in `net`; returns the number of rows of the whole weights.

    The net's children must be its layers in order of use, and `crossings` must name some of them.
    Dropout draws masks for both towers, so that they are those of one process.
    """
    tower = mesh.get_local_rank()
    whole: dict[nn.Parameter, int] = {}
    rows = 0

    def cross(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        weight: Any = layer.weight
        return gather(inputs[0], mesh, 1, weight.shape[1], Partial())

    for name, layer in net.named_children():
        if isinstance(layer, nn.Dropout):

            def widen(_, inputs: tuple[Tensor], rows=rows) -> Tensor:
                missing = rows - inputs[0].shape[1]
                return F.pad(inputs[0], (missing, 0) if tower else (0, missing))

            layer.register_forward_pre_hook(widen)
            layer.register_forward_hook(lambda _, __, out: out.tensor_split(2, 1)[tower])
        if getattr(layer, "groups", 1) == 2:
            layer.groups = 1
        if name in net.crossings:
            layer.register_forward_pre_hook(cross)
        for parameter in layer.parameters():
            whole[parameter] = rows = len(parameter)
            parameter.data = parameter.data.tensor_split(2)[tower].clone()
    net.register_forward_hook(lambda _, __, out: gather(out, mesh, 1, rows, Replicate()))
    return whole


class TwoTowers(DDP):
    """Pairs of neighbouring ranks hold one copy of the net; pairs share the batch as in DDP.

    Checkpoints have the format of one process: whole tensors under the same names.
    """

    rows: Mapping[nn.Parameter, int] = {}  # of the whole weights, set when the net is split
    restore_checkpoint_after_setup = True  # since setup splits the net
    mesh: Any = None  # of the two devices of a pair, set in setup_environment

    def setup_environment(self) -> None:
        super().setup_environment()
        if self.mesh is None:  # called for fit and for test
            shape, names = (self.world_size // 2, 2), ("pairs", "towers")
            mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
            self.mesh, self.data_group = mesh["towers"], mesh.get_group("pairs")

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size // 2, "rank": self.global_rank // 2}

    def setup(self, trainer: Any) -> None:
        module: Any = self.lightning_module
        if not self.rows:
            self.rows = split_towers(module.net, self.mesh)
        if trainer.state.fn == TrainerFn.FITTING:
            super().setup(trainer)
        else:  # as in DDP, but without broadcasting rank 0's weights
            assert self.accelerator and self.model
            self.accelerator.setup(trainer)
            self.precision_plugin.convert_module(self.model)
            self.model_to_device()
            self.setup_precision_plugin()

    def configure_ddp(self) -> None:
        """Average gradients over the ranks with the same tower."""
        device = self.root_device
        self.model = DistributedDataParallel(
            self.model,
            device_ids=None if device.type == "cpu" else [device.index],
            process_group=self.data_group,
            **self.options,
        )

    def clip_gradients(self, optimizer: Any, limit: Any, algorithm: str | None) -> None:
        """Scale the gradients of both towers so that their total norm is at most `limit`."""
        if not limit:
            return
        weights = list(self.precision_plugin.main_params(optimizer))
        if algorithm == "value":
            return nn.utils.clip_grad_value_(weights, limit)
        norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        squared = norm.square()
        dist.all_reduce(squared, group=self.mesh.get_group())
        nn.utils.clip_grads_with_norm_(weights, limit, squared.sqrt())

    def assemble(self, half: Tensor, parameter: nn.Parameter) -> Tensor:
        """The whole tensor for a `half`; scalars, such as step counts, stay as they are."""
        if not half.dim():
            return half
        return gather(half.detach(), self.mesh, 0, self.rows[parameter], Replicate()).cpu()

    def half_of(self, whole: Tensor) -> Tensor:
        tower = self.mesh.get_local_rank()
        return whole.tensor_split(2)[tower].clone() if whole.dim() else whole

    def lightning_module_state_dict(self) -> dict[str, Any]:
        module: Any = self.lightning_module
        halves = module.named_parameters()
        return module.state_dict() | {name: self.assemble(half, half) for name, half in halves}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module: Any = self.lightning_module
        weights = {name for name, _ in module.named_parameters()}
        state = checkpoint["state_dict"]
        halves = {name: self.half_of(x) if name in weights else x for name, x in state.items()}
        module.load_state_dict(halves, strict=strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = super().optimizer_state(optimizer)
        return map_state(state, lambda half, index: self.assemble(half, weights[index]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = checkpoint["optimizer_states"]
        halves = [map_state(state, lambda whole, _: self.half_of(whole)) for state in states]
        super().load_optimizer_state_dict({"optimizer_states": halves})


def map_state(state: dict[str, Any], change: Callable[[Tensor, int], Tensor]) -> dict[str, Any]:
    """An optimizer's state with each tensor replaced by `change(tensor, parameter's index)`."""
    rows = {
        index: {name: change(tensor, index) for name, tensor in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": rows}
