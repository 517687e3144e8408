"""The private aarch64 world in which ARM instructions are counted: QEMU, Debian, ONNX Runtime, a plugin.

Everything is fetched as an ordinary user into the cache, with an apt state of its own, so nothing on this
machine is installed or changed. The release is always the same one, whatever this machine runs: counts then
agree between machines. A root is built under a temporary name and renamed when it works.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipeline.artifact import write_json
from pipeline.errors import MeasurementError, MissingDependencyError

RELEASE = "bookworm"  # QEMU 7.2 loads plugins; its static successors cannot
PYTHON = "3.11"  # that release's
GUEST_PACKAGES = (f"python{PYTHON}", "libstdc++6", "libgomp1")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PLUGIN_SOURCE = Path(__file__).with_name("instruction_plugin.c")
LAYER_PLUGIN_SOURCE = Path(__file__).with_name("layer_plugin.c")
DOWNLOAD_MB = 90
LAYOUT = 1


@dataclass(frozen=True)
class Cpu:
    """One emulated processor.

    ONNX Runtime picks its kernels by the part number and the features, so ``/proc/cpuinfo`` names the core and
    ``model`` must execute what such a core can: SDOT on a core without it is an illegal instruction.

    Attributes:
        part: ARM's part number, as /proc/cpuinfo gives it.
        features: its features there.
        model: QEMU's ``-cpu``.
        about: which boards have it, and what was counted where QEMU does not know the core itself.
        variant: of the part; the A55 has the dot product from its first on (r1p0), boards have r2p0.
    """

    part: str
    features: str
    model: str
    about: str
    variant: str = "0x0"


_FEATURES_V80 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_FEATURES_V82 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)
# QEMU 7.2 has no Cortex-A55. It decodes the same Armv8.2 instructions as the A76 (dot product, fp16, atomics), and
# which of them run is ONNX Runtime's choice by the part number: its A55 kernels on the A76's decoder are what an A55
# would execute.
CPUS = {
    "cortex-a53": Cpu("0xd03", _FEATURES_V80, "cortex-a53", "Raspberry Pi 3; no dot product, kernels for narrow loads"),
    "cortex-a55": Cpu(
        "0xd05", _FEATURES_V82, "cortex-a76",
        "small cores of phones; SDOT, kernels for narrow loads; ONNX Runtime's A55 kernels on QEMU's cortex-a76, as "
        "QEMU 7.2 has no cortex-a55",
        variant="0x2",
    ),
    "cortex-a72": Cpu("0xd08", _FEATURES_V80, "cortex-a72", "Raspberry Pi 4; no dot product"),
    "cortex-a76": Cpu("0xd0b", _FEATURES_V82, "cortex-a76", "Raspberry Pi 5; SDOT"),
}  # fmt: skip


@dataclass(frozen=True)
class ArmRoot:
    """A finished root: ``folder`` and what ``root.json`` says was put into it."""

    folder: Path
    packages: dict[str, list[str]]

    def command(self, cpu: str, *arguments: str, plugin: str | None = "plugin.so") -> list[str]:
        """Return the command that runs the guest's Python with ``arguments`` on ``cpu`` under one of its plugins."""
        world = self.folder / "cpus" / cpu
        return [
            *self.emulator(cpu, plugin=plugin),
            "-E", f"PYTHONPATH={self.folder / 'guest/wheels'}", "-E", "PYTHONHASHSEED=0",
            str(world / f"usr/bin/python{PYTHON}"), *arguments,
        ]  # fmt: skip

    def emulator(self, cpu: str, *, plugin: str | None = "plugin.so") -> list[str]:
        """Return the words before any aarch64 program that make it run on ``cpu`` under one of the plugins."""
        host = self.folder / "host"
        loader = next(p for p in sorted(host.glob("lib*/ld-linux*.so.*")) if p.exists())
        libraries = ":".join(
            str(p) for p in sorted([*host.glob("lib/*-linux-gnu"), *host.glob("usr/lib/*-linux-gnu")])
        )
        counting = ["-plugin", str(self.folder / plugin)] if plugin else []
        return [
            str(loader), "--library-path", libraries, str(host / "usr/bin/qemu-aarch64"),
            "-L", str(self.folder / "cpus" / cpu), "-cpu", CPUS[cpu].model, *counting,
        ]  # fmt: skip


def default_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/ossicle`` (``~/.cache/ossicle``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ossicle"


def versions() -> dict[str, str]:
    """Return what names a root: release, host architecture, ONNX Runtime, numpy, plugin."""
    return {
        "release": RELEASE,
        "host": os.uname().machine,
        "onnxruntime": version("onnxruntime"),
        "numpy": version("numpy"),
        "plugin": hashlib.sha256(PLUGIN_SOURCE.read_bytes()).hexdigest()[:12],
        "layout": str(LAYOUT),
    }


def folder_of(cache: Path | None = None) -> Path:
    """Return the folder in which the root of these versions is, or will be."""
    name = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode()).hexdigest()[:12]
    return (cache or default_cache()) / f"arm64-{name}"


def is_ready(cache: Path | None = None) -> bool:
    """Whether the root is there and finished."""
    return (folder_of(cache) / "root.json").is_file()


def missing() -> str | None:
    """Return why no root can be built on this machine, or None; looks at programs and sources only."""
    if sys.platform != "linux":
        return f"QEMU user mode needs Linux, this is {sys.platform}"
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"{program} is not installed (QEMU and the aarch64 root come from Debian packages)"
    if _compiler() is None:
        return "no C compiler (cc or gcc) to build the counting plugin: apt-get install gcc libc6-dev"
    if not debian_sources():
        return "apt's sources on this machine name no Debian release"
    return None


def debian_sources() -> list[tuple[str, str]]:
    """Return (URI, suite) of this machine's Debian sources, each suite renamed to ``RELEASE``'s."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    codename = re.search(r"^VERSION_CODENAME=(\w+)", _os_release(), re.MULTILINE)
    own = f"{codename[1]}|" if codename else ""
    is_suite = re.compile(rf"^(?:{own}stable|oldstable|testing|unstable|sid)(-updates|-security)?$")
    found: list[tuple[str, str]] = []
    if "ID=debian" not in _os_release().splitlines():
        return found
    for line in listed.stdout.splitlines():
        uri, suite, component = ([*line.split(), "", "", ""])[:3]
        match = is_suite.match(suite)
        if component == "main" and match and (uri, RELEASE + (match[1] or "")) not in found:
            found.append((uri, RELEASE + (match[1] or "")))
    return found


def prepare(cache: Path | None = None) -> ArmRoot:
    """Return the root, building it first if it is not there (about ``DOWNLOAD_MB`` to fetch, under a minute).

    Safe against interruption (a half-built root is continued) and against other processes that want it too.

    Raises:
        MissingDependencyError: a program that building needs is absent.
        MeasurementError: a download or a step of the build failed, or the guest does not start.
    """
    folder = folder_of(cache)
    if not (folder / "root.json").is_file():
        reason = missing()
        if reason is not None:
            raise MissingDependencyError(
                "cannot build the aarch64 root", expected="apt and a C compiler", got=reason
            )
        with locked(folder.with_name(folder.name + ".lock")):
            if not (folder / "root.json").is_file():
                _build(folder)
    # A root of an earlier version knew fewer processors, or others by the same name.
    if any(not _is_world(folder, cpu) for cpu in CPUS):
        with locked(folder.with_name(folder.name + ".lock")):
            for cpu in CPUS:
                if not _is_world(folder, cpu):
                    _make_world(folder, cpu)
    record = json.loads((folder / "root.json").read_text(encoding="utf-8"))
    return ArmRoot(folder, record["packages"])


def _build(folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    compile_plugin(PLUGIN_SOURCE, partial / "plugin.so")
    host = _output(["dpkg", "--print-architecture"]).strip()
    packages = {
        "host": unpack_packages(partial, "host", host, ("qemu-user",)),
        "guest": unpack_packages(partial, "guest", "arm64", GUEST_PACKAGES),
        "wheels": _unpack_wheels(partial),
    }
    for cpu in CPUS:
        _make_world(partial, cpu)
    for other in (partial / "host/usr/bin").glob("qemu-*"):
        if other.name != "qemu-aarch64":
            other.unlink()
    shutil.rmtree(partial / "work")
    root = ArmRoot(partial, packages)
    for cpu in CPUS:
        _output([*root.command(cpu, "-c", "import numpy, onnxruntime", plugin=None)])
    if folder.exists():
        shutil.rmtree(folder)
    write_json(partial / "root.json", {"versions": versions(), "packages": packages})
    partial.rename(folder)


def layer_plugin(root: ArmRoot) -> str:
    """Return the file in ``root`` of the plugin that counts layer by layer; compiled at first use.

    Raises:
        MissingDependencyError: there is no C compiler.
    """
    name = f"layers-{hashlib.sha256(LAYER_PLUGIN_SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not (root.folder / name).is_file():
        with tempfile.TemporaryDirectory(dir=root.folder) as scratch:
            compile_plugin(LAYER_PLUGIN_SOURCE, Path(scratch) / name)
            (Path(scratch) / name).rename(root.folder / name)
    return name


def compile_plugin(source: Path, target: Path) -> None:
    """Compile a plugin.

    Raises:
        MissingDependencyError: there is no C compiler. MeasurementError: it failed.
    """
    compiler = _compiler()
    if compiler is None:
        raise MissingDependencyError("no C compiler", run="apt-get install gcc libc6-dev")
    _output([compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(source)])


def unpack_packages(partial: Path, name: str, architecture: str, packages: Sequence[str]) -> list[str]:
    """Fetch ``packages`` with their dependencies, unpack them into ``partial/name``; return file names."""
    work = partial / "work" / name
    for part in ("state/lists/partial", "cache/archives/partial", "etc"):
        (work / part).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    signed = f"[signed-by={KEYRING}] " if KEYRING.is_file() else ""
    lines = [f"deb {signed}{uri} {suite} main\n" for uri, suite in debian_sources()]
    (work / "etc/debian.list").write_text("".join(lines), encoding="utf-8")
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": work / "etc",
        "Acquire::Retries": "3",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    _output([*apt, "update"])
    _output([*apt, "install", "--yes", "--download-only", *packages])
    archives = sorted((work / "cache/archives").glob("*.deb"))
    for archive in archives:
        _output(["dpkg-deb", "-x", str(archive), str(partial / name)])
    return [archive.name for archive in archives]


def _unpack_wheels(partial: Path) -> list[str]:
    wheels = partial / "work" / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)  # an interrupted pip can leave half a wheel
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (36, 35, 34, 31, 28, 27, 17)] + [
        "manylinux2014_aarch64"
    ]
    _output([
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--python-version", PYTHON, "--implementation", "cp", "--dest", str(wheels),
        *(word for name in platforms for word in ("--platform", name)),
        f"onnxruntime=={version('onnxruntime')}", f"numpy=={version('numpy')}",
    ])  # fmt: skip
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial / "guest" / "wheels")
    return [wheel.name for wheel in found]


def _cpuinfo(cpu: str) -> str:
    fields = {
        "processor": "0", "BogoMIPS": "108.00", "Features": CPUS[cpu].features, "CPU implementer": "0x41",
        "CPU architecture": "8", "CPU variant": CPUS[cpu].variant, "CPU part": CPUS[cpu].part, "CPU revision": "3",
    }  # fmt: skip
    return "".join(f"{key}\t: {value}\n" for key, value in fields.items()) + "\n"


def _is_world(root: Path, cpu: str) -> bool:
    path = root / "cpus" / cpu / "proc/cpuinfo"
    return path.is_file() and path.read_text(encoding="ascii") == _cpuinfo(cpu)


def _make_world(root: Path, cpu: str) -> None:
    """Make the guest's ``/`` for one processor: links into the shared root, and its own /proc/cpuinfo."""
    world = root / "cpus" / cpu
    partial = world.with_name(f".{cpu}.partial")
    for left in (world, partial):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    for entry in sorted((root / "guest").iterdir()):
        (partial / entry.name).symlink_to(Path("../../guest") / entry.name)
    (partial / "proc").mkdir()
    (partial / "proc/cpuinfo").write_text(_cpuinfo(cpu), encoding="ascii")
    cores = partial / "sys/devices/system/cpu"
    cores.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cores / name).write_text("0\n", encoding="ascii")
    partial.rename(world)


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def _os_release() -> str:
    path = Path("/etc/os-release")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _output(command: list[str]) -> str:
    """Run ``command`` in a plain environment and return its output; a failure carries its last lines."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("LD_", "PYTHON"))}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**keep, "LC_ALL": "C.UTF-8"}
    )
    if done.returncode != 0:
        words = [w for w in command[:6] if "=" not in w]
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise MeasurementError(
            f"{Path(command[0]).name} failed (exit code {done.returncode}) while building the aarch64 root",
            expected="success of: " + " ".join(words),
            got="; ".join(last) or "no message",
            run="ossicle doctor",
        )
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
