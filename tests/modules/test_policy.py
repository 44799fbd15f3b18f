"""The policy and its hand-over: what is merged, exported and loaded again is the model that was trained."""

import json

import pytest
import torch
from tiny import byte_tokenizer, tiny_model_folder
from transformers.distributed import mixin

from project.errors import InputError
from project.modules.policy import (
    AgentSettings,
    LoRA,
    Policy,
    _check_head,
    _with_adapter,
    export_merged,
    load_tokenizer,
    resolve_model_path,
)

SETTINGS = AgentSettings("tags", True)
LORA = LoRA(4, 8.0)
IDS = torch.tensor([[256, 10, 258, 20, 30, 259, 257], [256, 40, 50, 258, 60, 70, 80]])


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("tiny") / "tied")


@pytest.fixture(scope="module")
def untied(tied, tmp_path_factory):
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "untied"
    config = AutoConfig.from_pretrained(tied)
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tied).save_pretrained(folder)
    return folder


@pytest.fixture(params=["tied", "untied"])
def folder(request):
    return request.getfixturevalue(request.param)


def make(folder, lora=LORA, settings=SETTINGS, precision="float32"):
    tokenizer, new_ids = load_tokenizer(str(folder), settings.make_dialect())
    return Policy(str(folder), tokenizer, new_ids, lora, precision), tokenizer, new_ids


def shaken(policy: Policy) -> Policy:
    """Give every trained parameter a random value, as if it had been trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return policy


@torch.no_grad()
def logits(policy: Policy, ids=IDS):
    return policy.head(policy(ids.flatten(), [ids.shape[1]] * len(ids))).view(*ids.shape, -1)


def loaded_logits(folder, ids=IDS):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits


def test_new_tokens_get_the_mean_of_their_description(folder):
    policy, _, new_ids = make(folder, None)
    assert new_ids == [258, 259]
    for table in (policy.causal_lm.get_input_embeddings(), policy.causal_lm.get_output_embeddings()):
        for index, word in zip(new_ids, (" search", " answer"), strict=True):
            expected = table.weight[list(word.encode())].mean(0)
            torch.testing.assert_close(table.weight[index], expected)


def test_trap_03_new_token_row_trains(folder):
    """The rows of the new tokens move, as input and as output; no other row does."""
    policy, _, new_ids = make(folder)
    before = dict(tables(policy))
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], 1.0)
    for _ in range(2):  # at first LoRA's B is 0
        optimizer.zero_grad()
        hidden = policy(IDS[0], [IDS.shape[1]])
        torch.nn.functional.cross_entropy(hidden[:-1] @ policy.head_weight().T, IDS[0, 1:]).backward()
        optimizer.step()
    others = [i for i in range(258) if i not in new_ids]
    for name, after in tables(policy).items():
        moved = (after - before[name]).abs().sum(1)
        assert (moved[new_ids] > 1e-4).all(), name
        assert not moved[others].any(), name


def tables(policy: Policy):
    """Return both embedding tables as the model uses them."""
    merged = {name: tensor.detach().clone() for name, tensor in policy.merged_weights()}
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {name: merged[name] for name in names if name in merged}


def test_trap_03_token_rows_are_float32_over_a_bf16_base(tied):
    """A step of 1e-3 on a bf16 row of about 0.02 would mostly be rounded away."""
    policy, _, _ = make(tied, precision="bfloat16")
    trained = {name: p.dtype for name, p in policy.named_parameters() if p.requires_grad}
    assert any("trainable_tokens" in name for name in trained)
    assert set(trained.values()) == {torch.float32}


def test_a_fresh_adapter_changes_nothing(folder):
    plain, adapted = make(folder, None)[0], make(folder)[0]
    torch.testing.assert_close(logits(adapted), logits(plain), rtol=0, atol=1e-6)


def test_the_reference_is_the_model_without_its_adapter(folder):
    policy = make(folder)[0]
    before = logits(policy)
    shaken(policy)
    assert not torch.allclose(logits(policy), before, atol=1e-2)
    with policy.reference():
        torch.testing.assert_close(logits(policy), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [SETTINGS, AgentSettings("tools")], ids=["new tokens", "none"])
def test_trap_14_merged_folder_gives_the_unmerged_logits(folder, settings, tmp_path):
    policy, tokenizer, _ = make(folder, settings=settings)
    shaken(policy)
    ids = IDS if settings is SETTINGS else IDS.clamp(max=257)
    expected = logits(policy, ids)
    exported = export_merged(policy, tokenizer, settings, tmp_path / "merged")
    torch.testing.assert_close(loaded_logits(exported, ids), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(policy, ids), expected, rtol=0, atol=0)  # the trained model is left as it was
    assert not torch.allclose(logits(make(folder, None, settings)[0], ids), expected, atol=1e-2)  # the adapter counts


def test_a_fully_trained_model_is_exported_too(folder, tmp_path):
    policy, tokenizer, _ = make(folder, None)
    shaken(policy)
    exported = export_merged(policy, tokenizer, SETTINGS, tmp_path / "merged")
    torch.testing.assert_close(loaded_logits(exported), logits(policy), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_merged_weights_name_each_weight_once(folder, lora):
    """A tied head is its embedding: naming it twice would halve the share of values that a sync reports as changed."""
    policy, _, _ = make(folder, lora)
    names = [name for name, _ in policy.merged_weights()]
    wanted = set(make(folder, None)[0].model.state_dict())
    if policy.causal_lm.config.tie_word_embeddings:
        wanted.remove("lm_head.weight")
    assert sorted(names) == sorted(wanted)


def test_merging_adds_in_float32_and_rounds_once(tied):
    policy = shaken(make(tied, precision="bfloat16")[0])
    merged = dict(policy.merged_weights())
    layer = policy.causal_lm.model.layers[0].self_attn.q_proj
    delta = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight) * 2.0  # alpha / rank = 8 / 4
    expected = (layer.get_base_layer().weight.float() + delta).bfloat16()
    assert torch.equal(merged["model.layers.0.self_attn.q_proj.weight"], expected)
    with torch.autocast("cpu", torch.bfloat16):  # PPO syncs inside a training step
        inside = dict(policy.merged_weights())
    assert all(torch.equal(inside[name], weight) for name, weight in merged.items())


def test_hidden_states_under_autocast_do_not_depend_on_pefts_casts(tied):
    policy = shaken(make(tied, precision="bfloat16")[0])
    ids = torch.tensor([1, 2, 3, 4])
    with torch.autocast("cpu", torch.bfloat16):
        ours = policy(ids, [4])
        for module in policy._casting:
            module.cast_input_dtype_enabled = True
        casts = policy.causal_lm.model(input_ids=ids[None], lengths=[4]).last_hidden_state[0]
    assert torch.equal(ours, casts)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_heads_table_gives_the_heads_logits(folder, lora):
    """Also where new tokens' rows are trained beside a frozen table."""
    policy = shaken(make(folder, lora)[0])
    hidden = torch.randn(5, policy.hidden_size)
    torch.testing.assert_close(hidden @ policy.head_weight().T, policy.head(hidden), rtol=0, atol=1e-5)


def test_a_head_that_does_more_than_multiply_is_refused(tied):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tied)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="the model's head has final_logit_softcapping, which training leaves out"):
        _check_head(model)
    model.config.final_logit_softcapping = None
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(258))
    with pytest.raises(InputError, match="the model's head has a bias"):
        _check_head(model)


def test_layers_that_mix_packed_samples_are_refused(folder, monkeypatch):
    """As the convolution of a hybrid does, which sees the row and not its samples."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: plain(self, x + x.roll(1, 1)))
    with pytest.raises(InputError, match="the layers of LlamaForCausalLM let packed samples see each other"):
        make(folder)


def test_exported_folder_is_complete(tied, tmp_path):
    policy, tokenizer, _ = make(tied)
    folder = tmp_path / "deep" / "merged"
    folder.mkdir(parents=True)
    (folder / "stale.safetensors").write_text("an older export")
    export_merged(policy, tokenizer, SETTINGS, folder)
    assert not (folder / "stale.safetensors").exists()
    assert {path.name for path in folder.parent.iterdir()} == {"merged"}  # nothing half-written is left
    assert AgentSettings.load(folder) == SETTINGS
    assert json.loads((folder / "seeker.json").read_text())["decision_tokens"] is True
    assert resolve_model_path(folder) == str(folder)
    again, new_ids = load_tokenizer(str(folder), SETTINGS.make_dialect())
    assert new_ids == []  # they are in it
    assert again.chat_template == tokenizer.chat_template
    assert again("<|SEARCH|>x", add_special_tokens=False)["input_ids"] == [258, ord("x")]
    assert loaded_logits(folder).shape[-1] == 260


def test_a_rank_that_is_not_the_first_of_all_writes_where_it_is_told_to(folder, tmp_path, monkeypatch):
    """transformers itself would leave the weights out: the first rank of another machine writes for its engines."""
    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    tokenizer, new_ids = load_tokenizer(str(folder), SETTINGS.make_dialect())
    exported = export_merged(Policy(str(folder), tokenizer, new_ids, None), tokenizer, SETTINGS, tmp_path / "merged")
    assert {"config.json", "model.safetensors"} <= {path.name for path in exported.iterdir()}


def test_trap_14_an_adapter_that_binds_to_nothing_is_an_error():
    from transformers import PretrainedConfig, PreTrainedModel

    class NoLinear(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.embed = torch.nn.Embedding(4, 4)
            self.post_init()

        def get_output_embeddings(self):
            return None

    with pytest.raises(InputError, match="bound to no layer"):
        _with_adapter(NoLinear(PretrainedConfig()), LORA, ())


def test_trap_14_every_linear_layer_but_the_head_has_an_adapter(folder):
    policy, _, _ = make(folder)
    bound = {
        name.split(".lora_A")[0].rpartition("model.layers.")[2] for name, _ in policy.named_parameters() if "lora_A" in name
    }
    layer = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    assert bound == {f"{i}.{name}" for i in (0, 1) for name in layer}


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "has no config.json"), ("tokenizer.json", "has no tokenizer; save the tokenizer")]
)
def test_an_incomplete_model_folder_is_one_sentence(tmp_path, missing, message):
    folder = tiny_model_folder(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=message):
        resolve_model_path(folder)


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path):
    """Its ids would be looked up where no row is, or grown rows of noise would be trained without a word."""
    folder = tiny_model_folder(tmp_path / "m")
    tokenizer = byte_tokenizer(merges=[("a", "b")])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"the tokenizer in .*m has ids up to 258, and the model's embedding 258 rows; give a"):
        make(folder)


def test_an_added_token_without_a_row_is_no_mismatch(tmp_path):
    """As in folders whose padding token was added and never trained; decision tokens bring rows for it."""
    folder = tiny_model_folder(tmp_path / "m")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    policy, _, _ = make(folder)
    assert policy.causal_lm.get_input_embeddings().weight.shape[0] == 258 + 3
    with pytest.raises(InputError, match="has ids up to 258"):  # it would be looked up
        make(folder, settings=AgentSettings("tags", False))


def test_a_missing_model_folder_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        resolve_model_path(tmp_path / "none")
    assert resolve_model_path("org/name") == "org/name"


def test_qlora_holds_four_bits_and_exports_what_they_stand_for(untied, tmp_path):
    lora = LoRA(4, 8.0, nf4=True)
    policy, tokenizer, _ = make(untied, lora)
    shaken(policy)
    packed = {n: p for n, p in policy.named_parameters() if p.dtype is torch.uint8}
    assert len(packed) == 14  # seven layers in each of two blocks
    assert (
        sum(p.numel() for p in packed.values())
        == sum(p.numel() for p in make(untied, None)[0].causal_lm.model.layers.parameters() if p.ndim == 2) / 2
    )
    assert not torch.allclose(logits(policy), logits(shaken(make(untied)[0])), atol=1e-3)  # rounded to 16 levels
    export_merged(policy, tokenizer, SETTINGS, tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    torch.testing.assert_close(loaded_logits(tmp_path / "merged"), logits(policy), rtol=0, atol=1e-4)


def test_qlora_trains_through_its_four_bits(untied):
    """Its gradients are LoRA's over the weights that the four bits stand for; evaluation in between changes nothing."""
    packed, plain = (make(untied, lora)[0] for lora in (LoRA(4, 8.0, nf4=True), LORA))
    with torch.no_grad():
        merged = dict(packed.merged_weights())
        for name, weight in plain.causal_lm.state_dict(keep_vars=True).items():
            key = name.replace(".base_layer", "")
            if key in merged and not weight.requires_grad:
                weight.copy_(merged[key])
    trained = [{n: p for n, p in policy.named_parameters() if p.requires_grad} for policy in (packed, plain)]
    with torch.no_grad():
        for name, parameter in trained[1].items():
            parameter.copy_(trained[0][name])
    packed.eval()
    logits(packed)
    packed.train()
    gradients = []
    for policy, parameters in zip((packed, plain), trained, strict=True):
        hidden = policy(IDS[0], [IDS.shape[1]])
        loss = torch.nn.functional.cross_entropy(hidden[:-1] @ policy.head_weight().T, IDS[0, 1:])
        gradients.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_an_empty_policy_has_the_shape_of_a_loaded_one_and_no_weights(folder):
    """What the ranks but the first hold before they get their shards."""
    loaded, tokenizer, new_ids = make(folder)
    empty = Policy(str(folder), tokenizer, new_ids, LORA, "float32", empty=True)

    def tensors(policy):
        return {n: (t.shape, t.dtype, t.requires_grad) for n, t in (*policy.named_parameters(), *policy.named_buffers())}

    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert tensors(empty) == tensors(loaded)
    lean = [[n for n, module in policy.named_modules() if "forward" in vars(module)] for policy in (empty, loaded)]
    assert lean[0] == lean[1] != []


def test_a_saved_adapter_is_the_policys(folder, tmp_path):
    """PEFT reads it back onto the base, and what changed since the last is counted."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from project.dialects import get_dialect

    tokenizer, _ = load_tokenizer(str(folder), get_dialect("tags", decision_tokens=False))
    policy = Policy(str(folder), tokenizer, [], LoRA(4, 8), "float32")
    first, changed = policy.save_adapter(tmp_path / "a", {})
    assert 0 < changed < 1  # A is drawn, B is 0
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    second, changed = policy.save_adapter(tmp_path / "a", first)
    assert 0 < changed < 1
    assert policy.save_adapter(tmp_path / "a", second)[1] == 0
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "a")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits[0], policy.head(policy(ids[0], [4])), rtol=1e-4, atol=1e-5)
