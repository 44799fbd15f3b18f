"""`seeker data distill` as a user types it, against a teacher by rule and a search by words."""

import json
import os
import subprocess

import pytest
from openai_stub import Stub, completion

from project.cli import main
from project.dialects import get_dialect
from project.files import read_records, read_rows
from project.records import Conversation, Message, ToolCall
from project.teacher.distill import read_question
from project.teacher.schemas import read_queries, search_tool
from project.traces.calls import split_calls
from project.writing import write_rows

QUESTIONS = [
    {
        "id": "q0",
        "question": "Who is the mayor of Dor?",
        "answers": ["Ana Roux"],
        "evidence": ["d1"],
        "kind": "one_hop",
        "group": "Dor",
    },
    {"id": "q1", "question": "Who is the mayor of Elm?", "answers": ["Bo Lind"]},
    {"id": "q2", "question": "Who is the mayor of Fro?", "answers": ["Cy Dahl"]},
    {"id": "q3", "question": "Who is the mayor of Gex?", "answers": ["Di Orr"]},
]
PASSAGES = {"d1": "The mayor of Dor is Ana Roux.", "d2": "The mayor of Elm is Bo Lind."}


def call(ident, **arguments):
    return {"id": ident, "type": "function", "function": {"name": "search", "arguments": json.dumps(arguments)}}


def town(messages):
    return messages[1]["content"].removesuffix("?").rsplit(" ", 1)[1]


def native(asked, _):
    """Searches first; answers what it was shown, of Fro a guess; of Gex it searches for ever."""
    messages = asked["messages"]
    results = [message for message in messages if message["role"] == "tool"]
    if not results or town(messages) == "Gex":
        query = call("x", query=f"mayor of {town(messages)}")
        return completion(f"<think>\nWho rules {town(messages)}?\n</think>", "tool_calls", tool_calls=[query])
    shown = results[-1]["content"]
    answer = shown.rsplit(" is ", 1)[1].rstrip(".") if " is " in shown else "Nobody"
    return completion(f"<think>\nDoc 1 says it.\n</think>\n<answer> {answer} </answer>")


@pytest.fixture
def files(tmp_path):
    write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    return tmp_path / "questions.jsonl", tmp_path / "out.jsonl"


def run(files, stub, *more):
    given, out = files
    base = stub.url.removesuffix("/v1")
    arguments = ["--input_file", str(given), "--output_file", str(out), "--vllm_url", base, "--retrieval_url", base]
    return main(["data", "distill", *arguments, *more])


def conversations(path):
    return list(read_records(path, Conversation.from_row))


def test_trap_09_right_ones_are_kept_and_the_others_lie_apart_with_the_reason(files):
    with Stub(native) as stub:
        stub.passages = PASSAGES
        assert run(files, stub) == 0
    kept, failed = conversations(files[1]), conversations(files[1].with_name("out_failed.jsonl"))
    assert [c.id for c in kept] == ["q0", "q1"]
    assert {c.id: c.extra_info["reason"] for c in failed} == {"q2": "wrong answer", "q3": "max_turns"}
    first = kept[0]
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert first.messages[:2] == tuple(get_dialect("tools").opening(first.question))  # trap 6: as the agent will be asked
    assert {asked["messages"][0]["content"] for asked in stub.asked} != {first.messages[0].content}  # not as the teacher was
    assert first.messages[2].tool_calls == (ToolCall("search", {"query": "mayor of Dor"}, "call_0_0"),)
    assert first.messages[3].tool_call_id == "call_0_0"
    assert "The mayor of Dor is Ana Roux." in first.messages[3].content
    assert first.messages[4].content.endswith("<answer> Ana Roux </answer>")
    assert (first.question, first.answers, first.group) == ("Who is the mayor of Dor?", ("Ana Roux",), "Dor")
    assert first.extra_info["evidence"] == ["d1"]
    assert (first.extra_info["em"], first.extra_info["searches"]) == (1.0, 1)
    assert first.tools == (search_tool("query"),)
    assert all(asked["tools"] == [search_tool("query")] for asked in stub.asked)
    counts = json.loads(files[1].with_name("out.jsonl.manifest.json").read_text())["counts"]
    assert counts["questions answered"] == 2
    assert counts["attempts: wrong answer"] == counts["attempts: max_turns"] == 1
    assert len(stub.asked) == 2 + 2 + 2 + 3
    assert all(asked["temperature"] == 0.7 and asked["max_tokens"] == 2048 for asked in stub.asked)


def read_again(message):
    """Return a result in the user's text as a tool's."""
    head, _, rest = message["content"].partition("<tool_response>\n")
    return message if head or not rest else {"role": "tool", "content": rest.removesuffix("\n</tool_response>")}


def written(asked, before):
    """The same with calls and results in the text."""
    assert not any("tool_calls" in message or message["role"] == "tool" for message in asked["messages"])
    reply = native({**asked, "messages": list(map(read_again, asked["messages"]))}, before)
    message = reply["choices"][0]["message"]
    for one in message.pop("tool_calls", []):
        function = one["function"] | {"arguments": json.loads(one["function"]["arguments"])}
        message["content"] += f"\n<tool_call>\n{json.dumps(function)}\n</tool_call>"
    return reply


def test_calls_that_are_written_in_the_text_become_calls(files):
    with Stub(written) as stub:
        stub.passages = PASSAGES
        assert run(files, stub, "--native_calls", "false", "--max_samples", "2") == 0
        assert all("tools" not in asked for asked in stub.asked)
        assert '"name": "search"' in stub.asked[0]["messages"][0]["content"]
    kept = conversations(files[1])
    assert [c.id for c in kept] == ["q0", "q1"]
    assert kept[0].messages[2].tool_calls[0].arguments == {"query": "mayor of Dor"}
    assert "<tool_call>" not in kept[0].messages[2].content


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ("query_list", {"query_list": ["mayor of Dor", "mayor of Elm"]}),
        ("queries", {"query": ["mayor of Dor", "mayor of Elm"]}),
    ],
)
def test_several_queries_of_a_call_have_their_results_together(files, schema, arguments):
    def reply(asked, _):
        if len(asked["messages"]) == 2:
            return completion("", "tool_calls", tool_calls=[call("a", **arguments), call("b", **arguments)])
        return completion("<answer> Ana Roux </answer>")

    with Stub(reply) as stub:
        stub.passages = PASSAGES
        assert run(files, stub, "--schema", schema, "--max_samples", "1") == 0
        assert stub.searched == ["mayor of Dor", "mayor of Elm"] * 2
    [kept] = conversations(files[1])
    assert [m.tool_call_id for m in kept.messages if m.role == "tool"] == ["call_0_0", "call_0_1"]
    for message in kept.messages[3:5]:
        assert "Ana Roux" in message.content
        assert "Bo Lind" in message.content
    assert kept.tools == (search_tool(schema),)


def test_parallel_calls_can_be_split_into_turns():
    def tool(ident):
        return Message("tool", f"result {ident}", tool_call_id=ident)

    calls = tuple(ToolCall("search", {"query": ident}, ident) for ident in "ab")
    start, end = Message("user", "?"), Message("assistant", "!")
    split = split_calls([start, Message("assistant", "thought", calls), tool("a"), tool("b"), end])
    assert split == [
        start, Message("assistant", "thought", calls[:1]), tool("a"), Message("assistant", "", calls[1:]), tool("b"), end,
    ]  # fmt: skip


def test_of_several_attempts_the_first_right_ones_are_kept(files):
    tries = []

    def reply(asked, before):
        if len(asked["messages"]) == 2:
            return completion("", "tool_calls", tool_calls=[call("x", query="mayor of Dor")])
        tries.append(1)
        answers = ["Nobody", "Ana Roux", "<b> Ana Roux </b>", "Ana Roux"]
        return completion(f"<answer> {answers[min(len(tries), 4) - 1]} </answer>")

    with Stub(reply) as stub:
        stub.passages = PASSAGES
        assert run(files, stub, "--max_samples", "1", "--attempts", "9", "--most", "2", "--keep", "cover_em") == 0
    kept, failed = conversations(files[1]), conversations(files[1].with_name("out_failed.jsonl"))
    assert [(c.id, c.extra_info["attempt"], c.extra_info["em"]) for c in kept] == [("q0", 1, 1.0), ("q0~2", 2, 0.0)]
    assert [c.extra_info["attempt"] for c in failed] == [0]
    assert len(stub.asked) == 6
    assert len({asked["seed"] for asked in stub.asked}) == 6, "each attempt has its own seed"


def test_a_judge_says_which_answers_are_right(files, tmp_path, capsys, monkeypatch):
    """Another spelling, which no match of words takes; a judge that is down stops the job, which goes on later."""

    def reply(asked, _):
        if len(asked["messages"]) == 2:
            return completion("", "tool_calls", tool_calls=[call("x", query="mayor")])
        return completion("<answer> Mme Roux </answer>" if town(asked["messages"]) == "Dor" else "<answer> Nobody </answer>")

    def verdict(asked, _):
        told = json.loads(asked["messages"][-1]["content"])
        return completion("yes" if "Roux" in json.dumps(told) else "no")

    monkeypatch.setattr("project.rewards.judge.ATTEMPTS", 1)
    with Stub(reply) as stub:
        judge = ["--keep", "judge", "--judge.model", "fixed", "--judge.cache_file", str(tmp_path / "judge.db")]
        options = [*judge, "--max_samples", "2", "--judge.base_url"]
        stub.passages = PASSAGES
        assert run(files, stub, *options, "http://127.0.0.1:9/v1") == 1
        assert "judge" in capsys.readouterr().err
        assert not files[1].exists()
        asked = len(stub.asked)
        with Stub(verdict) as judging:
            assert run(files, stub, *options, judging.url) == 0
        assert {one["model"] for one in judging.asked} == {"fixed"}
        assert len(stub.asked) == 4 >= asked > 0
    [kept] = conversations(files[1])
    assert (kept.id, kept.extra_info["answer"], kept.extra_info["em"]) == ("q0", "Mme Roux", 0.0)
    [failed] = conversations(files[1].with_name("out_failed.jsonl"))
    assert (failed.id, failed.extra_info["reason"]) == ("q1", "wrong answer")


def second_try(asked, before):
    """The first search is for the wrong town, the first answer a guess; the second attempt does it right."""
    wrong = before == 0 and len(asked["messages"]) == 2
    reply = native(asked, before)
    [choice] = reply["choices"]
    if wrong and "tool_calls" in choice["message"]:
        choice["message"]["tool_calls"] = [call("x", query="mayor of Zed")]
    return reply


def seeded(asked, before):
    """As `second_try`, by the request's seed in place of its number: each attempt has another."""
    seeds = seeded.seeds.setdefault(town(asked["messages"]), [])
    if len(asked["messages"]) == 2:
        seeds.append(asked["seed"])
    return second_try(asked, len(seeds) - 1)


def test_retries_begin_with_the_search_of_a_failed_attempt(files):
    seeded.seeds = {}
    with Stub(seeded) as stub:
        stub.passages = PASSAGES
        assert run(files, stub, "--attempts", "3", "--retry_share", "0.5", "--max_samples", "3") == 0
    kept = conversations(files[1])
    assert [c.id for c in kept] == ["q0", "q1"]
    [retry] = [c for c in kept if c.extra_info.get("retry")]
    place = retry.question.removesuffix("?").rsplit(" ", 1)[1]
    assert [m.role for m in retry.messages] == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert retry.messages[:2] == tuple(get_dialect("tools").opening(retry.question))
    poor, again = retry.messages[2], retry.messages[4]
    assert poor.tool_calls == (ToolCall("search", {"query": "mayor of Zed"}, "poor_call_0_0"),)
    assert (retry.messages[3].content, retry.messages[3].tool_call_id) == ("No results.", "poor_call_0_0")
    assert again.content == f"<think>\nThe results do not say it, so I search again. Who rules {place}?\n</think>"
    assert again.tool_calls[0].arguments == {"query": f"mayor of {place}"}
    assert [row["id"] for row in rows_of(files[1].with_name("out_questions.jsonl"))] == ["q0", "q1"]
    counts = json.loads(files[1].with_name("out.jsonl.manifest.json").read_text())["counts"]
    assert counts["conversations that search again after a poor result"] == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completion("I do not know."), "malformed"),
        (completion("<answer> Ana", "length"), "length"),
        (completion("", "tool_calls", tool_calls=[call("x", text="?")]), "malformed"),
        (completion("<tool_call>\n{nonsense\n</tool_call>"), "malformed"),
    ],
)
def test_what_cannot_be_read_or_does_not_end_lies_apart(files, reply, reason):
    with Stub(lambda *_: reply) as stub:
        assert run(files, stub, "--max_samples", "1") == 0
    [failed] = conversations(files[1].with_name("out_failed.jsonl"))
    assert failed.extra_info["reason"].startswith(reason)
    assert not files[1].read_text()


def test_a_refused_request_ends_its_attempt_alone(files):
    """For one that is too long, say, where others are answered."""
    with Stub(lambda asked, before: 400 if town(asked["messages"]) == "Fro" else native(asked, before)) as stub:
        stub.passages = PASSAGES
        assert run(files, stub, "--batch_size", "1") == 0
    failed = {c.id: c.extra_info["reason"] for c in conversations(files[1].with_name("out_failed.jsonl"))}
    assert failed["q2"].startswith("the request was refused: the teacher refuses the request: BadRequestError")
    assert [c.id for c in conversations(files[1])] == ["q0", "q1"]


def test_a_dry_run_needs_neither_teacher_nor_index(files, capsys):
    options = [
        "--input_file",
        str(files[0]),
        "--output_file",
        str(files[1]),
        "--index",
        str(files[0].parent),
        "--dry_run",
        "true",
    ]
    (files[0].parent / "manifest.json").write_text("{}")
    assert main(["data", "distill", *options]) == 0
    said = capsys.readouterr().out
    assert "Who is the mayor of Dor?" in said
    assert 'tools: [{"type":"function"' in said


def test_a_key_in_the_searchs_address_is_refused(files, capsys):
    options = ["--input_file", str(files[0]), "--output_file", str(files[1]), "--retrieval_url", "http://me:secret@host"]
    assert main(["data", "distill", *options]) == 2
    said = capsys.readouterr().err
    assert "SEEKER_RETRIEVAL_TOKEN" in said
    assert "secret" not in said


def rows_of(path):
    return [row for _, row in read_rows(path)]


def test_a_search_that_is_down_stops_the_job_and_the_same_command_goes_on(files, capsys):
    with Stub(native) as stub:
        stub.passages, stub.search_fails = PASSAGES, True
        assert run(files, stub, "--batch_size", "2") == 1
        said = capsys.readouterr().err
        assert "down" in said or "503" in said
        assert not files[1].exists()
        asked = len(stub.asked)
        stub.search_fails = False
        assert run(files, stub, "--batch_size", "2") == 0
        assert len(stub.asked) == 9, f"{asked} were asked before, and none is asked twice"
    assert [c.id for c in conversations(files[1])] == ["q0", "q1"]


def test_verls_rows_are_read():
    target = {"ground_truth": {"target": ["Ana Roux"]}, "style": "rule"}
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "Question:Who?"}]
    row = {"data_source": "hard", "prompt": prompt, "reward_model": target, "extra_info": {"index": 7, "split": "train"}}
    question = read_question(row)
    assert (question.id, question.question, question.answers) == ("hard/train/7", "Who?", ("Ana Roux",))


@pytest.mark.shared
def test_the_predecessors_file_is_read(shared_data):
    path = shared_data / "hotpotqa" / "hotpotqa_hard_train__validation.parquet"
    questions = [read_question(row) for row in rows_of(path)]
    assert len(questions) == len({q.id for q in questions}) == 400
    assert all(q.question and q.answers for q in questions)


@pytest.mark.parametrize(
    ("name", "arguments", "queries"),
    [
        ("query", {"query": " a "}, ("a",)),
        ("query", {"query": ["a", "b"]}, ()),
        ("query", {"query_list": ["a"]}, ()),
        ("query_list", {"query_list": ["a", " ", "b"]}, ("a", "b")),
        ("queries", {"query": ["a", 3]}, ()),
        ("query", {"query": None}, ()),
    ],
)
def test_what_a_call_searches_for(name, arguments, queries):
    assert read_queries(ToolCall("search", arguments, "x"), name) == queries
    assert read_queries(ToolCall("visit", arguments, "x"), name) == ()


def test_both_or_neither(files, capsys):
    assert main(["data", "distill", "--input_file", str(files[0]), "--output_file", str(files[1])]) == 2
    assert "give one of --retrieval_url, a running server, and --index" in capsys.readouterr().err


def test_the_predecessors_script_takes_its_names_from_the_environment(files):
    with Stub(native) as stub:
        stub.passages = PASSAGES
        base = stub.url.removesuffix("/v1")
        names = {"VLLM_URL": base, "RETRIEVAL_URL": base, "INPUT_FILE": str(files[0]), "OUTPUT_FILE": str(files[1])}
        names |= {"MAX_ASSISTANT_TURNS": "2", "MAX_SAMPLES": "3", "TEMPERATURE": "0.1", "MAX_TOKENS": "99", "BATCH_SIZE": "4"}
        done = subprocess.run(
            ["bash", "scripts/run_generate_search_data.sh", "--seed", "3"],
            env=os.environ | names,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert {(asked["temperature"], asked["max_tokens"]) for asked in stub.asked} == {(0.1, 99)}
        assert len(stub.asked) == 6
    assert [c.id for c in conversations(files[1])] == ["q0", "q1"]


def test_conversations_render_for_training(files, tmp_path):
    from project.modules.policy import load_tokenizer
    from project.rendering import Renderer
    from project.tiny_model import tiny_model

    with Stub(native) as stub:
        stub.passages = PASSAGES
        run(files, stub)
    dialect = get_dialect("tools")
    tokenizer, _ = load_tokenizer(str(tiny_model()), dialect)
    [first, _] = conversations(files[1])
    [sample] = Renderer(tokenizer, dialect).samples(first)
    trained = tokenizer.decode([token for token, weight in zip(sample.ids, sample.weights, strict=True) if weight])
    assert '"query": "mayor of Dor"' in trained
    assert "<answer> Ana Roux </answer>" in trained
    assert "The mayor of Dor is" not in trained
