"""BEATs against its authors' own code: features, tokens, position bias, blocks, mask, embedding, class head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.frontends.beats_frontend import BeatsFrontend
from pipeline.frontends.kaldi_fbank import FbankConfig
from pipeline.teachers.beats import BeatsTeacher
from pipeline.teachers.beats_network import Beats, BeatsSizes, token_mean
from tests.golden import golden_vectors as golden

Golden = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=golden.folders(prefix="beats"))
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vectors(folder: str) -> Golden:
    return golden.require(folder)


@pytest.fixture(scope="module")
def sizes(vectors: Golden) -> BeatsSizes:
    return BeatsSizes.from_cfg(vectors[0]["config"]["cfg"])


@pytest.fixture(scope="module")
def teacher(vectors: Golden, sizes: BeatsSizes) -> BeatsTeacher:
    network = Beats.from_state(filled(vectors), sizes)
    config = TeacherConfig(name="beats", dtype="float32", batch_size=2)
    return BeatsTeacher(config, network, "0" * 64, licence="-", citation="-")


def filled(vectors: Golden) -> dict[str, Tensor]:
    """Return the filled state with every tied entry, as a published file holds it."""
    state = golden.filled_state(*vectors)
    ties = {entry["name"]: entry["tied_to"] for entry in vectors[0]["state"] if "tied_to" in entry}
    return state | {name: state[other] for name, other in ties.items()}


def cases(spec: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return (waveforms, padding mask or None) of every case."""
    given, found = spec["input"]["waveform"], {}
    for name, case in given["cases"].items():
        rate = given["sample_rate"]
        waves = torch.from_numpy(
            np.stack([golden.waveform(s, case["seconds"], rate)[0] for s in case["seeds"]])
        )
        mask = None
        if "valid_seconds" in case:
            valid = torch.tensor([round(s * rate) for s in case["valid_seconds"]])
            mask = torch.arange(waves.shape[1]) >= valid[:, None]
            waves = waves.masked_fill(mask, 0.0)
        found[name] = (waves, mask)
    return found


def tapped(teacher: BeatsTeacher, waveforms: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Return every tap of one case, computed as the teacher does."""
    network, found = teacher.network, {}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, o, tap=f"block{n}": found.__setitem__(tap, o))
        for n, layer in enumerate(network.encoder.layers)
    ]
    hooks += [
        network.layer_norm.register_forward_hook(lambda _m, _i, o: found.__setitem__("patch_tokens", o)),
        network.encoder.layer_norm.register_forward_hook(
            lambda _m, _i, o: found.__setitem__("encoder_in", o)
        ),
    ]
    try:
        with torch.inference_mode():
            found["fbank"] = teacher.frontend(waveforms)
            heard = network(found["fbank"], padding=mask)
            found["embedding"] = heard.tokens.mean(dim=1)
            bias = network.encoder.position_bias(heard.tokens.shape[1])
            found["position_bias"] = bias.repeat(len(waveforms), 1, 1)
            pooled = token_mean(heard.tokens, heard.padding)
            if heard.padding is not None:
                found["token_padding_mask"], found["embedding_masked"] = heard.padding.float(), pooled
            if network.predictor is not None:
                found["logits"] = network.logits(pooled)
                found["probs"] = found["logits"].sigmoid()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def deviation(value: Tensor, vectors: Golden, tap: str) -> np.ndarray:
    spec, taps = vectors
    entry = spec["taps"][tap]
    assert list(value.shape) == entry["full_shape"], f"{tap}: {list(value.shape)}"
    array = value.numpy()
    if entry.get("slice"):
        steps = [part.strip() for part in entry["slice"].strip("[]").split(",")]
        array = array[tuple(slice(*[int(n) if n else None for n in s.split(":")]) for s in steps)]
    return np.abs(array.astype(np.float64) - taps[tap])


def check(
    value: Tensor, vectors: Golden, folder: str, tap: str, record: pytest.FixtureRequest | None = None
) -> None:
    """Assert that ``value`` is the tap within the spec's tolerances, and report how close it is."""
    entry = vectors[0]["taps"][tap]
    difference = deviation(value, vectors, tap)
    worst, allowed = float(difference.max()), float(entry["suggested_atol"])
    if record is not None:
        record.node.user_properties.append((f"worst_deviation {tap}", worst))
    if hasattr(golden, "report"):
        golden.report(folder, tap, worst, allowed)
    assert worst <= allowed, f"{tap}: worst |difference| {worst:.3g}, allowed {allowed:.3g}"
    if "suggested_mean_atol" in entry:
        assert difference.mean() <= entry["suggested_mean_atol"], f"{tap}: mean {difference.mean():.3g}"


def test_state_dict_has_the_published_names_and_shapes(vectors: Golden, sizes: BeatsSizes) -> None:
    spec, _ = vectors
    network = Beats.from_state(filled(vectors), sizes)
    ours = {k: (list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in network.state_dict().items()}
    assert ours == {entry["name"]: (entry["shape"], entry["dtype"]) for entry in spec["state"]}
    tables = {id(layer.self_attn.relative_attention_bias.weight) for layer in network.encoder.layers}
    assert len(tables) == 1
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert round(millions, 3) == spec["published"]["params_millions_measured"]


def test_frontend_has_the_published_constants(vectors: Golden) -> None:
    given = vectors[0]["frontend"]
    ours: FbankConfig = BeatsFrontend().fbank.config
    assert (ours.frame_samples, ours.shift_samples, ours.n_fft) == (
        given["window_samples"], given["hop_samples"], given["n_fft"],
    )  # fmt: skip
    assert (ours.mels, ours.sample_rate_hz) == (given["num_mel_bins"], given["sample_rate"])
    assert (ours.preemphasis, ours.low_hz) == (given["preemphasis_coefficient"], given["low_freq"])
    assert (ours.snip_edges, ours.remove_dc_offset) == (given["snip_edges"], given["remove_dc_offset"])


def test_every_tap_of_every_case(
    vectors: Golden, folder: str, teacher: BeatsTeacher, request: pytest.FixtureRequest
) -> None:
    spec, _ = vectors
    for case, (waveforms, mask) in cases(spec).items():
        wanted = [tap.removeprefix(f"{case}.") for tap in spec["taps"] if tap.startswith(f"{case}.")]
        assert wanted, case
        found = tapped(teacher, waveforms, mask)
        for tap in wanted:
            check(found[tap], vectors, folder, f"{case}.{tap}", request)


def test_network_alone_from_the_stored_features(vectors: Golden, teacher: BeatsTeacher) -> None:
    """From the authors' features the tokens agree to a tenth of the tolerance that the frontend needs."""
    spec, taps = vectors
    whole = [
        case
        for case, (_, mask) in cases(spec).items()
        if f"{case}.fbank" in taps
        and mask is None
        and list(taps[f"{case}.fbank"].shape) == spec["taps"][f"{case}.fbank"]["full_shape"]
    ]
    if not whole:
        pytest.skip("this folder stores its features in part")
    with torch.inference_mode():
        for case in whole:
            made = teacher.network(torch.from_numpy(taps[f"{case}.fbank"])).tokens.mean(dim=1)
            allowed = spec["taps"][f"{case}.embedding"]["suggested_atol"] / 10
            assert deviation(made, vectors, f"{case}.embedding").max() <= allowed


def test_teacher_outputs(vectors: Golden, folder: str, teacher: BeatsTeacher) -> None:
    spec, _ = vectors
    case, (waveforms, _) = next((c, given) for c, given in cases(spec).items() if given[1] is None)
    assert ("logits" in teacher.outputs) == spec["config"]["cfg"]["finetuned_model"]
    last = f"layer.{spec['config']['cfg']['encoder_layers'] - 1}"
    asked = [output for output in ("embedding", "logits", "frames", last) if output in teacher.outputs]
    made = teacher.embed(waveforms, asked)
    check(made["embedding"], vectors, folder, f"{case}.embedding")
    if "logits" in made:
        check(made["logits"], vectors, folder, f"{case}.logits")
    torch.testing.assert_close(made[last], made["embedding"])
    torch.testing.assert_close(made["frames"].mean(dim=1), made["embedding"], atol=1e-5, rtol=1e-5)
    tokens = spec["taps"][f"{case}.block{spec['config']['cfg']['encoder_layers'] - 1}"]["full_shape"][1]
    assert made["frames"].shape[1] == tokens // teacher.network.sizes.bands


def test_sensitivities_are_the_specs(vectors: Golden, teacher: BeatsTeacher) -> None:
    """A part that had no effect would pass the taps unseen: its absence must move the embedding as it does theirs."""
    spec, taps = vectors
    if "sensitivity" not in spec:
        pytest.skip("this folder's spec gives no sensitivities")
    case = next(c for c, (waves, mask) in cases(spec).items() if len(waves) == 2 and mask is None)
    waveforms, want = cases(spec)[case][0], torch.from_numpy(taps[f"{case}.embedding"])
    known, encoder = spec["sensitivity"], teacher.network.encoder
    for parameters, change in (
        ([encoder.table.weight], "embedding_rel_change_position_bias_zeroed"),
        ([layer.self_attn.grep_a for layer in encoder.layers], "embedding_rel_change_grep_a_zeroed"),
    ):
        kept = [parameter.data.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.data.zero_()
        moved = teacher.embed(waveforms)["embedding"]
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)
        relative = torch.linalg.vector_norm(moved - want) / torch.linalg.vector_norm(want)
        assert float(relative) == pytest.approx(known[change], rel=0.25), change
