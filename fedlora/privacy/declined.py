"""What a client says no with. Only the texts of these errors may travel to a server: they hold no path, no count and no
figure of the owner's. All other errors stay on the client's side.
"""

from fedlora.errors import PrivacyError


class DeclinedError(PrivacyError):
    """The client says no, for a reason that may be shown to the server.

    `detail` is for the owner's own log: it may say what is spent and what the limits are.
    """

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail = detail


class CeilingReachedError(DeclinedError):
    """What is asked for would pass one of the owner's limits; nothing was reserved or begun."""


class ParticipationsUsedError(DeclinedError):
    """All rounds that the run had announced have begun."""


class RoundClosedError(DeclinedError):
    """The round ended before this client was ready; of its bytes nothing left."""


class ScheduleChangedError(DeclinedError):
    """The run asks for something else than what it had announced when it was reserved."""


class BytesLostError(DeclinedError):
    """A round was released, and its bytes cannot be sent again: they are gone, damaged, or two rounds older."""
