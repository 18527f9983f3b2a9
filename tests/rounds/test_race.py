"""`auto` in rounds: shares follow the labels, and every round says what it chose and why."""

from functools import partial

import numpy as np
import pytest
from datasets import Dataset, load_from_disk

from support.rounds import active, pool
from support.tiny import save_tiny
from trl_real import EmbeddingPairSelector
from trl_real.cli.rounds import _table
from trl_real.rounds.race import RaceSelector
from trl_real.rounds.report import ACTIVE, Arms, race_in_words, write_rounds_report
from trl_real.rounds.selectors import without_labeled


pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = np.random.default_rng(0).normal(size=8)


class Vectors:
    """Encoder of texts that are numbers with a seed."""

    def encode(self, texts):
        return np.stack([np.random.default_rng(int(text)).normal(size=8) for text in texts]).astype(np.float32)


def labelled(n: int, flipped: tuple[str, ...] = (), rounds: int = 3) -> Dataset:
    """Labels of three rules in rounds, by a linear reward, but the other way round for some rules."""
    rows = []
    for i in range(n):
        rule = ("random", "easy@centered", "i_optimal")[i % 3]
        first, second = (float(Vectors().encode([str(2 * i + j)])[0] @ WEIGHTS) for j in (0, 1))
        better = int((first > second) == (rule in flipped))
        texts = [str(2 * i), str(2 * i + 1)]
        rows.append({"prompt": f"p{i}", "chosen": texts[better], "rejected": texts[1 - better],
                     "label_confidence": 1.0, "selected_by": rule, "round": 1 + i * rounds // n})  # fmt: skip
    return Dataset.from_list(rows)


def selector(strategy="0.25random+0.25easy@centered+0.5i_optimal") -> RaceSelector:
    inner = EmbeddingPairSelector(Vectors(), strategy=strategy)
    return RaceSelector(inner, partial(without_labeled, responses="responses"), "responses")


def rows_left(n: int = 60) -> Dataset:
    responses = [[str(10_000 + 2 * i), str(10_001 + 2 * i)] for i in range(n)]
    return Dataset.from_dict({"prompt": [f"q{i}" for i in range(n)], "responses": responses})


def test_a_rule_whose_labels_mislead_is_out_and_gets_no_label():
    race = selector()
    kept = race.select(rows_left(), 20, history=labelled(180, flipped=("easy@centered",)))
    told = race.record.settings["race"]
    assert told["out"] == ["easy@centered"] and told["shares"][1] == 0 and "easy@centered" not in kept["selected_by"]
    assert told["difference"][1][1] > 0 and told["regret"][0] > 0 and told["n_tests"] == 40
    assert kept["selected_by"].count("random") == round(20 * told["shares"][0])
    assert race.record.strategy.count("+") == 1


def test_rules_that_agree_stay_in_the_race():
    race = selector()
    kept = race.select(rows_left(), 20, history=labelled(180))
    assert race.record.settings["race"]["out"] == [] and set(kept["selected_by"]) == set(race_names(race))


def race_names(race: RaceSelector) -> list[str]:
    return [part.name for part in race.parts]


def test_without_a_tested_label_the_shares_are_the_mixtures_own():
    race = selector()
    for history in (None, labelled(30, rounds=1), labelled(30).remove_columns(["selected_by"])):
        race.select(rows_left(), 20, history=history)
        told = race.record.settings["race"]
        assert told["shares"] == [0.25, 0.25, 0.5] and "loss" not in told
        assert race_in_words(told).endswith("no test of the rules yet.")


def test_rows_without_two_responses_do_not_shift_the_rules():
    history = labelled(90)
    broken = Dataset.from_list([{**history[0], "rejected": history[0]["chosen"]}, *history])
    found = []
    for given in (history, broken):
        race = selector()
        race.select(rows_left(), 20, history=given)
        found.append(race.record.settings["race"])
    assert found[0] == found[1]


def test_a_run_races_and_its_page_and_table_say_so(tmp_path):
    model = save_tiny(tmp_path / "model")
    found = active(model, tmp_path, rounds=3, selector="auto", pool=pool(n=30, k=2), budget=8)
    races = [row.get("race") for row in found.rounds]
    assert races[0] is None and all(race["rules"][0] == "random" for race in races[1:])
    assert "loss" not in races[2] and len(races[3]["loss"]) == len(races[3]["rules"])
    for number in (1, 2, 3):
        kept = load_from_disk(str(tmp_path / "run" / f"round-{number:02d}" / "selected"))
        assert len(kept) == 8 and set(kept["selected_by"]) <= set(races[1]["rules"])
    assert active(model, tmp_path, rounds=3, selector="auto", pool=pool(n=30, k=2), budget=8).rounds == found.rounds
    page = write_rounds_report(tmp_path / "page", {"auto": [found.rounds]}).read_text()
    assert "The race of the rules" in page and "regret against random" in page
    told = _table(Arms({"auto": [found.rounds]}, ACTIVE)).splitlines()[-1]
    assert told.startswith("auto, run 0: shares random") and "regret against random" in told
    without = write_rounds_report(tmp_path / "other", {"random": [[{**row, "race": None} for row in found.rounds]]})
    assert "The race of the rules" not in without.read_text()
