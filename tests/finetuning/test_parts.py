"""The parts: which clips, in which order, what the network hears, and the classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.signal
import soundfile
import torch
from torch.nn import functional as F

from pipeline.config import FinetuneConfig, LogMelConfig
from pipeline.data.mixing import beta, draw_mixup, freq_mixstyle
from pipeline.errors import ConfigError, ManifestError, TrainingError
from pipeline.finetuning.clips import LabelledClips, labelled, waveforms
from pipeline.finetuning.loader import ClipLoader
from pipeline.finetuning.networks import StandardisedClassifier
from pipeline.finetuning.objective import ClassObjective
from pipeline.finetuning.sound import Augmentation, spectral_statistics
from pipeline.frontends.log_mel import LogMel
from pipeline.manifest import Manifest
from pipeline.training.confusion import ensemble
from tests.finetuning.labelled_sounds import made_manifest, recipe, write_sounds


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    table = write_sounds(tmp_path_factory.mktemp("sounds"))
    return made_manifest(recipe(tmp_path_factory.mktemp("made"), table))


class Unmixed:
    def mix(self, partners: Any, share: Any) -> None:
        self.partners, self.share = partners, share


def augmentation(keys: dict[str, Any], clips: int = 8, **options: Any) -> Augmentation:
    config = FinetuneConfig.model_validate(keys)
    reached = options.get("reached", np.ones(clips, dtype=bool))
    log_mel = options.get("log_mel")
    made = Augmentation(config, log_mel, log_mel is not None, 16_000, reached, (0.0, 1.0), Unmixed())
    made.note(torch.arange(clips))
    return made


def test_columns_of_the_dataset_itself_are_known(manifest: Manifest) -> None:
    clips = labelled(manifest, "device")
    assert clips.classes == ["a", "b"]
    by_label = labelled(manifest, "label")
    reached = by_label.reached_by({"device": ("a",), "fold": ("1", "2")})
    assert reached.sum() == 12
    assert set(by_label.frame[reached]["fold"]) == {1, 2}
    with pytest.raises(ConfigError, match="names no column"):
        labelled(manifest, "lable")
    with pytest.raises(ConfigError, match="dir_only"):
        by_label.reached_by({"mike": ("a",)})


def test_labels_that_cannot_be_learnt_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match="fewer than two classes"):
        labelled(manifest, "licence")
    several = manifest.frame.assign(label="cat;dog")
    with pytest.raises(ManifestError, match="several labels"):
        labelled(Manifest(several, manifest.roots, manifest.digest, manifest.folder), "label")


def test_a_fold_without_clips_or_without_a_class_is_refused() -> None:
    frame = pd.DataFrame({"fold": [1, 1, 2, 2], "split": ["train"] * 4})
    clips = LabelledClips(frame, ["x", "y"], np.array([0, 0, 1, 1]))
    with pytest.raises(TrainingError, match="fold 7 holds no clip"):
        clips.held_out(7)
    with pytest.raises(TrainingError, match="no training clip of class x"):
        clips.held_out(1)
    with pytest.raises(TrainingError, match="validation"):
        clips.held_out(None)


def test_waveforms_are_the_files_resampled_and_padded(manifest: Manifest, tmp_path: Path) -> None:
    clips = labelled(manifest, "label")
    made = waveforms(manifest, clips, 16_000, 9_000, tmp_path)
    assert made.shape == (36, 9_000)
    for row in (0, 17, 35):
        name = clips.frame["path"][row]
        sound, _ = soundfile.read(manifest.roots[clips.frame["root"][row]] / name, dtype="float32")
        assert np.array_equal(made[row, :8_000], sound)
        assert not made[row, 8_000:].any()
    (cached,) = tmp_path.glob("*.npy")
    before = cached.stat().st_mtime_ns
    assert waveforms(manifest, clips, 16_000, 9_000, tmp_path).shape == (36, 9_000)
    assert cached.stat().st_mtime_ns == before


def test_every_epoch_holds_each_row_once_and_the_order_is_of_seed_and_step() -> None:
    rows = np.array([3, 5, 8, 9, 11, 20, 21])
    loader = ClipLoader(rows, 3, 4, lambda r: torch.from_numpy(r), lambda index: None)
    epochs = [np.concatenate([loader.rows_of(step) for step in (2 * e, 2 * e + 1)]) for e in range(4)]
    assert all(len(set(e)) == 6 and set(e) < set(rows) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    given = [batch.index.tolist() for batch, _ in zip(loader, range(5), strict=False)]
    again = ClipLoader(rows, 3, 4, lambda r: torch.from_numpy(r), lambda index: None)
    again.load_state_dict({"step": 3})
    assert next(iter(again)).index.tolist() == given[3]
    few = ClipLoader(rows[:2], 8, 0, lambda r: torch.from_numpy(r), lambda index: None)
    assert sorted(few.rows_of(5)) == [3, 5]


def test_device_responses_reach_the_listed_clips_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    response = (rng.standard_normal(200) * np.exp(-np.arange(200) / 30)).astype(np.float32)
    soundfile.write(tmp_path / "microphone.wav", response, 16_000, subtype="FLOAT")
    reached = np.array([True, False] * 4)
    made = augmentation({"dir_probability": 1.0, "dir_folder": str(tmp_path)}, reached=reached)
    waves = torch.randn(8, 4_000)
    got = made(waves, torch.Generator().manual_seed(0))
    want = scipy.signal.convolve(waves.double().numpy(), response[None].astype(np.float64), method="direct")
    np.testing.assert_allclose(got[::2], want[::2, :4_000], atol=1e-5)
    assert torch.equal(got[1::2], waves[1::2])
    assert made.changes_waveforms


def test_each_clip_is_rolled_by_its_own_shift_within_reach() -> None:
    made = augmentation({"roll_ms": 2.0})
    waves = torch.arange(400.0).repeat(8, 1)
    rolled = made(waves, torch.Generator().manual_seed(1))
    shifts = [(200 - int(torch.nonzero(one == 200.0))) for one in rolled]
    assert all(abs(s) <= 32 for s in shifts)
    assert len(set(shifts)) > 3
    assert all(torch.equal(one, waves[0].roll(-s)) for one, s in zip(rolled, shifts, strict=True))


def test_without_augmentation_a_student_hears_the_log_mel() -> None:
    log_mel = LogMel(LogMelConfig(mels=16))
    waves = torch.randn(8, 4_000)
    assert torch.equal(augmentation({}, log_mel=log_mel)(waves, torch.Generator()), log_mel(waves))
    assert torch.equal(augmentation({})(waves, torch.Generator()), waves)


def test_mixup_mixes_the_loss_as_it_mixes_the_sound() -> None:
    torch.manual_seed(0)
    objective = ClassObjective(6, 3, torch.tensor([0, 1, 2, 1, 0]), label_smoothing=0.0).train()
    embedding, index = torch.randn(4, 6), torch.tensor([4, 1, 2, 3])
    partners, share = torch.tensor([1, 2, 3, 0]), torch.tensor([0.5, 0.7, 0.9, 1.0])
    objective.mix(partners, share)
    loss, terms = objective(embedding, index, torch.zeros(4, 1))
    soft = torch.zeros(4, 3)
    for row, (own, other) in enumerate(zip([0, 1, 2, 1], [1, 2, 1, 0], strict=True)):
        soft[row, own] += share[row]
        soft[row, other] += 1 - share[row]
    torch.testing.assert_close(loss, F.cross_entropy(objective.head(embedding), soft))
    assert set(terms) == {"cross_entropy", "accuracy"}
    objective.mix(None, None)
    plain, _ = objective(embedding, index, torch.zeros(4, 1))
    torch.testing.assert_close(plain, F.cross_entropy(objective.head(embedding), torch.tensor([0, 1, 2, 1])))


def test_shares_and_coins_follow_their_distributions() -> None:
    generator = torch.Generator().manual_seed(2)
    drawn = beta(0.4, 20_000, generator)
    assert abs(float(drawn.mean()) - 0.5) < 0.01
    assert abs(float(drawn.var()) - 1 / (4 * (2 * 0.4 + 1))) < 0.005
    partners, share = draw_mixup(50, 0.3, generator)
    assert sorted(partners.tolist()) == list(range(50))
    assert float(share.min()) >= 0.5
    x = torch.randn(4, 1, 5, 6)
    changed = sum(not torch.equal(freq_mixstyle(x, 0.4, 0.3, generator), x) for _ in range(500))
    assert 150 < changed < 250
    assert torch.equal(freq_mixstyle(x, 0.0, 0.3, generator), x)


def test_the_folded_classifier_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    head = StandardisedClassifier(12, 5).train()
    for _ in range(20):
        head(3 + 40 * torch.randn(16, 12))
    head.eval()
    x = 3 + 40 * torch.randn(9, 12)
    torch.testing.assert_close(head.folded()(x), head(x), rtol=1e-5, atol=1e-5)


def test_statistics_are_those_of_the_training_rows() -> None:
    log_mel = LogMel(LogMelConfig(mels=16))
    waves = np.random.default_rng(0).standard_normal((7, 3_000)).astype(np.float32)
    rows = np.array([0, 2, 3, 6])
    mean, std = spectral_statistics(log_mel, waves, rows, 3)
    every = log_mel(torch.from_numpy(waves[rows])).double()
    assert mean == pytest.approx(float(every.mean()), rel=1e-9)
    assert std == pytest.approx(float(every.std(correction=0)), rel=1e-6)


def test_an_ensemble_averages_logits() -> None:
    truth = np.array([0, 1, 1])
    left = np.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    right = np.array([[0.0, 1.0], [0.0, 4.0], [0.0, 1.0]])
    accuracy, matrix = ensemble([left, right], truth)
    assert accuracy == 1.0
    assert matrix.tolist() == [[1, 0], [0, 2]]
    assert ensemble([left], truth)[0] == pytest.approx(2 / 3)
