"""What an update says of its episodes: whether the agent still learns, and whether what it learns from is sound."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from project.records import Episode, FinishReason
from project.rewards.terms import repeats


def episode_health(episodes: Sequence[Episode], scores: Sequence[dict[str, float]], version: int) -> dict[str, float]:
    """Return the means over an update's episodes, by name.

    `train/correct_logprob` (nats a token, of the episodes with an exact answer, under the policy that wrote them) falls where
    a policy forgets what it could do. `train/staleness` is how many syncs older than the engine's weights now those that
    wrote an episode are. `train/drift` is the share of turns whose row is not what the engine read; it must be 0.

    Args:
        episodes: all of the update, those without their tool too.
        scores: breakdowns of the reward, one for each episode that has not failed, in their order.
        version: of the engine as the episodes ended.
    """
    kept = [episode for episode in episodes if is_kept(episode)]
    found = {f"reward/{name}": fmean(score[name] for score in scores) for name in scores[0]}
    found["train/reward"] = found.pop("reward/total")
    right = [e for e, score in zip(kept, scores, strict=True) if score.get("em") == 1]
    if right:
        found["train/correct_logprob"] = fmean(p for e in right for turn in e.turns for p in turn.logprobs)
    counts: dict[str, list[float]] = {
        "contexts": [e.contexts for e in kept],
        "searches": [len(e.queries) for e in kept],
        "repeated_queries": [repeats(e.queries) for e in kept],
        "turns": [len(e.turns) for e in kept],
        "malformed_turns": [e.malformed for e in kept],
        "generated_tokens": [e.generated_tokens for e in kept],
        "staleness": [version - turn.version for e in kept for turn in e.turns],
        "drift": [turn.drifted for e in kept for turn in e.turns],
        "tool_errors": [e.finish.is_environment_failure for e in episodes],
    }
    found |= {f"train/{name}": fmean(values) for name, values in counts.items()}
    found["train/longest"] = float(max(counts["generated_tokens"]))
    return found | {f"train/finish_{reason}": fmean(e.finish is reason for e in episodes) for reason in FinishReason}


def is_kept(episode: Episode) -> bool:
    """Return whether an episode is scored and trained: the environment's failures are not the policy's."""
    return bool(episode.turns) and not episode.finish.is_environment_failure


def generating_seconds(episodes: Sequence[Episode]) -> float:
    """Return the seconds in which the engine had at least one turn to write: the union of the turns' times."""
    total, until = 0, 0
    for asked, done, _ in sorted(turn.clock_ns for episode in episodes for turn in episode.turns):
        total += max(0, done - max(asked, until))
        until = max(until, done)
    return total / 1e9


def memory_health() -> dict[str, float]:
    """Return the memory that this process holds now, and the most that the GPU held since the last call, in GiB."""
    import psutil

    found = {"memory/resident_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        found["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return found
