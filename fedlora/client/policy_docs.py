"""`docs/site-policy.md`, made from the policy's schema and template.

python -m fedlora.client.policy_docs [FILE]
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from fedlora.client.home import policy_template
from fedlora.client.policy import policy_keys
from fedlora.config.keys import Key

_INTRODUCTION = """\
# The site policy

Made by `python -m fedlora.client.policy_docs`; change the schema, not this page.

A data owner's client does what `policy.yaml` in its home folder allows, and nothing else. Whatever a server asks, the
policy wins: a run that asks for more is declined, with a sentence that names the key and both values. That sentence
reaches the server, and of the rest of this file what [`tells`](#what-the-server-is-told) names.

```
fedlora client init site        # a home folder with a policy that allows nothing yet
fedlora client policy           # checks the file and says in words what it allows
fedlora client waiting          # runs that wait for your approval, and what they ask
fedlora client approve RUN
fedlora client sent             # every message that left
fedlora client pause --reason "backup until noon"
```

- The file is YAML and holds data only. All mistakes are reported at once, each with its line. A key that is not known,
  or stands twice, is a mistake; references (`&`, `*`) are refused, so that what you read is what holds.
- Local paths are relative to the file's folder. They are never told to a server.
- The names under `models` and `data` are those that runs use (`model.name`, `data.name`). A run that names others is
  declined.
- How much all runs together may spend is not here but in the ledger: `fedlora ledger create site/ledgers/BUDGET …`,
  where no file that is edited by mistake can raise it unseen.
- Two reasons are temporary, and the client waits: `hours`, and a run that you have not approved. All others are final
  for the run.
- An approval is for what was shown. If the run later asks for something else, it waits again.

## What the server is told

Each time the client connects it says the following, and no more. The server shows it to its operator and to those with
a login to its dashboard; it keeps it in memory only (the version apart), checks none of it, and decides nothing by it.

| what | when | exactly |
| --- | --- | --- |
| protocol, version | always | of the fedlora package, and the kinds of work that it can do |
| instance | always | a random text, new at each start: a second daemon with the same certificate is noticed |
| state | always, and while connected | whether you paused it and your reason; the work in hand: kind, run, round |
| data sets | `tells` has `data` | names, `nominal_size`, and of each entry here an HMAC under `fingerprint.key` |
| policy | `tells` has `policy` | names of models, `tasks`, `strategies`, `privacy.require`, `privacy.epsilon_run`, \
`privacy.delta`, `rounds_max`, `steps_max`, `batch_max`, `hours`, `approval`; of long lists the first eight |
| device | `tells` has `device` | cores, memory in GiB, and the GPU's name, e.g. `2 CPU cores, 24 GiB, no GPU` |

- Not in it: paths, columns, labels, digests, units, `servers`, `limits`, the ledgers and what is left in them.
- By default data sets and policy are told: refusals would say it too (but for `nominal_size`, which is told only if you
  give one), and a server that knows before need not ask in vain. The device is not told by default: no refusal names
  it, so you say yes to it yourself (`tells: [data, policy, device]`).
- `tells: []` tells none of the three. Refusals still give their reasons.
- `fedlora client status` shows what the server was told at the last connection (`told`), and what the file as it is now
  lets the client tell at the next one (`tells`); `fedlora client dry-run` shows the latter too. The site's log has a
  line whenever it changes. A changed `tells` is heard at the next connection: restart the client to have it at once.
- `sent.jsonl` is the record of answers: what is said here is not in it.

## What a new home has

```yaml
"""

_KEYS = """\
## Keys

`NAME` stands for the name of a model or data set. A key without a default has to be given.
"""

_TITLES = {
    "": "The site",
    "models.NAME": "`models.NAME`: a base model",
    "data.NAME": "`data.NAME`: a data set",
    "data.NAME.columns": "`data.NAME.columns`: its columns",
}

_HOME = """\
## What is in a home

The folder has the mode 0700: nobody else gets at what is in it. One daemon at a time has it, and a second one is told
which.

| file | what it is |
| --- | --- |
| `policy.yaml` | this policy |
| `identity/` | `client.key` (never leaves), `client.crt`, `ca.crt`, `server.json` (the address that was joined) |
| `ledgers/BUDGET/` | what was spent: one ledger for each budget that the policy names |
| `state/` | what the client keeps between rounds |
| `sent.jsonl` | every message that left, noted before it did; each line has the SHA-256 of the line before |
| `sent.head.json` | how many lines `sent.jsonl` has, and the SHA-256 of the newest: keep and copy both together |
| `log/` | the site's log; it never travels. `fedlora client bundle` writes a copy without what may tell of rows |
| `controls/` | pauses, approvals, and runs that wait for one |
| `status.json` | what the daemon says of itself |
| `results/` | exact results, for the owner's eyes alone |
| `fingerprint.key` | a secret: fingerprints of data sets under it cannot be guessed from outside |
"""


def render() -> str:
    """The whole page as Markdown."""
    return "\n".join([_INTRODUCTION + policy_template() + "```\n", _KEYS, *_sections(), _HOME])


def _sections() -> Iterator[str]:
    keys = [key for key in policy_keys().values() if key.name not in ("models", "data")]
    ordered = sorted(keys, key=lambda key: list(_order(keys)).index(_section(key)))
    for section, members in groupby(ordered, _section):
        yield f"### {_TITLES.get(section, f'`{section}`')}\n"
        yield from [*_table(members), ""]


def _order(keys: Sequence[Key]) -> dict[str, None]:
    """The sections, each once, as they come first."""
    return dict.fromkeys(map(_section, keys))


def _section(key: Key) -> str:
    return key.name.rpartition(".")[0]


def _table(members: Iterable[Key]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key in members:
        default = "" if key.default is None else f"`{key.default}`"
        cells = (f"`{key.name}`", key.type, default, key.description)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main(arguments: Sequence[str]) -> None:
    """Writes the page to the file that is named, by default `docs/site-policy.md`."""
    Path(arguments[0] if arguments else "docs/site-policy.md").write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
