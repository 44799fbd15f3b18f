"""The policy: a causal LM, plain or with LoRA, seen as `hidden states` and a `head`, and its hand-over as a merged folder.

Logits are made for trained positions only: losses take their hidden states, and the head or its table, in chunks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from project.dialects import DECISION_TOKENS, Dialect, get_dialect
from project.errors import InputError
from project.modules import attention
from project.modules.lean import make_lean
from project.modules.sharding import whole
from project.records import DialectName
from project.rendering import History, prepare_tokenizer
from project.tiny_model import TINY_NAME, tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Precision = Literal["bfloat16", "float32"]
SETTINGS_FILE = "seeker.json"


@dataclass(frozen=True)
class LoRA:
    """A LoRA adapter (Hu et al. 2021) on all linear layers but the head.

    With `nf4` those layers are held in NF4 with double quantisation (QLoRA, Dettmers et al. 2023) and computed in the
    policy's precision; the exported folder is plain, of what they stand for.
    """

    rank: int = 16
    """Of the two matrices beside each layer's."""
    alpha: int = 32
    """Their product counts alpha / rank."""
    dropout: float = 0.0
    """Share of what goes into them that is set to 0 in training."""
    nf4: bool = False
    """Hold the layers themselves in 4 bits."""


@dataclass(frozen=True)
class AgentSettings:
    """What training, rollouts and evaluation of a model must share; stored beside its weights."""

    dialect: DialectName = "tags"
    """How the agent writes: tags, tools, or a class of your own, as module.Class."""
    decision_tokens: bool | None = None
    """Whether a token right behind the thought says that it searches or answers; by default as the dialect has it."""
    history: History = "append"
    """Whether earlier turns stay as they were written (append), or as the chat template writes them anew (template)."""

    @classmethod
    def load(cls, folder: Path) -> AgentSettings | None:
        """Return the settings stored in a model folder, None where it was not made by Seeker."""
        path = folder / SETTINGS_FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def make_dialect(self) -> Dialect:
        """Return the dialect that the settings name."""
        return get_dialect(self.dialect, decision_tokens=self.decision_tokens)


def resolve_model_path(model_path: str | Path | None) -> str:
    """Return a model folder or hub id; None is the embedded default (SmolLM2-135M-Instruct).

    Raises:
        InputError: a path that does not exist, or a folder without a model or tokenizer.
    """
    if model_path is None:
        from project.model_cache import default_model

        return str(default_model())
    if str(model_path) == TINY_NAME:
        return str(tiny_model())
    path = Path(model_path)
    if not path.exists():
        if str(model_path).startswith((".", "/", "~")) or str(model_path).count("/") != 1 or path.parent.is_dir():
            raise InputError(f"the model folder {model_path} does not exist; run the training that makes it, or give a hub id")
        return str(model_path)
    if not (path / "config.json").is_file():
        raise InputError(f"the model folder {path} has no config.json; give a folder written by save_pretrained or seeker fit")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"the model folder {path} has no tokenizer; save the tokenizer into it with save_pretrained")
    return str(path)


def load_tokenizer(model_path: str, dialect: Dialect) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return a tokenizer ready for a dialect and the ids of the tokens that were added.

    Raises:
        InputError: a hub id that the hub does not have, or that cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except OSError as error:
        if Path(model_path).exists():
            raise
        why = str(error).partition("\n")[0]
        raise InputError(
            f"there is no folder {model_path}, and it cannot be had from the model hub ({why}); give a folder"
        ) from error
    return tokenizer, prepare_tokenizer(tokenizer, dialect)


class Policy(nn.Module):
    """A causal LM with an optional LoRA adapter; calling it returns hidden states, so that DDP and FSDP see the forward."""

    def __init__(
        self,
        model_path: str,
        tokenizer: PreTrainedTokenizerBase,
        new_ids: Sequence[int],
        lora: LoRA | None,
        precision: Precision = "bfloat16",
        gradient_checkpointing: bool = False,
        empty: bool = False,
    ) -> None:
        """Load the model, grow its embedding for new tokens, and put a fresh adapter on it where `lora` is given.

        With `gradient_checkpointing` backward computes each layer a second time and keeps what goes into it only. With `empty`
        nothing but the config is read, and the weights are on the meta device: those of another rank come by `shard`.
        """
        super().__init__()
        dtype = getattr(torch, precision)
        self.model: Any = _shape(model_path, dtype) if empty else _loaded(model_path, dtype, lora is not None and lora.nf4)
        self.model.config.use_cache = False
        for module in self.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' own form for CPUs has no gradient
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()  # in the mode that transformers loads models in it would do nothing
        _check_head(self.model)
        _check_vocabulary(self.model, tokenizer, new_ids, model_path)
        make_lean(self.model)
        if new_ids:
            _grow_embeddings(self.model, tokenizer, new_ids)
        if lora is not None:
            self.model = _with_adapter(self.model, lora, new_ids)
        self.has_adapter = lora is not None
        self._casting = [module for module in self.model.modules() if hasattr(module, "cast_input_dtype_enabled")]
        if not empty:
            self._check_packing()

    @torch.no_grad()
    def _check_packing(self) -> None:
        """Refuse a model with layers other than attention that carry something from one token to the next."""
        ids = torch.arange(6)
        alone, packed = self(ids[3:], [3]), self(ids, [3, 3])[3:]
        noise = 0.05 if alone.dtype is torch.bfloat16 else 1e-3
        if float((packed - alone).float().norm()) > noise * float(alone.float().norm()):
            raise InputError(
                f"the layers of {type(self.causal_lm).__name__} let packed samples see each other (a convolution or a "
                "recurrence); give a model whose tokens meet in attention only"
            )

    @property
    def causal_lm(self) -> Any:  # noqa: ANN401 - any causal LM of transformers
        """The causal LM itself, adapter layers inside."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.causal_lm.config.hidden_size)

    def forward(self, input_ids_T: Tensor, lengths: list[int], then: Callable[[Tensor], Any] | None = None) -> Any:  # noqa: ANN401
        """Return the last hidden states (T, H), in the model's dtype, of samples that lie end to end.

        Args:
            input_ids_T: int64, no padding.
            lengths: tokens of each sample, in order; their sum is T.
            then: what to return of the hidden states instead. Whatever needs the head belongs here: under FSDP2 its weight is
                whole inside this call only.
        """
        # PEFT casts every adapter's input to float32, which autocast would cast straight back.
        autocast = torch.is_autocast_enabled(input_ids_T.device.type)
        for module in self._casting:
            module.cast_input_dtype_enabled = not autocast
        positions_T = torch.cat([torch.arange(n, device=input_ids_T.device) for n in lengths])
        hidden_TH: Tensor = self.causal_lm.model(
            input_ids=input_ids_T[None], position_ids=positions_T[None], lengths=lengths
        ).last_hidden_state[0]
        return hidden_TH if then is None else then(hidden_TH)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return logits (N, V)."""
        return self.causal_lm.lm_head(hidden_NH)  # type: ignore[no-any-return]

    def head_weight(self) -> Tensor:
        """Return what `head` multiplies with, (V, H), the trained rows of new tokens in it."""
        head = self.causal_lm.lm_head
        rows = getattr(head, "token_adapter", None)
        return head.weight if rows is None else rows.get_merged_weights(rows.active_adapters)  # type: ignore[no-any-return]

    def reference(self) -> AbstractContextManager[None]:
        """Give the model without its adapter: the reference of KL, free of a second copy."""
        return self.model.disable_adapter() if self.has_adapter else nullcontext()  # type: ignore[no-any-return]

    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of the causal LM as if the adapter were merged: delta added in float32, then rounded.

        Tensors are whole: where they are sharded, all ranks must go through them together.
        """
        weights = _merged(self.model) if self.has_adapter else self.model.state_dict().items()
        yield from ((name, whole(tensor)) for name, tensor in weights if not _is_tied_head(self.causal_lm, name))

    def save_adapter(self, folder: Path, last: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """Write the adapter as PEFT does, in the model's dtype, for an engine that serves it beside the base.

        Args:
            folder: made if missing.
            last: what was written before, by name.

        Returns:
            (what was written, the share of its values that differ from the last; of a first adapter, from 0).
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        dtype = self.causal_lm.dtype
        held = {n: whole(t).detach().to("cpu", dtype, copy=True) for n, t in get_peft_model_state_dict(self.model).items()}
        differ = sum(int((t != (last[n] if n in last else torch.zeros_like(t))).sum()) for n, t in held.items())
        folder.mkdir(parents=True, exist_ok=True)
        save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self.model.peft_config["default"].save_pretrained(folder)
        return held, differ / max(1, sum(t.numel() for t in held.values()))


def _loaded(model_path: str, dtype: torch.dtype, nf4: bool) -> Any:  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    options = {"quantization_config": _nf4(dtype)} if nf4 else {}
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation=attention.register(), **options)


def _shape(model_path: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(model_path)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.register())


def _nf4(dtype: torch.dtype) -> Any:  # noqa: ANN401
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_head(model: Any) -> None:  # noqa: ANN401
    """Refuse a model whose logits are more than hidden states times a table: losses make them themselves."""
    config = model.config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
    odd = [name for name in names if getattr(config, name, None) not in (None, 1.0)]
    if odd or getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise InputError(f"the model's head has {', '.join(odd) or 'a bias'}, which training leaves out; give another model")


def _check_vocabulary(model: Any, tokenizer: Any, new_ids: Sequence[int], model_path: str) -> None:  # noqa: ANN401
    """Refuse a tokenizer with ids that the model has no row for, but for added tokens: some models ship unused ones."""
    rows, added = model.get_input_embeddings().num_embeddings, {*tokenizer.added_tokens_decoder}
    padding = set() if new_ids else {tokenizer.pad_token_id}  # new tokens bring rows for all
    largest = max(({*tokenizer.get_vocab().values()} - added) | padding)
    if largest >= rows:
        raise InputError(
            f"the tokenizer in {model_path} has ids up to {largest}, and the model's embedding {rows} rows; give a folder "
            "whose tokenizer is its model's"
        )


def _grow_embeddings(model: Any, tokenizer: Any, new_ids: Sequence[int]) -> None:  # noqa: ANN401
    """Add rows for new tokens, each the mean of the embeddings of its description's tokens."""
    if max(new_ids) >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {id(m): m for m in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            for index in new_ids:
                word = DECISION_TOKENS.get(tokenizer.convert_ids_to_tokens(index), "end")
                ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
                table.weight[index] = table.weight[ids].mean(0)


def _with_adapter(model: Any, lora: LoRA, new_ids: Sequence[int]) -> Any:  # noqa: ANN401
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        trainable_token_indices={table: list(new_ids) for table in _token_tables(model)} if new_ids else None,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"the LoRA adapter bound to no layer of the model: {error}") from error
    if not any("lora_" in name for name, _ in adapted.named_parameters()):
        raise InputError("the LoRA adapter bound to no layer of the model; it has no linear layers PEFT knows")
    return adapted


def _token_tables(model: Any) -> list[str]:  # noqa: ANN401
    """Return the names of the modules with a row a token: the embedding, and the head where it is a table of its own."""
    tables = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is table for table in tables)]


def _merged(model: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    """Merge layer by layer without touching the model (PEFT's `merge_adapter` would round the base in place)."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    base = model.get_base_model()
    done: set[str] = set()
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            weight = _plain(module.get_base_layer().weight, base.dtype)  # type: ignore[arg-type]
            with torch.autocast(weight.device.type, enabled=False):  # which would multiply the factors in bf16
                delta = module.get_delta_weight("default").float()  # type: ignore[attr-defined]
            yield f"{name}.weight", (weight.float() + delta).to(weight.dtype)
            bias = getattr(module.get_base_layer(), "bias", None)
            if bias is not None:
                yield f"{name}.bias", bias
            done.add(name)
        elif isinstance(module, TrainableTokensLayer):
            owner = name.removesuffix(".token_adapter")
            yield f"{owner}.weight", _with_rows(module)
            done.add(owner)
    for name, tensor in base.state_dict().items():
        if not any(name.startswith(f"{prefix}.") for prefix in done):
            yield name, tensor


def _with_rows(tokens: Any) -> Tensor:  # noqa: ANN401
    """Return the table of a `TrainableTokensLayer` with its trained rows in it; PEFT's own cannot do that with shards."""
    table, rows = whole(tokens.base_layer.weight), whole(tokens.trainable_tokens_delta["default"])
    return table.index_copy(0, torch.tensor(tokens.token_indices["default"], device=table.device), rows.to(table.dtype))


def _plain(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight matrix, or what a 4-bit one stands for."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(dtype)


def _is_tied_head(base: Any, name: str) -> bool:  # noqa: ANN401
    return name.startswith("lm_head.") and bool(base.config.tie_word_embeddings)


def write_settings(settings: AgentSettings, folder: Path) -> None:
    """Write what rollouts and evaluation of a model need to know beside its weights."""
    (folder / SETTINGS_FILE).write_text(json.dumps(settings.__dict__, indent=1) + "\n")


def export_merged(policy: Policy, tokenizer: Any, settings: AgentSettings, folder: Path, write: bool = True) -> Path:  # noqa: ANN401
    """Write a plain model folder: merged weights, tokenizer with template, settings. A new folder is swapped in whole.

    All ranks that hold a sharded policy must call it together, and one of them writes.
    """
    import copy
    import shutil
    import tempfile

    from transformers import AutoModelForCausalLM

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.merged_weights() if write}
    if not write:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as scratch:
        partial, old = Path(scratch) / "new", Path(scratch) / "old"
        base = policy.causal_lm
        config = copy.deepcopy(base.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=base.dtype)
        plain.should_save_on_this_rank = lambda is_main_process: is_main_process  # else only the first of all machines writes
        plain.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        write_settings(settings, partial)
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
    return folder
