"""The answers as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from question import Answer, Target
from timing import CONFIDENCE, Estimate, Samples, Unavailable

MISSING = "-"


def as_text(facts: Mapping[str, str], answers: Sequence[Answer]) -> str:
    blocks = ["\n".join(f"{name + ':':<12} {value}" for name, value in facts.items())]
    blocks += [_answer(answer) for answer in answers]
    targets = [target for answer in answers for target in answer.targets]
    if targets:
        blocks.append("Targets\n" + _table([["", "asked", "measured", ""], *map(_target, targets)]))
    blocks.append(f"Medians [{CONFIDENCE:.0%} interval from resampled rounds]; every round in a new random order.")
    return "\n\n".join(blocks)


def _target(target: Target) -> list[str]:
    return [target.text, target.asked, f"{target.measured:.2f}" if target.measured else MISSING, target.verdict]


def _answer(answer: Answer) -> str:
    columns = list(next(iter(answer.results.values())))
    ratios = list(next(iter(answer.ratios.values()), {}))
    rows = [["", *(f"{column}, {answer.unit}" for column in columns), *ratios]]
    reasons: dict[str, list[str]] = {}
    for name, row in answer.results.items():
        cells = [f"{result.estimate():.0f}" if isinstance(result, Samples) else MISSING for result in row.values()]
        rows.append([name, *cells, *(f"{value:.2f}" if value else MISSING for value in answer.ratios.get(name, {}).values())])
        for result in row.values():
            if isinstance(result, Unavailable) and name not in reasons.get(result.reason, []):
                reasons.setdefault(result.reason, []).append(name)
    lines = [answer.title, _table(rows), *answer.notes]
    lines += [f"{', '.join(names)} not measured: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines)


def _table(rows: Iterable[Sequence[str]]) -> str:
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def as_json(facts: Mapping[str, str], run: Mapping[str, Any], answers: Sequence[Answer]) -> str:
    document = {
        "format": 1,
        "machine": dict(facts),
        "run": dict(run),
        "answers": [
            {
                "key": answer.key,
                "title": answer.title,
                "unit": answer.unit,
                "notes": list(answer.notes),
                "rows": {name: {column: _result(result) for column, result in row.items()} for name, row in answer.results.items()},
                "ratios": {name: {column: _estimate(value) for column, value in row.items()} for name, row in answer.ratios.items()},
                "targets": [
                    {"text": t.text, "asked": t.asked, "measured": _estimate(t.measured), "verdict": t.verdict} for t in answer.targets
                ],
            }
            for answer in answers
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def _estimate(value: Estimate | None) -> dict[str, float] | None:
    return {"value": round(value.value, 4), "low": round(value.low, 4), "high": round(value.high, 4)} if value else None


def _result(result: Samples | Unavailable) -> dict[str, Any]:
    if isinstance(result, Unavailable):
        return {"unavailable": result.reason}
    # One string a round keeps a file of thousands of samples readable and small.
    rounds = [" ".join(f"{value:.1f}" for value in taken) for taken in result.rounds]
    return {"median": _estimate(result.estimate()), "p90": round(result.percentile(90), 1), "rounds": rounds}
