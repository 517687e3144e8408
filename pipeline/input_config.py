"""``[[manifest.inputs]]``: what a manifest is made of. Several inputs make one manifest; ``kind`` tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pipeline.section import Section

SplitUse = Literal["train", "validation", "draw", "omit"]
Content = Literal["speech", "music", "drums", "effects", "ambience", "other"]
LabelAs = Literal["mid", "index", "name"]


class InputBase(Section):
    """Keys that every input has."""

    dataset: str | None = Field(
        None,
        pattern=r"^[\w.+-]+$",
        description="its name in the manifest; default its kind, or its folder's name",
    )
    splits: dict[str, SplitUse] = Field(
        {},
        description='use of each official split, {train = "train", test = "omit"}; draw = split by group here',
    )
    validation_share: float | None = Field(
        None, ge=0, lt=1, description="share of the drawn groups held out; default manifest.validation_share"
    )
    follow_links: bool = Field(
        False, description="accept symbolic links out of the root (your own, never an archive's)"
    )


class FolderInput(InputBase):
    """A folder of sound files; its first folder level is the label."""

    kind: Literal["folder"]
    root: Path = Field(description="the folder")
    content: Content = Field("other", description="what it holds, where that is one thing")
    licence: str = Field("unknown", min_length=1, description="of all its files")
    credit: str = Field("unknown", description="whom to name")


class TableInput(InputBase):
    """A CSV or Parquet table of your own; docs/inputs.md lists its columns."""

    kind: Literal["csv", "parquet"]
    path: Path = Field(description="the table")
    root: Path | None = Field(
        None, description="folder that its paths are relative to; default the table's own"
    )
    label: str = Field("label", description="its label column")
    group: str = Field("group", description="its column of recordings or speakers that a split must not cut")
    delimiter: str = Field(",", min_length=1, max_length=1, description="of a CSV")
    content: Content = Field("other", description="for rows without a kind")
    licence: str = Field("unknown", min_length=1, description="for rows without a licence")
    credit: str = Field("unknown", description="for rows without a credit")


class AudioSetInput(InputBase):
    """AudioSet's segment lists and a folder of clips named by YouTube id."""

    kind: Literal["audioset"]
    segments: tuple[Path, ...] = Field(min_length=1, description="balanced_train_segments.csv and its like")
    root: Path = Field(description="folder of the clips, in any folders below it")
    class_labels: Path | None = Field(
        None, description="class_labels_indices.csv; default beside the first segment list"
    )
    label_as: LabelAs = Field("mid", description="how a class is written: /m/09x0r, 0, or Speech")


class PackInput(InputBase):
    """AudioSet HDF5 packs, read without unpacking."""

    kind: Literal["panns_hdf5", "mp3_hdf5"]
    path: Path = Field(description="one pack, a folder of packs, or a PANNs index file")
    root: Path | None = Field(
        None, description="folder of the packs that an index names; default the index's own"
    )
    class_labels: Path | None = Field(None, description="class_labels_indices.csv; default beside the pack")
    label_as: LabelAs = Field("mid", description="how a class is written: /m/09x0r, 0, or Speech")


class DatasetInput(InputBase):
    """A published dataset, read from its own metadata files."""

    kind: Literal[
        "esc50", "fsd50k", "urbansound8k", "fma", "magnatagatune", "openmic2018", "gtzan", "nsynth", "tess",
        "tau_scenes", "dear", "speech_commands",
    ]  # fmt: skip
    root: Path = Field(description="the folder that its archive unpacks to")
    label: str | None = Field(None, description="its label column; default the dataset's usual one")
    subset: str | None = Field(
        None, description="esc50: esc10; fma: small, medium or large; nsynth: train, valid or test"
    )
    lists: Path | None = Field(
        None, description="gtzan: folder of the fault-filtered lists; tau_scenes: the list of training clips"
    )

    @model_validator(mode="after")
    def _possible(self) -> DatasetInput:
        subsets = {
            "esc50": ("esc10",),
            "fma": ("small", "medium", "large"),
            "nsynth": ("train", "valid", "test"),
        }
        if self.subset is not None and self.subset not in subsets.get(self.kind, ()):
            known = ", ".join(subsets.get(self.kind, ())) or "none"
            raise ValueError(f"{self.kind} has no subset {self.subset!r}; known: {known}")
        if self.lists is not None and self.kind not in ("gtzan", "tau_scenes"):
            raise ValueError(f"{self.kind} takes no lists")
        return self


Input = Annotated[
    FolderInput | TableInput | AudioSetInput | PackInput | DatasetInput, Field(discriminator="kind")
]

MODELS: tuple[type[InputBase], ...] = (FolderInput, TableInput, AudioSetInput, PackInput, DatasetInput)


def kinds_of(model: type[InputBase]) -> tuple[str, ...]:
    """Return the kinds that ``model`` stands for."""
    return get_args(model.model_fields["kind"].annotation)


MODEL_OF_KIND = {kind: model for model in MODELS for kind in kinds_of(model)}
