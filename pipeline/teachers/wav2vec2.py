"""wav2vec 2.0 through transformers (Baevski et al., NeurIPS 2020, arXiv 2006.11477), with or without a head.

The network is built from a configuration that is read off the checkpoint's own tensors; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.audio.torchaudio_loader import load_torchaudio
from pipeline.config import Section, TeacherConfig
from pipeline.errors import ConfigError, MissingDependencyError, WeightsError
from pipeline.frontends.wav2vec2_frontend import SAMPLE_RATE_HZ, Wav2Vec2Frontend
from pipeline.teachers import options
from pipeline.teachers import weights as checkpoints
from pipeline.teachers.folding import load_published
from pipeline.teachers.network import NetworkTeacher

WINDOW_SECONDS = 10.0
HEAD_DIM = 64
ENCODER_PREFIX = "wav2vec2."
# Parts of pre-training and of transcription: no embedding passes through them.
UNUSED = ("quantizer.", "project_q.", "project_hid.", "lm_head.")
HEADS = ("classifier.", "projector.", "layer_weights")
FUSED_ATTENTION: dict[str, Any] = {"attn_implementation": "sdpa"}
_POSITION = "encoder.pos_conv_embed.conv."
_OLD_WEIGHT_NORM = {
    f"{_POSITION}weight_g": f"{_POSITION}parametrizations.weight.original0",
    f"{_POSITION}weight_v": f"{_POSITION}parametrizations.weight.original1",
}


class Wav2Vec2Options(Section):
    """Keys of ``embed.teacher.options``."""

    layer: int | None = Field(
        None,
        ge=0,
        description="block whose output gives embedding and frames, 0 = the first; default the last",
    )


class RegressionHead(nn.Module):
    """Linear, tanh, linear on the time mean: the head of audeering's dimensional emotion model (2023)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, outputs)

    def forward(self, frames: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch outputs"]:
        """Return the outputs of the mean over time."""
        return self.out_proj(torch.tanh(self.dense(frames.mean(dim=1))))  # type: ignore[no-any-return]


class ClassificationHead(nn.Module):
    """Projection of every frame, mean over time, linear: transformers' sequence classification."""

    def __init__(self, width: int, projected: int, outputs: int) -> None:
        super().__init__()
        self.projector = nn.Linear(width, projected)
        self.classifier = nn.Linear(projected, outputs)

    def forward(self, frames: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch outputs"]:
        """Return the logits."""
        return self.classifier(self.projector(frames).mean(dim=1))  # type: ignore[no-any-return]


def unwrap(loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the encoder's entries without prefix and a head's under ``head.``.

    Takes a bare encoder, a pre-training or a fine-tuned file; weight norm is spelt ``weight_g``/``weight_v`` or
    ``parametrizations.weight.original0``/``1``.

    Raises:
        WeightsError: no flat state dict of wav2vec 2.0.
    """
    flat, _ = checkpoints.plain(loaded)
    prefixed = any(key.startswith(ENCODER_PREFIX) for key in flat)
    state: dict[str, Tensor] = {}
    for key, value in flat.items():
        if key.startswith(UNUSED):
            continue
        if key.startswith(HEADS):
            state[f"head.{key}"] = value
            continue
        if prefixed and not key.startswith(ENCODER_PREFIX):
            raise WeightsError(
                "the checkpoint is no wav2vec 2.0", expected=f"entries {ENCODER_PREFIX}*", got=key
            )
        name = key.removeprefix(ENCODER_PREFIX)
        state[_OLD_WEIGHT_NORM.get(name, name)] = value
    if "encoder.layer_norm.weight" not in state:
        raise WeightsError(
            "the checkpoint is no wav2vec 2.0", expected="encoder.layer_norm.weight", got=sorted(flat)[:4]
        )
    state.setdefault("masked_spec_embed", torch.zeros(len(state["encoder.layer_norm.weight"])))
    return state, {}


def configuration(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the keys of transformers' ``Wav2Vec2Config`` that the encoder's tensors imply.

    Attention heads are 64 wide in every published size. Layer norm in every convolution (instead of group norm
    in the first) goes with the pre-norm transformer (large LV-60, robust, XLSR).

    Raises:
        WeightsError: an entry that says a width is absent.
    """
    convolutions = _count(state, r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    layers = _count(state, r"encoder\.layers\.(\d+)\.layer_norm\.weight")
    try:
        kernels = [state[f"feature_extractor.conv_layers.{i}.conv.weight"].shape for i in range(convolutions)]
        width = len(state["encoder.layer_norm.weight"])
        position = state[f"{_POSITION}parametrizations.weight.original1"].shape
        hidden = len(state["encoder.layers.0.feed_forward.intermediate_dense.bias"])
    except KeyError as error:
        raise WeightsError(
            "the checkpoint is no wav2vec 2.0", expected=error.args[0], got="absent"
        ) from error
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in state
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_DIM),
        "intermediate_size": hidden,
        "conv_dim": [shape[0] for shape in kernels],
        "conv_kernel": [shape[2] for shape in kernels],
        "conv_stride": [5, *[2] * (convolutions - 1)],
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in state,
        "feat_extract_norm": "layer" if layer_norm else "group",
        "do_stable_layer_norm": layer_norm,
        "num_conv_pos_embeddings": position[2],
        "num_conv_pos_embedding_groups": width // position[1],
        "apply_spec_augment": False,
        "layerdrop": 0.0,
    }


def _count(state: dict[str, Tensor], pattern: str) -> int:
    return len([key for key in state if re.fullmatch(pattern, key)])


def build_network(config: dict[str, Any]) -> nn.Module:
    """Return transformers' ``Wav2Vec2Model`` of ``config`` without values (on the meta device).

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    # transformers imports torchaudio where there is one, whose wheel fails beside a CPU build of torch.
    if importlib.util.find_spec("torchaudio") is not None:
        load_torchaudio()
    try:
        from transformers import Wav2Vec2Config, Wav2Vec2Model
    except ImportError as error:
        raise MissingDependencyError(
            "teacher 'wav2vec2' needs transformers",
            got=str(error),
            run="pip install 'ossicle[wav2vec2]'",
        ) from error
    with torch.device("meta"):
        made: nn.Module = Wav2Vec2Model(Wav2Vec2Config(**config, **FUSED_ATTENTION))
    return made


def build_head(state: dict[str, Tensor]) -> nn.Module | None:
    """Return the head that ``state`` (names without ``head.``) holds, loaded; None where it holds none.

    Raises:
        WeightsError: entries of no known head.
    """
    if not state:
        return None
    if "layer_weights" in state:
        raise WeightsError(
            "the checkpoint's head sums weighted layers, which is not supported",
            expected="a head on the last layer",
            got="layer_weights",
        )
    head: nn.Module
    if {"classifier.dense.weight", "classifier.out_proj.weight"} <= state.keys():
        outputs, width = state["classifier.out_proj.weight"].shape
        head = RegressionHead(width, outputs)
        state = {key.removeprefix("classifier."): value for key, value in state.items()}
    elif {"projector.weight", "classifier.weight"} <= state.keys():
        projected, width = state["projector.weight"].shape
        head = ClassificationHead(width, projected, len(state["classifier.weight"]))
    else:
        raise WeightsError(
            "the checkpoint's head is of no known kind",
            expected="classifier.dense and classifier.out_proj, or projector and classifier",
            got=", ".join(sorted(state)),
        )
    load_published(head, state, "wav2vec2's head")
    return head


class Wav2Vec2Teacher(NetworkTeacher):
    """wav2vec 2.0 as stage 1 runs it: fused attention, position convolution without its weight norm.

    Any length from one sample goes through whole, as in the authors' code; a batch's windows have one length,
    so that no mask is needed. ``embedding`` is the time mean of the last hidden states, or of block
    ``options.layer``; ``frames`` are those states, one in 20 ms; ``layer.N`` is the mean of block N's output (the
    last one's after the final norm where the transformer is pre-norm). With a head in the file, ``logits`` are
    its outputs: classes, or arousal, dominance and valence of audeering's model.
    """

    code_version = "wav2vec2/1"
    sample_rate_hz = SAMPLE_RATE_HZ
    window_samples = round(WINDOW_SECONDS * SAMPLE_RATE_HZ)

    def __init__(self, name: str, loaded: checkpoints.Weights, config: TeacherConfig) -> None:
        chosen = options.parse(Wav2Vec2Options, name, config.options)
        super().__init__(config, loaded.sha256, chosen.model_dump(exclude_none=True))
        self.name, self.licence, self.citation = name, loaded.licence, loaded.citation
        encoder = {k: v for k, v in loaded.state.items() if not k.startswith("head.")}
        head = {k.removeprefix("head."): v for k, v in loaded.state.items() if k.startswith("head.")}
        shape = configuration(encoder)
        self.layers = int(shape["num_hidden_layers"])
        if chosen.layer is not None and chosen.layer >= self.layers:
            raise ConfigError(
                f"teacher {name!r} has no block {chosen.layer}",
                expected=f"option layer from 0 to {self.layers - 1}",
                got=chosen.layer,
            )
        self.layer = self.layers - 1 if chosen.layer is None else chosen.layer
        net = build_network(shape)
        load_published(net, encoder, name, assign=True)
        parametrize.remove_parametrizations(net.get_submodule(_POSITION.rstrip(".")), "weight")
        self.embedding_dim = int(shape["hidden_size"])
        self.frontend = Wav2Vec2Frontend()
        self.net = net.to(device=self.device, dtype=self.dtype)
        built = build_head(head)
        # Small matrices behind the mean: float32 costs nothing there.
        self.head = None if built is None else built.to(self.device)
        named = ("embedding", "frames", *(f"layer.{i}" for i in range(self.layers)))
        self.outputs = named if self.head is None else (*named, "logits")

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return every asked output of one batch at 16 kHz."""
        several = self.layer != self.layers - 1 or any(name.startswith("layer.") for name in outputs)
        given = self.frontend(waveforms).to(self.dtype)
        result = self.net(given, output_hidden_states=several)
        last = result.last_hidden_state.float()
        # Whether the library's last hidden state has passed the final norm depends on its version.
        states = [*(state.float() for state in result.hidden_states[1:-1]), last] if several else []
        frames = states[self.layer] if several else last
        made = {"embedding": frames.mean(dim=1), "frames": frames}
        made |= {f"layer.{i}": state.mean(dim=1) for i, state in enumerate(states)}
        if self.head is not None and "logits" in outputs:
            made["logits"] = self.head(last)
        return made


def build_wav2vec2(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> Wav2Vec2Teacher:
    """Return wav2vec 2.0 base, or whatever size and head the file in ``weights`` has."""
    return _build("wav2vec2", config, weights, cache)


def build_wav2vec2_emotion(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> Wav2Vec2Teacher:
    """Return audeering's dimensional emotion model: ``logits`` are arousal, dominance, valence in about 0..1."""
    return _build("wav2vec2_emotion", config, weights, cache)


def _build(name: str, config: TeacherConfig, weights: Path | None, cache: Path | None) -> Wav2Vec2Teacher:
    given = config if weights is None else config.model_copy(update={"weights": weights})
    return Wav2Vec2Teacher(name, checkpoints.load(name, given, unwrap, cache), config)
