"""``ossicle doctor``: what this machine has, and what each stage would do about it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pipeline.config import Recipe, TeacherConfig, TrainConfig
from pipeline.errors import MissingDependencyError
from pipeline.measure import arm_root, machine
from pipeline.measure.machine import Finding
from pipeline.processor import processor
from pipeline.students.registry import students
from pipeline.teachers import precision, weights
from pipeline.teachers.registry import teachers
from pipeline.training.precision import autocast_dtype

DISK_GB = 15


def run(*, console: Console) -> None:
    """Print both tables; nothing is fetched, built or changed."""
    findings = machine_findings()
    machine_table = Table(title="this machine", title_justify="left", show_header=False)
    for finding in findings:
        machine_table.add_row("" if finding.well else "!", finding.what, finding.found)
    console.print(machine_table)
    stage_table = Table(title="what each stage does about it", title_justify="left", show_header=False)
    for plan in stage_plans():
        stage_table.add_row("" if plan.well else "!", plan.what, plan.found)
    console.print(stage_table)
    console.print(f"teachers: {', '.join(teachers.names())}")
    console.print(f"students: {', '.join(students.names())}")


def machine_findings() -> list[Finding]:
    """Return what this machine has."""
    features = machine.processor_features(processor()[1])
    memory = machine.memory_gb()
    artifacts, cache = Recipe().paths.artifacts, arm_root.default_cache()
    found = [
        machine.python(),
        Finding("torch", _torch_build()),
        Finding("processor", f"{machine.usable_cores()} cores, {', '.join(features) or 'no features known'}"),
        Finding("memory", "unknown" if memory is None else f"{memory:.0f} GB"),
        Finding("GPU", _gpu()),
        Finding("free disk, artifacts", _disk(artifacts), machine.free_gb(artifacts) > DISK_GB),
        Finding("free disk, cache", f"{_disk(cache)} at {cache}", machine.free_gb(cache) > 2),
        Finding("soundfile", *_soundfile()),
        machine.package("soxr"),
        Finding("torchaudio", *_torchaudio()),
        machine.package("zarr"),
        machine.package("zarrs"),
        machine.package("numba"),
        machine.package("onnx"),
        machine.package("onnxruntime"),
        machine.package("matplotlib"),
        machine.program("apt-get"),
        machine.program("dpkg-deb"),
        Finding("C compiler", shutil.which("cc") or shutil.which("gcc") or "not installed"),
        Finding("QEMU and aarch64 root", "in the cache" if _arm_is_ready() else "not fetched yet"),
    ]
    return [*found, _weights()]


def stage_plans() -> list[Finding]:
    """Return what each stage would do on this machine."""
    return [_fetch(), _manifest(), _embed(), _distill(), _export(), _evaluate(), _benchmark(), _report()]


def _fetch() -> Finding:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return Finding("fetch", "no apt: give your own sound, make demo AUDIO=folder", well=False)
    return Finding(
        "fetch", "audio from Debian packages by apt-get download, without root; weights from PyPI by pip"
    )


def _manifest() -> Finding:
    if not machine.is_importable("soundfile"):
        return Finding("manifest", "cannot decode audio: pip install 'ossicle[audio]'", well=False)
    return Finding("manifest", f"decodes with soundfile in {machine.usable_cores()} processes")


def _embed() -> Finding:
    absent = [name for name in ("soundfile", "soxr") if not machine.is_importable(name)]
    if absent:
        return Finding("embed", f"{', '.join(absent)} missing: pip install 'ossicle[audio]'", well=False)
    config = TeacherConfig(device="cuda" if torch.cuda.is_available() else "cpu")
    device, dtype = precision.resolve(config)
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return Finding("embed", f"{name} {config.name} on the GPU with --set embed.teacher.device=cuda")
    why = "" if dtype == torch.bfloat16 else " (bfloat16 is not faster on this processor)"
    return Finding("embed", f"{name} {config.name} on {machine.usable_cores()} processes{why}")


def _distill() -> Finding:
    fast = machine.is_importable("zarrs")
    reader = "the zarrs pipeline" if fast else "zarr's own codecs (pip install 'ossicle[speed]' is faster)"
    amp = str(autocast_dtype(TrainConfig(), torch.device("cpu")) or torch.float32).removeprefix("torch.")
    return Finding(
        "distill", f"{amp}, {machine.usable_cores()} runs at a time, shards read by {reader}", fast
    )


def _export() -> Finding:
    absent = [name for name in ("onnx", "onnxruntime", "onnxscript") if not machine.is_importable(name)]
    if absent:
        return Finding("export", f"{', '.join(absent)} missing: pip install 'ossicle[deploy]'", well=False)
    return Finding(
        "export", "float32, S8S8 (ARM) and U8S8 (x86) ONNX files, each loaded and compared with torch"
    )


def _evaluate() -> Finding:
    return Finding("evaluate", "probes of scikit-learn on frozen embeddings")


def _benchmark() -> Finding:
    if not machine.is_importable("onnxruntime"):
        return Finding("benchmark", "onnxruntime missing: pip install 'ossicle[deploy]'", well=False)
    if _arm_is_ready():
        return Finding(
            "benchmark", "x86 times; ARM instructions counted with the cached QEMU and aarch64 root"
        )
    reason = arm_root.missing()
    if reason is not None:
        return Finding("benchmark", f"x86 times; ARM instructions will not be measured: {reason}", well=False)
    return Finding(
        "benchmark", f"x86 times; fetches about {arm_root.DOWNLOAD_MB} MB once to count ARM instructions"
    )


def _report() -> Finding:
    absent = [name for name in ("matplotlib", "jinja2") if not machine.is_importable(name)]
    if absent:
        return Finding("report", f"{', '.join(absent)} missing: pip install 'ossicle[report]'", well=False)
    return Finding("report", "one self-contained HTML page")


def _arm_is_ready() -> bool:
    # The root is named after the version of onnxruntime, so without it there is none.
    return machine.is_importable("onnxruntime") and arm_root.is_ready()


def _torch_build() -> str:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    onednn = "oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN"
    return f"{torch.__version__}, {build}, {onednn}, {torch.get_num_threads()} threads"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _disk(path: Path) -> str:
    return f"{machine.free_gb(path):.0f} GB"


def _soundfile() -> tuple[str, bool]:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        return f"not usable: {error}", False
    mp3 = "mp3" if "MP3" in soundfile.available_formats() else "no mp3"
    return f"{soundfile.__version__}, {soundfile.__libsndfile_version__}, {mp3}", True


def _torchaudio() -> tuple[str, bool]:
    from pipeline.audio.torchaudio_loader import has_native_library, load_torchaudio

    try:
        torchaudio = load_torchaudio()
    except MissingDependencyError as error:
        return f"{error.problem} (only tests compare with it)", True
    native = (
        "native functions" if has_native_library(torchaudio) else "transforms only (no CUDA for its library)"
    )
    return f"{torchaudio.__version__}, {native}", True


def _weights() -> Finding:
    here = [name for name, entry in weights.CHECKPOINTS.items() if weights.is_present(entry)]
    listed = ", ".join(here) or "none yet"
    return Finding("teachers' weights", f"{listed}; ossicle teachers says how to get the others")
