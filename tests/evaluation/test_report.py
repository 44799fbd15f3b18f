"""`seeker report`: figures worked by hand, which questions it shows, and a page that holds what was said and runs nothing."""

import doctest
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pytest import CaptureFixture, approx

from project.cli import main
from project.dialects import Action, get_dialect
from project.errors import InputError, TrackingError
from project.evaluation import report, report_cards, report_tables
from project.evaluation.metrics import Estimate
from project.evaluation.report_cards import message_card, result_parts, shown_questions, written_parts
from project.evaluation.report_data import find_results, read_results, shared_questions, told_apart
from project.evaluation.report_tables import breakdowns, calibration, changed, finishes, lines, main_metrics, worst
from project.records import Document, Message, Row
from project.tracking.store import client, experiment_id
from project.writing import write_rows

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> ``` |\ud800\x1b[31m"
TAGS, TOOLS = get_dialect("tags"), get_dialect("tools")


def conversation(question: str, answer: str, dialect: Any = TAGS) -> list[Row]:
    searched = Action("I need the capital.", ("capital of Norway",))
    found = [Document("Oslo is the capital of Norway.", "Norway", "n1"), Document("Bergen rains.", "Bergen", "b1")]
    said = [*dialect.opening(question), dialect.write(searched), *dialect.results([found], searched)]
    return [message.to_row() for message in [*said, dialect.write(Action("It says so.", answer=answer))]]


def row(ident: str, em: float, f1: float = 0.0, **changes: Any) -> Row:
    given: Row = {
        "question_id": ident,
        "group": ident,
        "kind": "",
        "sample": 0,
        "question": f"Question {ident}?",
        "answers": ["Oslo"],
        "needs_search": None,
        "prediction": "Oslo",
        "finish": "answer",
        "error": "",
        "evidence": [],
        "retrieved": [],
        "messages": conversation(f"Question {ident}?", "Oslo", changes.pop("dialect", TAGS)),
        "em": float(em),
        "f1": f1,
        "searches": 1.0,
        "generated_tokens": 10.0,
        "search_probability": math.nan,
        "finish_answer": 1.0,
    }
    assert set(changes) <= {*given, "avg_at_2", "pass_at_2"}
    return given | changes


FIRST = [
    row("q1", 1, 1.0, kind="one_hop", searches=0.0, generated_tokens=10.0),
    row("q2", 0, 0.5, kind="one_hop", generated_tokens=20.0, finish="max_turns", evidence=["n1", "z9"], retrieved=["n1"]),
    row("q3", 1, 1.0, kind="two_hop", generated_tokens=30.0),
    row("q4", 0, 0.0, kind="two_hop", searches=7.0, generated_tokens=40.0),
]
OTHER = [
    row("q4", 0, 0.4, kind="two_hop", generated_tokens=40.0, dialect=TOOLS),
    row("q3", 1, 1.0, kind="two_hop", generated_tokens=30.0, dialect=TOOLS),
    row("q2", 1, 1.0, kind="one_hop", generated_tokens=20.0, dialect=TOOLS),
    row("q1", 0, 0.2, kind="one_hop", generated_tokens=10.0, dialect=TOOLS),
]


def results(folder: Path, rows: list[Row], **about: Any) -> Path:
    write_rows(folder / "results.parquet", rows)
    given = {"task": "agent", "run": folder.name, "model_path": "some/model", "settings": {"limits": {"max_turns": 4}}}
    (folder / "summary.json").write_text(json.dumps(given | about))
    return folder


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return results(tmp_path / "sft", FIRST)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return results(tmp_path / "ppo", OTHER)


def read(*folders: Path) -> list[Any]:
    return told_apart([read_results(folder / "results.parquet") for folder in folders])


class Page(HTMLParser):
    """Checks that elements are closed in order; keeps what a browser would load or run, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_means_with_intervals_and_paired_differences_by_hand(first: Path, other: Path) -> None:
    of = read(first, other)
    found = {line.metric: line for line in lines(of, shared_questions(of))}
    # Wilson of 2 of 4: centre 1/2, half width 1.96 * sqrt(1/4/4 + 1.96^2/64) / (1 + 1.96^2/4) = 0.686 / 1.960 = 0.350.
    assert found["em"].estimates[0] == Estimate(0.5, approx(0.150, abs=1e-3), approx(0.850, abs=1e-3), 4, 4)
    # f1: (1 + 0.5 + 1 + 0) / 4 and (0.2 + 1 + 1 + 0.4) / 4
    assert [one and one.mean for one in found["f1"].estimates] == [approx(0.625), approx(0.65)]
    # the rows of the other file are in another order: -1 + 1 + 0 + 0 for em, -0.8 + 0.5 + 0 + 0.4 for f1
    assert [found[metric].changes[0].difference for metric in ("em", "f1")] == [0, approx(0.1 / 4)]
    assert found["em"].changes[0].n == 4
    assert "finish_answer" not in found and "search_probability" not in found


def test_figures_that_only_the_summary_has_are_listed_but_not_those_of_kinds(tmp_path: Path) -> None:
    figure = {"mean": 0.75, "low": 0.5, "high": 1.0, "n": 4}
    metrics = {name: figure for name in ("em", "em_one_hop", "pass_at_4", "decision_ece")}
    [one] = read(results(tmp_path / "a", FIRST, metrics=metrics))
    found = {line.metric: line.estimates for line in lines([one], shared_questions([one]))}
    assert found["pass_at_4"] == found["decision_ece"] == (Estimate(0.75, 0.5, 1.0, 4),)
    assert "em_one_hop" not in found
    [broken] = read(results(tmp_path / "b", FIRST, metrics={"auroc": 0.5}))
    with pytest.raises(InputError, match=r"summary\.json are no"):
        lines([broken], shared_questions([broken]))


def test_breakdowns_by_hand(first: Path, other: Path) -> None:
    found = {one.name: one for one in breakdowns(read(first, other))}
    assert [*found] == ["kind", "passages", "searches", "generated_tokens"]  # all answers have one word: left out

    def cells(name: str, metric: str) -> dict[str, list[tuple[int, float]]]:
        at = found[name].metrics.index(metric)
        return {label: [(part.n, part.estimates[at].mean) for part in parts] for label, parts in found[name].rows}

    assert cells("kind", "em") == {"one_hop": [(2, 0.5), (2, 0.5)], "two_hop": [(2, 0.5), (2, 0.5)]}
    assert cells("kind", "searches") == {"one_hop": [(2, 0.5), (2, 1.0)], "two_hop": [(2, 4.0), (2, 1.0)]}
    searched = cells("searches", "em")
    assert searched["0"] == [(1, 1.0), (0, approx(math.nan, nan_ok=True))]
    assert searched["1"] == [(2, 0.5), (4, 0.5)]
    assert searched["5 and more"] == [(1, 0.0), (0, approx(math.nan, nan_ok=True))]
    assert [*searched] == ["0", "1", "5 and more"]
    assert cells("passages", "em")["2"] == [(1, 0.0), (0, approx(math.nan, nan_ok=True))]
    # eight episodes of 10, 10, 20, 20, 30, 30, 40, 40 tokens: the quarters end at 10, 20, 30
    assert cells("generated_tokens", "f1") == {
        "up to 10": [(1, 1.0), (1, 0.2)],
        "over 10 to 20": [(1, 0.5), (1, 1.0)],
        "over 20 to 30": [(1, 1.0), (1, 1.0)],
        "over 30": [(1, 0.0), (1, 0.4)],
    }
    assert [(end, [one.mean for one in of]) for end, of in finishes(read(first, other))] == [
        ("answer", [0.75, 1.0]),
        ("max_turns", [0.25, 0.0]),
    ]


def test_answers_are_broken_down_by_words(tmp_path: Path) -> None:
    answers = [["Oslo"], ["New York"], ["a b c d e f"], []]
    [one] = read(results(tmp_path / "a", [row(f"q{n}", 1, answers=of) for n, of in enumerate(answers)]))
    by_words = breakdowns([one])[-1]
    assert [label for label, _ in by_words.rows] == ["no answer", "1", "2", "4 and more"]


def test_calibration_by_hand(tmp_path: Path) -> None:
    forecasts = [(0.05, False), (0.15, True), (0.95, True), (1.0, True)]
    rows = [row(f"q{n}", 1, search_probability=p, needs_search=need) for n, (p, need) in enumerate(forecasts)]
    [one] = read(results(tmp_path / "a", [*rows, row("q9", 1, search_probability=0.5)]))
    found = calibration(one)
    assert found is not None and found.n == 4  # whether q9 needs a search is not known
    # |0 - 0.05| / 4 + |1 - 0.15| / 4 + |1 - 0.975| * 2 / 4
    assert found.error == approx(0.0125 + 0.2125 + 0.0125)
    assert [(bin.observed.n, bin.observed.mean) for bin in found.bins if bin.observed.n] == [(1, 0), (1, 1), (2, 1)]
    assert found.bins[9].forecast == approx(0.975)
    [without] = read(results(tmp_path / "b", FIRST))
    assert calibration(without) is None


def test_the_worst_and_the_most_changed_by_hand(first: Path, other: Path) -> None:
    shared = shared_questions(of := read(first, other))
    assert main_metrics(of) == ["em", "f1"]
    # em over both: q1 1/2, q2 1/2, q3 1, q4 0; f1 decides: q1 (1 + 0.2) / 2, q2 (0.5 + 1) / 2
    assert worst(shared, ["em", "f1"], 10) == ["q4", "q1", "q2", "q3"]
    assert worst(shared, ["em", "f1"], 1) == ["q4"]
    # q2 gains 1 of em; q4 none of em but 0.4 of f1; q1 loses 1; q3 stays
    assert changed(shared, ["em", "f1"], 1, 10) == (["q2", "q4"], ["q1"])
    assert changed(shared, ["em", "f1"], 1, 2) == (["q2"], ["q1"])


def test_half_of_the_changed_are_for_each_side_and_ties_go_by_id(tmp_path: Path) -> None:
    before = results(tmp_path / "a", [row(f"q{n}", float(n == 5)) for n in range(6)])
    after = results(tmp_path / "b", [row(f"q{n}", float(n != 5)) for n in (5, 4, 3, 2, 1, 0)])
    shared = shared_questions(read(before, after))
    assert changed(shared, ["em"], 1, 4) == (["q0", "q1", "q2"], ["q5"])  # two of a side that has one only


def test_what_was_not_measured_is_neither_worst_nor_changed(tmp_path: Path) -> None:
    before = results(tmp_path / "a", [row("q1", 1), row("q2", 0), row("q3", 0)])
    after = results(tmp_path / "b", [row("q1", math.nan), row("q2", 0), row("q3", 1)])
    shared = shared_questions(read(before, after))
    assert worst(shared, ["em"], 3) == ["q2", "q3", "q1"]
    assert changed(shared, ["em"], 1, 3) == (["q3"], [])


def test_differences_are_bold_where_the_interval_leaves_out_0(tmp_path: Path) -> None:
    before = results(tmp_path / "a", [row(f"q{n}", 0, 0.5, searches=float(n)) for n in range(8)])
    after = results(tmp_path / "b", [row(f"q{n}", 1, 0.5, searches=float(n + (-1) ** n)) for n in range(8)])
    assert main(["report", str(before), str(after), "--markdown", str(tmp_path / "r.md")]) == 0
    markdown, page = (tmp_path / "r.md").read_text(), (before / "report.html").read_text()
    assert "| **+1.000 [+1.000, +1.000]** n=8 p=0.008 |" in markdown
    assert "| +0.000 [+0.000, +0.000] n=8 p=1.000 |" in markdown
    assert page.count('<span class="significant">') == markdown.count(" **+") == 1


def test_the_figures_of_decisions_are_tested_in_pairs(tmp_path: Path) -> None:
    """As in `test_paired_decisions.py`: searching always, macro-F1 1/3, against searching where it is needed, 1."""
    found = []
    for name, searched, macro_f1 in (("always", (1, 1, 1, 1), 1 / 3), ("right", (1, 1, 0, 0), 1.0)):
        rows = [
            row(f"q{number}", 0, needs_search=number < 2) | {"decision_accuracy": float(bool(did) == (number < 2))}
            for number, did in enumerate(searched)
        ]
        figure = {"mean": macro_f1, "low": 0.0, "high": 1.0, "n": 4, "groups": 4}
        found.append(read_results(results(tmp_path / name, rows, metrics={"decision_macro_f1": figure}) / "results.parquet"))
    (line,) = [line for line in lines(found, shared_questions(found)) if line.metric == "decision_macro_f1"]
    (change,) = line.changes
    assert change is not None
    assert (change.difference, change.p, change.n) == (approx(2 / 3), 0.5, 4)


def test_samples_count_once_in_pairs_and_the_typical_one_is_shown(tmp_path: Path) -> None:
    samples = [row("q1", em, sample=n, prediction=f"sample {n}") for n, em in enumerate([1.0, 0.0, 0.0])]
    [one, two] = read(results(tmp_path / "a", [*samples, row("q2", 1)]), results(tmp_path / "b", [row("q1", 1), row("q2", 1)]))
    shared = shared_questions([one, two])
    assert (one.n, one.questions) == (4, 2)
    assert list(shared.means[0]["em"]) == [approx(1 / 3), 1.0]
    [line] = [line for line in lines([one, two], shared) if line.metric == "em"]
    assert line.estimates[0].mean == 0.5  # over rows
    assert (line.changes[0].n, line.changes[0].difference) == (2, approx(1 / 3))  # over questions: (2/3 + 0) / 2
    side = shown_questions([one, two], ["q1"], ["em"])["q1"].sides[0]
    assert (side.prediction, side.sample) == ("sample 1", "sample 2 of 3")  # 0 is nearer to 1/3 than 1 is


def test_rows_are_found_in_any_row_group(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = [row(f"q{n}", 0, prediction=f"p{n}", messages=conversation("?", f"answer {n}") * 40) for n in range(400)]
    [one] = read(results(tmp_path / "a", rows))
    assert pq.ParquetFile(one.path).num_row_groups > 1
    shown = shown_questions([one], ["q0", "q250", "q399"], ["em"])
    assert {ident: of.sides[0].prediction for ident, of in shown.items()} == {"q0": "p0", "q250": "p250", "q399": "p399"}
    assert shown["q399"].sides[0].cards[-1].parts[-1].text == "answer 399"


@pytest.mark.parametrize("dialect", [TAGS, TOOLS])
def test_both_dialects_become_cards_without_tags(dialect: Any) -> None:
    cards = [message_card(Message.from_row(one)) for one in conversation("Where?", "Oslo", dialect)]
    assert [card.role for card in cards] == ["system", "user", "assistant", "results", "assistant"]
    parts = [(part.kind, part.text) for part in cards[2].parts if part.kind != "decision"]
    assert parts == [("think", "I need the capital."), ("search", "capital of Norway")]
    assert [(part.label, part.text) for part in cards[3].parts] == [
        ("Doc 1: Norway", "Oslo is the capital of Norway."),
        ("Doc 2: Bergen", "Bergen rains."),
    ]
    assert cards[4].parts[-1] == report_cards.Part("answer", "answer", "Oslo")


def test_what_agents_write_otherwise_becomes_parts() -> None:
    hermes = '<think>Hm.</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "Oslo"}}\n</tool_call>'
    assert [(part.label, part.text) for part in written_parts(hermes, "text")] == [("think", "Hm."), ("search", "Oslo")]
    [broken] = written_parts("<tool_call>{no JSON</tool_call>", "text")
    assert (broken.label, broken.text) == ("call that is no JSON", "{no JSON")
    [unclosed] = written_parts("<think>I never st", "text")
    assert (unclosed.label, unclosed.text) == ("think (never closed)", "I never st")
    plain, answer = written_parts("Well: <answer>Oslo</answer>", "text")
    assert (plain.kind, plain.text, answer.text) == ("text", "Well:", "Oslo")
    folded = message_card(Message("user", "Question: Where?\n<summary>\nOslo is cold.\n</summary>"))
    assert [(part.kind, part.text) for part in folded.parts] == [("user", "Question: Where?"), ("summary", "Oslo is cold.")]
    assert "fold" in message_card(Message("user", "<fold/>")).parts[0].text
    assert [part.text for part in result_parts("No results.")] == ["No results."]
    assert [part.text for part in result_parts('{"error": "timeout"}')] == ['{"error": "timeout"}']


def test_doctests() -> None:
    for module in (report, report_cards, report_tables):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_the_page_and_the_markdown_of_two_results(
    first: Path, other: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    assert main(["report", str(first), str(other), "--markdown", str(tmp_path / "r.md"), "--worst", "2"]) == 0
    shown = capsys.readouterr().out
    page = (first / "report.html").read_text()
    assert str(first / "report.html") in shown and "0.500 [0.150, 0.850] n=4" in shown
    parsed = Page(page)
    assert "script" not in parsed.tags and {"svg", "details", "mark"} <= parsed.tags
    assert all(link.startswith("#") for link in parsed.links) and not parsed.handlers
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert parsed.text.count("Question q4?") > parsed.text.count("Question q3?") == 0  # q3 is neither bad nor changed
    assert "z9 not found" in parsed.text and "n1 found" in parsed.text and "limits.max_turns" in parsed.text
    assert page.count('<section class="side">') == 2 * 4  # q4, q1; q2 better, q1 worse
    markdown = (tmp_path / "r.md").read_text()
    assert "| metric | sft | ppo | ppo − sft, paired |\n|---|---|---|---|\n| em | 0.500 [0.150, 0.850] n=4 | " in markdown
    assert "| two_hop | sft | 2 | 0.500 [" in markdown
    assert "assistant, search:\n\n```text\ncapital of Norway\n```" in markdown
    assert "## The 2 worst questions" in markdown and "### Better" in markdown


def test_the_same_results_give_the_same_bytes(first: Path, other: Path, tmp_path: Path) -> None:
    pages = [tmp_path / f"{n}.html" for n in range(2)]
    for page in pages:
        assert main(["report", str(first), f"--results_file={other}/results.parquet", "--output", str(page)]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    ids = re.findall(r' id="([^"]+)"', pages[0].read_text())
    assert len(ids) == len(set(ids))


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    said = conversation(HOSTILE, HOSTILE)
    said[2]["content"] += f"</div></details>{HOSTILE}"
    said[3]["content"] += f"\n\nDoc 3 (Title: {HOSTILE})\n{HOSTILE}"
    evil = row(
        "q1", 0, question=HOSTILE[:-6], answers=["<b>alert(1)</b>"], kind="<i>k", prediction="</td><script>", messages=said
    )
    folder = results(tmp_path / "a", [evil, row("<script>", 1)], run="<script>x</script>", settings={"<script>": "<script>"})
    assert main(["report", str(folder), str(folder), "--markdown", str(tmp_path / "r.md")]) == 0
    parsed = Page((folder / "report.html").read_text())
    assert not {"script", "img"} & parsed.tags and not parsed.handlers
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in parsed.text
    assert r"\ud800\x1b[31m" in parsed.text and "\x1b" not in parsed.text
    assert "<script>x</script> (2)" in parsed.text  # two results of one name
    markdown = (tmp_path / "r.md").read_text()
    outside = re.sub(r"^(````+|```)text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "onerror" in outside and not re.search(r"(?<!\\)<(script|img)", outside)


def test_gold_answers_are_marked_where_they_stand_as_words() -> None:
    assert report.marked("Oslo <b>, not Oslofjord", ["oslo", "a"]) == "<mark>Oslo</mark> &lt;b&gt;, not Oslofjord"
    assert report.marked("<a>", []) == "&lt;a&gt;"


def test_summaries_are_reported(tmp_path: Path) -> None:
    turn = TAGS.write(Action("Known.", answer="Oslo")).content
    texts = {
        "summary": "<summary>Cold.</summary>",
        "reference": "It is cold.",
        "own_turn": turn,
        "given_turn": "",
        "full_turn": turn,
    }
    scores = {"summarised": 1.0, "compression": 0.25, "own_em": 1.0, "own_f1": 1.0, "own_tokens": 30.0}
    rows = [
        {k: v for k, v in row(f"q{n}", 0).items() if not isinstance(v, float) and k != "finish"} | texts | scores
        for n in range(3)
    ]
    rows[1] |= {"own_em": 0.0, "own_f1": 0.5}
    folder = results(tmp_path / "summaries", rows, task="summary")
    [one] = read(folder)
    assert worst(shared_questions([one]), main_metrics([one]), 1) == ["q1"]
    assert main(["report", str(folder)]) == 0
    text = Page((folder / "report.html").read_text()).text
    assert "reference summary" in text and "It is cold." in text and "turn after its own summary" in text
    assert "turn after the reference summary" not in text  # it wrote none
    with pytest.raises(InputError, match=r"different tests .*'summaries' of summaries.*'agent' of an agent"):
        report.report([str(folder), str(results(tmp_path / "agent", FIRST))])


def test_a_tracked_run_by_its_name(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of, experiment = client(), experiment_id("seeker")
    kept, _ = (of.create_run(experiment, run_name=name).info.run_id for name in ("kept", "old"))
    for file in first.iterdir():
        of.log_artifact(kept, str(file))
    assert main(["report", "kept"]) == 0
    text = Page((tmp_path / "report.html").read_text()).text
    assert "kept" in text and "some/model" in text and "Question q4?" in text
    with pytest.raises(TrackingError, match=r"the run 'old' kept no results\.parquet; test its model again"):
        find_results("old", tmp_path)


def test_bad_input_is_one_sentence(tmp_path: Path, first: Path, capsys: CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.parquet").write_text("no")
    write_rows(tmp_path / "rows.parquet", [{"id": "a", "score": 1.0}])
    write_rows(tmp_path / "bare.parquet", [{k: v for k, v in FIRST[0].items() if not isinstance(v, float)}])
    apart = results(tmp_path / "apart", [row("x", 1)])
    damaged = results(tmp_path / "damaged", FIRST)
    (damaged / "summary.json").write_text("{")
    for words, said in {
        (): "takes one results folder, file or run at least",
        (f"{tmp_path}/none.parquet",): "none.parquet does not exist",
        (f"{tmp_path}/empty",): "holds no results.parquet",
        (f"{tmp_path}/no.parquet",): "is not a Parquet file",
        (f"{tmp_path}/rows.parquet",): "no column 'question_id'",
        (f"{tmp_path}/bare.parquet",): "has no metrics",
        (str(damaged),): "summary.json is damaged",
        (str(first), str(apart)): "'sft' and 'apart' share no question",
        (str(first), "--worst", "-1"): "--worst is -1",
        (str(first), "--output", "page.txt"): "its suffix must be .html",
        (str(first), "--output", f"{tmp_path}/no.parquet/r.html"): "cannot be written",
    }.items():
        assert main(["report", *words]) == 2, words
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, words
    assert not (first / "report.html").exists()
    assert main(["report", "nobody"]) == 1
    assert "there is no run 'nobody'" in capsys.readouterr().err
