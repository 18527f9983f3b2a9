"""Mutations of the package, each with the claim that it breaks and the tests that should fail."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """
    Args:
        claim: What no longer holds.
        path: File in `trl_real/`.
        old, new: Text that stands once in the file, and its replacement.
        tests: Tests that touch the place, in `tests/`, separated by blanks.
    """

    claim: str
    path: str
    old: str
    new: str
    tests: str


STATISTICS = "functional/statistics"
MUTATIONS = [
    # Races and advice
    Mutation(
        "labelled pairs count as known in the estimate of the pool", "functional/race.py",
        "rest = drawn.n_pool - len(drawn.known)\n    return (drawn.known.sum(0)",
        "rest = drawn.n_pool - len(drawn.known)\n    return (0 * drawn.known.sum(0)",
        "functional/test_race_of_rules.py",
    ),
    Mutation(
        "draws without replacement vary less", "functional/race.py",
        "(1 - m / rest) / m", "1 / m",
        "functional/test_race_of_rules.py",
    ),
    Mutation(
        "random is never out of the race", "functional/race.py",
        "out[rule] = rule > 0 and gap > half", "out[rule] = gap > half",
        "functional/test_race_of_rules.py",
    ),
    Mutation(
        "random keeps its share", "functional/race.py",
        "if found[0] < shares[0]:", "if found[0] < 0:",
        "functional/test_race_of_rules.py",
    ),
    Mutation(
        "rules are compared at equal numbers of labels", "functional/race.py",
        "[min(len(learned), len(own[0])) for learned in own]", "[len(learned) for learned in own]",
        "functional/test_race_of_rules.py",
    ),
    Mutation(
        "a head is tested on its own pairs without them", "functional/race.py",
        "        if n:\n            margins[learned]", "        if n < 0:\n            margins[learned]",
        "functional/test_race_of_rules.py",
    ),
    Mutation(
        "a response waits while less used ones are left", "selection/mixture/shares.py",
        "max(uses[key] for key in both[row]) <= limit", "min(uses[key] for key in both[row]) <= limit",
        "selection/mixture/test_mixture.py",
    ),
    Mutation(
        "a set rule looks further down its ranking before a response comes again", "selection/mixture/shares.py",
        "if len(order) < free.sum():", "if len(order) < 0:",
        "selection/mixture/test_mixture.py",
    ),
    Mutation(
        "advice names a rule only where its gain is measurable", "study/advice/advise.py",
        "if own.gain.low > 0 and not own.worse and learned]", "if own.gain.value > 0]",
        "study/test_advise.py",
    ),
    # Kills, and servers that nobody vouches for
    Mutation(
        "an answer is bounded in size", "runtime/bounded_http.py",
        "if n_read > self.limit:", "if n_read > self.limit + 2**40:",
        "runtime/test_bounded_http.py",
    ),
    Mutation(
        "an answer that drips is bounded in time", "runtime/bounded_http.py",
        "if left <= 0:", "if left <= -60:",
        "runtime/test_bounded_http.py",
    ),
    Mutation(
        "a folder whose settings were being written at a kill begins again", "runtime/run_folder.py",
        'set(self.folder.iterdir()).difference(self.folder.glob(f"{file}.*.partial"))', "any(self.folder.iterdir())",
        "runtime/test_crashes.py",
    ),
    Mutation(
        "the tokens of a step count those from before a kill", "rounds/self_annotation.py",
        "found.n_tokens + found.n_kept", "found.n_tokens",
        "rounds/test_self_annotation_rounds.py",
    ),
    Mutation(
        "the counts of a label step include what was read before a kill", "labeling/implicit_reward.py",
        'if part and line.get("part") == part:', "if part and not line:",
        "rounds/test_self_annotation_rounds.py",
    ),
    Mutation(
        "the tokens of generation in active rounds, too", "rounds/active.py",
        "found.n_tokens + found.n_kept", "found.n_tokens",
        "rounds/test_active_rounds.py",
    ),
    Mutation(
        "a server's tokens are kept with its responses", "models/generation/from_server.py",
        "completions[first].n_tokens = told or", "completions[first].n_tokens = 0 * told or",
        "models/generation/test_from_server.py",
    ),
    Mutation(
        "labels with control tokens are counted", "labeling/self_annotate.py",
        "report.n_with_control_tokens += ", "report.n_with_control_tokens = ",
        "labeling/test_self_annotate.py",
    ),
    Mutation(
        "--chat is refused where only verdicts are read", "cli/win_rate.py",
        "if args.chat and args.preferences:", "if args.chat and not args.dataset:",
        "cli/test_mistakes.py",
    ),
    Mutation(
        "--chat is refused where only votes are read", "cli/label.py",
        "if args.chat and args.pull:", "if args.chat and args.push:",
        "cli/test_mistakes.py",
    ),
    # Numbers
    Mutation(
        "a count sketch has signs", "functional/projection.py",
        "return buffer[:, : self.dim] - buffer[:, self.dim :]", "return buffer[:, : self.dim] + buffer[:, self.dim :]",
        "functional/test_projection.py",
    ),
    Mutation(
        "each block has signs of its own", "functional/projection.py",
        "self._signs(name, start, block.shape[1], self.dim)", "self._signs(name, 0, block.shape[1], self.dim)",
        "functional/test_projection.py",
    ),
    Mutation(
        "the root of a covariance scales its directions", "functional/bayesian_head.py",
        "values.clamp_min(0).sqrt()[:, None]", "values.clamp_min(0).sqrt()[:, :, None]",
        "functional/test_bayesian_head.py",
    ),
    Mutation(
        "drts compares with the worst response", "functional/bayesian_head.py",
        "samples[:, 1:].argmin(-1), fallback, certain", "samples[:, 1:].argmax(-1), fallback, certain",
        "functional/test_bayesian_head.py",
    ),
    Mutation(
        "drts takes certain gaps first", "functional/bayesian_head.py",
        "certain = _gap(means).abs() - _gap", "certain = _gap(means).abs() + _gap",
        "functional/test_bayesian_head.py",
    ),
    Mutation(
        "Newton's steps are damped", "functional/bradley_terry.py",
        "_damping(x, confidences, weights, step, ridge) * step", "step",
        "functional/test_bradley_terry.py",
    ),
    Mutation(
        "leave-one-out removes the pair's own pull", "functional/bradley_terry.py",
        "return margins - leverage * wrong", "return margins + leverage * wrong",
        "functional/test_bradley_terry.py",
    ),
    Mutation(
        "half of the risk is in each tail", f"{STATISTICS}/resampling.py",
        "t.ppf((1 + confidence) / 2, n_clusters - 1)", "t.ppf(confidence, n_clusters - 1)",
        f"{STATISTICS}/test_resampling.py",
    ),
    Mutation(
        "percentiles of few clusters are moved outward", f"{STATISTICS}/resampling.py",
        "np.sqrt(n_clusters / (n_clusters - 1)) * t.ppf", "t.ppf",
        f"{STATISTICS}/test_resampling.py",
    ),
    Mutation(
        "half of the risk is in each tail of a t interval", f"{STATISTICS}/intervals.py",
        "t.ppf((1 + confidence) / 2, degrees_of_freedom(sizes))", "t.ppf(confidence, degrees_of_freedom(sizes))",
        f"{STATISTICS}/test_win_rate.py",
    ),
    Mutation(
        "where nothing varies prompts count, not rows", f"{STATISTICS}/intervals.py",
        "wilson_interval(scores.mean() * n_clusters, n_clusters, confidence)",
        "wilson_interval(scores.sum(), len(scores), confidence)",
        f"{STATISTICS}/test_win_rate.py",
    ),
    Mutation(
        "rounding is no difference of two models", f"{STATISTICS}/paired.py",
        "/ np.bincount(place)).round(DIGITS)", "/ np.bincount(place))",
        f"{STATISTICS}/test_paired.py",
    ),
    Mutation(
        "a tie moves no sign", f"{STATISTICS}/paired.py",
        "sign_test((np.sign(means) + 1) / 2)", "sign_test((means >= 0).astype(float))",
        f"{STATISTICS}/test_paired.py",
    ),
    Mutation(
        "400 points are odds of 10 to 1, for the winner", f"{STATISTICS}/ranking.py",
        "ANCHOR + POINTS * (strengths", "ANCHOR - POINTS * (strengths",
        f"{STATISTICS}/test_ranking.py",
    ),
    Mutation(
        "exact ties outside the pool go to the first", "functional/greedy_design.py",
        "if len(earlier):", "if False:",
        "functional/test_design.py",
    ),
    Mutation(
        "a whitened coordinate is divided by its deviation", "functional/geometry.py",
        "(values + WHITENING_FLOOR * values.mean()).sqrt()", "(values + WHITENING_FLOOR * values.mean())",
        "functional/test_geometry.py",
    ),
    Mutation(
        "the leading direction is removed, not a small one", "functional/geometry.py",
        "top = vectors[:, -1:]", "top = vectors[:, :1]",
        "functional/test_geometry.py",
    ),
    # Choosing
    Mutation(
        "rows within a band of the cut are in doubt", "selection/budget.py",
        "near_cut = np.abs(scores - cut) <= band", "near_cut = (scores <= cut) & (scores >= cut - band)",
        "selection/test_budget.py",
    ),
    Mutation(
        "a row whose second pair is near is in doubt", "selection/budget.py",
        "(near_cut | other_pair) & np.isfinite(scores)", "near_cut & np.isfinite(scores)",
        "selection/test_budget.py",
    ),
    Mutation(
        "bands grow with what was measured", "selection/half_precision.py",
        "max(self.score or 0.0, SAFETY * score)", "self.score or 0.0",
        "selection/test_budget.py",
    ),
    Mutation(
        "of equal scores the first rows win", "selection/budget.py",
        "tied[: size - len(sure)]", "tied[len(tied) - (size - len(sure)) :]",
        "selection/test_budget.py",
    ),
    Mutation(
        "a share of the rows is rounded", "selection/budget.py",
        "size = round(budget * n_pairs)", "size = int(budget * n_pairs)",
        "selection/test_budget.py",
    ),
    Mutation(
        "easy takes the least similar responses", "selection/strategies.py",
        "    return candidate_similarity(embeddings)\n\n\ndef hard",
        "    return -candidate_similarity(embeddings)\n\n\ndef hard",
        "selection/test_strategies.py",
    ),
    Mutation(
        "a budget at random favours no long list", "selection/strategies.py",
        "return 1 - (1 - draws) ** draws.shape[1]", "return draws",
        "selection/test_strategies.py",
    ),
    Mutation(
        "two-means' ties go by the rule that was asked for", "selection/strategies.py",
        '"random": draws}[tie]', '"random": similarity}[tie]',
        "selection/test_strategies.py",
    ),
    # Labels
    Mutation(
        "a failed order is a failed pair", "labeling/chat/judge.py",
        "failures = [swapped for swapped, reading in read.items() if reading.failure]",
        "failures = [swapped for swapped, reading in read.items() if reading.failure and not swapped]",
        "labeling/chat/test_verdicts.py",
    ),
    Mutation(
        "a verdict at the margin is a tie", "labeling/chat/judge.py",
        "abs(value - TIE) <= self.tie_margin",
        "abs(value - TIE) < self.tie_margin",
        "labeling/chat/test_verdicts.py",
    ),
    Mutation(
        "the template is a part of a judge's identity", "labeling/chat/judge.py",
        'return {"model": model, "template": self.template.digest, **settings}',
        'return {"model": model, **settings}',
        "labeling/chat/test_verdicts.py",
    ),
    Mutation(
        "a calibration above 1 makes verdicts less certain", "labeling/chat/judge.py",
        "/ temperature))",
        "* temperature))",
        "labeling/chat/test_verdicts.py",
    ),
    Mutation(
        "a tie is no flip of the order", "labeling/verdicts.py",
        "(sides[:, 0] * sides[:, 1] < 0).mean()",
        "(sides[:, 0] * sides[:, 1] <= 0).mean()",
        "labeling/chat/test_verdicts.py",
    ),
    Mutation(
        "a failure is no loss", "labeling/verdicts.py",
        '            return "failed"\n',
        '            return "b"\n',
        "labeling/chat/test_verdicts.py",
    ),
    Mutation(
        "the bias is that of the first shown", "labeling/verdicts.py",
        "np.concatenate([orders[:, 0], 1 - orders[:, 1]])",
        "np.concatenate([orders[:, 0], orders[:, 1]])",
        "labeling/chat/test_verdicts.py",
    ),
    Mutation(
        "undecided pairs leave agreement alone", "labeling/agreement.py",
        "n_agree / n if n else math.nan",
        "n_agree / (n + n_undecided) if n else math.nan",
        "labeling/test_check.py",
    ),
    Mutation(
        "undecided pairs leave accuracy alone", "labeling/check.py",
        "accuracy=n_agree / n if n",
        "accuracy=n_agree / int(labeled.sum()) if n",
        "labeling/test_check.py",
    ),
    Mutation(
        "all threads wait where one was asked to", "runtime/openai_client.py",
        "self._not_before = max(self._not_before, time.monotonic() + pause)",
        "pass",
        "labeling/chat/test_quirks.py",
    ),
    Mutation(
        "a mirrored vote's shown side is mirrored", "labeling/people/votes.py",
        '(vote.shown_first == "a") != flipped else -1',
        '(vote.shown_first == "a") else -1',
        "labeling/people/test_votes.py",
    ),
    Mutation(
        "left is left", "labeling/people/label_studio.py",
        '"left": pair.first,\n        "right": pair.second',
        '"left": pair.second,\n        "right": pair.first',
        "labeling/people/test_label_studio.py",
    ),
    Mutation(
        "cancelled annotations are no votes", "labeling/people/label_studio.py",
        'annotation.get("was_cancelled") or ',
        "",
        "labeling/people/test_label_studio.py",
    ),
    Mutation(
        "a pair is pushed once in either order", "labeling/people/label_studio.py",
        "known.isdisjoint(deck.keys(name))",
        "deck.keys(name)[0] not in known",
        "labeling/people/test_label_studio.py",
    ),
    Mutation(
        "the shown side decides what a choice means", "labeling/people/label_studio.py",
        'CHOICES[choices[0]][data["shown_first"]]',
        'CHOICES[choices[0]]["a"]',
        "labeling/people/test_label_studio.py",
    ),
    # Rounds and choosing by a history
    Mutation(
        "the head learns the labels", "selection/active/head.py",
        "fit_head(chosen, rejected, confidences, self.ridge)",
        "fit_head(rejected, chosen, confidences, self.ridge)",
        "selection/active/test_history.py",
    ),
    Mutation(
        "Thompson draws anew in every round", "selection/active/head.py",
        "(len(pool.history), prompt_key(pool.rows[row].prompt))",
        "(0, prompt_key(pool.rows[row].prompt))",
        "selection/active/test_history.py",
    ),
    Mutation(
        "a label of a response without a finite embedding is left out", "selection/active/head.py",
        "isfinite().flatten(1).all(1)",
        "isfinite().flatten(1).any(1)",
        "selection/active/test_history.py",
    ),
    Mutation(
        "confidences are read from the history", "selection/active/pool.py",
        "np.array([1.0 if given[i] is None else given[i] for i in read], float)",
        "np.ones(len(read))",
        "selection/active/test_history.py",
    ),
    Mutation(
        "rows without a verdict are no labels", "selection/active/pool.py",
        "read = [i for i, row in enumerate(rows) if not row.skipped]",
        "read = list(range(len(rows)))",
        "selection/active/test_history.py",
    ),
    Mutation(
        "the cap is by prompt, not by row", "selection/active/gradient.py",
        "torch.from_numpy(pool.groups[pool.row[free.numpy()]])",
        "torch.from_numpy(pool.row[free.numpy()])",
        "selection/active/test_gradient_selector.py",
    ),
    Mutation(
        "gradients with NaN are not usable", "selection/active/gradient.py",
        "(found.n_scored > 0) & (found.norms > 0) & found.norms.isfinite()",
        "(found.n_scored > 0) & ~(found.norms <= 0)",
        "selection/active/test_gradient_selector.py",
    ),
    Mutation(
        "each round generates with a seed of its own", "rounds/active.py",
        '"seed": self.seed + this.number}',
        '"seed": self.seed}',
        "rounds/test_seeds.py",
    ),
    Mutation(
        "each round selects with a seed of its own", "rounds/active.py",
        "self.responses, self.seed + this.number, settings",
        "self.responses, self.seed, settings",
        "rounds/test_seeds.py",
    ),
    Mutation(
        "each round of self-annotation generates with a seed of its own", "rounds/self_annotation.py",
        '"seed": self.seed + this.number, "journal"',
        '"seed": self.seed, "journal"',
        "rounds/test_seeds.py",
    ),
    Mutation(
        "args.beta is the self-judge's", "rounds/self_annotation.py",
        "            beta=self.args.beta,\n",
        "",
        "rounds/test_seeds.py",
    ),
    # Models
    Mutation(
        "a response has its own finish reason", "models/generation/from_server.py",
        "[_completion(choice) for choice in completion",
        "[_completion({**completion['choices'][0], 'message': choice['message']}) for choice in completion",
        "models/generation/test_from_server.py",
    ),
    Mutation(
        "the generation config's ends end a response", "models/generate.py",
        "(*ids, tokenizer.eos_token_id)",
        "(tokenizer.eos_token_id,)",
        "models/test_generate.py",
    ),
    Mutation(
        "a long prompt keeps its end", "models/sequences.py",
        "tuple(ids[max(0, n - max_length) : n])",
        "tuple(ids[:n][:max_length])",
        "models/test_sequences.py",
    ),
    Mutation(
        "no response joins a segment with a prefix", "models/packing.py",
        "if merge and last and not prefix and not last.prefix and",
        "if merge and last and not prefix and",
        "models/test_sequences.py",
    ),
    # Hub, evaluation and study
    Mutation(
        "the last section of a card is replaced", "hub/card.py",
        "max(found, key=re.Match.start, default=None)",
        "min(found, key=re.Match.start, default=None)",
        "hub/test_card.py",
    ),
    Mutation(
        "a record that does not add up is refused", "hub/card.py",
        "if record.n_rows != record.n_kept + record.n_not_chosen + n_skipped:",
        "if record.n_rows < record.n_kept + record.n_not_chosen + n_skipped:",
        "hub/test_card.py",
    ),
    Mutation(
        "the card builds on the commit that it read", "hub/push.py",
        "        parent_commit=head,\n",
        "",
        "hub/test_push.py hub/test_push_failures.py",
    ),
    Mutation(
        "the commit message arrives", "hub/push.py",
        'commit_message=f"{message}: card and record"',
        'commit_message="card and record"',
        "hub/test_push.py hub/test_push_failures.py",
    ),
    Mutation(
        "the confidence of a paired comparison is the comparison's", "evaluation/comparison.py",
        "clusters=clusters, confidence=self.confidence, seed=seed)",
        "clusters=clusters, seed=seed)",
        "evaluation/test_tournament.py",
    ),
    Mutation(
        "p-values of a tournament are corrected", "evaluation/tournament.py",
        "holm([test.sign_p for test in tests.values()])",
        "[test.sign_p for test in tests.values()]",
        "evaluation/test_tournament.py",
    ),
    Mutation(
        "a paired comparison has its direction", "evaluation/comparison.py",
        "paired_comparison(ours, theirs, clusters",
        "paired_comparison(theirs, ours, clusters",
        "evaluation/test_tournament.py",
    ),
    Mutation(
        "a difference is arm minus random", "study/summarize.py",
        "self._of(name, arm) - self._of(name, RANDOM)",
        "self._of(name, RANDOM) - self._of(name, arm)",
        "study/test_study_report.py study/test_curves.py",
    ),
    Mutation(
        "a loss's target has the loss's sign", "study/summarize.py",
        "target=METRICS[name].sign * saving.target",
        "target=saving.target",
        "study/test_study_report.py study/test_curves.py",
    ),
    # What users bring
    Mutation(
        "a prompt is said by the user", "data/chat.py",
        'as_messages(prompt, "user")', "as_messages(prompt)",
        "data/test_chat.py",
    ),
    Mutation(
        "plain prompts are told once in a process", "models/sequences.py",
        "@cache\ndef _tell_plain", "def _tell_plain",
        "data/test_chat.py",
    ),
    Mutation(
        "a chat that was rendered before is not told", "models/sequences.py",
        "and not rendered.search(prompt)", "",
        "data/test_chat.py",
    ),
    Mutation(
        "the card follows a local base to the Hub", "reports/model_card.py",
        "        model = base\n", "        return base\n",
        "reports/test_model_card.py",
    ),
    Mutation(
        "the writer of the chosen response is the pair's", "hub/facts.py",
        "models if first else models[::-1]", "models",
        "hub/test_push.py",
    ),
    Mutation(
        "an adapter without a tokenizer has its base's", "models/load.py",
        "        if base is None:\n            raise\n", "        raise\n",
        "training/test_adapters.py",
    ),
    Mutation(
        "a stream tells a type that shows late", "data/checks/json_lines.py",
        "shown.setdefault((name, _first_type(value)), number)", "shown.setdefault((name, ''), number)",
        "data/test_files.py",
    ),
    Mutation(
        "one row is no training set", "training/config.py",
        "if budget == 1 and isinstance(budget, Integral)", "if budget == 1 and False",
        "cli/test_settings_cli.py",
    ),
    # The page for the person who pays
    Mutation(
        "what people skipped does not wait for them", "labeling/people/label_page.py",
        ' - labels["verdicts"]["failures"].get(SKIPPED, 0)', "",
        "labeling/people/test_label_page.py",
    ),
    Mutation(
        "the price of a pair counts decided pairs only", "labeling/people/label_page.py",
        'n_done = verdicts["n"] - n_left', 'n_done = verdicts["n"]',
        "labeling/people/test_label_page.py",
    ),
    Mutation(
        "an alpha at the end of a band belongs to the next one", "labeling/agreement.py",
        "if alpha < end), (", "if alpha <= end), (",
        "labeling/people/test_label_page.py",
    ),
    Mutation(
        "votes of people are described as votes", "labeling/verdicts.py",
        "bool(verdicts) and all(v.source.startswith(VOTES) for v in verdicts)", "False",
        "labeling/people/test_label_page.py",
    ),
    Mutation(
        "the old name of checkpointing sets the new one", "training/config.py",
        "setattr(self, new, getattr(self, old))", "pass",
        "project/test_renamed.py",
    ),
    # What servers send, and what pages, cards and flags say
    Mutation(
        "a compressed error is told by its status", "runtime/bounded_http.py",
        "if compressed and response.is_success:", "if compressed:",
        "runtime/test_refusals.py",
    ),
    Mutation(
        "an answer ends with the time of its request", "runtime/bounded_http.py",
        "_request.until - time.monotonic()", "_request.until + time.monotonic()",
        "runtime/test_refusals.py",
    ),
    Mutation(
        "answers are read by the client with bounds", "runtime/openai_client.py",
        ", timeout=timeout, http_client=http)", ", timeout=timeout)",
        "runtime/test_refusals.py",
    ),
    Mutation(
        "pauses double", "runtime/openai_client.py",
        "FIRST_PAUSE * 2 ** (state.attempt_number - 1)", "FIRST_PAUSE / 2 ** (state.attempt_number - 1)",
        "runtime/test_pauses.py",
    ),
    Mutation(
        "a limit of the day inside an answer is not tried again", "runtime/openai_client.py",
        "if passing and not UNTIL_TOMORROW.search(text):", "if passing:",
        "runtime/test_refusals.py",
    ),
    Mutation(
        "a key of OpenAI goes to OpenAI alone", "runtime/openai_client.py",
        "urlsplit(base_url).hostname == OPENAI", "OPENAI in base_url",
        "runtime/test_refusals.py",
    ),
    Mutation(
        "the fix of a refusal names a field that was refused", "labeling/chat/server.py",
        "            if field\n", "            if True\n",
        "labeling/chat/test_quirks.py",
    ),
    Mutation(
        "an error for all questions does not wait for the others", "labeling/chat/server.py",
        "if future.done() and (error", "if (error",
        "labeling/chat/test_giving_up.py",
    ),
    Mutation(
        "a ledger is opened for a limit alone", "labeling/chat/purse.py",
        "None if max_cost is None or ledger is None else ledger()", "None if ledger is None else ledger()",
        "labeling/chat/test_purse.py",
    ),
    Mutation(
        "a question fits up to the limit itself", "labeling/chat/purse.py",
        "self.spent + cost <= self.max_cost", "self.spent + cost < self.max_cost",
        "labeling/chat/test_purse.py",
    ),
    Mutation(
        "a vote that was taken is no vote of another window", "labeling/people/desk.py",
        "is_current = taken or key", "is_current = key",
        "labeling/people/test_votes_file.py",
    ),
    Mutation(
        "the key of a pair in a votes file never changes", "labeling/people/votes.py",
        "message_text(m, role=False)", "message_text(m)",
        "labeling/people/test_votes_file.py",
    ),
    Mutation(
        "the page of votes has no link from outside", "labeling/people/page.py",
        "            share=False,\n", "",
        "labeling/people/test_page_launch.py",
    ),
    Mutation(
        "votes of people are told as such if all are", "labeling/verdicts.py",
        "bool(verdicts) and all(v.source", "bool(verdicts) and any(v.source",
        "labeling/test_reports_in_words.py",
    ),
    Mutation(
        "flips of the order are doubted from their bound on", "evaluation/checks.py",
        "if summary.flip_rate > FLIPS:", "if summary.flip_rate > 0.5:",
        "evaluation/test_checks.py",
    ),
    Mutation(
        "half of equal answers are no doubt", "evaluation/checks.py",
        "if sum(same) <= 0.5 * len(same):", "if sum(same) < 0.5 * len(same):",
        "evaluation/test_checks.py",
    ),
    Mutation(
        "a bad answer is named by its row in all calls", "evaluation/compare.py",
        "_completion(value, model, first_row + i)", "_completion(value, model, first_row - i)",
        "evaluation/test_compare.py",
    ),
    Mutation(
        "messages are one prompt in any order of their keys", "evaluation/compare.py",
        "json.dumps(prompt, sort_keys=True, default=str)", "json.dumps(prompt, default=str)",
        "evaluation/test_compare.py",
    ),
    Mutation(
        "a rate that is not to be trusted is no verdict", "evaluation/report.py",
        "if any(doubt.grave for doubt in comparison.doubts):", "if False:",
        "evaluation/test_comparison_report.py",
    ),
    Mutation(
        "splits keep their last point", "study/trained.py",
        "slice(n - 1, len(points) - 1), axis=0", "slice(n - 1, len(points)), axis=0",
        "study/test_cells.py",
    ),
    Mutation(
        "splits count by their test pairs", "study/trained.py",
        "np.average(values, weights=weights)", "np.average(values)",
        "study/test_cells.py",
    ),
    Mutation(
        "a study without a whole seed is summarized", "study/summarize.py",
        "    if curves:\n", "    if True:\n",
        "study/test_cells.py",
    ),
    Mutation(
        "shown facts are those of the middle budget", "study/facts.py",
        "budgets[(len(budgets) - 1) // 2]", "budgets[len(budgets) // 2]",
        "study/test_cells.py",
    ),
    Mutation(
        "arms that were not compared have no equal end", "study/report.py",
        "return bool(ends) and is_whole", "return is_whole",
        "study/test_study_report.py",
    ),
    Mutation(
        "no saving is promised that is not measurable", "study/advice/advise.py",
        "if chosen.saved is None or not self.sure:", "if chosen.saved is None:",
        "study/test_advice_words.py",
    ),
    Mutation(
        "random that learned nothing has no table of savings", "cli/study.py",
        "if not any(found.values()):", "if False:",
        "study/test_study_report.py",
    ),
    Mutation(
        "nothing kept has no bar", "hub/card.py",
        "largest) if largest else 0", "largest) if largest else 1",
        "hub/test_card.py",
    ),
    Mutation(
        "each side has the model that wrote it", "hub/facts.py",
        'first = text_of(row["chosen"]) == row["response_a"]', "first = True",
        "hub/test_facts.py",
    ),
    Mutation(
        "a single point is seen", "reports/figures.py",
        '"o" if len(rows) == 1 else None', "None",
        "reports/test_figures.py",
    ),
    Mutation(
        "a flat curve has room around it", "reports/figures.py",
        "0.06 * (high - low) or 1.0", "0.06 * (high - low)",
        "reports/test_figures.py",
    ),
    Mutation(
        "a card may name several bases", "reports/model_card.py",
        "base = base[0] if isinstance", "base = base[-1] if isinstance",
        "reports/test_model_card.py",
    ),
    Mutation(
        "a number between bounds is not one of them", "cli/checks.py",
        "if not (least < number < most if open_ends else", "if not (least <= number <= most if open_ends else",
        "cli/test_flag_types.py",
    ),
    Mutation(
        "the selector is handed over before the rows", "cli/select.py",
        "select_on_ray(selector, dataset,", "select_on_ray(dataset, selector,",
        "cli/test_flags.py",
    ),
    Mutation(
        "seed labels are texts or messages", "rounds/self_annotation.py",
        "check_texts(self.seed_labels, preference, alike=True)", "check_texts(self.seed_labels, preference)",
        "rounds/test_self_annotation_rounds.py",
    ),
    Mutation(
        "a switch is told by the flag that turns it on", "cli/parser.py",
        "in reversed(self._option_string_actions.items())", "in self._option_string_actions.items()",
        "cli/test_words_of_flags.py",
    ),
    Mutation(
        "a switch takes no value in a hint", "cli/parser.py",
        '        if text == "True":', '        if text == "true":',
        "cli/test_words_of_flags.py",
    ),
    Mutation(
        "JSON holds what is no plain value as text", "cli/options.py",
        "json.dumps(without_nan(values), default=plain,", "json.dumps(without_nan(values),",
        "cli/test_words_of_flags.py",
    ),
    Mutation(
        "a run is drawn over the labels of its own budget", "study/report.py",
        "place = below[-1] if below", "place = below[0] if below",
        "study/test_study_report.py",
    ),
    Mutation(
        "another score makes another study", "study/run.py",
        "        digest.update(np.nan_to_num(scores, nan=-1e300).tobytes())\n", "        digest.update(b'')\n",
        "study/test_grid.py",
    ),
    Mutation(
        "labels of people are not compared with people", "labeling/people/label_page.py",
        ' and not labels["verdicts"]["by_people"]:', ":",
        "labeling/people/test_label_page.py",
    ),
    Mutation(
        "a rate without a clear winner is told with its interval", "evaluation/report.py",
        'measured if n else "No row was judged"', '"No row was judged"',
        "evaluation/test_comparison_report.py",
    ),
    Mutation(
        "a tournament needs a reference that plays", "evaluation/tournament.py",
        "if len(set(models)) < 2 or reference not in models:", "if len(set(models)) < 2:",
        "evaluation/test_tournament.py",
    ),
    Mutation(
        "a stream that changes is told", "runtime/stream_shards.py",
        "elif number >= len(self.digests) or self.digests[number] != digest:", "elif number >= len(self.digests):",
        "runtime/test_stream_chunks.py",
    ),
    Mutation(
        "a member of a panel is a part of its identity", "labeling/panel.py",
        '"quorum": self.quorum, "judges": members}', '"quorum": self.quorum}',
        "labeling/test_annotate_journal.py",
    ),
    Mutation(
        "of equal responses the one that is whole counts", "labeling/self_annotate.py",
        "(_text(given[i]), not ended[i])", "(_text(given[i]), ended[i])",
        "labeling/test_self_annotate.py",
    ),
    Mutation(
        "each source gets its share of what people see", "evaluation/people.py",
        "strata += batch[people.strata] if people.strata else []", "strata += []",
        "evaluation/test_people.py",
    ),
    # What several processes share
    Mutation(
        "processes that run at the same time share a limit", "labeling/chat/claims.py",
        "start = min([row[3] for row in others if not self._is_over(*row[:3])], default=self._total(database))",
        "start = self._total(database)",
        "labeling/chat/test_claims.py",
    ),
    Mutation(
        "an answer in the ledger counts once", "labeling/chat/purse.py",
        "self._own += 0.0 if self._ledger and paid_at > self._ledger.start else cost", "self._own += cost",
        "labeling/chat/test_claims.py",
    ),
    # On an accelerator
    Mutation(
        "blocks of a mask hold all that a token attends to", "models/attention/block_mask.py",
        "some = (first < end) & (first < low + BLOCK) & (end > low)",
        "some = (first < end) & (first < low + 1) & (end > low)",
        "models/test_attention.py",
    ),
    Mutation(
        "a prompt is seen by all of its responses", "models/attention/block_mask.py",
        "ends[part.start] = end[part] = segment.stop", "ends[part.start] = segment.stop",
        "models/test_attention.py",
    ),
    Mutation(
        "an attention that differs is left for the next", "models/reader.py",
        "if gives_the_same(together, alone, self.exact, rough):", "if True:",
        "models/test_attention.py",
    ),
    Mutation(
        "all values leave the device", "models/reader.py",
        "    if held:\n        yield ids, torch.cat(held).cpu(), n_tokens", "    return",
        "models/test_busy_device.py",
    ),
    Mutation(
        "the record has the tokens of a pass that were used", "models/encoder.py",
        'self.used["batch_tokens"] = embedder.batch_tokens', "self.used = {}",
        "models/test_memory.py",
    ),
    Mutation(
        "the record has the tokens of a pass that any process used", "selection/pool.py",
        "int(used[used > 0].min())", "int(used.max())",
        "models/test_memory.py",
    ),
    Mutation(
        "other processes tell the tokens of a pass that they used", "selection/scorer.py",
        "seconds=found.seconds, batch_tokens=used", "seconds=found.seconds",
        "models/test_memory.py",
    ),
    Mutation(
        "rows of one prompt are in one part", "runtime/ahead.py",
        "i if prompt is None else repr(prompt)", "i",
        "models/test_busy_device.py",
    ),
    Mutation(
        "values of parts are put at the places of their rows", "runtime/ahead.py",
        "values[name][rows] = part", "values[name][: len(rows)] = part",
        "models/test_busy_device.py",
    ),
    Mutation(
        "tokens are made while the device reads", "runtime/ahead.py",
        "zip(parts, ahead(make, parts), strict=True)", "zip(parts, map(make, parts), strict=True)",
        "models/test_busy_device.py",
    ),
    Mutation(
        "an adapter is merged before its base is quantized", "training/adapters.py",
        'of_base.pop("quantization_config", None)', "pass",
        "models/test_quantization.py",
    ),
    Mutation(
        "layers that packed themselves for a CPU are written back", "models/quantization.py",
        "layer.state_dict()  # writes the weights back", "pass",
        "models/test_quantization.py",
    ),
    Mutation(
        "no layer packs itself for a CPU", "models/quantization.py",
        "layer.support_avx512bf16_for_cpu = False", "pass",
        "models/test_quantization.py",
    ),
    Mutation(
        "only a base in 4 bits has products of another precision", "models/quantization.py",
        'if getattr(config, "load_in_4bit", False) else None', "if config else None",
        "models/test_quantization.py",
    ),
    Mutation(
        "a quantized base is chosen from without its adapter", "rounds/selectors.py",
        "chooser.policy.disable_adapter_layers()", "pass",
        "rounds/test_quantized_rounds.py",
    ),
    Mutation(
        "rounds refuse 8 bits", "cli/rounds.py",
        "if model.load_in_8bit:", "if False:",
        "rounds/test_quantized_rounds.py",
    ),
    Mutation(
        "how threads wait is the user's to say", "cli/main.py",
        "spins = {} if any(name in os.environ for name in WAITING) else SPINS", "spins = SPINS",
        "cli/test_threads.py",
    ),
    Mutation(
        "shared-out weights are gathered for the check", "training/forward_hooks.py",
        "return isinstance(weight, DTensor) or hasattr(weight, \"ds_id\")", "return hasattr(weight, \"ds_id\")",
        "training/test_sharded.py",
    ),
    # Other trainers
    Mutation(
        "doubtful labels ask a reward model for less", "training/trainers.py",
        "2.0 * np.array(values, dtype=np.float32) - 2.0",
        "2.0 - 2.0 * np.array(values, dtype=np.float32)",
        "training/test_trainers.py",
    ),
    Mutation(
        "a reward model of texts is read as it was trained", "training/trainers.py",
        "processing_class.chat_template = None",
        "pass",
        "training/test_trainers.py",
    ),
    Mutation(
        "an adapter of a reward model is merged", "training/trainers.py",
        "if _internal_call or not isinstance(model, PeftModel):",
        "if True:",
        "cli/test_trainers_cli.py",
    ),
    # Images, turns and traces
    Mutation(
        "a response alone is read by the language model", "models/reader.py",
        "return backbone if backbone.config.get_text_config() is backbone.config else backbone.get_decoder()",
        "return backbone",
        "selection/test_images.py",
    ),
    Mutation(
        "padding of rows with images goes to the end", "models/embed_images.py",
        "owners = torch.where(mask.bool(), owners, -1).gather(1, order)",
        "owners = torch.where(mask.bool(), owners, -1)",
        "selection/test_images.py",
    ),
    Mutation(
        "rows with equal texts are told apart by their images", "labeling/people/votes.py",
        "*digests_of(images)] if images else prompt",
        "] if images else prompt",
        "labeling/test_seen_images.py",
    ),
    Mutation(
        "the page shows only images that it holds", "labeling/people/page_html.py",
        'held = [url for url in urls if url.startswith("data:image/")]',
        "held = list(urls)",
        "labeling/test_seen_images.py",
    ),
    Mutation(
        "the history is the chosen dialogue's", "data/turns.py",
        "history = [*history, *mine[1]]",
        "history = [*history, *other[1]]",
        "data/test_turns.py",
    ),
    Mutation(
        "turns of the users that differ are no shared beginning", "data/conversation.py",
        "if end >= 0 and HUMAN_TURN not in shared[end:] else 0",
        "if end >= 0 else 0",
        "data/test_turns.py",
    ),
    Mutation(
        "a branch that was left is no part of a trace", "data/traces/formats.py",
        'for event in _branch([event for event in events if event.get("type") != "session"]):',
        'for event in [event for event in events if event.get("type") != "session"]:',
        "data/test_traces.py",
    ),
    Mutation(
        "a session in which the user spoke again is no attempt", "data/traces/pool.py",
        'SEVERAL: any(message["role"] == "user" for message in response)',
        "SEVERAL: False",
        "data/test_traces.py",
    ),
    # Found at random
    Mutation(
        "a dialogue that goes on is a response of several turns, also in the rejected place", "data/sources.py",
        "    if rest is None:\n", "    if rest is None or ASSISTANT_TURN in rest:\n",
        "data/test_sources_of_pairs.py",
    ),
    Mutation(
        "a dialogue that begins another keeps its last answer", "data/conversation.py",
        "min(len(shared), len(one) - 1, len(other) - 1)", "min(len(shared), len(one), len(other) - 1)",
        "data/test_turns.py",
    ),
    Mutation(
        "what a living process is saving stays", "data/files.py",
        "and not psutil.pid_exists(int(process))", "and psutil.pid_exists(int(process))",
        "data/test_saving.py",
    ),
    Mutation(
        "arguments of a call have one order", "data/message.py",
        "json.dumps(_without_none(value), sort_keys=True, ", "json.dumps(_without_none(value), ",
        "data/test_message.py",
    ),
    Mutation(
        "a pick is judged by its own margin", "functional/design.py",
        "right=True) - 1", "right=False) - 1",
        "functional/test_design_margins.py",
    ),
    Mutation(
        "features whose squares overflow are refused", "functional/design.py",
        "torch.linalg.vector_norm(block).isfinite()", "block.isfinite().all()",
        "functional/test_design.py",
    ),
    Mutation(
        "samples that agree leave the second response to the last one", "functional/bayesian_head.py",
        "fallback = samples[:, -1].scatter(1, first", "fallback = samples[:, 1].scatter(1, first",
        "functional/test_bayesian_head.py",
    ),
    Mutation(
        "the standard error of a total is unbiased", "selection/planning/plan.py",
        "values.var(ddof=1)", "values.var()",
        "selection/planning/test_plan.py",
    ),
    Mutation(
        "the window around the cut stays within the rows", "selection/half_precision.py",
        "len(rows) - size)", "len(rows) + size)",
        "selection/test_measured_rows.py",
    ),
    Mutation(
        "a map reads the images of its context", "selection/selector.py",
        "() if self.reads_images else IMAGE_COLUMNS", "IMAGE_COLUMNS",
        "selection/test_images.py",
    ),
    Mutation(
        "the trainer's seed chooses", "training/selecting_trainer.py",
        "                seed=self.args.seed,\n", "",
        "training/test_trainer.py",
    ),
    Mutation(
        "the tokenizer is of the model's revision", "training/adapters.py",
        "auto.from_pretrained(model, revision=revision_of(init), ", "auto.from_pretrained(model, ",
        "training/test_adapters.py",
    ),
    Mutation(
        "checkpointing by its new name is kept", "training/config.py",
        "if getattr(self, new, 0) is None:", "if True:",
        "project/test_renamed.py",
    ),
    Mutation(
        "a processor runs no code of its repository", "models/encoder.py",
        "AutoProcessor.from_pretrained(self.name, trust_remote_code=False, ",
        "AutoProcessor.from_pretrained(self.name, ",
        "models/test_remote_code.py",
    ),
    Mutation(
        "sums of a judge in rounds outlive a kill", "rounds/self_annotation.py",
        "            cache=sums,\n", "",
        "rounds/test_self_annotation_rounds.py",
    ),
]  # fmt: skip
