"""Which file is shipped: never one that loses too much, never one that costs as much as float32."""

from __future__ import annotations

import pytest

from pipeline.deploy.shipping import FileFigures, Limits, decide

A72, A76 = "cortex-a72", "cortex-a76"


def fp32(**costs: float) -> FileFigures:
    return FileFigures("fp32", 1_000, costs)


def int8(
    cosine: float = 0.995, overlap: float = 0.98, drop: float | None = 0.0, size: int = 300, **costs: float
) -> FileFigures:
    return FileFigures("s8s8", size, costs, cosine, overlap, drop)


def test_a_faithful_and_cheaper_file_is_shipped() -> None:
    verdict = decide([fp32(a76=10.0), int8(a76=4.0)])
    assert verdict.ship == {"a76": "s8s8"}
    assert verdict.reasons == {}


def test_each_cpu_has_its_own_answer() -> None:
    whole = FileFigures("fp32", 1_000, {A72: 4.8, A76: 11.2})
    small = FileFigures("s8s8", 400, {A72: 6.9, A76: 10.9}, 0.995, 0.98, 0.0)
    verdict = decide([whole, small])
    assert verdict.ship == {A72: "fp32", A76: "s8s8"}
    assert verdict.reasons == {"s8s8": ["cortex-a72: 1.44 x float32's"]}


def test_a_slower_file_is_told_so_even_if_it_is_smaller() -> None:
    verdict = decide([fp32(a76=4.8), int8(a76=6.8)])
    assert verdict.ship == {"a76": "fp32"}
    assert verdict.reasons == {"s8s8": ["a76: 1.42 x float32's"]}


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"cosine": 0.9}, "centred cosine 0.9000 < 0.99"),
        ({"overlap": 0.9}, "neighbour overlap 0.900 < 0.97"),
        ({"drop": 0.01}, "probe drop 0.010 > 0.005"),
    ],
)
def test_a_file_that_loses_too_much_is_not_shipped_however_fast(loss: dict[str, float], words: str) -> None:
    verdict = decide([fp32(a76=10.0), int8(a76=1.0, **loss)])
    assert verdict.ship == {"a76": "fp32"}
    assert verdict.reasons == {"s8s8": [words]}


def test_the_limits_themselves_are_allowed() -> None:
    edge = int8(cosine=0.99, overlap=0.97, drop=0.005, a76=1.0)
    assert decide([fp32(a76=10.0), edge]).ship == {"a76": "s8s8"}
    assert decide([fp32(a76=10.0), edge], Limits(min_cosine=0.991)).ship == {"a76": "fp32"}


def test_without_costs_the_size_decides() -> None:
    assert decide([fp32(), int8(size=300)]).ship == {"file_bytes": "s8s8"}
    assert decide([fp32(), int8(size=1_000)]).ship == {"file_bytes": "fp32"}
    assert decide([fp32()]).ship == {"file_bytes": "fp32"}


def test_what_was_not_measured_refuses_nothing_and_what_costs_nothing_known_is_not_shipped() -> None:
    unknown = FileFigures("w4", 200)
    verdict = decide([fp32(a76=10.0), int8(a76=4.0), unknown])
    assert verdict.ship == {"a76": "s8s8"}
    assert decide([fp32(a76=10.0), int8(drop=None, a76=4.0)]).ship == {"a76": "s8s8"}


def test_equal_costs_are_told_apart_by_size_and_never_beat_float() -> None:
    smaller = FileFigures("u8s8", 200, {"a76": 4.0}, 0.999, 0.999, 0.0)
    assert decide([fp32(a76=10.0), int8(a76=4.0), smaller]).ship == {"a76": "u8s8"}
    assert decide([fp32(a76=4.0), smaller]).ship == {"a76": "fp32"}


def test_one_float_file_is_wanted() -> None:
    with pytest.raises(ValueError, match="fp32"):
        decide([int8()])
    with pytest.raises(ValueError, match="distinct"):
        decide([fp32(), int8(), int8()])
