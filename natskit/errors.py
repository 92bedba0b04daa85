"""natskit's exceptions. Every message that a user can see names the value, its place and the fix."""


class NatskitError(Exception):
    """Base class of natskit's exceptions. The message is one line for the user and contains no secret."""


class SettingsError(NatskitError):
    """A setting is unknown, malformed or inconsistent with another one."""


class IdentityError(NatskitError):
    """The identity directory is missing, incomplete, readable by others, or inconsistent."""


class ClaimsError(NatskitError):
    """A JWT is malformed, tampered with, expired, or signed by a key that may not sign it."""


class TemplateError(NatskitError):
    """A template is unknown or needs a setting that is missing."""


class ConnectionLostError(NatskitError):
    """A server, hub or project did not answer in time, or disconnected in the middle of an answer."""


class AbsentError(ConnectionLostError):
    """The subject has no subscriber. Nobody received the request, so any request may be repeated."""


class AnswerLostError(ConnectionLostError):
    """The connection was lost between a request and its answer. The request may or may not have been carried out."""


class NotAllowedError(NatskitError):
    """nats-server refused a message because its sender may not, or may not yet, publish to the subject."""


class StateError(NatskitError):
    """The state in JetStream is unavailable, or another writer changed it first."""


class BackupError(NatskitError):
    """A backup cannot be taken, is damaged, or does not fit the platform."""


class SignInError(NatskitError):
    """A sign-in was refused, or the session has ended.

    ``reason`` and ``account_id`` are for the audit log. The user sees only the message.
    """

    def __init__(self, message: str, *, reason: str = "", account_id: str = "-") -> None:
        super().__init__(message)
        self.reason = reason
        self.account_id = account_id


class OtherAccountError(NatskitError):
    """The request names another account than its session cookie."""


class OidcError(NatskitError):
    """A sign-in through the OpenID provider failed.

    The user sees the message and the HTTP status. ``reason``, ``account_id`` and ``detail`` are for the audit log.
    """

    def __init__(self, status: int, reason: str, message: str, account_id: str = "-", detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.account_id = account_id
        self.detail = detail
