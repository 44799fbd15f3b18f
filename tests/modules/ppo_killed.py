"""PPO as `seeker fit` runs it, whose process kills itself where SEEKER_KILL says: `rollout:2`, `update:2` or `checkpoint:2`.

The reward is 1 where the first sampled token is even: a random model can earn it, and the numbers vary.
"""

import os
import signal

from project.checkpoint_io import WholeCheckpointIO
from project.modules.ppo import PPO

WHERE, _, NUMBER = os.environ.get("SEEKER_KILL", "never:-1").partition(":")


def kill(where: str, number: int) -> None:
    if where == WHERE and number == int(NUMBER):
        os.kill(os.getpid(), signal.SIGKILL)


class Killed(PPO):
    """Dies where it is told to."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        self.reward = lambda episode: {"em": 0.0, "total": float(episode.turns[0].ids[0] % 2 == 0)}
        self._turns = 0

    def own_episodes(self, questions, seeds, temperature, *given_up):
        engine, update = self._engine, int(self.updates)
        generate, turns = type(engine).generate, 0

        async def counted(prompt_ids, sampling):
            nonlocal turns
            turns += 1
            if turns > len(questions):  # in the second turn of some episode
                kill("rollout", update)
            return await generate(engine, prompt_ids, sampling)

        engine.generate = counted
        return super().own_episodes(questions, seeds, temperature, *given_up)

    def _optimizer_step(self, micro, step):
        found = super()._optimizer_step(micro, step)
        kill("update", int(self.updates))
        return found


class DyingIO(WholeCheckpointIO):
    """Dies with half of a checkpoint written."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if WHERE == "checkpoint" and checkpoint["global_step"] == int(NUMBER):
            with open(f"{path}.part", "wb") as file:
                file.write(b"PK half of a checkpoint")
            kill("checkpoint", int(NUMBER))
        super().save_checkpoint(checkpoint, path, storage_options)
