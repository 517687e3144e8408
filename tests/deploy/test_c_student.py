"""The C student against ONNX Runtime's int8: on this machine, sanitised, on emulated aarch64 and Cortex-M4."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import LogMelConfig
from pipeline.deploy.c import build, export
from pipeline.deploy.c.program import arena, fixed_point
from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import ConfigError, MeasurementError, OssicleError, ParityError
from pipeline.frontends.log_mel import LogMel
from pipeline.measure import arm_root, c_instructions, c_toolchain
from tests.deploy import c_networks, tiny

MAX_FRAMES = 70
LENGTHS = (MAX_FRAMES, 33, 8, 1)
NETWORKS = {
    "every_operator": lambda: c_networks.EveryOperator(),
    "cnn4_with_classes": lambda: c_networks.with_classes(c_networks.family("cnn4", width=0.5), 64 * 2),
    "cp_mobile": lambda: c_networks.family("cp_mobile_6k", embedding_dim=20),
}
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler (cc, gcc or clang)")


@pytest.fixture(scope="module", params=NETWORKS)
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an int8 file and the folder of its headers."""
    folder = tmp_path_factory.mktemp(request.param)
    source = c_networks.quantised(NETWORKS[request.param](), folder)
    export.write_sources(source, folder / "c", max_frames=MAX_FRAMES)
    return source, folder / "c"


@pytest.fixture(scope="module")
def compiled(student: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the student's program, compiled once for every length."""
    return build.compile_source(
        build.SOURCES / build.STUDENT_FILTER, student[1], tmp_path_factory.mktemp("compiled") / "student"
    )


def quantisation_step(source: Path) -> float:
    """Return the embedding's step, or where it stays float the spacing that int8 over its range would have."""
    scale = export.embedding_scale(source)
    if scale is not None:
        return scale
    session = open_session(source)
    values = np.concatenate([run_session(session, row[None]) for row in c_networks.clips(MAX_FRAMES)])
    return float(values.max() - values.min()) / 255


@needs_compiler
@pytest.mark.parametrize("frames", LENGTHS)
def test_equals_onnx_runtime_at_any_length(student: tuple[Path, Path], compiled: Path, frames: int) -> None:
    source, _ = student
    clips = c_networks.clips(frames)
    written = build.run_program(compiled, build.student_input(list(clips[:, 0])))
    found = export.likeness(source, clips, np.frombuffer(written, np.float32).reshape(len(clips), -1))
    assert found.centred_cosine >= 0.999
    largest = max(np.abs(run_session(open_session(source), row[None])).max() for row in clips)
    assert found.greatest_difference * largest <= 1.001 * quantisation_step(source)


@needs_compiler
def test_clean_under_sanitizers(student: tuple[Path, Path]) -> None:
    source, folder = student
    for frames in (MAX_FRAMES, 1):
        found = export.compare(source, folder, c_networks.clips(frames, number=3), sanitised=True)
        assert found is not None and found.centred_cosine >= 0.999


@needs_compiler
def test_too_many_frames_are_refused_by_the_program(compiled: Path) -> None:
    given = build.student_input([c_networks.clips(MAX_FRAMES + 1, number=1)[0, 0]])
    with pytest.raises(MeasurementError, match="failed"):
        build.run_program(compiled, given)


@needs_compiler
def test_logits_equal_onnx_runtimes(student: tuple[Path, Path], tmp_path: Path) -> None:
    source, folder = student
    session = open_session(source)
    if len(session.get_outputs()) == 1:
        assert "LOGITS" not in (folder / export.STUDENT_HEADER).read_text(encoding="utf-8")
        return
    clips = c_networks.clips(33)
    program = build.compile_source(
        build.SOURCES / build.STUDENT_FILTER, folder, tmp_path / "student",
        flags=(*build.OPTIMISED, "-DOSSICLE_WRITE_LOGITS"),
    )  # fmt: skip
    written = build.run_program(program, build.student_input(list(clips[:, 0])))
    want = np.concatenate([run_session(session, row[None], 1) for row in clips])
    got = np.frombuffer(written, np.float32).reshape(want.shape)
    np.testing.assert_allclose(got, want, atol=float(np.ptp(want)) / 200)


@needs_compiler
def test_another_network_is_no_match(student: tuple[Path, Path], tmp_path: Path) -> None:
    source, _ = student
    clips = c_networks.clips(33)
    session = open_session(source)
    right = np.concatenate([run_session(session, row[None]) for row in clips])
    with pytest.raises(ParityError, match="does not compute its int8 file"):
        export.likeness(source, clips, right[::-1].copy())


def test_on_aarch64_equals_x86_and_repeats(
    student: tuple[Path, Path], compiled: Path, tmp_path: Path
) -> None:
    if not (c_toolchain.is_ready("aarch64") and arm_root.is_ready()):
        pytest.skip("no aarch64 cross compiler and emulator unpacked: ossicle c RUN --arm fetches them")
    source, folder = student
    clips = c_networks.clips(33, number=2)
    program = build.compile_source(
        build.SOURCES / build.STUDENT_FILTER, folder, tmp_path / "student",
        flags=(*build.OPTIMISED, "-mcpu=cortex-a72", *c_instructions.MARK_FLAGS),
        command=c_toolchain.prepare("aarch64").compiler,
    )  # fmt: skip
    counts = [
        c_instructions.count_program(program, build.student_input(list(clips[:, 0])), "cortex-a72")
        for _ in range(2)
    ]
    want = np.frombuffer(build.run_program(compiled, build.student_input(list(clips[:, 0]))), np.float32)
    got = np.frombuffer(counts[0].output, np.float32)
    # Integers are equal everywhere; the few floats of a pooled vector may be fused in another order.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=0.01 * quantisation_step(source))
    assert counts[0].instructions == counts[1].instructions > 1_000


def test_on_cortex_m4(student: tuple[Path, Path], tmp_path: Path) -> None:
    if not c_toolchain.is_ready("cortex-m4"):
        pytest.skip(
            "no Cortex-M compiler and emulator unpacked: c_toolchain.prepare('cortex-m4') fetches them"
        )
    source, folder = student
    tools = c_toolchain.prepare("cortex-m4")
    clips = c_networks.clips(33, number=2)
    program = build.compile_source(
        build.SOURCES / build.STUDENT_FILTER, folder, tmp_path / "student.elf",
        flags=("-O2", str(build.SOURCES / "cortex_m_start.c"), "-T", str(build.SOURCES / "cortex_m.ld")),
        command=tools.compiler,
    )  # fmt: skip
    written = c_toolchain.run_on_cortex_m(tools, program, build.student_input(list(clips[:, 0])))
    got = np.frombuffer(written, np.float32).reshape(2, -1)
    assert export.likeness(source, clips, got).greatest_difference < 0.02


@needs_compiler
def test_the_example_embeds_a_waveform(tmp_path: Path) -> None:
    source = c_networks.quantised(tiny.TinyStudent(), tmp_path)
    export.write_sources(source, tmp_path / "c", max_frames=MAX_FRAMES)
    program = build.compile_source(tmp_path / "c" / export.EXAMPLE, tmp_path / "c", tmp_path / "embed")
    waveform = (0.1 * np.random.default_rng(4).standard_normal(16_000)).astype(np.float32)
    done = subprocess.run([program], input=waveform.tobytes(), capture_output=True, check=True)
    got = np.array([float(line) for line in done.stdout.split()], np.float32)
    log_mel = LogMel(tiny.FRONTEND)(torch.from_numpy(waveform)[None])[:, None].numpy()
    want = run_session(open_session(source), log_mel)[0]
    np.testing.assert_allclose(got, want, atol=1.001 * quantisation_step(source))


@needs_compiler
def test_the_check_for_a_device_passes_and_notices_what_is_wrong(
    student: tuple[Path, Path], tmp_path: Path
) -> None:
    _, folder = student
    # A frontend of another offset; a student that takes the mean for its negative.
    changes = (
        {},
        {export.FRONTEND_HEADER: ("LOG_OFFSET ", "LOG_OFFSET 2.0f * ")},
        {export.STUDENT_HEADER: ("frames, -5.0f,", "frames, 5.0f,")},
    )
    shown = []
    for change in changes:
        other = tmp_path / str(len(shown))
        shutil.copytree(folder, other)
        for name, (before, after) in change.items():
            text = (other / name).read_text(encoding="utf-8")
            assert before in text
            (other / name).write_text(text.replace(before, after), encoding="utf-8")
        program = build.compile_source(other / export.CHECK, other, other / "check")
        shown.append(subprocess.run([program], capture_output=True, text=True, check=False))
    assert [done.returncode for done in shown] == [0, 1, 1], [done.stdout for done in shown]
    assert "passed" in shown[0].stdout and "FAILED" in shown[1].stdout


@pytest.mark.parametrize(
    ("network", "file", "words"),
    [
        (tiny.TinyStudent, "student_u8s8.onnx", "int8 with one scale"),
        (tiny.TinyStudent, "student_fp32.onnx", "float input of Conv"),
        (c_networks.FloatMap, "student_s8s8.onnx", "operator Sigmoid"),
    ],
)
def test_what_c_has_no_form_of_is_named(network: type, file: str, words: str, tmp_path: Path) -> None:
    c_networks.quantised(network(), tmp_path)
    with pytest.raises(OssicleError, match=r"has no C form(.|\n)*" + words):
        export.write_sources(tmp_path / file, tmp_path / "c", max_frames=10)


def test_an_fft_that_c_lacks_is_refused() -> None:
    from pipeline.deploy.c.frontend import write_frontend

    with pytest.raises(ConfigError, match="multiple of 4"):
        write_frontend(LogMelConfig(n_fft=510, window_length=510))


@given(st.floats(2.0**-30, 2.0**29))
def test_fixed_point_is_the_nearest_of_31_bits(factor: float) -> None:
    multiplier, shift = fixed_point(factor)
    assert 2**30 <= multiplier < 2**31
    exact, found = Fraction(factor), Fraction(multiplier) * Fraction(2) ** (shift - 31)
    assert abs(found - exact) <= Fraction(2) ** (shift - 32)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=14)
)
def test_buffers_that_live_together_never_overlap(drawn: list[tuple[int, int, int]]) -> None:
    sizes = [size for size, _, _ in drawn]
    lives = [(first, first + length) for _, first, length in drawn]
    offsets, total = arena(sizes, lives)
    for i, (a, life_a) in enumerate(zip(offsets, lives, strict=True)):
        assert a % 4 == 0 and a + sizes[i] <= total
        for j in range(i):
            apart = a + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= a
            together = life_a[0] <= lives[j][1] and lives[j][0] <= life_a[1]
            assert apart or not together or sizes[i] * sizes[j] == 0
    # Never less than what lives at one moment.
    moments = {moment for life in lives for moment in life}
    assert total >= max(
        sum(s for s, (f, e) in zip(sizes, lives, strict=True) if f <= m <= e) for m in moments
    )


def test_a_chain_needs_its_two_largest_neighbours_alone() -> None:
    sizes = [400, 100, 300, 200]
    _, total = arena(sizes, [(at, at + 1) for at in range(4)])
    assert total == 500


def test_the_header_says_whose_weights_it_holds(student: tuple[Path, Path]) -> None:
    text = (student[1] / export.STUDENT_HEADER).read_text(encoding="utf-8")
    known = tiny.metadata()
    for words in (known.teacher_credit, known.teacher_licence, known.run):
        assert words in text
    assert "malloc" not in text and json.dumps(str(Path.cwd())) not in text
