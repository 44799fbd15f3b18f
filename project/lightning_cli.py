"""`seeker fit|validate|test|predict`: LightningCLI with layered configs, the project's store, and errors of one sentence.

Run as `seeker fit --config a.yaml --config b.yaml --model.learning_rate 1e-4`; `experiments/defaults/trainer.yaml` lies under
every config. Classes are named without their module (`class_path: SFT`). Each run has a folder, `trainer.default_root_dir`
or `runs/NAME` beside the store (`lightning_logs/`), which holds `checkpoints/` and, after training, `mlflow_run_id`. It
leaves out what LightningCLI does badly here: hyper-parameters in a checkpoint never override the command line, and
`--ckpt_path last` without a checkpoint is an error.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar, Union, cast, get_args

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from project.checkpoint_io import furthest, is_whole
from project.errors import InputError, SeekerError, TrainingError
from project.evaluation.command import test_words
from project.files import read_yaml
from project.modules.log_lines import LogLines
from project.modules.save_on_stop import SaveOnStop
from project.modules.sharding import FSDP2
from project.modules.show_batch import ShowBatch
from project.parser_errors import one_sentence, with_hint
from project.runtime import quiet_lightning
from project.tracking.callback import TrackRun, checkpoint_run_id
from project.tracking.guard import TESTED, GuardTest
from project.tracking.logger import SeekerLogger
from project.tracking.store import project_root, run_folder_id, runs_folder

VERBS = ("fit", "validate", "test", "predict")
FOLDERS_OF_CLASSES = ("project.modules", "project.datamodules")
DEFAULTS = "experiments/defaults/trainer.yaml"
TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
    "enable_progress_bar": sys.stdout.isatty(),  # in a log it shows nothing, and its thread takes a tenth of two cores
    "logger": {"class_path": "project.tracking.logger.SeekerLogger"},
    "plugins": {"class_path": "project.checkpoint_io.WholeCheckpointIO"},
}


def run(args: list[str]) -> SeekerCLI:
    """Run `fit`, `validate`, `test` or `predict` with the words of its command line, and return what ran.

    Raises:
        InputError: an unknown key, a wrong value, or a config or checkpoint file that does not exist.
    """
    return run_with(SeekerCLI, args)


def resolved(args: Sequence[str]) -> ResolvedCLI:
    """Return the config that `seeker fit` with these words would take, and build nothing of it.

    Raises:
        InputError: an unknown key, a wrong value, or a config file that does not exist.
    """
    return cast(ResolvedCLI, run_with(ResolvedCLI, ["fit", *args]))


def run_with(cli: type[SeekerCLI], args: list[str]) -> SeekerCLI:
    """Do as `run` does with another class of command line."""
    args = test_words(args)
    _check_configs(args)
    quiet_lightning()
    _import_classes()
    defaults = project_root() / DEFAULTS
    kwargs = {"exit_on_error": False, "allow_abbrev": False}  # an option in short would be read, but not by Seeker's own checks
    verb_kwargs = {"default_config_files": [str(defaults)], **kwargs}
    try:
        return cli(
            args=args,
            save_config_callback=None,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "seeker", "exit_on_error": False, "allow_abbrev": False}
            | {verb: dict(verb_kwargs) for verb in VERBS},
        )
    except ArgumentError as error:
        said = one_sentence(str(error), cli.options)
        raise InputError(with_hint(said, f"`seeker {args[0]} --help` lists the keys")) from error
    except (ValueError, TypeError, MisconfigurationException) as error:
        cause = _seeker_cause(error)
        if cause is None and not isinstance(error, MisconfigurationException):
            raise
        raise cause or InputError(one_sentence(str(error))) from error


def _count_before_share(parser: LightningArgumentParser) -> None:
    """Have the trainer's options that take a count or a share read 1 as one batch, not as 1.0, which is all of them.

    `typing` keeps one `Optional[Union[int, float]]` a process, in the order in which it was first written by any package, and
    jsonargparse takes the first type that fits.
    """
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if action.dest.startswith("trainer.") and {int, float} <= {*kinds} and kinds.index(float) < kinds.index(int):
            action._typehint = Union[(int, *(kind for kind in kinds if kind is not int))]  # type: ignore[attr-defined]


class SeekerCLI(LightningCLI):
    """LightningCLI whose checkpoints never change the config, whose runs have a folder, and which tracks each run."""

    options: ClassVar[tuple[str, ...]] = ()
    """The options of the verb at hand, once its parser is made."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401
        """Add to `fit` what only its command line has."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        _count_before_share(parser)
        if subcommand == "fit":
            parser.add_argument("--show_batch", type=bool, default=False, help="print the first micro-batch with its weights")
            help_fresh = "with --ckpt_path last: start afresh where there is no checkpoint yet"
            parser.add_argument("--allow_fresh", type=bool, default=False, help=help_fresh)
        elif subcommand in TESTED:
            help_overlap = "test on questions or traces that the model was trained on, which is refused otherwise"
            parser.add_argument("--allow_overlap", type=bool, default=False, help=help_overlap)
            parser.set_defaults(verbose=False)  # modules that measure print their figures with intervals
        elif subcommand == "predict":
            parser.set_defaults(return_predictions=False)  # they are written batch by batch, and need not fit into memory
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 - Lightning's own type
        """Parse `args` without Lightning's warning that the process has arguments of its own."""
        self.words: list[str] = args
        if args[0] in VERBS:
            type(self).options = tuple(self._parser(args[0])._option_string_actions)
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do not merge the checkpoint's hyper-parameters: the files and the command line are the config."""

    def before_instantiate_classes(self) -> None:
        """Give the run its folder and the callback that tracks it, before anything is built."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        _check_strategy(trainer.strategy)
        name = _logger_argument(trainer.logger, "run_name")
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(_run_folder(str(self.subcommand), name, config.get("ckpt_path")))
        trainer.default_root_dir = str(Path(trainer.default_root_dir).expanduser().resolve())
        self._dump_config()
        self._guard = GuardTest(allow_overlap=bool(config.get("allow_overlap")))
        tracked = TrackRun(config=self.config_dump, command=["seeker", *self.words])
        self.trainer_defaults["callbacks"] = [tracked, self._guard, SaveOnStop(), LogLines()]

    def after_instantiate_classes(self) -> None:
        """Put checkpoints into the run's folder, find the one to load, and go on in the MLflow run that it belongs to."""
        folder = Path(self.trainer.default_root_dir)
        if isinstance(self.trainer.strategy, FSDP2):
            self.trainer.strategy.check(self.model)  # before the other ranks are started, each of which would say it too
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")
        arguments = self.config_init[self.subcommand]
        checkpoint = _find_checkpoint(arguments.get("ckpt_path"), self.trainer, fresh=bool(arguments.get("allow_fresh")))
        if checkpoint is not None:
            arguments["ckpt_path"] = str(checkpoint)
        elif arguments.get("allow_fresh"):
            arguments["ckpt_path"] = None
        self._guard.checkpoint = checkpoint
        if arguments.get("show_batch"):
            self.trainer.callbacks.append(ShowBatch())  # type: ignore[attr-defined]
        for logger in self.trainer.loggers:
            if isinstance(logger, SeekerLogger):
                logger.name_run(folder.name)
                self._connect(logger, checkpoint, folder)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Make the trainer; arguments that do not go together are the user's."""
        try:
            return super()._instantiate_trainer(config, callbacks)
        except ValueError as error:
            raise InputError(f"trainer: {one_sentence(str(error))}") from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Run, and give back what the module started (a server) even if it fails: Lightning tears down only what succeeds."""
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException as stop:  # a SystemExit without a code: the process would end as if it were done
            self.model.teardown(subcommand)
            raise SystemExit(143) from stop
        except torch.OutOfMemoryError as error:
            self.model.teardown(subcommand)
            first, _, _ = str(error).partition("\n")
            raise TrainingError(
                f"the GPU's memory ran out ({first}); lower data.micro_tokens, or for PPO ppo.micro_episodes, "
                "model.engine_memory or limits.context_tokens, and go on with --ckpt_path last"
            ) from error
        except BaseException:
            self.model.teardown(subcommand)
            raise

    def _connect(self, logger: SeekerLogger, checkpoint: Path | None, folder: Path) -> None:
        """Resumed in its own folder a training goes on in its run; any other use of a checkpoint makes its run the parent."""
        run_id = checkpoint_run_id(checkpoint)
        if run_id is None or checkpoint is None:
            return
        if self.subcommand == "fit" and checkpoint.resolve().is_relative_to(folder):
            logger.continue_run(run_id)
        else:
            logger.parent_run = logger.parent_run or run_id


class ResolvedCLI(SeekerCLI):
    """`fit`'s command line, parsed and no more."""

    @property
    def settings(self) -> Namespace:
        """Return the config."""
        return cast(Namespace, self.config.fit)

    @property
    def text(self) -> str:
        """Return the config as YAML, without what is Lightning's default."""
        return str(self._parser("fit").dump(self.config.fit, skip_default=True))

    def before_instantiate_classes(self) -> None:
        """Leave the config as it was parsed."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Begin nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def _run_folder(verb: str, name: str | None, ckpt_path: Any) -> Path:  # noqa: ANN401 - whatever the config holds
    """Return the run's folder: that of the checkpoint that `fit` resumes, else by the run's name, else by verb and time."""
    if verb == "fit" and ckpt_path and run_folder_id(ckpt_path):
        folder = Path(ckpt_path).resolve().parent
        return folder.parent if folder.name == "checkpoints" else folder
    made = os.environ.get("SEEKER_RUN") if int(os.environ.get("LOCAL_RANK", "0")) else None
    slurm = os.environ.get("SLURM_NTASKS", "1") if SLURMEnvironment.detect() else "1"
    ranks = int(os.environ.get("WORLD_SIZE", slurm))
    if ranks > 1 and not (name or made):
        raise InputError(
            f"{ranks} ranks that were started from outside would each name the run's folder by their own clock; give "
            "trainer.default_root_dir or trainer.logger.run_name"
        )
    made = made or f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getppid()}"
    os.environ["SEEKER_RUN"] = made  # the other ranks that Lightning starts take the same folder
    return runs_folder() / (name or made)


def _check_strategy(strategy: Any) -> None:  # noqa: ANN401 - whatever the config holds
    """Refuse the older FSDP, which would train otherwise than one process without a word."""
    name = str(strategy.get("class_path") if hasattr(strategy, "get") else strategy).rpartition(".")[2]
    if name in ("FSDPStrategy", *FSDPStrategy.get_registered_strategies()):
        raise InputError(
            f"trainer.strategy: {name} lays weights out in one vector, where LoRA's and the base's cannot stand together and "
            "matrices, which alone decay, are not known; take fsdp2"
        )


def _logger_argument(logger: Any, name: str) -> str | None:  # noqa: ANN401 - a namespace, list or bool
    arguments = logger.get("init_args") if hasattr(logger, "get") else None
    value = arguments.get(name) if arguments else None
    return str(value) if value is not None else None


def _find_checkpoint(ckpt_path: Any, trainer: Trainer, *, fresh: bool) -> Path | None:  # noqa: ANN401 - whatever the config holds
    """Return the checkpoint file that `--ckpt_path` means; None where there is none to load, or Lightning finds it.

    With `fresh` it may be `last` of a folder that has none.

    `last` is the file that `save_last` writes, by name: the modification time says nothing about which is further. Where it was
    cut off (by a full disk, or a machine that stopped), it is the one before it.
    """
    if ckpt_path is None or ckpt_path in ("best", "hpc", "registry") or "://" in str(ckpt_path):
        return None
    if ckpt_path != "last":
        if not Path(ckpt_path).exists():
            raise InputError(f"--ckpt_path {ckpt_path} does not exist; give a file, or `last` for the run folder's newest")
        return Path(ckpt_path)
    folders = [str(c.dirpath) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    found = sorted({file for folder in folders for file in Path(folder).glob("last*.ckpt")})
    if not found and fresh:
        return None
    if not found:
        where = ", ".join(folders) or "this trainer, which has no ModelCheckpoint"
        raise InputError(
            f"--ckpt_path last: there is no last.ckpt in {where}; leave it out, or add --allow_fresh true, to start afresh"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise InputError(f"--ckpt_path last could be any of {names}; name one of them")
    if is_whole(found[0]):
        return found[0]
    before = furthest(path for folder in folders for path in Path(folder).glob("*.ckpt"))
    if before is None:
        raise InputError(f"--ckpt_path last: {found[0]} is cut off, and no other checkpoint is whole; train anew without it")
    sys.stderr.write(f"seeker: {found[0]} is cut off; going on from {before}\n")
    return before


def _import_classes() -> None:
    """Import the LightningModules and LightningDataModules, so that a config can name them without their module."""
    for folder in FOLDERS_OF_CLASSES:
        for module in iter_modules(import_module(folder).__path__):
            import_module(f"{folder}.{module.name}")


def _check_configs(args: list[str]) -> None:
    """Name the file (and line) of a --config that does not exist or is no YAML mapping."""
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    for flag, name in pairwise(words):
        if flag not in ("--config", "-c"):
            continue
        path = Path(name)
        if not path.is_file():
            raise InputError(f"--config {name} does not exist; experiments/ holds the configs that come with Seeker")
        settings = read_yaml(path)
        if not isinstance(settings, dict):
            raise InputError(f"{name} holds no settings; expected keys such as `model:`, `data:` and `trainer:`")


def _seeker_cause(error: BaseException | None) -> SeekerError | None:
    """Return the `SeekerError` that jsonargparse wrapped while it built a class."""
    while error is not None and not isinstance(error, SeekerError):
        error = error.__cause__
    return error
