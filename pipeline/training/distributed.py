"""Several processes that train one run together (data parallel), started by torchrun or srun.

Each process embeds its part of the batch. Embeddings are gathered, so that every process computes the loss of
the whole batch, pairs across processes included; its own rows carry the gradient back. Summed over processes,
the gradients of the student are those of one process with the whole batch; nothing is averaged.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import ConfigError, TrainingError
from pipeline.ranks import Rank

TIMEOUT = timedelta(minutes=30)
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
# Every process counts its meetings alike.
_MEETINGS = itertools.count()


class Group:
    """This process among those that train the run; by default it is the only one.

    Every method that talks to the others must be called by all of them, in the same order.
    """

    def __init__(self, rank: Rank | None = None, device: torch.device | None = None) -> None:
        self.rank = rank or Rank()
        # NCCL moves tensors of the GPU alone.
        self.device = device or torch.device("cpu")

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.rank.world

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.rank.world == 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank.rank == 0

    def part(self, rows: int) -> slice:
        """Return which of a batch's ``rows`` this process embeds; ``rows`` is a multiple of ``world``."""
        own = rows // self.world
        return slice(self.rank.rank * own, (self.rank.rank + 1) * own)

    def gather(self, own: Float[Tensor, "rows ..."]) -> Float[Tensor, "all ..."]:
        """Return every process's rows, in rank order; the gradient reaches this process's own.

        All processes compute the same function of the result, so that the gradient of its other rows is found
        where those rows were embedded, and need not be sent.
        """
        if self.is_alone:
            return own
        parts = self._gathered(own.detach())
        parts[self.rank.rank] = own
        return torch.cat(parts)

    def gather_values(self, own: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "all ..."]:
        """Return every process's rows, in rank order, on ``own``'s device and without gradient."""
        return own if self.is_alone else torch.cat(self._gathered(own.detach()))

    def gather_json(self, own: Any) -> list[Any]:
        """Return every process's plain value, in rank order."""
        if self.is_alone:
            return [own]
        content = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
        lengths = self.gather_values(torch.tensor([len(content)])).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = content
        parts = self._gathered(padded)
        return [
            json.loads(bytes(part[:length].tolist())) for part, length in zip(parts, lengths, strict=True)
        ]

    def of_first(self, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returns in the first process, a plain value; the others do not call it."""
        return self.gather_json(make() if self.is_first else None)[0]

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set in any process."""
        return flag if self.is_alone else bool(self.gather_values(torch.tensor([flag])).any())

    def wait(self) -> None:
        """Return once every process has come here."""
        self.any(False)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Let the others in once the first has left: what it makes among the artifacts they find made."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    @torch.no_grad()
    def sum_gradients(self, embedded: Iterable[nn.Parameter], whole: Iterable[nn.Parameter]) -> None:
        """Make every process's gradients those of the whole batch, by one sum over all processes.

        Args:
            embedded: parameters behind the embeddings: each process has the part of its own rows.
            whole: parameters of the objective, whose gradient every process has computed whole.
        """
        if self.is_alone:
            return
        gradients = [p.grad for p in embedded if p.grad is not None]
        alike = [p.grad for p in whole if p.grad is not None]
        if alike:
            # Equal but for rounding: their mean keeps the processes' weights the same bit for bit.
            torch._foreach_div_(alike, self.world)
        gradients += alike
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with peers():
            dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def _gathered(self, own: Tensor) -> list[Tensor]:
        moved = own.contiguous().to(self.device)
        # gloo and NCCL have no booleans.
        sent = moved.to(torch.uint8) if moved.dtype == torch.bool else moved
        parts = [torch.empty_like(sent) for _ in range(self.world)]
        with peers():
            dist.all_gather(parts, sent)
        return [part.to(own.device, own.dtype) for part in parts]


@contextmanager
def joined(rank: Rank, device_name: str) -> Iterator[Group]:
    """Join the processes that the launcher started; leave them at the end.

    Args:
        rank: what the launcher said.
        device_name: ``train.device``: ``cuda`` gives each process of a host a GPU of its own and NCCL, ``cpu`` gloo.

    Raises:
        ConfigError: the launcher did not say where the processes meet, or a host has fewer GPUs than processes.
        TrainingError: they did not meet.
    """
    if rank.world == 1:
        yield Group()
        return
    missing = [name for name in RENDEZVOUS if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"{rank.world} processes were started and none knows where they meet",
            expected=f"{' and '.join(RENDEZVOUS)} in the environment, as torchrun sets them",
            got=f"no {', '.join(missing)}",
            run="torchrun --nproc-per-node N -m stages.cli distill RECIPE",
        )
    device = device_of_rank(rank, device_name)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(rendezvous("env://", rank.rank, rank.world, timeout=TIMEOUT))
        # torchrun's own store outlives a restart, and what dead processes wrote there leads nowhere.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt{attempt}/meeting{next(_MEETINGS)}", store)
        dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{rank.world} processes did not meet at {os.environ[RENDEZVOUS[0]]}:{os.environ[RENDEZVOUS[1]]}",
            expected="every process started, and the address reachable from each", got=str(error),
        ) from error  # fmt: skip
    try:
        yield Group(rank, device)
    finally:
        dist.destroy_process_group()


def device_of_rank(rank: Rank, device_name: str) -> torch.device:
    """Return the device of this process: of several on a host, each has the GPU of its place there.

    Raises:
        ConfigError: the host has fewer GPUs, or the recipe names one for all.
    """
    if not device_name.startswith("cuda"):
        return torch.device("cpu")
    if device_name != "cuda":
        raise ConfigError(
            "train.device names one GPU for every process", expected="cuda", got=device_name,
            run="--set train.device=cuda",
        )  # fmt: skip
    if rank.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {rank.local_rank} of this host has no GPU",
            expected=f"at most {torch.cuda.device_count()} processes a host",
            got=f"{rank.local_world} or more",
            run="lower --nproc-per-node, or --set train.device=cpu",
        )
    return torch.device("cuda", rank.local_rank)


@contextmanager
def peers() -> Iterator[None]:
    """Say in words that another process has gone, which torch reports as an error of the network."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(
            "another process of this run went away",
            expected="every process until the last step",
            got=str(error).splitlines()[0],
            run="the same command goes on from the last checkpoint; the other process's output says why it ended",
        ) from error
