"""What blocks of a page need, where a test can give it: a teacher, an object store, PostgreSQL; by the block's title.

Each is a context that yields what stands in the page and what is to stand there in its place. Environment variables that the
page leaves to its reader are set in the process meanwhile.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from pytest import MonkeyPatch
from stores import moto_store, postgresql
from teacher.openai_stub import Stub, completion

Given = dict[str, str]
CURRENCIES = {"Ulaanbaatar": "Mongolian tögrög", "Tokyo": "Japanese yen", "Oslo": "Norwegian krone"}
PLACES = {"the capital of Norway?": "Oslo", "the capital of Peru?": "Lima", "does Cairo lie?": "the Nile"}


@contextmanager
def a_teacher() -> Iterator[Given]:
    """An endpoint that answers what the pages ask: it searches once where it has tools, writes a question, and decides."""
    with Stub(_taught) as stub:
        yield {":8000": f":{stub.port}"}


def _taught(asked: dict, _: int) -> dict:
    messages = asked["messages"]
    if asked.get("tools"):
        if not any(message["role"] == "tool" for message in messages):
            query = {"name": "search", "arguments": json.dumps({"query": messages[-1]["content"]})}
            return completion("", "tool_calls", tool_calls=[{"id": "1", "type": "function", "function": query}])
        currency = next(name for capital, name in CURRENCIES.items() if capital in json.dumps(messages))
        return completion(f"<think>\nIt says so.\n</think>\n<answer> {currency} </answer>")
    told, schema = messages[-1]["content"], json.dumps(asked.get("response_format", {}))
    if '"questions"' in schema:
        item = {"question": "How long does the battery last?", "answer": "six hours", "difficulty": "easy", "passages": [1]}
        return completion(json.dumps({"questions": [item]}))
    if '"decision"' in schema:
        place = next((said for place, said in PLACES.items() if place in told), None)
        decision, text = ("<|ANSWER|>", place) if place else ("<|SEARCH|>", "population of Oslo")
        return completion(json.dumps({"decision": decision, "text": text}))
    return completion("One could know this by heart.")


@contextmanager
def an_object_store() -> Iterator[Given]:
    with moto_store("bucket") as url:
        yield {"…": "key", "https://objects.example.org": f"{url} AWS_ALLOW_HTTP=true"}


@contextmanager
def a_database() -> Iterator[Given]:
    with ExitStack() as stack, MonkeyPatch.context() as environment:
        port, binaries = stack.enter_context(postgresql())
        url = stack.enter_context(moto_store("bucket"))
        settings = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "seeker", "AWS_ENDPOINT_URL": url}
        settings |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in settings.items():
            environment.setenv(name, value)
        environment.setenv("PATH", str(binaries), prepend=":")
        yield {"127.0.0.1:5432": f"127.0.0.1:{port}", "mlflow.example.org": "127.0.0.1"}


NEEDS: dict[str, Callable[[], AbstractContextManager[Given]]] = {
    "needs a teacher at port 8000": a_teacher,
    "needs an object store": an_object_store,
    "needs PostgreSQL": a_database,
}

NOT_GIVEN = {
    "needs a GPU and a model hub",
    "needs several GPUs",
    "needs two nodes with 8 GPUs each",
    "needs servers on other machines",
    "needs a model folder",
    "needs a browser",
    "needs documents of your own",
    "needs SQuAD's file and half an hour",
    "needs a package index and 20 minutes",
}
"""What no test gives: such blocks are parsed only. vLLM's server and the demo's page are started by other tests."""
