"""What [augment] does to a batch, that every draw is a function of seed, step and rank, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import LogMelConfig, Recipe, TrainConfig
from pipeline.data.batch_augmentation import AugmentedBatch, BatchAugmentation, step_generator
from pipeline.data.mixing import Mix
from pipeline.data_config import AUGMENTATIONS, SPELLINGS, AugmentConfig, SamplingConfig
from pipeline.errors import ConfigError
from pipeline.recipe import overridden

MEAN, DEVIATION = -8.0, 4.0
EVERYTHING: dict[str, Any] = {
    "gain_db": 6, "freq_mixstyle_probability": 0.5, "mixup_alpha": 0.3, "mixup_probability": 0.7,
    "roll_per": "clip", "freq_masks": 2,
}  # fmt: skip


def change(train: dict[str, Any] | None = None, **keys: Any) -> BatchAugmentation:
    sizes = {"freq_mask_rows": 0, "time_mask_frames": 0, "roll_frames": 0, **(train or {})}
    return BatchAugmentation(TrainConfig(**sizes), AugmentConfig(**keys), LogMelConfig(), MEAN, DEVIATION)


def everything(seed: int = 3) -> BatchAugmentation:
    return change({"freq_mask_rows": 4, "time_mask_frames": 5, "roll_frames": 3, "seed": seed}, **EVERYTHING)


def log_mels(batch: int = 8) -> Tensor:
    return torch.randn(batch, 16, 24, generator=torch.Generator().manual_seed(1)) * DEVIATION + MEAN


def equal(one: AugmentedBatch, two: AugmentedBatch) -> bool:
    if (one.mix is None) != (two.mix is None):
        return False
    if one.mix is not None and two.mix is not None and not torch.equal(one.mix.partners, two.mix.partners):
        return False
    return torch.equal(one.log_mel, two.log_mel)


def test_nothing_asked_for_nothing_changed() -> None:
    original = log_mels()
    made = change()(original, step=4)
    assert made.mix is None
    assert torch.equal(made.log_mel, original)


def test_a_function_of_seed_step_rank_and_part_alone() -> None:
    original = log_mels()
    kept = original.clone()
    torch.manual_seed(0)
    first = [everything()(original, step) for step in range(12)]
    torch.manual_seed(99)
    # In any order, by another object, whatever torch's global generator does.
    again = {step: everything()(original, step) for step in reversed(range(12))}
    assert all(equal(first[step], again[step]) for step in range(12))
    assert torch.equal(original, kept)
    assert len({float(made.log_mel.sum()) for made in first}) == 12
    for other in (everything(4)(original, 0), everything()(original, 0, 1), everything()(original, 0, 0, 1)):
        assert not torch.equal(other.log_mel, first[0].log_mel)


def test_ranks_mix_at_the_same_steps_by_the_same_share() -> None:
    made = [[everything()(log_mels(), step, rank).mix for step in range(40)] for rank in range(3)]
    assert {mix is None for mix in made[0]} == {True, False}
    for of_ranks in zip(*made, strict=True):
        assert len({None if mix is None else mix.share for mix in of_ranks}) == 1
    shares = [mix.share for mix in made[0] if mix is not None]
    assert min(shares) >= 0.5
    assert len(set(shares)) == len(shares)
    partners = [tuple(of_ranks[0].partners.tolist()) for of_ranks in zip(*made, strict=True) if of_ranks[0]]
    others = [tuple(of_ranks[1].partners.tolist()) for of_ranks in zip(*made, strict=True) if of_ranks[1]]
    assert partners != others


def test_generators_of_neighbouring_keys_have_nothing_in_common() -> None:
    keys = [
        (s, t, r, p, q) for s in (-1, 0, 1) for t in (0, 1) for r in (0, 1) for p in (0, 1) for q in (0, 1)
    ]
    first = {float(torch.rand((), generator=step_generator(*key))) for key in keys}
    assert len(first) == len(keys)


def test_mixed_clips_are_what_their_mix_says() -> None:
    original = log_mels()
    made = change(mixup_alpha=0.3)(original, step=0)
    assert made.mix is not None
    for clip, partner in enumerate(made.mix.partners.tolist()):
        wanted = made.mix.share * original[clip] + (1 - made.mix.share) * original[partner]
        torch.testing.assert_close(made.log_mel[clip], wanted)


def test_how_often_batches_are_changed() -> None:
    original = log_mels(4)
    mixed = sum(
        change(mixup_alpha=0.3, mixup_probability=0.3)(original, s).mix is not None for s in range(400)
    )
    assert 85 < mixed < 155
    styled = sum(
        not torch.equal(change(freq_mixstyle_probability=0.4)(original, s).log_mel, original)
        for s in range(400)
    )
    assert 125 < styled < 195


def test_freq_mixstyle_moves_statistics_of_normalised_bins_and_nothing_else() -> None:
    original = log_mels()
    made = change(freq_mixstyle_probability=1.0)(original, step=2).log_mel
    before, after = ((x - MEAN) / DEVIATION for x in (original, made))
    assert not torch.allclose(before.mean(2), after.mean(2), atol=1e-3)
    shape = [(x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True) for x in (before, after)]
    torch.testing.assert_close(shape[0], shape[1], atol=1e-4, rtol=1e-4)


def test_rolls_and_masks_of_each_clip_or_of_the_batch() -> None:
    ramp = torch.arange(24.0).expand(64, 16, 24).contiguous()
    for per, distinct in (("clip", True), ("batch", False)):
        rolled = change({"roll_frames": 5}, roll_per=per)(ramp, step=1).log_mel
        assert (len(set(rolled[:, 0, 0].tolist())) > 1) == distinct
        masked = change({"freq_mask_rows": 9}, mask_per=per, mask_fill=-77.0)(ramp, step=1).log_mel
        bands = {tuple((one == -77).all(dim=1).tolist()) for one in masked}
        assert (len(bands) > 1) == distinct
    twice = change({"time_mask_frames": 6}, time_masks=2, mask_fill=0.5)(ramp, step=1).log_mel
    spans = [(one[0] == 0.5).int().diff().abs().sum().item() for one in twice]
    assert max(spans) >= 3


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_gain_leaves_silence_alone(floor: float) -> None:
    frontend = LogMelConfig(log_floor=floor)
    augmentation = BatchAugmentation(
        TrainConfig(freq_mask_rows=0, time_mask_frames=0, roll_frames=0),
        AugmentConfig(gain_db=12),
        frontend,
        0,
        1,
    )
    silent = torch.full((16, 4, 5), float(torch.tensor(max(floor, 0) + frontend.log_offset).log()))
    made = augmentation(silent, step=0).log_mel
    torch.testing.assert_close(made, silent, atol=1e-3, rtol=0)
    loud = augmentation(torch.zeros(16, 4, 5), step=0).log_mel
    assert len(set(loud[:, 0, 0].tolist())) > 3


def test_gain_on_standardised_waveforms_is_refused() -> None:
    with pytest.raises(ConfigError, match="standardise takes every gain out"):
        BatchAugmentation(TrainConfig(), AugmentConfig(gain_db=3), LogMelConfig(standardise=True), 0, 1)


class _Relational(torch.nn.Module):
    """A loss that no row has of its own: distances of all pairs."""

    def __call__(self, embedding: Tensor, index: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (torch.pdist(embedding) - torch.pdist(teacher)).square().mean() + index.float().var()
        return loss, {"distance": loss.detach()}


def test_a_relational_loss_sees_both_whole_targets() -> None:
    student, teacher = torch.randn(6, 3).requires_grad_(), torch.randn(6, 3)
    index = torch.arange(6)
    mix = Mix(torch.tensor([2, 0, 1, 4, 5, 3]), 0.7)
    both = change(mixup_alpha=0.3).compare(_Relational(), student, index, teacher, mix)
    own = _Relational()(student, index, teacher)[0]
    other = _Relational()(student, index[mix.partners], teacher[mix.partners])[0]
    torch.testing.assert_close(both[0], 0.7 * own + 0.3 * other)
    torch.testing.assert_close(both[1]["distance"], both[0].detach())
    both[0].backward()
    assert student.grad is not None
    plain = change().compare(_Relational(), student, index, teacher, None)
    torch.testing.assert_close(plain[0], own)
    east = change(mixup_alpha=0.3, mixup_target="embedding").compare(
        _Relational(), student, index, teacher, mix
    )
    mixed = 0.7 * teacher + 0.3 * teacher[mix.partners]
    torch.testing.assert_close(east[0], _Relational()(student, index, mixed)[0])


@pytest.mark.parametrize(
    "name",
    [
        *(n for n, a in AUGMENTATIONS.items() if a.validity == "forbidden"),
        *SPELLINGS,
        "pitch_shift_semitones",
    ],
)
def test_forbidden_ones_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden([f"augment.{name}=0.5"])
    rule = AUGMENTATIONS[SPELLINGS.get(name, name.removesuffix("_semitones"))]
    if rule.validity == "forbidden":
        assert rule.reason in str(caught.value)
        assert "embed.views" in str(caught.value)
    else:
        assert "set train." in str(caught.value)


def test_keys_that_name_a_run() -> None:
    assert AugmentConfig().counted() == {}
    assert SamplingConfig().counted() == {}
    assert AugmentConfig(gain_db=3).counted() == {"gain_db": 3}
    recipe = overridden(["sampling.balance=clusters", "sampling.max_repeats=5"])
    assert recipe.sampling.counted() == {"balance": "clusters", "max_repeats": 5.0}
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"draws": "distinct", "balance": "clusters"}, "wants epoch_rows"),
        ({"max_repeats": 3}, "for weighted draws"),
        ({"draws": "stratified"}, "for weighted draws"),
        ({"dataset_weights": {"a": -1}}, "below 0"),
        ({"dataset_weights": {"a": 0}}, "every weight is 0"),
        ({"view_weights": {"augmented:colour": 1}}, "augmented:device"),
        ({"view_weights": {"clean:device": 1}}, "no view"),
    ],
)
def test_sampling_that_cannot_be(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamplingConfig(**keys)
