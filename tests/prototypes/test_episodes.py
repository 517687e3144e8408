"""Episodes keep recordings apart, are the same for every model, and their interval covers what it should."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.prototypes.bank import Features
from pipeline.prototypes.episodes import Classifier, draw_episodes, score_episodes, usable_classes
from pipeline.prototypes.rejection import choose, left_out_scores
from pipeline.prototypes.teaching import teach


def task(
    clips: int = 120, classes: int = 4, groups: int = 30, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings, classes and recordings of a task whose classes overlap the more, the wider."""
    rng = np.random.default_rng(seed)
    of_clip = np.arange(clips) % classes
    recordings = rng.permutation(clips) % groups
    centres = np.eye(classes, 16) * 3.0
    return (
        (centres[of_clip] + spread * rng.standard_normal((clips, 16))).astype(np.float32),
        of_clip,
        recordings,
    )


def test_no_recording_is_taught_and_asked_for() -> None:
    _, classes, groups = task()
    classes[:7] = -1
    for episode in draw_episodes(classes, groups, shots=5, episodes=20, seed=1):
        assert (np.bincount(classes[episode.support]) == 5).all()
        assert not set(groups[episode.support]) & set(groups[episode.query])
        assert set(classes[episode.query]) == {0, 1, 2, 3}
        assert len(set(episode.support)) == 20


def test_the_same_seed_asks_every_model_the_same() -> None:
    _, classes, groups = task()
    one, same, other = (
        [
            (e.support.tolist(), e.query.tolist())
            for e in draw_episodes(classes, groups, shots=2, episodes=5, seed=s)
        ]
        for s in (1, 1, 2)
    )
    assert one == same != other


def test_a_task_that_cannot_be_asked_says_what_it_lacks() -> None:
    labels = np.array(["a"] * 9 + ["b"] * 4)
    groups = np.arange(13)
    assert usable_classes(labels, groups, shots=3) == ["a", "b"]
    with pytest.raises(ConfigError, match="too few clips to teach 5"):
        usable_classes(labels, groups, shots=5)
    # One kit holds all of a class: whatever is taught of it leaves nothing to ask for.
    classes, kits = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 1, 2, 2, 3])
    with pytest.raises(ConfigError, match="no draw of 2 clips"):
        list(draw_episodes(classes, kits, shots=2, episodes=1, seed=0))


def test_well_apart_is_all_right_and_noise_is_chance() -> None:
    embeddings, classes, groups = task(spread=0.01)
    episodes = list(draw_episodes(classes, groups, shots=5, episodes=30, seed=0))
    for classifier in (
        Classifier(),
        Classifier("euclidean"),
        Classifier(neighbours=3, int8=True),
    ):
        assert score_episodes(embeddings, classes, groups, episodes, classifier).accuracy == 1.0
    noise = np.random.default_rng(3).standard_normal(embeddings.shape).astype(np.float32)
    found = score_episodes(noise, classes, groups, episodes, Classifier())
    assert abs(found.accuracy - 0.25) < 0.08
    assert found.low < found.accuracy < found.high
    assert found.classes == 4 and found.shots == 5 and found.episodes == 30


def test_the_accuracy_is_that_of_a_loop_written_out() -> None:
    embeddings, classes, groups = task(spread=2.0)
    episodes = list(draw_episodes(classes, groups, shots=3, episodes=12, seed=4))
    shares = []
    for episode in episodes:
        right: dict[int, list[bool]] = {c: [] for c in range(4)}
        means = [embeddings[[r for r in episode.support if classes[r] == c]].mean(axis=0) for c in range(4)]
        for row in episode.query:
            distances = [float(((embeddings[row] - mean) ** 2).sum()) for mean in means]
            right[int(classes[row])].append(int(np.argmin(distances)) == classes[row])
        shares.append(np.mean([np.mean(right[c]) for c in range(4)]))
    found = score_episodes(embeddings, classes, groups, episodes, Classifier("euclidean"))
    assert found.accuracy == pytest.approx(np.mean(shares), abs=1e-9)
    assert found.episodes_half_width == pytest.approx(1.96 * np.std(shares, ddof=1) / 12**0.5, rel=1e-3)


def test_eight_bits_cost_almost_nothing() -> None:
    embeddings, classes, groups = task(spread=1.5)
    episodes = list(draw_episodes(classes, groups, shots=5, episodes=40, seed=0))
    exact = score_episodes(embeddings, classes, groups, episodes, Classifier("cosine", "centred"))
    small = score_episodes(embeddings, classes, groups, episodes, Classifier("cosine", "centred", int8=True))
    assert abs(exact.accuracy - small.accuracy) < 0.01
    assert 0.3 < exact.accuracy < 1.0


def test_the_threshold_is_the_best_of_all_thresholds() -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1.0, 0.6, 80), rng.normal(0.0, 0.6, 50)
    found = choose(known, unknown)
    every = [((known >= cut).mean() + (unknown < cut).mean()) / 2.0 for cut in np.linspace(-3.0, 4.0, 20_001)]
    assert (found.known_kept + found.unknown_rejected) / 2.0 == pytest.approx(max(every), abs=1e-9)
    assert found.known_kept == (known >= found.threshold).mean()
    assert found.unknown_rejected == (unknown < found.threshold).mean()
    pairs = (known[:, None] > unknown[None, :]).mean()
    assert found.auroc == pytest.approx(pairs)


def test_without_unknown_clips_most_of_the_known_pass() -> None:
    known = np.arange(100.0)
    found = choose(known, np.zeros(0))
    assert found.known_kept == 0.95 and found.as_json()["auroc"] is None
    assert len(left_out_scores(lambda mask: known, np.arange(100) % 2, 2)[1]) == 0


@pytest.mark.parametrize("neighbours", [0, 3])
@pytest.mark.parametrize("int8", [False, True])
def test_a_taught_bank_rejects_what_it_does_not_know(neighbours: int, int8: bool) -> None:
    embeddings, classes, groups = task(spread=0.5)
    episode = next(draw_episodes(classes, groups, shots=5, episodes=1, seed=0))
    classifier = Classifier("cosine", "centred", neighbours, int8)
    taught = teach(embeddings, classes, episode, classifier, spare_slots=2)
    assert taught.rejection.auroc > 0.95
    asked = taught.features(embeddings[episode.query])
    right = taught.bank.predict(asked) == classes[episode.query]
    assert right.mean() > 0.85
    strange = taught.features(-5.0 * np.ones((3, 16), np.float32) - np.eye(3, 16, 4, dtype=np.float32))
    assert (taught.bank.predict(strange) == -1).all()
    rows, dim = taught.rows.shape
    assert rows == (22 if neighbours else 6) and dim == 16
    assert taught.bank_bytes == (rows * 24 if int8 else rows * 68)


def test_features_are_fitted_on_what_was_taught_alone() -> None:
    embeddings, classes, groups = task()
    episode = next(draw_episodes(classes, groups, shots=5, episodes=1, seed=0))
    taught = teach(embeddings, classes, episode, Classifier("euclidean", "standardised"))
    want = Features.fitted("euclidean", "standardised", embeddings[episode.support])
    np.testing.assert_array_equal(taught.features.gain, want.gain)
    np.testing.assert_allclose(want.centre, embeddings[episode.support].mean(axis=0), rtol=1e-5, atol=1e-6)
