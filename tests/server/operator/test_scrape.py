"""GET /metrics over real TLS: with its own token or the operator's, and what its own token does not open."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedlora.errors import StoreError
from fedlora.identity.registry import Registry
from fedlora.link.host import LinkHost
from fedlora.server.metrics import TOKEN
from fedlora.server.metrics.live import scrape_of
from fedlora.server.operator.scrape import Scrape
from fedlora.server.operator.token import make_token
from fedlora.server.store import RunStore
from tests.server.operator.living import Living, living

READER = "r" * 43
CALLS = (
    *(("POST", path) for path in ("/metrics", "/api/v1/runs", "/api/v1/runs/x/stop")),
    *(("GET", path) for path in ("/", "/metrics/", "//metrics", "/metrics/x", "/Metrics", "/api/v1/runs")),
    *((method, "/metrics") for method in ("HEAD", "PUT", "DELETE", "OPTIONS")),
)


def broken() -> bytes:
    raise StoreError("the disk is away")


@pytest.fixture
def scraped(tmp_path: Path, authority: Path) -> Iterator[Living]:
    metrics = Scrape(lambda: b"fedlora_runs 1\n", READER)
    with living(tmp_path / "home", authority, drive=False, metrics=metrics) as found:
        yield found


def test_both_tokens_read_it_and_nobody_else_does(scraped: Living) -> None:
    for token in (READER, scraped.token):
        with scraped.http(token) as http:
            response = http.get("/metrics")
        assert (response.status_code, response.text) == (200, "fedlora_runs 1\n")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for token in ("", "x" * 43, READER[:-1], READER + "r"):
        with scraped.http(token) as http:
            assert http.get("/metrics").status_code == 401


def test_the_scrape_token_opens_nothing_else(scraped: Living) -> None:
    with scraped.http(READER) as http:
        codes = {(method, path): http.request(method, path).status_code for method, path in CALLS}
    assert set(codes.values()) <= {401, 429}, codes
    assert list(codes.values()).count(401) == 10  # then the rest is not looked at any more


def test_a_scrape_token_in_another_form_is_none(scraped: Living) -> None:
    for given in (f"Basic {READER}", READER, f"Bearer {READER} {READER}"):
        with scraped.http("", headers={"Authorization": given}) as http:
            assert http.get("/metrics").status_code == 401


def test_a_store_that_cannot_be_read_is_a_failed_scrape(tmp_path: Path, authority: Path) -> None:
    with (
        living(tmp_path / "home", authority, drive=False, metrics=Scrape(broken, READER)) as found,
        found.http(READER) as http,
    ):
        response = http.get("/metrics")
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the disk is away"


def test_without_metrics_there_is_nothing(alive: Living) -> None:
    with alive.http() as http:
        assert http.get("/metrics").status_code == 404


def test_a_server_makes_a_token_and_tells_of_its_link(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "runs") as store, LinkHost() as host:
        registry = Registry(store.database)
        registry.invite("ward-1")
        scrape = scrape_of(tmp_path, store, registry, host)
        text = scrape.text().decode()
    assert (tmp_path / TOKEN).stat().st_mode & 0o777 == 0o600
    assert scrape.token == make_token(tmp_path / TOKEN) != make_token(tmp_path / "operator.token")
    samples = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert samples["fedlora_clients", "invited"] == 1
    assert samples["fedlora_link_connected_clients",] == samples["fedlora_link_open_works",] == 0
