"""`seeker report RESULTS…`: what a test measured as one HTML page that needs nothing else, as Markdown, and in the terminal.

The figures are in `report_tables.py`, the plots in `report_plots.py`, the questions that are shown in `report_cards.py`. The
same results give the same bytes.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.apps.printout import make_console, print_table, print_text, visible
from project.errors import InputError
from project.evaluation.metrics import Estimate
from project.evaluation.report_cards import shown_questions
from project.evaluation.report_data import Results, Shared, find_results, shared_questions, told_apart
from project.evaluation.report_plots import by_category, histogram, reliability
from project.evaluation.report_tables import (
    LENGTHS,
    Breakdown,
    Line,
    applies,
    breakdowns,
    calibration,
    changed,
    finishes,
    is_significant,
    lines,
    main_metrics,
    meaning,
    worst,
)
from project.records import Row
from project.tracking.paired import PairedResult
from project.writing import write_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

LABELS = {"model_path": "model", "test_digest": "digest of the test file", "n": "episodes that count"}
"""What an entry of `summary.json` is called where its name does not say it."""
PLOTTED = ("searches", "generated_tokens", "peak_context", "own_tokens")
"""Breakdowns that are drawn, by the first main metric."""
MIN_MARKED = 3
"""Characters of a gold answer from which on it is marked in what was read."""


@dataclass(frozen=True)
class Change:
    """The questions that changed most from the first results to others."""

    name: str
    better: list[str]
    worse: list[str]


def report(
    results: list[str] | None = None,
    results_file: Path | None = None,
    output: Path | None = None,
    markdown: Path | None = None,
    worst: int = 10,
) -> None:
    """Report what tests measured, as an HTML page; several side by side, paired by question: `report RESULTS…`.

    Args:
        results: folders that `seeker test` wrote, their results.parquet files, or names or ids of tracked runs.
        results_file: one more results file.
        output: the page (.html); report.html in the first results' folder by default, for a tracked run in the current one.
        markdown: write the report as Markdown (.md), too.
        worst: how many of the worst, and of the most changed, questions to show.
    """
    given = [*(results or ()), *([str(results_file)] if results_file else ())]
    if not given:
        raise InputError("report takes one results folder, file or run at least; `seeker runs` lists the runs")
    if worst < 0:
        raise InputError(f"--worst is {worst}; give how many questions to show, from 0")
    _check_suffix("output", output, ".html")
    _check_suffix("markdown", markdown, ".md")
    from threadpoolctl import threadpool_limits

    # Resampling multiplies matrices by vectors, where threads only wait for each other: 127 s became 25 s on 2 busy cores.
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1):
        found = [find_results(where, _made(Path(folder) / str(number))) for number, where in enumerate(given)]
        here = found[0].path.parent if not found[0].path.is_relative_to(folder) else Path()
        contents = report_contents(told_apart(found), worst)
    page = output or here / "report.html"
    _write(page, "report.html.jinja", contents)
    if markdown is not None:
        _write(markdown, "report.md.jinja", contents)
    _print(contents, [page, *([markdown] if markdown else [])])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _check_suffix(option: str, path: Path | None, suffix: str) -> None:
    if path is not None and path.suffix != suffix:
        raise InputError(f"--{option} is {path}; its suffix must be {suffix}")


def report_contents(results: Sequence[Results], shown: int) -> dict[str, Any]:
    """Return what the templates write.

    Args:
        results: of one kind of test, told apart by their names.
        shown: how many of the worst, and of the most changed, questions to show.

    Raises:
        InputError: the results are of different kinds, or share no question.
    """
    if len({one.is_summary for one in results}) > 1:
        kinds = ", ".join(f"'{one.name}' of {'summaries' if one.is_summary else 'an agent'}" for one in results)
        raise InputError(f"the results are of different tests ({kinds}); report each kind by itself")
    shared = shared_questions(results)
    metrics = main_metrics(results)
    lowest = worst(shared, metrics, shown) if metrics else []
    changes = [
        Change(one.name, *changed(shared, metrics, number, shown)) for number, one in enumerate(results) if number and metrics
    ]
    wanted = chain(lowest, *(chain(one.better, one.worse) for one in changes))
    broken_down = breakdowns(results)
    calibrations = [calibration(one) for one in results]
    return {
        "results": results,
        "shared": shared,
        "about": _about(results),
        "settings": _settings(results),
        "digests": {str(one.about.get("test_digest")) for one in results if one.about.get("test_digest")},
        "lines": lines(results, shared),
        "breakdowns": broken_down,
        "calibrations": calibrations,
        "finishes": finishes(results),
        "plots": _plots(results, broken_down, metrics),
        "reliability": reliability(calibrations) if any(calibrations) else "",
        "metrics": metrics,
        "worst": lowest,
        "changes": changes,
        "shown": shown_questions(results, wanted, metrics),
    }


def _about(results: Sequence[Results]) -> dict[str, list[str]]:
    rows = {"questions": [f"{one.questions:,}" for one in results], "episodes": [f"{one.n:,}" for one in results]}
    told = [
        {key: value for key, value in one.about.items() if key not in ("task", "run", "metrics", "settings")} for one in results
    ]
    rows |= {LABELS.get(name, name.replace("_", " ")): values for name, values in _side_by_side(told).items()}
    return {label: values for label, values in rows.items() if any(values)}


def _settings(results: Sequence[Results]) -> dict[str, list[str]]:
    return _side_by_side([_flat(one.about.get("settings") or {}) for one in results])


def _flat(of: Row, start: str = "") -> Row:
    """Return an object without objects in it: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    pairs = ((f"{start}{key}", value) for key, value in of.items())
    parts = (_flat(value, f"{key}.") if isinstance(value, dict) else {key: value} for key, value in pairs)
    return {key: value for part in parts for key, value in part.items()}


def _side_by_side(of: Sequence[Row]) -> dict[str, list[str]]:
    return {name: [_said(one.get(name)) for one in of] for name in dict.fromkeys(name for one in of for name in one)}


def _said(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Return a value as people read it, nothing for null."""
    if isinstance(value, float) and math.isfinite(value):
        return short(value)
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plots(results: Sequence[Results], broken_down: Sequence[Breakdown], metrics: Sequence[str]) -> dict[str, str]:
    plots = {
        f"distribution of {metric.replace('_', ' ')}": histogram(metric, [one.scores[metric] for one in results])
        for metric in LENGTHS
        if all(applies(one, metric) for one in results)
    }
    of = [one for one in broken_down if one.name in PLOTTED and metrics and metrics[0] in one.metrics]
    return plots | {f"{metrics[0]} by {one.title}": by_category(one, metrics[0]) for one in of}


def _write(path: Path, template: str, contents: dict[str, Any]) -> None:
    text = _environment().get_template(template).render(contents)
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another with --output or --markdown") from error


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def is_html(name: str | None) -> bool:
        return name is None or ".md." not in name

    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(autoescape=is_html, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters = (
        number,
        short,
        centre,
        interval,
        in_groups,
        p_value,
        visible,
        cell,
        fenced,
        marked,
        estimate_text,
        change_text,
        meaning,
    )
    made.filters |= {one.__name__: one for one in filters}
    made.tests["significant"] = is_significant
    return made


def number(value: float, sign: str = "", beside: Sequence[float] = ()) -> str:
    """Return a value as people read it, of three decimals for a share and none for a long length.

    Args:
        value: `-` stands for NaN.
        sign: `+` for a difference.
        beside: values that are written with the same decimals.

    >>> number(0.25), number(12.3456), number(1234.5), number(0.5, "+"), number(9.5, beside=[100.0])
    ('0.250', '12.35', '1,234', '+0.500', '10')
    """
    if math.isnan(value):
        return "-"
    largest = max(map(abs, (value, *beside)))
    digits = 3 if largest < 10 else 2 if largest < 100 else 0
    return f"{value:{sign},.{digits}f}"


def short(value: float) -> str:
    """Return a value with three decimals at most.

    >>> short(1.0), short(0.3333), short(1234567.0)
    ('1', '0.333', '1,234,567')
    """
    return f"{round(value, 3):,.12g}"


def centre(found: Estimate | PairedResult, sign: str = "") -> str:
    """Return the mean or difference, with the decimals of its interval."""
    return number(found.mean if isinstance(found, Estimate) else found.difference, sign, [found.low, found.high])


def interval(found: Estimate | PairedResult, sign: str = "") -> str:
    """Return the 95 % interval."""
    return f"[{number(found.low, sign, [found.high])}, {number(found.high, sign, [found.low])}]"


def p_value(change: PairedResult) -> str:
    """Return p, which resampling bounds from below."""
    return "p<0.001" if change.p < 0.001 else f"p={change.p:.3f}"


def in_groups(found: Estimate | PairedResult) -> str:
    """Return how many groups the n hang together in, where they are fewer."""
    return f" in {found.groups} groups" if 0 < found.groups < found.n else ""


def estimate_text(found: Estimate | None) -> str:
    """Return a mean with interval and n, `-` where there is none."""
    return "-" if found is None or not found.n else f"{centre(found)} {interval(found)} n={found.n}{in_groups(found)}"


def change_text(change: PairedResult | None, bold: str = "") -> str:
    """Return a difference with interval, n and p; between `bold` where p is below 0.05."""
    if change is None:
        return ""
    mark = bold if is_significant(change) else ""
    return f"{mark}{centre(change, '+')} {interval(change, '+')}{mark} n={change.n}{in_groups(change)} {p_value(change)}"


def cell(text: str) -> str:
    r"""Return text for a cell of a Markdown table, or a line, without the characters that Markdown or HTML would read.

    >>> cell("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return re.sub(r"([\\`*\[\]<>|&~])", r"\\\1", " ".join(visible(text).split()))


def fenced(text: str) -> str:
    """Return text as a Markdown block whose fence is longer than any run of backticks in it."""
    shown = visible(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def marked(text: str, answers: Sequence[str]) -> Markup:
    """Return text for HTML with the gold answers marked in it."""
    from markupsafe import Markup, escape

    long = sorted({answer.strip() for answer in answers if len(answer.strip()) >= MIN_MARKED}, key=lambda a: (-len(a), a))
    if not long:
        return escape(visible(text))
    pieces = re.split(rf"(?<!\w)({'|'.join(map(re.escape, long))})(?!\w)", text, flags=re.IGNORECASE)
    marks = (Markup("<mark>{}</mark>") if place % 2 else Markup("{}") for place in range(len(pieces)))
    return Markup("").join(mark.format(visible(piece)) for mark, piece in zip(marks, pieces, strict=True))


def _print(contents: dict[str, Any], paths: Sequence[Path]) -> None:
    results: Sequence[Results] = contents["results"]
    found: list[Line] = contents["lines"]
    shared: Shared = contents["shared"]
    names = [visible(one.name) for one in results]
    columns = ["metric", *names, *(f"{name} - {names[0]}, paired" for name in names[1:])]
    rows = [(line.metric, *map(estimate_text, line.estimates), *map(change_text, line.changes)) for line in found]
    title = "mean [95 % interval]" + (f"; {len(shared.ids):,} questions in pairs" if len(names) > 1 else "")
    console = make_console()
    print_table(console, title, columns, rows)
    for path in paths:
        print_text(console, str(path))
