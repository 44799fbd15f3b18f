"""`seeker serve retrieval --index DIR`: the application on a port, until it is asked to stop.

Asked to stop (Ctrl-C, SIGTERM) it takes no more requests and answers those that it has.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

from project.corpus.engines.choose import AnyEngine, Remote, open_engine
from project.corpus.engines.http import TOKEN
from project.corpus.engines.noisy import Noise
from project.corpus.index import EngineName, RankingSettings
from project.corpus.serving.limits import Limits
from project.ports import cannot_listen, listen
from project.records import Row

GRACE_S = 10
"""Seconds that requests have to end once the server is asked to stop."""
_RANKING, _LIMITS, _REMOTE, _NOISE = RankingSettings(), Limits(), Remote(), Noise()


def retrieval(
    index: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8001,
    engine: AnyEngine | None = None,
    ranking: RankingSettings = _RANKING,
    remote: Remote = _REMOTE,
    noise: Noise = _NOISE,
    draw: list[EngineName] | None = None,
    limits: Limits = _LIMITS,
    parent_pid: int | None = None,
) -> None:
    """Serve POST /retrieve from an index, or on behalf of a search engine elsewhere, until interrupted.

    Where SEEKER_RETRIEVAL_TOKEN is set, only who sends it may search and read the metrics.

    Args:
        index: the folder (or s3://…, db://…) that `seeker index build` wrote.
        host: address to listen on; the default is this machine only.
        port: TCP port.
        engine: by which of the index's engines to search (default: that for which it was built), or one elsewhere: http (any
            /retrieve server), mcp, tavily, serper.
        ranking: how engines are combined.
        remote: where an engine elsewhere is.
        noise: how much worse the answers are made on purpose.
        draw: several engines of the index, one of which is drawn for each request.
        limits: what clients may ask for.
        parent_pid: stop when this process, which must be the parent, is gone.
    """
    import uvicorn

    from project.corpus.serving.app import create_app

    if parent_pid is not None:
        _stop_with_parent(parent_pid)
    limits.check()
    listener = listen(host, port)
    try:
        opened = [open_engine(index, name, ranking, remote) for name in _names(draw, engine)]
        about = opened[0][1] | ({"draw": draw} if draw else {}) | ({"noise": _told(noise)} if noise.is_on else {})
        app = create_app([one for one, _ in opened], about, limits, os.environ.get(TOKEN), noise)
        what = f"{about['passages']} passages" if "passages" in about else f"the engine {engine}"
        print(f"serving {what} at http://{host}:{port}/retrieve", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S)
        uvicorn.Server(config).run(sockets=[listener])
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    finally:
        listener.close()


def _names(draw: list[EngineName] | None, engine: AnyEngine | None) -> list[AnyEngine | None]:
    return [*draw] if draw else [engine]


def _told(noise: Noise) -> Row:
    """Return what of the noise is switched on."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(noise).items() if value}


def _stop_with_parent(parent_pid: int) -> None:
    """End this process within a second of its parent's end, even if the parent was killed."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
