"""Configurations of strangers say plain things, or are refused in a sentence."""

from pathlib import Path

import pytest
import yaml

from gtp_vision.config.schema import from_command_line, from_run, to_yaml
from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.safe_yaml import plain_yaml, whole_numbers
from gtp_vision.training.build import build

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


@pytest.mark.parametrize("digits", ["9" * 30, "f" * 400, "f" * 9000])
def test_numbers_beyond_all_measure_are_refused(digits: str, tmp_path: Path) -> None:
    text = to_yaml(from_command_line(["task=demo", "seed=7", "training.batch_size=77"]))
    assert text.startswith("seed: 7\n")
    for name in ("seed: 7\n", "batch_size: 77\n"):
        assert name in text
        (tmp_path / "config.yaml").write_text(text.replace(name, f"{name.partition(':')[0]}: 0x{digits}\n"))
        with pytest.raises(GtpVisionError, match=r"give one below 2\^63"):
            from_run(tmp_path)


def test_numbers_are_found_in_lists_and_maps() -> None:
    config = from_command_line(["task=demo", "agent.policy.hidden=[31, 32]"])
    found = dict(whole_numbers(config))
    assert (found["agent.policy.hidden.0"], found["agent.policy.hidden.1"]) == (31, 32)
    assert found["seed"] == 0
    assert dict(whole_numbers({"a": [True, {"b": 3}]})) == {"a.1.b": 3}


@pytest.mark.parametrize("width", [10**6, 10**12])
def test_networks_that_no_memory_holds_are_refused_before_they_are_made(width: int) -> None:
    config = from_command_line(["task=demo", "agent=gtp", f"agent.policy.hidden=[{width},{width}]"])
    with pytest.raises(GtpVisionError, match=r"the networks would take .* GB, and .* GB are free"):
        build(config)
