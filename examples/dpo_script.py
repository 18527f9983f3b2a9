"""
A TRL script with three lines changed, and two flags more on its command line:

    -from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config
    +from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config
    +from trl_real import REALDPOConfig, REALDPOTrainer
    -    script, config, model = TrlParser((ScriptArguments, DPOConfig, ModelConfig)).parse_args_and_config()
    +    script, config, model = TrlParser((ScriptArguments, REALDPOConfig, ModelConfig)).parse_args_and_config()
    -    trainer = DPOTrainer(
    +    trainer = REALDPOTrainer(

    python examples/dpo_script.py --dataset_name examples/preferences.jsonl --output_dir runs/dpo \
        --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --use_peft --learning_rate 2e-4 \
        --use_cpu True --bf16 False --selection_strategy easy --selection_budget 0.5
"""

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config

from trl_real import REALDPOConfig, REALDPOTrainer


def main() -> None:
    """Train, on the pairs that the two flags select."""
    script, config, model = TrlParser((ScriptArguments, REALDPOConfig, ModelConfig)).parse_args_and_config()
    preferences = load_dataset("json", data_files=script.dataset_name, split=script.dataset_train_split)
    trainer = REALDPOTrainer(
        model.model_name_or_path,
        args=config,
        train_dataset=preferences,
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
