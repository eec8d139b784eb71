"""The errors that `verify` may raise. The gateway raises them; the server turns them into hosted's texts and codes."""


class TokenInvalid(Exception):
    """The token is not valid here: not a JWT, a wrong signature, or an unknown `sb_…` key."""


class TokenExpired(TokenInvalid):
    """A well-signed token whose `exp` has passed.

    `seconds_ago`: whole seconds since then; hosted reports them to the client ("Token has expired 12 seconds ago").
    """

    def __init__(self, seconds_ago: int) -> None:
        super().__init__(f"Token has expired {seconds_ago} seconds ago")
        self.seconds_ago = seconds_ago
