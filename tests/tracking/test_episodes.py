"""Episodes as traces, in a real store."""

import json
import random
from pathlib import Path

from project.dialects import get_dialect
from project.environment.search import opening_messages
from project.records import Episode, FinishReason, Message, Question, Turn
from project.tracking.episodes import store_trace, trace_of
from project.tracking.store import client

QUESTION = Question("q1", "Which metal is liquid?", ("mercury",))
SECOND = 1_000_000_000
START = 1_790_000_000 * SECOND


def test_a_folded_episode_reads_turn_by_turn(tmp_path: Path) -> None:
    dialect = get_dialect("tags")
    said = [
        *opening_messages(QUESTION, dialect),
        Message("assistant", "<search>\nliquid\n</search>"),
        Message("user", "<information>Mercury</information>"),
        Message("user", "<fold/>"),
        Message("assistant", "<summary>\nmercury\n</summary>"),
        Message("user", "Question: again"),
        Message("assistant", "<answer>\nmercury\n</answer>"),
    ]
    times = [(0, 2, 3), (3, 4, 4), (4, 6, 6)]
    clocks = [tuple(START + t * SECOND for t in clock) for clock in times]
    turns = tuple(Turn((1,), (2, 3), (-1.0, -2.0), 5, True, i != 1, clock) for i, clock in enumerate(clocks))
    episode = Episode(QUESTION, turns, tuple(said), FinishReason.ANSWER, "mercury", ("liquid",), (("hg",),))
    store = client()
    experiment = store.create_experiment(tmp_path.name, artifact_location=str(tmp_path))
    run = store.create_run(experiment).info
    trace = trace_of(run.run_id, run.experiment_id, episode, {"em": 1.0, "total": 1.1}, 7)
    for _ in range(2):  # an answer was lost, and it is sent again
        store_trace(store, json.loads(json.dumps(trace)))
    other = store.create_run(experiment).info
    assert list(store.search_traces(locations=[run.experiment_id], run_id=other.run_id)) == []
    (trace,) = store.search_traces(locations=[run.experiment_id], run_id=run.run_id)
    assert trace.info.tags["update"] == "7"
    assert trace.info.tags["finish"] == "answer"
    assert (trace.info.request_time, trace.info.execution_duration) == (START // 1_000_000, 6000)
    spans = {span.name: span for span in trace.data.spans}
    assert list(spans) == ["episode", "turn 1", "answer to turn 1", "turn 2", "answer to turn 2", "turn 3", "reward"]
    seconds = {name: (span.start_time_ns - START, span.end_time_ns - START) for name, span in spans.items()}
    assert {name: (start / SECOND, end / SECOND) for name, (start, end) in seconds.items()} == {
        "episode": (0, 6), "turn 1": (0, 2), "answer to turn 1": (2, 3), "turn 2": (3, 4), "answer to turn 2": (4, 4),
        "turn 3": (4, 6), "reward": (6, 6),
    }  # fmt: skip
    assert [m["content"] for m in spans["turn 2"].inputs["messages"]] == ["<information>Mercury</information>", "<fold/>"]
    assert spans["turn 2"].outputs["content"] == "<summary>\nmercury\n</summary>"
    assert [m["content"] for m in spans["answer to turn 2"].outputs] == ["Question: again"]
    assert (spans["turn 1"].attributes["policy_version"], spans["turn 1"].attributes["mean_logprob"]) == (5, -1.5)
    assert spans["reward"].outputs == {"em": 1.0, "total": 1.1}
    assert spans["episode"].outputs == {"answer": "mercury", "finish": "answer", "reward": 1.1}
    assert spans["episode"].inputs == {"question": "Which metal is liquid?", "answers": ["mercury"]}


def test_runs_of_one_seed_have_traces_of_their_own(tmp_path: Path) -> None:
    """MLflow's own functions draw a trace's id from Python's random numbers, and a run seeds those."""
    store = client()
    experiment = store.create_experiment(tmp_path.name, artifact_location=str(tmp_path))
    turn = Turn((1,), (2,), (-1.0,), 0, True, True, (START, START + SECOND, START + SECOND))
    episode = Episode(QUESTION, (turn,), (Message("user", "q"), Message("assistant", "a")), FinishReason.MAX_TURNS)
    runs = [store.create_run(experiment).info for _ in range(2)]
    for run in runs:
        random.seed(0)
        store_trace(store, trace_of(run.run_id, run.experiment_id, episode, {"em": 0.0, "total": 0.0}, 0))
    found = [store.search_traces(locations=[experiment], run_id=run.run_id) for run in runs]
    assert [len(traces) for traces in found] == [1, 1]
    assert random.random() == random.Random(0).random()  # and the run's own numbers are as they were
    assert found[0][0].info.trace_id != found[1][0].info.trace_id
