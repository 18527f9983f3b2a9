"""Win rate of a model against a baseline, or ranking of several models: generate, judge and report."""

import argparse
from pathlib import Path
from typing import Any

from trl_real.cli.checks import METHODS, one_of, real, whole
from trl_real.cli.judges import add_judge_flags, judge_from, recorded_judge, seed_of, tell_price
from trl_real.cli.options import (
    add_chat,
    add_common,
    check_output,
    keep_settings,
    locked,
    require,
    result,
    rows_of,
    say,
    strict_json,
)
from trl_real.cli.people import add_people_flags, people_from, say_what_is_open, take_votes
from trl_real.errors import TrlRealError


def register(parser: argparse.ArgumentParser) -> None:
    """Add the flags: a column of verdicts; two columns of completions or two policies; or several columns."""
    add_common(parser)
    add_chat(parser)
    add = parser.add_argument
    add("--preferences", help="column of verdicts in [0, 1]: 1 the model wins, 0 the baseline, 0.5 a tie")
    add("--clusters", help="with --preferences: column with an id per prompt, equal in rows that share a prompt")
    add("--lengths", help="with --preferences: column of the model's lengths, in characters")
    add("--baseline_lengths", help="with --preferences: column of the baseline's lengths")
    add("--model", default="response", help="column of the model's completions, or a policy: Hub id or path")
    add("--baseline", default="baseline_response", help="column of the baseline's completions, or a policy")
    add("--models", nargs="+", metavar="COLUMN", help="columns of completions to compare and rank")
    add("--reference", help="with --models: column with rating 1000 (default: the last)")
    add("--model_score", default="score", help="judge score: column of scores of the model's completions")
    add("--baseline_score", default="baseline_score", help="judge score: column of scores of the baseline's")
    add("--prompt", default="prompt", help="column of the prompts")
    add("--confidence", type=real(0, 1, open_ends=True), default=0.95, help="level of the interval")
    add(
        "--method",
        type=one_of("method", METHODS),
        default="auto",
        help="method of the interval: auto (default), wilson, t, score or bootstrap",
    )
    add("--difficulty", metavar="FILE", help="AlpacaEval's 805 difficulties (column difficulty), for its prompts only")
    add("--max_new_tokens", type=whole(1), default=256, help="policies: maximum number of tokens of an answer")
    add("--temperature", type=real(0), default=1.0, help="policies: sampling temperature; 0 is greedy")
    add("--plan", action="store_true", help="print the estimated cost of judging, and stop")
    add_people_flags(parser)
    add_judge_flags(parser, model="judge_model")


@locked
def run(args: argparse.Namespace) -> None:
    """Print the rates; with `--output_dir`, write them, the verdicts and a page."""
    from trl_real.data.files import load

    require(args, "dataset")
    if args.plan and args.preferences:
        raise TrlRealError("--plan tells what a judge would cost, and --preferences needs none. Leave one out.")
    if args.chat and args.preferences:
        raise TrlRealError("--chat is for prompts and responses; --preferences reads verdicts only. Remove --chat.")
    if args.people is not None and (args.preferences or args.models):
        raise TrlRealError("--people draws pairs of --model and --baseline. Leave out --preferences and --models.")
    settings = _check_output(args)
    dataset = rows_of(args, load(args.dataset, args.split), prompt=args.prompt)
    run_one = _from_verdicts if args.preferences else _tournament if args.models else _two_sides
    run_one = _from_people if args.people_verdicts else run_one
    run_one(args, dataset)
    if settings is not None:
        keep_settings(args, settings)


def _check_output(args: argparse.Namespace) -> dict[str, Any] | None:
    if not args.output_dir or args.plan:
        return None
    names = "dataset split preferences clusters lengths baseline_lengths models reference model baseline model_score "
    names += "baseline_score prompt confidence method difficulty max_new_tokens temperature"
    return check_output(args, "win rate", *names.split(), **recorded_judge(args), chat=args.chat or None)


def _from_verdicts(args: argparse.Namespace, dataset: Any) -> None:
    from trl_real.evaluation.checks import length_doubts, rate_doubts
    from trl_real.functional.statistics.win_rate import win_rate

    columns = {name: getattr(args, name) for name in ("preferences", "clusters", "lengths", "baseline_lengths")}
    values = {name: _column(dataset, column) for name, column in columns.items() if column}
    rates = win_rate(
        values.pop("preferences"),
        **values,
        difficulty=_difficulty(args),
        confidence=args.confidence,
        method=args.method,
        seed=seed_of(args),
    )
    n_prompts = len(set(values["clusters"])) if "clusters" in values else len(dataset)
    lengths = {name: [length for length in values.get(name, []) if length is not None] for name in LENGTHS}
    own, other = (sum(found) / len(found) if found else float("nan") for found in lengths.values())
    doubts = rate_doubts(rates, own, other, n_prompts) + length_doubts("the model", lengths["lengths"])
    for doubt in doubts:
        say(f"{'DO NOT TRUST' if doubt.grave else 'doubt'}: {doubt.words}")
    if args.output_dir:
        _write(args, {"rates": rates, "doubts": [doubt._asdict() for doubt in doubts]}, None)
    result(args, {**rates, "doubts": [doubt.words for doubt in doubts]}, _lines(rates))


def _from_people(args: argparse.Namespace, dataset: Any) -> None:
    from trl_real.functional.statistics.people import people_win_rate

    require(args, "preferences")
    columns = {name: getattr(args, name) for name in ("clusters", "inclusion_probabilities")}
    values = {name: _column(dataset, column) for name, column in columns.items() if column}
    sides = _column(dataset, args.preferences), _column(dataset, args.people_verdicts)
    rates = people_win_rate(*sides, **values, confidence=args.confidence, method=args.method)
    if args.output_dir:
        _write(args, {"rates": rates}, None)
    result(args, rates, _lines(rates))


LENGTHS = ("lengths", "baseline_lengths")


def _two_sides(args: argparse.Namespace, dataset: Any) -> None:
    from trl_real.evaluation.compare import compare_columns
    from trl_real.evaluation.completions import add_completions, is_policy

    sides: dict[str, Any] = {}
    for name in ("model", "baseline"):
        side = getattr(args, name)
        if side not in dataset.column_names and is_policy(side):
            if args.plan:
                raise TrlRealError(f"--plan needs the answers of --{name} {side}. Generate them first.")
            sampling = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "seed": seed_of(args)}
            sides[name] = f"{name}: {Path(side).name}"
            dataset = add_completions(dataset, side, sides[name], prompt=args.prompt, **sampling)
        else:
            sides[name] = side
    votes = take_votes(args) if args.people is not None else {}
    people = people_from(args, votes)
    judge, dataset = _judge(args, dataset)
    if _planned(args, judge, dataset, [(sides["model"], sides["baseline"])]):
        return
    options: dict[str, Any] = {"confidence": args.confidence, "method": args.method, "seed": seed_of(args)}
    options |= {"prompt": args.prompt, "people": people}
    comparison = compare_columns(dataset, judge, **sides, difficulty=_difficulty(args), **options)
    say(comparison.summary())
    if args.output_dir:
        _write(args, comparison.to_dict(), [comparison], dataset)
    say_what_is_open(args, votes, comparison.rates.get("n_open", 0))
    values = comparison.to_dict()
    result(args, {**values.pop("rates"), **values}, _lines(comparison.rates))


def _tournament(args: argparse.Namespace, dataset: Any) -> None:
    from itertools import combinations

    from trl_real.evaluation.tournament import tournament

    judge, dataset = _judge(args, dataset)
    if _planned(args, judge, dataset, list(combinations(args.models, 2))):
        return
    options = {"prompt": args.prompt, "confidence": args.confidence, "method": args.method, "seed": seed_of(args)}
    found = tournament(dataset, judge, args.models, reference=args.reference, **options)
    for comparison in found.comparisons:
        say(comparison.summary())
    paired = {
        f"{a} : {b}": f"{test.words()}; after Holm's correction p = {p:.3g} (sign test)"
        for (a, b), (test, p) in found.against_reference.items()
    }
    if args.output_dir:
        _write(args, found.to_dict(), found.comparisons, dataset, ranking=found.ranking, paired=paired)
    result(args, found.to_dict(), found.ranking.words())


def _judge(args: argparse.Namespace, dataset: Any) -> tuple[Any, Any]:
    """Return the judge and the dataset, for the judge `score` with columns of scores and pairs."""
    if args.judge != "score":
        if args.judge == "votes":
            raise TrlRealError("--judge votes: votes belong to selected pairs. Type: trl-real label --judge votes …")
        return judge_from(args), dataset
    if args.models:
        raise TrlRealError("--models needs a judge that reads texts: --judge reward, chat or panel.")
    judge = judge_from(args)
    two = zip(_column(dataset, args.model_score), _column(dataset, args.baseline_score), strict=True)
    dataset = dataset.remove_columns([name for name in ("scores", "pair") if name in dataset.column_names])
    return judge, dataset.add_column("scores", [list(pair) for pair in two]).add_column(
        "pair", [[0, 1]] * len(dataset)
    )


def _planned(args: argparse.Namespace, judge: Any, dataset: Any, pairs: list[tuple[str, str]]) -> bool:
    """Print the estimate for these pairs of columns; return whether `--plan` ends the run here."""
    from trl_real.data.checks.row_check import check_texts
    from trl_real.data.conversation import text_of

    check_texts(dataset, dict.fromkeys([args.prompt, *(name for pair in pairs for name in pair)]))

    def batch() -> dict[str, list]:
        sides = ([text_of(text) for pair in pairs for text in _column(dataset, pair[side])] for side in (0, 1))
        prompts = _column(dataset, args.prompt) * len(pairs)
        return dict(zip(("prompt", "response_a", "response_b"), (prompts, *sides), strict=True))

    return tell_price(args, judge, batch)


def _column(dataset: Any, name: str) -> list:
    from trl_real.errors import MissingColumnError

    if name not in dataset.column_names:
        fix = "Name a column of verdicts (--preferences) or two of scores (--model_score, --baseline_score)."
        if name not in ("score", "baseline_score"):
            fix = "Check the name; --model and --baseline may also be paths or Hub ids of policies."
        raise MissingColumnError(name, dataset.column_names, fix)
    return dataset[name][:]


def _difficulty(args: argparse.Namespace) -> list[float] | None:
    from trl_real.data.files import load

    return _column(load(args.difficulty), "difficulty") if args.difficulty else None


def _lines(rates: dict[str, Any]) -> str:
    return "\n".join(f"{name}\t{value}" for name, value in rates.items())


def _write(
    args: argparse.Namespace, values: dict[str, Any], comparisons: list | None, dataset: Any = None, **parts: Any
) -> None:
    """Write `comparison.json`, the verdicts row by row, the completions, and the page."""
    from trl_real.evaluation.report import example_rows, write_comparison_report

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(strict_json(values, indent=1), encoding="utf-8")
    if comparisons is None:
        return
    from datasets import Dataset, concatenate_datasets

    rows = []
    for c in comparisons:
        n = len(c.rows["prompt"])
        rows.append(Dataset.from_dict({"model": [c.model] * n, "baseline": [c.baseline] * n, **c.rows}))
    concatenate_datasets(rows).to_parquet(str(folder / "verdicts.parquet"))
    dataset.to_parquet(str(folder / "completions.parquet"))
    texts = {name: dataset[name][:] for c in comparisons for name in (args.prompt, c.model, c.baseline)}
    parts["examples"] = {
        f"{c.model} : {c.baseline}": example_rows(c, texts[args.prompt], texts[c.model], texts[c.baseline])
        for c in comparisons
    }
    say(f"Report: {write_comparison_report(folder, comparisons, **parts)}")
