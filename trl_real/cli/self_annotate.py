"""Train on a few labels, then on labels from the policy itself (SPA): one run for each arm and seed, one report."""

import argparse
from pathlib import Path
from typing import Any

from trl_real.cli.checks import ABLATIONS, PICKS, one_of, real, whole
from trl_real.cli.options import add_config, require
from trl_real.cli.rounds import add_rounds_flags, judge_or_page, refuse_flags_of_no_use, run_arms, shared_settings


# Other flags are those of REALDPOConfig and ModelConfig; names in the YAML file are flags.
PASSES_FLAGS_ON = True
# The paper's schedule, except its learning rate of 5e-7 for all weights: a new adapter learns nothing at that rate.
SCHEDULE = "--beta 0.1 --lr_scheduler_type cosine --warmup_steps 0.1 --learning_rate 5e-5 --noise_smoothing 0.1"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the flags; they have the names of `self_annotation_rounds`' arguments."""
    add_config(parser)
    add = parser.add_argument
    add("--output_dir", help="folder for the output; the same command continues a run there")
    add("--seed_labels", help="labelled pairs to start with: Hub id, file, or folder (also of an active run)")
    add("--prompts", help="Hub id, folder or file with a column 'prompt', to generate responses for")
    add(
        "--n_prompts",
        nargs="+",
        type=whole(1),
        help="number of prompts per round: one for all rounds, or one for each",
    )
    add(
        "--arms",
        nargs="+",
        type=one_of("arm", ABLATIONS),
        default=["detection"],
        help="arms: expansion, refinement, detection (default: detection)",
    )
    add(
        "--noise_schedule",
        nargs="+",
        type=float,
        metavar="LAMBDA",
        help="noise extrapolation of each round (default 0.5 0.25 0.125)",
    )
    add("--seed_epochs", type=float, default=3, help="number of epochs over the seed labels (default 3)")
    add("--epochs", type=float, default=1, help="number of epochs over the labels of a round (default 1)")
    add("--n", type=whole(2), default=2, help="number of responses per prompt (default 2)")
    add("--temperature", type=real(0), default=0.7, help="sampling temperature (default 0.7)")
    add("--max_new_tokens", type=whole(1), default=300, help="maximum length of a response in tokens (default 300)")
    add("--batch_size", type=whole(1), default=64, help="number of responses to generate at a time (default 64)")
    add(
        "--pick",
        type=one_of("pick", PICKS),
        default="best_worst",
        help="pair to take if n is above 2: best_worst (default) or best_random",
    )
    add("--drop_unfinished", action="store_true", help="skip responses that reached --max_new_tokens")
    add("--soft_labels", action="store_true", help="train on the label probabilities instead of hard labels")
    add(
        "--relabel",
        type=float,
        metavar="SHARE",
        help="share of the least confident pairs that the judge or people label; above 1: number of pairs",
    )
    add_rounds_flags(parser, rounds=3)


def run(args: argparse.Namespace) -> None:
    """Do the missing rounds, write the report, and print the last round of each arm."""
    from trl_real.data.files import load
    from trl_real.errors import TrlRealError
    from trl_real.rounds.active import labels_of_run
    from trl_real.rounds.report import SELF_ANNOTATION
    from trl_real.runtime.run_folder import SETTINGS_FILE

    require(args, "seed_labels", "prompts", "n_prompts", "model", "output_dir")
    # The method itself uses the implicit reward, even if another judge relabels.
    args.own_length_normalize = bool(args.length_normalize)
    args.length_normalize = args.length_normalize if args.judge == "implicit_reward" else None
    refuse_flags_of_no_use(args, args.relabel is not None or bool(args.eval_prompts))
    seed_labels = labels_of_run(args.seed_labels)
    if seed_labels is None:
        arms = [folder.parent for folder in sorted(Path(args.seed_labels).glob(f"*/{SETTINGS_FILE}"))]
        if arms:
            raise TrlRealError(f"{args.seed_labels!r} holds {len(arms)} runs. Choose one: --seed_labels {arms[0]}")
        seed_labels = load(args.seed_labels)
    prompts = load(args.prompts)

    def one(arm: str, seed: int, folder: Path) -> Any:
        rounds = _rounds(args, seed_labels, prompts, arm, seed, folder)
        if arm != args.arms[0]:
            rounds.begin_like(folder.with_name(f"{args.arms[0]}-{seed}"))
        return rounds

    facts = {"seed labels": len(seed_labels), "prompts a round": ", ".join(map(str, args.n_prompts))}
    run_arms(args, args.arms, one, SELF_ANNOTATION, facts)


def _rounds(args: argparse.Namespace, seed_labels: Any, prompts: Any, arm: str, seed: int, folder: Path) -> Any:
    from trl_real.rounds.self_annotation import SelfAnnotationRounds

    named = ("seed_epochs", "epochs", "pick", "drop_unfinished", "soft_labels")
    settings = {name: getattr(args, name) for name in named}
    settings["length_normalize"] = args.own_length_normalize
    if args.noise_schedule:
        settings["noise_extrapolation"] = args.noise_schedule
    if args.relabel is not None:
        settings |= {"relabel_judge": judge_or_page(args, "--relabel"), "relabel_budget": _budget(args.relabel)}
    generation = ("n", "temperature", "max_new_tokens", "batch_size")
    return SelfAnnotationRounds(
        seed_labels=seed_labels,
        prompts=prompts,
        n_prompts=args.n_prompts[0] if len(args.n_prompts) == 1 else args.n_prompts,
        ablation=arm,
        generation={name: getattr(args, name) for name in generation},
        output_dir=folder,
        seed=seed,
        **settings,
        **shared_settings(args, SCHEDULE.split()),
    )


def _budget(value: float) -> float | int:
    """Return a share for values up to 1, a number of rows above."""
    return value if value <= 1 else int(value)
