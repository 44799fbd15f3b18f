"""The reader and writer of rows: write -> read identity in every format, atomic writing, one sentence for bad input."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from project import writing
from project.errors import InputError
from project.files import file_digest, local_file, read_records, read_rows
from project.records import Conversation, Message, Passage, Question, Step, ToolCall, Trace
from project.writing import atomic_path, is_taken, new_folder, write_records, write_rows, write_text

FORMATS = ["a.jsonl", "a.jsonl.gz", "a.parquet"]


def tool(name: str, **properties: object) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


SEARCH = tool("search", queries={"type": "array", "items": {"type": "string"}}, topk={"type": "integer", "default": None})
VISIT = tool("visit", url={"type": "string", "enum": ["a", None]}, options={})


def conversation(ident: str, *calls: ToolCall, **fields: object) -> Conversation:
    return Conversation(ident, (Message("user", "q"), Message("assistant", "t", calls)), **fields)


CONVERSATIONS = [
    conversation("list", ToolCall("search", {"queries": ["a", "b"]}), tools=(SEARCH,)),
    conversation("two tools", ToolCall("search", {"queries": []}), ToolCall("visit", {"url": "u"}, "1"), tools=(SEARCH, VISIT)),
    conversation("empty objects", ToolCall("visit", {"options": {}}), tools=(tool("visit"),), extra_info={}),
    conversation("no arguments", ToolCall("visit", {})),
    conversation(
        "null", ToolCall("visit", {"url": None, "list": [None, {"a": None}]}), extra_info={"a": None, "b": [None], "c": {}}
    ),
    conversation("other", ToolCall("other", {"url": 3, "queries": {"a": 1}}), answers=("x",), extra_info={"a": "1", "b": 2.5}),
    conversation("half a pair", ToolCall("search", {"q": "\ud800"}), question="Tögrög 🙂 \u2028\n\t\x00"),
    Conversation("no messages", (), group="g"),
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("order", [1, -1])
def test_conversations_survive(tmp_path, name, order):
    wanted = CONVERSATIONS[::order]
    assert write_records(tmp_path / name, wanted) == len(wanted)
    assert read_records(tmp_path / name, Conversation.from_row) == wanted
    assert [row for _, row in read_rows(tmp_path / name)] == [c.to_row() for c in wanted], "the rows too, key by key"


@pytest.mark.parametrize("name", FORMATS)
def test_trap_17_no_null_of_arrow_reaches_a_tool_schema(tmp_path, name):
    """Arrow merges the parameter names of different tools and fills the absent ones with nulls."""
    write_records(tmp_path / name, CONVERSATIONS[:3])
    read = read_records(tmp_path / name, Conversation.from_row)
    assert json.dumps(read[1].tools) == json.dumps([SEARCH, VISIT])
    assert list(read[1].messages[1].tool_calls[1].arguments) == ["url"]


def test_trap_17_foreign_parquet_loses_only_the_nulls_in_objects(tmp_path):
    """A file of another system holds structs: there Arrow has merged the keys already."""
    visit = tool("visit", url={"type": "string", "enum": ["a", None]})
    wanted = [CONVERSATIONS[0], replace(CONVERSATIONS[1], tools=(SEARCH, visit))]
    rows = [c.to_row() | {"extra_info": {"split": "train"}, "context": "{plain text"} for c in wanted]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [row for _, row in read_rows(tmp_path / "a.parquet")]
    assert read[0]["tools"][0]["function"]["parameters"]["properties"].keys() == {"queries", "topk"}
    assert read[1]["tools"][1]["function"]["parameters"]["properties"]["url"]["enum"] == ["a", None]
    assert read[0]["context"] == "{plain text"
    assert [Conversation.from_row(row).messages for row in read] == [c.messages for c in wanted]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "records",
    [
        [Question("1", "q", ()), Question("2", "q", ("a", "b"), ("p",), True, "k", "g", {"a": {}})],
        [Question("1", "q", ("a",), needs_search=None), Question("2", "q", (), needs_search=False)],
        [Trace("1", "q", (), (Step("answer", "a"),), None), Trace("2", "q", ("a",), (), False, "s")],
        [Passage("1", "T", "x"), Passage("2", "", "", "s", 1, 2)],
    ],
)
def test_other_records_survive(tmp_path, name, records):
    write_records(tmp_path / name, records)
    assert read_records(tmp_path / name, type(records[0]).from_row) == records


cells = (
    st.none()
    | st.booleans()
    | st.text(max_size=3)
    | st.dictionaries(st.sampled_from("ab"), st.none() | st.integers(0, 3), max_size=2)
)
lists = st.lists(cells, max_size=3)
row_lists = st.lists(
    st.fixed_dictionaries(
        {"id": st.text(max_size=3)},
        optional={
            "extra_info": cells | lists,
            "messages": lists,
            "flag": st.none() | st.booleans(),
            "score": st.none() | st.floats(0, 1),
            "names": st.none() | st.lists(st.none() | st.text(max_size=2), max_size=2),
            "object": st.none() | st.dictionaries(st.sampled_from("xyz"), cells, max_size=2),
        },
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", FORMATS)
@given(rows=row_lists)
def test_rows_survive(tmp_path_factory, name, rows):
    """Absent keys stay absent and nulls stay null, whatever the other rows hold."""
    path = tmp_path_factory.mktemp("rows") / name
    assert write_rows(path, rows) == len(rows)
    assert list(read_rows(path)) == list(enumerate(rows, 1))


def test_parquet_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 1_000)
    rows: list[dict] = [
        {"id": str(n), "text": "x" * 100, "extra_info": {"n": n}} | ({} if n % 3 else {"score": n / 2}) for n in range(40)
    ]
    rows[5]["score"] = None
    write_rows(tmp_path / "a.parquet", iter(rows))
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups >= 4
    assert [row for _, row in read_rows(tmp_path / "a.parquet")] == rows


@pytest.mark.parametrize("last", [{"id": "x", "late": 1}, {"id": 3}, {"id": "\ud800"}])
def test_parquet_refuses_what_it_would_lose(tmp_path, monkeypatch, last):
    """A column that first appears after the first row group, or changes its type, is an error and not a silent loss."""
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 1_000)
    with pytest.raises(InputError, match=r"a.parquet cannot hold rows of different columns or types \(.*write .jsonl"):
        write_rows(tmp_path / "a.parquet", [*({"id": "x" * 100} for _ in range(20)), last])
    assert not list(tmp_path.glob("*a.parquet*"))


def test_a_json_list_and_blank_lines(tmp_path):
    (tmp_path / "a.json").write_text('[{"id": 1},\n {"id": 2}]')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'{"id": 1}'))
    (tmp_path / "c.jsonl").write_text('{"id": 1}\n\n{"id": 2}')
    assert list(read_rows(tmp_path / "a.json")) == [(1, {"id": 1}), (2, {"id": 2})]
    assert list(read_rows(tmp_path / "b.json.gz")) == [(1, {"id": 1})]
    assert list(read_rows(str(tmp_path / "c.jsonl"))) == [(1, {"id": 1}), (3, {"id": 2})], "numbers are those of the file"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", None, "does not exist"),
        ("a.csv", b"a,b", "suffix '.csv'; expected"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.jsonl", b'{"id": 1}\n{"id": \n', r"line 2: not JSON \("),
        ("a.jsonl", b'{"id": 1}\n[1]\n', "line 2: a JSON list, expected an object"),
        ("a.jsonl", b"[" * 100_000, "line 1: JSON that cannot be read"),
        ("a.jsonl", b'{"id": ' + b"1" * 5_000 + b"}", "line 1: JSON that cannot be read"),
        ("a.jsonl", b'{"id": "\xff"}', "is damaged"),
        ("a.jsonl.gz", b'{"id": 1}', "is damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"id": "' + bytes(range(32, 127)) * 99 + b'"}\n')[:-40], "is damaged"),
        ("a.json", b"[{]", "line 1: not JSON"),
        ("a.json", b"[" * 100_000, "cannot be read"),
        ("a.json", b'[{"id": 1}, 3]', "line 2: a JSON int"),
        ("a.parquet", b"PAR1 no", "is not a Parquet file"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, name, data, words):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=words) as error:
        list(read_rows(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


def test_a_wrong_row_is_named_by_file_and_line(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": "q", "answers": []}\n\n{"id": "2", "answers": []}\n')
    with pytest.raises(InputError, match=r"q.jsonl, line 3: field 'question' is missing"):
        read_records(tmp_path / "q.jsonl", Question.from_row)


@pytest.mark.parametrize("name", FORMATS)
def test_writing_is_atomic(tmp_path, name):
    """A run that dies while writing leaves the old file, and no part of the new one."""
    write_rows(tmp_path / name, [{"id": "old"}])
    before = set(tmp_path.iterdir())

    def rows():
        yield {"id": "new"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / name, rows())
    assert [row for _, row in read_rows(tmp_path / name)] == [{"id": "old"}]
    assert set(tmp_path.iterdir()) == before


def test_writing_makes_folders_and_refuses_other_suffixes(tmp_path):
    write_text(tmp_path / "new" / "card.md", "é\n")
    assert (tmp_path / "new" / "card.md").read_text(encoding="utf-8") == "é\n"
    assert (tmp_path / "new" / "card.md").stat().st_mode & 0o777 == 0o644
    with pytest.raises(InputError, match=r"a.csv cannot be written; its suffix must be"):
        write_rows(tmp_path / "a.csv", [{}])
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "b") as partial:
        partial.write_text(str(1 / 0))
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob("*.part"))


def test_digest_names_the_content(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    digests = [file_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] == "2d711642b726b044"  # printf x | sha256sum
    assert digests[2] != digests[0]


@pytest.mark.parametrize("scheme", ["hf://", "hf:/"])  # as it is typed, and as a Path holds it
@pytest.mark.parametrize(("at", "revision"), [("", None), ("@v1", "v1")])
def test_a_file_of_the_hub_is_taken_from_it(monkeypatch, tmp_path, scheme, at, revision):
    def download(name, file, *, repo_type, revision):
        asked.append((name, file, repo_type, revision))
        return str(tmp_path / "found.jsonl")

    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert local_file(f"{scheme}datasets/me/searches{at}/data/train.jsonl") == tmp_path / "found.jsonl"
    assert asked == [("me/searches", "data/train.jsonl", "dataset", revision)]
    assert local_file("me/searches/train.jsonl") == Path("me/searches/train.jsonl")


def test_a_file_that_the_hub_does_not_give_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"^train.jsonl of the hub's me/searches cannot be had \(.+\); check the names and"):
        local_file("hf://datasets/me/searches/train.jsonl")
    with pytest.raises(InputError, match=r"hf://models/me/x is no file of the hub; write hf://datasets/OWNER/NAME/FILE or"):
        local_file("hf://models/me/x")


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    killed = (
        "import os; from project.writing import atomic_path\nwith atomic_path('out.jsonl') as partial: os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, check=False).returncode == -9
    (left,) = tmp_path.glob(".*")
    write_text(tmp_path / "out.jsonl", "fresh")
    assert left.exists()  # written a moment ago: its writer may not have locked it yet
    os.utime(left, (0, 0))
    write_text(tmp_path / "other.jsonl", "another name")
    assert left.exists()
    with atomic_path(tmp_path / "out.jsonl") as written:
        assert not left.exists()
        os.utime(written, (0, 0))
        write_text(tmp_path / "out.jsonl", "meanwhile")
        written.write_text("last")
    assert not list(tmp_path.glob(".*"))
    assert {path.name: path.read_text() for path in tmp_path.glob("*.jsonl")} == {
        "out.jsonl": "last",
        "other.jsonl": "another name",
    }


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_a_killed_process_left_is_removed_and_one_being_written_is_not(tmp_path, is_there):
    place = tmp_path / "out" if is_there else tmp_path
    place.mkdir(exist_ok=True)
    imports = "import os; from pathlib import Path; from project.writing import new_folder"
    killed = f"{imports}\nwith new_folder(Path('out')) as left: (left / 'weights').touch(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, check=False).returncode == -9
    (left,) = place.glob(".*")
    assert is_taken(tmp_path / "out") == is_there, "written a moment ago: its writer may not have locked it yet"
    os.utime(left, (0, 0))
    assert not is_taken(tmp_path / "out")
    with new_folder(tmp_path / "out") as written:
        assert not left.exists()
        os.utime(written, (0, 0))
        assert is_taken(tmp_path / "out") == is_there
        with new_folder(tmp_path / "other"):
            assert written.exists()
        (written / "weights").write_text("whole")
    assert not list(tmp_path.glob("**/.*"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"]


def test_an_empty_folder_is_filled_whole_or_not_at_all(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out was filled while this was made, and holds b; name another"):
        write_two(tmp_path / "out")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"b": "theirs"}


def write_two(folder):
    with new_folder(folder) as partial:
        for name in ("a", "b"):
            (partial / name).write_text("ours")
        (folder / "b").write_text("theirs")
