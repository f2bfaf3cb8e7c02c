from dataclasses import dataclass
from typing import Any

import pytest

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.settings import check_settings, choices_of, numbers, setting, settings_of


@dataclass
class Inner:
    share: float = setting(0.5, "a share", low=0, high=1)
    scale: float | None = setting(None, "a scale", above=0)


@dataclass
class Outer:
    mode: str = setting("fast", "a mode", choices=("fast", "slow"))
    widths: list[int] = setting([8, 8], "widths", low=1)
    table: dict[str, Any] = setting({}, "anything")
    inner: Inner = setting(Inner, "more")
    plain: int = 0


def test_settings_are_listed_with_their_keys_and_help() -> None:
    found = {key: (value, declared.metadata.get("help")) for key, value, declared in settings_of(Outer(), "x.")}
    assert found["x.widths"] == ([8, 8], "widths")
    assert list(found) == ["x.mode", "x.widths", "x.table", "x.inner.share", "x.inner.scale", "x.plain"]
    assert Outer().widths is not Outer().widths
    assert choices_of(Outer, "mode") == ("fast", "slow")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Outer(mode="fats"), r"x.mode=fats is unknown: did you mean 'fast'"),
        (Outer(widths=[8, 0]), r"x.widths=\[8, 0\] must be at least 1"),
        (Outer(inner=Inner(share=1.5)), r"x.inner.share=1.5 must be between 0 and 1"),
        (Outer(inner=Inner(scale=0)), r"x.inner.scale=0 must be above 0"),
        (Outer(inner=Inner(scale=float("inf"))), r"x.inner.scale=inf must be finite"),
        (Outer(table={"a": [1, {"b": float("nan")}]}), r"x.table.a.1.b=nan must be finite"),
        (Outer(plain=2**63), r"x.plain .* below 2\^63"),
        (Outer(plain=2**36_000), r"x.plain .* below 2\^63"),
        (Outer(widths=[2**1600]), r"x.widths.0 .* below 2\^63"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_key(config: Outer, message: str) -> None:
    with pytest.raises(GtpVisionError, match=message):
        check_settings(config, "x.")


def test_ends_of_ranges_and_null_are_allowed() -> None:
    check_settings(Outer(plain=2**63 - 1, widths=[1], inner=Inner(share=0, scale=None)))
    check_settings(Outer(inner=Inner(share=1)))
    assert dict(numbers({"a": [True, {"b": 3}], "c": Inner()})) == {"a.1.b": 3, "c.share": 0.5}
