"""The list of teachers says what is true: against the classes, the golden specs, and the page in docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import recipe as recipes
from pipeline.checkpoints import table as checkpoints
from pipeline.errors import ConfigError
from pipeline.teachers import catalogue
from pipeline.teachers.registry import teachers
from tests.golden import golden_vectors as golden

OWN = teachers.own_names()
FACTS = catalogue.read_facts()
PAGE = Path(__file__).parents[2] / "docs" / "teachers.md"


def expanded(outputs: tuple[str, ...]) -> set[str]:
    """Return the outputs without those that only some files have, layer ranges written out."""
    names: set[str] = set()
    for output in outputs:
        span = re.fullmatch(r"layer\.(\d+) to layer\.(\d+)", output)
        if span:
            names |= {f"layer.{n}" for n in range(int(span[1]), int(span[2]) + 1)}
        elif re.fullmatch(r"embedding|logits|frames|layer\.\d+", output):
            names.add(output)
    return names


@pytest.mark.parametrize("name", OWN)
def test_every_teacher_has_facts_that_its_class_confirms(name: str) -> None:
    facts = catalogue.facts_of(name, FACTS)
    assert facts is not None, f"add {name} to {catalogue.FACTS_FILE.name}"
    kind = catalogue.class_of(name)
    rate = getattr(kind, "sample_rate_hz", None)
    if isinstance(rate, int):
        assert facts.sample_rate_hz == rate
    window = getattr(kind, "window_samples", None)
    if isinstance(window, int) and isinstance(rate, int):
        assert facts.window_seconds == pytest.approx(window / rate, abs=5e-4)
    if isinstance(getattr(kind, "embedding_dim", None), int):
        assert facts.embedding_dim[0] == kind.embedding_dim  # type: ignore[union-attr]
    if isinstance(getattr(kind, "outputs", None), tuple):
        assert expanded(facts.outputs) == set(kind.outputs)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "folder"), [(key, folder) for key, facts in FACTS.items() for folder in facts.golden]
)
def test_the_golden_specs_confirm_the_facts(key: str, folder: str) -> None:
    spec, _ = golden.require(folder)
    facts, published = FACTS[key], spec["published"]
    assert facts.sample_rate_hz == published["sample_rate"]
    widths = {int(number) for number in re.findall(r"\b\d{2,}\b", str(published["embedding_dim"]))}
    assert set(facts.embedding_dim) & widths
    counted = published.get("params_measured")
    if counted is None:
        counted = published["params_millions_measured"] * 1e6
    assert facts.parameters == pytest.approx(counted, rel=0.01)


def test_every_fact_is_of_a_teacher() -> None:
    for key, facts in FACTS.items():
        assert any(catalogue.facts_of(name, FACTS) is facts for name in OWN), key


def test_every_checkpoint_is_of_a_teacher() -> None:
    for entry in checkpoints.CHECKPOINTS.values():
        assert entry.teacher in OWN, entry.name
        assert entry.licence
        assert re.search(r"(19|20)\d\d", entry.citation), f"{entry.name}: no year in {entry.citation}"


def test_a_wrong_table_of_checkpoints_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    table = '[mine]\nteacher = "tiny"\nlicence = "x"\ncitation = "x"\npublished_at = "x"\n'
    for text, words in (
        (table, "give file"),
        (table + 'file = "a"\nsha256 = "abc"\n', r"\[mine\] sha256"),
        (table + 'file = "a"\nlicense = "MIT"\n', r"\[mine\] license"),
        ("mine = 3", "not a table"),
        ("[mine", "not a table"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            checkpoints.read(tmp_path)
    path.write_text(table + 'file = "a"\n')
    (tmp_path / "other.toml").write_text(path.read_text())
    with pytest.raises(ConfigError, match="listed twice"):
        checkpoints.read(tmp_path)


@pytest.mark.parametrize("path", sorted((recipes.SHIPPED / "teachers").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_declarations_are_valid_recipes(path: Path) -> None:
    from pipeline.teachers.graph import GraphOptions
    from pipeline.teachers.options import parse

    teacher = recipes.load(path).embed.teacher
    options = parse(GraphOptions, teacher.name, teacher.options)
    assert options.checkpoint is not None
    assert checkpoints.CHECKPOINTS[options.checkpoint].teacher == teacher.name
    assert str(path.stem) in PAGE.read_text()


def test_the_page_is_what_the_command_prints() -> None:
    page = PAGE.read_text()
    for made in (catalogue.markdown(), catalogue.options_markdown()):
        assert made in page, "run: ossicle teachers --markdown, and put what it prints into docs/teachers.md"
