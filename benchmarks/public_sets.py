"""
Public preference data as rows for studies, from a folder of Parquet files, with embeddings that are computed once.

    python benchmarks/public_sets.py --data ../shared/data --models smollm2=PATH minilm=PATH --cache FOLDER

Embeds every set, part by part: a second run continues. No text of these sets is printed.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset

from trl_real.data.pairs import Candidates
from trl_real.models.embed import EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.study.features import embed_rows


MOST_ROWS = 1200
MAX_LENGTH = 96  # tokens read per response
Row = tuple[str, list[str], list[float]]  # prompt, responses, scores


class PublicSet(NamedTuple):
    """
    Public set.

    Args:
        file: Path of the Parquet file in the data folder.
        rows: Function from its table to rows; responses in an order that does not tell the label.
        shaped: Whether `strategy="auto"` was designed on it.
    """

    file: str
    rows: Callable[[pd.DataFrame], Iterator[Row]]
    shaped: bool


def pairs(table: pd.DataFrame) -> Iterator[Row]:
    """Chosen and rejected responses."""
    for row in table.itertuples():
        yield str(row.prompt), [row.chosen, row.rejected], [1, 0]


def scored_pairs(table: pd.DataFrame) -> Iterator[Row]:
    """Chosen and rejected responses with scores, without ties."""
    yield from pairs(table[table.score_chosen != table.score_rejected])


def two_scores(table: pd.DataFrame) -> Iterator[Row]:
    """Two responses with a score each, without ties."""
    for row in table[table.score_1 != table.score_2].itertuples():
        yield row.prompt, [row.response_1, row.response_2], [row.score_1, row.score_2]


def human_labels(table: pd.DataFrame) -> Iterator[Row]:
    """Pairs that people labelled, without ties."""
    table = table[table.label_kind.isin(["human", "human_expert"]) & table.label.isin([1, 2])]
    for row in table.itertuples():
        yield row.prompt, [row.response_1, row.response_2], [row.label == 1, row.label == 2]


def roles(table: pd.DataFrame) -> Iterator[Row]:
    """Five answers in five roles; the reader is a person of business."""
    names = ["normal", "academy", "business", "entertainment", "literature"]
    for row in table.to_dict("records"):
        yield row["prompt"], [row[name] for name in names], [name == "business" for name in names]


def scored_lists(table: pd.DataFrame, most: int = 4) -> Iterator[Row]:
    """Up to four responses with scores, drawn by content."""
    for row in table.itertuples():
        known = [(text, score) for text, score in zip(row.responses, row.scores, strict=True) if score == score]
        known = sorted(dict(known).items(), key=lambda pair: key_of(pair[0]))[:most]
        yield row.prompt, [text for text, _ in known], [score for _, score in known]


SETS = {
    "hh_harmless": PublicSet("hh/hh_harmless_test.parquet", pairs, True),
    "hh_helpful": PublicSet("hh/hh_helpful_test.parquet", pairs, True),
    "rmb": PublicSet("rmb/pairs.parquet", pairs, True),
    "ultrafeedback": PublicSet("ultrafeedback/ultrafeedback_1200.parquet", scored_pairs, True),
    "webgpt": PublicSet("webgpt/webgpt_test.parquet", two_scores, True),
    "shp": PublicSet("dpo_logps/pythia2.8b_shp.parquet", pairs, True),
    "hh_single_turn": PublicSet("hh/hh_single_turn_train.parquet", pairs, False),
    "human_labels": PublicSet("labelled_pairs/labelled_pairs.parquet", human_labels, False),
    "qa_feedback": PublicSet("qa_feedback/qa_feedback_dev.parquet", scored_lists, False),
    "dsp": PublicSet("dsp/domain_specific_test.parquet", roles, False),
    "bon16": PublicSet("bon16/tulu2_13b_bon16.parquet", scored_lists, False),
}


def key_of(*texts: Any) -> str:
    """Return a digest that orders rows and responses by content."""
    return hashlib.blake2b("\0".join(map(str, texts)).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def load_rows(name: str, data: Path) -> Dataset:
    """Return up to 1,200 rows of a set, drawn by content, with `prompt`, `responses` and `scores`."""
    rows = {}
    for prompt, responses, scores in SETS[name].rows(pd.read_parquet(data / SETS[name].file)):
        if all(text.strip() for text in responses) and len(set(responses)) == len(responses) > 1:
            ranked = sorted(zip(responses, map(float, scores), strict=True), key=lambda pair: key_of(pair[0]))
            rows[key_of(prompt, *sorted(responses))] = {
                "prompt": prompt, "responses": [t for t, _ in ranked], "scores": [s for _, s in ranked],
            }  # fmt: skip
    return Dataset.from_list([rows[key] for key in sorted(rows)[:MOST_ROWS]])


def with_embeddings(name: str, data: Path, model: str, cache: Path) -> Dataset:
    """
    Return the rows of a set with a column `embeddings`, without rows of which the model reads no token; parts in the
    cache are not computed again.
    """
    dataset = load_rows(name, data)
    encoder = Encoder(model, dtype="bfloat16", options=EmbedderOptions(max_length=MAX_LENGTH))
    rows = [Candidates(row["prompt"], row["responses"], list(range(len(row["responses"])))) for row in dataset]
    vectors = embed_rows(rows, encoder, cache / name)
    read = [i for i, v in enumerate(vectors) if bool(v.isfinite().all())]
    found = [vectors[i].numpy().astype(np.float32).tolist() for i in read]
    return dataset.select(read).add_column("embeddings", found)


def models_of(given: list[str]) -> dict[str, str]:
    """Parse `name=path` texts."""
    return dict(text.split("=", 1) for text in given)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags of every benchmark on these sets."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=PATH", help="models, each with a name")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    return parser


def main() -> None:
    args = parser_of(__doc__).parse_args()
    for model, path in models_of(args.models).items():
        for name in args.sets:
            started = time.perf_counter()
            dataset = with_embeddings(name, args.data, path, args.cache / model / "features")
            n, seconds = sum(map(len, dataset["responses"])), time.perf_counter() - started
            print(f"{name}, {model}: {len(dataset)} rows, {n} responses, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
