"""Published state dicts into networks, and batch norms into their convolutions, for inference."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.errors import WeightsError

LISTED = 4


def load_published(
    network: nn.Module, state: Mapping[str, Tensor], name: str, *, assign: bool = False
) -> None:
    """Load ``state`` into ``network`` and put it into evaluation mode.

    Batch norms' step counters may be absent: they play no part in inference.

    Args:
        assign: take the state's tensors as they are, into a network made on the meta device.

    Raises:
        WeightsError: an entry is missing, unexpected or of another shape; the first few are named.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(value.shape)} for {list(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{what} {', '.join(keys[:LISTED])}{f' and {len(keys) - LISTED} more' if len(keys) > LISTED else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"the checkpoint does not fit {name}",
            expected=f"the {len(own)} entries of the published file",
            got="; ".join(problems),
        )
    network.load_state_dict(dict(state), strict=False, assign=assign)
    network.eval()


def without_constants(
    state: Mapping[str, Tensor], constants: Mapping[str, Tensor], tolerance: float, name: str
) -> dict[str, Tensor]:
    """Return ``state`` without the frontend's constants that the authors saved in it, once seen to be ours.

    Args:
        state: as published; constants that it does not have are no fault.
        constants: what our frontend computes, under the published names.
        tolerance: largest difference allowed.
        name: of the teacher, for the message.

    Raises:
        WeightsError: the file is of another frontend: another sample rate, FFT length or mel range.
    """
    network = dict(state)
    for key, own in constants.items():
        stored = network.pop(key, None)
        if stored is None:
            continue
        same_shape = stored.shape == own.shape
        worst = float((stored.float() - own).abs().max()) if same_shape else float("inf")
        if not worst <= tolerance:
            raise WeightsError(
                f"{key} of the checkpoint is not that of {name}'s frontend",
                expected=f"{list(own.shape)}, within {tolerance:g}",
                got=f"{list(stored.shape)}" + (f", {worst:.3g} off" if same_shape else ""),
            )
    return network


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch norm that follows a convolution inside an ``nn.Sequential`` into that convolution.

    The batch norm's place is kept by an identity. The network must be in evaluation mode.
    """
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            convolution, norm = module[index], module[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(convolution, norm)
                module[index + 1] = nn.Identity()
