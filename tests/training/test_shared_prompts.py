"""`shared_prompts`: TRL's losses and gradients from each token read once, and TRL's own step where it must be."""

import copy
import logging
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3MoeConfig
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils as head

from support.families import CONFIGS, WIDE
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from support.training import as_dialogues, as_messages, config, words
from trl_real import REALDPOConfig, REALDPOTrainer, TrlRealError
from trl_real.models.attention.segments import ATTENTIONS, VARIABLE


pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
PROMPT = "Please tell me in a few words what you know about rain, water and tea. "
FAMILIES = ("llama", "qwen3", "gpt_neox", "phi", "opt", "gemma3")


def lora(**settings) -> LoraConfig:
    """Both matrices of the adapter are random: the policy differs from its reference, and both have gradients."""
    return LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False, **settings)


def rows() -> list[dict]:
    """Pairs with a common prompt, without one, equal up to the last token, and of very different lengths."""
    shared = [
        {"prompt": PROMPT + words(i, i), "chosen": words(i, 3 + i), "rejected": words(i + 9, 4)} for i in range(3)
    ]
    return [
        *shared,
        {"prompt": "", "chosen": words(20, 6), "rejected": words(31, 9)},
        {"prompt": PROMPT, "chosen": "say roof!", "rejected": "say roof?"},
        {"prompt": PROMPT, "chosen": words(5, 1), "rejected": words(6, 12)},
    ]


def random_model(name: str = "llama", seed: int = 1, **settings):
    settings = {"dropout": 0.0, **settings} if name == "opt" else settings
    made = copy.deepcopy(CONFIGS[name]) if isinstance(name, str) else name
    for key, value in settings.items():
        setattr(made, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(made).eval()


def made(folder, model, ref_model=None, peft_config=None, kind=REALDPOTrainer, data=None, **changes):
    kinds = {REALDPOTrainer: REALDPOConfig, DPOTrainer: DPOConfig}
    changes = {"per_device_train_batch_size": 6, "gradient_checkpointing": False, **changes}
    return kind(
        model,
        ref_model=ref_model,
        args=config(folder, kinds[kind], **changes),
        train_dataset=Dataset.from_list(rows() if data is None else data),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


class Step:
    """Loss, gradients and number of tokens that the policy read, in a step on all rows of a trainer's set."""

    def __init__(self, trainer, training=True):
        model, _ = trainer.model, getattr(trainer, "shared_prompts", None)  # its check reads tokens, too
        inputs = trainer.data_collator(list(trainer.train_dataset))
        self.n_padded, self.n_read = inputs["input_ids"].numel(), 0
        model.train(training)
        model.zero_grad()
        handle = model.get_input_embeddings().register_forward_hook(self._count)
        with trainer.compute_loss_context_manager(), torch.random.fork_rng():
            torch.manual_seed(0)
            self.loss = trainer.compute_loss(model, inputs)
        handle.remove()
        self.loss.backward()
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.gradient = torch.cat(found).double()

    def _count(self, _module, args, _output):
        self.n_read += args[0].numel()


def assert_same(ours: Step, theirs: Step, loss=1e-6, gradient=1e-5, share=0.5):
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=loss, abs=loss)
    assert (ours.gradient - theirs.gradient).norm() <= gradient * theirs.gradient.norm()
    assert theirs.gradient.norm() > 0 and theirs.n_read % theirs.n_padded == 0
    assert ours.n_read < share * theirs.n_read, "the prompts were not read once"


def assert_shares(folder, share=0.5, **given):
    """Compare a step with that of TRL's trainer on the same weights."""
    theirs = {name: copy.deepcopy(value) for name, value in given.items()}
    ours = Step(made(folder, **given, shared_prompts=True))
    assert_same(ours, Step(made(folder, **theirs, kind=DPOTrainer)), share=share)


def assert_steps_aside(folder, caplog, reason: str | None, training=True, **given):
    """Compare with TRL's step: equal to the last bit, and no token fewer. With True, it is an error that says why."""
    again, plain = ({name: copy.deepcopy(value) for name, value in given.items()} for _ in range(2))
    with caplog.at_level(logging.INFO, "trl_real"):
        trainer = made(folder, **given)
        ours, theirs = Step(trainer, training), Step(made(folder, **plain, kind=DPOTrainer), training)
    assert ours.loss.item() == theirs.loss.item() and torch.equal(ours.gradient, theirs.gradient)
    assert ours.n_read == theirs.n_read and ours.n_read % ours.n_padded == 0
    if reason is not None:
        assert len(said := [r.getMessage() for r in caplog.records if "read once" in r.getMessage()]) == 1
        assert reason in said[0]
        with pytest.raises(TrlRealError, match=f"shared_prompts=True: .*{reason}"):
            Step(made(folder, **again, shared_prompts=True), training)


# The same losses and gradients.


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), seed=1)


@pytest.mark.parametrize("mode", ["full", "lora", "ref_model", "precomputed", "adapter"])
def test_step_equals_trls_for_each_kind_of_reference(mode, saved, tmp_path):
    given = {"model": saved}
    if mode in ("lora", "precomputed"):
        given["peft_config"] = lora()
    if mode == "ref_model":
        given["ref_model"] = tiny_model(seed=2)
    if mode == "adapter":
        given["model"] = get_peft_model(AutoModelForCausalLM.from_pretrained(saved), lora())
    assert_shares(tmp_path, **given, precompute_ref_log_probs=mode == "precomputed")


@pytest.fixture(scope="module")
def couple(tmp_path_factory) -> tuple:
    """Our trainer and TRL's, of the same weights."""
    folder = tmp_path_factory.mktemp("couple")
    given = {"model": tiny_model(1, initializer_range=0.1), "ref_model": tiny_model(2, initializer_range=0.1)}
    return made(folder, **copy.deepcopy(given), shared_prompts=True), made(folder, **given, kind=DPOTrainer)


@pytest.mark.parametrize("loss", LOSSES)
def test_step_equals_trls_for_every_loss(loss, couple, monkeypatch):
    for trainer in couple:
        monkeypatch.setattr(trainer, "loss_types", [loss])
        monkeypatch.setattr(trainer, "label_smoothing", 0.1)
    assert_same(*map(Step, couple))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_step_equals_trls_in_every_family(name, kind, attention, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, attention)
    given = {"ref_model": random_model(name, seed=2)} if kind == "full" else {"peft_config": lora()}
    assert_shares(tmp_path, model=random_model(name), **given)


SETTINGS = {
    "ld_alpha": {"ld_alpha": 0.3},
    "weighting": {"use_weighting": True},
    "two losses": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
    "cut at the end": {"max_length": 90},
    "cut at the start": {"max_length": 90, "truncation_mode": "keep_end", "share": 0.9},
    "padded to 64": {"pad_to_multiple_of": 64},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
}  # fmt: skip


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_step_equals_trls_with_other_settings(settings, attention, saved, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, attention)
    assert_shares(tmp_path, model=saved, peft_config=lora(), **settings)


@pytest.mark.parametrize("layout", [dict, as_messages, as_dialogues], ids=["text", "messages", "dialogues"])
def test_curve_and_evaluation_equal_trls(layout, saved, tmp_path):
    """Thirty steps of two batches each, with an evaluation in between."""

    def curve(kind, **changes):
        data = [layout(row) for row in rows() if row["prompt"]]
        trainer = made(tmp_path, saved, peft_config=lora(), kind=kind, data=data, **same, **changes)
        trainer.train()
        logs = [*trainer.state.log_history[:-1], trainer.evaluate(trainer.train_dataset)]
        return [log[name] for log in logs for name in log if name.endswith(("loss", "entropy", "logps/rejected"))]

    same = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 30, "learning_rate": 1e-3}
    ours, theirs = curve(REALDPOTrainer, shared_prompts=True), curve(DPOTrainer)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4) and len(ours) == 3 * 31
    assert abs(ours[0] - ours[-4]) > 0.1, "nothing was learned"


def test_autocast_differs_by_no_more_than_bfloat16_rounds(saved, tmp_path):
    ours, theirs = (
        Step(made(tmp_path, saved, peft_config=lora(), bf16=True, shared_prompts=shared)) for shared in (True, False)
    )
    assert_same(ours, theirs, loss=0.05, gradient=0.05)


def test_attention_is_the_models_own_again_after_a_step_and_after_an_error(couple):
    model = couple[0].model
    before = model.config._attn_implementation
    Step(couple[0])
    assert model.config._attn_implementation == before
    with pytest.raises(TypeError), couple[0].shared_prompts.reading():
        model(input_ids=torch.ones(1, 4, dtype=torch.long), segments=1)
    assert model.config._attn_implementation == before
    assert torch.isfinite(model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits).all()


def test_head_works_within_the_cache_and_is_trls_again_afterwards(couple):
    """If TRL renames its number of words, a step takes longer and nothing else changes: then this test fails."""
    before, seen = head._CHUNKED_LOGPROB_CHUNK_SIZE, []
    handle = couple[0].model.base_model.register_forward_hook(lambda *_: seen.append(head._CHUNKED_LOGPROB_CHUNK_SIZE))
    step = Step(couple[0])
    handle.remove()
    assert head._CHUNKED_LOGPROB_CHUNK_SIZE == before
    assert seen and all(512 <= n_words < before / 4 for n_words in seen) and step.loss.isfinite()


def test_a_plain_dpoconfig_reads_prompts_once_too(saved, tmp_path):
    trainer = REALDPOTrainer(
        saved, args=config(tmp_path, DPOConfig), train_dataset=Dataset.from_list(rows()), peft_config=lora()
    )
    step = Step(trainer)
    assert step.n_read < step.n_padded


# TRL's own step where it must be.


def test_false_is_trls_step(saved, tmp_path, caplog):
    ours = Step(made(tmp_path, saved, peft_config=lora(), shared_prompts=False))
    theirs = Step(made(tmp_path, saved, peft_config=lora(), kind=DPOTrainer))
    assert ours.loss.item() == theirs.loss.item() and torch.equal(ours.gradient, theirs.gradient)
    assert ours.n_read == theirs.n_read


@pytest.mark.parametrize("where", ["adapter", "attention"])
def test_dropout_is_trls_in_training_and_shared_in_evaluation_or_where_asked(where, tmp_path, caplog):
    def given():
        model = random_model("llama", attention_dropout=0.5 * (where == "attention"))
        adapter = lora(lora_dropout=0.5 * (where == "adapter"))
        return {"model": model, "peft_config": adapter, "disable_dropout": False}

    assert_steps_aside(tmp_path, caplog, None, **given())
    assert "in evaluation; in training there is dropout" in caplog.text
    assert_same(*(Step(made(tmp_path, **given(), shared_prompts=x), training=False) for x in (None, False)))
    trainer = made(tmp_path, **given(), shared_prompts=True)
    dropped, whole = Step(trainer), Step(trainer, training=False)
    assert dropped.n_read == whole.n_read and dropped.loss.item() != whole.loss.item(), "nothing was dropped"


MOE = Qwen3MoeConfig(
    **WIDE, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
)  # fmt: skip


def test_router_loss_is_trls_and_experts_without_it_share(tmp_path, caplog):
    given = {"model": random_model(MOE), "ref_model": random_model(MOE, seed=2)}
    assert_steps_aside(tmp_path, caplog, "router's loss", **copy.deepcopy(given), router_aux_loss_coef=0.1)
    assert_shares(tmp_path, **given, router_aux_loss_coef=0.0)


@pytest.mark.parametrize("window", [8, 70])
def test_rows_longer_than_the_window_are_trls(window, tmp_path, caplog):
    sizes = MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=window)
    given = {"model": random_model(sizes), "ref_model": random_model(sizes, seed=2)}
    reason = "it differs from padding" if window == 8 else None
    assert_steps_aside(tmp_path, caplog, reason, **copy.deepcopy(given))
    if window == 70:
        assert_shares(tmp_path, **copy.deepcopy(given), max_length=70)
        with pytest.raises(TrlRealError, match="shared_prompts=True: a row is longer than .* max_length"):
            Step(made(tmp_path, **given, shared_prompts=True))


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_prompt_learning_adapters_are_trls(kind, saved, tmp_path, caplog):
    adapter = kind(num_virtual_tokens=3, task_type="CAUSAL_LM")
    assert_steps_aside(tmp_path, caplog, "tokens of its own", model=saved, peft_config=adapter)


@pytest.mark.parametrize("name", ["gemma2", "falcon"])
def test_models_that_do_not_pack_are_trls(name, tmp_path, caplog):
    given = {"model": random_model(name), "ref_model": random_model(name, seed=2)}
    assert_steps_aside(tmp_path, caplog, "it differs from padding", **given)


def test_compiled_models_are_trls(saved, tmp_path, caplog):
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    assert_steps_aside(tmp_path, caplog, "compiled", model=saved, peft_config=lora(), **compiled)


@pytest.mark.parametrize(
    ("name", "reason"), [("_is_vlm", "images"), ("is_fsdp_enabled", "sharded"), ("is_deepspeed_enabled", "sharded")]
)
def test_models_of_images_and_sharded_ones_are_trls(name, reason, saved, tmp_path, caplog):
    ours, theirs = (made(tmp_path, saved, peft_config=lora(), kind=kind) for kind in (REALDPOTrainer, DPOTrainer))
    setattr(ours, name, True)
    first, second = Step(ours), Step(theirs)
    assert first.loss.item() == second.loss.item() and first.n_read == second.n_read
    assert reason in caplog.text


def test_batches_with_other_inputs_or_padded_on_the_left_are_trls(saved, tmp_path):
    ours, theirs = (made(tmp_path, saved, peft_config=lora(), kind=kind) for kind in (REALDPOTrainer, DPOTrainer))
    inputs = ours.data_collator(list(ours.train_dataset))
    position_ids = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
    for batch in ({**inputs, "position_ids": position_ids}, {name: x.flip(1) for name, x in inputs.items()}):
        losses = [trainer.compute_loss(trainer.model, batch).item() for trainer in (ours, theirs)]
        assert losses[0] == losses[1]
    shared = Step(ours), Step(theirs)
    assert shared[0].n_read < shared[1].n_read, "a batch of its own kind is still read once"


def test_batch_whose_responses_were_cut_away_is_trls(saved, tmp_path):
    """Without a label there is nothing to share, and the loss is that of equal rewards."""
    ours = made(tmp_path, saved, peft_config=lora())
    inputs = ours.data_collator(list(ours.train_dataset))
    inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    assert ours.compute_loss(ours.model, inputs).item() == pytest.approx(math.log(2), abs=1e-6)
