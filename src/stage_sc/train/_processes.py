"""Processes that train together, and their communication."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn

Value = TypeVar("Value")

# Maximum time for which processes wait while one of them grows the tree.
TIMEOUT = timedelta(days=1)


class Processes(NamedTuple):
    """One of n processes; a single one exchanges nothing."""

    rank: int = 0
    n: int = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place; bit-identical in every process."""
        if self.n > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes; each passes its own, and zeros for the others. Only its own carry a gradient."""
        if self.n == 1:
            return rows
        own = rows.detach()
        return rows + (self.all_reduce(own.clone()) - own)

    def broadcast_object(self, value: Value) -> Value:
        """Return the value of process 0."""
        box = [value]
        if self.n > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def broadcast_model(self, model: nn.Module) -> None:
        """Copy the model of process 0 to every process."""
        if self.n > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)


def launch(accelerator: str) -> tuple[Processes, torch.device]:
    """Join the processes that torchrun started, if any; return them and the device of this one.

    `accelerator` is a name of lightning, such as "cpu" or "cuda".
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return Processes(), Fabric(accelerator=accelerator, devices=1).device
    n, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    strategy = DDPStrategy(timeout=TIMEOUT)
    fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=local, num_nodes=n // local)
    fabric.launch()
    return Processes(fabric.global_rank, fabric.world_size), fabric.device
