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
        "advice names a rule only where its gain is measurable", "study/advise.py",
        "if own.gain.low > 0 and not own.worse and learned]", "if own.gain.value > 0]",
        "study/test_advise.py",
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
        "selection/test_selector.py",
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
]  # fmt: skip
