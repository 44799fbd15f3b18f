"""The facts data set: true where sources are stale, one answer a question, exact evidence, honest splits, same bytes."""

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import metadata
from itertools import combinations

import pytest

from project.answers import exact_match, normalise_answer
from project.cli import main
from project.corpus.facts import facts
from project.corpus.facts.dataset import Settings, build
from project.corpus.facts.expert import write_conversations
from project.corpus.facts.passages import passage_id, stated_aspects
from project.corpus.facts.splits import MIX, assign, split_questions
from project.corpus.facts.table import Entity, Fact, FactTable, Path, with_groups
from project.corpus.index import Index
from project.dialects import NO_RESULTS, get_dialect
from project.errors import InputError
from project.files import file_digest, read_records
from project.manifests import read_manifest
from project.records import Conversation, Passage, Question

SIZES = {"train": 600, "validation": 60, "test": 200}
FILES = (
    "passages.jsonl",
    "questions_train.jsonl",
    "questions_validation.jsonl",
    "questions_test.jsonl",
    "conversations_train.jsonl",
    "conversations_validation.jsonl",
    "README.md",
)


@pytest.fixture(scope="module")
def data():
    return build(Settings(SIZES, 300, get_dialect("tags"), topk=3, seed=0))


@pytest.fixture(scope="module")
def passages(data):
    return {p.id: p for p in data.passages}


@pytest.fixture(scope="module")
def questions(data):
    return {split: [c.question for c in candidates] for split, candidates in data.splits.items()}


def all_questions(questions):
    return [q for split in questions.values() for q in split]


def value(data, entity, aspect):
    return [f.value for f in data.table.get(entity, aspect)]


# The table


@pytest.mark.parametrize(
    ("entity", "aspect", "expected"),
    [
        # stale in countryinfo
        ("country:BI", "capital", ["Gitega"]),  # Bujumbura until 2019
        ("country:KZ", "capital", ["Astana"]),  # Nur-Sultan until 2022
        ("country:RS", "subregion", ["Southern Europe"]),
        ("country:HR", "currency", ["Euro"]),  # kuna until 2022
        ("country:BG", "currency", ["Euro"]),  # lev until 2025
        ("country:BY", "currency", ["Belarusian Ruble"]),
        ("country:ME", "subregion", ["Southern Europe"]),
        # right in the sources
        ("country:MN", "capital", ["Ulaanbaatar"]),
        ("country:MN", "currency", ["Tugrik"]),
        ("currency:MNT", "numeric", ["496"]),
        ("country:DE", "alpha3", ["DEU"]),
        ("country:JP", "calling_code", ["+81"]),
        ("country:PT", "only_neighbour", ["Spain"]),
        ("element:Fe", "number", ["26"]),
        ("element:Au", "weight", ["196.97"]),
        ("element:W", "melting_point", ["3687"]),
        ("element:F", "electronegativity", ["3.98"]),
        ("element:Nd", "discovery_year", ["1885"]),
        ("language:mn", "alpha3", ["mon"]),
        ("region:MN-041", "country", ["Mongolia"]),
        # left out
        ("country:ZA", "capital", []),  # three capitals
        ("country:SZ", "capital", []),  # two capitals
        ("country:PS", "currency", []),  # several, none of its own
        ("element:Co", "discovery_year", []),  # three years are given
        ("country:US", "only_neighbour", []),  # Canada and Mexico
        ("country:DK", "only_neighbour", []),  # Germany, and Canada on Hans Island
        ("country:RS", "area", []),  # countryinfo gives Slovakia's
        ("element:Fe", "discovery_year", []),  # known to the ancients
    ],
)
def test_known_values(data, entity, aspect, expected):
    assert value(data, entity, aspect) == expected


def test_dissolved_states_and_withdrawn_currencies_are_gone(data):
    names = {e.name for e in data.table.entities.values()}
    assert not names & {"Netherlands Antilles", "Serbia and Montenegro", "Kuna", "Bulgarian Lev"}
    withdrawn = {"HRK", "BGN", "BYR", "MRO", "STD", "SLL", "VEF", "ZMK", "CUC"}
    assert not {f.value for f in data.table.facts if f.aspect == "code"} & withdrawn


def test_borders_hold_both_ways(data):
    borders = {(f.entity, f.target) for f in data.table.facts if f.aspect == "border"}
    assert borders and all((b, a) in borders for a, b in borders)
    assert ("country:LK", "country:IN") not in borders


def test_at_most_25_regions_a_country(data):
    regions = Counter(f.target for f in data.table.facts if f.aspect == "country")
    assert max(regions.values()) == 25
    assert len(regions) > 150


def test_overrides_all_have_a_source_and_an_entity(data):
    import csv

    from project.corpus.facts.sources import OVERRIDES

    rows = list(csv.DictReader(OVERRIDES.open(encoding="utf-8")))
    assert all(row["source"] and row["entity"] in data.table.entities for row in rows)
    assert len({(r["entity"], r["aspect"]) for r in rows}) == len(rows)
    mended = {(r["entity"], r["aspect"]) for r in rows if r["value"] and r["aspect"] != "name"}
    assert all(data.table.get(*pair)[0].source.startswith("override") for pair in mended)


def test_ask_walks_a_path_and_finds_every_answer():
    entities = [Entity(f"country:{c}", c) for c in ("A", "B", "C")] + [Entity("currency:X", "Ex"), Entity("currency:Y", "Why")]
    uses = [("A", "X"), ("B", "X"), ("C", "Y")]
    facts_ = [Fact(f"country:{a}", "currency", {"X": "Ex", "Y": "Why"}[x], "s", (), f"currency:{x}") for a, x in uses]
    facts_ += [Fact("currency:X", "code", "XXX", "s"), Fact("country:C", "capital", "Sea", "s")]
    grouped = with_groups(entities, facts_)
    table = FactTable(grouped, facts_)
    assert [w.answers for w in table.ask(Path("country", "name", "a", ("currency", "code")))] == [("XXX",)]
    assert [w.answers[0] for w in table.ask(Path("country", "currency", "Ex"))] == ["A", "B"]  # two answers: no question
    assert [w.answers[0] for w in table.ask(Path("country", "currency", "Why", ("capital",)))] == ["Sea"]
    assert table.ask(Path("country", "name", "C", ("capital", "capital"))) == []  # a capital is no entity here
    # C alone pays in Y, so they are one group; X is shared and stands alone
    assert grouped["currency:Y"].group == grouped["country:C"].group
    assert len({grouped[f"country:{c}"].group for c in "ABC"} | {grouped["currency:X"].group}) == 4


# The passages


def test_there_are_enough_passages_and_pairs(data):
    pairs = {pair for p in data.passages for pair in stated_aspects(data.table, p)}
    assert len(data.passages) >= 1500
    assert len(pairs) >= 1500
    assert len({p.id for p in data.passages}) == len(data.passages)


def test_passages_state_their_values_and_are_short(data, passages):
    for passage in data.passages:
        assert 8 <= len(passage.text.split()) <= 50
        for entity, aspect in stated_aspects(data.table, passage):
            if aspect != "border":
                assert all(f.value in passage.text for f in data.table.get(entity, aspect)), passage
    assert "Ulaanbaatar" in passages["country:MN/capital"].text
    assert {p.id.partition(":")[0] for p in data.passages} == {"country", "region", "currency", "language", "element"}


def test_a_passage_has_several_wordings(data):
    shapes = {p.text.replace(p.title, "X").replace(value(data, p.id.partition("/")[0], "capital")[0], "Y")
              for p in data.passages if p.id.endswith("/capital")}  # fmt: skip
    assert len(shapes) >= 3


# The questions


def test_sizes_and_mix(questions):
    assert {split: len(qs) for split, qs in questions.items()} == SIZES
    for split, qs in questions.items():
        shares = Counter(q.kind for q in qs)
        assert all(shares[kind] / len(qs) == pytest.approx(share, abs=0.02) for kind, share in MIX.items()), split


def test_every_question_has_exactly_one_answer_in_the_table(data, questions):
    asked = 0
    for q in all_questions(questions):
        if "path" in q.extra_info:
            walks = data.table.ask(Path.from_row(q.extra_info["path"]))
            assert len(walks) == 1
            assert walks[0].answers == q.answers
            asked += 1
    assert asked == sum(q.kind in ("one_hop", "two_hop") for q in all_questions(questions))


def test_which_country_pays_in_euro_is_never_asked(data, questions):
    assert len(data.table.ask(Path("country", "currency", "Euro"))) > 25
    starts = [q.extra_info["path"] for q in all_questions(questions) if "path" in q.extra_info]
    assert not [p for p in starts if p["by"] == "currency" and p["value"] in ("Euro", "US Dollar", "Rand")]


def test_comparisons_are_right_and_clear(data, questions):
    asked = [q for q in all_questions(questions) if q.kind == "comparison"]
    first = 0
    for q in asked:
        info = q.extra_info["compare"]
        a, b = (data.table.get(e, info["aspect"])[0].number for e in info["entities"])
        winner = info["entities"][(a < b) if info["sign"] > 0 else (a > b)]
        assert data.table.entities[winner].name == q.answers[0]
        assert a != b
        first += winner == info["entities"][0]
    assert 0.35 < first / len(asked) < 0.65  # the place in the question must not give the answer away


def test_unanswerable_questions_have_no_answer_in_the_table(data, questions):
    asked = [q for q in all_questions(questions) if q.kind == "unanswerable"]
    for q in asked:
        absent = q.extra_info["absent"]
        assert data.table.get(absent["entity"], absent["aspect"]) == []
        assert q.answers == () and q.evidence == () and q.needs_search
        assert exact_match("unknown", q.answers) == 1.0
    assert {q.group.partition(":")[0] for q in asked} >= {"country", "element", "invented"}


def test_no_search_answers_are_right(questions):
    checked = Counter()
    for q in all_questions(questions):
        operation = q.extra_info.get("operation", "")
        numbers = [int(n) for n in re.findall(r"\d+", q.question)]
        word = (re.findall(r"'(\w+)'", q.question) or [""])[0]
        expected = {
            "add": lambda n=numbers: str(n[0] + n[1]),
            "subtract": lambda n=numbers: str(n[0] - n[1]),
            "multiply": lambda n=numbers: str(n[0] * n[1]),
            "letters": lambda w=word: str(len(w)),
            "first": lambda w=word: w[0],
            "last": lambda w=word: w[-1],
        }
        if operation in expected:
            assert q.answers == (expected[operation](),)
            checked[operation] += 1
        elif operation:
            assert q.answers[0] in q.question  # what the question itself states
        assert (q.needs_search is False) == bool(operation)
    assert len(checked) == 6


def test_evidence_exists_and_holds_the_answer(questions, passages):
    for q in all_questions(questions):
        assert all(ident in passages for ident in q.evidence)
        assert len(q.evidence) == {"one_hop": 1, "two_hop": 2, "comparison": 2}.get(q.kind, 0)
        if q.kind == "comparison":
            assert any(q.answers[0] == passages[ident].title for ident in q.evidence)
        elif q.evidence:
            last = passages[q.evidence[-1]]
            assert q.answers[0] in f"{last.title} {last.text}"


def test_a_question_does_not_hold_its_answer_as_a_whole(questions):
    for q in all_questions(questions):
        if q.kind in ("one_hop", "two_hop"):
            assert normalise_answer(q.answers[0]) != normalise_answer(q.extra_info["path"]["value"])


def test_every_lookup_of_a_test_question_is_found_by_search(data):
    index = Index.from_passages(data.passages)
    lookups = [lookup for c in data.splits["test"] for lookup in c.lookups if lookup.evidence]
    found = [any(h.passage.id == k.evidence for hits in index.find(k.queries, 3) for h in hits) for k in lookups]
    assert sum(found) >= 0.99 * len(found)


def test_aliases_are_other_ways_to_say_the_answer(data):
    (walk,) = data.table.ask(Path("country", "capital", "Ulaanbaatar", ("currency",)))
    assert walk.answers == ("Tugrik", "Mongolian Tugrik", "MNT")
    (walk,) = data.table.ask(Path("country", "alpha2", "KR"))
    assert walk.answers[0] == "South Korea" and "Korea, Republic of" in walk.answers


def test_evidence_ids_name_entity_and_bundle():
    assert passage_id("country:MN", "alpha3") == passage_id("country:MN", "numeric") == "country:MN/codes"


# The splits (DESIGN §8.8)


def test_no_group_and_no_question_is_shared_between_splits(questions):
    groups = {split: {g for q in qs for g in q.group.split("|")} for split, qs in questions.items()}
    texts = {split: {normalise_answer(q.question) for q in qs} for split, qs in questions.items()}
    for one, other in combinations(SIZES, 2):
        assert not groups[one] & groups[other]
        assert not texts[one] & texts[other]
    assert all(all(g) for g in groups.values())
    assert sum(map(len, texts.values())) == sum(SIZES.values())  # nor is one asked twice


def test_every_open_entity_on_a_path_belongs_to_its_group(data, questions):
    for q in all_questions(questions):
        if "path" in q.extra_info:
            (walk,) = data.table.ask(Path.from_row(q.extra_info["path"]))
            open_groups = {e.group for e in walk.entities if e.kind in ("country", "region", "element")}
            assert open_groups <= {q.group}
    regions = data.table.of_kind("region")
    assert all(r.group == data.table.entities[data.table.get(r.id, "country")[0].target].group for r in regions)


def test_groups_are_divided_in_the_same_shares_by_kind():
    split_of = assign({f"{kind}:{n}" for kind in ("a", "b") for n in range(100)}, seed=0)
    assert len(split_of) == 200
    for kind in ("a:", "b:"):
        shares = Counter(split for group, split in split_of.items() if group.startswith(kind))
        assert shares == {"train": 72, "validation": 8, "test": 20}


# The expert conversations


def test_conversations_search_exactly_when_the_question_needs_it(data):
    dialect = get_dialect("tags")
    for split, conversations in data.conversations.items():
        kinds = {c.question.id: c.question for c in data.splits[split]}
        for conversation in conversations:
            actions = [dialect.parse(m.content) for m in conversation.messages if m.role == "assistant"]
            searches = [a for a in actions if a.queries]
            kind = kinds[conversation.id].kind
            low, high = {"one_hop": (1, 1), "two_hop": (2, 2), "comparison": (2, 2), "no_search": (0, 0)}.get(kind, (1, 2))
            assert low <= len(searches) <= high
            assert all(a.thought for a in actions)
            assert actions[-1].answer == (conversation.answers[0] if conversation.answers else "unknown")


def test_results_hold_the_gold_evidence_and_thoughts_repeat_it(data, passages):
    for conversation in (c for found in data.conversations.values() for c in found):
        shown = "\n".join(m.content for m in conversation.messages[2:] if m.role == "user")
        assert all(passages[ident].text in shown for ident in conversation.extra_info["evidence"])
        for message in conversation.messages:
            for rank, _ in re.findall(r"<think>\nDoc (\d) says (.*)", message.content):
                assert f"Doc {rank} (Title:" in shown
        if conversation.answers and conversation.extra_info["needs_search"]:
            assert conversation.answers[0] in shown  # copyable: nothing is answered from nothing


def test_a_missed_result_is_searched_for_again_until_it_is_found(data, passages):
    """Half of the lookups miss at first: the evidence is in the last search of each, and in none before."""
    index, dialect = Index.from_passages(data.passages), get_dialect("tags")
    asked = [c for c in data.splits["train"] if c.question.kind == "one_hop"][:60]
    plain, missed = [write_conversations(asked, index, dialect, topk=3, seed=0, missed=m)[0] for m in (0.0, 0.5)]
    assert [c.id for c in plain] == [c.id for c in missed]
    searches = []
    for conversation in missed:
        results = [m.content for m in conversation.messages[2:] if m.role == "user"]
        [evidence] = conversation.extra_info["evidence"]
        assert [passages[evidence].text in result for result in results] == [False] * (len(results) - 1) + [True]
        agains = [m.content for m in conversation.messages if "search again" in m.content or "search once more" in m.content]
        assert len(agains) == len(results) - 1
        searches.append(len(results))
    assert 20 <= sum(count > 1 for count in searches) <= 40
    assert max(searches) == 3
    assert all(len(c.messages) == 5 for c in plain), "as ever where nothing is missed"


def test_few_conversations_are_dropped(data):
    assert data.dropped <= 0.02 * 360


def test_only_a_search_for_something_invented_finds_nothing(data):
    index, dialect = Index.from_passages(data.passages), get_dialect("tags")
    asked = [c for c in data.splits["train"] if c.question.kind == "unanswerable"]
    found = [c for seed in range(5) for c in write_conversations(asked, index, dialect, topk=3, seed=seed)[0]]
    empty = [c for c in found if any(NO_RESULTS in m.content for m in c.messages)]
    assert empty
    assert all(c.group.startswith("invented:") for c in empty)


def test_the_validation_conversations_are_no_training_ones(data):
    train, validation = ({c.id for c in data.conversations[s]} for s in ("train", "validation"))
    assert train and validation and not train & validation


def test_conversations_are_short(data):
    lengths = [sum(len(m.content) for m in c.messages) for c in data.conversations["train"]]
    assert sum(lengths) / len(lengths) < 1400  # characters: about 350 tokens
    assert max(lengths) < 2600


def test_the_tools_dialect_writes_calls(data):
    index, candidates = Index.from_passages(data.passages), data.splits["train"][:40]
    conversations, dropped = write_conversations(candidates, index, get_dialect("tools"), topk=3, seed=0)
    assert len(conversations) + dropped == 40
    assert all(c.tools for c in conversations)
    assert any(m.tool_calls for c in conversations for m in c.messages)
    assert any(m.role == "tool" for c in conversations for m in c.messages)


def test_a_conversation_is_dropped_where_no_query_finds_the_evidence(data):
    class Blind:
        def find(self, queries, k):
            return [[] for _ in queries]

    lookups = [c for c in data.splits["train"] if c.question.evidence][:10]
    assert write_conversations(lookups, Blind(), get_dialect("tags"), topk=3, seed=0) == ([], 10)


# The files


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Seed 1 twice, in processes that hash strings differently, and seed 2."""
    root = tmp_path_factory.mktemp("facts")
    sizes = {"train_questions": 100, "validation_questions": 20, "test_questions": 20, "train_conversations": 40}
    for name, seed in (("one", 1), ("two", 2)):
        facts(root / name, seed=seed, **sizes)
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, "-m", "project", "data", "facts", "--output_dir", str(root / "again"), "--seed", "1", *options]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True)
    return root


def test_the_same_seed_writes_the_same_bytes(folders):
    for name in FILES:
        assert (folders / "one" / name).read_bytes() == (folders / "again" / name).read_bytes()
        assert (folders / "one" / name).read_bytes() != (folders / "two" / name).read_bytes()
    manifests = [f"{name}.manifest.json" for name in FILES if name.endswith(".jsonl")]
    assert sorted(p.name for p in (folders / "one").iterdir()) == sorted([*FILES, *manifests])


def test_files_made_otherwise_are_not_replaced(tmp_path, capsys):
    few = ["--train_questions", "20", "--validation_questions", "4", "--test_questions", "4", "--train_conversations", "8"]
    command = ["data", "facts", "--output_dir", str(tmp_path / "facts"), *few]
    assert main(command) == 0
    held = read_manifest(tmp_path / "facts" / "conversations_train.jsonl")
    assert held["parameters"]["packages"].keys() == {"pycountry", "countryinfo", "mendeleev"}
    assert held["outputs"]["questions_test.jsonl"]["rows"] == 4
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 2
    assert "passages.jsonl is there and was made with seed=0, now 1; give another name" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--force", "true"]) == 0
    assert read_manifest(tmp_path / "facts" / "passages.jsonl")["parameters"]["seed"] == 1


def test_the_files_are_records(folders):
    folder = folders / "one"
    assert len(read_records(folder / "passages.jsonl", Passage.from_row)) > 1500
    assert len(read_records(folder / "questions_train.jsonl", Question.from_row)) == 100
    assert len(read_records(folder / "conversations_train.jsonl", Conversation.from_row)) >= 38


def test_the_card_names_licences_and_digests(folders):
    card = (folders / "one" / "README.md").read_text(encoding="utf-8")
    for package, licence in (("pycountry", "LGPL-2.1"), ("countryinfo", "MIT"), ("mendeleev", "MIT")):
        assert re.search(rf"\| {package} \| [\d.]+ \| {licence}", card)
        about = metadata(package)
        assert licence in (about.get("License-Expression") or about.get("License"))
    assert "--seed 1" in card
    assert all(file_digest(folders / "one" / name) in card for name in FILES if name != "README.md")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_questions": 10, "train_conversations": 11}, "--train_conversations is 11"),
        ({"topk": 0}, "--topk is 0"),
        ({"validation_questions": 0}, "--validation_questions is 0"),
    ],
)
def test_impossible_sizes_are_refused_and_nothing_is_written(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        facts(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_more_questions_than_there_are_is_refused(data):
    elements = {e.id: e for e in data.table.of_kind("element")}
    table = FactTable(elements, [f for f in data.table.facts if f.entity in elements])
    with pytest.raises(InputError, match=r"--test_questions 5000 needs .* give at most"):
        split_questions(table, {"train": 10, "test": 5000}, seed=0)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file"):
        facts(tmp_path / "out", train_questions=20, validation_questions=5, test_questions=5, train_conversations=5)
