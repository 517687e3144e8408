"""BEATs and its filter bank against what this machine can do: its matrix products, the usual loop over clips."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import TeacherConfig
from tests.benchmarks.rows import CannotRunError, Row, fastest_seconds

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.teachers.beats import BeatsTeacher
    from pipeline.teachers.beats_network import Beats

NAMES = ("beats_sgemm_share", "beats_bf16_speedup", "fbank_speed", "fbank_error", "embed_rate_beats")
WARM = "beats_warm"
# As in the published checkpoints of iteration 3+.
CFG: dict[str, Any] = {
    "deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800,
}  # fmt: skip
SECONDS, RATE_HZ = 10, 16_000
BATCH = 8
SGEMM_SIZE = 2_048
FBANK_CLIPS = 64
EMBED_FILES, EMBED_SHARD_ROWS, EMBED_REPEATS = 64, 8, 2


def rows(names: Collection[str]) -> Iterable[Row]:
    """Yield the rows of ``names``: the network and the filter bank as in a worker of stage 1: on one thread."""
    for rows_of, made in ((fbank_rows, NAMES[2:4]), (forward_rows, NAMES[:2])):
        if set(made) & set(names):
            yield from _in_a_worker(rows_of, tuple(names))
    if "embed_rate_beats" in names:
        yield _embed_row()


def _in_a_worker(rows_of: Callable[[tuple[str, ...]], list[Row]], names: tuple[str, ...]) -> list[Row]:
    """Return the rows made in a fresh process of a worker's environment: one thread, memory kept."""
    from pipeline.embedding.pool import worker_environment

    with worker_environment(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(rows_of, names).result()


def random_network() -> Beats:
    """Return the network of the published size with random weights, on the device of the context, not folded."""
    import torch

    from pipeline.teachers.beats_network import Beats, BeatsSizes

    torch.manual_seed(0)
    network = Beats(BeatsSizes.from_cfg(CFG)).eval()
    if not network.patch_embedding.weight.is_meta:
        torch.nn.init.normal_(network.encoder.pos_conv[0].weight_v, std=0.02)
    return network


def random_teacher(config: TeacherConfig) -> BeatsTeacher:
    """Return a teacher with random weights: the work is that of the published ones."""
    from pipeline.teachers.beats import BeatsTeacher

    return BeatsTeacher(config, random_network(), "0" * 64, licence="none", citation="random weights")


def warm_beats(config: TeacherConfig, **_: object) -> BeatsTeacher:
    """Return ``random_teacher`` after its first batch, on one thread."""
    import torch

    torch.set_num_threads(1)
    teacher = random_teacher(config)
    teacher.embed(torch.zeros(config.batch_size, teacher.window_samples))
    return teacher


def noise(clips: int) -> Any:
    """Return (clips, 10 s at 16 kHz) of noise."""
    import torch

    return 0.1 * torch.randn(clips, SECONDS * RATE_HZ, generator=torch.Generator().manual_seed(0))


def model_flops() -> tuple[int, int]:
    """Return the FLOPs of one 10 s window, and those of the position convolution among them.

    Counted by torch on the meta device, where nothing is computed and the convolution is a direct one.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.frontends.beats_frontend import FBANK

    with torch.device("meta"), torch.no_grad():
        network = random_network().fold("meta")
        features = torch.empty(1, FBANK.frames(SECONDS * RATE_HZ), FBANK.mels)
        # The counter knows addmm, but not its form in place.
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product_flops}) as whole:
            network(features)
        by_operation = whole.get_flop_counts()["Global"]
    convolution = sum(count for operation, count in by_operation.items() if "convolution" in str(operation))
    return whole.get_total_flops(), convolution


def product_flops(_total: list[int], left: list[int], right: list[int], **_: object) -> int:
    """Return the FLOPs of a matrix product of those shapes."""
    return 2 * left[0] * left[1] * right[1]


def fbank_rows(names: tuple[str, ...]) -> list[Row]:
    """Return the rows of the filter bank, on one thread."""
    import torch

    torch.set_num_threads(1)
    return list(_fbank_rows(names))


def forward_rows(names: tuple[str, ...]) -> list[Row]:
    """Return the rows of the network alone, on one thread."""
    import torch

    torch.set_num_threads(1)
    return list(_forward_rows(names))


def _forward_rows(names: Collection[str]) -> Iterable[Row]:
    import torch

    from pipeline.processor import bfloat16_is_faster
    from pipeline.teachers import precision

    exact = random_teacher(TeacherConfig(dtype="float32", batch_size=BATCH))
    windows = noise(BATCH)
    if "beats_sgemm_share" in names:
        a, b = torch.randn(2, SGEMM_SIZE, SGEMM_SIZE).unbind(0)
        c = torch.empty(SGEMM_SIZE, SGEMM_SIZE)
        seconds = fastest_seconds(
            {"forward": lambda: exact.embed(windows), "sgemm": lambda: torch.mm(a, b, out=c)}, repeats=5
        )
        flops, convolution = model_flops()
        sgemm_rate = 2 * SGEMM_SIZE**3 / seconds["sgemm"]
        each = seconds["forward"] / BATCH
        share, direct = (count / each / sgemm_rate for count in (flops, flops - convolution))
        yield Row.at_least(
            "beats_sgemm_share", share, 0.85, "share",
            f"{flops / 1e9:.1f} GFLOP a 10 s window in {1e3 * each:.0f} ms, filter bank included: "
            f"{flops / each / 1e9:.0f} of {sgemm_rate / 1e9:.0f} GFLOP/s of a {SGEMM_SIZE}^3 sgemm, 1 thread; "
            f"the {convolution / flops:.1%} of the position convolution are done by Fourier transforms, "
            f"without them the share is {direct:.2f}",
        )  # fmt: skip
    if "beats_bf16_speedup" in names:
        short = random_teacher(TeacherConfig(dtype="bfloat16", batch_size=BATCH))
        one = windows[:1]
        seconds = fastest_seconds(
            {"float32": lambda: exact.embed(one), "bfloat16": lambda: short.embed(one)}, repeats=3
        )
        ratio = seconds["float32"] / seconds["bfloat16"]
        cosine = precision.agreement(short, exact, windows)["smallest_cosine"]
        detail = f"smallest cosine of embeddings {cosine:.5f} (random weights, {BATCH} windows)"
        if bfloat16_is_faster(torch.device("cpu")):
            yield Row.at_least("beats_bf16_speedup", ratio, 1.6, detail=detail)
        else:
            why = f"this CPU multiplies bfloat16 no faster than float32: {ratio:.2f} x; dtype auto is float32"
            yield Row.not_run("beats_bf16_speedup", f"{why}; {detail}")


def _fbank_rows(names: Collection[str]) -> Iterable[Row]:
    import torch

    from pipeline.audio.torchaudio_loader import load_torchaudio
    from pipeline.errors import MissingDependencyError
    from pipeline.frontends.beats_frontend import FBANK
    from pipeline.frontends.kaldi_fbank import KaldiFbank

    try:
        load_torchaudio()
    except MissingDependencyError as error:
        raise CannotRunError(str(error)) from error
    from torchaudio.compliance import kaldi

    waves, ours = noise(FBANK_CLIPS) * 2**15, KaldiFbank(FBANK)

    def loop() -> torch.Tensor:
        return torch.stack(
            [
                kaldi.fbank(
                    wave[None], num_mel_bins=FBANK.mels, sample_frequency=RATE_HZ, frame_length=25, frame_shift=10
                )
                for wave in waves
            ]
        )  # fmt: skip

    if "fbank_speed" in names:
        seconds = fastest_seconds({"loop": loop, "batched": lambda: ours(waves)}, repeats=8)
        theirs_ms, ours_ms = (1e3 * seconds[name] / FBANK_CLIPS for name in ("loop", "batched"))
        detail = (
            f"{ours_ms:.2f} ms a 10 s clip, torchaudio's loop {theirs_ms:.2f} ms; "
            f"{FBANK_CLIPS} clips, {torch.get_num_threads()} threads"
        )
        yield Row.at_least("fbank_speed", theirs_ms / ours_ms, 5.0, detail=detail)
    if "fbank_error" in names:
        worst = float((ours(waves) - loop()).abs().max())
        detail = f"largest difference of any log-mel of {FBANK_CLIPS} clips of noise"
        yield Row.at_most("fbank_error", worst, 1e-4, "ln", detail)


def ten_second_clips(folder: Path, files: int) -> pd.DataFrame:
    """Write sounds of 10 s at 44.1 kHz, half WAV and half OGG, and return their manifest rows."""
    import pandas as pd
    import soundfile

    from pipeline.audio import synthesis

    folder.mkdir(parents=True)
    found = []
    for number in range(files):
        kind = sorted(synthesis.KINDS)[number % len(synthesis.KINDS)]
        path = folder / f"{kind}_{number:04d}{('.wav', '.ogg')[number % 2]}"
        soundfile.write(path, synthesis.clip(kind, number, float(SECONDS), 44_100), 44_100)
        split = "validation" if number % 10 == 9 else "train"
        found.append(synthesis.manifest_row(path, folder, kind, split))
    return pd.DataFrame(found)


def _embed_row() -> Row:
    """Return embed's rate over BEATs' own, the smaller of the ratios of wall and CPU times; see bench_embed."""
    from tests.benchmarks import bench_embed

    config = TeacherConfig(name=WARM, batch_size=BATCH)
    bench_embed.register_warm()
    with tempfile.TemporaryDirectory() as scratch:
        clips = ten_second_clips(Path(scratch) / "audio", EMBED_FILES)
        changes = {
            "embed__window_seconds": float(SECONDS),
            "embed__views__mixes": 0,
            "embed__views__textures": 0,
        }
        measured = bench_embed.corpus(Path(scratch), config, clips, shard_rows=EMBED_SHARD_ROWS, **changes)
        value, detail = bench_embed.against_bare(config, *measured, EMBED_REPEATS)
    return Row.at_least("embed_rate_beats", value, 0.95, detail=f"{detail} of 10 s; random weights")
