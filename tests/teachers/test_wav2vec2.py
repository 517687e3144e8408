"""wav2vec 2.0 teachers of every published layout, against transformers' own networks at a tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("transformers")

from pipeline.artifact import file_digest
from pipeline.audio.torchaudio_loader import load_torchaudio
from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.teachers.registry import build_teacher
from pipeline.teachers.wav2vec2 import Wav2Vec2Teacher

TINY: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 160,
    "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0, "apply_spec_augment": False,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


@pytest.fixture(scope="module")
def library() -> Any:
    load_torchaudio()
    import transformers

    return transformers


def reference(library: Any, kind: str, seed: int = 0, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    config = library.Wav2Vec2Config(**{**TINY, **changes}, attn_implementation="eager")
    return getattr(library, kind)(config).eval()  # type: ignore[no-any-return]


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state under the names of the published files' weight norm."""
    pairs = (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    )
    made = {}
    for key, value in state.items():
        for new, old in pairs:
            key = key.replace(new, old)
        made[key] = value.clone()
    return made


def load(state: dict[str, Tensor], folder: Path, name: str = "wav2vec2", **options: Any) -> Wav2Vec2Teacher:
    path = folder / "model.safetensors"
    save_file(state, path)
    config = TeacherConfig(
        name=name, weights=path, trust_sha256=file_digest(path), dtype="float32", options=options
    )
    teacher = build_teacher(config, cache=folder / "cache")
    assert isinstance(teacher, Wav2Vec2Teacher)
    return teacher


def normalised(waves: Tensor) -> Tensor:
    return (waves - waves.mean(dim=1, keepdim=True)) / (
        waves.var(dim=1, correction=0, keepdim=True) + 1e-7
    ).sqrt()


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("layout", ["bare", "pretraining"])
def test_every_layout_gives_transformers_hidden_states(
    library: Any, changes: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    kind = "Wav2Vec2Model" if layout == "bare" else "Wav2Vec2ForPreTraining"
    model = reference(library, kind, **changes)
    teacher = load(old_names(model.state_dict()), tmp_path)
    encoder = model if layout == "bare" else model.wav2vec2
    waves = torch.randn(2, 4_000)
    with torch.no_grad():
        result = encoder(normalised(waves), output_hidden_states=True)  # type: ignore[operator]
    states = [*result.hidden_states[:-1], result.last_hidden_state]
    made = teacher.embed(waves, teacher.outputs)
    torch.testing.assert_close(made["frames"], states[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["embedding"], states[-1].mean(dim=1), rtol=1e-4, atol=1e-5)
    for i in range(3):
        torch.testing.assert_close(made[f"layer.{i}"], states[i + 1].mean(dim=1), rtol=1e-4, atol=1e-5)
    assert "logits" not in teacher.outputs


def test_a_classification_file_gives_its_logits(library: Any, tmp_path: Path) -> None:
    model = reference(library, "Wav2Vec2ForSequenceClassification", num_labels=7, classifier_proj_size=24)
    teacher = load(dict(model.state_dict()), tmp_path)
    waves = torch.randn(2, 3_000)
    with torch.no_grad():
        want = model(normalised(waves)).logits
    torch.testing.assert_close(teacher.embed(waves, ("logits",))["logits"], want, rtol=1e-4, atol=1e-5)


def test_the_dimensional_emotion_layout_gives_three_regressions(library: Any, tmp_path: Path) -> None:
    encoder = reference(library, "Wav2Vec2Model", **LARGE)
    torch.manual_seed(3)
    dense, out = nn.Linear(128, 128), nn.Linear(128, 3)
    state = {f"wav2vec2.{key}": value for key, value in old_names(encoder.state_dict()).items()}
    for name, layer in (("dense", dense), ("out_proj", out)):
        state |= {f"classifier.{name}.{key}": value.clone() for key, value in layer.state_dict().items()}
    teacher = load(state, tmp_path, "wav2vec2_emotion")
    waves = torch.randn(2, 3_000)
    with torch.no_grad():
        pooled = encoder(normalised(waves)).last_hidden_state.mean(dim=1)
        want = out(torch.tanh(dense(pooled)))
    torch.testing.assert_close(teacher.embed(waves, ("logits",))["logits"], want, rtol=1e-4, atol=1e-5)
    assert "NC" in teacher.licence


def test_the_option_layer_chooses_the_embedding_and_changes_the_digest(library: Any, tmp_path: Path) -> None:
    state = dict(reference(library, "Wav2Vec2Model").state_dict())
    last, first = load(state, tmp_path), load(state, tmp_path, layer=0)
    waves = torch.randn(2, 3_000)
    made = first.embed(waves, ("embedding", "layer.0", "layer.2"))
    assert torch.equal(made["embedding"], made["layer.0"])
    torch.testing.assert_close(made["layer.2"], last.embed(waves)["embedding"])
    assert first.digest() != last.digest()
    with pytest.raises(ConfigError, match="no block 3"):
        load(state, tmp_path, layer=3)


@pytest.mark.parametrize("samples", [1, 399, 400, 5_001])
def test_any_length_is_heard(library: Any, samples: int, tmp_path: Path) -> None:
    teacher = load(dict(reference(library, "Wav2Vec2Model").state_dict()), tmp_path)
    made = teacher.embed(torch.randn(2, samples), ("embedding", "frames"))
    assert made["frames"].shape == (2, (max(samples, 400) - 400) // 320 + 1, 128)
    assert made["embedding"].isfinite().all()


def test_bfloat16_stays_near_float32(library: Any, tmp_path: Path) -> None:
    exact = load(dict(reference(library, "Wav2Vec2Model").state_dict()), tmp_path)
    config = TeacherConfig(
        name="wav2vec2", weights=tmp_path / "model.safetensors", dtype="bfloat16",
        trust_sha256=exact.weights_sha256,
    )  # fmt: skip
    coarse = build_teacher(config, cache=tmp_path / "cache")
    waves = torch.randn(3, 8_000)
    cosine = torch.cosine_similarity(exact.embed(waves)["embedding"], coarse.embed(waves)["embedding"])
    assert cosine.min() > 0.999


@pytest.mark.parametrize("drop", ["encoder.layer_norm.weight", "encoder.layers.1.attention.q_proj.bias"])
def test_a_file_that_lacks_an_entry_is_refused(library: Any, drop: str, tmp_path: Path) -> None:
    state = dict(reference(library, "Wav2Vec2Model").state_dict())
    state.pop(drop)
    with pytest.raises(WeightsError, match=r"wav2vec"):
        load(state, tmp_path)


def test_unknown_heads_are_refused(library: Any, tmp_path: Path) -> None:
    state = {f"wav2vec2.{k}": v for k, v in reference(library, "Wav2Vec2Model").state_dict().items()}
    with pytest.raises(WeightsError, match="head is of no known kind"):
        load({**state, "classifier.weight": torch.zeros(3, 128)}, tmp_path)
