"""Exported folders: the checkpoint's own log-probabilities in transformers and PEFT, the card, what is refused, and the hub."""

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tiny import tiny_model_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from project.apps.card_history import told_command, told_settings
from project.cli import main
from project.dialects import Action, get_dialect
from project.files import file_digest
from project.manifests import plan, write_outputs
from project.modules.agent import SearchAgent
from project.modules.policy import AgentSettings, LoRA
from project.modules.sft import SFT
from project.records import Conversation, Document
from project.tracking.store import client, find_run
from project.writing import write_rows

DIALECT = get_dialect("tags")
BOUND = 1e-5
"""Of a log-probability, in nats: float32 and a random model of two layers, whose log-probabilities are about -5.6."""
KEEP = {"monitor": "val/loss", "mode": "max", "save_last": True, "filename": "best"}
"""The best by the largest loss: the first of two epochs, and so not the last."""


def conversation(n):
    search = Action("I look.", (f"thing {n}",))
    found = DIALECT.results([[Document(f"It is {n}.", "Thing")]], search)
    answer = DIALECT.write(Action("So.", answer=str(n)))
    return Conversation(f"c{n}", (*DIALECT.opening(f"What is {n}?"), DIALECT.write(search), *found, answer)).to_row()


def fit(root, name, folder=None, options=(), **changes):
    """Train the tiny model by the real command line, in a folder of the run's name or another."""
    model = {"model_path": str(root / "base"), "precision": "float32", "learning_rate": 0.02} | changes
    config = {
        "model": {"class_path": "SFT", "init_args": model},
        "data": {
            "class_path": "ConversationDataModule",
            "init_args": {"train_file": str(root / "train.jsonl"), "validation_file": str(root / "validation.jsonl")},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False},
    }
    config["trainer"]["default_root_dir"] = str(folder or root / name)
    if name == "sft":
        config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": KEEP}]
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(root / f"{name}.yaml"), *options]) == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory, _empty_store):
    """`sft`, with a LoRA and best and last weights, and `full`, of all weights; tracked in a store of their own."""
    root = tmp_path_factory.mktemp("export") / "someone"
    tiny_model_folder(root / "base")
    for name, numbers in {"train": range(8), "validation": range(20, 22)}.items():
        write_rows(root / f"{name}_raw.jsonl", [{"n": n} for n in numbers])
        made = plan("seeker data traces", {}, [root / f"{name}_raw.jsonl"])
        write_outputs(made, {root / f"{name}.jsonl": [conversation(n) for n in numbers]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(_empty_store, root / 'mlflow.db')}")
        fit(root, "sft", lora={"rank": 4, "alpha": 8})
        fit(root, "full", lora=None)
    return root


@pytest.fixture(autouse=True)
def store(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")


def export(run, to, *options):
    return main(["export", str(run), "--to", str(to), *map(str, options)])


def of_checkpoint(home, name="last.ckpt", lora=LoRA(4, 8)):  # noqa: B008 - frozen
    """Return the policy as a checkpoint has it, read by hand, and the ids of a conversation."""
    run = home / ("sft" if lora else "full")
    torch.manual_seed(5)  # of a LoRA that is to be replaced
    module = SFT(str(home / "base"), AgentSettings(), lora, "float32")
    module.configure_model()
    held = torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]
    state = {key: value for key, value in held.items() if key.startswith("policy.")}
    trained = {key for key, value in module.named_parameters() if value.requires_grad}
    assert trained <= state.keys()
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    (sample,) = module.make_renderer({"think": 1.0}).samples(Conversation.from_row(conversation(3)))
    return module, torch.tensor(sample.ids)


@torch.no_grad()
def policy_logprobs(policy, ids):
    hidden = policy(ids, [len(ids)])[:-1]
    return policy.head(hidden).log_softmax(-1).gather(1, ids[1:, None])[:, 0]


@torch.no_grad()
def model_logprobs(model, ids):
    return model.eval()(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]


def gap(one, other):
    return float((one - other).abs().max())


# --- what is exported ---------------------------------------------------------------------------------------------------------


def test_a_merged_folder_gives_the_checkpoints_own_logprobs(home, tmp_path, capsys):
    assert export("sft", tmp_path / "out", "--weights", "last") == 0
    assert "merged model of sft, last weights" in capsys.readouterr().out
    module, ids = of_checkpoint(home)
    wanted = policy_logprobs(module.policy, ids)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert gap(model_logprobs(model, ids), wanted) < BOUND
    with module.policy.reference():
        assert gap(policy_logprobs(module.policy, ids), wanted) > 0.1, "the check must be able to see the base"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(["<|SEARCH|>", "<|ANSWER|>"]) == [258, 259]
    assert set(ids.tolist()) >= {258, 259}, "the new tokens are compared, too"
    assert tokenizer.chat_template == module.tokenizer.chat_template
    stop = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (stop.eos_token_id, stop.do_sample, stop.temperature) == (257, None, None)  # <|im_end|>, and no one's sampling
    assert AgentSettings.load(tmp_path / "out") == AgentSettings()
    assert not list(tmp_path.glob(".*")), "nothing half written is left"
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in (tmp_path / "out").iterdir())


def test_an_adapter_gives_the_checkpoints_own_logprobs_on_its_base(home, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel

    assert export("sft", tmp_path / "out", "--weights", "last", "--merge", "false") == 0
    module, ids = of_checkpoint(home)
    wanted = policy_logprobs(module.policy, ids)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(home / "base")
    assert config["trainable_token_indices"] == {"model.embed_tokens": [258, 259]}
    assert config["target_modules"] == sorted(config["target_modules"])
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert gap(model_logprobs(loaded, ids), wanted) < BOUND
    base = AutoModelForCausalLM.from_pretrained(home / "base")
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(tmp_path / "out")), mean_resizing=False)
    by_hand = PeftModel.from_pretrained(base, tmp_path / "out")
    assert gap(model_logprobs(by_hand, ids), wanted) < BOUND
    # LoRA's factors and two rows of 32: all in all less than the embedding of 260 rows, which is left out.
    with_rows = sum(p.numel() for p in module.parameters() if p.requires_grad)
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert 4 * with_rows < size < 4 * with_rows + 10_000
    assert {"tokenizer.json", "chat_template.jinja", "seeker.json", "generation_config.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


def test_the_best_weights_are_taken_unless_the_last_are_asked_for(home, tmp_path):
    assert export("sft", tmp_path / "best") == 0
    assert export(home / "sft", tmp_path / "last", "--weights", "last") == 0
    assert export(home / "sft", tmp_path / "adapter", "--merge", "false", "--weights", "best") == 0
    module, ids = of_checkpoint(home, "best.ckpt")
    wanted = policy_logprobs(module.policy, ids)
    from peft import AutoPeftModelForCausalLM

    assert gap(model_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "best"), ids), wanted) < BOUND
    assert gap(model_logprobs(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"), ids), wanted) < BOUND
    assert gap(model_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "last"), ids), wanted) > 1e-3
    assert export(home / "sft/checkpoints/best.ckpt", tmp_path / "file") == 0
    weights = ("best/model.safetensors", "file/model.safetensors")
    assert len({file_digest(tmp_path / name) for name in weights}) == 1, "a checkpoint is merged as the training merges it"


def test_a_model_folder_is_exported_as_it_is_and_its_adapter_too(home, tmp_path):
    assert export(home / "sft/merged", tmp_path / "again") == 0
    held = [file_digest(folder / "model.safetensors") for folder in (home / "sft/merged", tmp_path / "again")]
    assert held[0] == held[1]
    assert export(home / "sft/merged_best", tmp_path / "one", "--merge", "false") == 0
    assert export("sft", tmp_path / "two", "--merge", "false") == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert export(tmp_path / "again", tmp_path / "third") == 0, "an exported folder is one that Seeker wrote"


def test_a_training_of_all_weights(home, tmp_path):
    assert export("full", tmp_path / "out") == 0
    module, ids = of_checkpoint(home, lora=None)
    wanted = policy_logprobs(module.policy, ids)
    assert gap(model_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), ids), wanted) < BOUND


def test_a_training_without_a_hand_over(home, tmp_path, capsys):
    """PPO once left none: its merged folder is taken. One that was killed has its last checkpoint."""
    folder = shutil.copytree(home / "sft", tmp_path / "sft")
    (folder / "hand_over.json").unlink()
    assert export(folder, tmp_path / "one", "--merge", "false") == 0
    assert export(folder, tmp_path / "two") == 0
    assert "did not end" not in capsys.readouterr().err
    shutil.rmtree(folder / "merged")
    assert export(folder, tmp_path / "three") == 0
    assert "did not end; its last checkpoint is taken. To finish it first, run the command" in capsys.readouterr().err
    assert file_digest(tmp_path / "two/model.safetensors") == file_digest(tmp_path / "three/model.safetensors")
    step = json.loads((home / "sft/hand_over.json").read_text())["last"]["step"]
    assert f"- Its training did not end: these are the weights after step {step}." in (tmp_path / "three/README.md").read_text()
    refused(capsys, export(folder, tmp_path / "four", "--weights", "best"), "hands on its last weights only")
    (folder / "checkpoints/last.ckpt").unlink()
    refused(capsys, export(folder, tmp_path / "four"), "finish it with the command that began it and --ckpt_path last")


# --- several trainings in one folder ------------------------------------------------------------------------------------------


@pytest.fixture
def twice(home, tmp_path, monkeypatch):
    """Return a folder in which a run was trained, its id, and how to train there again; tracked in a store of their own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder = tmp_path / "runs/twice"

    def again(**changes):
        fit(home, "twice", folder, lora={"rank": 4, "alpha": 8}, **changes)
        return (folder / "mlflow_run_id").read_text().strip()

    return folder, again(), again


def test_the_run_before_is_not_given_the_weights_of_the_next(twice, tmp_path, capsys):
    folder, old, again = twice
    new = again(learning_rate=0.01)
    for options in ((), ("--merge", "false")):
        refused(capsys, export(old, tmp_path / "out", *options), f"holds the weights of the run {new}, which was trained there")
    assert not (tmp_path / "out").exists()
    assert export(new, tmp_path / "new") == 0
    assert "| model.learning_rate | 0.01 |" in (tmp_path / "new/README.md").read_text()
    (folder / "hand_over.json").unlink()  # as PPO once left it
    refused(capsys, export(old, tmp_path / "out"), f"export that run, or make twice again with `seeker reproduce {old}`")


def test_a_training_that_was_stopped_is_not_given_the_weights_of_the_one_before(twice, tmp_path, monkeypatch, capsys):
    folder, old, again = twice
    (folder / "checkpoints/last.ckpt").rename(tmp_path / "old.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(SFT, "_hand_over", lambda self: self.trainer.save_checkpoint(folder / "checkpoints/last.ckpt"))
        new = again(learning_rate=0.01)
    assert export(folder, tmp_path / "new") == 0
    assert "did not end; its last checkpoint is taken" in capsys.readouterr().err
    card = (tmp_path / "new/README.md").read_text()
    assert "| model.learning_rate | 0.01 |" in card
    assert "- Its training did not end: these are the weights after step" in card
    assert (tmp_path / "new/mlflow_run_id").read_text().strip() == new
    held, made = (file_digest(one / "model.safetensors") for one in (folder / "merged", tmp_path / "new"))
    assert held != made
    assert export(old, tmp_path / "old") == 0, "whose merged folder is there yet"
    assert file_digest(tmp_path / "old/model.safetensors") == held
    assert "| model.learning_rate | 0.02 |" in (tmp_path / "old/README.md").read_text()
    refused(capsys, export(old, tmp_path / "out", "--merge", "false"), "has merged weights only and no checkpoint of them")
    shutil.copy(tmp_path / "old.ckpt", folder / "checkpoints/first.ckpt")
    assert export(folder / "checkpoints/first.ckpt", tmp_path / "first") == 0, "a checkpoint names its own run"
    assert "| model.learning_rate | 0.02 |" in (tmp_path / "first/README.md").read_text()
    shutil.copy(tmp_path / "old.ckpt", folder / "checkpoints/last.ckpt")  # of the new one nothing was saved
    refused(capsys, export(folder, tmp_path / "out"), f"{folder} holds the weights of the run {old}, which was trained there")


def test_weights_before_a_training_went_on_are_exported_and_said_to_be_so(twice, home, tmp_path, monkeypatch, capsys):
    folder, _, _ = twice
    before = json.loads((folder / "hand_over.json").read_text())["last"]["step"]
    with monkeypatch.context() as patch:
        patch.setattr(SFT, "_hand_over", lambda self: self.trainer.save_checkpoint(folder / "checkpoints/last.ckpt"))
        fit(home, "twice", folder, ("--ckpt_path", "last", "--trainer.max_epochs", "3"), lora={"rank": 4, "alpha": 8})
    held = file_digest(folder / "merged/model.safetensors")
    capsys.readouterr()
    assert export(folder, tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"went on after it had handed on these weights of step {before}, up to step" in said
    assert file_digest(tmp_path / "out/model.safetensors") == held
    assert export(folder / "checkpoints/last.ckpt", tmp_path / "newer") == 0
    assert file_digest(tmp_path / "newer/model.safetensors") != held


def test_tests_of_earlier_weights_of_the_same_run_are_not_shown(twice, home, tmp_path, monkeypatch):
    folder, run, _ = twice
    monkeypatch.chdir(folder)
    measure(tmp_path, "merged", "before")
    fit(home, "twice", folder, ("--ckpt_path", "last", "--trainer.max_epochs", "3"), lora={"rank": 4, "alpha": 8})
    assert (folder / "mlflow_run_id").read_text().strip() == run
    measure(tmp_path, "merged", "after")
    with monkeypatch.context() as patch:
        about = SearchAgent.about
        patch.setattr(SearchAgent, "about", lambda self: {k: v for k, v in about(self).items() if k != "model_digest"})
        measure(tmp_path, "merged", "unknown")
    assert export(folder, tmp_path / "out") == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "2 questions of `after.jsonl`" in card
    assert "before" not in card.partition("## Results")[2].replace("before these weights", "")
    assert "unknown.jsonl" not in card, "which does not say what it measured"


# --- the card -----------------------------------------------------------------------------------------------------------------


def measure(home, folder, name, *options):
    questions = home / f"{name}.jsonl"
    write_rows(questions, [{"id": f"q{n}", "question": f"Who is {n}?", "answers": ["nobody"]} for n in range(2)])
    words = ["--model.engine=transformers", "--model.limits.max_turns=1", "--model.limits.turn_tokens=4"]
    words += [f"--trainer.default_root_dir={home / name}", "--trainer.accelerator=cpu", "--model=SearchAgent"]
    words += [f"--model.model_path={folder}", "--data=QuestionDataModule", f"--data.test_file={questions}"]
    words += options
    words.sort(key=lambda word: word not in ("--model=SearchAgent", "--data=QuestionDataModule"))
    assert main(["test", *words]) == 0


def test_the_card_is_the_lineage(home, tmp_path, monkeypatch):
    measure(home, home / "sft/merged", "of-last")
    measure(home, home / "sft/merged_best", "of-best")
    assert export("sft", tmp_path / "out", "--weights", "last", "--licence", "apache-2.0") == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["seeker", "search-agent", "search-tags"],
    }
    lines = card.text.splitlines()
    assert "# sft" in lines
    assert f"| train | train.jsonl | 8 | `{file_digest(home / 'train.jsonl')}` |" in lines
    for line in ("| model.lora.rank | 4 |", "| model.learning_rate | 0.02 |", "| trainer.max_epochs | 2 |", "| seed | 0 |"):
        assert line in lines
    assert "### 1. sft: SFT" in lines
    assert "seeker data traces --input_file train_raw.jsonl --output_file train.jsonl" in lines
    assert f"2 questions of `of-last.jsonl` (`{file_digest(home / 'of-last.jsonl')}`)" in card.text
    # Wilson's interval of 0 of 2: the upper end is z² / (n + z²) = 3.8415 / 5.8415
    assert "| em | 0.000 | [0.000, 0.658] | 2 | exact match with a gold answer |" in lines
    assert "- of-last.jsonl has 2 questions only: read the intervals, not the means." in lines
    assert "of-best" not in card.text, "which measured the other weights"
    assert "someone" not in card.text, "folders of this machine are not told"
    assert "and `base`" not in card.text
    assert "Trained with Seeker from `base`." in lines
    monkeypatch.chdir(tmp_path / "out")
    assert run_snippet(card.text)


def run_snippet(text):
    """Run what the card shows for transformers; return what it prints."""
    code = text.split("```python\n")[1].split("```")[0]
    told = []
    exec(compile(code, "README.md", "exec"), {"print": told.append})
    return told


def test_the_card_of_an_adapter(home, tmp_path, monkeypatch):
    assert export("sft", tmp_path / "out", "--merge", "false") == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.library_name, card.data.license) == ("peft", None)
    assert "| rows of new tokens | 2 |" in card.text
    assert "export it with `--merge true`" in card.text
    assert "someone" not in card.text
    monkeypatch.chdir(tmp_path / "out")
    assert run_snippet(card.text)


def test_the_card_without_a_run_says_so(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert export(home / "sft/merged", tmp_path / "out") == 0
    assert "the card tells nothing of its training" in capsys.readouterr().err
    text = (tmp_path / "out/README.md").read_text()
    assert "what it was trained on, and how, was not recorded" in text
    assert "These weights were not tested" in text


def test_the_card_hides_secrets_and_shows_zeros():
    kept = {"max_tokens": 7, "micro_tokens": 8, "tokenizer": "own", "monkey": 1, "weights": {"search": 0.0}, "count": 0}
    hidden = {"api_key": "hush", "access_token": "hush", "Token": "hush", "judge": {"secret": "hush"}, "db_password": "hush"}
    config = {"model": {"class_path": "SFT", "init_args": kept | hidden | {"shuffle": False}}, "seed_everything": 0}
    assert dict(told_settings(config)) == {
        "model.max_tokens": "7",
        "model.micro_tokens": "8",
        "model.tokenizer": "own",
        "model.monkey": "1",
        "model.weights.search": "0.0",
        "model.count": "0",
        "seed": "0",
    }
    command = "seeker fit --model.api_key=hush --model.token 'hu sh' --model.max_tokens=7 --model.name 'a b' /home/me/x.yaml"
    shown = "seeker fit --model.api_key=HIDDEN --model.token HIDDEN --model.max_tokens=7 --model.name 'a b' x.yaml"
    assert told_command(command) == shown


def test_the_card_counts_questions_not_samples(home, tmp_path):
    measure(home, home / "full/merged", "sampled", "--model.eval_samples=3", "--model.eval_temperature=1.0")
    assert export("full", tmp_path / "out") == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "2 questions of `sampled.jsonl`" in card
    assert " n counts episodes, 3 of a question.\n\n| metric |" in card
    assert "- sampled.jsonl has 2 questions only: read the intervals, not the means." in card
    assert "- Of the 6 episodes of sampled.jsonl it answered 0.0% exactly as asked" in card


def test_the_card_of_a_dialect_of_ones_own(home, tmp_path, monkeypatch):
    (tmp_path / "card_dialect.py").write_text(
        "from project.dialects import TagsDialect\n\n\nclass Own(TagsDialect):\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = shutil.copytree(home / "sft/merged", tmp_path / "own")
    told = json.loads((folder / "seeker.json").read_text())
    (folder / "seeker.json").write_text(json.dumps(told | {"dialect": "card_dialect.Own"}))
    assert export(folder, tmp_path / "out") == 0
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.tags == ["seeker", "search-agent"]
    where = "a class of its own, whose module is needed to load this folder with Seeker"
    assert f"| dialect | `card_dialect.Own`: {where} |" in card.text.splitlines()
    assert "The class `card_dialect.Own` writes and reads its turns" in card.text
    assert "<search>` and `</search>" not in card.text


# --- what is refused ----------------------------------------------------------------------------------------------------------


def refused(capsys, status, words, exit_status=2):
    """Show that the verb ended so, and with one sentence."""
    said = capsys.readouterr().err
    assert status == exit_status, said
    last = said.splitlines()[-1]
    assert words in last
    assert last.startswith("seeker: ")


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ("full", ("--weights", "best"), "handed on no best weights, as no ModelCheckpoint of it monitors a metric; give --wei"),
        ("full", ("--merge", "false"), "trained all weights and has no adapter; export it with --merge true"),
        ("sft/merged", ("--weights", "last"), "holds one set of weights"),
        ("base", (), "was not written by Seeker, as it has no seeker.json"),
        ("train.jsonl", (), "is no checkpoint"),
        ("sft/checkpoints", (), "holds neither hand_over.json, nor a model in merged, nor checkpoints/last.ckpt"),
        ("sft", ("--push", "me/a/b"), "--push is me/a/b, which the hub does not take; write OWNER/NAME"),
        ("sft", ("--licence", "Apache 2.0"), "is no id of the hub"),
        ("sft", ("--push", "me/a", "--merge", "false"), "which nobody else has; push it with --merge true"),
    ],
)
def test_what_cannot_be_exported(home, tmp_path, capsys, run, options, words):
    refused(capsys, export(home / run, tmp_path / "out", *options), words)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_full_folder_is_left_alone(home, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert export("sft", tmp_path / "out") == 0, "an empty one is taken"
    before = (tmp_path / "out/README.md").stat().st_mtime_ns
    refused(capsys, export("full", tmp_path / "out"), "is there and not an empty folder; give another --to")
    assert (tmp_path / "out/README.md").stat().st_mtime_ns == before


def test_the_current_folder_is_filled_and_stays_the_same(home, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export("sft", ".") == 0
    assert os.path.samefile(".", tmp_path / "here"), "not another one under its name"
    assert {"README.md", "model.safetensors"} <= set(os.listdir("."))
    assert not list(Path().glob(".*"))
    assert "# sft" in Path("README.md").read_text()


def test_an_adapter_on_another_base_is_refused(home, tmp_path, capsys):
    shutil.move(home / "base", tmp_path / "kept")
    try:
        refused(capsys, export("sft", tmp_path / "out", "--merge", "false"), "base does not exist")
        tiny_model_folder(home / "base", seed=1)
        refused(capsys, export("sft", tmp_path / "out", "--merge", "false"), "was trained on a base with digest")
        assert export("sft", tmp_path / "out") == 0, "what was merged needs no base"
    finally:
        shutil.rmtree(home / "base", ignore_errors=True)
        shutil.move(tmp_path / "kept", home / "base")


def test_an_adapter_whose_base_nobody_names_is_refused(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    refused(capsys, export(home / "sft", tmp_path / "out", "--merge", "false"), "no tracked run whose config names the base")


def test_runs_that_trained_nothing(home, tmp_path, capsys):
    parent = find_run("sft").info.run_id
    made = client().create_run("1", run_name="measured", tags={"seeker.verb": "test", "seeker.parent": parent})
    client().set_terminated(made.info.run_id)
    refused(capsys, export("measured", tmp_path / "out"), "export a training, such as sft, whose model it took")
    gone = client().create_run("1", run_name="gone", tags={"seeker.verb": "fit", "seeker.folder": "/nowhere"})
    client().set_terminated(gone.info.run_id)
    refused(capsys, export("gone", tmp_path / "out"), "the folder of gone, /nowhere, is gone")
    refused(capsys, export("sfft", tmp_path / "out"), "closest: sft", exit_status=1)


# --- the hub ------------------------------------------------------------------------------------------------------------------


class Api:
    """Stands in for the hub: notes what it is asked, and keeps what is pushed."""

    calls: list
    held: dict

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))

    def model_info(self, repo_id):
        return SimpleNamespace(private=True)

    def upload_folder(self, *, folder_path, **options):
        made = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        self.calls.append(("upload_folder", made, options))
        pattern = options["delete_patterns"]
        self.held = type(self).held = {k: v for k, v in self.held.items() if not (pattern and fnmatch(k, pattern))} | made
        return SimpleNamespace(commit_url="https://hub/me/agent/commit/1")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Api, "calls", [], raising=False)
    monkeypatch.setattr(Api, "held", {}, raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)


@pytest.mark.usefixtures("hub")
def test_a_second_push_leaves_nothing_of_the_first(home, tmp_path):
    Api.held.update({"adapter_config.json": b"{}", "adapter_model.safetensors": b"old", "logs/one.txt": b"old"})
    assert export("sft", tmp_path / "out", "--push", "me/agent") == 0
    assert Api.held.keys() == set(os.listdir(tmp_path / "out")), "transformers loads an adapter that lies beside a model"


@pytest.mark.usefixtures("hub")
def test_a_failed_push_names_a_way_that_works(home, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Api, "create_repo", lambda self, *words, **options: (_ for _ in ()).throw(OSError("no route")))
        status = export("sft", tmp_path / "out", "--push", "me/agent")
    way = f"and run this again ({tmp_path / 'out'} is written: remove it first, or give another --to)"
    refused(capsys, status, way, exit_status=1)
    assert export("sft", tmp_path / "other", "--push", "me/agent") == 0


@pytest.mark.usefixtures("hub")
def test_one_commit_of_the_folder(home, tmp_path, capsys):
    assert export("sft", tmp_path / "dry", "--push", "me/agent", "--dry_run") == 0
    assert Api.calls == []
    assert export("sft", tmp_path / "out", "--push", "me/agent") == 0
    (_, repo, made_with), (_, tree, pushed_with) = Api.calls
    assert (repo, made_with) == ("me/agent", {"repo_type": "model", "private": True, "exist_ok": True})
    assert (pushed_with["repo_id"], pushed_with["repo_type"]) == ("me/agent", "model")
    assert tree == {name: (tmp_path / "dry" / name).read_bytes() for name in os.listdir(tmp_path / "dry")}
    assert 'folder = "me/agent"' in tree["README.md"].decode()
    assert "https://hub/me/agent/commit/1" in capsys.readouterr().out
    refused(
        capsys, export("sft", tmp_path / "public", "--push", "me/agent", "--private", "false"), "me/agent is private on the hub"
    )
