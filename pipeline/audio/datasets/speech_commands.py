"""Speech Commands v2: 105,829 words of at most 1 s at 16 kHz, 35 words. Warden, arXiv 1804.03209, 2018. CC BY 4.0.

Read: ``<word>/<speaker>_nohash_<n>.wav``, ``validation_list.txt`` and ``testing_list.txt`` (a ``<word>/<file>`` a
line; whatever is in neither trains). Speakers are apart in the three. ``_background_noise_`` holds no words and is
passed over. The column ``command`` keeps the ten commands and calls every other word ``unknown``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.audio.datasets.published import PublishedDataset
from pipeline.audio.entries import Entry
from pipeline.audio.sources import walk
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = (
    "P. Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, arXiv 1804.03209, 2018"
)
SPLITS: dict[str, SplitUse] = {"train": "train", "validation": "validation", "test": "omit"}
COMMANDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
LISTS = (("validation", "validation_list.txt"), ("test", "testing_list.txt"))
_CLIP = re.compile(r"(?P<word>[a-z]+)/(?P<speaker>[0-9a-f]+)_nohash_\d+\.wav")


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset("speech_commands", "speech", "word", "CC-BY-4.0", CITATION, entries, SPLITS)


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield its words; groups are speakers."""
    splits: dict[str, str] = {}
    for split, name in LISTS:
        path = source.root / name
        if not path.is_file():
            raise ManifestError(f"{path} is not there", expected="the list that the archive holds")
        for line in path.read_text(encoding="utf-8").split():
            if splits.setdefault(line, split) != split:
                raise ManifestError(f"{line} is in both lists of {source.root}", got=", ".join(dict(LISTS)))
    for path_below in walk(source.root):
        found = _CLIP.fullmatch(Path(path_below).as_posix())
        if found is None:
            continue
        word = found["word"]
        columns = (("word", word), ("command", word if word in COMMANDS else "unknown"))
        yield Entry(
            path_below, group=found["speaker"], split=splits.get(path_below, "train"), columns=columns
        )
