"""The frontend's file against torch, and against the formula written out in float64."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import onnx
import pytest

from pipeline.config import LogMelConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.frontend_export import FrontendGraph, export_frontend, export_frontend_stream
from pipeline.deploy.frontend_stream import OnnxLogMelStream
from pipeline.deploy.parity import check_parity, waveform_inputs
from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import AudioError, ConfigError
from pipeline.frontends.log_mel_numpy import NumpyLogMel

CONFIGS = {
    "students": LogMelConfig(),
    "reflect_db": LogMelConfig(pad_mode="reflect", log="db", mel_scale="slaney", mels=40, window_length=400),
    "no_padding": LogMelConfig(center=False, mel_norm="none", power=1.0, log="log10"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LogMelConfig, Path]:
    path = tmp_path_factory.mktemp("frontend") / "frontend.onnx"
    export_frontend(CONFIGS[request.param], path)
    return CONFIGS[request.param], path


def test_equal_to_torch_at_lengths_and_batches_not_used_at_export(
    exported: tuple[LogMelConfig, Path],
) -> None:
    config, path = exported
    parity = check_parity(FrontendGraph(config).eval(), path, waveform_inputs(), tolerance=1e-4)
    assert len({s.shape for s in parity.shapes}) >= 5


def test_equal_to_librosa(exported: tuple[LogMelConfig, Path]) -> None:
    config, path = exported
    waveform = np.random.default_rng(3).standard_normal((2, 7_777)).astype(np.float32) * 0.2
    got = run_session(open_session(path), waveform)
    mel = librosa.feature.melspectrogram(
        y=waveform.astype(np.float64), sr=config.sample_rate_hz, n_fft=config.n_fft, win_length=config.window_length,
        hop_length=config.hop_length, center=config.center, power=config.power, n_mels=config.mels, fmin=config.min_hz,
        fmax=config.max_hz, htk=config.mel_scale == "htk", norm="slaney" if config.mel_norm == "slaney" else None,
        pad_mode=config.pad_mode,
    )  # fmt: skip
    level = {"ln": np.log, "log10": np.log10, "db": lambda x: 10 * np.log10(x)}[config.log](
        mel + config.log_offset
    )
    assert got.shape == (2, 1, config.mels, config.frames(7_777))
    np.testing.assert_allclose(got[:, 0], level, atol=2e-4 * np.abs(level).max())


def test_axes_are_named_and_constants_are_inside(exported: tuple[LogMelConfig, Path]) -> None:
    config, path = exported
    graph = onnx.load(str(path)).graph
    shape = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert (graph.input[0].name, shape) == ("waveform", ["batch", "samples"])
    assert graph.output[0].name == "log_mel"
    assert LogMelConfig.model_validate(metadata_props.read(path)["frontend"]) == config


def test_no_matrix_of_a_whole_dft_is_inside(exported: tuple[LogMelConfig, Path]) -> None:
    config, path = exported
    sizes = [int(np.prod(tensor.dims)) for tensor in onnx.load(str(path)).graph.initializer]
    assert max(sizes) < config.n_fft * (config.n_fft // 2)


def test_the_streams_file_gives_the_whole_signals_frames(
    exported: tuple[LogMelConfig, Path], tmp_path: Path
) -> None:
    config, whole = exported
    export_frontend_stream(config, tmp_path / "frontend_stream.onnx")
    waveform = np.random.default_rng(8).standard_normal((2, 9_001)).astype(np.float32) * 0.1
    stream = OnnxLogMelStream(tmp_path / "frontend_stream.onnx", batch=2)
    for portion in (97, 4_000):
        parts = [stream.push(waveform[:, at : at + portion]) for at in range(0, 9_001, portion)]
        got = np.concatenate([*parts, stream.finish()], axis=2)
        np.testing.assert_allclose(got, run_session(open_session(whole), waveform)[:, 0], atol=1e-5)
        np.testing.assert_allclose(got, NumpyLogMel(config)(waveform), atol=1e-4)
    with pytest.raises(AudioError, match="another stream"):
        stream.push(waveform[:1])
    with pytest.raises(ConfigError, match="no frontend of a stream"):
        OnnxLogMelStream(whole)
