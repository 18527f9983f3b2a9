# %% [markdown]
# # Which pairs are worth a label?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/trl_real/blob/main/examples/notebook.ipynb)
#
# A pool of prompts with four responses each, a budget of 16 labels, and three questions: which pairs are chosen, what
# do their labels look like, and what comes of training on them?
#
# The responses were sampled from SmolLM2-135M-Instruct. VADER's sentiment score plays the annotator: a lexicon, so the
# truth is known and a label costs nothing. The task is to write more cheerfully. This shows the steps, on a toy; it
# says nothing about how people would judge.
#
# It runs on a GPU and on a CPU: in Colab as it is, or in the folder `examples` of a clone after `make install`. The
# output below is from the copy of the model that `trl-real demo` takes where the Hub is out of reach (4 bit,
# dequantized), on one CPU thread.

# %%
import importlib.util
import os
import subprocess
import sys


PROJECT = "https://github.com/OWNER/trl_real"
if importlib.util.find_spec("trl_real") is None:  # as in Colab
    wanted = f"trl-real[demo] @ git+{PROJECT}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
DATA = "" if os.path.exists("pool.jsonl") else f"{PROJECT}/raw/main/examples/"

# %%
import matplotlib.pyplot as plt
import torch
from datasets import load_dataset

from trl_real import EmbeddingPairSelector, ScoreJudge, annotate


MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUDGET = 16

pool = load_dataset("json", data_files=f"{DATA}pool.jsonl", split="train")
print(len(pool), "prompts;", "columns:", ", ".join(pool.column_names))
print(pool[0]["prompt"][0]["content"])
for score, response in zip(pool[0]["scores"], pool[0]["responses"], strict=True):
    print(f"{score:+.2f}  {response[:90]}")

# %% [markdown]
# ## Choose
#
# `easy` takes from each prompt the two responses that lie the furthest apart in the model's own embedding space, and
# for the budget the prompts where they lie the furthest apart. It reads no score.

# %%
selector = EmbeddingPairSelector(MODEL, strategy="easy")
every_pair = selector.select(pool)
kept = selector.select(pool, budget=BUDGET)
print(selector.record.summary().splitlines()[0])

# %%
figure, axes = plt.subplots(figsize=(7, 3))
bins = torch.linspace(min(every_pair["similarity"]) - 0.01, 1, 30).tolist()
axes.hist(every_pair["similarity"][:], bins, color="#b8bfca", label="the least similar pair of each prompt")
axes.hist(kept["similarity"][:], bins, color="#2f6fde", label=f"the {BUDGET} that are kept")
axes.set(xlabel="cosine of mean-pooled hidden states", ylabel="pairs", title="What `easy` keeps")
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# What a person would be asked first:

# %%
order = sorted(range(len(kept)), key=lambda i: kept[i]["similarity"])
for row in (kept[order[0]], kept[order[-1]]):
    print(f"similarity {row['similarity']:.2f}: {row['prompt'][0]['content']}")
    print("   A:", row["response_a"][:100])
    print("   B:", row["response_b"][:100])

# %% [markdown]
# ## Label, beside a random choice
#
# The same budget spent at random, and on the most similar pairs. A gap below 0.05 is a tie: a label that was paid for
# and teaches nothing.

# %%
judge = ScoreJudge("scores", min_gap=0.05)
preferences = {}
print("strategy  labels  decided  mean gap")
for strategy in ("easy", "random", "hard"):
    chosen = EmbeddingPairSelector(MODEL, strategy=strategy).select(pool, budget=BUDGET)
    preferences[strategy] = annotate(chosen, judge)
    gaps = [abs(row["scores"][row["pair"][0]] - row["scores"][row["pair"][1]]) for row in chosen]
    print(f"{strategy:<9} {len(chosen):>6}  {len(preferences[strategy]):>7}  {sum(gaps) / len(gaps):>8.2f}")

# %% [markdown]
# ## Train
#
# An adapter for each arm, with TRL's DPO.

# %%
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from trl_real import REALDPOConfig, REALDPOTrainer


tokenizer = AutoTokenizer.from_pretrained(MODEL)


def train(name):
    config = REALDPOConfig(
        f"runs/notebook/{name}",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = REALDPOTrainer(
        MODEL, args=config, train_dataset=preferences[name], processing_class=tokenizer, peft_config=lora
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


trainers = {name: train(name) for name in ("easy", "random")}

# %%
colors = {"easy": "#2f6fde", "random": "#8a8f98"}
figure, axes = plt.subplots(figsize=(7, 3))
for name, trainer in trainers.items():
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    axes.plot(
        [entry["step"] for entry in log],
        [entry["rewards/margins"] for entry in log],
        color=colors[name],
        marker="o",
        label=name,
    )
axes.axhline(0, color="#b8bfca", linewidth=1)
axes.set(xlabel="step", ylabel="reward margin", title="What the trainer sees: the margin on the pairs it trains on")
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# A margin on the training pairs shows that something was fitted. Whether the policy writes more cheerfully is another
# question.
#
# ## Compare
#
# Prompts that are not in the pool, two responses each, before and after; the sentiment score judges, and the interval
# is over prompts, since two responses to one prompt are not two prompts.

# %%
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from trl_real import compare, generate


vader = SentimentIntensityAnalyzer()
questions = load_dataset("json", data_files=f"{DATA}prompts.jsonl", split="train[:16]")["prompt"][:]
questions_twice = [question for question in questions for _ in range(2)]


def happier(batch):
    """1 where the first response is the more cheerful one, 0 where the second is, 0.5 between equals."""
    scores = [[vader.polarity_scores(text)["compound"] for text in batch[f"response_{side}"]] for side in "ab"]
    return [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(*scores, strict=True)]


def write(model):
    found = generate(model, tokenizer, questions, n=2, max_new_tokens=32, batch_size=32)
    return [text for texts in found.texts for text in texts]


device = trainers["easy"].model.device
before = write(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).to(device))
results = {}
for name, trainer in trainers.items():
    results[name] = compare(questions_twice, write(trainer.model), before, happier, names=(name, "before"))
    print(results[name].summary().splitlines()[0], "-", name)

# %%
figure, axes = plt.subplots(figsize=(7, 2))
for height, (name, found) in enumerate(results.items()):
    rates = found.rates
    axes.plot([rates["ci_low"], rates["ci_high"]], [height, height], color=colors[name], linewidth=3)
    axes.plot(rates["win_rate"], height, "o", color=colors[name], markersize=9)
axes.axvline(0.5, color="#b8bfca", linewidth=1)
axes.set(xlim=(0, 1), yticks=range(len(results)), yticklabels=list(results), ylim=(-0.6, len(results) - 0.4))
axes.set(xlabel="win rate against the model before, with its 95 % interval")
figure.tight_layout()

# %%
difference = results["easy"].against(results["random"])
print(difference.words())

# %% [markdown]
# ## What to make of it
#
# The interval of `easy` lies above a half and that of `random` does not, and yet it cannot be told which choice is the
# better one: the interval of their difference is wide and has 0 in it. That is one seed, 16 labels and 16 prompts. The
# least similar pair of this pool has a reply that is broken, as a small model at temperature 1 often writes; a label
# on it teaches little. For your own data, ask the same with more seeds and budgets: `trl-real study` does, on labels
# that you have already, and `docs/results.md` has what it found on real ones.
