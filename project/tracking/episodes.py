"""Episodes as MLflow traces: what the agent wrote and read, turn by turn, with its times, in MLflow's own trace view.

A trace belongs to the run (`mlflow.sourceRun`): it is listed under the run's traces, and found by `search_traces(run_id=…)`.
MLflow writes traces from a thread of its own; `flush_episodes` waits for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from project.records import Episode, Message
from project.tracking.store import tracking_uri


def log_episode(run_id: str, experiment_id: str, episode: Episode, score: Mapping[str, float], update: int) -> None:
    """Write an episode as a trace of a run: a span for each generation, each search and the reward.

    Args:
        run_id: of the MLflow run.
        experiment_id: the run's.
        episode: with its turns.
        score: the reward's breakdown.
        update: during which it was rolled out, from 0.
    """
    with _ids_of_their_own():
        _log_episode(run_id, experiment_id, episode, score, update)


@contextmanager
def _ids_of_their_own() -> Iterator[None]:
    """Have MLflow, which draws ids from Python's random numbers, draw none that another run of the same seed has drawn."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def _log_episode(run_id: str, experiment_id: str, episode: Episode, score: Mapping[str, float], update: int) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    question, last = episode.question, episode.turns[-1].clock_ns[2]
    root = mlflow.start_span_no_context(
        "episode",
        span_type="AGENT",
        inputs={"question": question.question, "answers": list(question.answers)},
        metadata={"mlflow.sourceRun": run_id},
        tags={"update": str(update), "question_id": question.id, "finish": str(episode.finish)},
        experiment_id=experiment_id,
        start_time_ns=episode.turns[0].clock_ns[0],
    )
    root.set_attributes({"contexts": episode.contexts, "generated_tokens": episode.generated_tokens})
    for number, (turn, (read, written, found)) in enumerate(zip(episode.turns, _exchanges(episode.messages), strict=True)):
        sent, generated, went_on = turn.clock_ns
        span = _child(root, f"turn {number + 1}", "LLM", sent, {"messages": [_shown(message) for message in read]})
        span.set_attributes({"tokens": len(turn.ids), "policy_version": turn.version, "ended": turn.ended})
        span.set_attribute("mean_logprob", sum(turn.logprobs) / max(1, len(turn.logprobs)))
        span.set_outputs(_shown(written))
        span.end(end_time_ns=generated)
        if found:
            span = _child(root, f"answer to turn {number + 1}", "TOOL", generated, {"text": written.content})
            span.set_outputs([_shown(message) for message in found])
            span.end(end_time_ns=went_on)
    span = _child(root, "reward", "EVALUATOR", last, {"answer": episode.answer})
    span.set_outputs(dict(score))
    span.end(end_time_ns=last)
    root.set_outputs({"answer": episode.answer, "finish": str(episode.finish), "reward": score["total"]})
    root.end(end_time_ns=last)


def flush_episodes() -> None:
    """Wait until all traces are written."""
    import mlflow

    mlflow.flush_trace_async_logging()


def _child(root: Any, name: str, kind: str, start_ns: int, inputs: Any) -> Any:  # noqa: ANN401 - MLflow's spans
    import mlflow

    return mlflow.start_span_no_context(name, span_type=kind, parent_span=root, inputs=inputs, start_time_ns=start_ns)


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
