"""`seeker data show`: tokens, kinds and weights of a conversation counted by hand on bytes, and a file's statistics."""

import subprocess
import sys

import pytest
from tiny import tiny_model_folder
from trace_samples import TWO_HOPS, answer, result, search, think, trace

from project.apps.printout import Run, coloured, lines, visible
from project.apps.show import step_lines
from project.apps.show_stats import first_turn, histogram, percentiles, plain_reason
from project.cli import main
from project.dialects import get_dialect
from project.records import Conversation, Message, SpanKind, ToolCall
from project.traces.steps import split
from project.writing import write_records, write_rows

ANSWERS = "<|ANSWER|>\n<answer>\nb\n</answer>"
THINKS = "<think>\na\n</think>\n"
ONE_TURN = Conversation(
    "one",
    (Message("user", "Hi?"), Message("assistant", THINKS + ANSWERS)),
    question="Hi?",
    answers=("b", "B"),
    group="g1",
    extra_info={"phase": "multiturn"},
)
TWO_TURNS = Conversation(
    "two",
    (
        Message("user", "Hi?"),
        Message("assistant", THINKS + "<|SEARCH|>\n<search>\nq\n</search>"),
        Message("user", "<information>\nx\n</information>"),
        Message("assistant", ANSWERS),
    ),
)
# header 6 = <|im_start|> user LF; user 3; header 13 = <|im_end|> LF <|im_start|> assistant LF; think 19 = 7+1+1+1+8+1;
# decision 2 = <|ANSWER|> LF; answer 20 = 8+1+1+1+9; end 1: 64 tokens, of which 19+2+20+1 = 42 are trained, weight
# 19 * 1.5 + 2 * 2 + 20 + 1 = 53.5.
ONE_TURN_LINES = [
    "sample one: 64 tokens, 42 trained (65.6%), weight 53.5",
    "",
    r"[header w=0 n=6] <|im_start|>user\n",
    "[user w=0 n=3] Hi?",
    "",
    r"[header w=0 n=13] <|im_end|>\n<|im_start|>assistant\n",
    r"[think w=1.5 n=19] <think>\na\n</think>\n",
    r"[decision w=2 n=2] <|ANSWER|>\n",
    r"[answer w=1 n=20] <answer>\nb\n</answer>",
    "[end w=1 n=1] <|im_end|>",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model_folder(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def written(tmp_path):
    """Return a function that writes rows or records and gives the file's name."""

    def write(*rows, name="in.jsonl"):
        write_rows(tmp_path / name, [row if isinstance(row, dict) else row.to_row() for row in rows])
        return str(tmp_path / name)

    return write


def cells(out):
    """Return the rows of all tables, by their first cell."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def refused(capsys, *args):
    """Return the one sentence that a wrong call says."""
    assert main(["data", "show", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("seeker: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- one row -------------------------------------------------------------------------------------------------------------


def test_a_conversation_piped(written, model, capsys):
    assert main(["data", "show", written(TWO_TURNS, ONE_TURN), "--number", "2", "--model_path", model]) == 0
    out = capsys.readouterr().out
    assert [line.split(maxsplit=1) for line in out.splitlines()[:9]] == [
        ["id", "one"],
        ["question", "Hi?"],
        ["answers", "b | B"],
        ["group", "g1"],
        ["extra_info", '{"phase": "multiturn"}'],
        ["turns", "1"],
        ["samples", "1"],
        ["tokens", "64"],
        ["trained", "42 (65.6%)"],
    ]
    legend = cells(out)
    assert legend["header"] == ["0", "19", "0", "0", "0.0%"]
    assert legend["think"] == ["1.5", "19", "19", "28.5", "53.3%"]  # 28.5 / 53.5
    assert legend["decision"] == ["2", "2", "2", "4", "7.5%"]
    assert legend["all"] == ["", "64", "42", "53.5", "100.0%"]
    assert "search" not in legend
    assert out.splitlines()[-len(ONE_TURN_LINES) :] == ONE_TURN_LINES


def test_the_option_is_the_word(written, model, capsys):
    path = written(ONE_TURN)
    assert main(["data", "show", "--input_file", path, "--model_path", model]) == 0
    by_option = capsys.readouterr().out
    assert main(["data", "show", path, "--model_path", model]) == 0
    assert capsys.readouterr().out == by_option


def test_template_history_shows_each_sample(written, model, capsys):
    """The first turn: 22 tokens before it and 42 of its own; the second: all 137, of which 2 + 20 + 1 are trained."""
    path = written(TWO_TURNS, name="in.parquet")
    assert main(["data", "show", path, "--model_path", model, "--history", "template"]) == 0
    out = capsys.readouterr().out
    assert "sample two#1: 64 tokens, 42 trained (65.6%), weight 53.5" in out
    assert "sample two#3: 137 tokens, 23 trained (16.8%), weight 25" in out
    assert cells(out)["think"][:3] == ["0–1.5", "38", "19"]  # the second sample sees the thought, and does not train it


def test_weights_over_the_defaults_and_of_a_message(written, model, capsys):
    untrained = Message("assistant", TWO_TURNS.messages[1].content, weight=0.0)
    halved = Message("assistant", ANSWERS, weight=0.5)
    path = written(Conversation("w", (TWO_TURNS.messages[0], untrained, TWO_TURNS.messages[2], halved)))
    assert main(["data", "show", path, "--model_path", model, "--weights.answer", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert r"[think w=0 n=19] <think>\na\n</think>\n" in out
    assert r"[decision w=1 n=2] <|ANSWER|>\n" in out
    assert r"[answer w=1.5 n=20] <answer>\nb\n</answer>" in out
    assert "[end w=0.5 n=1] <|im_end|>" in out


def test_a_terminal_gets_colours(written, model, capsys, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["data", "show", written(ONE_TURN), "--model_path", model]) == 0
    out = capsys.readouterr().out
    assert "\x1b[7;35m×1.5\x1b[0m\x1b[35m<think>" in out
    assert "\x1b[2;34mHi?" in out
    assert "w=1.5" not in out


def test_the_colours_say_kind_and_weight():
    runs = [Run(SpanKind.USER, 0.0, 1, "u"), Run(SpanKind.THINK, 1.5, 1, "t"), Run(SpanKind.ANSWER, 1.0, 1, "a")]
    text = coloured(runs)
    assert text.plain == "u×1.5ta"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
        ("u", "dim blue"),
        ("×1.5", "reverse magenta"),
        ("t", "magenta"),
        ("a", "green"),
    ]


def test_a_passage_cannot_steer_the_terminal():
    assert visible("a\x1b[2J\u200bö\n") == "a\\x1b[2J\\u200bö\n"
    assert visible("\ud800") == "\\ud800"
    (line,) = lines([Run(SpanKind.RESULT, 0.0, 9, "a\n[bold]\\n")])
    assert line == r"[result w=0 n=9] a\n[bold]\\n"


def test_a_trace(written, capsys):
    assert main(["data", "show", written(TWO_HOPS)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:6] == [
        "id        t1",
        "question  Which currency is used where Ulaanbaatar is the capital?",
        "answers   tögrög",
        "source    made_up",
        "correct   true",
        "steps     8",
    ]
    assert out[7:12] == [
        "steps",
        "  1 [reasoning] I need the country first.",
        "  2 [search] search: country with capital Ulaanbaatar",
        "  3 [search_result] 1 document",
        "      1. Ulaanbaatar: Ulaanbaatar is the capital of Mongolia. It lies on the Tuul.",
    ]
    assert out[-1] == "  8 [answer] tögrög"


def test_a_step_sample(written, capsys):
    assert main(["data", "show", written(*split(TWO_HOPS)), "--number", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "result            1 of 2" in out
    context, target = out.index("context"), out.index("target")
    assert [line.split("]")[0] for line in out[context + 1 : target - 1]] == [
        "  1 [reasoning",
        "  2 [search",
        "  3 [search_result",
        "      1. Ulaanbaatar: Ulaanbaatar is the capital of Mongolia. It lies on the Tuul.",
    ]
    assert out[target + 1 :] == [
        "  4 [reasoning] It is Mongolia. Now the currency.",
        "  5 [search] search: currency of Mongolia",
    ]


def test_steps_are_cut_and_their_queries_and_errors_shown():
    assert list(step_lines(1, think("x" * 301))) == ["  1 [reasoning] " + "x" * 300 + "…"]
    assert list(step_lines(1, think("x" * 300))) == ["  1 [reasoning] " + "x" * 300]
    assert list(step_lines(2, search("a", "b", tool="lookup"))) == ["  2 [search] lookup: a | b"]
    assert list(step_lines(3, result(error="down"))) == ["  3 [search_result] 0 documents", "      error: down"]
    assert list(step_lines(4, result("two\nlines"))) == ["  4 [search_result] 1 document", "      1. (no title): two lines"]


# --- statistics ----------------------------------------------------------------------------------------------------------


def test_statistics_of_conversations(written, model, capsys):
    """`two` has 22 + 42 tokens in its first turn, and 7 + 30 + 13 + 2 + 20 + 1 after it: 137."""
    path = written(ONE_TURN, TWO_TURNS, {"id": "q", "question": "?"}, Conversation("c1", TWO_TURNS.messages[:1]))
    assert main(["data", "show", path, "--stats", "true", "--model_path", model]) == 0
    out = capsys.readouterr().out
    found = cells(out)
    assert [found[name] for name in ("rows", "conversations", "samples")] == [["4"], ["2"], ["2"]]
    assert found["tokens of a sample"] == ["64", "64", "64", "137", "137"]
    assert found["turns of a conversation"] == ["1", "1", "1", "2", "2"]
    assert "  1 | ######################################## 1\n  2 | ######################################## 1\n" in out
    kinds = {
        "user": ["0", "6", "0", "0", "0.0%"],
        "header": ["0", "58", "0", "0", "0.0%"],  # 6 + 13, and 6 + 13 + 7 + 13
        "think": ["1.5", "38", "38", "57", "43.2%"],
        "search": ["1", "20", "20", "20", "15.2%"],
        "decision": ["2", "6", "6", "12", "9.1%"],
        "answer": ["1", "40", "40", "40", "30.3%"],
        "result": ["0", "30", "0", "0", "0.0%"],
        "end": ["1", "3", "3", "3", "2.3%"],
        "all": ["", "201", "107", "132", "100.0%"],
    }
    assert {name: found[name] for name in kinds} == kinds
    assert found["searches"] == found["answers"] == found["multiturn"] == found["(none)"] == ["1", "50.0%"]
    assert "conversations by source" not in out
    assert found["rows that could not be used"] == ["2"]
    assert found["conversation has no assistant message to train"] == ["1"]
    (other,) = [name for name in found if name.startswith("the row has no 'messages'")]
    assert "(its fields: id, question)" in other


def test_the_limit_of_the_statistics(written, model, capsys):
    assert main(["data", "show", written(ONE_TURN, TWO_TURNS), "--stats", "true", "--limit", "1", "--model_path", model]) == 0
    assert cells(capsys.readouterr().out)["all"] == ["", "64", "42", "53.5", "100.0%"]


def test_statistics_of_traces(written, capsys):
    """Of two searches and 3 turns, and of none and 1 turn; the words are those of the question and of all steps."""
    short = trace(answer("tögrög"), question="What?", ident="t2", correct=None)  # 2 words
    path = written(TWO_HOPS, short, trace(ident="t3"))
    assert main(["data", "show", path, "--stats", "true"]) == 0
    found = cells(capsys.readouterr().out)
    assert found["traces"] == ["2"]
    assert found["searches of a trace"] == ["0", "0", "0", "2", "2"]
    assert found["turns of a trace"] == ["1", "1", "1", "3", "3"]
    # question 9; thoughts 5 + 6 + 3; searches 4 + 3; results 1 + 11 and 1 + 11; answer 1
    assert found["words of a trace"] == ["2", "2", "2", "55", "55"]
    assert found["not known"] == ["1", "50.0%"]
    assert found["true"] == ["2", "100.0%"]  # of `answered`, the last table
    assert found["field 'steps' is empty"] == ["1"]


def test_statistics_of_step_samples(written, capsys):
    """Three samples, of 1, 2 and 2 searches in context and target."""
    assert main(["data", "show", written(*split(TWO_HOPS)), "--stats", "true"]) == 0
    found = cells(capsys.readouterr().out)
    assert found["traces"] == ["3"]
    assert found["searches of a trace"] == ["1", "1", "2", "2", "2"]
    assert (found["true"], found["false"]) == (["1", "33.3%"], ["2", "66.7%"])  # answered


def test_percentiles_are_nearest_ranks():
    """Of 20 values 5 % is the first, and half is the tenth; of 21 they are the second and the eleventh."""
    names = ("min", "5 %", "median", "95 %", "max")
    assert percentiles(range(1, 21)) == dict(zip(names, (1, 1, 10, 19, 20), strict=True))
    assert percentiles(range(21, 0, -1)) == dict(zip(names, (1, 2, 11, 20, 21), strict=True))
    assert percentiles([7]) == dict.fromkeys(names, 7)


def test_a_histogram_has_ten_bins_at_most():
    """From 0 to 20 are 21 values, so bins of 3: seven of them."""
    bar = "#" * 40
    assert histogram([0, 1, 2, 20]) == [
        f"    0-2 | {bar} 3",
        "    3-5 | 0",
        "    6-8 | 0",
        "   9-11 | 0",
        "  12-14 | 0",
        "  15-17 | 0",
        f"  18-20 | {'#' * 14} 1",  # 40 / 3, rounded up
    ]
    assert histogram([5, 5]) == [f"  5 | {bar} 2"]


def test_what_the_first_turn_does():
    tags, tools = get_dialect("tags"), get_dialect("tools")
    assert first_turn(ONE_TURN, tags) == "answers"
    assert first_turn(TWO_TURNS, tags) == "searches"
    called = Conversation("c", (Message("assistant", "", (ToolCall("search", {"query": "q"}),)),))
    assert first_turn(called, tools) == "searches"
    assert first_turn(Conversation("c", (Message("assistant", "Hello."),)), tags) == "neither"
    known = Conversation("c", ONE_TURN.messages, extra_info={"needs_search": True})
    assert first_turn(known, tags) == "searches"


def test_equal_reasons_are_counted_together():
    said = {plain_reason(f"conversation 'c{n}#1' trains 0 of 4{n} tokens", f"c{n}") for n in range(3)}
    assert said == {"conversation trains 0 of N tokens"}


# --- bad input -----------------------------------------------------------------------------------------------------------


def test_a_row_that_is_not_there(written, capsys):
    path = written(TWO_HOPS, TWO_HOPS)
    for number in ("3", "0", "-1"):
        said = refused(capsys, path, f"--number={number}")
        assert f"--number is {number} and {path} holds 2 rows; give one from 1 to 2" in said


def test_files_that_hold_nothing_to_show(written, tmp_path, capsys):
    assert "does not exist" in refused(capsys, str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "holds no rows" in refused(capsys, str(tmp_path / "empty.jsonl"))
    path = written({"id": "q", "question": "?"})
    said = refused(capsys, path)
    assert "line 1: the row has no 'messages', 'steps' or 'context' (its fields: id, question)" in said
    assert "none of the 1 rows" in refused(capsys, path, "--stats", "true")
    (tmp_path / "broken.jsonl").write_text("{\n")
    assert "line 1: not JSON" in refused(capsys, str(tmp_path / "broken.jsonl"))


def test_a_row_with_a_wrong_field_or_that_cannot_be_rendered(written, model, capsys):
    assert "line 1: messages[0]: field 'role'" in refused(capsys, written({"id": "c", "messages": [{"content": ""}]}))
    said = refused(capsys, written(TWO_TURNS), "--model_path", model, "--dialect", "tools")
    assert "line 1: conversation 'two' searches in the dialect tags" in said


def test_wrong_options(written, model, capsys):
    path = written(ONE_TURN)
    assert "--limit is 5; it is the number of rows" in refused(capsys, path, "--limit", "5")
    assert "--limit is 0" in refused(capsys, path, "--limit", "0", "--stats", "true")
    assert "takes one input_file, got 2" in refused(capsys, path, path)
    assert "seeker: --weights.think is -1" in refused(capsys, path, "--weights.think=-1", "--model_path", model)
    assert "weights name the span kinds ['thought']" in refused(capsys, path, "--weights.thought=1", "--model_path", model)
    assert "does not exist" in refused(capsys, path, "--model_path", "./nowhere")
    assert "dialect 'chant' is none of tags, tools" in refused(capsys, path, "--dialect", "chant")
    assert "--input_file must be given" in refused(capsys)


def test_traces_need_no_torch(tmp_path):
    write_records(tmp_path / "in.jsonl", [TWO_HOPS])
    code = (
        "import sys; from project.cli import main; "
        f"assert main(['data', 'show', {str(tmp_path / 'in.jsonl')!r}]) == 0; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
