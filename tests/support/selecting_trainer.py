"""Training on selected rows, and a selector of its own for what must be selected."""

from datasets import Dataset

from support.training import LORA, config
from trl_real import EmbeddingPairSelector, REALDPOTrainer


MODES = {"plain": {}, "lora": {"peft_config": LORA}, "precompute": {"precompute_ref_log_probs": True}}


def selecting(folder, model, dataset, trainer=REALDPOTrainer, **changes):
    settings = {"selection_strategy": "easy", "selection_budget": 0.5, **changes}
    given = {name: settings.pop(name) for name in ("peft_config", "eval_dataset", "data_collator") if name in settings}
    return trainer(model, args=config(folder, **settings), train_dataset=dataset, **given)


def stand_alone(model: str, dataset: Dataset, budget=0.5, strategy="easy", seed=42) -> Dataset:
    return EmbeddingPairSelector(model, strategy=strategy, seed=seed).select(dataset, budget)
