"""What is nearly the same text, the filter that leaves it out, and the split that keeps such questions together."""

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import answer, result, search, trace

from project.cli import main
from project.files import read_rows
from project.records import Conversation, Message, Trace
from project.traces.filters import ALIKE
from project.traces.near_duplicates import LEAST, MOST, bands, bands_for, groups_of, likeness, shingles, signature
from project.traces.table import question_group
from project.writing import write_records

WORDS = ["river", "capital", "treaty", "engine", "copper", "winter", "museum", "signal", "harbour", "theory"]


def test_shingles_and_likeness_by_hand():
    assert shingles("The Abcdef!") == {"abcde", "bcdef"}
    assert shingles("abc") == {"abc"}
    assert shingles("?!") == {"?!"}
    assert likeness(shingles("abcdef"), shingles("abcdeg")) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("missing", "shape", "at", "below"), [(0.99, (18, 7), 0.986, 0.787), (0.5, (9, 13), 0.399, 0.084)])
def test_how_many_bands(missing, shape, at, below):
    count, size = bands_for(0.8, missing)
    assert (count, size) == shape
    assert 1 - (1 - 0.8**size) ** count == pytest.approx(at, abs=1e-3)
    assert 1 - (1 - 0.7**size) ** count == pytest.approx(below, abs=1e-3)
    assert bands_for(0.8, 0.5) == ALIKE


def test_bands_meet_as_often_as_they_should():
    """Of pairs of a likeness p, 1 - (1 - p^13)^9 share one of 9 bands of 13 hashes; here 400 pairs of about 0.9."""
    dice = random.Random(0)
    met, expected = 0, 0.0
    for _ in range(400):
        words = dice.choices(WORDS, k=60)
        one, other = " ".join(words), " ".join([*words, *dice.choices(WORDS, k=4)])
        met += not set(bands(signature(one), *ALIKE)).isdisjoint(bands(signature(other), *ALIKE))
        expected += 1 - (1 - likeness(shingles(one), shingles(other)) ** 13) ** 9
    assert met == pytest.approx(expected, abs=3 * (400 * 0.25) ** 0.5)


def components(texts, threshold):
    """Return which names go together, by looking at every pair."""
    of = {name: shingles(text) for name, text in texts.items()}
    go = {name: {name} for name in texts}
    for one, other in combinations(texts, 2):
        if likeness(of[one], of[other]) >= threshold and go[one] is not go[other]:
            go[one] |= go[other]
            for name in go[other]:
                go[name] = go[one]
    return {name: min(together) for name, together in go.items() if len(together) > 1}


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=3, max_size=9), min_size=2, max_size=30),
    st.sampled_from([0.5, 0.7, 0.8]),
)
def test_groups_are_those_of_all_pairs(made_up, threshold):
    texts = {f"{number:02}": " ".join(words) for number, words in enumerate(made_up)}
    exact, found = components(texts, threshold), groups_of(texts, threshold)
    assert set(found) <= set(exact)
    for name, first in found.items():
        assert exact[name] == exact[first]
    missed = len(exact) - len(found)
    assert missed <= max(2, len(exact) // 10)  # a pair at the threshold itself is missed once in 70 times


def test_a_chain_of_likenesses_goes_together():
    base = "which river flows through the capital of the country where the treaty of copper harbour was signed in winter"
    texts = {"a": base, "b": base + " 1912", "c": base + " 1912 again", "d": "who wrote the theory of the engine"}
    assert groups_of(texts, 0.9) == {"a": "a", "b": "a", "c": "a"}
    assert groups_of(texts, 0.99) == {}
    assert groups_of({}, 0.9) == {}


def test_near_duplicates_are_left_out(tmp_path, capsys):
    long, other = (" ".join(f"{random.Random(f'{text}{n}').random()}" for n in range(40)) for text in "ab")
    rows = [
        trace(search("q"), result(long), answer("x"), ident="first"),
        trace(search("q"), result(long + " too"), answer("x"), ident="nearly"),
        trace(search("q"), result(other), answer("x"), ident="other"),
        trace(search("Q!"), result(long), answer("x"), ident="same"),
        trace(search("q"), result(long), answer("y"), ident="asked", question="Which currency has Mongolia?"),
    ]
    write_records(tmp_path / "raw.jsonl", rows)
    out = tmp_path / "traces.jsonl"
    command = ["data", "traces", "--input_file", str(tmp_path / "raw.jsonl"), "--output_file", str(out), "--force", "true"]
    assert main([*command, "--filters", "[no_near_duplicates]"]) == 0
    assert [Trace.from_row(row).id for _, row in read_rows(out)] == ["first", "other", "asked"]
    assert "duplicates left out of traces │     2" in capsys.readouterr().out
    assert main([*command, "--filters", "[no_duplicates]"]) == 0
    assert [Trace.from_row(row).id for _, row in read_rows(out)] == ["first", "nearly", "other", "asked"]


def asked(ident, question):
    return Conversation(
        ident, (Message("user", question), Message("assistant", "x")), (), question, ("x",), question_group(question)
    )


def sides(folder, name):
    return {row["id"]: part for part in ("train", "validation") for _, row in read_rows(folder / f"{name}_{part}.jsonl")}


def test_questions_that_are_alike_stay_together(tmp_path, capsys):
    base = "Which river flows through the capital of the country where the treaty of copper was signed"
    twins = [asked(f"twin{number}", f"{base}{end}?") for number, end in enumerate(("", " in winter", " in 1912"))]
    others = [asked(f"q{number}", f"{' '.join(random.Random(number).choices(WORDS, k=8))} {number}?") for number in range(60)]
    write_records(tmp_path / "one.jsonl", [*twins, *others])
    write_records(tmp_path / "two.jsonl", [twins[0], twins[2], *others[::2]])
    apart = 0
    for seed in range(8):
        command = [
            "data",
            "split",
            "--validation_share",
            "0.5",
            "--seed",
            str(seed),
            "--force",
            "true",
            "--file_format",
            "jsonl",
        ]
        command += [f"--input_file={tmp_path}/one.jsonl", f"--input_file+={tmp_path}/two.jsonl"]
        for options in ([], ["--near_duplicates", "0.7"]):
            assert main([*command, "--output_dir", str(tmp_path / "sets"), *options]) == 0
            one, two = sides(tmp_path / "sets", "one"), sides(tmp_path / "sets", "two")
            assert all(one[ident] == side for ident, side in two.items())
            assert len(one) == 63
            together = len({one[f"twin{number}"] for number in range(3)}) == 1
            assert together or not options
            apart += not together
    assert apart > 2
    assert "with a question like another │" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("split", ["--near_duplicates", "0.999"]),
        ("split", ["--near_duplicates", "0.8", "--by", "trace"]),
        ("prepare", ["--near_duplicates", "0.1"]),
    ],
)
def test_near_duplicates_need_questions_and_a_share(tmp_path, capsys, verb, options):
    write_records(tmp_path / "one.jsonl", [asked("a", "why?"), asked("b", "who?")])
    command = ["data", verb, "--input_file", str(tmp_path / "one.jsonl"), "--output_dir", str(tmp_path / "sets")]
    assert main([*command, *options]) == 2
    assert "give 0.3 to 0.99, and --by question" in capsys.readouterr().err
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize("threshold", [LEAST, MOST])
def test_the_least_and_the_most_likeness(threshold):
    texts = {
        "a": "which river flows through it",
        "b": "which river flows through it?",
        "c": "who wrote the theory of the engine",
    }
    assert groups_of(texts, threshold) == {"a": "a", "b": "a"}


@pytest.mark.shared
def test_real_questions_go_together_as_by_all_pairs(shared_data):
    rows = (row for _, row in read_rows(shared_data / "traces" / "traces_normalised.jsonl.gz"))
    questions = {question_group(row["question"]): row["question"] for row in rows if len(row["question"]) < 300}
    some = dict(sorted(questions.items())[:1000])
    assert groups_of(some, 0.6) == components(some, 0.6) != {}
