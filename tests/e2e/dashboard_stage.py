"""What the tests of the dashboard do behind the browser's back, and how they read its pages."""

import io
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page

from fedlora.server.operator.client import OperatorClient
from tests.e2e.federation import Federation

LONG = 5000
"""Rounds of a run that does not end by itself while it is looked at."""

RED = (0xD1, 0x49, 0x5B)
"""The colour of lost clients."""

LOADED = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=3).eval()
asked = {"input_ids": torch.tensor([[2, 5, 7, 9]])}
with torch.no_grad():
    before = base(**asked).logits
    found = PeftModel.from_pretrained(base, sys.argv[2]).eval()
    moved = (found(**asked).logits - before).abs().max().item()
weights = sum(part.abs().sum().item() for name, part in found.named_parameters() if "lora_B" in name)
print(json.dumps([moved, weights, "fedlora" in sys.modules]))
"""
"""A program that loads an adapter (its second argument) over a base (its first) without fedlora."""


@dataclass
class Stage:
    """A server with its clients, and what is asked of it behind the browser's back."""

    federation: Federation
    operator: OperatorClient
    base: str
    token: str

    def submit(self, *overrides: str) -> str:
        """Queues the experiment; returns the run's id."""
        sites = ",".join(f"site-{number}" for number in range(self.federation.sites))
        asked = self.federation.experiment(f"federation.sites=[{sites}]", *overrides)
        return str(self.operator.submit(secrets.token_hex(8), asked, None)["id"])

    def shown(self, run: str) -> Mapping[str, Any]:
        """The run as the server has it."""
        return self.operator.shown(run)

    def rounds(self, run: str) -> int:
        """How many are committed."""
        return int(self.shown(run)["run"]["rounds_done"])

    def wait(self, run: str, *status: str) -> None:
        """Until the run is in one of those states; `finished` if none is named."""
        wanted = status or ("finished",)
        self.federation.until(lambda: self.shown(run)["run"]["status"] in (*wanted, "failed"))
        found = self.shown(run)["run"]
        assert found["status"] in wanted, f"{found}{self.federation.logs()}"

    @contextmanager
    def running(self, *overrides: str) -> Iterator[str]:
        """A run that goes on for the block, or until it is stopped there."""
        run = self.submit(f"federation.rounds={LONG}", *overrides)
        try:
            yield run
        finally:
            self.end(run)

    def end(self, run: str) -> None:
        """Stops a run if it goes on; the next one's turn has come then."""
        if self.shown(run)["run"]["status"] in ("queued", "running"):
            self.operator.stop(run)
        self.wait(run, "stopped", "finished")

    def until_connected(self, *names: str) -> None:
        """Until those clients are."""
        self.federation.until(
            lambda: {one["name"] for one in self.operator.clients() if one["connected"]} >= set(names)
        )

    def events(self, run: str) -> list[tuple[int, int, str]]:
        """What the log says of clients, oldest first: round, number, outcome."""
        log = (self.federation.home / "runs" / run / "events.jsonl").read_text().splitlines()
        lines = [event for event in map(json.loads, log) if event.get("row")]
        return [(event["round"], event["row"]["client"], event["row"]["outcome"]) for event in lines]


def round_shown(page: Page) -> int:
    """The round in the head of a run's page."""
    return int(page.locator("#facts dd").first.inner_text().split(" of ")[0].replace(",", ""))


def click_and_confirm(page: Page, button: str, confirm: str) -> None:
    """A button, and the one that confirms it."""
    page.get_by_role("button", name=button, exact=True).first.click()
    page.get_by_role("dialog").get_by_role("button", name=confirm).click()


def red(page: Page) -> int:
    """How many pixels of the matrix have the colour of lost clients."""
    with Image.open(io.BytesIO(page.locator("#matrix").screenshot())) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24) or []
    return sum(count for count, colour in colours if colour == RED)


def saved(page: Page, link: str, folder: Path) -> Path:
    """The file that a link gives."""
    with page.expect_download() as told:
        page.get_by_role("link", name=link, exact=True).click()
    path = folder / told.value.suggested_filename
    told.value.save_as(path)
    return path


def events_shown(page: Page) -> list[tuple[int, int, str]]:
    """What the page's list says of clients, oldest first: round, number, outcome."""
    lines = page.locator("#event-list li").evaluate_all(
        "lines => lines.filter((line) => line.querySelector('time'))"
        ".map((line) => [...line.children].slice(1, 4).map((part) => part.textContent))"
    )
    return [(int(turn.split()[1]), int(name.removeprefix("site-")), outcome) for turn, name, outcome in reversed(lines)]


def streamed(page: Page) -> list[str]:
    """What the page's stream of events tells from now on."""
    told: list[str] = []
    wire = page.context.new_cdp_session(page)
    wire.send("Network.enable")
    wire.on("Network.eventSourceMessageReceived", lambda message: told.append(json.dumps(message)))
    return told


def lines_of(told: list[str]) -> list[str]:
    """The lines of the run's log, of clients, among a stream's messages."""
    found = [message["data"] for message in map(json.loads, told) if message["eventName"] == "line"]
    return [line for line in found if json.loads(line).get("row")]


def tab_to(page: Page, selector: str, most: int = 120) -> None:
    """Presses Tab until the focus is on the element."""
    for _ in range(most):
        if page.evaluate("wanted => document.activeElement?.matches(wanted)", selector):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{most} times Tab do not lead to {selector}")
