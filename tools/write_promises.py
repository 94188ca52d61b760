"""Writes the table of combinations into docs/privacy.md: `python tools/write_promises.py`."""

from pathlib import Path

from fedlora.privacy.promises import table

PAGE = Path("docs/privacy.md")
BEGIN, END = "<!-- promises -->\n", "<!-- /promises -->\n"


def rendered(page: str) -> str:
    """`page` with the table as the code has it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["| combination | carries | because |", "|---|---|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in table()]
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
