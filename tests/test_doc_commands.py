"""Every `seeker` command that README.md, CONTRIBUTING.md or a page of docs/ shows is one: verb, options, values, paths."""

import re

import pytest
from doc_blocks import DOCS, ROOT, Block, blocks, of_readme, write_files
from doc_commands import check
from doc_needs import NOT_GIVEN

from project.errors import InputError

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
PATH = re.compile(r"(?<![\w/.-])((?:experiments|scripts|project|tests|docs)/[\w./-]*\w/?)(?:::(\w+))?")
MADE = re.compile(r"project/utils|docs/images/|\.\.\.")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with what a page's commands find there."""
    for name in ("experiments", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_a_page_is_one(page, folder):
    found = blocks(page)
    write_files(folder, found)
    wrong = []
    for block in found:
        for words in block.seeker_commands:
            try:
                check(words, whole=bool(block.language))
            except InputError as error:
                wrong.append(f"seeker {' '.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_and_test_that_a_page_names_is_there(page):
    named = {m.groups() for m in PATH.finditer(page.read_text("utf-8")) if not MADE.search(m[0])}
    assert not [path for path, _ in named if not (ROOT / path).exists()]
    tests = [(path, test) for path, test in named if test]
    assert not [f"{path}::{test}" for path, test in tests if f"def {test}(" not in (ROOT / path).read_text("utf-8")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data", "fact"], "there is no verb 'data fact'"),
        (["index", "build", "--passage", "x"], "--passage"),
        (["index", "build", "--passages", "x"], "--output_dir must be given"),
        (["index", "build", "--passages", "x", "--output_dir", "y", "--bm25.k1", "much"], "bm25.k1: 'much' is not accepted"),
        (["fit", "--config", "experiments/no.yaml"], "does not exist"),
        (["fit", "--config", "experiments/debug/ppo.yaml", "--model.ppo.clap", "1"], "clap"),
        (["fit", "--config", "own.yaml", "--model.warmup_shear", "1"], "warmup_shear"),
        (["fit", "--config", "experiments/debug/sft.yaml", "--trainer.max_epochs", "few"], "few"),
        (["plan", "--config", "…", "--room_mb", "80"], "room_mb"),
        (["progressive", "--config", "own.yaml", "--phase2.model.learning_rat", "1"], "learning_rat"),
    ],
)
def test_what_seeker_would_not_take_is_found(words, sentence, folder):
    with pytest.raises(InputError, match=re.escape(sentence)):
        check(words)


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config", "…", "--config", "experiments/strategies/ddp.yaml"],
        ["fit", "--config", "own.yaml", "--model.ppo.overlap", "true", "--model.limits.fold_turns", "2"],
        ["plan", "--config", "experiments/quickstart/sft.yaml", "--room_gb", "80"],
        ["test", "--model_path", "DIR", "--test_file", "FILE", "--num_samples", "N"],
        ["progressive", "--config", "own.yaml", "--phase2.model.learning_rate", "1e-5", "--dry_run"],
        ["compare", "A", "B", "--html", "c.html"],
    ],
)
def test_what_seeker_would_take_is_taken(words, folder):
    check(words)


def test_commands_are_read_out_of_a_page():
    text = "# first\nA=1 seeker fit --config a.yaml \\\n  --x '[b, c]' > log &\nseeker ui | head; torchrun -m project fit\n"
    block = Block("bash", "", text)
    assert block.seeker_commands == [["fit", "--config", "a.yaml", "--x", "[b, c]"], ["ui"], ["fit"]]
    assert of_readme("seeker data steps|phases        the same") == [["data", "steps"], ["data", "phases"]]
    assert of_readme("seeker lineage RUN|FILE   what") == [["lineage", "RUN"]]
    assert of_readme("seeker data show FILE [--number N | --stats true]  s") == [
        ["data", "show", "FILE", "--number", "N", "--stats", "true"]
    ]


def test_blocks_that_need_something_are_run_where_it_is_there():
    shown = [
        Block("bash", title, "")
        for title in ("", "needs a GPU", "a.sh", "needs two minutes", "needs a GPU and 2 minutes", "needs PostgreSQL")
    ]
    assert [block.is_run() for block in shown] == [True] + [False] * 5
    assert [block.is_run(slow=True) for block in shown] == [True, False, False, True, False, True]
    assert [block.is_file for block in shown] == [False, False, True, False, False, False]


def test_every_block_that_needs_something_says_what_is_known():
    titles = {block.title for page in PAGES for block in blocks(page) if block.title.startswith("needs ")}
    assert {title for title in titles if not Block("bash", title, "").is_run(slow=True)} == NOT_GIVEN
