"""Labels of generated scenes against other methods than the generator's, from the written stems and responses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from pipeline.scenes import measures
from pipeline.scenes_config import ScenesConfig

RATE = 48_000


@pytest.fixture(scope="module")
def table(scenes: Path) -> pd.DataFrame:
    return pd.read_csv(scenes / "DEAR_metadata.csv", dtype={"id": str})


def stem(scenes: Path, name: str, kind: str) -> np.ndarray:
    sound, rate = soundfile.read(scenes / "stems" / f"{name}_{kind}.wav", dtype="float64")
    assert rate == RATE
    return sound


def test_mix_is_the_sum_of_its_stems(scenes: Path, table: pd.DataFrame) -> None:
    for name in table["id"]:
        mix, rate = soundfile.read(scenes / "files" / f"{name}.wav", dtype="float64")
        assert rate == RATE and len(mix) == 3 * RATE
        both = stem(scenes, name, "target") + stem(scenes, name, "background")
        assert np.abs(mix - both).max() <= 1 / 2**15
        assert np.abs(mix).max() < 1
        level_dbfs = 20 * math.log10(math.sqrt(np.mean(mix**2)))
        assert level_dbfs < -19


def test_snr_of_each_second_is_that_of_the_stems(scenes: Path, table: pd.DataFrame) -> None:
    checked = 0
    for row in table.to_dict("records"):
        target, background = stem(scenes, row["id"], "target"), stem(scenes, row["id"], "background")
        for second in (1, 2, 3):
            told = row[f"targetSNR_{second}"]
            if math.isnan(told):
                assert not row[f"nTargetsActive_{second}"] >= 1
                continue
            part = slice((second - 1) * RATE, second * RATE)
            by_rms = 20 * math.log10(np.std(target[part]) / np.std(background[part]))
            assert told == pytest.approx(by_rms, abs=0.05)
            checked += 1
    assert checked >= 10


def test_rt60_and_drr_are_those_of_the_response(scenes: Path, table: pd.DataFrame) -> None:
    alone = table[(table["nTargets"] == 1) & (table["indoorOrOutdoor"] == "Indoor")]
    assert len(alone) >= 2
    for row in alone.to_dict("records"):
        response = np.load(scenes / "stems" / f"{row['id']}_responses.npy")[0].astype(np.float64)
        # Travel time is cut off: the direct sound stands first, half the library's 81 taps in. Later peaks may be
        # higher, where reflections coincide.
        peak = int(np.argmax(np.abs(response[:88])))
        energy = response**2
        direct = energy[peak - 120 : peak + 121].sum() if peak >= 120 else energy[: peak + 121].sum()
        assert row["targetDRR"] == pytest.approx(10 * math.log10(direct / (energy.sum() - direct)), abs=0.01)
        assert row["targetRT60"] == pytest.approx(_rt60_by_likelihood(response[peak:]), rel=0.15)


def _rt60_by_likelihood(response: np.ndarray) -> float:
    """Return the RT60 of the most likely exponentially decaying Gaussian noise (Ratnam et al., JASA 114(5), 2003).

    Of the decay from 20 ms to where it is 35 dB down: a scan over time constants, no integration backwards.
    """
    response = response[960:]
    smooth = np.convolve(response**2, np.ones(960) / 960, mode="valid")
    below = np.flatnonzero(smooth < smooth[0] * 10**-3.5)
    response = response[: below[0]] if len(below) else response
    samples = np.arange(len(response))
    best = (math.inf, 0.0)
    for rt60 in np.geomspace(0.05, 2.0, 400):
        log_envelope = -3 * math.log(10) * samples / (rt60 * RATE)
        scale = math.log(np.mean(np.square(response * np.exp(-log_envelope))))
        best = min(best, (0.5 * scale + float(log_envelope.mean()), float(rt60)))
    return best[1]


def test_activity_is_what_the_dry_words_say(scenes: Path, table: pd.DataFrame) -> None:
    parts = pd.read_parquet(scenes / "provenance.parquet")
    for row in table[table["nTargets"] == 1].to_dict("records"):
        words = parts[(parts["id"] == row["id"]) & (parts["role"] == "speaker 1")]
        for second in (1, 2, 3):
            end = words["start_seconds"] + words["seconds"]
            overlap = (np.minimum(end, second) - np.maximum(words["start_seconds"], second - 1)).clip(lower=0)
            if row[f"nTargetsActive_{second}"] >= 1:
                assert overlap.sum() >= 0.08
            elif row[f"nTargetsActive_{second}"] == 0:
                assert overlap.sum() <= 0.08  # the faint ends of a word


def test_noise_tracks_carry_their_one_label(table: pd.DataFrame) -> None:
    noise = table[table["nTargets"].isna()]
    assert len(noise)
    assert noise["stationaryOrTransientNoise"].isin(["Stationary", "Transient"]).all()
    others = noise.drop(columns=["id", "split", "stationaryOrTransientNoise"])
    assert others.isna().all(axis=None)


def test_outdoors_has_no_reverberation_label(table: pd.DataFrame) -> None:
    outdoor = table[table["indoorOrOutdoor"] == "Outdoor"]
    assert len(outdoor)
    assert outdoor[["targetRT60", "targetDRR"]].isna().all(axis=None)


@pytest.mark.parametrize("rt60", [0.2, 0.5, 1.2])
def test_rt60_of_an_exact_exponential(rt60: float) -> None:
    seconds = np.arange(int(RATE * rt60 * 1.5)) / RATE
    decay = 10 ** (-3 * seconds / rt60)
    assert measures.rt60_seconds(decay, RATE) == pytest.approx(rt60, rel=1e-3)


def test_rt60_of_no_decay_is_unknown() -> None:
    assert math.isnan(measures.rt60_seconds(np.zeros(100), RATE))
    assert math.isnan(measures.rt60_seconds(np.array([1.0]), RATE))
    assert math.isnan(measures.rt60_seconds(np.array([1.0, 0.5]), RATE))


def test_drr_by_hand() -> None:
    response = np.zeros(4_800)
    response[50], response[60], response[2_000] = 1.0, 0.5, 0.5
    assert measures.drr_db(response, RATE, 50) == pytest.approx(10 * math.log10(1.25 / 0.25))
    response[2_000] = 0
    assert measures.drr_db(response, RATE, 50) == math.inf


def test_seconds_with_a_trace_of_speech_are_left_open() -> None:
    frames = np.zeros((2, 150), dtype=bool)
    frames[0, :20] = True  # active in the first
    frames[1, 10:14] = True  # 80 ms: open
    frames[1, 50:55] = True  # 100 ms: active in the second
    found = measures.active_speakers(frames)
    assert math.isnan(found[0]) and found[1] == 1 and found[2] == 0


def test_level_deviation_tells_steady_from_sparse() -> None:
    generator = np.random.default_rng(3)
    steady = generator.standard_normal(RATE * 4)
    sparse = steady * 1e-2
    sparse[RATE : RATE + RATE // 4] += steady[: RATE // 4]
    frames = [10 * math.log10(np.mean(part**2)) for part in np.split(sparse, 32)]
    assert measures.level_deviation_db(steady, RATE) < 0.5
    assert measures.level_deviation_db(sparse, RATE) == pytest.approx(np.std(frames), rel=1e-6)
    limits = (ScenesConfig().stationary_below_db, ScenesConfig().transient_above_db)
    assert [measures.noise_class(value, *limits) for value in (1.0, 4.0, 9.0)] == [
        "Stationary",
        "",
        "Transient",
    ]
    assert measures.level_deviation_db(np.zeros(RATE), RATE) == 0
