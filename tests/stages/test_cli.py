"""The command line is frozen: a renamed option breaks somebody's script, so it must be meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from stages import cli

OPTIONS = {
    "compare": [
        "models",
        "--recipe",
        "--set",
        "--option",
        "--contract",
        "--manifest",
        "--label",
        "--group",
        "--store",
        "--teacher",
        "--arm",
    ],
    "prototypes": [
        "model",
        "--classes",
        "--label",
        "--group",
        "--shots",
        "--metric",
        "--features",
        "--neighbours",
        "--slots",
        "--episodes",
        "--seed",
        "--beside",
        "--to",
        "--recipe",
        "--set",
    ],
    "package": ["run", "--to", "--store", "--licence", "--push", "--private"],
    "fetch": ["recipe", "name", "--from", "--trust-sha256", "--set"],
    "manifest": ["recipe", "--set"],
    "finetune": ["recipe", "--set", "--only"],
    "embed": ["recipe", "--set", "--engine"],
    "distill": ["recipe", "--set", "--only"],
    "sweep": ["recipe", "--set", "--space", "--only", "--trials", "--storage"],
    "search": [
        "recipe",
        "--set",
        "--space",
        "--only",
        "--candidates",
        "--max-parameters",
        "--max-macs",
        "--max-flash-kb",
        "--max-ram-kb",
        "--max-arm-instructions-per-second",
        "--storage",
    ],
    "qat": ["recipe", "--set", "--only"],
    "export": ["recipe", "--set", "--only"],
    "quantise": ["run", "--store", "--sensitivity", "--methods", "--sizes"],
    "convert": [
        "run",
        "--to",
        "--store",
        "--held-out-clips",
        "--system-config",
        "--memory-mode",
        "--environments-only",
    ],
    "scenes": ["recipe", "--set"],
    "evaluate": ["recipe", "--set", "--model", "--manifest", "--label", "--group"],
    "benchmark": ["recipe", "--set", "--host"],
    "report": ["recipe", "--set"],
    "demo": ["recipe", "--set"],
    "doctor": [],
    "recipe": ["recipe", "--set", "--keys", "--list"],
    "teachers show": ["name"],
    "teachers check": ["name", "--set"],
    "students show": ["name"],
    "students check": ["name", "--set"],
    "c": ["run", "--store", "--max-frames", "--held-out-clips", "--arm"],
    "store inspect": ["recipe", "--set"],
    "store verify": ["recipe", "--set", "--repair"],
    "store audit": ["recipe", "--set", "--sample", "--seed", "--min-cosine", "--max-difference"],
    "store merge": ["stores", "--out"],
    "store join": [
        "recipe",
        "file",
        "--teacher",
        "--names",
        "--ids",
        "--activation",
        "--classes",
        "--dtype",
        "--licence",
        "--citation",
        "--set",
    ],
    "store export-hdf5": ["recipe", "file", "--set"],
    "store import-hdf5": ["file", "out"],
}


def spelled(command: object, prefix: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, sub in getattr(command, "commands", {}).items():
        if hasattr(sub, "commands"):
            found.update(spelled(sub, f"{prefix}{name} "))
        else:
            found[prefix + name] = [
                parameter.opts[0] for parameter in sub.params if parameter.name not in ("help",)
            ]
    return found


def test_commands_and_options_are_frozen() -> None:
    assert spelled(typer.main.get_command(cli.app)) == OPTIONS


def ossicle(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.cli", *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_help_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, typer; from stages import cli\n"
        "try: cli.app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'zarr', 'sklearn', 'onnx', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Stage 1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "demo", "--set", "student.nmae=cnn4"], "did you mean name"),
        (["distill", "demo", "--set", "student.name=micronet_m9"], "did you mean micronet_m3"),
        (["embed", "nowhere.toml"], "no recipe"),
        (["distill", "demo", "--set", "loss.feature=0"], "every loss weight is 0"),
        (["distill", "demo"], "make manifest"),
        (["evaluate", "demo", "--set", "evaluate.tasks=['drumz']"], "drums"),
    ],
)
def test_a_wrong_call_is_a_few_lines_and_no_traceback(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    done = ossicle(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) < 8
    assert not list(tmp_path.iterdir())


def test_shipped_recipes_are_listed_with_what_they_say_of_themselves(tmp_path: Path) -> None:
    done = ossicle("recipe", "--list", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert set(listed) == {path.stem for path in (Path(cli.__file__).parent / "recipes").glob("*.toml")}
    assert listed["east_magna"].startswith("EAsT's other task: Mobile FCN on MagnaTagATune's tags")
    assert all(10 < len(sentence) < 400 and sentence[-1] in ".?" for sentence in listed.values()), listed


def test_every_key_is_documented() -> None:
    from stages import recipe_reference

    unexplained = [
        key for key, _, meaning in recipe_reference.rows() if not meaning and not key.endswith("seed")
    ]
    # These say everything by their name and unit, or hold a closed list of values.
    allowed = {
        "_hz",
        "power",
        "window",
        "pad_mode",
        "mel_scale",
        "dtype",
        "steps",
        "batch_size",
        "learning_rate",
    }
    assert not [key for key in unexplained if not any(word in key for word in allowed | EXPLAINED_BY_NAME)]


EXPLAINED_BY_NAME = {
    "name", "eq_probability", "cosine_kind", "feature_kind", "warmup_steps", "weight_decay", "device", "opset", "int8",
    "calibration", "per_channel", "neighbours", "logistic_c", "max_windows_per_clip", "arm_cpus", "latency_runs",
    "final_learning_rate_share", "transform", "seeds",
}  # fmt: skip


def test_the_page_of_keys_is_what_the_command_prints() -> None:
    from stages import recipe_reference

    page = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
    printed = page.split("```")[1].strip()
    assert printed == recipe_reference.keys(), "ossicle recipe --keys says more or less than docs/recipe.md"
