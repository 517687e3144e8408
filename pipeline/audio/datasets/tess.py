"""TESS: 2,800 words spoken in 7 emotions by two women. Pichora-Fuller and Dupuis, 2020, doi 10.5683/SP2/E8H2MF.

Read: file names alone, ``OAF_back_angry.wav`` (speaker, word, emotion), in any folders; it publishes no table and
no split. With two speakers no split can be apart by speaker and still train on both: groups are the words, and
``fold`` is the speaker (0 = OAF, 64 years; 1 = YAF, 26 years) for testing on the other one. Licence, from memory of
its page: CC BY-NC-ND 4.0. Common copies hold every file twice; the second is a ``duplicate``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.audio.datasets.published import PublishedDataset
from pipeline.audio.entries import Entry
from pipeline.audio.sources import walk
from pipeline.input_config import DatasetInput

CITATION = "M. K. Pichora-Fuller and K. Dupuis, Toronto emotional speech set (TESS), 2020"
EMOTIONS = {"ps": "pleasant_surprise"}
# One file of the published archive is called OA_bite_neutral.
_CLIP = re.compile(
    r"(?P<speaker>OAF?|YAF)_(?P<word>[a-z]+)_(?P<emotion>angry|disgust|fear|happy|neutral|ps|sad)", re.I
)


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("tess", "speech", "emotion", "CC-BY-NC-ND-4.0", CITATION, entries)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its words."""
    for path in walk(source.root):
        found = _CLIP.fullmatch(Path(path).stem)
        if found is None or Path(path).suffix.lower() != ".wav":
            continue
        emotion = found["emotion"].lower()
        speaker = "YAF" if found["speaker"].upper() == "YAF" else "OAF"
        columns = (
            ("emotion", EMOTIONS.get(emotion, emotion)),
            ("speaker", speaker),
            ("word", found["word"].lower()),
        )
        yield Entry(path, group=found["word"].lower(), fold=int(speaker == "YAF"), columns=columns)
