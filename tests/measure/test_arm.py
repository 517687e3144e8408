"""Executed ARM instructions, counted for real where QEMU and the aarch64 root can be had."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MeasurementError, MissingDependencyError
from pipeline.measure import arm, arm_root
from tests.measure import graphs


@pytest.fixture(scope="module")
def root() -> arm_root.ArmRoot:
    try:
        return arm_root.prepare()
    except (MissingDependencyError, MeasurementError) as error:
        pytest.skip(f"no emulated ARM here: {error.problem}: {error.got}")


def _counts(path: Path, cpus: tuple[str, ...]) -> list[arm.ArmCount]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda cpu: arm.count(path, graphs.value(), cpu, reuse=False), cpus))


@pytest.fixture(scope="module")
def float_counts(root: arm_root.ArmRoot, fp32: Path) -> list[arm.ArmCount]:
    return _counts(fp32, ("cortex-a76", "cortex-a76"))


@pytest.fixture(scope="module")
def int8_counts(root: arm_root.ArmRoot, s8s8: Path) -> list[arm.ArmCount]:
    return _counts(s8s8, ("cortex-a76", "cortex-a72", "cortex-a55", "cortex-a53"))


def test_counts_repeat(float_counts: list[arm.ArmCount]) -> None:
    first, second = float_counts
    assert first.fmla == second.fmla
    assert abs(first.instructions - second.instructions) <= 1e-3 * first.instructions


def test_fused_multiply_adds_are_the_hand_counted_macs(float_counts: list[arm.ArmCount]) -> None:
    # Four float32 lanes an instruction; edges of the map are padded up to whole vectors.
    for count in float_counts:
        assert graphs.MACS <= 4 * count.fmla <= 1.05 * graphs.MACS
        assert count.fmla < count.instructions


def test_armv82_has_dot_products_and_armv80_has_none(int8_counts: list[arm.ArmCount]) -> None:
    a76, a72, a55, a53 = int8_counts
    for count in (a76, a55):
        # SDOT multiplies 16 pairs; its first layer has one input channel and is not all of that shape.
        assert 16 * count.dot >= graphs.SECOND_MACS
    for count in (a72, a53):
        assert count.dot == count.mmla == count.sve_sme == 0
        assert a76.instructions < count.instructions


def test_each_processor_is_what_it_says(root: arm_root.ArmRoot) -> None:
    for cpu, about in arm_root.CPUS.items():
        text = (root.folder / "cpus" / cpu / "proc/cpuinfo").read_text(encoding="ascii")
        assert f"CPU part\t: {about.part}\n" in text
        assert ("asimddp" in text) == (about.model == "cortex-a76")
        command = root.command(cpu)
        assert command[command.index("-cpu") + 1] == about.model
        # Where the emulator's model is another core, the reader is told.
        assert (about.model == cpu) or about.model in about.about


def test_int8_equals_x86_bit_by_bit_and_float_nearly(
    float_counts: list[arm.ArmCount], int8_counts: list[arm.ArmCount]
) -> None:
    for count in int8_counts:
        assert count.comparison["equal"]
    for count in float_counts:
        assert count.comparison["max_abs_difference"] < 1e-5


def test_a_known_count_is_not_emulated_again(
    root: arm_root.ArmRoot, s8s8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = arm.count(s8s8, graphs.value(), "cortex-a76")

    def refuse(*_: object) -> None:
        raise AssertionError("emulated again")

    monkeypatch.setattr(arm, "_emulate", refuse)
    assert arm.count(s8s8, graphs.value(), "cortex-a76") == first
    with pytest.raises(AssertionError, match="emulated again"):
        arm.count(s8s8, graphs.value(1), "cortex-a76")


def test_a_model_that_does_not_load_says_so(root: arm_root.ArmRoot, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(MeasurementError, match=r"broken\.onnx failed on the emulated cortex-a72"):
        arm.count(tmp_path / "broken.onnx", graphs.value(), "cortex-a72", reuse=False)


def test_without_apt_the_reason_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = arm_root.missing()
    assert reason is not None
    assert "apt-get is not installed" in reason
    with pytest.raises(MissingDependencyError) as caught:
        arm_root.prepare(tmp_path / "cache")
    assert "apt-get is not installed" in str(caught.value)
    assert not arm_root.is_ready(tmp_path / "cache")


def _program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_sources_keep_their_mirror_and_get_one_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["http://m/debian/ trixie main", "http://m/debian/ trixie-updates main", "http://m/debian/ trixie contrib",
             "http://s/debian-security/ trixie-security main", "http://else/repo/ nodistro main"]  # fmt: skip
    _program(tmp_path, "apt-get", "printf '%s\\n' " + " ".join(f"'{line}'" for line in lines))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(arm_root, "_os_release", lambda: "ID=debian\nVERSION_CODENAME=trixie\n")
    assert arm_root.debian_sources() == [
        ("http://m/debian/", "bookworm"),
        ("http://m/debian/", "bookworm-updates"),
        ("http://s/debian-security/", "bookworm-security"),
    ]
    monkeypatch.setattr(arm_root, "_os_release", lambda: "ID=ubuntu\nVERSION_CODENAME=noble\n")
    assert arm_root.debian_sources() == []
    assert "no Debian release" in (arm_root.missing() or "")


def test_a_failed_download_leaves_no_finished_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("dpkg-deb", "cc"):
        _program(tmp_path, name, "exit 0")
    _program(tmp_path, "dpkg", "echo amd64")
    _program(
        tmp_path, "apt-get",
        'test "$1" = indextargets && echo "http://m/debian/ bookworm main" && exit; echo "E: no network" >&2; exit 100',
    )  # fmt: skip
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(arm_root, "_os_release", lambda: "ID=debian\nVERSION_CODENAME=bookworm\n")
    cache = tmp_path / "cache"
    with pytest.raises(MeasurementError, match="apt-get failed") as caught:
        arm_root.prepare(cache)
    assert "E: no network" in str(caught.value)
    assert not arm_root.is_ready(cache)
    assert not arm_root.folder_of(cache).exists()


def test_the_plugin_recognises_its_instructions(tmp_path: Path) -> None:
    """The words that the GNU assembler (2.40) makes of each line, given to the plugin's own classifier."""
    compiler = arm_root._compiler()
    if compiler is None:
        pytest.skip("no C compiler here")
    words = {
        "sdot v0.4s, v1.16b, v2.16b": (0x4E829420, "DOT"),
        "udot v0.4s, v1.16b, v2.16b": (0x6E829420, "DOT"),
        "sdot v0.4s, v1.16b, v2.4b[0]": (0x4F82E020, "DOT"),
        "smmla v0.4s, v1.16b, v2.16b": (0x4E82A420, "MMLA"),
        "ummla v0.4s, v1.16b, v2.16b": (0x6E82A420, "MMLA"),
        "usmmla v0.4s, v1.16b, v2.16b": (0x4E82AC20, "MMLA"),
        "fmla v0.4s, v1.4s, v2.4s": (0x4E22CC20, "FMLA"),
        "fmla v0.4s, v1.4s, v2.s[0]": (0x4F821020, "FMLA"),
        "ldr q0, [x1]": (0x3DC00020, "LOAD_STORE"),
        "stp q0, q1, [x2]": (0xAD000440, "LOAD_STORE"),
        "add x0, x1, x2": (0x8B020020, None),
        "mla v0.4s, v1.4s, v2.4s": (0x4EA29420, None),
        "fadd v0.4s, v1.4s, v2.4s": (0x4E22D420, None),
        "fmls v0.4s, v1.4s, v2.4s": (0x4EA2CC20, None),
    }
    checks = "".join(
        f'{{uint64_t c[CLASSES]={{0}}; classify({word:#x}u,c); for(int k=1;k<CLASSES;k++) if(c[k]!='
        f'({-1 if name is None else 1}==1 && k=={name or 0})) {{ puts("{text}"); bad=1; }} }}\n'
        for text, (word, name) in words.items()
    )  # fmt: skip
    names = ["register_vcpu_tb_trans_cb", "register_vcpu_tb_exec_inline", "register_vcpu_syscall_cb",
             "register_atexit_cb", "tb_n_insns", "tb_get_insn", "insn_data"]  # fmt: skip
    stand_ins = "".join(f"#define qemu_plugin_{name} absent_{name}\n" for name in names)
    bodies = (
        "void absent_register_vcpu_tb_trans_cb(plugin_id a, translated b){}"
        "void absent_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*a,int b,void*c,uint64_t d){}"
        "void absent_register_vcpu_syscall_cb(plugin_id a, system_call b){}"
        "void absent_register_atexit_cb(plugin_id a,void(*b)(plugin_id,void*),void*c){}"
        "size_t absent_tb_n_insns(const struct qemu_plugin_tb*a){return 0;}"
        "struct qemu_plugin_insn*absent_tb_get_insn(const struct qemu_plugin_tb*a,size_t b){return 0;}"
        "const void*absent_insn_data(const struct qemu_plugin_insn*a){return 0;}"
    )
    source = f'{stand_ins}#include "{arm_root.PLUGIN_SOURCE}"\n{bodies}\n'
    source += f"int main(void){{int bad=0;\n{checks}return bad;}}"
    (tmp_path / "check.c").write_text(source, encoding="utf-8")
    subprocess.run([compiler, "-w", "-o", str(tmp_path / "check"), str(tmp_path / "check.c")], check=True)
    done = subprocess.run([str(tmp_path / "check")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_comparison_of_outputs() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    assert arm.compare_outputs(a, a)["equal"]
    near = arm.compare_outputs(a + np.float32(1e-4), a)
    assert not near["equal"]
    assert near["believable"]
    turned = arm.compare_outputs(a[::-1], a)
    assert not turned["believable"]
    assert turned["cosine"] == 0.0
    assert not arm.compare_outputs(np.full_like(a, np.nan), a)["believable"]
    assert not arm.compare_outputs(a[:1], a)["believable"]
