"""Statistics of all steps heard so far: what a causal network has in place of a mean over the whole clip.

Streamed, a layer carries tensors from block to block (:mod:`pipeline.students.streaming`); on a whole signal it
carries nothing and starts from the beginning. Both compute the same numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Beyond so many steps a plain mean forgets as an exponential one does: a float32 counter counts no further.
MOST_STEPS = 2**23


class Carrying(nn.Module):
    """A layer that carries tensors from one block of a stream to the next.

    Attributes:
        carried: None on whole signals; in a stream what the blocks before left, replaced by every forward.
        carries: the names of those tensors.
    """

    carried: tuple[Tensor, ...] | None = None
    carries: tuple[str, ...] = ()

    def initial(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what is carried before the first block, given the layer's input ``x`` in any block."""
        raise TypeError(f"{type(self).__name__} does not say what it carries")


class Running(Carrying):
    """A statistic over the time steps so far, time being the last axis.

    Attributes:
        memory_steps: None weighs all steps alike; a number forgets: the mean becomes an exponential one of that
            time constant once it has heard so many steps, the maximum is that of the last so many.
    """

    def __init__(self, memory_steps: int | None = None) -> None:
        super().__init__()
        self.memory_steps = memory_steps

    @property
    def limit(self) -> int:
        """Steps after which the statistic forgets."""
        return self.memory_steps or MOST_STEPS


class RunningMean(Running):
    """``mean_i = mean_(i-1) + (x_i - mean_(i-1)) / min(i, memory_steps)``, i from 1, in float32."""

    carries = ("mean", "count")

    def initial(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return a mean of zeros ``(..., 1)`` and a count of zero ``(1,)``."""
        # Not of a slice: the exporter cannot tell that min(1, steps) is 1.
        mean = torch.zeros(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
        return mean, torch.zeros(1, device=x.device)

    def forward(self, x: Float[Tensor, "*rest steps"]) -> Float[Tensor, "*rest steps"]:
        """Return the mean of the steps up to each step."""
        x = x.float()
        if self.carried is None and self.memory_steps is None:
            return x.cumsum(dim=-1) / torch.arange(1, x.shape[-1] + 1, device=x.device)
        mean, count = self.carried if self.carried is not None else self.initial(x)
        weights, kept = running_weights(count, x.shape[-1], self.limit)
        means = x @ weights.T + mean * kept
        if self.carried is not None:
            self.carried = (means[..., -1:], (count + x.shape[-1]).clamp(max=self.limit))
        return means


class LastMean(RunningMean):
    """:class:`RunningMean` up to the last step alone: plainly the mean, where a whole signal is at hand."""

    def forward(self, x: Float[Tensor, "*rest steps"]) -> Float[Tensor, "*rest"]:
        """Return the mean up to the last step."""
        if self.carried is None and self.memory_steps is None:
            return x.float().mean(dim=-1)
        return super().forward(x)[..., -1]


class RunningMax(Running):
    """The maximum of the steps so far, or of the last ``memory_steps``."""

    carries = ("steps",)

    def initial(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return ``(..., memory_steps or 1)`` of minus infinity."""
        return (torch.full((*x.shape[:-1], self.memory_steps or 1), -torch.inf, device=x.device),)

    def forward(self, x: Float[Tensor, "*rest steps"]) -> Float[Tensor, "*rest"]:
        """Return the maximum up to the last step."""
        x = x.float()
        if self.carried is not None:
            x = torch.cat([self.carried[0], x], dim=-1)
        if self.memory_steps is not None:
            x = x[..., -self.memory_steps :]
        highest = x.amax(dim=-1)
        if self.carried is not None:
            self.carried = (x if self.memory_steps is not None else highest[..., None],)
        return highest


class RunningDeviation(Running):
    """Mean and standard deviation of the steps so far, weighed as :class:`RunningMean` weighs them.

    The deviation is ``sqrt(variance * n / (n - 1) + epsilon)``, n = min(steps, memory_steps): torch's unbiased
    one where nothing is forgotten; of a single step it is ``sqrt(epsilon)``.
    """

    carries = ("mean", "variance", "count")

    def __init__(self, epsilon: float, memory_steps: int | None = None) -> None:
        super().__init__(memory_steps)
        self.epsilon = epsilon

    def initial(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return mean and variance of zeros ``(...,)`` and a count of zero ``(1,)``."""
        zeros = torch.zeros_like(x[..., 0], dtype=torch.float32)
        return zeros, zeros.clone(), torch.zeros(1, device=x.device)

    def forward(self, x: Float[Tensor, "*rest steps"]) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation up to the last step, each without the time axis."""
        x = x.float()
        if self.carried is None:
            if self.memory_steps is None:
                mean = x.mean(dim=-1)
                variance = (x - mean[..., None]).square().mean(dim=-1)
            else:
                weights = running_weights(torch.zeros(1, device=x.device), x.shape[-1], self.limit)[0][-1]
                mean = (x * weights).sum(dim=-1)
                variance = ((x - mean[..., None]).square() * weights).sum(dim=-1)
            heard = torch.ones(1, device=x.device) * x.shape[-1]
        else:
            mean, variance, heard = self.carried
            for step in x.unbind(dim=-1):
                heard = heard + 1
                gain = 1.0 / heard.clamp(max=self.limit)
                off = step - mean
                mean = mean + gain * off
                variance = (1.0 - gain) * (variance + gain * off.square())
            heard = heard.clamp(max=self.limit)
            self.carried = (mean, variance, heard)
        heard = heard.clamp(max=self.limit)
        unbiased = variance * (heard / (heard - 1.0).clamp(min=1.0))
        return mean, root(unbiased, self.epsilon)


def root(variance: Float[Tensor, "*shape"], epsilon: float) -> Float[Tensor, "*shape"]:
    """Return ``sqrt(variance + epsilon)``, ``epsilon`` above 0."""
    # The ONNX exporter drops a constant of 1e-8 from a sum as if it were 0: scaled up, it is 1.
    scaled: Tensor = torch.sqrt(variance / epsilon + 1.0)
    return scaled * float(epsilon**0.5)


def running_weights(
    count: Float[Tensor, " one"], steps: int | torch.SymInt, limit: int
) -> tuple[Float[Tensor, "steps steps"], Float[Tensor, " steps"]]:
    """Return the running mean of the next ``steps`` steps as one matrix, after ``count`` steps.

    ``mean_i = sum_j weights[i, j] x_j + kept[i] mean_count``: the product of the recursion's factors
    ``1 - 1 / min(l, limit)`` written out. ``count`` may stand still at ``limit``, for beyond it no weight changes.
    """
    i = count + torch.arange(1, steps + 1, device=count.device)  # type: ignore[arg-type]
    decay = torch.full((1,), 1.0 - 1.0 / limit, device=count.device)
    share = 1.0 / i.clamp(max=limit)
    later = i[:, None] - i.clamp(min=limit)[None, :]
    weights = share[:, None] * decay ** later.clamp(min=0.0)
    weights = weights * (i[None, :] <= i[:, None])
    kept = count.clamp(max=limit) * share * decay ** (i - count.clamp(min=limit)).clamp(min=0.0)
    return weights, kept
