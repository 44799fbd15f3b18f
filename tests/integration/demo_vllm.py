"""Run in a process of its own by `test_demo_vllm.py`: the demo's model with vLLM in process, printed as one JSON line."""

import json
import sys
import time

from project.runtime import prepare_process

prepare_process()

from project.apps.demo.live import Controls, Ended, Failed, LiveModel, Stopped, Turned, Wrote  # noqa: E402
from project.records import Hit, Passage, Question  # noqa: E402

QUESTION = Question("demo", "Write down all countries of the world, and what each is known for.", ())


class Nothing:
    """A search engine that finds one passage."""

    async def search(self, queries, topk, seed=""):
        return [[Hit(Passage("p", "Lima", "Lima is the capital of Peru."), 1.0)][:topk] for _ in queries]


def told(asking, stop_after=None):
    """Return the moments of an episode, each with when it came; after some tokens it is stopped."""
    found, until = [], time.monotonic() + 400
    while time.monotonic() < until:
        found += [(one, time.monotonic()) for one in asking.news(0.05)]
        written = sum(isinstance(one, Wrote) for one, _ in found)
        if stop_after is not None and written >= stop_after:
            stop_after, found = None, [*found, ("stop", time.monotonic())]
            asking.stop()
        if found and isinstance(found[-1][0], (Ended, Stopped, Failed)):
            return found
    raise AssertionError(f"never over: {found[-3:]}")


live = LiveModel(sys.argv[1], "vllm", 1024)
whole = told(live.ask(QUESTION, Controls(turn_tokens=96, max_turns=1), Nothing()))
stopped = told(live.ask(QUESTION, Controls(turn_tokens=512, max_turns=1), Nothing()), stop_after=8)
both = [live.ask(QUESTION, Controls(turn_tokens=96, max_turns=1), Nothing()) for _ in range(2)]
together = [told(one) for one in both]
live.close()

tokens = [(one.token, at) for one, at in whole if isinstance(one, Wrote)]
(ended,) = (one for one, _ in whole if isinstance(one, Ended))
asked_to_stop = next(at for one, at in stopped if one == "stop")
said = {
    "text": next(one.text for one, _ in whole if isinstance(one, Turned)),
    "seen": [token for token, _ in tokens],
    "ids": [token for turn in ended.episode.turns for token in turn.ids],
    "moments_apart": len({at for _, at in tokens}),
    "stopped": [type(stopped[-1][0]).__name__, stopped[-1][1] - asked_to_stop, sum(isinstance(o, Wrote) for o, _ in stopped)],
    "together": [[one.token for one, _ in of if isinstance(one, Wrote)] for of in together],
}
print("RESULT " + json.dumps(said))
