from pathlib import Path

import pytest
import yaml

from gtp_vision.core.errors import GtpVisionError
from gtp_vision.core.safe_yaml import plain_yaml


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("a: &x [1]\nb: *x\n", "has an alias", id="alias"),
        pytest.param("a: &x [1]\n" + "".join(f"b{i}: [*x, *x]\n" for i in range(9)), "has an alias", id="bomb"),
        pytest.param("run_dir: ${oc.env:HOME}\n", "is not filled in", id="interpolation"),
        pytest.param("a: " + "[" * 50 + "]" * 50, "nested deeper", id="depth"),
        pytest.param("a: " + "x" * (1 << 20), "too large", id="size"),
    ],
)
def test_what_the_package_never_writes_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(GtpVisionError, match=words):
        plain_yaml(path)


def test_plain_values_are_read_and_objects_are_not(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: {b: [1, 2.5, null, true]}\n")
    assert plain_yaml(path) == {"a": {"b": [1, 2.5, None, True]}}
    path.write_text("a: !!python/object/apply:os.system [x]\n")
    with pytest.raises(yaml.YAMLError):
        plain_yaml(path)
