"""Teachers in this process: the random model for the machinery here, the real one in `tests/integration`."""

import asyncio

import pytest

from project.cli import main
from project.errors import InputError
from project.files import read_rows
from project.teacher.client import Request, Sampling, Teacher
from project.teacher.engines import TransformersTeacher
from project.tiny_model import tiny_model
from project.writing import write_rows

TOOL = {
    "type": "function",
    "function": {"name": "search", "description": "Finds.", "parameters": {"type": "object", "properties": {}}},
}


def ask(*requests, seed=3):
    async def all_of():
        async with TransformersTeacher(Teacher(str(tiny_model()), engine="transformers")) as teacher:
            return await asyncio.gather(*(teacher.ask(request, seed) for request in requests)), teacher

    return asyncio.run(all_of())


def request(text, **changes):
    return Request("r", ({"role": "user", "content": text},), Sampling(**{"temperature": 1.0, "max_tokens": 8} | changes))


def test_the_seed_decides_what_is_said_whatever_else_is_asked():
    [alone], _ = ask(request("Who?"))
    [first, _, again], teacher = ask(request("Who?"), request("What?"), request("Who?"))
    assert alone == first == again
    [changed], _ = ask(request("Who?"), seed=4)
    assert changed.text != alone.text
    assert (alone.finish, alone.completion_tokens) == ("length", 8)
    assert alone.prompt_tokens == len(teacher.prompt(request("Who?")))


def test_a_stop_ends_a_reply():
    [whole], _ = ask(request("Who?"))
    [stopped], _ = ask(request("Who?", stop=(whole.text[3],)))
    assert stopped.finish == "stop"
    assert stopped.text == whole.text[: whole.text.index(whole.text[3]) + 1]


def test_tools_and_calls_are_shown_by_seekers_template():
    _, teacher = ask()
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query": "moon"}'}}
    messages = (
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Nobody.", "tool_call_id": "1"},
    )
    text = teacher._tokenizer.decode(teacher.prompt(Request("r", messages, Sampling(), tools=(TOOL,))))
    assert '"query": "moon"' in text
    assert "Nobody." in text
    assert "Finds." in text
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == '{"query": "moon"}', "the request stays as it was"


def test_a_verb_runs_without_a_server(tmp_path):
    write_rows(tmp_path / "p.jsonl", [{"id": "a", "text": "Some passage."}])
    options = ["--teacher.engine", "transformers", "--teacher.model", str(tiny_model()), "--sampling.max_tokens", "8"]
    options += ["--likeness.low", "0", "--styles", "[plain]", "--input_file", str(tmp_path / "p.jsonl")]
    status = main(["data", "paraphrase", *options, "--output_file", str(tmp_path / "out.jsonl")])
    assert status == 2, "random letters are cut off"
    assert not (tmp_path / "out.jsonl").exists()
    journal = [row for _, row in read_rows(tmp_path / "out.jsonl.journal.jsonl")]
    assert [row["rejected"] for row in journal if "rejected" in row] == ["no paraphrase: cut off"]


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"needs teacher\.model: the folder of a model$"):
        TransformersTeacher(Teacher(engine="transformers"))
    with pytest.raises(InputError, match=r"^teacher\.model=/nowhere cannot be loaded \(.*give a model's folder$"):
        asyncio.run(TransformersTeacher(Teacher("/nowhere", engine="transformers")).__aenter__())
