"""ERes2Net (S-SONDO) and Mobile FCN (EAsT) against their authors' code: frontend, names, every tap, counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.frontends.log_mel import LogMel
from pipeline.frontends.preemphasis_mel import PreemphasisMel, PreemphasisMelConfig
from pipeline.students.base import Student
from pipeline.students.eres2net import Eres2Net
from pipeline.students.initial import fit_state
from pipeline.students.mobile_fcn import MobileFcn
from pipeline.students.registry import build_student
from pipeline.training.projector import MlpHead
from tests.frontends import torchaudio_reference
from tests.golden import convolutional_teachers as convnets
from tests.golden import golden_vectors as golden
from tests.golden.convolutional_teachers import Golden

STUDENTS = {"ssondo_eres2net": "eres2net", "east_mobile_fcn": "mobile_fcn"}
NAMES = golden.folders(*STUDENTS)
DIRECT = "direct_"


@dataclass(frozen=True)
class Case:
    """One golden folder, our network of it with the spec's classes, filled, and what its files call it."""

    folder: str
    vectors: Golden
    network: Student
    prefix: str

    @property
    def log_mel(self) -> Tensor:
        """(batch, mels, frames) of the spec's waveforms, by our frontend."""
        given = self.vectors[0]["frontend"]
        waveforms = convnets.waveforms(self.vectors[0])
        made: Tensor = frontend(given)(waveforms)
        return made


def frontend(given: dict[str, Any]) -> LogMel | PreemphasisMel:
    """Return the spec's frontend as ours."""
    if given["preemphasis"]:
        shift, scale = given["normalisation"].split(" / ")
        return PreemphasisMel(
            PreemphasisMelConfig(
                sample_rate_hz=given["sample_rate"], n_fft=given["n_fft"], window_length=given["win_length"],
                hop_length=given["hop"], mels=given["n_mels"], min_hz=float(given["fmin"]), max_hz=float(given["fmax"]),
                preemphasis=given["preemphasis"]["coefficient"], log_offset=1e-5,
                shift=-float(shift.strip("()").split(" - ")[1]), scale=float(scale),
            )
        )  # fmt: skip
    ours = LogMel(
        LogMelConfig(
            sample_rate_hz=given["sample_rate"], n_fft=given["n_fft"], window_length=given["win_length"],
            hop_length=given["hop"], center=given["center"], power=given["power"], mels=given["n_mels"],
            min_hz=given["fmin"], max_hz=given["fmax"], mel_scale=given["mel_scale"],
            mel_norm=given["mel_norm"].split()[0], log="ln",
            log_offset=float(given["log"].removeprefix("ln(mel + ").removesuffix(")")),
        )
    )  # fmt: skip
    # The reference draws its triangles in float32, ours are float64's: a tone on a triangle's edge, of another
    # size by a thousandth, is no fault of either.
    bank = torchaudio_reference.load().MelScale(
        given["n_mels"], given["sample_rate"], given["fmin"], given["fmax"], given["n_fft"] // 2 + 1,
        given["mel_norm"].split()[0], given["mel_scale"],
    ).fb  # fmt: skip
    torch.testing.assert_close(ours.bank, bank, rtol=1e-4, atol=1e-6)
    ours.bank.copy_(bank)
    return ours


def build(folder: str, spec: dict[str, Any]) -> Student:
    if folder == "ssondo_eres2net":
        model = spec["config"]["student_model"]
        width = model["m_channels"] / Eres2Net().conv1.out_channels
        return Eres2Net(model["feat_dim"], width=width, blocks=model["num_blocks"])
    given = spec["config"]["student"]["args"]
    return MobileFcn(given["n_mels"], num_classes=given["num_classes"])


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    folder = str(request.param)
    vectors = golden.require(folder)
    network = build(folder, vectors[0]).eval()
    prefix = "model." if folder == "ssondo_eres2net" else ""
    state = {
        k.removeprefix(prefix): v for k, v in golden.filled_state(*vectors).items() if k.startswith(prefix)
    }
    problems = network.load_state_dict(state, strict=False)
    assert problems.unexpected_keys == []
    assert all(k.endswith("num_batches_tracked") for k in problems.missing_keys)
    return Case(folder, vectors, network, prefix)


def head_of(vectors: Golden) -> MlpHead:
    """Return S-SONDO's mapping head with the spec's weights."""
    state = golden.filled_state(*vectors)
    mlp = {k.removeprefix("classification_head."): v for k, v in state.items() if ".mlp." in k}
    hidden, width = mlp["mlp.0.weight"].shape
    head = MlpHead(width, len(mlp["mlp.3.weight"]), hidden).eval()
    head.load_state_dict(mlp)
    return head


def taps_of(case: Case, log_mel: Tensor, wanted: list[str]) -> dict[str, Tensor]:
    """Return the taps ``wanted`` for log-mel of shape (batch, segments, mels, frames)."""
    batch, segments = log_mel.shape[:2]
    called = {"stem": "bn1"} | {tap: tap.replace("fuse", "fuse_mode") for tap in wanted if "fuse" in tap}
    modules = {tap: called.get(tap, tap) for tap in wanted if hasattr(case.network, called.get(tap, tap))}
    modules.pop("embedding", None)
    if isinstance(case.network, MobileFcn):
        modules |= {"output_1": "layer4", "output_2": "layer6", "output_3": "layer8", "maps": "layer8"}
    with convnets.recorded(case.network, modules) as found:
        out = case.network(log_mel.flatten(0, 1)[:, None])
    if isinstance(case.network, MobileFcn):
        found |= {"scores": out, "probabilities": out.sigmoid(), "features": log_mel[:, 0]}
        found["embedding"] = case.network.pool(found["maps"])
        for name in ("output_1", "output_2", "output_3"):
            found[name] = found[name].mean(dim=2).transpose(1, 2)
    else:
        found |= {"features": log_mel, "segment_embeddings": out.unflatten(0, (batch, segments))}
        found["embedding"] = found["segment_embeddings"].mean(dim=1)
        with torch.inference_mode():
            found["prediction"] = head_of(case.vectors)(found["segment_embeddings"])
    return {tap: found[tap] for tap in wanted}


def test_state_dict_has_the_published_names_shapes_and_dtypes(case: Case) -> None:
    published = convnets.of_spec(case.vectors[0])
    ours = convnets.names_and_shapes(case.network.state_dict())
    assert {case.prefix + k: v for k, v in ours.items()} == {
        k: v for k, v in published.items() if k.startswith(case.prefix)
    }


def test_every_tap_from_the_waveform_equals_the_reference(case: Case) -> None:
    wanted = [tap for tap in case.vectors[0]["taps"] if not tap.startswith(DIRECT)]
    made = taps_of(case, case.log_mel[:, None], wanted)
    convnets.check(case.folder, case.vectors, made, convnets.through_the_frontend)


def test_from_the_references_own_log_mel_only_rounding_is_left(case: Case) -> None:
    spec, taps = case.vectors
    prefix = DIRECT if "features" in spec["input"] else ""
    if prefix:
        given = golden.tensor(spec["input"]["features"]["seed"], spec["input"]["features"]["shape"])
    elif spec["taps"]["features"]["slice"] is None:
        given = torch.from_numpy(taps["features"])[:, None]
    else:
        pytest.skip("the spec keeps a part of the features only")
    wanted = [
        tap.removeprefix(prefix) for tap in spec["taps"] if tap.startswith(prefix) and tap != "features"
    ]
    made = {prefix + tap: value for tap, value in taps_of(case, given, wanted).items()}
    convnets.check(case.folder, case.vectors, made, convnets.rounding)


def test_parameters_and_multiply_accumulates_are_the_measured_ones(case: Case) -> None:
    published = case.vectors[0]["published"]
    numbers = sum(p.numel() for p in case.network.parameters())
    assert numbers == published.get("params_measured", published.get("params_measured_backbone"))
    assert case.network.pooled_dim == published["embedding_dim"]
    note = published["macs_note"].split()
    frames = int(note[note.index("frames") - 1] if "frames" in note else note[-2])
    macs = published.get("macs_measured", published.get("macs_measured_10s_backbone"))
    with torch.device("meta"):
        network = build(case.folder, case.vectors[0]).eval()
    mels = case.vectors[0]["frontend"]["n_mels"]
    assert convnets.multiply_accumulates(network, network, 1, 1, mels, frames) == macs


def test_a_file_of_the_published_layout_starts_the_student(case: Case) -> None:
    mels = case.vectors[0]["frontend"]["n_mels"]
    config = StudentConfig(name=STUDENTS[case.folder])
    student = build_student(config, mels).eval()
    state = {k: v.clone() for k, v in golden.filled_state(*case.vectors).items()}
    layout = "student_model." if case.prefix else ""
    fit_state(student, {"state_dict": {layout + k: v for k, v in state.items()}}, config, mels, "published")
    log_mel = torch.randn(1, 1, mels, 97, generator=torch.Generator().manual_seed(0))
    assert isinstance(case.network, MobileFcn | Eres2Net)
    with torch.inference_mode():
        torch.testing.assert_close(student(log_mel), case.network.pool(case.network.maps(log_mel)))
