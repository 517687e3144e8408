"""The model card: ``README.md`` with the front matter that model hubs read (Mitchell et al., FAccT 2019)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.deploy.package.facts import Facts, Score
from pipeline.deploy.package.licences import OTHER

PROBE_TITLES = {"knn": "k-NN", "linear": "linear probe"}
LICENCE_FILE = "LICENSES.md"
ABSENT = "-"


def model_card(facts: Facts, *, c99: bool) -> str:
    """Return the whole card; every figure in it is one of ``facts``.

    Args:
        facts: see there.
        c99: whether the package holds a C program without any library.
    """
    sections = [
        _front_matter(facts), _head(facts), _use(facts, c99), _files(facts), _results(facts), _costs(facts),
        _data(facts), _teaching(facts), _limits(facts), _missing(facts), _credit(facts),
    ]  # fmt: skip
    return "\n\n".join(section.strip() for section in sections if section.strip()) + "\n"


def _front_matter(facts: Facts) -> str:
    """Return YAML, spelled as JSON where a text could be mistaken for something else."""
    identifier, text = facts.licence
    tags = ["audio", "audio-embedding", "knowledge-distillation", "onnx", "ossicle", facts.saved.student.name]
    if any(model.precision != "fp32" for model in facts.models):
        tags.insert(4, "int8")
    if facts.non_commercial:
        tags.append("non-commercial")
    lines = [f"license: {identifier}"]
    if identifier == OTHER:
        lines += [f"license_name: {json.dumps(text)}", f"license_link: {LICENCE_FILE}"]
    task = "feature-extraction" if facts.labels is None else "audio-classification"
    lines += ["library_name: onnx", f"pipeline_tag: {task}", f"tags: {json.dumps(tags)}"]
    metrics = sorted({score.metric for score in facts.scores})
    if metrics:
        lines += [f"metrics: {json.dumps(metrics)}", f"model-index: {json.dumps([_index(facts)])}"]
    return "\n".join(["---", *lines, "---"])


def _index(facts: Facts) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "audio-classification", "name": score.title},
            "dataset": {"name": score.title, "type": score.task, "args": {"licence": score.task_licence}},
            "metrics": [
                {
                    "type": score.metric, "value": round(100 * score.score, 2),
                    "name": f"{PROBE_TITLES.get(score.probe, score.probe)}, {score.precision}, %",
                }
            ],
        }
        for score in facts.scores
    ]  # fmt: skip
    return {"name": facts.name, "results": results}


def _head(facts: Facts) -> str:
    saved = facts.saved
    taught = "an untrained network or one trained on labels alone: no teacher taught it"
    if saved.teacher is not None:
        taught = f"distilled from the teacher **{saved.teacher.name}**"
    lines = [
        f"# {facts.name}",
        f"Audio embeddings of {saved.embedding_dim} numbers from windows of {facts.window_seconds:.2f} s: the network "
        f"`{saved.student.name}` ({saved.parameters:,} parameters), {taught}.",
    ]
    if facts.non_commercial:
        lines.append(
            "> **NON-COMMERCIAL.** These weights were made from what forbids commercial use: "
            + "; ".join(facts.non_commercial)
            + ". That binds whoever uses or passes on this package."
        )
    return "\n\n".join(lines)


def _use(facts: Facts, c99: bool) -> str:
    c_lines = ["(cd c && make && ./embed_wav ../SOUND.wav)     # C99 and ONNX Runtime's C library"]
    if c99:
        c_lines.insert(0, "(cd c99 && make && ./embed_wav ../SOUND.wav)   # C99, int8, no library")
    programs = "\n".join(c_lines)
    return f"""## Use

```sh
pip install numpy onnxruntime
python embed_wav.py SOUND.wav                  # one line a window
{programs}
```

`SOUND.wav` is PCM at {facts.saved.frontend.sample_rate_hz:,} Hz. `frontend.onnx` turns samples into log-mel levels,
`{facts.shipped.file}` those into embeddings; `frontend.json` holds every constant of both. The mean over a
recording's windows is its embedding. Compare embeddings by cosine."""


def _files(facts: Facts) -> str:
    rows = [["file", "numbers", "KB", "ship"]]
    rows += [
        [f"`{model.file}`", model.precision, f"{model.file_bytes / 1024:,.0f}", "**ship**" * model.ship]
        for model in facts.models
    ]
    return f"## Files\n\n{_table(rows)}\n\nThe file to ship is `{facts.shipped.file}`: {facts.why_shipped}."


def _results(facts: Facts) -> str:
    if not facts.scores:
        return "## Results\n\nNot evaluated."
    rows = [
        ["task", "probe", "numbers", "score, % [95 %]", "teacher, %", "kept, %", "overlap with the teacher"]
    ]
    rows += [
        [
            score.title, PROBE_TITLES.get(score.probe, score.probe), score.precision, _interval(score),
            _percent(score.teacher), _percent(score.retention), _overlap(score),
        ]
        for score in facts.scores
    ]  # fmt: skip
    tasks = {score.task: score for score in facts.scores}
    notes = "\n".join(
        f"- {score.title}: {score.clips} clips of {score.groups} recordings, {score.metric.replace('_', ' ')}; "
        f"licence {score.task_licence}."
        for score in tasks.values()
    )
    return f"""## Results

Probes on frozen embeddings; intervals by resampling recordings (percentile bootstrap). *Overlap* is the share of a
clip's nearest neighbours that the teacher's space agrees on.

{_table(rows)}

{notes}"""


def _costs(facts: Facts) -> str:
    if not facts.costs:
        return "## Cost\n\nNot measured."
    cpus = sorted({cpu for cost in facts.costs for cpu in cost.get("arm") or {}})
    head = ["file", "parameters", "M MACs", "MACs in int8", "peak KB", "x86 p50 ms"]
    rows = [[*head, *(f"{cpu} M instructions" for cpu in cpus)]]
    for cost in facts.costs:
        share = None if cost.get("precision") == "fp32" else cost.get("int8_mac_share")
        counts = [((cost.get("arm") or {}).get(cpu) or {}).get("instructions") for cpu in cpus]
        rows.append([
            f"`{cost['file']}`", _number(cost.get("parameters"), 1, ",.0f"), _number(cost.get("macs"), 1e6, ",.2f"),
            _number(share, 0.01, ".0f") + (" %" if share is not None else ""),
            _number(cost.get("peak_activation_bytes"), 1024, ",.0f"),
            _number((cost.get("x86") or {}).get("p50_ms"), 1, ".2f"),
            *(_number(count, 1e6, ",.2f") for count in counts),
        ])  # fmt: skip
    machine = next((cost["machine"] for cost in facts.costs if cost.get("machine")), "this machine")
    return f"""## Cost

One window of {facts.window_seconds:.2f} s, one thread. x86 is {machine}. Instructions are executed aarch64
instructions under emulation, not a time. `frontend.onnx` comes on top of the student.

{_table(rows)}"""


def _data(facts: Facts) -> str:
    rows = [["dataset", "licence", "training windows", "validation", "unusable"]]
    rows += [
        [d.name, ", ".join(d.licences), f"{d.train:,}", f"{d.validation:,}", f"{d.rejected:,}"]
        for d in facts.datasets
    ]
    total = sum(dataset.train for dataset in facts.datasets)
    return f"""## Data

{total:,} training windows. The student learnt from the teacher's embeddings and log-mels of this sound; no audio is
in this package.

{_table(rows)}"""


def _teaching(facts: Facts) -> str:
    saved, run = facts.saved, facts.run
    lines = ["## Training"]
    if saved.teacher is not None:
        lines.append(
            f"Teacher: **{saved.teacher.name}**, licence {saved.teacher.licence}. {saved.teacher.citation}"
        )
    if saved.started_from is not None:
        start = saved.started_from
        lines.append(f"Started from {start.file}, licence {start.licence}. {start.citation}")
    exported = facts.export.provenance.get("git_revision") or "unknown"
    digest = facts.export.inputs.get("run", "unknown")
    if run is None:
        lines.append(
            f"Run `{digest}`; its folder was not at hand when this package was made, so its recipe is not here."
        )
        lines.append(f"Exported at git revision `{exported}`.")
        return "\n\n".join(lines)
    trained = run.provenance.get("git_revision") or "unknown"
    lines.append(f"Run `{digest}`, trained at git revision `{trained}`, exported at `{exported}`.")
    recipe = json.dumps(run.config, indent=2, sort_keys=True)
    lines.append(f"<details><summary>The training recipe</summary>\n\n```json\n{recipe}\n```\n\n</details>")
    return "\n\n".join(lines)


def _limits(facts: Facts) -> str:
    frontend = facts.saved.frontend
    return f"""## Intended use and limits

For similarity search, classification by a small probe or by prototypes, and clustering of sound, on devices.

- It hears mono sound at {frontend.sample_rate_hz:,} Hz; what lies above {frontend.max_hz:,.0f} Hz is lost to it.
- It was trained on windows of {facts.window_seconds:.2f} s. Other lengths run, and were not evaluated.
- It inherits its teacher's biases, and those of the data above. Sound unlike that data may be placed anywhere.
- It is no medical device, and nothing here says that it recognises speakers, words or alarms reliably.
- int8 embeddings differ slightly between processors; do not mix them with float32 ones in one index."""


def _missing(facts: Facts) -> str:
    return "## What was not measured\n\n" + "\n".join(f"- {sentence}" for sentence in facts.missing)


def _credit(facts: Facts) -> str:
    identifier, text = facts.licence
    teacher = facts.saved.teacher
    credit = f" Credit the teacher: {teacher.citation}." if teacher and teacher.citation else ""
    named = text if identifier == OTHER else f"{identifier} ({text})"
    return f"## Licence\n\nWeights: {named}.{credit} Licences of teacher and data: `{LICENCE_FILE}`."


def _interval(score: Score) -> str:
    shown = _percent(score.score)
    if score.low is None or score.high is None:
        return shown
    return f"{shown} [{_percent(score.low)}, {_percent(score.high)}]"


def _overlap(score: Score) -> str:
    return ABSENT if score.neighbour_overlap is None else f"{score.neighbour_overlap:.3f}"


def _percent(value: float | None) -> str:
    return _number(value, 0.01, ".1f")


def _number(value: float | None, unit: float, form: str) -> str:
    return ABSENT if value is None else f"{value / unit:{form}}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
