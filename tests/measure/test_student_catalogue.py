"""Published counts of every student beside ours, counted anew; the page in docs; the listing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.errors import ConfigError
from pipeline.measure import student_catalogue as catalogue
from pipeline.students.registry import students
from stages import students as stage

PAGE = Path(__file__).parents[2] / "docs" / "students.md"
FORMS = [(name, form.form) for name, fact in catalogue.facts().items() for form in fact.published]


def form_of(name: str, form: str) -> catalogue.PublishedForm:
    return next(f for f in catalogue.facts()[name].published if f.form == form)


def test_every_student_has_facts_and_a_published_form() -> None:
    assert sorted(catalogue.facts()) == students.own_names()
    for name, fact in catalogue.facts().items():
        assert fact.published, name
        assert re.search(r"(19|20)\d\d|this project's", fact.paper), name


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_counts_are_the_published_ones_or_explained(name: str, form: str) -> None:
    entry, ours = form_of(name, form), catalogue.all_counts()[name, form]
    assert catalogue.differences(entry, ours) == []
    assert catalogue.unexplained(entry, ours) == []


@pytest.mark.parametrize(
    ("count", "text", "same"),
    [
        (4_876_831, "4.88 M", True), (4_886_831, "4.88 M", False), (61_148, "61,148", True),
        (61_149, "61,148", False), (541_078_208, "0.54 G", True), (127_684, "128 K", True),
        (983_599, "0.983 M", False),
    ],
)  # fmt: skip
def test_rounding_to_the_digits_that_are_printed(count: int, text: str, same: bool) -> None:
    assert catalogue.rounds_to(count, text) is same


def test_a_wrong_count_is_seen() -> None:
    entry = form_of("mn10", "527 classes, 10 s")
    ours = catalogue.all_counts()["mn10", "527 classes, 10 s"]
    changed = entry.model_copy(update={"macs": entry.macs + 1, "stated_parameters": "4.89 M"})  # type: ignore[operator]
    assert len(catalogue.differences(changed, ours)) == 1
    assert catalogue.unexplained(changed, ours) == ["4.89 M stated, 4,876,831 here"]


def test_a_wrong_table_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "students.toml"
    path.write_text('[cnn4]\ntitle = "x"\n')
    with pytest.raises(ConfigError, match="no table of students"):
        catalogue.read_facts(path)


def test_the_page_is_what_the_command_prints() -> None:
    printed = stage.run(console=Console(), markdown=True)
    shown = PAGE.read_text().split("What `ossicle students --markdown` prints.")[1].strip()
    assert shown == printed.strip(), (
        "run `ossicle students --markdown` and put what it prints into docs/students.md"
    )


def test_show_lists_checkpoints_and_options() -> None:
    console = Console(record=True, width=300)
    stage.show("dymn10", console=console)
    text = console.export_text()
    assert "dymn10_as.pt" in text and "matpac_dymn.ckpt" in text
    assert "student.options.temperature_schedule" in text
    assert "10.57 M" in text
