"""The limit of what a judge may cost: what fits, what waits, and what counts once."""

import threading

import pytest

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import AnswerCache
from trl_real.labeling.chat.claims import Ledger
from trl_real.labeling.chat.purse import Bill, Price, Purse


PRICE = (10.0, 20.0)  # a million tokens
ONE = 100_000, 50_000  # tokens that cost 2


def with_ledger(folder, max_cost):
    return Purse(PRICE, max_cost, lambda: Ledger(AnswerCache(folder / "a.sqlite"), 60.0, "job"))


def fits(purse, *tokens) -> bool:
    try:
        with purse.reserving(*tokens):
            return True
    except TrlRealError:
        return False


def test_tokens_read_and_generated_have_their_own_price():
    assert Price(*PRICE).of(1_000_000, 0) == 10.0 and Price(*PRICE).of(0, 1_000_000) == 20.0
    assert Price(*PRICE).of(*ONE) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["alone", "shared"])
def test_a_question_fits_up_to_the_limit_itself(kind, tmp_path):
    purse = Purse(PRICE, 4.0) if kind == "alone" else with_ledger(tmp_path, 4.0)
    bill = Bill()
    assert fits(purse, *ONE) and purse.spent == 0.0, "what is reserved is free again"
    purse.pay(bill, *ONE)
    assert (purse.spent, bill) == (pytest.approx(2.0), Bill(*ONE, pytest.approx(2.0)))
    assert purse.affords(*ONE) and fits(purse, *ONE)
    assert not purse.affords(ONE[0] + 100, ONE[1]) and not fits(purse, ONE[0] + 100, ONE[1])
    purse.pay(bill, *ONE)
    assert bill.input_tokens == 2 * ONE[0] and bill.output_tokens == 2 * ONE[1] and bill.cost == pytest.approx(4.0)
    with pytest.raises(TrlRealError, match="would exceed max_cost=4: 4 are spent"), purse.reserving(100, 0):
        pass
    assert fits(purse, 0, 0)


@pytest.mark.parametrize("kind", ["alone", "shared"])
def test_questions_in_flight_count_and_those_that_may_not_fit_wait_for_them(kind, tmp_path):
    purse = Purse(PRICE, 3.0) if kind == "alone" else with_ledger(tmp_path, 3.0)
    entered, done = threading.Event(), []

    def second():
        entered.set()
        done.append(fits(purse, *ONE))

    with purse.reserving(*ONE):
        assert not purse.affords(*ONE) and purse.affords(50_000, 25_000)
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait()
        thread.join(0.1)
        assert not done, "it waits: the first may cost nothing in the end"
    thread.join(5)
    assert done == [True]


def test_without_a_limit_everything_fits_and_no_ledger_is_opened(tmp_path):
    purse = Purse(PRICE, None, lambda: pytest.fail("a ledger for nothing"))
    purse.pay(Bill(), *ONE)
    assert purse.spent == pytest.approx(2.0) and purse.affords(10**12, 10**12) and fits(purse, 10**12, 10**12)
    assert purse.mark() == {}
    free = Purse(None, None)
    free.pay(Bill(), *ONE)
    assert free.spent == 0.0


def test_a_kept_answer_counts_once_and_only_if_it_is_not_in_the_ledger(tmp_path):
    alone = Purse(PRICE, 9.0)
    for _ in range(2):
        alone.count("key", 1.5)
    alone.count("other", 0.5)
    assert alone.spent == pytest.approx(2.0)
    shared = with_ledger(tmp_path, 9.0)
    assert shared.mark() == {"paid_at": 0.0} and shared.spent == 0.0
    shared.count("old", 1.0, 0.0)
    assert shared.spent == pytest.approx(1.0), "paid before any of these processes began"
    shared.pay(Bill(), *ONE)
    shared.count("new", 2.0, **shared.mark())
    assert shared.mark()["paid_at"] == pytest.approx(2.0)
    assert shared.spent == pytest.approx(3.0), "in the ledger already"


@pytest.mark.parametrize(
    ("price", "max_cost", "words"),
    [((1.0,), None, "give the prices"), ((-1.0, 1.0), None, "give the prices"), (None, 1.0, "max_cost needs")],
)
def test_impossible_prices_are_refused(price, max_cost, words):
    with pytest.raises(TrlRealError, match=words):
        Purse(price, max_cost)
