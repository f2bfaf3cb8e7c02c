import time

from gtp_vision.core.timing import Work, median_ms


def test_works_take_turns_and_untimed_calls_do_not_count() -> None:
    calls: list[str] = []
    inputs = iter(range(100))
    works = {
        "a": Work(lambda x: calls.append(f"a{x}"), lambda: next(inputs), untimed=1, timed=2),
        "b": Work(lambda _: calls.append("b")),
        "slow": Work(lambda _: (calls.append("slow"), time.sleep(0.01)), units=10),
    }
    ms = median_ms(works, 3, max_seconds=0.015)
    turn = ["a0", "a1", "a2", "b", "slow"]
    assert calls[:5] == turn
    assert calls.count("b") == 4, "one round warms up"
    assert calls.count("slow") == 3, "it sits out the last round"
    assert ms["slow"] >= 1, "a tenth of 10 ms"
