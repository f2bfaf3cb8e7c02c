"""Texts on the command line mean what they say, whatever Hydra's grammar would read; the rest is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gtp_vision.config.compose import from_command_line, from_run, to_yaml
from gtp_vision.config.overrides import addable, parsed, quoted, repeated
from gtp_vision.core.errors import GtpVisionError

TEXTS = {
    "home": "~/x.h5",
    "a home of nobody": "~x.h5",
    "beyond ASCII": "über/中文 データ.h5",
    "decomposed": "e\u0301.h5",
    "shell": "a&b!|;#<>?*^`$HOME%@.h5",
    "quotes": "it's \"x.h5",
    "brackets": "a(1)[2]{3}.h5",
    "assignment": "a=b:c.h5",
    "backslash": "C:\\d\\",
    "spaces": " day  1 ",
    "no-break space": "a\u00a0b",
    "newline": "a\n\tb.h5",
    "dash": "--resume",
    "long": "x" * 300,
    **{word: word for word in ("10", "007", "1e3", "1_000", "0x10", "1:30", "true", "Off", "nan", "-inf", "~", ".")},
    **{word: word for word in ("- a", "a: b", "# a", "!!int 3", "&a", "*a", "@a", "%a")},  # YAML's signs
}


def read(override: str) -> Any:
    ((_, value),) = parsed([override])
    return value


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_is_read_as_it_stands_alone_in_a_list_and_in_a_sweep(text: str) -> None:
    assert read(f"task.dataset={text}") == text
    assert read(quoted("task.dataset", text)) == text
    if not set(text) & set("[]{}'\"\\"):
        assert read(f"task.datasets=[{text},x]") == [text.strip(), "x"]
        sweep = OverridesParser.create().parse_override(addable(f"task.dataset={text},x"))
        assert [read(f"task.dataset={value}") for value in sweep.sweep_string_iterator()] == [text.strip(), "x"]
    assert read(addable(f"task.dataset={text}")) == text, "as a job of a sweep"


def test_a_text_is_stored_in_a_run_as_it_stands(tmp_path: Path) -> None:
    config = from_command_line(["task=demo"])
    config = replace(config, task=replace(config.task, observations=list(TEXTS.values())))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_run(tmp_path) == config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("task.dataset=null", None),
        ("task.dataset='a,b'", "a,b"),
        ('task.dataset="~/a(b)"', "~/a(b)"),
        ("task.dataset=a\\,b", "a,b"),  # Hydra's own way
        ("task.name=a${seed}(b)", "a${seed}(b)"),
        ("task.datasets=['a,b',\"c d\"]", ["a,b", "c d"]),
        ("task.observations=[007,1e3]", ["007", "1e3"]),
        ("task.observations=null", None),
        ("training.steps=1e3", 1000.0),
        ("encoder.cameras.über kopf.crop=[3,4]", [3, 4]),
    ],
)
def test_what_hydra_reads_as_it_is_meant_stays(override: str, value: Any) -> None:
    assert read(override) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.dataset=a,b.h5", ("is for sweeps: add -m", "'task.dataset=\"a,b.h5\"'")),
        ("task.dataset=range(1,3)", ("is for sweeps", "'task.dataset=\"range(1,3)\"'")),
        ("task.dataset=[a,b]", ("not the one text that task.dataset takes", "'task.dataset=\"[a,b]\"'")),
        ("task.dataset={a:1}", ("not the one text",)),
        ("task.name=null", ("not the one text that task.name takes",)),
        ("task.datasets=[a[1].h5]", ("cannot be read as list[str]", '["one text","another"]\'')),
        ("training.steps=2&", ("'training.steps=2&' cannot be read as int",)),
        ("agent.policy.hidden=[1,", ("cannot be read as list[int]",)),
        ("task.dataset=", ("task.dataset is empty (an unset variable?)",)),
        ("run_dir=''", ("run_dir is empty",)),
        ("training.steps=", ("training.steps is empty",)),
        ("seed=1,2", ("is for sweeps: add -m",)),
        ("hydra.job.chdir=true", ("is for sweeps: add -m",)),
    ],
)
def test_what_is_not_a_value_is_refused_with_how_to_write_it(override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(GtpVisionError) as error:
        read(override)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("override", ["training.steps=1,(2", "encoder.cameras.über kopf.size=[8,8]"])
def test_a_sweep_that_hydra_cannot_read_is_refused(override: str) -> None:
    with pytest.raises(GtpVisionError, match="cannot be read as"):
        addable(override)


def test_keys_that_no_preset_holds_are_added_in_sweeps() -> None:
    assert addable("agent.improvement.eta=1,2") == "++agent.improvement.eta=1,2"
    assert addable("seed=1,2") == "seed=1,2"
    assert addable("task.name=choice(a,b)") == "task.name=choice(a,b)"
    assert addable("task.filter=train,null") == 'task.filter="train",null'


def test_a_key_that_is_given_other_values_is_named() -> None:
    assert list(repeated(["seed=1", "task=a", "+seed=2", "task=a"])) == [
        "seed is given 2 times; the last one counts: 2"
    ]


def test_paths_of_a_run_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(Path.home())
    settings = ["task=own", "run_dir=~/r", "data_dir=~/d", "task.observations=[a]", "encoder.weights=w.pt"]
    monkeypatch.chdir(tmp_path)
    config = from_command_line([*settings, "task.dataset=../x.h5"])
    assert (config.run_dir, config.data_dir) == (f"{home}/r", "~/d")
    assert (config.task.dataset, config.encoder.weights) == (f"{tmp_path}/../x.h5", f"{tmp_path}/w.pt")
    assert from_command_line([*settings, "task.datasets=[demo,a/,~/b]"]).task.datasets == [
        "demo",
        f"{tmp_path}/a",
        "~/b",
    ]
