"""The dataset card of pushed files: what they are, how they were made and from what, all of it from their manifests.

The same files give the same card, letter for letter. Folders of this machine are not in it: files are told by name and digest.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from project.errors import InputError
from project.files import read_rows
from project.records import Row
from project.writing import FOOTER_KEY, Columns, encode, suffix_of

if TYPE_CHECKING:
    from datasets import Features

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
ROWS_AT_ONCE = 10_000
_FOLDERS = re.compile(r"""(?<![\w:/.<])(?:~\w*/(?:[^\s/'"<>|]+/)*|/(?:[^\s/'"<>|]+/)+)(?=[^\s/])""")
KINDS = {
    "messages": "A row is a conversation: `messages` and `tools` as OpenAI's chat API has them. A message's `weight`, 1 where "
    "it has none, multiplies its loss: 0 is not trained.",
    "steps": "A row is what an agent did for one question, step by step.",
    "target": "A row is one decision of an agent: `context` is what it had seen, `target` what it did next.",
    "answers": "A row is a question with its `answers`, each right by itself.",
}
"""What a row is, by the first column of these that it has."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a dataset, which is one split of one config."""

    path: Path
    config: str
    split: str
    rows: int
    digest: str
    """As `file_digest` gives it."""
    manifest: Row
    """Without folders."""

    @property
    def target(self) -> str:
        """Where the file lies in the dataset."""
        suffix = suffix_of(self.path) + (".gz" if self.path.suffix == ".gz" else "")
        return f"data/{self.config}-{self.split}.{suffix}"


def write_card(
    repo: str, licence: str, parts: Sequence[Part], sources: Sequence[str], *, title: str | None, revision: str | None
) -> str:
    """Return the text of a dataset's README.md.

    Args:
        repo: OWNER/NAME.
        licence: the hub's id of it.
        parts: the files, those of a config together.
        sources: what the data comes from, and under which licences.
        title: of the card; the name where None.
        revision: the branch that it is on; the main one where None.

    Raises:
        InputError: the columns of a config have no one type.
    """
    title = title or repo.partition("/")[2]
    columns = {config: config_features(held) for config, held in by_config(parts).items()}
    sections = [
        f"# {_line(title)}",
        "Data for language models that search, made by the data programs of Seeker from the files named below.",
        *_rows_are(columns),
        _table(["config", "split", "rows", "file", "digest"], [_part_cells(part) for part in parts]),
        "Digests are the first 16 hexadecimal digits of a file's SHA-256.",
        "## Load it",
        *_loading(repo, parts, revision),
        "## How it was made",
        "The programs, in order. The whole record of each file is in `manifests/`.",
        *(_step(number, step) for number, step in enumerate(chain_of(parts), 1)),
        "## What it was made from",
        _table(["file", "digest"], [[_line(name), f"`{digest}`"] for name, digest in originals(parts)]),
        "## Sources and licences",
        "\n".join(f"- {_line(source)}" for source in sources) or "None were named when this was pushed.",
        f"This dataset: `{licence}`.",
    ]
    return _front_matter(title, licence, parts, columns) + "\n\n".join(sections) + "\n"


def by_config(parts: Iterable[Part]) -> dict[str, list[Part]]:
    """Return the parts of each config."""
    held: dict[str, list[Part]] = {}
    for part in parts:
        held.setdefault(part.config, []).append(part)
    return held


def _front_matter(title: str, licence: str, parts: Sequence[Part], columns: Mapping[str, Features]) -> str:
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    configs = [
        {"config_name": config, "data_files": [{"split": part.split, "path": part.target} for part in held]}
        for config, held in by_config(parts).items()
    ]
    data = DatasetCardData(
        pretty_name=title,
        license=licence,
        language=["en"],
        task_categories=["text-generation"],
        size_categories=[_size(sum(part.rows for part in parts))],
        tags=["seeker"],
        configs=configs,
    )
    infos = {config: DatasetInfo(features=held, config_name=config) for config, held in columns.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return f"---\n{data.to_yaml()}\n---\n\n"


def _size(rows: int) -> str:
    return next((name for bound, name in SIZES if rows < bound), "10M<n<100M" if rows < 10**8 else "100M<n<1B")


def _rows_are(columns: Mapping[str, Features]) -> list[str]:
    """Return what the rows are, a paragraph for each kind."""
    kinds: dict[str, list[str]] = {}
    for config, held in columns.items():
        if kind := next((text for name, text in KINDS.items() if name in held), None):
            kinds.setdefault(kind, []).append(f"`{config}`")
    return [f"{', '.join(configs)}: {kind[0].lower()}{kind[1:]}" for kind, configs in kinds.items()]


def _part_cells(part: Part) -> list[str]:
    return [f"`{part.config}`", part.split, f"{part.rows:,}", f"`{part.target}`", f"`{part.digest}`"]


def _loading(repo: str, parts: Sequence[Part], revision: str | None) -> list[str]:
    first = parts[0]
    asked = f'"{repo}", "{first.config}", split="{first.split}"' + (f', revision="{revision}"' if revision else "")
    at = f"@{revision}" if revision else ""
    held = {part.split: part for part in parts if part.config == first.config}
    options = [
        f"--data.{option} hf://datasets/{repo}{at}/{held[split].target}"
        for option, split in (("train_file", "train"), ("validation_file", "validation"))
        if split in held
    ]
    return [
        f"```python\nimport datasets\n\nrows = datasets.load_dataset({asked})\n```",
        "This takes `datasets` 4.7 or newer, which decodes the columns that hold JSON. What a row does not have is null.",
        "Seeker reads the files as they are:",
        "```sh\nseeker fit --config CONFIG.yaml " + " ".join(options) + "\n```",
    ]


def _step(number: int, step: Row) -> str:
    made = ", ".join(f"{_line(name)} ({held['rows']:,} rows, `{held['digest']}`)" for name, held in step["outputs"].items())
    given = ", ".join(f"{_line(one['file'])} (`{one['digest']}`)" for one in step["inputs"])
    values = [[_line(name), _line(json.dumps(value, ensure_ascii=False))] for name, value in step["parameters"].items()]
    counts = [[_line(name), f"{count:,}"] for name, count in step["counts"].items()]
    told = [
        f"### {number}. {_line(step['program'])}",
        f"Version {step['version']}, code `{step['code']}`.",
        f"- From: {given}\n- To: {made}",
        *([_table(["parameter", "value"], values)] if values else []),
        *([_table(["what", "count"], counts)] if counts else []),
    ]
    return "\n\n".join(told)


def chain_of(parts: Iterable[Part]) -> list[Row]:
    """Return the manifests of all runs that led to the files, each once, a run after those that made its inputs."""
    found: dict[str, Row] = {}
    for part in parts:
        for run in _runs(part.manifest):
            found.setdefault(json.dumps(run, sort_keys=True), run)
    return list(found.values())


def _runs(manifest: Row) -> Iterator[Row]:
    for given in manifest["inputs"]:
        if "made_by" in given:
            yield from _runs(given["made_by"])
    yield manifest


def originals(parts: Iterable[Part]) -> list[tuple[str, str]]:
    """Return (name, digest) of the files that no program made."""
    given = [one for run in chain_of(parts) for one in run["inputs"] if "made_by" not in one]
    return list(dict.fromkeys((one["file"], one["digest"]) for one in given))


def without_folders(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a manifest, or a value of one, in which files are names: a folder tells of a machine and its user.

    {"file": "/home/me/raw.jsonl", "digest": "1f"} -> {"file": "raw.jsonl", "digest": "1f"}
    """
    if isinstance(value, dict):
        return {
            without_folders(key): Path(held).name if key == "file" else without_folders(held) for key, held in value.items()
        }
    if isinstance(value, list):
        return [without_folders(held) for held in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def config_features(parts: Sequence[Part]) -> Features:
    """Return the columns that `datasets` shall give back for all splits of a config; JSON is decoded.

    Without them it takes the first split's, and fails where another has other keys.

    Raises:
        InputError: a column has no one type.
    """
    from datasets import Features, Value

    merged: dict[str, Any] = {}
    for part in parts:
        is_parquet = suffix_of(part.path) == "parquet"
        for columns in [_parquet_columns(part.path)] if is_parquet else _json_columns(part.path):
            for name, kind in columns.items():
                merged[name] = _one_kind(merged.get(name), kind, is_parquet=is_parquet, where=f"'{name}' of {part.path}")
    return Features({name: kind or Value("string") for name, kind in merged.items()})


def _one_kind(before: Any, now: Any, *, is_parquet: bool, where: str) -> Any:  # noqa: ANN401 - features; None: nulls only
    """Return what holds both: of values in JSON lines, JSON; not of text, which `datasets` would take for JSON."""
    from datasets import Json, Value

    if before is None or now is None or before == now:
        return before or now
    if is_parquet or Value("string") in (before, now):
        raise InputError(
            f"column {where} is {now}, and {before} elsewhere in the same config, which datasets.load_dataset cannot give "
            "back; push the files under two names"
        )
    return Json()


def _parquet_columns(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    footer = json.loads((metadata.metadata or {}).get(FOOTER_KEY.encode(), b'{"json": []}'))
    return _as_features(metadata.schema.to_arrow_schema(), footer["json"])


def _json_columns(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the columns of each piece of a file of JSON lines; None is one of nulls."""
    from datasets import Value

    rows = (row for _, row in read_rows(path))
    while piece := list(islice(rows, ROWS_AT_ONCE)):
        try:
            encoded = encode(piece, "columns.parquet")
        except InputError as error:
            raise _mixed(path) from error
        assert isinstance(encoded, Columns)
        columns = _as_features(encoded.table.schema, encoded.json)
        for name in columns:
            are_text = {isinstance(row[name], str) for row in piece if row.get(name) is not None}
            if len(are_text) > 1:
                raise _mixed(path, name)
            columns[name] = (Value("string") if are_text.pop() else columns[name]) if are_text else None
        yield columns


def _mixed(path: Path, name: str = "") -> InputError:
    column = f"column '{name}'" if name else "a column"
    return InputError(
        f"{column} of {path} is of several types, which datasets.load_dataset cannot give back; give it one, or "
        "leave the file out"
    )


def _as_features(schema: Any, json_columns: Iterable[str]) -> dict[str, Any]:  # noqa: ANN401 - an Arrow schema
    from datasets import Features, Json

    return {**Features.from_arrow_schema(schema), **{name: Json() for name in json_columns}}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _line(text: str) -> str:
    """Return text as Markdown shows it, on one line and in one cell."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "\\`").replace("*", "\\*")
