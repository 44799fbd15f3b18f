"""Programs over rows: order, memory and all cores aside, what comes out is what was put in, or is listed with its reason."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from project import streams
from project.errors import InputError
from project.files import read_rows
from project.manifests import manifest_path, plan, read_manifest, write_outputs
from project.streams import each, rejected_path, run
from project.writing import Sink, write_rows


def copy(row, made):
    """Write a row as it is, evens to one output and the rest to another."""
    if row["n"] < 0:
        raise ValueError("field 'n' is negative")
    made.counts["seen"] += 1
    made.put("even" if row["n"] % 2 == 0 else "odd", row)


def once(row, made):
    made.put("out", row, once=(str(row["n"]),))


def unique(row, made):
    made.put("out", row, same_id="rename")


def die(row, made):
    if row["n"] == 500:
        os.kill(os.getpid(), signal.SIGKILL)
    made.put("out", row)


def dawdle(row, made):
    time.sleep(0.02)
    made.put("out", row)


def twice(row, made):
    """Write as many rows as the row says."""
    for number in range(row["n"]):
        made.put("out", {"n": number, "text": "x" * 10_000})


def outputs(folder, suffix):
    return {"even": folder / f"even.{suffix}", "odd": folder / f"odd.{suffix}"}


def rows_of(path):
    return [row for _, row in read_rows(path)]


@pytest.fixture
def own(tmp_path):
    """A folder that holds nothing but what the test and the program write."""
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


@pytest.fixture
def small(monkeypatch):
    """Chunks so small that a test's file has many, which go to other processes."""
    monkeypatch.setattr(streams, "CHUNK_BYTES", 2_000)


@pytest.mark.parametrize("given_as", ["jsonl", "jsonl.gz", "json", "parquet"])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_every_kind_of_file_gives_the_same_rows_in_their_order(own, small, given_as, suffix):
    rows = [{"n": n, "text": f"tögrög {n} \u2028", "list": [], "none": None} for n in range(400)]
    source = own / f"in.{given_as}"
    if given_as == "json":
        source.write_text(json.dumps(rows))
    else:
        write_rows(source, rows)
    counts = run("copy", partial(each, copy), [source], outputs(own, suffix), {})
    assert counts == {"rows read": 400, "seen": 400, "even written": 200, "odd written": 200}
    assert rows_of(own / f"even.{suffix}") == rows[::2]
    assert rows_of(own / f"odd.{suffix}") == rows[1::2]


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3), lambda v: st.lists(v, max_size=2))


@given(st.lists(st.fixed_dictionaries({"n": st.integers(0, 9), "messages": VALUES, "extra_info": VALUES}), min_size=1))
def test_parquet_and_json_lines_give_the_same_objects(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("s")
    write_rows(folder / "in.jsonl", rows)
    for suffix in ("jsonl", "parquet"):
        run("once", partial(each, once), [folder / "in.jsonl"], {"out": folder / f"out.{suffix}"}, {})
    assert rows_of(folder / "out.parquet") == rows_of(folder / "out.jsonl")
    assert [row["n"] for row in rows_of(folder / "out.jsonl")] == list(dict.fromkeys(row["n"] for row in rows))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_duplicates_and_ids_are_known_over_all_chunks(own, small, suffix):
    rows = [{"id": str(n % 100), "n": n % 100, "pad": "x" * 50} for n in range(300)]
    write_rows(own / "in.jsonl", rows)
    counts = run("once", partial(each, once), [own / "in.jsonl"], {"out": own / f"a.{suffix}"}, {})
    assert counts == {"rows read": 300, "duplicates left out of out": 200, "out written": 100}
    assert rows_of(own / f"a.{suffix}") == rows[:100]
    run("unique", partial(each, unique), [own / "in.jsonl"], {"out": own / f"b.{suffix}"}, {})
    found = rows_of(own / f"b.{suffix}")
    assert [row["id"] for row in found] == [f"{n % 100}{['', '~2', '~3'][n // 100]}" for n in range(300)]
    assert [row["n"] for row in found] == [row["n"] for row in rows]


BAD = [
    (b"{broken\n", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
    (b"[1, 2]\n", "a JSON list, expected an object"),
    (b'{"n": "\xff"}\n', "not UTF-8 at byte 7"),
    (b'{"n": -1}\n', "field 'n' is negative"),
    (b'{"m": 1}\n', "'n'"),
    (b'{"n": "1"}\n', "'<' not supported between instances of 'str' and 'int'"),
    (b"[" * 100_000 + b"\n", "JSON that cannot be read (maximum recursion depth exceeded"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_listed_with_file_and_line_or_stops(own, line, reason):
    source, out = own / "in.jsonl", outputs(own, "jsonl")
    source.write_bytes(b'{"n": 0}\n\n' + line + b'{"n": 1, "text": "a\\u0000b <search> \\"q\\" </search>"}')
    with pytest.raises(InputError, match=r"in.jsonl, line 3: ") as stopped:
        run("copy", partial(each, copy), [source], out, {}, strict=True)
    assert reason in str(stopped.value)
    assert [path.name for path in own.iterdir()] == ["in.jsonl"]
    counts = run("copy", partial(each, copy), [source], out, {})
    assert counts["rows read"] == 3
    assert counts.total() == 3 + 2 + 1 + 1 + 1
    assert rows_of(out["odd"]) == [{"n": 1, "text": 'a\0b <search> "q" </search>'}]
    (listed,) = rows_of(rejected_path(out["even"]))
    assert (listed["file"], listed["line"]) == (str(source), 3)
    assert reason in listed["reason"]


def test_a_row_of_50_mb_and_results_of_100_000_characters(own):
    rows = [{"n": 2, "text": "ö" * 25_000_000}, *({"n": n, "documents": [{"content": "c" * 100_000}]} for n in range(4, 12, 2))]
    write_rows(own / "in.jsonl", rows)
    run("copy", partial(each, copy), [own / "in.jsonl"], {"even": own / "even.jsonl"}, {})
    assert rows_of(own / "even.jsonl") == rows


def test_a_killed_process_is_one_sentence_and_leaves_nothing(own, small):
    write_rows(own / "in.jsonl", [{"n": n} for n in range(1000)])
    with pytest.raises(InputError, match="a process of die was killed, as the system does when memory ends"):
        run("die", partial(each, die), [own / "in.jsonl"], {"out": own / "out.jsonl"}, {})
    assert [path.name for path in own.iterdir()] == ["in.jsonl"]


def test_a_killed_program_takes_its_processes_along(own):
    write_rows(own / "in.jsonl", [{"n": n} for n in range(20_000)])
    code = (
        "from functools import partial\nfrom pathlib import Path\n"
        "from project import streams\nfrom test_streams import dawdle\n"
        f"streams.CHUNK_BYTES = 2_000; folder = Path({str(own)!r})\n"
        "if __name__ == '__main__':\n    streams.run('dawdle', partial(streams.each, dawdle), [folder / 'in.jsonl'], "
        "{'out': folder / 'out.jsonl'}, {})\n"
    )
    (own / "program.py").write_text(code)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(streams.__file__).parents[1])])
    process = subprocess.Popen([sys.executable, own / "program.py"], env=os.environ | {"PYTHONPATH": path})
    end, working = time.monotonic() + 60, []
    while not working and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)
        working = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert working
    time.sleep(2)  # they are at work
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(working, timeout=10)
    for child in alive:
        child.kill()
    assert not alive


def test_what_does_not_fit_on_the_disk_is_refused_early(own, small, monkeypatch):
    write_rows(own / "in.jsonl", [{"n": 3}] * 3000)
    usage = type(streams.shutil.disk_usage(own))
    monkeypatch.setattr(streams.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 20_000_000))
    with pytest.raises(InputError, match=r"would take about 0\.1 GB, and 0\.0 GB are free"):
        run("twice", partial(each, twice), [own / "in.jsonl"], {"out": own / "out.jsonl"}, {})
    assert [path.name for path in own.iterdir()] == ["in.jsonl"]


def test_a_gzip_file_that_was_cut_off(own):
    with gzip.open(own / "in.jsonl.gz", "wt") as out:
        out.writelines(json.dumps({"n": n, "pad": os.urandom(20).hex()}) + "\n" for n in range(2000))
    data = (own / "in.jsonl.gz").read_bytes()
    (own / "in.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"in.jsonl.gz is damaged"):
        run("copy", partial(each, copy), [own / "in.jsonl.gz"], outputs(own, "jsonl"), {})
    assert [path.name for path in own.iterdir()] == ["in.jsonl.gz"]


def made(folder, parameters, **options):
    return run("copy", partial(each, copy), [folder / "in.jsonl"], outputs(folder, "jsonl"), parameters, **options)


def test_what_is_there_is_not_made_again_and_not_lost(own):
    """Only outputs that the same program made of the same inputs with the same parameters count as made."""
    write_rows(own / "in.jsonl", [{"n": 0}, {"n": 1}])
    assert made(own, {"a": 1}) == {"rows read": 2, "seen": 2, "even written": 1, "odd written": 1}
    before = {path: path.stat().st_mtime_ns for path in own.iterdir()}
    assert made(own, {"a": 1}) is None
    assert before == {path: path.stat().st_mtime_ns for path in own.iterdir()}
    with pytest.raises(InputError, match=r"even.jsonl is there and was made with a=1, now 2; give another name, or replace it"):
        made(own, {"a": 2})
    assert made(own, {"a": 2}, force=True)
    (own / "even.jsonl").write_text('{"n": 4}\n')
    with pytest.raises(InputError, match=r"even.jsonl is there and was changed since it was made"):
        made(own, {"a": 2})
    assert rows_of(own / "even.jsonl") == [{"n": 4}]
    write_rows(own / "even.jsonl", [{"n": 0}])
    write_rows(own / "in.jsonl", [{"n": 0}, {"n": 1}, {"n": 2}])
    with pytest.raises(InputError, match=r"even.jsonl is there and was made from other inputs"):
        made(own, {"a": 2})
    manifest_path(own / "even.jsonl").unlink()
    with pytest.raises(InputError, match=r"even.jsonl is there and has no manifest that says how it was made"):
        made(own, {"a": 2})
    for path in outputs(own, "jsonl").values():
        path.unlink()
    assert made(own, {"a": 2})["even written"] == 2


def killed():
    raise KeyboardInterrupt


def test_a_kill_before_the_files_appear_leaves_nothing_that_is_refused(own, monkeypatch):
    """All manifests are there by then, and no file but the first: as `kill -9` between two renamings leaves it."""
    source, paths = own / "in.jsonl", {name: own / f"{name}.jsonl" for name in ("out", "more")}
    write_rows(source, [{"id": "a", "n": 1}])

    def two(row, made):
        made.put("out", row)
        made.put("more", row)

    program = partial(each, two)
    with monkeypatch.context() as patch:
        patch.setattr(
            Sink, "__exit__", lambda sink, *_: sink._partial.replace(sink.path) if sink.path == paths["more"] else killed()
        )
        with pytest.raises(KeyboardInterrupt):
            run("seeker data test", program, [source], paths, {})
    assert [path.exists() for path in paths.values()] == [False, True]
    assert run("seeker data test", program, [source], paths, {})["out written"] == 1
    assert run("seeker data test", program, [source], paths, {}) is None


def test_a_full_disk_at_the_manifests_leaves_what_was_there(own, monkeypatch):
    paths = {name: own / f"{name}.jsonl" for name in ("a", "b")}
    write_outputs(plan("seeker data test", {"seed": 0}, []), {path: [{"id": "old"}] for path in paths.values()})
    before = {path: path.read_bytes() for path in own.iterdir()}
    written = Path.write_bytes

    def full(path, text, **options):
        if ".b.jsonl.manifest" in path.name:
            raise OSError(28, "No space left on device")
        return written(path, text, **options)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_outputs(plan("seeker data test", {"seed": 1}, []), {p: [{"id": "new"}] for p in paths.values()}, force=True)
    assert {path: path.read_bytes() for path in own.iterdir()} == before


def test_small_outputs_do_not_replace_their_input(own):
    write_rows(own / "a.jsonl", [{"id": "only copy"}])
    with pytest.raises(InputError, match=r"a.jsonl is the input file and would be the output"):
        write_outputs(plan("seeker data test", {}, [own / "a.jsonl"]), {own / "a.jsonl": [{"id": "new"}]}, force=True)


def test_a_changed_file_is_not_said_to_be_as_it_was_made(own):
    path = own / "a.jsonl"
    write_outputs(plan("seeker data test", {}, []), {path: [{"id": "old"}]})
    assert plan("seeker data more", {}, [path])["inputs"][0]["made_by"]["program"] == "seeker data test"
    path.write_text('{"id": "by hand"}\n')
    assert "made_by" not in plan("seeker data more", {}, [path])["inputs"][0]


def test_a_manifest_holds_where_everything_comes_from(own):
    write_rows(own / "in.jsonl", [{"n": 0}, {"n": 1}, {"n": -1}])
    made(own, {"a": [1]})
    run("once", partial(each, once), [own / "even.jsonl"], {"out": own / "out.parquet"}, {})
    told = read_manifest(own / "out.parquet")
    assert (told["program"], told["counts"]) == ("once", {"rows read": 1, "out written": 1})
    (source,) = told["inputs"]
    assert source["file"] == str(own / "even.jsonl")
    assert source["made_by"]["parameters"] == {"a": [1]}
    assert source["made_by"]["outputs"]["even.jsonl"] == {"rows": 1, "digest": source["digest"]}
    assert source["made_by"]["counts"]["rows rejected: field 'n' is negative"] == 1
    assert source["made_by"]["inputs"][0]["file"] == str(own / "in.jsonl")
    assert "made_by" not in source["made_by"]["inputs"][0]


def test_an_output_that_is_an_input(own):
    write_rows(own / "in.jsonl", [{"n": 0}])
    with pytest.raises(InputError, match="is the input file and would be the output"):
        run("once", partial(each, once), [own / "in.jsonl"], {"out": Path(f"{own}/./in.jsonl")}, {})


def test_nothing_left_says_why(own):
    write_rows(own / "in.jsonl", [{"n": 0}])
    with pytest.raises(InputError, match=r"nothing is left for odd of 1 rows \(1 seen, 1 even written\)"):
        made(own, {}, full=True)
    assert made(own, {}) == Counter({"rows read": 1, "seen": 1, "even written": 1})
    assert (own / "odd.jsonl").read_bytes() == b""


def test_ids_that_look_like_made_ones_stay_apart(own):
    for suffix in ("jsonl", "parquet"):
        write_rows(own / "in.jsonl", [{"id": name} for name in ("a", "a", "a~2", "a")])
        run("unique", partial(each, unique), [own / "in.jsonl"], {"out": own / f"b.{suffix}"}, {}, force=True)
        assert [row["id"] for row in rows_of(own / f"b.{suffix}")] == ["a", "a~2", "a~2~2", "a~3"]


def test_the_list_of_rejected_rows_may_not_be_an_input(own):
    write_rows(own / "out.jsonl.rejected.jsonl", [{"n": 1}])
    with pytest.raises(InputError, match=r"out.jsonl.rejected.jsonl is the input file and would be the output"):
        run("once", partial(each, once), [own / "out.jsonl.rejected.jsonl"], {"out": own / "out.jsonl"}, {})


def test_strict_stops_where_a_run_before_listed(own):
    write_rows(own / "in.jsonl", [{"n": 0}, {"n": -1}])
    assert made(own, {})
    assert made(own, {}) is None
    with pytest.raises(InputError, match=r"in.jsonl, line 2: field 'n' is negative"):
        made(own, {}, strict=True)


def test_an_input_of_another_name_is_another_input(own):
    write_rows(own / "in.jsonl", [{"n": 0}])
    assert made(own, {})
    (own / "in.jsonl").rename(own / "other.jsonl")
    with pytest.raises(InputError, match="was made from other inputs"):
        run("copy", partial(each, copy), [own / "other.jsonl"], outputs(own, "jsonl"), {})


def test_reasons_that_differ_by_row_do_not_fill_the_counts(own):
    def refuse(row, made):
        if row["n"]:
            raise ValueError(f"row {row['n']}")
        made.put("out", row)

    write_rows(own / "in.jsonl", [{"n": n} for n in range(100)])
    counts = run("refuse", partial(each, refuse), [own / "in.jsonl"], {"out": own / "out.jsonl"}, {})
    assert len(counts) == 20 + 1 + 2
    assert counts["rows rejected: other reasons"] == 79
    assert len(rows_of(rejected_path(own / "out.jsonl"))) == 99
