"""NSynth: 305,979 single notes of 4 s at 16 kHz. Engel et al., ICML 2017. CC BY 4.0.

Read: ``nsynth-{train,valid,test}/examples.json`` (note to ``instrument_str, instrument_family_str,
instrument_source_str, pitch, velocity, qualities_str``, ...) and ``audio/<note>.wav``. Instruments of train are
apart from those of valid and test.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.audio.datasets.published import PublishedDataset, read_json
from pipeline.audio.entries import LABEL_SEPARATOR, Entry
from pipeline.errors import ManifestError
from pipeline.input_config import DatasetInput, SplitUse

CITATION = "J. Engel et al., Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders, ICML 2017"
SPLITS: dict[str, SplitUse] = {"train": "train", "valid": "validation", "test": "omit"}
_FIELDS = ("instrument_family_str", "instrument_source_str", "instrument_str", "pitch", "velocity")


def described() -> PublishedDataset:
    """Return the dataset."""
    return PublishedDataset(
        "nsynth", "music", "instrument_family_str", "CC-BY-4.0", CITATION, entries, SPLITS
    )


def entries(source: DatasetInput) -> Iterator[Entry]:
    """Yield the notes of the parts that are unpacked, or of ``subset`` alone."""
    parts = (source.subset,) if source.subset else ("train", "valid", "test")
    present = [part for part in parts if (source.root / f"nsynth-{part}").is_dir()]
    if not present:
        raise ManifestError(
            f"{source.root} holds no part of NSynth", expected="nsynth-train, -valid or -test"
        )
    for part in present:
        path = source.root / f"nsynth-{part}" / "examples.json"
        notes = read_json(path)
        if not isinstance(notes, dict):
            raise ManifestError(f"{path} is not NSynth's", expected="an object of notes")
        for note, fields in notes.items():
            missing = [name for name in _FIELDS if not isinstance(fields, dict) or name not in fields]
            if missing:
                raise ManifestError(f"{path}: note {note} lacks {missing[0]!r}")
            qualities = LABEL_SEPARATOR.join(map(str, fields.get("qualities_str", ())))
            yield Entry(
                f"nsynth-{part}/audio/{note}.wav", group=str(fields["instrument_str"]), split=part,
                columns=(*((name, str(fields[name])) for name in _FIELDS), ("qualities_str", qualities)),
            )  # fmt: skip
