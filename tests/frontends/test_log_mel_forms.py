"""One log-mel in torch, numpy, ONNX and C99, whole and as a stream, against its formula written out in float64."""

from __future__ import annotations

import functools
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import LogMelConfig
from pipeline.errors import AudioError, ConfigError
from pipeline.frontends.constants import PlainLogMelConstants
from pipeline.frontends.log_mel import LogMel
from pipeline.frontends.log_mel_numpy import NumpyLogMel, NumpyLogMelStream
from pipeline.frontends.log_mel_stream import LogMelStream
from pipeline.frontends.split_spectrum import SplitPower
from pipeline.frontends.windowed_dft import best_taps, padded_window, split_dft, split_macs

ATOL = 1e-4
CONFIGS: dict[str, LogMelConfig] = {
    "students": LogMelConfig(),
    "reflect": LogMelConfig(pad_mode="reflect", log="log10", mel_scale="slaney"),
    "unpadded_magnitude": LogMelConfig(center=False, power=1.0, hop_length=160, log_offset=1e-3, mels=32),
    "short_window_db": LogMelConfig(window="hann_symmetric", window_length=400, log="db", mel_norm="none"),
    "mixed_radix": LogMelConfig(n_fft=400, window_length=399, hop_length=133, mels=24, power=3.0),
    "hop_beyond_fft": LogMelConfig(n_fft=60, window_length=60, hop_length=77, mels=4, pad_mode="reflect"),
    "bins": LogMelConfig(n_fft=128, window_length=128, hop_length=50, bands="linear", log_floor=1e-3),
}
SEEDS_AND_LENGTHS = ((11, 600), (12, 2_049), (13, 5_000), (14, 16_001))
PORTIONS = (160, 999)
# What takes other paths through the C code than the students' constants do.
SANITISED = ("students", "hop_beyond_fft", "mixed_radix", "bins")


def waveform(seed: int, samples: int) -> np.ndarray:
    """Return (1, samples) float32 noise and a tone whose level falls by 80 dB."""
    rng = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * rng.uniform(0.01, 0.2) * np.arange(samples))
    return ((rng.standard_normal(samples) + tone) * np.logspace(-0.5, -4.5, samples))[None].astype(np.float32)


@functools.cache
def golden(name: str, seed: int, length: int) -> np.ndarray:
    """Return the formula's (bands, frames) of one seeded waveform."""
    return formula(CONFIGS[name], waveform(seed, length)[0])


def formula(config: LogMelConfig, samples: np.ndarray) -> np.ndarray:
    """Return (bands, frames) float64: sums written out, librosa's mel triangles."""
    x = samples.astype(np.float64)
    half = config.n_fft // 2
    if config.center:
        x = np.pad(x, half, mode="reflect" if config.pad_mode == "reflect" else "constant")
    length = config.window_length
    period = length if config.window == "hann_periodic" else length - 1
    window = np.zeros(config.n_fft)
    left = (config.n_fft - length) // 2
    window[left : left + length] = np.sin(np.pi * np.arange(length) / period) ** 2
    spins = np.exp(-2j * np.pi * np.outer(np.arange(half + 1), np.arange(config.n_fft)) / config.n_fft)
    frames = [
        np.abs(spins @ (window * x[start : start + config.n_fft])) ** config.power
        for start in range(0, len(x) - config.n_fft + 1, config.hop_length)
    ]
    power = np.stack(frames, axis=1)
    if config.bands == "mel":
        bank = librosa.filters.mel(
            sr=config.sample_rate_hz, n_fft=config.n_fft, n_mels=config.mels, fmin=config.min_hz, fmax=config.max_hz,
            htk=config.mel_scale == "htk", norm="slaney" if config.mel_norm == "slaney" else None, dtype=np.float64,
        )  # fmt: skip
        power = bank @ power
    level = np.maximum(power, config.log_floor) + config.log_offset
    if config.log == "ln":
        return np.log(level)
    return np.log10(level) * (10.0 if config.log == "db" else 1.0)


def streamed(stream: object, samples: np.ndarray, portion: int) -> np.ndarray:
    """Return what a stream of either library gives that hears ``portion`` samples at a time."""
    of_torch = isinstance(stream, LogMelStream)
    given = torch.from_numpy(samples) if of_torch else samples
    parts = [stream.push(given[:, at : at + portion]) for at in range(0, samples.shape[1], portion)]  # type: ignore[attr-defined]
    parts.append(stream.finish())  # type: ignore[attr-defined]
    return np.concatenate([np.asarray(part) for part in parts], axis=2)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_and_numpy_agree_with_the_formula_whole_and_streamed(name: str) -> None:
    config = CONFIGS[name]
    torch_form, numpy_form = LogMel(config), NumpyLogMel(config)
    for seed, length in SEEDS_AND_LENGTHS:
        samples = waveform(seed, length)
        want = golden(name, seed, length)
        found = {
            "torch": torch_form(torch.from_numpy(samples))[0].numpy(),
            "numpy": numpy_form(samples)[0],
        }
        for portion in PORTIONS:
            found[f"torch stream {portion}"] = streamed(LogMelStream(torch_form), samples, portion)
            found[f"numpy stream {portion}"] = streamed(NumpyLogMelStream(numpy_form), samples, portion)
        for form, got in found.items():
            assert got.shape == (config.mels, config.frames(length)), form
            np.testing.assert_allclose(got, want, atol=ATOL, rtol=0, err_msg=f"{form}, {length} samples")


@pytest.mark.parametrize("name", CONFIGS)
def test_c_agrees_with_the_formula_and_its_stream_is_bit_equal(name: str, tmp_path: Path) -> None:
    build = pytest.importorskip("pipeline.deploy.c.build")
    from pipeline.deploy.c.frontend import write_frontend

    if build.compiler() is None:
        pytest.skip("no C compiler (cc, gcc or clang)")
    config = CONFIGS[name]
    (tmp_path / "ossicle_frontend.h").write_text(write_frontend(config).text, encoding="utf-8")
    signals = [waveform(seed, length)[0] for seed, length in SEEDS_AND_LENGTHS]
    jobs = [(portion, x) for x in signals for portion in (0, 1, *PORTIONS)]
    written = {}
    kinds = {"optimised": build.OPTIMISED}
    if name in SANITISED:
        kinds["sanitised"] = build.SANITISED
    for kind, flags in kinds.items():
        source = build.SOURCES / build.FRONTEND_FILTER
        program = build.compile_source(source, tmp_path, tmp_path / kind, flags=flags)
        written[kind] = build.frontend_output(
            build.run_program(program, build.frontend_input(jobs)), config.mels
        )
    for kind, log_mels in written.items():
        for number, (seed, length) in enumerate(SEEDS_AND_LENGTHS):
            whole, *streams = log_mels[4 * number : 4 * number + 4]
            assert whole is not None and whole.shape == (config.mels, config.frames(length))
            np.testing.assert_allclose(whole, golden(name, seed, length), atol=ATOL, rtol=0, err_msg=kind)
            for stream in streams:
                np.testing.assert_array_equal(stream, whole, err_msg=f"{kind} stream")


def test_c_standardises_whole_waveforms_and_has_no_stream_of_them(tmp_path: Path) -> None:
    build = pytest.importorskip("pipeline.deploy.c.build")
    from pipeline.deploy.c.frontend import write_frontend

    if build.compiler() is None:
        pytest.skip("no C compiler (cc, gcc or clang)")
    config = LogMelConfig(standardise=True)
    (tmp_path / "ossicle_frontend.h").write_text(write_frontend(config).text, encoding="utf-8")
    program = build.compile_source(build.SOURCES / build.FRONTEND_FILTER, tmp_path, tmp_path / "filter")
    x = waveform(5, 7_000)[0] + np.float32(0.3)
    whole, stream, short = build.frontend_output(
        build.run_program(program, build.frontend_input([(0, x), (160, x), (0, x[:0])])), config.mels
    )
    centred = (x - x.mean(dtype=np.float64)) / np.sqrt(x.var(dtype=np.float64) + 1e-7)
    np.testing.assert_allclose(whole, formula(LogMelConfig(), centred), atol=ATOL, rtol=0)
    assert stream is None and short is None


@pytest.mark.parametrize("name", ["students", "reflect", "mixed_radix", "bins"])
def test_what_is_exported_agrees_with_the_formula(name: str) -> None:
    config = CONFIGS[name]
    frontend = LogMel(config)
    for seed, length in SEEDS_AND_LENGTHS:
        samples = waveform(seed, length)
        with torch.no_grad():
            padded = frontend._padded(torch.from_numpy(samples))
            got = frontend.exported(padded)[0].numpy()
        level = np.maximum(got, config.log_floor) + config.log_offset
        level = np.log(level) if config.log == "ln" else np.log10(level)
        np.testing.assert_allclose(level, golden(name, seed, length), atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("n_fft", "hop", "taps"), [(512, 320, 32), (400, 133, 25), (1024, 320, 64), (6, 5, None)]
)
def test_two_stages_are_the_windowed_dft(n_fft: int, hop: int, taps: int | None) -> None:
    if taps is not None:
        assert best_taps(n_fft, hop) == taps
    window = np.random.default_rng(0).uniform(0.1, 1.0, n_fft)
    signal = np.random.default_rng(1).standard_normal(n_fft)
    found = split_dft(window, taps or 3)
    blocks = signal.reshape(found.taps, found.phases).T
    first = np.einsum("prt,pt->pr", found.first, blocks)
    second = found.second @ first.reshape(2 * found.phases, -1)
    real, imaginary = second[: found.phases], second[found.phases :]
    want = np.abs(np.fft.rfft(window * signal)) ** 2
    np.testing.assert_allclose((real**2 + imaginary**2).reshape(-1), want[found.bins], atol=1e-9)
    assert set(found.bins) == set(range(n_fft // 2 + 1))
    assert found.macs == split_macs(found.taps, found.phases)


def test_the_students_frontend_multiplies_a_fifth_of_a_whole_dft() -> None:
    config = LogMelConfig()
    weights = SplitPower(padded_window(config), np.ones((64, 257)), config)
    split = best_taps(config.n_fft, config.hop_length)
    macs = split_macs(split, config.n_fft // split) + int(weights.get_buffer("bank").numel())
    assert macs < (512 * 2 * 257 + 257 * 64) / 5


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(0, 700), hop=st.integers(1, 130), center=st.booleans(), reflect=st.booleans(),
    cuts=st.lists(st.integers(0, 700), max_size=6),
)  # fmt: skip
def test_any_portions_give_the_whole_signals_frames(
    samples: int, hop: int, center: bool, reflect: bool, cuts: list[int]
) -> None:
    config = LogMelConfig(
        n_fft=64, window_length=64, hop_length=hop, mels=3, center=center,
        pad_mode="reflect" if reflect else "constant",
    )  # fmt: skip
    frontend = NumpyLogMel(config)
    x = waveform(1, samples) if samples else np.zeros((1, 0), np.float32)
    edges = [0, *sorted(min(cut, samples) for cut in cuts), samples]
    stream = NumpyLogMelStream(frontend)
    parts = [stream.push(x[:, start:end]) for start, end in pairwise(edges)]
    try:
        want = frontend(x)
    except AudioError:
        with pytest.raises(AudioError, match="too few samples"):
            stream.finish()
        return
    np.testing.assert_allclose(np.concatenate([*parts, stream.finish()], axis=2), want, atol=1e-6)


def test_a_stream_starts_anew_after_its_end() -> None:
    frontend = NumpyLogMel(LogMelConfig(pad_mode="reflect"))
    stream = NumpyLogMelStream(frontend)
    x = waveform(2, 3_000)
    first = np.concatenate([stream.push(x), stream.finish()], axis=2)
    again = np.concatenate([stream.push(x), stream.finish()], axis=2)
    np.testing.assert_array_equal(first, again)


def test_what_no_stream_can_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot follow a stream"):
        LogMelStream(LogMel(LogMelConfig(standardise=True)))
    for stream, wrong in (
        (LogMelStream(LogMel(LogMelConfig())), torch.zeros(2, 9)),
        (NumpyLogMelStream(NumpyLogMel(LogMelConfig())), np.zeros((2, 9), np.float32)),
    ):
        with pytest.raises(AudioError, match="another stream"):
            stream.push(wrong)  # type: ignore[attr-defined]


def test_the_numpy_form_imports_numpy_alone() -> None:
    code = (
        "import json, sys; import numpy\n"
        "from pipeline.frontends.constants import PlainLogMelConstants as C\n"
        "from pipeline.frontends.log_mel_numpy import NumpyLogMel\n"
        "config = C.read(json.loads(sys.argv[1]))\n"
        "print(NumpyLogMel(config)(numpy.zeros((1, 9000), 'f')).shape)\n"
        "heavy = {'torch', 'pydantic', 'jaxtyping', 'pandas', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    given_ = LogMelConfig().model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", code, given_], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 64, 29)"


def test_plain_constants_are_the_configs() -> None:
    for config in CONFIGS.values():
        plain = PlainLogMelConstants.read(config.model_dump(mode="json"))
        assert all(getattr(plain, name) == getattr(config, name) for name in vars(plain))
