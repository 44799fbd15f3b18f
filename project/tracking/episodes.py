"""Episodes as MLflow traces: what the agent wrote and read, turn by turn, with its times, in MLflow's own trace view.

A trace belongs to the run (`mlflow.sourceRun`): it is listed under the run's traces, and found by `search_traces(run_id=…)`.
It is made here whole, as data, and goes the way of all that a run logs (`spool.py`). MLflow's own functions for that would draw
its ids from Python's random numbers, which are the training's, and send it from threads which lose it where the server is away.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from project.records import Episode, Message, Row

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SHOWN = 1000
"""Characters of question and answer in MLflow's list of traces."""


def trace_of(run_id: str, experiment_id: str, episode: Episode, score: Mapping[str, float], update: int = 0) -> Row:
    """Return an episode as a trace of a run: a span for each generation, each search and the reward.

    Args:
        run_id: of the MLflow run.
        experiment_id: the run's.
        episode: with its turns.
        score: the reward's breakdown.
        update: during which it was rolled out, from 0; 0 in a test.
    """
    trace_id, question = f"tr-{os.urandom(16).hex()}", episode.question
    began, ended = episode.turns[0].clock_ns[0], episode.turns[-1].clock_ns[2]
    asked = {"question": question.question, "answers": list(question.answers)}
    got = {"answer": episode.answer, "finish": str(episode.finish), "reward": score["total"]}
    made = {"contexts": episode.contexts, "generated_tokens": episode.generated_tokens}
    root = _span(trace_id, None, "episode", "AGENT", (began, ended), asked, got, made)
    info = {
        "trace_id": trace_id,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}},
        "request_time": _iso(began),
        "execution_duration_ms": (ended - began) // 1_000_000,
        "state": "OK",
        "request_preview": json.dumps(asked, ensure_ascii=False)[:SHOWN],
        "response_preview": json.dumps(got, ensure_ascii=False)[:SHOWN],
        "trace_metadata": {"mlflow.sourceRun": run_id, "mlflow.trace_schema.version": "3"},
        "tags": {
            "mlflow.traceName": "episode",
            "update": str(update),
            "question_id": question.id,
            "finish": str(episode.finish),
        },
    }
    return {"info": info, "data": {"spans": [root, *_spans(trace_id, root["span_id"], episode, score)]}}


def _spans(trace_id: str, root: str, episode: Episode, score: Mapping[str, float]) -> list[Row]:
    spans = []
    for number, (turn, (read, written, found)) in enumerate(zip(episode.turns, _exchanges(episode.messages), strict=True), 1):
        sent, generated, went_on = turn.clock_ns
        mean = sum(turn.logprobs) / max(1, len(turn.logprobs))
        made = {"tokens": len(turn.ids), "policy_version": turn.version, "ended": turn.ended, "mean_logprob": mean}
        asked = {"messages": [_shown(message) for message in read]}
        spans.append(_span(trace_id, root, f"turn {number}", "LLM", (sent, generated), asked, _shown(written), made))
        if found:
            name, got = f"answer to turn {number}", [_shown(message) for message in found]
            spans.append(_span(trace_id, root, name, "TOOL", (generated, went_on), {"text": written.content}, got))
    last = episode.turns[-1].clock_ns[2]
    return [*spans, _span(trace_id, root, "reward", "EVALUATOR", (last, last), {"answer": episode.answer}, dict(score))]


def _span(
    trace_id: str,
    parent: str | None,
    name: str,
    kind: str,
    times_ns: tuple[int, int],
    inputs: Any,  # noqa: ANN401 - any JSON
    outputs: Any,  # noqa: ANN401 - any JSON
    attributes: Mapping[str, Any] | None = None,
) -> Row:
    """Return a span as `mlflow.entities.Span.from_dict` reads it."""
    held = {"mlflow.traceRequestId": trace_id, "mlflow.spanType": kind}
    held |= {"mlflow.spanInputs": inputs, "mlflow.spanOutputs": outputs} | dict(attributes or {})
    return {
        "trace_id": base64.b64encode(bytes.fromhex(trace_id.removeprefix("tr-"))).decode(),
        "span_id": base64.b64encode(os.urandom(8)).decode(),
        "parent_span_id": parent,
        "name": name,
        "start_time_unix_nano": times_ns[0],
        "end_time_unix_nano": times_ns[1],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in held.items()},
        "events": [],
    }


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat().replace("+00:00", "Z")


def store_trace(store: MlflowClient, trace: Row) -> None:
    """Write a trace; one that is there already stays as it is."""
    from mlflow.entities import Trace
    from mlflow.tracing.client import TracingClient
    from mlflow.tracing.constant import SpansLocation, TraceTagKey

    client, held = TracingClient(store.tracking_uri), Trace.from_dict(trace)
    with suppress(NotImplementedError):  # a store that keeps them as a file
        client.log_spans(str(held.info.experiment_id), held.data.spans)
    info = client.start_trace(held.info)
    if info.tags.get(TraceTagKey.SPANS_LOCATION) != SpansLocation.TRACKING_STORE.value:
        client._upload_trace_data(info, held.data)


def _exchanges(messages: Sequence[Message]) -> list[tuple[list[Message], Message, list[Message]]]:
    """Return, for each turn, what was said before it since the last one, what the agent wrote, and what followed that."""
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    starts, ends = [0, *(i + 1 for i in turns)], [*turns[1:], len(messages)]
    return [
        (list(messages[start:turn]), messages[turn], list(messages[turn + 1 : end]))
        for start, turn, end in zip(starts, turns, ends, strict=False)
    ]


def _shown(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}
