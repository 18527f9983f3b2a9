"""Win rate of a model against a baseline, with its interval, from verdicts or from the scores of both."""

import argparse

from trl_real.cli.options import add_common, require, result, say


def register(parser: argparse.ArgumentParser) -> None:
    """Either a column of verdicts, or two columns of completions with their scores."""
    add_common(parser, output=False)
    parser.add_argument(
        "--preferences", help="column of verdicts in [0, 1]: 1 the model wins, 0 the baseline, 0.5 a tie"
    )
    parser.add_argument("--clusters", help="column that tells which rows share a prompt")
    parser.add_argument("--model", default="response", help="column of the model's completions")
    parser.add_argument("--baseline", default="baseline_response", help="column of the baseline's completions")
    parser.add_argument("--model_score", default="score", help="column of scores of the model's completions")
    parser.add_argument("--baseline_score", default="baseline_score", help="column of scores of the baseline's")
    parser.add_argument("--prompt", default="prompt", help="column of the prompts")
    parser.add_argument("--min_gap", type=float, default=0.0, help="least difference of scores that decides")
    parser.add_argument("--confidence", type=float, default=0.95, help="level of the interval")


def run(args: argparse.Namespace) -> None:
    """Print the rates."""
    from trl_real.data.files import load
    from trl_real.errors import MissingColumnError

    require(args, "dataset")
    dataset = load(args.dataset, args.split)
    needed = (args.preferences, args.clusters) if args.preferences else (args.model_score, args.baseline_score)
    for column in filter(None, needed):
        if column not in dataset.column_names:
            fix = "Name a column of verdicts (--preferences) or two of scores (--model_score, --baseline_score)."
            raise MissingColumnError(column, dataset.column_names, fix)
    rates = _from_verdicts(args, dataset) if args.preferences else _from_scores(args, dataset)
    plain = "\n".join(f"{name}\t{value}" for name, value in rates.items())
    result(args, rates, plain)


def _from_verdicts(args: argparse.Namespace, dataset) -> dict:
    from trl_real.functional.win_rate import win_rate

    clusters = dataset[args.clusters][:] if args.clusters else None
    return win_rate(dataset[args.preferences][:], clusters=clusters, confidence=args.confidence)


def _from_scores(args: argparse.Namespace, dataset) -> dict:
    from trl_real.evaluation.comparison import compare
    from trl_real.labeling.judges import ScoreJudge

    columns = (dataset[args.model_score][:], dataset[args.baseline_score][:])
    scored = dataset.select_columns([args.prompt, args.model, args.baseline])
    scored = scored.add_column("scores", [list(two) for two in zip(*columns, strict=True)])
    scored = scored.add_column("pair", [[0, 1]] * len(scored))
    comparison = compare(
        scored,
        ScoreJudge(min_gap=args.min_gap),
        model=args.model,
        baseline=args.baseline,
        prompt=args.prompt,
        confidence=args.confidence,
    )
    say(comparison.summary())
    return comparison.to_dict()["rates"]
