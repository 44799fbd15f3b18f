"""What `seeker` says of itself: where to start, the verbs by stage, a group's, and what a mistyped word was meant to be."""

import inspect
import subprocess
import sys

import pytest
from tracking.boring import BoringAgent, BoringData

from project.cli import VERBS, descriptions, function_of, main
from project.parser_errors import one_sentence
from project.usage import STAGES, by_stage, start_screen
from project.verb_parser import make_parser


def said(capsys, *words):
    status = main(list(words))
    out, error = capsys.readouterr()
    return status, out + error


def test_seeker_alone_says_where_to_start(capsys):
    """As docker, kubectl and cargo do: nothing went wrong, so that the status is 0."""
    status, text = said(capsys)
    assert status == 0
    for words in ("scripts/quickstart.sh", "seeker doctor", "seeker init DIR", "seeker --help"):
        assert words in text
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["seeker"] and words[1].isalpha() and words[1].islower():
            assert words[1] in VERBS
    assert len(text.splitlines()) <= 20 and max(map(len, text.splitlines())) <= 120


def test_a_verb_that_is_not_there_is_not_named():
    assert "seeker demo" not in start_screen({"doctor": ""})
    assert "seeker doctor" in start_screen({"doctor": ""})


def test_every_verb_is_listed_once_by_stage(capsys):
    verbs = descriptions()
    stages = by_stage(verbs)
    assert sorted(verb for _, names in stages for verb in names) == sorted(verbs)
    assert {name for _, names in STAGES for name in names} - {verb.split()[0] for verb in verbs} <= set(verbs)  # none is stale
    assert dict(stages)["train"] == ["plan", "fit", "validate", "progressive"]
    status, text = said(capsys, "--help")
    assert status == 0
    assert all(f"\n  {verb:<18} {what}\n" in text for verb, what in verbs.items())
    assert all(len(line) <= 120 for line in text.splitlines())


def test_help_loads_nothing_heavy():
    code = "import sys; from project.cli import main; main([]); main(['--help']); main(['data']); main(['fitt']); "
    heavy = "{'torch', 'vllm', 'transformers', 'mlflow', 'jsonargparse', 'rich', 'polars'}"
    done = subprocess.run([sys.executable, "-c", f"{code}print({heavy} & set(sys.modules))"], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("words", [["data"], ["data", "--help"], ["data", "-h"], ["index"], ["serve", "--help"]])
def test_a_group_alone_lists_its_verbs(words, capsys):
    status, text = said(capsys, *words)
    assert status == 0
    listed = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  ")]
    assert listed == [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["serv", "retrival"], "there is no verb 'serv retrival'; did you mean 'serve retrieval'?"),
        (["data", "corpuss"], "there is no verb 'data corpuss'; did you mean 'data corpus'?"),
        (["data", "zzz"], "there is no verb 'data zzz'; seeker data --help lists them"),
        (["tset", "--config", "a.yaml"], "there is no verb 'tset'; did you mean 'test'?"),
        (["dta"], "there is no verb 'dta'; did you mean 'data'?"),
        (["fly"], "there is no verb 'fly'; seeker --help lists them"),
        (["data", "corpus", "--input_fil", "x"], "unrecognized arguments: --input_fil x; did you mean '--input_file'?"),
        (["index", "build", "--bm25.k2", "1"], "unrecognized arguments: --bm25.k2 1; did you mean '--bm25.k1'?"),
        (["data", "corpus", "--zzz", "x"], "unrecognized arguments: --zzz x; `seeker data corpus --help` lists the options"),
    ],
)
def test_the_nearest_verb_or_option(words, sentence, capsys):
    needed = {"data": ["--input_file=x", "--output_file=y"], "index": ["--passages=x", "--output_dir=y"]}
    more = needed.get(words[0], []) if any(word.startswith("--") for word in words) else []
    assert said(capsys, *words, *more) == (2, f"seeker: {sentence}\n")


FILES = {
    "key": ("trainer: {max_epoch: 3}\n", "there is no key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    "section": ("modle: {class_path: SFT}\n", "there is no key 'modle.class_path'; did you mean 'model'?"),
    "class": ("data: {class_path: BoringDat}\n", "expected the name of a class; did you mean 'BoringData'?"),
    "callback": (
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitr: x}}]}\n",
        "ModelCheckpoint has no option 'monitr'; did you mean 'monitor'?",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_nearest_key_of_a_config_file(name, tmp_path, capsys):
    text, sentence = FILES[name]
    (tmp_path / "a.yaml").write_text(text)
    status, told = said(
        capsys, "fit", "--model", BoringAgent.__name__, "--data", BoringData.__name__, "--config", f"{tmp_path}/a.yaml"
    )
    assert status == 2
    assert told.endswith(f"{sentence}\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model.learning_rat", "1"], "model: BoringAgent has no option 'learning_rat'; did you mean 'learning_rate'?"),
        (["--trainer.max_epoch", "1"], "unrecognized arguments: --trainer.max_epoch 1; did you mean '--trainer.max_epochs'?"),
        (["--ckpt_pat", "x"], "unrecognized arguments: --ckpt_pat x; did you mean '--ckpt_path'?"),
    ],
)
def test_the_nearest_key_of_the_trainers_options(words, sentence, capsys):
    """An option in short is none: `--confi` would be read, but pass by the checks that look for `--config`."""
    agent = ["--model", BoringAgent.__name__, "--data", BoringData.__name__]
    assert said(capsys, "fit", *agent, *words) == (2, f"seeker: {sentence}\n")


def test_an_option_before_its_class_is_told_so(capsys):
    status, told = said(capsys, "fit", "--data.micro_tokens", "3", "--model", BoringAgent.__name__)
    assert status == 2
    assert "data.micro_tokens stands before the class that has it is named; put --config, or --data CLASS, before it" in told


def test_what_must_be_given_is_named_as_it_is_typed(capsys):
    assert "seeker: --model must be given" in said(capsys, "fit")[1]
    assert one_sentence("the following arguments are required: input_file") == "--input_file must be given"


def test_from_is_typed_as_it_is_shown(capsys):
    with pytest.raises(SystemExit):
        main(["progressive", "--help"])
    text = capsys.readouterr().out
    assert "[--from FROM]" in text
    assert "from_" not in text
    parser = make_parser("progressive", function_of("progressive"))
    assert parser.parse_args(["--config+", "a.yaml", "--from", "b"]).from_ == "b"


@pytest.mark.parametrize("verb", VERBS)
def test_every_parameter_of_a_verb_is_explained(verb):
    function = function_of(verb)
    documented = inspect.getdoc(function)
    for name in inspect.signature(function).parameters:
        assert f"{name}: " in documented or name == "overrides", f"{verb} --{name}"
