"""Configurations of strangers say plain things, or are refused in a sentence."""

from pathlib import Path

import pytest
import yaml

from gtp_vision.errors import GtpVisionError
from gtp_vision.untrusted import plain_yaml

REFUSED = {
    "aliases": ("a: &x [1]\nb: *x\n", "has an alias"),
    "bomb": ("a: &x [1]\n" + "".join(f"b{i}: [*x, *x]\n" for i in range(9)), "has an alias"),
    "interpolation": ("run_dir: ${oc.env:HOME}\n", "nothing is filled in"),
    "depth": ("a: " + "[" * 50 + "]" * 50, "nested deeper"),
    "size": ("a: " + "x" * (1 << 20), "too large"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_no_configuration_of_ours_has_is_refused(name: str, tmp_path: Path) -> None:
    text, told = REFUSED[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(GtpVisionError, match=told):
        plain_yaml(path)


def test_plain_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: {b: [1, 2.5, null, true]}\n")
    assert plain_yaml(path) == {"a": {"b": [1, 2.5, None, True]}}
    path.write_text("a: !!python/object/apply:os.system [x]\n")
    with pytest.raises(yaml.YAMLError):
        plain_yaml(path)
