"""GET /metrics beside the operator's API: for Prometheus, with a token that opens nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.responses import Response

from fedlora.server.metrics import CONTENT_TYPE, PATH


@dataclass(frozen=True)
class Scrape:
    """text: gives the metrics, see `make_metrics`; called in a thread. token: good for GET of `path` alone."""

    text: Callable[[], bytes]
    token: str
    path: str = PATH

    def add_to(self, app: FastAPI) -> None:
        """Adds the route."""
        app.add_api_route(self.path, self._answer, methods=["GET"], response_model=None)

    def _answer(self) -> Response:
        return Response(self.text(), headers={"Content-Type": CONTENT_TYPE})
