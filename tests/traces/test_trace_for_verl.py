"""`seeker data export --for_verl`: what verl's own dataset makes of the files, worked by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chat_templates import DEFAULT_SYSTEM, PLAIN, QWEN3, QWEN25
from tiny import byte_tokenizer

from project.cli import main
from project.dialects import SEARCH_TOOL, Action, get_dialect
from project.records import Conversation, Document, Message, ToolCall
from project.traces.calls import split_calls
from project.writing import write_records

TOOLS = get_dialect("tools")
SCHEMA = json.dumps(SEARCH_TOOL)
LIST_TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {"type": "object", "properties": {"query_list": {"type": "array", "items": {"type": "string"}}}},
    },
}


@pytest.fixture
def model(tmp_path):
    def saved(template, merges=()):
        folder = tmp_path / f"model-{hash((template, merges)):x}"
        byte_tokenizer(template, merges).save_pretrained(folder)
        return str(folder)

    return saved


def said(*queries, ident="c0"):
    """System, question, one turn with the queries, results, answer."""
    action = Action("I look.", queries)
    found = TOOLS.results([[Document(f"About {query}.")] for query in queries], action)
    asked = [Message("system", "Search."), Message("user", "Who?")]
    messages = (*asked, TOOLS.write(action), *found, TOOLS.write(Action("I know.", answer="Ana")))
    return Conversation(ident, messages, (SEARCH_TOOL,), "Who?", ("Ana",))


def export(tmp_path, model, conversations, *more):
    write_records(tmp_path / "in.jsonl", conversations)
    files = f"--input_file={tmp_path / 'in.jsonl'}", f"--output_file={tmp_path / 'verl.parquet'}"
    return main(["data", "export", *files, f"--for_verl={model}", *more])


def rejected(tmp_path):
    path = tmp_path / "verl.parquet.rejected.jsonl"
    return [json.loads(line)["reason"] for line in path.read_text().splitlines()] if path.exists() else []


def read_by_verl(tmp_path, model):
    script = Path(__file__).with_name("verl_reads.py")
    done = subprocess.run([sys.executable, script, tmp_path / "verl.parquet", model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line.removeprefix("verl:")) for line in done.stdout.splitlines() if line.startswith("verl:")]


def called(query):
    return f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call><|im_end|>\n'


def shown(query):
    return f"<|im_start|>user\n<tool_response>\nDoc 1 (Title: )\nAbout {query}.\n</tool_response><|im_end|>\n"


@pytest.mark.parametrize("template", [QWEN25, DEFAULT_SYSTEM])
def test_verls_dataset_trains_the_turns_and_nothing_else(tmp_path, model, template):
    """Two calls of one turn become two turns, the thought at the first; a query in quotes and not in ASCII stays as it is."""
    folder = model(template)
    assert export(tmp_path, folder, [said("Zoë", "Dor"), said("Ré", ident="c1")]) == 0
    [(whole, trained), (_, other)] = read_by_verl(tmp_path, folder)
    answer = "<think>\nI know.\n</think>\n<answer>\nAna\n</answer><|im_end|>\n"
    assert trained == [f"<think>\nI look.\n</think>\n{called('Zoë')}", called("Dor"), answer]
    assert other == [f"<think>\nI look.\n</think>\n{called('Ré')}", answer]
    head = "<|im_start|>assistant\n"
    assert whole == (
        f"<|im_start|>system\nSearch.\n\n# Tools\n\n<tools>\n{SCHEMA}\n</tools><|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
        f"{head}{trained[0]}{shown('Zoë')}{head}{trained[1]}{shown('Dor')}{head}{answer}"
    )


def test_a_conversation_without_a_system_message_or_tools(tmp_path, model):
    """Qwen2.5 adds a system prompt to each message that is rendered alone; verl takes as many tokens off."""
    folder = model(DEFAULT_SYSTEM)
    first = Message("user", "Who?"), Message("assistant", "Who what?")
    then = Message("user", "The mayor."), Message("assistant", "Ana.")
    assert export(tmp_path, folder, [Conversation("c0", (*first, *then))]) == 0
    [(whole, trained)] = read_by_verl(tmp_path, folder)
    assert trained == ["Who what?<|im_end|>\n", "Ana.<|im_end|>\n"]
    assert whole.startswith("<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nWho?")
    assert whole.count("You help.") == 1


def test_columns_are_nested_and_arguments_have_the_form_of_the_template(tmp_path, model):
    assert export(tmp_path, model(QWEN25), [said("Dor")]) == 0
    [row] = pq.read_table(tmp_path / "verl.parquet").to_pylist()
    assert row["tools"] == [SEARCH_TOOL]
    assert row["messages"][2]["tool_calls"][0]["function"] == {"name": "search", "arguments": {"query": "Dor"}}
    assert row["messages"][0]["tool_calls"] is None
    as_it_is = QWEN25.replace("tool_call.arguments | tojson", "tool_call.arguments")
    assert export(tmp_path, model(as_it_is), [said("Dor")], "--force=true") == 0
    [row] = pq.read_table(tmp_path / "verl.parquet").to_pylist()
    assert row["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"query": "Dor"}'


STRICT = QWEN25.replace(
    "{{- tool_call.arguments | tojson }}",
    "{%- for name, value in tool_call.arguments.items() %}{{- '<parameter=' + name + '>' + value }}{%- endfor %}",
)
"""As Qwen3-Coder's and others: arguments must be an object, and are not shown as JSON."""


def test_a_template_may_refuse_arguments_as_text_and_write_them_its_own_way(tmp_path, model):
    folder = model(STRICT)
    assert export(tmp_path, folder, [said("Dor")]) == 0
    [(_, trained)] = read_by_verl(tmp_path, folder)
    assert "<parameter=query>Dor" in trained[0]


def test_what_verl_would_refuse_or_train_wrongly_is_listed_with_the_reason(tmp_path, model):
    good, listed = said("Dor"), said("Dor", ident="tools")
    weighted = said("Dor", ident="weight")
    weighted = Conversation(
        "weight", (*weighted.messages[:2], Message("assistant", "hm", weight=0.0), *weighted.messages[1:]), weighted.tools
    )
    call = ToolCall("search", {"query_list": ["Dor"]}, "a")
    keys = Conversation("keys", (Message("user", "Who?"), Message("assistant", "", (call,))), (SEARCH_TOOL,))
    tools = Conversation("tools", listed.messages, (LIST_TOOL,))
    assert export(tmp_path, model(QWEN25), [good, weighted, keys, tools]) == 0
    assert [reason.split(";")[0].split(",")[0] for reason in rejected(tmp_path)] == [
        "a turn of the assistant has a weight other than 1",
        "verl would see its tools or its calls' arguments changed by the file's columns: export it by itself",
        "its tools are others than the file's first",
    ]
    assert len(pq.read_table(tmp_path / "verl.parquet")) == 1


def test_two_tools_with_other_parameters_cannot_stand_in_one_file(tmp_path, model, capsys):
    """Arrow would give both the parameters of both, and the template would show them."""
    visit = {"type": "function", "function": {"name": "visit", "parameters": {"properties": {"url": {"type": "string"}}}}}
    one = said("Dor")
    assert export(tmp_path, model(QWEN25), [Conversation("c0", one.messages, (SEARCH_TOOL, visit))]) == 2
    assert "verl would see its tools" in capsys.readouterr().err
    assert not (tmp_path / "verl.parquet").exists()


def test_qwen3_writes_the_last_turn_otherwise_and_has_no_such_file(tmp_path, model, capsys):
    assert export(tmp_path, model(QWEN3), [said("Dor")]) == 2
    assert "the template writes the whole otherwise than its messages one by one" in capsys.readouterr().err


def test_a_template_that_shows_no_calls_is_refused(tmp_path, model, capsys):
    assert export(tmp_path, model(PLAIN), [said("Dor")]) == 2
    assert "shows no tool calls" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "message"), [(None, "has no chat template"), ("missing", "whose tokenizer cannot be loaded")]
)
def test_a_model_without_a_template_is_refused(tmp_path, model, capsys, template, message):
    folder = model(None) if template is None else str(tmp_path / "none")
    assert export(tmp_path, folder, [said("Dor")]) == 2
    assert message in capsys.readouterr().err


def test_calls_are_split_where_ids_are_those_of_other_turns_too():
    """`call_0` is the first call of each turn."""
    one, two = said("a", "b"), said("c", "d")
    split = split_calls([*one.messages[:-1], *two.messages[2:]])
    assert [m.content.split()[-1].rstrip(".") for m in split if m.role == "tool"] == ["a", "b", "c", "d"]
    assert [call.arguments["query"] for m in split for call in m.tool_calls] == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="2 calls has 1 results"):
        split_calls([*one.messages[:4], one.messages[-1]])


def turns(*contents, ident="c0", tools=()):
    roles = ["user", "assistant"] * len(contents)
    return Conversation(ident, tuple(Message(role, one) for role, one in zip(roles, contents, strict=False)), tools)


def test_what_is_the_same_text_and_other_tokens_is_refused_as_verl_does(tmp_path, model):
    """A line break of the answer grows into the header's, whose tokens verl leaves out; the other conversation is as ever."""
    folder = model(PLAIN, (("Ċ", "Ċ"),))
    assert export(tmp_path, folder, [turns("Who?", "\nAna."), turns("Who?", "Ana.", ident="c1")]) == 0
    [reason] = rejected(tmp_path)
    assert reason.startswith("the template begins a turn with '<|im_start|>assistant\\n\\n'")
    assert read_by_verl(tmp_path, folder) == [
        ["<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAna.<|im_end|>\n", ["Ana.<|im_end|>\n"]]
    ]


NO_TOOLS_IS_NONE = PLAIN + "{% if tools is not none %}TOOLS{% endif %}"


def test_no_tools_are_passed_as_verl_passes_them(tmp_path, model):
    """A file of conversations without tools has no such column, where verl would give the template an empty list."""
    folder = model(NO_TOOLS_IS_NONE)
    assert export(tmp_path, folder, [turns("Who?", "Ana.")]) == 0
    assert pq.read_schema(tmp_path / "verl.parquet").names == ["id", "messages"]
    [(whole, _)] = read_by_verl(tmp_path, folder)
    assert "TOOLS" not in whole


@pytest.mark.parametrize(
    ("second", "kept"), [({"query": "b", "k": 1}, True), ({"query": "b", "k": 1.0}, False), ({"query": "b", "k": True}, False),
                         ({"k": 1, "query": "b"}, False), ({"query": "b"}, False), ({}, False)],
)  # fmt: skip
def test_arguments_that_the_columns_would_change_are_refused(tmp_path, model, second, kept):
    def calling(ident, arguments):
        asked, said = Message("user", "Who?"), Message("assistant", "", (ToolCall("search", arguments, "a"),))
        return Conversation(
            ident, (asked, said, Message("tool", "Ana", tool_call_id="a"), Message("assistant", "Ana")), (SEARCH_TOOL,)
        )

    assert export(tmp_path, model(QWEN25), [calling("a", {"query": "a", "k": 2}), calling("b", second)]) == 0
    assert len(pq.read_table(tmp_path / "verl.parquet")) == 1 + kept
    assert len(rejected(tmp_path)) == (not kept)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"type": "object", "properties": {}}, "holds an empty object"),
        ({"properties": {"query": {"enum": ["a", 1]}}}, "hold what Parquet has no column for"),
    ],
)
def test_a_schema_that_parquet_cannot_hold_is_one_sentence(tmp_path, model, capsys, parameters, message):
    tool = {"type": "function", "function": {"name": "search", "parameters": parameters}}
    assert export(tmp_path, model(QWEN25), [turns("Who?", "Ana.", tools=(tool,))]) == 2
    assert message in capsys.readouterr().err


def test_the_first_row_decides_nothing_where_it_cannot_be_written(tmp_path, model):
    (tmp_path / "in.jsonl").write_text("{bad\n")
    weighted = Conversation("w", (Message("user", "Who?"), Message("assistant", "hm", weight=0.0)), (LIST_TOOL,))
    write_records(tmp_path / "more.jsonl", [weighted, said("Dor")])
    lines = (tmp_path / "in.jsonl").read_text() + (tmp_path / "more.jsonl").read_text()
    (tmp_path / "in.jsonl").write_text(lines)
    files = f"--input_file={tmp_path / 'in.jsonl'}", f"--output_file={tmp_path / 'verl.parquet'}"
    assert main(["data", "export", *files, f"--for_verl={model(QWEN25)}"]) == 0
    [row] = pq.read_table(tmp_path / "verl.parquet").to_pylist()
    assert row["tools"] == [SEARCH_TOOL]
    assert len(rejected(tmp_path)) == 2


NO_RESULT = QWEN25.replace('{%- elif message.role == "tool" %}', '{%- elif message.role == "nobody" %}')


@pytest.mark.parametrize(
    ("template", "conversation", "reason"),
    [
        (NO_RESULT, said("Dor"), "the template drops 'Doc 1"),
        (PLAIN, turns("Who?", "Ana.", tools=(SEARCH_TOOL,)), "the template drops 'search'"),
        (QWEN25, turns("Who?", "Ana.<|im_end|>\n<|im_start|>user\nNo!"), "a message holds the control token"),
        (QWEN25, turns("Who?"), "it has no turn of the assistant"),
        (QWEN25, Conversation("c0", said("a", "b").messages[:3], (SEARCH_TOOL,)), "its last turn has several calls"),
        (
            QWEN25,
            Conversation("c0", (*said("a", "b").messages[:3], *said("a").messages[-1:])),
            "a turn of 2 calls has 0 results",
        ),
    ],
)
def test_what_would_be_trained_wrongly_is_refused(tmp_path, model, capsys, template, conversation, reason):
    assert export(tmp_path, model(template), [conversation]) == 2
    assert f"line 1: {reason}" in capsys.readouterr().err


def test_calls_without_ids_go_with_their_results_in_order():
    calls = ToolCall("search", {"query": "a"}), ToolCall("search", {"query": "b"})
    split = split_calls([Message("assistant", "x", calls), Message("tool", "of a"), Message("tool", "of b")])
    assert [(m.role, m.content) for m in split] == [("assistant", "x"), ("tool", "of a"), ("assistant", ""), ("tool", "of b")]
