"""Students by name. Listing the names imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.registry import Registry
from pipeline.students import options

if TYPE_CHECKING:
    from pipeline.config import StudentConfig
    from pipeline.students.base import Student

students: Registry[Student] = Registry(
    "student",
    {
        "cnn4": "pipeline.students.cnn4:build_cnn4",
        "cnn4_wide": "pipeline.students.cnn4:build_cnn4_wide",
        "cp_mobile_128k": "pipeline.students.cp_mobile:build_128k",
        "cp_mobile_12k": "pipeline.students.cp_mobile:build_12k",
        "cp_mobile_30k": "pipeline.students.cp_mobile:build_30k",
        "cp_mobile_6k": "pipeline.students.cp_mobile:build_6k",
        "cp_resnet": "pipeline.students.cp_resnet:build_cp_resnet",
        "cp_resnet_east": "pipeline.students.cp_resnet:build_cp_resnet_east",
        "dcase24_baseline": "pipeline.students.dcase24:build_dcase24_baseline",
        "dymn04": "pipeline.students.dymn:build_dymn04",
        "dymn10": "pipeline.students.dymn:build_dymn10",
        "eres2net": "pipeline.students.eres2net:build_eres2net",
        "harmonic_cnn": "pipeline.students.harmonic_cnn:build_harmonic_cnn",
        "micronet_m0": "pipeline.students.micronet:build_m0",
        "micronet_m1": "pipeline.students.micronet:build_m1",
        "micronet_m2": "pipeline.students.micronet:build_m2",
        "micronet_m3": "pipeline.students.micronet:build_m3",
        "mn04": "pipeline.students.mobilenetv3:build_mn04",
        "mn10": "pipeline.students.mobilenetv3:build_mn10",
        "mobile_fcn": "pipeline.students.mobile_fcn:build_mobile_fcn",
        "mobilenetv3_small": "pipeline.students.mobilenetv3:build_small",
        "mobilevit_xs": "pipeline.students.mobilevit:build_xs",
        "mobilevit_xxs": "pipeline.students.mobilevit:build_xxs",
        "mobilevitv2_050": "pipeline.students.mobilevitv2:build_050",
        "mobilevitv2_075": "pipeline.students.mobilevitv2:build_075",
        "mobilevitv2_100": "pipeline.students.mobilevitv2:build_100",
        "shortchunk_cnn_res": "pipeline.students.short_chunk_cnn:build_short_chunk_cnn_res",
        "wav2small": "pipeline.students.wav2small:build_72k",
        "wav2small_17k": "pipeline.students.wav2small:build_17k",
        "wav2small_90k": "pipeline.students.wav2small:build_90k",
        "wav2tiny": "pipeline.students.wav2small:build_wav2tiny",
    },
    group="ossicle.students",
    adopt="pipeline.students.entry_points:builder",
)


def build_student(config: StudentConfig, mels: int) -> Student:
    """Return the student that ``config`` names, at random initialisation from torch's global generator.

    Args:
        config: the recipe's ``student`` section; every builder reads the keys that concern its family.
        mels: mel bands of the log-mel it will hear.

    Raises:
        UnknownNameError: no student has that name (near matches are listed).
        ConfigError: its options are unknown to the family, or impossible; it is to be causal and cannot be.
    """
    builder = students.get(config.name)
    options.check(builder, config)
    student = builder(config, mels)
    if config.causal:
        # Here, for listing the names imports no torch.
        from pipeline.students.causal import make_causal

        make_causal(student, mels, config.memory_frames)
    return student


def check_student(config: StudentConfig) -> None:
    """Look up the name and the options that a recipe gives, without building the network.

    Raises:
        UnknownNameError, ConfigError: as :func:`build_student`.
    """
    options.check(students.get(config.name), config)
