"""The interface of the command line's verbs, and their registry."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gtp_vision.core.registry import Registry

Options = Callable[[argparse.ArgumentParser], object]
Run = Callable[[argparse.Namespace, list[str]], int]


@dataclass(frozen=True)
class Verb:
    """A verb that the registry finds at the top of a file.

    Attributes:
        name: `train`, or `bench step` for a part of the verb `bench`.
        help: one line.
        options: adds the options to the verb's parser.
        run: (arguments, overrides) to the exit status; imports what it needs. None for a verb that only has parts.
        order: place in the help text.
        description: of `gtp-vision NAME --help`; `help` if empty.
        has_overrides: whether Hydra's `key=value` may follow.
    """

    name: str
    help: str
    options: Options = lambda parser: None
    run: Run | None = None
    order: int = 100
    description: str = ""
    has_overrides: bool = False


VERBS: Registry[Verb] = Registry("gtp_vision.cli", "gtp_vision.verbs", Verb)


def at_least(low: int) -> Callable[[str], int]:
    """An argparse type: whole numbers from `low` on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' must be a whole number") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} must be at least {low}")
        return value

    return number


def words(text: str) -> list[str]:
    """An argparse type: words with commas between."""
    return [word for word in text.split(",") if word]


def measurement(name: str, function: str, help: str, options: Options, given: Sequence[str], order: int) -> Verb:
    """A verb that prints what `function` (`module:name`) returns, as `table` of its module or with --json as JSON.

    `given` are the arguments that the function takes, besides `progress`.
    """

    def options_and_json(parser: argparse.ArgumentParser) -> None:
        options(parser)
        parser.add_argument("--json", action="store_true", help="print JSON instead of a table")

    def run(arguments: argparse.Namespace, _: list[str]) -> int:
        module_name, function_name = function.split(":")
        module = importlib.import_module(module_name)
        keywords = {key: getattr(arguments, key) for key in given}
        results = getattr(module, function_name)(**keywords, progress=not arguments.json)
        if arguments.json:
            print(json.dumps(results))
            return 0
        table = module.table(results)
        lines = table.splitlines() if isinstance(table, str) else list(table)
        if "figure" in results and (figure := f"figure: {results['figure']}") not in lines:
            lines.append(figure)
        print("\n".join(lines))
        return 0

    return Verb(name, help, options_and_json, run, order)
