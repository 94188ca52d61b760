"""The client app: what every client runs, in every engine.

It is an ordinary `flwr.clientapp.ClientApp`. Between rounds a client keeps, in its Flower `Context`, the tensors it was
sent once and the tensors that are its own (`Delivery.LOCAL`); the model stays in the process's worker.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora.client.kept import keep_once
from fedlora.client.open import answer_openly
from fedlora.client.private import answer_privately, sketch_privately
from fedlora.client.site import SimulatedSite, Site
from fedlora.wire import read_task
from fedlora.wire_start import read_sketch_task


def make_app(site: Site) -> ClientApp:
    """The app of a client at `site`.

    What it raises without DP may tell of the site's files: whoever calls it decides what of that travels.
    """
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        """Trains one client for one round."""
        task = read_task(message.content)
        keep_once(task, context.state)
        answer = answer_privately if task.config.privacy.local else answer_openly
        return Message(answer(task, site, context.state), reply_to=message)

    @made.query()
    def query(message: Message, context: Context) -> Message:
        """Answers what a method asks before round 1: a noised sketch of the client's first gradient."""
        del context
        return Message(sketch_privately(read_sketch_task(message.content), site), reply_to=message)

    return made


app = make_app(SimulatedSite())
"""What virtual clients run, in a simulation and on Flower's own runtime."""
