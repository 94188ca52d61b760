"""A ServerApp that asks all nodes for nothing, round after round, and a ClientApp that answers at once."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()

Ask = Callable[[list[Message]], Iterable[Message]]


@client.train()
def answer(message: Message, context: Context) -> Message:
    """The tensor comes back as it is."""
    del context
    record = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(record), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Writes the seconds of each round, after one that does not count, to the file `out`.

    poll: seconds between looks for answers; 0: Flower's own `send_and_receive`.
    """
    asked = context.run_config
    nodes = _nodes(grid, int(asked["clients"]))
    ask = _polling(grid, float(asked["poll"])) if float(asked["poll"]) else grid.send_and_receive
    tensor = np.zeros(int(asked["payload"]) // 4, np.float32)
    taken = [_round(ask, nodes, tensor, number) for number in range(int(asked["rounds"]) + 1)]
    Path(str(asked["out"])).write_text(json.dumps(taken[1:]))


def _nodes(grid: Grid, count: int) -> list[int]:
    while len(found := list(grid.get_node_ids())) < count:
        time.sleep(0.1)
    return found


def _round(ask: Ask, nodes: list[int], tensor: np.ndarray, number: int) -> float:  # type: ignore[type-arg]
    arrays, task = ArrayRecord({"head": Array(tensor + number)}), ConfigRecord({"round": number})
    content = RecordDict({"arrays": arrays, "task": task})
    messages = [Message(content, node, MessageType.TRAIN, group_id=str(number)) for node in nodes]
    began = time.perf_counter()
    replies = list(ask(messages))
    seconds = time.perf_counter() - began
    if len(replies) != len(nodes) or any(reply.has_error() for reply in replies):
        raise RuntimeError(f"round {number}: {[reply.error for reply in replies if reply.has_error()]}")
    return seconds


def _polling(grid: Grid, seconds: float) -> Ask:
    """As Flower's `send_and_receive`, which sleeps 3 s between two looks."""

    def ask(messages: list[Message]) -> Iterable[Message]:
        waiting, replies = set(grid.push_messages(messages)), []
        while True:
            found = list(grid.pull_messages(waiting))
            replies += found
            waiting -= {message.metadata.reply_to_message_id for message in found}
            if not waiting:
                return replies
            time.sleep(seconds)

    return ask
