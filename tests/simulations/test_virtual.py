"""The sequential engine keeps Flower's contract: replies in order, errors as answers, a state for each client."""

import time

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid


def make_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order = str(message.content["do"]["order"])
        if order == "fail":
            raise ValueError("boom")
        if order == "sleep":
            time.sleep(0.05)
        seen = context.state.config_records.get("seen", ConfigRecord({"times": 0}))
        seen["times"] = int(str(seen["times"])) + 1
        context.state["seen"] = seen
        content = ConfigRecord({"partition": context.node_config["partition-id"], "times": seen["times"]})
        return Message(RecordDict({"done": content}), reply_to=message)

    return app


def order(node: int, text: str) -> Message:
    return Message(RecordDict({"do": ConfigRecord({"order": text})}), node, MessageType.TRAIN)


def test_replies_come_in_the_order_of_the_messages_from_the_nodes_that_were_asked() -> None:
    grid = VirtualGrid(InProcess(Clients(make_app())), 3)
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive([order(nodes[2], "go"), order(nodes[0], "go")]))
    assert [reply.content["done"]["partition"] for reply in replies] == [2, 0]
    assert [reply.metadata.src_node_id for reply in replies] == [nodes[2], nodes[0]]


def test_a_client_that_raises_answers_with_an_error_and_the_others_go_on() -> None:
    grid = VirtualGrid(InProcess(Clients(make_app())), 2)
    nodes = list(grid.get_node_ids())
    bad, good = grid.send_and_receive([order(nodes[0], "fail"), order(nodes[1], "go")])
    assert bad.has_error()
    assert "boom" in bad.error.reason
    assert good.has_content()


def test_a_clients_state_lasts_and_is_its_own() -> None:
    grid = VirtualGrid(InProcess(Clients(make_app())), 2)
    first, second = grid.get_node_ids()
    times = [
        next(iter(grid.send_and_receive([order(n, "go")]))).content["done"]["times"] for n in (first, first, second)
    ]
    assert times == [1, 2, 1]


def test_what_was_not_begun_before_the_deadline_gets_no_reply() -> None:
    grid = VirtualGrid(InProcess(Clients(make_app())), 3)
    replies = list(grid.send_and_receive([order(node, "sleep") for node in grid.get_node_ids()], timeout=0.02))
    assert len(replies) == 1


def test_pulled_replies_are_gone() -> None:
    grid = VirtualGrid(InProcess(Clients(make_app())), 1)
    ids = list(grid.push_messages([order(node, "go") for node in grid.get_node_ids()]))
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []


def test_what_clients_keep_can_be_read_and_put_back() -> None:
    grid = VirtualGrid(InProcess(Clients(make_app())), 3)
    grid.state_of(1)["mine"] = ArrayRecord()
    assert set(grid.kept("mine")) == {1}
