"""Work prepared by a thread: in order, one item ahead, and its errors are the caller's."""

import threading

import pytest

from trl_real.runtime.ahead import ahead


def test_the_next_item_is_made_while_the_caller_works_on_the_last():
    made, second = [], threading.Event()

    def make(item):
        made.append((item, threading.current_thread().name))
        if item == 1:
            second.set()
        return 10 * item

    found = ahead(make, range(4))
    assert next(found) == 0 and second.wait(10) and len(made) <= 2
    assert list(found) == [10, 20, 30]
    assert [item for item, _ in made] == [0, 1, 2, 3] and all("ahead" in name for _, name in made)


def test_errors_are_raised_at_their_place():
    found = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_nothing_is_made_after_the_caller_stops():
    made = []
    found = ahead(made.append, range(100))
    next(found)
    found.close()
    assert len(made) <= 2 and not [t for t in threading.enumerate() if "ahead" in t.name]
    assert list(ahead(str, [])) == []
