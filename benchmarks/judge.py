"""
The in-process chat judge beside the bare forward passes, interleaved (A B A B), medians of the rounds.

    python benchmarks/judge.py --model MODEL --dataset PREFERENCES.parquet --n_pairs 500 --rounds 3

Bare is what an expert would write: the same templated chats of both orders, tokenized beforehand, sorted by length and
padded, logits of the last position only, at the fastest of a few batch sizes. `--dataset` holds `prompt`, `chosen`
and `rejected`.
"""

import argparse
import statistics
import time

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_real.data.files import load
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.verdicts import summarize


BATCH_SIZES = (1, 2, 4, 8, 16)


class Bare:
    """Forward passes over chats, shortest first."""

    def __init__(self, model, tokenizer, questions):
        self.model = model
        messages = [question.messages for question in questions]
        chats = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        self.chats = sorted(chats["input_ids"], key=len)
        self.n_tokens = sum(map(len, self.chats))
        self.labels = torch.tensor([tokenizer.convert_tokens_to_ids(label) for label in questions[0].labels])

    @torch.inference_mode()
    def __call__(self, batch_size: int, chats=None) -> None:
        """Log-probabilities of the labels, padded on the left so that the last position is every chat's last token."""
        chats = self.chats if chats is None else chats
        for start in range(0, len(chats), batch_size):
            batch = chats[start : start + batch_size]
            width = max(map(len, batch))
            tokens, mask = (torch.zeros(len(batch), width, dtype=torch.long) for _ in range(2))
            for i, chat in enumerate(batch):
                tokens[i, width - len(chat) :] = torch.tensor(chat)
                mask[i, width - len(chat) :] = 1
            inputs = {name: x.to(self.model.device) for name, x in (("input_ids", tokens), ("attention_mask", mask))}
            logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
            logits.float().log_softmax(-1)[:, self.labels].cpu()

    def best_batch_size(self, n: int = 16) -> int:
        """The fastest on neighbours in length from the middle."""
        middle = max(0, len(self.chats) // 2 - n // 2)
        sample = self.chats[middle : middle + n]
        self(1, sample[:1])
        seconds = {size: timed(lambda size=size: self(size, sample))[0] for size in BATCH_SIZES}
        print("bare, s a chat by batch size:", {k: round(s / len(sample), 3) for k, s in seconds.items()}, flush=True)
        return min(seconds, key=seconds.get)


def timed(function):
    """Seconds, of the CPU (other work on the machine leaves them alone) if that is what computes, and the result."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    result = function()
    return clock() - start, result


def pairs(dataset: str, split: str | None, n: int) -> dict:
    """The first `n` pairs, as a judge takes them."""
    rows = load(dataset, split)
    rows = rows.select(range(min(n, len(rows))))
    return {"prompt": rows["prompt"][:], "response_a": rows["chosen"][:], "response_b": rows["rejected"][:]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", default="Anthropic/hh-rlhf")
    parser.add_argument("--split", default=None)
    parser.add_argument("--n_pairs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--template", default="pairwise")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_tokens", type=int, default=None)
    parser.add_argument("--batch_size", type=int, default=None, help="of the bare passes; by default they are tried")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).eval()
    judge = ChatJudge(model, tokenizer=tokenizer, template=args.template, batch_tokens=args.batch_tokens)
    batch = pairs(args.dataset, args.split, args.n_pairs)
    bare = Bare(model, tokenizer, judge.questions(batch))
    size = args.batch_size or bare.best_batch_size()
    judge.verdicts({name: column[:1] for name, column in batch.items()})  # finds the labels, checks the packing
    seconds = {"bare": [], "judge": []}
    for _ in tqdm(range(args.rounds)):
        seconds["bare"].append(timed(lambda: bare(size))[0])
        took, verdicts = timed(lambda: judge.verdicts(batch))
        seconds["judge"].append(took)
    report(seconds, verdicts, bare.n_tokens, size)


def report(seconds: dict[str, list[float]], verdicts: list, n_tokens: int, size: int) -> None:
    """Print both medians, their ratio and what the judge said."""
    bare, judge = (statistics.median(seconds[name]) for name in ("bare", "judge"))
    ratios = [b / a for a, b in zip(seconds["bare"], seconds["judge"], strict=True)]
    print(f"{len(verdicts)} pairs in both orders, {n_tokens} tokens, {torch.get_num_threads()} threads")
    print(f"bare (batches of {size}): {bare:.1f} s, {n_tokens / bare:.0f} tokens/s")
    print(f"judge: {judge:.1f} s, {n_tokens / judge:.0f} tokens/s")
    print(f"judge / bare: {judge / bare:.2f} (by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    said = summarize(verdicts)
    print(f"P(first shown) {said.position_bias + 0.5:.3f}, {said.flip_rate:.0%} of the pairs change with the order, "
          f"{said.n_ties} ties, {said.n_failed} failed")  # fmt: skip


if __name__ == "__main__":
    main()
