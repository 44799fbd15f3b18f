"""Every YAML in experiments/ is parsed by the parser that `seeker fit` uses; every two of them layer."""

import sys
from itertools import permutations
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace, capture_parser

from project import lightning_cli
from project.datamodules.conversation import ConversationDataModule
from project.progressive.file import load
from project.rendering import KINDS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "experiments").rglob("*.yaml"))
PIPELINES = [path for path in FILES if "phases" in yaml.safe_load((ROOT / path).read_text())]
LAYERS = [path for path in FILES if path not in PIPELINES]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return capture_parser(lambda: lightning_cli.run(["fit"]))


def parse(parser: ArgumentParser, *words: object) -> Namespace:
    return parser.parse_args(["fit", *map(str, words)]).fit


def layers(*paths: Path) -> list[str]:
    return [word for path in paths for word in ("--config", str(ROOT / path))]


def callbacks(config: Namespace) -> list[str]:
    return [callback.class_path.rpartition(".")[2] for callback in config.trainer.callbacks]


def test_there_are_configs() -> None:
    assert {"debug", "defaults", "quickstart", "layers"} <= {path.parent.name for path in LAYERS}
    assert len(PIPELINES) >= 12


@pytest.mark.parametrize("path", LAYERS, ids=str)
def test_every_config_parses_and_keeps_the_checkpoint(path: Path, parser: ArgumentParser) -> None:
    needed = [] if "model" in yaml.safe_load((ROOT / path).read_text()) else ["--model=SFT", "--data=QuestionDataModule"]
    assert "ModelCheckpoint" in callbacks(parse(parser, *needed, *layers(path)))


@pytest.mark.parametrize("first", LAYERS, ids=str)
def test_every_two_layers_compose_and_keep_the_checkpoint(first: Path, parser: ArgumentParser) -> None:
    for pair in (pair for pair in permutations(LAYERS, 2) if pair[0] == first):
        config = parse(parser, "--model=SFT", "--data=QuestionDataModule", *layers(*pair))
        assert callbacks(config).count("ModelCheckpoint") >= 1, pair
        last = yaml.safe_load((ROOT / pair[1]).read_text())
        for part in ("model", "data"):
            if part in last:
                assert config[part].class_path.rpartition(".")[2] == last[part]["class_path"], pair


@pytest.mark.parametrize("path", PIPELINES, ids=str)
def test_every_phase_is_a_fit_that_parses(path: Path, parser: ArgumentParser) -> None:
    pipeline = load([ROOT / path])
    for phase in pipeline.phases:
        command = pipeline.command(phase)
        assert command[:4] == [sys.executable, "-m", "project", "fit"]
        config = parse(parser, *command[4:])
        assert phase.name in str(config.data.init_args.train_file)
        assert phase.name in str(config.data.init_args.validation_file)
        assert config.trainer.logger.init_args.run_name == f"{pipeline.name}/{phase.name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_is_short(path: Path) -> None:
    lines = [line for line in (ROOT / path).read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 30


RECIPES = [path for path in LAYERS if path.parent.name == "recipes" or path.match("summary/layers/qwen*")]


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_plans_its_epochs(path: Path, with_facts: Path, parser: ArgumentParser) -> None:
    """With the tiny model's tokenizer and small data in place of the hub's and the user's; all else as it stands."""
    from lightning import Trainer

    config = parse(parser, *layers(path), "--model.model_path=tiny-random")
    assert config.model.init_args.model_path == "tiny-random"
    with_files = {f"{name}_file": f"data/debug/facts/conversations_{name}.jsonl" for name in ("train", "validation")}
    module = parser.instantiate_classes(Namespace(fit=config)).fit.model
    data = ConversationDataModule(**{**config.data.init_args.as_dict(), **with_files, "micro_tokens": 2048})
    accumulate = config.trainer.accumulate_grad_batches
    trainer = Trainer(accelerator="cpu", accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_dataloader()) % accumulate == 0
    kinds = {str(KINDS[k]): w for s in data.train_dataloader().samples for k, w in zip(s.kinds, s.weights, strict=True)}
    assert kinds["think"] == 1.5
    assert kinds["result"] == 0
