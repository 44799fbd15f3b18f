"""Episodes of the past on the demo's page: of a results file, of a run that kept one, and of a run's traces."""

import pytest
from demo_parts import episode, results_folder

from project.apps.demo.episodes import find_episodes
from project.errors import InputError, TrackingError
from project.tracking.episodes import store_trace, trace_of
from project.tracking.store import client


@pytest.fixture
def results(tmp_path):
    return results_folder(tmp_path / "held out")


def test_a_results_folder_is_listed_and_drawn(results):
    found = find_episodes(str(results))
    assert found.labels == ("1. EM 1: Where is number 0?", "2. EM 0: Where is number 1?")
    assert found.summary == "held-out: 2 episodes"
    drawn = found.draw(0)
    assert "Oslo is in Norway, &lt;b&gt;so&lt;/b&gt;." in drawn
    assert drawn.count("holds the answer") == 1
    assert "em 1" in drawn and "answer: Norway" in drawn
    assert "holds the answer" not in found.draw(1)


def test_a_run_that_kept_its_results(results):
    store = client()
    run = store.create_run("0", run_name="tested")
    for name in ("results.parquet", "summary.json"):
        store.log_artifact(run.info.run_id, str(results / name))
    assert find_episodes("tested").labels == find_episodes(str(results)).labels


def test_a_runs_traces():
    store = client()
    run = store.create_run("0", run_name="ppo")
    store_trace(store, trace_of(run.info.run_id, "0", episode(3, "Norway"), {"em": 1.0, "total": 1.1}, 7))
    found = find_episodes("ppo")
    assert found.labels == ("1. answer: Where is number 3?",)
    drawn = found.draw(0)
    assert "I look." in drawn and "Doc 1: Oslo" in drawn and "reward 1.1" in drawn and "holds the answer" in drawn


def test_what_cannot_be_opened_is_one_sentence(results, tmp_path):
    client().create_run("0", run_name="empty")
    with pytest.raises(TrackingError, match="kept no episodes"):
        find_episodes("empty")
    with pytest.raises(TrackingError, match="nosuch"):
        find_episodes("nosuch")
    with pytest.raises(InputError, match="nothing was given"):
        find_episodes("  ")
    with pytest.raises(TrackingError, match="there is no run"):  # a stranger does not learn which paths there are
        find_episodes(str(results), files=False)
    with pytest.raises(InputError, match=r"holds no results\.parquet"):
        find_episodes(str(tmp_path))
