"""`seeker data corpus`: offsets give back the text, nothing is lost, rows keep their ids, what cannot be read is named."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from project.cli import main
from project.corpus.documents.cut import Cutting, pieces
from project.corpus.documents.read import headings, markdown_document, read_document
from project.errors import InputError
from project.files import read_records, read_rows
from project.manifests import read_manifest
from project.records import Passage
from project.writing import write_rows

GUIDE = """# Moon guide

Intro before any part.

## Landing

The module lands. Then it stops.

### Legs

Four legs.

## Launch

It starts again.
"""


def run(tmp_path, *inputs, name="passages.jsonl", status=0, **options):
    """Run the verb; return the passages and the manifest's counts."""
    out = tmp_path / "out" / name
    args = [f"--input_file+={path}" for path in inputs] + [f"--output_file={out}"]
    args += [f"--{option}={str(value).lower()}" for option, value in options.items()]
    assert main(["data", "corpus", *args]) == status
    return (read_records(out, Passage.from_row), read_manifest(out)["counts"]) if not status else None


def cut(text, strategy, size, overlap=0, **more):
    return list(pieces(markdown_document(text, "d", "Title"), Cutting(strategy, size, overlap, **more)))


# --- the ways to cut, worked by hand


def test_fixed_counts_characters():
    found = cut("abcdefghij", "fixed", 4, 1)
    assert [(p.id, p.text, p.start, p.end) for p in found] == [
        ("d#0", "abcd", 0, 4),
        ("d#1", "defg", 3, 7),
        ("d#2", "ghij", 6, 10),  # its end is the text's: no fourth piece that only repeats
    ]


def test_tokens_count_tokens(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = cut(" one two three\nfour five ", "tokens", 2, 1, tokenizer=str(tmp_path))
    assert [p.text for p in found] == ["one two", "two three", "three\nfour", "four five"]


def test_sentences_are_packed_up_to_the_size():
    text = "One is here. Two is here. Three is here.\n\nFour is in a paragraph of its own."
    assert [p.text for p in cut(text, "sentences", 30)] == [
        "One is here. Two is here.",
        "Three is here.",
        "Four is in a paragraph of its",  # a sentence over the size is cut between words
        "own.",
    ]


def test_paragraphs_end_at_blank_lines():
    text = "One.\r\nStill one.\r\n \r\nTwo.\n\n\n\nThree is long. It is two."
    assert [p.text for p in cut(text, "paragraphs", 15)] == ["One.", "Still one.", "Two.", "Three is long.", "It is two."]
    assert [p.text for p in cut(text, "paragraphs", 99)] == ["One.\r\nStill one.", "Two.", "Three is long. It is two."]


def test_sections_have_their_headings_in_the_title():
    assert [(p.title, p.section, p.text) for p in cut(GUIDE, "sections", 99)] == [
        ("Moon guide", "", "Intro before any part."),
        ("Moon guide > Landing", "Landing", "The module lands. Then it stops."),
        ("Moon guide > Landing > Legs", "Landing > Legs", "Four legs."),
        ("Moon guide > Launch", "Launch", "It starts again."),
    ]


def test_every_way_names_the_section_in_which_a_piece_begins():
    found = cut(GUIDE, "paragraphs", 99)
    assert [p.section for p in found][-3:] == ["Landing > Legs", "Launch", "Launch"]
    assert {p.title for p in found} == {"Moon guide"}


def test_what_looks_like_a_heading_and_is_none():
    text = "---\ntitle: Front\n---\n# Real #\n```\n# a comment\n```\nUnder\n=====\n\n#hashtag\n"
    assert [(level, name) for level, name, _, _ in headings(text)] == [(1, "Real"), (1, "Under")]
    assert markdown_document(text, "d", "t").title == "t"  # two of the first level: neither is the title


TEXT = st.lists(
    st.sampled_from(
        [
            "word",
            "Über",
            "A sentence ends. ",
            "\n",
            "\n\n",
            "# Head\n",
            "\r\n",
            " ",
            "\t",
            "日本語。",
            "👩‍🚀",
            "<b>",
            "\x00",
            "a" * 40,
        ]
    )
).map("".join)


@given(text=TEXT, strategy=st.sampled_from(["fixed", "sentences", "paragraphs"]), size=st.integers(1, 60), data=st.data())
def test_offsets_give_back_the_text_and_nothing_is_lost(text, strategy, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = cut(text, strategy, size, overlap)
    covered = [False] * len(text)
    for number, p in enumerate(found):
        assert p.id == f"d#{number}"
        assert text[p.start : p.end] == p.text == p.text.strip() != ""
        assert len(p.text) <= size or (strategy != "fixed" and p.text == "👩‍🚀")  # one character to a reader
        covered[p.start : p.end] = [True] * (p.end - p.start)
    assert all(covered[i] or not char.strip() for i, char in enumerate(text))
    assert [p.start for p in found] == sorted(p.start for p in found)


@given(text=TEXT, size=st.integers(1, 60))
def test_sections_lose_nothing_but_headings_and_those_are_titles(text, size):
    document = markdown_document(text, "d", "t")
    found = list(pieces(document, Cutting("sections", size)))
    covered = [False] * len(text)
    for p in found:
        assert text[p.start : p.end] == p.text
        covered[p.start : p.end] = [True] * (p.end - p.start)
    for mark in document.marks:
        covered[mark.start : mark.body] = [True] * (mark.body - mark.start)
    assert all(covered[i] or not char.strip() for i, char in enumerate(text))


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_a_size_that_cannot_be(size, overlap):
    with pytest.raises(InputError, match="give"):
        Cutting("fixed", size, overlap)


# --- files of one document


def test_a_folder_of_documents(tmp_path, capsys):
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "guide.md").write_text(GUIDE)
    (folder / "deep" / "note.TXT").write_bytes(b"\xef\xbb\xbf# not a heading\r\nA plain note of six words.")
    (folder / "old.txt.gz").write_bytes(gzip.compress("Gezipptes zählt auch mit, wie es soll.".encode()))
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("never read")
    found, counts = run(tmp_path, folder, strategy="sections")
    assert [(p.id, p.source, p.title) for p in found] == [
        ("deep/note.TXT#0", "deep/note.TXT", "note"),
        ("guide.md#0", "guide.md", "Moon guide"),
        ("guide.md#1", "guide.md", "Moon guide > Landing"),
        ("guide.md#2", "guide.md", "Moon guide > Landing > Legs"),
        ("guide.md#3", "guide.md", "Moon guide > Launch"),
        ("old.txt.gz#0", "old.txt.gz", "old"),
    ]
    assert found[0].text == "# not a heading\r\nA plain note of six words."
    assert {p.document for p in found} == {"deep/note.TXT", "guide.md", "old.txt.gz"}
    assert counts == {"rows read": 3, "near-empty passages": 3, "passages written": 6}
    assert "files of other kinds" in capsys.readouterr().out


HTML = """<html><head><title>The page</title><style>p {}</style></head><body><nav>Home | About</nav><h1>The page</h1>
<script>alert(1)</script><p>First <b>bold</b> words.</p><h2>Part &amp; parcel</h2>
<ul><li>one</li><li>two</li></ul></body></html>"""


def test_html_gives_what_a_reader_sees(tmp_path):
    (tmp_path / "page.html").write_text(HTML)
    found, _ = run(tmp_path, tmp_path / "page.html", strategy="sections")
    assert [(p.title, p.text) for p in found] == [
        ("The page", "First **bold** words."),
        ("The page > Part & parcel", "* one\n* two"),
    ]
    document = read_document(tmp_path / "page.html", "page.html")
    assert all(document.text[p.start : p.end] == p.text for p in found)
    latin = "<html><head><meta charset='iso-8859-1'></head><body>Tögrög</body></html>".encode("latin-1")
    (tmp_path / "page.html").write_bytes(latin)
    assert read_document(tmp_path / "page.html", "x").text == "Tögrög"


def pdf(*pages: list[str]) -> bytes:
    """Return a PDF whose pages hold lines of text."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for lines in pages:
        shown = "".join(f"BT /F1 12 Tf 50 {700 - 20 * i} Td ({line}) Tj ET\n" for i, line in enumerate(lines))
        objects.append(f"<< /Length {len(shown)} >>\nstream\n{shown}endstream")
        content = len(objects)
        font = "/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] {font} /Contents {content} 0 R >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append("<< /Title (A made report) >>")
    text, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(text))
        text += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return f"{text}{table}trailer\n{trailer}\nstartxref\n{len(text)}\n%%EOF".encode()


def test_pdf_pages_are_sections_and_lines_are_joined(tmp_path):
    (tmp_path / "report.pdf").write_bytes(
        pdf(["The first sentence goes", "on in a second line.", "It ends."], ["Page two is here."])
    )
    found, _ = run(tmp_path, tmp_path / "report.pdf", strategy="sections")
    assert [(p.title, p.section, p.text) for p in found] == [
        ("A made report > page 1", "page 1", "The first sentence goes on in a second line.\nIt ends."),
        ("A made report > page 2", "page 2", "Page two is here."),
    ]
    (whole,), _ = run(tmp_path, tmp_path / "report.pdf", force=True)
    assert whole.text == read_document(tmp_path / "report.pdf", "x").text


def test_documents_that_cannot_be_read_are_listed(tmp_path, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "good.md").write_text("A good document of some words.")
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 no more")
    (folder / "empty.md").write_text(" \n")
    (folder / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    (folder / "scan.pdf").write_bytes(pdf([]))
    (folder / "torn.txt.gz").write_bytes(gzip.compress(b"torn" * 99)[:-9])
    found, counts = run(tmp_path, folder)
    assert [p.id for p in found] == ["good.md#0"]
    rejected = {row["text"]: row["reason"] for _, row in read_rows(tmp_path / "out" / "passages.jsonl.rejected.jsonl")}
    assert set(rejected) == {"bad.pdf", "empty.md", "latin.txt", "scan.pdf", "torn.txt.gz"}
    assert "is a PDF that cannot be read" in rejected["bad.pdf"]
    assert "is not UTF-8 at byte 1" in rejected["latin.txt"]
    assert "holds no text" in rejected["scan.pdf"]
    assert counts["rows read"] == 6
    run(tmp_path, folder, strict=True, force=True, status=2)
    assert "bad.pdf, line 1: is a PDF that cannot be read" in capsys.readouterr().err


# --- rows


def test_rows_of_all_kinds_stay_whole_and_keep_their_ids(tmp_path):
    context = [["Moon", ["It is far. ", "It is grey."]], ["Mars", ["It is red."]]]
    rows = [
        {"id": "s1", "contents": '"Search title"\nSearch text'},
        {"_id": 7, "title": "Beir", "text": "Beir text"},
        {"title": "No id", "body": "Some body"},
        {"id": "ours#3", "title": "t", "text": "x", "source": "ours", "start": 4, "end": 5, "section": "S > T"},
        {"_id": "h1", "question": "?", "context": context},
        {"_id": "h2", "question": "??", "context": context[:1]},
    ]
    write_rows(tmp_path / "dump.jsonl", rows)
    found, counts = run(tmp_path, tmp_path / "dump.jsonl", name="passages.parquet")
    assert [(p.title, p.text) for p in found] == [
        ("Search title", "Search text"),
        ("Beir", "Beir text"),
        ("No id", "Some body"),
        ("t", "x"),
        ("Moon", "It is far. It is grey."),
        ("Mars", "It is red."),
    ]
    assert [p.id for p in found[:4]] == ["s1", "7", "dump-3", "ours#3"]
    assert found[3] == Passage("ours#3", "t", "x", "ours", 4, 5, "S > T")
    assert found[3].document == "ours"
    assert found[1].document == "7"
    assert counts["duplicates left out of passages"] == 1  # the same paragraph in two contexts
    columns = list(next(read_rows(tmp_path / "out" / "passages.parquet"))[1])
    assert columns == ["id", "title", "text", "source", "start", "end", "section"]


def test_rows_are_cut_where_a_strategy_is_named(tmp_path):
    write_rows(tmp_path / "dump.jsonl", [{"id": "a", "title": "T", "text": "One is here. Two is here."}])
    found, _ = run(tmp_path, tmp_path / "dump.jsonl", strategy="sentences", size=12)
    assert [(p.id, p.title, p.text, p.source, p.document) for p in found] == [
        ("a#0", "T", "One is here.", "a", "a"),
        ("a#1", "T", "Two is here.", "a", "a"),
    ]


def test_duplicates_and_near_empty_passages_are_counted_or_dropped(tmp_path):
    texts = [
        "The same words stand here twice.",
        "The same words stand here twice.",
        "Too short",
        "All different words are in this one.",
    ]
    write_rows(tmp_path / "dump.jsonl", [{"id": str(i), "title": "", "text": text} for i, text in enumerate(texts)])
    found, counts = run(tmp_path, tmp_path / "dump.jsonl")
    assert len(found) == 4
    assert counts == {"rows read": 4, "near-empty passages": 1, "duplicates in passages": 1, "passages written": 4}
    found, counts = run(tmp_path, tmp_path / "dump.jsonl", drop_duplicates=True, drop_near_empty=True, force=True)
    assert [p.id for p in found] == ["0", "3"]
    assert counts["near-empty passages left out"] == counts["duplicates left out of passages"] == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "a", "title": "x"}, "has no text; expected one of the fields"),
        ({"id": "a", "text": 3}, "field 'text' is int"),
        ({"id": "a", "text": "half \ud83d"}, "half a surrogate pair"),
        ({"id": "a", "context": [["Moon"]]}, "is not a pair"),
    ],
)
def test_rows_that_are_no_passages(tmp_path, row, reason):
    good = {"id": "good", "text": "fine \x00 text"}
    (tmp_path / "dump.jsonl").write_text(f"{json.dumps(good)}\n{{broken\n{json.dumps(row)}\n")
    found, _ = run(tmp_path, tmp_path / "dump.jsonl")
    assert [p.text for p in found] == ["fine \x00 text"]
    rejected = [row for _, row in read_rows(tmp_path / "out" / "passages.jsonl.rejected.jsonl")]
    assert [one["line"] for one in rejected] == [2, 3]
    assert reason in rejected[1]["reason"]


def test_two_rows_of_one_id_stop(tmp_path, capsys):
    write_rows(tmp_path / "dump.jsonl", [{"id": "a", "text": "x"}, {"id": "a", "text": "x"}, {"id": "a", "text": "y"}])
    run(tmp_path, tmp_path / "dump.jsonl", status=2)
    assert "'a' would be the id of two different rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "holds no document"),
        (lambda folder: folder.write_text("x"), "has another suffix"),
    ],
)
def test_inputs_that_are_none(tmp_path, capsys, make, said):
    make(tmp_path / "given")
    run(tmp_path, tmp_path / "given", status=2)
    assert said in capsys.readouterr().err


def test_two_documents_of_one_name_need_their_folder(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / "README.md").write_text("Some words of a document.")
    run(tmp_path, tmp_path / "README.md", tmp_path / "sub", status=2)
    assert "would both be 'README.md'; give a folder that holds both" in capsys.readouterr().err


def test_a_size_without_a_strategy_is_refused(tmp_path, capsys):
    (tmp_path / "a.md").write_text("text")
    run(tmp_path, tmp_path / "a.md", status=2, size=5)
    assert "need a --strategy" in capsys.readouterr().err


def test_a_document_that_moved_is_not_taken_for_the_same(tmp_path, capsys):
    (tmp_path / "docs" / "a").mkdir(parents=True)
    (tmp_path / "docs" / "a" / "x.md").write_text("Some words of one document.")
    assert run(tmp_path, tmp_path / "docs")[0][0].id == "a/x.md#0"
    (tmp_path / "docs" / "a").rename(tmp_path / "docs" / "b")
    run(tmp_path, tmp_path / "docs", status=2)
    assert "was made with ids=" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "docs", force=True)[0][0].id == "b/x.md#0"


def test_what_stands_before_the_text_of_a_markdown_file_is_not_searched(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "front.md").write_text("---\ntitle: The lamp\ntags: [a, b]\n---\nIt burns for six hours.\n")
    (folder / "rules.md").write_text("---\nA rule above and below is text.\n---\nIt stays.\n")
    (folder / "none.txt").write_text(" \n")
    found = {p.id: p for p in run(tmp_path, folder)[0]}
    assert (found["front.md#0"].title, found["front.md#0"].text.strip()) == ("The lamp", "It burns for six hours.")
    assert "A rule above and below is text." in found["rules.md#0"].text
    [(_, refused)] = read_rows(tmp_path / "out" / "passages.jsonl.rejected.jsonl")
    assert refused["reason"] == "holds no text", "of scanned pages only a PDF is told"


def test_odd_files_of_a_folder_are_listed_and_the_others_read(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "good.md").write_text("A good document of some words.")
    (folder / "date.md").write_text("---\ndate: 2024-13-45\n---\nIts date is none, and it is read.")
    (folder / "half.md").write_text('---\ntitle: "\\uD800"\n---\nA title that is no text.')
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.md")).write_text("A name that is no text.")
    (folder / "package.json").write_text('{"name": "no passage"}')
    (folder / "empty.jsonl").write_text("")
    (folder / "torn.jsonl.gz").write_bytes(b"\x1f\x8b no gzip")
    (folder / "old.html").write_text("<title>Old</title>" + "<p>words of an old page " * 700)
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "rows.jsonl").write_text('{"text": "A row without an id."}\n')
    found, counts = run(tmp_path, folder)
    assert [p.id for p in found][:4] == ["a/rows-1", "b/rows-1", "date.md#0", "good.md#0"]
    assert sum(p.text.count("old page") for p in found) == 700
    rejected = [row["reason"] for _, row in read_rows(tmp_path / "out" / "passages.jsonl.rejected.jsonl")]
    assert len(rejected) == 5  # two that are no text, and three of rows
    assert counts["rows read"] == 10


def test_text_is_not_lost_with_forms_and_menus(tmp_path):
    form = "<body><nav>Home</nav><form><h1>All</h1><p>text of the page</p><input value='x'></form></body>"
    (tmp_path / "form.html").write_text(form)
    assert read_document(tmp_path / "form.html", "x").text == "# All\n\ntext of the page"
    (tmp_path / "open.html").write_text(
        "<body><h1>A</h1><nav>Home <p>all the text of a page whose menu is never closed</p></body>"
    )
    assert "all the text" in read_document(tmp_path / "open.html", "x").text


def test_links_are_followed_once_and_the_output_is_no_input(tmp_path):
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked.md").write_text("A linked document of words.")
    (docs / "link").symlink_to(tmp_path / "other")
    (docs / "sub" / "loop").symlink_to(docs)
    command = ["data", "corpus", f"--input_file={docs}", f"--output_file={docs / 'passages.jsonl'}"]
    assert main(command) == 0
    assert [p.id for p in read_records(docs / "passages.jsonl", Passage.from_row)] == ["link/linked.md#0"]
    assert main(command) == 0  # nothing to do


@pytest.mark.shared
def test_the_apollo_report(shared_data, tmp_path):
    report = shared_data("apollo13/mission_report.md")
    found, counts = run(tmp_path, report, strategy="sections")
    text = report.read_text()
    assert all(text[p.start : p.end] == p.text and len(p.text) <= 1000 for p in found)
    assert any(p.title.endswith("> 7.1.6 Batteries") for p in found)
    assert counts["passages written"] == len(found) > 300
