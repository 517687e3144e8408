"""Few-shot accuracy over many seeded episodes: each teaches every class a few clips and asks for clips of elsewhere.

Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016, with every class of the task in every episode
and whole recordings (groups) on one side only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pipeline.errors import ConfigError
from pipeline.prototypes.bank import Features, Int8Rows, Metric, Scaling, decided, similarities

Z_95 = 1.959964
RESAMPLES = 1_000
TRIES = 200


@dataclass(frozen=True, eq=False)
class Episode:
    """Rows of the clips taught, ``shots`` a class, and of the clips asked for."""

    support: Int[np.ndarray, " taught"]
    query: Int[np.ndarray, " asked"]


@dataclass(frozen=True)
class Classifier:
    """What is fitted in each episode.

    Attributes:
        metric, scaling: of the features; centre and deviation are the taught clips'.
        neighbours: 0 = prototypes, else so many vote.
        int8: the bank, and what is compared with it, in 8 bits.
    """

    metric: Metric = "cosine"
    scaling: Scaling = "raw"
    neighbours: int = 0
    int8: bool = False


@dataclass(frozen=True)
class FewShot:
    """A score over episodes, from 0 to 1.

    Attributes:
        accuracy: mean over episodes of the mean over classes of the share of asked clips that are right.
        low, high: 95 % interval of that mean when the task's recordings are drawn with replacement: what another
            set of recordings might give.
        episodes_half_width: half of the 95 % interval over episodes alone (1.96 standard errors), the figure that
            few-shot papers print: it shrinks with more episodes of the same clips.
        episodes, shots, classes: how many.
    """

    accuracy: float
    low: float
    high: float
    episodes_half_width: float
    episodes: int
    shots: int
    classes: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def usable_classes(labels: np.ndarray, groups: np.ndarray, shots: int) -> list[str]:
    """Return the classes with more than ``shots`` clips in two recordings or more, sorted.

    Raises:
        ConfigError: fewer than two.
    """
    kept = [
        str(one)
        for one in np.unique(labels)
        if (labels == one).sum() > shots and len(np.unique(groups[labels == one])) > 1
    ]
    if len(kept) < 2:
        sizes = {str(one): int((labels == one).sum()) for one in np.unique(labels)}
        raise ConfigError(
            f"too few clips to teach {shots} a class and ask for others",
            expected=f"two classes of {shots + 1} clips or more, in two recordings or more", got=sizes,
            run="--shots with a smaller number",
        )  # fmt: skip
    return kept


def draw_episodes(
    classes: Int[np.ndarray, " clips"], groups: np.ndarray, *, shots: int, episodes: int, seed: int
) -> Iterator[Episode]:
    """Yield ``episodes`` draws: recordings go to the taught side in random order until every class has its shots.

    Args:
        classes: of each clip from 0; -1 is never used.
        groups: recording of each clip; one that is taught from is never asked for.
        shots: clips a class is taught.
        episodes: how many.
        seed: of the draws; the same seed draws the same episodes for every model.

    Raises:
        ConfigError: some class is never left with a clip to ask for.
    """
    generator = np.random.default_rng(seed)
    number = int(classes.max()) + 1
    _, group_of = np.unique(groups, return_inverse=True)
    held = np.zeros((int(group_of.max()) + 1, number), dtype=np.int64)
    np.add.at(held, (group_of[classes >= 0], classes[classes >= 0]), 1)
    for _ in range(episodes):
        for _ in range(TRIES):
            taught = _taught_groups(held, shots, generator)
            left = held[~taught].sum(axis=0)
            if (left > 0).all() and (held[taught].sum(axis=0) >= shots).all():
                break
        else:
            raise ConfigError(
                f"no draw of {shots} clips a class leaves clips of every class in other recordings",
                expected="more recordings, or fewer shots", run="--shots with a smaller number",
            )  # fmt: skip
        inside = taught[group_of]
        support = [
            generator.permutation(np.flatnonzero(inside & (classes == one)))[:shots] for one in range(number)
        ]
        yield Episode(np.concatenate(support), np.flatnonzero(~inside & (classes >= 0)))


def score_episodes(
    embeddings: Float[np.ndarray, "clips dim"],
    classes: Int[np.ndarray, " clips"],
    groups: np.ndarray,
    episodes: Sequence[Episode],
    classifier: Classifier,
    *,
    seed: int = 0,
) -> FewShot:
    """Return the few-shot accuracy of ``classifier`` on frozen embeddings.

    Args:
        embeddings: one vector a clip.
        classes, groups: as :func:`draw_episodes` takes them.
        episodes: the same for every model that is compared.
        classifier: what is fitted.
        seed: of the interval's draws.
    """
    number = int(classes.max()) + 1
    right, asked = np.zeros(len(classes)), np.zeros(len(classes))
    accuracies = []
    for episode in episodes:
        taught = classes[episode.support]
        found = predict(embeddings, taught, episode, classifier, number)
        correct = found == classes[episode.query]
        right[episode.query] += correct
        asked[episode.query] += 1
        of_class = classes[episode.query]
        accuracies.append(np.mean([correct[of_class == one].mean() for one in range(number)]))
    low, high = _interval(right, asked, classes, groups, seed)
    spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else float("nan")
    shots = len(episodes[0].support) // number
    return FewShot(
        float(np.mean(accuracies)), low, high, Z_95 * spread / len(accuracies) ** 0.5, len(accuracies), shots,
        number,
    )  # fmt: skip


def predict(
    embeddings: Float[np.ndarray, "clips dim"],
    taught: Int[np.ndarray, " taught"],
    episode: Episode,
    classifier: Classifier,
    classes: int,
) -> Int[np.ndarray, " asked"]:
    """Return the class that each clip asked for is given, without rejection."""
    support, query = embeddings[episode.support], embeddings[episode.query]
    features = Features.fitted(classifier.metric, classifier.scaling, support)
    rows, asked = features(support), features(query)
    if not classifier.neighbours:
        member = (taught[:, None] == np.arange(classes)).astype(np.float32)
        rows = (member.T @ rows) / member.sum(axis=0)[:, None]
    if classifier.int8:
        rows, asked = Int8Rows.of(rows).dequantised(), Int8Rows.of(asked).dequantised()
    found = similarities(classifier.metric, asked, rows)
    if not classifier.neighbours:
        return decided(found, -np.inf)
    near = np.argsort(-found, axis=1, kind="stable")[:, : classifier.neighbours]
    votes = (taught[near][:, :, None] == np.arange(classes)).sum(axis=1)
    return np.asarray(votes.argmax(axis=1))


def _taught_groups(held: np.ndarray, shots: int, generator: np.random.Generator) -> np.ndarray:
    taught = np.zeros(len(held), dtype=bool)
    missing = np.full(held.shape[1], shots)
    for group in generator.permutation(len(held)):
        if ((missing > 0) & (held[group] > 0)).any():
            taught[group] = True
            missing = missing - held[group]
        if (missing <= 0).all():
            break
    return taught


def _interval(
    right: np.ndarray, asked: np.ndarray, classes: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap over recordings of the class-balanced share that is right."""
    _, group_of = np.unique(groups, return_inverse=True)
    number, count = int(classes.max()) + 1, int(group_of.max()) + 1
    hits, total = np.zeros((count, number)), np.zeros((count, number))
    known = (asked > 0) & (classes >= 0)
    # A clip's own share right over episodes: one that was asked for often weighs no more.
    np.add.at(hits, (group_of[known], classes[known]), right[known] / asked[known])
    np.add.at(total, (group_of[known], classes[known]), 1.0)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)
    drawn = weights @ total
    shares = np.divide(weights @ hits, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
    means = np.nanmean(shares, axis=1)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return float(low), float(high)
