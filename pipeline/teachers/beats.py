"""BEATs: audio pre-training with acoustic tokenizers (Chen et al., ICML 2023), 90 M parameters, 16 kHz."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import TeacherConfig
from pipeline.errors import WeightsError
from pipeline.frontends.beats_frontend import FBANK, SAMPLE_RATE_HZ, BeatsFrontend
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.beats_network import Beats, BeatsSizes, Encoded, token_mean
from pipeline.teachers.network import NetworkTeacher
from pipeline.teachers.options import NoOptions, parse

WINDOW_SECONDS = 10
# Newer torch writes a weight norm under other names than the published files.
_WEIGHT_NORM = {
    "encoder.pos_conv.0.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv.0.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
}
# Tokens a pass on the CPU: eight windows of 10 s. More are no faster and want more memory a worker.
_CPU_TOKENS = 4_096


def unwrap_beats(payload: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict, and ``cfg`` (and ``label_dict`` of a fine-tuned file) beside it.

    Raises:
        WeightsError: the file is not ``{"cfg": ..., "model": ...}``.
    """
    cfg, state = (payload.get(key) if isinstance(payload, Mapping) else None for key in ("cfg", "model"))
    if not (isinstance(cfg, Mapping) and isinstance(state, Mapping)) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise WeightsError(
            "the checkpoint is not one of BEATs",
            expected="a dict of cfg and model, as published",
            got=checkpoints.outline(payload),
        )
    extra: dict[str, Any] = {
        "cfg": {str(key): value for key, value in cfg.items() if isinstance(value, str | int | float)}
    }
    if isinstance(payload.get("label_dict"), Mapping):
        extra["label_dict"] = {str(index): str(mid) for index, mid in payload["label_dict"].items()}
    return {_WEIGHT_NORM.get(str(name), str(name)): value for name, value in state.items()}, extra


class BeatsTeacher(NetworkTeacher):
    """BEATs as its authors run it: a window of any length whole, relative positions carrying on past 10 s.

    Windows below 175 ms, one patch of 16 frames, are followed by silence up to it; longer ones lose the frames
    that fill no last patch. ``embedding`` is the mean of all tokens (768), ``frames`` the mean of the 8 bands of
    each time patch (160 ms), ``logits`` the class head's mean over tokens before the sigmoid (fine-tuned files).

    Args:
        config: device, dtype, batch size and name.
        network: loaded, not yet folded.
        sha256: of the checkpoint.
    """

    code_version = "beats/1"
    sample_rate_hz = SAMPLE_RATE_HZ
    window_samples = WINDOW_SECONDS * SAMPLE_RATE_HZ

    def __init__(
        self, config: TeacherConfig, network: Beats, sha256: str, *, licence: str, citation: str
    ) -> None:
        super().__init__(config, sha256)
        self.name, self.licence, self.citation = config.name, licence, citation
        sizes = network.sizes
        self.embedding_dim = sizes.encoder_embed_dim
        self.network = network.fold(self.device, self.dtype)
        self.frontend = BeatsFrontend().to(self.device)
        self.least_samples = FBANK.frame_samples + (sizes.input_patch_size - 1) * FBANK.shift_samples
        logits = ("logits",) if network.predictor is not None else ()
        self.outputs = ("embedding", *logits, "frames", *(f"layer.{n}" for n in range(sizes.encoder_layers)))

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return the outputs of waveforms at 16 kHz, in [-1, 1]."""
        missing = self.least_samples - waveforms.shape[1]
        if missing > 0:
            waveforms = F.pad(waveforms, (0, missing))
        sizes = self.network.sizes
        frames = FBANK.frames(waveforms.shape[1])
        tokens = frames // sizes.input_patch_size * sizes.bands
        at_once = max(1, _CPU_TOKENS // tokens) if self.device.type == "cpu" else len(waveforms)
        layers = [int(name.removeprefix("layer.")) for name in outputs if name.startswith("layer.")]
        passes = [
            self._outputs(self.network(self.frontend(part), layers), outputs)
            for part in waveforms.split(at_once)
        ]
        return {name: torch.cat([made[name] for made in passes]) for name in passes[0]}

    def _outputs(self, heard: Encoded, outputs: frozenset[str]) -> dict[str, Tensor]:
        made = {"embedding": token_mean(heard.tokens, heard.padding)}
        made |= {f"layer.{number}": mean for number, mean in heard.layers.items()}
        if "frames" in outputs:
            bands = self.network.sizes.bands
            made["frames"] = heard.tokens.unflatten(1, (-1, bands)).mean(dim=2, dtype=torch.float32)
        if "logits" in outputs:
            made["logits"] = self.network.logits(made["embedding"])
        return made


def build_beats(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> BeatsTeacher:
    """Return BEATs with the checkpoint called ``config.name``; its ``cfg`` says the network's sizes.

    Args:
        config: name, device, dtype, batch size.
        weights: a file in place of ``config.weights``.
        cache: folder of downloads.

    Raises:
        WeightsError: the checkpoint is absent, not trusted or not one of BEATs.
        ConfigError: an option; BEATs has none.
    """
    parse(NoOptions, config.name, config.options)
    if weights is not None:
        config = config.model_copy(update={"weights": weights})
    loaded = checkpoints.load(config.name, config, unwrap_beats, cache)
    network = Beats.from_state(loaded.state, BeatsSizes.from_cfg(loaded.extra["cfg"]))
    return BeatsTeacher(config, network, loaded.sha256, licence=loaded.licence, citation=loaded.citation)
