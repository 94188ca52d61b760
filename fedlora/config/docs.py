"""`docs/configuration.md`, made from the schema, the config groups and the built-in methods.

python -m fedlora.config.docs [FILE]
"""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from fedlora.config.groups import defaults, shipped
from fedlora.config.headers import read_header
from fedlora.config.keys import Key, keys
from fedlora.config.said import GROUPS
from fedlora.config.strategy import option_keys
from fedlora.strategies.base import Strategy
from fedlora.strategies.registry import strategies

_INTRODUCTION = """\
# Configuration

Made by `python -m fedlora.config.docs`; change the schema, not this page.

A run is described by groups, whose options bring several values at once (`strategy=fed_sb`, `data=trec`), and by keys
(`adapter.r=32`). What wins, from the weakest:

1. the schema's defaults and the groups' options,
2. the method's own defaults,
3. an experiment (`experiment=image`),
4. a file (`fedlora simulate --config mine.yaml`),
5. the command line.

A file holds the same keys. A plain text for a group chooses its option; dotted keys go beside it:

```yaml
strategy: fed_sb
data/partition: dirichlet
data.partition.alpha: 0.1
federation:
  clients: 50
  rounds: 20
```

Where the command line chooses an option of a group, what the file says of that group counts no more.
`fedlora validate mine.yaml KEY=VALUE …` reports every mistake at once; `fedlora simulate --cfg job …` prints what comes
out. In a file and in overrides, `${key}` refers to another key's value; a configuration that comes over a network is
never interpreted. Options of your own go in a folder that is laid out like the groups: `--config-dir DIR` with
`DIR/data/mine.yaml` gives `data=mine`. For sweeps, see `fedlora simulate --help`.
"""


def render() -> str:
    """The whole page as Markdown."""
    return "\n".join([_INTRODUCTION, *_group_lines(), *_key_lines(), *_strategy_lines()])


def _group_lines() -> Iterator[str]:
    yield "## Groups\n\nThe default is in bold.\n"
    files = {path: read_header(text).summary for path, text in shipped().items()}
    chosen = defaults()
    for group in GROUPS:
        rows = [(path.rsplit("/", 1)[1], text) for path, text in files.items() if path.rsplit("/", 1)[0] == group]
        rows = rows or [(name, method.summary) for name, method in _built_in().items()]
        marked = [(f"**`{name}`**" if name == chosen[group] else f"`{name}`", text) for name, text in rows]
        yield from [f"### `{group}`\n", *_table(("option", "what it is"), marked), ""]


def _key_lines() -> Iterator[str]:
    yield "## Keys\n\nA key without a default gets its value from a group's option.\n"
    for section, members in groupby(keys().values(), lambda key: key.name.rpartition(".")[0]):
        yield f"### {f'`{section}`' if section else 'The run'}\n"
        yield from [*_key_table(members), ""]


def _strategy_lines() -> Iterator[str]:
    yield "## Methods\n"
    for name, method in _built_in().items():
        yield f"### `strategy={name}`\n\n{method.summary}. {method.paper}.\n"
        yield inspect.cleandoc(method.__doc__ or "") + "\n"
        if method.defaults:
            brings = ", ".join(f"`{key}={value}`" for key, value in method.defaults.items())
            yield f"Brings {brings}.\n"
        options = option_keys(method)
        if options:
            yield from [*_key_table(options.values()), ""]


def _built_in() -> Mapping[str, type[Strategy]]:
    return {name: method for name, method in strategies().items() if method.__module__.startswith("fedlora.")}


def _key_table(members: Iterable[Key]) -> list[str]:
    rows = [(f"`{key.name}`", key.type, _default(key), key.description) for key in members]
    described = any(row[3] for row in rows)
    return (
        _table(("key", "type", "default", "meaning"), rows)
        if described
        else _table(("key", "type", "default"), [row[:3] for row in rows])
    )


def _default(key: Key) -> str:
    return "" if key.default is None else f"`{key.default}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def main(arguments: Sequence[str]) -> None:
    """Writes the page to the file that is named, by default `docs/configuration.md`."""
    Path(arguments[0] if arguments else "docs/configuration.md").write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
