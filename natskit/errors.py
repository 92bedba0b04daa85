"""The one tree of errors: every error a user can meet says the value, where it came from, and the fix."""


class NatskitError(Exception):
    """Root of natskit's errors. The message is one line, fit to be shown to a user, and free of secrets."""


class SettingsError(NatskitError):
    """A setting is unknown, malformed or inconsistent with another one."""


class IdentityError(NatskitError):
    """The identity directory is missing, incomplete, readable by others, or inconsistent."""


class ClaimsError(NatskitError):
    """A JWT is malformed, tampered with, expired, or signed by a key that may not sign it."""


class TemplateError(NatskitError):
    """A template is unknown or asks for a setting that was not given."""


class ConnectionLostError(NatskitError):
    """A server, hub or project did not answer in time, or went away in the middle of an answer."""


class AbsentError(ConnectionLostError):
    """Nobody listens: a request was taken by nobody, and so may be sent again whatever it asks."""


class AnswerLostError(ConnectionLostError):
    """The connection was lost between a request and its answer: what was asked may have been done, or not."""


class NotAllowedError(NatskitError):
    """nats-server did not take a message: its sender may not publish there, or not yet."""


class StateError(NatskitError):
    """The state in JetStream is unavailable, or changed underneath a write."""


class SignInError(NatskitError):
    """A sign-in was refused, or the session has ended.

    ``reason`` and ``account_id`` are for the audit; who is refused is told the message alone.
    """

    def __init__(self, message: str, *, reason: str = "", account_id: str = "-") -> None:
        super().__init__(message)
        self.reason = reason
        self.account_id = account_id


class OidcError(NatskitError):
    """A sign-in at the OpenID provider came to nothing.

    The message and the HTTP status are for the person, ``reason``, ``account_id`` and ``detail`` for the audit.
    """

    def __init__(self, status: int, reason: str, message: str, account_id: str = "-", detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.account_id = account_id
        self.detail = detail
