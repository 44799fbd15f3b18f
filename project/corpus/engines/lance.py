"""LanceDB: the corpus as a table on disk or in an object store, for corpora past one machine's memory.

Full-text search, vectors (compared one by one, or by IVF-PQ from `index_from` passages on), and both fused, all by LanceDB's
own functions. Where the table lies is a folder, `s3://…` (any S3-compatible store: AWS_ENDPOINT_URL and the usual variables),
or `db://…` (a LanceDB cluster: LANCEDB_API_KEY, LANCEDB_REGION, LANCEDB_HOST). Servers keep no state: any number may share one
table.

A build writes a new table and says in the table `seeker` that it is complete. Servers go on with the table that they opened;
it is dropped by the build after. Equal scores stand in the table's order.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.corpus.engines.dense import VECTORS, Encoder
from project.corpus.engines.settings import DenseSettings, LanceSettings
from project.corpus.words import NONE, stop_words_of, words
from project.errors import InputError, RetrievalError
from project.records import Hit, Passage, Row

os.environ.setdefault("LANCEDB_LOG", "error")  # read when it is loaded; else it warns of each table that it makes

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from lancedb import AsyncConnection, AsyncTable
    from numpy.typing import NDArray

PACKAGES = ("lancedb",)
STATE = "seeker"
"""The table that names the one to search; its only row is written when that is complete."""
COLUMNS = ("id", "title", "text", "source", "start", "end", "section")
SEARCHED, VECTOR = "searched", "vector"
ROWS_AT_ONCE = 4096
AT_ONCE = 16
"""Queries that LanceDB is asked side by side."""
DEPTH = 100
"""Hits that LanceDB is asked for at least; what lies deeper stands behind them, so that the first hits do not depend on `k`."""
FAILURES = (RuntimeError, ValueError, OSError)
"""What LanceDB raises."""


def connect(uri: str) -> AsyncConnection:
    """Return a connection; one that cannot be had is an `InputError`."""
    import lancedb

    options: Row = {}
    if uri.startswith("db://"):
        named = {"api_key": "LANCEDB_API_KEY", "region": "LANCEDB_REGION", "host_override": "LANCEDB_HOST"}
        options = {name: os.environ[variable] for name, variable in named.items() if os.environ.get(variable)}

    async def opened() -> AsyncConnection:
        return await lancedb.connect_async(uri, **options)

    try:
        return asyncio.run(opened())
    except FAILURES as error:
        raise InputError(f"{uri} cannot be opened by LanceDB: {_first_line(error)}") from error


class Lance:
    """A table of passages; a `Retriever`."""

    def __init__(self, uri: str, mode: str | None = None) -> None:
        """Open the table that the last complete build wrote.

        Args:
            uri: where it lies.
            mode: `text`, `vector` or `hybrid`; None is by words, and by vectors too where there are any.

        Raises:
            InputError: no build was completed there, or the model that made the vectors cannot be had.
        """
        self.uri = uri
        self._connection = connect(uri)
        self.about = read_state(self._connection, uri)
        if not self.about:
            raise InputError(f"{uri} holds no complete index; make one with 'seeker index build --engine lance'")
        self.settings = LanceSettings(**self.about["lance"])
        self.mode = mode or ("hybrid" if self.settings.vectors else "text")
        if self.mode != "text" and not self.settings.vectors:
            raise InputError(f"{uri} holds no vectors; build it again with --lance.vectors true")
        self._encoder = Encoder(DenseSettings(**self.about["dense"])) if self.mode != "text" else None
        self._table: AsyncTable = asyncio.run(self._connection.open_table(self.about["table"]))
        self._slots: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    def __len__(self) -> int:
        return int(self.about["passages"])

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search; see `Retriever`."""
        clean = [query.encode(errors="replace").decode().replace("\x00", " ") for query in queries]
        vectors: Any = [None] * len(clean)
        if self._encoder is not None and clean:
            vectors = await asyncio.to_thread(self._encoder.queries, clean)
        loop = asyncio.get_running_loop()
        slots = self._slots.setdefault(loop, asyncio.Semaphore(AT_ONCE))
        try:
            found = await asyncio.gather(*(self._ranked(slots, *asked, k) for asked in zip(clean, vectors, strict=True)))
            passages = await self._passages({row for ranking in found for row, _ in ranking})
            return [[Hit(passages[row], score) for row, score in ranking] for ranking in found]
        except (*FAILURES, KeyError) as error:  # a row that is gone
            raise RetrievalError(f"{self.uri} failed: {_first_line(error)}") from error

    async def aclose(self) -> None:
        """Give up the table."""
        self._table.close()

    async def _ranked(
        self, slots: asyncio.Semaphore, query: str, vector: NDArray[np.float32] | None, k: int
    ) -> list[tuple[int, float]]:
        """Return the rows and scores of at most `k` hits."""
        worded = bool(words(query, stop_words_of(self.settings.stop_words)))
        if not worded and self.mode != "vector":
            vector = vector if query.strip() else None
            if vector is None:
                return []
        async with slots:
            hits = await self._scored(query if worded else "", vector, DEPTH)
            if k > DEPTH == len(hits):
                known, last = {row for row, _ in hits}, hits[-1][1]
                deep = await self._scored(query if worded else "", vector, k)
                hits += [(row, min(score, last)) for row, score in deep if row not in known]
        return hits[:k]

    async def _scored(self, query: str, vector: NDArray[np.float32] | None, k: int) -> list[tuple[int, float]]:
        """Return the rows and scores of `k` hits, equal ones by row."""
        found = (await self._asked(query, vector, k).to_arrow()).to_pydict()
        if "_distance" in found:
            scores = [1 - distance for distance in found["_distance"]]
        else:
            scores = found["_relevance_score" if "_relevance_score" in found else "_score"]  # of the fusion, or of the words
        scored = [(row, score) for row, score in zip(found["_rowid"], scores, strict=True) if score > 0]
        return sorted(scored, key=lambda one: (-one[1], one[0]))

    async def _passages(self, rows: set[int]) -> dict[int, Passage]:
        """Read rows of the table, all at once: from an object store each reading is a request."""
        if not rows:
            return {}
        found = await self._table.take_row_ids(sorted(rows)).with_row_id().select([*COLUMNS]).to_list()
        return {row["_rowid"]: Passage.from_row({name: row[name] for name in COLUMNS}) for row in found}

    def _asked(self, query: str, vector: NDArray[np.float32] | None, k: int) -> Any:  # noqa: ANN401 - one of LanceDB's queries
        from lancedb import query as queries
        from lancedb.rerankers import RRFReranker

        match: Any = queries.MatchQuery  # takes any text, as `nearest_to_text` alone does not
        asked: Any = self._table.query()
        if self.mode == "text" or vector is None:
            asked = asked.nearest_to_text(match(query, SEARCHED))
        else:
            asked = asked.nearest_to(vector).distance_type("cosine").nprobes(self.settings.nprobes)
            asked = asked.refine_factor(self.settings.refine) if self.about["vectors_indexed"] else asked
            if self.mode == "hybrid" and query:
                asked = asked.nearest_to_text(match(query, SEARCHED)).rerank(RRFReranker())
        return asked.select([]).with_row_id().limit(k)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def read_state(connection: AsyncConnection, uri: str) -> Row:
    """Return what the last complete build says of its table; empty where there is none."""

    async def read() -> Row:
        if STATE not in (await connection.list_tables()).tables:
            return {}
        rows = await (await connection.open_table(STATE)).query().to_list()
        found: Row = json.loads(rows[0]["state"]) if rows else {}
        return found

    try:
        return asyncio.run(read())
    except FAILURES as error:
        raise InputError(f"{uri} cannot be read by LanceDB: {_first_line(error)}") from error


def write_table(
    uri: str, passages: Sequence[Passage], settings: LanceSettings, dense: DenseSettings, vectors: Path | None, about: Row
) -> Row:
    """Write the passages as a table with its indices, and let it be the one that is searched; return what is said of it.

    Args:
        uri: where.
        passages: in their order.
        settings: what is indexed.
        dense: how vectors were made.
        vectors: the folder of `encode_passages`; None where there are none.
        about: what else is said: the digest of the passages, versions.

    Raises:
        InputError: LanceDB cannot write there.
    """
    connection = connect(uri)
    before = read_state(connection, uri)
    name = f"passages_{about['digest']}" + ("_" if before.get("table") == f"passages_{about['digest']}" else "")
    indexed = vectors is not None and len(passages) >= settings.index_from
    state = {**about, "table": name, "passages": len(passages), "vectors_indexed": indexed}
    state |= {"lance": asdict(settings), "dense": asdict(dense)}
    try:
        asyncio.run(_write(connection, name, passages, settings, _opened(vectors, len(passages)), state, before.get("table")))
    except FAILURES as error:
        raise InputError(f"{uri} cannot be written by LanceDB: {_first_line(error)}") from error
    return state


async def _write(
    connection: AsyncConnection,
    name: str,
    passages: Sequence[Passage],
    settings: LanceSettings,
    vectors: NDArray[np.float32] | None,
    state: Row,
    before: str | None,
) -> None:
    import pyarrow as pa
    from lancedb.index import FTS, IvfPq

    batches = _batches(passages, vectors)
    table = await connection.create_table(name, data=batches, schema=_schema(vectors), mode="overwrite")
    stop_words = sorted(stop_words_of(settings.stop_words))
    language = "English" if settings.stemmer == NONE else settings.stemmer.capitalize()
    stems = settings.stemmer != NONE
    words_index = FTS(language=language, stem=stems, remove_stop_words=bool(stop_words), custom_stop_words=stop_words or None)
    await table.create_index(SEARCHED, config=words_index)
    if state["vectors_indexed"]:
        await table.create_index(VECTOR, config=IvfPq(distance_type="cosine"))
    row = pa.table({"state": [json.dumps(state)]})
    await connection.create_table(STATE, data=row, mode="overwrite")
    for other in (await connection.list_tables()).tables:
        if other.startswith("passages_") and other not in (name, before):
            await connection.drop_table(other)


def _opened(folder: Path | None, passages: int) -> NDArray[np.float32] | None:
    import numpy as np

    return np.memmap(folder / VECTORS, np.float32, "r").reshape(passages, -1) if folder else None


def _schema(vectors: NDArray[np.float32] | None) -> pa.Schema:
    import pyarrow as pa

    kinds = {name: pa.int64() if name in ("start", "end") else pa.string() for name in COLUMNS}
    fields = [*kinds.items(), (SEARCHED, pa.string())]
    return pa.schema(fields + ([(VECTOR, pa.list_(pa.float32(), vectors.shape[1]))] if vectors is not None else []))


def _batches(passages: Sequence[Passage], vectors: NDArray[np.float32] | None) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    schema = _schema(vectors)
    for start in range(0, len(passages), ROWS_AT_ONCE):
        rows = [passage.to_row() for passage in passages[start : start + ROWS_AT_ONCE]]
        columns: list[Any] = [pa.array([row[name] for row in rows], schema.field(name).type) for name in COLUMNS]
        columns.append(pa.array([f"{row['title']}\n{row['text']}" for row in rows]))
        if vectors is not None:
            block = vectors[start : start + len(rows)]
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), vectors.shape[1]))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
