"""Teachers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config import TeacherConfig
from pipeline.registry import Registry
from pipeline.teachers.base import Teacher

RUN_PREFIX = "run:"


class Teachers(Registry[Teacher]):
    """The registry, with finished runs (``run:FOLDER``), which are not listed, beside the names."""

    def get(self, name: str) -> Callable[..., Teacher]:
        """Return the builder called ``name``; an unknown name lists near matches."""
        if name.startswith(RUN_PREFIX):
            from pipeline.teachers.run_teacher import build_run

            return build_run
        return super().get(name)


teachers = Teachers(
    "teacher",
    {
        "aisfx": "pipeline.teachers.aisfx:build_aisfx",
        "beats_iter1": "pipeline.teachers.beats:build_beats",
        "beats_iter1_finetuned_cpt1": "pipeline.teachers.beats:build_beats",
        "beats_iter1_finetuned_cpt2": "pipeline.teachers.beats:build_beats",
        "beats_iter2": "pipeline.teachers.beats:build_beats",
        "beats_iter2_finetuned_cpt1": "pipeline.teachers.beats:build_beats",
        "beats_iter2_finetuned_cpt2": "pipeline.teachers.beats:build_beats",
        "beats_iter3": "pipeline.teachers.beats:build_beats",
        "beats_iter3_finetuned_cpt1": "pipeline.teachers.beats:build_beats",
        "beats_iter3_finetuned_cpt2": "pipeline.teachers.beats:build_beats",
        "beats_iter3_plus_as20k": "pipeline.teachers.beats:build_beats",
        "beats_iter3_plus_as20k_finetuned_cpt1": "pipeline.teachers.beats:build_beats",
        "beats_iter3_plus_as20k_finetuned_cpt2": "pipeline.teachers.beats:build_beats",
        "beats_iter3_plus_as2m": "pipeline.teachers.beats:build_beats",
        "beats_iter3_plus_as2m_finetuned_cpt1": "pipeline.teachers.beats:build_beats",
        "beats_iter3_plus_as2m_finetuned_cpt2": "pipeline.teachers.beats:build_beats",
        "cp_mobile_128k": "pipeline.teachers.cp:build_cp_mobile_128k",
        "cp_mobile_12k": "pipeline.teachers.cp:build_cp_mobile_12k",
        "cp_mobile_30k": "pipeline.teachers.cp:build_cp_mobile_30k",
        "cp_mobile_6k": "pipeline.teachers.cp:build_cp_mobile_6k",
        "cp_resnet": "pipeline.teachers.cp:build_cp_resnet",
        "cp_resnet_east": "pipeline.teachers.cp:build_cp_resnet_east",
        "dcase24_baseline": "pipeline.teachers.cp:build_dcase24_baseline",
        "efficientat_dymn04_as": "pipeline.teachers.efficientat:build_dymn04_as",
        "efficientat_dymn10_as": "pipeline.teachers.efficientat:build_dymn10_as",
        "efficientat_mn04_as": "pipeline.teachers.efficientat:build_mn04_as",
        "efficientat_mn10_as": "pipeline.teachers.efficientat:build_mn10_as",
        "m2d": "pipeline.teachers.m2d:build_m2d",
        "m2d_80x200": "pipeline.teachers.m2d:build_m2d",
        "m2d_80x608": "pipeline.teachers.m2d:build_m2d",
        "matpac": "pipeline.teachers.matpac:build_matpac",
        "matpac_plus": "pipeline.teachers.matpac:build_matpac",
        "matpac_plus_as": "pipeline.teachers.matpac:build_matpac",
        "matpac_plus_as_encoder": "pipeline.teachers.matpac:build_matpac",
        "matpac_plus_music": "pipeline.teachers.matpac:build_matpac",
        "ensemble": "pipeline.teachers.ensemble:build_ensemble",
        "mule": "pipeline.teachers.mule:build_mule",
        "onnx": "pipeline.teachers.onnx_graph:build_onnx",
        "panns_cnn14": "pipeline.teachers.panns:build_cnn14",
        "panns_cnn14_16k": "pipeline.teachers.panns:build_cnn14_16k",
        "passt_s": "pipeline.teachers.passt:build_passt",
        "resemblyzer": "pipeline.teachers.resemblyzer:build_resemblyzer",
        "tflite": "pipeline.teachers.tflite_graph:build_tflite",
        "tiny": "pipeline.teachers.synthetic:build_tiny",
        "wav2vec2": "pipeline.teachers.wav2vec2:build_wav2vec2",
        "wav2vec2_emotion": "pipeline.teachers.wav2vec2:build_wav2vec2_emotion",
    },
    group="ossicle.teachers",
    adopt="pipeline.teachers.entry_points:builder",
)


def build_teacher(config: TeacherConfig, weights: Path | None = None, cache: Path | None = None) -> Teacher:
    """Return the teacher that ``config`` names, its weights verified and loaded.

    Args:
        config: name, weights, options, outputs, dtype, device and batch size.
        weights: a checkpoint (or the wheel that holds it) in place of the cached one.
        cache: folder of downloads; default ``$XDG_CACHE_HOME/ossicle``.

    Raises:
        UnknownNameError: no such teacher.
        WeightsError: the checkpoint is absent or of another SHA-256.
        ConfigError: the device or dtype is not to be had here.
    """
    if weights is not None:
        config = config.model_copy(update={"weights": weights})
    return teachers.build(config.name, config, weights=config.weights, cache=cache)
